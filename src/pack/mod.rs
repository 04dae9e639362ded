//! Layer 2: the `.base` file. Format, writer, mapping, views. `docs/FORMAT.md` has the byte tables.
//!
//! Knows nothing about adapters' values, training, or what the graph's text means.

mod base;
mod header;
mod mapping;
mod record;
mod writer;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use base::{Base, ConstantRef};
pub use header::{MAGIC, SECTION_ALIGN, SectionInfo, VERSION, WEIGHT_ALIGN};
pub(crate) use mapping::prepare_heap;
#[cfg(feature = "daemon")]
pub(crate) use mapping::{release_heap, share_heaps};
pub use record::{ConstType, ImageSpec, ImportRecord, IoSpec, Preprocess, TargetError, WeightSpec};
pub use writer::BaseWriter;
