//! Tiles of rows of q8 that are one block: one scale on both sides, sums in integers from end to end.

use super::super::integer::Tile;
use super::super::neon::f16_pair;
use super::{dot_columns, four_groups, load_starts, quant_bytes, scaled, store_sums};
use std::arch::aarch64::*;

/// As `widened`, of rows of q8 that are one block.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn widened_rows<const R: usize>(t: &Tile, half: usize) {
    // SAFETY: start, u, x and y hold R rows; the panel holds the row's quants, then a block of scales.
    unsafe {
        let mut wide = [[[vdupq_n_s32(0); 2]; 2]; R];
        let mut narrow = [[[vdupq_n_s16(0); 2]; 2]; R];
        let (mut block, mut x) = (t.panel, t.x);
        for _ in 0..t.row / 32 - usize::from(t.half_last) {
            four_groups::<false, R>(&mut wide, &mut narrow, block, (0, half), x, t.row);
            four_groups::<false, R>(&mut wide, &mut narrow, block, (1, half), x, t.row);
            (block, x) = (block.add(quant_bytes::<false>()), x.add(32));
        }
        if t.half_last {
            four_groups::<false, R>(&mut wide, &mut narrow, block, (0, half), x, t.row);
        }
        let w_scale = f16_pair(t.panel.add(t.row / 32 * quant_bytes::<false>() + 16 * half));
        let mut sums = load_starts::<false, R>(t, half);
        for r in 0..R {
            for q in 0..2 {
                let [low, high] = wide[r][q];
                let ints = vpaddq_s32(low, high);
                sums[r][q] = scaled(sums[r][q], ints, w_scale[q], t.scales.add(r));
            }
        }
        store_sums(t, half, &sums);
    }
}

/// As `dotted`, of rows of q8 that are one block.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn dotted_rows<const R: usize>(t: &Tile, half: usize) {
    // SAFETY: start, u, x and y hold R rows; the panel holds the row's quants, then a block of scales.
    unsafe {
        let mut ints = [[vdupq_n_s32(0); 2]; R];
        let (mut block, mut x) = (t.panel, t.x);
        for _ in 0..t.row / 32 - usize::from(t.half_last) {
            dot_columns::<false, R, 2>(&mut ints, block, half, x, t.row);
            (block, x) = (block.add(quant_bytes::<false>()), x.add(32));
        }
        if t.half_last {
            dot_columns::<false, R, 1>(&mut ints, block, half, x, t.row);
        }
        let w_scale = f16_pair(t.panel.add(t.row / 32 * quant_bytes::<false>() + 16 * half));
        let mut sums = load_starts::<true, R>(t, half);
        for r in 0..R {
            for i in 0..2 {
                sums[r][i] = scaled(sums[r][i], ints[r][i], w_scale[i], t.scales.add(r));
            }
        }
        store_sums(t, half, &sums);
    }
}
