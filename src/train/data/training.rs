//! What of a data set is trained on, and what is held out.

use super::{Dataset, LoadOptions, Split, load};
use crate::error::{Error, Result};
use crate::pack::Base;
use crate::train::tasks::Task;
use std::path::Path;

/// The split that is held out before a split `test` is.
pub(crate) const HELD: &str = "validation";

/// What is trained on, and what of the same file is held out.
pub(crate) struct Training {
    /// The rows of split `train`, or all.
    pub data: Dataset,
    /// The rows of the split that is held out, where the file has one.
    pub held_out: Option<Dataset>,
}

/// Reads a file to train on the base, within `memory` bytes: its split `validation` is held out, else its split `test`.
///
/// # Errors
/// As [`load`]. Bad input: a split of another name, of which nothing says whether it may be trained
/// on.
pub(crate) fn training(
    path: &Path,
    base: &Base,
    task: Option<Task>,
    memory: Option<u64>,
) -> Result<Training> {
    let options = |split| LoadOptions { split, task, labels: None, memory };
    let read = |split| Ok::<_, Error>(load(path, &options(split))?.on(base));
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

fn held_out(all: &Dataset) -> Option<Split> {
    [(HELD, Split::Named(HELD.into())), ("test", Split::Test)]
        .into_iter()
        .find(|(name, _)| all.splits.contains(*name))
        .map(|(_, split)| split)
}
