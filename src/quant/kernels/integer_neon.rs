//! Integer tiles for NEON: with what every ARMv8 core has, and with dot products (ARMv8.2). sdot is
//! written as assembly, for its intrinsic is not stable in Rust.
//!
//! There are none with the matrix products of ARMv8.6: on panels laid out for dot products smmla needs
//! as many instructions to regroup bytes as it saves.

mod rows;

use super::super::Scheme;
use super::super::layout::{PANEL, SCALES, block_bytes};
use super::integer::{Isa, RANKS, Tile};
use super::neon::f16_pair;
use super::quantize::neon::{bounded, quantize};
use rows::{dotted_rows, widened_rows};
use std::arch::aarch64::*;
use std::arch::asm;

/// smull, smlal and sadalp.
pub(super) struct Baseline;
/// sdot.
pub(super) struct DotProd;

/// Implements [`Isa`] with a tile of half a panel for each number of rows.
macro_rules! isa {
    ($name:ident, $features:literal, $tile:ident, most = $most:literal, [$($rows:literal),*]) => {
        impl Isa for $name {
            const ROWS: usize = $most;
            const STARTS: bool = false;

            unsafe fn tile(scheme: Scheme, rows: usize, t: &Tile) {
                // SAFETY: passed on.
                unsafe { Self::tiles(scheme, rows, rows, *t) }
            }

            unsafe fn tiles(scheme: Scheme, rows: usize, step: usize, mut t: Tile) {
                /// As many whole tiles of R rows as there are in `rows`. A function of its own, so that its pointers
                /// are in registers.
                #[inline(never)]
                #[target_feature(enable = $features)]
                unsafe fn strip<const Q4: bool, const S: usize, const R: usize>(rows: usize, t: &mut Tile) {
                    let mut tile = *t;
                    for _ in 0..rows / R {
                        // SAFETY: the caller's promise.
                        unsafe {
                            $tile::<Q4, S, R>(&tile, 0);
                            $tile::<Q4, S, R>(&tile, 1);
                            tile.advance(R, 32 * S);
                        }
                    }
                    *t = tile;
                }
                let mut left = rows;
                let mut count = step;
                while left > 0 {
                    // SAFETY: the trait's contract.
                    unsafe {
                        match (scheme, count) {
                            $(
                                (Scheme::Q8 | Scheme::Q8Wide, $rows) if t.row > 0 => {
                                    strip::<false, 0, $rows>(left, &mut t)
                                }
                                (Scheme::Q4, $rows) => strip::<true, 1, $rows>(left, &mut t),
                                (Scheme::Q8, $rows) => strip::<false, 1, $rows>(left, &mut t),
                                (Scheme::Q8Wide, $rows) => strip::<false, 2, $rows>(left, &mut t),
                            )*
                            _ => unreachable!("a tile of {count} rows of {scheme:?}"),
                        }
                    }
                    left %= count;
                    count = left;
                }
            }

            unsafe fn bounded(x: &[f32], steps: f32, out: &mut [i8]) -> bool {
                // SAFETY: every processor of ours has NEON.
                unsafe { bounded(x, steps, out) }
            }

            unsafe fn quantize(
                wide: bool,
                x: &[f32],
                out: &mut [i8],
                scale: &mut [f32],
                start: &mut [i32],
            ) {
                // SAFETY: every processor of ours has NEON.
                unsafe {
                    match wide {
                        true => quantize::<64>(x, out, scale, start),
                        false => quantize::<32>(x, out, scale, start),
                    }
                }
            }
        }
    };
}

isa!(Baseline, "neon", widened, most = 3, [1, 2, 3]);
isa!(DotProd, "neon,dotprod", dotted, most = 4, [1, 2, 3, 4]);

/// Sixteen quants of group `group` of 32 columns: four rows of the panel by four columns, from row
/// 4 · `quarter` on. Those of q4 are 0..=15, 8 above what they mean.
///
/// # Safety
/// `block` is readable for 32 columns of the scheme.
#[inline(always)]
unsafe fn quants<const Q4: bool>(block: *const u8, group: usize, quarter: usize) -> int8x16_t {
    // SAFETY: group < 8, quarter < 4.
    unsafe {
        if Q4 {
            let both = vld1q_u8(block.add(64 * (group % 4) + 16 * quarter));
            vreinterpretq_s8_u8(match group < 4 {
                true => vandq_u8(both, vdupq_n_u8(15)),
                false => vshrq_n_u8::<4>(both),
            })
        } else {
            vld1q_s8(block.add(64 * group + 16 * quarter).cast())
        }
    }
}

/// Bytes of 32 columns.
const fn quant_bytes<const Q4: bool>() -> usize {
    block_bytes(if Q4 { Scheme::Q4 } else { Scheme::Q8 })
}

/// sums += ints · (scale of the weights · scale of x), rounded as on every other instruction set.
#[inline(always)]
unsafe fn scaled(sums: float32x4_t, ints: int32x4_t, w: float32x4_t, x: *const f32) -> float32x4_t {
    // SAFETY: the caller has NEON; `x` is readable.
    unsafe { vfmaq_f32(sums, vcvtq_f32_s32(ints), vmulq_n_f32(w, *x)) }
}

/// x\[4·GROUP..4·GROUP+4\] four times.
#[inline(always)]
unsafe fn four<const GROUP: i32>(x: int8x16_t) -> int8x16_t {
    // SAFETY: the caller has NEON.
    unsafe { vreinterpretq_s8_s32(vdupq_laneq_s32::<GROUP>(vreinterpretq_s32_s8(x))) }
}

/// Groups `4 · columns + G` and `H` of 32 columns, for R rows of x and eight of the panel. Products of
/// bytes are summed in 16 bits as long as they fit: two groups of q8 (2 · 128 · 127 < 2¹⁵), which are
/// widened, all eight of q4 (8 · 15 · 127 < 2¹⁵), which stay in `narrow`. Each row of the panel has two
/// sums, of columns 0, 1 and of 2, 3 of the groups.
///
/// # Safety
/// As [`widened`].
#[inline(always)]
unsafe fn two_groups<const Q4: bool, const R: usize, const G: i32, const H: i32>(
    wide: &mut [[[int32x4_t; 2]; 2]; R],
    narrow: &mut [[[int16x8_t; 2]; 2]; R],
    block: *const u8,
    (columns, half): (usize, usize),
    x: &[int8x16_t; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut w = [[vdupq_n_s8(0); 2]; 2];
        for q in 0..2 {
            w[q][0] = quants::<Q4>(block, 4 * columns + G as usize, 2 * half + q);
            w[q][1] = quants::<Q4>(block, 4 * columns + H as usize, 2 * half + q);
        }
        for r in 0..R {
            let (x0, x1) = (four::<G>(x[r]), four::<H>(x[r]));
            for q in 0..2 {
                let [w0, w1] = w[q];
                let mut low = vmlal_s8(narrow[r][q][0], vget_low_s8(w0), vget_low_s8(x0));
                let mut high = vmlal_high_s8(narrow[r][q][1], w0, x0);
                low = vmlal_s8(low, vget_low_s8(w1), vget_low_s8(x1));
                high = vmlal_high_s8(high, w1, x1);
                if Q4 {
                    narrow[r][q] = [low, high];
                } else {
                    let [to_low, to_high] = wide[r][q];
                    wide[r][q] = [vpadalq_s16(to_low, low), vpadalq_s16(to_high, high)];
                }
            }
        }
    }
}

/// Half of 32 columns, as [`two_groups`], of x that lies `row` bytes apart.
///
/// # Safety
/// As [`widened`].
#[inline(always)]
unsafe fn four_groups<const Q4: bool, const R: usize>(
    wide: &mut [[[int32x4_t; 2]; 2]; R],
    narrow: &mut [[[int16x8_t; 2]; 2]; R],
    block: *const u8,
    at: (usize, usize),
    x: *const i8,
    row: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [vdupq_n_s8(0); R];
        for r in 0..R {
            rows[r] = vld1q_s8(x.add(r * row + 16 * at.0));
        }
        two_groups::<Q4, R, 0, 1>(wide, narrow, block, at, &rows);
        two_groups::<Q4, R, 2, 3>(wide, narrow, block, at, &rows);
    }
}

/// Eight rows of the panel; a block is S times 32 columns, or a row where S is 0.
///
/// # Safety
/// [`Tile`]'s pointers hold `R` rows; `half` < 2.
#[inline(always)]
unsafe fn widened<const Q4: bool, const S: usize, const R: usize>(t: &Tile, half: usize) {
    if S == 0 {
        // SAFETY: the caller's promise.
        return unsafe { widened_rows::<R>(t, half) };
    }
    // SAFETY: start, u, x and y hold R rows; the panel holds `blocks` blocks of quants, then of scales.
    unsafe {
        let mut sums = load_starts::<false, R>(t, half);
        let w_scales = t.panel.add(t.blocks * S * quant_bytes::<Q4>() + 16 * half);
        let row = t.blocks * S * 32;
        for b in 0..t.blocks {
            let mut wide = [[[vdupq_n_s32(0); 2]; 2]; R];
            let mut narrow = [[[vdupq_n_s16(0); 2]; 2]; R];
            let (block, x) = (t.panel.add(b * S * quant_bytes::<Q4>()), t.x.add(b * S * 32));
            let whole = !t.half_last || b + 1 < t.blocks;
            // Written out, for the compiler would keep a loop and put sums into memory for it.
            four_groups::<Q4, R>(&mut wide, &mut narrow, block, (0, half), x, row);
            if whole || S == 2 {
                four_groups::<Q4, R>(&mut wide, &mut narrow, block, (1, half), x, row);
            }
            if S == 2 && whole {
                // Nothing is loaded ahead of this: that would cost moves between registers.
                asm!("", options(nostack, preserves_flags));
                let (block, x) = (block.add(quant_bytes::<Q4>()), x.add(32));
                four_groups::<Q4, R>(&mut wide, &mut narrow, block, (0, half), x, row);
                four_groups::<Q4, R>(&mut wide, &mut narrow, block, (1, half), x, row);
            }
            let w_scale = f16_pair(w_scales.add(b * SCALES));
            for r in 0..R {
                let at = r * t.blocks + b;
                for q in 0..2 {
                    let [low, high] = match Q4 {
                        true => [vpaddlq_s16(narrow[r][q][0]), vpaddlq_s16(narrow[r][q][1])],
                        false => wide[r][q],
                    };
                    let mut ints = vpaddq_s32(low, high);
                    if Q4 {
                        ints = vaddq_s32(ints, vdupq_n_s32(*t.offsets.add(at) >> 4));
                    }
                    sums[r][q] = scaled(sums[r][q], ints, w_scale[q], t.scales.add(at));
                }
            }
        }
        store_sums(t, half, &sums);
    }
}

/// acc\[i\] += w\[4i..4i+4\] · x\[4·GROUP..4·GROUP+4\].
///
/// # Safety
/// The processor has dot products.
#[inline(always)]
unsafe fn sdot<const GROUP: usize>(acc: &mut int32x4_t, w: int8x16_t, x: int8x16_t) {
    // SAFETY: reads and writes its registers only.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.4b[{group}]",
            acc = inout(vreg) *acc,
            w = in(vreg) w,
            x = in(vreg) x,
            group = const GROUP,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// Groups GROUP and, of both halves, 4 + GROUP of 32 columns into the sums of R rows of x and eight rows of
/// the panel.
///
/// # Safety
/// As [`dotted`].
#[inline(always)]
unsafe fn dot_groups<const Q4: bool, const R: usize, const HALVES: usize, const GROUP: usize>(
    ints: &mut [[int32x4_t; 2]; R],
    block: *const u8,
    half: usize,
    x: &[[int8x16_t; HALVES]; R],
) {
    for columns in 0..HALVES {
        for i in 0..2 {
            // SAFETY: the caller's promise.
            unsafe {
                let w = quants::<Q4>(block, 4 * columns + GROUP, 2 * half + i);
                for r in 0..R {
                    sdot::<GROUP>(&mut ints[r][i], w, x[r][columns]);
                }
            }
        }
    }
}

/// The groups of both halves of 32 columns, or of the first alone, of x that lies `row` bytes apart, into
/// the sums of R rows of x and eight rows of the panel.
///
/// # Safety
/// As [`dotted`].
#[inline(always)]
unsafe fn dot_columns<const Q4: bool, const R: usize, const HALVES: usize>(
    ints: &mut [[int32x4_t; 2]; R],
    block: *const u8,
    half: usize,
    x: *const i8,
    row: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [[vdupq_n_s8(0); HALVES]; R];
        for r in 0..R {
            for columns in 0..HALVES {
                rows[r][columns] = vld1q_s8(x.add(r * row + 16 * columns));
            }
        }
        dot_groups::<Q4, R, HALVES, 0>(ints, block, half, &rows);
        dot_groups::<Q4, R, HALVES, 1>(ints, block, half, &rows);
        dot_groups::<Q4, R, HALVES, 2>(ints, block, half, &rows);
        dot_groups::<Q4, R, HALVES, 3>(ints, block, half, &rows);
    }
}

/// Block `b`, of S times 32 columns, or its first half, into the sums of eight rows of the panel.
///
/// # Safety
/// As [`dotted`].
#[inline(always)]
unsafe fn dot_block<const Q4: bool, const S: usize, const R: usize, const WHOLE: bool>(
    t: &Tile,
    half: usize,
    b: usize,
    w_scales: *const u8,
    sums: &mut [[float32x4_t; 2]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let row = t.blocks * S * 32;
        let mut ints = [[vdupq_n_s32(0); 2]; R];
        if Q4 {
            for r in 0..R {
                ints[r] = [vdupq_n_s32(*t.offsets.add(r * t.blocks + b) >> 4); 2];
            }
        }
        let (block, x) = (t.panel.add(b * S * quant_bytes::<Q4>()), t.x.add(b * S * 32));
        if WHOLE || S == 2 {
            dot_columns::<Q4, R, 2>(&mut ints, block, half, x, row);
        } else {
            dot_columns::<Q4, R, 1>(&mut ints, block, half, x, row);
        }
        if WHOLE && S == 2 {
            let (block, x) = (block.add(quant_bytes::<Q4>()), x.add(32));
            dot_columns::<Q4, R, 2>(&mut ints, block, half, x, row);
        }
        let w_scale = f16_pair(w_scales.add(b * SCALES));
        for r in 0..R {
            for i in 0..2 {
                let x_scale = t.scales.add(r * t.blocks + b);
                sums[r][i] = scaled(sums[r][i], ints[r][i], w_scale[i], x_scale);
            }
        }
    }
}

/// Eight rows of the panel; a block is S times 32 columns, or a row where S is 0.
///
/// # Safety
/// The processor has dot products; [`Tile`]'s pointers hold `R` rows; `half` < 2.
#[inline(always)]
unsafe fn dotted<const Q4: bool, const S: usize, const R: usize>(t: &Tile, half: usize) {
    if S == 0 {
        // SAFETY: the caller's promise.
        return unsafe { dotted_rows::<R>(t, half) };
    }
    // SAFETY: start, u, x and y hold R rows; the panel holds `blocks` blocks of quants, then of scales.
    unsafe {
        let mut sums = load_starts::<true, R>(t, half);
        let w_scales = t.panel.add(t.blocks * S * quant_bytes::<Q4>() + 16 * half);
        let whole = t.blocks - usize::from(t.half_last);
        for b in 0..whole {
            dot_block::<Q4, S, R, true>(t, half, b, w_scales, &mut sums);
        }
        if t.half_last {
            dot_block::<Q4, S, R, false>(t, half, whole, w_scales, &mut sums);
        }
        store_sums(t, half, &sums);
    }
}

/// Eight ranks of an update: a load for four of a row's u.
///
/// # Safety
/// The processor has NEON; b holds eight ranks of a panel from the part on, u those of R rows.
#[inline(always)]
unsafe fn add_eight<const R: usize>(
    sums: &mut [[float32x4_t; 2]; R],
    b: *const f32,
    u: *const f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut four = [[vdupq_n_f32(0.0); 2]; R];
        for r in 0..R {
            four[r] = [vld1q_f32(u.add(r * RANKS)), vld1q_f32(u.add(r * RANKS + 4))];
        }
        macro_rules! lanes {
            ($($half:literal $k:literal,)*) => {$(
                let at = b.add((4 * $half + $k) * PANEL);
                let values = [vld1q_f32(at), vld1q_f32(at.add(4))];
                for r in 0..R {
                    let u = four[r][$half];
                    sums[r] = [
                        vfmaq_laneq_f32::<$k>(sums[r][0], values[0], u),
                        vfmaq_laneq_f32::<$k>(sums[r][1], values[1], u),
                    ];
                }
            )*};
        }
        lanes!(0 0, 0 1, 0 2, 0 3, 1 0, 1 1, 1 2, 1 3,);
    }
}

/// What eight rows of the panel start at, for each of R rows: the update is in it. Where tiles leave no
/// registers for EIGHTS ranks at once, one by one.
#[inline(always)]
unsafe fn load_starts<const EIGHTS: bool, const R: usize>(
    t: &Tile,
    part: usize,
) -> [[float32x4_t; 2]; R] {
    // SAFETY: start and u hold R rows, b its ranks of a panel.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); 2]; R];
        for r in 0..R {
            let from = t.start.add(r * t.start_stride + part * PANEL / 2);
            sums[r] = [vld1q_f32(from), vld1q_f32(from.add(4))];
        }
        let eights = if EIGHTS { t.rank / RANKS } else { 0 };
        for eight in 0..eights {
            let (b, u) = (t.b.add(eight * RANKS * PANEL), t.u.add(eight * t.u_rows * RANKS));
            add_eight(&mut sums, b.add(part * PANEL / 2), u);
        }
        for (b, u) in t.ranks().skip(eights * RANKS) {
            let b = b.add(part * PANEL / 2);
            let b = [vld1q_f32(b), vld1q_f32(b.add(4))];
            for r in 0..R {
                let u = *u.add(r * RANKS);
                sums[r] = [vfmaq_n_f32(sums[r][0], b[0], u), vfmaq_n_f32(sums[r][1], b[1], u)];
            }
        }
        sums
    }
}

#[inline(always)]
unsafe fn store_sums<const R: usize>(t: &Tile, part: usize, sums: &[[float32x4_t; 2]; R]) {
    for r in 0..R {
        // SAFETY: y holds R rows of a panel.
        unsafe {
            let to = t.y.add(r * t.y_stride + part * PANEL / 2);
            vst1q_f32(to, sums[r][0]);
            vst1q_f32(to.add(4), sums[r][1]);
        }
    }
}
