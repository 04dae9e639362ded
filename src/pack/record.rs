//! What a base says about itself: constants' types, weight shapes, import record.
//!
//! These structs are stored with postcard, so the order of their fields and variants is part of the
//! format: a change needs a new format version.

#![warn(clippy::arithmetic_side_effects)]

use super::header::OLDEST;
use super::io::IoSpec;
use crate::adapter::{Target, TargetKind};
use crate::error::{Error, Result};
use crate::quant::{Scheme, packed_len};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What to do with a base of another version.
pub(super) const NEWER: &str = "a newer program made it: use that, or pack the ONNX file again";
pub(super) const OLDER: &str = "pack the ONNX file again with this program";

/// Element type of a constant, little-endian in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum ConstType {
    F32,
    F16,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    /// One byte, 0 or 1.
    Bool,
}

impl ConstType {
    /// Bytes of one element.
    pub fn size(self) -> u64 {
        match self {
            ConstType::I8 | ConstType::U8 | ConstType::Bool => 1,
            ConstType::F16 | ConstType::I16 | ConstType::U16 => 2,
            ConstType::F32 | ConstType::I32 | ConstType::U32 => 4,
            ConstType::F64 | ConstType::I64 | ConstType::U64 => 8,
        }
    }

    /// Bytes of a constant of this type and `shape`; `None` where that overflows or the rank is
    /// above 16.
    pub fn byte_len(self, shape: &[u64]) -> Option<u64> {
        if shape.len() > 16 {
            return None;
        }
        // A zero dimension must not hide the overflow of the others.
        let nonzero = shape.iter().filter(|&&d| d != 0);
        nonzero.copied().try_fold(self.size(), u64::checked_mul)?;
        shape.iter().copied().try_fold(self.size(), u64::checked_mul)
    }
}

/// Where a section stands, for people and tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SectionInfo {
    /// `graphs`, `constants`, `targets`, `preprocess`, `tokenizer`, `record`, `weights`, or one of
    /// the further ones; `kind N` for one that this program does not know.
    pub name: String,
    /// Whether a program must understand it.
    pub required: bool,
    /// Offset in the file, a multiple of [`SECTION_ALIGN`](super::SECTION_ALIGN).
    pub offset: u64,
    /// Bytes without the padding that follows.
    pub len: u64,
    /// Hex blake3 of those bytes.
    pub hash: String,
}

/// Scheme and shape of one frozen weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WeightSpec {
    /// How it is quantized.
    pub scheme: Scheme,
    /// Rows (out_features; for an embedding the vocabulary). At least 1.
    pub rows: u32,
    /// Columns (in_features; for an embedding the row length). At least 1.
    pub cols: u32,
}

impl WeightSpec {
    /// The first format version that has its scheme.
    pub(super) fn since(&self) -> u32 {
        match self.scheme {
            Scheme::Q8 | Scheme::Q4 | Scheme::F16 | Scheme::F32 => OLDEST,
            Scheme::Q8Wide => 3,
        }
    }

    /// Bytes of the packed weight; `None` for an empty matrix or on overflow.
    pub fn byte_len(&self) -> Option<u64> {
        if self.rows == 0 || self.cols == 0 {
            return None;
        }
        let rows = usize::try_from(self.rows).ok()?;
        let cols = usize::try_from(self.cols).ok()?;
        u64::try_from(packed_len(self.scheme, rows, cols)?).ok()
    }
}

/// Quantization error of one target's weight against the ONNX file's values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetError {
    /// Index in the target table.
    pub target: u32,
    /// Scheme of its weight.
    pub scheme: Scheme,
    /// Frobenius norm of the difference over that of the original.
    pub relative: f32,
    /// Largest absolute difference.
    pub max_abs: f32,
}

/// A free dimension or scalar input that the importer fixed, because the graph can't be built with
/// it free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The dimension's or input's name in the ONNX file.
    pub name: String,
    /// A number, another dimension's name, or a multiple of one.
    pub to: String,
    /// The reason, for people.
    pub why: String,
}

/// Where one graph comes from, its names, and what its inputs and outputs are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GraphRecord {
    /// The ONNX file's name without folders.
    pub source_name: String,
    /// Hex blake3 of the ONNX file.
    pub source_hash: String,
    /// Its length.
    pub source_bytes: u64,
    /// Its ONNX operator set.
    pub opset: u64,
    /// Symbols bound by `--dim`.
    pub dims: Vec<(String, i64)>,
    /// Inputs given by `--input`: name and text (`1x3x48x320,f32`).
    pub fixed_inputs: Vec<(String, String)>,
    /// Inputs fixed by `--const`: name and text of the value.
    pub fixed_values: Vec<(String, String)>,
    /// What the importer fixed without being asked.
    pub bound: Vec<Bound>,
    /// Safe identifier in the graph, name in the ONNX file.
    pub node_names: Vec<(String, String)>,
    /// Safe identifier in the graph, symbol in the ONNX file.
    pub symbols: Vec<(String, String)>,
    /// The graph's inputs, in its order.
    pub inputs: Vec<IoSpec>,
    /// The graph's outputs, in its order.
    pub outputs: Vec<IoSpec>,
    /// The ONNX file's metadata properties.
    pub properties: Vec<(String, String)>,
}

/// Where a base comes from and what was decided when it was packed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImportRecord {
    /// `offshoot` and its version.
    pub tool: String,
    /// One for each graph of the base, in their order.
    pub graphs: Vec<GraphRecord>,
    /// Quantization error per target.
    pub errors: Vec<TargetError>,
}

impl ImportRecord {
    pub(super) fn check(&self, graphs: usize, targets: &[Target]) -> Result<()> {
        if self.graphs.len() != graphs {
            return Err(Error::bad_input(format!(
                "the record describes {} graphs, the base has {graphs}",
                self.graphs.len()
            )));
        }
        match self.errors.iter().find(|e| e.target as usize >= targets.len()) {
            Some(e) => Err(Error::bad_input(format!(
                "quantization error names target {} of {}",
                e.target,
                targets.len()
            ))),
            None => Ok(()),
        }
    }
}

/// Every target has its own name and points at a weight of its shape.
pub(super) fn check_targets(
    targets: &[Target],
    weight: impl Fn(usize) -> Option<WeightSpec>,
) -> Result<()> {
    let mut seen = HashSet::new();
    for target in targets {
        let name = &target.module_path;
        if name.is_empty() || !seen.insert(name.as_str()) {
            return Err(Error::bad_input(format!("target name '{name}' is empty or stands twice")));
        }
        let spec = weight(target.weight as usize).ok_or_else(|| {
            Error::bad_input(format!(
                "target '{name}' names weight {}, which is missing",
                target.weight
            ))
        })?;
        let (rows, cols) = match target.kind {
            TargetKind::Embedding => (target.in_features, target.out_features),
            _ => (target.out_features, target.in_features),
        };
        if (spec.rows, spec.cols) != (rows, cols) {
            return Err(Error::bad_input(format!(
                "target '{name}' expects a weight of {rows} x {cols}, found {} x {}",
                spec.rows, spec.cols
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn constant_sizes_do_not_wrap() {
        assert_eq!(ConstType::F32.byte_len(&[2, 3]), Some(24));
        assert_eq!(ConstType::I64.byte_len(&[]), Some(8));
        assert_eq!(ConstType::U8.byte_len(&[0, 9]), Some(0));
        for shape in [&[1u64 << 62, 4][..], &[1 << 32, 1 << 32, 0], &[u64::MAX, 1], &[1; 17]] {
            assert_eq!(ConstType::F32.byte_len(shape), None, "{shape:?}");
        }
    }
}
