//! Offshoot grows small LoRA adapters out of a frozen ONNX model, on the device that uses them.

pub mod adapter;
pub mod bench;
pub mod cli;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod error;
pub mod fingerprint;
pub mod fs;
pub mod graph;
pub mod host;
#[cfg(feature = "import")]
pub mod import;
pub mod npy;
pub mod pack;
pub mod quant;
pub mod runtime;
pub mod shape;
pub mod store;
pub mod train;
