//! Trials: taking them up, ending them, and trying once more what an interruption took back.

use super::clock::Now;
use super::learner::Shared;
use crate::error::{Cause, Result};
use crate::store::{How, JobState, Switched, Trial};
use std::collections::BTreeMap;
use std::time::Duration;

/// Where the daemon was stopped within a trial, it serves that part of it without the generation first.
const AFTER_A_STOP: u32 = 10;

/// A trial as it was found in the store.
#[derive(Clone, Copy)]
pub(super) struct OnTrial {
    pub trial: Trial,
    /// When it ends, on the steady clock.
    pub until: Duration,
}

/// A generation whose trial was interrupted.
#[derive(Clone, Copy)]
pub(super) struct Again {
    generation: u64,
    /// When it is tried once more, on the steady clock.
    pub due: Duration,
    /// What must be active then.
    active: Option<u64>,
}

impl Shared {
    /// What a crash, a restart or a power cut left behind.
    pub fn recover(&self) -> Result<()> {
        let settings = self.settings();
        for (job, state) in self.store.end_interrupted_jobs(settings.train.max_attempts)? {
            let what = match state {
                JobState::Done => "after its end",
                JobState::Failed => "too often, it is given up",
                _ => "it goes on later",
            };
            self.tell("train", None, &format!("job {job} was interrupted, {what}"), None);
        }
        for switched in self.store.end_interrupted_trials(false)? {
            self.refresh(&switched.name);
        }
        let trial = settings.trial.duration();
        for (Switched { name, active, before }, how) in self.store.interrupted_trials()? {
            // After a crash the device shows first that it lasts as long without it.
            let wait = match (active, how) {
                // Nothing else answers.
                (None, _) => Duration::ZERO,
                (_, How::Stopped) => trial / AFTER_A_STOP,
                _ => trial,
            };
            if let Some(generation) = before {
                let due = self.now().steady + wait;
                self.board().again.insert(name, Again { generation, due, active });
            }
        }
        Ok(())
    }

    /// Takes up the trials that the store knows, whoever began them.
    pub fn adopt_trials(&self) {
        let names = match self.store.names() {
            Ok(names) => names,
            Err(e) => return tracing::error!("trials can't be looked up: {e}"),
        };
        let steady = self.now().steady;
        let mut board = self.board();
        let mut trials = BTreeMap::new();
        for (name, trial) in names.into_iter().filter_map(|e| Some((e.name, e.trial?))) {
            let known = board.trials.get(&name).filter(|known| known.trial == trial);
            let until = known.map(|known| known.until);
            let until = until.unwrap_or(steady + Duration::from_secs(trial.seconds));
            trials.insert(name, OnTrial { trial, until });
        }
        board.trials = trials;
    }

    /// Confirms trials that have lasted, and begins those anew that are due.
    pub fn end_trials(&self, now: Now) {
        let due: Vec<(String, u64)> = {
            let board = self.board();
            let ended = |(name, on): (&String, &OnTrial)| {
                (now.steady >= on.until).then(|| (name.clone(), on.trial.generation))
            };
            board.trials.iter().filter_map(ended).collect()
        };
        for (name, generation) in due {
            let on = self.board().trials.remove(&name);
            match self.store.confirm_trial(&name, generation) {
                Ok(()) => {}
                // Another generation became active meanwhile: nothing to confirm.
                Err(e) if matches!(e.cause(), Some(Cause::Moved | Cause::NotFound)) => {
                    tracing::info!("the trial of '{name}' generation {generation} is over: {e}");
                }
                Err(e) => {
                    tracing::error!("'{name}' generation {generation} can't be confirmed: {e}");
                    let look = Duration::from_secs(self.settings().conditions.look_seconds);
                    if let Some(on) = on {
                        self.board()
                            .trials
                            .insert(name, OnTrial { until: now.steady + look, ..on });
                    }
                }
            }
        }
        let again: BTreeMap<String, Again> = {
            let mut board = self.board();
            let all = std::mem::take(&mut board.again).into_iter();
            let (due, later) = all.partition(|(_, again)| now.steady >= again.due);
            board.again = later;
            due
        };
        for (name, again) in &again {
            self.try_again(name, *again);
        }
        if !again.is_empty() {
            self.adopt_trials();
        }
    }

    /// Begins a trial anew that was interrupted.
    fn try_again(&self, name: &str, Again { generation, active, .. }: Again) {
        let trial = self.settings().trial.duration();
        let trial = (!trial.is_zero()).then_some(trial);
        // What was switched to and fro meanwhile has had its trial.
        let still = self.store.interrupted_trials().is_ok_and(|all| {
            let it = |s: &Switched| s.name == name && s.before == Some(generation);
            all.iter().any(|(switched, _)| it(switched))
        });
        if !still {
            return;
        }
        match self.store.activate(name, generation, Some(active), trial) {
            Ok(_) if self.refresh(name) => {
                let text = format!("generation {generation} is tried again");
                self.tell("trial", Some(name), &text, None);
            }
            Ok(_) => {
                let why = "it can't be served";
                if let Err(e) = self.store.rollback(name, Some(Some(generation)), why) {
                    tracing::error!("'{name}' can't go back: {e}");
                }
                self.refresh(name);
            }
            // Something else became active meanwhile, or it is gone.
            Err(e) => tracing::info!("'{name}' generation {generation} is not tried again: {e}"),
        }
    }
}
