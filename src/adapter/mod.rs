//! Layer 1: adapters (targets, configuration, tensors, file, algebra, interoperation).

mod algebra;
mod blocks;
mod check;
mod config;
mod describe;
mod file;
pub(crate) mod kind;
mod known;
mod merge;
mod names;
pub mod peft;
mod sum;
mod target;
mod tensor;
#[cfg(test)]
mod testing;

pub use algebra::{Bound, bind};
pub use check::{MAX_LABELS, MAX_RANK};
pub use config::{
    ActivationRange, Adapter, Extra, Head, NamedTensor, Pool, ProbeEffect, TargetAdapter,
    TrainingRecord, scaling,
};
pub use file::{MAGIC, MAX_FILE};
pub use kind::Kind;
pub use known::{Known, MOST_EXEMPLARS, TAIL, dot, nearness, tail, unit_row};
pub use merge::merge;
pub use target::{Target, TargetKind};
pub use tensor::TensorType;
