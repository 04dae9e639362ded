//! What must speak for a candidate. Where something answers today its error rate is stated.

use super::stats::bootstrap_lower;
use super::{Bounds, Checks, Gain, Measured, Reference, percent};
use crate::daemon::learn::settings::{Evidence, GateSettings};

/// What this look may take of the error rate: each is the probability of a promotion that should not be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// Of a candidate that is no better.
    pub gain: f64,
    /// Of one that has learned the new samples and answers more than [`GateSettings::margin`] worse.
    pub no_worse: Option<f64>,
}

/// Of a rate for a month what a look may take that comes after `earlier` others in the 30 days before it:
/// rate/((earlier + 1)·(earlier + 2)). Within any 30 days the n-th look has n - 1 others before it at
/// least, so that all of them together take rate · Σ 1/(n·(n + 1)) < rate. What a look takes depends on
/// how many there were, never on what they found, and each test is valid by itself: the candidate was
/// trained without the samples that judge it. So by the union bound no more than `rate` promotions a month
/// are to be expected that should not be, however often one looks at the same hold-out. That what answers
/// today was chosen by that hold-out speaks for it, not for the candidate.
pub fn allowance(rate: f64, earlier: u64) -> f64 {
    let n = earlier as f64 + 1.0;
    rate / (n * (n + 1.0))
}

/// Whether the gain is proven, or, for what has learned the new samples, that nothing got worse.
pub(super) fn proof(
    measured: &Measured,
    settings: &GateSettings,
    look: Look,
    seed: u64,
    gain: &Gain,
    checks: &mut Checks,
) -> Bounds {
    if measured.reference == Reference::MostFrequent {
        gained(settings, gain, checks);
        return evidence(measured, settings, seed, gain, checks);
    }
    let by_accuracy = gain.accuracy.zip(gain.reference_accuracy);
    let no_less = by_accuracy.map_or(gain.loss <= gain.reference_loss, |(c, r)| c >= r);
    let learned = measured.lessons.filter(|l| l.candidate > l.reference && no_less);
    let open = look.no_worse.zip(learned);
    if let Some((alpha, lessons)) = open.filter(|(alpha, _)| gain.p_no_worse <= *alpha) {
        let sentence = no_worse(measured, settings, gain, alpha);
        checks.add("no worse", gain.p_no_worse, alpha, true, sentence);
        let text = format!(
            "of {} new samples {:.0} are answered rightly against {:.0}",
            lessons.samples, lessons.candidate, lessons.reference
        );
        checks.add("lessons", lessons.candidate, lessons.reference, true, text);
        return Bounds { alpha: Some(alpha), ..Bounds::default() };
    }
    gained(settings, gain, checks);
    let mut sentence = surely(gain, look.gain);
    if let Some((alpha, _)) = open {
        let also = no_worse(measured, settings, gain, alpha);
        sentence.push_str(&format!("; nor is it shown that nothing gets worse: {also}"));
    }
    checks.add("sure", gain.p, look.gain, gain.p <= look.gain, sentence);
    Bounds { alpha: Some(look.gain), ..Bounds::default() }
}

fn gained(settings: &GateSettings, gain: &Gain, checks: &mut Checks) {
    let by_accuracy = gain.accuracy.zip(gain.reference_accuracy);
    let found = by_accuracy.map_or_else(|| gain.relative_loss(), |(c, r)| c - r);
    let least = settings.min_gain;
    let sentence = match by_accuracy {
        Some((candidate, reference)) => format!(
            "hold-out {} {} against {}, a gain of {} is needed",
            gain.metric,
            percent(candidate),
            percent(reference),
            percent(least)
        ),
        None => format!(
            "hold-out loss {:.4} against {:.4}, {} less is needed",
            gain.loss,
            gain.reference_loss,
            percent(least)
        ),
    };
    checks.add("gain", found, least, found >= least, sentence);
}

fn surely(gain: &Gain, alpha: f64) -> String {
    let (better, worse) = gain.discordant;
    format!("{better} answers got better and {worse} worse: p {:.5}, {alpha:.5} is allowed", gain.p)
}

fn no_worse(measured: &Measured, settings: &GateSettings, gain: &Gain, alpha: f64) -> String {
    format!(
        "{} of {} answers got worse; that it is fewer than {} of all has p {:.5}, {alpha:.5} is allowed",
        gain.discordant.1,
        measured.held.len(),
        percent(settings.margin),
        gain.p_no_worse
    )
}

/// Where nothing answers today nothing can get worse, and little speaks for it: each look stands alone.
fn evidence(
    measured: &Measured,
    settings: &GateSettings,
    seed: u64,
    gain: &Gain,
    checks: &mut Checks,
) -> Bounds {
    let held = &measured.held;
    let by = |difference: &dyn Fn(&super::HeldRow) -> f64| {
        let rows: Vec<(usize, f64)> = held.iter().map(|r| (r.group, difference(r))).collect();
        bootstrap_lower(&rows, settings.confidence, seed)
    };
    let loss_low = by(&|r| r.reference_loss - r.candidate_loss);
    let accuracy_low = gain
        .accuracy
        .map(|_| by(&|r| r.candidate_right.unwrap_or(0.0) - r.reference_right.unwrap_or(0.0)));
    let alpha = 1.0 - settings.confidence;
    let sure = percent(settings.confidence);
    match (settings.evidence, accuracy_low) {
        (Evidence::Answers, Some(_)) => {
            checks.add("evidence", gain.p, alpha, gain.p <= alpha, surely(gain, alpha))
        }
        (Evidence::Accuracy, Some(low)) => checks.add(
            "evidence",
            low,
            0.0,
            low > 0.0,
            format!("the {} is higher by {low:.4} at least, {sure} sure", gain.metric),
        ),
        _ => checks.add(
            "evidence",
            loss_low,
            0.0,
            loss_low > 0.0,
            format!("the loss is lower by {loss_low:.4} at least, {sure} sure"),
        ),
    }
    Bounds { alpha: None, accuracy_low, loss_low: Some(loss_low) }
}
