//! The threads that run the base, and the queue before them.
//!
//! A lone question is never kept waiting for company: only where [`Pool`]'s batch size of alike
//! ones wait already do they share a run. Runs have one row or exactly that many, so that few plans
//! are built.

use super::answer::{Answerer, Prepared};
use super::ask::Raw;
use super::busy::Busy;
use super::line::{Line, Place};
use super::metrics::{Metrics, count};
use super::problem::Problem;
use super::waiting::{Reply, Waiting, nobody_waits, pair};
use crate::caught::refused_by_system;
use crate::pack::release_heap;
use crate::runtime::Stop;
use axum::body::Bytes;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often ended threads are looked for at the end.
const LOOK: Duration = Duration::from_millis(5);

/// After this long without a question the memory of the answers before is given back.
const QUIET: Duration = Duration::from_secs(5);

/// A body above so many bytes is a large question before it is read.
const LARGE_BODY: usize = 64 << 10;

/// What a worker gives back: the JSON of an answer.
pub type Outcome = Result<Bytes, Problem>;

/// Workers and their queue. Dropping it, or [`Pool::stop`], ends the threads once the queue is
/// empty.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

struct Shared {
    answerer: Arc<Answerer>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    wake: Condvar,
    limit: AtomicUsize,
    batch: AtomicUsize,
    /// Ends the runs, at the end of the daemon.
    halt: Arc<AtomicBool>,
    /// When a run last came to a step.
    stepped: Arc<Mutex<Instant>>,
}

struct State {
    waiting: Line<Job>,
    running: usize,
    idle_since: Instant,
    /// How much the workers did lately.
    busy: Busy,
    /// Whether the heap may keep memory of what was done since it was last released.
    heap_keeps: bool,
    stopped: bool,
}

/// What a worker does that finds no question.
#[derive(Debug, PartialEq)]
enum Rest {
    /// Waits for a question.
    Wait,
    /// Waits for one this long at most.
    WaitFor(Duration),
    /// Gives memory back.
    Release,
}

impl State {
    /// A question was served since `began`; `own`: the daemon's, which takes memory as a client's does.
    fn done(&mut self, own: bool, large: bool, began: Instant) {
        self.running -= 1;
        self.waiting.ended(large);
        self.busy.add(began, Instant::now());
        self.heap_keeps = true;
        if !own {
            self.idle_since = Instant::now();
        }
    }

    fn rest(&self) -> Rest {
        // Who runs now looks again when it is done.
        if !self.heap_keeps || self.running > 0 {
            return Rest::Wait;
        }
        match QUIET.saturating_sub(self.idle_since.elapsed()) {
            Duration::ZERO => Rest::Release,
            left => Rest::WaitFor(left),
        }
    }
}

struct Job {
    stage: Stage,
    reply: Reply,
}

enum Stage {
    Raw(Raw),
    Ready(Prepared),
    /// The daemon's own question.
    Probe,
}

impl Pool {
    /// Starts `threads` workers.
    pub fn start(
        answerer: Arc<Answerer>,
        metrics: Arc<Metrics>,
        threads: usize,
        limit: usize,
        batch: usize,
    ) -> std::io::Result<Pool> {
        let state = State {
            waiting: Line::new(threads.max(1)),
            running: 0,
            idle_since: Instant::now(),
            busy: Busy::new(threads.max(1)),
            // The base has been opened and its plans are built.
            heap_keeps: true,
            stopped: false,
        };
        let shared = Arc::new(Shared {
            answerer,
            metrics,
            state: Mutex::new(state),
            wake: Condvar::new(),
            limit: AtomicUsize::new(limit),
            batch: AtomicUsize::new(batch),
            halt: Arc::default(),
            stepped: Arc::new(Mutex::new(Instant::now())),
        });
        let pool = Pool { shared: shared.clone(), threads: Mutex::default() };
        for i in 0..threads.max(1) {
            let shared = shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("worker-{i}"))
                .spawn(move || shared.work())?;
            pool.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(pool)
    }

    /// Changes the length of the queue and the batch size.
    pub fn set(&self, limit: usize, batch: usize) {
        self.shared.limit.store(limit, Ordering::Relaxed);
        self.shared.batch.store(batch, Ordering::Relaxed);
    }

    /// Puts a question into the queue.
    ///
    /// # Errors
    /// 503: the queue is full, or the daemon stops.
    pub fn ask(&self, raw: Raw) -> Result<Waiting, Problem> {
        self.push(Stage::Raw(raw), false)
    }

    /// Has a worker answer a question of the daemon's own, before all that waits.
    pub fn probe(&self) -> Result<Waiting, Problem> {
        self.push(Stage::Probe, true)
    }

    fn push(&self, stage: Stage, first: bool) -> Result<Waiting, Problem> {
        let (reply, waiting) = pair();
        let mut state = self.shared.state();
        if state.stopped {
            return Err(Problem::busy("the daemon stops"));
        }
        let limit = self.shared.limit.load(Ordering::Relaxed);
        if state.waiting.len() >= limit && !first {
            // Clients that have gone leave their place.
            state.waiting.retain(|job: &Job| !job.reply.is_gone());
            if state.waiting.len() >= limit {
                return Err(Problem::busy(format!("{limit} requests wait already")));
            }
        }
        let large = matches!(&stage, Stage::Raw(raw) if raw.body.len() > LARGE_BODY);
        let place = Place::new(Job { stage, reply }, large);
        match first {
            true => state.waiting.push_first(place),
            false => state.waiting.push(place),
        }
        drop(state);
        self.shared.wake.notify_one();
        Ok(waiting)
    }

    /// Questions that wait or run.
    pub fn in_flight(&self) -> usize {
        let state = self.shared.state();
        state.waiting.len() + state.running
    }

    /// When a run last came to a step of its plan.
    pub fn last_step(&self) -> Instant {
        *self.shared.stepped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Questions that wait.
    pub fn waiting(&self) -> usize {
        self.shared.state().waiting.len()
    }

    /// How long nothing has waited or run.
    pub fn idle_for(&self) -> Duration {
        let state = self.shared.state();
        match state.waiting.len() + state.running {
            0 => state.idle_since.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Share of the last minute that the workers were busy, 0 to 1.
    pub fn busy(&self) -> f32 {
        self.shared.state().busy.share(Instant::now())
    }

    /// Answers what waits, takes nothing more, and ends the threads. What has not ended at `until` is
    /// stopped between two steps and left to itself.
    pub fn stop(&self, until: Instant) {
        self.shared.state().stopped = true;
        self.shared.wake.notify_all();
        let threads: Vec<_> =
            self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        while threads.iter().any(|t| !t.is_finished()) {
            if Instant::now() >= until {
                self.halt();
                tracing::warn!("stopped while requests were answered");
                return;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends the runs that are under way.
    pub fn halt(&self) {
        self.shared.halt.store(true, Ordering::Relaxed);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.wake.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(place) = self.next() {
            let (own, large) = (matches!(place.of.stage, Stage::Probe), place.large);
            let began = Instant::now();
            self.serve(place);
            let mut state = self.state();
            state.done(own, large, began);
            if state.stopped {
                // Who waits for a turn of large ones may be done.
                self.wake.notify_all();
            }
        }
    }

    /// The next question whose client is still there.
    fn next(&self) -> Option<Place<Job>> {
        let mut state = self.state();
        loop {
            match state.waiting.next() {
                Some(place) if place.of.reply.is_gone() => state.waiting.ended(place.large),
                Some(place) => {
                    state.running += 1;
                    return Some(place);
                }
                None if state.stopped && state.waiting.len() == 0 => return None,
                None => state = self.rest(state),
            }
        }
    }

    /// Waits for a question; where none comes, gives memory back, once until the next.
    fn rest<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        match state.rest() {
            Rest::Wait => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            Rest::WaitFor(time) => {
                let waited = self.wake.wait_timeout(state, time);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            Rest::Release => {
                state.heap_keeps = false;
                drop(state);
                release_heap();
                self.state()
            }
        }
    }

    /// Serves one; what turns out to be large goes back into the line.
    fn serve(&self, place: Place<Job>) {
        let Place { of: Job { stage, reply }, large, since } = place;
        let Some((prepared, reply)) = self.prepare(stage, reply) else { return };
        if !large && self.answerer.is_large(&prepared) {
            let of = Job { stage: Stage::Ready(prepared), reply };
            self.state().waiting.push(Place { of, large: true, since });
            return;
        }
        let mut group = vec![(prepared, reply)];
        self.gather(&mut group, large);
        self.run(group);
    }

    /// Prepares a question, or sends its fault.
    fn prepare(&self, stage: Stage, reply: Reply) -> Option<(Prepared, Reply)> {
        let prepared = match stage {
            Stage::Ready(prepared) => Ok(prepared),
            Stage::Raw(raw) => guarded(|| self.answerer.prepare(&raw)),
            Stage::Probe => guarded(|| self.answerer.probe()),
        };
        match prepared {
            Ok(prepared) => Some((prepared, reply)),
            Err(problem) => {
                reply.send(Err(problem));
                None
            }
        }
    }

    /// Adds questions that wait and are alike, if there are enough for a batch. The others go back
    /// to their places, prepared.
    fn gather(&self, group: &mut Vec<(Prepared, Reply)>, large: bool) {
        let batch = self.batch.load(Ordering::Relaxed);
        let Some(key) = group.first().and_then(|(p, _)| self.answerer.key(p)) else { return };
        if batch < 2 {
            return;
        }
        let taken = {
            let mut state = self.state();
            if state.waiting.len() + 1 < batch {
                return;
            }
            state.waiting.look(2 * batch)
        };
        let mut alike = vec![];
        let mut back = vec![];
        for place in taken {
            if place.of.reply.is_gone() {
                continue;
            }
            let other = matches!(place.of.stage, Stage::Probe) || place.large != large;
            if other || alike.len() + 1 >= batch {
                back.push(place);
                continue;
            }
            let Place { of: Job { stage, reply }, since, .. } = place;
            let Some((prepared, reply)) = self.prepare(stage, reply) else { continue };
            let like = self.answerer.key(&prepared) == Some(key);
            let large = self.answerer.is_large(&prepared);
            let of = Job { stage: Stage::Ready(prepared), reply };
            if like { &mut alike } else { &mut back }.push(Place { of, large, since });
        }
        if alike.len() + 1 == batch {
            let ready = |place: Place<Job>| match place.of {
                Job { stage: Stage::Ready(prepared), reply } => Some((prepared, reply)),
                _ => None,
            };
            group.extend(alike.drain(..).filter_map(ready));
        }
        alike.append(&mut back);
        self.state().waiting.back(alike.into_iter());
        self.wake.notify_all();
    }

    /// Ends a run once nobody waits for it, be it that the time for it is over.
    fn stop_for(&self, group: &[(Prepared, Reply)]) -> Stop {
        let replies: Vec<&Reply> = group.iter().map(|(_, reply)| reply).collect();
        let all = nobody_waits(&replies);
        let (halt, stepped) = (self.halt.clone(), self.stepped.clone());
        Arc::new(move || {
            *stepped.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            halt.load(Ordering::Relaxed) || all()
        })
    }

    fn run(&self, group: Vec<(Prepared, Reply)>) {
        let prepared: Vec<&Prepared> = group.iter().map(|(p, _)| p).collect();
        if prepared.len() > 1 {
            count(&self.metrics.batches);
            self.metrics.batched.fetch_add(prepared.len() as u64, Ordering::Relaxed);
        }
        let stop = self.stop_for(&group);
        let answers = guarded(|| self.answerer.answer(&prepared, &stop));
        drop(prepared);
        match answers {
            Ok(answers) => {
                for ((_, reply), answer) in group.into_iter().zip(answers) {
                    reply.send(Ok(answer));
                }
            }
            Err(problem) if group.len() == 1 => {
                for (_, reply) in group {
                    reply.send(Err(problem.clone()));
                }
            }
            // One question of several may be at fault: each for itself.
            Err(_) => group.into_iter().for_each(|one| self.run(vec![one])),
        }
    }
}

/// A panic in the engine is one request's failure.
fn guarded<T>(work: impl FnOnce() -> Result<T, Problem>) -> Result<T, Problem> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default();
        let refused = refused_by_system(text).map(Problem::from);
        Err(refused.unwrap_or_else(|| Problem::failed("internal error: the answer panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle_for(time: Duration) -> State {
        State {
            waiting: Line::new(1),
            running: 0,
            idle_since: Instant::now().checked_sub(time).unwrap(),
            busy: Busy::new(1),
            heap_keeps: true,
            stopped: false,
        }
    }

    #[test]
    fn memory_goes_back_once_clients_are_quiet() {
        let mut state = idle_for(QUIET);
        assert_eq!(state.rest(), Rest::Release);
        state.heap_keeps = false;
        assert_eq!(state.rest(), Rest::Wait);
        state.running = 2;
        state.done(false, false, Instant::now());
        assert_eq!(state.rest(), Rest::Wait, "another one runs");
        state.done(false, false, Instant::now());
        assert!(matches!(state.rest(), Rest::WaitFor(left) if left > QUIET / 2));
    }

    /// The watchdog's probes took memory that stayed, and each wake-up started the wait anew.
    #[test]
    fn the_daemons_own_questions_neither_keep_memory_nor_put_off_its_return() {
        let mut state = idle_for(QUIET);
        state.heap_keeps = false;
        state.running = 1;
        state.done(true, false, Instant::now());
        assert_eq!(state.rest(), Rest::Release);
        let mut state = idle_for(QUIET * 3 / 4);
        state.running = 1;
        state.done(true, false, Instant::now());
        assert!(matches!(state.rest(), Rest::WaitFor(left) if left <= QUIET / 4));
    }
}
