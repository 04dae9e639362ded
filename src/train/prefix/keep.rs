//! Rows that are kept: in memory, then in a file without a name.

use super::cut::Crossing;
use crate::error::{Error, ErrorKind, Result};
use crate::fs::Scratch;
use crate::graph::tract_error;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tract_core::internal::Tensor;

/// What crosses the cut of one row, in the order of the cut.
pub(super) type Row = Arc<Vec<Tensor>>;

/// What is kept of what.
pub(super) type Key = (Set, usize, usize);

/// Which samples a row is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::train) enum Set {
    /// Those that are trained on.
    Samples,
    /// Those held out, where they are others.
    Held,
    /// Probes of the base's knowledge.
    Probes,
}

/// Rows by what they are of.
pub(super) struct Keep(Mutex<Inner>);

/// How many bytes are kept where, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub memory: u64,
    pub file: u64,
    /// Rows found.
    pub found: u64,
    /// Why not all are kept.
    pub why_not: Option<String>,
}

#[derive(Default)]
struct Inner {
    rows: HashMap<Key, Row>,
    /// Bytes that `rows` may take.
    limit: u64,
    /// What the file is to lie beside.
    beside: Option<PathBuf>,
    file: Option<Scratch>,
    /// Where rows begin in the file.
    places: HashMap<Key, u64>,
    kept: Kept,
}

impl Keep {
    /// Nothing yet, and no room in memory; where that is full, rows go into a file beside `beside`.
    pub fn new(beside: Option<PathBuf>) -> Keep {
        Keep(Mutex::new(Inner { beside, ..Inner::default() }))
    }

    /// Gives it room in memory.
    pub fn allow(&self, bytes: u64) {
        self.lock().limit = bytes;
    }

    /// A row whose tensors have the form of `crossing`, if it is kept.
    pub fn get(&self, key: &Key, crossing: &[Crossing]) -> Option<Row> {
        let mut inner = self.lock();
        let found = match inner.rows.get(key) {
            Some(row) => Some(row.clone()),
            None => inner.read(key, crossing),
        };
        inner.kept.found += u64::from(found.is_some());
        found
    }

    /// Keeps a row, if there is room for it anywhere.
    pub fn put(&self, key: Key, row: &Row) {
        let mut inner = self.lock();
        let bytes: u64 = row.iter().map(|t| t.as_bytes().len() as u64).sum();
        if inner.kept.memory + bytes <= inner.limit {
            inner.kept.memory += bytes;
            inner.rows.insert(key, row.clone());
        } else {
            inner.write(key, row);
        }
    }

    pub fn kept(&self) -> Kept {
        self.lock().kept.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn write(&mut self, key: Key, row: &Row) {
        if self.kept.why_not.is_some() {
            return;
        }
        let parts: Vec<&[u8]> = row.iter().map(Tensor::as_bytes).collect();
        match self.append(&parts) {
            Ok(Some(at)) => _ = self.places.insert(key, at),
            Ok(None) => {
                self.kept.why_not =
                    Some("memory is full, and a run without a checkpoint has no file".into());
            }
            // What is there stays of use.
            Err(e) => self.kept.why_not = Some(e.message().to_string()),
        }
        self.kept.file = self.file.as_ref().map_or(0, Scratch::bytes);
    }

    /// Where the file has them; `None` where there is none.
    fn append(&mut self, parts: &[&[u8]]) -> Result<Option<u64>> {
        let file = match (&mut self.file, &self.beside) {
            (Some(file), _) => file,
            (none, Some(beside)) => none.insert(Scratch::beside(beside)?),
            (_, None) => return Ok(None),
        };
        file.append(parts).map(Some)
    }

    fn read(&mut self, key: &Key, crossing: &[Crossing]) -> Option<Row> {
        let (at, file) = (*self.places.get(key)?, self.file.as_ref()?);
        match read(file, at, crossing) {
            Ok(row) => Some(Row::new(row)),
            Err(e) => {
                // A medium that fails: rows are made anew.
                self.places.clear();
                self.kept.why_not = Some(e.message().to_string());
                None
            }
        }
    }
}

fn read(file: &Scratch, mut at: u64, crossing: &[Crossing]) -> Result<Vec<Tensor>> {
    let failed = |e| -> Error { tract_error(ErrorKind::Failed, &e) };
    let mut row = vec![];
    for crossing in crossing {
        let mut tensor = Tensor::zero_dt(crossing.dt, &crossing.shape).map_err(failed)?;
        file.read(at, tensor.as_bytes_mut())?;
        at += tensor.as_bytes().len() as u64;
        row.push(tensor);
    }
    Ok(row)
}
