//! The first bytes of a `.base` file: prefix, header, section table. `docs/FORMAT.md` has the same
//! offsets; a test ties the two.

#![warn(clippy::arithmetic_side_effects)]

use super::record::{ConstType, NEWER, OLDER, WeightSpec};
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::limits;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// The first eight bytes of every base.
pub const MAGIC: [u8; 8] = *b"offbase\n";
/// The newest format version. A base is of the first one that has all that is in it.
pub const VERSION: u32 = 3;
/// The oldest format version that is read.
pub const OLDEST: u32 = 2;
/// Alignment of every section in the file: the largest page size of the boards.
pub const SECTION_ALIGN: u64 = 64 << 10;
/// Alignment of every weight and constant in its section.
pub const WEIGHT_ALIGN: u64 = 64;

pub(super) const VERSION_AT: usize = MAGIC.len();
pub(super) const HEADER_LEN_AT: usize = VERSION_AT + 4;
pub(super) const FILE_LEN_AT: usize = HEADER_LEN_AT + 4;
pub(super) const RESERVED_AT: usize = FILE_LEN_AT + 8;
pub(super) const HASH_AT: usize = RESERVED_AT + 8;
pub(super) const PREFIX_LEN: usize = HASH_AT + 32;
/// The sections that this program knows, in the order in which they stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Graphs = 1,
    Constants = 2,
    Targets = 3,
    Preprocess = 4,
    Tokenizer = 5,
    Record = 6,
    Weights = 7,
    Activations = 8,
    Subspaces = 9,
    Texts = 10,
    Audio = 11,
}

/// Those that every base has; further ones follow them where they are needed.
pub(super) const ALWAYS: [Kind; 7] = [
    Kind::Graphs,
    Kind::Constants,
    Kind::Targets,
    Kind::Preprocess,
    Kind::Tokenizer,
    Kind::Record,
    Kind::Weights,
];

pub(super) const FURTHER: [Kind; 4] =
    [Kind::Activations, Kind::Subspaces, Kind::Texts, Kind::Audio];

/// Flag of a section that a program must understand to run the base as it was meant; without it one
/// that doesn't know the kind passes over it.
pub(super) const MUST: u8 = 1;

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Graphs => "graphs",
            Kind::Constants => "constants",
            Kind::Targets => "targets",
            Kind::Preprocess => "preprocess",
            Kind::Tokenizer => "tokenizer",
            Kind::Record => "record",
            Kind::Weights => "weights",
            Kind::Activations => "activations",
            Kind::Subspaces => "subspaces",
            Kind::Texts => "texts",
            Kind::Audio => "audio",
        }
    }

    /// The kind of this number, where it is known.
    pub(super) fn of(number: u8) -> Option<Kind> {
        ALWAYS.into_iter().chain(FURTHER).find(|k| *k as u8 == number)
    }

    pub(super) fn index(self) -> usize {
        (self as usize).saturating_sub(1)
    }

    /// What it must be understood for: whatever decides what the base computes, and all that stood
    /// in the first version that had flags.
    pub(super) fn flags(self) -> u8 {
        if matches!(self, Kind::Subspaces | Kind::Texts | Kind::Audio) { 0 } else { MUST }
    }

    fn max_len(self) -> u64 {
        match self {
            Kind::Graphs => limits::GRAPH_TEXT,
            Kind::Tokenizer => limits::TOKENIZER,
            Kind::Constants | Kind::Weights | Kind::Subspaces => u64::MAX,
            _ => limits::TABLE,
        }
    }
}

/// What messages call a section of this number.
pub(super) fn section_name(number: u8) -> String {
    Kind::of(number).map_or_else(|| format!("kind {number}"), |k| format!("'{}'", k.name()))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Section {
    pub kind: u8,
    pub flags: u8,
    // Fixed width, so that the header's length does not depend on the offsets.
    #[serde(with = "postcard::fixint::le")]
    pub offset: u64,
    #[serde(with = "postcard::fixint::le")]
    pub len: u64,
    pub hash: [u8; 32],
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct WeightEntry {
    pub spec: WeightSpec,
    /// From the start of the weights section.
    pub offset: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ConstEntry {
    pub dtype: ConstType,
    pub shape: Vec<u64>,
    /// From the start of the constants section.
    pub offset: u64,
}

/// One graph: its text is the next `text` bytes of the graphs section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct GraphEntry {
    pub name: String,
    pub text: u64,
    /// The constants that the text reads: its name there, index in the constant table.
    pub constants: Vec<(String, u32)>,
}

/// The decoded header. Holding one from [`Header::parse`] proves: sections in order, contiguous up
/// to the end of the file, those that every base has at the front, none that must be understood and
/// isn't; at least one graph, their names unique, their texts within their section; weights and
/// constants within their sections, aligned, without overlap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    pub sections: Vec<Section>,
    pub graphs: Vec<GraphEntry>,
    pub weights: Vec<WeightEntry>,
    pub constants: Vec<ConstEntry>,
}

impl Header {
    /// Prefix and header as they stand at the start of the file.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let body = self.body()?;
        let header_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(PREFIX_LEN.saturating_add(body.len()));
        bytes.extend(MAGIC);
        bytes.extend(self.version().to_le_bytes());
        bytes.extend(header_len.to_le_bytes());
        bytes.extend(self.end().unwrap_or(0).to_le_bytes());
        bytes.extend([0; HASH_AT - RESERVED_AT]);
        bytes.extend(header_hash(&bytes, &body));
        bytes.extend(body);
        Ok(bytes)
    }

    /// The first format version that has all that is in it.
    fn version(&self) -> u32 {
        self.weights.iter().map(|w| w.spec.since()).max().unwrap_or(OLDEST)
    }

    /// Length of prefix and header.
    pub(super) fn encoded_len(&self) -> Result<u64> {
        Ok(PREFIX_LEN.saturating_add(self.body()?.len()) as u64)
    }

    fn body(&self) -> Result<Vec<u8>> {
        let body = postcard::to_stdvec(self)
            .map_err(|e| Error::failed(format!("the header can't be encoded: {e}")))?;
        if body.len() > limits::HEADER {
            return Err(Error::unsupported(format!(
                "the header would take {} bytes, at most {} are allowed ({} weights, {} constants)",
                body.len(),
                limits::HEADER,
                self.weights.len(),
                self.constants.len()
            )));
        }
        Ok(body)
    }

    /// Reads and checks the header of a file of `file` bytes. Touches only the pages before the
    /// first section.
    pub(super) fn parse(file: &[u8]) -> Result<Header> {
        let Some((prefix, rest)) = file.split_at_checked(PREFIX_LEN) else {
            return Err(if MAGIC.starts_with(file) || file.starts_with(&MAGIC) {
                Error::bad_input(format!("file of {} bytes is too short for a base", file.len()))
            } else {
                not_a_base(file)
            });
        };
        if !prefix.starts_with(&MAGIC) {
            return Err(not_a_base(file));
        }
        let version = u32_at(prefix, VERSION_AT);
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(Error::unsupported(format!(
                "base has format version {version}, this program reads {OLDEST} to {VERSION}"
            ))
            .hint(if version > VERSION { NEWER } else { OLDER }));
        }
        let stated = u64_at(prefix, FILE_LEN_AT);
        let found = file.len() as u64;
        if stated != found {
            let what = if stated > found { "truncated" } else { "longer than it should be" };
            return Err(Error::bad_input(format!(
                "base is {what}: expected {stated} bytes, found {found}"
            )));
        }
        let header_len = u32_at(prefix, HEADER_LEN_AT) as usize;
        let body = match rest.get(..header_len) {
            Some(body) if header_len <= limits::HEADER => body,
            _ => {
                return Err(Error::bad_input(format!(
                    "header length {header_len} is past the file's end or the limit of {}",
                    limits::HEADER
                )));
            }
        };
        let stated = prefix.get(HASH_AT..).unwrap_or_default();
        if header_hash(prefix.get(..HASH_AT).unwrap_or_default(), body) != *stated {
            return Err(Error::bad_input("header is damaged (its hash differs)"));
        }
        if u64_at(prefix, RESERVED_AT) != 0 {
            return Err(Error::bad_input("reserved bytes of the header are not zero"));
        }
        let header: Header = decode(body).map_err(|e| e.at("header"))?;
        header.check(found, PREFIX_LEN.saturating_add(header_len) as u64)?;
        if header.version() != version {
            return Err(Error::bad_input("header of another format version than it says"));
        }
        let first = header.sections.first().map_or(0, |s| s.offset) as usize;
        match rest.get(header_len..first.saturating_sub(PREFIX_LEN)) {
            Some(padding) if padding.iter().all(|&b| b == 0) => Ok(header),
            _ => Err(Error::bad_input("padding after the header is not zero")),
        }
    }

    /// Geometry: see the type.
    pub(super) fn check(&self, file_len: u64, header_end: u64) -> Result<()> {
        if self.sections.len() > limits::SECTIONS {
            return Err(Error::bad_input(format!(
                "{} sections, at most {} are allowed",
                self.sections.len(),
                limits::SECTIONS
            )));
        }
        for (i, kind) in ALWAYS.into_iter().enumerate() {
            let found = self.sections.get(i).map_or(0, |s| s.kind);
            if found != kind as u8 {
                return Err(Error::bad_input(format!(
                    "section table: expected kind {} ('{}'), found {found}",
                    kind as u8,
                    kind.name()
                )));
            }
        }
        let mut end = header_end;
        let mut before = 0;
        for section in &self.sections {
            let name = section_name(section.kind);
            let kind = Kind::of(section.kind);
            if section.kind <= before {
                return Err(Error::bad_input(format!(
                    "section table: {name} stands behind kind {before}"
                )));
            }
            before = section.kind;
            if section.flags & !MUST != 0 || kind.is_some_and(|k| k.flags() != section.flags) {
                return Err(Error::bad_input(format!(
                    "section {name} has the flags {}",
                    section.flags
                )));
            }
            if kind.is_none() && section.flags & MUST != 0 {
                return Err(Error::unsupported(format!(
                    "base has a section of kind {}, which must be understood and isn't known here",
                    section.kind
                ))
                .hint(NEWER));
            }
            let expected = align_up(end, SECTION_ALIGN);
            if expected != Some(section.offset) {
                return Err(Error::bad_input(format!(
                    "section {name} is at {}, expected {}",
                    section.offset,
                    expected.unwrap_or(u64::MAX)
                )));
            }
            let most = kind.map_or(u64::MAX, Kind::max_len);
            if section.len > most {
                return Err(Error::bad_input(format!(
                    "section {name} has {} bytes, at most {most} are allowed",
                    section.len
                )));
            }
            end = match section.offset.checked_add(section.len) {
                Some(end) if end <= file_len => end,
                _ => {
                    return Err(Error::bad_input(format!(
                        "section {name} of {} bytes reaches past the file's end",
                        section.len
                    )));
                }
            };
        }
        if end != file_len {
            return Err(Error::bad_input(format!("sections end at {end}, the file at {file_len}")));
        }
        self.check_weights()?;
        self.check_constants()?;
        self.check_graphs()
    }

    fn check_graphs(&self) -> Result<()> {
        if self.graphs.is_empty() || self.graphs.len() > limits::GRAPHS {
            return Err(Error::bad_input(format!(
                "{} graphs, expected 1 to {}",
                self.graphs.len(),
                limits::GRAPHS
            )));
        }
        let mut end = 0u64;
        let mut graphs = HashSet::new();
        for graph in &self.graphs {
            let name = &graph.name;
            if !is_graph_name(name) || !graphs.insert(name) {
                return Err(Error::bad_input(format!(
                    "graph name '{}' is no plain word or stands twice",
                    name.escape_debug()
                )));
            }
            end = end.checked_add(graph.text).ok_or_else(|| {
                Error::bad_input(format!("graph '{name}' has {} bytes", graph.text))
            })?;
            let mut seen = HashSet::new();
            for (constant, index) in &graph.constants {
                if constant.is_empty() || !seen.insert(constant.as_str()) {
                    return Err(Error::bad_input(format!(
                        "constant name '{constant}' is empty or stands twice in graph '{name}'"
                    )));
                }
                if *index as usize >= self.constants.len() {
                    return Err(Error::bad_input(format!(
                        "constant '{constant}' of graph '{name}' is number {index} of {}",
                        self.constants.len()
                    )));
                }
            }
        }
        self.covers(Kind::Graphs, end)
    }

    fn check_weights(&self) -> Result<()> {
        let mut end = 0u64;
        for (i, weight) in self.weights.iter().enumerate() {
            let len = weight.spec.byte_len();
            let next = len.and_then(|len| weight.offset.checked_add(len));
            match next {
                Some(next) if weight.offset == end && weight.offset % WEIGHT_ALIGN == 0 => {
                    end = next;
                }
                _ => {
                    return Err(Error::bad_input(format!(
                        "weight {i} ({} x {}) at {} is empty, too large or not where it belongs",
                        weight.spec.rows, weight.spec.cols, weight.offset
                    )));
                }
            }
        }
        self.covers(Kind::Weights, end)
    }

    fn check_constants(&self) -> Result<()> {
        let mut end = 0u64;
        for (i, constant) in self.constants.iter().enumerate() {
            let len = constant.dtype.byte_len(&constant.shape);
            let next = len.and_then(|len| constant.offset.checked_add(len));
            match next {
                Some(next) if Some(constant.offset) == align_up(end, WEIGHT_ALIGN) => end = next,
                _ => {
                    return Err(Error::bad_input(format!(
                        "constant {i} of shape {:?} at {} is too large or not where it belongs",
                        constant.shape, constant.offset
                    )));
                }
            }
        }
        self.covers(Kind::Constants, end)
    }

    fn covers(&self, kind: Kind, end: u64) -> Result<()> {
        let len = self.sections.get(kind.index()).map_or(0, |s| s.len);
        if end == len {
            return Ok(());
        }
        Err(Error::bad_input(format!(
            "table covers {end} bytes of section '{}', which has {len}",
            kind.name()
        )))
    }

    /// Length of the file.
    pub(super) fn end(&self) -> Option<u64> {
        let last = self.sections.last()?;
        last.offset.checked_add(last.len)
    }

    /// The section of this kind, where the base has one.
    pub(super) fn section(&self, kind: Kind) -> Option<&Section> {
        self.sections.iter().find(|s| s.kind == kind as u8)
    }

    /// Everything that decides what the base computes: graphs, constants and weights with their
    /// tables, the targets that adapters attach to, and what else must be understood. Not where it
    /// came from, nor preprocessing.
    pub(super) fn fingerprint(&self) -> Result<BaseFingerprint> {
        let mut hasher = blake3::Hasher::new_derive_key("offshoot base fingerprint 2");
        let apart = [Kind::Preprocess, Kind::Tokenizer, Kind::Record].map(|k| k as u8);
        for section in &self.sections {
            if section.flags & MUST != 0 && !apart.contains(&section.kind) {
                hasher.update(&[section.kind]);
                hasher.update(&section.len.to_le_bytes());
                hasher.update(&section.hash);
            }
        }
        let tables = postcard::to_stdvec(&(&self.graphs, &self.weights, &self.constants))
            .map_err(|e| Error::failed(format!("the tables can't be encoded: {e}")))?;
        hasher.update(&(tables.len() as u64).to_le_bytes());
        hasher.update(&tables);
        Ok(BaseFingerprint(*hasher.finalize().as_bytes()))
    }
}

/// Whether a graph may have this name: `main`, `step`, `decoder_2`.
pub(super) fn is_graph_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Decodes a whole postcard value; bytes left over are an error.
pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Error::bad_input(format!("{} bytes are left over", rest.len()))),
        Err(e) => Err(Error::bad_input(format!("can't be decoded: {e}"))),
    }
}

/// The next multiple of `align`.
pub(super) fn align_up(value: u64, align: u64) -> Option<u64> {
    value.checked_next_multiple_of(align)
}

fn header_hash(before: &[u8], body: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before);
    hasher.update(body);
    *hasher.finalize().as_bytes()
}

fn not_a_base(file: &[u8]) -> Error {
    if file.starts_with(b"offadpt\n") {
        return Error::bad_input("an adapter file where a base is expected");
    }
    Error::bad_input("not a base file (its first bytes are others)")
        .hint("make one with 'offshoot pack MODEL.onnx -o OUT.base'")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}
