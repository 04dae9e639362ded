//! Lanes as four NEON registers, with what every ARMv8 core has. No closures around intrinsics, for
//! the reason that `avx2` states.

use super::lanes::{FewLanes, Lanes};
use std::arch::aarch64::*;
use std::arch::asm;

#[derive(Clone, Copy)]
pub(super) struct Neon([float32x4_t; 4]);

impl Lanes for Neon {
    const BY_LANE: bool = true;

    type Few = [float32x4_t; 2];
    type Words = [uint8x16_t; 4];

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the caller has NEON.
        Neon([unsafe { vdupq_n_f32(v) }; 4])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller has NEON; `p` is readable for 16 floats.
        Neon(unsafe {
            [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))]
        })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        for (i, v) in self.0.into_iter().enumerate() {
            // SAFETY: the caller has NEON; `p` is writable for 16 floats.
            unsafe { vst1q_f32(p.add(4 * i), v) }
        }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        let mut v = [0f32; 16];
        // SAFETY: the caller has NEON; `p` is readable for `n` < 16 floats.
        unsafe {
            std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n);
            Self::load(v.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        let mut v = [0f32; 16];
        // SAFETY: the caller has NEON; `p` is writable for `n` < 16 floats.
        unsafe {
            self.store(v.as_mut_ptr());
            std::ptr::copy_nonoverlapping(v.as_ptr(), p, n);
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        let mut out = self.0;
        for (i, v) in out.iter_mut().enumerate() {
            // SAFETY: the caller has NEON.
            *v = unsafe { vfmaq_f32(*v, a.0[i], b.0[i]) };
        }
        Neon(out)
    }

    #[inline(always)]
    unsafe fn add_four<const M: usize, const P: usize>(
        sums: &mut [[Self; P]; M],
        x: [*const f32; M],
        w: [*const f32; P],
    ) {
        // SAFETY: the caller has NEON; `x` and `w` are readable for so many floats.
        unsafe {
            let mut four = [vdupq_n_f32(0.0); M];
            for m in 0..M {
                four[m] = vld1q_f32(x[m]);
            }
            macro_rules! lanes {
                ($($k:literal)*) => {$(
                    for p in 0..P {
                        let w = Self::load(w[p].add(16 * $k)).0;
                        for m in 0..M {
                            for i in 0..4 {
                                let sum = &mut sums[m][p].0[i];
                                *sum = vfmaq_laneq_f32::<$k>(*sum, w[i], four[m]);
                            }
                        }
                    }
                )*};
            }
            lanes!(0 1 2 3);
        }
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        let mut out = self.0;
        for (i, v) in out.iter_mut().enumerate() {
            // SAFETY: the caller has NEON.
            *v = unsafe { vmulq_f32(*v, b.0[i]) };
        }
        Neon(out)
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: the caller has NEON; `p` is readable for 32 bytes.
        let ([a, b], [c, d]) = unsafe { (f16_pair(p), f16_pair(p.add(16))) };
        Neon([a, b, c, d])
    }

    #[inline(always)]
    unsafe fn words(p: *const u8) -> Self::Words {
        // SAFETY: the caller has NEON; `p` is readable for 64 bytes.
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))] }
    }

    #[inline(always)]
    unsafe fn nibbles([a, b, c, d]: Self::Words, high: bool) -> Self::Words {
        // SAFETY: the caller has NEON.
        unsafe { [nibble(a, high), nibble(b, high), nibble(c, high), nibble(d, high)] }
    }

    #[inline(always)]
    unsafe fn byte<const K: u32>([a, b, c, d]: Self::Words) -> Self {
        // SAFETY: the caller has NEON.
        Neon(unsafe { [widen::<K>(a), widen::<K>(b), widen::<K>(c), widen::<K>(d)] })
    }

    #[inline(always)]
    unsafe fn store_transposed(v: [Self; 16], out: *mut f32) {
        for i in 0..4 {
            let quad = [v[4 * i].0, v[4 * i + 1].0, v[4 * i + 2].0, v[4 * i + 3].0];
            for j in 0..4 {
                // SAFETY: the caller has NEON; `out` is writable for 256 floats.
                unsafe {
                    let square = transpose4([quad[0][j], quad[1][j], quad[2][j], quad[3][j]]);
                    for (k, s) in square.into_iter().enumerate() {
                        vst1q_f32(out.add(16 * (4 * j + k) + 4 * i), s);
                    }
                }
            }
        }
    }
}

impl FewLanes for [float32x4_t; 2] {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the caller has NEON.
        [unsafe { vdupq_n_f32(v) }; 2]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller has NEON; `p` is readable for 8 floats.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller has NEON; `p` is writable for 8 floats.
        unsafe {
            vst1q_f32(p, self[0]);
            vst1q_f32(p.add(4), self[1]);
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller has NEON.
        unsafe { [vfmaq_f32(self[0], a[0], b[0]), vfmaq_f32(self[1], a[1], b[1])] }
    }
}

/// Values below `low` and above `high`, which is not 0, become these. NaN stays NaN.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
pub(super) unsafe fn clamp(values: &mut [f32; 32], low: f32, high: f32) {
    // SAFETY: the caller has NEON.
    unsafe {
        let (low, high) = (vdupq_n_f32(low), vdupq_n_f32(high));
        let mut held = [low; 8];
        for (held, four) in held.iter_mut().zip(values.as_chunks::<4>().0) {
            let v = vld1q_f32(four.as_ptr());
            *held = vminq_f32(vbslq_f32(vcgtq_f32(low, v), low, v), high);
        }
        for (held, four) in held.iter().zip(values.as_chunks_mut::<4>().0) {
            vst1q_f32(four.as_mut_ptr(), *held);
        }
    }
}

/// Eight f16 from the 16 bytes at `p`. fcvtl is written as assembly, for its intrinsic needs Rust 1.94.
///
/// # Safety
/// The processor has NEON; `p` is readable for 16 bytes.
#[inline(always)]
pub(super) unsafe fn f16_pair(p: *const u8) -> [float32x4_t; 2] {
    let (low, high);
    // SAFETY: as the caller says; fcvtl reads and writes its registers only.
    unsafe {
        let bits = vld1q_u8(p);
        asm!(
            "fcvtl {low:v}.4s, {bits:v}.4h",
            "fcvtl2 {high:v}.4s, {bits:v}.8h",
            bits = in(vreg) bits,
            low = out(vreg) low,
            high = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// Low or high nibbles, less 8.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn nibble(bytes: uint8x16_t, high: bool) -> uint8x16_t {
    // SAFETY: the caller has NEON.
    unsafe {
        let n = if high { vshrq_n_u8::<4>(bytes) } else { vandq_u8(bytes, vdupq_n_u8(15)) };
        vsubq_u8(n, vdupq_n_u8(8))
    }
}

/// Signed byte `K` of each 32-bit word.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn widen<const K: u32>(bytes: uint8x16_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe {
        let words = vreinterpretq_s32_u8(bytes);
        let top = match K {
            0 => vshlq_n_s32::<24>(words),
            1 => vshlq_n_s32::<16>(words),
            2 => vshlq_n_s32::<8>(words),
            _ => words,
        };
        vcvtq_f32_s32(vshrq_n_s32::<24>(top))
    }
}

/// A 4 × 4 transpose.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn transpose4([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: the caller has NEON.
    unsafe {
        let (ac, ac_high) = (vzip1q_f32(a, c), vzip2q_f32(a, c));
        let (bd, bd_high) = (vzip1q_f32(b, d), vzip2q_f32(b, d));
        [
            vzip1q_f32(ac, bd),
            vzip2q_f32(ac, bd),
            vzip1q_f32(ac_high, bd_high),
            vzip2q_f32(ac_high, bd_high),
        ]
    }
}
