//! An opened base: views into its mapping.

#![warn(clippy::arithmetic_side_effects)]

use super::audio::AudioSpec;
use super::header::{ALWAYS, FURTHER, Header, Kind, MUST, Section, decode, section_name};
use super::mapping::Mapping;
use super::preprocess::{Activation, Preprocess, Subspace};
use super::record::{ConstType, GraphRecord, ImportRecord, SectionInfo, WeightSpec, check_targets};
use crate::adapter::{Target, TargetKind};
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::quant::PackedRef;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that are hashed at once where somebody may want to stop.
const PIECE: usize = 1 << 20;

/// An opened `.base` file. Cheap to clone, usable from several threads.
///
/// Holding one proves: a regular file without an open writer (where the system can tell), of
/// exactly the stated length, whose header and small tables are intact and consistent. The graphs,
/// the constants and the tokenizer are checked against their hashes when first asked for; the
/// weights only by [`Base::verify`].
#[derive(Clone, Debug)]
pub struct Base(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    mapping: Mapping,
    header: Header,
    fingerprint: BaseFingerprint,
    targets: Vec<Target>,
    preprocess: Preprocess,
    record: ImportRecord,
    /// One for each target; empty where all are the default.
    activations: Vec<Activation>,
    /// Which known sections have been found to equal their hashes.
    intact: [AtomicBool; ALWAYS.len() + FURTHER.len()],
}

/// A small constant of a graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConstantRef<'a> {
    /// Its name in the graph.
    pub name: &'a str,
    /// Element type.
    pub dtype: ConstType,
    /// Dimensions; none for a scalar.
    pub shape: &'a [u64],
    /// Row-major little-endian elements, 64-byte aligned.
    pub bytes: &'a [u8],
}

impl Base {
    /// Opens and maps a base, touching its header and small tables only.
    ///
    /// Errors: missing, damaged, truncated or no base (bad input), another format version
    /// (unsupported), open for writing elsewhere (refused).
    pub fn open(path: impl AsRef<Path>) -> Result<Base> {
        let path = path.as_ref();
        let mapping = Mapping::open(path)?;
        Base::from_mapping(path, mapping).map_err(|e| e.at(format_args!("'{}'", path.display())))
    }

    fn from_mapping(path: &Path, mapping: Mapping) -> Result<Base> {
        let header = Header::parse(mapping.bytes())?;
        let table = |kind: Kind| -> Result<&[u8]> {
            let section = known(&header, kind)?;
            let bytes = bytes_of(&mapping, section)?;
            check_hash(section, bytes)?;
            Ok(bytes)
        };
        let place = |kind: Kind| move |e: Error| e.at(format_args!("section '{}'", kind.name()));
        let targets: Vec<Target> = decode(table(Kind::Targets)?).map_err(place(Kind::Targets))?;
        check_targets(&targets, |i| header.weights.get(i).map(|w| w.spec))?;
        let preprocess: Preprocess =
            decode(table(Kind::Preprocess)?).map_err(place(Kind::Preprocess))?;
        preprocess.check()?;
        let record: ImportRecord = decode(table(Kind::Record)?).map_err(place(Kind::Record))?;
        record.check(header.graphs.len(), &targets)?;
        let activations: Vec<Activation> = match header.section(Kind::Activations) {
            None => vec![],
            Some(_) => decode(table(Kind::Activations)?).map_err(place(Kind::Activations))?,
        };
        check_activations(&activations, &targets)?;
        let fingerprint = header.fingerprint()?;
        Ok(Base(Arc::new(Inner {
            path: path.to_path_buf(),
            mapping,
            header,
            fingerprint,
            targets,
            preprocess,
            record,
            activations,
            intact: Default::default(),
        })))
    }

    /// Reads the whole file: every section against its hash, every padding byte against zero, and
    /// the file against changes since it was opened. Errors name the first damaged section.
    pub fn verify(&self) -> Result<()> {
        self.verify_while(&mut || true).map(drop)
    }

    /// [`Base::verify`], asking `go_on` before each MiB: `false` where it said stop.
    pub fn verify_while(&self, go_on: &mut dyn FnMut() -> bool) -> Result<bool> {
        let inner = &*self.0;
        let place = |e: Error| e.at(format_args!("'{}'", inner.path.display()));
        let mut end = None;
        for section in &inner.header.sections {
            let name = section_name(section.kind);
            if let Some(end) = end {
                let padding = range(inner.mapping.bytes(), end, section.offset.saturating_sub(end));
                if !padding.is_some_and(|p| p.iter().all(|&b| b == 0)) {
                    return Err(place(Error::bad_input(format!(
                        "padding before section {name} is not zero"
                    ))));
                }
            }
            let bytes = bytes_of(&inner.mapping, section).map_err(place)?;
            let mut hasher = blake3::Hasher::new();
            for piece in bytes.chunks(PIECE) {
                if !go_on() {
                    return Ok(false);
                }
                hasher.update(piece);
            }
            equals(section, hasher.finalize()).map_err(place)?;
            end = Some(section.offset.saturating_add(section.len));
        }
        inner.mapping.check(&inner.path)?;
        Ok(true)
    }

    /// An error if the file was written in place, or somebody waits to write it, since it was
    /// opened: two system calls, no reading. A base replaced by rename or removed is not changed.
    pub fn check_unchanged(&self) -> Result<()> {
        self.0.mapping.check(&self.0.path)
    }

    /// The base's name: blake3 over graphs, constants, targets and weights with their tables.
    pub fn fingerprint(&self) -> BaseFingerprint {
        self.0.fingerprint
    }

    /// The names of the graphs: the first is the main one.
    pub fn graphs(&self) -> impl Iterator<Item = &str> {
        self.0.header.graphs.iter().map(|g| g.name.as_str())
    }

    /// The number of the graph of this name.
    pub fn graph_index(&self, name: &str) -> Option<usize> {
        self.graphs().position(|g| g == name)
    }

    /// The text of graph `index`. Errors: no such graph, damaged or not UTF-8 (bad input).
    pub(crate) fn graph(&self, index: usize) -> Result<&str> {
        let entry = self.graph_entry(index)?;
        let bytes = self.checked(Kind::Graphs)?;
        let start = self.0.header.graphs.iter().take(index).map(|g| g.text).sum();
        let bytes = range(bytes, start, entry.text).unwrap_or_default();
        std::str::from_utf8(bytes).map_err(|e| {
            Error::bad_input(format!(
                "'{}': graph '{}' is not UTF-8 (byte {})",
                self.0.path.display(),
                entry.name,
                e.valid_up_to()
            ))
        })
    }

    fn graph_entry(&self, index: usize) -> Result<&super::header::GraphEntry> {
        self.0.header.graphs.get(index).ok_or_else(|| {
            Error::bad_input(format!(
                "'{}' has no graph {index}, only {}",
                self.0.path.display(),
                self.0.header.graphs.len()
            ))
        })
    }

    /// The small constants that graph `index` reads. Errors: no such graph, damaged (bad input).
    pub(crate) fn constants(&self, index: usize) -> Result<impl Iterator<Item = ConstantRef<'_>>> {
        let entry = self.graph_entry(index)?;
        let bytes = self.checked(Kind::Constants)?;
        let table = &self.0.header.constants;
        let constants: Vec<ConstantRef<'_>> = entry
            .constants
            .iter()
            .map(|(name, at)| {
                let found = table.get(*at as usize).and_then(|c| {
                    let len = c.dtype.byte_len(&c.shape)?;
                    let bytes = range(bytes, c.offset, len)
                        .filter(|b| c.dtype != ConstType::Bool || b.iter().all(|&v| v <= 1))?;
                    Some(ConstantRef { name, dtype: c.dtype, shape: &c.shape, bytes })
                });
                found.ok_or_else(|| {
                    Error::bad_input(format!(
                        "'{}': constant '{name}' has booleans that are neither 0 nor 1",
                        self.0.path.display()
                    ))
                })
            })
            .collect::<Result<_>>()?;
        Ok(constants.into_iter())
    }

    /// Rows of the largest embedding: how many token ids there are. `None` without embeddings.
    pub(crate) fn vocabulary(&self) -> Option<usize> {
        let embeddings = self.targets().iter().filter(|t| t.kind == TargetKind::Embedding);
        embeddings.map(|t| t.in_features as usize).max()
    }

    /// The bytes of tokenizer.json, if the base has one. Errors: damaged (bad input).
    pub fn tokenizer(&self) -> Result<Option<&[u8]>> {
        let bytes = self.checked(Kind::Tokenizer)?;
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    /// Number of weights.
    pub fn weight_count(&self) -> usize {
        self.0.header.weights.len()
    }

    /// Scheme and shape of weight `index`.
    pub(crate) fn weight_spec(&self, index: usize) -> Option<WeightSpec> {
        self.0.header.weights.get(index).map(|w| w.spec)
    }

    /// Weight `index`, in place in the mapping. No copy, no check of its values. Errors: no such
    /// weight (bad input).
    pub(crate) fn weight(&self, index: usize) -> Result<PackedRef<'_>> {
        let inner = &*self.0;
        let entry = inner.header.weights.get(index).ok_or_else(|| {
            Error::bad_input(format!(
                "'{}' has no weight {index}, only {}",
                inner.path.display(),
                self.weight_count()
            ))
        })?;
        let section = bytes_of(&inner.mapping, known(&inner.header, Kind::Weights)?)?;
        let spec = entry.spec;
        let bytes = spec.byte_len().and_then(|len| range(section, entry.offset, len));
        PackedRef::new(
            spec.scheme,
            spec.rows as usize,
            spec.cols as usize,
            bytes.unwrap_or_default(),
        )
    }

    /// The layers that can carry an adapter.
    pub fn targets(&self) -> &[Target] {
        &self.0.targets
    }

    /// How raw inputs become tensors.
    pub fn preprocess(&self) -> &Preprocess {
        &self.0.preprocess
    }

    /// Where the base comes from.
    pub fn record(&self) -> &ImportRecord {
        &self.0.record
    }

    /// Where graph `index` comes from, its inputs and outputs. Errors: no such graph (bad input).
    pub fn graph_record(&self, index: usize) -> Result<&GraphRecord> {
        self.graph_entry(index)?;
        // As many as there are graphs: checked at open.
        self.0.record.graphs.get(index).ok_or_else(|| Error::failed("a graph without a record"))
    }

    /// How the inputs of target `index` are quantized.
    pub fn activation(&self, index: usize) -> Activation {
        self.0.activations.get(index).copied().unwrap_or_default()
    }

    /// The directions of the targets' inputs that the base's knowledge lives in, read in place; none
    /// where they were not measured. Errors: damaged (bad input).
    pub fn subspaces(&self) -> Result<Vec<Subspace<'_>>> {
        let Some(bytes) = self.further(Kind::Subspaces)? else { return Ok(vec![]) };
        let place = |e: Error| e.at(format_args!("'{}'", self.0.path.display()));
        let subspaces: Vec<Subspace<'_>> = decode(bytes).map_err(place)?;
        for subspace in &subspaces {
            let target = self.0.targets.get(subspace.target as usize);
            subspace.check(target.map(|t| t.in_features)).map_err(place)?;
        }
        Ok(subspaces)
    }

    /// How sound becomes the input; `None` for bases that take none. Errors: damaged (bad input).
    pub fn audio(&self) -> Result<Option<AudioSpec>> {
        let Some(bytes) = self.further(Kind::Audio)? else { return Ok(None) };
        let spec: Result<AudioSpec> = decode(bytes);
        let spec = spec.and_then(|spec| spec.check().map(|()| spec));
        spec.map(Some).map_err(|e| e.at(format_args!("'{}'", self.0.path.display())))
    }

    /// A file of the export folder that was kept as it is: `generation_config.json`. Errors: damaged
    /// (bad input).
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        let texts = self.texts()?;
        Ok(texts.into_iter().find(|(n, _)| *n == name).map(|(_, text)| text))
    }

    /// All those, name and contents.
    pub fn texts(&self) -> Result<Vec<(&str, &str)>> {
        let Some(bytes) = self.further(Kind::Texts)? else { return Ok(vec![]) };
        decode(bytes).map_err(|e| e.at(format_args!("'{}'", self.0.path.display())))
    }

    /// Every section: name, place, hash.
    pub(crate) fn sections(&self) -> Vec<SectionInfo> {
        let sections = self.0.header.sections.iter();
        sections
            .map(|s| SectionInfo {
                name: Kind::of(s.kind)
                    .map_or_else(|| section_name(s.kind), |k| k.name().to_string()),
                required: s.flags & MUST != 0,
                offset: s.offset,
                len: s.len,
                hash: blake3::Hash::from_bytes(s.hash).to_hex().to_string(),
            })
            .collect()
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.0.mapping.bytes().len() as u64
    }

    /// Whether the system granted a read lease, so that a writer in place is noticed.
    pub fn leased(&self) -> bool {
        self.0.mapping.leased()
    }

    /// Asks the kernel to read the weights ahead of use. Best effort; for machines whose free
    /// memory is well above the file's length.
    pub fn will_need(&self) {
        let Some(section) = self.0.header.section(Kind::Weights) else { return };
        if let (Ok(offset), Ok(len)) = (section.offset.try_into(), section.len.try_into()) {
            self.0.mapping.will_need(offset, len);
        }
    }

    /// Reads the file in and keeps it in memory for as long as the base is open.
    ///
    /// Errors: refused, where the limit on locked memory is smaller.
    pub fn lock(&self) -> Result<()> {
        self.0.mapping.lock(&self.0.path)
    }

    /// The bytes of a section that only some bases have, hashed once.
    fn further(&self, kind: Kind) -> Result<Option<&[u8]>> {
        match self.0.header.section(kind) {
            None => Ok(None),
            Some(_) => self.checked(kind).map(Some),
        }
    }

    /// The bytes of a section, hashed once.
    fn checked(&self, kind: Kind) -> Result<&[u8]> {
        let inner = &*self.0;
        let section = known(&inner.header, kind)?;
        let bytes = bytes_of(&inner.mapping, section)?;
        let intact = &inner.intact[kind.index()];
        if !intact.load(Ordering::Relaxed) {
            check_hash(section, bytes)
                .map_err(|e| e.at(format_args!("'{}'", inner.path.display())))?;
            intact.store(true, Ordering::Relaxed);
        }
        Ok(bytes)
    }
}

/// One for each target, or none.
pub(super) fn check_activations(activations: &[Activation], targets: &[Target]) -> Result<()> {
    if !activations.is_empty() && activations.len() != targets.len() {
        return Err(Error::bad_input(format!(
            "{} activation ranges for {} targets",
            activations.len(),
            targets.len()
        )));
    }
    activations.iter().try_for_each(Activation::check)
}

fn known(header: &Header, kind: Kind) -> Result<&Section> {
    let missing = || Error::bad_input(format!("section '{}' is missing", kind.name()));
    header.section(kind).ok_or_else(missing)
}

fn bytes_of<'a>(mapping: &'a Mapping, section: &Section) -> Result<&'a [u8]> {
    range(mapping.bytes(), section.offset, section.len).ok_or_else(|| {
        Error::bad_input(format!(
            "section {} reaches past the file's end",
            section_name(section.kind)
        ))
    })
}

fn check_hash(section: &Section, bytes: &[u8]) -> Result<()> {
    equals(section, blake3::hash(bytes))
}

fn equals(section: &Section, hash: blake3::Hash) -> Result<()> {
    if *hash.as_bytes() == section.hash {
        return Ok(());
    }
    Err(Error::bad_input(format!(
        "section {} is damaged (its hash differs)",
        section_name(section.kind)
    ))
    .hint("pack the ONNX file again"))
}

fn range(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    bytes.get(start..end)
}
