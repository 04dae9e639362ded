//! From samples to an instant head.

use super::fit::Fitted;
use crate::adapter::{Bound, Head};
use crate::error::{Error, Result};
use crate::pack::Role;
use crate::runtime::{Engine, as_tokens, pool};
#[cfg(feature = "daemon")]
use crate::train::data::Dataset;
use crate::train::features::Features;
use crate::train::samples::Samples;
use crate::train::tasks::Task;
use serde::Serialize;
use std::sync::Arc;

/// How an instant head was made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InstantReport {
    /// `ridge` or `class means`.
    pub rule: &'static str,
    /// λ over n times the mean variance of a feature.
    pub strength: f64,
    /// Metrics of the samples, each answered by the head of all others; none where none could be left
    /// out.
    pub left_out: Vec<(String, f32)>,
    /// How many were left out, one at a time.
    pub samples: usize,
    /// Milliseconds from features to head.
    pub milliseconds: f64,
}

/// The features of the samples `which`, in that order, as a head that reads `features` gets them, with
/// `adapter` or of the base alone. `None` where `go_on`, asked between batches, said stop.
///
/// # Errors
/// What preprocessing and running say; an output of another shape (mismatch).
pub(in crate::train) fn features_of(
    engine: &Engine,
    adapter: Option<&Arc<Bound>>,
    samples: &Samples,
    which: &[usize],
    features: &Features,
    batch: usize,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Vec<Vec<f32>>>> {
    let rows = samples.fixed_rows().unwrap_or_else(|| batch.clamp(1, which.len().max(1)));
    let mut found = vec![vec![]; samples.len()];
    for group in samples.groups(which, rows) {
        if !go_on() {
            return Ok(None);
        }
        let inputs = samples.inputs(&group, rows)?;
        let outputs = engine.run(&inputs, adapter)?;
        let (name, width) = (&features.name, features.width);
        let output = outputs.iter().find(|(n, _)| n == name);
        let (_, output) =
            output.ok_or_else(|| Error::failed(format!("output '{name}' is gone")))?;
        let mask = engine.given(&inputs, Role::Mask).filter(|_| output.shape().len() != 4);
        let pooled = pool(features.pool, &*as_tokens(output, width)?, mask)?;
        for (&sample, row) in group.iter().zip(pooled) {
            if row.len() != width {
                return Err(Error::mismatch(format!(
                    "output '{name}' has {} features a sample, expected {width}",
                    row.len()
                )));
            }
            found[sample] = row;
        }
    }
    Ok(Some(which.iter().map(|&sample| std::mem::take(&mut found[sample])).collect()))
}

/// The features of the one sample of `data`; see [`features_of`].
///
/// # Errors
/// As [`features_of`]; a data set of none (usage).
#[cfg(feature = "daemon")]
pub(crate) fn row_of(
    engine: &Engine,
    adapter: Option<&Arc<Bound>>,
    data: &Dataset,
    features: &Features,
) -> Result<Vec<f32>> {
    let samples = Samples::new(engine, data, &data.labels, None)?;
    let found = features_of(engine, adapter, &samples, &[0], features, 1, &mut || true)?;
    found.and_then(|rows| rows.into_iter().next()).ok_or_else(|| Error::usage("no sample"))
}

/// The head of a fit.
pub(crate) fn head_of(fitted: &Fitted, task: Task, features: &Features, labels: &[String]) -> Head {
    Head {
        task: task.name().into(),
        output: features.name.clone(),
        pool: features.pool,
        labels: labels.into(),
        features: features.width as u32,
        weight: fitted.weight.clone(),
        bias: fitted.bias.clone(),
        ..Head::default()
    }
}
