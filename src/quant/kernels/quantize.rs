//! Rows of x as the integer products take them: int8 in blocks, each with its scale.

// NEON quantizes by instructions of its own.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

#[cfg(target_arch = "aarch64")]
pub(super) mod neon;

use super::super::layout::{WIDE, block_len};
use super::super::{PackedRef, Scheme};
use super::integer::Isa;

/// Quantizes one row: for each block of B values the scale max|x| / 127, the values over it rounded
/// to the nearest (ties to even), and -128 times their sum. The last block is padded with zeros.
/// A block that holds a value that is not finite gets the scale NaN, so that it shows in the answer.
#[inline(always)]
pub(super) fn quantize<const B: usize>(
    x: &[f32],
    out: &mut [i8],
    scales: &mut [f32],
    starts: &mut [i32],
) {
    /// 1.5 · 2²³: adding it rounds to an integer, which stands in the last bits then.
    const ROUND: f32 = 12_582_912.0;
    let blocks = out.as_chunks_mut::<B>().0.iter_mut().zip(scales).zip(starts);
    for (x, ((out, scale), start)) in x.chunks(B).zip(blocks) {
        let mut padded = [0f32; B];
        let x: &[f32; B] = match x.try_into() {
            Ok(x) => x,
            Err(_) => {
                padded[..x.len()].copy_from_slice(x);
                &padded
            }
        };
        // Magnitudes are in the order of their bits, ∞ and NaN above all others.
        let mut largest = [0u32; 8];
        for eight in x.as_chunks::<8>().0 {
            for i in 0..8 {
                largest[i] = largest[i].max(eight[i].to_bits() & 0x7fff_ffff);
            }
        }
        let inverse;
        (*scale, inverse) = scale_and_inverse(largest.iter().fold(0, |a, &b| a.max(b)));
        let mut sum = 0u32;
        for i in 0..B {
            let bits = (x[i] * inverse + ROUND).to_bits();
            out[i] = bits as i8;
            sum = sum.wrapping_add(bits);
        }
        let sum = sum.wrapping_sub(ROUND.to_bits().wrapping_mul(B as u32)) as i32;
        *start = sum.wrapping_mul(-128);
    }
}

/// Of a block whose largest magnitude has these bits.
#[inline(always)]
pub(super) fn scale_and_inverse(bits: u32) -> (f32, f32) {
    let largest = f32::from_bits(bits);
    // Below this the inverse would overflow; such a block is zero beside any other.
    let inverse = if largest > 1e-30 { 127.0 / largest } else { 0.0 };
    (if bits < f32::INFINITY.to_bits() { largest / 127.0 } else { f32::NAN }, inverse)
}

/// Steps of a value with known bounds: an odd number of integers, -127 to 127.
const STEPS: f32 = 254.0;

/// v, held between 0 and the bound that has 254 `steps` of 1 / `steps` each, to the nearest of them (ties to
/// even), less 127. Whether no v is NaN, which would not show in the integers.
#[inline(always)]
pub(super) fn bounded(x: &[f32], steps: f32, out: &mut [i8]) -> bool {
    /// As in [`quantize`].
    const ROUND: f32 = 12_582_912.0;
    let mut odd = 0;
    for (v, out) in x.iter().zip(out) {
        odd |= u32::from(v.is_nan());
        let v = v * steps;
        let v = if v > 0.0 { v } else { 0.0 };
        let v = if v < STEPS { v } else { STEPS };
        *out = ((v + ROUND).to_bits() as u8).wrapping_sub(127) as i8;
    }
    odd == 0
}

/// Rows of x, `cols` values each, that are held between 0 and `bound`, to the first rows of `to`, of which
/// all have one scale. A row that holds NaN has the scale NaN.
///
/// # Safety
/// The processor has the instructions of `I`.
pub(super) unsafe fn bounded_rows<I: Isa>(x: &[f32], cols: usize, bound: f32, to: &mut Quantized) {
    let sums = I::STARTS || to.q4;
    let (blocks, block) = (to.blocks, to.block);
    let (steps, scale) = (STEPS / bound, bound / STEPS);
    let rows = to.x.chunks_exact_mut(blocks * block).zip(to.scales.chunks_exact_mut(blocks));
    let rows = rows.zip(to.starts.chunks_exact_mut(blocks));
    let rows = rows.zip(to.row_scales.iter_mut().zip(&mut to.row_starts));
    for (x, (((out, scales), starts), (row_scale, row_start))) in x.chunks_exact(cols).zip(rows) {
        // SAFETY: the processor has the instructions.
        let sound = unsafe { I::bounded(x, steps, &mut out[..cols]) };
        *row_scale = if sound { scale } else { f32::NAN };
        scales.fill(*row_scale);
        if !sums {
            continue;
        }
        *row_start = 0;
        for (x, start) in out.chunks_exact(block).zip(starts) {
            *start = -128 * x.iter().map(|x| i32::from(*x)).sum::<i32>();
            *row_start += *start;
        }
    }
}

/// What x becomes for products with weights in integers: int8 in blocks, each with its scale and what
/// its integer sum with 8-bit weights starts at (a sixteenth of that with q4).
#[derive(Default)]
pub(crate) struct Quantized {
    /// Whether it is for products with q4.
    q4: bool,
    /// Columns of a block.
    pub(crate) block: usize,
    /// Blocks a row.
    pub(crate) blocks: usize,
    /// \[rows\]\[blocks\]\[block\].
    pub(crate) x: Vec<i8>,
    /// \[rows\]\[blocks\].
    pub(crate) scales: Vec<f32>,
    /// \[rows\]\[blocks\].
    pub(crate) starts: Vec<i32>,
    /// Where values lie between 0 and a bound, that bound: every row has one scale, and an integer q means
    /// `scale · (q + 127)`.
    pub(crate) bound: Option<f32>,
    /// Of values with a bound, \[rows\].
    pub(crate) row_scales: Vec<f32>,
    /// Of values with a bound, \[rows\]: the sum of the row's starts.
    pub(crate) row_starts: Vec<i32>,
}

impl Quantized {
    /// No rows, of `cols` columns for products with `w`'s scheme.
    pub(crate) fn empty(scheme: Scheme, cols: usize) -> Quantized {
        let block = block_len(scheme);
        let blocks = cols.div_ceil(block);
        Quantized { q4: scheme == Scheme::Q4, block, blocks, ..Quantized::default() }
    }

    /// What the integer 0 means.
    pub(crate) fn middle(&self) -> f32 {
        self.bound.map_or(0.0, Quantized::middle_of)
    }

    /// The same, of values between 0 and `bound`.
    pub(crate) fn middle_of(bound: f32) -> f32 {
        bound / STEPS * 127.0
    }

    /// Whether rows have the blocks of W.
    pub(crate) fn fits(&self, w: PackedRef<'_>) -> bool {
        let block = block_len(w.scheme());
        let q4 = w.scheme() == Scheme::Q4;
        // Of bounded values the starts may be there for q4 alone.
        (self.block, self.blocks) == (block, w.cols().div_ceil(block))
            && (self.bound.is_none() || self.q4 || !q4)
    }

    /// How many rows there are.
    pub(crate) fn rows(&self) -> usize {
        self.scales.len().checked_div(self.blocks).unwrap_or(usize::MAX)
    }

    /// All rows, in pieces of `rows`.
    pub(crate) fn pieces(&mut self, rows: usize) -> impl Iterator<Item = QuantizedRows<'_>> {
        let Quantized { block, blocks, .. } = *self;
        // Without columns there are no blocks, and nothing to write.
        let step = (rows * blocks).max(1);
        let parts = self.x.chunks_mut(step * block).zip(self.scales.chunks_mut(step));
        parts.zip(self.starts.chunks_mut(step)).map(move |((x, scales), starts)| QuantizedRows {
            block,
            blocks,
            x,
            scales,
            starts,
        })
    }

    /// All rows.
    pub(super) fn all(&mut self) -> QuantizedRows<'_> {
        let Quantized { block, blocks, x, scales, starts, .. } = self;
        QuantizedRows { block: *block, blocks: *blocks, x, scales, starts }
    }

    /// At least `rows` rows: those that it had, then zeros.
    pub(crate) fn reserve(&mut self, rows: usize) {
        if self.rows() < rows {
            let blocks = rows * self.blocks;
            self.x.resize(blocks * self.block, 0);
            self.scales.resize(blocks, 0.0);
            self.starts.resize(blocks, 0);
            if self.bound.is_some() {
                self.row_scales.resize(rows, 0.0);
                self.row_starts.resize(rows, 0);
            }
        }
    }
}

/// Rows of a [`Quantized`] side by side.
pub(crate) struct QuantizedRows<'a> {
    block: usize,
    blocks: usize,
    x: &'a mut [i8],
    scales: &'a mut [f32],
    starts: &'a mut [i32],
}

/// Quantizes the rows of x, `cols` values each, to the first rows of `to`.
///
/// # Safety
/// The processor has the instructions of `I`.
pub(super) unsafe fn quantize_rows<I: Isa>(x: &[f32], cols: usize, to: QuantizedRows<'_>) {
    if cols == 0 {
        return;
    }
    let (blocks, wide) = (to.blocks, to.block == WIDE);
    let rows = to.x.chunks_exact_mut(blocks * to.block);
    let rows = rows.zip(to.scales.chunks_exact_mut(blocks)).zip(to.starts.chunks_exact_mut(blocks));
    for (x, ((out, scales), starts)) in x.chunks_exact(cols).zip(rows) {
        // SAFETY: the processor has the instructions.
        unsafe { I::quantize(wide, x, out, scales, starts) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kernels;
    use super::*;
    use crate::quant::layout::BLOCK;
    use crate::quant::testing::{noise, some};

    /// The definition: scale, values, and what sums of q8 start at.
    fn slow(x: &[f32], len: usize) -> (f32, Vec<i8>, i32) {
        let largest = x.iter().fold(0f32, |a, v| a.max(v.abs()));
        let inverse = if largest > 1e-30 { 127.0 / largest } else { 0.0 };
        let mut q: Vec<i8> = x.iter().map(|v| (v * inverse).round_ties_even() as i8).collect();
        q.resize(len, 0);
        let sum: i32 = q.iter().map(|q| i32::from(*q)).sum();
        let finite = x.iter().all(|v| v.is_finite());
        (if finite { largest / 127.0 } else { f32::NAN }, q, -128 * sum)
    }

    fn check(x: &[f32]) {
        for k in Kernels::available().filter(|k| k.integers.is_some()) {
            for (scheme, len) in [(Scheme::Q8, BLOCK), (Scheme::Q8Wide, WIDE)] {
                let mut got = Quantized::empty(scheme, x.len());
                k.quantize(x, x.len(), &mut got);
                for (b, x) in x.chunks(len).enumerate() {
                    let (scale, q, start) = slow(x, len);
                    let what = format!("{} {len} {x:?}", k.name);
                    assert!(got.scales[b].is_nan() == scale.is_nan(), "{what}");
                    if scale.is_finite() {
                        assert_eq!(got.scales[b].to_bits(), scale.to_bits(), "{what}");
                        assert_eq!(got.x[b * len..][..len], q, "{what}");
                        assert_eq!(got.starts[b], start, "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_kernel_quantizes_to_the_definition() {
        for n in some(1..=135, 11) {
            for size in [1.0, 1e-30, 1e-31, 1e-42, 0.0, -0.0, 3e38] {
                check(&noise(n, n as u64).iter().map(|v| v * size).collect::<Vec<_>>());
            }
        }
        // Ties, of which one in two goes up.
        check(
            &(0..BLOCK).map(|i| i as f32 * 0.5 + 111.5).map(|v| v.min(127.0)).collect::<Vec<_>>(),
        );
        check(&[f32::MAX, f32::MIN, -0.0, 1.0]);
    }

    /// Wherever it stands in a block, and in no other block.
    #[test]
    fn what_is_not_finite_shows_in_the_scale() {
        let signalling = f32::from_bits(0x7f80_0001);
        for bad in [f32::NAN, -f32::NAN, signalling, f32::INFINITY, f32::NEG_INFINITY] {
            for n in [1, 20, 32, 64, 70, 96, 150] {
                for at in some(0..n, 19) {
                    let mut x = noise(n, 5);
                    x[at] = bad;
                    check(&x);
                }
            }
        }
    }
}
