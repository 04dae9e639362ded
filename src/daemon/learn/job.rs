//! One training job: its assignment, its child, the verdict, the promotion.

use super::assignment::{Assignment, CANDIDATE, CHECKPOINT, MEASURED};
use super::child::{Child, Ended};
use super::conditions::{Need, Phase, all_met, conditions, unmet};
use super::gate::{Measured, Verdict, judge};
use super::learner::{JobStatus, Shared};
use super::limit::Limit;
use crate::adapter::{Adapter, MAX_FILE};
use crate::error::{Cause, Error, Result};
use crate::fs::read_limited;
use crate::store::{Job, JobState, Origin, SampleHash, SampleInfo};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// Between two looks at the child.
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks at the conditions while it runs.
const JUDGE: Duration = Duration::from_millis(500);
/// Longest file of what was measured.
const MAX_MEASURED: u64 = 64 << 20;

/// How a job's run ended.
enum Outcome {
    /// The child has trained and measured.
    Measured,
    /// Why it was stopped, to go on later.
    Paused(String),
    /// Its samples were forgotten or somebody took it back: nothing is left to do.
    Gone,
    /// The learner stops.
    Shutdown,
}

/// What a job works on, with what its verdict needs.
struct Prepared {
    work: Assignment,
    manifest: Vec<SampleHash>,
}

impl Shared {
    /// Does a job's work as far as conditions allow. Whatever fails is recorded with the job and
    /// backed off; serving never notices.
    pub(super) fn train(&self, job: Job) {
        let name = job.name.clone();
        let result = self.do_job(&job);
        self.board().job = None;
        if let Err(e) = result {
            if matches!(e.cause(), Some(Cause::Forgotten | Cause::Moved)) {
                self.tell("train", Some(&name), &format!("job {} ends: {e}", job.id), None);
                return;
            }
            let most = self.settings().train.max_attempts;
            let state = self.store.fail_job(job.id, &e.to_string(), most);
            let what = match state {
                Ok(JobState::Failed) => "is given up",
                _ => "is tried again later",
            };
            self.mark_trained(&name);
            self.tell(
                "train",
                Some(&name),
                &format!("job {} failed and {what}: {e}", job.id),
                None,
            );
        }
    }

    /// The interval to the next training starts now.
    fn mark_trained(&self, name: &str) {
        let steady = self.now().steady;
        self.board().trained.insert(name.into(), steady);
    }

    fn do_job(&self, job: &Job) -> Result<()> {
        let folder = self.store.make_job_folder(job.id)?;
        let Some(prepared) = self.prepare(job, &folder)? else {
            self.store.update_job(job.id, JobState::Done, Some(&json!({ "trained": false })))?;
            self.mark_trained(&job.name);
            return Ok(());
        };
        let asked = job.reason == super::learner::ASKED;
        match self.supervise(&prepared.work, &folder, asked)? {
            Outcome::Measured => self.decide(&prepared, &folder),
            Outcome::Paused(why) => {
                self.store.update_job(job.id, JobState::Paused, None)?;
                let text = format!("job {} stopped, to go on from its checkpoint: {why}", job.id);
                self.tell("train", Some(&job.name), &text, None);
                Ok(())
            }
            Outcome::Shutdown => self.store.update_job(job.id, JobState::Paused, None),
            Outcome::Gone => Ok(()),
        }
    }

    /// The job's assignment: the one that it began with where that still holds, else a new one.
    /// `None` where there is nothing to train on.
    fn prepare(&self, job: &Job, folder: &Path) -> Result<Option<Prepared>> {
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
        for file in [CHECKPOINT, CANDIDATE, MEASURED] {
            remove(&folder.join(file))?;
        }
        let set = self.store.training_set(&job.name)?;
        let seen = match active {
            Some(generation) => self.store.manifest(&job.name, generation)?,
            None => vec![],
        };
        let [new, replayed, held] = Assignment::pick(&set, &seen);
        if new.is_empty() || held.is_empty() {
            let text = format!(
                "job {} has nothing to do: {} samples to train on, {} held out",
                job.id,
                new.len(),
                held.len()
            );
            self.tell("train", Some(&job.name), &text, None);
            return Ok(None);
        }
        let all = || new.iter().chain(&replayed).chain(&held);
        let ids = |part: &[SampleInfo]| part.iter().map(|s| s.id).collect::<Vec<i64>>();
        let settings = self.settings();
        let work = Assignment {
            job: job.id,
            name: job.name.clone(),
            base: base.path().to_path_buf(),
            fingerprint: base.fingerprint().to_string(),
            state: self.store.root().to_path_buf(),
            key: self.place.key.clone(),
            new: ids(&new),
            replayed: ids(&replayed),
            held: ids(&held),
            content: Assignment::content_hash(all()),
            previous: active,
            round: set.round,
            train: settings.train,
            gate: settings.gate,
        };
        let manifest: Vec<SampleHash> = new.iter().chain(&replayed).map(|s| s.hash).collect();
        // Before anything learns from them: 'forget' goes by it.
        let seen: Vec<SampleHash> = all().map(|s| s.hash).collect();
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

    /// The samples of an assignment, in its order; `None` where one is gone.
    fn infos(&self, work: &Assignment) -> Result<Option<Vec<SampleInfo>>> {
        let filter = crate::store::Filter { name: Some(work.name.clone()), ..Default::default() };
        let known = self.store.samples(&filter)?;
        let kept = known.into_iter().filter(|s| s.state == crate::store::SampleState::Kept);
        let by_id: std::collections::HashMap<i64, SampleInfo> = kept.map(|s| (s.id, s)).collect();
        let ids = work.new.iter().chain(&work.replayed).chain(&work.held);
        Ok(ids.map(|id| by_id.get(id).cloned()).collect())
    }

    /// Runs the child until it ends or conditions do.
    fn supervise(&self, work: &Assignment, folder: &Path, asked: bool) -> Result<Outcome> {
        let program = match &self.place.program {
            Some(program) => program.clone(),
            None => std::env::current_exe()
                .map_err(|e| Error::failed(format!("this program's own file is not found: {e}")))?,
        };
        let memory = work.train.memory_mib << 20;
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
        let mapped = size(&work.base).saturating_add(size(&program));
        let limit = Limit::choose(&self.place.root, work.job, memory, mapped);
        let words = limit.sentence();
        let progress = json!({ "limit": limit, "new": work.new.len(),
            "replayed": work.replayed.len(), "held_out": work.held.len() });
        self.store.update_job(work.job, JobState::Running, Some(&progress))?;
        let mut child = Child::start(&program, folder, limit, memory)?;
        let mut why: Option<String> = None;
        let mut judged = Instant::now();
        let need = Need { asked, ..Need::default() };
        loop {
            let heard = child.heard();
            self.board().job = Some(JobStatus {
                job: work.job,
                name: work.name.clone(),
                pid: child.id(),
                step: heard.step,
                steps: heard.steps,
                loss: heard.loss,
                measuring: heard.measuring,
                limit: words.clone(),
            });
            if let Some(ended) = child.ended()? {
                return match (ended, why) {
                    (Ended::Done, _) => {
                        let peak = child.heard().peak;
                        let progress = json!({ "limit": words, "steps": child.heard().steps,
                            "peak_rss_bytes": peak });
                        self.store.update_job(work.job, JobState::Running, Some(&progress))?;
                        Ok(Outcome::Measured)
                    }
                    (Ended::Stopped, _) if self.board().stop => Ok(Outcome::Shutdown),
                    (Ended::Stopped, why) => {
                        Ok(Outcome::Paused(why.unwrap_or_else(|| "it was told to stop".into())))
                    }
                    // It would have ended anyway; if it fails by itself, it does so again.
                    (Ended::Failed(failure), Some(why)) => {
                        Ok(Outcome::Paused(format!("{why} (the training process: {failure})")))
                    }
                    (Ended::Failed(why), None) => {
                        Err(Error::failed(format!("the training process: {why}")))
                    }
                };
            }
            if why.is_none() && self.board().stop {
                why = Some("the daemon stops".into());
            }
            if why.is_none() && judged.elapsed() >= JUDGE {
                judged = Instant::now();
                let all = conditions(&need, &self.readings(), &self.settings(), Phase::Training);
                if !all_met(&all) {
                    why = Some(unmet(&all));
                }
                let state = self.store.job(work.job)?.map(|j| j.state);
                if !state.is_some_and(JobState::is_open) {
                    child.kill();
                    drop(child);
                    return Ok(Outcome::Gone);
                }
            }
            if why.is_some() {
                child.stop();
            }
            self.chores();
            self.pause(LOOK);
        }
    }

    /// A short wait that feedback and stopping cut shorter.
    fn pause(&self, time: Duration) {
        if self.board().stop {
            std::thread::sleep(time);
        } else {
            self.wait(time);
            self.board().woken = false;
        }
    }

    /// Judges what was measured, stores the candidate with the verdict, and promotes it if it is
    /// proven.
    fn decide(&self, prepared: &Prepared, folder: &Path) -> Result<()> {
        let work = &prepared.work;
        let bytes = read_limited(&folder.join(MEASURED), MAX_MEASURED)?;
        let measured: Measured = serde_json::from_slice(&bytes)
            .map_err(|e| Error::bad_input(format!("what was measured can't be read: {e}")))?;
        let bytes = read_limited(&folder.join(CANDIDATE), MAX_FILE)?;
        let adapter = Adapter::from_bytes(&bytes)?;
        let verdict = judge(&measured, &work.gate, work.seed());
        let grew = work.train.warm_start || work.train.keep > 0.0;
        let origin = Origin {
            job: Some(work.job),
            parent: work.previous.filter(|_| grew),
            manifest: prepared.manifest.clone(),
            verdict: serde_json::to_value(&verdict).ok(),
        };
        let added = self.store.add(&work.name, &adapter, &origin)?;
        self.store.trained(&work.name, work.round)?;
        let promoted = verdict.passed && self.promote(work, added.generation, &verdict)?;
        if !verdict.passed {
            let text =
                format!("generation {} is not promoted: {}", added.generation, verdict.sentence);
            self.tell("gate", Some(&work.name), &text, origin.verdict.clone());
        }
        let job = self.store.job(work.job)?;
        let mut progress = job.and_then(|j| j.progress).unwrap_or_else(|| json!({}));
        if let Some(map) = progress.as_object_mut() {
            map.insert("generation".into(), json!(added.generation));
            map.insert("promoted".into(), json!(promoted));
            map.insert("verdict".into(), json!(verdict.sentence));
        }
        self.store.update_job(work.job, JobState::Done, Some(&progress))?;
        self.mark_trained(&work.name);
        self.board().verdicts.insert(work.name.clone(), verdict);
        for file in [CHECKPOINT, CANDIDATE, MEASURED] {
            remove(&folder.join(file))?;
        }
        Ok(())
    }

    /// Makes a proven generation the active one, on trial, if the one that it was compared with
    /// still is.
    fn promote(&self, work: &Assignment, generation: u64, verdict: &Verdict) -> Result<bool> {
        let trial = self.settings().trial.duration();
        let on_trial = (!trial.is_zero()).then_some(trial);
        let name = work.name.as_str();
        match self.store.activate(name, generation, Some(work.previous), on_trial) {
            Ok(_) => {}
            Err(e) if e.cause() == Some(Cause::Moved) => {
                let text = format!("generation {generation} is proven but not promoted: {e}");
                self.tell("gate", Some(name), &text, None);
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
        if !self.refresh(name) {
            self.store.rollback(name, "it can't be served")?;
            self.refresh(name);
            return Ok(false);
        }
        if on_trial.is_some() {
            let until = self.now().steady + trial;
            self.board().trials.insert(name.into(), (generation, until));
        }
        let text = format!("generation {generation} is promoted: {}", verdict.sentence);
        self.tell("promotion", Some(name), &text, serde_json::to_value(verdict).ok());
        Ok(true)
    }
}

/// One that is gone already is no error.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}
