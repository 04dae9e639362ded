//! `POST /v1/predict`.

use super::stream::{event, events};
use super::{Answer, Call};
use crate::daemon::serve::app::App;
use crate::daemon::serve::ask::{INPUTS, Mime, Raw, unsupported_media};
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::waiting::Waiting;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// Events that wait for a client to read.
const EVENTS: usize = 4;

/// Has a worker answer.
pub async fn predict(State(app): State<Arc<App>>, call: Call) -> Answer {
    let started = Instant::now();
    let mime = match call.mime() {
        Some(mime) if mime != Mime::Bytes => mime,
        _ => {
            return Err(unsupported_media(INPUTS));
        }
    };
    let (hear, mut parts) = mpsc::unbounded_channel();
    let raw = Raw { hear: Some(hear), ..Raw::new(call.body.clone(), mime, call.query()?) };
    let mut answer = app.pool.ask(raw)?;
    let outcome = tokio::select! {
        biased;
        // The first part is empty: a text that is told as it comes has begun.
        Some(_) = parts.recv() => {
            let (sender, receiver) = mpsc::channel(EVENTS);
            tokio::spawn(stream(app, started, answer, parts, sender));
            return Ok(events(receiver));
        }
        outcome = &mut answer => outcome,
    };
    let answer = outcome.map_err(|_| Problem::failed("a worker has gone"))??;
    app.tell(&answer);
    let kind = HeaderValue::from_static("application/json");
    let answered = ([(header::CONTENT_TYPE, kind)], answer).into_response();
    app.metrics.answered(started.elapsed());
    Ok(answered)
}

/// Tells a text as it comes, then the whole answer: `text`, ..., and `answer` or `error`. The time limit is that
/// of other requests; who has gone ends it.
async fn stream(
    app: Arc<App>,
    started: Instant,
    mut answer: Waiting,
    mut parts: UnboundedReceiver<String>,
    sender: mpsc::Sender<Bytes>,
) {
    let limit = app.config().limits.request();
    let tell = async {
        loop {
            let part = tokio::select! {
                biased;
                () = sender.closed() => return None,
                part = parts.recv() => part,
            };
            // The worker is done with the text.
            let Some(part) = part else { break };
            let data = json!({"text": part}).to_string();
            sender.send(event("text", data.as_bytes())).await.ok()?;
        }
        Some((&mut answer).await.unwrap_or_else(|_| Err(Problem::failed("a worker has gone"))))
    };
    let left = limit.saturating_sub(started.elapsed());
    let last = match tokio::time::timeout(left, tell).await {
        Ok(None) => return,
        Ok(Some(Ok(answer))) => {
            app.tell(&answer);
            app.metrics.answered(started.elapsed());
            event("answer", &answer)
        }
        Ok(Some(Err(problem))) => event("error", problem.body().to_string().as_bytes()),
        Err(_) => {
            drop(answer);
            event("error", Problem::slow(limit).body().to_string().as_bytes())
        }
    };
    // Who has gone is told nothing.
    let _ = sender.send(last).await;
}
