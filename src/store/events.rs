//! What happened, for people and for `status`.

use super::db::{Outcome, now, signed, unsigned};
use super::state::Store;
use crate::error::Result;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

/// Events that are kept.
const KEPT: i64 = 10_000;
/// Seconds within which like events become one.
const TOGETHER: u64 = 3600;

/// Something that happened. Its text tells nothing of what is in samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Its number; later ones have greater ones.
    pub id: i64,
    /// When, in seconds since 1970-01-01 UTC.
    pub time: u64,
    /// What sort: `rollback`, `forget`, `eviction`, …
    pub kind: String,
    /// The adapter's name that it is about.
    pub name: Option<String>,
    /// What happened, in words.
    pub text: String,
    /// Its numbers.
    pub data: Option<serde_json::Value>,
    /// How often, where like events of an hour were put together.
    pub count: u64,
}

impl Store {
    /// Records an event; gives back its number. The newest 10,000 are kept.
    pub fn event(
        &self,
        kind: &str,
        name: Option<&str>,
        text: &str,
        data: Option<&serde_json::Value>,
    ) -> Result<i64> {
        self.write(|c| record(c, kind, name, text, data))
    }

    /// Up to `limit` events after number `after` (0: from the first), oldest first.
    pub fn events(&self, limit: u32, after: i64) -> Result<Vec<Event>> {
        self.read(|c| {
            select(
                c,
                "SELECT id, time, kind, name, text, data, count FROM events WHERE id > ?2
                 ORDER BY id LIMIT ?1",
                limit,
                after,
            )
        })
    }

    /// The newest `limit` events, oldest first.
    pub fn latest_events(&self, limit: u32) -> Result<Vec<Event>> {
        self.read(|c| {
            let mut events = select(
                c,
                "SELECT id, time, kind, name, text, data, count FROM events WHERE id > ?2
                 ORDER BY id DESC LIMIT ?1",
                limit,
                0,
            )?;
            events.reverse();
            Ok(events)
        })
    }
}

fn select(c: &Connection, sql: &str, limit: u32, after: i64) -> Outcome<Vec<Event>> {
    let mut statement = c.prepare_cached(sql)?;
    let rows = statement.query_map(params![limit, after], |row| {
        let data: Option<String> = row.get(5)?;
        Ok(Event {
            id: row.get(0)?,
            time: unsigned(row.get(1)?),
            kind: row.get(2)?,
            name: row.get(3)?,
            text: row.get(4)?,
            data: data.and_then(|text| serde_json::from_str(&text).ok()),
            count: unsigned(row.get(6)?),
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn record(
    c: &Connection,
    kind: &str,
    name: Option<&str>,
    text: &str,
    data: Option<&serde_json::Value>,
) -> Outcome<i64> {
    let data = data.map(|d| d.to_string());
    c.prepare_cached(
        "INSERT INTO events (time, kind, name, text, data) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![signed(now()), kind, name, text, data])?;
    let id = c.last_insert_rowid();
    c.prepare_cached("DELETE FROM events WHERE id <= ?1")?.execute([id.saturating_sub(KEPT)])?;
    Ok(id)
}

/// Records an event that may come with every sample: if the newest event says the same and is not
/// an hour old, it is counted there.
pub(super) fn record_often(c: &Connection, kind: &str, name: &str, text: &str) -> Outcome<()> {
    let same: Option<i64> = c
        .prepare_cached(
            "SELECT id FROM events WHERE id = (SELECT max(id) FROM events)
             AND kind = ?1 AND name = ?2 AND text = ?3 AND time > ?4 AND time <= ?5",
        )?
        .query_row(
            params![kind, name, text, signed(now().saturating_sub(TOGETHER)), signed(now())],
            |row| row.get(0),
        )
        .optional()?;
    match same {
        Some(id) => {
            c.prepare_cached("UPDATE events SET count = count + 1 WHERE id = ?1")?.execute([id])?;
        }
        None => {
            record(c, kind, Some(name), text, None)?;
        }
    }
    Ok(())
}
