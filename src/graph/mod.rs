//! Layer 3: our tract ops over frozen weights, their text form, and rewrites of whole graphs.
//! Knows nothing about files and sockets.

mod attention;
mod bind;
mod cells;
mod changes;
mod contraction;
mod conv;
mod ctc_loss;
mod depthwise;
#[cfg(feature = "import")]
mod divided;
mod embedding;
mod fuse;
mod fused_linear;
mod join;
mod kept;
#[cfg(feature = "text")]
mod last;
mod layer_norm;
mod layout;
mod linear;
mod looped;
#[cfg(feature = "import")]
mod lower;
pub(crate) mod memory;
mod nnef;
#[cfg(feature = "import")]
mod onnx;
mod optimize;
pub(crate) mod order;
mod patches;
mod place;
mod quotient;
#[cfg(feature = "import")]
mod recurrent;
mod rotary;
mod rounding;
mod row_norms;
mod select;
#[cfg(feature = "import")]
mod shapes;
#[cfg(test)]
mod testing;
mod token_drift;
mod token_loss;
mod trace;
mod watch;
mod weights;
mod window;

pub use attention::Attention;
pub use bind::{bind_dims, solve, substitute, symbol_values};
pub use cells::{Functions, GruCell, LstmCell};
pub use changes::{ActiveAdapter, RowAdapters};
pub use contraction::contract_einsums;
pub use conv::{FrozenConv, FrozenConvInputGradient};
pub use ctc_loss::{CtcLoss, ctc_loss, ctc_steps};
pub use depthwise::{DepthwiseInputGradient, FrozenDepthwise};
pub use embedding::FrozenEmbedding;
pub use fuse::{GivenState, KeptLayer, fuse, keep};
pub use fused_linear::FusedLinear;
pub use join::join;
pub use kept::{KeptAttention, KeptStates};
#[cfg(feature = "text")]
pub use last::last_row;
pub use layer_norm::LayerNorm;
pub use layout::channels_last;
pub use linear::{FrozenLinear, FrozenLinearTransposed};
#[cfg(feature = "import")]
pub use lower::{decided, lower};
pub use nnef::{read_graph, write_graph};
#[cfg(feature = "cli")]
pub use optimize::macs;
pub use optimize::{decluttered, optimized, shared_macs};
pub use patches::{Col2im, Im2col};
pub use place::{Place, places, within};
pub use quotient::Quotient;
pub use rotary::Rotary;
pub use rounding::{ByteRange, RoundThrough};
pub use row_norms::RowNorms;
pub use select::{NonMaxSuppression, NonZero};
pub use token_drift::TokenDrift;
pub use token_loss::TokenLoss;
pub use trace::{Origin, Trace};
pub use watch::{Halt, More, Stop, Watch, open_sizes, run_watched};
pub use weights::FrozenWeights;
pub use window::{Padding, Window};

use crate::error::{Error, ErrorKind};

/// tract's error as ours: the chain of its causes on one line.
pub fn tract_error(kind: ErrorKind, error: &tract_core::internal::TractError) -> Error {
    Error::new(kind, format!("{error:#}"))
}
