//! The learning rate over the steps of a run.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the learning rate moves. `warmup` is the share of the steps (0 to 1) over which it rises.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Schedule {
    /// The same at every step.
    Constant,
    /// lr · min(1, (k+1) / (warmup·steps)) · (1 - k/steps) at step k.
    Linear {
        /// Share of the steps over which the rate rises.
        warmup: f64,
    },
    /// Rises over the warm-up, then falls by half a cosine to `floor` · lr.
    Cosine {
        /// Share of the steps over which the rate rises.
        warmup: f64,
        /// What is left at the end, as a share of the full rate.
        floor: f64,
    },
}

impl Schedule {
    /// Reads `constant`, `linear` or `cosine`; warm-up over the first tenth, floor 0.
    pub fn parse(name: &str) -> Result<Schedule> {
        match name {
            "constant" => Ok(Schedule::Constant),
            "linear" => Ok(Schedule::Linear { warmup: 0.1 }),
            "cosine" => Ok(Schedule::Cosine { warmup: 0.1, floor: 0.0 }),
            other => Err(Error::usage(format!("unknown schedule '{other}'"))
                .hint("one of constant, linear, cosine")),
        }
    }

    /// The rate at `step` (from 0) of `steps`, for a full rate of `lr`. Steps past the last get
    /// the last one's rate.
    pub fn rate(&self, lr: f64, step: u64, steps: u64) -> f64 {
        let steps = steps.max(1);
        let k = step.min(steps - 1) as f64;
        let n = steps as f64;
        let rising = |warmup: f64| {
            let rise = warmup * n;
            if rise > 0.0 { ((k + 1.0) / rise).min(1.0) } else { 1.0 }
        };
        match *self {
            Schedule::Constant => lr,
            Schedule::Linear { warmup } => lr * rising(warmup) * (1.0 - k / n),
            Schedule::Cosine { warmup, floor } => {
                let rise = warmup * n;
                if k + 1.0 < rise {
                    return lr * rising(warmup);
                }
                let fall = (n - rise).max(1.0);
                let done = ((k - rise).max(0.0) / fall).min(1.0);
                lr * (floor + (1.0 - floor) * 0.5 * (1.0 + (PI * done).cos()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_is_the_formula_of_the_reference_runs() {
        let (lr, steps) = (1e-3, 104u64);
        for k in 0..steps {
            let (kf, n) = (k as f64, steps as f64);
            let expected = lr * f64::min(1.0, (kf + 1.0) / (0.1 * n)) * (1.0 - kf / n);
            assert_eq!(Schedule::Linear { warmup: 0.1 }.rate(lr, k, steps), expected);
        }
        assert_eq!(Schedule::Linear { warmup: 0.0 }.rate(1.0, 0, 4), 1.0);
    }

    #[test]
    fn cosine_rises_then_falls_to_its_floor() {
        let s = Schedule::Cosine { warmup: 0.1, floor: 0.1 };
        let rates: Vec<f64> = (0..100).map(|k| s.rate(2.0, k, 100)).collect();
        assert!((rates[0] - 0.2).abs() < 1e-12);
        assert!((rates[9] - 2.0).abs() < 1e-12);
        assert!(rates[..10].windows(2).all(|w| w[0] < w[1]));
        assert!(rates[10..].windows(2).all(|w| w[0] > w[1]));
        // Half-way down: (1 + 0.1) / 2 of the full rate.
        assert!((rates[55] - 1.1).abs() < 1e-12, "{}", rates[55]);
        assert!(rates[99] > 0.2 && rates[99] < 0.203);
    }

    #[test]
    fn odd_lengths_stay_finite() {
        let all = [
            Schedule::Constant,
            Schedule::Linear { warmup: 1.0 },
            Schedule::Cosine { warmup: 1.0, floor: 0.0 },
            Schedule::Cosine { warmup: 0.0, floor: 0.0 },
        ];
        for s in all {
            for steps in [0, 1, 2, 3] {
                for k in 0..5 {
                    let rate = s.rate(1.0, k, steps);
                    assert!((0.0..=1.0).contains(&rate), "{s:?} {k}/{steps}: {rate}");
                }
            }
        }
        assert!(Schedule::parse("cubic").is_err());
        assert_eq!(Schedule::parse("linear").unwrap(), Schedule::Linear { warmup: 0.1 });
    }
}
