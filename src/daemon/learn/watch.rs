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

/// Compares what people said of the active generation (`now`) and of the one before.
///
/// Every answer from [`WatchSettings::min_outcomes`] on is a look. The n-th look may take
/// alpha/(n·(n+1)) of the false alarms, which sum to alpha over all looks, so that a generation
/// that is as good as the one before is taken back with a probability of alpha at most, however
/// long it is watched.
pub fn watch(now: Tally, before: Tally, settings: &WatchSettings) -> Watched {
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
    let look = (now.total - settings.min_outcomes + 1) as f64;
    let threshold = settings.alpha / (look * (look + 1.0));
    let p = fisher_less(now.right, now.total, before.right, before.total);
    let worse = p <= threshold;
    let sentence = format!(
        "{} of {} answers right ({:.0} %) against {} of {} before ({:.0} %): p {p:.5}, {} {threshold:.5}",
        now.right,
        now.total,
        100.0 * now.share(),
        before.right,
        before.total,
        100.0 * before.share(),
        if worse { "not above" } else { "above" },
    );
    Watched { now, before, p: Some(p), threshold: Some(threshold), worse, sentence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::random::{stream, unit};

    fn tally(right: u64, total: u64) -> Tally {
        Tally { right, total }
    }

    #[test]
    fn a_bad_generation_is_seen_soon_and_a_good_one_is_left() {
        let settings = WatchSettings::default();
        let before = tally(36, 40);
        let n = settings.min_outcomes;
        assert!(watch(tally(0, n), before, &settings).worse);
        assert!(!watch(tally(n, n), before, &settings).worse);
        assert!(!watch(tally(0, n - 1), before, &settings).worse);
        assert!(!watch(tally(0, n), tally(3, settings.min_before - 1), &settings).worse);
        let off = WatchSettings { enabled: false, ..settings.clone() };
        assert!(!watch(tally(0, 50), before, &off).worse);
        assert!(!watch(tally(0, settings.until_outcomes + 1), before, &settings).worse);
        // As bad as the one before is not worse.
        assert!(!watch(tally(0, 50), tally(0, 50), &settings).worse);
    }

    /// Streams of feedback on a generation that is as good as the one before: over the whole watch
    /// at most alpha of them end in a false alarm.
    #[test]
    fn false_alarms_stay_below_alpha() {
        let settings = WatchSettings { until_outcomes: 150, ..WatchSettings::default() };
        let (mut alarms, mut caught, runs) = (0, 0, 400);
        for run in 0..runs {
            let mut rng = stream(run, "watch", 0);
            let mut drawn = |share: f32, count: u64| {
                (0..count).filter(|_| unit(&mut rng) < share).count() as u64
            };
            let before = tally(drawn(0.8, 60), 60);
            let mut stream_of = |share: f32| {
                let mut now = Tally::default();
                (0..150).any(|_| {
                    now = tally(now.right + drawn(share, 1), now.total + 1);
                    watch(now, before, &settings).worse
                })
            };
            alarms += usize::from(stream_of(0.8));
            caught += usize::from(stream_of(0.2));
        }
        assert!(alarms as f64 <= settings.alpha * runs as f64 + 4.0, "{alarms} of {runs}");
        assert_eq!(caught, runs as usize);
    }
}
