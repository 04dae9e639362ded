//! What the broker is told of each name.

use super::super::app::App;
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
    let served = app.roster.list();
    let mut all = BTreeMap::new();
    for entry in app.store.names()?.into_iter().take(NAMES) {
        let name = entry.name;
        let counts = app.store.counts(&name)?;
        let judged = app.store.outcomes(&name, entry.active.unwrap_or(0))?;
        let job = running.as_ref().filter(|job| job.name == name);
        let training = match (app.learning(), job) {
            (None, _) => "off",
            (_, Some(job)) if job.measuring => "measuring",
            (_, Some(_)) => "training",
            _ if jobs.iter().any(|job| job.name == name && job.state.is_open()) => "queued",
            _ => "idle",
        };
        let fault = served.iter().find(|row| row.name == name).and_then(|row| row.instead.as_ref());
        let accuracy = (judged.total > 0).then(|| judged.right as f64 / judged.total as f64);
        let state = json!({
            "generation": entry.active,
            "on_trial": entry.trial.is_some(),
            "training": training,
            "step": job.map(|job| job.step),
            "steps": job.map(|job| job.steps),
            "samples": counts.kept,
            "new": counts.new,
            "quarantined": counts.quarantined,
            "judged": judged.total,
            "right": judged.right,
            "accuracy": accuracy,
            "fault": fault.map(|instead| &instead.why),
        });
        all.insert(name, state);
    }
    Ok(all)
}
