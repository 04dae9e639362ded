//! Layer 6: how long a base takes and how much memory. Everything is measured in this process and
//! on made-up values; what needs a process of its own (start, peaks) is for the caller to run there.

mod figures;
mod made_up;
mod training;

pub use figures::{Latency, adapter_cost, latency, median, switching};
pub use made_up::{Sizes, adapter, inputs};
pub use training::training;
