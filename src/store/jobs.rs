//! Training jobs: queued, resumed, backed off, closed.

use super::db::{Fault, Outcome, now, signed, unsigned};
use super::hashes::{self, SampleHash};
use super::names::check_name;
use super::rows::make_name;
use super::state::Store;
use crate::error::{Cause, Error, Result};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use std::fmt;

/// Jobs that have ended are kept up to this many, with their folders.
const CLOSED_KEPT: i64 = 20;
/// First and longest wait after a failure, in seconds; it doubles with each.
const BACKOFF: [u64; 2] = [60, 6 * 3600];

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for its conditions, or for its backoff to end.
    Queued,
    /// Trains.
    Running,
    /// Stopped, to go on from its checkpoint.
    Paused,
    /// Ended: its candidate was added, or the gate refused it.
    Done,
    /// Given up.
    Failed,
    /// Taken back.
    Cancelled,
    /// What it learned from was forgotten: its files are gone, a new one is queued.
    Forgotten,
}

impl JobState {
    const ALL: [JobState; 7] = [
        JobState::Queued,
        JobState::Running,
        JobState::Paused,
        JobState::Done,
        JobState::Failed,
        JobState::Cancelled,
        JobState::Forgotten,
    ];
    /// The last of the states in which there is still something to do.
    pub(super) const LAST_OPEN: i64 = JobState::Paused as i64;

    pub(super) fn code(self) -> i64 {
        self as i64
    }

    fn of(code: i64) -> JobState {
        let at = usize::try_from(code).ok();
        at.and_then(|at| JobState::ALL.get(at)).copied().unwrap_or(JobState::Failed)
    }

    /// Whether there is still something to do.
    pub fn is_open(self) -> bool {
        self.code() <= JobState::LAST_OPEN
    }
}

/// Why a job is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody asked for it: it doesn't wait for samples, hours and idleness.
    Asked,
    /// In words.
    Other(String),
}

/// As the database and answers have it.
const ASKED: &str = "asked for";

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Asked => ASKED,
            Reason::Other(text) => text,
        })
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Reason {
        if text == ASKED { Reason::Asked } else { Reason::Other(text.into()) }
    }
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A training job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// The name that it trains for.
    pub name: String,
    /// Why it was queued.
    pub reason: Reason,
    /// How far it is.
    pub state: JobState,
    /// When it was queued, in seconds since 1970-01-01 UTC.
    pub created: u64,
    /// When it last changed.
    pub updated: u64,
    /// How often it has failed or was interrupted since it got further.
    pub attempts: u32,
    /// It is not to start before this time: backoff after failures.
    pub not_before: u64,
    /// Steps, losses, verdict: what the learner says.
    pub progress: Option<serde_json::Value>,
    /// Why it failed last.
    pub error: Option<String>,
}

const COLUMNS: &str = "jobs.id, name, reason, state, jobs.created, updated, attempts, not_before,
    progress, error FROM jobs JOIN names ON names.id = name_id";

impl Store {
    /// Queues a training job for `name`; if one is open already, that one's number is given back.
    /// Errors: a bad name (usage).
    pub fn queue_job(&self, name: &str, reason: impl Into<Reason>) -> Result<i64> {
        let reason = reason.into();
        check_name(name)?;
        let quota = self.rules().quota;
        self.write(|c| {
            let id = make_name(c, name, &quota)?.id;
            queue(c, id, &reason)
        })
    }

    /// Records how far an open job is. `progress` of `None` leaves what was there.
    ///
    /// # Errors
    /// No such job (usage, [`Cause::NotFound`]); it has ended meanwhile, for example because what it
    /// learns from was forgotten (refused, [`Cause::Forgotten`] or [`Cause::Moved`]): stop it.
    pub fn update_job(
        &self,
        id: i64,
        state: JobState,
        progress: Option<&serde_json::Value>,
    ) -> Result<()> {
        self.write(|c| {
            open_job(c, id)?;
            c.execute(
                "UPDATE jobs SET state = ?2, updated = ?3, progress = coalesce(?4, progress)
                 WHERE id = ?1",
                params![id, state.code(), signed(now()), progress.map(|p| p.to_string())],
            )?;
            close(c, state)
        })
    }

    /// Records that an open job failed: it is queued again after a backoff of one minute, doubled
    /// with each failure up to six hours, or given up after `max_attempts` failures. Errors as
    /// [`Store::update_job`].
    pub fn fail_job(&self, id: i64, error: &str, max_attempts: u32) -> Result<JobState> {
        self.write(|c| {
            let job = open_job(c, id)?;
            let attempts = job.attempts.saturating_add(1);
            let state = if attempts >= max_attempts { JobState::Failed } else { JobState::Queued };
            let not_before = now().saturating_add(backoff(attempts));
            c.execute(
                "UPDATE jobs SET state = ?2, updated = ?3, attempts = ?4, not_before = ?5,
                 error = ?6 WHERE id = ?1",
                params![id, state.code(), signed(now()), attempts, signed(not_before), error],
            )?;
            close(c, state)?;
            Ok(state)
        })
    }

    /// Notes which samples a job learns from, before it starts to: they are what `forget` goes by.
    /// Errors as [`Store::update_job`]; one of them was forgotten meanwhile (refused,
    /// [`Cause::Forgotten`]).
    pub fn set_job_manifest(&self, id: i64, hashes: &[SampleHash]) -> Result<()> {
        self.write(|c| {
            open_job(c, id)?;
            let name: i64 =
                c.query_row("SELECT name_id FROM jobs WHERE id = ?1", [id], |row| row.get(0))?;
            hashes::all_there(c, name, hashes)?;
            c.execute(
                "UPDATE jobs SET manifest = ?2 WHERE id = ?1",
                params![id, hashes::to_bytes(hashes.to_vec())],
            )?;
            Ok(())
        })
    }

    /// Called once when the daemon starts: jobs that were running are paused, to go on from their
    /// checkpoints, at once the first time, then after a backoff: training itself may be what
    /// breaks the device's supply. Interrupted `max_attempts` times without getting further
    /// ([`Store::job_got_further`]) they are given up. One whose candidate was added is done.
    /// Gives back what became of them.
    pub fn end_interrupted_jobs(&self, max_attempts: u32) -> Result<Vec<(i64, JobState)>> {
        self.write(|c| {
            let mut statement = c.prepare(
                "SELECT id, attempts, EXISTS (SELECT 1 FROM generations WHERE job = jobs.id)
                 FROM jobs WHERE state = ?1",
            )?;
            let jobs: Vec<(i64, u32, bool)> = statement
                .query_map([JobState::Running.code()], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?
                .collect::<rusqlite::Result<_>>()?;
            let mut ended = vec![];
            for (id, before, added) in jobs {
                let attempts = before.saturating_add(u32::from(!added));
                let state = match added {
                    true => JobState::Done,
                    false if attempts >= max_attempts => JobState::Failed,
                    false => JobState::Paused,
                };
                let wait = if before == 0 { 0 } else { backoff(before) };
                let error = (!added).then_some("the device or the daemon ended while it ran");
                c.execute(
                    "UPDATE jobs SET state = ?2, updated = ?3, attempts = ?4, not_before = ?5,
                     error = ?6 WHERE id = ?1",
                    params![id, state.code(), signed(now()), attempts, signed(now() + wait), error],
                )?;
                close(c, state)?;
                ended.push((id, state));
            }
            Ok(ended)
        })
    }

    /// Notes that an open job has got further since it failed or was interrupted: what fails next
    /// counts anew. Errors as [`Store::update_job`].
    pub fn job_got_further(&self, id: i64) -> Result<()> {
        self.write(|c| {
            open_job(c, id)?;
            c.execute("UPDATE jobs SET attempts = 0 WHERE id = ?1", [id])?;
            Ok(())
        })
    }

    /// A job; `None` if there is none of this number.
    pub fn job(&self, id: i64) -> Result<Option<Job>> {
        self.read(|c| find(c, id))
    }

    /// The jobs there are, oldest first: all open ones and the newest that have ended.
    pub fn jobs(&self) -> Result<Vec<Job>> {
        self.read(|c| {
            let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} ORDER BY jobs.id"))?;
            let rows = statement.query_map([], job)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }
}

/// Seconds to wait after so many failures, at least one.
fn backoff(failures: u32) -> u64 {
    let [first, longest] = BACKOFF;
    first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(longest)
}

/// Queues a job unless one is open.
pub(super) fn queue(c: &Connection, name: i64, reason: &Reason) -> Outcome<i64> {
    let open: Option<i64> = c
        .query_row(
            "SELECT id FROM jobs WHERE name_id = ?1 AND state <= ?2 ORDER BY id LIMIT 1",
            params![name, JobState::LAST_OPEN],
            |row| row.get(0),
        )
        .optional()?;
    if let Some(id) = open {
        return Ok(id);
    }
    let now = signed(now());
    c.execute(
        "INSERT INTO jobs (name_id, reason, state, created, updated) VALUES (?1, ?2, ?3, ?4, ?4)",
        params![name, reason.to_string(), JobState::Queued.code(), now],
    )?;
    Ok(c.last_insert_rowid())
}

/// A job that must be there and not have ended.
fn open_job(c: &Connection, id: i64) -> Outcome<Job> {
    let Some(job) = find(c, id)? else {
        return Err(Fault::Ours(Error::usage(format!("no job {id}")).because(Cause::NotFound)));
    };
    match job.state {
        state if state.is_open() => Ok(job),
        JobState::Forgotten => Err(Fault::Ours(hashes::forgotten(&job.name))),
        _ => Err(Fault::Ours(
            Error::refused(format!("job {id} has ended already")).because(Cause::Moved),
        )),
    }
}

/// After a job has come into `state`: what it learned from counts no more if it has ended, and the
/// oldest of the ended ones go.
fn close(c: &Connection, state: JobState) -> Outcome<()> {
    if state.is_open() {
        return Ok(());
    }
    c.execute(
        "DELETE FROM jobs WHERE state > ?1 AND id <= (SELECT id FROM jobs WHERE state > ?1
         ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        params![JobState::LAST_OPEN, CLOSED_KEPT],
    )?;
    Ok(())
}

fn find(c: &Connection, id: i64) -> Outcome<Option<Job>> {
    let mut statement = c.prepare_cached(&format!("SELECT {COLUMNS} WHERE jobs.id = ?1"))?;
    Ok(statement.query_row([id], job).optional()?)
}

fn job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let progress: Option<String> = row.get(8)?;
    Ok(Job {
        id: row.get(0)?,
        name: row.get(1)?,
        reason: row.get::<_, String>(2)?.as_str().into(),
        state: JobState::of(row.get(3)?),
        created: unsigned(row.get(4)?),
        updated: unsigned(row.get(5)?),
        attempts: row.get(6)?,
        not_before: unsigned(row.get(7)?),
        progress: progress.and_then(|text| serde_json::from_str(&text).ok()),
        error: row.get(9)?,
    })
}
