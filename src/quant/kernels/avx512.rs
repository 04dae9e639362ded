//! Lanes as one AVX-512 register.

use super::lanes::{FewLanes, Lanes};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

impl Lanes for Avx512 {
    const ONE_REGISTER: bool = true;

    type Few = __m512;
    type Words = __m512i;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the caller has AVX-512F.
        Avx512(unsafe { _mm512_set1_ps(v) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller has AVX-512F; `p` is readable for 16 floats.
        Avx512(unsafe { _mm512_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller has AVX-512F; `p` is writable for 16 floats.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        // SAFETY: the caller has AVX-512F; masked lanes are not read, `p` is readable for `n` floats.
        Avx512(unsafe { _mm512_maskz_loadu_ps((1 << n) - 1, p) })
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        // SAFETY: the caller has AVX-512F; masked lanes are not written.
        unsafe { _mm512_mask_storeu_ps(p, (1 << n) - 1, self.0) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller has AVX-512F.
        Avx512(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: the caller has AVX-512F.
        Avx512(unsafe { _mm512_mul_ps(self.0, b.0) })
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self {
        // SAFETY: the caller has AVX-512F; `p` is readable for 32 bytes.
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) })
    }

    #[inline(always)]
    unsafe fn words(p: *const u8) -> Self::Words {
        // SAFETY: the caller has AVX-512F; `p` is readable for 64 bytes.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn nibbles(words: Self::Words, high: bool) -> Self::Words {
        // SAFETY: the caller has AVX-512F and BW.
        unsafe {
            let words = if high { _mm512_srli_epi32::<4>(words) } else { words };
            let nibbles = _mm512_and_si512(words, _mm512_set1_epi8(15));
            _mm512_sub_epi8(nibbles, _mm512_set1_epi8(8))
        }
    }

    #[inline(always)]
    unsafe fn byte<const K: u32>(words: Self::Words) -> Self {
        // SAFETY: the caller has AVX-512F.
        unsafe {
            let top = match K {
                0 => _mm512_slli_epi32::<24>(words),
                1 => _mm512_slli_epi32::<16>(words),
                2 => _mm512_slli_epi32::<8>(words),
                _ => words,
            };
            Avx512(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top)))
        }
    }

    #[inline(always)]
    unsafe fn store_transposed(mut v: [Self; 16], out: *mut f32) {
        // SAFETY: the caller has AVX-512F; `out` is writable for 256 floats.
        unsafe {
            // 4 × 4 inside each 128-bit lane of four vectors, then the lanes as a 4 × 4 of their own.
            for q in 0..4 {
                let [a, b, c, d] = [v[4 * q].0, v[4 * q + 1].0, v[4 * q + 2].0, v[4 * q + 3].0];
                let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                v[4 * q].0 = _mm512_shuffle_ps::<0x44>(ab, cd);
                v[4 * q + 1].0 = _mm512_shuffle_ps::<0xee>(ab, cd);
                v[4 * q + 2].0 = _mm512_shuffle_ps::<0x44>(ab_high, cd_high);
                v[4 * q + 3].0 = _mm512_shuffle_ps::<0xee>(ab_high, cd_high);
            }
            for q in 0..4 {
                let [a, b, c, d] = [v[q].0, v[q + 4].0, v[q + 8].0, v[q + 12].0];
                let ab = _mm512_shuffle_f32x4::<0x44>(a, b);
                let cd = _mm512_shuffle_f32x4::<0x44>(c, d);
                let ab_high = _mm512_shuffle_f32x4::<0xee>(a, b);
                let cd_high = _mm512_shuffle_f32x4::<0xee>(c, d);
                v[q].0 = _mm512_shuffle_f32x4::<0x88>(ab, cd);
                v[q + 4].0 = _mm512_shuffle_f32x4::<0xdd>(ab, cd);
                v[q + 8].0 = _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high);
                v[q + 12].0 = _mm512_shuffle_f32x4::<0xdd>(ab_high, cd_high);
            }
            for (i, v) in v.into_iter().enumerate() {
                v.store(out.add(16 * i));
            }
        }
    }
}

impl FewLanes for __m512 {
    const COUNT: usize = 16;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_set1_ps(v) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller has AVX-512F; `p` is readable for 16 floats.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller has AVX-512F; `p` is writable for 16 floats.
        unsafe { _mm512_storeu_ps(p, self) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller has AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }
}
