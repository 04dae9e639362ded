//! What is served and learned, for Prometheus. Read from the state when the metrics are asked for.

use super::app::App;
use super::metrics::Family;
use super::names::names;
use crate::error::Result;

/// Gauges with an adapter's name each, and whether the state could be read for them. A name holds nothing
/// that needs an escape.
pub fn families(app: &App) -> Vec<Family> {
    let found = read(app);
    let mut readable = Family::new("state_readable", "Whether the state could be read.");
    readable.add(String::new(), f64::from(found.is_ok()));
    if let Err(e) = &found {
        tracing::warn!("the metrics lack what is learned: {e}");
    }
    let mut families = found.unwrap_or_default();
    families.push(readable);
    families.extend(app.hooks().map(|hooks| hooks.families()).into_iter().flatten());
    families
}

fn read(app: &App) -> Result<Vec<Family>> {
    let mut generation = Family::new("adapter_generation", "The active generation; 0: the base.");
    let mut trial = Family::new("adapter_on_trial", "Whether it is on trial.");
    let mut fault = Family::new("adapter_fault", "Whether another answers in its place.");
    let mut samples = Family::new("samples", "Samples by what becomes of them.");
    let mut right = Family::new("judged_right", "Right answers of the active generation.");
    let mut judged = Family::new("judged", "Its answers that people judged.");
    for name in names(app, usize::MAX)? {
        let label = format!("adapter=\"{}\"", name.entry.name);
        generation.add(label.clone(), name.entry.active.unwrap_or(0) as f64);
        trial.add(label.clone(), f64::from(name.entry.trial.is_some()));
        fault.add(label.clone(), f64::from(name.fault.is_some()));
        for (state, n) in [
            ("train", name.samples.kept.saturating_sub(name.samples.held)),
            ("hold_out", name.samples.held),
            ("quarantined", name.samples.quarantined),
        ] {
            samples.add(format!("{label},state=\"{state}\""), n as f64);
        }
        right.add(label.clone(), name.outcomes.right as f64);
        judged.add(label, name.outcomes.total as f64);
    }
    let mut families = vec![generation, trial, fault, samples, right, judged];
    families.extend(training(app)?);
    Ok(families)
}

fn training(app: &App) -> Result<Vec<Family>> {
    let mut jobs = Family::new("jobs_open", "Training jobs that wait or run.");
    let open = app.store.jobs()?.into_iter().filter(|job| job.state.is_open()).count();
    jobs.add(String::new(), open as f64);
    let mut step = Family::new("training_step", "Steps done of the job that trains now.");
    let mut steps = Family::new("training_steps", "Steps that it is to do.");
    let mut passed = Family::new("gate_passed", "Whether the last candidate was promoted.");
    let mut candidate = Family::new("gate_candidate", "How right it was on the hold-out.");
    let mut reference = Family::new("gate_reference", "How right what served then was.");
    if let Some(learning) = app.learning() {
        if let Some(job) = learning.running() {
            let label = format!("adapter=\"{}\"", job.name);
            step.add(label.clone(), job.step as f64);
            steps.add(label, job.steps as f64);
        }
        for (name, verdict) in learning.verdicts() {
            let label = format!("adapter=\"{name}\"");
            passed.add(label.clone(), f64::from(verdict.passed));
            if let (Some(new), Some(old)) = (verdict.accuracy, verdict.reference_accuracy) {
                candidate.add(label.clone(), new);
                reference.add(label, old);
            }
        }
    }
    Ok(vec![jobs, step, steps, passed, candidate, reference])
}
