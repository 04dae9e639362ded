//! Offshoot grows small LoRA adapters out of a frozen ONNX model, on the device that uses them.
//!
//! ```text
//! model.onnx ──pack──► model.base        frozen, quantized, mapped read-only, shared by processes
//!                         │
//!    your samples ──train──► my.adapter   lora_a, lora_b and a head; names its base
//!                         │       │
//!          request ──run──┴───────┘──► answer
//! ```
//!
//! - [`Engine`]: a mapped base and its plans; cheap to clone, runs on many threads.
//! - [`Session`]: an engine and the adapter that it serves now; a switch is a pointer swap.
//! - [`Adapter`]: an adapter's tensors and where they attach; read, written, imported ([`adapters`]).
//! - [`train`]: from labelled samples ([`data`]) to an adapter, through the weights that serve.
//! - [`store::Store`]: named adapters in immutable generations, and the samples they learn from.
//!
//! ```no_run
//! use offshoot::{Adapter, Array, Engine, Session};
//!
//! # fn main() -> offshoot::Result<()> {
//! let session = Session::new(Engine::open("model.base")?);
//! let x = vec![("x".to_string(), Array::f32([1, 8], vec![0.5; 8])?)];
//! let base = session.run(&x)?;
//! let bound = session.engine().bind(&[(&Adapter::read("my.adapter")?, 1.0)])?;
//! session.switch(Some(bound));
//! assert_ne!(base, session.run(&x)?);
//! # Ok(())
//! # }
//! ```
//!
//! Features, all on by default: `import` (reading ONNX files), `text` (tokenizers), `store` (named
//! adapters and samples), `cli` (the program), `daemon` (the daemon and the verbs that talk to it).
//! Errors are [`Error`]; its kind fixes the program's exit code.
//!
//! What this page names is the public face, and what version numbers speak of; the rest is private.

#![deny(unnameable_types)]
// What nobody calls is looked for with all features: parts of the crate share their helpers.
#![cfg_attr(
    not(all(feature = "daemon", feature = "import", feature = "text")),
    allow(dead_code, unused_imports)
)]

#[cfg(test)]
extern crate self as offshoot;

/// Compiles the README's Rust.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod adapter;
mod bench;
#[cfg(feature = "cli")]
mod cli;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(feature = "daemon")]
mod daemon;
mod error;
mod fingerprint;
mod fs;
mod graph;
mod host;
#[cfg(feature = "import")]
mod import;
mod limits;
mod npy;
mod pack;
mod quant;
mod runtime;
mod shape;
#[cfg(feature = "store")]
pub mod store;
#[doc(hidden)]
pub mod testing;
mod train;

pub use adapter::{Adapter, Bound};
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use cli::main as program;
pub use error::{Cause, Error, ErrorKind, Result};
pub use fingerprint::BaseFingerprint;
pub use pack::{Base, IoSpec, Role};
pub use quant::Scheme;
#[cfg(feature = "import")]
pub use runtime::pack;
pub use runtime::{
    Engine, Named, Prediction, Preprocessor, Session, Tokens, WordAt, Words, apply_head,
    base_predictions,
};
pub use shape::{Array, DType, Data};
pub use train::tasks::{Answer, Task};
pub use train::{evaluate, train};

/// What an [`Adapter`] is made of, and those of other programs.
pub mod adapters {
    pub use crate::adapter::{
        ActivationRange, Extra, Head, Kind, NamedTensor, Pool, ProbeEffect, Target, TargetAdapter,
        TargetKind, TensorType, TrainingRecord, merge,
    };

    /// Directories as PEFT writes them.
    pub mod peft {
        pub use crate::adapter::peft::{
            HeadSpec, ImportOptions, Imported, MatchRow, export, import,
        };
    }
}

/// Samples with labels, to learn from.
pub mod data {
    pub use crate::train::data::{
        Dataset, Label, LoadOptions, Mark, Place, Sample, SampleInput, Split, StoredPicture, load,
    };
}

/// How ONNX files become bases, and what a base says of its inputs.
pub mod packing {
    #[cfg(feature = "import")]
    pub use crate::import::{ImportOptions, InputSpec, Stage};
    pub use crate::pack::{
        Activation, Bound, Filter, Fit, GraphRecord, ImageSpec, ImportRecord, Preprocess, Problem,
        Subspace, TargetError,
    };
    #[cfg(feature = "import")]
    pub use crate::runtime::{
        ExportFolder, Files, GraphSource, Io, OnnxSummary, PackOptions, PackedBase, Request,
        Sandbox, TargetLine, pack_graphs, sandbox_main,
    };
}

/// How adapters are trained.
pub mod training {
    pub use crate::train::metrics::Confusion;
    pub use crate::train::progress::{Event, Progress, Silent};
    pub use crate::train::schedule::Schedule;
    pub use crate::train::tasks::{Metric, Metrics};
    pub use crate::train::{
        Answers, Evaluation, Gradients, Lesson, MicroBatch, OptimizerKind, Retention, TargetChoice,
        TrainOptions, TrainReport, Trained, Trainer, learn, retention,
    };
}
