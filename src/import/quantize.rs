//! Chooses how each frozen matrix is stored, packs it, and measures what that costs.

use super::targets::FrozenMatrix;
use super::weights::MatrixValues;
use crate::error::Result;
use crate::quant::{Packed, Scheme};

/// Matrices with fewer values than this stay f32: they cost nothing and quantize worst.
const SMALL: usize = 1024;

/// A packed matrix and its error against the file's values.
pub struct Quantized {
    /// The packed form.
    pub packed: Packed,
    /// Frobenius norm of the difference over that of the original.
    pub relative: f32,
    /// Largest absolute difference.
    pub max_abs: f32,
}

impl FrozenMatrix {
    /// Whether the file has integers of 8 bits, which q8 keeps.
    pub fn keeps_integers(&self) -> bool {
        matches!(self.values, MatrixValues::Int8 { .. })
    }

    /// The values as floats, row-major.
    pub fn floats(&self) -> Vec<f32> {
        match &self.values {
            MatrixValues::F32(v) => v.clone(),
            MatrixValues::Int8 { ints, scales } => ints
                .chunks(self.cols)
                .zip(scales)
                .flat_map(|(row, &scale)| row.iter().map(move |&v| v as f32 * scale))
                .collect(),
        }
    }
}

/// Packs `matrix` as `wanted`, or finer where `wanted` doesn't suit it (the result says which).
/// `embedding`: its rows are gathered, not multiplied.
pub fn quantize(matrix: &FrozenMatrix, wanted: Scheme, embedding: bool) -> Result<Quantized> {
    let FrozenMatrix { name, rows, cols, values } = matrix;
    let scheme = match wanted {
        Scheme::Q4 | Scheme::Q8 | Scheme::Q8Wide if rows * cols < SMALL => Scheme::F32,
        Scheme::Q4 if embedding => Scheme::Q8,
        other => other,
    };
    let floats = matrix.floats();
    if let (MatrixValues::Int8 { ints, scales }, Scheme::Q8 | Scheme::Q8Wide) = (values, scheme)
        && let Ok(packed) = Packed::pack_int8(scheme, [*rows, *cols], ints, scales)
    {
        return Ok(measure(packed, &floats));
    }
    let packed = match Packed::pack(scheme, *rows, *cols, &floats) {
        Ok(packed) => packed,
        // A block whose scale f16 can't hold.
        Err(_) if scheme != Scheme::F32 => Packed::pack(Scheme::F32, *rows, *cols, &floats)
            .map_err(|e| e.at(format!("weight '{name}'")))?,
        Err(e) => return Err(e.at(format!("weight '{name}'"))),
    };
    Ok(measure(packed, &floats))
}

fn measure(packed: Packed, values: &[f32]) -> Quantized {
    let (relative, max_abs) = errors_of(&packed, values);
    Quantized { packed, relative, max_abs }
}

/// The Frobenius norm of the difference from `values`, row-major, over that of those, and the largest difference.
pub fn errors_of(packed: &Packed, values: &[f32]) -> (f32, f32) {
    let (mut difference, mut norm, mut max_abs) = (0f64, 0f64, 0f32);
    let cols = packed.cols();
    let mut row = vec![0f32; cols];
    for (r, original) in values.chunks(cols).enumerate() {
        packed.view().row(r, &mut row);
        for (a, b) in row.iter().zip(original) {
            difference += ((a - b) as f64).powi(2);
            norm += (*b as f64).powi(2);
            max_abs = max_abs.max((a - b).abs());
        }
    }
    (if norm > 0.0 { (difference / norm).sqrt() as f32 } else { 0.0 }, max_abs)
}
