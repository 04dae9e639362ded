//! Layer 0: what the machine is and how it fares, read from `/proc` and `/sys` and asked of the
//! firmware.
//!
//! Every source may be missing: a board, a container and an emulator each show another part of
//! them. Facts only; what they mean is for the callers to say.

mod cpu;
mod elf;
mod firmware;
mod heat;
mod libc;
mod memory;
mod mounts;
mod power;
mod root;
mod storage;
#[cfg(test)]
pub(crate) use root::testing;

pub use cpu::{Cpu, cpu};
pub use elf::{Elf, Glibc};
#[cfg(test)]
pub use firmware::Strain;
pub use firmware::{Throttled, cmdline, throttled};
pub use heat::{NEAR, Sensor, deciding, sensors};
pub use libc::{LibC, libc, system_glibc};
pub use memory::{Memory, memory};
#[cfg(test)]
pub use power::Supply;
pub use power::{Power, Rail, power, rails};
pub use root::Root;
pub use storage::{Medium, Storage, Sync, storage};
