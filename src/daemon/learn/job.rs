//! One training job: its assignment, its child, the verdict, the promotion.

use super::assignment::{Assignment, CANDIDATE, CHECKPOINT, INSTANT, MEASURED};
use super::child::{Child, Ended, listen};
use super::conditions::{Need, Phase, all_met, conditions, unmet};
use super::gate::{Look, Reference, Verdict, allowance, judge};
use super::learner::{JobStatus, MONTH, Shared};
use super::limit::Limit;
use super::prepare::{Prepared, remove};
use super::settings::GateSettings;
use super::worker::Found;
use crate::adapter::{Adapter, MAX_FILE};
use crate::error::{Cause, Error, Result};
use crate::fs::read_limited;
use crate::store::{Job, JobState, Origin, Reason, Why};
use serde_json::json;
use std::path::Path;
use std::sync::Mutex;
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
    /// Some samples went into quarantine: it begins anew without them.
    Again,
    /// The learner stops.
    Shutdown,
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
                let open = matches!(self.store.job(job.id), Ok(Some(j)) if j.state.is_open());
                let what = if open { "begins anew" } else { "ends" };
                self.tell("train", Some(&name), &format!("job {} {what}: {e}", job.id), None);
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
        let asked = job.reason == Reason::Asked;
        match self.supervise(job, &prepared.work, &folder, asked)? {
            Outcome::Measured => self.decide(&prepared, &folder),
            Outcome::Paused(why) => {
                self.store.update_job(job.id, JobState::Paused, None)?;
                let text = format!("job {} stopped, to go on from its checkpoint: {why}", job.id);
                self.tell("train", Some(&job.name), &text, None);
                Ok(())
            }
            Outcome::Shutdown => self.store.update_job(job.id, JobState::Paused, None),
            Outcome::Gone => Ok(()),
            Outcome::Again => self.store.update_job(job.id, JobState::Queued, None),
        }
    }

    /// Runs the child until it ends or conditions do.
    fn supervise(
        &self,
        job: &Job,
        work: &Assignment,
        folder: &Path,
        asked: bool,
    ) -> Result<Outcome> {
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
        let (mut told, mut failures) = (0, job.attempts);
        loop {
            let heard = child.heard();
            for note in heard.notes.iter().skip(told) {
                self.tell("train", Some(&work.name), &format!("job {}: {note}", work.job), None);
            }
            told = heard.notes.len();
            if failures > 0 && heard.checkpoint > 0 {
                self.store.job_got_further(work.job)?;
                failures = 0;
            }
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
                    (Ended::Failed(_), _) if !child.heard().unusable.is_empty() => {
                        self.set_aside(work, &child.heard().unusable)?;
                        Ok(Outcome::Again)
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

    fn set_aside(&self, work: &Assignment, unusable: &[(i64, String)]) -> Result<()> {
        for (sample, why) in unusable {
            self.quarantine(*sample, Why::Other(format!("training can't use it: {why}")))?;
        }
        let text = format!(
            "job {} begins anew without {} samples that it can't use: they are in quarantine",
            work.job,
            unusable.len()
        );
        self.tell("train", Some(&work.name), &text, None);
        Ok(())
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

    /// Judges what was measured: what was trained, which must surpass what answers today, else the instant
    /// head of the same samples. Gives the file of the one that counts, its verdict, and the other's where
    /// that says more.
    fn judge(&self, work: &Assignment, found: &Found) -> Result<(&'static str, Verdict, String)> {
        let now = self.now().wall;
        let generations = self.store.generations(&work.name)?;
        let looks = generations.iter().filter(|g| g.job.is_some());
        let earlier = looks.filter(|g| g.created.saturating_add(MONTH) > now).count() as u64;
        let gain = allowance(work.gate.false_promotions, earlier) / found.tests();
        let missing = || Error::bad_input("what was measured is not whole");
        let trained = found.trained.as_ref().ok_or_else(missing)?;
        let no_worse = found.instant.is_none().then_some(gain);
        let verdict = judge(trained, &work.gate, Look { gain, no_worse }, work.seed());
        let Some(instant) = found.instant.as_ref().filter(|_| !verdict.passed) else {
            return Ok((CANDIDATE, verdict, String::new()));
        };
        let head = judge(instant, &work.gate, Look { gain, no_worse: Some(gain) }, work.seed());
        if !head.passed {
            let why = match verdict.reference {
                Reference::Instant => {
                    format!(
                        "; nor is the instant head, which it is compared with: {}",
                        head.sentence
                    )
                }
                _ => format!("; nor is the instant head: {}", head.sentence),
            };
            return Ok((CANDIDATE, verdict, why));
        }
        let why = format!(
            "; it is the instant head of the samples, what was trained did not surpass it: {}",
            verdict.sentence
        );
        Ok((INSTANT, head, why))
    }

    /// Stores the candidate with the verdict, and promotes it if it is proven.
    fn decide(&self, prepared: &Prepared, folder: &Path) -> Result<()> {
        let work = &prepared.work;
        let bytes = read_limited(&folder.join(MEASURED), MAX_MEASURED)?;
        let found: Found = serde_json::from_slice(&bytes)
            .map_err(|e| Error::bad_input(format!("what was measured can't be read: {e}")))?;
        let (file, mut verdict, more) = self.judge(work, &found)?;
        verdict.sentence.push_str(&more);
        let bytes = read_limited(&folder.join(file), MAX_FILE)?;
        let adapter = Adapter::from_bytes(&bytes)?;
        // An instant head on a generation's features has that one's layers.
        let grew = work.train.warm_start || work.train.keep > 0.0 || file == INSTANT;
        let origin = Origin {
            job: Some(work.job),
            parent: work.previous.filter(|_| grew),
            manifest: prepared.manifest.clone(),
            round: Some(work.round),
            verdict: serde_json::to_value(&verdict).ok(),
        };
        let added = self.store.add(&work.name, &adapter, &origin)?;
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
            map.insert("instant".into(), json!(file == INSTANT));
            map.insert("verdict".into(), json!(verdict.sentence));
        }
        self.store.update_job(work.job, JobState::Done, Some(&progress))?;
        // Last: what a power cut leaves unpromoted is trained again.
        self.store.trained(&work.name, work.round)?;
        self.mark_trained(&work.name);
        self.board().verdicts.insert(work.name.clone(), verdict);
        for file in [CHECKPOINT, CANDIDATE, INSTANT, MEASURED] {
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
            self.store.rollback(name, Some(Some(generation)), "it can't be served")?;
            self.refresh(name);
            return Ok(false);
        }
        self.adopt_trials();
        let text = format!("generation {generation} is promoted: {}", verdict.sentence);
        self.tell("promotion", Some(name), &text, serde_json::to_value(verdict).ok());
        Ok(true)
    }
}

/// Whether what a training child wrote, its lines and what it measured, can be read; what can is judged. For
/// tests.
pub fn heard_and_judged(lines: &[u8], measured: &[u8]) -> bool {
    listen(lines, &Mutex::default());
    let Ok(found) = serde_json::from_slice::<Found>(measured) else { return false };
    let look = Look { gain: 0.05, no_worse: Some(0.05) };
    for measured in [&found.trained, &found.instant].into_iter().flatten() {
        judge(measured, &GateSettings::default(), look, 7);
    }
    true
}
