//! Data sets from the command line.

use crate::error::{Error, Result};
use crate::train::data::{Dataset, LoadOptions, Split, Task, load};
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
    /// The rows of split `test`, where the file has one.
    pub held_out: Option<Dataset>,
}

/// Reads a file to train on: a split `test` of it is held out.
pub fn training(path: &Path, task: Task) -> Result<Training> {
    let read = |split| load(path, &LoadOptions { split, task, labels: None });
    let all = read(Split::All)?;
    if !all.splits.contains("test") {
        return Ok(Training { data: all, held_out: None });
    }
    Ok(Training { data: read(Split::Train)?, held_out: Some(read(Split::Test)?) })
}

/// Reads a file to measure on, its labels in a head's order: split `test` if it has one, where no
/// split is named.
pub fn measured(path: &Path, chosen: Option<&Split>, labels: Option<&[String]>) -> Result<Dataset> {
    let labels = labels.filter(|l| !l.is_empty()).map(<[String]>::to_vec);
    let read =
        |split: Split| load(path, &LoadOptions { split, task: Task::Auto, labels: labels.clone() });
    match chosen {
        Some(split) => read(split.clone()),
        None => {
            let all = read(Split::All)?;
            if all.splits.contains("test") { read(Split::Test) } else { Ok(all) }
        }
    }
}
