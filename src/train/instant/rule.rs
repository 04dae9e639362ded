//! What makes a head of the sums, and what its outputs mean.

use super::matrix::{Symmetric, add, dot};
use crate::error::Result;
use serde::Serialize;

/// What the outputs of a head are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// One of several classes: softmax.
    OneOf,
    /// Labels that each hold or don't: a sigmoid each.
    Each,
    /// Numbers.
    Values,
}

/// How a head is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Ridge regression of 1 for the own label and 0 for others, or of numbers.
    Ridge,
    /// The classes' means with a shared, shrunk covariance.
    Means,
}

impl Rule {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Ridge => "ridge",
            Rule::Means => "class means",
        }
    }
}

/// The sums that a head is made of, over standardised features of width d and C outputs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sums {
    /// Samples.
    pub count: f64,
    /// Σ y of each output: of classes how many samples each has.
    pub totals: Vec<f64>,
    /// R: Σ y·z of each output.
    pub moments: Vec<Vec<f64>>,
    /// Σ z.
    pub sum: Vec<f64>,
    /// T = A⁻¹·R, an output a row.
    pub solved: Vec<Vec<f64>>,
    /// A⁻¹·Σ z.
    pub solved_sum: Vec<f64>,
}

/// The inverse of D - G, D = diag(totals), G = Rᵀ·A⁻¹·R: C × C.
pub(super) fn between(gap: Symmetric) -> Result<Symmetric> {
    Ok(gap.factor()?.inverse())
}

impl Sums {
    /// Sums of no samples.
    pub fn empty(width: usize, outputs: usize) -> Sums {
        Sums {
            count: 0.0,
            totals: vec![0.0; outputs],
            moments: vec![vec![0.0; width]; outputs],
            sum: vec![0.0; width],
            solved: vec![vec![0.0; width]; outputs],
            solved_sum: vec![0.0; width],
        }
    }

    /// Adds (or, with `sign` -1, takes away) a sample; what is solved is not touched.
    pub fn add(&mut self, sign: f64, z: &[f64], y: &[f64]) {
        self.count += sign;
        add(&mut self.sum, sign, z);
        for ((total, moment), y) in self.totals.iter_mut().zip(&mut self.moments).zip(y) {
            *total += sign * y;
            if *y != 0.0 {
                add(moment, sign * y, z);
            }
        }
    }

    /// The head's weights on z, an output a row, and its biases. Classes without a sample answer
    /// never.
    pub fn head(&self, rule: Rule) -> Result<(Vec<Vec<f64>>, Vec<f64>)> {
        match rule {
            Rule::Ridge => Ok(self.ridge()),
            Rule::Means => self.means(),
        }
    }

    /// W = T - (A⁻¹·Σz)·βᵀ, b = β = (Σy - Σzᵀ·T) / (n - Σzᵀ·A⁻¹·Σz): least squares with a constant that
    /// λ doesn't weigh down.
    fn ridge(&self) -> (Vec<Vec<f64>>, Vec<f64>) {
        let left = (self.count - dot(&self.sum, &self.solved_sum)).max(f64::MIN_POSITIVE);
        let of = |(total, solved): (&f64, &Vec<f64>)| (total - dot(&self.sum, solved)) / left;
        let bias: Vec<f64> = self.totals.iter().zip(&self.solved).map(of).collect();
        let mut weight = self.solved.clone();
        for (row, bias) in weight.iter_mut().zip(&bias) {
            add(row, -bias, &self.solved_sum);
        }
        (weight, bias)
    }

    /// With M the classes' means and S the scatter about them plus λI, S⁻¹·M = T·E, E = (D - G)⁻¹, and
    /// Mᵀ·S⁻¹·M = E - D⁻¹. The covariance is S/n: logits n·(xᵀS⁻¹μ - μᵀS⁻¹μ/2) + log share.
    fn means(&self) -> Result<(Vec<Vec<f64>>, Vec<f64>)> {
        let present: Vec<usize> =
            (0..self.totals.len()).filter(|&k| self.totals[k] > 0.5).collect();
        let mut gap = Symmetric::zeros(present.len());
        gap.fill(|i, j| {
            let own = if i == j { self.totals[present[i]] } else { 0.0 };
            own - dot(&self.moments[present[i]], &self.solved[present[j]])
        });
        let inverse = between(gap)?;
        let width = self.sum.len();
        let mut weight = vec![vec![0.0; width]; self.totals.len()];
        let mut bias = vec![NEVER; self.totals.len()];
        for (at, &k) in present.iter().enumerate() {
            let mut unit = vec![0.0; present.len()];
            unit[at] = 1.0;
            let column = inverse.times(&unit);
            for (factor, &j) in column.iter().zip(&present) {
                add(&mut weight[k], self.count * factor, &self.solved[j]);
            }
            let square = column[at] - 1.0 / self.totals[k];
            bias[k] = -0.5 * self.count * square + (self.totals[k] / self.count).ln();
        }
        Ok((weight, bias))
    }
}

/// The logit of a class that no sample has.
pub(super) const NEVER: f64 = -1e4;
