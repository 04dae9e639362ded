//! 4-bit weights for the inputs that a layer sees: the error that rounding one column makes in the outputs is made
//! up for by the columns that are rounded after it (GPTQ, arXiv 2210.17323, with its columns in the order of
//! their inputs' size, and scales fixed before).

use super::dense::{ContractedAxis, contract};
use super::encode::q4_scale;
use super::layout::BLOCK;
use half::f16;

/// What is added to the diagonal, of its mean: few inputs say little of many directions.
const DAMPING: f32 = 0.1;
/// The part of the products between columns that is not believed, for the same reason.
const DISBELIEF: f32 = 0.2;
/// Sums are in so many lanes.
const LANES: usize = 16;

/// How the errors of a layer's columns work together on its outputs.
pub(crate) struct InputMoments {
    /// By column, its mean square, damped.
    importance: Vec<f32>,
    /// The columns as they are rounded: large inputs first.
    order: Vec<usize>,
    /// (cols, cols) in that order: what the error of a weight in column s adds to the weight in column t, for s < t.
    feedback: Vec<f32>,
}

impl InputMoments {
    /// Of rows of inputs, row-major (rows, cols). `None` where they say nothing: all zero, or not finite.
    pub(crate) fn of(x: &[f32], cols: usize) -> Option<InputMoments> {
        let rows = x.len().checked_div(cols)?;
        let mut sums = vec![0f32; cols * cols];
        let axis = |len, strides| ContractedAxis { len, strides };
        let axes = [axis(rows, [cols, cols, 0]), axis(cols, [1, 0, cols]), axis(cols, [0, 1, 1])];
        contract(&axes, x, x, &mut sums);
        let diagonal = |sums: &[f32], i: usize| sums[i * cols + i];
        let mean = (0..cols).map(|i| diagonal(&sums, i)).sum::<f32>() / cols as f32;
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        let importance: Vec<f32> = (0..cols).map(|i| diagonal(&sums, i) / mean + DAMPING).collect();
        let mut order: Vec<usize> = (0..cols).collect();
        order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]));
        // The last of these is rounded first.
        let mut lower = vec![0f32; cols * cols];
        let believed = (1.0 - DISBELIEF) / mean;
        for i in 0..cols {
            let from = order[cols - 1 - i];
            for j in 0..i {
                lower[i * cols + j] = sums[from * cols + order[cols - 1 - j]] * believed;
            }
            lower[i * cols + i] = importance[from];
        }
        drop(sums);
        factorize(&mut lower, cols)?;
        let mut feedback = vec![0f32; cols * cols];
        for i in 0..cols {
            for j in 0..i {
                let (s, t) = (cols - 1 - i, cols - 1 - j);
                feedback[s * cols + t] = lower[i * cols + j] / lower[j * cols + j];
            }
        }
        Some(InputMoments { importance, order, feedback })
    }

    /// The number of columns.
    pub(crate) fn cols(&self) -> usize {
        self.order.len()
    }

    /// The scales of `values` by row and block of 32, and the integers by row and column, -8..=7.
    pub(super) fn quantize_q4(&self, values: &[f32]) -> (Vec<f16>, Vec<i8>) {
        let cols = self.cols();
        let (rows, blocks) = (values.len() / cols.max(1), cols.div_ceil(BLOCK));
        let mut scales = Vec::with_capacity(rows * blocks);
        for row in values.chunks_exact(cols) {
            let each = row.chunks(BLOCK).zip(self.importance.chunks(BLOCK));
            scales.extend(each.map(|(values, importance)| q4_scale(values, importance)));
        }
        let mut quants = vec![0i8; values.len()];
        // In the columns' order: what the errors so far add.
        let mut carried = vec![0f32; values.len()];
        let (mut errors, mut added) = (vec![0f32; rows * BLOCK], vec![0f32; values.len()]);
        for first in (0..cols).step_by(BLOCK) {
            let (count, rest) = (BLOCK.min(cols - first), cols.saturating_sub(first + BLOCK));
            for row in 0..rows {
                let errors = &mut errors[row * BLOCK..][..count];
                for t in 0..count {
                    let column = self.order[first + t];
                    let feedback = |s: usize| self.feedback[(first + s) * cols + first + t];
                    let here: f32 = (0..t).map(|s| errors[s] * feedback(s)).sum();
                    let value = values[row * cols + column];
                    let scale = scales[row * blocks + column / BLOCK].to_f32();
                    let wanted = value + carried[row * cols + first + t] + here;
                    let q = match scale == 0.0 {
                        true => 0.0,
                        false => (wanted / scale).round_ties_even().clamp(-8.0, 7.0),
                    };
                    quants[row * cols + column] = q as i8;
                    errors[t] = value - q * scale;
                }
            }
            if rest == 0 {
                break;
            }
            let axis = |len, strides| ContractedAxis { len, strides };
            let axes =
                [axis(count, [1, cols, 0]), axis(rows, [BLOCK, 0, rest]), axis(rest, [0, 1, 1])];
            let added = &mut added[..rows * rest];
            contract(&axes, &errors, &self.feedback[first * cols + first + BLOCK..], added);
            for (carried, added) in carried.chunks_exact_mut(cols).zip(added.chunks_exact(rest)) {
                let carried = &mut carried[first + BLOCK..];
                carried.iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
            }
        }
        (scales, quants)
    }
}

/// The lower Cholesky factor of a symmetric (n, n), of which the lower half is read, in its place. `None` where it
/// isn't positive definite.
fn factorize(a: &mut [f32], n: usize) -> Option<()> {
    for i in 0..n {
        let (before, row) = a.split_at_mut(i * n);
        for j in 0..i {
            let above = &before[j * n..][..=j];
            row[j] = (row[j] - dot(&row[..j], &above[..j])) / above[j];
        }
        let square = row[i] - dot(&row[..i], &row[..i]);
        if !(square.is_finite() && square > 0.0) {
            return None;
        }
        row[i] = square.sqrt();
    }
    Some(())
}

/// In lanes, so that it is vectorised; their number is part of the result.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::testing::noise;
    use crate::quant::{Packed, Scheme};

    /// Rows of `cols` inputs of which few directions and columns are large.
    fn inputs(rows: usize, cols: usize) -> Vec<f32> {
        let (hidden, mix, own) = (noise(rows * 8, 1), noise(8 * cols, 2), noise(rows * cols, 3));
        let value = |i: usize| {
            let (row, col) = (i / cols, i % cols);
            let mixed: f32 = (0..8).map(|h| hidden[row * 8 + h] * mix[h * cols + col]).sum();
            (mixed + 0.2 * own[i]) * if col % 17 == 3 { 6.0 } else { 1.0 }
        };
        (0..rows * cols).map(value).collect()
    }

    /// Σ (x · (w - back)ᵀ)² over rows of x.
    fn harm(x: &[f32], w: &[f32], back: &[f32], cols: usize) -> f64 {
        let mut sum = 0.0;
        for x in x.chunks(cols) {
            for (w, b) in w.chunks(cols).zip(back.chunks(cols)) {
                let off = |i: usize| f64::from(x[i]) * f64::from(w[i] - b[i]);
                sum += (0..cols).map(off).sum::<f64>().powi(2);
            }
        }
        sum
    }

    #[test]
    fn what_seen_inputs_ask_for_turns_unseen_outputs_less() {
        for (rows, cols) in [(24, 96), (17, 70), (40, 33)] {
            let x = inputs(400, cols);
            let (seen, unseen) = x.split_at(300 * cols);
            let w = noise(rows * cols, 9);
            let moments = InputMoments::of(seen, cols).unwrap();
            let plain = Packed::pack(Scheme::Q4, rows, cols, &w).unwrap().view().dequantize();
            let made = Packed::pack_q4_for(rows, cols, &w, &moments).unwrap().view().dequantize();
            let (before, after) = (harm(unseen, &w, &plain, cols), harm(unseen, &w, &made, cols));
            assert!(after < 0.4 * before, "({rows}, {cols}): {after} of {before}");
        }
    }

    /// The textbook's way: after each column, the others move by the inverse of the moments of those that are left.
    #[test]
    fn errors_are_made_up_for_as_the_inverse_says() {
        let (cols, rows) = (40, 3);
        let x = inputs(200, cols);
        let w = noise(rows * cols, 5);
        let moments = InputMoments::of(&x, cols).unwrap();
        let (scales, quants) = moments.quantize_q4(&w);
        let mean_square = |i: usize, j: usize| -> f64 {
            x.chunks(cols).map(|x| f64::from(x[i]) * f64::from(x[j])).sum()
        };
        let mean = (0..cols).map(|i| mean_square(i, i)).sum::<f64>() / cols as f64;
        let h = |i: usize, j: usize| match i == j {
            true => mean_square(i, i) / mean + f64::from(DAMPING),
            false => mean_square(i, j) / mean * f64::from(1.0 - DISBELIEF),
        };
        let mut agree = 0;
        for row in 0..rows {
            let mut left: Vec<f64> =
                w[row * cols..][..cols].iter().map(|v| f64::from(*v)).collect();
            for (t, &column) in moments.order.iter().enumerate() {
                let scale = f64::from(scales[row * cols.div_ceil(BLOCK) + column / BLOCK].to_f32());
                let q = (left[column] / scale).round_ties_even().clamp(-8.0, 7.0);
                agree += usize::from(q as i8 == quants[row * cols + column]);
                // Those behind take the step that makes Σ over them least: H_rr · d = -H_rc · e.
                let rest = &moments.order[t + 1..];
                let error = q * scale - left[column];
                let moved = solve(rest, &h, |r| -h(r, column) * error);
                rest.iter().zip(moved).for_each(|(&r, by)| left[r] += by);
            }
        }
        // A tie of rounding in f32 may fall to either side.
        assert!(agree + 2 >= rows * cols, "{agree} of {}", rows * cols);
    }

    /// H_rr · d = b by elimination.
    fn solve(
        rest: &[usize],
        h: &impl Fn(usize, usize) -> f64,
        b: impl Fn(usize) -> f64,
    ) -> Vec<f64> {
        let n = rest.len();
        let mut a: Vec<Vec<f64>> =
            rest.iter().map(|&r| rest.iter().map(|&c| h(r, c)).chain([b(r)]).collect()).collect();
        for i in 0..n {
            for j in 0..n {
                let by = a[j][i] / a[i][i];
                if j != i {
                    let taken: Vec<f64> = a[i].iter().map(|v| by * v).collect();
                    a[j].iter_mut().zip(taken).for_each(|(v, taken)| *v -= taken);
                }
            }
        }
        (0..n).map(|i| a[i][n] / a[i][i]).collect()
    }

    #[test]
    fn inputs_that_say_nothing_give_none() {
        assert!(InputMoments::of(&[], 4).is_none());
        assert!(InputMoments::of(&[0.0; 8], 4).is_none());
        assert!(InputMoments::of(&[1.0, f32::NAN, 0.0, 0.0], 4).is_none());
        assert!(InputMoments::of(&[1.0], 0).is_none());
        // Weights that are all zero stay zero, whatever the inputs.
        let moments = InputMoments::of(&inputs(50, 64), 64).unwrap();
        let made = Packed::pack_q4_for(2, 64, &[0.0; 128], &moments).unwrap();
        assert_eq!(made.view().dequantize(), vec![0.0; 128]);
    }
}
