//! Webhooks: servers that are told by HTTP of answers and of what happens. A thread of its own sends, so that
//! nothing here keeps an answer or a training waiting.
//!
//! What happens is read from the state's events, after the last one that was looked at; answers are handed
//! over. A webhook's messages wait in one queue and are sent one after the other, each until the server has
//! taken it. What waits is kept in the state's folder.

mod queue;
mod send;

use super::api::{now, problems};
use super::app::App;
use super::metrics::Family;
use crate::daemon::hooks::{Address, Happening, HookConfig};
use crate::daemon::tokens::random;
use crate::error::{Error, Result};
use axum::body::Bytes;
use queue::Message;
pub use queue::Queue;
use send::{Failure, send};
use serde_json::{Map, Value, json};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// Answers that wait to be looked at; more are not told.
const ANSWERS: usize = 256;
/// How often it is looked what happened.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// First and longest pause before a server is tried again.
const PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(600)];
/// How often a queue is written where it has changed, and one of more than so many bytes.
const SAVE_EVERY: Duration = Duration::from_secs(5);
const SAVE_LARGE_EVERY: Duration = Duration::from_secs(60);
const LARGE: usize = 16 << 10;
/// Longest message in bytes.
const LONGEST: usize = 64 << 10;
/// Events that are looked at at once.
const EVENTS: u32 = 1000;
/// Version of the messages.
const VERSION: u32 = 1;
/// In the state's folder.
const FOLDER: &str = "webhooks";

/// All of a daemon.
pub struct Hooks {
    hooks: Vec<Arc<Hook>>,
    answers: mpsc::Sender<Bytes>,
    /// Answers that could not wait.
    untold: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Hook {
    config: HookConfig,
    to: Address,
    key: Option<[u8; 32]>,
    /// Where its queue is kept; none where nothing can be.
    path: Option<PathBuf>,
    queue: Mutex<Queue>,
    /// Something waits.
    news: Notify,
    failing: Mutex<Option<Failing>>,
    saved: Mutex<Saved>,
}

/// A server that does not take what waits.
struct Failing {
    since: u64,
    tries: u32,
    why: String,
}

struct Saved {
    queue: Queue,
    at: Instant,
    /// The last time could not be written.
    failed: bool,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hooks {
    /// Starts them; `None`: there are none.
    ///
    /// # Errors
    /// A key that can't be read, no thread can be started.
    pub fn start(app: &Arc<App>) -> Result<Option<Arc<Hooks>>> {
        let config = app.config();
        if config.webhooks.is_empty() {
            return Ok(None);
        }
        let folder = app.store.root().join(FOLDER);
        let kept = !app.store.read_only();
        if kept {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(|e| Error::io(&folder, e))?;
        }
        let hooks: Result<Vec<_>> = config
            .webhooks
            .iter()
            .map(|hook| Ok(Arc::new(Hook::open(hook, kept.then_some(folder.as_path()))?)))
            .collect();
        let hooks = hooks?;
        // A new one is told of what happens from here on.
        // Where the events can't be read now, from the first look on that can.
        if let Ok(events) = app.store.latest_events(1) {
            let newest = events.last().map_or(0, |event| event.id);
            hooks.iter().for_each(|hook| {
                lock(&hook.queue).event.get_or_insert(newest);
            });
        }
        let (answers, told) = mpsc::channel(ANSWERS);
        let (untold, thread) = (AtomicU64::new(0), Mutex::new(None));
        let all = Arc::new(Hooks { hooks, answers, untold, thread });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .map_err(|e| Error::failed(format!("the runtime of webhooks can't be started: {e}")))?;
        let (app, hooks) = (app.clone(), all.hooks.clone());
        let thread = std::thread::Builder::new().name("webhooks".into()).spawn(move || {
            runtime.block_on(run(&app, &hooks, told));
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        });
        let thread = thread
            .map_err(|e| Error::failed(format!("the thread of webhooks can't be started: {e}")))?;
        *lock(&all.thread) = Some(thread);
        Ok(Some(all))
    }

    /// Has an answer told to whom it concerns.
    pub fn answer(&self, answer: &Bytes) {
        let wants = |hook: &Arc<Hook>| {
            hook.config.wants(Happening::Answer) || hook.config.wants(Happening::Doubtful)
        };
        if self.hooks.iter().any(wants) && self.answers.try_send(answer.clone()).is_err() {
            self.untold.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for the end of its thread, which the daemon's stop brings; not longer than `until`.
    pub fn stop(&self, until: Instant) {
        let Some(thread) = lock(&self.thread).take() else { return };
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !thread.is_finished() {
            tracing::warn!("what waits for webhooks is kept as it was a minute ago at most");
        }
    }

    /// For `status`.
    pub fn shown(&self) -> Vec<Value> {
        self.hooks.iter().map(|hook| hook.shown()).collect()
    }

    /// For the metrics.
    pub fn families(&self) -> Vec<Family> {
        let mut waiting = Family::new("webhook_waiting", "Messages that wait.");
        let mut delivered = Family::new("webhook_delivered", "Messages that its server took.");
        let mut lost = Family::new("webhook_lost", "Messages dropped or refused for good.");
        for hook in &self.hooks {
            let label = format!("webhook=\"{}\"", hook.config.name);
            let queue = lock(&hook.queue);
            waiting.add(label.clone(), queue.len() as f64);
            delivered.add(label.clone(), queue.delivered as f64);
            lost.add(label, (queue.dropped + queue.refused) as f64);
        }
        let mut untold = Family::new("webhook_untold", "Answers that could not wait to be told.");
        untold.add(String::new(), self.untold.load(Ordering::Relaxed) as f64);
        vec![waiting, delivered, lost, untold]
    }
}

impl Hook {
    fn open(config: &HookConfig, folder: Option<&Path>) -> Result<Hook> {
        let path = folder.map(|folder| folder.join(format!("{}.json", config.name)));
        let queue = path.as_deref().map_or_else(|| Ok(Queue::new()), Queue::read);
        let queue = queue.unwrap_or_else(|e| {
            tracing::error!("what waited for webhook '{}' can't be used: {e}", config.name);
            path.as_deref().map_or_else(Queue::new, Queue::put_aside)
        });
        let saved = Saved { queue: queue.clone(), at: Instant::now(), failed: false };
        Ok(Hook {
            config: config.clone(),
            to: config.address()?,
            key: config.key()?,
            path,
            queue: Mutex::new(queue),
            news: Notify::new(),
            failing: Mutex::new(None),
            saved: Mutex::new(saved),
        })
    }

    fn shown(&self) -> Value {
        let failing = lock(&self.failing);
        let failing = failing.as_ref().map(
            |failing| json!({"since": failing.since, "tries": failing.tries, "why": failing.why}),
        );
        let queue = lock(&self.queue);
        json!({
            "name": self.config.name, "waiting": queue.len(), "delivered": queue.delivered,
            "dropped": queue.dropped, "refused": queue.refused, "last_success": queue.last_success,
            "failing": failing,
        })
    }

    fn taken(&self, id: &str) {
        let mut queue = lock(&self.queue);
        queue.take(id);
        queue.delivered += 1;
        queue.last_success = Some(now());
        drop(queue);
        if lock(&self.failing).take().is_some() {
            tracing::info!("webhook '{}': its server takes messages again", self.config.name);
        }
    }

    fn failed(&self, tries: u32, why: String) {
        let mut failing = lock(&self.failing);
        let since = failing.as_ref().map_or_else(now, |failing| failing.since);
        *failing = Some(Failing { since, tries, why });
    }

    /// One more message, if its webhook wants such.
    fn tell(&self, what: Happening, id: &str, mut said: Map<String, Value>) {
        let mut queue = lock(&self.queue);
        said.insert("version".into(), VERSION.into());
        said.insert("id".into(), id.into());
        said.insert("event".into(), what.name().into());
        said.insert("dropped".into(), queue.dropped.into());
        let body = Value::Object(said).to_string();
        if body.len() > LONGEST {
            tracing::warn!("webhook '{}': a message is too long: {id}", self.config.name);
            queue.dropped += 1;
            return;
        }
        let answer = matches!(what, Happening::Answer | Happening::Doubtful);
        queue.push(Message { id: id.into(), body, answer }, self.config.queue);
        drop(queue);
        self.news.notify_one();
    }

    /// Tells of an answer.
    fn answered(&self, answer: &Value, id: &str, about: &Map<String, Value>) {
        let adapter = answer["adapter"].as_str().unwrap_or_default();
        if !self.config.of(Some(adapter)) {
            return;
        }
        let doubtful = doubtful(answer, self.config.doubt_below);
        let what = match doubtful && self.config.wants(Happening::Doubtful) {
            true => Happening::Doubtful,
            false if self.config.wants(Happening::Answer) => Happening::Answer,
            false => return,
        };
        let mut said = about.clone();
        for key in ["adapter", "generation", "instant", "predictions", "no_answer"] {
            if let Some(value) = answer.get(key) {
                said.insert(key.into(), value.clone());
            }
        }
        self.tell(what, id, said);
    }

    /// Looks at the events since the last look.
    fn happened(&self, app: &App, about: &Map<String, Value>) -> Result<()> {
        let newest = app.store.latest_events(1)?.last().map_or(0, |event| event.id);
        let after = match lock(&self.queue).event {
            Some(after) if after <= newest => after,
            // A new webhook, or another state.
            _ => newest,
        };
        let events = match after < newest {
            true => app.store.events(EVENTS, after)?,
            false => vec![],
        };
        for event in &events {
            let Some(what) = Happening::of_kind(&event.kind) else { continue };
            if !self.config.wants(what) || !self.config.of(event.name.as_deref()) {
                continue;
            }
            let mut said = about.clone();
            said.insert("time".into(), event.time.into());
            said.insert("adapter".into(), json!(event.name));
            said.insert("text".into(), event.text.as_str().into());
            self.tell(what, &format!("e{}", event.id), said);
        }
        lock(&self.queue).event = Some(events.last().map_or(after, |event| event.id));
        Ok(())
    }

    /// Writes the queue where another would be read at the next start.
    fn save(&self, app: &App, now_or_never: bool) {
        let Some(path) = &self.path else { return };
        let mut saved = lock(&self.saved);
        let queue = lock(&self.queue);
        let every = if queue.bytes() > LARGE { SAVE_LARGE_EVERY } else { SAVE_EVERY };
        if queue.waits_as(&saved.queue) || !(now_or_never || saved.at.elapsed() >= every) {
            return;
        }
        let mut kept = queue.clone();
        drop(queue);
        let all = kept.clone();
        if app.store.encrypted() {
            kept = kept.without_answers();
        }
        saved.at = Instant::now();
        match kept.write(path) {
            Ok(()) => {
                saved.queue = all;
                saved.failed = false;
            }
            Err(e) if !saved.failed => {
                tracing::warn!("what waits for webhook '{}' is not kept: {e}", self.config.name);
                saved.failed = true;
            }
            Err(_) => {}
        }
    }
}

/// What is not known, has no answer, or a best probability below `limit`.
fn doubtful(answer: &Value, limit: f64) -> bool {
    let rows = answer["predictions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |row: &Value| {
        let best = row["probability"].as_f64().or_else(|| row["top"][0]["probability"].as_f64());
        row["known"] == Value::Bool(false) || best.is_some_and(|p| p < limit)
    };
    answer.get("no_answer").is_some() || rows.iter().any(row)
}

/// Serves until the daemon stops.
async fn run(app: &Arc<App>, hooks: &[Arc<Hook>], mut answers: mpsc::Receiver<Bytes>) {
    let mut stop = app.stop.subscribe();
    for hook in hooks {
        tokio::spawn(deliver(hook.clone()));
    }
    let mut board = Map::new();
    board.insert("board".into(), app.config().mqtt.board().into());
    let (mut told, mut count) = (vec![], 0u64);
    // Answers have no number that lasts.
    let start = random()
        .map_or_else(|_| now(), |b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            Some(answer) = answers.recv() => {
                count += 1;
                let Ok(answer) = serde_json::from_slice::<Value>(&answer) else { continue };
                let mut about = board.clone();
                about.insert("time".into(), now().into());
                let id = format!("a{start:08x}-{count}");
                hooks.iter().for_each(|hook| hook.answered(&answer, &id, &about));
            }
            _ = look.tick() => {
                look_around(app, hooks, &board, &mut told);
                hooks.iter().for_each(|hook| hook.save(app, false));
            }
        }
    }
    look_around(app, hooks, &board, &mut told);
    hooks.iter().for_each(|hook| hook.save(app, true));
}

/// Looks at what happened, and whether there are other problems than those that were `told`.
fn look_around(app: &App, hooks: &[Arc<Hook>], board: &Map<String, Value>, told: &mut Vec<String>) {
    let mut found = problems(app);
    for hook in hooks {
        if let Err(e) = hook.happened(app, board) {
            let problem = format!("webhook '{}': the events can't be read: {e}", hook.config.name);
            if !told.contains(&problem) {
                tracing::warn!("{problem}");
            }
            found.push(problem);
        }
    }
    if found == *told {
        return;
    }
    let time = now();
    let mut said = board.clone();
    said.insert("time".into(), time.into());
    said.insert("adapter".into(), Value::Null);
    let text = if found.is_empty() { "no problem is left".into() } else { found.join("; ") };
    said.insert("text".into(), text.into());
    said.insert("problems".into(), json!(found));
    for hook in hooks.iter().filter(|hook| hook.config.wants(Happening::Problem)) {
        hook.tell(Happening::Problem, &format!("p{time:x}-{}", found.len()), said.clone());
    }
    *told = found;
}

/// Sends what waits, in order, each until it was taken.
async fn deliver(hook: Arc<Hook>) {
    let patience = Duration::from_secs_f64(hook.config.timeout_seconds);
    let name = &hook.config.name;
    let mut tries = 0;
    loop {
        let next = lock(&hook.queue).front().cloned();
        let Some(Message { id, body, .. }) = next else {
            hook.news.notified().await;
            continue;
        };
        match send(&hook.to, hook.key.as_ref(), &id, &body, now(), patience).await {
            Ok(()) => {
                tries = 0;
                hook.taken(&id);
            }
            Err(Failure::Message(why)) => {
                tracing::warn!("webhook '{name}': message {id} is lost: {why}");
                let mut queue = lock(&hook.queue);
                queue.take(&id);
                queue.refused += 1;
            }
            Err(Failure::Server(why)) => {
                tries += 1;
                if tries == 1 {
                    tracing::warn!("webhook '{name}': {why}; it is tried again");
                }
                hook.failed(tries, why);
                tokio::time::sleep(pause(tries)).await;
            }
        }
    }
}

/// Twice as long after each try, a quarter more or less, so that many boards don't come at once.
fn pause(tries: u32) -> Duration {
    let longest = PAUSE[0].saturating_mul(1 << tries.saturating_sub(1).min(20)).min(PAUSE[1]);
    let chance = random().map_or(0.5, |bytes| f64::from(bytes[0]) / 255.0);
    longest.mul_f64(0.75 + 0.5 * chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_an_end() {
        for (tries, seconds) in [(1, 1.0), (2, 2.0), (5, 16.0), (11, 600.0), (4_000_000_000, 600.0)]
        {
            let found = pause(tries).as_secs_f64() / seconds;
            assert!((0.75..=1.25).contains(&found), "{tries}: {found}");
        }
    }

    #[test]
    fn what_is_unknown_unsure_or_unanswered_is_doubtful() {
        let of = |row: Value| doubtful(&json!({"predictions": [row]}), 0.6);
        assert!(of(json!({"label": "a", "probability": 0.59})));
        assert!(of(json!({"top": [{"label": "a", "probability": 0.2}]})));
        assert!(of(json!({"known": false, "probability": 0.99})));
        assert!(!of(json!({"known": true, "label": "a", "probability": 0.6})));
        assert!(!of(json!({"values": [1.0]})), "what has no probability is not told so");
        assert!(doubtful(&json!({"predictions": [], "no_answer": "nothing was learned"}), 0.6));
        assert!(!doubtful(&json!({"predictions": []}), 0.6));
    }
}
