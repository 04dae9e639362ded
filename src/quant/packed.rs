//! Packed matrices: owned, and views into a mapped file.

#[cfg(feature = "import")]
use super::InputMoments;
use super::kernels::AlignedBytes;
use super::layout::{
    ALIGN, BLOCK, GROUP, PANEL, SCALES, block_len, packed_len, panel_len, q4_at, q8_at, scale_at,
};
use super::{Scheme, encode};
use crate::error::{Error, Result};
use half::f16;

/// A packed matrix that owns its bytes, 64-byte aligned.
#[derive(Clone)]
pub struct Packed {
    scheme: Scheme,
    rows: usize,
    cols: usize,
    bytes: AlignedBytes,
}

impl Packed {
    /// Packs `values`, row-major (rows, cols).
    ///
    /// # Errors
    /// A length that is not rows · cols; a value that is not finite, or too large for `f16`; a block
    /// whose scale f16 can't hold (the message names row and column): use [`Scheme::F32`] then.
    pub fn pack(scheme: Scheme, rows: usize, cols: usize, values: &[f32]) -> Result<Packed> {
        let mut packed = Packed::zeroed(scheme, rows, cols)?;
        if rows.checked_mul(cols) != Some(values.len()) {
            return Err(Error::bad_input(format!(
                "{} values for a matrix of ({rows}, {cols})",
                values.len()
            )));
        }
        encode::encode(scheme, cols, values, packed.bytes.bytes_mut())?;
        Ok(packed)
    }

    /// Packs `values`, row-major (rows, cols), as q4 for a layer with inputs such as `moments` are of.
    ///
    /// # Errors
    /// As [`Packed::pack`]; moments of another number of columns.
    #[cfg(feature = "import")]
    pub(crate) fn pack_q4_for(
        rows: usize,
        cols: usize,
        values: &[f32],
        moments: &InputMoments,
    ) -> Result<Packed> {
        let mut packed = Packed::zeroed(Scheme::Q4, rows, cols)?;
        if rows.checked_mul(cols) != Some(values.len()) || moments.cols() != cols {
            return Err(Error::bad_input(format!(
                "{} values and inputs of {} columns for a matrix of ({rows}, {cols})",
                values.len(),
                moments.cols()
            )));
        }
        encode::encode_q4_for(cols, values, moments, packed.bytes.bytes_mut())?;
        Ok(packed)
    }

    /// Packs integers that are already quantized, as q8 or q8-64, keeping every integer. `ints` is row-major
    /// (rows, cols); `row_scales` has one scale a row, or one for all. A scale is rounded to f16,
    /// which is exact where f16 holds it and within 2⁻¹¹ of it in f16's normal range.
    ///
    /// # Errors
    /// Lengths that don't fit; a scale that is not finite, or that f16 holds only to worse than
    /// 2⁻⁸ (too large or too small): pack the dequantized values then.
    ///
    /// # Panics
    /// If `scheme` is another.
    pub fn pack_int8(
        scheme: Scheme,
        [rows, cols]: [usize; 2],
        ints: &[i8],
        row_scales: &[f32],
    ) -> Result<Packed> {
        assert!(matches!(scheme, Scheme::Q8 | Scheme::Q8Wide), "a scheme of 8-bit integers");
        let mut packed = Packed::zeroed(scheme, rows, cols)?;
        if rows.checked_mul(cols) != Some(ints.len()) {
            return Err(Error::bad_input(format!(
                "{} integers for a matrix of ({rows}, {cols})",
                ints.len()
            )));
        }
        if row_scales.len() != rows && row_scales.len() != 1 {
            return Err(Error::bad_input(format!(
                "{} scales for {rows} rows: expected one a row or one for all",
                row_scales.len()
            )));
        }
        encode::encode_int8(scheme, cols, ints, row_scales, packed.bytes.bytes_mut())?;
        Ok(packed)
    }

    fn zeroed(scheme: Scheme, rows: usize, cols: usize) -> Result<Packed> {
        let len = packed_len(scheme, rows, cols).ok_or_else(|| too_large(rows, cols))?;
        Ok(Packed { scheme, rows, cols, bytes: AlignedBytes::zeroed(len) })
    }

    /// The matrix as the products read it.
    pub fn view(&self) -> PackedRef<'_> {
        PackedRef {
            scheme: self.scheme,
            rows: self.rows,
            cols: self.cols,
            bytes: self.bytes.bytes(),
            keep_inputs: false,
            disturb_inputs: false,
            row_scales: false,
        }
    }

    /// The packed bytes, as a base file stores them.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.bytes()
    }

    /// How it is quantized.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// out_features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// in_features.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.view().fmt(f)
    }
}

/// A packed matrix somewhere in memory, say in a mapped file. Holding one proves that the bytes are
/// exactly those of a (rows, cols) matrix of the scheme and start at a multiple of 64; it says
/// nothing of the values in them.
#[derive(Clone, Copy)]
pub struct PackedRef<'a> {
    scheme: Scheme,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
    keep_inputs: bool,
    disturb_inputs: bool,
    row_scales: bool,
}

impl<'a> PackedRef<'a> {
    /// Checks length and alignment.
    ///
    /// # Errors
    /// A length other than [`packed_len`], or bytes that don't start at a multiple of 64.
    pub fn new(scheme: Scheme, rows: usize, cols: usize, bytes: &'a [u8]) -> Result<PackedRef<'a>> {
        let len = packed_len(scheme, rows, cols).ok_or_else(|| too_large(rows, cols))?;
        if bytes.len() != len {
            return Err(Error::bad_input(format!(
                "{} bytes for a {} matrix of ({rows}, {cols}), expected {len}",
                bytes.len(),
                scheme.name()
            )));
        }
        if len > 0 && !bytes.as_ptr().addr().is_multiple_of(ALIGN) {
            return Err(Error::bad_input("weights do not start at a multiple of 64 bytes"));
        }
        let [keep_inputs, disturb_inputs, row_scales] = [false; 3];
        Ok(PackedRef { scheme, rows, cols, bytes, keep_inputs, disturb_inputs, row_scales })
    }

    /// The same matrix, with products in f32 on every processor: integer kernels, which quantize their
    /// inputs too, are left aside. Slower; for judging what the weights alone cost.
    pub fn keeping_inputs(self) -> PackedRef<'a> {
        PackedRef { keep_inputs: true, disturb_inputs: false, ..self }
    }

    /// As [`PackedRef::keeping_inputs`], of inputs with errors as large as integer kernels' rounding makes them; for
    /// judging what products cost in all, on every processor alike.
    pub fn disturbing_inputs(self) -> PackedRef<'a> {
        let disturb_inputs = !PackedRef { keep_inputs: false, ..self }.keeps_inputs();
        PackedRef { keep_inputs: true, disturb_inputs, ..self }
    }

    /// The same matrix, with what it takes a walk over it to know: whether each row has one scale, as rows of
    /// a model have that came in integers. Products with x of one scale sum such rows in one go.
    pub fn with_row_scales(self, row_scales: bool) -> PackedRef<'a> {
        PackedRef { row_scales, ..self }
    }

    /// Whether each row is known to have one scale.
    pub(crate) fn has_row_scales(&self) -> bool {
        self.row_scales
    }

    /// Whether all blocks of each row have the same scale, of q8 and q8-64.
    pub fn find_row_scales(&self) -> bool {
        let bytes = matches!(self.scheme, Scheme::Q8 | Scheme::Q8Wide);
        let blocks = self.cols.div_ceil(block_len(self.scheme));
        // Sums of more columns could leave 32 bits.
        bytes
            && (1..=1 << 16).contains(&self.cols)
            && (0..self.rows.div_ceil(PANEL)).all(|panel| {
                let panel = self.panel(panel);
                let scales = |block| &panel[scale_at(self.scheme, blocks, block, 0)..][..SCALES];
                (1..blocks).all(|block| scales(block) == scales(0))
            })
    }

    /// Whether products disturb their inputs and go on in f32.
    pub(crate) fn disturbs_inputs(&self) -> bool {
        self.disturb_inputs
    }

    /// Whether products leave their inputs unquantized.
    pub(crate) fn keeps_inputs(&self) -> bool {
        let integers = match self.scheme {
            Scheme::Q8 | Scheme::Q4 | Scheme::Q8Wide => true,
            Scheme::F16 | Scheme::F32 => false,
        };
        self.keep_inputs || !integers
    }

    /// out_features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// in_features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How it is quantized.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The packed bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// One row, dequantized. Touches only that row's panel.
    ///
    /// # Panics
    /// If `row` is not below rows or `out` has not cols values.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "a row has cols values");
        let panel = self.panel(row / PANEL);
        let lane = row % PANEL;
        let len = block_len(self.scheme);
        let blocks = self.cols.div_ceil(len);
        match self.scheme {
            Scheme::Q8 | Scheme::Q8Wide => {
                for (block, out) in out.chunks_mut(len).enumerate() {
                    let scale = f16_at(panel, scale_at(self.scheme, blocks, block, lane));
                    for (group, out) in out.chunks_mut(GROUP).enumerate() {
                        let at = q8_at(lane, block * len + group * GROUP);
                        for (out, q) in out.iter_mut().zip(&panel[at..at + GROUP]) {
                            *out = f32::from(*q as i8) * scale;
                        }
                    }
                }
            }
            Scheme::Q4 => {
                for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                    let scale = f16_at(panel, scale_at(Scheme::Q4, blocks, block, lane));
                    for (group, out) in out.chunks_mut(GROUP).enumerate() {
                        let (at, shift) = q4_at(lane, block * BLOCK + group * GROUP);
                        for (out, q) in out.iter_mut().zip(&panel[at..at + GROUP]) {
                            *out = (f32::from(q >> shift & 15) - 8.0) * scale;
                        }
                    }
                }
            }
            Scheme::F16 => {
                for (col, out) in out.iter_mut().enumerate() {
                    *out = f16_at(panel, (col * PANEL + lane) * 2);
                }
            }
            Scheme::F32 => {
                for (col, out) in out.iter_mut().enumerate() {
                    let at = (col * PANEL + lane) * 4;
                    let bytes = [panel[at], panel[at + 1], panel[at + 2], panel[at + 3]];
                    *out = f32::from_le_bytes(bytes);
                }
            }
        }
    }

    /// The whole matrix, dequantized, row-major (rows, cols).
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        if self.cols > 0 {
            for (row, out) in out.chunks_exact_mut(self.cols).enumerate() {
                self.row(row, out);
            }
        }
        out
    }

    /// The bytes of one panel.
    pub(crate) fn panel(&self, panel: usize) -> &'a [u8] {
        let len = panel_len(self.scheme, self.cols).unwrap_or(0);
        &self.bytes[panel * len..][..len]
    }
}

impl std::fmt::Debug for PackedRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({}, ({}, {}))", self.scheme.name(), self.rows, self.cols)
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn too_large(rows: usize, cols: usize) -> Error {
    Error::bad_input(format!("a matrix of ({rows}, {cols}) is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_of_wrong_length_or_alignment_is_refused() {
        let packed = Packed::pack(Scheme::Q8, 3, 5, &[0.5; 15]).unwrap();
        let bytes = packed.bytes();
        assert!(PackedRef::new(Scheme::Q8, 3, 5, bytes).is_ok());
        let e = PackedRef::new(Scheme::Q8, 17, 5, bytes).unwrap_err();
        assert_eq!(e.message(), "576 bytes for a q8 matrix of (17, 5), expected 1152");
        let mut shifted = AlignedBytes::zeroed(640);
        let shifted = &shifted.bytes_mut()[1..577];
        assert!(PackedRef::new(Scheme::Q8, 3, 5, shifted).is_err());
        assert!(PackedRef::new(Scheme::F32, usize::MAX, usize::MAX, bytes).is_err());
    }

    #[test]
    fn an_empty_matrix_is_no_fault() {
        for scheme in Scheme::ALL {
            for (rows, cols) in [(0, 0), (0, 7), (7, 0)] {
                let packed = Packed::pack(scheme, rows, cols, &[]).unwrap();
                assert!(packed.view().dequantize().is_empty());
                assert!(PackedRef::new(scheme, rows, cols, packed.bytes()).is_ok());
            }
        }
    }
}
