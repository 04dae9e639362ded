//! Tiles of rows of q8 that are one block: one scale on both sides, sums in integers from end to end.

use super::super::super::layout::PANEL;
use super::super::integer::{RANKS, Tile};
use std::arch::x86_64::*;

/// As `vnni`, of rows of q8 that are one block.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn vnni_rows<const R: usize>(t: &Tile) {
    // SAFETY: start, u, x and y hold R rows; the panel holds the row's quants, then a block of scales.
    unsafe {
        let mut ints = [_mm512_setzero_si512(); R];
        for r in 0..R {
            ints[r] = _mm512_set1_epi32(*t.offsets.add(r));
        }
        for group in 0..t.row / 4 {
            let w = _mm512_loadu_si512(t.panel.add(64 * group).cast());
            let w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
            for r in 0..R {
                let x = t.x.add(r * t.row + 4 * group).cast::<i32>();
                ints[r] = _mm512_dpbusd_epi32(ints[r], w, _mm512_set1_epi32(x.read_unaligned()));
            }
        }
        let w_scale = t.panel.add(t.row * PANEL).cast();
        let w_scale = _mm512_cvtph_ps(_mm256_loadu_si256(w_scale));
        let mut sums = [_mm512_setzero_ps(); R];
        for r in 0..R {
            sums[r] = _mm512_loadu_ps(t.start.add(r * t.start_stride));
        }
        for (b, u) in t.ranks() {
            let b = _mm512_loadu_ps(b);
            for r in 0..R {
                let u = _mm512_set1_ps(*u.add(r * RANKS));
                sums[r] = _mm512_fmadd_ps(u, b, sums[r]);
            }
        }
        for r in 0..R {
            let scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(*t.scales.add(r)));
            sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints[r]), scale, sums[r]);
            _mm512_storeu_ps(t.y.add(r * t.y_stride), sums[r]);
        }
    }
}
