//! Which samples are held out, and which make room for new ones.

use super::db::{Fault, Outcome, unsigned};
use super::events;
use super::insert::Row;
use super::rules::{Quota, Rules};
use super::samples::{Part, SampleState};
use super::state::Unlocked;
use crate::error::{Cause, Error};
use rusqlite::{Connection, OptionalExtension, params};

/// Share of the quota of samples that may be in quarantine: one in so many.
const QUARANTINED: u64 = 10;
/// Rows of evicted samples are looked through when they reach a multiple of this.
const SWEEP: u64 = 256;

/// Samples in use of one class and part.
struct Group {
    state: i64,
    label: Option<i64>,
    part: Part,
    count: u64,
    bytes: u64,
}

fn groups(c: &Connection, name: i64) -> Outcome<Vec<Group>> {
    let mut statement = c.prepare_cached(
        "SELECT state, label_id, part, count(*), sum(bytes) FROM samples
         WHERE name_id = ?1 AND state < 2 GROUP BY state, label_id, part",
    )?;
    let rows = statement.query_map([name], |row| {
        Ok(Group {
            state: row.get(0)?,
            label: row.get(1)?,
            part: Part::of(row.get(2)?),
            count: unsigned(row.get(3)?),
            bytes: unsigned(row.get(4)?),
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Holds out a share of each class; a text that is alike one that is there goes where that is, so
/// that what is measured was not learned in other spelling. What is missing from the share is rounded at random, by the
/// input's own hash, so that the share is met to one sample and nobody can aim at a part.
pub(super) fn choose_part(
    c: &Connection,
    unlocked: &Unlocked<'_>,
    rules: &Rules,
    row: &Row<'_>,
) -> Outcome<Part> {
    if let Some(alike) = row.alike {
        let part: Option<i64> = c
            .prepare_cached("SELECT part FROM samples WHERE name_id = ?1 AND alike = ?2 LIMIT 1")?
            .query_row(params![row.name, alike], |row| row.get(0))
            .optional()?;
        if let Some(part) = part {
            return Ok(Part::of(part));
        }
    }
    let (mut all, mut held) = (0, 0);
    for group in groups(c, row.name)? {
        if group.state == SampleState::Kept as i64 && group.label == row.label {
            all += group.count;
            held += if group.part == Part::HoldOut { group.count } else { 0 };
        }
    }
    let missing = rules.hold_out * (all + 1) as f64 - held as f64;
    let [a, b, d, e, ..] = unlocked.hash(PART, &[&row.hash]);
    let drawn = f64::from(u32::from_le_bytes([a, b, d, e])) / 4_294_967_296.0;
    Ok(if drawn < missing { Part::HoldOut } else { Part::Train })
}

/// A kind of keyed hash.
const PART: u8 = 17;

/// Evicts what is too much once the new sample is in.
pub(super) fn make_room(
    c: &Connection,
    rules: &Rules,
    row: &Row<'_>,
    quarantined: bool,
) -> Outcome<()> {
    let quota = &rules.quota;
    let most_quarantined = (quota.max_samples / QUARANTINED).max(1);
    loop {
        let groups = groups(c, row.name)?;
        let kept = |g: &&Group| g.state == SampleState::Kept as i64;
        let count: u64 = groups.iter().filter(kept).map(|g| g.count).sum();
        let waiting: u64 = groups.iter().filter(|g| !kept(g)).map(|g| g.count).sum();
        let bytes: u64 = groups.iter().map(|g| g.bytes).sum();
        let new = u64::from(!quarantined);
        let too_many = count + new > quota.max_samples;
        let too_many_waiting = waiting + (1 - new) > most_quarantined;
        let too_large = bytes + row.bytes > quota.max_bytes;
        if !(too_many || too_many_waiting || too_large) || groups.is_empty() {
            return Ok(());
        }
        // What is not used goes first where it is a matter of bytes.
        let state = if too_many_waiting || (too_large && !too_many && waiting > 0) {
            SampleState::Quarantined
        } else {
            SampleState::Kept
        };
        evict(c, rules, row, &groups, state)?;
    }
}

/// An error where the inputs of all names, with `new` bytes more, are past what may be.
pub(super) fn make_total_room(c: &Connection, quota: &Quota, new: u64) -> Outcome<()> {
    let names: i64 = c.prepare_cached("SELECT count(*) FROM names")?.query_row([], |r| r.get(0))?;
    if unsigned(names).saturating_mul(quota.max_bytes) <= quota.max_total_bytes {
        return Ok(());
    }
    let bytes: i64 = c
        .prepare_cached("SELECT ifnull(sum(bytes), 0) FROM samples WHERE state < 2")?
        .query_row([], |row| row.get(0))?;
    if unsigned(bytes).saturating_add(new) <= quota.max_total_bytes {
        return Ok(());
    }
    let text = format!(
        "the samples of all adapters have {bytes} bytes, at most {} are kept (samples.max_total_bytes)",
        quota.max_total_bytes
    );
    Err(Error::refused(text).because(Cause::Full).hint("forget some: offshoot forget").into())
}

/// Evicts the oldest sample of the largest class, of the part that has more than its share.
fn evict(
    c: &Connection,
    rules: &Rules,
    row: &Row<'_>,
    groups: &[Group],
    state: SampleState,
) -> Outcome<()> {
    let groups: Vec<&Group> = groups.iter().filter(|g| g.state == state as i64).collect();
    let of = |label: Option<i64>, part: Option<Part>| -> u64 {
        groups
            .iter()
            .filter(|g| g.label == label && part.is_none_or(|p| p == g.part))
            .map(|g| g.count)
            .sum()
    };
    // Of classes of one size, the one that the new sample belongs to.
    let largest = groups.iter().map(|g| (of(g.label, None), g.label == row.label, g.label)).max();
    let Some((all, _, label)) = largest else {
        return Err(Fault::Ours(Error::failed("nothing is left to evict")));
    };
    let held = of(label, Some(Part::HoldOut));
    let part = match held as f64 > rules.hold_out * all as f64 || held == all {
        true => Part::HoldOut,
        false => Part::Train,
    };
    let id: i64 = c
        .prepare_cached(
            "SELECT min(id) FROM samples WHERE name_id = ?1 AND state = ?2 AND label_id IS ?3
             AND part = ?4",
        )?
        .query_row(params![row.name, state as i64, label, part as i64], |row| row.get(0))?;
    c.prepare_cached("DELETE FROM inputs WHERE sample = ?1")?.execute([id])?;
    c.prepare_cached(
        "UPDATE samples SET state = ?2, bytes = 0, predicted_id = NULL, reason = NULL WHERE id = ?1",
    )?
    .execute(params![id, SampleState::EVICTED])?;
    let text = "samples made room for newer ones";
    events::record_often(c, "eviction", &row.sample.name, text)?;
    let evicted: i64 = c
        .prepare_cached("SELECT count(*) FROM samples WHERE name_id = ?1 AND state = ?2")?
        .query_row(params![row.name, SampleState::EVICTED], |row| row.get(0))?;
    if unsigned(evicted).is_multiple_of(SWEEP) {
        super::hashes::sweep_samples(c)?;
    }
    Ok(())
}
