//! Integer tiles for AVX512-VNNI and AVX2.

mod rows;

use super::super::Scheme;
use super::super::layout::{PANEL, SCALES, block_bytes};
use super::integer::{Isa, RANKS, Second, Tile};
use super::quantize::{bounded, quantize};
use rows::vnni_rows;
use std::arch::x86_64::*;

/// vpdpbusd on registers of a whole panel.
pub(super) struct Avx512Vnni;
/// vpmaddubsw and vpmaddwd on half panels.
pub(super) struct Avx2;

impl Isa for Avx512Vnni {
    const ROWS: usize = 12;
    const PAIR_ROWS: usize = 6;

    unsafe fn tile(scheme: Scheme, rows: usize, t: &Tile) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        unsafe fn inner<const Q4: bool, const S: usize>(rows: usize, t: &Tile) {
            // SAFETY: the caller's promise.
            unsafe {
                match rows {
                    1 => vnni::<Q4, S, 1>(t),
                    2 => vnni::<Q4, S, 2>(t),
                    3 => vnni::<Q4, S, 3>(t),
                    4 => vnni::<Q4, S, 4>(t),
                    5 => vnni::<Q4, S, 5>(t),
                    6 => vnni::<Q4, S, 6>(t),
                    7 => vnni::<Q4, S, 7>(t),
                    8 => vnni::<Q4, S, 8>(t),
                    9 => vnni::<Q4, S, 9>(t),
                    10 => vnni::<Q4, S, 10>(t),
                    11 => vnni::<Q4, S, 11>(t),
                    12 => vnni::<Q4, S, 12>(t),
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }
        }
        // SAFETY: the trait's contract.
        unsafe {
            match scheme {
                Scheme::Q8 | Scheme::Q8Wide if t.row > 0 => inner::<false, 0>(rows, t),
                Scheme::Q4 => inner::<true, 1>(rows, t),
                Scheme::Q8 => inner::<false, 1>(rows, t),
                Scheme::Q8Wide => inner::<false, 2>(rows, t),
                Scheme::F16 | Scheme::F32 => unreachable!("{scheme:?} has no integers"),
            }
        }
    }

    unsafe fn pair(scheme: Scheme, rows: usize, t: &Tile, second: &Second) {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        unsafe fn inner<const Q4: bool, const S: usize>(rows: usize, t: &Tile, second: &Second) {
            // SAFETY: the caller's promise.
            unsafe {
                match rows {
                    1 => vnni_pair::<Q4, S, 1>(t, second),
                    2 => vnni_pair::<Q4, S, 2>(t, second),
                    3 => vnni_pair::<Q4, S, 3>(t, second),
                    4 => vnni_pair::<Q4, S, 4>(t, second),
                    5 => vnni_pair::<Q4, S, 5>(t, second),
                    6 => vnni_pair::<Q4, S, 6>(t, second),
                    _ => unreachable!("a tile of {rows} rows over two panels"),
                }
            }
        }
        // SAFETY: the trait's contract.
        unsafe {
            match scheme {
                Scheme::Q8 | Scheme::Q8Wide if t.row > 0 => inner::<false, 0>(rows, t, second),
                Scheme::Q4 => inner::<true, 1>(rows, t, second),
                Scheme::Q8 => inner::<false, 1>(rows, t, second),
                Scheme::Q8Wide => inner::<false, 2>(rows, t, second),
                Scheme::F16 | Scheme::F32 => unreachable!("{scheme:?} has no integers"),
            }
        }
    }

    unsafe fn bounded(x: &[f32], steps: f32, out: &mut [i8]) -> bool {
        // SAFETY: the trait's contract.
        unsafe { bounded_8(x, steps, out) }
    }

    unsafe fn quantize(
        wide: bool,
        x: &[f32],
        out: &mut [i8],
        scale: &mut [f32],
        start: &mut [i32],
    ) {
        // SAFETY: the trait's contract.
        unsafe {
            match wide {
                true => quantize_16::<2>(x, out, scale, start),
                false => quantize_16::<1>(x, out, scale, start),
            }
        }
    }
}

/// As [`bounded`].
#[target_feature(enable = "avx2,fma,f16c")]
fn bounded_8(x: &[f32], steps: f32, out: &mut [i8]) -> bool {
    bounded(x, steps, out)
}

/// As [`quantize`], 16 values at a time; a block is S times 32 values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn quantize_16<const S: usize>(x: &[f32], out: &mut [i8], scales: &mut [f32], starts: &mut [i32]) {
    let blocks = out.chunks_exact_mut(32 * S).zip(scales).zip(starts);
    for (x, ((out, scale), start)) in x.chunks(32 * S).zip(blocks) {
        // SAFETY: the masks let through only what lies in x; `out` has 32 · S bytes.
        unsafe {
            let infinity = _mm512_set1_ps(f32::INFINITY);
            let mut values = [[_mm512_setzero_ps(); 2]; S];
            let mut largest = _mm512_setzero_ps();
            let mut odd = 0;
            for i in 0..2 * S {
                let left = x.len().saturating_sub(16 * i).min(16);
                let mask = ((1u32 << left) - 1) as u16;
                let v = _mm512_maskz_loadu_ps(mask, x.as_ptr().wrapping_add(16 * i));
                let size = _mm512_abs_ps(v);
                odd |= _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(size, infinity);
                largest = _mm512_max_ps(largest, size);
                values[i / 2][i % 2] = v;
            }
            let largest = _mm512_reduce_max_ps(largest);
            let inverse = _mm512_set1_ps(if largest > 1e-30 { 127.0 / largest } else { 0.0 });
            *scale = if odd == 0 { largest / 127.0 } else { f32::NAN };
            let mut sums = _mm256_setzero_si256();
            for (s, [a, b]) in values.into_iter().enumerate() {
                let a = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)));
                let b = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)));
                let q = _mm256_set_m128i(b, a);
                _mm256_storeu_si256(out.as_mut_ptr().add(32 * s).cast(), q);
                sums = _mm256_dpbusd_epi32(sums, _mm256_set1_epi8(1), q);
            }
            let sums =
                _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b01_00_11_10>(sums));
            let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b10_11_00_01>(sums));
            *start = -128 * _mm_cvtsi128_si32(sums);
        }
    }
}

/// A block is S times 32 columns, or a row where S is 0.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL and VNNI; [`Tile`]'s pointers hold `R` rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn vnni<const Q4: bool, const S: usize, const R: usize>(t: &Tile) {
    if S == 0 {
        // SAFETY: the caller's promise.
        return unsafe { vnni_rows::<R>(t) };
    }
    let quants = block_bytes(if Q4 { Scheme::Q4 } else { Scheme::Q8 });
    // SAFETY: start, u, x and y hold R rows; the panel holds `blocks` blocks of quants, then of scales.
    unsafe {
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
        let w_scales = t.panel.add(t.blocks * S * quants);
        for b in 0..t.blocks {
            let w_scale = _mm512_cvtph_ps(_mm256_loadu_si256(w_scales.add(b * SCALES).cast()));
            let mut w = [[_mm512_setzero_si512(); 8]; S];
            for s in 0..S {
                let from = t.panel.add((b * S + s) * quants);
                if Q4 {
                    let low = _mm512_set1_epi8(15);
                    for v in 0..4 {
                        let q = _mm512_loadu_si512(from.add(64 * v).cast());
                        w[s][v] = _mm512_and_si512(q, low);
                        w[s][v + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(q), low);
                    }
                } else {
                    for g in 0..8 {
                        let q = _mm512_loadu_si512(from.add(64 * g).cast());
                        w[s][g] = _mm512_xor_si512(q, _mm512_set1_epi8(-128));
                    }
                }
            }
            for r in 0..R {
                let at = r * t.blocks + b;
                let x = t.x.add(at * 32 * S).cast::<i32>();
                let mut ints = _mm512_set1_epi32(*t.offsets.add(at));
                if Q4 {
                    ints = _mm512_srai_epi32::<4>(ints);
                }
                for s in 0..S {
                    for g in 0..8 {
                        let x = _mm512_set1_epi32(x.add(8 * s + g).read_unaligned());
                        ints = _mm512_dpbusd_epi32(ints, w[s][g], x);
                    }
                }
                let scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(*t.scales.add(at)));
                sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints), scale, sums[r]);
            }
        }
        for r in 0..R {
            _mm512_storeu_ps(t.y.add(r * t.y_stride), sums[r]);
        }
    }
}

/// As [`vnni`] over two panels side by side: each of x is loaded once for both, which leaves the
/// multipliers as the bound. Weights pass a group at a time, so that sums and integers of all rows have
/// a register.
///
/// # Safety
/// As for [`vnni`]; `second` is good for what the tile's panel and b are, and start and y hold 32 values
/// a row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn vnni_pair<const Q4: bool, const S: usize, const R: usize>(t: &Tile, second: &Second) {
    // Of 32 columns.
    let steps = if S == 0 { t.row / 32 } else { S };
    let quants = block_bytes(if Q4 { Scheme::Q4 } else { Scheme::Q8 });
    let panels = [t.panel, second.panel];
    // SAFETY: start, u, x and y hold R rows; a panel holds `blocks` blocks of quants, then of scales.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for r in 0..R {
            for p in 0..2 {
                sums[r][p] = _mm512_loadu_ps(t.start.add(r * t.start_stride + p * PANEL));
            }
        }
        for (k, (b, u)) in t.ranks().enumerate() {
            let b = [_mm512_loadu_ps(b), _mm512_loadu_ps(second.b.add(k * PANEL))];
            for r in 0..R {
                let u = _mm512_set1_ps(*u.add(r * RANKS));
                for p in 0..2 {
                    sums[r][p] = _mm512_fmadd_ps(u, b[p], sums[r][p]);
                }
            }
        }
        let low = _mm512_set1_epi8(15);
        let flip = _mm512_set1_epi8(-128);
        // Not known to the compiler, which else unrolls the loop, loads x ahead and spills.
        let vectors = std::hint::black_box(if Q4 { 4 } else { 8 * steps });
        for b in 0..t.blocks {
            let mut ints = [[_mm512_setzero_si512(); 2]; R];
            for r in 0..R {
                let offset = _mm512_set1_epi32(*t.offsets.add(r * t.blocks + b));
                ints[r] = [if Q4 { _mm512_srai_epi32::<4>(offset) } else { offset }; 2];
            }
            // Written out: closures aren't inlined into the library's `map`, which lacks the instructions.
            let from = [panels[0].add(b * steps * quants), panels[1].add(b * steps * quants)];
            for v in 0..vectors {
                let q = [
                    _mm512_loadu_si512(from[0].add(64 * v).cast()),
                    _mm512_loadu_si512(from[1].add(64 * v).cast()),
                ];
                let w = match Q4 {
                    true => [_mm512_and_si512(q[0], low), _mm512_and_si512(q[1], low)],
                    false => [_mm512_xor_si512(q[0], flip), _mm512_xor_si512(q[1], flip)],
                };
                let x = t.x.add(b * steps * 32).cast::<i32>();
                for r in 0..R {
                    let x = _mm512_set1_epi32(x.add(r * t.blocks * steps * 8 + v).read_unaligned());
                    for p in 0..2 {
                        ints[r][p] = _mm512_dpbusd_epi32(ints[r][p], w[p], x);
                    }
                }
                if Q4 {
                    let high = [_mm512_srli_epi16::<4>(q[0]), _mm512_srli_epi16::<4>(q[1])];
                    let w = [_mm512_and_si512(high[0], low), _mm512_and_si512(high[1], low)];
                    for r in 0..R {
                        let x = _mm512_set1_epi32(x.add(r * t.blocks * 8 + v + 4).read_unaligned());
                        for p in 0..2 {
                            ints[r][p] = _mm512_dpbusd_epi32(ints[r][p], w[p], x);
                        }
                    }
                }
            }
            for p in 0..2 {
                let scales = panels[p].add(t.blocks * steps * quants + b * SCALES);
                let w_scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
                for r in 0..R {
                    let scale = _mm512_set1_ps(*t.scales.add(r * t.blocks + b));
                    let scale = _mm512_mul_ps(w_scale, scale);
                    sums[r][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints[r][p]), scale, sums[r][p]);
                }
            }
        }
        for r in 0..R {
            for p in 0..2 {
                _mm512_storeu_ps(t.y.add(r * t.y_stride + p * PANEL), sums[r][p]);
            }
        }
    }
}

impl Isa for Avx2 {
    const ROWS: usize = 4;

    unsafe fn tile(scheme: Scheme, rows: usize, t: &Tile) {
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn inner<const Q4: bool, const S: usize>(rows: usize, t: &Tile) {
            // SAFETY: the caller's promise.
            unsafe {
                match rows {
                    1 => maddubs::<Q4, S, 1, 2>(t, 0),
                    2 => maddubs::<Q4, S, 2, 2>(t, 0),
                    3 => (0..2).for_each(|half| maddubs::<Q4, S, 3, 1>(t, half)),
                    4 => (0..2).for_each(|half| maddubs::<Q4, S, 4, 1>(t, half)),
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }
        }
        // SAFETY: the trait's contract.
        unsafe {
            match scheme {
                Scheme::Q8 | Scheme::Q8Wide if t.row > 0 => inner::<false, 0>(rows, t),
                Scheme::Q4 => inner::<true, 1>(rows, t),
                Scheme::Q8 => inner::<false, 1>(rows, t),
                Scheme::Q8Wide => inner::<false, 2>(rows, t),
                Scheme::F16 | Scheme::F32 => unreachable!("{scheme:?} has no integers"),
            }
        }
    }

    unsafe fn bounded(x: &[f32], steps: f32, out: &mut [i8]) -> bool {
        // SAFETY: the trait's contract.
        unsafe { bounded_8(x, steps, out) }
    }

    unsafe fn quantize(
        wide: bool,
        x: &[f32],
        out: &mut [i8],
        scale: &mut [f32],
        start: &mut [i32],
    ) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<const B: usize>(x: &[f32], out: &mut [i8], scale: &mut [f32], start: &mut [i32]) {
            quantize::<B>(x, out, scale, start);
        }
        // SAFETY: the trait's contract.
        unsafe {
            match wide {
                true => inner::<64>(x, out, scale, start),
                false => inner::<32>(x, out, scale, start),
            }
        }
    }
}

/// Bytes of weights from what is multiplied to what is fetched, for one row of x: memory is waited for then. On an
/// AMD processor a walk over 143 MB took 11.7 ms with it and 12.5 ms without, of q4 6.6 and 8.7 (4096 made q8 slower).
const AHEAD: usize = 8192;

/// H times eight rows of the panel, from the half `first` on; a block is S times 32 columns, or a row where S
/// is 0.
///
/// q4: `q + 8` is 0..=15, so eight groups fit into 16 bits (8 · 2 · 15 · 127 < 2¹⁵). q8: |q| times x
/// with q's sign, at most 2 · 128 · 127 a pair, widened each time; no offset then.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; [`Tile`]'s pointers hold `R` rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn maddubs<const Q4: bool, const S: usize, const R: usize, const H: usize>(
    t: &Tile,
    first: usize,
) {
    let quants = block_bytes(if Q4 { Scheme::Q4 } else { Scheme::Q8 });
    let steps = if S == 0 { t.row / 32 } else { S };
    // SAFETY: start, u, x and y hold R rows; the panel holds `blocks` blocks of quants, then of scales.
    unsafe {
        let eight = |half: usize| (first + half) * PANEL / 2;
        let mut sums = [[_mm256_setzero_ps(); H]; R];
        for r in 0..R {
            for h in 0..H {
                sums[r][h] = _mm256_loadu_ps(t.start.add(r * t.start_stride + eight(h)));
            }
        }
        for (b, u) in t.ranks() {
            for h in 0..H {
                let b = _mm256_loadu_ps(b.add(eight(h)));
                for r in 0..R {
                    let u = _mm256_set1_ps(*u.add(r * RANKS));
                    sums[r][h] = _mm256_fmadd_ps(u, b, sums[r][h]);
                }
            }
        }
        let ones = _mm256_set1_epi16(1);
        let w_scales = t.panel.add(t.blocks * steps * quants + first * SCALES / 2);
        for b in 0..t.blocks {
            let from = t.panel.add(b * steps * quants + 32 * first);
            let mut ints = [[_mm256_setzero_si256(); H]; R];
            if Q4 {
                let low = _mm256_set1_epi8(15);
                for v in 0..4 {
                    if R == 1 {
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(64 * v + AHEAD).cast());
                    }
                    for h in 0..H {
                        let q = _mm256_loadu_si256(from.add(64 * v + 32 * h).cast());
                        let w = [
                            _mm256_and_si256(q, low),
                            _mm256_and_si256(_mm256_srli_epi16::<4>(q), low),
                        ];
                        for r in 0..R {
                            let x = t.x.add((r * t.blocks + b) * 32 * steps).cast::<i32>();
                            for i in 0..2 {
                                let x = _mm256_set1_epi32(x.add(v + 4 * i).read_unaligned());
                                let pairs = _mm256_maddubs_epi16(w[i], x);
                                ints[r][h] = _mm256_add_epi16(ints[r][h], pairs);
                            }
                        }
                    }
                }
                for r in 0..R {
                    let offset = _mm256_set1_epi32(*t.offsets.add(r * t.blocks + b));
                    let offset = _mm256_srai_epi32::<4>(offset);
                    for h in 0..H {
                        let sum = _mm256_madd_epi16(ints[r][h], ones);
                        ints[r][h] = _mm256_add_epi32(sum, offset);
                    }
                }
            } else {
                for g in 0..8 * steps {
                    if R == 1 {
                        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(64 * g + AHEAD).cast());
                    }
                    for h in 0..H {
                        let w = _mm256_loadu_si256(from.add(64 * g + 32 * h).cast());
                        let size = _mm256_abs_epi8(w);
                        for r in 0..R {
                            let x = t.x.add((r * t.blocks + b) * 32 * steps).cast::<i32>();
                            let x = _mm256_set1_epi32(x.add(g).read_unaligned());
                            let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, w));
                            let sum = _mm256_madd_epi16(pairs, ones);
                            ints[r][h] = _mm256_add_epi32(ints[r][h], sum);
                        }
                    }
                }
            }
            for h in 0..H {
                let w_scale = w_scales.add(b * SCALES + h * SCALES / 2);
                let w_scale = _mm256_cvtph_ps(_mm_loadu_si128(w_scale.cast()));
                for r in 0..R {
                    let scale = _mm256_set1_ps(*t.scales.add(r * t.blocks + b));
                    let scale = _mm256_mul_ps(w_scale, scale);
                    sums[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints[r][h]), scale, sums[r][h]);
                }
            }
        }
        for r in 0..R {
            for h in 0..H {
                _mm256_storeu_ps(t.y.add(r * t.y_stride + eight(h)), sums[r][h]);
            }
        }
    }
}
