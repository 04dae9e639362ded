//! Learning by itself: when to train, the training child, the gate, promotion, the trial, and the
//! watch on live feedback.
//!
//! What decides is pure (`conditions`, `gate`, `watch`, `clock`); what acts (`learner`, `child`)
//! asks it. The child (`worker`) trains and measures; the daemon judges what it measured.

mod assignment;
mod child;
mod clock;
mod conditions;
mod feedback;
mod gate;
mod hours;
mod job;
mod learner;
mod limit;
mod measure;
#[cfg(test)]
mod months;
mod prepare;
mod probes;
mod readings;
mod settings;
#[cfg(test)]
mod testing;
mod trials;
mod watch;
mod worker;

pub(crate) use assignment::dataset;
pub use conditions::Condition;
pub use gate::{Check, Reference, Verdict};
pub use hours::Hours;
pub use job::heard_and_judged;
pub use learner::{JobStatus, LearnStatus, Learner, NameStatus, Place};
pub use settings::{
    ConditionSettings, Evidence, GateSettings, Settings, TrainSettings, TrialSettings,
    WatchSettings,
};
pub use watch::{Tally, Watched};
pub use worker::{is_call as is_worker_call, main as worker_main};
