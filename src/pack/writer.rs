//! Collects the parts of a base and writes them as one file.

use super::header::{
    ConstEntry, Header, KINDS, Kind, SECTION_ALIGN, Section, WEIGHT_ALIGN, WeightEntry, align_up,
};
use super::record::{ConstType, ImportRecord, Preprocess, WeightSpec, check_targets};
use crate::adapter::Target;
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::fs::{Access, write_atomic};
use crate::quant::Packed;
use serde::Serialize;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

/// Collects the parts of a base, then writes them atomically. The same parts in the same order give
/// the same bytes.
#[derive(Debug, Default)]
pub struct BaseWriter {
    graph: String,
    constants: Vec<ConstEntry>,
    constant_bytes: Vec<u8>,
    weights: Vec<Packed>,
    specs: Vec<WeightEntry>,
    known: HashMap<(blake3::Hash, WeightSpec), u32>,
    weight_bytes: u64,
    targets: Vec<Target>,
    preprocess: Preprocess,
    tokenizer: Vec<u8>,
    record: ImportRecord,
}

impl BaseWriter {
    /// Nothing yet.
    pub fn new() -> BaseWriter {
        BaseWriter::default()
    }

    /// Sets the graph's text.
    pub fn graph(&mut self, text: impl Into<String>) {
        self.graph = text.into();
    }

    /// Adds a small constant: row-major little-endian `bytes` of `shape` (none for a scalar), under
    /// a name of its own. Errors: the length is not what type and shape ask for (bad input).
    pub fn constant(
        &mut self,
        name: impl Into<String>,
        dtype: ConstType,
        shape: &[u64],
        bytes: &[u8],
    ) -> Result<()> {
        let name = name.into();
        if dtype.byte_len(shape) != Some(bytes.len() as u64) {
            return Err(Error::bad_input(format!(
                "constant '{name}' of type {dtype:?} and shape {shape:?} has {} bytes",
                bytes.len()
            )));
        }
        self.constant_bytes.resize(self.constant_bytes.len().next_multiple_of(64), 0);
        let offset = self.constant_bytes.len() as u64;
        self.constant_bytes.extend_from_slice(bytes);
        self.constants.push(ConstEntry { name, dtype, shape: shape.to_vec(), offset });
        Ok(())
    }

    /// Adds a weight and returns its index; one whose scheme, shape and bytes equal an earlier
    /// one's gets that one's index. Errors: dimensions or number of weights past 32 bits
    /// (unsupported).
    pub fn weight(&mut self, weight: Packed) -> Result<u32> {
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

    /// The fingerprint that the written base will have. Hashes everything.
    pub fn fingerprint(&self) -> Result<BaseFingerprint> {
        self.plan()?.0.fingerprint()
    }

    /// Writes the base to `path`, as a whole or not at all. Errors: parts that don't fit each other
    /// (bad input), parts past the format's limits (unsupported), I/O (failed).
    pub fn write(&self, path: impl AsRef<Path>) -> Result<BaseFingerprint> {
        let (header, tables) = self.plan()?;
        let fingerprint = header.fingerprint()?;
        let start = header.encode()?;
        write_atomic(path.as_ref(), Access::Shared, |w| {
            w.write_all(&start)?;
            let mut at = start.len() as u64;
            for kind in KINDS {
                let section = &header.sections[kind.index()];
                pad(w, section.offset - at)?;
                match kind {
                    Kind::Weights => {
                        for weight in &self.weights {
                            w.write_all(weight.bytes())?;
                        }
                    }
                    _ => w.write_all(self.part(kind, &tables))?,
                }
                at = section.offset + section.len;
            }
            Ok(())
        })?;
        Ok(fingerprint)
    }

    /// The header of the file to be written, and the encoded tables.
    fn plan(&self) -> Result<(Header, Tables)> {
        check_targets(&self.targets, |i| self.specs.get(i).map(|w| w.spec))?;
        self.preprocess.check()?;
        self.record.check(&self.targets)?;
        let tables = Tables {
            targets: encode(&self.targets)?,
            preprocess: encode(&self.preprocess)?,
            record: encode(&self.record)?,
        };
        let mut header = Header {
            sections: Default::default(),
            weights: self.specs.clone(),
            constants: self.constants.clone(),
        };
        let header_len = header.encoded_len()?;
        let mut end = header_len;
        for kind in KINDS {
            let (len, hash) = match kind {
                Kind::Weights => {
                    let mut hasher = blake3::Hasher::new();
                    for weight in &self.weights {
                        hasher.update(weight.bytes());
                    }
                    (self.weight_bytes, hasher.finalize())
                }
                _ => {
                    let bytes = self.part(kind, &tables);
                    (bytes.len() as u64, blake3::hash(bytes))
                }
            };
            let offset = align_up(end, SECTION_ALIGN);
            let next = offset.and_then(|offset| Some((offset, offset.checked_add(len)?)));
            let (offset, next) =
                next.ok_or_else(|| Error::unsupported("the base would be too large"))?;
            header.sections[kind.index()] =
                Section { kind: kind as u8, offset, len, hash: *hash.as_bytes() };
            end = next;
        }
        // What the reader would refuse is never written.
        header.check(end, header_len)?;
        debug_assert!(self.specs.iter().all(|w| w.offset % WEIGHT_ALIGN == 0));
        Ok((header, tables))
    }

    /// The bytes of every section but the weights.
    fn part<'a>(&'a self, kind: Kind, tables: &'a Tables) -> &'a [u8] {
        match kind {
            Kind::Graph => self.graph.as_bytes(),
            Kind::Constants => &self.constant_bytes,
            Kind::Targets => &tables.targets,
            Kind::Preprocess => &tables.preprocess,
            Kind::Tokenizer => &self.tokenizer,
            Kind::Record => &tables.record,
            Kind::Weights => &[],
        }
    }
}

/// Encoded small sections.
struct Tables {
    targets: Vec<u8>,
    preprocess: Vec<u8>,
    record: Vec<u8>,
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(|e| Error::failed(format!("a table can't be encoded: {e}")))
}

/// Writes `count` zero bytes.
fn pad(w: &mut impl Write, count: u64) -> std::io::Result<()> {
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), count), w).map(drop)
}
