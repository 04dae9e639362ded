//! What a person chooses of a training run.

use super::schedule::Schedule;
use super::tasks::Task;
use crate::adapter::{Kind, Pool};
use crate::error::{Error, Result};
use serde::Serialize;
use std::path::PathBuf;

/// Which targets are trained.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub enum TargetChoice {
    /// Every linear layer and convolution on the way to the output that the head reads; no
    /// embeddings.
    #[default]
    AllLinear,
    /// Where a base of sentences learns classes the last layers before that output, with a third of all
    /// weights at most: what is below runs once a sample. Else as [`TargetChoice::AllLinear`].
    Auto,
    /// The targets whose whole module path matches; one that can't be trained is an error.
    Regex(String),
    /// None: the head alone.
    None,
}

impl TargetChoice {
    /// `auto`, `all-linear`, `none`, else a regular expression.
    pub fn parse(text: &str) -> TargetChoice {
        match text {
            "auto" => TargetChoice::Auto,
            "all-linear" => TargetChoice::AllLinear,
            "none" => TargetChoice::None,
            pattern => TargetChoice::Regex(pattern.into()),
        }
    }
}

/// What the instant head, a head in closed form on the base's own features, is for in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum InstantHead {
    /// The trained head begins with it, and what is trained must not be worse than it.
    #[default]
    Start,
    /// It is all that is learned: no steps.
    Only,
    /// Nothing: the head begins at random values.
    Off,
}

/// How values move along their gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub enum OptimizerKind {
    /// PyTorch's AdamW with its default betas and epsilon.
    #[default]
    AdamW,
    /// PyTorch's SGD.
    Sgd {
        /// What is kept of the last step's direction; 0 for none.
        momentum: f32,
    },
}

/// A training run's settings.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainOptions {
    /// The adapter's name.
    pub name: String,
    /// How targets are changed.
    pub kind: Kind,
    /// R of every target, where the kind has one.
    pub rank: u32,
    /// Numerator of the scaling.
    pub alpha: f32,
    /// Whether the scaling divides by sqrt(rank).
    pub rslora: bool,
    /// Which targets are trained.
    pub targets: TargetChoice,
    /// The output that the head reads. By default the first one of three axes (tokens) of a base
    /// with tokens, else of those of two axes one that other outputs are computed from
    /// (EfficientNet's `features`), else the first of two axes, else the first of three.
    pub head_from: Option<String>,
    /// How tokens are pooled; by default the mean for an output of three axes.
    pub pool: Option<Pool>,
    /// What the instant head is for.
    pub instant: InstantHead,
    /// What is learned; that of the data.
    pub task: Task,
    /// How values move.
    pub optimizer: OptimizerKind,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// How many times that is the head's.
    pub head_rate: f32,
    /// Decay of every trained value.
    pub weight_decay: f32,
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// Passes over the samples (8 where neither this nor `steps` is given).
    pub epochs: Option<u32>,
    /// Steps at least, where `epochs` of few samples are fewer.
    pub min_steps: u32,
    /// Optimizer steps; goes before `epochs` and `min_steps`.
    pub steps: Option<u32>,
    /// Samples a step.
    pub batch: usize,
    /// Samples that go through the graph at once; the smaller of `batch` and 8 (raw inputs, a
    /// language model's texts), 2 (sentences) or 1 (pictures) by default.
    pub micro_batch: Option<usize>,
    /// Bytes that the whole process may take: picks the micro-batch, or refuses.
    pub ram: Option<u64>,
    /// Micro-batches that are worked on at once. The result doesn't depend on it.
    pub threads: usize,
    /// Decides everything random.
    pub seed: u64,
    /// Share of the samples that is held out where no hold-out is given; 0 for none.
    pub holdout: f32,
    /// Looks at the hold-out (one an epoch) without a lower loss before the run stops; the values
    /// at the lowest loss are kept. `None`: all steps, the last values.
    pub patience: Option<u32>,
    /// Largest global norm of a step's gradients.
    pub clip: Option<f32>,
    /// Where the run's state is written. The file stays after the run.
    pub checkpoint: Option<PathBuf>,
    /// Steps between two checkpoints; where these take longer than 30 s, those.
    pub checkpoint_every: u32,
    /// Whether to go on from the checkpoint if there is one.
    pub resume: bool,
    /// Longest token sequence; the base's own limit by default.
    pub max_tokens: Option<usize>,
    /// Whether the values start at those of the generation before, where there is one.
    pub warm_start: bool,
    /// Share of each batch that is replayed, 0 to 1, where there are older samples.
    pub replay: f32,
    /// Weight, 0 to 1, of the answers of the generation before against the labels, where that
    /// generation is right: KL to it, so that what it knows is kept. Numbers are learned from their
    /// labels alone. 0: none.
    pub keep: f32,
    /// The share, 0 to 1, of the base's own knowledge that the adapted base should keep
    /// ([`Retention::kept`](super::Retention::kept)). The run measures it, and weighs a penalty on
    /// features that move away from the base's by it, of language models on next tokens. 0: no penalty, and
    /// it is measured alone, of language models where there are [`probes`](Self::probes).
    pub keep_knowledge: f32,
    /// Inputs that say which knowledge: sentences one a line (`.txt`), a folder of pictures, or a data
    /// file. Every second one is taught of, the others are measured on. Without them what is measured
    /// on ships with the program.
    pub probes: Option<PathBuf>,
    /// Whether the hold-out and what is kept are measured four times on the way too, and told.
    #[serde(skip)]
    pub watch: bool,
    /// Whether what was trained is the result also where it is worse than the instant head: for
    /// comparisons.
    #[serde(skip)]
    pub even_if_worse: bool,
}

impl TrainOptions {
    /// # Errors
    /// Usage: values that make no sense.
    pub(super) fn check(&self) -> Result<()> {
        let max = crate::adapter::MAX_RANK;
        let ranked = self.kind.is_ranked();
        if self.rslora && !self.kind.has_rslora() {
            return Err(Error::usage(format!("kind '{}' has no rsLoRA", self.kind.name())));
        }
        if self.kind.takes_rank() && !(1..=max).contains(&self.rank) {
            return Err(Error::usage(format!("rank {} is not within 1 to {max}", self.rank)));
        }
        let positive = |name: &str, value: f32| {
            if value.is_finite() && value > 0.0 {
                return Ok(());
            }
            Err(Error::usage(format!("{name} {value} is not a positive number")))
        };
        if ranked {
            positive("alpha", self.alpha)?;
        }
        positive("learning rate", self.learning_rate)?;
        positive("head's rate", self.head_rate)?;
        self.clip.map_or(Ok(()), |clip| positive("clip", clip))?;
        for (name, share) in [
            ("replay share", self.replay),
            ("weight to keep", self.keep),
            ("knowledge to keep", self.keep_knowledge),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::usage(format!("{name} {share} is not within 0 to 1")));
            }
        }
        let sizes = [
            ("batch", self.batch),
            ("micro-batch", self.micro_batch.unwrap_or(1)),
            ("threads", self.threads),
            ("steps", self.steps.unwrap_or(1) as usize),
            ("epochs", self.epochs.unwrap_or(1) as usize),
        ];
        match sizes.iter().find(|(_, n)| *n == 0) {
            Some((name, _)) => Err(Error::usage(format!("{name} is 0, expected 1 or more"))),
            None => Ok(()),
        }
    }

    /// Steps of a run whose epoch has `per_epoch` batches.
    pub(super) fn steps_of(&self, per_epoch: u64) -> u64 {
        match self.steps {
            _ if self.instant == InstantHead::Only => 0,
            Some(steps) => steps.into(),
            None => (u64::from(self.epochs.unwrap_or(8)) * per_epoch).max(self.min_steps.into()),
        }
    }
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            name: "adapter".into(),
            kind: Kind::default(),
            rank: 8,
            alpha: 16.0,
            rslora: false,
            targets: TargetChoice::default(),
            head_from: None,
            pool: None,
            instant: InstantHead::default(),
            task: Task::default(),
            optimizer: OptimizerKind::default(),
            learning_rate: 1e-3,
            head_rate: 1.0,
            weight_decay: 0.01,
            schedule: Schedule::Linear { warmup: 0.1 },
            epochs: None,
            min_steps: 0,
            steps: None,
            batch: 16,
            micro_batch: None,
            ram: None,
            threads: 1,
            seed: 0,
            holdout: 0.2,
            patience: None,
            clip: None,
            checkpoint: None,
            checkpoint_every: 50,
            resume: false,
            max_tokens: None,
            warm_start: true,
            replay: 0.5,
            keep: 0.0,
            keep_knowledge: 0.0,
            probes: None,
            watch: false,
            even_if_worse: false,
        }
    }
}
