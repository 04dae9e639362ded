//! Layer 1: adapters (targets, configuration, tensors, file, algebra, interoperation).

mod algebra;
mod check;
mod config;
mod describe;
mod file;
mod merge;
mod names;
pub mod peft;
mod target;
mod tensor;
#[cfg(test)]
mod testing;

pub use algebra::{Bound, bind};
pub use check::{MAX_AXES, MAX_LABELS, MAX_LIST, MAX_NAME, MAX_RANK, MAX_TARGETS};
pub use config::{Adapter, Head, Kind, Pool, ProbeEffect, TargetAdapter, TrainingRecord, scaling};
pub use describe::{Description, HeadDescription, Norms, ProbeDescription, TargetDescription};
pub use file::{MAGIC, MAX_FILE, MAX_HEADER, VERSION};
pub use merge::merge;
pub use target::{Target, TargetKind};
pub use tensor::TensorType;
