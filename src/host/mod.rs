//! Layer 0: what the machine is and how it fares, read from `/proc` and `/sys`.
//!
//! Every source may be missing: a board, a container and an emulator each show another part of
//! them. Facts only; what they mean is for the callers to say.

mod cpu;
mod elf;
mod heat;
mod libc;
mod memory;
mod power;
mod root;
mod storage;
#[cfg(test)]
pub(crate) use root::testing;

pub use cpu::{Cpu, cpu};
pub use elf::{Elf, Glibc};
pub use heat::{Sensor, sensors};
pub use libc::{LibC, libc, system_glibc};
pub use memory::{Memory, memory};
pub use power::{Power, Supply, Throttled, power};
pub use root::Root;
pub use storage::{Medium, Storage, Sync, storage};
