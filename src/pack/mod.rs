//! Layer 2: the `.base` file. Format, writer, mapping, views. `docs/FORMAT.md` has the byte tables.
//!
//! Knows nothing about adapters' values, training, or what the graph's text means.

mod audio;
mod base;
mod header;
mod io;
mod mapping;
mod preprocess;
mod record;
mod writer;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use audio::{AudioSpec, Edges, Front, Log, MelSpec, Pitch, Window};
pub use base::{Base, ConstantRef};
pub use header::{MAGIC, SECTION_ALIGN};
pub use io::{IoSpec, Role};
pub use mapping::prepare_heap;
pub(crate) use mapping::release_heap;
#[cfg(feature = "cli")]
pub(crate) use mapping::say_cut_files;
#[cfg(feature = "daemon")]
pub(crate) use mapping::share_heaps;
pub use preprocess::{Activation, Filter, Fit, ImageSpec, Preprocess, Problem, Subspace};
pub use record::{Bound, ConstType, GraphRecord, ImportRecord, SectionInfo, TargetError};
pub use writer::BaseWriter;
