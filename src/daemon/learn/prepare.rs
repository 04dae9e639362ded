//! What a job works on: its samples, its settings, what it goes on from.

use super::assignment::{Assignment, CANDIDATE, CHECKPOINT, INSTANT, MEASURED, Picked};
use super::learner::Shared;
use crate::error::{Cause, Error, Result};
use crate::store::{Filter, Job, SampleHash, SampleInfo, SampleState, TrainingSet, Why};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// What a job works on, with what its verdict needs.
pub(super) struct Prepared {
    pub work: Assignment,
    pub manifest: Vec<SampleHash>,
}

impl Shared {
    /// The job's assignment: the one that it began with where that still holds, else a new one.
    /// `None` where there is nothing to train on.
    pub fn prepare(&self, job: &Job, folder: &Path) -> Result<Option<Prepared>> {
        let base = self.serving.engine().base();
        let active = self.store.name(&job.name)?.active;
        // A damaged one is as good as none.
        let begun = Assignment::read(folder).unwrap_or(None);
        if let Some(work) = begun.filter(|w| w.previous == active && w.is_for(&base.fingerprint()))
        {
            let found = self.infos(&work)?;
            if let Some(infos) = found
                && Assignment::content_hash(&infos) == work.content
            {
                let manifest = infos.iter().take(work.new.len() + work.replayed.len());
                let manifest = manifest.map(|s| s.hash).collect();
                return Ok(Some(Prepared { work, manifest }));
            }
        }
        for file in [CHECKPOINT, CANDIDATE, INSTANT, MEASURED] {
            remove(&folder.join(file))?;
        }
        let (mut seen, mut round) = (vec![], None);
        if let Some(active) = active {
            seen = self.store.manifest(&job.name, active)?;
            let generations = self.store.generations(&job.name)?;
            round = generations.iter().find(|g| g.number == active).and_then(|g| g.round);
        }
        self.rotate(&job.name)?;
        let (mut set, aside) = self.training_set(&job.name, &seen)?;
        let learned: HashSet<SampleHash> = seen.iter().copied().collect();
        let there: HashSet<SampleHash> = set.train.iter().map(|s| s.hash).collect();
        let whole = !learned.is_empty() && learned.is_subset(&there);
        // What the generation before has learned from may not judge it.
        set.held.retain(|s| !learned.contains(&s.hash));
        let picked = Assignment::pick(&set, &seen, round);
        let Picked { new, replayed, held, newest_seen, fresh } = &picked;
        // What called for the job may be what was set aside.
        if new.is_empty() || held.is_empty() || (aside > 0 && !fresh) {
            let text = format!(
                "job {} has nothing to do: {} samples to train on, {} held out, {aside} set aside",
                job.id,
                new.len(),
                held.len()
            );
            self.tell("train", Some(&job.name), &text, None);
            return Ok(None);
        }
        let ids = |part: &[SampleInfo]| part.iter().map(|s| s.id).collect::<Vec<i64>>();
        let settings = self.settings();
        let work = Assignment {
            job: job.id,
            name: job.name.clone(),
            base: base.path().to_path_buf(),
            fingerprint: base.fingerprint().to_string(),
            state: self.store.root().to_path_buf(),
            key: self.place.key.clone(),
            new: ids(new),
            replayed: ids(replayed),
            newest_seen: *newest_seen,
            held: ids(held),
            content: Assignment::content_hash(picked.all()),
            previous: active,
            whole,
            round: set.round,
            train: settings.train,
            gate: settings.gate,
        };
        let manifest: Vec<SampleHash> = new.iter().chain(replayed).map(|s| s.hash).collect();
        // Before anything learns from them, and from the generation before what that has learned:
        // 'forget' goes by it.
        seen.extend(picked.all().map(|s| s.hash));
        self.store.set_job_manifest(job.id, &seen)?;
        work.write(folder)?;
        let text = format!(
            "job {} trains on {} new and {} replayed samples, {} are held out ({})",
            job.id,
            new.len(),
            replayed.len(),
            held.len(),
            job.reason
        );
        self.tell("train", Some(&job.name), &text, None);
        Ok(Some(Prepared { work, manifest }))
    }

    /// Has samples that were held out long enough learned from: those that came before the last
    /// [`GateSettings::judged`](super::settings::GateSettings::judged) candidates, so that all of these
    /// were judged by them. At most a quarter of what is held out goes at once, and never so much that too
    /// little is left; what comes in later is held out in its place.
    fn rotate(&self, name: &str) -> Result<()> {
        let gate = self.settings().gate;
        let generations = self.store.generations(name)?;
        let judged = generations.iter().rev().filter(|g| g.job.is_some());
        let Some(since) = judged.map(|g| g.created).nth(gate.judged.saturating_sub(1)) else {
            return Ok(());
        };
        let moved = self.store.rotate(name, since, gate.min_holdout)?;
        if moved > 0 {
            let text =
                format!("{moved} samples were held out long enough: they are learned from now");
            self.tell("train", Some(name), &text, None);
        }
        Ok(())
    }

    /// The samples of an assignment, in its order; `None` where one is gone.
    fn infos(&self, work: &Assignment) -> Result<Option<Vec<SampleInfo>>> {
        let filter = Filter { name: Some(work.name.clone()), ..Default::default() };
        let known = self.store.samples(&filter)?;
        let kept = known.into_iter().filter(|s| s.state == SampleState::Kept);
        let by_id: HashMap<i64, SampleInfo> = kept.map(|s| (s.id, s)).collect();
        let ids = work.new.iter().chain(&work.replayed).chain(&work.held);
        Ok(ids.map(|id| by_id.get(id).cloned()).collect())
    }

    /// The name's training set without samples of another sort than those that the active generation
    /// has learned from (`seen`), else than most: classes, numbers or other answers, texts or pictures or arrays,
    /// never both. The rest goes into quarantine, for people to look at (another task is another
    /// name's), and is counted.
    fn training_set(&self, name: &str, seen: &[SampleHash]) -> Result<(TrainingSet, usize)> {
        let mut set = self.store.training_set(name)?;
        let sort = |s: &SampleInfo| (s.kind as u8, s.form as u8);
        let seen: HashSet<SampleHash> = seen.iter().copied().collect();
        let known = set.train.iter().any(|s| seen.contains(&s.hash));
        let mut sorts: BTreeMap<(u8, u8), usize> = BTreeMap::new();
        for sample in set.train.iter().chain(&set.held) {
            if !known || seen.contains(&sample.hash) {
                *sorts.entry(sort(sample)).or_default() += 1;
            }
        }
        let Some((&most, _)) = sorts.iter().max_by_key(|(_, count)| **count) else {
            return Ok((set, 0));
        };
        let all = set.train.len() + set.held.len();
        for sample in set.train.iter().chain(&set.held).filter(|s| sort(s) != most) {
            let why = match sort(sample).0 == most.0 {
                true => Why::OddLabel,
                false => "its input is of another sort than others'".into(),
            };
            self.quarantine(sample.id, why)?;
        }
        set.train.retain(|s| sort(s) == most);
        set.held.retain(|s| sort(s) == most);
        let aside = all - set.train.len() - set.held.len();
        Ok((set, aside))
    }

    /// One that is gone meanwhile is no error.
    pub fn quarantine(&self, sample: i64, why: impl Into<Why>) -> Result<()> {
        match self.store.quarantine(sample, why) {
            Err(e) if e.cause() == Some(Cause::NotFound) => Ok(()),
            other => other,
        }
    }
}

/// One that is gone already is no error.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}
