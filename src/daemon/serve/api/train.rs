//! Training jobs.

use super::stream::events;
use super::table::did;
use super::{Answer, Call, ok, with};
use crate::daemon::learn::JobStatus;
use crate::daemon::serve::app::App;
use crate::daemon::serve::ask;
use crate::daemon::serve::problem::Problem;
use crate::store::{Job, Reason};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a followed job is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A comment is sent after so many looks without news, so that a gone client is noticed.
const LOOKS_PER_COMMENT: u32 = 20;

/// `GET /v1/train`: jobs, and what the learner says of its conditions.
pub async fn list(State(app): State<Arc<App>>, _call: Call) -> Answer {
    let answer = app
        .blocking(|app| {
            let learner = app.learning().map(|l| l.status()).transpose()?;
            Ok(json!({"jobs": app.store.jobs()?, "learner": learner}))
        })
        .await?;
    ok(&answer)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StartBody {
    adapter: String,
}

/// `POST /v1/train`: trains now.
pub async fn start(State(app): State<Arc<App>>, call: Call) -> Answer {
    let StartBody { adapter } = call.json()?;
    let name = ask::name(&adapter)?.to_string();
    let id = app
        .blocking(move |app| {
            match app.learning() {
                Some(learning) => Ok(learning.train_now(&adapter)?),
                // A state that can't be written to: the store says so.
                None => Ok(app.store.queue_job(&adapter, Reason::Asked)?),
            }
        })
        .await?;
    let answer = with(StatusCode::ACCEPTED, &json!({"job": id}))?;
    Ok(did(answer, &format!("job {id} for '{name}'")))
}

fn job(app: &App, id: i64) -> Result<Job, Problem> {
    app.store.job(id)?.ok_or_else(|| Problem::not_found(format!("there is no job {id}")))
}

/// A job, and how far it is where it trains now.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    job: Job,
    running: Option<JobStatus>,
}

/// `GET /v1/train/{job}`.
pub async fn show(State(app): State<Arc<App>>, call: Call) -> Answer {
    let id = call.number("job")? as i64;
    let job = app.blocking(move |app| job(app, id)).await?;
    ok(&Shown { running: running(&app, id), job })
}

/// `GET /v1/train/{job}/events`: server-sent events, `job` for each change of the job and `progress` with
/// step and loss while it runs, until the job has ended.
pub async fn follow(State(app): State<Arc<App>>, call: Call) -> Answer {
    let id = call.number("job")? as i64;
    let first = app.blocking(move |app| job(app, id)).await?;
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(send_changes(app, id, first, sender));
    Ok(events(receiver))
}

/// How far a job is that trains now.
fn running(app: &App, id: i64) -> Option<JobStatus> {
    app.learning()?.running().filter(|running| running.job == id)
}

async fn send_changes(app: Arc<App>, id: i64, first: Job, sender: mpsc::Sender<Bytes>) {
    let mut stop = app.stop.subscribe();
    let (mut last, mut told) = (None, None);
    let mut next = Some(first);
    let mut quiet = 0;
    loop {
        if let Some(job) = next.filter(|job| Some(job) != last.as_ref()) {
            let text = serde_json::to_string(&job).unwrap_or_default();
            let event = format!("event: job\ndata: {text}\n\n");
            if sender.send(event.into()).await.is_err() || !job.state.is_open() {
                return;
            }
            last = Some(job);
            quiet = 0;
        } else if let Some(running) = running(&app, id).filter(|r| Some(r) != told.as_ref()) {
            let text = serde_json::to_string(&running).unwrap_or_default();
            if sender.send(format!("event: progress\ndata: {text}\n\n").into()).await.is_err() {
                return;
            }
            told = Some(running);
            quiet = 0;
        } else {
            quiet += 1;
            if quiet % LOOKS_PER_COMMENT == 0
                && sender.send(Bytes::from_static(b": still there\n\n")).await.is_err()
            {
                return;
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = sender.closed() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        next = match app.blocking(move |app| job(app, id)).await {
            Ok(job) => Some(job),
            Err(_) => return,
        };
    }
}
