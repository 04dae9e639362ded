//! What a model's answers are worth: metrics of classes and of values.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Counts of true class (row) against predicted class (column).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    classes: usize,
    counts: Vec<u64>,
}

impl Confusion {
    /// No answers yet, for `classes` classes.
    pub fn new(classes: usize) -> Confusion {
        Confusion { classes, counts: vec![0; classes.saturating_mul(classes)] }
    }

    /// From the true and the predicted class of every sample.
    pub fn from_pairs(classes: usize, truth: &[usize], predicted: &[usize]) -> Result<Confusion> {
        if truth.len() != predicted.len() {
            return Err(lengths(truth.len(), predicted.len()));
        }
        let mut confusion = Confusion::new(classes);
        for (&t, &p) in truth.iter().zip(predicted) {
            confusion.add(t, p)?;
        }
        Ok(confusion)
    }

    /// Counts one answer; a class outside the table is an error.
    pub fn add(&mut self, truth: usize, predicted: usize) -> Result<()> {
        if truth >= self.classes || predicted >= self.classes {
            return Err(Error::usage(format!(
                "class {} is not one of {}",
                truth.max(predicted),
                self.classes
            )));
        }
        self.counts[truth * self.classes + predicted] += 1;
        Ok(())
    }

    /// How many samples of class `truth` were taken for `predicted`.
    pub fn count(&self, truth: usize, predicted: usize) -> u64 {
        if truth >= self.classes || predicted >= self.classes {
            return 0;
        }
        self.counts[truth * self.classes + predicted]
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The number of answers.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Share of right answers; 0 without any.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.classes).map(|c| self.count(c, c)).sum();
        ratio(right as f64, self.total() as f64)
    }

    /// Per class: 2·right / (true + predicted), or `None` for a class that is neither in the
    /// truth nor among the answers.
    pub fn f1(&self) -> Vec<Option<f64>> {
        (0..self.classes)
            .map(|c| {
                let truth: u64 = (0..self.classes).map(|p| self.count(c, p)).sum();
                let predicted: u64 = (0..self.classes).map(|t| self.count(t, c)).sum();
                let both = truth + predicted;
                (both > 0).then(|| 2.0 * self.count(c, c) as f64 / both as f64)
            })
            .collect()
    }

    /// Mean F1 over the classes that occur, as scikit-learn's `f1_score(average="macro")`; 0
    /// without any.
    pub fn macro_f1(&self) -> f64 {
        let present: Vec<f64> = self.f1().into_iter().flatten().collect();
        ratio(present.iter().sum(), present.len() as f64)
    }
}

/// 1 - (squared error) / (squared deviation of the truth from its mean). Where the truth is
/// constant: 1 if every value is met, else 0 (scikit-learn's rule).
pub fn r2(truth: &[f32], predicted: &[f32]) -> Result<f64> {
    let error = squared_error(truth, predicted)?;
    let mean = truth.iter().map(|&v| f64::from(v)).sum::<f64>() / truth.len() as f64;
    let spread: f64 = truth.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
    if spread == 0.0 {
        return Ok(if error == 0.0 { 1.0 } else { 0.0 });
    }
    Ok(1.0 - error / spread)
}

/// Insertions, deletions and substitutions that make one of the other, at least (Levenshtein 1966).
pub(crate) fn edits<T: PartialEq>(one: &[T], other: &[T]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, a) in one.iter().enumerate() {
        let mut corner = at;
        row[0] = at + 1;
        for (to, b) in other.iter().enumerate() {
            let changed = corner + usize::from(a != b);
            corner = row[to + 1];
            row[to + 1] = changed.min(corner + 1).min(row[to] + 1);
        }
    }
    row[other.len()]
}

/// Least probability that a loss is taken of where answers are judged one by one: what one sample can
/// weigh is bounded.
pub(crate) const LEAST_PROBABILITY: f64 = 1e-4;

/// The mean of the rows of `width` values that stand one after another in `targets`; rows of zeros
/// alone, where a token has no label, are left out where rows are several.
pub(crate) fn frequencies(targets: &[Vec<f32>], width: usize) -> Vec<f64> {
    let (mut sum, mut count) = (vec![0f64; width], 0u64);
    for target in targets {
        let several = target.len() > width;
        for row in target.chunks(width.max(1)).filter(|r| !several || r.iter().any(|v| *v != 0.0)) {
            sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
            count += 1;
        }
    }
    sum.into_iter().map(|s| s / count.max(1) as f64).collect()
}

/// -log softmax(logits)\[class\].
pub(crate) fn entropy(logits: &[f32], class: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let own = logits.get(class).copied().unwrap_or(f32::NEG_INFINITY);
    sum.ln() - f64::from(own - max)
}

fn squared_error(truth: &[f32], predicted: &[f32]) -> Result<f64> {
    if truth.len() != predicted.len() {
        return Err(lengths(truth.len(), predicted.len()));
    }
    if truth.is_empty() {
        return Err(Error::usage("no values to compare"));
    }
    Ok(truth.iter().zip(predicted).map(|(&t, &p)| (f64::from(t) - f64::from(p)).powi(2)).sum())
}

fn lengths(truth: usize, predicted: usize) -> Error {
    Error::usage(format!("expected {truth} answers, found {predicted}"))
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_by_hand() {
        // class 0: 2 of 3 right; class 1: 1 of 2, one wrongly from 0; class 2: 0 of 1.
        let truth = [0, 0, 0, 1, 1, 2];
        let predicted = [0, 0, 1, 1, 0, 1];
        let c = Confusion::from_pairs(3, &truth, &predicted).unwrap();
        assert_eq!((c.count(0, 1), c.count(1, 0), c.count(2, 1), c.total()), (1, 1, 1, 6));
        assert!((c.accuracy() - 0.5).abs() < 1e-12);
        // F1: 2·2/(3+3), 2·1/(2+3), 0/(1+0).
        assert_eq!(c.f1(), [Some(4.0 / 6.0), Some(2.0 / 5.0), Some(0.0)]);
        assert!((c.macro_f1() - (2.0 / 3.0 + 0.4) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn absent_classes_do_not_count() {
        let c = Confusion::from_pairs(5, &[1, 1], &[1, 1]).unwrap();
        assert_eq!(c.macro_f1(), 1.0);
        assert_eq!(Confusion::new(3).accuracy(), 0.0);
        assert_eq!(Confusion::new(3).macro_f1(), 0.0);
        assert!(Confusion::from_pairs(2, &[2], &[0]).is_err());
        assert!(Confusion::from_pairs(2, &[0], &[]).is_err());
    }

    #[test]
    fn values_by_hand() {
        let (truth, predicted) = ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 2.0, 6.0]);
        assert!((r2(&truth, &predicted).unwrap() - 0.0).abs() < 1e-12);
        assert_eq!(r2(&truth, &truth).unwrap(), 1.0);
        assert_eq!(r2(&[2.0, 2.0], &[2.0, 3.0]).unwrap(), 0.0);
        assert!(r2(&[], &[]).is_err() && r2(&[1.0], &[]).is_err());
    }

    #[test]
    fn cross_entropy_equals_the_formula_and_survives_large_logits() {
        assert!((entropy(&[0.0, 0.0], 1) - 2f64.ln()).abs() < 1e-12);
        assert!((entropy(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
        assert!(entropy(&[1000.0, 0.0], 0).abs() < 1e-9);
    }
}
