//! When to stop: the best hold-out so far, and how long nothing was better.

use serde::{Deserialize, Serialize};

/// Watches a metric of which more is better.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    patience: Option<u32>,
    min_gain: f64,
    best: Option<(f64, u64)>,
    without_gain: u32,
}

/// What a look at the hold-out means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The best so far: keep these values.
    Best,
    /// Not better; go on.
    GoOn,
    /// Not better for the whole patience: stop.
    Stop,
}

impl EarlyStopping {
    /// Stops after `patience` looks in a row without a gain of more than `min_gain`; never without
    /// a patience (the best is still found).
    pub fn new(patience: Option<u32>, min_gain: f64) -> EarlyStopping {
        EarlyStopping { patience, min_gain, best: None, without_gain: 0 }
    }

    /// Takes the hold-out's metric at `step`. A metric that is not a number never counts as better.
    pub fn look(&mut self, metric: f64, step: u64) -> Verdict {
        let better = match self.best {
            None => !metric.is_nan(),
            Some((best, _)) => metric > best + self.min_gain,
        };
        if better {
            self.best = Some((metric, step));
            self.without_gain = 0;
            return Verdict::Best;
        }
        self.without_gain = self.without_gain.saturating_add(1);
        match self.patience {
            Some(patience) if self.without_gain >= patience => Verdict::Stop,
            _ => Verdict::GoOn,
        }
    }

    /// Whether the last look said stop.
    pub fn is_over(&self) -> bool {
        // A look that was the best says go on, whatever the patience.
        self.without_gain > 0
            && self.best.is_some()
            && self.patience.is_some_and(|p| self.without_gain >= p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_after_its_patience() {
        let mut s = EarlyStopping::new(Some(2), 0.0);
        assert_eq!(s.look(0.5, 10), Verdict::Best);
        assert_eq!(s.look(0.5, 20), Verdict::GoOn);
        assert_eq!(s.look(0.6, 30), Verdict::Best);
        assert_eq!(s.look(0.6, 40), Verdict::GoOn);
        assert_eq!(s.look(f64::NAN, 50), Verdict::Stop);
        assert_eq!(s.best, Some((0.6, 30)));
    }

    /// A run that was stopped after its best look ended when it was resumed.
    #[test]
    fn without_patience_a_best_look_is_not_the_end() {
        let mut s = EarlyStopping::new(Some(0), 0.0);
        assert!(!s.is_over());
        assert_eq!((s.look(0.5, 10), s.is_over()), (Verdict::Best, false));
        assert_eq!((s.look(0.5, 20), s.is_over()), (Verdict::Stop, true));
    }

    #[test]
    fn small_gains_and_no_numbers_are_no_gains() {
        let mut s = EarlyStopping::new(None, 0.1);
        assert_eq!(s.look(f64::NAN, 1), Verdict::GoOn);
        assert_eq!(s.look(-3.0, 2), Verdict::Best);
        assert_eq!(s.look(-2.95, 3), Verdict::GoOn);
        assert_eq!(s.look(-2.0, 4), Verdict::Best);
        (0..100).for_each(|i| assert_eq!(s.look(-2.0, i), Verdict::GoOn));
    }
}
