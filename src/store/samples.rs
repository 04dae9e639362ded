//! What people taught the device: inputs with labels, where they come from, reading them.

use super::db::{Fault, Outcome, signed, unsigned};
use super::hashes::SampleHash;
pub use super::label::{Form, Label};
use super::names::check_name;
use super::rows::{find_name, known};
use super::state::{Store, Unlocked};
use crate::error::{Cause, Error, Result};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What a base is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// A sentence.
    Text(String),
    /// A picture or a clip of sound, as it came.
    File {
        /// The file's bytes.
        bytes: Vec<u8>,
        /// Its type: `image/png`.
        mime: String,
    },
    /// The base's inputs as the bytes of a `.npz` file.
    Tensors(Vec<u8>),
}

/// The sort of an [`Input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InputKind {
    /// [`Input::Text`].
    Text,
    /// [`Input::File`].
    File,
    /// [`Input::Tensors`].
    Tensors,
}

impl Input {
    /// Its sort.
    pub fn kind(&self) -> InputKind {
        match self {
            Input::Text(_) => InputKind::Text,
            Input::File { .. } => InputKind::File,
            Input::Tensors(_) => InputKind::Tensors,
        }
    }

    /// What is hashed: two inputs of one sort with the same bytes are the same.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Input::Text(text) => text.as_bytes(),
            Input::File { bytes, .. } | Input::Tensors(bytes) => bytes,
        }
    }
}

/// Which samples training sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// It may be trained on.
    Train,
    /// Only what is trained is measured on it.
    HoldOut,
}

impl Part {
    pub(super) fn of(code: i64) -> Part {
        if code == 1 { Part::HoldOut } else { Part::Train }
    }
}

/// Whether a sample is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleState {
    /// It is.
    Kept,
    /// It is not trusted: a rule says why.
    Quarantined,
}

impl SampleState {
    /// In the database: only the row is left.
    pub(super) const EVICTED: i64 = 2;

    pub(super) fn of(code: i64) -> SampleState {
        if code == 0 { SampleState::Kept } else { SampleState::Quarantined }
    }
}

/// A sample without its input.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleInfo {
    /// Its number in the store.
    pub id: i64,
    /// The adapter's name that it is for.
    pub name: String,
    /// Names its input.
    pub hash: SampleHash,
    /// The sort of its input.
    pub kind: InputKind,
    /// Bytes of its input.
    pub bytes: u64,
    /// Its class; `None` where it has none, or numbers.
    pub label: Option<String>,
    /// The sort of its label.
    #[serde(skip)]
    pub form: Form,
    /// What was answered when it was asked.
    pub predicted: Option<String>,
    /// The generation that answered; 0: the base.
    pub generation: Option<u64>,
    /// Who brought it.
    pub source: String,
    /// When it was made, in seconds since 1970-01-01 UTC.
    pub time: u64,
    /// When it first came in.
    pub received: u64,
    /// How often it came in.
    pub seen: u64,
    /// Which samples it belongs to.
    pub part: Part,
    /// Whether it is used.
    pub state: SampleState,
    /// Why it is in quarantine.
    pub reason: Option<String>,
    /// How many training sets had been taken when it came in or was last corrected: those taken
    /// later hold it as it is ([`TrainingSet::round`] is not below this).
    #[serde(skip)]
    pub round: i64,
}

/// A sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// All but the input.
    pub info: SampleInfo,
    /// The input.
    pub input: Input,
    /// The right answer.
    pub label: Option<Label>,
}

/// Which samples are asked for: those that meet all that is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Of this name.
    pub name: Option<String>,
    /// With this label.
    pub label: Option<String>,
    /// From this source.
    pub source: Option<String>,
    /// Made at this time or later.
    pub since: Option<u64>,
    /// Made before this time.
    pub until: Option<u64>,
    /// Of this part.
    pub part: Option<Part>,
    /// In this state.
    pub state: Option<SampleState>,
    /// At most so many; 0: all.
    pub limit: u32,
    /// With a greater number.
    pub after: i64,
}

/// What there is to train a name on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainingSet {
    /// To train on, ascending by number. All have a label.
    pub train: Vec<SampleInfo>,
    /// To measure on.
    pub held: Vec<SampleInfo>,
    /// Without a label.
    pub unlabelled: Vec<SampleInfo>,
    /// Its number: for [`Store::trained`] and [`Origin::round`](super::Origin).
    pub round: i64,
}

impl TrainingSet {
    /// The hashes of what is trained on: a generation's [`Origin::manifest`](super::Origin).
    pub fn manifest(&self) -> Vec<SampleHash> {
        self.train.iter().map(|s| s.hash).collect()
    }
}

pub(super) const COLUMNS: &str = "samples.id, names.name, hash, kind, bytes, label_id,
    predicted_id, generation, source, time, received, seen, part, state, reason, samples.round
    FROM samples JOIN names ON names.id = samples.name_id";

impl Store {
    /// The samples that meet `filter`, ascending by number.
    ///
    /// # Errors
    /// The samples are encrypted and the store was opened without their key (refused,
    /// [`Cause::Locked`]).
    pub fn samples(&self, filter: &Filter) -> Result<Vec<SampleInfo>> {
        self.read(|c| {
            let unlocked = self.unlocked(c)?;
            select(c, &unlocked, filter)
        })
    }

    /// As [`Store::samples`], the newest first.
    pub fn newest_samples(&self, filter: &Filter) -> Result<Vec<SampleInfo>> {
        self.read(|c| select_in(c, &self.unlocked(c)?, filter, "DESC"))
    }

    /// A sample with its input. Errors: there is none of this number (usage, [`Cause::NotFound`]),
    /// it is damaged (bad input), no key (refused).
    pub fn sample(&self, id: i64) -> Result<Sample> {
        self.read(|c| {
            let unlocked = self.unlocked(c)?;
            let filter = Filter { after: id.saturating_sub(1), limit: 1, ..Filter::default() };
            let info = select(c, &unlocked, &filter)?.into_iter().find(|s| s.id == id);
            let info = info.ok_or_else(|| no_sample(id))?;
            let (input, stated) = content(c, &unlocked, id, &info.hash.0)?;
            let label = info.label.clone().map(Label::Class).or(stated);
            Ok(Sample { info, input, label })
        })
    }

    /// A sample's input. Errors as [`Store::sample`].
    pub fn sample_input(&self, id: i64) -> Result<Input> {
        self.sample(id).map(|s| s.input)
    }

    /// What `name` can be trained on now: the samples in use, the held-out ones apart. What comes in
    /// later counts as new even before [`Store::trained`] is called with this set's round.
    ///
    /// # Errors
    /// No such name (usage), no key (refused).
    pub fn training_set(&self, name: &str) -> Result<TrainingSet> {
        check_name(name)?;
        let take = |c: &Connection| -> Outcome<TrainingSet> {
            let unlocked = self.unlocked(c)?;
            let id = known(c, self, name)?.id;
            let round: i64 =
                c.query_row("SELECT round FROM names WHERE id = ?1", [id], |row| row.get(0))?;
            let filter = Filter {
                name: Some(name.into()),
                state: Some(SampleState::Kept),
                ..Filter::default()
            };
            let mut set = TrainingSet { round, ..TrainingSet::default() };
            for info in select(c, &unlocked, &filter)? {
                match (info.form != Form::None, info.part) {
                    (false, _) => set.unlabelled.push(info),
                    (true, Part::Train) => set.train.push(info),
                    (true, Part::HoldOut) => set.held.push(info),
                }
            }
            Ok(set)
        };
        if self.read_only() {
            return self.read(|c| take(c));
        }
        self.write(|c| {
            let set = take(c)?;
            c.execute("UPDATE names SET round = round + 1 WHERE name = ?1", [name])?;
            Ok(set)
        })
    }

    /// Notes that the training set of this round was trained on, whatever came of it: its samples
    /// count as new no more. Errors: no such name (usage).
    pub fn trained(&self, name: &str, round: i64) -> Result<()> {
        check_name(name)?;
        self.write(|c| {
            let id = known(c, self, name)?.id;
            c.execute(
                "UPDATE names SET trained = max(trained, ?2) WHERE id = ?1",
                params![id, round],
            )?;
            Ok(())
        })
    }
}

pub(super) fn no_sample(id: i64) -> Fault {
    Fault::Ours(Error::usage(format!("no sample {id}")).because(Cause::NotFound))
}

/// What `inputs.content` holds.
#[derive(Serialize, Deserialize)]
struct Content {
    input: Input,
    values: Option<Vec<f32>>,
    /// Missing in what older programs wrote.
    answer: Option<String>,
}

/// As stored: sealed if there is a key, tied to the input's hash. `stated`: the label, where it is no
/// class.
pub(super) fn to_content(
    unlocked: &Unlocked<'_>,
    hash: &[u8; 32],
    input: Input,
    stated: Option<Label>,
) -> Result<Vec<u8>> {
    let (values, answer) = match stated {
        Some(Label::Values(values)) => (Some(values), None),
        Some(Label::Answer(text)) => (None, Some(text)),
        Some(Label::Class(_)) | None => (None, None),
    };
    let plain = postcard::to_allocvec(&Content { input, values, answer })
        .map_err(|e| Error::failed(format!("a sample can't be encoded: {e}")))?;
    unlocked.seal(hash, plain)
}

/// A sample's input and its label, where that is no class; its hash checked: SQLite has no checksums of its own.
pub(super) fn content(
    c: &Connection,
    unlocked: &Unlocked<'_>,
    id: i64,
    hash: &[u8; 32],
) -> Outcome<(Input, Option<Label>)> {
    let stored: Option<Vec<u8>> = c
        .prepare_cached("SELECT content FROM inputs WHERE sample = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    let stored = stored.ok_or_else(|| no_sample(id))?;
    let damaged = || {
        Error::bad_input(format!("sample {id} is damaged"))
            .hint(format!("forget it: 'offshoot forget --id {id}'"))
            .because(Cause::Unreadable)
    };
    let plain = unlocked.open(hash, stored)?;
    let older = || {
        let (input, values) = postcard::from_bytes(&plain)?;
        Ok::<Content, postcard::Error>(Content { input, values, answer: None })
    };
    let content = postcard::from_bytes::<Content>(&plain).or_else(|_| older());
    let Content { input, values, answer } = content.map_err(|_| damaged())?;
    if input_hash(unlocked, &input) != *hash {
        return Err(Fault::Ours(damaged()));
    }
    Ok((input, values.map(Label::Values).or(answer.map(Label::Answer))))
}

/// The hash that names an input.
pub(super) fn input_hash(unlocked: &Unlocked<'_>, input: &Input) -> [u8; 32] {
    unlocked.hash(input.kind() as u8, &[input.bytes()])
}

/// Kinds of keyed hashes beyond those of inputs.
const LABEL: u8 = 16;

/// The tag by which a label is found.
pub(super) fn label_tag(unlocked: &Unlocked<'_>, name: i64, text: &str) -> [u8; 32] {
    unlocked.hash(LABEL, &[&name.to_le_bytes(), text.as_bytes()])
}

pub(super) fn find_label(
    c: &Connection,
    unlocked: &Unlocked<'_>,
    name: i64,
    text: &str,
) -> Outcome<Option<i64>> {
    let tag = label_tag(unlocked, name, text);
    let mut statement =
        c.prepare_cached("SELECT id FROM labels WHERE name_id = ?1 AND tag = ?2")?;
    Ok(statement.query_row(params![name, tag], |row| row.get(0)).optional()?)
}

/// The texts of labels by their numbers: of one name, or of all.
pub(super) fn labels(
    c: &Connection,
    unlocked: &Unlocked<'_>,
    name: Option<i64>,
) -> Outcome<HashMap<i64, String>> {
    let mut statement =
        c.prepare_cached("SELECT id, tag, text FROM labels WHERE ?1 IS NULL OR name_id = ?1")?;
    let mut rows = statement.query([name])?;
    let mut labels = HashMap::new();
    while let Some(row) = rows.next()? {
        let (id, tag, stored): (i64, [u8; 32], Vec<u8>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let text = String::from_utf8(unlocked.open(&tag, stored)?).map_err(|_| {
            Error::bad_input(format!("label {id} is damaged")).because(Cause::Unreadable)
        })?;
        labels.insert(id, text);
    }
    Ok(labels)
}

/// `label_id` of samples labelled with numbers: no class has it.
pub(super) const VALUES: i64 = 0;
/// `label_id` of samples with a [`Label::Answer`].
pub(super) const ANSWER: i64 = -1;

/// A condition over samples and its parameters; `None` where nothing can meet it.
pub(super) fn condition(
    c: &Connection,
    unlocked: Option<&Unlocked<'_>>,
    filter: &Filter,
) -> Outcome<Option<(String, Vec<rusqlite::types::Value>)>> {
    let mut sql = String::from("1");
    let mut values: Vec<rusqlite::types::Value> = vec![];
    let mut and = |text: &str, value: rusqlite::types::Value| {
        values.push(value);
        sql.push_str(&format!(" AND {text} ?{}", values.len()));
    };
    if let Some(name) = &filter.name {
        match find_name(c, name)? {
            Some(row) => and("samples.name_id =", row.id.into()),
            None => return Ok(None),
        }
    }
    if let Some(source) = &filter.source {
        and("source =", source.clone().into());
    }
    if let Some(since) = filter.since {
        and("time >=", signed(since).into());
    }
    if let Some(until) = filter.until {
        and("time <", signed(until).into());
    }
    if let Some(part) = filter.part {
        and("part =", (part as i64).into());
    }
    if let Some(state) = filter.state {
        and("state =", (state as i64).into());
    }
    if let (Some(label), Some(unlocked)) = (&filter.label, unlocked) {
        // The same label has a number for each name.
        let mut ids = vec![];
        let mut statement = c.prepare_cached("SELECT id FROM names")?;
        let names: Vec<i64> =
            statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        for name in names {
            ids.extend(find_label(c, unlocked, name, label)?);
        }
        if ids.is_empty() {
            return Ok(None);
        }
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        sql.push_str(&format!(" AND label_id IN ({})", ids.join(",")));
    }
    Ok(Some((sql, values)))
}

fn select(c: &Connection, unlocked: &Unlocked<'_>, filter: &Filter) -> Outcome<Vec<SampleInfo>> {
    select_in(c, unlocked, filter, "ASC")
}

fn select_in(
    c: &Connection,
    unlocked: &Unlocked<'_>,
    filter: &Filter,
    order: &str,
) -> Outcome<Vec<SampleInfo>> {
    let Some((sql, values)) = condition(c, Some(unlocked), filter)? else { return Ok(vec![]) };
    let labels = labels(c, unlocked, None)?;
    let limit = if filter.limit == 0 { -1 } else { i64::from(filter.limit) };
    let mut statement = c.prepare(&format!(
        "SELECT {COLUMNS} WHERE {sql} AND state < {} AND samples.id > {} ORDER BY samples.id
         {order} LIMIT {limit}",
        SampleState::EVICTED,
        filter.after
    ))?;
    let rows = statement.query_map(rusqlite::params_from_iter(values), |row| info(row, &labels))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn info(row: &Row<'_>, labels: &HashMap<i64, String>) -> rusqlite::Result<SampleInfo> {
    let label = |id: Option<i64>| id.and_then(|id| labels.get(&id).cloned());
    Ok(SampleInfo {
        id: row.get(0)?,
        name: row.get(1)?,
        hash: SampleHash(row.get(2)?),
        kind: match row.get::<_, i64>(3)? {
            0 => InputKind::Text,
            1 => InputKind::File,
            _ => InputKind::Tensors,
        },
        bytes: unsigned(row.get(4)?),
        label: label(row.get(5)?),
        form: match row.get::<_, Option<i64>>(5)? {
            None => Form::None,
            Some(VALUES) => Form::Values,
            Some(ANSWER) => Form::Answer,
            Some(_) => Form::Class,
        },
        predicted: label(row.get(6)?),
        generation: row.get::<_, Option<i64>>(7)?.map(unsigned),
        source: row.get(8)?,
        time: unsigned(row.get(9)?),
        received: unsigned(row.get(10)?),
        seen: unsigned(row.get(11)?),
        part: Part::of(row.get(12)?),
        state: SampleState::of(row.get(13)?),
        reason: row.get(14)?,
        round: row.get(15)?,
    })
}
