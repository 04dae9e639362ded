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
//! - [`runtime::Engine`]: a mapped base and its plans; cheap to clone, runs on many threads.
//! - [`runtime::Session`]: an engine and the adapter that it serves now; a switch is a pointer swap.
//! - [`adapter::Adapter`]: an adapter's tensors and where they attach; read, written, imported.
//! - [`train::train`]: from labelled samples to an adapter, through the weights that serve.
//! - [`store::Store`]: named adapters in immutable generations, and the samples they learn from.
//!
//! ```no_run
//! use offshoot::adapter::Adapter;
//! use offshoot::runtime::{Engine, Session};
//! use offshoot::shape::Array;
//!
//! # fn main() -> offshoot::error::Result<()> {
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
//! Features, all on by default: `import` (reading ONNX files), `text` (tokenizers), `daemon` (the
//! daemon and the verbs that talk to it). Errors are [`error::Error`]; its kind fixes the exit code.

#[cfg(test)]
extern crate self as offshoot;

/// Compiles the README's Rust.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod adapter;
pub mod bench;
pub mod cli;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod error;
pub mod fingerprint;
pub mod fs;
pub mod graph;
pub mod host;
#[cfg(feature = "import")]
pub mod import;
pub mod limits;
pub mod npy;
pub mod pack;
pub mod quant;
pub mod runtime;
pub mod shape;
pub mod store;
// Only the daemon's gate asks a task what one answer is worth.
#[cfg_attr(not(feature = "daemon"), allow(dead_code))]
pub mod train;
