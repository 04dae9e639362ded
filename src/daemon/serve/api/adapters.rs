//! Adapters: list, add, switch, roll back, remove; and llama.cpp's form of them.

use super::table::only_asked;
use super::{Answer, Call, ok, with};
use crate::adapter::{Adapter, MAX_FILE};
use crate::daemon::Serving;
use crate::daemon::serve::app::App;
use crate::daemon::serve::ask::{LoraWeight, Mime, given, json, mix, unsupported_media};
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::roster::Selection;
use crate::fs::read_limited;
use crate::store::{Origin, Reference, Switched};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Longest trial that can be asked for: 90 days.
const MAX_TRIAL: u64 = 90 * 24 * 3600;

/// `GET /v1/adapters`.
pub async fn list(State(app): State<Arc<App>>, _call: Call) -> Answer {
    let (names, served) = app.blocking(|app| Ok((app.store.names()?, app.roster.list()))).await?;
    let rows: Vec<_> = names
        .iter()
        .map(|entry| {
            let served = served.iter().find(|row| row.name == entry.name);
            let fault = served.and_then(|row| row.instead.as_ref());
            json!({
                "name": entry.name,
                "active": entry.active,
                "served": served.and_then(|row| row.generation),
                "fault": fault.map(|instead| &instead.why),
                "trial": entry.trial,
                "base": entry.base.map(|b| b.to_string()),
                "generations": entry.generations,
            })
        })
        .collect();
    ok(&json!({"adapters": rows}))
}

/// `GET /v1/adapters/{name}`.
pub async fn show(State(app): State<Arc<App>>, call: Call) -> Answer {
    let name = call.name()?.to_string();
    let answer = app
        .blocking(move |app| {
            let entry = app.store.name(&name)?;
            Ok(json!({
                "name": entry.name,
                "active": entry.active,
                "trial": entry.trial,
                "generations": app.store.generations(&name)?,
                "history": app.store.history(&name)?,
                "samples": app.store.counts(&name)?,
            }))
        })
        .await?;
    ok(&answer)
}

/// `POST /v1/adapters/{name}`: the bytes of a `.adapter` file become a generation, if it fits the
/// base.
pub async fn add(State(app): State<Arc<App>>, call: Call) -> Answer {
    let name = call.name()?.to_string();
    if call.mime() != Some(Mime::Bytes) {
        return Err(unsupported_media("application/octet-stream"));
    }
    let added = app
        .blocking(move |app| {
            let adapter = Adapter::from_bytes(&call.body)?;
            app.engine().bind(&[(&adapter, 1.0)])?;
            let added = app.store.add(&name, &adapter, &Origin::default())?;
            app.roster.refresh(&name)?;
            Ok(added)
        })
        .await?;
    with(if added.new { StatusCode::CREATED } else { StatusCode::OK }, &added)
}

/// `GET /v1/adapters/{name}/{generation}`: the bytes of its file.
pub async fn download(State(app): State<Arc<App>>, call: Call) -> Answer {
    let name = call.name()?.to_string();
    let generation = call.number("generation")?;
    let reference = Reference::parse(&format!("{name}@{generation}"))
        .map_err(|_| Problem::not_found("generations count from 1"))?;
    let bytes = app
        .blocking(move |app| {
            let path = app.store.load(&reference)?.path;
            Ok(read_limited(&path, MAX_FILE)?)
        })
        .await?;
    let kind = HeaderValue::from_static("application/octet-stream");
    Ok(([(header::CONTENT_TYPE, kind)], bytes).into_response())
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RemoveQuery {
    force: bool,
}

/// `DELETE /v1/adapters/{name}`: all its generations.
pub async fn remove(State(app): State<Arc<App>>, call: Call) -> Answer {
    let name = call.name()?.to_string();
    remove_reference(app, name.clone(), name, call.query()?).await
}

/// `DELETE /v1/adapters/{name}/{generation}`.
pub async fn remove_one(State(app): State<Arc<App>>, call: Call) -> Answer {
    let name = call.name()?.to_string();
    let generation = call.number("generation")?;
    if generation == 0 {
        return Err(Problem::not_found("generations count from 1"));
    }
    remove_reference(app, name.clone(), format!("{name}@{generation}"), call.query()?).await
}

async fn remove_reference(
    app: Arc<App>,
    name: String,
    reference: String,
    RemoveQuery { force }: RemoveQuery,
) -> Answer {
    let removed = app
        .blocking(move |app| {
            let reference = Reference::parse(&reference)?;
            let removed = app.store.remove(&reference, force)?;
            app.refresh(&name)?;
            Ok(removed)
        })
        .await?;
    ok(&removed)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActivateBody {
    #[serde(default, deserialize_with = "given")]
    generation: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    expected_generation: Option<Option<u64>>,
    trial_seconds: Option<u64>,
}

/// `POST /v1/adapters/{name}/activate`: compare and swap.
pub async fn activate(State(app): State<Arc<App>>, call: Call) -> Answer {
    let name = call.name()?.to_string();
    let body: ActivateBody = call.json()?;
    let out_of_range = |n: u64| n == 0 || n > i64::MAX as u64;
    if body.generation.flatten().is_some_and(out_of_range) {
        return Err(Problem::not_found("there is no such generation"));
    }
    if body.trial_seconds.is_some_and(|s| s > MAX_TRIAL || s == 0) {
        return Err(Problem::invalid(format!("trial_seconds: expected 1 to {MAX_TRIAL}")));
    }
    let Some(generation) = body.generation else {
        return Err(Problem::invalid("generation: missing (null: the base)"));
    };
    if generation.is_none() && body.trial_seconds.is_some() {
        return Err(Problem::invalid("trial_seconds: the base is on no trial"));
    }
    let expected = body.expected_generation;
    switch(app, name, move |app, name| {
        let Some(generation) = generation else { return Ok(app.store.deactivate(name, expected)?) };
        // What can't be served is not made active.
        let reference = Reference::parse(&format!("{name}@{generation}"))?;
        app.roster.resolve(&Selection::Named(reference))?;
        let trial = body.trial_seconds.map(Duration::from_secs);
        Ok(app.store.activate(name, generation, expected, trial)?)
    })
    .await
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RollbackBody {
    why: Option<String>,
    #[serde(deserialize_with = "given")]
    expected_generation: Option<Option<u64>>,
    dry_run: bool,
}

/// `POST /v1/adapters/{name}/rollback`: compare and swap; with `dry_run` it says where to.
pub async fn rollback(State(app): State<Arc<App>>, call: Call) -> Answer {
    let name = call.name()?.to_string();
    let body: RollbackBody = call.json_or_default()?;
    let why = body.why.unwrap_or_else(|| "by hand".into());
    if why.len() > 1000 {
        return Err(Problem::invalid("why: at most 1000 bytes"));
    }
    let expected = body.expected_generation;
    if body.dry_run {
        let would =
            app.blocking(move |app| Ok(app.store.would_roll_back(&name, expected)?)).await?;
        return ok(&would).map(only_asked);
    }
    switch(app, name, move |app, name| Ok(app.store.rollback(name, expected, &why)?)).await
}

async fn switch(
    app: Arc<App>,
    name: String,
    work: impl FnOnce(&App, &str) -> Result<Switched, Problem> + Send + 'static,
) -> Answer {
    let switched = app
        .blocking(move |app| {
            let switched = work(app, &name)?;
            app.refresh(&name)?;
            Ok(switched)
        })
        .await?;
    let serves = switched.active.map_or("the base".into(), |g| format!("generation {g}"));
    tracing::info!("adapter '{}' serves {serves}", switched.name);
    if let Some(learning) = app.learning() {
        learning.wake();
    }
    ok(&switched)
}

/// `GET /lora-adapters`, as llama.cpp's server: the scale is what requests get that name none.
pub async fn lora_list(State(app): State<Arc<App>>, _call: Call) -> Answer {
    let answer = app.blocking(|app| Ok(lora(app))).await?;
    ok(&answer)
}

fn lora(app: &App) -> serde_json::Value {
    let default = app.roster.default_selection();
    let mut rows = app.roster.list();
    rows.sort_by_key(|row| row.id);
    let rows = rows.into_iter().map(|row| {
        let scale = match &default {
            Selection::Named(reference) if reference.name() == row.name => 1.0,
            Selection::Mix(parts) => {
                parts.iter().find(|(name, _)| *name == row.name).map_or(0.0, |(_, scale)| *scale)
            }
            _ => 0.0,
        };
        json!({"id": row.id, "path": row.name, "scale": scale})
    });
    rows.collect()
}

/// `POST /lora-adapters`: which adapters requests get that name none, until the daemon ends. Those
/// that are not listed get none.
pub async fn lora_set(State(app): State<Arc<App>>, call: Call) -> Answer {
    if call.mime() != Some(Mime::Json) {
        return Err(unsupported_media("application/json"));
    }
    let list: Vec<LoraWeight> = json(&call.body)?;
    let answer = app
        .blocking(move |app| {
            let parts: Vec<(String, f32)> = mix(&list, &app.roster.list())?
                .into_iter()
                .filter(|(_, scale)| *scale != 0.0)
                .collect();
            let selection = match parts.as_slice() {
                [] => Selection::Base,
                [(name, 1.0)] => Selection::Named(Reference::parse(name)?),
                _ => Selection::Mix(parts),
            };
            // What can't be served is not set.
            app.roster.resolve(&selection)?;
            app.roster.set_default(selection);
            Ok(lora(app))
        })
        .await?;
    ok(&answer)
}
