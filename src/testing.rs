//! What this repository's tests, benches and examples reach besides the public face. It is no part of
//! that: it changes as they need.

pub mod parsers;

#[cfg(feature = "import")]
pub use crate::graph::decided;
#[cfg(feature = "import")]
pub use crate::import::{FrozenMatrix, InputInfo, MatrixValues, Prepared, prepare};
pub use crate::quant::Threads;
pub use crate::runtime::pool;
pub use crate::train::random::{shuffle, stream};

/// Figures of a base on made-up values.
pub mod bench {
    pub use crate::bench::{Sizes, adapter, inputs, median};
    pub use crate::fs::peak_rss_bytes;
}

/// Learning by itself, without HTTP.
#[cfg(feature = "daemon")]
pub mod daemon {
    pub use crate::daemon::Serving;
    pub use crate::daemon::learn::{
        Check, Condition, ConditionSettings, Evidence, GateSettings, Hours, JobStatus, LearnStatus,
        Learner, NameStatus, Place, Reference, Settings, Tally, TrainSettings, TrialSettings,
        Verdict, WatchSettings, Watched,
    };
    pub use crate::host::Root;
}

/// The kernels, one by one.
pub mod kernels {
    pub use crate::quant::{
        Activation, ConvGeometry, Packed, PackedRef, depthwise, depthwise_input_gradient,
        kernel_name, product, product_transposed,
    };
}

/// numpy's files.
pub mod npy {
    pub use crate::npy::{read, read_bytes, read_npz, read_npz_bytes, to_bytes, to_npz, write};
}
