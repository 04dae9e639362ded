//! Names and their generations: what there is, adding, reading.

use super::active;
use super::db::{Fault, Outcome, now, signed, unsigned};
use super::folder::relative;
use super::hashes::{self, SampleHash};
use super::names::{Reference, check_name};
use super::rows::{
    GenerationRow, NameRow, drop_generation, find_generation, find_name, known, live, make_name,
    manifest, no_generation, resolve,
};
use super::state::Store;
use crate::adapter::{Adapter, TensorType};
use crate::error::{Cause, Error, Result};
use crate::fingerprint::BaseFingerprint;
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use std::path::PathBuf;

/// Generations whose file went with what they had learned are listed up to this many.
const RETIRED_KEPT: i64 = 100;

/// What became of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationState {
    /// It has not been active, or its trial was interrupted.
    Candidate,
    /// It is active on trial.
    Trial,
    /// It is or was active and has proven itself: rollback may go back to it.
    Promoted,
    /// It was rolled back from: only `use` by hand makes it active again.
    Bad,
    /// What it learned from was forgotten: its file is gone.
    Retired,
}

impl GenerationState {
    const ALL: [GenerationState; 5] = [
        GenerationState::Candidate,
        GenerationState::Trial,
        GenerationState::Promoted,
        GenerationState::Bad,
        GenerationState::Retired,
    ];

    /// What stands in the database: the place in `ALL`.
    pub(super) fn code(self) -> i64 {
        self as i64
    }

    pub(super) fn of(code: i64) -> GenerationState {
        let at = usize::try_from(code).ok();
        at.and_then(|at| GenerationState::ALL.get(at)).copied().unwrap_or(GenerationState::Bad)
    }
}

/// Where a generation comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// The job that trained it.
    pub job: Option<i64>,
    /// The generation of the same name that it grew from (warm start, or held near it): what that
    /// one learned from, this one learned from too.
    pub parent: Option<u64>,
    /// The samples it learned from.
    pub manifest: Vec<SampleHash>,
    /// The gate's verdict with its numbers.
    pub verdict: Option<serde_json::Value>,
    /// The round of the training set that it learned from.
    pub round: Option<i64>,
}

/// Whether a generation that is added is made the active one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// It waits.
    Never,
    /// If it is new and the name has no other: one that was there already was perhaps taken back.
    First,
    /// In any case.
    Now,
}

/// What [`Store::add`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Added {
    /// The generation that holds the adapter.
    pub generation: u64,
    /// Whether it is new; `false` if a generation with the same bytes was there.
    pub new: bool,
    /// Whether it is the active one now.
    pub active: bool,
}

/// An adapter read from the store.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The adapter.
    pub adapter: Adapter,
    /// Its generation.
    pub generation: u64,
    /// Its file.
    pub path: PathBuf,
}

/// A generation that is active on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// The generation.
    pub generation: u64,
    /// When the trial began, in seconds since 1970-01-01 UTC. Clocks jump: who ends trials counts
    /// on a steady clock of its own.
    pub since: u64,
    /// How long it is to last.
    pub seconds: u64,
}

/// One name of the store. It is known from its first generation, sample or job on until
/// [`Store::remove`] takes its last generation and no sample is left. While none of its generations
/// is active it serves the base, and answers say so; a name that is not known serves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NameEntry {
    /// Its number, which stays; names count from 1.
    pub id: i64,
    /// The adapter's name.
    pub name: String,
    /// The base of the active generation, else of the newest; `None` where unknown.
    #[serde(serialize_with = "as_text")]
    pub base: Option<BaseFingerprint>,
    /// The generation served now; `None`: the base alone.
    pub active: Option<u64>,
    /// The trial that the active generation is on.
    pub trial: Option<Trial>,
    /// The generations that have a file, ascending.
    pub generations: Vec<u64>,
}

/// One generation of a name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// blake3 of its file, 64 hex digits.
    pub hash: String,
    /// Bytes of its file.
    pub bytes: u64,
    /// The base that it belongs to.
    #[serde(serialize_with = "as_text")]
    pub base: Option<BaseFingerprint>,
    /// What became of it.
    pub state: GenerationState,
    /// When it was added, in seconds since 1970-01-01 UTC.
    pub created: u64,
    /// The generation that it grew from.
    pub parent: Option<u64>,
    /// The job that trained it.
    pub job: Option<i64>,
    /// The gate's verdict.
    pub verdict: Option<serde_json::Value>,
    /// Number of samples that it was trained on itself.
    pub samples: u64,
    /// Why it is in its state, where there is something to say.
    pub why: Option<String>,
    /// The round of the training set that it learned from: samples of a later one have come in or
    /// were corrected since.
    #[serde(skip)]
    pub round: Option<i64>,
}

fn as_text<S: serde::Serializer>(
    base: &Option<BaseFingerprint>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    base.map(|b| b.to_string()).serialize(serializer)
}

impl Store {
    /// Makes `name` known, serving the base. One that is known stays as it is. Errors: a bad name
    /// (usage).
    pub fn create_name(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let quota = self.rules().quota;
        self.write(|c| make_name(c, name, &quota).map(|_| ()))
    }

    /// The names there are, sorted, those without generations too.
    pub fn names(&self) -> Result<Vec<NameEntry>> {
        self.read(|c| {
            let mut statement = c.prepare_cached("SELECT name FROM names ORDER BY name")?;
            let names: Vec<String> =
                statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            names.into_iter().map(|name| entry(c, known(c, self, &name)?, name)).collect()
        })
    }

    /// One name. Errors: there is none such (usage, `Cause::NotFound`).
    pub fn name(&self, name: &str) -> Result<NameEntry> {
        check_name(name)?;
        self.read(|c| entry(c, known(c, self, name)?, name.into()))
    }

    /// The generation that `name` serves now; `None` if it serves the base or is not known.
    pub fn active(&self, name: &str) -> Result<Option<u64>> {
        check_name(name)?;
        self.read(|c| Ok(find_name(c, name)?.and_then(|row| row.active)))
    }

    /// All generations of a name, ascending, retired ones too. Errors: no such name (usage).
    pub fn generations(&self, name: &str) -> Result<Vec<Generation>> {
        check_name(name)?;
        self.read(|c| {
            let id = known(c, self, name)?.id;
            let mut statement = c.prepare_cached(
                "SELECT number, hash, bytes, base, state, created, parent, job, verdict, samples,
                 why, round FROM generations WHERE name_id = ?1 ORDER BY number",
            )?;
            let rows = statement.query_map([id], generation)?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The number of `name`'s newest generation that has a file. Errors: none (usage).
    pub fn newest(&self, name: &str) -> Result<u64> {
        check_name(name)?;
        self.read(|c| {
            let row = known(c, self, name)?;
            let newest = live(c, row.id)?.last().map(|g| g.number);
            newest.ok_or_else(|| Fault::Ours(no_generation(name)))
        })
    }

    /// The samples that a generation learned from, through its parents too. Errors: no such
    /// generation (usage).
    pub fn manifest(&self, name: &str, generation: u64) -> Result<Vec<SampleHash>> {
        check_name(name)?;
        self.read(|c| {
            let id = known(c, self, name)?.id;
            manifest(c, id, generation)
        })
    }

    /// Reads the adapter that `reference` names, checking its hash and its values.
    ///
    /// # Errors
    /// No such name or generation, or none active (usage, `Cause::NotFound`); a damaged file
    /// (bad input).
    pub fn load(&self, reference: &Reference) -> Result<Loaded> {
        let found = self.read(|c| resolve(c, self, reference))?;
        self.load_row(&found)
    }

    pub(super) fn load_row(&self, found: &GenerationRow) -> Result<Loaded> {
        let path = self.adapter_path(&found.hash);
        let at = |e: Error| e.at(format_args!("'{}'", path.display()));
        let adapter = Adapter::from_bytes(&self.get_adapter(&found.hash)?).map_err(at)?;
        adapter.check().map_err(at)?;
        Ok(Loaded { adapter, generation: found.number, path })
    }

    /// Stores `adapter` as a new generation of `name`, a candidate. Bytes that are there already
    /// are not stored twice; a retired generation counts as gone. The oldest generations beyond the
    /// quota go, never the active one nor the one that a rollback would go back to.
    ///
    /// # Errors
    /// A bad name (usage), values that are not finite (bad input), a sample of the manifest was
    /// forgotten meanwhile, or the same bytes, brought by hand, were retired with what they had learned (refused,
    /// `Cause::Forgotten`), a full disk (failed): the store stays as it was.
    pub fn add(&self, name: &str, adapter: &Adapter, origin: &Origin) -> Result<Added> {
        self.add_and_serve(name, adapter, origin, Serve::Never)
    }

    /// As [`Store::add`], and makes the generation the active one where `serve` says so: both or, on
    /// an error, neither.
    pub fn add_and_serve(
        &self,
        name: &str,
        adapter: &Adapter,
        origin: &Origin,
        serve: Serve,
    ) -> Result<Added> {
        check_name(name)?;
        adapter.check()?;
        let mut named = adapter.clone();
        named.name = name.into();
        let bytes = named.to_bytes(TensorType::F32)?;
        let hash = *blake3::hash(&bytes).as_bytes();
        let verdict = origin.verdict.as_ref().map(|v| v.to_string());
        let quota = self.rules().quota;
        let insert = |c: &Connection, row: &NameRow| -> Outcome<Added> {
            let mut learned = origin.manifest.clone();
            hashes::all_there(c, row.id, &learned)?;
            if let Some(parent) = origin.parent {
                match find_generation(c, row.id, parent)? {
                    Some(found) if found.state != GenerationState::Retired => {}
                    _ => return Err(Fault::Ours(hashes::forgotten(name))),
                }
                learned.extend(manifest(c, row.id, parent)?);
            }
            let learned = hashes::to_bytes(learned);
            // One that is trained again to the same bytes says what it learned from.
            let by_hand = origin.job.is_none() && origin.manifest.is_empty();
            if by_hand && retired(c, row.id, &hash)? {
                return Err(Fault::Ours(
                    Error::refused(format!(
                        "this adapter was a generation of '{name}': what it learned from was \
                         forgotten"
                    ))
                    .because(Cause::Forgotten),
                ));
            }
            if let Some(same) = live(c, row.id)?.iter().find(|g| g.hash == hash) {
                // Its file may be the reason why it is added again.
                if self.get_adapter(&hash).is_err() {
                    self.put_adapter(&hash, &bytes)?;
                }
                let active = row.active == Some(same.number);
                return Ok(Added { generation: same.number, new: false, active });
            }
            self.put_adapter(&hash, &bytes)?;
            took_adapter(c, &hash)?;
            let number: i64 =
                c.query_row("SELECT next FROM names WHERE id = ?1", [row.id], |r| r.get(0))?;
            c.execute("UPDATE names SET next = ?2 WHERE id = ?1", params![row.id, number + 1])?;
            c.execute(
                "INSERT INTO generations (name_id, number, hash, bytes, base, state, created,
                 parent, job, verdict, samples, round)
                 VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12)",
                params![
                    row.id,
                    number,
                    hash,
                    bytes.len() as i64,
                    adapter.base.map(|b| b.0),
                    GenerationState::Candidate.code(),
                    signed(now()),
                    origin.parent.map(signed),
                    origin.job,
                    verdict,
                    origin.manifest.len() as i64,
                    origin.round,
                ],
            )?;
            c.execute(
                "INSERT INTO manifests (name_id, number, hashes) VALUES (?1, ?2, ?3)",
                params![row.id, number, learned],
            )?;
            trim(c, row, number, quota.max_generations)?;
            Ok(Added { generation: unsigned(number), new: true, active: false })
        };
        self.expect_adapter(&hash)?;
        let added = self.write(|c| {
            let row = make_name(c, name, &quota)?;
            let mut added = insert(c, &row)?;
            let wanted = match serve {
                Serve::Never => false,
                Serve::First => added.new && live(c, row.id)?.len() == 1,
                Serve::Now => true,
            };
            if wanted && !added.active {
                active::serve(c, &row, added.generation, None)?;
                added.active = true;
            }
            Ok(added)
        })?;
        // It is done; files that are left over go when the store is opened next.
        let _ = self.collect();
        Ok(added)
    }
}

/// Nobody is to remove the file of an adapter any more.
fn took_adapter(c: &Connection, hash: &[u8; 32]) -> Outcome<()> {
    c.execute("DELETE FROM doomed WHERE path = ?1", [relative(hash)])?;
    Ok(())
}

/// Whether a retired generation had these bytes.
fn retired(c: &Connection, name: i64, hash: &[u8; 32]) -> Outcome<bool> {
    let mut statement = c.prepare_cached(
        "SELECT 1 FROM generations WHERE name_id = ?1 AND hash = ?2 AND state = ?3",
    )?;
    Ok(statement.exists(params![name, hash, GenerationState::Retired.code()])?)
}

fn entry(c: &Connection, row: NameRow, name: String) -> Outcome<NameEntry> {
    let live = live(c, row.id)?;
    let shown = live.iter().find(|g| Some(g.number) == row.active);
    let base = shown.or(live.last()).and_then(|g| g.base).map(BaseFingerprint);
    let generations = live.iter().map(|g| g.number).collect();
    Ok(NameEntry { id: row.id, name, base, active: row.active, trial: row.trial, generations })
}

/// Drops the oldest generations beyond `max`, and all but the newest retired ones.
fn trim(c: &Connection, row: &NameRow, added: i64, max: u64) -> Outcome<()> {
    let live = live(c, row.id)?;
    let spare = active::fallback(c, row)?;
    let mut excess = (live.len() as u64).saturating_sub(max);
    for old in &live {
        let number = Some(old.number);
        if excess == 0 {
            break;
        }
        if number == row.active || number == spare || signed(old.number) == added {
            continue;
        }
        drop_generation(c, row.id, old.number)?;
        excess -= 1;
    }
    c.execute(
        "DELETE FROM generations WHERE name_id = ?1 AND state = ?2 AND number <=
         (SELECT number FROM generations WHERE name_id = ?1 AND state = ?2
          ORDER BY number DESC LIMIT 1 OFFSET ?3)",
        params![row.id, GenerationState::Retired.code(), RETIRED_KEPT],
    )?;
    super::hashes::sweep(c)
}

fn generation(row: &Row<'_>) -> rusqlite::Result<Generation> {
    let hash: [u8; 32] = row.get(1)?;
    let verdict: Option<String> = row.get(8)?;
    Ok(Generation {
        number: unsigned(row.get(0)?),
        hash: blake3::Hash::from_bytes(hash).to_hex().to_string(),
        bytes: unsigned(row.get(2)?),
        base: row.get::<_, Option<[u8; 32]>>(3)?.map(BaseFingerprint),
        state: GenerationState::of(row.get(4)?),
        created: unsigned(row.get(5)?),
        parent: row.get::<_, Option<i64>>(6)?.map(unsigned),
        job: row.get(7)?,
        verdict: verdict.and_then(|text| serde_json::from_str(&text).ok()),
        samples: unsigned(row.get(9)?),
        why: row.get(10)?,
        round: row.get(11)?,
    })
}
