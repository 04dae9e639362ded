//! Collects the parts of a base and writes them as one file.

use super::audio::AudioSpec;
use super::base::check_activations;
use super::header::{
    ALWAYS, ConstEntry, GraphEntry, Header, Kind, SECTION_ALIGN, Section, WEIGHT_ALIGN,
    WeightEntry, align_up,
};
#[cfg(test)]
use super::preprocess::Subspace;
use super::preprocess::{Activation, Preprocess};
use super::record::{ConstType, ImportRecord, WeightSpec, check_targets};
use crate::adapter::Target;
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::fs::{Access, write_atomic};
use crate::quant::Packed;
use serde::Serialize;
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// A section and its bytes.
type Contents<'a> = (Kind, Cow<'a, [u8]>);

/// Collects the parts of a base, then writes them atomically. The same parts in the same order give
/// the same bytes.
#[derive(Debug, Default)]
pub struct BaseWriter {
    texts: String,
    graphs: Vec<GraphEntry>,
    constants: Vec<ConstEntry>,
    constant_bytes: Vec<u8>,
    known_constants: HashMap<(blake3::Hash, ConstType, Vec<u64>), u32>,
    weights: Vec<Arc<Packed>>,
    specs: Vec<WeightEntry>,
    known: HashMap<(blake3::Hash, WeightSpec), u32>,
    weight_bytes: u64,
    targets: Vec<Target>,
    preprocess: Preprocess,
    tokenizer: Vec<u8>,
    record: ImportRecord,
    activations: Vec<Activation>,
    subspaces: Vec<Vec<u8>>,
    kept: Vec<(String, String)>,
    audio: Option<AudioSpec>,
}

impl BaseWriter {
    /// Adds a graph: its name (lower-case letters, digits, `_`), its text, and the constants that
    /// the text reads, each a name in the text and an index from [`BaseWriter::constant`]. The first
    /// one is the main graph.
    pub fn graph(&mut self, name: &str, text: &str, constants: Vec<(String, u32)>) {
        self.texts.push_str(text);
        let (name, text) = (name.to_string(), text.len() as u64);
        self.graphs.push(GraphEntry { name, text, constants });
    }

    /// Adds a small constant, row-major little-endian `bytes` of `shape` (none for a scalar), and
    /// returns its index; one that equals an earlier one gets that one's. Errors: the length is not
    /// what type and shape ask for (bad input).
    pub fn constant(&mut self, dtype: ConstType, shape: &[u64], bytes: &[u8]) -> Result<u32> {
        if dtype.byte_len(shape) != Some(bytes.len() as u64) {
            return Err(Error::bad_input(format!(
                "a constant of type {dtype:?} and shape {shape:?} has {} bytes",
                bytes.len()
            )));
        }
        let key = (blake3::hash(bytes), dtype, shape.to_vec());
        if let Some(&index) = self.known_constants.get(&key) {
            return Ok(index);
        }
        let index = u32::try_from(self.constants.len())
            .map_err(|_| Error::unsupported("too many constants for the base format"))?;
        self.constant_bytes.resize(self.constant_bytes.len().next_multiple_of(64), 0);
        let offset = self.constant_bytes.len() as u64;
        self.constant_bytes.extend_from_slice(bytes);
        self.constants.push(ConstEntry { dtype, shape: shape.to_vec(), offset });
        self.known_constants.insert(key, index);
        Ok(index)
    }

    /// Adds a weight and returns its index; one whose scheme, shape and bytes equal an earlier
    /// one's gets that one's index. Errors: dimensions or number of weights past 32 bits
    /// (unsupported).
    pub fn weight(&mut self, weight: impl Into<Arc<Packed>>) -> Result<u32> {
        let weight = weight.into();
        let too_large = || Error::unsupported("weight is empty or too large for the base format");
        let spec = WeightSpec {
            scheme: weight.scheme(),
            rows: u32::try_from(weight.rows()).map_err(|_| too_large())?,
            cols: u32::try_from(weight.cols()).map_err(|_| too_large())?,
        };
        if spec.byte_len() != Some(weight.bytes().len() as u64) {
            return Err(too_large());
        }
        let key = (blake3::hash(weight.bytes()), spec);
        if let Some(&index) = self.known.get(&key) {
            return Ok(index);
        }
        let index = u32::try_from(self.weights.len()).map_err(|_| too_large())?;
        self.specs.push(WeightEntry { spec, offset: self.weight_bytes });
        self.weight_bytes += weight.bytes().len() as u64;
        self.weights.push(weight);
        self.known.insert(key, index);
        Ok(index)
    }

    /// Sets the target table. Names must be unique and each target's weight of its shape.
    pub fn targets(&mut self, targets: Vec<Target>) {
        self.targets = targets;
    }

    /// Sets how raw inputs become tensors.
    pub fn preprocess(&mut self, preprocess: Preprocess) {
        self.preprocess = preprocess;
    }

    /// Sets the bytes of tokenizer.json; empty for none.
    pub fn tokenizer(&mut self, bytes: Vec<u8>) {
        self.tokenizer = bytes;
    }

    /// Sets the import record.
    pub fn record(&mut self, record: ImportRecord) {
        self.record = record;
    }

    /// Sets how the inputs of every target are quantized: one for each, or none for the default.
    #[cfg(test)]
    pub fn activations(&mut self, activations: Vec<Activation>) {
        self.activations = activations;
    }

    /// Adds what is known of a target's inputs. Errors: it can't be encoded (failed).
    #[cfg(test)]
    pub fn subspace(&mut self, subspace: &Subspace<'_>) -> Result<()> {
        self.subspaces.push(encode(subspace)?);
        Ok(())
    }

    /// Sets how sound becomes the input.
    pub fn audio(&mut self, audio: Option<AudioSpec>) {
        self.audio = audio;
    }

    /// Keeps a file of the export folder as it is.
    pub fn text(&mut self, name: impl Into<String>, contents: impl Into<String>) {
        self.kept.push((name.into(), contents.into()));
    }

    /// The fingerprint that the written base will have. Hashes everything.
    #[cfg(test)]
    pub fn fingerprint(&self) -> Result<BaseFingerprint> {
        self.plan()?.0.fingerprint()
    }

    /// Writes the base to `path`, as a whole or not at all. Errors: parts that don't fit each other
    /// (bad input), parts past the format's limits (unsupported), I/O (failed).
    pub fn write(&self, path: impl AsRef<Path>) -> Result<BaseFingerprint> {
        let (header, parts) = self.plan()?;
        let fingerprint = header.fingerprint()?;
        let start = header.encode()?;
        write_atomic(path.as_ref(), Access::Shared, |w| {
            w.write_all(&start)?;
            let mut at = start.len() as u64;
            for section in &header.sections {
                pad(w, section.offset - at)?;
                match parts.iter().find(|(kind, _)| *kind as u8 == section.kind) {
                    Some((_, bytes)) => w.write_all(bytes)?,
                    None => {
                        for weight in &self.weights {
                            w.write_all(weight.bytes())?;
                        }
                    }
                }
                at = section.offset + section.len;
            }
            Ok(())
        })?;
        Ok(fingerprint)
    }

    /// The header of the file to be written, and the bytes of all sections but the weights.
    fn plan(&self) -> Result<(Header, Vec<Contents<'_>>)> {
        check_targets(&self.targets, |i| self.specs.get(i).map(|w| w.spec))?;
        self.preprocess.check()?;
        self.record.check(self.graphs.len(), &self.targets)?;
        check_activations(&self.activations, &self.targets)?;
        let mut parts: Vec<(Kind, Cow<'_, [u8]>)> = vec![
            (Kind::Graphs, self.texts.as_bytes().into()),
            (Kind::Constants, (&self.constant_bytes).into()),
            (Kind::Targets, encode(&self.targets)?.into()),
            (Kind::Preprocess, encode(&self.preprocess)?.into()),
            (Kind::Tokenizer, (&self.tokenizer).into()),
            (Kind::Record, encode(&self.record)?.into()),
        ];
        if self.activations.iter().any(|a| *a != Activation::default()) {
            parts.push((Kind::Activations, encode(&self.activations)?.into()));
        }
        if !self.subspaces.is_empty() {
            let mut bytes = encode(&(self.subspaces.len() as u64))?;
            self.subspaces.iter().for_each(|s| bytes.extend_from_slice(s));
            parts.push((Kind::Subspaces, bytes.into()));
        }
        if !self.kept.is_empty() {
            parts.push((Kind::Texts, encode(&self.kept)?.into()));
        }
        if let Some(audio) = &self.audio {
            audio.check()?;
            parts.push((Kind::Audio, encode(audio)?.into()));
        }
        let further = parts.iter().map(|(kind, _)| *kind).filter(|kind| !ALWAYS.contains(kind));
        let kinds: Vec<Kind> = ALWAYS.into_iter().chain(further).collect();
        let mut header = Header {
            sections: vec![Section::default(); kinds.len()],
            graphs: self.graphs.clone(),
            weights: self.specs.clone(),
            constants: self.constants.clone(),
        };
        let header_len = header.encoded_len()?;
        let mut end = header_len;
        for (at, kind) in kinds.into_iter().enumerate() {
            let (len, hash) = match parts.iter().find(|(k, _)| *k == kind) {
                Some((_, bytes)) => (bytes.len() as u64, blake3::hash(bytes)),
                None => {
                    let mut hasher = blake3::Hasher::new();
                    for weight in &self.weights {
                        hasher.update(weight.bytes());
                    }
                    (self.weight_bytes, hasher.finalize())
                }
            };
            let offset = align_up(end, SECTION_ALIGN);
            let next = offset.and_then(|offset| Some((offset, offset.checked_add(len)?)));
            let (offset, next) =
                next.ok_or_else(|| Error::unsupported("the base would be too large"))?;
            let (number, flags) = (kind as u8, kind.flags());
            header.sections[at] =
                Section { kind: number, flags, offset, len, hash: *hash.as_bytes() };
            end = next;
        }
        // What the reader would refuse is never written.
        header.check(end, header_len)?;
        debug_assert!(self.specs.iter().all(|w| w.offset % WEIGHT_ALIGN == 0));
        Ok((header, parts))
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|e| Error::failed(format!("a table can't be encoded: {e}")))
}

/// Writes `count` zero bytes.
fn pad(w: &mut impl Write, count: u64) -> std::io::Result<()> {
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), count), w).map(drop)
}
