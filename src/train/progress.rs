//! What a run tells while it works. Nothing here knows of terminals.

use serde::Serialize;
use std::time::{Duration, Instant};

/// One piece of news from a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Before the first step.
    Started {
        /// Steps to do in all, those of an earlier part of the run included.
        steps: u64,
        /// The step that a resumed run starts after; 0 for a fresh one.
        resumed_at: u64,
        /// Samples trained on.
        samples: u64,
        /// Samples held out.
        held_out: u64,
        /// Trained values.
        parameters: u64,
    },
    /// After a step.
    Step {
        /// Steps done.
        step: u64,
        /// Steps to do in all.
        steps: u64,
        /// Mean loss of the step's batch.
        loss: f64,
        /// Learning rate of the step.
        rate: f64,
        /// Samples trained on per second, smoothed; 0 while unknown.
        samples_per_second: f64,
        /// Seconds to go at this pace.
        seconds_left: f64,
    },
    /// After a look at the hold-out.
    HoldOut {
        /// Steps done.
        step: u64,
        /// What was measured (`accuracy`, `macro_f1`, `mse`, ...).
        metric: String,
        /// Its value.
        value: f64,
        /// Mean loss on the hold-out.
        loss: f64,
        /// Whether it is the best so far.
        best: bool,
    },
    /// After a look at how much of the base's knowledge is kept.
    Knowledge {
        /// Steps done.
        step: u64,
        /// The share that is kept.
        kept: f64,
        /// The share that is to be kept.
        wanted: f64,
        /// The weight from here on of the penalty on what moves away from the base.
        weight: f64,
    },
    /// The run's state was written.
    Checkpoint {
        /// Steps done.
        step: u64,
    },
    /// The end.
    Finished {
        /// Steps done.
        step: u64,
        /// Why it ended before its last step, if it did.
        early: Option<String>,
        /// Seconds this process worked on it.
        seconds: f64,
    },
}

/// Takes a run's news.
pub trait Progress {
    /// One piece of news.
    fn event(&mut self, event: &Event);

    /// Asked after every step: whether to stop here (a checkpoint is written first).
    fn stop(&mut self) -> bool {
        false
    }
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&mut self, _event: &Event) {}
}

impl<F: FnMut(&Event)> Progress for F {
    fn event(&mut self, event: &Event) {
        self(event);
    }
}

/// Speed and time left, smoothed over about the last 20 steps.
#[derive(Clone, Debug)]
pub struct Meter {
    started: Instant,
    last: Duration,
    seconds_per_step: Option<f64>,
    samples_per_step: f64,
}

/// Weight of the newest step in the mean.
const NEWEST: f64 = 0.05;

impl Default for Meter {
    fn default() -> Meter {
        Meter::new()
    }
}

impl Meter {
    /// Starts now.
    pub fn new() -> Meter {
        Meter {
            started: Instant::now(),
            last: Duration::ZERO,
            seconds_per_step: None,
            samples_per_step: 0.0,
        }
    }

    /// A step over `samples` samples ended now.
    pub fn step(&mut self, samples: u64) {
        self.step_at(self.started.elapsed(), samples);
    }

    /// Time since the last step that belongs to no step (a look at the hold-out) is left out of
    /// the pace.
    pub fn pause_ended(&mut self) {
        self.last = self.started.elapsed();
    }

    fn step_at(&mut self, now: Duration, samples: u64) {
        let took = now.saturating_sub(self.last).as_secs_f64();
        self.last = now;
        let samples = samples as f64;
        match &mut self.seconds_per_step {
            None => {
                self.seconds_per_step = Some(took);
                self.samples_per_step = samples;
            }
            Some(mean) => {
                *mean += NEWEST * (took - *mean);
                self.samples_per_step += NEWEST * (samples - self.samples_per_step);
            }
        }
    }

    /// Samples per second; 0 before the first step.
    pub fn samples_per_second(&self) -> f64 {
        match self.seconds_per_step {
            Some(seconds) if seconds > 0.0 => self.samples_per_step / seconds,
            _ => 0.0,
        }
    }

    /// Seconds that `steps` more steps take; 0 before the first step.
    pub fn seconds_left(&self, steps: u64) -> f64 {
        self.seconds_per_step.unwrap_or(0.0) * steps as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_follows_the_steps() {
        let mut m = Meter::new();
        assert_eq!((m.samples_per_second(), m.seconds_left(9)), (0.0, 0.0));
        for i in 1..=10 {
            m.step_at(Duration::from_millis(500 * i), 8);
        }
        assert!((m.samples_per_second() - 16.0).abs() < 1e-9);
        assert!((m.seconds_left(4) - 2.0).abs() < 1e-9);
        // Twice as slow from here: the pace moves there within some dozen steps.
        for i in 1..=100 {
            m.step_at(Duration::from_millis(5000 + 1000 * i), 8);
        }
        assert!((m.samples_per_second() - 8.0).abs() < 0.1);
    }

    #[test]
    fn closures_hear_events_and_events_are_json() {
        let mut heard = Vec::new();
        let mut listener = |e: &Event| heard.push(serde_json::to_string(e).unwrap());
        let progress: &mut dyn Progress = &mut listener;
        progress.event(&Event::Checkpoint { step: 3 });
        assert!(!progress.stop());
        Silent.event(&Event::Checkpoint { step: 4 });
        assert_eq!(heard, [r#"{"event":"checkpoint","step":3}"#]);
    }
}
