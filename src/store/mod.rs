//! Layer 6: named adapters in a folder, each in immutable numbered generations, one of them active.
//!
//! Knows nothing about how operations run.

mod files;
mod names;

pub use files::{Added, Entry, Loaded, Store};
pub use names::{MAX_NAME, Reference, check_name};
