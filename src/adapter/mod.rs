//! Layer 1: adapters (targets, configuration, tensors, file, algebra, interoperation).

mod algebra;
mod blocks;
mod check;
mod config;
mod describe;
mod file;
pub(crate) mod kind;
mod merge;
mod names;
pub mod peft;
mod sum;
mod target;
mod tensor;
#[cfg(test)]
mod testing;

pub use algebra::{Bound, bind};
pub use check::{MAX_AXES, MAX_LABELS, MAX_LIST, MAX_NAME, MAX_RANK, MAX_TARGETS};
pub use config::{
    ActivationRange, Adapter, Extra, Head, NamedTensor, Pool, ProbeEffect, TargetAdapter,
    TrainingRecord, scaling,
};
pub use describe::{Description, HeadDescription, Norms, ProbeDescription, TargetDescription};
pub use file::{MAGIC, MAX_FILE, MAX_HEADER, VERSION};
pub use kind::{Features, Kind};
pub use merge::merge;
pub use target::{Target, TargetKind};
pub use tensor::TensorType;
