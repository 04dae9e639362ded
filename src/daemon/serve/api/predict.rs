//! `POST /v1/predict`.

use super::{Answer, Call};
use crate::daemon::serve::app::App;
use crate::daemon::serve::ask::{INPUTS, Mime, Raw, unsupported_media};
use crate::daemon::serve::problem::Problem;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use std::sync::Arc;
use std::time::Instant;

/// Has a worker answer.
pub async fn predict(State(app): State<Arc<App>>, call: Call) -> Answer {
    let started = Instant::now();
    let mime = match call.mime() {
        Some(mime) if mime != Mime::Bytes => mime,
        _ => {
            return Err(unsupported_media(INPUTS));
        }
    };
    let raw = Raw { body: call.body.clone(), mime, query: call.query()? };
    let answer = app.pool.ask(raw)?;
    let outcome = answer.await.map_err(|_| Problem::failed("a worker has gone"))?;
    let kind = HeaderValue::from_static("application/json");
    let answer = outcome?;
    app.tell(&answer);
    let answered = ([(header::CONTENT_TYPE, kind)], answer).into_response();
    app.metrics.answered(started.elapsed());
    Ok(answered)
}
