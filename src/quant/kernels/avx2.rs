//! Lanes as two AVX registers.
//!
//! No closures around intrinsics: a closure has not the features of the function that it ends up in,
//! and where it is not inlined first the intrinsics stay calls.

use super::lanes::{FewLanes, Lanes};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx2([__m256; 2]);

impl Lanes for Avx2 {
    type Few = __m256;
    type Words = [__m256i; 2];

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the caller has AVX.
        Avx2([unsafe { _mm256_set1_ps(v) }; 2])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller has AVX; `p` is readable for 16 floats.
        Avx2(unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller has AVX; `p` is writable for 16 floats.
        unsafe {
            _mm256_storeu_ps(p, self.0[0]);
            _mm256_storeu_ps(p.add(8), self.0[1]);
        }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        let mut v = [0f32; 16];
        // SAFETY: the caller has AVX; `p` is readable for `n` < 16 floats.
        unsafe {
            std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n);
            Self::load(v.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        let mut v = [0f32; 16];
        // SAFETY: the caller has AVX; `p` is writable for `n` < 16 floats.
        unsafe {
            self.store(v.as_mut_ptr());
            std::ptr::copy_nonoverlapping(v.as_ptr(), p, n);
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller has FMA.
        Avx2(unsafe {
            [_mm256_fmadd_ps(a.0[0], b.0[0], self.0[0]), _mm256_fmadd_ps(a.0[1], b.0[1], self.0[1])]
        })
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: the caller has AVX.
        Avx2(unsafe { [_mm256_mul_ps(self.0[0], b.0[0]), _mm256_mul_ps(self.0[1], b.0[1])] })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: the caller has F16C; `p` is readable for 32 bytes.
        unsafe {
            let (low, high) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(16).cast()));
            Avx2([_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)])
        }
    }

    #[inline(always)]
    unsafe fn words(p: *const u8) -> Self::Words {
        // SAFETY: the caller has AVX; `p` is readable for 64 bytes.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn nibbles([a, b]: Self::Words, high: bool) -> Self::Words {
        // SAFETY: the caller has AVX2.
        unsafe {
            let (fifteen, eight) = (_mm256_set1_epi8(15), _mm256_set1_epi8(8));
            let [a, b] =
                if high { [_mm256_srli_epi32::<4>(a), _mm256_srli_epi32::<4>(b)] } else { [a, b] };
            [
                _mm256_sub_epi8(_mm256_and_si256(a, fifteen), eight),
                _mm256_sub_epi8(_mm256_and_si256(b, fifteen), eight),
            ]
        }
    }

    #[inline(always)]
    unsafe fn byte<const K: u32>([a, b]: Self::Words) -> Self {
        // SAFETY: the caller has AVX2.
        Avx2(unsafe { [widen::<K>(a), widen::<K>(b)] })
    }

    #[inline(always)]
    unsafe fn store_transposed(v: [Self; 16], out: *mut f32) {
        // SAFETY: the caller has AVX; `out` is writable for 256 floats.
        unsafe {
            for half in 0..2 {
                for part in 0..2 {
                    let mut square = [v[0].0[0]; 8];
                    for (i, s) in square.iter_mut().enumerate() {
                        *s = v[8 * half + i].0[part];
                    }
                    for (i, s) in transpose8(square).into_iter().enumerate() {
                        _mm256_storeu_ps(out.add(16 * (8 * part + i) + 8 * half), s);
                    }
                }
            }
        }
    }
}

impl FewLanes for __m256 {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the caller has FMA.
        unsafe { _mm256_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller has FMA; `p` is readable for 8 floats.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller has FMA; `p` is writable for 8 floats.
        unsafe { _mm256_storeu_ps(p, self) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller has FMA.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }
}

/// Signed byte `K` of each word.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn widen<const K: u32>(words: __m256i) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let top = match K {
            0 => _mm256_slli_epi32::<24>(words),
            1 => _mm256_slli_epi32::<16>(words),
            2 => _mm256_slli_epi32::<8>(words),
            _ => words,
        };
        _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(top))
    }
}

/// An 8 × 8 transpose.
///
/// # Safety
/// The processor has AVX.
#[inline(always)]
unsafe fn transpose8(v: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller has AVX.
    unsafe {
        let mut t = v;
        for q in 0..2 {
            let [a, b, c, d] = [v[4 * q], v[4 * q + 1], v[4 * q + 2], v[4 * q + 3]];
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            t[4 * q] = _mm256_shuffle_ps::<0x44>(ab, cd);
            t[4 * q + 1] = _mm256_shuffle_ps::<0xee>(ab, cd);
            t[4 * q + 2] = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
            t[4 * q + 3] = _mm256_shuffle_ps::<0xee>(ab_high, cd_high);
        }
        let mut out = t;
        for q in 0..4 {
            out[q] = _mm256_permute2f128_ps::<0x20>(t[q], t[q + 4]);
            out[q + 4] = _mm256_permute2f128_ps::<0x31>(t[q], t[q + 4]);
        }
        out
    }
}
