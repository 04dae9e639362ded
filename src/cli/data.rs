//! Data sets from the command line.

use crate::adapter::Head;
use crate::error::{Error, Result};
use crate::runtime::Engine;
use crate::train::Task;
use crate::train::data::{Dataset, LoadOptions, Split, load};
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

/// What is trained on, and what of the same file is held out.
pub struct Training {
    /// The rows of split `train`, or all.
    pub data: Dataset,
    /// The rows of the split that is held out, where the file has one.
    pub held_out: Option<Dataset>,
}

/// Reads a file to train on, within `memory` bytes: its split `validation` is held out, else its split `test`.
///
/// # Errors
/// As [`load`]. Bad input: a split of another name, of which nothing says whether it may be trained
/// on.
pub fn training(path: &Path, task: Option<Task>, memory: Option<u64>) -> Result<Training> {
    let read = |split| load(path, &LoadOptions { split, task, labels: None, memory });
    let all = read(Split::All)?;
    let unknown = all.splits.iter().find(|s| !["train", HELD, "test"].contains(&s.as_str()));
    if let Some(split) = unknown {
        return Err(Error::bad_input(format!(
            "rows have the split '{split}': it may be meant to train on or to hold out"
        ))
        .at(path.display())
        .hint("name splits train, validation (or val, dev) and test"));
    }
    let Some(held) = held_out(&all) else { return Ok(Training { data: all, held_out: None }) };
    drop(all);
    Ok(Training { data: read(Split::Train)?, held_out: Some(read(held)?) })
}

const HELD: &str = "validation";

fn held_out(all: &Dataset) -> Option<Split> {
    [(HELD, Split::Named(HELD.into())), ("test", Split::Test)]
        .into_iter()
        .find(|(name, _)| all.splits.contains(*name))
        .map(|(_, split)| split)
}

/// Reads a file to measure on, its labels those of what answers: a head, or the base itself. Where no
/// split is named: `test` if it has one, else `validation`, else all.
///
/// # Errors
/// As [`load`]. Unsupported: a head of a task that this version doesn't know.
pub fn measured(
    path: &Path,
    chosen: Option<&Split>,
    engine: &Engine,
    head: Option<&Head>,
) -> Result<Dataset> {
    let own = &engine.base().preprocess().labels;
    let labels = head.map_or(own.as_slice(), |head| &head.labels[..]);
    let options = LoadOptions {
        split: Split::All,
        task: Some(Task::serving(head, engine.base())?),
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
