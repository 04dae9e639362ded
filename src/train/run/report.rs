//! What a run gives.

use crate::adapter::Adapter;
use crate::train::evaluate::Evaluation;
use crate::train::instant::InstantReport;
use crate::train::knowledge::KnowledgeKept;
use crate::train::prefix::PrefixReport;
use crate::train::recompute::Repeated;
use crate::train::tasks::Task;
use serde::Serialize;

/// What a run gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The adapter.
    pub adapter: Adapter,
    /// How it went.
    pub report: TrainReport,
}

/// How a run went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// Optimizer steps taken.
    pub steps: u64,
    /// Passes over the samples.
    pub epochs: f32,
    /// Seconds that this process worked on it.
    pub seconds: f64,
    /// Median milliseconds of a step.
    pub step_ms_median: f64,
    /// Samples trained on.
    pub samples_train: usize,
    /// Samples held out.
    pub samples_holdout: usize,
    /// Loss of the first step's batch.
    pub loss_first: f32,
    /// Mean loss over the last epoch's steps.
    pub loss_last: f32,
    /// Hold-out metrics of the untrained adapter with the head that it begins with; none without a
    /// hold-out.
    pub before: Vec<(String, f32)>,
    /// Hold-out metrics of the adapter.
    pub after: Vec<(String, f32)>,
    /// All that the hold-out shows of the adapter; none without one.
    #[serde(skip)]
    pub evaluation: Option<Evaluation>,
    /// How the instant head was made, where there is one.
    pub instant: Option<InstantReport>,
    /// What the steps came to, where that was worse than the instant head, which was kept instead, or
    /// where the targets changed nothing and the head alone was kept: hold-out metrics.
    pub given_up: Option<Vec<(String, f32)>>,
    /// Samples that the result is made of, where those held out of the data are among them: what the hold-out
    /// shows is of the same made without them.
    pub of_all: Option<usize>,
    /// Targets trained.
    pub targets: usize,
    /// Targets left out because the head's output doesn't depend on them.
    pub skipped: Vec<String>,
    /// Trained values.
    pub parameters: usize,
    /// Bytes that the process is expected to take at most, the mapped base included.
    pub planned_peak_bytes: u64,
    /// What the graph of the longest samples ran twice rather than keep more.
    pub again: Repeated,
    /// Samples that went through the graph at once.
    pub micro_batch: usize,
    /// Threads used.
    pub threads: usize,
    /// What was learned.
    pub task: Task,
    /// The output that the head reads.
    pub output: String,
    /// The labels.
    pub labels: Vec<String>,
    /// Mean |adapted - base| over that output on training inputs; none for a head alone.
    pub effect: Option<f32>,
    /// How much of the base's knowledge is kept; none for a head alone, which keeps all.
    pub knowledge: Option<KnowledgeKept>,
    /// What the frozen layers below the first trained one gave, which is kept for later epochs; none
    /// where there are none, or one epoch.
    pub prefix: Option<PrefixReport>,
}
