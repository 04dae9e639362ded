//! The native `.adapter` file.
//!
//! Little-endian, one version per layout, no `usize`:
//!
//! | at | bytes | meaning |
//! |---|---|---|
//! | 0 | 8 | magic `offadpt\n` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | length of the header, 1 to 1 MiB |
//! | 16 | 32 | blake3 of the bytes 0..16 and 48.. |
//! | 48 | | header, postcard: name, kind, base, flags, targets, head, record, probes, tensor table |
//! | next multiple of 64 | | the tensors in the table's order, each at a multiple of 64 |
//!
//! Gaps are zero and as short as the alignment allows; the file ends with the last tensor's last
//! byte. The tensors are, in this order: per target `PATH.lora_a` (R, in_features) and `PATH.lora_b`
//! (out_features, R), then `head.weight` (classes, features) and `head.bias` (classes), all f16 or
//! f32; then `probe.N.INPUT` per probe and input, in the type of the input.

use super::check;
use super::config::{Adapter, Head, Kind, Pool, ProbeEffect, TargetAdapter, TrainingRecord};
use super::names::shown;
use super::tensor::{Stored, TensorType, decode, decode_f32, encode, encode_f32};
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::fs::{Access, read_limited, write_atomic_bytes};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The first bytes of a `.adapter` file.
pub const MAGIC: [u8; 8] = *b"offadpt\n";
/// The format version that this crate writes and reads.
pub const VERSION: u32 = 1;
/// Longest header in bytes.
pub const MAX_HEADER: usize = 1 << 20;
/// Longest file in bytes.
pub const MAX_FILE: u64 = 1 << 31;

const VERSION_AT: usize = MAGIC.len();
const HEADER_LEN_AT: usize = VERSION_AT + 4;
const HASH_AT: usize = HEADER_LEN_AT + 4;
const HEADER_AT: usize = HASH_AT + 32;
const ALIGN: usize = 64;

/// The order of fields, and of the variants of what is in them, is the format.
#[derive(Serialize, Deserialize)]
struct Header {
    name: String,
    kind: String,
    base: Option<BaseFingerprint>,
    rslora: bool,
    targets: Vec<TargetHeader>,
    head: Option<HeadHeader>,
    training: Option<TrainingRecord>,
    probes: Vec<ProbeHeader>,
    tensors: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct TargetHeader {
    module_path: String,
    rank: u32,
    alpha: f32,
}

#[derive(Serialize, Deserialize)]
struct HeadHeader {
    name: String,
    output: String,
    pool: Pool,
    labels: Vec<String>,
    features: u32,
}

#[derive(Serialize, Deserialize)]
struct ProbeHeader {
    inputs: Vec<String>,
    output: String,
    effect: f32,
}

/// One tensor; `offset` counts from the first tensor's start.
#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    dtype: Stored,
    shape: Vec<u64>,
    offset: u64,
    len: u64,
}

impl Adapter {
    /// Reads a `.adapter` file.
    ///
    /// # Errors
    /// Bad input: missing, larger than [`MAX_FILE`], damaged, or against the limits of
    /// [`Adapter::check`]. Unsupported: a later version or an unknown kind.
    pub fn read(path: impl AsRef<Path>) -> Result<Adapter> {
        let path = path.as_ref();
        let bytes = read_limited(path, MAX_FILE)?;
        Adapter::from_bytes(&bytes).map_err(|e| e.at(format_args!("'{}'", path.display())))
    }

    /// Writes a `.adapter` file as a whole or not at all, readable by its owner alone (probes hold
    /// samples). Errors as [`Adapter::to_bytes`], and what the file system says (failed).
    pub fn write(&self, path: impl AsRef<Path>, dtype: TensorType) -> Result<()> {
        let bytes = self.to_bytes(dtype)?;
        write_atomic_bytes(path.as_ref(), Access::Private, &bytes)
    }

    /// The bytes of its `.adapter` file, with the pairs and the head as `dtype`; probe inputs keep
    /// their types. The same adapter gives the same bytes.
    ///
    /// # Errors
    /// Bad input: what [`Adapter::check`] refuses, a value too large for f16, a lora_b that f16
    /// would round to zero as a whole, a header longer than [`MAX_HEADER`].
    pub fn to_bytes(&self, dtype: TensorType) -> Result<Vec<u8>> {
        self.check()?;
        let mut tensors = Writer::default();
        for t in &self.targets {
            let (rank, path) = (t.rank as usize, &t.module_path);
            tensors.floats(format!("{path}.lora_a"), dtype, &[rank, t.in_features()], &t.lora_a)?;
            tensors.floats(
                format!("{path}.lora_b"),
                dtype,
                &[t.out_features(), rank],
                &t.lora_b,
            )?;
        }
        if let Some(h) = &self.head {
            let shape = [h.classes(), h.features as usize];
            tensors.floats("head.weight".into(), dtype, &shape, &h.weight)?;
            tensors.floats("head.bias".into(), dtype, &[h.classes()], &h.bias)?;
        }
        for (i, probe) in self.probes.iter().enumerate() {
            for (input, values) in &probe.inputs {
                let (stored, bytes) = encode(values.data());
                tensors.push(format!("probe.{i}.{input}"), stored, values.shape(), &bytes);
            }
        }
        let header = Header {
            name: self.name.clone(),
            kind: self.kind.name().into(),
            base: self.base,
            rslora: self.rslora,
            targets: self.targets.iter().map(TargetHeader::of).collect(),
            head: self.head.as_ref().map(HeadHeader::of),
            training: self.training.clone(),
            probes: self.probes.iter().map(ProbeHeader::of).collect(),
            tensors: tensors.entries,
        };
        let header = postcard::to_allocvec(&header)
            .map_err(|e| Error::failed(format!("the header can't be encoded: {e}")))?;
        assemble(&header, &tensors.data)
    }

    /// Reads the bytes of a `.adapter` file. Never panics, whatever the bytes; allocates no more
    /// than a small multiple of their number. Errors as [`Adapter::read`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Adapter> {
        let (header, data) = open(bytes)?;
        let (header, rest) = postcard::take_from_bytes::<Header>(header)
            .map_err(|_| Error::bad_input("the adapter's header can't be decoded"))?;
        if !rest.is_empty() {
            let extra = rest.len();
            return Err(Error::bad_input(format!("{extra} bytes after the adapter's header")));
        }
        let kind = Kind::parse(&header.kind).ok_or_else(|| {
            Error::unsupported(format!("adapter kind '{}' is unknown", shown(&header.kind)))
                .hint("a newer version of offshoot may read it")
        })?;
        check::count("targets", header.targets.len(), check::MAX_TARGETS)?;
        let mut tensors = Reader { data, end: 0, entries: header.tensors.into_iter() };
        let mut targets = Vec::with_capacity(header.targets.len());
        for t in header.targets {
            targets.push(t.read(&mut tensors)?);
        }
        let head = header.head.map(|h| h.read(&mut tensors)).transpose()?;
        let mut probes = Vec::with_capacity(header.probes.len());
        for (i, probe) in header.probes.into_iter().enumerate() {
            probes.push(probe.read(i, &mut tensors)?);
        }
        tensors.finish()?;
        let (name, base, rslora, training) =
            (header.name, header.base, header.rslora, header.training);
        let adapter = Adapter { name, kind, base, rslora, targets, head, training, probes };
        adapter.check()?;
        Ok(adapter)
    }
}

fn hash(prefix: &[u8], rest: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(prefix).update(rest).finalize().as_bytes()
}

fn padding(at: usize) -> usize {
    at.next_multiple_of(ALIGN) - at
}

fn assemble(header: &[u8], data: &[u8]) -> Result<Vec<u8>> {
    if header.len() > MAX_HEADER {
        return Err(Error::bad_input(format!(
            "the adapter's header would have {} bytes, at most {MAX_HEADER} are allowed",
            header.len()
        )));
    }
    let gap = if data.is_empty() { 0 } else { padding(HEADER_AT + header.len()) };
    let total = HEADER_AT + header.len() + gap + data.len();
    if total as u64 > MAX_FILE {
        return Err(Error::bad_input(format!(
            "the adapter would have {total} bytes, at most {MAX_FILE} are allowed"
        )));
    }
    let mut rest = Vec::with_capacity(total);
    rest.extend(MAGIC);
    rest.extend(VERSION.to_le_bytes());
    rest.extend((header.len() as u32).to_le_bytes());
    rest.extend([0; 32]);
    rest.extend(header);
    rest.resize(rest.len() + gap, 0);
    rest.extend(data);
    let (prefix, body) = rest.split_at_mut(HEADER_AT);
    let (prefix, slot) = prefix.split_at_mut(HASH_AT);
    slot.copy_from_slice(&hash(prefix, body));
    Ok(rest)
}

/// The header's bytes and the tensors' bytes of a file whose hash holds.
fn open(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    if bytes.is_empty() {
        return Err(Error::bad_input("the adapter file is empty"));
    }
    if !bytes.starts_with(&MAGIC) && !MAGIC.starts_with(bytes) {
        return Err(Error::bad_input("not an adapter file (its first bytes are others)"));
    }
    let cut =
        || Error::bad_input(format!("the adapter file is cut short at {} bytes", bytes.len()));
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::bad_input(format!("more than {MAX_FILE} bytes in an adapter file")));
    }
    let word = |at: usize| -> Result<u32> {
        let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).ok_or_else(cut)?;
        Ok(u32::from_le_bytes(word))
    };
    let version = word(VERSION_AT)?;
    if version != VERSION {
        return Err(Error::unsupported(format!(
            "adapter format version {version}, expected {VERSION}"
        )));
    }
    let header_len = word(HEADER_LEN_AT)? as usize;
    if header_len == 0 || header_len > MAX_HEADER {
        return Err(Error::bad_input(format!(
            "adapter header of {header_len} bytes, expected 1 to {MAX_HEADER}"
        )));
    }
    let prefix = bytes.get(..HASH_AT).ok_or_else(cut)?;
    let stored = bytes.get(HASH_AT..HEADER_AT).ok_or_else(cut)?;
    let body = bytes.get(HEADER_AT..).ok_or_else(cut)?;
    let (header, rest) = body.split_at_checked(header_len).ok_or_else(cut)?;
    if hash(prefix, body) != *stored {
        return Err(Error::bad_input("the adapter file is damaged (its hash does not hold)"));
    }
    if rest.is_empty() {
        return Ok((header, rest));
    }
    let (gap, data) = rest.split_at_checked(padding(HEADER_AT + header_len)).ok_or_else(cut)?;
    if gap.iter().any(|&b| b != 0) {
        return Err(Error::bad_input("bytes between the adapter's header and its tensors"));
    }
    Ok((header, data))
}

#[derive(Default)]
struct Writer {
    entries: Vec<Entry>,
    data: Vec<u8>,
}

impl Writer {
    fn floats(
        &mut self,
        name: String,
        dtype: TensorType,
        shape: &[usize],
        v: &[f32],
    ) -> Result<()> {
        let bytes = encode_f32(v, dtype).map_err(|e| e.at(format_args!("tensor '{name}'")))?;
        self.push(name, dtype.stored(), shape, &bytes);
        Ok(())
    }

    fn push(&mut self, name: String, dtype: Stored, shape: &[usize], bytes: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(ALIGN), 0);
        let shape = shape.iter().map(|&d| d as u64).collect();
        let (offset, len) = (self.data.len() as u64, bytes.len() as u64);
        self.entries.push(Entry { name, dtype, shape, offset, len });
        self.data.extend(bytes);
    }
}

/// Walks the tensor table and the bytes together: the next entry must have the name asked for and
/// start where the one before ended, rounded up.
struct Reader<'a> {
    data: &'a [u8],
    end: usize,
    entries: std::vec::IntoIter<Entry>,
}

impl<'a> Reader<'a> {
    fn next(&mut self, name: &str) -> Result<(Stored, Vec<usize>, &'a [u8])> {
        let entry = self.entries.next().ok_or_else(|| {
            Error::bad_input(format!("tensor '{}' is missing from the table", shown(name)))
        })?;
        if entry.name != name {
            return Err(Error::bad_input(format!(
                "tensor '{}' where '{}' is expected",
                shown(&entry.name),
                shown(name)
            )));
        }
        let bad = |text: String| Error::bad_input(format!("tensor '{}': {text}", shown(name)));
        check::count("dimensions", entry.shape.len(), check::MAX_AXES)
            .map_err(|e| e.at(format_args!("tensor '{}'", shown(name))))?;
        if entry.dtype == Stored::Bf16 {
            return Err(bad("type Bf16 is not allowed here".into()));
        }
        let shape =
            entry.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
        let (shape, size) = shape
            .and_then(|s| {
                let n = crate::shape::volume(&s)?.checked_mul(entry.dtype.size())?;
                Some((s, n))
            })
            .ok_or_else(|| bad(format!("shape {:?} is too large", entry.shape)))?;
        if size as u64 != entry.len {
            return Err(bad(format!("{} bytes for shape {shape:?}, expected {size}", entry.len)));
        }
        let start = self.end.next_multiple_of(ALIGN);
        if entry.offset != start as u64 {
            return Err(bad(format!("starts at {}, expected {start}", entry.offset)));
        }
        if self.data.get(self.end..start).is_none_or(|gap| gap.iter().any(|&b| b != 0)) {
            return Err(bad("the gap before it is not zero".into()));
        }
        let end = start.checked_add(size).ok_or_else(|| bad("its end overflows".into()))?;
        let bytes = self
            .data
            .get(start..end)
            .ok_or_else(|| bad(format!("ends at {end} of {} bytes", self.data.len())))?;
        self.end = end;
        Ok((entry.dtype, shape, bytes))
    }

    /// The next tensor as floats with its two dimensions (one dimension reads as (n, 1)).
    fn floats(&mut self, name: &str, expected: [Option<usize>; 2]) -> Result<Vec<f32>> {
        let (dtype, shape, bytes) = self.next(name)?;
        let fits = match (shape.as_slice(), expected) {
            (&[n], [Some(a), Some(1)]) => n == a,
            (&[n, m], [a, b]) => a.is_none_or(|a| a == n) && b.is_none_or(|b| b == m),
            _ => false,
        };
        if !fits {
            let side = |d: Option<usize>| d.map_or("any".to_string(), |d| d.to_string());
            return Err(Error::bad_input(format!(
                "tensor '{}' has shape {shape:?}, expected [{}, {}]",
                shown(name),
                side(expected[0]),
                side(expected[1])
            )));
        }
        decode_f32(dtype, bytes).map_err(|e| e.at(format_args!("tensor '{}'", shown(name))))
    }

    fn finish(mut self) -> Result<()> {
        if let Some(entry) = self.entries.next() {
            let name = shown(&entry.name);
            return Err(Error::bad_input(format!("tensor '{name}' belongs to nothing")));
        }
        if self.end != self.data.len() {
            let extra = self.data.len() - self.end;
            return Err(Error::bad_input(format!("{extra} bytes after the adapter's last tensor")));
        }
        Ok(())
    }
}

impl TargetHeader {
    fn of(t: &TargetAdapter) -> TargetHeader {
        TargetHeader { module_path: t.module_path.clone(), rank: t.rank, alpha: t.alpha }
    }

    fn read(self, tensors: &mut Reader) -> Result<TargetAdapter> {
        let TargetHeader { module_path, rank, alpha } = self;
        let r = Some(rank as usize);
        let lora_a = tensors.floats(&format!("{module_path}.lora_a"), [r, None])?;
        let lora_b = tensors.floats(&format!("{module_path}.lora_b"), [None, r])?;
        Ok(TargetAdapter { module_path, rank, alpha, lora_a, lora_b })
    }
}

impl HeadHeader {
    fn of(h: &Head) -> HeadHeader {
        HeadHeader {
            name: h.name.clone(),
            output: h.output.clone(),
            pool: h.pool,
            labels: h.labels.clone(),
            features: h.features,
        }
    }

    fn read(self, tensors: &mut Reader) -> Result<Head> {
        let HeadHeader { name, output, pool, labels, features } = self;
        let classes = Some(labels.len());
        let weight = tensors.floats("head.weight", [classes, Some(features as usize)])?;
        let bias = tensors.floats("head.bias", [classes, Some(1)])?;
        Ok(Head { name, output, pool, labels, features, weight, bias })
    }
}

impl ProbeHeader {
    fn of(p: &ProbeEffect) -> ProbeHeader {
        let inputs = p.inputs.iter().map(|(name, _)| name.clone()).collect();
        ProbeHeader { inputs, output: p.output.clone(), effect: p.effect }
    }

    fn read(self, index: usize, tensors: &mut Reader) -> Result<ProbeEffect> {
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for input in self.inputs {
            let name = format!("probe.{index}.{input}");
            let (dtype, shape, bytes) = tensors.next(&name)?;
            let values = decode(dtype, shape, bytes)
                .map_err(|e| e.at(format_args!("tensor '{}'", shown(&name))))?;
            inputs.push((input, values));
        }
        Ok(ProbeEffect { inputs, output: self.output, effect: self.effect })
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
