//! Measuring a candidate, in the training child: the hold-out against the generation before,
//! retention, effect, time. What it means is the gate's to say.

use super::assignment::Assignment;
use super::gate::{HeldRow, Kept, Labelled, Lessons, Measured, Reference};
use super::probes::probes;
use crate::adapter::{Adapter, Bound};
use crate::error::{Error, Result};
use crate::runtime::{Engine, Named};
use crate::train::data::{Dataset, LoadOptions, SampleInput, load};
use crate::train::{Answered, Task, always, answers, retention};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Samples that run at once; pictures, which take most memory there, run one by one.
const BATCH: usize = 4;
/// Timed pairs of runs: all of them, or as many as go into the time, but for the least.
const PAIRS: usize = 31;
const LEAST_PAIRS: usize = 9;
const LONG_ENOUGH: Duration = Duration::from_secs(5);

/// What is asked before each batch; `false`: stop.
type GoOn<'a> = &'a mut dyn FnMut() -> bool;

/// What is measured, and against what.
pub struct Sides<'a> {
    /// What was made of the training samples.
    pub candidate: &'a Adapter,
    /// What answers today; `None`: the base, or nothing.
    pub reference: Option<(&'a Adapter, Reference)>,
    /// The samples trained on.
    pub train: &'a Dataset,
    /// The held-out ones.
    pub held: &'a Dataset,
    /// Some of the new ones among those trained on.
    pub lessons: Option<&'a Dataset>,
}

/// Measures a candidate. `None` where `go_on` said stop.
///
/// # Errors
/// What running says; a retention set that can't be read, or that nothing answers (mismatch).
pub fn measure(
    engine: &Engine,
    work: &Assignment,
    sides: &Sides<'_>,
    go_on: GoOn<'_>,
) -> Result<Option<Measured>> {
    let Sides { candidate, reference: against, train, held, lessons } = *sides;
    let previous = against.map(|(adapter, _)| adapter);
    let max_tokens = (work.train.max_tokens > 0).then_some(work.train.max_tokens);
    let bound = engine.bind(&[(candidate, 1.0)])?;
    let before = previous.map(|p| engine.bind(&[(p, 1.0)])).transpose()?;
    let ask_of = |data, adapter: Option<&Arc<Bound>>, go_on: GoOn<'_>| {
        answers(engine, adapter, data, at_once(data), max_tokens, go_on)
    };
    let ask = |adapter: Option<&Arc<Bound>>, go_on: GoOn<'_>| ask_of(held, adapter, go_on);
    let Some(now) = ask(Some(&bound), &mut *go_on)? else { return Ok(None) };
    let own = &engine.base().preprocess().labels;
    let base_answers = held.task == Task::serving(None, engine.base())?
        && (held.task.rules().own_output() || held.labels.iter().any(|l| own.contains(l)));
    let then = match &before {
        None if !base_answers => None,
        // Without a generation before it is the base that answers.
        before => match ask(before.as_ref(), &mut *go_on)? {
            Some(then) => Some(then),
            None => return Ok(None),
        },
    };
    let finite = now.finite;
    // Numbers of samples rise as they come in.
    let old: Vec<bool> =
        work.held.iter().map(|id| work.newest_seen.is_some_and(|newest| *id < newest)).collect();
    let frequent = || always(engine, train, held, max_tokens);
    let mut rows_found = match &then {
        Some(then) => rows(held, &old, &now, then),
        None => rows(held, &old, &now, &frequent()?),
    };
    let mut reference = match against {
        Some((_, reference)) => reference,
        None if then.is_some() => Reference::Base,
        None => Reference::MostFrequent,
    };
    if reference == Reference::Base {
        // A base that knows few of the labels is easily surpassed: the better of the two counts.
        let frequent = rows(held, &old, &now, &frequent()?);
        let right =
            |rows: &[HeldRow]| rows.iter().filter_map(|row| row.reference_right).sum::<f64>();
        if right(&frequent) > right(&rows_found) {
            (rows_found, reference) = (frequent, Reference::MostFrequent);
        }
    }
    let lessons = match lessons.filter(|_| then.is_some()) {
        Some(lessons) => {
            let now = ask_of(lessons, Some(&bound), &mut *go_on)?;
            let then = ask_of(lessons, before.as_ref(), &mut *go_on)?;
            let (Some(now), Some(then)) = (now, then) else { return Ok(None) };
            Some(learned(&now, &then, lessons.samples.len()))
        }
        None => None,
    };
    let inputs = probes(engine, max_tokens)?;
    let found = retention(engine, &bound, inputs.iter().cloned().map(Ok), &mut *go_on)?;
    let Some(found) = found else { return Ok(None) };
    let labelled = match &work.gate.retention_data {
        Some(path) => {
            // Of classes names whatever they look like; of another task the base's own may be meant.
            let task = (held.task == Task::default()).then_some(held.task);
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
    let Times { candidate_ms, reference_ms, latency_ratio } =
        times(engine, first, &bound, before.as_ref())?;
    Ok(Some(Measured {
        reference,
        labels: held.labels.clone(),
        metric: held.task.score_name().into(),
        held: rows_found,
        lessons,
        // What a decoder writes may change where the encoder's output doesn't.
        effect: (!candidate.targets.is_empty() && !held.task.rules().writes())
            .then_some(f64::from(found.moved)),
        kept: Kept {
            samples: found.samples,
            sentence: found.sentence(),
            output: found.output,
            cosine_mean: found.cosine_mean.into(),
            cosine_min: found.cosine_min.into(),
            agreement: found.top1_agreement.map(f64::from),
        },
        labelled,
        finite,
        candidate_ms,
        reference_ms,
        latency_ratio,
    }))
}

fn at_once(data: &Dataset) -> usize {
    match data.samples.first().map(|s| &s.input) {
        Some(SampleInput::Image(_) | SampleInput::Audio(_) | SampleInput::Stored(_)) => 1,
        _ => BATCH,
    }
}

/// What both sides' answers to every held-out sample are worth.
fn rows(held: &Dataset, old: &[bool], now: &Answered<'_>, then: &Answered<'_>) -> Vec<HeldRow> {
    let groups = held.groups();
    let row = |at: usize| {
        let (candidate, reference) = (now.score(at), then.score(at));
        // Both sides name the labels of the same right answer, in its order.
        let pairs = now.places(at).into_iter().zip(candidate.labels.iter().zip(&reference.labels));
        HeldRow {
            group: groups.get(at).copied().unwrap_or(0),
            candidate_right: candidate.right,
            candidate_loss: candidate.loss,
            reference_right: reference.right,
            reference_loss: reference.loss,
            labels: pairs.map(|(place, (c, r))| (place, c.1, r.1)).collect(),
            old: old.get(at) == Some(&true),
        }
    };
    (0..held.samples.len()).map(row).collect()
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
    let head = candidate.and_then(Adapter::head);
    let by_head =
        head.is_some_and(|h| knows(&h.labels)) && Task::serving(head, engine.base())? == data.task;
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
        let right = (0..data.samples.len()).filter_map(|at| found.score(at).right);
        shares.push(right.sum::<f64>() / data.samples.len().max(1) as f64);
    }
    let [candidate, reference] = shares.as_slice() else { return Ok(None) };
    let samples = data.samples.len();
    Ok(Some(Labelled { samples, candidate: *candidate, reference: *reference }))
}

/// How many new samples each side answers rightly; numbers: better than the other.
fn learned(now: &Answered<'_>, then: &Answered<'_>, samples: usize) -> Lessons {
    let mut lessons = Lessons { samples, candidate: 0.0, reference: 0.0 };
    for at in 0..samples {
        let (candidate, reference) = (now.score(at), then.score(at));
        let better = |a: f64, b: f64| f64::from(u8::from(a < b));
        let (c, r) = (candidate.loss, reference.loss);
        lessons.candidate += candidate.right.unwrap_or_else(|| better(c, r));
        lessons.reference += reference.right.unwrap_or_else(|| better(r, c));
    }
    lessons
}

/// Medians over pairs of runs.
struct Times {
    candidate_ms: f64,
    reference_ms: f64,
    latency_ratio: f64,
}

/// How long one row takes with the candidate and with the reference: pairs of runs, one right after the
/// other and in turns the first, so that what else the machine does meets both alike, and a disturbance of
/// one run moves no median.
fn times(
    engine: &Engine,
    inputs: &Named,
    candidate: &Arc<Bound>,
    reference: Option<&Arc<Bound>>,
) -> Result<Times> {
    let sides = [Some(candidate), reference];
    let run = |side: usize| -> Result<f64> {
        let began = Instant::now();
        engine.run(inputs, sides.get(side).copied().flatten())?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    // The first runs warm up.
    run(0)?;
    run(1)?;
    let began = Instant::now();
    let (mut times, mut ratios) = ([vec![], vec![]], vec![]);
    while ratios.len() < PAIRS && (ratios.len() < LEAST_PAIRS || began.elapsed() < LONG_ENOUGH) {
        let first = ratios.len() % 2;
        let (a, b) = (run(first)?, run(1 - first)?);
        let (candidate, reference) = if first == 0 { (a, b) } else { (b, a) };
        times[0].push(candidate);
        times[1].push(reference);
        ratios.push(candidate / reference.max(1e-6));
    }
    let [candidate_ms, reference_ms] = times.map(median);
    Ok(Times { candidate_ms, reference_ms, latency_ratio: median(ratios) })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
