//! Which generation a name serves: switching, trials, going back, removing.

use super::db::{Fault, Outcome, now, signed, unsigned};
use super::events;
use super::generations::GenerationState;
use super::names::{Reference, check_name};
use super::rows::{
    GenerationRow, NameRow, drop_generation, drop_unused, find_generation, known, live, resolve,
};
use super::state::Store;
use crate::error::{Cause, Error, Result};
use rusqlite::{Connection, params};
use serde::Serialize;
use std::time::Duration;

/// Switches that are remembered.
const HISTORY_KEPT: i64 = 10_000;

/// How the active generation changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// By promotion or by hand.
    Activated,
    /// Back to the one before, which was better.
    RolledBack,
    /// Back to the one before, because the trial was interrupted.
    Interrupted,
    /// To the base, by hand.
    Deactivated,
    /// The active generation was removed by force.
    Removed,
    /// What the active generation had learned from was forgotten.
    Forgotten,
    /// Back to the one before, because the daemon was stopped within the trial.
    Stopped,
}

impl How {
    const ALL: [How; 7] = [
        How::Activated,
        How::RolledBack,
        How::Interrupted,
        How::Deactivated,
        How::Removed,
        How::Forgotten,
        How::Stopped,
    ];

    fn of(code: i64) -> How {
        let at = usize::try_from(code).ok();
        at.and_then(|at| How::ALL.get(at)).copied().unwrap_or(How::Activated)
    }
}

/// A switch of a name's active generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Switched {
    /// The name.
    pub name: String,
    /// The generation that is active now; `None`: the base.
    pub active: Option<u64>,
    /// The one that was.
    pub before: Option<u64>,
}

/// What [`Store::remove`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The generations that are gone.
    #[serde(rename = "removed")]
    pub generations: Vec<u64>,
    /// Whether the name is known still: by other generations, by samples or by an open job.
    pub known: bool,
}

/// A switch that was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Switch {
    /// When, in seconds since 1970-01-01 UTC.
    pub time: u64,
    /// The generation that became active; `None`: the base.
    pub generation: Option<u64>,
    /// The one before.
    pub before: Option<u64>,
    /// How.
    pub how: How,
    /// Why.
    pub why: Option<String>,
}

impl Store {
    /// Makes `generation` the active one of `name`, after reading its file.
    ///
    /// With `expected`, only if that is the active one now (compare and swap). With `trial`, the
    /// generation is on trial until [`Store::confirm_trial`]; the next start of the daemon before
    /// that goes back.
    ///
    /// # Errors
    /// No such name or generation (usage, [`Cause::NotFound`]), another one is active than
    /// `expected` (refused, [`Cause::Moved`]), a damaged file (bad input).
    pub fn activate(
        &self,
        name: &str,
        generation: u64,
        expected: Option<Option<u64>>,
        trial: Option<Duration>,
    ) -> Result<Switched> {
        let reference = Reference::parse(&format!("{name}@{generation}"))?;
        self.write(|c| {
            let found = resolve(c, self, &reference)?;
            let row = known(c, self, name)?;
            compare(name, expected, row.active)?;
            self.load_row(&found)?;
            serve(c, &row, generation, trial)?;
            Ok(Switched { name: name.into(), active: Some(generation), before: row.active })
        })
    }

    /// Lets `name` serve the base alone; with `expected` as [`Store::activate`].
    ///
    /// # Errors
    /// No such name (usage), another generation is active than `expected` (refused,
    /// [`Cause::Moved`]).
    pub fn deactivate(&self, name: &str, expected: Option<Option<u64>>) -> Result<Switched> {
        check_name(name)?;
        self.write(|c| {
            let row = known(c, self, name)?;
            compare(name, expected, row.active)?;
            if let Some(trial) = row.trial {
                set_state(c, row.id, trial.generation, GenerationState::Candidate, None)?;
            }
            point(c, &row, None, How::Deactivated, None)?;
            Ok(Switched { name: name.into(), active: None, before: row.active })
        })
    }

    /// Goes back from the active generation, which is marked as bad, to the one that [`Store::fallbacks`]
    /// has first, else to the base. `why` is kept. With `expected` as [`Store::activate`].
    ///
    /// # Errors
    /// No such name, or it serves the base already (usage); another one is active than `expected`
    /// (refused, [`Cause::Moved`]).
    pub fn rollback(
        &self,
        name: &str,
        expected: Option<Option<u64>>,
        why: &str,
    ) -> Result<Switched> {
        check_name(name)?;
        self.write(|c| {
            let row = known(c, self, name)?;
            compare(name, expected, row.active)?;
            let active = row.active.ok_or_else(|| nothing_to_go_back_from(name))?;
            let to = fallback(c, &row)?;
            set_state(c, row.id, active, GenerationState::Bad, Some(why))?;
            point(c, &row, to, How::RolledBack, Some(why))?;
            events::record(c, "rollback", Some(name), &went_back(active, to, why), None)?;
            Ok(Switched { name: name.into(), active: to, before: Some(active) })
        })
    }

    /// What [`Store::rollback`] would do; nothing is changed. Errors as there.
    pub fn would_roll_back(&self, name: &str, expected: Option<Option<u64>>) -> Result<Switched> {
        check_name(name)?;
        self.read(|c| {
            let row = known(c, self, name)?;
            compare(name, expected, row.active)?;
            let active = row.active.ok_or_else(|| nothing_to_go_back_from(name))?;
            let to = fallback(c, &row)?;
            Ok(Switched { name: name.into(), active: to, before: Some(active) })
        })
    }

    /// Ends the trial of `generation`: it has proven itself.
    ///
    /// # Errors
    /// It is not the active one, on trial (refused, [`Cause::Moved`]).
    pub fn confirm_trial(&self, name: &str, generation: u64) -> Result<()> {
        check_name(name)?;
        self.write(|c| {
            let row = known(c, self, name)?;
            if row.trial.is_none_or(|t| t.generation != generation) {
                return Err(Fault::Ours(
                    Error::refused(format!("generation {generation} of '{name}' is not on trial"))
                        .because(Cause::Moved),
                ));
            }
            set_state(c, row.id, generation, GenerationState::Promoted, None)?;
            clear_trial(c, row.id)?;
            let text = format!("generation {generation} has proven itself");
            events::record(c, "confirmed", Some(name), &text, None)?;
            Ok(())
        })
    }

    /// Called once when the daemon stops (`stopped`), and when it starts: trials that are still there
    /// then were interrupted by a crash or a power cut. Those names go back to what they served
    /// before; the generations become candidates again.
    pub fn end_interrupted_trials(&self, stopped: bool) -> Result<Vec<Switched>> {
        let on_trial: Vec<String> =
            self.names()?.into_iter().filter(|e| e.trial.is_some()).map(|e| e.name).collect();
        if on_trial.is_empty() {
            return Ok(vec![]);
        }
        let (how, why) = match stopped {
            true => (How::Stopped, "the daemon was stopped within the trial"),
            false => (How::Interrupted, "the trial was interrupted"),
        };
        self.write(|c| {
            let mut switched = vec![];
            for name in on_trial {
                let row = known(c, self, &name)?;
                let Some(trial) = row.trial else { continue };
                let to = fallback(c, &row)?;
                let candidate = GenerationState::Candidate;
                set_state(c, row.id, trial.generation, candidate, Some(why))?;
                point(c, &row, to, how, Some(why))?;
                let text = went_back(trial.generation, to, why);
                events::record(c, "interrupted", Some(&name), &text, None)?;
                switched.push(Switched { name, active: to, before: row.active });
            }
            Ok(switched)
        })
    }

    /// Generations whose trial was not ended, where nothing else was switched since, and how: they
    /// may be tried again. An interruption may be their doing or a power cut's, so not after a second
    /// one; that the daemon was stopped says nothing of them.
    pub fn interrupted_trials(&self) -> Result<Vec<(Switched, How)>> {
        self.read(|c| {
            let mut statement = c.prepare("SELECT name FROM names ORDER BY name")?;
            let names: Vec<String> =
                statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            let mut found = vec![];
            for name in names {
                let row = known(c, self, &name)?;
                let history = history(c, row.id)?;
                let Some(Switch { how, before: Some(before), .. }) = history.first() else {
                    continue;
                };
                let crash = |s: &&Switch| s.how == How::Interrupted && s.before == Some(*before);
                let candidate = find_generation(c, row.id, *before)?
                    .is_some_and(|g| g.state == GenerationState::Candidate);
                let cut = matches!(how, How::Interrupted | How::Stopped);
                if cut && candidate && history.iter().filter(crash).count() < 2 {
                    let switched = Switched { name, active: row.active, before: Some(*before) };
                    found.push((switched, *how));
                }
            }
            Ok(found)
        })
    }

    /// What may serve where the active generation of `name` can't: of those of its base that served
    /// before and are neither bad nor retired, the proven ones, the last first, then the unproven ones,
    /// the newest first, unless their trial ended in a crash. None where the base was chosen by hand
    /// after them. Errors: no such name (usage).
    pub fn fallbacks(&self, name: &str) -> Result<Vec<u64>> {
        check_name(name)?;
        self.read(|c| fallbacks(c, &known(c, self, name)?))
    }

    /// Why `name` serves the base, in words; `None` while a generation is active. Errors: no such name
    /// (usage).
    pub fn silence(&self, name: &str) -> Result<Option<String>> {
        check_name(name)?;
        self.read(|c| {
            let row = known(c, self, name)?;
            if row.active.is_some() {
                return Ok(None);
            }
            let last = history(c, row.id)?.into_iter().next();
            let Some(Switch { how, before: Some(before), why, .. }) = last else {
                return Ok(Some(match live(c, row.id)?.is_empty() {
                    true => format!("'{name}' has learned nothing yet"),
                    false => format!("no generation of '{name}' was made the active one"),
                }));
            };
            let which = format!("generation {before} of '{name}'");
            let why = why.map_or(String::new(), |why| format!(" ({why})"));
            Ok(Some(match how {
                How::Deactivated => format!("'{name}' was set to the base by hand"),
                How::Forgotten => format!("what {which} had learned from was forgotten"),
                How::Removed => format!("{which} was removed"),
                How::RolledBack => format!("{which} was rolled back{why}"),
                How::Interrupted | How::Stopped | How::Activated => format!("{which} waits{why}"),
            }))
        })
    }

    /// The switches of a name, oldest first. Errors: no such name (usage).
    pub fn history(&self, name: &str) -> Result<Vec<Switch>> {
        check_name(name)?;
        self.read(|c| {
            let mut switches = history(c, known(c, self, name)?.id)?;
            switches.reverse();
            Ok(switches)
        })
    }

    /// Removes one generation, or all of a name's. The active one goes only with `force`. With the
    /// last one the name goes too, unless it has samples or an open job: then it serves the base.
    /// Numbers are not given again.
    ///
    /// # Errors
    /// No such name or generation (usage); the active one without `force`, or a name that has
    /// nothing but samples or a job (refused).
    pub fn remove(&self, reference: &Reference, force: bool) -> Result<Removed> {
        let name = reference.name();
        let removed = self.write(|c| {
            let row = known(c, self, name)?;
            let gone: Vec<u64> = match reference.generation() {
                Some(_) => vec![resolve(c, self, reference)?.number],
                None => live(c, row.id)?.iter().map(|g| g.number).collect(),
            };
            if let Some(active) = row.active.filter(|a| gone.contains(a)) {
                if !force {
                    return Err(Fault::Ours(
                        Error::refused(format!(
                            "generation {active} of '{name}' is the active one"
                        ))
                        .hint("switch to another one with 'adapter use', or add --force"),
                    ));
                }
                point(c, &row, None, How::Removed, None)?;
            }
            for &number in &gone {
                drop_generation(c, row.id, number)?;
            }
            super::hashes::sweep(c)?;
            let known = !drop_unused(c, row.id, name)?;
            if known && gone.is_empty() {
                return Err(Fault::Ours(
                    Error::refused(format!("'{name}' has no generation, only samples or a job"))
                        .hint(format!("'forget --adapter {name}' removes its samples")),
                ));
            }
            Ok(Removed { generations: gone, known })
        })?;
        // It is done; files that are left over go when the store is opened next.
        let _ = self.collect();
        Ok(removed)
    }
}

/// Makes a generation the active one, perhaps on trial.
pub(super) fn serve(
    c: &Connection,
    row: &NameRow,
    generation: u64,
    trial: Option<Duration>,
) -> Outcome<()> {
    let state = match trial {
        Some(_) => GenerationState::Trial,
        None => GenerationState::Promoted,
    };
    if let Some(old) = row.trial.filter(|t| t.generation != generation) {
        // The next one takes its place before it has proven itself.
        set_state(c, row.id, old.generation, GenerationState::Candidate, None)?;
    }
    set_state(c, row.id, generation, state, None)?;
    point(c, row, Some(generation), How::Activated, None)?;
    if let Some(trial) = trial {
        c.execute(
            "UPDATE names SET trial_since = ?2, trial_seconds = ?3 WHERE id = ?1",
            params![row.id, signed(now()), signed(trial.as_secs())],
        )?;
    }
    Ok(())
}

fn nothing_to_go_back_from(name: &str) -> Error {
    Error::usage(format!("'{name}' serves the base: there is nothing to go back from"))
}

fn went_back(from: u64, to: Option<u64>, why: &str) -> String {
    let to = to.map_or("the base".into(), |to| format!("generation {to}"));
    format!("back from generation {from} to {to}: {why}")
}

/// The compare of compare and swap.
fn compare(name: &str, expected: Option<Option<u64>>, found: Option<u64>) -> Result<()> {
    let Some(expected) = expected.filter(|e| *e != found) else { return Ok(()) };
    let words = |g: Option<u64>| g.map_or("the base".into(), |g| format!("generation {g}"));
    Err(Error::refused(format!("'{name}' serves {}, expected {}", words(found), words(expected)))
        .hint("look again: another one has switched it")
        .because(Cause::Moved))
}

/// Moves the pointer, ends any trial, and remembers the switch.
pub(super) fn point(
    c: &Connection,
    row: &NameRow,
    to: Option<u64>,
    how: How,
    why: Option<&str>,
) -> Outcome<()> {
    clear_trial(c, row.id)?;
    if row.active == to {
        return Ok(());
    }
    c.execute("UPDATE names SET active = ?2 WHERE id = ?1", params![row.id, to.map(signed)])?;
    c.execute(
        "INSERT INTO history (name_id, time, generation, before, how, why)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![row.id, signed(now()), to.map(signed), row.active.map(signed), how as i64, why],
    )?;
    let oldest = c.last_insert_rowid().saturating_sub(HISTORY_KEPT);
    c.execute("DELETE FROM history WHERE id <= ?1", [oldest])?;
    Ok(())
}

fn clear_trial(c: &Connection, name: i64) -> Outcome<()> {
    c.execute(
        "UPDATE names SET trial_since = NULL, trial_seconds = NULL
         WHERE id = ?1 AND trial_since IS NOT NULL",
        [name],
    )?;
    Ok(())
}

pub(super) fn set_state(
    c: &Connection,
    name: i64,
    number: u64,
    state: GenerationState,
    why: Option<&str>,
) -> Outcome<()> {
    c.execute(
        "UPDATE generations SET state = ?3, why = ?4 WHERE name_id = ?1 AND number = ?2",
        params![name, signed(number), state.code(), why],
    )?;
    Ok(())
}

/// Newest first.
fn history(c: &Connection, name: i64) -> Outcome<Vec<Switch>> {
    let mut statement = c.prepare_cached(
        "SELECT time, generation, before, how, why FROM history WHERE name_id = ?1
         ORDER BY id DESC",
    )?;
    let rows = statement.query_map([name], |row| {
        Ok(Switch {
            time: unsigned(row.get(0)?),
            generation: row.get::<_, Option<i64>>(1)?.map(unsigned),
            before: row.get::<_, Option<i64>>(2)?.map(unsigned),
            how: How::of(row.get(3)?),
            why: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Where a name goes when its active generation must not serve: see [`Store::fallbacks`].
pub(super) fn fallback(c: &Connection, row: &NameRow) -> Outcome<Option<u64>> {
    Ok(fallbacks(c, row)?.first().copied())
}

fn fallbacks(c: &Connection, row: &NameRow) -> Outcome<Vec<u64>> {
    let Some(active) = row.active else { return Ok(vec![]) };
    let (mut proven, mut others) = (vec![], vec![]);
    let base = find_generation(c, row.id, active)?.and_then(|g: GenerationRow| g.base);
    let live = live(c, row.id)?;
    let history = history(c, row.id)?;
    let crashed = |n: u64| history.iter().any(|s| s.how == How::Interrupted && s.before == Some(n));
    for switch in history.iter().skip(1) {
        let Some(number) = switch.generation else {
            if switch.how == How::Deactivated {
                break;
            }
            continue;
        };
        let Some(found) = live.iter().find(|g| g.number == number && g.base == base) else {
            continue;
        };
        if number == active || proven.contains(&number) || others.contains(&number) {
            continue;
        }
        match found.state {
            GenerationState::Promoted => proven.push(number),
            GenerationState::Candidate if !crashed(number) => others.push(number),
            _ => {}
        }
    }
    others.sort_unstable_by(|a, b| b.cmp(a));
    proven.extend(others);
    Ok(proven)
}
