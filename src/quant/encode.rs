//! From floats (or ready integers) to packed bytes.

use super::Scheme;
#[cfg(feature = "import")]
use super::compensate::InputMoments;
use super::layout::{BLOCK, PANEL, WIDE, block_len, panel_len, q4_at, q8_at, scale_at};
use crate::error::{Error, Result};
use half::f16;

/// The smallest positive f16.
const TINY: f32 = 5.960_464_5e-8;
/// Steps to either side of the largest weight's own scale that the q4 search tries.
const Q4_STEPS: i32 = 10;

/// Writes row-major `values` into zeroed `out` of the packed length.
pub(super) fn encode(scheme: Scheme, cols: usize, values: &[f32], out: &mut [u8]) -> Result<()> {
    if cols == 0 {
        return Ok(());
    }
    check_finite(cols, values)?;
    match scheme {
        Scheme::Q8 | Scheme::Q8Wide => check_range(scheme, cols, values, 127.0)?,
        Scheme::Q4 => check_range(scheme, cols, values, 8.0)?,
        Scheme::F16 => check_f16(cols, values)?,
        Scheme::F32 => {}
    }
    let step = block_len(scheme);
    let blocks = cols.div_ceil(step);
    let len = panel_len(scheme, cols).unwrap_or(0);
    if scheme == Scheme::Q4 {
        fill_q4(blocks, len, out);
    }
    for (row, values) in values.chunks_exact(cols).enumerate() {
        let lane = row % PANEL;
        let panel = &mut out[row / PANEL * len..][..len];
        match scheme {
            Scheme::Q8 | Scheme::Q8Wide => {
                for (block, values) in values.chunks(step).enumerate() {
                    let (scale, quants) = quantize_q8(values);
                    put(panel, scale_at(scheme, blocks, block, lane), &scale.to_le_bytes());
                    for (i, q) in quants[..values.len()].iter().enumerate() {
                        panel[q8_at(lane, block * step + i)] = *q as u8;
                    }
                }
            }
            Scheme::Q4 => {
                for (block, values) in values.chunks(step).enumerate() {
                    let (scale, quants) = quantize_q4(values, &[1.0; BLOCK]);
                    put(panel, scale_at(scheme, blocks, block, lane), &scale.to_le_bytes());
                    for (i, q) in quants[..values.len()].iter().enumerate() {
                        put_q4(panel, lane, block * step + i, *q);
                    }
                }
            }
            Scheme::F16 => {
                for (col, v) in values.iter().enumerate() {
                    let bytes = f16::from_f32(*v).to_le_bytes();
                    put(panel, (col * PANEL + lane) * 2, &bytes);
                }
            }
            Scheme::F32 => {
                for (col, v) in values.iter().enumerate() {
                    put(panel, (col * PANEL + lane) * 4, &v.to_le_bytes());
                }
            }
        }
    }
    Ok(())
}

/// Writes row-major `values` as q4 for the inputs that `moments` are of.
#[cfg(feature = "import")]
pub(super) fn encode_q4_for(
    cols: usize,
    values: &[f32],
    moments: &InputMoments,
    out: &mut [u8],
) -> Result<()> {
    if cols == 0 {
        return Ok(());
    }
    check_finite(cols, values)?;
    check_range(Scheme::Q4, cols, values, 8.0)?;
    let blocks = cols.div_ceil(BLOCK);
    let len = panel_len(Scheme::Q4, cols).unwrap_or(0);
    fill_q4(blocks, len, out);
    let (scales, quants) = moments.quantize_q4(values);
    for (row, (scales, quants)) in scales.chunks(blocks).zip(quants.chunks(cols)).enumerate() {
        let lane = row % PANEL;
        let panel = &mut out[row / PANEL * len..][..len];
        for (block, scale) in scales.iter().enumerate() {
            put(panel, scale_at(Scheme::Q4, blocks, block, lane), &scale.to_le_bytes());
        }
        quants.iter().enumerate().for_each(|(col, q)| put_q4(panel, lane, col, *q));
    }
    Ok(())
}

/// Writes row-major integers as q8 or q8-64 into zeroed `out` of the packed length.
pub(super) fn encode_int8(
    scheme: Scheme,
    cols: usize,
    ints: &[i8],
    row_scales: &[f32],
    out: &mut [u8],
) -> Result<()> {
    if cols == 0 {
        return Ok(());
    }
    let blocks = cols.div_ceil(block_len(scheme));
    let len = panel_len(scheme, cols).unwrap_or(0);
    for (row, ints) in ints.chunks_exact(cols).enumerate() {
        let wanted = row_scales[if row_scales.len() == 1 { 0 } else { row }];
        let scale = f16::from_f32(wanted);
        let off = (scale.to_f32() - wanted).abs();
        if !scale.is_finite() || off > wanted.abs() / 256.0 {
            return Err(Error::unsupported(format!(
                "scale {wanted:e} of row {row} can't be held in f16"
            ))
            .hint("quantize the dequantized weights anew"));
        }
        let lane = row % PANEL;
        let panel = &mut out[row / PANEL * len..][..len];
        for block in 0..blocks {
            put(panel, scale_at(scheme, blocks, block, lane), &scale.to_le_bytes());
        }
        for (col, q) in ints.iter().enumerate() {
            panel[q8_at(lane, col)] = *q as u8;
        }
    }
    Ok(())
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: &[u8; N]) {
    bytes[at..at + N].copy_from_slice(value);
}

fn put_q4(panel: &mut [u8], lane: usize, col: usize, q: i8) {
    let (at, shift) = q4_at(lane, col);
    panel[at] = panel[at] & !(15 << shift) | ((q + 8) as u8) << shift;
}

fn check_finite(cols: usize, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(Error::bad_input(format!(
            "weight at row {}, column {} is {}",
            at / cols,
            at % cols,
            values[at]
        ))),
        None => Ok(()),
    }
}

/// Sets every nibble of the quants to q = 0.
fn fill_q4(blocks: usize, len: usize, out: &mut [u8]) {
    for panel in out.chunks_exact_mut(len) {
        panel[..scale_at(Scheme::Q4, blocks, 0, 0)].fill(0x88);
    }
}

/// A scale must be at most f16's largest number. It need not be at least its smallest: a block of
/// tiny weights takes the smallest scale, which puts its weights off by 2⁻²⁵ at most; only when that
/// would be seen beside the matrix's largest weight is the matrix refused.
fn check_range(scheme: Scheme, cols: usize, values: &[f32], levels: f32) -> Result<()> {
    let Some((at, max)) = largest(values) else { return Ok(()) };
    let scale = max / levels;
    if max > 0.0 && (scale > f16::MAX.to_f32() || scale < TINY) {
        return Err(Error::unsupported(format!(
            "{} scale {scale:e} of the block at row {}, column {} can't be held in f16",
            scheme.name(),
            at / cols,
            at % cols / block_len(scheme) * block_len(scheme)
        ))
        .hint("use f32 for this matrix"));
    }
    Ok(())
}

fn check_f16(cols: usize, values: &[f32]) -> Result<()> {
    let Some((at, max)) = largest(values) else { return Ok(()) };
    if max > 0.0 && (!f16::from_f32(max).is_finite() || max < TINY) {
        return Err(Error::unsupported(format!(
            "weight {:e} at row {}, column {} can't be held in f16",
            values[at],
            at / cols,
            at % cols
        ))
        .hint("use f32 for this matrix"));
    }
    Ok(())
}

/// Index and magnitude of the largest value.
fn largest(values: &[f32]) -> Option<(usize, f32)> {
    let magnitude = |v: &f32| v.abs();
    values.iter().map(magnitude).enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a })
}

/// Scale and integers of up to 64 weights: max|w| is 127, against the scale as f16 holds it. The
/// rounded scale is never so small that the largest weight is clipped by more than rounding.
fn quantize_q8(values: &[f32]) -> (f16, [i8; WIDE]) {
    let mut quants = [0; WIDE];
    let max = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    if max == 0.0 {
        return (f16::ZERO, quants);
    }
    let mut scale = f16::from_f32(max / 127.0);
    if scale.to_f32() * 127.5 < max {
        scale = f16::from_bits(scale.to_bits() + 1);
    }
    let by = scale.to_f32();
    for (q, v) in quants.iter_mut().zip(values) {
        *q = round(v / by, -127.0, 127.0) as i8;
    }
    (scale, quants)
}

/// The scale alone, see [`quantize_q4`].
#[cfg(feature = "import")]
pub(super) fn q4_scale(values: &[f32], importance: &[f32]) -> f16 {
    quantize_q4(values, importance).0
}

/// Scale and integers of up to 32 weights, -8..=7, of the least sum of squared errors times `importance` that is
/// found (as llama.cpp's make_qx_quants): of the scales that put the largest weight at -8 · (1 ± 1/8) or at 7, each refined
/// to the least squares fit of its integers, the best; then that one as f16 holds it, or a neighbour.
fn quantize_q4(values: &[f32], importance: &[f32]) -> (f16, [i8; BLOCK]) {
    let Some((at, _)) = largest(values).filter(|l| l.1 > 0.0) else {
        return (f16::ZERO, [0; BLOCK]);
    };
    let signed = values[at];
    let mut block = [0.0; BLOCK];
    block[..values.len()].copy_from_slice(values);
    let mut weights = [0.0; BLOCK];
    weights[..values.len()].copy_from_slice(&importance[..values.len()]);
    let steps = (-Q4_STEPS..=Q4_STEPS).map(|step| -(8.0 + 0.1 * step as f32));
    // A fit takes (Σ v·q)² / Σ q² off the squared error.
    let mut fit = (0.0, 0.0);
    for level in steps.chain([7.0]) {
        let (vq, qq) = products_at(&block, &weights, level / signed);
        if vq * vq > fit.0 * qq {
            fit = (vq * vq / qq, vq / qq);
        }
    }
    let held = f16::from_f32(fit.1).to_bits();
    let mut best = (f32::INFINITY, f16::ZERO, [0; BLOCK]);
    for scale in [
        f16::from_bits(held),
        f16::from_bits(held.wrapping_add(1)),
        f16::from_bits(held.wrapping_sub(1)),
        f16::from_f32(-signed / 8.0),
        f16::from_f32(TINY),
    ] {
        if !scale.is_finite() || scale.to_f32() == 0.0 {
            continue;
        }
        let (quants, error) = q4_at_scale(&block, &weights, scale.to_f32());
        if error < best.0 {
            best = (error, scale, quants);
        }
    }
    (best.1, best.2)
}

/// The nearest integer (ties to even) in low..=high, which are small integers. Adding 1.5 · 2²³ rounds,
/// and vectorises where `round_ties_even` is a call.
#[inline(always)]
fn round(v: f32, low: f32, high: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (v.clamp(low, high) + MAGIC) - MAGIC
}

/// Σ v·q and Σ q², each by its importance, for the integers that `inverse` gives, summed in 8 lanes.
fn products_at(block: &[f32; BLOCK], importance: &[f32; BLOCK], inverse: f32) -> (f32, f32) {
    let (mut vq, mut qq) = ([0f32; 8], [0f32; 8]);
    for (v, by) in block.as_chunks::<8>().0.iter().zip(importance.as_chunks::<8>().0) {
        for i in 0..8 {
            let q = round(v[i] * inverse, -8.0, 7.0);
            vq[i] += v[i] * q * by[i];
            qq[i] += q * q * by[i];
        }
    }
    (vq.iter().sum(), qq.iter().sum())
}

/// The integers at a given scale, and their squared error.
fn q4_at_scale(block: &[f32; BLOCK], importance: &[f32; BLOCK], scale: f32) -> ([i8; BLOCK], f32) {
    let mut rounded = [0f32; BLOCK];
    let mut error = [0f32; 8];
    let each = block.as_chunks::<8>().0.iter().zip(importance.as_chunks::<8>().0);
    for (q, (v, by)) in rounded.as_chunks_mut::<8>().0.iter_mut().zip(each) {
        for i in 0..8 {
            q[i] = round(v[i] / scale, -8.0, 7.0);
            let off = v[i] - q[i] * scale;
            error[i] += off * off * by[i];
        }
    }
    (rounded.map(|q| q as i8), error.iter().sum())
}

#[cfg(test)]
mod tests {
    use crate::quant::layout::{BLOCK, block_len};
    use crate::quant::testing::{noise, some};
    use crate::quant::{Packed, Scheme};

    #[test]
    fn each_scheme_comes_back_within_its_bound_at_odd_sizes() {
        let sizes = [(1, 1), (3, 5), (15, 31), (16, 32), (17, 33), (40, 100), (33, 65)];
        for (rows, cols) in some(sizes, 4) {
            let values = noise(rows * cols, (rows * 1000 + cols) as u64);
            for scheme in Scheme::ALL {
                let packed = Packed::pack(scheme, rows, cols, &values).unwrap();
                let back = packed.view().dequantize();
                for (row, (w, b)) in values.chunks(cols).zip(back.chunks(cols)).enumerate() {
                    let len = block_len(scheme);
                    for (block, (w, b)) in w.chunks(len).zip(b.chunks(len)).enumerate() {
                        let max = w.iter().fold(0f32, |m, v| m.max(v.abs()));
                        let bound = match scheme {
                            Scheme::Q8 | Scheme::Q8Wide => max / 127.0 * 0.5 * 1.005,
                            // The search may clip the largest weight for the sake of the others.
                            Scheme::Q4 => max * 0.25,
                            Scheme::F16 => max / 2048.0,
                            Scheme::F32 => 0.0,
                        };
                        for (w, b) in w.iter().zip(b) {
                            let off = (w - b).abs();
                            let name = scheme.name();
                            assert!(off <= bound, "{name} {row} {block}: {w} became {b}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_q4_search_beats_the_largest_weight_over_7() {
        let values = noise(64 * 256, 7);
        let back = Packed::pack(Scheme::Q4, 64, 256, &values).unwrap().view().dequantize();
        let error: f32 = values.iter().zip(&back).map(|(a, b)| (a - b) * (a - b)).sum();
        let mut plain = 0.0;
        for w in values.chunks(BLOCK) {
            let scale = w.iter().fold(0f32, |m, v| m.max(v.abs())) / 7.0;
            plain += w.iter().map(|w| (w - (w / scale).round() * scale).powi(2)).sum::<f32>();
        }
        assert!(error < 0.85 * plain, "{error} against {plain}");
    }

    #[test]
    fn integers_are_kept_exactly() {
        let (rows, cols) = (19, 45);
        let ints: Vec<i8> = (0..rows * cols).map(|i| (i * 37 % 256) as u8 as i8).collect();
        let scales: Vec<f32> = (0..rows).map(|r| (r as f32 - 9.0) / 64.0).collect();
        for scheme in [Scheme::Q8, Scheme::Q8Wide] {
            let pack =
                |ints: &[i8], scales: &[f32]| Packed::pack_int8(scheme, [rows, cols], ints, scales);
            let back = pack(&ints, &scales).unwrap().view().dequantize();
            for (i, (q, b)) in ints.iter().zip(&back).enumerate() {
                assert_eq!(f32::from(*q) * scales[i / cols], *b);
            }
            let one = pack(&ints, &[0.25]).unwrap().view().dequantize();
            assert_eq!(one[5], f32::from(ints[5]) * 0.25);
            for bad in [f32::NAN, f32::INFINITY, 1e6, 1e-7] {
                assert!(pack(&ints, &[bad]).is_err(), "{bad}");
            }
            assert!(pack(&ints, &[1.0; 3]).is_err());
            assert!(pack(&ints[1..], &[1.0]).is_err());
        }
    }

    #[test]
    fn what_f16_cannot_hold_is_named() {
        for scheme in [Scheme::Q8, Scheme::Q8Wide, Scheme::Q4, Scheme::F16] {
            for bad in [1e30, -1e30, 1e-12] {
                let mut values = vec![0.0; 3 * 70];
                values[2 * 70 + 40] = bad;
                let e = Packed::pack(scheme, 3, 70, &values).unwrap_err();
                assert!(e.message().contains("row 2, column"), "{e}");
                assert!(Packed::pack(Scheme::F32, 3, 70, &values).is_ok());
            }
        }
        let e = Packed::pack(Scheme::F32, 1, 2, &[0.0, f32::NAN]).unwrap_err();
        assert_eq!(e.message(), "weight at row 0, column 1 is NaN");
        assert!(Packed::pack(Scheme::F32, 1, 2, &[0.0; 3]).is_err());
    }

    #[test]
    fn tiny_blocks_beside_large_ones_are_packed_to_half_the_smallest_scale() {
        for scheme in [Scheme::Q8, Scheme::Q8Wide, Scheme::Q4] {
            let mut values = noise(4 * 64, 3);
            for (i, v) in values.iter_mut().enumerate() {
                *v *= [1.0, 1e-4, 1e-6, 1e-9][i / 64];
            }
            let back = Packed::pack(scheme, 4, 64, &values).unwrap().view().dequantize();
            for (i, (v, b)) in values.iter().zip(&back).enumerate() {
                let bound = [0.25, 0.25e-4, 0.25e-6, 1.0 / (1 << 25) as f32][i / 64];
                assert!((v - b).abs() <= bound, "{v:e} became {b:e}");
            }
        }
    }
}
