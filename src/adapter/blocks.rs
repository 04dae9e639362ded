//! The blocks of bytes behind the header of a `.adapter` file.

#![warn(clippy::arithmetic_side_effects)]

use super::check;
use super::config::NamedTensor;
use super::names::shown;
use super::tensor::{Stored, TensorType, decode_f32, encode_f32};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Every block starts at a multiple of this.
pub(super) const ALIGN: usize = 64;

/// What the header says of a tensor.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Stored,
    pub shape: Vec<u64>,
}

/// The blocks behind the header.
#[derive(Default)]
pub(super) struct Writer(pub Vec<u8>);

impl Writer {
    pub(super) fn tensors(
        &mut self,
        tensors: &[NamedTensor],
        dtype: TensorType,
    ) -> Result<Vec<Entry>> {
        tensors.iter().map(|t| self.floats(&t.name, dtype, &t.shape, &t.values)).collect()
    }

    pub(super) fn floats(
        &mut self,
        name: &str,
        dtype: TensorType,
        shape: &[usize],
        values: &[f32],
    ) -> Result<Entry> {
        let bytes = encode_f32(values, dtype).map_err(|e| e.at(format_args!("tensor '{name}'")))?;
        self.push(&bytes);
        Ok(Entry::new(name, dtype.stored(), shape))
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self.0.extend(bytes);
    }
}

/// Walks the blocks: each starts where the one before ended, rounded up.
pub(super) struct Reader<'a> {
    data: &'a [u8],
    end: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(data: &'a [u8]) -> Reader<'a> {
        Reader { data, end: 0 }
    }

    pub(super) fn next(&mut self, len: usize) -> Result<&'a [u8]> {
        let start = self.end.next_multiple_of(ALIGN);
        let all = self.data.len();
        let end = start.checked_add(len).filter(|end| *end <= all).ok_or_else(|| {
            Error::bad_input(format!("{len} bytes from {start} on are not within {all} bytes"))
        })?;
        if self.data.get(self.end..start).is_none_or(|gap| gap.iter().any(|&b| b != 0)) {
            return Err(Error::bad_input("the gap before it is not zero"));
        }
        self.end = end;
        Ok(self.data.get(start..end).unwrap_or_default())
    }

    /// Type, shape and bytes of a tensor.
    pub(super) fn tensor(&mut self, entry: &Entry) -> Result<(Stored, Vec<usize>, &'a [u8])> {
        check::count("dimensions", entry.shape.len(), check::MAX_AXES)?;
        if entry.dtype == Stored::Bf16 {
            return Err(Error::bad_input("type Bf16 is not allowed here"));
        }
        let shape =
            entry.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
        let (shape, size) = shape
            .and_then(|s| {
                let n = crate::shape::volume(&s)?.checked_mul(entry.dtype.size())?;
                Some((s, n))
            })
            .ok_or_else(|| Error::bad_input(format!("shape {:?} is too large", entry.shape)))?;
        Ok((entry.dtype, shape, self.next(size)?))
    }

    pub(super) fn floats(&mut self, entry: Entry) -> Result<NamedTensor> {
        let found = self.tensor(&entry).and_then(|(dtype, shape, bytes)| {
            let values = decode_f32(dtype, bytes)?;
            Ok((shape, values))
        });
        let (shape, values) =
            found.map_err(|e| e.at(format_args!("tensor '{}'", shown(&entry.name))))?;
        Ok(NamedTensor { name: entry.name, shape, values })
    }

    pub(super) fn finish(self) -> Result<()> {
        let extra = self.data.len().saturating_sub(self.end);
        match extra {
            0 => Ok(()),
            _ => Err(Error::bad_input(format!("{extra} bytes after the adapter's last block"))),
        }
    }
}

impl Entry {
    pub(super) fn new(name: &str, dtype: Stored, shape: &[usize]) -> Entry {
        Entry { name: name.into(), dtype, shape: shape.iter().map(|&d| d as u64).collect() }
    }
}
