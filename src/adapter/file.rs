//! The native `.adapter` file.
//!
//! Little-endian, one version per layout, no `usize`:
//!
//! | at | bytes | meaning |
//! |---|---|---|
//! | 0 | 8 | magic `offadpt\n` |
//! | 8 | 4 | format version, 2 |
//! | 12 | 4 | length of the header, 1 to 1 MiB |
//! | 16 | 32 | blake3 of the bytes 0..16 and 48.. |
//! | 48 | | header, postcard: name, base, targets, heads, record, probes, ranges, sections |
//! | next multiple of 64 | | the blocks in the header's order, each at a multiple of 64 |
//!
//! Gaps are zero and as short as the alignment allows; the file ends with the last block's last byte.
//! Blocks are, in this order: each target's tensors, each head's `weight` (classes, features) and
//! `bias` (classes), each probe's inputs, each section. Where one starts follows from the types and
//! shapes of those before, so that they can't overlap or leave holes.

#![warn(clippy::arithmetic_side_effects)]

use super::blocks::{ALIGN, Entry, Reader, Writer};
use super::check;
use super::config::{
    ActivationRange, Adapter, Extra, Head, NamedTensor, Pool, ProbeEffect, TargetAdapter,
    TrainingRecord,
};
use super::kind::Kind;
use super::known::{Known, SECTION};
use super::names::shown;
use super::tensor::{TensorType, decode, encode};
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::fs::{Access, read_limited, write_atomic_bytes};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// The first bytes of a `.adapter` file.
pub const MAGIC: [u8; 8] = *b"offadpt\n";
/// The format version that this crate writes and reads.
pub const VERSION: u32 = 2;
/// Longest header in bytes.
pub const MAX_HEADER: usize = 1 << 20;
/// Longest file in bytes.
pub const MAX_FILE: u64 = 1 << 31;

const VERSION_AT: usize = MAGIC.len();
const HEADER_LEN_AT: usize = VERSION_AT + 4;
const HASH_AT: usize = HEADER_LEN_AT + 4;
const HEADER_AT: usize = HASH_AT + 32;

/// A target's only flag so far.
const RSLORA: &str = "rslora";

/// The order of fields, and of the variants of what is in them, is the format.
#[derive(Serialize, Deserialize)]
struct Header {
    name: String,
    base: Option<BaseFingerprint>,
    targets: Vec<TargetHeader>,
    heads: Vec<HeadHeader>,
    training: Option<TrainingRecord>,
    probes: Vec<ProbeHeader>,
    ranges: Vec<ActivationRange>,
    sections: Vec<SectionHeader>,
}

#[derive(Serialize, Deserialize)]
struct TargetHeader {
    module_path: String,
    kind: String,
    rank: u32,
    alpha: f32,
    flags: Vec<String>,
    tensors: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct HeadHeader {
    name: String,
    task: String,
    output: String,
    pool: Pool,
    labels: Vec<String>,
    thresholds: Vec<f32>,
    temperature: f32,
    tensors: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct ProbeHeader {
    inputs: Vec<Entry>,
    output: String,
    effect: f32,
}

/// What a version doesn't know it skips, unless it must be understood.
#[derive(Serialize, Deserialize)]
struct SectionHeader {
    name: String,
    must_be_understood: bool,
    len: u64,
}

impl Adapter {
    /// Reads a `.adapter` file.
    ///
    /// # Errors
    /// Bad input: missing, larger than 2 GiB, damaged, or against the limits of
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

    /// The bytes of its `.adapter` file, with the tensors of targets and heads as `dtype`; probe
    /// inputs keep their types. The same adapter gives the same bytes.
    ///
    /// # Errors
    /// Bad input: what [`Adapter::check`] refuses, a value too large for f16, a tensor that f16
    /// would round to zero as a whole, a header longer than 1 MiB.
    pub fn to_bytes(&self, dtype: TensorType) -> Result<Vec<u8>> {
        self.check()?;
        let mut blocks = Writer::default();
        let mut targets = Vec::with_capacity(self.targets.len());
        for target in &self.targets {
            targets.push(TargetHeader {
                module_path: target.module_path.clone(),
                kind: target.kind.name().into(),
                rank: target.rank,
                alpha: target.alpha,
                flags: if target.rslora { vec![RSLORA.into()] } else { vec![] },
                tensors: blocks
                    .tensors(&target.tensors, dtype)
                    .map_err(|e| e.at(super::algebra::at_target(target)))?,
            });
        }
        let mut heads = Vec::with_capacity(self.heads.len());
        for head in &self.heads {
            let place = |e: Error| e.at(format_args!("head '{}'", shown(&head.name)));
            heads.push(HeadHeader::of(head, &mut blocks, dtype).map_err(place)?);
        }
        let mut probes = Vec::with_capacity(self.probes.len());
        for probe in &self.probes {
            probes.push(ProbeHeader::of(probe, &mut blocks));
        }
        let mut sections = Vec::with_capacity(self.extras.len());
        if let Some(known) = self.head().and_then(|head| head.known.as_ref()) {
            let bytes = known.to_bytes()?;
            blocks.push(&bytes);
            let (name, len) = (SECTION.into(), bytes.len() as u64);
            sections.push(SectionHeader { name, must_be_understood: false, len });
        }
        for Extra { name, bytes } in &self.extras {
            blocks.push(bytes);
            let (name, len) = (name.clone(), bytes.len() as u64);
            sections.push(SectionHeader { name, must_be_understood: false, len });
        }
        let header = Header {
            name: self.name.clone(),
            base: self.base,
            targets,
            heads,
            training: self.training.clone(),
            probes,
            ranges: self.ranges.clone(),
            sections,
        };
        let header = postcard::to_allocvec(&header)
            .map_err(|e| Error::failed(format!("the header can't be encoded: {e}")))?;
        assemble(&header, &blocks.0)
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
        check::count("targets", header.targets.len(), check::MAX_TARGETS)?;
        let mut blocks = Reader::new(data);
        let mut targets = Vec::with_capacity(header.targets.len());
        for target in header.targets {
            let place = format!("target '{}'", shown(&target.module_path));
            targets.push(target.read(&mut blocks).map_err(|e| e.at(place))?);
        }
        let mut heads = vec![];
        for head in header.heads {
            let place = format!("head '{}'", shown(&head.name));
            heads.push(head.read(&mut blocks).map_err(|e| e.at(place))?);
        }
        let mut probes = vec![];
        for (i, probe) in header.probes.into_iter().enumerate() {
            probes.push(probe.read(&mut blocks).map_err(|e| e.at(format_args!("probe {i}")))?);
        }
        let mut extras = vec![];
        for section in header.sections {
            let extra = section.read(&mut blocks)?;
            match heads.first_mut() {
                Some(head) if extra.name == SECTION && head.known.is_none() => {
                    head.known = Some(Arc::new(Known::from_bytes(&extra.bytes)?));
                }
                _ => extras.push(extra),
            }
        }
        blocks.finish()?;
        let Header { name, base, training, ranges, .. } = header;
        let adapter = Adapter { name, base, targets, heads, training, probes, ranges, extras };
        adapter.check()?;
        Ok(adapter)
    }
}

fn hash(prefix: &[u8], rest: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(prefix).update(rest).finalize().as_bytes()
}

fn padding(at: usize) -> usize {
    at.next_multiple_of(ALIGN).saturating_sub(at)
}

fn assemble(header: &[u8], data: &[u8]) -> Result<Vec<u8>> {
    if header.len() > MAX_HEADER {
        return Err(Error::bad_input(format!(
            "the adapter's header would have {} bytes, at most {MAX_HEADER} are allowed",
            header.len()
        )));
    }
    let gap = if data.is_empty() { 0 } else { padding(HEADER_AT.saturating_add(header.len())) };
    let total = [header.len(), gap, data.len()].into_iter().fold(HEADER_AT, usize::saturating_add);
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
    rest.resize(rest.len().saturating_add(gap), 0);
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
        let word = bytes.get(at..).and_then(|b| b.first_chunk::<4>()).ok_or_else(cut)?;
        Ok(u32::from_le_bytes(*word))
    };
    let version = word(VERSION_AT)?;
    if version != VERSION {
        let error =
            Error::unsupported(format!("adapter format version {version}, expected {VERSION}"));
        return Err(error.hint(match version < VERSION {
            true => "train it again, or import it again from PEFT's directory",
            false => "a newer version of offshoot may read it",
        }));
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
    let (gap, data) =
        rest.split_at_checked(padding(HEADER_AT.saturating_add(header_len))).ok_or_else(cut)?;
    if gap.iter().any(|&b| b != 0) {
        return Err(Error::bad_input("bytes between the adapter's header and its tensors"));
    }
    Ok((header, data))
}

impl TargetHeader {
    fn read(self, blocks: &mut Reader) -> Result<TargetAdapter> {
        let newer =
            |what: String| Error::unsupported(what).hint("a newer version of offshoot may read it");
        let kind = Kind::parse(&self.kind)
            .ok_or_else(|| newer(format!("adapter kind '{}' is unknown", shown(&self.kind))))?;
        if let Some(flag) = self.flags.iter().find(|f| *f != RSLORA) {
            return Err(newer(format!("flag '{}' is unknown", shown(flag))));
        }
        let TargetHeader { module_path, rank, alpha, flags, tensors, .. } = self;
        let tensors = tensors.into_iter().map(|t| blocks.floats(t)).collect::<Result<Vec<_>>>()?;
        let rslora = !flags.is_empty();
        Ok(TargetAdapter { module_path, kind, rank, alpha, rslora, tensors })
    }
}

impl HeadHeader {
    fn of(h: &Head, blocks: &mut Writer, dtype: TensorType) -> Result<HeadHeader> {
        let shape = [h.classes(), h.features as usize];
        let tensors = vec![
            blocks.floats("weight", dtype, &shape, &h.weight)?,
            blocks.floats("bias", dtype, &shape[..1], &h.bias)?,
        ];
        Ok(HeadHeader {
            name: h.name.clone(),
            task: h.task.clone(),
            output: h.output.clone(),
            pool: h.pool,
            labels: h.labels.to_vec(),
            thresholds: h.thresholds.clone(),
            temperature: h.temperature,
            tensors,
        })
    }

    fn read(self, blocks: &mut Reader) -> Result<Head> {
        let HeadHeader { name, task, output, pool, labels, thresholds, temperature, tensors } =
            self;
        let tensors = tensors.into_iter().map(|t| blocks.floats(t)).collect::<Result<Vec<_>>>()?;
        let [weight, bias] = <[NamedTensor; 2]>::try_from(tensors)
            .ok()
            .filter(|[weight, bias]| weight.name == "weight" && bias.name == "bias")
            .ok_or_else(|| Error::bad_input("its tensors are not 'weight' and 'bias'"))?;
        let features = match (weight.shape.as_slice(), bias.shape.as_slice()) {
            (&[classes, features], &[rows]) if classes == rows => u32::try_from(features).ok(),
            _ => None,
        };
        let features = features.ok_or_else(|| {
            Error::bad_input(format!(
                "a weight of {:?} and a bias of {:?} are no linear layer",
                weight.shape, bias.shape
            ))
        })?;
        let (weight, bias) = (weight.values, bias.values);
        Ok(Head {
            name,
            task,
            output,
            pool,
            labels: labels.into(),
            features,
            weight,
            bias,
            thresholds,
            temperature,
            known: None,
        })
    }
}

impl ProbeHeader {
    fn of(p: &ProbeEffect, blocks: &mut Writer) -> ProbeHeader {
        let input = |(name, values): &(String, crate::shape::Array)| {
            let (stored, bytes) = encode(values.data());
            blocks.push(&bytes);
            Entry::new(name, stored, values.shape())
        };
        let inputs = p.inputs.iter().map(input).collect();
        ProbeHeader { inputs, output: p.output.clone(), effect: p.effect }
    }

    fn read(self, blocks: &mut Reader) -> Result<ProbeEffect> {
        check::count("probe inputs", self.inputs.len(), check::MAX_LIST)?;
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for entry in self.inputs {
            let read =
                blocks.tensor(&entry).and_then(|(dtype, shape, bytes)| decode(dtype, shape, bytes));
            let values = read.map_err(|e| e.at(format_args!("input '{}'", shown(&entry.name))))?;
            inputs.push((entry.name, values));
        }
        Ok(ProbeEffect { inputs, output: self.output, effect: self.effect })
    }
}

impl SectionHeader {
    fn read(self, blocks: &mut Reader) -> Result<Extra> {
        let SectionHeader { name, must_be_understood, len } = self;
        if must_be_understood {
            return Err(Error::unsupported(format!(
                "section '{}' is unknown and must be understood",
                shown(&name)
            ))
            .hint("a newer version of offshoot may read it"));
        }
        let bytes = usize::try_from(len)
            .map_err(|_| Error::bad_input(format!("{len} bytes")))
            .and_then(|len| blocks.next(len))
            .map_err(|e| e.at(format_args!("section '{}'", shown(&name))))?;
        Ok(Extra { name, bytes: bytes.to_vec() })
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
#[path = "file_tests.rs"]
mod tests;
