//! The learner's thread and what others see of it.

use super::clock::{Clock, Now, Then};
use super::conditions::{Condition, Need, Phase, all_met, conditions, unmet};
use super::gate::Verdict;
use super::readings::{Reader, Readings};
use super::settings::Settings;
use super::trials::{Again, OnTrial};
use super::watch::Watched;
use crate::daemon::Serving;
use crate::error::{Error, Result};
use crate::host::Root;
use crate::store::{Job, JobState, Reason, Store};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest sleep: what another process changed in the store is seen by then.
const LONGEST: Duration = Duration::from_secs(3600);
/// How often the end of the thread is looked for.
const END_LOOK: Duration = Duration::from_millis(10);

/// Seconds that rates of errors are stated for: 30 days.
pub(super) const MONTH: u64 = 30 * 86_400;

/// Where the learner lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// The system whose `/proc` and `/sys` are read.
    pub root: Root,
    /// The program that is called as training child; `None`: this one.
    pub program: Option<PathBuf>,
    /// The key file of the store, which the child opens too.
    pub key: Option<PathBuf>,
}

/// How far a job is, for `status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobStatus {
    /// The job.
    pub job: i64,
    /// The name that it trains.
    pub name: String,
    /// The child's process number.
    pub pid: u32,
    /// Steps done.
    pub step: u64,
    /// Steps to do; 0: not known yet.
    pub steps: u64,
    /// The last loss.
    pub loss: Option<f64>,
    /// Whether the candidate is measured now.
    pub measuring: bool,
    /// How its memory is limited, in words.
    pub limit: String,
}

/// What is known of a name, for `status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NameStatus {
    /// The name.
    pub name: String,
    /// When it will be trained: every condition with value, threshold, verdict, sentence.
    pub conditions: Vec<Condition>,
    /// Whether all are met.
    pub met: bool,
    /// Those that are not, in words; empty: all are.
    pub missing: String,
    /// Seconds that its generation on trial still has to serve.
    pub trial_left: Option<u64>,
    /// What the watch says of its active generation.
    pub watch: Option<Watched>,
    /// The last verdict of the gate since the daemon started.
    pub verdict: Option<Verdict>,
}

/// What the learner says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LearnStatus {
    /// The job that trains now.
    pub job: Option<JobStatus>,
    /// Every name.
    pub names: Vec<NameStatus>,
    /// What it waits for, in words.
    pub waiting: String,
}

/// What the thread and its callers share.
#[derive(Default)]
pub(super) struct Board {
    pub stop: bool,
    /// Something changed since the thread looked last.
    pub woken: bool,
    /// Names whose live feedback changed.
    pub judged: BTreeSet<String>,
    pub job: Option<JobStatus>,
    pub waiting: String,
    pub trials: BTreeMap<String, OnTrial>,
    /// Names whose generation is to be tried again.
    pub again: BTreeMap<String, Again>,
    pub watched: BTreeMap<String, Watched>,
    /// The watch's last look at a name's generation.
    pub looks: BTreeMap<String, (u64, Option<usize>)>,
    pub verdicts: BTreeMap<String, Verdict>,
    /// When a name's last training ended, on the steady clock.
    pub trained: BTreeMap<String, Duration>,
}

pub(super) struct Shared {
    pub store: Store,
    pub settings: Arc<RwLock<Settings>>,
    pub serving: Arc<dyn Serving>,
    pub place: Place,
    pub reader: Mutex<Reader>,
    pub clock: Mutex<Clock>,
    pub board: Mutex<Board>,
    pub bell: Condvar,
}

/// Learns in a thread of its own until it is stopped or dropped.
pub struct Learner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Learner {
    /// Goes back from trials that a restart interrupted, pauses jobs that it interrupted, and
    /// starts the thread.
    ///
    /// # Errors
    /// Settings that make no sense (usage); what the store says.
    pub fn start(
        store: Store,
        settings: Arc<RwLock<Settings>>,
        serving: Arc<dyn Serving>,
        place: Place,
    ) -> Result<Learner> {
        settings.read().unwrap_or_else(PoisonError::into_inner).validate()?;
        let reader = Mutex::new(Reader::new(place.root.clone()));
        let shared = Arc::new(Shared {
            store,
            settings,
            serving,
            place,
            reader,
            clock: Mutex::new(Clock::new()),
            board: Mutex::default(),
            bell: Condvar::new(),
        });
        shared.recover()?;
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("learner".into())
            .spawn(move || own.run())
            .map_err(|e| Error::failed(format!("the learner's thread can't be started: {e}")))?;
        Ok(Learner { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Conditions, the current job, trials, the watch, the last verdicts. Errors: what the store
    /// says.
    pub fn status(&self) -> Result<LearnStatus> {
        self.shared.status()
    }

    /// The job that trains now, as far as it is.
    pub fn running(&self) -> Option<JobStatus> {
        self.shared.board().job.clone()
    }

    /// The gate's last verdict of each name since the daemon started.
    pub fn verdicts(&self) -> BTreeMap<String, Verdict> {
        self.shared.board().verdicts.clone()
    }

    /// Looks at once whether there is something to do.
    pub fn wake(&self) {
        self.shared.ring(|board| board.woken = true);
    }

    /// Queues a job for `name` that waits neither for samples, hours nor idleness (but for heat,
    /// power and memory); gives its number.
    ///
    /// # Errors
    /// No such name (usage).
    pub fn train_now(&self, name: &str) -> Result<i64> {
        self.shared.store.name(name)?;
        let job = self.shared.store.queue_job(name, Reason::Asked)?;
        self.wake();
        Ok(job)
    }

    /// After the store has counted an answer of `name` as right or wrong: the watch may go back.
    /// Doesn't wait for that.
    pub fn outcome(&self, name: &str) {
        self.shared.ring(|board| {
            board.judged.insert(name.to_string());
            board.woken = true;
        });
    }

    /// After something was forgotten: what was said of it is told no more.
    pub fn forgotten(&self) {
        self.shared.ring(|board| {
            board.verdicts.clear();
            board.woken = true;
        });
    }

    /// Tells the training child, which writes its checkpoint, and the thread to end.
    pub fn end(&self) {
        self.shared.ring(|board| board.stop = true);
    }

    /// As [`Learner::end`], waits for them, and ends trials.
    pub fn stop(&self) {
        self.stop_until(None);
    }

    /// As [`Learner::stop`], but waits no longer than that; `false` if the thread goes on. Its trials
    /// end at the next start.
    pub fn stop_until(&self, until: Option<Instant>) -> bool {
        self.end();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return true };
        while !thread.is_finished() {
            if until.is_some_and(|until| Instant::now() >= until) {
                tracing::warn!("stopped while something was learned");
                return false;
            }
            std::thread::sleep(END_LOOK);
        }
        // A thread that panicked has said so itself.
        if let Err(e) = self.shared.store.end_interrupted_trials(true) {
            tracing::error!("trials can't be ended: {e}");
        }
        true
    }
}

impl Drop for Learner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What to do next.
enum Next {
    Train(Job),
    Wait(Duration, String),
}

impl Shared {
    pub fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, change: impl FnOnce(&mut Board)) {
        change(&mut self.board());
        self.bell.notify_all();
    }

    pub fn settings(&self) -> Settings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn now(&self) -> Now {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).now()
    }

    pub fn readings(&self) -> Readings {
        let now = self.now();
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.read(self.serving.as_ref(), now)
    }

    /// Records an event; one that can't be recorded is logged.
    pub fn tell(
        &self,
        kind: &str,
        name: Option<&str>,
        text: &str,
        data: Option<serde_json::Value>,
    ) {
        tracing::info!(kind, name, "{text}");
        if let Err(e) = self.store.event(kind, name, text, data.as_ref()) {
            tracing::error!("an event can't be recorded: {e}");
        }
    }

    /// Serves what the store calls active.
    pub fn refresh(&self, name: &str) -> bool {
        match self.serving.refresh(name) {
            Ok(()) => true,
            Err(e) => {
                self.tell(
                    "serve",
                    Some(name),
                    &format!("what is active can't be served: {e}"),
                    None,
                );
                false
            }
        }
    }

    fn run(&self) {
        loop {
            if self.board().stop {
                return;
            }
            self.board().woken = false;
            self.adopt_trials();
            self.chores();
            match self.next() {
                Ok(Next::Train(job)) => {
                    self.board().waiting = String::new();
                    self.train(job);
                }
                Ok(Next::Wait(time, why)) => {
                    self.board().waiting = why;
                    self.wait(time);
                }
                Err(e) => {
                    tracing::error!("the learner can't look into the store: {e}");
                    self.board().waiting = e.to_string();
                    self.wait(Duration::from_secs(self.settings().conditions.look_seconds));
                }
            }
        }
    }

    /// Waits until something changes, at most `time`.
    pub fn wait(&self, time: Duration) {
        let board = self.board();
        let quiet = |b: &mut Board| !b.stop && !b.woken;
        let waited = self.bell.wait_timeout_while(board, time, quiet);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// What is due whether it trains or not: trials that end, feedback, a clock that jumped.
    pub fn chores(&self) {
        let now = {
            let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
            let now = clock.now();
            if let Some(jump) = clock.jumped(now) {
                drop(clock);
                self.tell("clock", None, &format!("the clock jumped by {jump} s"), None);
            }
            now
        };
        self.end_trials(now);
        let judged = std::mem::take(&mut self.board().judged);
        for name in judged {
            if let Err(e) = self.look_after(&name) {
                tracing::error!("the watch on '{name}': {e}");
            }
        }
    }

    /// What is known of the need to train `name`.
    fn need(&self, name: &str, jobs: &[Job], now: Now) -> Result<Need> {
        let open = jobs.iter().find(|j| j.name == name && j.state.is_open());
        let counts = self.store.counts(name)?;
        let steady = self.board().trained.get(name).copied();
        let ended = jobs.iter().filter(|j| j.name == name && !j.state.is_open());
        let wall = ended.map(|j| j.updated).max();
        let then = wall.map(|wall| Then { wall, steady });
        let since_last = then.map(|then| now.since(then));
        let closed = jobs.iter().rev().filter(|j| j.name == name && !j.state.is_open());
        let failed = closed.take_while(|j| j.state == JobState::Failed).count();
        let closed = jobs.iter().rev().filter(|j| j.name == name && j.state == JobState::Done);
        let promoted =
            |j: &&Job| j.progress.as_ref().map(|p| p.get("promoted") == Some(&true.into()));
        let refused = closed.take_while(|j| promoted(j) == Some(false)).count();
        Ok(Need {
            new: counts.new,
            unlearned: counts.unlearned,
            refused: u32::try_from(refused).unwrap_or(u32::MAX),
            failed: u32::try_from(failed).unwrap_or(u32::MAX),
            trial_due: self.board().again.contains_key(name),
            set_missing: self.settings().gate.retention_data.is_some_and(|set| !set.exists()),
            held: counts.held,
            since_last,
            asked: open.is_some_and(|job| job.reason == Reason::Asked),
            open: open.is_some(),
        })
    }

    fn next(&self) -> Result<Next> {
        let now = self.now();
        let settings = self.settings();
        let readings = self.readings();
        let jobs = self.store.jobs()?;
        let mut wait = LONGEST;
        let mut why = vec![];
        let mut open: Vec<&Job> = jobs.iter().filter(|j| j.state.is_open()).collect();
        open.sort_by_key(|j| (j.reason != Reason::Asked, j.state != JobState::Paused, j.id));
        for job in open {
            let rest = job.not_before.saturating_sub(now.wall);
            // A clock that was set back must not make a backoff longer than the longest.
            if rest > 0 && rest <= 6 * 3600 {
                wait = wait.min(Duration::from_secs(rest));
                why.push(format!("job {} waits {rest} s after a failure", job.id));
                continue;
            }
            let need = self.need(&job.name, &jobs, now)?;
            let all = conditions(&need, &readings, &settings, Phase::Waiting);
            if all_met(&all) {
                self.store.update_job(job.id, JobState::Running, None)?;
                return Ok(Next::Train(job.clone()));
            }
            wait = wait.min(Duration::from_secs(settings.conditions.look_seconds));
            why.push(format!("job {} waits: {}", job.id, unmet(&all)));
        }
        for entry in self.store.names()? {
            if jobs.iter().any(|j| j.name == entry.name && j.state.is_open()) {
                continue;
            }
            let need = self.need(&entry.name, &jobs, now)?;
            let all = conditions(&need, &readings, &settings, Phase::Waiting);
            if all_met(&all) {
                let reason = format!("{} new samples", need.new);
                let id = self.store.queue_job(&entry.name, reason.as_str())?;
                self.store.update_job(id, JobState::Running, None)?;
                if let Some(job) = self.store.job(id)? {
                    return Ok(Next::Train(job));
                }
            }
            why.push(format!("'{}': {}", entry.name, unmet(&all)));
            // Only feedback, which wakes the thread, brings samples; all else is looked at.
            let unmet_of = |name: &str| all.iter().any(|c| c.name == name && !c.met);
            if ["enabled", "new samples", "held-out samples"].into_iter().any(unmet_of) {
                continue;
            }
            let interval = settings.conditions.min_interval_seconds.max(need.rest());
            let interval = Duration::from_secs(interval);
            let left = interval.saturating_sub(need.since_last.unwrap_or(interval));
            let look = Duration::from_secs(settings.conditions.look_seconds);
            wait = wait.min(if left.is_zero() { look } else { left });
        }
        let due = {
            let board = self.board();
            let again = board.again.values().map(|again| again.due);
            board.trials.values().map(|on| on.until).chain(again).min()
        };
        if let Some(until) = due {
            wait = wait.min(until.saturating_sub(now.steady));
        }
        Ok(Next::Wait(wait, why.join("; ")))
    }

    fn status(&self) -> Result<LearnStatus> {
        let now = self.now();
        let (settings, readings, jobs) = (self.settings(), self.readings(), self.store.jobs()?);
        let running = self.board().job.clone();
        let mut names = vec![];
        for entry in self.store.names()? {
            let need = self.need(&entry.name, &jobs, now)?;
            let trains = running.as_ref().is_some_and(|j| j.name == entry.name);
            let phase = if trains { Phase::Training } else { Phase::Waiting };
            let conditions = conditions(&need, &readings, &settings, phase);
            let board = self.board();
            let trial = board.trials.get(&entry.name);
            names.push(NameStatus {
                met: all_met(&conditions),
                missing: unmet(&conditions),
                conditions,
                trial_left: trial.map(|on| on.until.saturating_sub(now.steady).as_secs()),
                watch: board.watched.get(&entry.name).cloned(),
                verdict: board.verdicts.get(&entry.name).cloned(),
                name: entry.name,
            });
        }
        let waiting = self.board().waiting.clone();
        Ok(LearnStatus { job: running, names, waiting })
    }
}
