//! Integer tiles for NEON: with what every ARMv8 core has, with dot products (ARMv8.2), and with
//! matrix products of bytes (ARMv8.6). sdot and smmla are written as assembly, for their intrinsics
//! are not stable in Rust.

use super::super::Scheme;
use super::super::layout::{PANEL, SCALES, block_bytes};
use super::integer::{Isa, RANKS, Tile, quantize};
use super::neon::f16_quad;
use std::arch::aarch64::*;
use std::arch::asm;

/// smull, smlal and sadalp.
pub(super) struct Baseline;
/// sdot.
pub(super) struct DotProd;
/// smmla; sdot for a single row.
pub(super) struct I8mm;

/// Implements [`Isa`] with a tile for each part of a panel.
macro_rules! isa {
    ($name:ident, $features:literal, $parts:literal, $one:ident, $many:ident) => {
        impl Isa for $name {
            const ROWS: usize = 4;

            unsafe fn tile(scheme: Scheme, rows: usize, t: &Tile) {
                #[target_feature(enable = $features)]
                unsafe fn inner<const Q4: bool>(rows: usize, t: &Tile) {
                    for part in 0..$parts {
                        // SAFETY: the caller's promise.
                        unsafe {
                            match rows {
                                1 => $one::<Q4, 1>(t, part),
                                2 => $many::<Q4, 2>(t, part),
                                3 => $many::<Q4, 3>(t, part),
                                4 => $many::<Q4, 4>(t, part),
                                _ => unreachable!("a tile of {rows} rows"),
                            }
                        }
                    }
                }
                // SAFETY: the trait's contract.
                unsafe {
                    match scheme {
                        Scheme::Q4 => inner::<true>(rows, t),
                        _ => inner::<false>(rows, t),
                    }
                }
            }

            unsafe fn quantize(x: &[f32], out: &mut [i8], scale: &mut [f32], start: &mut [i32]) {
                quantize(x, out, scale, start);
            }
        }
    };
}

isa!(Baseline, "neon", 4, widened, widened);
isa!(DotProd, "neon,dotprod", 2, dotted, dotted);
isa!(I8mm, "neon,dotprod,i8mm", 2, dotted, multiplied);

/// Sixteen quants of group `group` of a block: four rows of the panel by four columns, from row
/// 4 · `quarter` on. Those of q4 are 0..=15, 8 above what they mean.
///
/// # Safety
/// `block` is readable for a block of the scheme.
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

const fn quant_bytes<const Q4: bool>() -> usize {
    block_bytes(if Q4 { Scheme::Q4 } else { Scheme::Q8 })
}

/// sums += ints · (scale of the weights · scale of x), rounded as on every other instruction set.
#[inline(always)]
unsafe fn scaled(sums: float32x4_t, ints: int32x4_t, w: float32x4_t, x: *const f32) -> float32x4_t {
    // SAFETY: the caller has NEON; `x` is readable.
    unsafe { vfmaq_f32(sums, vcvtq_f32_s32(ints), vmulq_f32(w, vdupq_n_f32(*x))) }
}

/// Four rows of the panel. Products of bytes are summed in 16 bits as long as they fit: two groups of
/// q8 (2 · 128 · 127 < 2¹⁵), all eight of q4 (8 · 15 · 127 < 2¹⁵).
///
/// # Safety
/// [`Tile`]'s pointers hold `R` rows; `quarter` < 4.
#[inline(always)]
unsafe fn widened<const Q4: bool, const R: usize>(t: &Tile, quarter: usize) {
    // SAFETY: start, u, x and y hold R rows; the panel holds `blocks` blocks of quants, then of scales.
    unsafe {
        let mut sums = [vdupq_n_f32(0.0); R];
        for r in 0..R {
            sums[r] = vld1q_f32(t.start.add(r * t.start_stride + 4 * quarter));
        }
        for (b, u) in t.ranks() {
            let b = vld1q_f32(b.add(4 * quarter));
            for r in 0..R {
                sums[r] = vfmaq_n_f32(sums[r], b, *u.add(r * RANKS));
            }
        }
        let w_scales = t.panel.add(t.blocks * quant_bytes::<Q4>() + 8 * quarter);
        for b in 0..t.blocks {
            let block = t.panel.add(b * quant_bytes::<Q4>());
            let w_scale = f16_quad(w_scales.add(b * SCALES));
            // Each row of the panel in two parts, of columns 0, 1 and of 2, 3 of the groups.
            let mut wide = [[vdupq_n_s32(0); 2]; R];
            let mut narrow = [[vdupq_n_s16(0); 2]; R];
            for g in 0..8 {
                let w = quants::<Q4>(block, g, quarter);
                for r in 0..R {
                    let x = t.x.add((r * t.blocks + b) * 32 + 4 * g).cast::<i32>();
                    let x = vreinterpretq_s8_s32(vdupq_n_s32(x.read_unaligned()));
                    narrow[r][0] = vmlal_s8(narrow[r][0], vget_low_s8(w), vget_low_s8(x));
                    narrow[r][1] = vmlal_high_s8(narrow[r][1], w, x);
                    if g == 7 || (!Q4 && g % 2 == 1) {
                        for i in 0..2 {
                            wide[r][i] = vpadalq_s16(wide[r][i], narrow[r][i]);
                            narrow[r][i] = vdupq_n_s16(0);
                        }
                    }
                }
            }
            for r in 0..R {
                let at = r * t.blocks + b;
                let mut ints = vpaddq_s32(wide[r][0], wide[r][1]);
                if Q4 {
                    ints = vaddq_s32(ints, vdupq_n_s32(*t.offsets.add(at) >> 4));
                }
                sums[r] = scaled(sums[r], ints, w_scale, t.scales.add(at));
            }
        }
        for r in 0..R {
            vst1q_f32(t.y.add(r * t.y_stride + 4 * quarter), sums[r]);
        }
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

/// Group `4 · half + GROUP` of a block into the sums of R rows of x and eight rows of the panel.
///
/// # Safety
/// As [`dotted`].
#[inline(always)]
unsafe fn dot_group<const Q4: bool, const R: usize, const GROUP: usize>(
    ints: &mut [[int32x4_t; 2]; R],
    block: *const u8,
    (columns, part): (usize, usize),
    x: &[int8x16_t; R],
) {
    for i in 0..2 {
        // SAFETY: the caller's promise.
        unsafe {
            let w = quants::<Q4>(block, 4 * columns + GROUP, 2 * part + i);
            for r in 0..R {
                sdot::<GROUP>(&mut ints[r][i], w, x[r]);
            }
        }
    }
}

/// Eight rows of the panel.
///
/// # Safety
/// The processor has dot products; [`Tile`]'s pointers hold `R` rows; `part` < 2.
#[inline(always)]
unsafe fn dotted<const Q4: bool, const R: usize>(t: &Tile, part: usize) {
    // SAFETY: start, u, x and y hold R rows; the panel holds `blocks` blocks of quants, then of scales.
    unsafe {
        let mut sums = load_starts::<R>(t, part);
        let w_scales = t.panel.add(t.blocks * quant_bytes::<Q4>() + 16 * part);
        for b in 0..t.blocks {
            let block = t.panel.add(b * quant_bytes::<Q4>());
            let mut ints = [[vdupq_n_s32(0); 2]; R];
            if Q4 {
                for r in 0..R {
                    ints[r] = [vdupq_n_s32(*t.offsets.add(r * t.blocks + b) >> 4); 2];
                }
            }
            for columns in 0..2 {
                let mut x = [vdupq_n_s8(0); R];
                for r in 0..R {
                    x[r] = vld1q_s8(t.x.add((r * t.blocks + b) * 32 + 16 * columns));
                }
                dot_group::<Q4, R, 0>(&mut ints, block, (columns, part), &x);
                dot_group::<Q4, R, 1>(&mut ints, block, (columns, part), &x);
                dot_group::<Q4, R, 2>(&mut ints, block, (columns, part), &x);
                dot_group::<Q4, R, 3>(&mut ints, block, (columns, part), &x);
            }
            for i in 0..2 {
                let w_scale = f16_quad(w_scales.add(b * SCALES + 8 * i));
                for r in 0..R {
                    let x_scale = t.scales.add(r * t.blocks + b);
                    sums[r][i] = scaled(sums[r][i], ints[r][i], w_scale, x_scale);
                }
            }
        }
        store_sums(t, part, &sums);
    }
}

/// What eight rows of the panel start at, for each of R rows: the update is in it.
#[inline(always)]
unsafe fn load_starts<const R: usize>(t: &Tile, part: usize) -> [[float32x4_t; 2]; R] {
    // SAFETY: start and u hold R rows, b its ranks of a panel.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); 2]; R];
        for r in 0..R {
            let from = t.start.add(r * t.start_stride + part * PANEL / 2);
            sums[r] = [vld1q_f32(from), vld1q_f32(from.add(4))];
        }
        for (b, u) in t.ranks() {
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

/// \[x₀·w₀, x₀·w₁, x₁·w₀, x₁·w₁\] of two rows of eight bytes each.
///
/// # Safety
/// The processor has matrix products of bytes.
#[inline(always)]
unsafe fn smmla(acc: &mut int32x4_t, x: int8x16_t, w: int8x16_t) {
    // SAFETY: reads and writes its registers only.
    unsafe {
        asm!(
            "smmla {acc:v}.4s, {x:v}.16b, {w:v}.16b",
            acc = inout(vreg) *acc,
            x = in(vreg) x,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// Eight rows of the panel, rows of x in pairs; an odd last row is paired with itself.
///
/// # Safety
/// The processor has matrix products of bytes; [`Tile`]'s pointers hold `R` rows; `part` < 2.
#[inline(always)]
unsafe fn multiplied<const Q4: bool, const R: usize>(t: &Tile, part: usize) {
    // SAFETY: start, u, x and y hold R rows; the panel holds `blocks` blocks of quants, then of scales.
    unsafe {
        let mut sums = load_starts::<R>(t, part);
        let w_scales = t.panel.add(t.blocks * quant_bytes::<Q4>() + 16 * part);
        for b in 0..t.blocks {
            let block = t.panel.add(b * quant_bytes::<Q4>());
            // [pair of rows of x][pair of rows of the panel]
            let mut ints = [[vdupq_n_s32(0); 4]; 2];
            for columns in 0..4 {
                let mut x = [vdupq_n_s8(0); 2];
                for p in 0..R.div_ceil(2) {
                    let from = |r: usize| t.x.add((r.min(R - 1) * t.blocks + b) * 32 + 8 * columns);
                    x[p] = vcombine_s8(vld1_s8(from(2 * p)), vld1_s8(from(2 * p + 1)));
                }
                for i in 0..2 {
                    let w0 = quants::<Q4>(block, 2 * columns, 2 * part + i);
                    let w1 = quants::<Q4>(block, 2 * columns + 1, 2 * part + i);
                    let (w0, w1) = (vreinterpretq_s32_s8(w0), vreinterpretq_s32_s8(w1));
                    let low = vreinterpretq_s8_s32(vzip1q_s32(w0, w1));
                    let high = vreinterpretq_s8_s32(vzip2q_s32(w0, w1));
                    for p in 0..R.div_ceil(2) {
                        smmla(&mut ints[p][2 * i], x[p], low);
                        smmla(&mut ints[p][2 * i + 1], x[p], high);
                    }
                }
            }
            for i in 0..2 {
                let w_scale = f16_quad(w_scales.add(b * SCALES + 8 * i));
                for r in 0..R {
                    let pair = &ints[r / 2][2 * i..];
                    let (low, high) =
                        (vreinterpretq_s64_s32(pair[0]), vreinterpretq_s64_s32(pair[1]));
                    let row = match r % 2 {
                        0 => vzip1q_s64(low, high),
                        _ => vzip2q_s64(low, high),
                    };
                    let mut row = vreinterpretq_s32_s64(row);
                    if Q4 {
                        row = vaddq_s32(row, vdupq_n_s32(*t.offsets.add(r * t.blocks + b) >> 4));
                    }
                    sums[r][i] = scaled(sums[r][i], row, w_scale, t.scales.add(r * t.blocks + b));
                }
            }
        }
        store_sums(t, part, &sums);
    }
}
