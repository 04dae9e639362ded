//! The products over a packed matrix, both directions.

use super::PackedRef;
use super::dispatch::kernels;
use super::kernels::{Job, Kernels, Start};

/// y\[M, rows\] = x\[M, cols\] · Wᵀ, plus `bias` (rows values) if given. M is what `y` holds. Every
/// output is summed in the order of the columns from its bias on, so a row's result has the same bits
/// whatever the other rows of the batch.
///
/// # Panics
/// If the lengths don't belong to one M.
pub fn product(w: PackedRef<'_>, x: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    product_with(kernels(), w, x, bias.map_or(Start::Zero, Start::Bias), y);
}

/// dx\[M, cols\] = dy\[M, rows\] · W: the same bytes, the other direction, with the same promise.
///
/// # Panics
/// If the lengths don't belong to one M.
pub fn product_transposed(w: PackedRef<'_>, dy: &[f32], dx: &mut [f32]) {
    transposed_with(kernels(), w, dy, dx);
}

fn product_with(k: &Kernels, w: PackedRef<'_>, x: &[f32], start: Start<'_>, y: &mut [f32]) {
    k.product(&mut Job { w, x, start, y });
}

fn transposed_with(k: &Kernels, w: PackedRef<'_>, dy: &[f32], dx: &mut [f32]) {
    k.product_transposed(&mut Job { w, x: dy, start: Start::Zero, y: dx });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::layout::block_len;
    use crate::quant::testing::{noise, on_the_grid, some};
    use crate::quant::{Packed, Scheme};

    /// Sizes just past the edges of tiles, panels, blocks and chunks.
    fn sizes() -> Vec<(usize, usize, usize)> {
        let mut sizes = Vec::new();
        for m in [1, 2, 3, 5, 7, 8, 9, 17] {
            for (rows, cols) in
                [(1, 1), (8, 31), (16, 32), (17, 33), (31, 65), (40, 300), (20, 128)]
            {
                sizes.push((m, rows, cols));
            }
        }
        sizes.extend([(4, 300, 40), (3, 600, 33), (2, 33, 600), (1, 64, 520), (65, 48, 16)]);
        sizes
    }

    /// The slow triple loop, in f64, with the sum of magnitudes that bounds the rounding.
    fn slow(w: &[f32], cols: usize, x: &[f32], transposed: bool) -> Vec<(f64, f64)> {
        let rows = w.len() / cols;
        let (from, to) = if transposed { (rows, cols) } else { (cols, rows) };
        let mut out = Vec::new();
        for x in x.chunks(from) {
            for o in 0..to {
                let (mut sum, mut size) = (0.0, 0.0);
                for (i, x) in x.iter().enumerate() {
                    let w = if transposed { w[i * cols + o] } else { w[o * cols + i] };
                    let term = f64::from(*x) * f64::from(w);
                    sum += term;
                    size += term.abs();
                }
                out.push((sum, size));
            }
        }
        out
    }

    /// Summing `terms` products one after the other is off by at most terms · 2⁻²⁴ of the sum of
    /// their magnitudes (and of the bias, at most 1).
    fn close(got: &[f32], want: &[(f64, f64)], terms: usize, what: &str) {
        assert_eq!(got.len(), want.len());
        for (i, (g, (w, size))) in got.iter().zip(want).enumerate() {
            let bound = (terms + 2) as f64 * 6e-8 * (size + 1.0);
            assert!((f64::from(*g) - w).abs() <= bound, "{what} [{i}]: {g} for {w}");
        }
    }

    #[test]
    fn every_kernel_agrees_with_the_triple_loop() {
        for scheme in Scheme::ALL {
            for (m, rows, cols) in some(sizes(), 14) {
                let packed = Packed::pack(scheme, rows, cols, &noise(rows * cols, 1)).unwrap();
                let (w, view) = (packed.view().dequantize(), packed.view());
                let (x, dy, bias) = (noise(m * cols, 2), noise(m * rows, 3), noise(rows, 4));
                let back = slow(&w, cols, &dy, true);
                for k in Kernels::available() {
                    let quantized = k.quantizes(view);
                    let plain = match quantized {
                        true => slow(&w, cols, &on_the_grid(&x, cols, block_len(scheme)), false),
                        false => slow(&w, cols, &x, false),
                    };
                    let mut biased = plain.clone();
                    let add = |(i, v): (usize, &mut (f64, f64))| v.0 += f64::from(bias[i % rows]);
                    biased.iter_mut().enumerate().for_each(add);
                    let what = format!("{} {} {m}x{rows}x{cols}", k.name, scheme.name());
                    let mut y = vec![f32::NAN; m * rows];
                    product_with(k, view, &x, Start::Zero, &mut y);
                    close(&y, &plain, cols, &what);
                    product_with(k, view.keeping_inputs(), &x, Start::Zero, &mut y);
                    close(&y, &slow(&w, cols, &x, false), cols, &what);
                    product_with(k, view, &x, Start::Bias(&bias), &mut y);
                    close(&y, &biased, cols, &what);
                    let mut y: Vec<f32> = bias.iter().copied().cycle().take(m * rows).collect();
                    product_with(k, view, &x, Start::Keep, &mut y);
                    close(&y, &biased, cols, &what);
                    let mut dx = vec![f32::NAN; m * cols];
                    transposed_with(k, view, &dy, &mut dx);
                    close(&dx, &back, rows, &what);
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_in_every_batch_and_with_every_fused_kernel() {
        let (rows, cols, most) = (70, 530, 300);
        for scheme in Scheme::ALL {
            let packed = Packed::pack(scheme, rows, cols, &noise(rows * cols, 1)).unwrap();
            let (x, dy) = (noise(most * cols, 2), noise(most * rows, 3));
            let bias = noise(rows, 4);
            let mut fused: Option<(Vec<f32>, Vec<f32>)> = None;
            for k in Kernels::available() {
                let forward = |m: usize, first: usize| {
                    let mut y = vec![f32::NAN; m * rows];
                    let x = &x[first * cols..][..m * cols];
                    product_with(k, packed.view(), x, Start::Bias(&bias), &mut y);
                    y
                };
                let back = |m: usize, first: usize| {
                    let mut dx = vec![f32::NAN; m * cols];
                    transposed_with(k, packed.view(), &dy[first * rows..][..m * rows], &mut dx);
                    dx
                };
                let all = (forward(most, 0), back(most, 0));
                for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 29, 257] {
                    for first in [0, most - m] {
                        let name = (k.name, scheme.name(), m);
                        assert!(forward(m, first) == all.0[first * rows..][..m * rows], "{name:?}");
                        assert!(back(m, first) == all.1[first * cols..][..m * cols], "{name:?}");
                    }
                }
                if k.name != "portable" {
                    assert!(fused.get_or_insert_with(|| all.clone()) == &all, "{}", k.name);
                }
            }
        }
    }

    #[test]
    fn nothing_in_gives_the_start() {
        for k in Kernels::available() {
            for scheme in Scheme::ALL {
                let packed = Packed::pack(scheme, 3, 0, &[]).unwrap();
                let mut y = vec![f32::NAN; 6];
                product_with(k, packed.view(), &[], Start::Bias(&[1.0, 2.0, 3.0]), &mut y);
                assert_eq!(y, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
                transposed_with(k, packed.view(), &[0.0; 3], &mut []);
                let packed = Packed::pack(scheme, 0, 3, &[]).unwrap();
                product_with(k, packed.view(), &[0.0; 3], Start::Zero, &mut []);
                let mut dx = vec![f32::NAN; 3];
                transposed_with(k, packed.view(), &[], &mut dx);
                assert_eq!(dx, [0.0; 3]);
                let packed = Packed::pack(scheme, 3, 3, &[1.0; 9]).unwrap();
                product_with(k, packed.view(), &[], Start::Zero, &mut []);
            }
        }
    }

    #[test]
    #[should_panic(expected = "x has as many rows as y")]
    fn lengths_of_different_batches_are_a_fault() {
        let packed = Packed::pack(Scheme::Q8, 3, 5, &[0.0; 15]).unwrap();
        product(packed.view(), &[0.0; 10], None, &mut [0.0; 3]);
    }
}
