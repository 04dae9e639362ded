//! What an adapter is worth on labelled samples, measured on the path that serves.

use super::data::{Dataset, Label};
use super::features::choose_features;
use super::instant::linear;
use super::metrics::Confusion;
use super::samples::Samples;
use super::tasks::{Given, Metrics, Score, Task};
use crate::adapter::{Bound, Head};
use crate::error::{Error, Result};
use crate::pack::Role;
use crate::runtime::{Engine, Named, Prediction, apply_head, base_predictions};
use crate::shape::View;
use serde::Serialize;
use std::sync::Arc;

/// Logits over a vocabulary that are there at once where samples are measured: 32 MiB.
const MAX_LOGITS: usize = 8 << 20;

/// Metrics over a data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// What was asked.
    pub task: Task,
    /// Samples measured.
    pub samples: usize,
    /// By name, `loss` first.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// True class (row) against answered class (column), in the order of `labels`, where a sample has
    /// one class.
    pub confusion: Option<Confusion>,
    /// F1 of each label, where labels have one; none for one that neither occurs nor is answered.
    pub f1: Option<Vec<Option<f64>>>,
    /// The head's labels.
    pub labels: Vec<String>,
}

impl Evaluation {
    /// One of the metrics.
    pub fn metric(&self, name: &str) -> Option<f32> {
        self.metrics.get(name)
    }
}

/// Measures `adapter` (its head), or the base's own classes where there is no head: then the base
/// must have been packed with labels. `batch` samples run at once.
///
/// # Errors
/// Usage: no head and no labels. Mismatch: labels that the head lacks or of another task than its.
/// What preprocessing and running say.
pub fn evaluate(
    engine: &Engine,
    adapter: Option<&Arc<Bound>>,
    data: &Dataset,
    batch: usize,
) -> Result<Evaluation> {
    evaluate_with(engine, adapter, data, batch, 1)
}

/// As [`evaluate`], with texts read as [`Wanted::beam`](super::tasks::Wanted::beam) says.
pub fn evaluate_with(
    engine: &Engine,
    adapter: Option<&Arc<Bound>>,
    data: &Dataset,
    batch: usize,
    beam: usize,
) -> Result<Evaluation> {
    let labels = labels(engine, adapter, data.task)?;
    let mut samples = Samples::new(engine, data, &labels, None)?;
    samples.beam = beam;
    let all: Vec<usize> = (0..samples.len()).collect();
    let found = evaluate_samples(engine, adapter, &samples, &all, &labels, batch, &mut || true)?;
    found.ok_or_else(|| Error::failed("the evaluation was stopped"))
}

/// Takes the output for a sample.
type Take<'a> = &'a mut dyn FnMut(usize, &[f32]) -> Result<()>;

/// What answered the samples of a data set, and how.
pub(crate) struct Answered<'a> {
    data: &'a Dataset,
    samples: Samples<'a>,
    /// The labels among those of what answers; one that it doesn't know is beyond them.
    labels: Vec<Label>,
    names: Vec<String>,
    head: Option<Head>,
    /// What the answer to each sample is worth.
    scores: Vec<Score>,
    /// Whether all values of the outputs were finite.
    pub finite: bool,
}

impl<'a> Answered<'a> {
    fn new(
        data: &'a Dataset,
        samples: Samples<'a>,
        names: Vec<String>,
        head: Option<Head>,
    ) -> Answered<'a> {
        let place = |place: usize| {
            let name = data.labels.get(place);
            let known = name.and_then(|name| names.iter().position(|known| known == name));
            Some(known.unwrap_or(usize::MAX))
        };
        let moved = |at: usize| {
            let label = match data.task.rules().own_output() {
                true => samples.label(at),
                false => &data.samples[at].label,
            };
            label.moved(&place).unwrap_or_else(|_| label.clone())
        };
        let labels = (0..data.samples.len()).map(moved).collect();
        let scores = vec![Score { loss: 0.0, right: None, labels: vec![] }; data.samples.len()];
        Answered { data, samples, labels, names, head, scores, finite: true }
    }

    /// With what `give` gives of each of the samples: outputs over a vocabulary are too large to be kept.
    /// `None` where it says `false`.
    fn scored(
        mut self,
        give: impl FnOnce(&Samples<'a>, Take<'_>) -> Result<bool>,
    ) -> Result<Option<Self>> {
        let Answered { data, samples, labels, names, head, scores, finite } = &mut self;
        let mut take = |sample: usize, output: &[f32]| -> Result<()> {
            *finite &= output.iter().all(|v| v.is_finite());
            let given = samples.given(sample, Given::of_head(output, names, head.as_ref()));
            scores[sample] = data.task.rules().score(&labels[sample], &given);
            Ok(())
        };
        Ok(give(samples, &mut take)?.then_some(self))
    }

    /// What the answer to a sample is worth.
    pub fn score(&self, sample: usize) -> &Score {
        &self.scores[sample]
    }

    /// The places in the data set's labels of those that [`Score::labels`] tells of, in its order.
    pub fn places(&self, sample: usize) -> Vec<usize> {
        if self.data.task.rules().own_output() {
            return vec![];
        }
        let label = &self.data.samples[sample].label;
        let output = vec![0.0; self.data.labels.len()];
        let given = self.samples.given(sample, Given::plain(&output, &self.data.labels));
        let score = self.data.task.rules().score(label, &given);
        score.labels.into_iter().map(|(place, _)| place).collect()
    }
}

/// The answers of who always says the same: what is best on `train`.
///
/// # Errors
/// What preprocessing says.
pub(crate) fn always<'a>(
    engine: &Engine,
    train: &Dataset,
    data: &'a Dataset,
    max_tokens: Option<usize>,
) -> Result<Answered<'a>> {
    let rules = train.task.rules();
    let names = rules.outputs(train, &[]);
    let learned = Samples::new(engine, train, &names, max_tokens)?;
    let targets = (0..learned.len()).map(|s| learned.target(s)).collect::<Result<Vec<_>>>()?;
    let output = rules.constant(&targets, names.len());
    let samples = Samples::new(engine, data, &data.labels, max_tokens)?;
    let scored = Answered::new(data, samples, names, None).scored(|samples, take| {
        (0..samples.len()).try_for_each(|sample| take(sample, &output))?;
        Ok(true)
    });
    scored?.ok_or_else(|| Error::failed("a fixed answer was stopped"))
}

/// The head's (or the base's own) answers to every sample of `data`, in its order. `go_on` is asked
/// between batches; `None` where it said stop.
///
/// # Errors
/// As [`evaluate`], but labels of the data that the head lacks are none.
pub(crate) fn answers<'a>(
    engine: &Engine,
    adapter: Option<&Arc<Bound>>,
    data: &'a Dataset,
    batch: usize,
    max_tokens: Option<usize>,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Answered<'a>>> {
    let names = labels(engine, adapter, data.task)?;
    let samples = Samples::new(engine, data, &data.labels, max_tokens)?;
    // Each is read once, beside others' answers that keep theirs.
    samples.limit_cache(0);
    let all: Vec<usize> = (0..samples.len()).collect();
    let head = head_of(engine, adapter, data.task)?;
    Answered::new(data, samples, names.clone(), head).scored(|samples, take| {
        each_row(engine, adapter, samples, &all, &names, batch, go_on, take)
    })
}

/// The head that answers: the adapter's; of a task whose output is the base's own one that stands for that.
fn head_of(engine: &Engine, adapter: Option<&Arc<Bound>>, task: Task) -> Result<Option<Head>> {
    let head = adapter.and_then(|a| a.head.clone());
    if head.is_some() || !task.rules().own_output() {
        return Ok(head);
    }
    let features = choose_features(engine, None, None, true)?;
    Ok(Some(Head {
        task: task.name().into(),
        output: features.name,
        pool: features.pool,
        features: features.width as u32,
        ..Head::default()
    }))
}

fn labels(engine: &Engine, adapter: Option<&Arc<Bound>>, task: Task) -> Result<Vec<String>> {
    let own = &engine.base().preprocess().labels;
    if task.rules().own_output() {
        return Ok(own.clone());
    }
    if let Some(head) = adapter.and_then(|a| a.head.as_ref()) {
        return Ok(head.labels.to_vec());
    }
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
    let task = samples.task();
    let head = head_of(engine, adapter, task)?;
    let head = head.as_ref();
    let own = task.rules().own_output();
    let labels = if own { &engine.labels()[..] } else { labels };
    let mut meter = task.rules().meter(labels.len());
    let mut take = |sample: usize, row: &[f32]| -> Result<()> {
        let given = samples.given(sample, Given::of_head(row, labels, head));
        meter.add(samples.label(sample), &given)
    };
    if !each_row(engine, adapter, samples, which, labels, batch, go_on, &mut take)? {
        return Ok(None);
    }
    let measured = meter.finish();
    Ok(Some(Evaluation {
        task,
        samples: which.len(),
        metrics: measured.metrics,
        confusion: measured.confusion,
        f1: measured.f1,
        labels: if own { vec![] } else { labels.to_vec() },
    }))
}

/// As [`evaluate_samples`], of `rows`, the features that `head` reads of each of `which`: no graph runs.
pub(super) fn evaluate_features(
    samples: &Samples,
    which: &[usize],
    rows: &[Vec<f32>],
    head: &Head,
) -> Result<Evaluation> {
    let task = samples.task();
    let mut meter = task.rules().meter(head.labels.len());
    for (&sample, row) in which.iter().zip(rows) {
        let output = linear(&head.weight, &head.bias, row);
        let given = Given::of_head(&output, &head.labels, Some(head));
        meter.add(samples.label(sample), &samples.given(sample, given))?;
    }
    let measured = meter.finish();
    Ok(Evaluation {
        task,
        samples: which.len(),
        metrics: measured.metrics,
        confusion: measured.confusion,
        f1: measured.f1,
        labels: head.labels.to_vec(),
    })
}

/// Gives `take` the output of every one of `which`, in an order of its own. `false` where `go_on`,
/// asked between batches, said stop.
///
/// # Errors
/// Mismatch: what answers has another task than the samples.
#[allow(clippy::too_many_arguments)]
pub(super) fn each_row(
    engine: &Engine,
    adapter: Option<&Arc<Bound>>,
    samples: &Samples,
    which: &[usize],
    labels: &[String],
    batch: usize,
    go_on: &mut dyn FnMut() -> bool,
    take: Take<'_>,
) -> Result<bool> {
    if which.is_empty() {
        return Err(Error::usage("no samples to evaluate"));
    }
    let (answering, asked) =
        (Task::serving(adapter.and_then(|a| a.head.as_ref()), engine.base())?, samples.task());
    if answering != asked {
        return Err(Error::mismatch(format!(
            "the samples are labelled for the task {asked}, what answers has learned {answering}"
        )));
    }
    if samples.writes() {
        for &sample in which {
            if !go_on() {
                return Ok(false);
            }
            take(sample, &samples.written(sample, adapter)?)?;
        }
        return Ok(true);
    }
    // One shape for all groups of a form and a length, those that are not full included.
    let head = head_of(engine, adapter, asked)?;
    let head = head.as_ref();
    let few = head.filter(|_| asked.rules().own_output()).map_or(usize::MAX, |head| {
        let tokens = which.iter().map(|&s| samples.length(s)).max().unwrap_or(1);
        (MAX_LOGITS / (tokens * head.features as usize).max(1)).max(1)
    });
    let rows = samples.fixed_rows().unwrap_or_else(|| batch.clamp(1, which.len()).min(few));
    for group in samples.groups(which, rows) {
        if !go_on() {
            return Ok(false);
        }
        let inputs = samples.inputs(&group, rows)?;
        let outputs = engine.run(&inputs, adapter)?;
        let mask = engine.given(&inputs, Role::Mask);
        let predictions = predictions(engine, head, labels.len(), mask, &outputs)?;
        for (&sample, prediction) in group.iter().zip(&predictions) {
            take(sample, &prediction.logits)?;
        }
    }
    Ok(true)
}

fn predictions(
    engine: &Engine,
    head: Option<&Head>,
    classes: usize,
    mask: Option<View<'_>>,
    outputs: &Named,
) -> Result<Vec<Prediction>> {
    if let Some(head) = head {
        return apply_head(engine, head, mask, outputs);
    }
    match base_predictions(engine, outputs) {
        none if none.is_empty() => Err(Error::mismatch(format!(
            "no output of the base has its {classes} labels as columns"
        ))),
        found => Ok(found),
    }
}
