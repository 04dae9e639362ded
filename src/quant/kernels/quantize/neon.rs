//! Rows of x quantized by NEON's instructions.

use super::scale_and_inverse;
use std::arch::aarch64::*;

/// As [`quantize`](super::quantize).
///
/// # Safety
/// The processor has NEON.
pub(in super::super) unsafe fn quantize<const B: usize>(
    x: &[f32],
    out: &mut [i8],
    scales: &mut [f32],
    starts: &mut [i32],
) {
    let blocks = out.as_chunks_mut::<B>().0.iter_mut().zip(scales).zip(starts);
    for (x, ((out, scale), start)) in x.chunks(B).zip(blocks) {
        if x.len() == B {
            // SAFETY: x holds a block.
            (*scale, *start) = unsafe { quantize_block::<B>(x.as_ptr(), out, B / 16) };
            continue;
        }
        out.fill(0);
        let (sixteens, rest) = x.as_chunks::<16>();
        if rest.is_empty() {
            // SAFETY: x holds so many.
            (*scale, *start) = unsafe { quantize_block::<B>(x.as_ptr(), out, sixteens.len()) };
            continue;
        }
        let mut padded = [0f32; B];
        padded[..x.len()].copy_from_slice(x);
        // SAFETY: `padded` holds a block.
        (*scale, *start) = unsafe { quantize_block::<B>(padded.as_ptr(), out, sixteens.len() + 1) };
    }
}

/// The first `sixteens` · 16 values of a block of B; its scale, and what its sums start at.
///
/// # Safety
/// The processor has NEON; `x` is readable for so many values.
#[inline(always)]
unsafe fn quantize_block<const B: usize>(
    x: *const f32,
    out: &mut [i8; B],
    sixteens: usize,
) -> (f32, i32) {
    // SAFETY: the caller's promise.
    unsafe {
        let magnitude = vdupq_n_u32(0x7fff_ffff);
        let mut largest = [vdupq_n_u32(0); 4];
        for i in 0..sixteens {
            for k in 0..4 {
                let bits = vreinterpretq_u32_f32(vld1q_f32(x.add(16 * i + 4 * k)));
                largest[k] = vmaxq_u32(largest[k], vandq_u32(bits, magnitude));
            }
        }
        let [a, b, c, d] = largest;
        let bits = vmaxvq_u32(vmaxq_u32(vmaxq_u32(a, b), vmaxq_u32(c, d)));
        let (scale, inverse) = scale_and_inverse(bits);
        let mut sum = vdupq_n_s16(0);
        for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().take(sixteens).enumerate() {
            let mut ints = [vdupq_n_s32(0); 4];
            for k in 0..4 {
                let value = vmulq_n_f32(vld1q_f32(x.add(16 * i + 4 * k)), inverse);
                ints[k] = vcvtnq_s32_f32(value);
            }
            // Each fits into a byte.
            let [a, b, c, d] = ints.map(|v| vreinterpretq_s16_s32(v));
            let (low, high) = (vuzp1q_s16(a, b), vuzp1q_s16(c, d));
            let bytes = vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high));
            sum = vpadalq_s8(sum, bytes);
            vst1q_s8(out.as_mut_ptr(), bytes);
        }
        (scale, -128 * i32::from(vaddvq_s16(sum)))
    }
}

/// As [`bounded`](super::bounded).
///
/// # Safety
/// The processor has NEON.
pub(in super::super) unsafe fn bounded(x: &[f32], steps: f32, out: &mut [i8]) -> bool {
    let ((many, rest), (to, last)) = (x.as_chunks::<16>(), out.as_chunks_mut::<16>());
    // SAFETY: the caller's promise; a chunk has 16 values.
    let sound = unsafe {
        let mut largest = vdupq_n_f32(0.0);
        for (x, to) in many.iter().zip(to) {
            let mut ints = [vdupq_n_u32(0); 4];
            for k in 0..4 {
                let v = vld1q_f32(x.as_ptr().add(4 * k));
                // NaN where one is.
                largest = vmaxq_f32(largest, v);
                // Below 0, and of NaN, 0.
                ints[k] = vcvtnq_u32_f32(vmulq_n_f32(v, steps));
            }
            let low = vqmovn_high_u32(vqmovn_u32(ints[0]), ints[1]);
            let high = vqmovn_high_u32(vqmovn_u32(ints[2]), ints[3]);
            let bytes = vqmovn_high_u16(vqmovn_u16(low), high);
            let bytes = vsubq_u8(vminq_u8(bytes, vdupq_n_u8(254)), vdupq_n_u8(127));
            vst1q_s8(to.as_mut_ptr(), vreinterpretq_s8_u8(bytes));
        }
        !vmaxvq_f32(largest).is_nan()
    };
    sound & super::bounded(rest, steps, last)
}
