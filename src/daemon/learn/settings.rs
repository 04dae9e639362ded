//! What the learner is told: the sections `[train]`, `[conditions]`, `[gate]`, `[trial]` and
//! `[watch]` of the configuration.

use super::hours::Hours;
use crate::adapter::Kind;
use crate::error::{Error, Result};
use crate::train::TargetChoice;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How it trains.
    pub train: TrainSettings,
    /// When it trains.
    pub conditions: ConditionSettings,
    /// What a candidate must show.
    pub gate: GateSettings,
    /// How long a new generation is on trial.
    pub trial: TrialSettings,
    /// When live feedback takes a generation back.
    pub watch: WatchSettings,
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSettings {
    /// Whether the daemon trains by itself.
    pub enabled: bool,
    /// Memory of the training process, in MiB.
    pub memory_mib: u64,
    /// How targets are changed: `lora` and the other kinds of `offshoot train --kind`.
    pub kind: Kind,
    /// R of every target, where the kind has one.
    pub rank: u32,
    /// Numerator of the scaling.
    pub alpha: f32,
    /// `auto`, `all-linear`, `none` (the head alone), or a regular expression over module paths.
    pub targets: String,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// How many times that is the head's: a head begins at random values, the layers at those of
    /// the base, which they should stay near to.
    pub head_rate: f32,
    /// Passes over the new samples.
    pub epochs: u32,
    /// Steps at least, where few samples are new.
    pub min_steps: u32,
    /// Samples a step.
    pub batch: usize,
    /// Share of each batch that is replayed older samples.
    pub replay: f32,
    /// Weight of the previous generation's answers, where they are right (KL to it). Of classes
    /// only.
    pub keep: f32,
    /// Share of the base's own knowledge that is to be kept, 0 to 1; 0: no penalty, it is measured
    /// alone. `None`: as `offshoot train` does it without `--keep-knowledge`.
    pub keep_knowledge: Option<f32>,
    /// Whether a generation starts at the values of the one before.
    pub warm_start: bool,
    /// Whether a first generation's head begins with the instant head, which what is trained must
    /// surpass, and which becomes a generation itself where it is better than what answers.
    pub instant: bool,
    /// Largest norm of a step's gradients; 0: any.
    pub clip: f32,
    /// Longest token sequence; 0: the base's own limit.
    pub max_tokens: usize,
    /// Threads of the training process.
    pub threads: usize,
    /// Steps between two checkpoints.
    pub checkpoint_every: u32,
    /// Failures after which a job is given up.
    pub max_attempts: u32,
    /// Decides everything random, with the job's number.
    pub seed: u64,
}

impl Default for TrainSettings {
    fn default() -> TrainSettings {
        TrainSettings {
            enabled: true,
            memory_mib: 128,
            kind: Kind::default(),
            rank: 8,
            alpha: 16.0,
            targets: "auto".into(),
            learning_rate: 3e-4,
            head_rate: 10.0,
            epochs: 8,
            min_steps: 60,
            batch: 16,
            replay: 0.5,
            keep: 0.2,
            keep_knowledge: None,
            warm_start: true,
            instant: true,
            clip: 1.0,
            max_tokens: 0,
            threads: 1,
            checkpoint_every: 20,
            max_attempts: 5,
            seed: 0,
        }
    }
}

/// `[conditions]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConditionSettings {
    /// New labelled samples, the held-out ones included.
    pub min_new: u64,
    /// Seconds since the last training after which any sample will do that no promoted generation has
    /// learned from; doubled with each candidate that was refused since, up to 28 days.
    pub any_after_seconds: u64,
    /// Seconds since the last training.
    pub min_interval_seconds: u64,
    /// Seconds without a request, ...
    pub idle_seconds: u64,
    /// ... or the greatest share of the last minute, 0 to 1, that the threads which compute answers
    /// were busy. Where `stop_on_request` is set only the seconds count.
    pub max_busy: f32,
    /// Whether a request stops the training until the device is idle again. Training has the
    /// lowest priority anyway.
    pub stop_on_request: bool,
    /// Memory that stays free beside the trainer's, in MiB.
    pub free_mib: u64,
    /// Degrees Celsius below which training starts.
    pub start_celsius: f32,
    /// Degrees Celsius from which it stops, until it is below `start_celsius` again.
    pub stop_celsius: f32,
    /// Whether a battery that nothing charges forbids training.
    pub mains_only: bool,
    /// Percent of a battery's charge at least, where training on it is allowed.
    pub min_charge: u8,
    /// Largest share of the processors that others than the trainer keep busy, 0 to 1.
    pub max_load: f32,
    /// Hours of the day, local time: `["22:00-06:30"]`. Empty: any.
    pub hours: Vec<Hours>,
    /// Seconds between two looks, while samples wait and conditions don't hold.
    pub look_seconds: u64,
}

impl Default for ConditionSettings {
    fn default() -> ConditionSettings {
        ConditionSettings {
            min_new: 20,
            any_after_seconds: 86_400,
            min_interval_seconds: 3600,
            idle_seconds: 60,
            max_busy: 0.2,
            stop_on_request: false,
            free_mib: 64,
            start_celsius: 65.0,
            stop_celsius: 75.0,
            mains_only: true,
            min_charge: 50,
            max_load: 0.5,
            hours: vec![],
            look_seconds: 30,
        }
    }
}

/// What must speak for a candidate with confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// The lower bound of the gain in loss (paired bootstrap within classes) is above 0.
    #[default]
    Loss,
    /// The lower bound of the gain in accuracy is.
    Accuracy,
    /// McNemar's exact test over the answers.
    Answers,
}

/// `[gate]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSettings {
    /// Held-out samples at least.
    pub min_holdout: usize,
    /// Gain in hold-out accuracy over what answers today at least (labels that are numbers:
    /// relative gain in loss).
    pub min_gain: f64,
    /// Promotions a month, for each name, that should not be: of what is no better than what answers
    /// today, or of what has learned the new samples and answers more than `margin` worse. An exact
    /// test of paired answers, its error spent over all looks.
    pub false_promotions: f64,
    /// Share of answers that a candidate which has learned the new samples may make worse at most.
    pub margin: f64,
    /// How many candidates a held-out sample judges before it is learned from.
    pub judged: usize,
    /// Where nothing answers today: what must speak for it.
    pub evidence: Evidence,
    /// How sure that must be, 0.5 to 1, one-sided.
    pub confidence: f64,
    /// Held-out samples from which a class is judged alone.
    pub class_min: usize,
    /// Share right of each such class at least, unless the generation before was no better.
    pub class_floor: f64,
    /// How far such a class may fall below the generation before. Neither this nor the floor
    /// refuses where the exact test (McNemar's) gives a fall by chance more than `fall_alpha`,
    /// unless nothing is right any more of a class that mostly was.
    pub class_drop: f64,
    /// How far the share right of the held-out samples that are older than the newest that the
    /// generation before was trained on may fall, by the same test.
    pub old_drop: f64,
    /// Probability by chance up to which a fall counts as one: greater values refuse more.
    pub fall_alpha: f64,
    /// Mean cosine to the base's features on probe inputs at least. What it means was measured with
    /// MiniLM over 57 generations of many settings: a head for another task (`rooms.jsonl`), right in
    /// 97.5 % through the base, was right in 94 % (mean; 87.5 at least) through those above 0.85, in
    /// 88 % (82.5) at 0.7 to 0.8, in 82 % (75) at 0.6 to 0.7 and in 77 % (72.5) below. The default
    /// is where a tenth is lost.
    pub retention_cosine: f64,
    /// Share of probe inputs at least for which the base's own best class stays. A base without
    /// classes of its own never passes.
    pub retention_agreement: Option<f64>,
    /// A labelled set (as for `train --data`) that must not be unlearned.
    pub retention_data: Option<PathBuf>,
    /// How far the accuracy on it may fall below the generation before.
    pub retention_drop: f64,
    /// Mean change of the head's output at least.
    pub min_effect: f64,
    /// How many times as long as today an answer may take.
    pub max_latency_ratio: f64,
}

impl Default for GateSettings {
    fn default() -> GateSettings {
        GateSettings {
            min_holdout: 8,
            min_gain: 0.01,
            false_promotions: 0.01,
            margin: 0.1,
            judged: 5,
            evidence: Evidence::Loss,
            confidence: 0.9,
            class_min: 4,
            class_floor: 0.25,
            class_drop: 0.35,
            old_drop: 0.1,
            fall_alpha: 0.1,
            retention_cosine: 0.75,
            retention_agreement: None,
            retention_data: None,
            retention_drop: 0.05,
            min_effect: 1e-6,
            max_latency_ratio: 2.0,
        }
    }
}

/// `[trial]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrialSettings {
    /// Seconds that a promoted generation must serve without a crash or restart.
    pub seconds: u64,
}

impl Default for TrialSettings {
    fn default() -> TrialSettings {
        TrialSettings { seconds: 3600 }
    }
}

impl TrialSettings {
    /// The same.
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// `[watch]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchSettings {
    /// Whether live feedback may take a generation back.
    pub enabled: bool,
    /// Judged answers of the active generation at least.
    pub min_outcomes: u64,
    /// Judged answers of the one before at least.
    pub min_before: u64,
    /// Judged answers after which it is no longer watched.
    pub until_outcomes: u64,
    /// Generations a month, of each name, that are taken back though they are as good as the one
    /// before.
    pub false_rollbacks: f64,
}

impl Default for WatchSettings {
    fn default() -> WatchSettings {
        WatchSettings {
            enabled: true,
            min_outcomes: 8,
            min_before: 8,
            until_outcomes: 500,
            false_rollbacks: 0.05,
        }
    }
}

/// Seconds: longer times are mistakes.
const YEAR: f64 = 365.0 * 86_400.0;

/// Within a range, by key.
fn range(key: &str, value: f64, least: f64, most: f64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::usage(format!("{key} is {value}, expected {least} to {most}")))
}

impl Settings {
    /// An error (usage) naming the first value that makes no sense.
    pub fn validate(&self) -> Result<()> {
        let train = &self.train;
        range("train.memory_mib", train.memory_mib as f64, 16.0, 1e6)?;
        range("train.rank", train.rank.into(), 1.0, 4096.0)?;
        range("train.alpha", train.alpha.into(), 1e-6, 1e6)?;
        range("train.learning_rate", train.learning_rate.into(), 1e-9, 10.0)?;
        range("train.head_rate", train.head_rate.into(), 1e-3, 1e3)?;
        range("train.epochs", train.epochs.into(), 1.0, 1e6)?;
        range("train.min_steps", train.min_steps.into(), 0.0, 1e6)?;
        range("train.batch", train.batch as f64, 2.0, 65536.0)?;
        range("train.replay", train.replay.into(), 0.0, 1.0)?;
        range("train.keep", train.keep.into(), 0.0, 1.0)?;
        let keep_knowledge = train.keep_knowledge.unwrap_or_default();
        range("train.keep_knowledge", keep_knowledge.into(), 0.0, 1.0)?;
        range("train.clip", train.clip.into(), 0.0, 1e6)?;
        range("train.threads", train.threads as f64, 1.0, 1024.0)?;
        range("train.checkpoint_every", train.checkpoint_every.into(), 1.0, 1e6)?;
        range("train.max_attempts", train.max_attempts.into(), 1.0, 1000.0)?;
        if let TargetChoice::Regex(pattern) = TargetChoice::parse(&train.targets)
            && let Err(e) = regex::Regex::new(&pattern)
        {
            let reason = e.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim().to_string();
            return Err(Error::usage(format!("train.targets is no regular expression: {reason}")));
        }
        let c = &self.conditions;
        range("conditions.min_new", c.min_new as f64, 1.0, 1e9)?;
        range("conditions.min_interval_seconds", c.min_interval_seconds as f64, 0.0, YEAR)?;
        range("conditions.any_after_seconds", c.any_after_seconds as f64, 0.0, YEAR)?;
        range("conditions.max_busy", c.max_busy.into(), 0.0, 1.0)?;
        range("conditions.idle_seconds", c.idle_seconds as f64, 0.0, YEAR)?;
        range("conditions.free_mib", c.free_mib as f64, 0.0, 1e9)?;
        range("conditions.start_celsius", c.start_celsius.into(), -40.0, 150.0)?;
        range("conditions.stop_celsius", c.stop_celsius.into(), c.start_celsius.into(), 150.0)?;
        range("conditions.min_charge", c.min_charge.into(), 0.0, 100.0)?;
        range("conditions.max_load", c.max_load.into(), 0.0, 1.0)?;
        range("conditions.look_seconds", c.look_seconds as f64, 1.0, 86400.0)?;
        let gate = &self.gate;
        range("gate.min_holdout", gate.min_holdout as f64, 1.0, 1e9)?;
        range("gate.min_gain", gate.min_gain, -1.0, 1.0)?;
        range("gate.false_promotions", gate.false_promotions, 1e-9, 1.0)?;
        range("gate.margin", gate.margin, 0.001, 0.5)?;
        range("gate.judged", gate.judged as f64, 1.0, 1e6)?;
        range("gate.confidence", gate.confidence, 0.5, 0.9999)?;
        range("gate.class_min", gate.class_min as f64, 1.0, 1e9)?;
        range("gate.class_floor", gate.class_floor, 0.0, 1.0)?;
        range("gate.class_drop", gate.class_drop, 0.0, 1.0)?;
        range("gate.old_drop", gate.old_drop, 0.0, 1.0)?;
        range("gate.fall_alpha", gate.fall_alpha, 1e-6, 1.0)?;
        range("gate.retention_cosine", gate.retention_cosine, -1.0, 1.0)?;
        range("gate.retention_agreement", gate.retention_agreement.unwrap_or(0.0), 0.0, 1.0)?;
        range("gate.retention_drop", gate.retention_drop, 0.0, 1.0)?;
        range("gate.min_effect", gate.min_effect, 0.0, 1e6)?;
        range("gate.max_latency_ratio", gate.max_latency_ratio, 1.0, 1000.0)?;
        range("trial.seconds", self.trial.seconds as f64, 0.0, YEAR)?;
        range("watch.false_rollbacks", self.watch.false_rollbacks, 1e-9, 1.0)?;
        range("watch.min_outcomes", self.watch.min_outcomes as f64, 1.0, 1e9)?;
        range("watch.min_before", self.watch.min_before as f64, 1.0, 1e9)?;
        let least = self.watch.min_outcomes as f64;
        range("watch.until_outcomes", self.watch.until_outcomes as f64, least, 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_sound_and_each_bad_value_is_named() {
        Settings::default().validate().unwrap();
        type Spoil = fn(&mut Settings);
        let cases: [(&str, Spoil); 10] = [
            ("train.rank", |s| s.train.rank = 0),
            ("train.batch", |s| s.train.batch = 1),
            ("train.targets", |s| s.train.targets = "(".into()),
            ("train.learning_rate", |s| s.train.learning_rate = f32::NAN),
            ("conditions.stop_celsius", |s| s.conditions.stop_celsius = 10.0),
            ("gate.confidence", |s| s.gate.confidence = 1.0),
            ("gate.max_latency_ratio", |s| s.gate.max_latency_ratio = 0.5),
            ("watch.false_rollbacks", |s| s.watch.false_rollbacks = 0.0),
            ("watch.until_outcomes", |s| s.watch.until_outcomes = 7),
            ("trial.seconds", |s| s.trial.seconds = u64::MAX),
        ];
        for (key, spoil) in cases {
            let mut settings = Settings::default();
            spoil(&mut settings);
            let e = settings.validate().unwrap_err();
            assert!(e.message().starts_with(key), "{key}: {e}");
        }
    }

    #[test]
    fn sections_are_read_and_unknown_keys_refused() {
        let text = "[train]\nmemory_mib = 96\n[conditions]\nhours = [\"22:00-06:30\"]\n\
            [gate]\nevidence = \"answers\"\n[trial]\nseconds = 60\n[watch]\nfalse_rollbacks = 0.01\n";
        let settings: Settings = toml::from_str(text).unwrap();
        assert_eq!(settings.train.memory_mib, 96);
        assert_eq!(settings.gate.evidence, Evidence::Answers);
        assert_eq!(settings.trial.duration(), Duration::from_secs(60));
        assert!(toml::from_str::<Settings>("[train]\nmemory = 1\n").is_err());
        assert!(toml::from_str::<Settings>("[conditions]\nhours = [\"25:00-1\"]\n").is_err());
        let back = toml::to_string(&settings).unwrap();
        assert_eq!(toml::from_str::<Settings>(&back).unwrap(), settings);
    }
}
