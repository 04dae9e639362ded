//! A head of samples, all at once.

use super::choose::{Choice, choose};
use super::matrix::{Symmetric, add};
use super::rule::{Form, NEVER, Rule, Sums};
use super::standard::Standard;
use crate::error::{Error, Result};

/// Samples that rule and λ are chosen on, at most: the choice takes time with their third power.
const MOST_CHOSEN_ON: usize = 512;

/// What was said of each sample while it was left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LeaveOneOut {
    /// Places of samples (of many every so many-th), and their outputs as the head gives them.
    pub outputs: Vec<(usize, Vec<f32>)>,
    /// Mean loss; none where nothing could be left out. Of numbers the squared error over their
    /// variance.
    pub loss: Option<f64>,
}

/// A head with what it was made of.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// How it was made.
    pub rule: Rule,
    /// λ over n times the mean variance of a feature.
    pub strength: f64,
    /// (outputs, width) on the features as they are. Logits are calibrated: the temperature is in it.
    pub weight: Vec<f32>,
    /// (outputs).
    pub bias: Vec<f32>,
    /// What it would have said without the sample.
    pub left_out: LeaveOneOut,
    pub(super) form: Form,
    pub(super) lambda: f64,
    pub(super) temperature: f64,
    pub(super) standard: Standard,
}

/// The head of `rows` (samples, `width` features each) with targets `y` (samples, outputs): 1 and 0 for
/// labels, numbers as they are. The same rows give the same head, bit for bit.
///
/// # Errors
/// Usage: no samples. Failed: features that are not finite.
pub fn fit(rows: &[Vec<f32>], y: &[Vec<f32>], form: Form) -> Result<Fitted> {
    let width = rows.first().map_or(0, Vec::len);
    let outputs = y.first().map_or(0, Vec::len);
    if rows.is_empty() || width == 0 || outputs == 0 || rows.len() != y.len() {
        return Err(Error::usage("no samples to learn from"));
    }
    let standard = Standard::of(rows, width);
    let y: Vec<Vec<f64>> =
        y.iter().map(|row| row.iter().copied().map(f64::from).collect()).collect();
    let step = rows.len().div_ceil(MOST_CHOSEN_ON);
    let chosen: Vec<usize> = (0..rows.len()).step_by(step).collect();
    let some: Vec<Vec<f64>> = chosen.iter().map(|&i| standard.row(&rows[i])).collect();
    let targets: Vec<Vec<f64>> = chosen.iter().map(|&i| y[i].clone()).collect();
    let Choice { rule, strength, lambda, temperature, loss, outputs: left } =
        choose(&some, &targets, form)?;
    let mut made = Fitted {
        rule,
        strength,
        weight: vec![],
        bias: vec![],
        left_out: LeaveOneOut::default(),
        form,
        lambda,
        temperature,
        standard,
    };
    let sums = solved(rows, &y, &made, (step == 1).then_some(some))?;
    (made.weight, made.bias) = made.head(&sums)?;
    let shift = made.shift() as f32;
    let outputs = chosen.into_iter().zip(left).filter(|(_, row)| !row.is_empty());
    let outputs = outputs.map(|(i, row)| (i, row.iter().map(|v| v - shift).collect()));
    made.left_out = LeaveOneOut { outputs: outputs.collect(), loss };
    Ok(made)
}

impl Fitted {
    /// Weights and biases on features as they are, over the temperature.
    pub(super) fn head(&self, sums: &Sums) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut weight, mut bias) = sums.head(self.rule)?;
        let factor = 1.0 / self.temperature;
        if self.form == Form::OneOf {
            for (k, _) in sums.totals.iter().enumerate().filter(|(_, total)| **total < 0.5) {
                weight[k].iter_mut().for_each(|w| *w = 0.0);
                bias[k] = NEVER * self.temperature;
            }
        }
        weight.iter_mut().flatten().for_each(|w| *w *= factor);
        bias.iter_mut().for_each(|b| *b = *b * factor - self.shift());
        Ok(self.standard.undone(&weight, &bias))
    }

    /// What is taken off outputs so that 0 is the middle.
    fn shift(&self) -> f64 {
        if self.form == Form::Each { 0.5 / self.temperature } else { 0.0 }
    }
}

/// The sums of all rows, and A⁻¹ of them by way of the smaller of A and K.
pub(super) fn solved(
    rows: &[Vec<f32>],
    y: &[Vec<f64>],
    made: &Fitted,
    standardised: Option<Vec<Vec<f64>>>,
) -> Result<Sums> {
    let (width, outputs) = (made.standard.mean.len(), y.first().map_or(0, Vec::len));
    let mut sums = Sums::empty(width, outputs);
    if rows.len() <= width {
        let z =
            standardised.unwrap_or_else(|| rows.iter().map(|row| made.standard.row(row)).collect());
        z.iter().zip(y).for_each(|(z, y)| sums.add(1.0, z, y));
        let mut gram = Symmetric::gram(&z);
        gram.add_diagonal(made.lambda);
        let factor = gram.factor()?;
        let back = |mut x: Vec<f64>| {
            factor.solve(&mut x);
            let mut sum = vec![0.0; width];
            z.iter().zip(&x).for_each(|(z, x)| add(&mut sum, *x, z));
            sum
        };
        sums.solved = (0..outputs).map(|k| back(y.iter().map(|row| row[k]).collect())).collect();
        sums.solved_sum = back(vec![1.0; rows.len()]);
        return Ok(sums);
    }
    let mut scatter = Symmetric::zeros(width);
    for (row, y) in rows.iter().zip(y) {
        let z = made.standard.row(row);
        scatter.add_outer(1.0, &z);
        sums.add(1.0, &z, y);
    }
    scatter.add_diagonal(made.lambda);
    let factor = scatter.factor()?;
    let solve = |x: &Vec<f64>| {
        let mut x = x.clone();
        factor.solve(&mut x);
        x
    };
    sums.solved = sums.moments.iter().map(solve).collect();
    sums.solved_sum = solve(&sums.sum);
    Ok(sums)
}
