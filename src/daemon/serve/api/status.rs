//! Health, metrics, the document, and what `offshoot status` shows.

use super::{Answer, Call, ok};
use crate::daemon::Serving;
use crate::daemon::serve::app::{App, resident_bytes};
use crate::daemon::serve::learned;
use crate::daemon::serve::names::names;
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::roster::Selection;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Events in a status.
const EVENTS: u32 = 10;
/// Most events of one page.
const MAX_EVENTS: u32 = 1000;

/// `GET /health`: 200 once a probe was answered.
pub async fn health(State(app): State<Arc<App>>, _call: Call) -> Answer {
    if *app.stop.borrow() {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "stopping"));
    }
    if !app.ready() {
        let message = "the base has answered no probe yet";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message));
    }
    let base_changed = app.engine().base().check_unchanged().is_err();
    let problems = problems(&app);
    let status = if problems.is_empty() && !base_changed { "ok" } else { "degraded" };
    ok(&json!({"status": status, "base_changed": base_changed, "problems": problems}))
}

/// What a person should know, in sentences: of the state, and of adapters that can't be served. Reads
/// no disk.
pub fn problems(app: &App) -> Vec<String> {
    let mut problems = app.store.problems();
    problems.extend(app.integrity.damage());
    problems.extend(app.keeper.tokens.damage());
    problems.extend(app.engine().base().check_unchanged().err().map(|e| e.message().to_string()));
    for row in app.roster.rows() {
        let Some(instead) = &row.instead else { continue };
        let by = row.generation.map_or("the base".into(), |g| format!("generation {g}"));
        problems.push(format!(
            "generation {} of adapter '{}' can't be served, {by} answers in its place: {}",
            instead.generation, row.name, instead.why
        ));
    }
    problems
}

/// `GET /metrics`.
pub async fn metrics(State(app): State<Arc<App>>, _call: Call) -> Answer {
    // A state that can't be read is no reason to say nothing of the rest.
    let learned = app.blocking(|app| Ok(learned::families(app))).await?;
    let text = app.metrics.text(&app.gauges(), &learned);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

/// `GET /openapi.json`.
pub async fn openapi(_call: Call) -> Answer {
    ok(&crate::daemon::serve::openapi::document())
}

/// `GET /v1/status`.
pub async fn status(State(app): State<Arc<App>>, _call: Call) -> Answer {
    let answer = app.blocking(|app| Ok(document(app)?)).await?;
    ok(&answer)
}

fn document(app: &App) -> crate::error::Result<Value> {
    let default = match app.roster.default_selection() {
        Selection::Named(reference) => Some(reference.to_string()),
        // The base, or a sum of adapters: see GET /lora-adapters.
        _ => None,
    };
    let adapters = names(app, usize::MAX)?.into_iter().map(|name| {
        json!({
            "name": name.entry.name,
            "active": name.entry.active,
            "trial": name.entry.trial,
            "generations": name.entry.generations,
            "served": name.served,
            "fault": name.fault.map(|instead| instead.why.clone()),
            "samples": name.samples,
            "outcomes": name.outcomes,
        })
    });
    let adapters: Vec<Value> = adapters.collect();
    let base = app.engine().base();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": app.ready(),
        "uptime_seconds": app.started.elapsed().as_secs(),
        "resident_bytes": resident_bytes(),
        "base": {
            "path": base.path(),
            "fingerprint": base.fingerprint().to_string(),
            "changed": base.check_unchanged().is_err(),
            "integrity": app.integrity.shown(),
        },
        "encrypted": app.store.encrypted(),
        "read_only": app.store.read_only(),
        "problems": problems(app),
        "state": {
            "path": std::path::absolute(app.store.root()).unwrap_or(app.store.root().into()),
            "doubt": app.store.doubt(),
            "lost": app.store.lost(),
        },
        "default_adapter": default,
        "adapters": adapters,
        "jobs": app.store.jobs()?.into_iter().filter(|j| j.state.is_open()).collect::<Vec<_>>(),
        "learner": app.learning().map(|l| l.status()).transpose()?,
        "webhooks": app.hooks().map_or(vec![], |hooks| hooks.shown()),
        "events": app.store.latest_events(EVENTS)?,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    limit: Option<u32>,
    after: Option<i64>,
}

/// `GET /v1/events`.
pub async fn events(State(app): State<Arc<App>>, call: Call) -> Answer {
    let EventsQuery { limit, after } = call.query()?;
    let limit = limit.unwrap_or(100);
    if !(1..=MAX_EVENTS).contains(&limit) {
        return Err(Problem::invalid(format!("limit: expected 1 to {MAX_EVENTS}, found {limit}")));
    }
    let events = app.blocking(move |app| Ok(app.store.events(limit, after.unwrap_or(0))?)).await?;
    ok(&json!({"events": events}))
}
