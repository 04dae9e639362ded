//! A head that takes samples in and out, one at a time.

use super::fit::Fitted;
use super::matrix::{Symmetric, add, dot};
use super::rule::{Rule, Sums};
use crate::error::{Error, Result};

/// Widest features that it keeps: A⁻¹ takes 4·width² bytes.
pub const MOST_WIDTH: usize = 2048;

/// A⁻¹ and the sums of the samples so far, under the rule, λ and scale of a fit. Takes 4·width² bytes
/// (590 KB of 384 features) and a few rows an output.
#[derive(Clone, Debug)]
pub struct Live {
    made: Fitted,
    inverse: Symmetric,
    sums: Sums,
}

impl Live {
    /// Of the samples that `made` was fitted on, or others.
    ///
    /// # Errors
    /// Unsupported: more than 2048 features. Failed: features that are not finite.
    pub fn new(made: Fitted, rows: &[Vec<f32>], y: &[Vec<f32>]) -> Result<Live> {
        let width = made.standard.mean.len();
        if width > MOST_WIDTH {
            return Err(Error::unsupported(format!(
                "{width} features are too many to take in sample by sample, at most {MOST_WIDTH} are"
            )));
        }
        let outputs = y.first().map_or(made.bias.len(), Vec::len);
        let mut sums = Sums::empty(width, outputs);
        let mut scatter = Symmetric::zeros(width);
        for (row, y) in rows.iter().zip(y) {
            let z = made.standard.row(row);
            scatter.add_outer(1.0, &z);
            sums.add(1.0, &z, &y.iter().copied().map(f64::from).collect::<Vec<_>>());
        }
        scatter.add_diagonal(made.lambda);
        let inverse = scatter.factor()?.inverse();
        sums.solved = sums.moments.iter().map(|row| inverse.times(row)).collect();
        sums.solved_sum = inverse.times(&sums.sum);
        Ok(Live { made, inverse, sums })
    }

    /// Samples in it.
    pub fn len(&self) -> usize {
        self.sums.count.round().max(0.0) as usize
    }

    /// Whether no sample is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Outputs: labels known so far.
    pub fn outputs(&self) -> usize {
        self.sums.totals.len()
    }

    /// Samples of each label; of numbers their sums.
    pub fn totals(&self) -> &[f64] {
        &self.sums.totals
    }

    /// How it makes heads.
    pub fn rule(&self) -> Rule {
        self.made.rule
    }

    /// One more label, without a sample so far.
    pub fn add_output(&mut self) {
        let width = self.sums.sum.len();
        self.sums.totals.push(0.0);
        self.sums.moments.push(vec![0.0; width]);
        self.sums.solved.push(vec![0.0; width]);
    }

    /// Takes a sample in. About width² additions.
    ///
    /// # Errors
    /// Mismatch: another number of features or targets. Failed: values that are not finite.
    pub fn add(&mut self, row: &[f32], y: &[f32]) -> Result<()> {
        self.change(1.0, row, y)
    }

    /// Takes a sample out again: the head is that of the others, but for rounding (1e-6).
    ///
    /// # Errors
    /// As [`Live::add`]. Failed too: a sample that is not in it.
    pub fn remove(&mut self, row: &[f32], y: &[f32]) -> Result<()> {
        self.change(-1.0, row, y)
    }

    fn change(&mut self, sign: f64, row: &[f32], y: &[f32]) -> Result<()> {
        if row.len() != self.sums.sum.len() || y.len() != self.outputs() {
            return Err(Error::mismatch(format!(
                "a sample of {} features and {} targets for a head of {} and {}",
                row.len(),
                y.len(),
                self.sums.sum.len(),
                self.outputs()
            )));
        }
        let z = self.made.standard.row(row);
        let y: Vec<f64> = y.iter().copied().map(f64::from).collect();
        let v = self.inverse.times(&z);
        let left = 1.0 + sign * dot(&z, &v);
        if !(left.is_finite() && left > 1e-9 && y.iter().all(|y| y.is_finite())) {
            return Err(Error::failed(match sign > 0.0 {
                true => "the features of the sample are not finite",
                false => "the sample is not among those that the head was made of",
            }));
        }
        // (A ± z·zᵀ)⁻¹ = A⁻¹ ∓ v·vᵀ/(1 ± zᵀ·v), v = A⁻¹·z.
        self.inverse.add_outer(-sign / left, &v);
        let Sums { solved, solved_sum, .. } = &mut self.sums;
        for (row, y) in solved.iter_mut().zip(&y) {
            let along = dot(&z, row);
            add(row, sign * (y - along) / left, &v);
        }
        let along = dot(&z, solved_sum);
        add(solved_sum, sign * (1.0 - along) / left, &v);
        self.sums.add(sign, &z, &y);
        Ok(())
    }

    /// The head now: weights (outputs, width) and biases on features as they are.
    ///
    /// # Errors
    /// Failed: sums that are not those of samples.
    pub fn head(&self) -> Result<(Vec<f32>, Vec<f32>)> {
        self.made.head(&self.sums)
    }
}
