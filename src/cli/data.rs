//! Data sets from the command line.

use crate::adapter::Head;
use crate::error::{Error, Result};
use crate::runtime::Engine;
use crate::train::Task;
use crate::train::data::{Dataset, HELD, LoadOptions, Split, load};
use std::path::Path;

/// Reads `all`, `train`, `test` or another split's name.
pub fn split(text: &str) -> Result<Split> {
    match text {
        "" => Err(Error::usage("expected all, train, test or another split's name")),
        "all" => Ok(Split::All),
        "train" => Ok(Split::Train),
        "test" => Ok(Split::Test),
        name => Ok(Split::Named(name.into())),
    }
}

/// Reads a file to measure on, its labels those of what answers: a head, or the base itself, unless another
/// task is asked for. Where no split is named: `test` if it has one, else `validation`, else all.
///
/// # Errors
/// As [`load`]. Unsupported: a head of a task that this version doesn't know.
pub fn measured(
    path: &Path,
    task: Option<Task>,
    chosen: Option<&Split>,
    engine: &Engine,
    head: Option<&Head>,
) -> Result<Dataset> {
    let own = &engine.base().preprocess().labels;
    let labels = head.map_or(own.as_slice(), |head| &head.labels[..]);
    let options = LoadOptions {
        split: Split::All,
        task: Some(task.map_or_else(|| Task::serving(head, engine.base()), Ok)?),
        labels: (!labels.is_empty()).then(|| labels.to_vec()),
        memory: None,
    };
    let read = |split: Split| load(path, &LoadOptions { split, ..options.clone() });
    match chosen {
        Some(split) => read(split.clone()),
        None => {
            let all = read(Split::All)?;
            if all.splits.contains("test") {
                read(Split::Test)
            } else if all.splits.contains(HELD) {
                read(Split::Named(HELD.into()))
            } else {
                Ok(all)
            }
        }
    }
}

/// Reads a file of which only the inputs matter.
pub fn inputs_of(path: &Path) -> Result<Dataset> {
    let read = |split: Split| load(path, &LoadOptions { split, ..LoadOptions::default() });
    let all = read(Split::All)?;
    if all.splits.contains("test") { read(Split::Test) } else { Ok(all) }
}

/// What is held out of the training on `data`: the file at `path`.
///
/// # Errors
/// Those of reading it.
pub fn hold_out(path: &Path, data: &Dataset, memory: Option<u64>) -> Result<Dataset> {
    let labels = (!data.labels.is_empty()).then(|| data.labels.clone());
    // What is trained on is there already.
    let memory = memory.map(|all| all.saturating_sub(data.bytes()));
    load(path, &LoadOptions { split: Split::All, task: Some(data.task), labels, memory })
}
