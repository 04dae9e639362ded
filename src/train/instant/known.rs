//! What tells inputs like those learned from others, measured by leaving samples and whole classes out.

use super::choose::calibrated;
use super::fit::{Fitted, solved};
use super::rule::Form;
use super::standard::Standard;
use crate::adapter::{Known, MOST_EXEMPLARS, TAIL, dot, nearness, tail, unit_row};
use crate::error::Result;
use std::collections::BTreeSet;

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
/// The share of strangers that the bar is tried for, class by class, ...
const TRIED: f64 = 0.01;
/// ... and how many times their tail may be lengthened.
const LONGEST: f64 = 4.0;
/// Least deviation of a cosine, so that samples that are all alike don't make everything unknown.
const LEAST_COSINE: f32 = 0.01;

/// What is known of a head's inputs before strangers have their scores, which hang on what is usual.
pub struct Measured {
    known: Known,
    strangers: Vec<Stranger>,
}

/// A sample by the head and the exemplars of all classes but its own.
struct Stranger {
    class: usize,
    near: f32,
    logits: Vec<f32>,
}

/// Of the samples that `made` was fitted on; `None` for heads other than of classes, and of too few.
///
/// # Errors
/// Failed: features that are not finite.
pub fn known(made: &Fitted, rows: &[Vec<f32>], y: &[Vec<f32>]) -> Result<Option<Measured>> {
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
    Ok(Some(Measured { strangers: strangers(made, rows, y, &near)?, known: found }))
}

impl Measured {
    /// Sets what is usual by samples held out, with the logits (over the temperature) of the head that
    /// answers. Of few nothing is known of that head's logits: the distance alone tells.
    pub fn held_out(&mut self, rows: &[Vec<f32>], logits: &[Vec<f32>]) {
        let known = &mut self.known;
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

    /// With the scores of strangers.
    pub fn finish(mut self) -> Known {
        let score = |s: &Stranger| (s.class, self.known.of(s.near, &s.logits));
        let scores: Vec<(usize, f32)> = self.strangers.iter().map(score).collect();
        self.known.strangers = spread_out(&scores);
        self.known
    }
}

/// The scores of strangers, ascending, with a tail as long as it takes for a class to be refused whose scores
/// didn't make it: classes are less like each other than samples of one, so that the next one's may be greater
/// than all that were seen. Each class is held against the tail of the others; it is lengthened until no more than
/// [`TRIED`] of them pass, counting one more as would be seen next.
fn spread_out(scores: &[(usize, f32)]) -> Vec<f32> {
    let all = ascending(scores.iter().map(|(_, score)| *score).collect());
    let classes: BTreeSet<usize> = scores.iter().map(|(class, _)| *class).collect();
    let decades = (TAIL / TRIED).ln();
    // How long the tail must be to refuse a sample, and its share of all, each class counting the same.
    let mut needed: Vec<(f64, f64)> = vec![];
    for class in &classes {
        let of = |own: bool| scores.iter().filter(move |s| (s.0 == *class) == own).map(|s| s.1);
        let (from, excess) = tail(&ascending(of(false).collect()));
        let share = 1.0 / (of(true).count() * classes.len()) as f64;
        let length = |score: f32| f64::from(score - from) / (excess * decades);
        needed.extend(of(true).map(|score| (length(score), share)).filter(|n| n.0.is_finite()));
    }
    needed.sort_by(|a, b| b.0.total_cmp(&a.0));
    let next = 1.0 / all.len().max(1) as f64;
    let allowed = TRIED * (1.0 + next);
    // What fewer than a hundred can't show is taken as exponential too.
    let unseen = (next / allowed).ln().max(0.0) / decades;
    let mut passed = next;
    let found = needed.iter().find(|(_, share)| {
        passed += share;
        passed > allowed
    });
    let factor = found.map_or(1.0, |(length, _)| length + unseen).clamp(1.0, LONGEST) as f32;
    let (from, _) = tail(&all);
    all.iter().map(|s| if *s > from { from + factor * (s - from) } else { *s }).collect()
}

/// Sets what is usual by samples that nothing was learned from.
fn usual(known: &mut Known, nears: &[f32], logits: &[&[f32]]) {
    let greatest = |row: &&[f32]| row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    known.near = spread(nears, LEAST_COSINE);
    known.logit = Some(spread(&logits.iter().map(greatest).collect::<Vec<_>>(), 1e-3));
    known.accepted =
        ascending(nears.iter().zip(logits).map(|(near, row)| known.of(*near, row)).collect());
}

/// How near a row is to the exemplars that count.
type Near<'a> = dyn Fn(&[f32], &dyn Fn(usize) -> bool) -> f32 + 'a;

/// The samples of each class by the head and the exemplars of all others.
fn strangers(
    made: &Fitted,
    rows: &[Vec<f32>],
    y: &[Vec<f32>],
    near: &Near<'_>,
) -> Result<Vec<Stranger>> {
    let class = |i: usize| y[i].iter().position(|v| *v > 0.5);
    let some: Vec<usize> = (0..rows.len()).step_by(rows.len().div_ceil(FITTED_ON)).collect();
    let classes = y.first().map_or(0, Vec::len);
    let of = |c: usize| some.iter().copied().filter(move |&i| class(i) == Some(c));
    let present: Vec<usize> = (0..classes).filter(|&c| of(c).count() >= 2).collect();
    if present.len() < 3 {
        return Ok(vec![]);
    }
    let mut found = vec![];
    for &c in present.iter().take(CLASSES) {
        let others: Vec<usize> = some.iter().copied().filter(|&i| class(i) != Some(c)).collect();
        let part: Vec<Vec<f32>> = others.iter().map(|&i| rows[i].clone()).collect();
        let double = |i: &usize| y[*i].iter().copied().map(f64::from).collect();
        let targets: Vec<Vec<f64>> = others.iter().map(double).collect();
        // As it would have been made of these alone.
        let mut without = made.clone();
        without.lambda *= part.len() as f64 / rows.len() as f64;
        without.standard = Standard::of(&part, made.standard.mean.len());
        let (weight, bias) = without.head(&solved(&part, &targets, &without, None)?)?;
        for i in of(c) {
            let logits = linear(&weight, &bias, &rows[i]);
            let near = near(&rows[i], &|other| class(other) != Some(c));
            found.push(Stranger { class: c, near, logits });
        }
    }
    Ok(found)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::random::{stream, unit};

    /// Ten classes of twenty, some of them nearer to the others than most: of the next one, of which nothing was
    /// seen, as many pass as is said, where twice as many did.
    #[test]
    fn a_class_that_comes_next_is_refused_at_the_stated_rate() {
        let mut rng = stream(7, "strangers", 0);
        let mut class = |c: usize| -> Vec<(usize, f32)> {
            let middle: f32 = (0..4).map(|_| unit(&mut rng)).sum::<f32>() - 2.0;
            (0..20).map(|_| (c, 3.0 * middle - unit(&mut rng).max(1e-6).ln())).collect()
        };
        let (mut by_all, mut by_classes) = (0, 0);
        for _ in 0..400 {
            let seen: Vec<(usize, f32)> = (0..10).flat_map(&mut class).collect();
            let next = class(10);
            let passed = |strangers: Vec<f32>| {
                let known = Known { strangers, ..Known::default() };
                let least = known.threshold(Some(0.01)).unwrap();
                next.iter().filter(|(_, score)| *score >= least).count()
            };
            by_all += passed(ascending(seen.iter().map(|(_, score)| *score).collect()));
            by_classes += passed(spread_out(&seen));
        }
        let rate = |count: usize| count as f64 / 8000.0;
        assert!(rate(by_all) > 0.013, "{}", rate(by_all));
        assert!((0.003..0.02).contains(&rate(by_classes)), "{}", rate(by_classes));
    }

    #[test]
    fn few_or_equal_scores_are_left_as_they_are() {
        for scores in [vec![], vec![(0, 1.0)], vec![(0, 1.0), (1, 1.0), (2, 1.0)]] {
            let all: Vec<f32> = scores.iter().map(|(_, score)| *score).collect();
            assert_eq!(spread_out(&scores), all);
        }
    }
}
