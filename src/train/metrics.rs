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

/// Mean of the squared differences; both slices equally long and not empty.
pub fn mean_squared_error(truth: &[f32], predicted: &[f32]) -> Result<f64> {
    Ok(squared_error(truth, predicted)? / truth.len() as f64)
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

/// Probabilities from logits, by exp(x - max) / sum.
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|&v| f64::from(v - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| (e / sum) as f32).collect()
}

/// The place of the largest value, the first of equals; `None` if there are no values. NaN is
/// smaller than every number.
pub fn argmax(values: &[f32]) -> Option<usize> {
    top_k(values, 1).first().map(|&(i, _)| i)
}

/// The `k` largest values with their places, largest first, the first of equals first.
pub fn top_k(values: &[f32], k: usize) -> Vec<(usize, f32)> {
    // Adding 0 makes -0 equal to 0 under total_cmp.
    let key = |v: f32| if v.is_nan() { f32::NEG_INFINITY } else { v + 0.0 };
    let mut order: Vec<(usize, f32)> = values.iter().copied().enumerate().collect();
    order.sort_by(|a, b| key(b.1).total_cmp(&key(a.1)).then(a.0.cmp(&b.0)));
    order.truncate(k);
    order
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
        assert_eq!(mean_squared_error(&truth, &predicted).unwrap(), 1.25);
        assert!((r2(&truth, &predicted).unwrap() - 0.0).abs() < 1e-12);
        assert_eq!(r2(&truth, &truth).unwrap(), 1.0);
        assert_eq!(r2(&[2.0, 2.0], &[2.0, 3.0]).unwrap(), 0.0);
        assert!(mean_squared_error(&[], &[]).is_err());
        assert!(mean_squared_error(&[1.0], &[]).is_err());
    }

    #[test]
    fn probabilities_survive_large_logits() {
        let p = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(p, [0.5, 0.5, 0.0]);
        let p = softmax(&[0.0, 1.0, 2.0]);
        assert!((p[2] - 0.665_241).abs() < 1e-6);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(softmax(&[]).is_empty());
    }

    #[test]
    fn the_largest_come_first_and_equals_keep_their_order() {
        let v = [0.1, 0.7, f32::NAN, 0.7, 0.2];
        assert_eq!(top_k(&v, 3), [(1, 0.7), (3, 0.7), (4, 0.2)]);
        assert_eq!(argmax(&v), Some(1));
        assert_eq!(argmax(&[]), None);
        assert_eq!(top_k(&v, 9).len(), 5);
        assert_eq!(argmax(&[-0.0, 0.0]), Some(0));
    }
}
