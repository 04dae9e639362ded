//! The integer products of q8, q8-64 and q4: rows of x are quantized to int8 with a scale for each block,
//! of as many columns as W's have (32 or 64); blocks are summed in 32-bit integers, exactly, and the sums are scaled and added up in f32.
//!
//! Products of bytes are unsigned by signed on x86 (vpdpbusd, vpmaddubsw), so a weight enters as
//! `q + OFFSET` and each block's sum starts at `-OFFSET · Σx`, which is known when x is quantized; so
//! it is with q4 everywhere. OFFSET is 128 for q8 and 8 for q4.
//!
//! Where x has one scale known beforehand and each row of W one too (q8 and q8-64), a row is one block.
//!
//! A tile may add a low-rank update u · bᵀ to where its sums start, in f32, while they are registers.
//! Integer sums don't depend on order, and the f32 part is one fused chain in the order of the
//! blocks: all instruction sets with a fused multiply-add give the same bits, and a row's result
//! doesn't depend on the other rows of the batch.

#![cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]

use super::super::layout::{BLOCK, PANEL, block_len};
use super::super::{PackedRef, Scheme};
use super::Product;
use super::float::{Job, Start};
use super::quantize::{Quantized, QuantizedRows, bounded_rows, quantize_rows};
use std::ops::Range;

/// Rows of x that are quantized and multiplied at a time.
const ROW_BLOCK: usize = 256;
/// Rows of the largest tile of any instruction set.
const MAX_ROWS: usize = 12;
/// Ranks of an update that lie side by side for each row.
pub(crate) const RANKS: usize = 8;

/// The arguments of a tile: y\[rows, 16\] = start + u\[rows, rank\] · b + x\[rows, columns of the blocks\] ·
/// one panel.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) blocks: usize,
    /// Columns of a block, where it is a whole row; else 0, and the scheme says it.
    pub(super) row: usize,
    /// Whether the last block's second half is beyond the columns: x is zero there, and it may be left out.
    #[cfg_attr(target_arch = "x86_64", expect(dead_code))]
    pub(super) half_last: bool,
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

    /// To the tile `rows` below, of blocks of `block` columns.
    ///
    /// # Safety
    /// There are so many rows.
    #[inline(always)]
    pub(super) unsafe fn advance(&mut self, rows: usize, block: usize) {
        let block = if self.row > 0 { self.row } else { block };
        // SAFETY: the caller's promise. `u` may be of no update.
        unsafe {
            self.x = self.x.add(rows * self.blocks * block);
            self.scales = self.scales.add(rows * self.blocks);
            self.offsets = self.offsets.add(rows * self.blocks);
            self.start = self.start.add(rows * self.start_stride);
            self.u = self.u.wrapping_add(rows * RANKS);
            self.y = self.y.add(rows * self.y_stride);
        }
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
    /// Whether sums of q8 and q8-64 start at what the quantized x says.
    const STARTS: bool = true;
    /// A tile of 1..=ROWS rows of a panel of integers.
    ///
    /// # Safety
    /// Every pointer is good for what [`Tile`] says.
    unsafe fn tile(scheme: Scheme, rows: usize, tile: &Tile);
    /// Tiles of `step` rows of a panel one below the other, the last of fewer, `rows` in all. `tile` is the
    /// first.
    ///
    /// # Safety
    /// As for `tile`, of all the rows.
    #[inline(always)]
    unsafe fn tiles(scheme: Scheme, rows: usize, step: usize, mut tile: Tile) {
        let mut left = rows;
        while left > 0 {
            let count = step.min(left);
            // SAFETY: the caller's promise.
            unsafe {
                Self::tile(scheme, count, &tile);
                tile.advance(count, block_len(scheme));
            }
            left -= count;
        }
    }
    /// A tile of 1..=PAIR_ROWS rows of the tile's panel and of a second, whose outputs follow those of
    /// the first.
    ///
    /// # Safety
    /// As for `tile`, of two panels.
    unsafe fn pair(_scheme: Scheme, _rows: usize, _tile: &Tile, _second: &Second) {
        unreachable!("no tiles over two panels");
    }
    /// [`quantize`](super::quantize::quantize), in blocks of 64 or else of 32.
    ///
    /// # Safety
    /// None beyond the instructions.
    unsafe fn quantize(wide: bool, x: &[f32], out: &mut [i8], scale: &mut [f32], start: &mut [i32]);
    /// [`bounded`](super::quantize::bounded).
    ///
    /// # Safety
    /// None beyond the instructions.
    unsafe fn bounded(x: &[f32], steps: f32, out: &mut [i8]) -> bool;
}

/// The integer kernels of one instruction set, for q8, q8-64 and q4.
pub(in super::super) struct Integers {
    /// Quantizes x, block by block, and multiplies.
    pub(super) product: Product,
    pub(super) quantize: unsafe fn(&[f32], usize, QuantizedRows<'_>),
    pub(super) bounded: unsafe fn(&[f32], usize, f32, &mut Quantized),
    pub(super) panels: unsafe fn(PackedRef<'_>, &Quantized, Start<'_>, &[Piece<'_>], &mut [f32]),
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Integers {
    pub(super) const fn new<I: Isa>() -> Integers {
        Integers {
            product: run::<I>,
            quantize: quantize_rows::<I>,
            bounded: bounded_rows::<I>,
            panels: panels::<I>,
        }
    }
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
    // One scale on both sides: a row is one block.
    let whole = w.has_row_scales() && x.bound.is_some();
    let (blocks, scales, starts) = match whole {
        true => (1, &x.row_scales, &x.row_starts),
        false => (x.blocks, &x.scales, &x.starts),
    };
    let mut tile = Tile {
        blocks,
        row: if whole { x.blocks * x.block } else { 0 },
        half_last: match whole {
            true => (1..=BLOCK / 2).contains(&(w.cols() % BLOCK)),
            false => (1..=x.block / 2).contains(&(w.cols() % x.block)),
        },
        x: x.x.as_ptr(),
        scales: scales.as_ptr(),
        offsets: starts.as_ptr(),
        panel: std::ptr::null(),
        start: ZEROS.as_ptr(),
        start_stride: 0,
        rank: 0,
        u: ZEROS.as_ptr(),
        u_rows: 0,
        b: ZEROS.as_ptr(),
        y: std::ptr::null_mut(),
        y_stride: outputs,
    };
    for (panel, most) in pairs.chain(single) {
        let output = panel * PANEL;
        tile.panel = w.panel(panel).as_ptr();
        let mut second = (panel < paired)
            .then(|| Second { panel: w.panel(panel + 1).as_ptr(), b: ZEROS.as_ptr() });
        for piece in pieces.iter().filter(|p| !p.rows.is_empty()) {
            let (all, mut u) = (piece.rows.len(), ZEROS.as_ptr());
            (tile.rank, tile.u_rows) = (0, all);
            if let Some((own, b)) = piece.update {
                (u, tile.rank, tile.b) = (own.as_ptr(), b.cols(), b.panel(panel).as_ptr().cast());
                if let Some(second) = &mut second {
                    second.b = b.panel(panel + 1).as_ptr().cast();
                }
            }
            let (step, row) = (all.div_ceil(all.div_ceil(most)), piece.rows.start);
            tile.u = u;
            // SAFETY: x, u and y hold these rows, the panels their blocks and ranks.
            unsafe {
                tile.x = x.x.as_ptr().add(row * x.blocks * x.block);
                tile.scales = scales.as_ptr().add(row * blocks);
                tile.offsets = starts.as_ptr().add(row * blocks);
                if outputs - output < PANEL {
                    part_of_panel::<I>(
                        w.scheme(),
                        piece.rows.clone(),
                        output,
                        step,
                        tile,
                        start,
                        y,
                    );
                    continue;
                }
                let width = if second.is_some() { 2 * PANEL } else { PANEL };
                let y = &mut y[row * outputs + output..(row + all - 1) * outputs + output + width];
                tile.y = y.as_mut_ptr();
                (tile.start, tile.start_stride) = match start {
                    Start::Zero => (ZEROS.as_ptr(), 0),
                    Start::Bias(bias) => (bias[output..].as_ptr(), 0),
                    Start::Keep => (tile.y.cast_const(), outputs),
                };
                match &second {
                    None => I::tiles(w.scheme(), all, step, tile),
                    Some(second) => {
                        let mut tile = tile;
                        for first in (0..all).step_by(step) {
                            let count = step.min(all - first);
                            I::pair(w.scheme(), count, &tile, second);
                            tile.advance(count, x.block);
                        }
                    }
                }
            }
        }
    }
}

/// The last outputs, which fill part of a panel only: through a whole tile on the stack.
///
/// # Safety
/// As [`Isa::tiles`], but for start and y, which are set here: y holds these rows.
unsafe fn part_of_panel<I: Isa>(
    scheme: Scheme,
    rows: Range<usize>,
    output: usize,
    step: usize,
    mut tile: Tile,
    start: Start<'_>,
    y: &mut [f32],
) {
    let outputs = tile.y_stride;
    let lanes = outputs - output;
    let mut whole = [0f32; MAX_ROWS * PANEL];
    for first in rows.clone().step_by(step) {
        let rows = first..rows.end.min(first + step);
        for (row, whole) in rows.clone().zip(whole.chunks_exact_mut(PANEL)) {
            let from = row * outputs + output;
            match start {
                Start::Zero => whole[..lanes].fill(0.0),
                Start::Bias(bias) => whole[..lanes].copy_from_slice(&bias[output..]),
                Start::Keep => whole[..lanes].copy_from_slice(&y[from..from + lanes]),
            }
        }
        (tile.y, tile.y_stride) = (whole.as_mut_ptr(), PANEL);
        (tile.start, tile.start_stride) = (tile.y, PANEL);
        let count = rows.len();
        // SAFETY: `whole` holds MAX_ROWS rows of a panel. What follows sets y and start anew.
        unsafe {
            I::tile(scheme, count, &tile);
            tile.y_stride = 0;
            tile.start_stride = 0;
            tile.advance(count, block_len(scheme));
        }
        for (row, whole) in rows.zip(whole.chunks_exact(PANEL)) {
            let to = row * outputs + output;
            y[to..to + lanes].copy_from_slice(&whole[..lanes]);
        }
    }
}

static ZEROS: [f32; 2 * PANEL] = [0.0; 2 * PANEL];
