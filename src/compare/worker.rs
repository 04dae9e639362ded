//! A run: this program called by itself. It trains, measures, and prints what it found.

use super::{Outcome, Recipe, Run, Value};
use crate::adapter::TensorType;
use crate::error::{Error, ErrorKind, Result};
use crate::fs::peak_rss_bytes;
use crate::pack::prepare_heap;
use crate::runtime::Engine;
use crate::train::data::{Dataset, training};
use crate::train::progress::{Event, Progress};
use crate::train::random::{shuffle, stream};
use crate::train::{Task, Trained, train};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::time::{Duration, Instant};

/// The hidden first argument.
pub(super) const VERB: &str = "compare-worker";
/// Least time between two lines about steps.
const PACE: Duration = Duration::from_millis(200);

/// A line that it prints.
#[derive(Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub(super) enum Line {
    Started { steps: u64 },
    Step { step: u64, steps: u64, loss: f64, seconds_left: f64 },
    Done { outcome: Outcome },
    Failed { unfit: bool, message: String },
}

/// Whether these arguments call the worker.
pub fn is_worker_call(arguments: &[OsString]) -> bool {
    arguments.get(1).is_some_and(|word| word == VERB)
}

/// Runs the worker with the process's arguments; its exit code.
pub fn worker_main(arguments: &[OsString]) -> u8 {
    let (line, code) = match work(arguments) {
        Ok(outcome) => (Line::Done { outcome }, 0),
        Err(e) => {
            let unfit = matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::Usage);
            (Line::Failed { unfit, message: e.message().into() }, e.kind().exit_code())
        }
    };
    print(&line);
    code
}

fn print(line: &Line) {
    // A parent that has gone away hears nothing.
    if let Ok(text) = serde_json::to_string(line) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

fn work(arguments: &[OsString]) -> Result<Outcome> {
    let wrong = || Error::usage(format!("{VERB} is for offshoot itself"));
    let [_, _, recipe, run, parent] = arguments else { return Err(wrong()) };
    let text = |word: &OsString| word.to_str().map(String::from).ok_or_else(wrong);
    let recipe: Recipe = serde_json::from_str(&text(recipe)?).map_err(|_| wrong())?;
    let run: Run = serde_json::from_str(&text(run)?).map_err(|_| wrong())?;
    let parent: i32 = text(parent)?.parse().map_err(|_| wrong())?;
    // Where the system has no such thing, it works to its end for nobody.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    if getppid().map(|p| p.as_raw_nonzero().get()) != Some(parent) {
        return Err(Error::failed("the program that started this is gone"));
    }
    learn(&recipe, &run)
}

fn learn(recipe: &Recipe, run: &Run) -> Result<Outcome> {
    let began = Instant::now();
    prepare_heap();
    let engine = Engine::open(&recipe.base)?;
    let task = recipe.task.as_deref().map(Task::parse).transpose()?;
    let read = training(&recipe.data, engine.base(), task, None)?;
    let (data, held) = match read.held_out {
        Some(held) => (read.data, held),
        None => split(read.data, recipe.holdout.into(), run.seed)?,
    };
    let data = share_of(data, run.share.into(), run.seed);
    let options = run.method.options(recipe, data.task, run.seed);
    let trained = train(&engine, &data, Some(&held), &options, &mut Told::default())?;
    let file_bytes = trained.adapter.to_bytes(TensorType::F32)?.len() as u64;
    Ok(outcome(&trained, file_bytes, began.elapsed()))
}

fn outcome(trained: &Trained, file_bytes: u64, took: Duration) -> Outcome {
    let report = &trained.report;
    let shown = report.evaluation.iter().flat_map(|e| &e.metrics.0);
    let value = |m: &crate::train::tasks::Metric| Value {
        name: m.name.into(),
        value: m.value.into(),
        higher_is_better: m.higher_is_better,
    };
    let metrics: Vec<Value> = shown.filter(|m| m.name != "loss").map(value).collect();
    let is_worse = |metric: &Value| {
        let before = report.before.iter().find(|(name, _)| *name == metric.name);
        before.is_some_and(|(_, before)| match metric.higher_is_better {
            true => metric.value < (*before).into(),
            false => metric.value > (*before).into(),
        })
    };
    // Its own output is what the base knows: nothing is left of it where that is what is learned.
    let head_alone = report.targets == 0 && !report.labels.is_empty();
    let (kept, kept_of) = match &report.knowledge {
        _ if head_alone => (Some(1.0), None),
        Some(found) => (Some(f64::from(found.kept)), Some(found.sentence())),
        None => (None, None),
    };
    Outcome {
        samples: report.samples_train,
        held_out: report.samples_holdout,
        steps: report.steps,
        parameters: report.parameters as u64,
        file_bytes,
        step_ms: (report.steps > 0).then_some(report.step_ms_median),
        seconds: took.as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
        worse: metrics.first().is_some_and(is_worse),
        metrics,
        kept,
        kept_of,
    }
}

/// What is trained on, and what is held out.
fn split(data: Dataset, holdout: f64, seed: u64) -> Result<(Dataset, Dataset)> {
    let chosen = data.hold_out(holdout, seed)?;
    let Dataset { samples, labels, splits, task, why } = data;
    let mut held = vec![false; samples.len()];
    chosen.held_out.iter().for_each(|&at| held[at] = true);
    let mut is_held = held.into_iter();
    let (held, train) = samples.into_iter().partition(|_| is_held.next().unwrap_or(false));
    let of = |samples| Dataset {
        samples,
        labels: labels.clone(),
        splits: splits.clone(),
        task,
        why: why.clone(),
    };
    Ok((of(train), of(held)))
}

/// That share of each class, one sample at least, chosen by `seed`.
fn share_of(mut data: Dataset, share: f64, seed: u64) -> Dataset {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, group) in data.groups().into_iter().enumerate() {
        groups.entry(group).or_default().push(at);
    }
    let mut taken = vec![false; data.samples.len()];
    for (group, mut members) in groups {
        shuffle(&mut members, &mut stream(seed, "share", group as u64));
        let count = (members.len() as f64 * share).round() as usize;
        members.iter().take(count.max(1)).for_each(|&at| taken[at] = true);
    }
    let mut taken = taken.into_iter();
    data.samples.retain(|_| taken.next().unwrap_or(false));
    data
}

/// Tells the parent how far the run is.
#[derive(Default)]
struct Told {
    last: Option<Instant>,
}

impl Progress for Told {
    fn event(&mut self, event: &Event) {
        match *event {
            Event::Started { steps, .. } => print(&Line::Started { steps }),
            Event::Step { step, steps, loss, seconds_left, .. }
                if step == steps || self.last.is_none_or(|last| last.elapsed() >= PACE) =>
            {
                self.last = Some(Instant::now());
                print(&Line::Step { step, steps, loss, seconds_left });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::data::{Label, Place, Sample, SampleInput};

    fn made_up() -> Dataset {
        let sample = |i: usize| Sample {
            input: SampleInput::Text(i.to_string()),
            label: Label::Class(i % 3),
            place: Place::named("made up"),
        };
        Dataset {
            samples: (0..60).map(sample).collect(),
            labels: ["a", "b", "c"].map(String::from).to_vec(),
            splits: Default::default(),
            task: Task::default(),
            why: None,
        }
    }

    #[test]
    fn a_seed_fixes_what_is_held_out_and_each_share() {
        let of = |share: f64, seed: u64| {
            let (train, held) = split(made_up(), 0.2, seed).unwrap();
            (share_of(train, share, seed).samples, held.samples)
        };
        let (all, held) = of(1.0, 4);
        assert_eq!((all.len(), held.len()), (48, 12));
        assert!(held.iter().all(|sample| !all.contains(sample)));
        let (some, same) = of(0.25, 4);
        assert_eq!((some.len(), &same), (12, &held));
        assert!(some.iter().all(|sample| all.contains(sample)));
        let classes = |class| some.iter().filter(|s| s.label == Label::Class(class)).count();
        assert_eq!([0, 1, 2].map(classes), [4, 4, 4]);
        // One of each class at least.
        assert_eq!(of(0.001, 4).0.len(), 3);
        assert_ne!(of(0.25, 5), (some, held));
    }
}
