//! Layer 2: from an ONNX file to a checked, rewritten graph whose target layers carry no weights.
//!
//! Knows nothing about adapters' values or how operations run.

mod binding;
mod branches;
mod child;
mod confine;
mod lowering;
mod names;
mod nbits;
mod operators;
mod options;
mod prepare;
mod quantize;
mod recurrent;
mod rewritten;
mod stage;
mod targets;
mod tensor;
mod validate;
mod weights;

pub use binding::{Bound, caught, fit};
pub use child::{Limits, built, enter_worker, failure_of, run_limited, run_worker};
pub use confine::confine;
pub use options::{ImportOptions, InputSpec};
pub use prepare::{InputInfo, Prepared, prepare};
pub use quantize::{errors_of, quantize};
pub use recurrent::{Cell, Function, Product, Recurrent};
pub use rewritten::{ConvAttributes, Padding, op};
pub use stage::{Stage, tell};
pub use targets::FrozenMatrix;
pub use weights::MatrixValues;
