//! From samples to an instant head.

use super::fit::{Fitted, fit};
use super::known::known;
use super::rule::Form;
#[cfg(feature = "daemon")]
use crate::adapter::Adapter;
use crate::adapter::{Bound, Head};
use crate::error::{Error, Result};
use crate::pack::Role;
use crate::runtime::{Engine, as_tokens, pool, read};
#[cfg(feature = "daemon")]
use crate::train::data::Dataset;
use crate::train::data::Label;
use crate::train::features::Features;
#[cfg(feature = "daemon")]
use crate::train::features::choose_features;
use crate::train::samples::Samples;
use crate::train::tasks::{Given, Task};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

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
        let output = &*read(engine, name, output)?;
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

/// The instant head and how it was made.
pub(in crate::train) struct Made {
    pub head: Head,
    pub report: InstantReport,
    /// The features that it was made of, in the samples' order.
    pub rows: Vec<Vec<f32>>,
}

/// The instant head of the samples `which`, of `rows`, their features.
///
/// # Errors
/// As [`fit`].
pub(in crate::train) fn made_of(
    rows: Vec<Vec<f32>>,
    samples: &Samples,
    which: &[usize],
    features: &Features,
    labels: &[String],
    form: Form,
) -> Result<Made> {
    let task = samples.task();
    let began = Instant::now();
    let targets = which.iter().map(|&s| samples.target(s)).collect::<Result<Vec<_>>>()?;
    let fitted = fit(&rows, &targets, form)?;
    let milliseconds = began.elapsed().as_secs_f64() * 1e3;
    let mut head = head_of(&fitted, task, features, labels);
    let left_out = fitted.left_out.outputs.iter();
    let asked: Vec<(&Label, &[f32])> =
        left_out.map(|(at, output)| (samples.label(which[*at]), output.as_slice())).collect();
    if task.rules().has_thresholds() {
        head.thresholds = task.rules().thresholds(&asked, head.labels.len());
    }
    head.known = known(&fitted, &rows, &targets)?.map(|found| Arc::new(found.finish()));
    let report = report(&fitted, task, &asked, &head, milliseconds)?;
    Ok(Made { head, report, rows })
}

fn report(
    fitted: &Fitted,
    task: Task,
    rows: &[(&Label, &[f32])],
    head: &Head,
    milliseconds: f64,
) -> Result<InstantReport> {
    let mut meter = task.rules().meter(head.labels.len());
    for (label, output) in rows {
        meter.add(label, &Given::of_head(output, &head.labels, Some(head)))?;
    }
    let metrics = if rows.is_empty() { vec![] } else { meter.finish().metrics.0 };
    Ok(InstantReport {
        rule: fitted.rule.name(),
        strength: fitted.strength,
        left_out: metrics.into_iter().map(|m| (m.name.into(), m.value)).collect(),
        samples: rows.len(),
        milliseconds,
    })
}

/// The instant head of `data` on the features of `previous`, with its layers, else of the base alone; the
/// inner `None`: the task has none. The outer `None`: `go_on` said stop.
///
/// # Errors
/// As [`features_of`]; a head that reads what the base hasn't got (usage).
#[cfg(feature = "daemon")]
pub(crate) fn instant_adapter(
    engine: &Engine,
    name: &str,
    previous: Option<&Adapter>,
    data: &Dataset,
    max_tokens: Option<usize>,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Option<Adapter>>> {
    let rules = data.task.rules();
    let Some(form) = rules.closed_form() else { return Ok(Some(None)) };
    let labels = rules.outputs(data, &[]);
    let own = previous.and_then(Adapter::head);
    let (output, pool) = (own.map(|h| h.output.as_str()), own.map(|h| h.pool));
    let features = choose_features(engine, output, pool, false)?;
    let under = previous.map(|p| engine.bind(&[(p, 1.0)])).transpose()?;
    let samples = Samples::new(engine, data, &labels, max_tokens)?;
    // Each is read once.
    samples.limit_cache(0);
    let all: Vec<usize> = (0..samples.len()).collect();
    let under = under.as_ref();
    let rows = features_of(engine, under, &samples, &all, &features, 1, go_on)?;
    let Some(rows) = rows else { return Ok(None) };
    let Made { head, .. } = made_of(rows, &samples, &all, &features, &labels, form)?;
    let layers = previous.cloned().unwrap_or_default();
    Ok(Some(Some(Adapter {
        name: name.into(),
        base: Some(engine.base().fingerprint()),
        heads: vec![head],
        training: None,
        ..layers
    })))
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
