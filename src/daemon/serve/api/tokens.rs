//! Tokens of the TCP port: list, make, revoke. On the socket alone.

use super::{Answer, Call, now, ok, with};
use crate::daemon::roles::Role;
use crate::daemon::serve::app::App;
use crate::daemon::serve::problem::Problem;
use crate::daemon::tokens::Token;
use crate::error::{Cause, Error};
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Without its hash, which logins are signed by.
fn shown(token: &Token) -> Value {
    json!({"name": token.name, "role": token.role, "created": token.created})
}

/// `GET /v1/tokens`.
pub async fn list(State(app): State<Arc<App>>, _call: Call) -> Answer {
    if let Some(damage) = app.keeper.tokens.damage() {
        return Err(Error::failed(damage).because(Cause::Unreadable).into());
    }
    let tokens: Vec<Value> = app.keeper.tokens.list().iter().map(shown).collect();
    ok(&json!({"tokens": tokens}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddBody {
    name: String,
    role: Role,
}

/// `POST /v1/tokens`: the one time that a token is shown.
pub async fn add(State(app): State<Arc<App>>, call: Call) -> Answer {
    let AddBody { name, role } = call.json()?;
    let created = now();
    let of = name.clone();
    let token = app
        .blocking(move |app| {
            writable(app)?;
            Ok(app.keeper.tokens.add(&of, role, created)?)
        })
        .await?;
    let answer = json!({"name": name, "role": role, "created": created, "token": token});
    with(StatusCode::CREATED, &answer).map(|a| super::table::did(a, &format!("'{name}', {role}")))
}

/// `DELETE /v1/tokens/{name}`: from now on it and its logins let nobody in.
pub async fn revoke(State(app): State<Arc<App>>, call: Call) -> Answer {
    let name = call.param("name").to_string();
    let token = app
        .blocking(move |app| {
            writable(app)?;
            Ok(app.keeper.tokens.revoke(&name)?)
        })
        .await?;
    ok(&shown(&token))
}

/// Nothing in the folder of a doubtful state changes, nor can it where that can't be written to.
fn writable(app: &App) -> Result<(), Problem> {
    match app.store.doubt() {
        Some(_) => Err(Error::refused("the state is doubtful: nothing in its folder is changed")
            .because(Cause::Doubtful)
            .into()),
        None => Ok(()),
    }
}
