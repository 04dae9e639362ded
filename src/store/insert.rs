//! Taking samples in: duplicates, corrections, the hold-out, quarantine, quotas.

use super::db::{Outcome, now, signed, unsigned};
use super::events;
use super::hashes::SampleHash;
use super::names::check_name;
use super::outcomes;
use super::quota::{choose_part, make_room, make_total_room};
use super::rows::{NameRow, make_name};
use super::rules::{Quota, Rules};
use super::samples::{
    ANSWER, Input, Label, Part, SampleState, VALUES, content, find_label, input_hash, label_tag,
    no_sample, to_content,
};
use super::state::{Store, Unlocked};
use super::trust::{Why, spellings, too_much, unknown_label};
use crate::error::{Cause, Error, Result};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

/// Longest label or source in bytes.
const MAX_WORD: usize = 256;
/// Longest text of a [`Label::Answer`] in bytes.
const MAX_ANSWER: usize = 256 << 10;
/// Most characters of the reason for a quarantine; longer ones are cut.
const MAX_REASON: usize = 300;
/// Most numbers of a label.
const MAX_VALUES: usize = 65_536;

/// A sample as it comes in.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSample {
    /// The adapter's name that it is for; made if it is not known.
    pub name: String,
    /// The input.
    pub input: Input,
    /// The right answer, if somebody gave it.
    pub label: Option<Label>,
    /// The class that was answered; to a [`Label::Answer`] the same text where the answer was right.
    pub predicted: Option<String>,
    /// The generation that answered; 0: the base. `None`: not known; where something was answered
    /// and the name serves the base, that.
    pub generation: Option<u64>,
    /// Who brings it: a user, a device, a client.
    pub source: String,
    /// When it was made, in seconds since 1970-01-01 UTC.
    pub time: u64,
    /// Whether the person that it comes from agreed to its being kept.
    pub consent: bool,
}

/// What became of a new sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// It was not there.
    New,
    /// Its input was there with the same label, or it brought none.
    Merged,
    /// Its input was there with another label, which it corrects.
    Relabelled,
    /// It is stored, but not used, for this reason.
    Quarantined(Why),
}

/// What [`Store::add_sample`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// The sample's number.
    pub id: i64,
    /// Names its input.
    pub hash: SampleHash,
    /// What became of it.
    pub outcome: Taken,
    /// Which samples it belongs to. Decided once; it stays through corrections.
    pub part: Part,
}

/// A sample that is there.
struct Existing {
    id: i64,
    label: Option<i64>,
    part: Part,
    state: i64,
    reason: Option<Why>,
    source: String,
    /// The newest generation whose answer to it was counted.
    judged: Option<u64>,
}

/// A sample that is to be written.
pub(super) struct Row<'a> {
    pub name: i64,
    pub hash: [u8; 32],
    pub label: Option<i64>,
    pub bytes: u64,
    pub sample: &'a NewSample,
    /// The generation that answered; 0: the base.
    generation: Option<u64>,
    /// Names what texts have in common that differ in case, punctuation and spacing alone.
    pub alike: Option<[u8; 32]>,
    /// The label, where it is no class.
    stated: Option<Label>,
}

impl Row<'_> {
    /// Whether a label is kept beside the input, not by its number.
    fn is_stated(label: Option<i64>) -> bool {
        matches!(label, Some(VALUES | ANSWER))
    }
}

impl Store {
    /// Takes a sample in. It is on the medium when this returns.
    ///
    /// Where a class label and a prediction are given, the generation that answered is known and the
    /// sample is not quarantined, the outcome (right or wrong) is counted for that generation, as
    /// [`Store::record_outcome`] would: don't call that too. Once for each input, and again for
    /// later generations: who asks the same again and again is one witness.
    ///
    /// The part: of each class, the share [`Rules::hold_out`] is held out, chosen by a keyed hash.
    /// Texts that differ in case, punctuation and spacing alone belong to the same part.
    /// Quarantined is a sample with a label outside [`Rules::labels`], one beyond a source's rate or
    /// share, one whose input another source has labelled otherwise (the stored one with it), and a
    /// text that is there in three spellings.
    ///
    /// # Errors
    /// No consent (refused, [`Cause::NoConsent`]); an empty or oversized input, label or source, a
    /// number that is not finite (usage); no key (refused, [`Cause::Locked`]); a full disk (failed,
    /// [`Cause::Full`]). Nothing is stored then.
    pub fn add_sample(&self, sample: &NewSample) -> Result<Recorded> {
        let rules = self.rules();
        check(sample, &rules.quota)?;
        self.write(|c| {
            let unlocked = self.unlocked(c)?;
            take(c, &unlocked, &rules, sample)
        })
    }

    /// Puts a sample into quarantine for `reason`. Errors: none of this number (usage).
    pub fn quarantine(&self, id: i64, reason: impl Into<Why>) -> Result<()> {
        let reason = reason.into();
        self.write(|c| {
            let name = set_sample_state(c, id, SampleState::Quarantined, Some(reason.text()))?;
            let text = "a sample was put into quarantine";
            events::record_often(c, "quarantine", &name, text)
        })
    }

    /// Takes a sample out of quarantine: it is used again. Errors: none of this number (usage).
    pub fn release(&self, id: i64) -> Result<()> {
        self.write(|c| {
            let name = set_sample_state(c, id, SampleState::Kept, None)?;
            c.execute(
                "UPDATE samples SET round = (SELECT round FROM names WHERE name = ?2)
                 WHERE id = ?1",
                params![id, name],
            )?;
            events::record_often(c, "release", &name, "a sample was taken out of quarantine")
        })
    }
}

/// Sets the state of a sample that has its input; gives back its name.
fn set_sample_state(
    c: &Connection,
    id: i64,
    state: SampleState,
    reason: Option<&str>,
) -> Outcome<String> {
    let reason: Option<String> = reason.map(|text| text.chars().take(MAX_REASON).collect());
    let changed = c.execute(
        "UPDATE samples SET state = ?2, reason = ?3 WHERE id = ?1 AND state < ?4",
        params![id, state as i64, reason, SampleState::EVICTED],
    )?;
    if changed == 0 {
        return Err(no_sample(id));
    }
    Ok(c.query_row(
        "SELECT names.name FROM samples JOIN names ON names.id = name_id WHERE samples.id = ?1",
        [id],
        |row| row.get(0),
    )?)
}

fn check(sample: &NewSample, quota: &Quota) -> Result<()> {
    if !sample.consent {
        return Err(Error::refused("the sample comes without consent: it is not stored")
            .because(Cause::NoConsent));
    }
    check_name(&sample.name)?;
    let word = |what: &str, text: &str| {
        if text.is_empty() || text.len() > MAX_WORD || text.chars().any(char::is_control) {
            return Err(Error::usage(format!(
                "the sample's {what} is not 1 to {MAX_WORD} bytes without control characters"
            )));
        }
        Ok(())
    };
    word("source", &sample.source)?;
    if let (Some(predicted), false) =
        (&sample.predicted, matches!(sample.label, Some(Label::Answer(_))))
    {
        word("prediction", predicted)?;
    }
    match &sample.label {
        Some(Label::Answer(text)) if text.is_empty() || text.len() > MAX_ANSWER => {
            let error = format!("the sample's label is not 1 to {MAX_ANSWER} bytes");
            return Err(Error::usage(error));
        }
        Some(Label::Class(class)) => word("label", class)?,
        Some(Label::Values(values)) => {
            let finite = values.iter().all(|v| v.is_finite());
            if values.is_empty() || values.len() > MAX_VALUES || !finite {
                return Err(Error::usage(format!(
                    "the sample's label is not 1 to {MAX_VALUES} finite numbers"
                )));
            }
        }
        Some(Label::Answer(_)) | None => {}
    }
    if let Input::File { mime, .. } = &sample.input {
        word("type", mime)?;
    }
    let bytes = sample.input.bytes().len() as u64;
    if bytes == 0 {
        return Err(Error::usage("the sample's input is empty"));
    }
    if bytes > quota.max_bytes {
        return Err(Error::refused(format!(
            "the sample has {bytes} bytes, at most {} are kept",
            quota.max_bytes
        )));
    }
    Ok(())
}

fn take(
    c: &Connection,
    unlocked: &Unlocked<'_>,
    rules: &Rules,
    sample: &NewSample,
) -> Outcome<Recorded> {
    let NameRow { id: name, active, .. } = make_name(c, &sample.name, &rules.quota)?;
    let hash = input_hash(unlocked, &sample.input);
    let found = existing(c, name, &hash)?;
    let by_base = sample.predicted.is_some() && active.is_none();
    let generation = sample.generation.or(by_base.then_some(0));
    // Not `==`: turns of two generations would count again and again.
    let judged = found.as_ref().and_then(|f| f.judged);
    let (label, stated) = match &sample.label {
        None => (None, None),
        Some(Label::Class(class)) => (Some(intern(c, unlocked, name, class)?), None),
        Some(stated @ Label::Values(_)) => (Some(VALUES), Some(stated.clone())),
        Some(stated @ Label::Answer(_)) => (Some(ANSWER), Some(stated.clone())),
    };
    let label_bytes = sample.label.as_ref().map_or(0, Label::bytes);
    let bytes = sample.input.bytes().len() as u64 + label_bytes;
    let alike = alike(unlocked, &sample.input);
    let row = Row { name, hash, label, bytes, sample, generation, alike, stated };
    make_total_room(c, &rules.quota, row.bytes)?;
    let recorded = match found {
        Some(found) if found.state < SampleState::EVICTED => {
            again(c, unlocked, rules, &row, &found)?
        }
        // Evicted: it comes back, and keeps its part.
        found => first(c, unlocked, rules, &row, found.as_ref())?,
    };
    let answer = (sample.label.as_ref().and_then(Label::text), &sample.predicted, generation);
    if let (Some(right), Some(predicted), Some(generation)) = answer
        && judged.is_none_or(|judged| judged < generation)
        && !matches!(recorded.outcome, Taken::Quarantined(_))
        && outcomes::count(c, name, generation, right == predicted, sample.time)?
    {
        c.prepare_cached("UPDATE samples SET judged = ?2 WHERE id = ?1")?
            .execute(params![recorded.id, signed(generation)])?;
    }
    if matches!(recorded.outcome, Taken::Quarantined(_)) {
        let text = "a sample was put into quarantine";
        events::record_often(c, "quarantine", &sample.name, text)?;
    }
    Ok(recorded)
}

fn existing(c: &Connection, name: i64, hash: &[u8; 32]) -> Outcome<Option<Existing>> {
    let mut statement = c.prepare_cached(
        "SELECT id, label_id, part, state, reason, source, judged FROM samples
         WHERE name_id = ?1 AND hash = ?2",
    )?;
    let found = statement.query_row(params![name, hash], |row| {
        Ok(Existing {
            id: row.get(0)?,
            label: row.get(1)?,
            part: Part::of(row.get(2)?),
            state: row.get(3)?,
            reason: row.get(4)?,
            source: row.get(5)?,
            judged: row.get::<_, Option<i64>>(6)?.map(unsigned),
        })
    });
    Ok(found.optional()?)
}

/// A kind of keyed hash.
const ALIKE: u8 = 18;

/// Names a text without case, punctuation and spacing; `None`: no text, or nothing is left of it. What
/// may be all that tells two texts apart, such as emoji and operators, is no punctuation.
fn alike(unlocked: &Unlocked<'_>, input: &Input) -> Option<[u8; 32]> {
    let Input::Text(text) = input else { return None };
    let words: Vec<String> = text
        .split(|c: char| c.is_whitespace() || ".,;:!?\"'()…¿¡".contains(c))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    (!words.is_empty()).then(|| unlocked.hash(ALIKE, &[words.join(" ").as_bytes()]))
}

/// The number of a label's text, which is made if it is new.
fn intern(c: &Connection, unlocked: &Unlocked<'_>, name: i64, text: &str) -> Outcome<i64> {
    if let Some(id) = find_label(c, unlocked, name, text)? {
        return Ok(id);
    }
    let tag = label_tag(unlocked, name, text);
    let stored = unlocked.seal(&tag, text.as_bytes().to_vec())?;
    c.prepare_cached("INSERT INTO labels (name_id, tag, text) VALUES (?1, ?2, ?3)")?
        .execute(params![name, tag, stored])?;
    Ok(c.last_insert_rowid())
}

/// An input that is not there.
fn first(
    c: &Connection,
    unlocked: &Unlocked<'_>,
    rules: &Rules,
    row: &Row<'_>,
    back: Option<&Existing>,
) -> Outcome<Recorded> {
    let mut reason = too_much(c, rules, row)?;
    if reason.is_none() {
        reason = unknown_label(rules, row.sample);
    }
    if reason.is_none() && back.is_none() {
        reason = spellings(c, row)?;
    }
    let part = match back {
        Some(back) => back.part,
        None => choose_part(c, unlocked, rules, row)?,
    };
    make_room(c, rules, row, reason.is_some())?;
    let state = if reason.is_some() { SampleState::Quarantined } else { SampleState::Kept };
    let predicted = match &row.sample.predicted {
        Some(text) if !Row::is_stated(row.label) => Some(intern(c, unlocked, row.name, text)?),
        _ => None,
    };
    let id = match back {
        Some(back) => back.id,
        None => next_sample(c)?,
    };
    let sample = row.sample;
    c.prepare_cached(
        "INSERT OR REPLACE INTO samples (id, name_id, hash, kind, bytes, label_id, predicted_id,
         part, state, reason, source, time, received, seen, generation, alike, judged, round)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, 1, ?14, ?15, ?16, round
         FROM names WHERE id = ?2",
    )?
    .execute(params![
        id,
        row.name,
        row.hash,
        sample.input.kind() as i64,
        signed(row.bytes),
        row.label,
        predicted,
        part as i64,
        state as i64,
        reason,
        sample.source,
        signed(sample.time),
        signed(now()),
        row.generation.map(signed),
        row.alike,
        back.and_then(|back| back.judged).map(signed),
    ])?;
    let content = to_content(unlocked, &row.hash, sample.input.clone(), row.stated.clone())?;
    c.prepare_cached("INSERT OR REPLACE INTO inputs (sample, content) VALUES (?1, ?2)")?
        .execute(params![id, content])?;
    let outcome = reason.map_or(Taken::New, Taken::Quarantined);
    Ok(Recorded { id, hash: SampleHash(row.hash), outcome, part })
}

/// An input that is there.
fn again(
    c: &Connection,
    unlocked: &Unlocked<'_>,
    rules: &Rules,
    row: &Row<'_>,
    found: &Existing,
) -> Outcome<Recorded> {
    let sample = row.sample;
    let same = match (row.label, found.label) {
        (None, _) => true,
        (new, old) if new == old && Row::is_stated(new) => {
            content(c, unlocked, found.id, &row.hash)?.1 == row.stated
        }
        (new, old) => new == old,
    };
    let recorded =
        |outcome| Recorded { id: found.id, hash: SampleHash(row.hash), outcome, part: found.part };
    let quarantined = found.state == SampleState::Quarantined as i64;
    if same {
        c.prepare_cached("UPDATE samples SET seen = seen + 1, time = max(time, ?2) WHERE id = ?1")?
            .execute(params![found.id, signed(sample.time)])?;
        let reason = found.reason.clone().filter(|_| quarantined);
        return Ok(recorded(reason.map_or(Taken::Merged, Taken::Quarantined)));
    }
    if found.label.is_some() && found.source != sample.source {
        // Neither of the two can be trusted; the stored one keeps its label, for people to look at.
        let reason = "two sources label it differently";
        set_sample_state(c, found.id, SampleState::Quarantined, Some(reason))?;
        return Ok(recorded(Taken::Quarantined(reason.into())));
    }
    let reason = match (&found.reason, unknown_label(rules, sample)) {
        (_, Some(reason)) => Some(reason),
        (Some(old), None) if quarantined && !old.ends_with_the_label() => Some(old.clone()),
        _ => None,
    };
    let state = if reason.is_some() { SampleState::Quarantined } else { SampleState::Kept };
    c.prepare_cached(
        "UPDATE samples SET label_id = ?2, state = ?3, reason = ?4, source = ?5,
         seen = seen + 1, time = max(time, ?6), bytes = ?7,
         round = (SELECT round FROM names WHERE id = name_id) WHERE id = ?1",
    )?
    .execute(params![
        found.id,
        row.label,
        state as i64,
        reason,
        sample.source,
        signed(sample.time),
        signed(row.bytes)
    ])?;
    if Row::is_stated(row.label) || Row::is_stated(found.label) {
        let content = to_content(unlocked, &row.hash, sample.input.clone(), row.stated.clone())?;
        c.prepare_cached("UPDATE inputs SET content = ?2 WHERE sample = ?1")?
            .execute(params![found.id, content])?;
    }
    Ok(recorded(reason.map_or(Taken::Relabelled, Taken::Quarantined)))
}

/// Numbers of samples are never given twice, also when the newest was forgotten.
pub(super) fn next_sample(c: &Connection) -> rusqlite::Result<i64> {
    let newest: Option<i64> =
        c.prepare_cached("SELECT max(id) FROM samples")?.query_row([], |row| row.get(0))?;
    let floor = super::db::meta_number(c, "next_sample")?;
    Ok(newest.unwrap_or(0).saturating_add(1).max(floor.unwrap_or(1)))
}
