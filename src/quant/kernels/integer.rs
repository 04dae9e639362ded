//! The integer products of q8, q8-64 and q4: rows of x are quantized to int8 with a scale for each block,
//! of as many columns as W's have (32 or 64); blocks are summed in 32-bit integers, exactly, and the sums are scaled and added up in f32.
//!
//! Products of bytes are unsigned by signed on x86 (vpdpbusd, vpmaddubsw), so a weight enters as
//! `q + OFFSET` and each block's sum starts at `-OFFSET · Σx`, which is known when x is quantized; so
//! it is with q4 everywhere. OFFSET is 128 for q8 and 8 for q4.
//!
//! A tile may add a low-rank update u · bᵀ to where its sums start, in f32, while they are registers.
//! Integer sums don't depend on order, and the f32 part is one fused chain in the order of the
//! blocks: all instruction sets with a fused multiply-add give the same bits, and a row's result
//! doesn't depend on the other rows of the batch.

#![cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]

use super::super::layout::{PANEL, WIDE, block_len};
use super::super::{PackedRef, Scheme};
use super::float::{Job, Start};
use std::ops::Range;

/// Rows of x that are quantized and multiplied at a time.
const ROW_BLOCK: usize = 256;
/// Rows of the largest tile of any instruction set.
const MAX_ROWS: usize = 12;
/// Ranks of an update that lie side by side for each row.
pub(crate) const RANKS: usize = 8;

/// The arguments of a tile: y\[rows, 16\] = start + u\[rows, rank\] · b + x\[rows, columns of the blocks\] ·
/// one panel.
pub(super) struct Tile {
    pub(super) blocks: usize,
    /// \[rows\]\[blocks\]\[columns of a block\].
    pub(super) x: *const i8,
    /// Scale of each block, \[rows\]\[blocks\].
    pub(super) scales: *const f32,
    /// What each block's sum starts at, \[rows\]\[blocks\]; a sixteenth of it for q4.
    pub(super) offsets: *const i32,
    /// The panel's quants, then its scales.
    pub(super) panel: *const u8,
    pub(super) start: *const f32,
    pub(super) start_stride: usize,
    /// R of the update; 0 where there is none.
    pub(super) rank: usize,
    /// As [`Piece::update`] has it, from the tile's first row on.
    pub(super) u: *const f32,
    /// Rows of the piece.
    pub(super) u_rows: usize,
    /// \[rank\]\[16\].
    pub(super) b: *const f32,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
}

/// What a tile over two panels has of the second. Only x86-64 has registers for two.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
pub(super) struct Second {
    /// As [`Tile::panel`].
    pub(super) panel: *const u8,
    /// As [`Tile::b`].
    pub(super) b: *const f32,
}

impl Tile {
    /// Where each rank of the update has its values: b's 16, and u's of the first row, from which that
    /// of row r lies `r · RANKS` on.
    ///
    /// # Safety
    /// The pointers are good for what [`Tile`] says.
    #[inline(always)]
    pub(super) unsafe fn ranks(&self) -> impl Iterator<Item = (*const f32, *const f32)> {
        (0..self.rank).map(|k| {
            let u = (k / RANKS * self.u_rows) * RANKS + k % RANKS;
            // SAFETY: the caller's promise.
            unsafe { (self.b.add(k * PANEL), self.u.add(u)) }
        })
    }
}

/// The compiled pieces of one instruction set.
///
/// # Safety
/// The functions may only be called on a processor that has the instructions.
pub(super) trait Isa {
    /// Rows of the largest tile, at most [`MAX_ROWS`].
    const ROWS: usize;
    /// Rows of the largest tile over two panels; 0: there is none.
    const PAIR_ROWS: usize = 0;
    /// A tile of 1..=ROWS rows of a panel of integers.
    ///
    /// # Safety
    /// Every pointer is good for what [`Tile`] says.
    unsafe fn tile(scheme: Scheme, rows: usize, tile: &Tile);
    /// A tile of 1..=PAIR_ROWS rows of the tile's panel and of a second, whose outputs follow those of
    /// the first.
    ///
    /// # Safety
    /// As for `tile`, of two panels.
    unsafe fn pair(_scheme: Scheme, _rows: usize, _tile: &Tile, _second: &Second) {
        unreachable!("no tiles over two panels");
    }
    /// [`quantize`], in blocks of 64 or else of 32.
    ///
    /// # Safety
    /// None beyond the instructions.
    unsafe fn quantize(wide: bool, x: &[f32], out: &mut [i8], scale: &mut [f32], start: &mut [i32]);
}

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
        let bits = largest.iter().fold(0, |a, &b| a.max(b));
        let largest = f32::from_bits(bits);
        // Below this the inverse would overflow; such a block is zero beside any other.
        let inverse = if largest > 1e-30 { 127.0 / largest } else { 0.0 };
        *scale = if bits < f32::INFINITY.to_bits() { largest / 127.0 } else { f32::NAN };
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

/// What x becomes for products with weights in integers: int8 in blocks, each with its scale and what
/// its integer sum with 8-bit weights starts at (a sixteenth of that with q4).
#[derive(Default)]
pub(crate) struct Quantized {
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
}

impl Quantized {
    /// No rows, of `cols` columns for products with `w`'s scheme.
    pub(crate) fn empty(scheme: Scheme, cols: usize) -> Quantized {
        let block = block_len(scheme);
        let blocks = cols.div_ceil(block);
        Quantized { block, blocks, x: vec![], scales: vec![], starts: vec![] }
    }

    /// Whether rows have the blocks of W.
    pub(crate) fn fits(&self, w: PackedRef<'_>) -> bool {
        let block = block_len(w.scheme());
        (self.block, self.blocks) == (block, w.cols().div_ceil(block))
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
    fn all(&mut self) -> QuantizedRows<'_> {
        let Quantized { block, blocks, x, scales, starts } = self;
        QuantizedRows { block: *block, blocks: *blocks, x, scales, starts }
    }

    /// At least `rows` rows: those that it had, then zeros.
    pub(crate) fn reserve(&mut self, rows: usize) {
        if self.rows() < rows {
            let blocks = rows * self.blocks;
            self.x.resize(blocks * self.block, 0);
            self.scales.resize(blocks, 0.0);
            self.starts.resize(blocks, 0);
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

/// Rows of a product, and what is added to them.
pub(crate) struct Piece<'a> {
    pub(crate) rows: Range<usize>,
    /// u and b (outputs, R), f32: u · bᵀ. For each [`RANKS`] of the R (the last padded) u has
    /// \[rows\]\[RANKS\].
    pub(crate) update: Option<(&'a [f32], PackedRef<'a>)>,
}

impl Piece<'_> {
    /// To which nothing is added.
    pub(crate) fn plain(rows: Range<usize>) -> Piece<'static> {
        Piece { rows, update: None }
    }
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

/// Runs `job` forward over weights in integers.
///
/// # Safety
/// The processor has the instructions of `I`; x and y have M · cols and M · rows values, and a bias
/// has rows values.
pub(super) unsafe fn run<I: Isa>(job: &mut Job<'_>) {
    let w = job.w;
    let (outputs, inner) = (w.rows(), w.cols());
    if outputs == 0 || job.y.is_empty() {
        return;
    }
    let m = job.y.len() / outputs;
    let mut rows = Quantized::empty(w.scheme(), inner);
    rows.reserve(m.min(ROW_BLOCK));
    for (i, y) in job.y.chunks_mut(ROW_BLOCK * outputs).enumerate() {
        let x = &job.x[i * ROW_BLOCK * inner..][..y.len() / outputs * inner];
        // SAFETY: passed on; `rows` holds as many rows as y.
        unsafe {
            quantize_rows::<I>(x, inner, rows.all());
            panels::<I>(w, &rows, job.start, &[Piece::plain(0..y.len() / outputs)], y);
        }
    }
}

/// y\[M, rows\] = start + the first M rows of x · Wᵀ, plus what is added to the pieces. Rows in no
/// piece are left as they are.
///
/// # Safety
/// The processor has the instructions of `I`; W is in integers, with the blocks of x; x has M rows and
/// no piece goes beyond them; an update's u has R values (padded) for each row of its piece, and its b
/// is f32 of (rows, R); a bias has rows values.
pub(super) unsafe fn panels<I: Isa>(
    w: PackedRef<'_>,
    x: &Quantized,
    start: Start<'_>,
    pieces: &[Piece<'_>],
    y: &mut [f32],
) {
    let outputs = w.rows();
    if outputs == 0 || y.is_empty() {
        return;
    }
    let paired = if I::PAIR_ROWS > 0 { outputs / PANEL / 2 * 2 } else { 0 };
    let pairs = (0..paired).step_by(2).map(|panel| (panel, I::PAIR_ROWS));
    let single = (paired..outputs.div_ceil(PANEL)).map(|panel| (panel, I::ROWS));
    for (panel, most) in pairs.chain(single) {
        for piece in pieces.iter().filter(|p| !p.rows.is_empty()) {
            let all = piece.rows.len();
            let step = all.div_ceil(all.div_ceil(most));
            for first in (0..all).step_by(step) {
                let rows = piece.rows.start + first..piece.rows.start + all.min(first + step);
                let mut tile = Tile {
                    blocks: x.blocks,
                    x: x.x[rows.start * x.blocks * x.block..].as_ptr(),
                    scales: x.scales[rows.start * x.blocks..].as_ptr(),
                    offsets: x.starts[rows.start * x.blocks..].as_ptr(),
                    panel: w.panel(panel).as_ptr(),
                    start: ZEROS.as_ptr(),
                    start_stride: 0,
                    rank: 0,
                    u: ZEROS.as_ptr(),
                    u_rows: all,
                    b: ZEROS.as_ptr(),
                    y: std::ptr::null_mut(),
                    y_stride: outputs,
                };
                if let Some((u, b)) = piece.update {
                    tile.rank = b.cols();
                    tile.u = u[first * RANKS..].as_ptr();
                    tile.b = b.panel(panel).as_ptr().cast();
                }
                let second = (panel < paired).then(|| Second {
                    panel: w.panel(panel + 1).as_ptr(),
                    b: match piece.update {
                        Some((_, b)) => b.panel(panel + 1).as_ptr().cast(),
                        None => ZEROS.as_ptr(),
                    },
                });
                // SAFETY: x, u and y hold these rows, the panels their blocks and ranks.
                unsafe { run_tile::<I>(w.scheme(), rows, panel * PANEL, tile, second, start, y) }
            }
        }
    }
}

/// One tile, of outputs `output..`, or one over two panels, both whole.
///
/// # Safety
/// As [`Isa::tile`] or [`Isa::pair`], but for start and y, which are set here: y holds these rows.
#[inline(always)]
unsafe fn run_tile<I: Isa>(
    scheme: Scheme,
    rows: Range<usize>,
    output: usize,
    mut tile: Tile,
    second: Option<Second>,
    start: Start<'_>,
    y: &mut [f32],
) {
    let (count, outputs) = (rows.len(), tile.y_stride);
    let lanes = PANEL.min(outputs - output);
    if lanes == PANEL {
        tile.y = y[rows.start * outputs + output..].as_mut_ptr();
        match start {
            Start::Zero => {}
            Start::Bias(bias) => tile.start = bias[output..].as_ptr(),
            Start::Keep => (tile.start, tile.start_stride) = (tile.y, tile.y_stride),
        }
        // SAFETY: the caller's promise.
        return unsafe {
            match second {
                Some(second) => I::pair(scheme, count, &tile, &second),
                None => I::tile(scheme, count, &tile),
            }
        };
    }
    // The last outputs fill part of a panel only: through a whole tile on the stack.
    let mut whole = [0f32; MAX_ROWS * PANEL];
    for (row, whole) in rows.clone().zip(whole.chunks_exact_mut(PANEL)) {
        let from = row * outputs + output;
        match start {
            Start::Zero => {}
            Start::Bias(bias) => whole[..lanes].copy_from_slice(&bias[output..]),
            Start::Keep => whole[..lanes].copy_from_slice(&y[from..from + lanes]),
        }
    }
    (tile.y, tile.y_stride) = (whole.as_mut_ptr(), PANEL);
    (tile.start, tile.start_stride) = (tile.y, PANEL);
    // SAFETY: `whole` holds MAX_ROWS rows of a panel.
    unsafe { I::tile(scheme, count, &tile) }
    for (row, whole) in rows.zip(whole.chunks_exact(PANEL)) {
        let to = row * outputs + output;
        y[to..to + lanes].copy_from_slice(&whole[..lanes]);
    }
}

static ZEROS: [f32; 2 * PANEL] = [0.0; 2 * PANEL];

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
