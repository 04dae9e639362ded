//! Forgetting: samples, and every generation and job that learned from them.
//!
//! One transaction removes the rows, retires the generations and moves the pointers; from then on
//! nothing serves or learns from what was forgotten. The mark that it leaves in `meta` is taken
//! away when files, free pages and the log are gone too; a process that dies before leaves it to
//! the next that opens the store.

use super::active::{How, fallback, point, set_state};
use super::ballast;
use super::db::{self, Outcome};
use super::events;
use super::generations::GenerationState;
use super::hashes::{self, SampleHash};
use super::jobs::{JobState, queue};
use super::rows::{find_name, live, manifest};
use super::samples::{Filter, condition};
use super::seal::Key;
use super::state::{Secrets, Store, Unlocked};
use crate::error::{Cause, Error, Result};
use crate::fs::fault::{self, Op};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Largest database that is rebuilt in memory; larger ones go through SQLite's temporary file.
const IN_MEMORY: u64 = 32 << 20;
/// In `meta`: a forget whose files and free pages are still there.
const UNFINISHED: &str = "forget";
/// Its value where what is in `lost` may tell of the samples too: nobody knows what that learned.
const LOST_TOO: &[u8] = b"lost";

/// What to forget: the samples that meet all that is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selector {
    /// Of these numbers.
    pub ids: Vec<i64>,
    /// Of these inputs.
    pub hashes: Vec<SampleHash>,
    /// With this label.
    pub label: Option<String>,
    /// From this source.
    pub source: Option<String>,
    /// Made at this time or later, in seconds since 1970-01-01 UTC.
    pub since: Option<u64>,
    /// Made before this time.
    pub until: Option<u64>,
    /// Of this adapter's name.
    pub name: Option<String>,
    /// All samples there are. Needed where nothing else is given.
    pub all: bool,
}

/// A generation by name and number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// The adapter's name.
    pub name: String,
    /// Its number.
    pub generation: u64,
}

/// A name that serves another generation now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The adapter's name.
    pub name: String,
    /// What it served.
    pub from: Option<u64>,
    /// What it serves; `None`: the base.
    pub to: Option<u64>,
}

/// What was forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetReport {
    /// Samples that are gone.
    pub samples: u64,
    /// Generations that had learned from one of them: retired, their files gone.
    pub generations: Vec<Retired>,
    /// What names serve instead.
    pub fallbacks: Vec<Fallback>,
    /// Jobs that were learning from one of them: ended, their files gone.
    pub jobs_ended: Vec<i64>,
    /// Jobs queued to train anew.
    pub jobs_queued: Vec<i64>,
    /// Bytes of the samples' inputs.
    pub bytes: u64,
    /// Files in `lost` that went too: nobody knows what they had learned from.
    #[serde(default)]
    pub lost: u64,
    /// Whether files, free pages and the log are gone too. `false` while another process reads or
    /// the disk is too full to rebuild the database: then the rest is done when the store is opened
    /// next, or by [`Store::finish_forgetting`].
    pub finished: bool,
}

/// A sample that is to go.
struct Doomed {
    id: i64,
    name: i64,
    hash: SampleHash,
    bytes: u64,
}

impl Store {
    /// Forgets the samples that `selector` selects, those in quarantine and those whose input was
    /// evicted too, and every generation that learned from one, itself or through its parents.
    /// What is in `lost` goes too: nobody knows what that had learned from.
    /// Names that served one of those fall back to what served before, else to the base, and are
    /// queued for training if they have samples left. The names stay known, whatever is left of
    /// them: who asks them is answered, by the base. A report is kept as an event.
    ///
    /// On flash, what was overwritten may physically remain until the card reuses its blocks: where
    /// that matters, keep the samples encrypted.
    ///
    /// # Errors
    /// An empty selector (usage); selecting by label without the key (refused). Nothing is
    /// forgotten then.
    pub fn forget(&self, selector: &Selector) -> Result<ForgetReport> {
        if *selector == Selector::default() {
            return Err(nothing_selected());
        }
        let mut report = match self.forget_rows(selector) {
            Err(e) if e.cause() == Some(Cause::Full) => {
                self.make_room();
                let again = self.forget_rows(selector);
                let _ = self.connection().pragma_update(None, "secure_delete", "ON");
                again?
            }
            other => other?,
        };
        if report.samples > 0 || selector.all {
            report.lost = self.lost_count() as u64;
        }
        // It is forgotten already; what is left may wait for room or for a reader to end.
        report.finished = self.finish_forgetting().unwrap_or(false);
        // Where there is no room yet, the next that opens the store makes it.
        let _ = ballast::keep(self.root());
        Ok(report)
    }

    /// What [`Store::forget`] would do; nothing is changed.
    ///
    /// # Errors
    /// As [`Store::forget`].
    pub fn would_forget(&self, selector: &Selector) -> Result<ForgetReport> {
        if *selector == Selector::default() {
            return Err(nothing_selected());
        }
        let mut report = None;
        let ended = self.write(|c| -> Outcome<()> {
            report = Some(remove(c, &self.doomed(c, selector)?)?);
            // An error takes the transaction back.
            Err(Error::failed("nothing was to be changed").into())
        });
        let mut report =
            report.map_or_else(|| Err(ended.err().unwrap_or_else(nothing_selected)), Ok)?;
        if report.samples > 0 || selector.all {
            report.lost = self.lost_count() as u64;
        }
        Ok(report)
    }

    fn doomed(&self, c: &Connection, selector: &Selector) -> Outcome<Vec<Doomed>> {
        let unlocked = match selector.label {
            Some(_) => Some(self.unlocked(c)?),
            None => None,
        };
        doomed(c, unlocked.as_ref(), selector)
    }

    fn forget_rows(&self, selector: &Selector) -> Result<ForgetReport> {
        self.write(|c| {
            let doomed = self.doomed(c, selector)?;
            let report = remove(c, &doomed)?;
            if !doomed.is_empty() || selector.all {
                db::set_meta(c, UNFINISHED, LOST_TOO)?;
                let value = serde_json::to_value(&report).unwrap_or_default();
                let text = format!(
                    "{} samples forgotten, {} generations retired",
                    report.samples,
                    report.generations.len()
                );
                events::record(c, "forget", selector.name.as_deref(), &text, Some(&value))?;
            }
            Ok(report)
        })
    }

    /// Makes room on a full disk: the ballast goes, the log is emptied, and until the database is
    /// rebuilt what is deleted need not be overwritten, which would go through the log.
    fn make_room(&self) {
        let given = ballast::give_up(self.root());
        let moved = self.settle();
        let _ = self.connection().pragma_update(None, "secure_delete", "FAST");
        tracing::warn!(
            "the disk is full: room for forgetting was {}{}",
            if given { "kept and is used" } else { "not kept" },
            moved.err().map_or(String::new(), |e| format!("; {e}"))
        );
    }

    /// Removes the files, free pages and log of what was forgotten, if something is left of it.
    /// Returns whether nothing is left. `false`: another process reads the store.
    pub fn finish_forgetting(&self) -> Result<bool> {
        let Some(mark) = self.read(|c| Ok(db::meta(c, UNFINISHED)?))? else { return Ok(true) };
        self.collect()?;
        if mark == LOST_TOO {
            self.clear_lost()?;
        }
        if !self.scrub()? {
            return Ok(false);
        }
        self.write(|c| {
            c.execute("DELETE FROM meta WHERE key = ?1", [UNFINISHED])?;
            Ok(())
        })?;
        Ok(true)
    }

    /// Rebuilds the database without its free pages and empties the log. `false` if another process
    /// still reads an older state.
    fn scrub(&self) -> Result<bool> {
        let small = std::fs::metadata(self.database()).is_ok_and(|m| m.len() <= IN_MEMORY);
        let connection = self.connection();
        let run = || -> Outcome<bool> {
            connection.pragma_update(None, "temp_store", if small { "MEMORY" } else { "FILE" })?;
            connection.execute_batch("VACUUM")?;
            let _ = fault::point(Op::Committed, self.database());
            self.move_log(&connection)
        };
        match run() {
            Err(db::Fault::Sql(e)) if db::is_busy(&e) => Ok(false),
            other => other.map_err(|e| e.at(self.database())),
        }
    }

    /// Encrypts a store whose samples are plain, and removes the traces of the plain ones.
    pub(super) fn encrypt(&self, secrets: &Secrets) -> Result<()> {
        let Secrets { key: Some(key), .. } = secrets else { return Ok(()) };
        self.write(|c| {
            // Another process may have been quicker; the key is compared at the next use.
            let Some(hash_key) = db::meta(c, "hash_key")?
                .filter(|_| db::meta(c, "key").is_ok_and(|id| id.is_none()))
            else {
                return Ok(());
            };
            db::set_meta(c, "hash_key", &key.seal(b"hash_key", &hash_key)?)?;
            db::set_meta(c, "key", key.id().as_bytes())?;
            seal_all(
                c,
                key,
                "SELECT id, tag FROM labels",
                "SELECT text FROM labels WHERE id = ?1",
                "UPDATE labels SET text = ?2 WHERE id = ?1",
            )?;
            seal_all(
                c,
                key,
                "SELECT sample, hash FROM inputs JOIN samples ON id = sample",
                "SELECT content FROM inputs WHERE sample = ?1",
                "UPDATE inputs SET content = ?2 WHERE sample = ?1",
            )?;
            db::set_meta(c, UNFINISHED, b"1")?;
            Ok(())
        })
    }
}

fn nothing_selected() -> Error {
    Error::usage("nothing says what to forget")
        .hint("name samples, a label, a source, a time, an adapter, or all")
}

/// Seals a column of a table, row by row: `rows` gives numbers and contexts.
fn seal_all(c: &Connection, key: &Key, rows: &str, get: &str, set: &str) -> Outcome<()> {
    let mut statement = c.prepare(rows)?;
    let rows: Vec<(i64, [u8; 32])> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (id, context) in rows {
        let plain: Vec<u8> = c.query_row(get, [id], |row| row.get(0))?;
        c.execute(set, params![id, key.seal(&context, &plain)?])?;
    }
    Ok(())
}

fn doomed(
    c: &Connection,
    unlocked: Option<&Unlocked<'_>>,
    selector: &Selector,
) -> Outcome<Vec<Doomed>> {
    let filter = Filter {
        name: selector.name.clone(),
        label: selector.label.clone(),
        source: selector.source.clone(),
        since: selector.since,
        until: selector.until,
        ..Filter::default()
    };
    let Some((sql, values)) = condition(c, unlocked, &filter)? else { return Ok(vec![]) };
    let mut statement =
        c.prepare(&format!("SELECT id, name_id, hash, bytes FROM samples WHERE {sql}"))?;
    let rows = statement.query_map(rusqlite::params_from_iter(values), |row| {
        Ok(Doomed {
            id: row.get(0)?,
            name: row.get(1)?,
            hash: SampleHash(row.get(2)?),
            bytes: db::unsigned(row.get(3)?),
        })
    })?;
    let mut doomed: Vec<Doomed> = rows.collect::<rusqlite::Result<_>>()?;
    let ids: HashSet<i64> = selector.ids.iter().copied().collect();
    let hashes: HashSet<SampleHash> = selector.hashes.iter().copied().collect();
    doomed.retain(|d| {
        (ids.is_empty() || ids.contains(&d.id)) && (hashes.is_empty() || hashes.contains(&d.hash))
    });
    Ok(doomed)
}

fn remove(c: &Connection, doomed: &[Doomed]) -> Outcome<ForgetReport> {
    let mut report = ForgetReport {
        samples: doomed.len() as u64,
        bytes: doomed.iter().map(|d| d.bytes).sum(),
        ..ForgetReport::default()
    };
    let mut by_name: BTreeMap<i64, HashSet<SampleHash>> = BTreeMap::new();
    for d in doomed {
        by_name.entry(d.name).or_default().insert(d.hash);
    }
    for (&id, gone) in &by_name {
        let name: String =
            c.query_row("SELECT name FROM names WHERE id = ?1", [id], |row| row.get(0))?;
        let retired = retire(c, id, &name, gone, &mut report)?;
        let ended = end_jobs(c, id, gone)?;
        let again = !retired.is_empty() || !ended.is_empty();
        report.jobs_ended.extend(ended);
        blank_sentences(c, id, &name)?;
        c.execute(
            "DELETE FROM outcomes WHERE name_id = ?1 AND generation IN
             (SELECT number FROM generations WHERE name_id = ?1 AND state = ?2)",
            params![id, GenerationState::Retired.code()],
        )?;
        for d in doomed.iter().filter(|d| d.name == id) {
            c.prepare_cached("DELETE FROM samples WHERE id = ?1")?.execute([d.id])?;
        }
        let left: bool = c.query_row(
            "SELECT EXISTS (SELECT 1 FROM samples WHERE name_id = ?1 AND state = 0)",
            [id],
            |row| row.get(0),
        )?;
        if again && left {
            report.jobs_queued.push(queue(c, id, &"something was forgotten".into())?);
        }
    }
    if let Some(newest) = doomed.iter().map(|d| d.id).max() {
        let floor = db::meta_number(c, "next_sample")?.unwrap_or(1);
        db::set_meta_number(c, "next_sample", floor.max(newest.saturating_add(1)))?;
    }
    hashes::sweep(c)?;
    Ok(report)
}

/// Retires the generations of a name that learned from one of `gone`, and moves its pointer.
fn retire(
    c: &Connection,
    id: i64,
    name: &str,
    gone: &HashSet<SampleHash>,
    report: &mut ForgetReport,
) -> Outcome<BTreeSet<u64>> {
    let mut retired = BTreeSet::new();
    for generation in live(c, id)? {
        let number = generation.number;
        if manifest(c, id, number)?.iter().any(|hash| gone.contains(hash)) {
            retired.insert(number);
        }
    }
    let Some(row) = find_name(c, name)? else { return Ok(retired) };
    for &number in &retired {
        let why = "what it learned from was forgotten";
        set_state(c, id, number, GenerationState::Retired, Some(why))?;
        c.execute(
            "DELETE FROM manifests WHERE name_id = ?1 AND number = ?2",
            params![id, db::signed(number)],
        )?;
        report.generations.push(Retired { name: name.into(), generation: number });
    }
    if row.active.is_some_and(|active| retired.contains(&active)) {
        let to = fallback(c, &row)?;
        point(c, &row, to, How::Forgotten, Some("what it learned from was forgotten"))?;
        report.fallbacks.push(Fallback { name: name.into(), from: row.active, to });
    }
    Ok(retired)
}

/// What was said of a name's generations and jobs may name a class that nobody knows any more.
/// Numbers stay.
fn blank_sentences(c: &Connection, id: i64, name: &str) -> Outcome<()> {
    let mut statement = c.prepare(
        "SELECT number, verdict FROM generations WHERE name_id = ?1 AND verdict IS NOT NULL",
    )?;
    let verdicts: Vec<(i64, String)> = statement
        .query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (number, verdict) in verdicts {
        let verdict = serde_json::from_str(&verdict).ok().map(|mut value| {
            blank(&mut value);
            value.to_string()
        });
        c.execute(
            "UPDATE generations SET verdict = ?3 WHERE name_id = ?1 AND number = ?2",
            params![id, number, verdict],
        )?;
    }
    c.execute(
        "UPDATE jobs SET error = NULL, progress = json_remove(progress, '$.verdict')
         WHERE name_id = ?1 AND state > ?2",
        params![id, JobState::LAST_OPEN],
    )?;
    // What follows the colon is a verdict or an error.
    c.execute(
        "UPDATE events SET data = NULL, text = substr(text, 1, instr(text || ':', ':') - 1)
         WHERE name = ?1 AND kind IN ('gate', 'promotion', 'train')",
        [name],
    )?;
    Ok(())
}

/// Empties every text that stands under `sentence`.
fn blank(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                match key.as_str() {
                    "sentence" => *value = "".into(),
                    _ => blank(value),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(blank),
        _ => {}
    }
}

/// Ends the jobs of a name that learn or learned from one of `gone`.
fn end_jobs(c: &Connection, name: i64, gone: &HashSet<SampleHash>) -> Outcome<Vec<i64>> {
    let mut statement =
        c.prepare("SELECT id, manifest FROM jobs WHERE name_id = ?1 AND manifest IS NOT NULL")?;
    let jobs: Vec<(i64, Vec<u8>)> = statement
        .query_map([name], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let mut ended = vec![];
    for (id, manifest) in jobs {
        if hashes::from_bytes(&manifest).iter().any(|hash| gone.contains(hash)) {
            c.execute(
                "UPDATE jobs SET state = ?2, manifest = NULL, progress = NULL, error = NULL,
                 updated = ?3 WHERE id = ?1",
                params![id, JobState::Forgotten.code(), db::signed(db::now())],
            )?;
            ended.push(id);
        }
    }
    Ok(ended)
}
