//! Which adapter answers: the active generation of each name, ready to run, and others kept for a
//! while.

#[path = "roster_instants.rs"]
mod instants;

use super::kept::Kept;
use super::metrics::{Metrics, count};
use super::problem::Problem;
pub use super::served::{Instead, Row, Selection, Served, unknown};
use super::served::{Stamp, stamp};
use crate::adapter::Adapter;
use crate::error::{Cause, Error, Result};
use crate::runtime::Engine;
use crate::store::{NameEntry, Reference, Store};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, TryLockError, mpsc};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

/// How often, at most, it is looked whether another process changed the store.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest a request waits for what changed: the store may be held up by a process that was stopped
/// within its transaction, or by a card that hangs.
const LOOK_AT_MOST: Duration = Duration::from_millis(100);
/// When a generation that could not be loaded is tried again, while the store stays as it is.
const FAULTS_AGAIN: Duration = Duration::from_secs(30);
/// A file may change again within the tick of the clock that its times are taken from, and show
/// the same time: what is younger is read once more.
const TICK: Duration = Duration::from_millis(100);

/// The adapters that are served. All methods may be called from many threads; a switch changes a
/// pointer.
pub struct Roster {
    engine: Engine,
    store: Store,
    base: Arc<Served>,
    names: RwLock<BTreeMap<String, Entry>>,
    kept: Mutex<Kept>,
    default: RwLock<Selection>,
    seen: Mutex<Seen>,
    /// What answers for a name in the place of its generation, while that is the active one.
    instants: RwLock<BTreeMap<String, Arc<Served>>>,
    /// Called after what is served or stored has changed.
    watcher: OnceLock<Watcher>,
    /// Held from what the store says until that is served: of two switches the last one stays.
    turn: Mutex<()>,
    metrics: Arc<Metrics>,
}

/// Wants to know that something changed.
type Watcher = Box<dyn Fn() + Send + Sync>;

/// What is known of changes by other processes.
#[derive(Default)]
struct Seen {
    /// When the store was last looked at.
    looked: Option<Instant>,
    /// How it was when all was taken from it, if that was long after its last change.
    stamp: Option<Stamp>,
    /// When what could not be loaded is tried again.
    again: Option<Instant>,
    /// Takes what changed.
    reader: Option<JoinHandle<()>>,
}

/// A name: its number in the store, and what answers for it.
struct Entry {
    id: i64,
    served: Arc<Served>,
}

impl Roster {
    /// Loads what is active. For a name whose generation can't be loaded the one before answers, else
    /// the base, and says so.
    pub fn new(
        engine: Engine,
        store: Store,
        metrics: Arc<Metrics>,
        capacity: usize,
    ) -> Result<Roster> {
        let roster = Roster {
            engine,
            store,
            base: Arc::default(),
            names: RwLock::default(),
            kept: Mutex::new(Kept { capacity, ..Kept::default() }),
            default: RwLock::default(),
            seen: Mutex::default(),
            instants: RwLock::default(),
            watcher: OnceLock::new(),
            turn: Mutex::default(),
            metrics,
        };
        roster.refresh_all()?;
        Ok(roster)
    }

    /// What answers requests that name no adapter.
    pub fn set_default(&self, selection: Selection) {
        *self.default.write().unwrap_or_else(PoisonError::into_inner) = selection;
    }

    /// Changes how many are kept beside the active ones.
    pub fn set_capacity(&self, capacity: usize) {
        let mut kept = self.kept();
        kept.capacity = capacity;
        let excess = kept.list.len().saturating_sub(capacity);
        kept.list.drain(..excess);
    }

    /// What answers requests that name no adapter.
    pub fn default_selection(&self) -> Selection {
        self.default.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What answers `selection` now. The name that the daemon is set to serves the base until
    /// feedback makes it known, as it does from then until a generation is active.
    ///
    /// # Errors
    /// 404: no such adapter or generation. A named generation whose file can't be used.
    pub fn resolve(self: &Arc<Self>, selection: &Selection) -> Result<Arc<Served>, Problem> {
        if *selection == Selection::Base {
            return Ok(self.base.clone());
        }
        self.look();
        match selection {
            Selection::Default => match self.unborn() {
                Some(name) => {
                    let silence = match self.store.doubt() {
                        Some(why) => format!("nothing of '{name}' can be read: {why}"),
                        None => format!("'{name}' has learned nothing yet"),
                    };
                    let silence = Some(silence.into());
                    Ok(Arc::new(Served { name: Some(name), silence, ..Served::default() }))
                }
                None => self.resolve_given(&self.default_selection()),
            },
            other => self.resolve_given(other),
        }
    }

    /// The name that the daemon is set to, if the store doesn't know it.
    pub fn unborn(&self) -> Option<String> {
        match self.default_selection() {
            Selection::Named(of) if of.generation().is_none() && !self.knows(of.name()) => {
                Some(of.name().into())
            }
            _ => None,
        }
    }

    fn resolve_given(&self, selection: &Selection) -> Result<Arc<Served>, Problem> {
        match selection {
            Selection::Default | Selection::Base => Ok(self.base.clone()),
            Selection::Named(reference) => match reference.generation() {
                None => self.answering(reference.name()),
                Some(generation) => self.pinned(reference, generation),
            },
            Selection::Mix(parts) => self.mix(parts),
        }
    }

    /// Calls `watcher` after what is served or stored has changed; the first one stays.
    pub fn watch(&self, watcher: Watcher) {
        // There is one in a process.
        let _ = self.watcher.set(watcher);
    }

    fn say_changed(&self) {
        if let Some(watcher) = self.watcher.get() {
            watcher();
        }
    }

    fn active(&self, name: &str) -> Result<Arc<Served>, Problem> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(name).map(|entry| entry.served.clone()).ok_or_else(|| unknown(name))
    }

    fn pinned(&self, reference: &Reference, generation: u64) -> Result<Arc<Served>, Problem> {
        let active = self.active(reference.name());
        if let Ok(served) = &active
            && served.generation == Some(generation)
        {
            return Ok(served.clone());
        }
        self.keep(reference.to_string(), || self.bind(reference, generation))
    }

    fn mix(&self, parts: &[(String, f32)]) -> Result<Arc<Served>, Problem> {
        let mut chosen = vec![];
        let mut key = String::new();
        for (name, weight) in parts.iter().filter(|(_, weight)| *weight != 0.0) {
            let served = self.active(name)?;
            let Some(generation) = served.generation else { continue };
            if parts.len() == 1 && *weight == 1.0 {
                return Ok(served);
            }
            key.push_str(&format!("{name}@{generation}:{:08x},", weight.to_bits()));
            chosen.push((Reference::parse(&format!("{name}@{generation}"))?, *weight));
        }
        if chosen.is_empty() {
            return Ok(self.base.clone());
        }
        self.keep(key, || {
            let adapters = chosen
                .iter()
                .map(|(reference, weight)| Ok((self.store.load(reference)?.adapter, *weight)))
                .collect::<Result<Vec<_>>>()?;
            let weighted: Vec<(&Adapter, f32)> = adapters.iter().map(|(a, w)| (a, *w)).collect();
            let bound = self.engine.bind(&weighted)?;
            Ok(Served { bound: Some(bound), ..Served::default() })
        })
    }

    /// What is kept under `key`, or what `make` gives, kept from now on.
    fn keep(
        &self,
        key: String,
        make: impl FnOnce() -> Result<Served>,
    ) -> Result<Arc<Served>, Problem> {
        let removals = {
            let mut kept = self.kept();
            if let Some(served) = kept.take(&key) {
                kept.list.push((key, served.clone()));
                return Ok(served);
            }
            kept.removals
        };
        let served = Arc::new(make()?);
        let mut kept = self.kept();
        kept.put(key, served.clone(), removals);
        Ok(served)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves what the store calls active for `name`.
    ///
    /// # Errors
    /// The generation can't be loaded or does not fit the base: another one answers in its place.
    pub fn refresh(&self, name: &str) -> Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match self.store.name(name) {
            Ok(entry) => self.take(&entry),
            Err(e) if e.cause() == Some(Cause::NotFound) => {
                self.names.write().unwrap_or_else(PoisonError::into_inner).remove(name);
                self.drop_kept(|n| n == name);
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Serves what the store calls active for every name; faults of single ones are logged.
    pub fn refresh_all(&self) -> Result<()> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, e) in self.take_all(&turn)? {
            tracing::error!("adapter '{name}': {e}");
        }
        Ok(())
    }

    /// Gives the faults of single names.
    fn take_all(&self, _turn: &MutexGuard<'_, ()>) -> Result<Vec<(String, Error)>> {
        let entries = self.store.names()?;
        {
            let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
            names.retain(|name, _| entries.iter().any(|e| e.name == *name));
        }
        self.drop_kept(|name| !entries.iter().any(|e| e.name == name));
        let fault = |entry: &NameEntry| Some((entry.name.clone(), self.take(entry).err()?));
        Ok(entries.iter().filter_map(fault).collect())
    }

    fn take(&self, entry: &NameEntry) -> Result<()> {
        // Generations that were forgotten or removed must not be served from memory.
        self.kept().retain(|served| match (&served.name, served.generation) {
            (Some(name), Some(generation)) if *name == entry.name => {
                entry.generations.contains(&generation)
            }
            (Some(_), _) => true,
            (None, _) => false,
        });
        let current = {
            let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
            // A name that was removed and made again has another number.
            let known = names.get(&entry.name).filter(|e| e.id == entry.id);
            known.map(|e| e.served.clone())
        };
        let whole = |served: &Served| served.instead.is_none() && served.generation == entry.active;
        if current.as_deref().is_some_and(whole) {
            return Ok(());
        }
        let (served, fault) = match self.load(entry) {
            Ok(served) => (served, None),
            Err(e) => (self.substitute(entry, current.as_deref(), &e), Some(e)),
        };
        let same = |before: &Served| {
            before.generation == served.generation && before.instead == served.instead
        };
        if !current.as_deref().is_some_and(same) {
            self.say(entry, &served);
        }
        if current.is_some_and(|before| before.generation != served.generation) {
            count(&self.metrics.switches);
        }
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        names.insert(entry.name.clone(), Entry { id: entry.id, served });
        drop(names);
        self.say_changed();
        fault.map_or(Ok(()), Err)
    }

    /// What answers where the active generation can't be loaded: what does so already, the newest
    /// proven one before it that can be, else the base.
    fn substitute(&self, entry: &NameEntry, current: Option<&Served>, why: &Error) -> Arc<Served> {
        let generation = entry.active.unwrap_or_default();
        let instead = Some(Arc::new(Instead { generation, why: why.to_string() }));
        let before = self.store.fallbacks(&entry.name).unwrap_or_default();
        let stays = current.filter(|c| c.generation.is_some_and(|g| before.contains(&g)));
        if let Some(stays) = stays {
            return Arc::new(Served { instead, ..stays.clone() });
        }
        let loaded = before.iter().find_map(|generation| {
            let reference = Reference::parse(&format!("{}@{generation}", entry.name)).ok()?;
            self.bind(&reference, *generation).ok()
        });
        let base = || Served { name: Some(entry.name.clone()), ..Served::default() };
        Arc::new(Served { instead, ..loaded.unwrap_or_else(base) })
    }

    /// Puts into the store's events that another generation answers than the active one.
    fn say(&self, entry: &NameEntry, served: &Served) {
        let Some(instead) = &served.instead else { return };
        let by = served.generation.map_or("the base".into(), |g| format!("generation {g}"));
        let text = format!(
            "generation {} can't be served, {by} answers in its place: {}",
            instead.generation, instead.why
        );
        // A state that can't be written is said elsewhere.
        let _ = self.store.event("fallback", Some(&entry.name), &text, None);
    }

    fn load(&self, entry: &NameEntry) -> Result<Arc<Served>> {
        let name = Some(entry.name.clone());
        let Some(generation) = entry.active else {
            let silence = self.store.silence(&entry.name)?.map(Arc::from);
            return Ok(Arc::new(Served { name, silence, ..Served::default() }));
        };
        let reference = Reference::parse(&format!("{}@{generation}", entry.name))?;
        // A switch has it bound before.
        if let Some(served) = self.kept().take(&reference.to_string()) {
            return Ok(served);
        }
        self.bind(&reference, generation).map(Arc::new)
    }

    fn bind(&self, reference: &Reference, generation: u64) -> Result<Served> {
        let adapter = self.store.load(reference)?.adapter;
        let bound = Some(self.engine.bind(&[(&adapter, 1.0)])?);
        Ok(Served {
            name: Some(reference.name().into()),
            generation: Some(generation),
            bound,
            ..Served::default()
        })
    }

    fn drop_kept(&self, gone: impl Fn(&str) -> bool) {
        self.kept().retain(|served| served.name.as_deref().is_some_and(|name| !gone(name)));
    }

    /// Whether `name` is served, as the store was when it was looked at last.
    pub fn knows(&self, name: &str) -> bool {
        self.names.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// Names, what is active, and whether it can be served; by name.
    pub fn list(self: &Arc<Self>) -> Vec<Row> {
        self.look();
        self.rows()
    }

    /// As [`Roster::list`], as the store was when it was looked at last.
    pub fn rows(&self) -> Vec<Row> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let row = |(name, entry): (&String, &Entry)| {
            let Served { generation, instead, .. } = &*entry.served;
            let id = usize::try_from(entry.id.saturating_sub(1)).unwrap_or(usize::MAX);
            Row { id, name: name.clone(), generation: *generation, instead: instead.clone() }
        };
        names.iter().map(row).collect()
    }

    /// Notices what other processes (the command line) did to the store. One thread at a time takes
    /// it, and is waited for a moment: what is served meanwhile is what was.
    fn look(self: &Arc<Self>) {
        let mut seen = self.seen();
        let reads = seen.reader.as_ref().is_some_and(|reader| !reader.is_finished());
        if reads || seen.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        seen.looked = Some(Instant::now());
        let changed = seen.stamp != Some(self.stamp());
        if !changed && seen.again.is_none_or(|at| at > Instant::now()) {
            return;
        }
        // Dropped when the thread ends.
        let (ended, end) = mpsc::channel::<()>();
        let roster = self.clone();
        let reader = Builder::new().name("roster".into()).spawn(move || {
            roster.take_changes(changed);
            drop(ended);
        });
        match reader {
            Ok(reader) => seen.reader = Some(reader),
            Err(e) => return tracing::error!("no thread to read the store: {e}"),
        }
        drop(seen);
        // Either way what is there is served.
        let _ = end.recv_timeout(LOOK_AT_MOST);
    }

    /// Takes what the store says, unless somebody does. Where that fails the stamp stays another
    /// one, and a later look tries again.
    fn take_changes(&self, changed: bool) {
        let turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let stamp = self.stamp();
        let now = SystemTime::now();
        let young = |time| now.duration_since(time).is_ok_and(|age| age < TICK);
        let settled = !stamp.iter().flatten().any(|(time, _)| young(*time));
        let faults = match self.take_all(&turn) {
            Ok(faults) => faults,
            Err(e) => return tracing::error!("the store can't be read: {e}"),
        };
        for (name, e) in &faults {
            match changed {
                true => tracing::error!("adapter '{name}': {e}"),
                // It was said before.
                false => tracing::debug!("adapter '{name}', once more: {e}"),
            }
        }
        drop(turn);
        self.say_changed();
        let mut seen = self.seen();
        seen.stamp = settled.then_some(stamp);
        seen.again = (!faults.is_empty()).then(|| Instant::now() + FAULTS_AGAIN);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stamp(&self) -> Stamp {
        ["state.db", "state.db-wal"].map(|file| stamp(self.store.root().join(file)))
    }
}

#[cfg(all(test, feature = "import"))]
#[path = "roster_tests.rs"]
mod tests;
