//! What the broker is told of each name.

use crate::daemon::serve::app::App;
use crate::daemon::serve::names::{Named, names};
use crate::error::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Names that the broker is told of, at most.
const NAMES: usize = 100;

/// What is to be told of names, by name.
///
/// # Errors
/// The state can't be read.
pub fn states(app: &App) -> Result<BTreeMap<String, Value>> {
    let jobs = app.store.jobs()?;
    let running = app.learning().and_then(|learning| learning.running());
    let mut all = BTreeMap::new();
    for Named { entry, fault, samples, outcomes, .. } in names(app, NAMES)? {
        let name = entry.name;
        let job = running.as_ref().filter(|job| job.name == name);
        let training = match (app.learning(), job) {
            (None, _) => "off",
            (_, Some(job)) if job.measuring => "measuring",
            (_, Some(_)) => "training",
            _ if jobs.iter().any(|job| job.name == name && job.state.is_open()) => "queued",
            _ => "idle",
        };
        let accuracy = (outcomes.total > 0).then(|| outcomes.right as f64 / outcomes.total as f64);
        let state = json!({
            "generation": entry.active,
            "on_trial": entry.trial.is_some(),
            "training": training,
            "step": job.map(|job| job.step),
            "steps": job.map(|job| job.steps),
            "samples": samples.kept,
            "new": samples.new,
            "quarantined": samples.quarantined,
            "judged": outcomes.total,
            "right": outcomes.right,
            "accuracy": accuracy,
            "fault": fault.map(|instead| instead.why.clone()),
        });
        all.insert(name, state);
    }
    Ok(all)
}
