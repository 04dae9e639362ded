//! Measuring a candidate, in the training child: the hold-out against the generation before,
//! retention, effect, time. What it means is the gate's to say.

use super::assignment::Assignment;
use super::gate::{HeldRow, Kept, Labelled, Measured, Reference};
use super::probes::probes;
use crate::adapter::{Adapter, Bound};
use crate::error::{Error, Result};
use crate::runtime::{Engine, Named};
use crate::train::data::{Dataset, Label, LoadOptions, SampleInput, Task, load};
use crate::train::metrics::{argmax, softmax};
use crate::train::{answers, retention};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Samples that run at once; pictures, which take most memory there, run one by one.
const BATCH: usize = 4;
/// Least probability that a loss is taken of: what one sample can weigh is bounded.
const LEAST: f64 = 1e-4;
/// Timed runs of each side.
const TIMED: usize = 9;

/// What is asked before each batch; `false`: stop.
type GoOn<'a> = &'a mut dyn FnMut() -> bool;

/// Measures `candidate`, trained on `train`. `None` where `go_on` said stop.
///
/// # Errors
/// What running says; a retention set that can't be read, or that nothing answers (mismatch).
pub fn measure(
    engine: &Engine,
    work: &Assignment,
    candidate: &Adapter,
    previous: Option<&Adapter>,
    [train, held]: [&Dataset; 2],
    go_on: GoOn<'_>,
) -> Result<Option<Measured>> {
    let max_tokens = (work.train.max_tokens > 0).then_some(work.train.max_tokens);
    let bound = engine.bind(&[(candidate, 1.0)])?;
    let before = previous.map(|p| engine.bind(&[(p, 1.0)])).transpose()?;
    let ask = |adapter: Option<&Arc<Bound>>, go_on: GoOn<'_>| {
        answers(engine, adapter, held, at_once(held), max_tokens, go_on)
    };
    let Some(now) = ask(Some(&bound), &mut *go_on)? else { return Ok(None) };
    let own = &engine.base().preprocess().labels;
    let base_answers = held.classes().is_some() && held.labels.iter().any(|l| own.contains(l));
    let then = match &before {
        None if !base_answers => None,
        // Without a generation before it is the base that answers.
        before => match ask(before.as_ref(), &mut *go_on)? {
            Some(then) => Some(then),
            None => return Ok(None),
        },
    };
    let finite = now.1.iter().flatten().all(|v| v.is_finite());
    // Numbers of samples rise as they come in.
    let old: Vec<bool> =
        work.held.iter().map(|id| work.newest_seen.is_some_and(|newest| *id < newest)).collect();
    let mut rows_found = rows(train, held, &old, &now, then.as_ref());
    let mut reference = match work.previous {
        Some(generation) if before.is_some() => Reference::Generation(generation),
        _ if then.is_some() => Reference::Base,
        _ => Reference::MostFrequent,
    };
    if reference == Reference::Base {
        // A base that knows few of the labels is easily surpassed: the better of the two counts.
        let frequent = rows(train, held, &old, &now, None);
        let right =
            |rows: &[HeldRow]| rows.iter().filter(|row| row.reference_right == Some(true)).count();
        if right(&frequent) > right(&rows_found) {
            (rows_found, reference) = (frequent, Reference::MostFrequent);
        }
    }
    let inputs = probes(engine, max_tokens)?;
    let found = retention(engine, &bound, inputs.iter().cloned().map(Ok), &mut *go_on)?;
    let Some(found) = found else { return Ok(None) };
    let labelled = match &work.gate.retention_data {
        Some(path) => {
            let task = if held.classes().is_some() { Task::Classes } else { Task::Auto };
            let data = load(path, &LoadOptions { task, ..LoadOptions::default() })?;
            let sides = [Some(candidate), previous];
            match labelled(engine, sides, &data, max_tokens, &mut *go_on)? {
                Some(found) => Some(found),
                None => return Ok(None),
            }
        }
        None => None,
    };
    let first = inputs.first().ok_or_else(|| Error::failed("there are no probe inputs"))?;
    let (candidate_ms, reference_ms) = times(engine, first, &bound, before.as_ref())?;
    Ok(Some(Measured {
        reference,
        labels: held.labels.clone(),
        held: rows_found,
        effect: (!candidate.targets.is_empty()).then_some(f64::from(found.moved)),
        kept: Kept {
            samples: found.samples,
            output: found.output,
            cosine_mean: found.cosine_mean.into(),
            cosine_min: found.cosine_min.into(),
            agreement: found.top1_agreement.map(f64::from),
        },
        labelled,
        finite,
        candidate_ms,
        reference_ms,
    }))
}

fn at_once(data: &Dataset) -> usize {
    match data.samples.first().map(|s| &s.input) {
        Some(SampleInput::Image(_) | SampleInput::Stored(_)) => 1,
        _ => BATCH,
    }
}

/// Labels and raw outputs of one side.
type Side = (Vec<String>, Vec<Vec<f32>>);

/// The answers of both sides to every held-out sample; without a generation before, those of
/// always the most frequent label (numbers: the mean).
fn rows(
    train: &Dataset,
    held: &Dataset,
    old: &[bool],
    now: &Side,
    then: Option<&Side>,
) -> Vec<HeldRow> {
    let frequencies = frequencies(train);
    let most = frequencies.iter().max_by_key(|(_, n)| **n).map(|(l, _)| l.clone());
    let mean = mean_values(train);
    let total: usize = frequencies.values().sum();
    let row = |(at, sample): (usize, &crate::train::data::Sample)| match &sample.label {
        Label::Class(class) => {
            let label = held.labels.get(*class).map_or("", String::as_str);
            let (candidate_right, candidate_loss) = class_answer(now, at, label);
            let (reference_right, reference_loss) = match then {
                Some(then) => class_answer(then, at, label),
                None => {
                    let count = frequencies.get(label).copied().unwrap_or(0);
                    let share = count as f64 / total.max(1) as f64;
                    (most.as_deref() == Some(label), -share.max(LEAST).ln())
                }
            };
            HeldRow {
                class: *class,
                candidate_right: Some(candidate_right),
                candidate_loss,
                reference_right: Some(reference_right),
                reference_loss,
                old: old.get(at) == Some(&true),
            }
        }
        Label::Values(values) => {
            let loss = |found: &[f32]| {
                let squares = values.iter().zip(found).map(|(v, f)| f64::from(v - f).powi(2));
                squares.sum::<f64>() / values.len().max(1) as f64
            };
            let of = |side: &Side| side.1.get(at).map_or(f64::INFINITY, |row| loss(row));
            HeldRow {
                class: 0,
                candidate_right: None,
                candidate_loss: of(now),
                reference_right: None,
                old: old.get(at) == Some(&true),
                reference_loss: then.map_or_else(|| loss(&mean), of),
            }
        }
    };
    held.samples.iter().enumerate().map(row).collect()
}

/// Whether the side's best label is `label`, and its loss; a label that it doesn't know is wrong.
fn class_answer(side: &Side, at: usize, label: &str) -> (bool, f64) {
    let Some(logits) = side.1.get(at) else { return (false, -LEAST.ln()) };
    let place = side.0.iter().position(|l| l == label);
    let p = place.and_then(|p| softmax(logits).get(p).copied()).map_or(0.0, f64::from);
    (place.is_some() && argmax(logits) == place, -p.max(LEAST).ln())
}

fn frequencies(data: &Dataset) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for class in data.classes().unwrap_or_default() {
        if let Some(label) = data.labels.get(class) {
            *found.entry(label.clone()).or_default() += 1;
        }
    }
    found
}

fn mean_values(data: &Dataset) -> Vec<f32> {
    let mut sum = vec![0f64; data.label_width()];
    let mut count = 0u32;
    for sample in &data.samples {
        if let Label::Values(values) = &sample.label {
            sum.iter_mut().zip(values).for_each(|(s, v)| *s += f64::from(*v));
            count += 1;
        }
    }
    sum.into_iter().map(|s| (s / f64::from(count.max(1))) as f32).collect()
}

/// Accuracy on the retention set: of the heads where they know its labels, else of the base's own
/// classes with and without the adapters.
fn labelled(
    engine: &Engine,
    [candidate, previous]: [Option<&Adapter>; 2],
    data: &Dataset,
    max_tokens: Option<usize>,
    go_on: GoOn<'_>,
) -> Result<Option<Labelled>> {
    let knows = |labels: &[String]| data.labels.iter().all(|l| labels.contains(l));
    let own = &engine.base().preprocess().labels;
    let by_head = candidate.and_then(Adapter::head).is_some_and(|h| knows(&h.labels));
    if !by_head && !knows(own) {
        return Err(Error::mismatch(
            "neither the adapter nor the base knows the labels of the \
            retention set",
        ));
    }
    let mut shares = vec![];
    for side in [candidate, previous] {
        let adapter = side.map(|a| {
            let heads = if by_head { a.heads.clone() } else { vec![] };
            engine.bind(&[(&Adapter { heads, ..a.clone() }, 1.0)])
        });
        let adapter = adapter.transpose()?;
        if adapter.is_none() && !knows(own) {
            // Nothing answered before: nothing can be lost.
            shares.push(0.0);
            continue;
        }
        let found =
            answers(engine, adapter.as_ref(), data, at_once(data), max_tokens, &mut *go_on)?;
        let Some(found) = found else { return Ok(None) };
        let classes = data.classes().unwrap_or_default();
        let right = classes.iter().enumerate().filter(|(at, class)| {
            data.labels.get(**class).is_some_and(|label| class_answer(&found, *at, label).0)
        });
        shares.push(right.count() as f64 / data.samples.len().max(1) as f64);
    }
    let [candidate, reference] = shares.as_slice() else { return Ok(None) };
    let samples = data.samples.len();
    Ok(Some(Labelled { samples, candidate: *candidate, reference: *reference }))
}

/// Least milliseconds of one row with the candidate and with the reference, in turns: what else the
/// machine does only adds to a run's time, and much beside a process of the lowest priority.
fn times(
    engine: &Engine,
    inputs: &Named,
    candidate: &Arc<Bound>,
    reference: Option<&Arc<Bound>>,
) -> Result<(f64, f64)> {
    let mut found = [vec![], vec![]];
    for round in 0..=TIMED {
        for (side, adapter) in found.iter_mut().zip([Some(candidate), reference]) {
            let began = Instant::now();
            engine.run(inputs, adapter)?;
            // The first run warms up.
            if round > 0 {
                side.push(began.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    let [a, b] = found.map(|times| times.into_iter().reduce(f64::min).unwrap_or(0.0));
    Ok((a, b))
}
