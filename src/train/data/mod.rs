//! Samples with labels, from `.jsonl`, `.csv`, `.npz` and folders of class folders of pictures.
//!
//! Files are strangers': sizes are capped, and what is wrong is named with its file and line.

mod collect;
mod folder;
mod jsonl;
mod npz;
mod table;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::shape::Array;
use collect::Collector;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest data file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// Longest line or record, in bytes.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// Most samples in a data set.
pub const MAX_SAMPLES: usize = 10_000_000;

/// Most different labels in a data set.
pub const MAX_LABELS: usize = 65_536;

/// Longest label name, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;

/// What goes into the base.
#[derive(Clone, Debug, PartialEq)]
pub enum SampleInput {
    /// A sentence, not empty.
    Text(String),
    /// A picture file, seen to exist.
    Image(PathBuf),
    /// A picture that is kept elsewhere and read when it is needed.
    Stored(StoredPicture),
    /// Inputs by name, without the axis of samples; floats are finite.
    Arrays(Vec<(String, Array)>),
}

impl SampleInput {
    fn kind(&self) -> &'static str {
        match self {
            SampleInput::Text(_) => "text",
            SampleInput::Image(_) | SampleInput::Stored(_) => "a picture",
            SampleInput::Arrays(_) => "arrays",
        }
    }
}

/// Gives the bytes of a picture file.
type ReadPicture = dyn Fn() -> Result<Vec<u8>> + Send + Sync;

/// A picture that something else keeps: many don't fit into memory at once.
#[derive(Clone)]
pub struct StoredPicture {
    hash: [u8; 32],
    read: Arc<ReadPicture>,
}

impl StoredPicture {
    /// One whose bytes `read` gives; `hash` names them.
    pub fn new(
        hash: [u8; 32],
        read: impl Fn() -> Result<Vec<u8>> + Send + Sync + 'static,
    ) -> StoredPicture {
        StoredPicture { hash, read: Arc::new(read) }
    }

    /// What names it.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The file's bytes. Errors: those of whoever keeps it.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        (self.read)()
    }
}

impl fmt::Debug for StoredPicture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredPicture").field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl PartialEq for StoredPicture {
    fn eq(&self, other: &StoredPicture) -> bool {
        self.hash == other.hash
    }
}

/// What should come out.
#[derive(Clone, Debug, PartialEq)]
pub enum Label {
    /// A place in [`Dataset::labels`].
    Class(usize),
    /// Finite numbers, as many for every sample.
    Values(Vec<f32>),
}

/// Where a sample stands: `file:line`, or the file alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: Arc<str>,
    line: u64,
}

impl Place {
    pub(crate) fn new(file: &Arc<str>, line: u64) -> Place {
        Place { file: file.clone(), line }
    }
}

impl Place {
    /// A place with a name of its own (a sample in a store).
    pub fn named(name: impl Into<Arc<str>>) -> Place {
        Place { file: name.into(), line: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 { write!(f, ":{}", self.line) } else { Ok(()) }
    }
}

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// What goes in.
    pub input: SampleInput,
    /// What should come out.
    pub label: Label,
    /// For messages.
    pub place: Place,
}

/// Samples of one kind of input and one kind of label; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// The samples, in the file's order (folders: sorted by class and name).
    pub samples: Vec<Sample>,
    /// Names of the classes: as given, else those of the whole file, sorted (by number if all are
    /// integers). Empty where labels are values.
    pub labels: Vec<String>,
    /// Names of the splits that the whole file knows.
    pub splits: BTreeSet<String>,
}

impl Dataset {
    /// The class of every sample, or `None` where labels are values.
    pub fn classes(&self) -> Option<Vec<usize>> {
        let class = |s: &Sample| match s.label {
            Label::Class(c) => Some(c),
            Label::Values(_) => None,
        };
        self.samples.iter().map(class).collect()
    }

    /// Numbers per label; 1 for classes.
    pub fn label_width(&self) -> usize {
        match self.samples.first().map(|s| &s.label) {
            Some(Label::Values(v)) => v.len(),
            _ => 1,
        }
    }
}

/// Which rows are wanted: the field or column `split`, or the subfolders `train` and `test`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// Every row.
    #[default]
    All,
    /// Rows of split `train` and rows without one.
    Train,
    /// Rows of split `test`.
    Test,
    /// Rows of this split.
    Named(String),
}

impl Split {
    fn takes(&self, split: Option<&str>) -> bool {
        match self {
            Split::All => true,
            Split::Train => matches!(split, None | Some("train")),
            Split::Test => split == Some("test"),
            Split::Named(name) => split == Some(name),
        }
    }

    fn name(&self) -> &str {
        match self {
            Split::All => "all",
            Split::Train => "train",
            Split::Test => "test",
            Split::Named(name) => name,
        }
    }
}

/// What labels are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// Values if a label is a list or a number with a fraction, else classes.
    #[default]
    Auto,
    /// Classes, whatever the labels look like.
    Classes,
    /// Numbers to meet.
    Values,
}

/// How to read a data set.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Which rows.
    pub split: Split,
    /// What labels are.
    pub task: Task,
    /// The classes and their order, as a head has them; a label outside is an error. Makes every
    /// label a class.
    pub labels: Option<Vec<String>>,
}

/// Reads a data set: the file's ending says its form, a folder holds class folders of pictures
/// (or `train` and `test` folders of those).
///
/// Errors, each with file and line where there is one: no such file, unknown ending (unsupported),
/// no samples, malformed rows, missing fields, labels outside the given ones (mismatch), numbers
/// that are not finite, sizes past this module's limits.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Dataset> {
    let mut collector = Collector::new(path, options);
    if path.is_dir() {
        folder::read(path, &mut collector)?;
        return collector.finish();
    }
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    match ending.as_str() {
        "jsonl" | "ndjson" => jsonl::read(path, &mut collector)?,
        "csv" => table::read(path, &mut collector)?,
        "npz" => npz::read(path, &mut collector)?,
        _ if !path.exists() => {
            return Err(Error::bad_input(format!("no such file '{}'", path.display())));
        }
        _ => {
            let error = format!("'{}' is no data file of a known kind", path.display());
            return Err(Error::unsupported(error)
                .hint("one of .jsonl, .csv, .npz, or a folder of class folders of pictures"));
        }
    }
    collector.finish()
}
