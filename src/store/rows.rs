//! The rows of names and generations, as changes read them.

use super::db::{self, Fault, Outcome, now, signed, unsigned};
use super::generations::{GenerationState, Trial};
use super::hashes::{self, SampleHash};
use super::jobs::JobState;
use super::names::Reference;
use super::rules::Quota;
use super::samples::SampleState;
use super::state::Store;
use crate::error::{Cause, Error};
use rusqlite::{Connection, OptionalExtension, Row, params};

/// A row of `names`.
pub(super) struct NameRow {
    pub id: i64,
    pub active: Option<u64>,
    pub trial: Option<Trial>,
}

/// A row of `generations` as changes need it.
pub(super) struct GenerationRow {
    pub number: u64,
    pub hash: [u8; 32],
    pub base: Option<[u8; 32]>,
    pub state: GenerationState,
}

pub(super) fn drop_generation(c: &Connection, name: i64, number: u64) -> Outcome<()> {
    c.prepare_cached("DELETE FROM generations WHERE name_id = ?1 AND number = ?2")?
        .execute(params![name, signed(number)])?;
    c.prepare_cached("DELETE FROM outcomes WHERE name_id = ?1 AND generation = ?2")?
        .execute(params![name, signed(number)])?;
    Ok(())
}

pub(super) fn find_name(c: &Connection, name: &str) -> Outcome<Option<NameRow>> {
    let row = c
        .prepare_cached("SELECT id, active, trial_since, trial_seconds FROM names WHERE name = ?1")?
        .query_row([name], |row| {
            let active: Option<u64> = row.get::<_, Option<i64>>(1)?.map(unsigned);
            let since: Option<i64> = row.get(2)?;
            let seconds: Option<i64> = row.get(3)?;
            let trial = match (active, since, seconds) {
                (Some(generation), Some(since), Some(seconds)) => {
                    Some(Trial { generation, since: unsigned(since), seconds: unsigned(seconds) })
                }
                _ => None,
            };
            Ok(NameRow { id: row.get(0)?, active, trial })
        })
        .optional()?;
    Ok(row)
}

/// The name, made where there is none such and fewer than [`Quota::max_names`].
pub(super) fn make_name(c: &Connection, name: &str, quota: &Quota) -> Outcome<NameRow> {
    if let Some(row) = find_name(c, name)? {
        return Ok(row);
    }
    let names: i64 = c.query_row("SELECT count(*) FROM names", [], |row| row.get(0))?;
    if unsigned(names) >= quota.max_names {
        let text = format!("there are {names} adapters, as many as may be (samples.max_names)");
        return Err(Error::refused(text)
            .because(Cause::Full)
            .hint("remove one that is not needed: offshoot adapter remove")
            .into());
    }
    // Numbers of generations are not given again, also where the name was removed.
    let next = db::meta_number(c, &next_of(name))?;
    c.execute(
        "INSERT INTO names (name, created, next) VALUES (?1, ?2, ?3)",
        params![name, signed(now()), next.unwrap_or(1)],
    )?;
    let row = NameRow { id: c.last_insert_rowid(), active: None, trial: None };
    if next.is_some() {
        c.execute("DELETE FROM meta WHERE key = ?1", [next_of(name)])?;
    }
    Ok(row)
}

/// In `meta`: where the numbers of a name that was removed go on.
fn next_of(name: &str) -> String {
    format!("next:{name}")
}

/// Removes a name that has no generation, no sample and no open job. Returns whether it is gone.
pub(super) fn drop_unused(c: &Connection, id: i64, name: &str) -> Outcome<bool> {
    let used: bool = c.query_row(
        "SELECT EXISTS (SELECT 1 FROM generations WHERE name_id = ?1 AND state <> ?2)
         OR EXISTS (SELECT 1 FROM samples WHERE name_id = ?1 AND state < ?3)
         OR EXISTS (SELECT 1 FROM jobs WHERE name_id = ?1 AND state <= ?4)",
        params![id, GenerationState::Retired.code(), SampleState::EVICTED, JobState::LAST_OPEN],
        |row| row.get(0),
    )?;
    if used {
        return Ok(false);
    }
    let next = c.query_row("SELECT next FROM names WHERE id = ?1", [id], |row| row.get(0))?;
    db::set_meta_number(c, &next_of(name), next)?;
    for table in ["history", "outcomes", "samples", "labels", "jobs", "generations"] {
        c.execute(&format!("DELETE FROM {table} WHERE name_id = ?1"), [id])?;
    }
    c.execute("DELETE FROM names WHERE id = ?1", [id])?;
    Ok(true)
}

/// A name that must be there.
pub(super) fn known(c: &Connection, store: &Store, name: &str) -> Outcome<NameRow> {
    match find_name(c, name)? {
        Some(row) => Ok(row),
        None => Err(Fault::Ours(no_adapter(c, store, name)?)),
    }
}

/// Of a name that is known, but has nothing to load.
pub(super) fn no_generation(name: &str) -> Error {
    Error::usage(format!("'{name}' has no generation: it serves the base"))
        .hint("'adapter add FILE' or training makes one")
        .because(Cause::NotFound)
}

fn no_adapter(c: &Connection, store: &Store, name: &str) -> Outcome<Error> {
    let error = Error::usage(format!("no adapter '{name}' in '{}'", store.root().display()))
        .because(Cause::NotFound);
    let mut statement = c.prepare_cached(
        "SELECT DISTINCT name FROM names JOIN generations ON name_id = id WHERE state <> ?1
         ORDER BY name LIMIT 20",
    )?;
    let names: Vec<String> = statement
        .query_map([GenerationState::Retired.code()], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    Ok(match names.is_empty() {
        true => error.hint("'adapter add FILE' adds one"),
        false => error.hint(format!("there are {}", names.join(", "))),
    })
}

fn row_of(row: &Row<'_>) -> rusqlite::Result<GenerationRow> {
    Ok(GenerationRow {
        number: unsigned(row.get(0)?),
        hash: row.get(1)?,
        base: row.get(2)?,
        state: GenerationState::of(row.get(3)?),
    })
}

/// The generations of a name that have a file, ascending.
pub(super) fn live(c: &Connection, name: i64) -> Outcome<Vec<GenerationRow>> {
    let mut statement = c.prepare_cached(
        "SELECT number, hash, base, state FROM generations
         WHERE name_id = ?1 AND state <> ?2 ORDER BY number",
    )?;
    let rows = statement.query_map(params![name, GenerationState::Retired.code()], row_of)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn find_generation(
    c: &Connection,
    name: i64,
    number: u64,
) -> Outcome<Option<GenerationRow>> {
    let mut statement = c.prepare_cached(
        "SELECT number, hash, base, state FROM generations WHERE name_id = ?1 AND number = ?2",
    )?;
    Ok(statement.query_row(params![name, signed(number)], row_of).optional()?)
}

/// The generation that a reference means.
pub(super) fn resolve(
    c: &Connection,
    store: &Store,
    reference: &Reference,
) -> Outcome<GenerationRow> {
    let name = reference.name();
    let row = known(c, store, name)?;
    let live = live(c, row.id)?;
    if live.is_empty() {
        return Err(Fault::Ours(no_generation(name)));
    }
    let list = || live.iter().map(|g| g.number.to_string()).collect::<Vec<_>>().join(", ");
    let wanted = match (reference.generation(), row.active) {
        (Some(n), _) | (None, Some(n)) => n,
        (None, None) => {
            return Err(Fault::Ours(
                Error::usage(format!("no generation of '{name}' is active: it serves the base"))
                    .hint(format!("switch with 'adapter use' to one of {}", list()))
                    .because(Cause::NotFound),
            ));
        }
    };
    let hint = format!("it has {}", list());
    let error = match find_generation(c, row.id, wanted)? {
        Some(found) if found.state != GenerationState::Retired => return Ok(found),
        Some(_) => Error::usage(format!(
            "generation {wanted} of '{name}' is gone: what it learned from was forgotten"
        )),
        None => Error::usage(format!("'{name}' has no generation {wanted}")),
    };
    Err(Fault::Ours(error.hint(hint).because(Cause::NotFound)))
}

pub(super) fn manifest(c: &Connection, name: i64, number: u64) -> Outcome<Vec<SampleHash>> {
    let bytes: Option<Vec<u8>> = c
        .prepare_cached("SELECT hashes FROM manifests WHERE name_id = ?1 AND number = ?2")?
        .query_row(params![name, signed(number)], |row| row.get(0))
        .optional()?;
    Ok(hashes::from_bytes(&bytes.unwrap_or_default()))
}
