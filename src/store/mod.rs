//! Layer 6: all that lasts. Named adapters in immutable numbered generations, one of them active;
//! samples and what became of them; jobs; events. One folder: a SQLite database and
//! content-addressed adapter files.
//!
//! Every change is one transaction, on the medium when the call returns. An adapter's file is
//! written, synced, renamed and its folder synced before the transaction that points to it; a file
//! is removed after the transaction that stops pointing to it. What a killed process leaves over is
//! cleared away by the next that opens the store.
//!
//! ```
//! use offshoot::Adapter;
//! use offshoot::adapters::TargetAdapter;
//! use offshoot::store::{Origin, Reference, Serve, Store};
//!
//! # fn main() -> offshoot::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! let adapter = Adapter {
//!     targets: vec![TargetAdapter::lora("encoder.dense", 1, 1.0, vec![1.0; 2], vec![0.5; 3])],
//!     ..Adapter::default()
//! };
//! let store = Store::open(folder.path().join("store"))?;
//! let added = store.add_and_serve("kitchen", &adapter, &Origin::default(), Serve::Now)?;
//! let loaded = store.load(&Reference::parse("kitchen")?)?;
//! assert_eq!((loaded.generation, &loaded.adapter.targets), (added.generation, &adapter.targets));
//! # Ok(())
//! # }
//! ```
//!
//! Knows nothing about how operations run, of training, or of HTTP.

mod active;
mod backup;
mod ballast;
mod db;
mod events;
mod folder;
mod forget;
mod generations;
mod hashes;
mod insert;
mod jobs;
mod label;
mod log;
mod lost;
mod names;
mod opening;
mod outcomes;
mod quota;
mod rotate;
mod rows;
mod rules;
mod salvage;
mod samples;
mod schema;
mod seal;
mod settle;
mod state;
mod trust;
mod witness;

pub use active::{How, Removed, Switch, Switched};
pub use backup::{Backup, Restored};
pub use db::DECIDE;
pub use events::Event;
pub use forget::{Fallback, ForgetReport, Retired, Selector};
pub use generations::{
    Added, Generation, GenerationState, Loaded, NameEntry, Origin, Serve, Trial,
};
pub use hashes::SampleHash;
pub use insert::{NewSample, Recorded, Taken};
pub use jobs::{Job, JobState, Reason};
pub(crate) use log::pages as log_pages;
pub use lost::Lost;
pub use names::{MAX_NAME, Reference, check_name};
pub use outcomes::{ClassCount, Counts, Outcomes};
pub use rules::{Quota, Rules};
pub use samples::{
    Filter, Form, Input, InputKind, Label, Part, Sample, SampleInfo, SampleState, TrainingSet,
};
pub use seal::Key;
pub use state::{Options, Store};
pub use trust::Why;

#[cfg(test)]
mod backup_tests;
#[cfg(test)]
mod cut_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod forget_tests;
#[cfg(test)]
mod kill_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod open_tests;
#[cfg(test)]
mod sample_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wear_tests;
