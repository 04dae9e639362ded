//! What an adapter is worth on labelled samples, measured on the path that serves.

use super::data::{Dataset, Label};
use super::metrics::{Confusion, argmax};
use super::samples::Samples;
use crate::adapter::Bound;
use crate::error::{Error, Result};
use crate::pack::Role;
use crate::runtime::{Engine, Named, apply_head};
use crate::shape::Array;
use serde::Serialize;
use std::sync::Arc;

/// Metrics over a data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Samples measured.
    pub samples: usize,
    /// Mean loss: cross-entropy for classes, squared error for values.
    pub loss: f32,
    /// Share of right classes.
    pub accuracy: Option<f32>,
    /// Mean F1 over the classes that occur.
    pub macro_f1: Option<f32>,
    /// Mean squared error over all values.
    pub mse: Option<f32>,
    /// True class (row) against answered class (column), in the order of `labels`.
    pub confusion: Option<Confusion>,
    /// The head's labels.
    pub labels: Vec<String>,
}

impl Evaluation {
    /// The metrics by name: `loss`, and `accuracy` and `macro_f1`, or `mse`.
    pub fn metrics(&self) -> Vec<(String, f32)> {
        let others = [("accuracy", self.accuracy), ("macro_f1", self.macro_f1), ("mse", self.mse)];
        std::iter::once(("loss", Some(self.loss)))
            .chain(others)
            .filter_map(|(name, value)| Some((name.to_string(), value?)))
            .collect()
    }
}

/// Measures `adapter` (its head), or the base's own classes where there is no head: then the base
/// must have been packed with labels. `batch` samples run at once.
///
/// # Errors
/// Usage: no head and no labels. Mismatch: labels that the head lacks, numbers where it has
/// classes. What preprocessing and running say.
pub fn evaluate(
    engine: &Engine,
    adapter: Option<&Arc<Bound>>,
    data: &Dataset,
    batch: usize,
) -> Result<Evaluation> {
    let labels = labels(engine, adapter)?;
    let samples = Samples::new(engine, data, &labels, None)?;
    let all: Vec<usize> = (0..samples.len()).collect();
    let found = evaluate_samples(engine, adapter, &samples, &all, &labels, batch, &mut || true)?;
    found.ok_or_else(|| Error::failed("the evaluation was stopped"))
}

/// Labels, and for every sample one raw output a label.
pub type Answered = (Vec<String>, Vec<Vec<f32>>);

/// The head's (or the base's own) raw outputs for every sample of `data`, in its order, with the
/// labels that they stand for. `go_on` is asked between batches; `None` where it said stop.
///
/// # Errors
/// As [`evaluate`], but labels of the data that the head lacks are none.
pub fn answers(
    engine: &Engine,
    adapter: Option<&Arc<Bound>>,
    data: &Dataset,
    batch: usize,
    max_tokens: Option<usize>,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Answered>> {
    let labels = labels(engine, adapter)?;
    let samples = Samples::new(engine, data, &data.labels, max_tokens)?;
    let all: Vec<usize> = (0..samples.len()).collect();
    let mut rows = vec![vec![]; samples.len()];
    let mut take = |sample: usize, logits: &[f32]| -> Result<()> {
        rows[sample] = logits.to_vec();
        Ok(())
    };
    let whole = each_row(engine, adapter, &samples, &all, labels.len(), batch, go_on, &mut take)?;
    Ok(whole.then_some((labels, rows)))
}

fn labels(engine: &Engine, adapter: Option<&Arc<Bound>>) -> Result<Vec<String>> {
    if let Some(head) = adapter.and_then(|a| a.head.as_ref()) {
        return Ok(head.labels.clone());
    }
    let own = &engine.base().preprocess().labels;
    if own.is_empty() {
        return Err(Error::usage("nothing answers: no head, and the base has no labels")
            .hint("give an adapter with a head"));
    }
    Ok(own.clone())
}

/// As [`evaluate`], over the places `which` of samples that are encoded already. `None` where
/// `go_on`, asked between batches, said stop.
pub(super) fn evaluate_samples(
    engine: &Engine,
    adapter: Option<&Arc<Bound>>,
    samples: &Samples,
    which: &[usize],
    labels: &[String],
    batch: usize,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Evaluation>> {
    let mut confusion = Confusion::new(labels.len());
    let (mut loss, mut classes) = (0.0f64, false);
    let mut take = |sample: usize, row: &[f32]| -> Result<()> {
        match samples.label(sample) {
            Label::Class(class) => {
                classes = true;
                loss += cross_entropy(row, *class);
                confusion.add(*class, argmax(row).unwrap_or(0))
            }
            Label::Values(values) if values.len() == row.len() => {
                let square = |(v, p): (&f32, &f32)| f64::from(v - p).powi(2);
                loss += values.iter().zip(row).map(square).sum::<f64>() / row.len() as f64;
                Ok(())
            }
            Label::Values(values) => Err(Error::mismatch(format!(
                "samples have {} values, the head gives {}",
                values.len(),
                row.len()
            ))),
        }
    };
    if !each_row(engine, adapter, samples, which, labels.len(), batch, go_on, &mut take)? {
        return Ok(None);
    }
    let loss = (loss / which.len() as f64) as f32;
    Ok(Some(Evaluation {
        samples: which.len(),
        loss,
        accuracy: classes.then(|| confusion.accuracy() as f32),
        macro_f1: classes.then(|| confusion.macro_f1() as f32),
        mse: (!classes).then_some(loss),
        confusion: classes.then_some(confusion),
        labels: labels.to_vec(),
    }))
}

/// Gives `take` the logits of every one of `which`, in an order of its own. `false` where `go_on`,
/// asked between batches, said stop.
#[allow(clippy::too_many_arguments)]
pub(super) fn each_row(
    engine: &Engine,
    adapter: Option<&Arc<Bound>>,
    samples: &Samples,
    which: &[usize],
    classes: usize,
    batch: usize,
    go_on: &mut dyn FnMut() -> bool,
    take: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
) -> Result<bool> {
    if which.is_empty() {
        return Err(Error::usage("no samples to evaluate"));
    }
    // One shape for all groups of a form and a length, those that are not full included.
    let rows = samples.fixed_rows().unwrap_or_else(|| batch.clamp(1, which.len()));
    for group in samples.groups(which, rows) {
        if !go_on() {
            return Ok(false);
        }
        let inputs = samples.inputs(&group, rows)?;
        let outputs = engine.run(&inputs, adapter)?;
        let logits = logits(adapter, classes, engine.given(&inputs, Role::Mask), &outputs)?;
        for (&sample, row) in group.iter().zip(&logits) {
            take(sample, row)?;
        }
    }
    Ok(true)
}

fn logits(
    adapter: Option<&Arc<Bound>>,
    classes: usize,
    mask: Option<&Array>,
    outputs: &Named,
) -> Result<Vec<Vec<f32>>> {
    if let Some(head) = adapter.and_then(|a| a.head.as_ref()) {
        let predictions = apply_head(head, mask, outputs)?;
        return Ok(predictions.into_iter().map(|p| p.logits).collect());
    }
    let own = outputs.iter().find(|(_, a)| a.shape().len() == 2 && a.shape()[1] == classes);
    let (_, array) = own.ok_or_else(|| {
        Error::mismatch(format!("no output of the base has its {classes} labels as columns"))
    })?;
    Ok(array.as_f32()?.chunks(classes).map(<[f32]>::to_vec).collect())
}

/// -log softmax(logits)\[class\].
fn cross_entropy(logits: &[f32], class: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let own = logits.get(class).copied().unwrap_or(f32::NEG_INFINITY);
    sum.ln() - f64::from(own - max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_entropy_equals_the_formula_and_survives_large_logits() {
        assert!((cross_entropy(&[0.0, 0.0], 1) - 2f64.ln()).abs() < 1e-12);
        assert!((cross_entropy(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
        assert!(cross_entropy(&[1000.0, 0.0], 0).abs() < 1e-9);
    }
}
