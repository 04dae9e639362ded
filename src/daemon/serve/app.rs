//! What all parts of the serving side share.

use super::answer::Answerer;
use super::connection::Registry;
use super::guard::{Guesses, PERMIT};
use super::hooks::Hooks;
use super::instant::Instants;
use super::integrity::Integrity;
use super::metrics::{Gauge, Metrics, count};
use super::pool::Pool;
use super::problem::Problem;
use super::recent::Recent;
use super::roster::{Roster, Selection};
use super::who::{Keeper, Told};
use crate::caught::caught;
use crate::daemon::learn::{Learner, Settings};
use crate::daemon::{Config, Serving};
use crate::error::{Cause, Error, Result};
use crate::runtime::{Engine, MemoryLimit};
use crate::store::{Reference, Store};
use axum::Router;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Memory for large bodies that come in at once, in bytes; at least one body of the largest size.
const BODIES: usize = 64 << 20;
/// Threads that wait for a disk. Handlers that find none free wait for one and are dropped with
/// their request: what was answered as late and had not begun is not done.
pub const DISK_THREADS: usize = 4;

/// The serving side.
pub struct App {
    config: RwLock<Arc<Config>>,
    router: OnceLock<Router>,
    learning: OnceLock<Learner>,
    instants: OnceLock<Arc<Instants>>,
    hooks: OnceLock<Arc<Hooks>>,
    #[cfg(feature = "mqtt")]
    teller: OnceLock<super::mqtt::Teller>,
    /// What the learner is told; changes are seen at its next look.
    pub settings: Arc<RwLock<Settings>>,
    ready: AtomicBool,
    /// The state on disk.
    pub store: Store,
    /// Which adapter answers.
    pub roster: Arc<Roster>,
    /// Makes inputs and answers.
    pub answerer: Arc<Answerer>,
    /// Answers for people to look at.
    pub recent: Arc<Recent>,
    /// The workers.
    pub pool: Pool,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The connections.
    pub registry: Registry,
    /// Who may do what.
    pub keeper: Keeper,
    /// Wrong tokens.
    pub guesses: Guesses,
    /// Permits for large bodies.
    pub bodies: Arc<Semaphore>,
    /// A permit for each thread that waits for a disk.
    disk: Arc<Semaphore>,
    /// What the last check of the base's file found.
    pub integrity: Integrity,
    /// Becomes true when the daemon stops.
    pub stop: watch::Sender<bool>,
    /// When the daemon started.
    pub started: Instant,
    engine: Engine,
}

impl App {
    /// Loads what is active and starts the workers.
    pub fn new(config: Config, engine: Engine, store: Store) -> Result<Arc<App>> {
        let keeper = Keeper::new(&config, store.root())?;
        let limits = &config.limits;
        let metrics = Arc::new(Metrics::default());
        let roster = Roster::new(engine.clone(), store.clone(), metrics.clone(), limits.adapters)?;
        let roster = Arc::new(roster);
        roster.set_default(default_of(&config)?);
        let recent = match config.serve.tcp.is_some() && !store.encrypted() && !store.read_only() {
            true => Recent::open(store.root().join("recent"), config.recent.clone()),
            false => Recent::default(),
        };
        let recent = Arc::new(recent);
        let memory = MemoryLimit::new(limits.memory());
        tracing::info!("requests may take {} MB of memory at once", memory.bytes() / 1_000_000);
        let shared = (engine.clone(), roster.clone(), recent.clone());
        let answerer = Answerer::new(shared.0, shared.1, shared.2, memory, limits.tokens);
        let answerer = Arc::new(answerer);
        let pool = Pool::start(
            answerer.clone(),
            metrics.clone(),
            config.worker_count(),
            limits.queue,
            limits.batch,
        )
        .map_err(|e| Error::failed(format!("the worker threads can't be started: {e}")))?;
        let settings = Arc::new(RwLock::new(config.settings()));
        let bodies = body_permits(&config);
        Ok(Arc::new(App {
            config: RwLock::new(Arc::new(config)),
            router: OnceLock::new(),
            learning: OnceLock::new(),
            instants: OnceLock::new(),
            hooks: OnceLock::new(),
            #[cfg(feature = "mqtt")]
            teller: OnceLock::new(),
            settings,
            ready: AtomicBool::new(false),
            store,
            roster,
            answerer,
            recent,
            pool,
            metrics,
            registry: Registry::default(),
            keeper,
            guesses: Guesses::default(),
            bodies: Arc::new(Semaphore::new(bodies)),
            disk: Arc::new(Semaphore::new(DISK_THREADS)),
            integrity: Integrity::default(),
            stop: watch::Sender::new(false),
            started: Instant::now(),
            engine,
        }))
    }

    /// The configuration now.
    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The routes.
    pub fn router(self: &Arc<App>) -> Router {
        self.router.get_or_init(|| super::api::router(self.clone())).clone()
    }

    /// The learner; none where the state can't be written to.
    pub fn learning(&self) -> Option<&Learner> {
        self.learning.get()
    }

    /// Ties the learner to it; the first one stays.
    pub fn set_learning(&self, learning: Learner) {
        // There is one learner in a process.
        let _ = self.learning.set(learning);
    }

    /// What feedback changes at once; none where that is not wanted.
    pub fn instants(&self) -> Option<&Arc<Instants>> {
        self.instants.get()
    }

    /// Starts it. Errors: no thread can be started.
    pub fn start_instants(&self) -> Result<()> {
        let (engine, store) = (self.engine.clone(), self.store.clone());
        // There is one in a process.
        let _ = self.instants.set(Instants::start(engine, store, self.roster.clone())?);
        Ok(())
    }

    /// Has the configuration's webhooks told from now on. Errors: a key that can't be read, no thread.
    pub fn start_hooks(self: &Arc<App>) -> Result<()> {
        if let Some(hooks) = Hooks::start(self)? {
            // They are started once.
            let _ = self.hooks.set(hooks);
        }
        Ok(())
    }

    /// The webhooks, where there are some.
    pub fn hooks(&self) -> Option<&Arc<Hooks>> {
        self.hooks.get()
    }

    /// Tells webhooks of an answer.
    pub fn tell_hooks(&self, answer: &axum::body::Bytes) {
        if let Some(hooks) = self.hooks() {
            hooks.answer(answer);
        }
    }

    /// Has answers told to `teller` from now on.
    #[cfg(feature = "mqtt")]
    pub fn set_teller(&self, teller: super::mqtt::Teller) {
        // There is one in a process.
        let _ = self.teller.set(teller);
    }

    /// Tells a home's broker and webhooks of an answer, where there are some.
    pub fn tell(&self, answer: &axum::body::Bytes) {
        #[cfg(feature = "mqtt")]
        if let Some(teller) = self.teller.get()
            && teller.try_send(answer.clone()).is_err()
        {
            count(&self.metrics.untold);
        }
        self.tell_hooks(answer);
    }

    /// Whether a probe was answered.
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Has a worker answer a question of the daemon's own.
    ///
    /// # Errors
    /// No answer within `patience`, or a failed one.
    pub async fn self_check(&self, patience: Duration) -> Result<(), Problem> {
        let answer = self.pool.probe()?;
        let result = match tokio::time::timeout(patience, answer).await {
            Ok(Ok(outcome)) => outcome.map(drop),
            Ok(Err(_)) => Err(Problem::failed("a worker has gone")),
            Err(_) => Err(Problem::late("no worker answers")),
        };
        match &result {
            Ok(()) => self.ready.store(true, Ordering::Relaxed),
            Err(_) => count(&self.metrics.failed_checks),
        }
        result
    }

    /// Does what waits for a disk on one of `DISK_THREADS`.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<App>,
        work: impl FnOnce(&App) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let gone = |_| Problem::failed("the daemon stops");
        let permit = self.disk.clone().acquire_owned().await.map_err(gone)?;
        let app = self.clone();
        // The thread is taken until it is done, whether somebody still waits for it or not.
        let work = move || {
            let _permit = permit;
            work(&app)
        };
        // It panics where the system has no thread for it and there is none yet.
        let none = |text: &str| Error::refused(text).because(Cause::Busy);
        let done = caught(none, || tokio::task::spawn_blocking(work))?.await;
        done.unwrap_or_else(|_| Err(Problem::failed("internal error in the handler")))
    }

    /// Takes over a changed configuration: all that needs no restart.
    ///
    /// # Errors
    /// A token that can't be read, rules that the store refuses: the configuration before stays.
    pub fn reload(&self, mut new: Config) -> Result<()> {
        let old = self.config();
        for key in new.keep_fixed(&old) {
            tracing::warn!("{key} has changed: it takes a restart");
        }
        // What was put back may want another key: a port its token.
        new.check()?;
        let told = Told::read(&new)?;
        let default = default_of(&new)?;
        self.store.set_rules(new.samples.rules())?;
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = new.settings();
        if let Some(learning) = self.learning() {
            learning.wake();
        }
        if new.serve.adapter != old.serve.adapter {
            self.roster.set_default(default);
        }
        self.pool.set(new.limits.queue, new.limits.batch);
        if new.limits.memory_bytes != old.limits.memory_bytes {
            self.answerer.memory().set(new.limits.memory());
        }
        self.answerer.completer().set(new.limits.tokens);
        self.roster.set_capacity(new.limits.adapters);
        let (before, after) = (body_permits(&old), body_permits(&new));
        self.bodies.add_permits(after.saturating_sub(before));
        self.bodies.forget_permits(before.saturating_sub(after));
        super::log::set_level(new.log.level);
        self.keeper.set(told);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        self.roster.refresh_all()
    }

    /// What is measured when the metrics are asked for.
    pub fn gauges(&self) -> Vec<Gauge> {
        let gauge = |name, help, value| Gauge { name, help, value };
        let resident = resident_bytes().unwrap_or_default() as f64;
        vec![
            gauge("ready", "Whether a probe was answered.", f64::from(u8::from(self.ready()))),
            gauge(
                "base_changed",
                "Whether the base's file was written to since it was opened.",
                f64::from(u8::from(self.engine.base().check_unchanged().is_err())),
            ),
            gauge(
                "base_damaged",
                "Whether a part of the base no longer has its hash.",
                f64::from(u8::from(self.integrity.damage().is_some())),
            ),
            gauge(
                "requests_processing",
                "Questions that wait or run.",
                self.pool.in_flight() as f64,
            ),
            gauge("requests_deferred", "Questions that wait.", self.pool.waiting() as f64),
            gauge(
                "wrong_tokens",
                "Requests on the port with a wrong token, since the start.",
                self.guesses.count() as f64,
            ),
            gauge("connections", "Open connections.", self.registry.len() as f64),
            gauge("resident_bytes", "Resident memory.", resident),
            gauge(
                "request_memory_bytes",
                "Memory that requests have taken.",
                self.answerer.memory().taken() as f64,
            ),
            gauge("uptime_seconds", "Time since the start.", self.started.elapsed().as_secs_f64()),
        ]
    }
}

/// Resident memory of this process (`VmRSS`), the mapped base included.
pub fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn body_permits(config: &Config) -> usize {
    BODIES.max(config.limits.body_bytes).div_ceil(PERMIT)
}

fn default_of(config: &Config) -> Result<Selection> {
    Ok(match &config.serve.adapter {
        Some(name) => Selection::Named(Reference::parse(name)?),
        None => Selection::Default,
    })
}

impl Serving for App {
    fn in_flight(&self) -> usize {
        self.pool.in_flight()
    }

    fn idle_for(&self) -> Duration {
        self.pool.idle_for()
    }

    fn busy(&self) -> f32 {
        self.pool.busy()
    }

    fn refresh(&self, name: &str) -> Result<()> {
        self.roster.refresh(name)
    }

    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn damage(&self) -> Option<String> {
        self.integrity.damage()
    }
}
