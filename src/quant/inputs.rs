//! Rows that several products read: quantized once.

use super::PackedRef;
use super::change::{Operand, Update};
use super::dispatch::kernels;
use super::kernels::{Kernels, Quantized};
use super::low_rank::Room;
use super::threads::piece;

/// x\[M, cols\] for products with several matrices. The results have the bits that
/// [`product`](super::product) gives.
pub struct Inputs<'a> {
    kernels: &'static Kernels,
    x: &'a [f32],
    cols: usize,
    /// Where values are held between 0 and a bound, that bound.
    bound: Option<f32>,
    /// For each size of block that was asked for.
    quantized: Vec<Quantized>,
    room: Room,
}

impl<'a> Inputs<'a> {
    /// More rows than this don't stay in the cache between products.
    pub const MAX_ROWS: usize = 256;

    /// Rows of `cols` values.
    ///
    /// # Panics
    /// If x is not whole rows.
    pub fn new(x: &'a [f32], cols: usize) -> Inputs<'a> {
        Inputs::with(kernels(), x, cols)
    }

    /// Rows of `cols` values, of which each is taken for 0 below 0, for `bound` above that, else for the
    /// nearest of 255 values between, for products that [`takes_bounded`](Change::takes_bounded) names.
    /// NaN gives rows of NaN.
    ///
    /// # Panics
    /// If x is not whole rows.
    pub fn bounded(x: &'a [f32], cols: usize, bound: f32) -> Inputs<'a> {
        Inputs { bound: Some(bound), ..Inputs::new(x, cols) }
    }

    pub(super) fn with(kernels: &'static Kernels, x: &'a [f32], cols: usize) -> Inputs<'a> {
        assert!(x.is_empty() || x.len().is_multiple_of(cols.max(1)), "x is whole rows");
        Inputs { kernels, x, cols, bound: None, quantized: vec![], room: Room::default() }
    }

    /// Rows that are best computed together where `threads` share `rows` of them; at most
    /// [`Inputs::MAX_ROWS`].
    pub(crate) fn stretch(threads: usize, rows: usize) -> usize {
        match threads {
            1 => Inputs::MAX_ROWS,
            _ => piece(threads, rows).min(Inputs::MAX_ROWS),
        }
    }

    /// As [`product`](super::product) of x, plus the updates of rows, which follow each other. Where x is
    /// bounded, `bias` has the [`bounded_shift`] of W in it.
    ///
    /// # Panics
    /// If W doesn't take x as it is, if the lengths don't belong to one M, or an update doesn't fit.
    pub fn product(
        &mut self,
        w: PackedRef<'_>,
        bias: Option<&[f32]>,
        updates: &[Update<'_>],
        y: &mut [f32],
    ) {
        if !self.kernels.quantizes(w) {
            assert!(self.bound.is_none(), "W takes no bounded values");
            let x = Operand { quantized: None, floats: self.x };
            return self.room.changed(self.kernels, (w, bias), x, updates, y);
        }
        let known = self.quantized.iter().position(|q| q.fits(w));
        let at = known.unwrap_or_else(|| {
            let mut fresh = Quantized::empty(w.scheme(), self.cols);
            match self.bound {
                Some(bound) => {
                    self.kernels.quantize_bounded(self.x, self.cols, bound, &mut fresh);
                }
                None => self.kernels.quantize(self.x, self.cols, &mut fresh),
            }
            self.quantized.push(fresh);
            self.quantized.len() - 1
        });
        let x = Operand { quantized: self.quantized.get(at), floats: self.x };
        let taken = self.bound.is_none() || updates.iter().all(|u| u.change.takes_bounded());
        assert!(taken, "an update takes no bounded values");
        self.room.changed(self.kernels, (w, bias), x, updates, y);
    }
}

/// Whether products with `w` take [`Inputs::bounded`].
pub fn takes_bounded(w: PackedRef<'_>) -> bool {
    kernels().quantizes(w)
}

/// What the bias of a product with [`Inputs::bounded`] has to hold beside itself: their integers lie around
/// the middle of the values.
pub fn bounded_shift(w: PackedRef<'_>, bound: f32) -> Vec<f32> {
    let middle = f64::from(Quantized::middle_of(bound));
    let mut row = vec![0.0; w.cols()];
    let shift = (0..w.rows()).map(|r| {
        w.row(r, &mut row);
        (row.iter().map(|v| f64::from(*v)).sum::<f64>() * middle) as f32
    });
    shift.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::testing::{noise, some};
    use crate::quant::{Change, LowRank, Packed, Scheme, product};

    #[test]
    fn products_of_shared_inputs_have_the_same_bits() {
        for m in [1, 3, 17, 300] {
            let x = noise(m * 70, 1);
            let mut inputs = Inputs::new(&x, 70);
            for (scheme, rows) in
                [(Scheme::Q8, 33), (Scheme::Q4, 20), (Scheme::Q8Wide, 17), (Scheme::F32, 5)]
            {
                let w = Packed::pack(scheme, rows, 70, &noise(rows * 70, 2)).unwrap();
                let bias = noise(rows, 3);
                let (mut want, mut got) = (vec![0.0; m * rows], vec![0.0; m * rows]);
                product(w.view(), &x, Some(&bias), &mut want);
                inputs.product(w.view(), Some(&bias), &[], &mut got);
                assert_eq!(want, got);
            }
        }
    }

    /// The definition, in f64, of one row: integers of one scale around the middle, NaN where one is.
    fn slow_bounded(x: &[f32], bound: f32) -> Vec<f64> {
        let steps = 254.0 / bound;
        let value = |v: &f32| {
            let q = (f64::from((v * steps).clamp(0.0, 254.0)).round_ties_even() as i32 - 127) as i8;
            (f64::from(q) + 127.0) * f64::from(bound / 254.0)
        };
        let nan = x.iter().any(|v| v.is_nan());
        x.iter().map(|v| if nan { f64::NAN } else { value(v) }).collect()
    }

    /// Weights in steps of 1/64, of which the largest of each block is 127 steps: each row has one scale.
    fn of_one_scale(rows: usize, cols: usize) -> Vec<f32> {
        let steps = noise(rows * cols, 2).into_iter().enumerate();
        let step = |(i, v): (usize, f32)| match i % cols % 32 {
            0 => 127.0 - 254.0 * ((i / cols) % 2) as f32,
            _ => (v * 127.0).round().clamp(-127.0, 127.0),
        };
        steps.map(|v| step(v) / 64.0).collect()
    }

    #[test]
    fn bounded_values_are_multiplied_as_the_definition_says() {
        let sizes =
            [(1, 16, 5), (3, 31, 16), (7, 96, 33), (13, 144, 24), (9, 145, 40), (20, 240, 48)];
        for (m, cols, rows) in some(sizes, 3) {
            for (scheme, one_scale) in [
                (Scheme::Q8, false),
                (Scheme::Q8, true),
                (Scheme::Q8Wide, false),
                (Scheme::Q8Wide, true),
                (Scheme::Q4, false),
            ] {
                let values = match one_scale {
                    true => of_one_scale(rows, cols),
                    false => noise(rows * cols, 3),
                };
                let packed = Packed::pack(scheme, rows, cols, &values).unwrap();
                let found = packed.view().find_row_scales();
                assert!(found || !one_scale, "{scheme:?} {cols}");
                let w = packed.view().with_row_scales(found);
                let rank = 5;
                let (a, b) = (noise(rank * cols, 4), noise(rows * rank, 5));
                let low_rank = LowRank::new(scheme, rank, [cols, rows], &a, &b).unwrap();
                let (change, bound) = (Change::from(low_rank), 0.75);
                let updates = [Update { rows: m / 2..m, change: &change }];
                let bias = noise(rows, 6);
                let shift = bounded_shift(w, bound);
                let shifted: Vec<f32> = bias.iter().zip(&shift).map(|(b, s)| b + s).collect();
                let mut x = noise(m * cols, 7);
                x[cols - 1] = 0.7499;
                if m > 2 {
                    x[2 * cols + cols / 2] = f32::NAN;
                    x[cols] = f32::INFINITY;
                }
                let weights = w.dequantize();
                let mut first: Option<Vec<u32>> = None;
                for k in Kernels::available().filter(|k| k.quantizes(w)) {
                    let mut y = vec![0.0; m * rows];
                    let mut inputs = Inputs { bound: Some(bound), ..Inputs::with(k, &x, cols) };
                    inputs.product(w, Some(&shifted), &updates, &mut y);
                    for (i, y) in y.iter().enumerate() {
                        let (row, o) = (i / rows, i % rows);
                        let x = slow_bounded(&x[row * cols..(row + 1) * cols], bound);
                        let dot = |w: &[f32]| -> f64 {
                            x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum()
                        };
                        let mut want = f64::from(bias[o]) + dot(&weights[o * cols..(o + 1) * cols]);
                        for r in 0..if row >= m / 2 { rank } else { 0 } {
                            want += dot(&a[r * cols..(r + 1) * cols]) * f64::from(b[o * rank + r]);
                        }
                        assert_eq!(y.is_nan(), want.is_nan(), "{} {scheme:?} {row}", k.name);
                        let off = (f64::from(*y) - want).abs();
                        let what =
                            format!("{} {scheme:?} {cols} {row} {o}: {y}, not {want}", k.name);
                        assert!(want.is_nan() || off < 2e-4 * cols as f64 / 16.0, "{what}");
                    }
                    let bits = y.iter().map(|v| if v.is_nan() { 0 } else { v.to_bits() }).collect();
                    assert_eq!(first.get_or_insert_with(|| Vec::clone(&bits)), &bits, "{}", k.name);
                }
            }
        }
    }

    #[test]
    fn rows_of_several_scales_are_told_from_rows_of_one() {
        let mut values = of_one_scale(17, 96);
        let found = |values: &[f32], scheme| {
            Packed::pack(scheme, 17, 96, values).unwrap().view().find_row_scales()
        };
        assert!(found(&values, Scheme::Q8) && found(&values, Scheme::Q8Wide));
        assert!(!found(&values, Scheme::Q4) && !found(&values, Scheme::F16));
        values[16 * 96 + 64] = 3.0;
        assert!(!found(&values, Scheme::Q8) && !found(&values, Scheme::Q8Wide));
    }
}
