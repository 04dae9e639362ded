//! The lengths of a matrix's rows.

use super::{PackedRef, product};

/// ‖W‖² of each row.
pub fn row_squares(w: PackedRef<'_>) -> Vec<f32> {
    let mut row = vec![0.0; w.cols()];
    let square = |at: usize| {
        w.row(at, &mut row);
        row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() as f32
    };
    (0..w.rows()).map(square).collect()
}

/// ‖W + b·a‖ of each row, with [`row_squares`] of W, `a` (R, cols) and `b` (rows, R) row-major; R may be
/// 0. As ‖W‖² + 2·b·(a·Wᵀ) + b·(a·aᵀ)·bᵀ, which takes a product of R rows.
///
/// # Panics
/// If lengths don't fit.
pub fn row_norms(w: PackedRef<'_>, squares: &[f32], a: &[f32], b: &[f32]) -> Vec<f32> {
    let (rows, cols) = (w.rows(), w.cols());
    let rank = a.len().checked_div(cols).unwrap_or(0);
    assert_eq!((a.len(), b.len()), (rank * cols, rank * rows), "a and b have one rank");
    assert_eq!(squares.len(), rows, "a square a row");
    let mut cross = vec![0.0; rank * rows];
    product(w.keeping_inputs(), a, None, &mut cross);
    let line = |r: usize| &a[r * cols..(r + 1) * cols];
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let gram: Vec<f64> = (0..rank * rank).map(|i| dot(line(i / rank), line(i % rank))).collect();
    let norm = |at: usize| {
        let b = &b[at * rank..(at + 1) * rank];
        let mut sum = f64::from(squares[at]);
        for (r, x) in b.iter().enumerate() {
            let inner: f64 = b.iter().zip(&gram[r * rank..]).map(|(y, g)| f64::from(*y) * g).sum();
            sum += f64::from(*x) * (2.0 * f64::from(cross[r * rows + at]) + inner);
        }
        sum.max(0.0).sqrt() as f32
    };
    (0..rows).map(norm).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::testing::noise;
    use crate::quant::{Packed, Scheme};

    #[test]
    fn it_is_the_length_of_each_row_of_the_sum() {
        let (rows, cols) = (19, 37);
        for scheme in Scheme::ALL {
            let w = Packed::pack(scheme, rows, cols, &noise(rows * cols, 1)).unwrap();
            let held = w.view().dequantize();
            let squares = row_squares(w.view());
            for rank in [0, 1, 3] {
                let (a, b) = (noise(rank * cols, 2), noise(rows * rank, 3));
                for (o, found) in row_norms(w.view(), &squares, &a, &b).into_iter().enumerate() {
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
}
