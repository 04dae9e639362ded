//! The watch on live feedback: whether a generation answers worse than the one before it did.

use super::gate::fisher_less;
use super::settings::WatchSettings;
use serde::Serialize;

/// Right answers among those that people judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Right ones.
    pub right: u64,
    /// All.
    pub total: u64,
}

impl Tally {
    fn share(self) -> f64 {
        if self.total == 0 { 0.0 } else { self.right as f64 / self.total as f64 }
    }
}

/// What the watch says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Watched {
    /// What people said of the active generation.
    pub now: Tally,
    /// What they said of the one before.
    pub before: Tally,
    /// Fisher's exact p, one-sided; none while there is too little to judge by.
    pub p: Option<f64>,
    /// What p is held against at this look.
    pub threshold: Option<f64>,
    /// Whether to go back.
    pub worse: bool,
    /// The same in words.
    pub sentence: String,
}

/// Each look comes after half as many answers again as the one before.
fn looks(settings: &WatchSettings) -> impl Iterator<Item = u64> {
    let (first, until) = (settings.min_outcomes.max(2), settings.until_outcomes);
    std::iter::successors(Some(first), |n| n.checked_mul(3).map(|n| n / 2))
        .take_while(move |n| *n <= until)
}

/// The look that so many answers have reached, from 0; `None`: too few for the first.
pub fn reached(total: u64, settings: &WatchSettings) -> Option<usize> {
    looks(settings).take_while(|n| *n <= total).count().checked_sub(1)
}

/// Whether exactly so many answers are a look.
pub fn is_look(total: u64, settings: &WatchSettings) -> bool {
    looks(settings).any(|n| n == total)
}

/// Compares what people said of the active generation (`now`) and of the one before, at a look if it is
/// `due`.
///
/// Of K looks each may take alpha/K of the false alarms by an exact test, so that by the union bound a
/// generation that is as good as the one before is taken back with a probability of `alpha` at most,
/// however long it is watched. The looks are few, as each costs: at every answer one would have to be
/// surer by a factor of hundreds.
pub fn watch(
    now: Tally,
    before: Tally,
    settings: &WatchSettings,
    alpha: f64,
    due: bool,
) -> Watched {
    let quiet = |sentence: String| Watched {
        now,
        before,
        p: None,
        threshold: None,
        worse: false,
        sentence,
    };
    if !settings.enabled {
        return quiet("the watch is switched off".into());
    }
    if now.total < settings.min_outcomes {
        return quiet(format!(
            "{} judged answers, {} are needed",
            now.total, settings.min_outcomes
        ));
    }
    if before.total < settings.min_before {
        return quiet(format!(
            "the generation before has {} judged answers, {} are needed to compare",
            before.total, settings.min_before
        ));
    }
    if now.total > settings.until_outcomes {
        return quiet(format!("watched for {} answers: it has proven itself", now.total));
    }
    let threshold = alpha / looks(settings).count().max(1) as f64;
    let p = fisher_less(now.right, now.total, before.right, before.total);
    let below = p <= threshold;
    let next = looks(settings).find(|n| *n > now.total);
    let next =
        next.filter(|_| !due).map_or(String::new(), |n| format!("; the next look is at {n}"));
    let sentence = format!(
        "{} of {} answers right ({:.0} %) against {} of {} before ({:.0} %): p {p:.5}, {} {threshold:.5}{next}",
        now.right,
        now.total,
        100.0 * now.share(),
        before.right,
        before.total,
        100.0 * before.share(),
        if below { "not above" } else { "above" },
    );
    Watched { now, before, p: Some(p), threshold: Some(threshold), worse: below && due, sentence }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(right: u64, total: u64) -> Tally {
        Tally { right, total }
    }

    #[test]
    fn a_bad_generation_is_seen_soon_and_a_good_one_is_left() {
        let settings = WatchSettings::default();
        let before = tally(36, 40);
        let n = settings.min_outcomes;
        let worse = |now: Tally, before: Tally, settings: &WatchSettings| {
            watch(now, before, settings, 0.025, true).worse
        };
        assert!(worse(tally(0, n), before, &settings));
        assert!(!worse(tally(n, n), before, &settings));
        assert!(!worse(tally(0, n - 1), before, &settings));
        assert!(!worse(tally(0, n), tally(3, settings.min_before - 1), &settings));
        let off = WatchSettings { enabled: false, ..settings.clone() };
        assert!(!worse(tally(0, 50), before, &off));
        assert!(!worse(tally(0, settings.until_outcomes + 1), before, &settings));
        // As bad as the one before is not worse.
        assert!(!worse(tally(0, 50), tally(0, 50), &settings));
        // Between looks nothing is decided, whatever is seen.
        let between = watch(tally(0, n), before, &settings, 0.025, false);
        assert!(!between.worse && between.sentence.ends_with("the next look is at 12"));
        assert_eq!(
            [7, 8, 11, 12, 60].map(|t| reached(t, &settings)),
            [None, Some(0), Some(0), Some(1), Some(5)]
        );
        assert!(is_look(12, &settings) && !is_look(13, &settings));
    }
}
