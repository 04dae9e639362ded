//! What tells inputs like those learned from others, measured by leaving samples and whole classes out.

use super::choose::calibrated;
use super::fit::{Fitted, solved};
use super::rule::Form;
use crate::adapter::{Known, MOST_EXEMPLARS, dot, nearness, unit_row};
use crate::error::Result;

/// Exemplars that a head keeps where there are more samples, evenly spread.
const EXEMPLARS: usize = 256;
/// Samples that classes are left out of, at most: each takes a fit.
const FITTED_ON: usize = 512;
/// Classes that are left out, at most.
const CLASSES: usize = 12;
/// Fewer samples than these tell nothing of how they are spread.
const FEWEST: usize = 5;
/// Held-out samples from which on these and not those left out tell what is usual.
pub const ENOUGH_HELD: usize = 20;
/// Least deviation of a cosine, so that samples that are all alike don't make everything unknown.
const LEAST_COSINE: f32 = 0.01;

/// Of the samples that `made` was fitted on; `None` for heads other than of classes, and of too few.
///
/// # Errors
/// Failed: features that are not finite.
pub fn known(made: &Fitted, rows: &[Vec<f32>], y: &[Vec<f32>]) -> Result<Option<Known>> {
    let left = &made.left_out.outputs;
    if made.form != Form::OneOf || left.len() < FEWEST {
        return Ok(None);
    }
    let step = rows.len().div_ceil(EXEMPLARS.min(MOST_EXEMPLARS));
    let units: Vec<(usize, Vec<f32>)> =
        (0..rows.len()).step_by(step).map(|i| (i, unit_row(&rows[i]))).collect();
    let near = |row: &[f32], counts: &dyn Fn(usize) -> bool| {
        let unit = unit_row(row);
        let others = units.iter().filter(|(i, _)| counts(*i));
        nearness(others.map(|(_, other)| dot(other, &unit)))
    };
    let nears: Vec<f32> = left.iter().map(|(i, _)| near(&rows[*i], &|other| other != *i)).collect();
    let mut found = Known {
        exemplars: units.iter().flat_map(|(_, unit)| unit).copied().collect(),
        features: rows.first().map_or(0, Vec::len) as u32,
        ..Known::default()
    };
    let logits: Vec<&[f32]> = left.iter().map(|(_, logits)| logits.as_slice()).collect();
    usual(&mut found, &nears, &logits);
    found.strangers = strangers(made, rows, y, &found, &near)?;
    Ok(Some(found))
}

/// Sets what is usual by samples that nothing was learned from.
fn usual(known: &mut Known, nears: &[f32], logits: &[&[f32]]) {
    let greatest = |row: &&[f32]| row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    known.near = spread(nears, LEAST_COSINE);
    known.logit = Some(spread(&logits.iter().map(greatest).collect::<Vec<_>>(), 1e-3));
    known.accepted =
        ascending(nears.iter().zip(logits).map(|(near, row)| known.of(*near, row)).collect());
}

/// Sets what is usual by samples held out, with the logits (over the temperature) of the head that
/// answers. Of few nothing is known of that head's logits: the distance alone tells.
pub fn held_out(known: &mut Known, rows: &[Vec<f32>], logits: &[Vec<f32>]) {
    if rows.len() < ENOUGH_HELD {
        known.logit = None;
        return;
    }
    let width = (known.features as usize).max(1);
    let near = |row: &Vec<f32>| {
        let unit = unit_row(row);
        nearness(known.exemplars.chunks(width).map(|other| dot(other, &unit)))
    };
    let nears: Vec<f32> = rows.iter().map(near).collect();
    let logits: Vec<&[f32]> = logits.iter().map(Vec::as_slice).collect();
    usual(known, &nears, &logits);
}

/// How near a row is to the exemplars that count.
type Near<'a> = dyn Fn(&[f32], &dyn Fn(usize) -> bool) -> f32 + 'a;

/// Scores of the samples of each class by the head and the exemplars of all others.
fn strangers(
    made: &Fitted,
    rows: &[Vec<f32>],
    y: &[Vec<f32>],
    known: &Known,
    near: &Near<'_>,
) -> Result<Vec<f32>> {
    let class = |i: usize| y[i].iter().position(|v| *v > 0.5);
    let some: Vec<usize> = (0..rows.len()).step_by(rows.len().div_ceil(FITTED_ON)).collect();
    let classes = y.first().map_or(0, Vec::len);
    let of = |c: usize| some.iter().copied().filter(move |&i| class(i) == Some(c));
    let present: Vec<usize> = (0..classes).filter(|&c| of(c).count() >= 2).collect();
    if present.len() < 3 {
        return Ok(vec![]);
    }
    let mut scores = vec![];
    for &c in present.iter().take(CLASSES) {
        let others: Vec<usize> = some.iter().copied().filter(|&i| class(i) != Some(c)).collect();
        let part: Vec<Vec<f32>> = others.iter().map(|&i| rows[i].clone()).collect();
        let double = |i: &usize| y[*i].iter().copied().map(f64::from).collect();
        let targets: Vec<Vec<f64>> = others.iter().map(double).collect();
        let (weight, bias) = made.head(&solved(&part, &targets, made, None)?)?;
        for i in of(c) {
            let logits = linear(&weight, &bias, &rows[i]);
            scores.push(known.of(near(&rows[i], &|other| class(other) != Some(c)), &logits));
        }
    }
    Ok(ascending(scores))
}

/// The outputs of a linear layer.
pub fn linear(weight: &[f32], bias: &[f32], x: &[f32]) -> Vec<f32> {
    let rows = weight.chunks(x.len().max(1)).zip(bias);
    rows.map(|(w, b)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() + b).collect()
}

/// The temperature with the least cross-entropy of logits whose right classes are `y`'s.
pub fn temperature(logits: &[Vec<f32>], y: &[Vec<f32>]) -> f32 {
    calibrated(logits, y) as f32
}

fn spread(values: &[f32], least: f32) -> [f32; 2] {
    let count = values.len().max(1) as f64;
    let mean = values.iter().copied().map(f64::from).sum::<f64>() / count;
    let square = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count;
    [mean as f32, (square.sqrt() as f32).max(least)]
}

fn ascending(mut values: Vec<f32>) -> Vec<f32> {
    values.sort_by(f32::total_cmp);
    values
}
