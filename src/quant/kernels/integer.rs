//! The integer products of q8 and q4: rows of x are quantized to int8 with a scale for each block of
//! 32, blocks are summed in 32-bit integers, exactly, and the sums are scaled and added up in f32.
//!
//! Products of bytes are unsigned by signed on x86 (vpdpbusd, vpmaddubsw), so a weight enters as
//! `q + OFFSET` and each block's sum starts at `-OFFSET · Σx`, which is known when x is quantized; so
//! it is with q4 everywhere.
//! Integer sums don't depend on order, and the f32 part is one fused chain in the order of the
//! blocks: all instruction sets with a fused multiply-add give the same bits, and a row's result
//! doesn't depend on the other rows of the batch.

#![cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]

use super::super::layout::{BLOCK, PANEL};
use super::super::{PackedRef, Scheme};
use super::float::{Job, Start};

/// Rows of x that are quantized and multiplied at a time.
const ROW_BLOCK: usize = 256;
/// Rows of the largest tile of any instruction set.
const MAX_ROWS: usize = 12;

/// The arguments of a tile: y\[rows, 16\] = start + x\[rows, 32·blocks\] · one panel.
pub(super) struct Tile {
    pub(super) blocks: usize,
    /// \[rows\]\[blocks\]\[32\].
    pub(super) x: *const i8,
    /// Scale of each block, \[rows\]\[blocks\].
    pub(super) scales: *const f32,
    /// What each block's sum starts at, \[rows\]\[blocks\].
    pub(super) offsets: *const i32,
    /// The panel's quants, then its scales.
    pub(super) panel: *const u8,
    pub(super) start: *const f32,
    pub(super) start_stride: usize,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
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
    /// A tile of 1..=ROWS rows of a q8 or q4 panel.
    ///
    /// # Safety
    /// Every pointer is good for what [`Tile`] says.
    unsafe fn tile(scheme: Scheme, rows: usize, tile: &Tile);
    /// A tile of 1..=PAIR_ROWS rows of the tile's panel and of `second`, whose outputs follow those of
    /// the first.
    ///
    /// # Safety
    /// As for `tile`, of two panels.
    unsafe fn pair(_scheme: Scheme, _rows: usize, _tile: &Tile, _second: *const u8) {
        unreachable!("no tiles over two panels");
    }
    /// [`quantize`].
    ///
    /// # Safety
    /// None beyond the instructions.
    unsafe fn quantize(
        x: &[f32],
        offset: i32,
        out: &mut [i8],
        scale: &mut [f32],
        start: &mut [i32],
    );
}

/// Quantizes one row: for each block of 32 values the scale max|x| / 127, the values over it rounded
/// to the nearest (ties to even), and `-offset` times their sum. The last block is padded with zeros.
/// A block that holds a value that is not finite gets the scale NaN, so that it shows in the answer.
#[inline(always)]
pub(super) fn quantize(
    x: &[f32],
    offset: i32,
    out: &mut [i8],
    scales: &mut [f32],
    starts: &mut [i32],
) {
    let blocks = out.chunks_exact_mut(BLOCK).zip(scales).zip(starts);
    for (x, ((out, scale), start)) in x.chunks(BLOCK).zip(blocks) {
        let mut block = [0f32; BLOCK];
        block[..x.len()].copy_from_slice(x);
        let mut largest = [0f32; 8];
        let mut finite = 0f32;
        for eight in block.chunks_exact(8) {
            for i in 0..8 {
                largest[i] = largest[i].max(eight[i].abs());
                // 0 · x is NaN for what is not finite, else ±0.
                finite += 0.0 * eight[i];
            }
        }
        let largest = largest.iter().fold(0f32, |a, &b| a.max(b));
        // Below this the inverse would overflow; such a block is zero beside any other.
        let inverse = if largest > 1e-30 { 127.0 / largest } else { 0.0 };
        *scale = largest / 127.0 + finite;
        let mut sum = 0i32;
        for i in 0..BLOCK {
            // Rounds to the nearest by adding 1.5 · 2²³, whose units are the last bits.
            let bits = (block[i] * inverse + 12_582_912.0).to_bits() as i32;
            let q = (bits - 0x4b40_0000) as i8;
            out[i] = q;
            sum += i32::from(q);
        }
        *start = -offset * sum;
    }
}

/// What x becomes for products with q8 or q4 weights: int8 in blocks of 32, each block with its scale
/// and what its integer sum starts at.
#[derive(Default)]
pub(crate) struct Quantized {
    /// Blocks a row.
    pub(crate) blocks: usize,
    /// \[rows\]\[blocks\]\[32\].
    pub(crate) x: Vec<i8>,
    /// \[rows\]\[blocks\].
    pub(crate) scales: Vec<f32>,
    /// \[rows\]\[blocks\].
    pub(crate) starts: Vec<i32>,
}

impl Quantized {
    /// `rows` rows of zeros.
    pub(crate) fn zeroed(rows: usize, blocks: usize) -> Quantized {
        Quantized {
            blocks,
            x: vec![0; rows * blocks * BLOCK],
            scales: vec![0.0; rows * blocks],
            starts: vec![0; rows * blocks],
        }
    }

    /// All rows, in pieces of `rows`.
    pub(crate) fn pieces(&mut self, rows: usize) -> impl Iterator<Item = QuantizedRows<'_>> {
        let blocks = self.blocks;
        // Without columns there are no blocks, and nothing to write.
        let step = (rows * blocks).max(1);
        let parts = self.x.chunks_mut(step * BLOCK).zip(self.scales.chunks_mut(step));
        parts.zip(self.starts.chunks_mut(step)).map(move |((x, scales), starts)| QuantizedRows {
            blocks,
            x,
            scales,
            starts,
        })
    }

    /// All rows.
    fn all(&mut self) -> QuantizedRows<'_> {
        let Quantized { blocks, x, scales, starts } = self;
        QuantizedRows { blocks: *blocks, x, scales, starts }
    }
}

/// Rows of a [`Quantized`] side by side.
pub(crate) struct QuantizedRows<'a> {
    blocks: usize,
    x: &'a mut [i8],
    scales: &'a mut [f32],
    starts: &'a mut [i32],
}

/// Quantizes the rows of x, `cols` values each, to the first rows of `to`, for weights of `scheme`.
///
/// # Safety
/// The processor has the instructions of `I`.
pub(super) unsafe fn quantize_rows<I: Isa>(
    scheme: Scheme,
    x: &[f32],
    cols: usize,
    to: QuantizedRows<'_>,
) {
    if cols == 0 {
        return;
    }
    let offset = if scheme == Scheme::Q8 { 128 } else { 8 };
    let blocks = to.blocks;
    let rows = to.x.chunks_exact_mut(blocks * BLOCK);
    let rows = rows.zip(to.scales.chunks_exact_mut(blocks)).zip(to.starts.chunks_exact_mut(blocks));
    for (x, ((out, scales), starts)) in x.chunks_exact(cols).zip(rows) {
        // SAFETY: the processor has the instructions.
        unsafe { I::quantize(x, offset, out, scales, starts) }
    }
}

/// Runs `job` forward over q8 or q4 weights.
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
    let mut rows = Quantized::zeroed(m.min(ROW_BLOCK), inner.div_ceil(BLOCK));
    for (i, y) in job.y.chunks_mut(ROW_BLOCK * outputs).enumerate() {
        let x = &job.x[i * ROW_BLOCK * inner..][..y.len() / outputs * inner];
        // SAFETY: passed on; `rows` holds as many rows as y.
        unsafe {
            quantize_rows::<I>(w.scheme(), x, inner, rows.all());
            panels::<I>(w, &rows, job.start, y);
        }
    }
}

/// y\[M, rows\] = start + the first M rows of x · Wᵀ.
///
/// # Safety
/// The processor has the instructions of `I`; W is q8 or q4 with as many blocks as x, x has M rows,
/// and a bias has rows values.
pub(super) unsafe fn panels<I: Isa>(
    w: PackedRef<'_>,
    x: &Quantized,
    start: Start<'_>,
    y: &mut [f32],
) {
    let outputs = w.rows();
    if outputs == 0 || y.is_empty() {
        return;
    }
    let all = y.len() / outputs;
    let step = |most: usize| all.div_ceil(all.div_ceil(most));
    let pairs = if I::PAIR_ROWS > 0 { outputs / PANEL / 2 } else { 0 };
    let tile = |panel: usize, row: usize, y: &mut [f32]| {
        let output = panel * PANEL;
        let mut tile = Tile {
            blocks: x.blocks,
            x: x.x[row * x.blocks * BLOCK..].as_ptr(),
            scales: x.scales[row * x.blocks..].as_ptr(),
            offsets: x.starts[row * x.blocks..].as_ptr(),
            panel: w.panel(panel).as_ptr(),
            start: ZEROS.as_ptr(),
            start_stride: 0,
            y: y[row * outputs + output..].as_mut_ptr(),
            y_stride: outputs,
        };
        match start {
            Start::Zero => {}
            Start::Bias(bias) => tile.start = bias[output..].as_ptr(),
            Start::Keep => (tile.start, tile.start_stride) = (tile.y, tile.y_stride),
        }
        tile
    };
    for panel in (0..2 * pairs).step_by(2) {
        let step = step(I::PAIR_ROWS);
        for row in (0..all).step_by(step) {
            let tile = tile(panel, row, y);
            // SAFETY: x and y hold these rows from here on, both panels `blocks` blocks and 16 outputs.
            unsafe {
                I::pair(w.scheme(), step.min(all - row), &tile, w.panel(panel + 1).as_ptr());
            }
        }
    }
    for panel in 2 * pairs..outputs.div_ceil(PANEL) {
        let output = panel * PANEL;
        let lanes = PANEL.min(outputs - output);
        let step = step(I::ROWS);
        for row in (0..all).step_by(step) {
            let count = step.min(all - row);
            let at = row * outputs + output;
            let mut tile = tile(panel, row, y);
            if lanes == PANEL {
                // SAFETY: x and y hold `count` rows from here on, the panel `blocks` blocks.
                unsafe { I::tile(w.scheme(), count, &tile) }
                continue;
            }
            // The last outputs fill part of a panel only: through a whole tile on the stack.
            let mut whole = [0f32; MAX_ROWS * PANEL];
            for (i, whole) in whole.chunks_exact_mut(PANEL).enumerate().take(count) {
                let from = at + i * outputs;
                match start {
                    Start::Zero => {}
                    Start::Bias(bias) => whole[..lanes].copy_from_slice(&bias[output..]),
                    Start::Keep => whole[..lanes].copy_from_slice(&y[from..from + lanes]),
                }
            }
            (tile.y, tile.y_stride) = (whole.as_mut_ptr(), PANEL);
            (tile.start, tile.start_stride) = (tile.y, PANEL);
            // SAFETY: `whole` holds MAX_ROWS rows of a panel.
            unsafe { I::tile(w.scheme(), count, &tile) }
            for (i, whole) in whole.chunks_exact(PANEL).enumerate().take(count) {
                let to = at + i * outputs;
                y[to..to + lanes].copy_from_slice(&whole[..lanes]);
            }
        }
    }
}

static ZEROS: [f32; 2 * PANEL] = [0.0; 2 * PANEL];
