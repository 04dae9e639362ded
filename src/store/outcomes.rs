//! How right generations are in use, and how many samples there are.

use super::db::{Outcome, now, signed, unsigned};
use super::names::check_name;
use super::rows::{find_generation, known};
use super::samples::{Part, SampleState, labels};
use super::state::Store;
use crate::error::Result;
use rusqlite::{Connection, params};
use serde::Serialize;

/// Hours of outcomes that are kept.
const KEPT_HOURS: i64 = 24 * 365;

/// Answers that people said something about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcomes {
    /// Those that were right.
    pub right: u64,
    /// All.
    pub total: u64,
}

/// Samples of one class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// The class; `None`: numbers or no label, or the samples are closed without their key.
    pub label: Option<String>,
    /// To train on.
    pub train: u64,
    /// Held out.
    pub held: u64,
    /// Of those to train on and held out: new since the last training.
    pub new: u64,
}

/// How many samples a name has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// By class.
    pub classes: Vec<ClassCount>,
    /// In use.
    pub kept: u64,
    /// In use, labelled and held out.
    pub held: u64,
    /// In use, labelled, and new or newly labelled since the last training.
    pub new: u64,
    /// In use, labelled, to train on, and new or newly labelled since the training set that the active
    /// generation has learned from.
    pub unlearned: u64,
    /// In quarantine.
    pub quarantined: u64,
    /// Bytes of inputs, those in quarantine included.
    pub bytes: u64,
}

impl Store {
    /// Counts an answer of `generation` (0: the base) as right or wrong, at `time` in seconds since
    /// 1970-01-01 UTC. For feedback that brings no sample to store; [`Store::add_sample`] counts by
    /// itself. One of a generation that is gone, or a year old, is not counted. Errors: no such name
    /// (usage).
    pub fn record_outcome(
        &self,
        name: &str,
        generation: u64,
        right: bool,
        time: u64,
    ) -> Result<()> {
        check_name(name)?;
        self.write(|c| {
            let id = known(c, self, name)?.id;
            count(c, id, generation, right, time)?;
            Ok(())
        })
    }

    /// The outcomes of a generation (0: the base). Errors: no such name (usage).
    pub fn outcomes(&self, name: &str, generation: u64) -> Result<Outcomes> {
        self.outcomes_since(name, generation, 0)
    }

    /// The outcomes of a generation in the hours from `since` on, in seconds since 1970-01-01 UTC.
    pub fn outcomes_since(&self, name: &str, generation: u64, since: u64) -> Result<Outcomes> {
        check_name(name)?;
        self.read(|c| {
            let id = known(c, self, name)?.id;
            Ok(c.query_row(
                "SELECT ifnull(sum(right), 0), ifnull(sum(total), 0) FROM outcomes
                 WHERE name_id = ?1 AND generation = ?2 AND hour >= ?3",
                params![id, signed(generation), signed(since / 3600)],
                |row| Ok(Outcomes { right: unsigned(row.get(0)?), total: unsigned(row.get(1)?) }),
            )?)
        })
    }

    /// How many samples a name has, by class and part. Works without the key too, then without the
    /// classes' names. Errors: no such name (usage).
    pub fn counts(&self, name: &str) -> Result<Counts> {
        check_name(name)?;
        self.read(|c| {
            let id = known(c, self, name)?.id;
            let texts = match self.unlocked(c) {
                Ok(unlocked) => labels(c, &unlocked, Some(id))?,
                Err(_) => Default::default(),
            };
            let mut statement = c.prepare_cached(
                "SELECT samples.state, label_id, part, count(*), sum(samples.bytes),
                 sum(samples.round > trained), sum(samples.round > ifnull(generations.round, -1))
                 FROM samples JOIN names ON names.id = samples.name_id
                 LEFT JOIN generations ON generations.name_id = names.id AND number = active
                 WHERE samples.name_id = ?1 AND samples.state < 2
                 GROUP BY samples.state, label_id, part ORDER BY label_id",
            )?;
            let mut rows = statement.query([id])?;
            let mut counts = Counts::default();
            let mut last = None;
            while let Some(row) = rows.next()? {
                let (state, label_id): (i64, Option<i64>) = (row.get(0)?, row.get(1)?);
                let (n, bytes) = (unsigned(row.get(3)?), unsigned(row.get(4)?));
                counts.bytes += bytes;
                if state == SampleState::Quarantined as i64 {
                    counts.quarantined += n;
                    continue;
                }
                let labelled = label_id.is_some();
                let new = if labelled { unsigned(row.get(5)?) } else { 0 };
                if last != Some(label_id) {
                    let label = label_id.and_then(|id| texts.get(&id).cloned());
                    counts.classes.push(ClassCount { label, ..ClassCount::default() });
                    last = Some(label_id);
                }
                let held = Part::of(row.get(2)?) == Part::HoldOut;
                if let Some(class) = counts.classes.last_mut() {
                    class.new += new;
                    *if held { &mut class.held } else { &mut class.train } += n;
                }
                counts.kept += n;
                counts.new += new;
                counts.unlearned += if held || !labelled { 0 } else { unsigned(row.get(6)?) };
                counts.held += if held && labelled { n } else { 0 };
            }
            Ok(counts)
        })
    }
}

/// Counts an answer of a generation that is there (0: the base); times after now count as now. So
/// no client can fill the table or push out what others said. Gives whether it was counted.
pub(super) fn count(
    c: &Connection,
    name: i64,
    generation: u64,
    right: bool,
    time: u64,
) -> Outcome<bool> {
    if generation > 0 && find_generation(c, name, generation)?.is_none() {
        return Ok(false);
    }
    let now = now();
    let (hour, oldest) = (signed(time.min(now) / 3600), signed(now / 3600) - KEPT_HOURS);
    if hour < oldest {
        return Ok(false);
    }
    let fresh = c
        .prepare_cached(
            "INSERT INTO outcomes (name_id, generation, hour, right, total)
             VALUES (?1, ?2, ?3, ?4, 1) ON CONFLICT DO UPDATE
             SET right = right + excluded.right, total = total + 1 RETURNING total = 1",
        )?
        .query_row(params![name, signed(generation), hour, right], |row| row.get::<_, bool>(0))?;
    if fresh {
        c.prepare_cached("DELETE FROM outcomes WHERE name_id = ?1 AND hour < ?2")?
            .execute(params![name, oldest])?;
    }
    Ok(true)
}
