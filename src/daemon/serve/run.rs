//! The daemon's life: start, readiness, signals, reload, watchdog, shutdown.

use super::app::{App, DISK_THREADS};
use super::connection::accept;
use super::integrity;
use super::listen::Listeners;
use super::log;
use crate::daemon::learn::{Learner, Place};
use crate::daemon::{Config, Serving};
use crate::error::{Error, ErrorKind, Result};
use crate::fs::FileLock;
use crate::host::Root;
use crate::pack::{prepare_heap, share_heaps};
use crate::runtime::Engine;
use crate::store::{Key, Options, Store};
use sd_notify::NotifyState;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long the first probe may take: a large base on a worn card.
const FIRST_PROBE: Duration = Duration::from_secs(120);
/// Share of the time to shut down in that is for clients' requests; the rest is for threads to end.
const FOR_CLIENTS: f64 = 0.8;
/// And the share in which threads have to end: the rest is for the log's way into the database.
const FOR_THREADS: f64 = 0.95;
/// How long nothing is written before the log is moved into the database.
const SETTLE: Duration = Duration::from_secs(20);

/// Where the configuration comes from: at the start and at each reload.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file, and what replaces values in it.
    File(PathBuf, Overrides),
    /// Defaults for a base, without a file.
    Given(Box<Config>),
}

/// Values of the command line.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The base.
    pub base: Option<PathBuf>,
    /// The state's folder.
    pub state: Option<PathBuf>,
    /// The socket.
    pub socket: Option<PathBuf>,
}

impl Source {
    /// Reads and checks it.
    pub fn load(&self) -> Result<Config> {
        match self {
            Source::Given(config) => {
                config.check()?;
                Ok((**config).clone())
            }
            Source::File(path, overrides) => {
                let mut config = Config::read(path)?;
                let Overrides { base, state, socket } = overrides.clone();
                config.base = base.unwrap_or(config.base);
                config.state = state.unwrap_or(config.state);
                config.serve.socket = socket.unwrap_or(config.serve.socket);
                Ok(config)
            }
        }
    }
}

/// Reads the configuration and looks at what it names: the key, the token, the base. Gives back
/// the configuration and what is not there yet, in words.
///
/// # Errors
/// As [`Config::read`]; a key, token or base that is there and can't be used.
pub fn check(source: &Source) -> Result<(Config, Vec<String>)> {
    let config = source.load()?;
    let mut remarks = vec![];
    let missing = |path: &PathBuf| !path.exists();
    if missing(&config.base) {
        remarks.push(format!("base '{}' is not there yet", config.base.display()));
    } else {
        Engine::open(&config.base)?;
    }
    match &config.samples.key_file {
        Some(key) if missing(key) => {
            remarks.push(format!("samples.key_file '{}' is not there yet", key.display()));
        }
        Some(key) => {
            Key::read(key)?;
        }
        None => {}
    }
    match &config.serve.token_file {
        Some(token) if config.serve.tcp.is_some() && missing(token) => {
            remarks.push(format!("serve.token_file '{}' is not there yet", token.display()));
        }
        _ => {
            config.token()?;
        }
    }
    config.peers.resolve()?;
    match &config.mqtt.password_file {
        Some(file) if missing(file) => {
            remarks.push(format!("mqtt.password_file '{}' is not there yet", file.display()));
        }
        _ => drop(config.mqtt.credentials()?),
    }
    for hook in &config.webhooks {
        match &hook.secret_file {
            Some(file) if missing(file) => {
                remarks.push(format!("secret_file '{}' is not there yet", file.display()));
            }
            _ => drop(hook.key()?),
        }
    }
    Ok((config, remarks))
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What keeps it from starting: the configuration, the base, the state, the sockets.
pub fn run(source: &Source) -> Result<()> {
    share_heaps();
    prepare_heap();
    let config = source.load()?;
    log::start(config.log.level);
    let engine = Engine::open(&config.base)?.with_threads(config.serve.threads)?;
    let key = config.samples.key_file.as_deref().map(Key::read).transpose()?;
    let store = Store::open_with(&config.state, Options { key, rules: config.samples.rules() })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(DISK_THREADS)
        .build()
        .map_err(|e| Error::failed(format!("the runtime can't be started: {e}")))?;
    // Before anything is decided on the state: another daemon may be at it.
    let _alone = match (store.read_only(), store.doubt()) {
        (false, _) => Some(alone(&config.state)?),
        // Nobody may decide on it while it is served.
        (true, Some(_)) => alone(&config.state).map_or_else(refused, |lock| Ok(Some(lock)))?,
        (true, None) => None,
    };
    let listeners = {
        let _in = runtime.enter();
        Listeners::open(&config.serve)?
    };
    let app = App::new(config, engine, store)?;
    let place =
        Place { root: Root::system(), program: None, key: app.config().samples.key_file.clone() };
    if app.store.doubt().is_some() {
        tracing::error!("the state is served as it can be read, and nothing is learned");
    } else if app.store.read_only() {
        tracing::error!("the state can't be written to: it is served, and nothing is learned");
    } else {
        let (store, settings) = (app.store.clone(), app.settings.clone());
        app.set_learning(Learner::start(store, settings, app.clone(), place)?);
    }
    if app.config().serve.instant {
        app.start_instants()?;
    }
    let result = runtime.block_on(serve(&app, source, listeners));
    // What has not ended by then is left to the end of the process: a run within one step of its plan,
    // a tokenizer, a child that doesn't listen (it ends with its parent), a disk that hangs.
    let until = *result.as_ref().unwrap_or(&(Instant::now() + app.config().limits.shutdown()));
    let learned = app.learning().is_none_or(|learning| learning.stop_until(Some(until)));
    if let Some(instants) = app.instants() {
        instants.stop();
    }
    if let Some(hooks) = app.hooks() {
        hooks.stop(until);
    }
    app.pool.stop(until);
    runtime.shutdown_timeout(until.saturating_duration_since(Instant::now()));
    // The learner may be at the database.
    if learned && let Err(e) = app.store.settle() {
        tracing::warn!("the log stays beside the database: {e}");
    }
    result.map(drop)
}

/// Where the lock can't be made in a folder that can't be written, nobody else makes it.
fn refused(e: Error) -> Result<Option<FileLock>> {
    if e.kind() == ErrorKind::Refused { Err(e) } else { Ok(None) }
}

/// The right to serve and to train on a state, which one process has.
fn alone(state: &Path) -> Result<FileLock> {
    FileLock::exclusive(&state.join("daemon.lock")).map_err(|e| match e.kind() {
        ErrorKind::Refused => {
            Error::refused(format!("{}: another daemon uses this state", state.display()))
                .hint("stop it, or choose another folder with 'state'")
        }
        _ => e,
    })
}

/// Serves until it is told to stop; gives when all must have ended.
async fn serve(app: &Arc<App>, source: &Source, mut listeners: Listeners) -> Result<Instant> {
    let config = app.config();
    let mut signals = Signals::new()?;
    let mut tasks = vec![];
    if let Some(tcp) = listeners.tcp.take() {
        tasks.push(tokio::spawn(accept(app.clone(), tcp, app.stop.subscribe())));
    }
    if let Some(unix) = listeners.unix.take() {
        tasks.push(tokio::spawn(accept(app.clone(), unix, app.stop.subscribe())));
    }
    let wyoming = super::wyoming::bind(app).await?;

    let checked = tokio::select! {
        checked = app.self_check(FIRST_PROBE) => checked,
        () = signals.stop() => return Ok(Instant::now() + app.config().limits.shutdown()),
    };
    checked.map_err(|p| Error::failed(format!("the base answers no probe: {}", p.message)))?;
    let base = app.engine().base();
    tracing::info!(
        "ready: base {} ('{}'), {} adapters, socket {}{}",
        base.fingerprint().short(),
        base.path().display(),
        app.roster.list().len(),
        config.serve.socket.display(),
        config.serve.tcp.map_or(String::new(), |a| format!(", port {a}"))
    );
    warn_of_default(app);
    warn_of_tokens(app);
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    if let Some(every) = sd_notify::watchdog_enabled() {
        // It looks for that long, and waits for an answer for as long again.
        tasks.push(tokio::spawn(watchdog(app.clone(), every / 3)));
    }
    #[cfg(feature = "mqtt")]
    if let Some((client, teller)) = super::mqtt::MqttClient::new(app)? {
        app.set_teller(teller);
        tasks.push(tokio::spawn(client.run()));
    }
    if let Some(listener) = wyoming {
        tasks.push(tokio::spawn(super::wyoming::serve(app.clone(), listener)));
    }
    app.start_hooks()?;
    tasks.push(tokio::spawn(settle(app.clone())));
    tasks.push(tokio::spawn(integrity::watch(app.clone())));
    while signals.next().await == Told::Reload {
        tokio::select! {
            () = reload(app, source) => {}
            () = signals.stop() => break,
        }
    }
    let patience = app.config().limits.shutdown();
    let until = Instant::now() + patience.mul_f64(FOR_THREADS);
    tracing::info!("stopping: {} connections", app.registry.len());
    notify(&[NotifyState::Stopping]);
    app.stop.send_replace(true);
    drop(listeners);
    if let Some(learning) = app.learning() {
        learning.end();
    }
    let until = tokio::select! {
        () = app.registry.empty() => {
            tracing::info!("stopped");
            until
        }
        // What is left is for the threads to end in.
        () = tokio::time::sleep(patience.mul_f64(FOR_CLIENTS)) => {
            tracing::warn!("stopped with {} connections open", app.registry.len());
            app.pool.halt();
            until
        }
        () = signals.stop() => {
            tracing::warn!("stopped at once, as told twice");
            app.pool.halt();
            Instant::now()
        }
    };
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(until)
}

#[derive(PartialEq)]
enum Told {
    Stop,
    Reload,
}

struct Signals {
    term: Signal,
    int: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let on = |kind| {
            signal(kind).map_err(|e| Error::failed(format!("signals can't be handled: {e}")))
        };
        Ok(Signals {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            reload: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Stop,
            _ = self.int.recv() => Told::Stop,
            _ = self.reload.recv() => Told::Reload,
        }
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

async fn reload(app: &Arc<App>, source: &Source) {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now().ok());
    notify(&states);
    let source = source.clone();
    let done = app
        .blocking(move |app| {
            let config = source.load()?;
            app.reload(config)?;
            Ok(())
        })
        .await;
    match done {
        Ok(()) => {
            tracing::info!("the configuration was read anew");
            warn_of_default(app);
            warn_of_tokens(app);
        }
        Err(p) => tracing::error!("the configuration stays as it was: {}", p.message),
    }
    if app.engine().base().check_unchanged().is_err() {
        tracing::error!("the base's file was written to: restart with a whole one");
    }
    notify(&[NotifyState::Ready]);
}

/// A default without anything learned may be a new device's or a slip of the pen.
fn warn_of_default(app: &App) {
    if let Some(name) = app.roster.unborn() {
        tracing::warn!("'{name}' (serve.adapter) is not there yet: the base answers for it");
    }
}

fn warn_of_tokens(app: &App) {
    if let Some(damage) = app.keeper.tokens.damage() {
        tracing::error!("no named token is let in: {damage}");
    }
    if app.config().serve.tcp.is_some() && !app.keeper.has_tokens() {
        tracing::warn!(
            "the port lets nobody in: make a token with 'offshoot token add NAME --role teach'"
        );
    }
}

/// Moves the state's log into its database where nothing was written for a while.
async fn settle(app: Arc<App>) {
    loop {
        tokio::time::sleep(SETTLE).await;
        let settled = app.blocking(|app| Ok(app.store.settle_idle(SETTLE)?)).await;
        if let Err(p) = settled {
            tracing::warn!("the log stays beside the database: {}", p.message);
        }
    }
}

/// Feeds systemd's watchdog as long as a worker answers.
async fn watchdog(app: Arc<App>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        match app.self_check(every).await {
            Ok(()) => notify(&[NotifyState::Watchdog]),
            // All workers are at long requests, and get on with them.
            Err(_) if app.pool.last_step().elapsed() < every => notify(&[NotifyState::Watchdog]),
            Err(p) => tracing::error!("self-check: {}", p.message),
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("systemd can't be told: {e}");
    }
}
