//! The gate: whether a candidate is proven. Pure; what was measured comes from the trainer.

mod falls;
mod proof;
mod stats;

pub use proof::{Look, allowance};
pub use stats::{fisher_less, mcnemar};

use super::settings::GateSettings;
use falls::{class_floor, older};
use proof::proof;
use serde::{Deserialize, Serialize};
use stats::at_most;

/// How a candidate and the generation before answered one held-out sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldRow {
    /// The group of samples that it belongs to: a class, where samples have one.
    pub group: usize,
    /// How right the candidate was, 0 to 1; `None` where there is no right and wrong.
    pub candidate_right: Option<f64>,
    /// The candidate's loss.
    pub candidate_loss: f64,
    /// How right the reference was.
    pub reference_right: Option<f64>,
    /// The reference's loss.
    pub reference_loss: f64,
    /// Each label of the right answer, by its place in [`Measured::labels`], with how right the
    /// candidate and the reference were there.
    pub labels: Vec<(usize, f64, f64)>,
    /// Whether it came before the newest sample that the reference was trained on.
    pub old: bool,
}

/// What the candidate is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The active generation.
    Generation(u64),
    /// The instant head of the same training samples, which is no worse than the active generation.
    Instant,
    /// No generation is active: the base, which knows labels of its own.
    Base,
    /// No generation is active, and the base answers no better than: always the most frequent label of the training samples (numbers:
    /// their mean).
    MostFrequent,
}

/// How far the candidate answers as the base does on probe inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Probe inputs.
    pub samples: usize,
    /// The output compared.
    pub output: String,
    /// Mean cosine between the base's features and the candidate's.
    pub cosine_mean: f64,
    /// The least one.
    pub cosine_min: f64,
    /// Share of probes for which the base's own best class stays, where it has classes.
    pub agreement: Option<f64>,
    /// How much of the base's knowledge that is, in words.
    #[serde(default)]
    pub sentence: String,
}

/// Accuracy on the labelled retention set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Labelled {
    /// Samples.
    pub samples: usize,
    /// Share right of the candidate.
    pub candidate: f64,
    /// Share right of the reference.
    pub reference: f64,
}

/// How the new samples, which the candidate has learned from, are answered: they judge nothing, they
/// say whether it has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lessons {
    /// Samples asked.
    pub samples: usize,
    /// How many the candidate answers rightly; numbers: better than the reference does.
    pub candidate: f64,
    /// How many the reference does.
    pub reference: f64,
}

/// What was measured of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What it is compared with.
    pub reference: Reference,
    /// Labels of the hold-out.
    pub labels: Vec<String>,
    /// What the mean of how right answers are is called: `accuracy`, `F1`.
    pub metric: String,
    /// The hold-out, sample by sample. Neither side has learned from any of it.
    pub held: Vec<HeldRow>,
    /// What became of the new samples.
    pub lessons: Option<Lessons>,
    /// Retention on probe inputs.
    pub kept: Kept,
    /// Retention on a labelled set, where one is given.
    pub labelled: Option<Labelled>,
    /// Mean |adapted - base| over the head's output on training inputs; `None` for a head alone.
    pub effect: Option<f64>,
    /// Whether every value of the candidate and every answer was finite.
    pub finite: bool,
    /// Milliseconds of one sample with the candidate, the median.
    pub candidate_ms: f64,
    /// The same with the reference.
    pub reference_ms: f64,
    /// How many times the reference's time the candidate takes: the median over pairs of runs, one right
    /// after the other, so that what else the machine does meets both.
    pub latency_ratio: f64,
}

impl Measured {
    /// Whether the candidate answers the hold-out at least as rightly as the reference, or with no greater
    /// loss.
    pub fn is_no_less(&self) -> bool {
        let sum = |of: &dyn Fn(&HeldRow) -> f64| self.held.iter().map(of).sum::<f64>();
        match self.held.iter().all(|r| r.candidate_right.is_some()) {
            true => {
                sum(&|r| r.candidate_right.unwrap_or(0.0) - r.reference_right.unwrap_or(0.0)) >= 0.0
            }
            false => sum(&|r| r.reference_loss - r.candidate_loss) >= 0.0,
        }
    }
}

/// One of the gate's questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// What was found.
    pub value: f64,
    /// What it is held against.
    pub threshold: f64,
    /// Whether it is passed.
    pub passed: bool,
    /// The same in words.
    pub sentence: String,
}

/// The gate's answer with all its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the candidate is proven.
    pub passed: bool,
    /// Why, in words.
    pub sentence: String,
    /// What it was compared with.
    pub reference: Reference,
    /// Held-out samples.
    pub samples: usize,
    /// How right the candidate is, the mean; of classes the share of right answers. None where there
    /// is no right and wrong.
    pub accuracy: Option<f64>,
    /// The same of the reference.
    pub reference_accuracy: Option<f64>,
    /// Mean loss of the candidate.
    pub loss: f64,
    /// Mean loss of the reference.
    pub reference_loss: f64,
    /// Samples that the candidate answered better, and that the reference did.
    pub discordant: (u64, u64),
    /// McNemar's exact one-sided p.
    pub p: f64,
    /// The probability that fits a candidate which answers more than the allowed share worse.
    pub p_no_worse: f64,
    /// What p was held against, where something answers today.
    pub alpha: Option<f64>,
    /// Lower bound of the gain in accuracy, where nothing answers today.
    pub accuracy_gain_low: Option<f64>,
    /// Lower bound of the gain in loss, where nothing answers today.
    pub loss_gain_low: Option<f64>,
    /// Mean cosine to the base on the probe inputs.
    pub retention: f64,
    /// The questions.
    pub checks: Vec<Check>,
    /// The thresholds that held.
    pub settings: GateSettings,
}

struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, name: &str, value: f64, threshold: f64, passed: bool, sentence: String) {
        let value = storable(value);
        self.0.push(Check { name: name.into(), value, threshold, passed, sentence });
    }
}

/// JSON has neither infinities nor NaN.
fn storable(value: f64) -> f64 {
    if value.is_finite() { value } else { f64::MIN }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0u64);
    for value in values {
        sum += value;
        count += 1;
    }
    if count == 0 { 0.0 } else { sum / count as f64 }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Judges a candidate. `seed` fixes the bootstrap.
pub fn judge(measured: &Measured, settings: &GateSettings, look: Look, seed: u64) -> Verdict {
    let held = &measured.held;
    let mut checks = Checks(vec![]);
    let finite = measured.finite
        && held.iter().all(|r| r.candidate_loss.is_finite() && r.reference_loss.is_finite())
        && measured.effect.is_none_or(f64::is_finite)
        && measured.kept.cosine_mean.is_finite();
    checks.add(
        "finite",
        f64::from(u8::from(finite)),
        1.0,
        finite,
        match finite {
            true => "all values and answers are finite".into(),
            false => "a value or an answer is not finite".into(),
        },
    );
    let enough = held.len() >= settings.min_holdout;
    checks.add(
        "holdout",
        held.len() as f64,
        settings.min_holdout as f64,
        enough,
        format!("{} held-out samples, at least {} are needed", held.len(), settings.min_holdout),
    );
    let gain = gain(measured, settings);
    let bounds = proof(measured, settings, look, seed, &gain, &mut checks);
    let classes = gain.accuracy.is_some();
    if classes {
        class_floor(measured, settings, &mut checks);
        older(measured, settings, &mut checks);
    }
    retention(measured, settings, &mut checks);
    if let Some(effect) = measured.effect {
        let passed = effect >= settings.min_effect;
        let sentence = format!(
            "the adapter moves the head's output by {effect:.2e}, at least {:.0e} is needed",
            settings.min_effect
        );
        checks.add("effect", effect, settings.min_effect, passed, sentence);
    }
    let ratio = measured.latency_ratio;
    let sentence = format!(
        "an answer takes {:.2} ms against {:.2} ms, {ratio:.2} times as long pair by pair, {:.2} times is \
        allowed",
        measured.candidate_ms, measured.reference_ms, settings.max_latency_ratio
    );
    let most = settings.max_latency_ratio;
    checks.add("latency", ratio, most, ratio <= most, sentence);
    verdict(measured, settings, gain, bounds, checks.0)
}

fn verdict(
    measured: &Measured,
    settings: &GateSettings,
    gain: Gain,
    bounds: Bounds,
    checks: Vec<Check>,
) -> Verdict {
    let failed: Vec<&str> =
        checks.iter().filter(|c| !c.passed).map(|c| c.sentence.as_str()).collect();
    let passed = failed.is_empty();
    let sentence = match (passed, gain.accuracy, gain.reference_accuracy) {
        (true, Some(now), Some(before)) => format!(
            "proven: {} {} -> {} on {} held-out samples, retention {:.3}",
            measured.metric,
            percent(before),
            percent(now),
            measured.held.len(),
            measured.kept.cosine_mean
        ),
        (true, ..) => format!(
            "proven: loss {:.4} -> {:.4} on {} held-out samples",
            gain.reference_loss,
            gain.loss,
            measured.held.len()
        ),
        _ => format!("not proven: {}", failed.join("; ")),
    };
    Verdict {
        passed,
        sentence,
        reference: measured.reference,
        samples: measured.held.len(),
        accuracy: gain.accuracy,
        reference_accuracy: gain.reference_accuracy,
        loss: storable(gain.loss),
        reference_loss: storable(gain.reference_loss),
        discordant: gain.discordant,
        p: gain.p,
        p_no_worse: gain.p_no_worse,
        alpha: bounds.alpha,
        accuracy_gain_low: bounds.accuracy_low.map(storable),
        loss_gain_low: bounds.loss_low.map(storable),
        retention: storable(measured.kept.cosine_mean),
        checks,
        settings: settings.clone(),
    }
}

struct Gain {
    metric: String,
    accuracy: Option<f64>,
    reference_accuracy: Option<f64>,
    loss: f64,
    reference_loss: f64,
    discordant: (u64, u64),
    p: f64,
    p_no_worse: f64,
}

/// How sure the gain is.
#[derive(Default)]
struct Bounds {
    alpha: Option<f64>,
    accuracy_low: Option<f64>,
    loss_low: Option<f64>,
}

impl Gain {
    fn relative_loss(&self) -> f64 {
        if self.reference_loss <= 0.0 {
            return 0.0;
        }
        (self.reference_loss - self.loss) / self.reference_loss
    }
}

fn gain(measured: &Measured, settings: &GateSettings) -> Gain {
    let held = &measured.held;
    let rights: Option<Vec<(f64, f64)>> =
        held.iter().map(|r| Some((r.candidate_right?, r.reference_right?))).collect();
    let rights = rights.filter(|p| !p.is_empty());
    let share =
        |right: &dyn Fn(&(f64, f64)) -> f64| rights.as_ref().map(|p| mean(p.iter().map(right)));
    // Where nothing is right or wrong, the smaller loss is the better answer.
    let pairs: Vec<(f64, f64)> = match &rights {
        Some(rights) => rights.clone(),
        None => held.iter().map(|r| (-r.candidate_loss, -r.reference_loss)).collect(),
    };
    let better = pairs.iter().filter(|(c, r)| c > r).count() as u64;
    let worse = pairs.iter().filter(|(c, r)| c < r).count() as u64;
    Gain {
        metric: measured.metric.clone(),
        accuracy: share(&|row| row.0),
        reference_accuracy: share(&|row| row.1),
        loss: mean(held.iter().map(|r| r.candidate_loss)),
        reference_loss: mean(held.iter().map(|r| r.reference_loss)),
        discordant: (better, worse),
        p: mcnemar(better, worse),
        p_no_worse: at_most(worse, pairs.len() as u64, settings.margin),
    }
}

fn retention(measured: &Measured, settings: &GateSettings, checks: &mut Checks) {
    let kept = &measured.kept;
    let least = settings.retention_cosine;
    let sentence = format!(
        "on {} probe inputs '{}' keeps a cosine of {:.3} to the base's, at least {least:.3} is needed{}",
        kept.samples,
        kept.output,
        kept.cosine_mean,
        if kept.sentence.is_empty() { String::new() } else { format!("; {}", kept.sentence) }
    );
    checks.add("retention", kept.cosine_mean, least, kept.cosine_mean >= least, sentence);
    if let Some(least) = settings.retention_agreement {
        let sentence = match kept.agreement {
            Some(found) => format!(
                "the base's own best class stays in {} of the probe inputs, {} is needed",
                percent(found),
                percent(least)
            ),
            None => "the base has no classes of its own that could stay".into(),
        };
        let found = kept.agreement.unwrap_or(f64::NAN);
        checks.add("base classes", found, least, found >= least, sentence);
    }
    if let Some(set) = &measured.labelled {
        let least = set.reference - settings.retention_drop;
        let passed = set.candidate >= least - 1e-9;
        let sentence = format!(
            "right on the retention set {} against {}, {} less is allowed",
            percent(set.candidate),
            percent(set.reference),
            percent(settings.retention_drop)
        );
        checks.add("retention set", set.candidate, least, passed, sentence);
    }
}

#[cfg(test)]
mod tests;
