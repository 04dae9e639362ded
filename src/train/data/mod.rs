//! Samples with labels, from `.jsonl`, `.csv`, `.npz`, folders of class folders of pictures or sound, and plain texts.
//!
//! Files are strangers': sizes are capped, and what is wrong is named with its file and line.

mod collect;
mod folder;
mod jsonl;
mod label;
mod npz;
mod plain;
mod row;
mod table;
#[cfg(test)]
pub(super) mod tests;
mod training;

use super::split::{HoldOut, hold_out};
use super::tasks::Task;
use crate::error::{Error, Result};
use crate::fs::open_regular;
use crate::pack::Base;
use crate::shape::Array;
pub(crate) use collect::Collector;
pub(crate) use folder::files_in;
pub use label::{Follows, Label, Mark, Spelled};
pub use row::Row;
pub(crate) use row::{Rough, RoughLabel, RoughName, Seen};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
pub(crate) use training::{HELD, training};

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
    /// A sound file, seen to exist.
    Audio(PathBuf),
    /// A picture or sound that is kept elsewhere and read when it is needed.
    Stored(StoredPicture),
    /// Inputs by name, without the axis of samples; floats are finite.
    Arrays(Vec<(String, Array)>),
}

impl SampleInput {
    /// Hash of what it is, of a file that of its bytes, or of its name where it can't be read.
    fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        match self {
            SampleInput::Text(text) => _ = hasher.update(text.trim().as_bytes()),
            SampleInput::Image(path) | SampleInput::Audio(path) => {
                let file = open_regular(path, u64::MAX).map(|opened| opened.file);
                if file.is_ok_and(|file| hasher.update_reader(file).is_ok()) {
                    return hasher.finalize().into();
                }
                hasher.reset().update(path.as_os_str().as_encoded_bytes());
            }
            SampleInput::Stored(stored) => return *stored.hash(),
            SampleInput::Arrays(arrays) => {
                for (name, array) in arrays {
                    hasher.update(name.as_bytes()).update(&[0]);
                    hasher.update(&crate::npy::to_bytes(array));
                }
            }
        }
        hasher.finalize().into()
    }

    /// Bytes that it takes beside its own size, a sentence's tokens included.
    fn bytes(&self) -> u64 {
        /// What the C library keeps beside a block.
        const BLOCK: usize = 16;
        let bytes = match self {
            // Tokens have two numbers of eight bytes each, and are four letters long or longer.
            SampleInput::Text(text) => 5 * (text.len() + BLOCK),
            SampleInput::Image(path) | SampleInput::Audio(path) => path.as_os_str().len() + BLOCK,
            SampleInput::Stored(_) => 4 * BLOCK,
            SampleInput::Arrays(arrays) => arrays
                .iter()
                .map(|(name, a)| size_of::<(String, Array)>() + name.len() + a.data().byte_len())
                .map(|bytes| bytes + 6 * BLOCK)
                .sum(),
        };
        bytes as u64
    }

    fn kind(&self) -> &'static str {
        match self {
            SampleInput::Text(_) => "text",
            SampleInput::Image(_) => "a picture",
            SampleInput::Audio(_) => "sound",
            SampleInput::Stored(_) => "a file",
            SampleInput::Arrays(_) => "arrays",
        }
    }
}

/// Gives the bytes of a picture's or sound's file.
type ReadPicture = dyn Fn() -> Result<Vec<u8>> + Send + Sync;

/// A picture or sound that something else keeps: many don't fit into memory at once.
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

impl Sample {
    /// Bytes that it takes, with what training makes of it.
    fn bytes(&self) -> u64 {
        size_of::<Sample>() as u64 + OF_A_ROW + self.input.bytes()
    }
}

/// Bytes that training keeps of each sample: its label, its tokens' places, its place in the orders.
const OF_A_ROW: u64 = 160;
/// Bytes that a label's name takes beside its text: two strings and a table's place.
const OF_A_NAME: usize = 96;

/// Samples of one kind of input and one kind of label; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// The samples, in the file's order (folders: sorted by class and name).
    pub samples: Vec<Sample>,
    /// Names of the labels: as given, else those of the whole file, sorted (by number if all are
    /// integers). Empty where labels are numbers.
    pub labels: Vec<String>,
    /// The splits that the whole file knows: `train`, `validation`, `test`, and others by their own names.
    pub splits: BTreeSet<String>,
    /// What the labels are for.
    pub task: Task,
    /// Why it is that task, where nobody asked for it.
    pub why: Option<String>,
}

impl Dataset {
    /// Bytes that the samples take.
    pub fn bytes(&self) -> u64 {
        self.samples.iter().map(Sample::bytes).sum()
    }

    /// Its task as the base learns it, where nobody asked for one.
    pub(crate) fn on(mut self, base: &Base) -> Dataset {
        let task = self.task.on(base);
        if self.why.is_some() && task != self.task {
            self.task = task;
            self.why = Some("the base's decoder writes its texts".into());
        }
        self
    }

    /// Numbers per label; 0 where labels are names.
    pub fn label_width(&self) -> usize {
        self.samples.first().map_or(0, |s| s.label.width())
    }

    /// Holds out `fraction` of the samples by `seed`, as [`hold_out`] does: of each class, and of the same inputs
    /// all or none.
    ///
    /// # Errors
    /// As [`hold_out`].
    pub(crate) fn hold_out(&self, fraction: f64, seed: u64) -> Result<HoldOut> {
        // Files are read for it.
        let same = (fraction > 0.0).then(|| self.same());
        hold_out(self.samples.len(), Some(&self.groups()), same.as_deref(), fraction, seed)
    }

    /// Of each sample the place of the first one of the same input. Pictures and sounds
    /// are the same where their files' bytes are.
    fn same(&self) -> Vec<usize> {
        let mut first = HashMap::new();
        let place = |(at, s): (usize, &Sample)| *first.entry(s.input.hash()).or_insert(at);
        self.samples.iter().enumerate().map(place).collect()
    }

    /// For each sample the group of which a share is held out.
    pub fn groups(&self) -> Vec<usize> {
        self.samples.iter().map(|s| self.task.rules().group(&s.label)).collect()
    }
}

/// The split that rows of this name belong to: the usual words for training, validation and test
/// are `train`, `validation` and `test`; another name stands for itself.
pub fn canonical_split(name: &str) -> &str {
    let is = |words: &[&str]| words.iter().any(|word| name.eq_ignore_ascii_case(word));
    if is(&["train", "training"]) {
        "train"
    } else if is(&["validation", "val", "valid", "dev", "eval"]) {
        "validation"
    } else if is(&["test", "testing"]) {
        "test"
    } else {
        name
    }
}

/// Which rows are wanted: the field or column `split`, or the subfolders `train`, `validation` and
/// `test`. Other usual words for these (`val`, `dev`, `eval`, ..) mean the same.
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
    /// Whether rows of this canonical split are wanted.
    fn takes(&self, split: Option<&str>) -> bool {
        match self {
            Split::All => true,
            Split::Train => matches!(split, None | Some("train")),
            Split::Test => split == Some("test"),
            Split::Named(name) => split == Some(canonical_split(name)),
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

/// How to read a data set.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Which rows.
    pub split: Split,
    /// What labels are for; by default what they look like decides.
    pub task: Option<Task>,
    /// The classes and their order, as a head has them; a label outside is an error. Makes every
    /// label a class.
    pub labels: Option<Vec<String>>,
    /// Bytes that the samples may take, counted as they are read; by default any number.
    pub memory: Option<u64>,
}

/// Reads a data set: the file's ending says its form, a folder holds class folders of pictures or
/// sound (or `train` and `test` folders of those).
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
        "txt" => plain::read(path, &mut collector)?,
        _ if !path.exists() => {
            return Err(Error::bad_input(format!("no such file '{}'", path.display())));
        }
        _ => {
            let error = format!("'{}' is no data file of a known kind", path.display());
            return Err(Error::unsupported(error).hint(
                "one of .jsonl, .csv, .npz, .txt, or a folder of class folders of pictures or sound",
            ));
        }
    }
    collector.finish()
}
