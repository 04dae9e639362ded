//! Layer 6: ways to learn side by side, on one base and data set: what each gains, what it leaves of
//! the base's knowledge, and what it costs. Each run is a process of its own ([`worker`]), so that
//! the memory that it took is its own, and one that dies ends no other.

mod child;
mod figures;
mod method;
mod verdict;
mod worker;

pub use figures::{Figure, Figures, Outcome, Value};
pub use method::Method;
pub use verdict::percent;
pub use worker::{is_worker_call, worker_main};

use crate::error::{Error, ErrorKind, Result};
use crate::train::progress::Event;
use child::Child;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is the same for all runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// The base file.
    pub base: PathBuf,
    /// The data set, as for training.
    pub data: PathBuf,
    /// The task's name; by default what the data look like.
    pub task: Option<String>,
    /// Share of the samples that is held out where the data have no split for it.
    pub holdout: f32,
    /// Passes over the data.
    pub epochs: Option<u32>,
    /// Steps at least, where the passes are fewer.
    pub min_steps: u32,
    /// Steps; goes before both.
    pub steps: Option<u32>,
    /// Samples a step.
    pub batch: usize,
    /// Samples that go through the network at once.
    pub micro_batch: Option<usize>,
    /// Peak learning rate of low-rank matrices; other kinds have a multiple of it that suits them.
    pub learning_rate: f32,
    /// How many times that is the head's.
    pub head_rate: f32,
    /// Threads.
    pub threads: usize,
    /// Longest token sequence.
    pub max_tokens: Option<usize>,
    /// What the knowledge is measured on.
    pub probes: Option<PathBuf>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// How it learns.
    pub method: Method,
    /// Share of the samples to train on that it gets.
    pub share: f32,
    /// Decides everything random: what is held out, which share it gets, first values, the order.
    pub seed: u64,
}

/// All that is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is the same for all runs.
    pub recipe: Recipe,
    /// How to learn.
    pub methods: Vec<Method>,
    /// Shares of the samples, ascending.
    pub shares: Vec<f32>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Time after which no run begins.
    pub time: Option<Duration>,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Came {
    /// It ended well.
    Done(Box<Outcome>),
    /// It doesn't fit the task or the base: why.
    LeftOut(String),
    /// It failed: why.
    Failed(String),
}

/// A comparison.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Comparison {
    /// Runs and what came of them.
    pub runs: Vec<(Run, Came)>,
    /// Runs that were not begun, since the time was over.
    pub not_begun: usize,
}

/// One method at one share of the data, over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// How it learned.
    pub method: Method,
    /// The share of the samples.
    pub share: f32,
    /// Of the seeds that ended well; none where none did.
    pub figures: Option<Figures>,
    /// Why it was left out.
    pub left_out: Option<String>,
    /// Why runs failed, each reason once.
    pub failed: Vec<String>,
}

/// What a comparison tells while it works.
pub enum News<'a> {
    /// A run begins: how many of how many it is.
    Begun(usize, usize, &'a Run),
    /// What the run tells.
    Event(&'a Event),
}

/// Does all runs, seed by seed, so that whole comparisons are there where the time is over.
///
/// # Errors
/// Failed: this program can't be started again.
pub fn compare(plan: &Plan, hear: &mut dyn FnMut(&News<'_>)) -> Result<Comparison> {
    let began = Instant::now();
    let all: Vec<Run> = plan
        .seeds
        .iter()
        .flat_map(|&seed| plan.shares.iter().map(move |&share| (seed, share)))
        .flat_map(|(seed, share)| {
            plan.methods.iter().map(move |method| Run { method: method.clone(), share, seed })
        })
        .collect();
    let mut found = Comparison::default();
    let mut unfit: Vec<(String, String)> = vec![];
    for (at, run) in all.iter().enumerate() {
        if plan.time.is_some_and(|most| began.elapsed() >= most) {
            found.not_begun = all.len() - at;
            break;
        }
        if unfit.iter().any(|(name, _)| *name == run.method.name) {
            continue;
        }
        hear(&News::Begun(at + 1, all.len(), run));
        let came = match Child::start(&plan.recipe, run)?.hear(&mut |e| hear(&News::Event(e))) {
            Ok(outcome) => Came::Done(Box::new(outcome)),
            // What no other seed or share would change.
            Err(e) if is_unfit(&e) => Came::LeftOut(e.message().into()),
            Err(e) => Came::Failed(e.message().into()),
        };
        if let Came::LeftOut(why) = &came {
            unfit.push((run.method.name.clone(), why.clone()));
        }
        found.runs.push((run.clone(), came));
    }
    Ok(found)
}

fn is_unfit(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Usage)
}

impl Comparison {
    /// A row for each share and method, in this order; what was left out has one row.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = vec![];
        let mut of_row: Vec<Vec<(u64, &Outcome)>> = vec![];
        for (run, came) in &self.runs {
            let same = |row: &Row| row.method == run.method && row.share == run.share;
            let at = rows.iter().position(same).unwrap_or_else(|| {
                let method = run.method.clone();
                let share = run.share;
                rows.push(Row { method, share, figures: None, left_out: None, failed: vec![] });
                of_row.push(vec![]);
                rows.len() - 1
            });
            match came {
                Came::Done(outcome) => of_row[at].push((run.seed, outcome)),
                Came::LeftOut(why) => rows[at].left_out = Some(why.clone()),
                Came::Failed(why) if !rows[at].failed.contains(why) => {
                    rows[at].failed.push(why.clone());
                }
                Came::Failed(_) => {}
            }
        }
        for (row, outcomes) in rows.iter_mut().zip(of_row) {
            row.figures = Figures::of(&outcomes);
        }
        rows.sort_by(|a, b| a.share.total_cmp(&b.share));
        rows
    }

    /// Whether LoRA is enough, and what more would cost, in plain words.
    pub fn verdict(&self) -> String {
        verdict::verdict(&self.rows())
    }
}

#[cfg(test)]
mod tests;
