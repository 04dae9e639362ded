//! What a training job does, fixed when it first starts, so that it ends the same however often it
//! is stopped: which samples, which settings. Holds no sample's content.

use super::settings::{GateSettings, TrainSettings};
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::fs::{Access, read_limited, write_atomic_bytes};
use crate::npy::read_npz_bytes;
use crate::pack::IoSpec;
use crate::runtime::Engine;
use crate::shape::Array;
use crate::store::{
    Input, Label as Right, Part, Sample, SampleHash, SampleInfo, Store, TrainingSet,
};
use crate::train::data::{Collector, Dataset, LoadOptions, Place, Row, SampleInput, StoredPicture};
use crate::train::{InstantHead, TargetChoice, Task, TrainOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// In a job's folder: the assignment.
pub const ASSIGNMENT: &str = "assignment.json";
/// In a job's folder: the run's state.
pub const CHECKPOINT: &str = "checkpoint";
/// In a job's folder: the trained adapter.
pub const CANDIDATE: &str = "candidate.adapter";
/// In a job's folder: the instant head of the same samples.
pub const INSTANT: &str = "instant.adapter";
/// In a job's folder: what was measured of them.
pub const MEASURED: &str = "measured.json";

/// Longest assignment file.
const MAX_ASSIGNMENT: u64 = 64 << 20;
/// What the arrays of one sample unpack to at most.
const MAX_ARRAYS: u64 = 64 << 20;

/// One job's work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The job.
    pub job: i64,
    /// The name that is trained.
    pub name: String,
    /// The base's file.
    pub base: PathBuf,
    /// The base.
    pub fingerprint: String,
    /// The store's folder.
    pub state: PathBuf,
    /// The key of the samples.
    pub key: Option<PathBuf>,
    /// New samples to train on, by number.
    pub new: Vec<i64>,
    /// Older ones to replay.
    pub replayed: Vec<i64>,
    /// The newest sample that the generation before has learned from: held-out ones before it
    /// count as older.
    pub newest_seen: Option<i64>,
    /// Held-out ones.
    pub held: Vec<i64>,
    /// Hash over the labels and inputs' names of all of them: a label that was corrected
    /// meanwhile makes it another job.
    pub content: String,
    /// The generation to go on from and to be compared with.
    pub previous: Option<u64>,
    /// Whether all that it has learned from is among the samples: only then may an instant head of them
    /// stand for it.
    pub whole: bool,
    /// The training set's round, for [`Store::trained`].
    pub round: i64,
    /// How to train.
    pub train: TrainSettings,
    /// What will be asked of the candidate.
    pub gate: GateSettings,
}

/// The samples of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picked {
    /// New ones to train on.
    pub new: Vec<SampleInfo>,
    /// Older ones to replay.
    pub replayed: Vec<SampleInfo>,
    /// Held-out ones.
    pub held: Vec<SampleInfo>,
    /// As [`Assignment::newest_seen`].
    pub newest_seen: Option<i64>,
    /// Whether something is new, or all count as new.
    pub fresh: bool,
}

impl Picked {
    /// Those to train on, then the held-out ones.
    pub fn all(&self) -> impl Iterator<Item = &SampleInfo> {
        self.new.iter().chain(&self.replayed).chain(&self.held)
    }
}

impl Assignment {
    /// Picks the samples of `set`: those that the generation before has learned from (`seen`) as
    /// they are now (not changed after its training set, of number `round`; where that is not known
    /// they may have been) are replayed, the others are new. Where none is new, all count as new.
    pub fn pick(set: &TrainingSet, seen: &[SampleHash], round: Option<i64>) -> Picked {
        let seen: HashSet<[u8; 32]> = seen.iter().map(|h| h.0).collect();
        let known = |s: &SampleInfo| seen.contains(&s.hash.0);
        let changed = |s: &SampleInfo| round.is_none_or(|round| s.round > round);
        let newest_seen = set.train.iter().filter(|s| known(s)).map(|s| s.id).max();
        let (old, new): (Vec<SampleInfo>, Vec<SampleInfo>) =
            set.train.iter().cloned().partition(|s| known(s) && !changed(s));
        let fresh = !new.is_empty();
        let (new, replayed) = if fresh { (new, old) } else { (old, new) };
        Picked { new, replayed, held: set.held.clone(), newest_seen, fresh }
    }

    /// Hash over the numbers, inputs' names, labels and parts of samples.
    pub fn content_hash<'a>(samples: impl IntoIterator<Item = &'a SampleInfo>) -> String {
        let mut hasher = blake3::Hasher::new();
        for s in samples {
            hasher.update(&s.id.to_le_bytes());
            hasher.update(&s.hash.0);
            hasher.update(&[u8::from(s.part == Part::HoldOut)]);
            let label = s.label.as_deref().unwrap_or("");
            hasher.update(&(label.len() as u64).to_le_bytes());
            hasher.update(label.as_bytes());
            // A corrected label that is no class shows here alone.
            hasher.update(&s.round.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The file in a job's folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::failed(format!("the assignment can't be written: {e}")))?;
        write_atomic_bytes(&folder.join(ASSIGNMENT), Access::Private, &bytes)
    }

    /// Reads the file in a job's folder; `None` if there is none.
    pub fn read(folder: &Path) -> Result<Option<Assignment>> {
        let path = folder.join(ASSIGNMENT);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_limited(&path, MAX_ASSIGNMENT)?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::bad_input(format!("{}: {e}", path.display())))
    }

    /// Whether `base` is the one that it is for.
    pub fn is_for(&self, base: &BaseFingerprint) -> bool {
        self.fingerprint == base.to_string()
    }

    /// Decides everything random of the job.
    pub fn seed(&self) -> u64 {
        self.train.seed ^ self.job.unsigned_abs()
    }

    /// The run's options. `memory`: bytes of the whole process.
    pub fn options(&self, folder: &Path, task: Task, memory: u64) -> TrainOptions {
        let t = &self.train;
        TrainOptions {
            instant: if t.instant { InstantHead::Start } else { InstantHead::Off },
            name: self.name.clone(),
            kind: t.kind,
            rank: t.rank,
            alpha: t.alpha,
            targets: TargetChoice::parse(&t.targets),
            task,
            learning_rate: t.learning_rate,
            head_rate: t.head_rate,
            epochs: Some(t.epochs),
            min_steps: t.min_steps,
            batch: t.batch,
            ram: Some(memory),
            threads: t.threads,
            seed: self.seed(),
            holdout: 0.0,
            clip: (t.clip > 0.0).then_some(t.clip),
            checkpoint: Some(folder.join(CHECKPOINT)),
            checkpoint_every: t.checkpoint_every,
            resume: true,
            max_tokens: (t.max_tokens > 0).then_some(t.max_tokens),
            warm_start: t.warm_start,
            replay: t.replay,
            keep: t.keep,
            keep_knowledge: t.keep_knowledge.unwrap_or_default(),
            ..TrainOptions::default()
        }
    }
}

/// Samples of the store as a data set, labelled for `task`, else for what their labels look like.
/// Pictures stay in the store until they are needed.
///
/// # Errors
/// A sample that is gone (usage, `NotFound`); labels of several sorts (bad input).
pub fn dataset(store: &Store, engine: &Engine, ids: &[i64], task: Option<Task>) -> Result<Dataset> {
    let options = LoadOptions { task, ..LoadOptions::default() };
    let mut rows = Collector::new(Path::new("the samples"), &options);
    for &id in ids {
        let sample = store.sample(id)?;
        let place = Place::named(format!("sample {id}"));
        let label = sample.label.clone();
        let label = label.ok_or_else(|| Error::bad_input("it has no label").at(&place))?;
        let fields = fields(label).map_err(|e| e.at(&place))?;
        let input = input(store, engine, sample).map_err(|e| e.at(&place))?;
        rows.add(input, Row::typed(&fields), None, place)?;
    }
    Ok(rows.finish()?.on(engine.base()))
}

/// A stored label as the fields of a row.
pub fn fields(label: Right) -> Result<Map<String, Value>> {
    let one = |name: &str, value: Value| Map::from_iter([(name.to_string(), value)]);
    Ok(match label {
        Right::Class(name) => one("label", name.into()),
        Right::Values(values) => one("values", values.into()),
        Right::Answer(text) => serde_json::from_str(&text)
            .map_err(|e| Error::bad_input(format!("its label can't be read: {e}")))?,
    })
}

fn input(store: &Store, engine: &Engine, sample: Sample) -> Result<SampleInput> {
    Ok(match sample.input {
        Input::Text(text) => SampleInput::Text(text),
        Input::File { .. } => {
            let (store, id) = (store.clone(), sample.info.id);
            SampleInput::Stored(StoredPicture::new(sample.info.hash.0, move || {
                match store.sample_input(id)? {
                    Input::File { bytes, .. } => Ok(bytes),
                    _ => Err(Error::failed(format!("sample {id} is no picture any more"))),
                }
            }))
        }
        Input::Tensors(npz) => {
            let arrays = read_npz_bytes(&npz, MAX_ARRAYS)?;
            let inputs = engine.inputs();
            let arrays = arrays.into_iter().map(|(name, array)| {
                let spec = inputs.iter().find(|s| s.name == name);
                let array = without_batch(spec, array)?;
                Ok((name, array))
            });
            SampleInput::Arrays(arrays.collect::<Result<_>>()?)
        }
    })
}

/// Samples come with a batch axis of 1, as requests have it, or without.
fn without_batch(spec: Option<&IoSpec>, array: Array) -> Result<Array> {
    let rank = spec.map(|s| s.dims.len());
    match array.shape() {
        [1, rest @ ..] if rank == Some(array.shape().len()) => {
            Array::new(rest.to_vec(), array.data().clone())
        }
        _ => Ok(array),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewSample, Rules};

    /// What was corrected after a generation learned from it is new to it, whatever became of the
    /// candidates between.
    #[test]
    fn corrections_are_new_and_what_is_older_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let rules = Rules { hold_out: 0.0, ..Rules::default() };
        let options = crate::store::Options { rules, ..Default::default() };
        let store = Store::open_with(dir.path(), options).unwrap();
        let say = |text: &str, label: &str| {
            let sample = NewSample {
                name: "home".into(),
                input: Input::Text(text.into()),
                label: Some(Right::Class(label.into())),
                predicted: None,
                generation: None,
                source: "me".into(),
                time: 1,
                consent: true,
            };
            store.add_sample(&sample).unwrap()
        };
        let ids = |infos: &[SampleInfo]| infos.iter().map(|s| s.id).collect::<Vec<_>>();
        let (one, two) = (say("a", "x"), say("b", "y"));
        let first = store.training_set("home").unwrap();
        let (seen, round) = (first.manifest(), Some(first.round));
        let picked = Assignment::pick(&first, &[], None);
        assert_eq!((ids(&picked.new), picked.newest_seen), (vec![one.id, two.id], None));
        // Nothing is new: all is trained on, and what is seen is known all the same.
        let picked = Assignment::pick(&first, &seen, round);
        assert_eq!((ids(&picked.new), picked.newest_seen), (vec![one.id, two.id], Some(two.id)));
        say("a", "y");
        for _ in 0..2 {
            let later = store.training_set("home").unwrap();
            store.trained("home", later.round).unwrap();
            let picked = Assignment::pick(&later, &seen, round);
            assert_eq!((ids(&picked.new), ids(&picked.replayed)), (vec![one.id], vec![two.id]));
            assert_eq!(picked.newest_seen, Some(two.id));
        }
    }
}
