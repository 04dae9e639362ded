//! The lengths of a matrix's rows.

use super::PackedRef;

/// ‖W + b·a‖ of each row, with `a` (R, cols) and `b` (rows, R) row-major; R may be 0.
///
/// # Panics
/// If lengths don't fit.
pub fn row_norms(w: PackedRef<'_>, a: &[f32], b: &[f32]) -> Vec<f32> {
    let cols = w.cols();
    let rank = a.len().checked_div(cols).unwrap_or(0);
    assert_eq!((a.len(), b.len()), (rank * cols, rank * w.rows()), "a and b have one rank");
    let mut row = vec![0.0; cols];
    let norm = |at: usize| {
        w.row(at, &mut row);
        for (r, b) in b[at * rank..(at + 1) * rank].iter().enumerate() {
            let a = &a[r * cols..(r + 1) * cols];
            row.iter_mut().zip(a).for_each(|(v, a)| *v += b * a);
        }
        row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32
    };
    (0..w.rows()).map(norm).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::testing::noise;
    use crate::quant::{Packed, Scheme};

    #[test]
    fn it_is_the_length_of_each_row_of_the_sum() {
        let (rows, cols) = (19, 37);
        let w = Packed::pack(Scheme::Q8, rows, cols, &noise(rows * cols, 1)).unwrap();
        let held = w.view().dequantize();
        for rank in [0, 1, 3] {
            let (a, b) = (noise(rank * cols, 2), noise(rows * rank, 3));
            for (o, found) in row_norms(w.view(), &a, &b).into_iter().enumerate() {
                let mut square = 0.0;
                for c in 0..cols {
                    let product = (0..rank).map(|r| b[o * rank + r] * a[r * cols + c]);
                    square += f64::from(held[o * cols + c] + product.sum::<f32>()).powi(2);
                }
                assert!((f64::from(found) - square.sqrt()).abs() < 1e-5);
            }
        }
    }
}
