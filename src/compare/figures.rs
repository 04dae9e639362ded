//! What came of runs, and of all seeds together.

use serde::{Deserialize, Serialize};

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Samples trained on.
    pub samples: usize,
    /// Samples held out.
    pub held_out: usize,
    /// Steps taken.
    pub steps: u64,
    /// Trained values.
    pub parameters: u64,
    /// Bytes of the adapter's file.
    pub file_bytes: u64,
    /// Median milliseconds of a step; none without steps.
    pub step_ms: Option<f64>,
    /// Seconds that it worked, reading the data and measuring included.
    pub seconds: f64,
    /// Most bytes that its process had resident at once, the mapped base included; where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Of the hold-out, in the order of their weight, without the loss.
    pub metrics: Vec<Value>,
    /// Share of the base's knowledge that is kept; none where the task has no measure of it.
    pub kept: Option<f64>,
    /// What that counts, in words.
    pub kept_of: Option<String>,
    /// Whether it is worse on the hold-out than what it began with: the instant head, where there is one.
    pub worse: bool,
}

/// A metric of the hold-out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// `accuracy`, ...
    pub name: String,
    /// What was measured.
    pub value: f64,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// A number over the seeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figure {
    /// The mean.
    pub mean: f64,
    /// The standard deviation; 0 of one seed.
    pub spread: f64,
    /// Each.
    pub values: Vec<f64>,
}

impl Figure {
    /// `None` of no values.
    pub fn of(values: Vec<f64>) -> Option<Figure> {
        let count = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let spread = if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 };
        Some(Figure { mean, spread, values })
    }
}

/// A metric over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// `accuracy`, ...
    pub name: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Over the seeds.
    #[serde(flatten)]
    pub figure: Figure,
}

/// What came of all seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// The seeds that ended well, in the order of all values.
    pub seeds: Vec<u64>,
    /// How many of these ended worse than they began.
    pub worse: usize,
    /// Samples trained on and held out, in the first.
    pub samples: [usize; 2],
    /// Steps, in the first.
    pub steps: u64,
    /// Trained values.
    pub parameters: u64,
    /// Bytes of the file, in the largest.
    pub file_bytes: u64,
    /// Milliseconds of a step.
    pub step_ms: Option<Figure>,
    /// Seconds of a run.
    pub seconds: Figure,
    /// Bytes resident at once, in the largest.
    pub peak_rss_bytes: Option<u64>,
    /// Of the hold-out.
    pub metrics: Vec<Metric>,
    /// Share of the base's knowledge that is kept.
    pub kept: Option<Figure>,
    /// What that counts.
    pub kept_of: Option<String>,
}

impl Figures {
    /// `None` of no outcomes.
    pub(super) fn of(runs: &[(u64, &Outcome)]) -> Option<Figures> {
        let outcomes: Vec<&Outcome> = runs.iter().map(|(_, outcome)| *outcome).collect();
        let first = *outcomes.first()?;
        let all = |of: &dyn Fn(&Outcome) -> Option<f64>| {
            Figure::of(outcomes.iter().filter_map(|o| of(o)).collect())
        };
        let metric = |value: &Value| {
            let named =
                |o: &Outcome| o.metrics.iter().find(|m| m.name == value.name).map(|m| m.value);
            let Value { name, higher_is_better, .. } = value.clone();
            Some(Metric { name, higher_is_better, figure: all(&named)? })
        };
        Some(Figures {
            seeds: runs.iter().map(|(seed, _)| *seed).collect(),
            worse: outcomes.iter().filter(|o| o.worse).count(),
            samples: [first.samples, first.held_out],
            steps: first.steps,
            parameters: first.parameters,
            file_bytes: outcomes.iter().map(|o| o.file_bytes).max().unwrap_or(0),
            step_ms: all(&|o| o.step_ms),
            seconds: all(&|o| Some(o.seconds))?,
            peak_rss_bytes: outcomes.iter().filter_map(|o| o.peak_rss_bytes).max(),
            metrics: first.metrics.iter().filter_map(metric).collect(),
            kept: all(&|o| o.kept),
            kept_of: first.kept_of.clone(),
        })
    }

    /// The metric that decides: the first.
    pub fn first(&self) -> Option<&Metric> {
        self.metrics.first()
    }
}
