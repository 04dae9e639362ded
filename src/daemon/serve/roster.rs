//! Which adapter answers: the active generation of each name, ready to run, and others kept for a
//! while.

use super::metrics::{Metrics, count};
use super::problem::Problem;
use crate::adapter::{Adapter, Bound};
use crate::error::{Cause, Result};
use crate::runtime::Engine;
use crate::store::{NameEntry, Reference, Store};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant, SystemTime};

/// How often, at most, it is looked whether another process changed the store.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A file may change again within the tick of the clock that its times are taken from, and show
/// the same time: what is younger is read once more.
const TICK: Duration = Duration::from_millis(100);

/// What answers a request. It stays what it is while requests hold it.
#[derive(Clone, Default)]
pub struct Served {
    /// The adapter's name; `None`: the base alone, or several adapters.
    pub name: Option<String>,
    /// Its generation; `None`: the base alone.
    pub generation: Option<u64>,
    /// Ready to run.
    pub bound: Option<Arc<Bound>>,
}

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Selection {
    /// What the daemon is set to.
    #[default]
    Default,
    /// The base alone.
    Base,
    /// The active generation of a name, or a generation.
    Named(Reference),
    /// Active generations with their weights, summed.
    Mix(Vec<(String, f32)>),
}

/// The adapters that are served. All methods may be called from many threads; a switch changes a
/// pointer.
pub struct Roster {
    engine: Engine,
    store: Store,
    base: Arc<Served>,
    names: RwLock<BTreeMap<String, Entry>>,
    kept: Mutex<Kept>,
    default: RwLock<Selection>,
    /// When the store was last looked at, and how it was, if that was long after its last change.
    seen: Mutex<(Option<Instant>, Option<Stamp>)>,
    /// Held from what the store says until that is served: of two switches the last one stays.
    turn: Mutex<()>,
    metrics: Arc<Metrics>,
}

/// A name: its number in the store, and the active generation or why it can't be served.
struct Entry {
    id: i64,
    served: std::result::Result<Arc<Served>, (u64, String)>,
}

/// A name as it is listed.
pub struct Row {
    /// Its number, which stays while others come and go; from 0.
    pub id: usize,
    /// The name.
    pub name: String,
    /// The generation that is served; `None`: the base.
    pub generation: Option<u64>,
    /// Why it can't be served.
    pub fault: Option<String>,
}

/// What is ready beside the active generations, the latest used last.
#[derive(Default)]
struct Kept {
    list: Vec<(String, Arc<Served>)>,
    /// Counts removals: what was loaded before one may be of a generation that is gone.
    removals: u64,
    capacity: usize,
}

/// Changes with every commit of any process: time and length of the database and its log.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Roster {
    /// Loads what is active. A name whose generation can't be loaded is refused, not served by the
    /// base; the others are served.
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
    /// 404: no such adapter or generation. 503: its file can't be used.
    pub fn resolve(&self, selection: &Selection) -> Result<Arc<Served>, Problem> {
        self.look();
        match selection {
            Selection::Default => match self.unborn() {
                Some(name) => Ok(Arc::new(Served { name: Some(name), ..Served::default() })),
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
                None => self.active(reference.name()),
                Some(generation) => self.pinned(reference, generation),
            },
            Selection::Mix(parts) => self.mix(parts),
        }
    }

    fn active(&self, name: &str) -> Result<Arc<Served>, Problem> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        match names.get(name).map(|entry| &entry.served) {
            Some(Ok(served)) => Ok(served.clone()),
            Some(Err((generation, why))) => Err(Problem::busy(format!(
                "generation {generation} of adapter '{name}' can't be served: {why}"
            ))),
            None => Err(unknown(name)),
        }
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
            Ok(Served { name: None, generation: None, bound: Some(bound) })
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
    /// The generation can't be loaded or does not fit the base: what was served is served on.
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
        self.take_all(&turn)
    }

    fn take_all(&self, _turn: &MutexGuard<'_, ()>) -> Result<()> {
        let entries = self.store.names()?;
        {
            let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
            names.retain(|name, _| entries.iter().any(|e| e.name == *name));
        }
        self.drop_kept(|name| !entries.iter().any(|e| e.name == name));
        for entry in &entries {
            if let Err(e) = self.take(entry) {
                tracing::error!("adapter '{}': {e}", entry.name);
            }
        }
        Ok(())
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
            names.get(&entry.name).map(|e| match &e.served {
                Ok(served) => Ok(served.generation),
                Err((generation, _)) => Err(*generation),
            })
        };
        if current == Some(Ok(entry.active)) {
            return Ok(());
        }
        let loaded = self.load(entry);
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        let id = entry.id;
        match loaded {
            Ok(served) => {
                if current.is_some() {
                    count(&self.metrics.switches);
                }
                names.insert(entry.name.clone(), Entry { id, served: Ok(served) });
                Ok(())
            }
            Err(e) => {
                // What was served goes on being served, if it may.
                let still = current.and_then(|c| c.ok()).is_some_and(|generation| {
                    generation.is_none_or(|g| entry.generations.contains(&g))
                });
                if !still {
                    let why = (entry.active.unwrap_or_default(), e.to_string());
                    names.insert(entry.name.clone(), Entry { id, served: Err(why) });
                }
                Err(e)
            }
        }
    }

    fn load(&self, entry: &NameEntry) -> Result<Arc<Served>> {
        let name = Some(entry.name.clone());
        let Some(generation) = entry.active else {
            return Ok(Arc::new(Served { name, generation: None, bound: None }));
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
        Ok(Served { name: Some(reference.name().into()), generation: Some(generation), bound })
    }

    fn drop_kept(&self, gone: impl Fn(&str) -> bool) {
        self.kept().retain(|served| served.name.as_deref().is_some_and(|name| !gone(name)));
    }

    /// Whether `name` is served, as the store was when it was looked at last.
    pub fn knows(&self, name: &str) -> bool {
        self.names.read().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }

    /// Names, what is active, and whether it can be served; by name.
    pub fn list(&self) -> Vec<Row> {
        self.look();
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let row = |(name, entry): (&String, &Entry)| {
            let (generation, fault) = match &entry.served {
                Ok(served) => (served.generation, None),
                Err((generation, why)) => (Some(*generation), Some(why.clone())),
            };
            let id = usize::try_from(entry.id.saturating_sub(1)).unwrap_or(usize::MAX);
            Row { id, name: name.clone(), generation, fault }
        };
        names.iter().map(row).collect()
    }

    /// Notices what other processes (the command line) did to the store.
    fn look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        // Who has the turn reads the store now: no request waits for that.
        let turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let stamp = ["state.db", "state.db-wal"].map(|file| stamp(self.store.root().join(file)));
        let changed = seen.1 != Some(stamp);
        let now = SystemTime::now();
        let young = |time| now.duration_since(time).is_ok_and(|age| age < TICK);
        let settled = !stamp.iter().flatten().any(|(time, _)| young(*time));
        *seen = (Some(Instant::now()), settled.then_some(stamp));
        drop(seen);
        if changed && let Err(e) = self.take_all(&turn) {
            tracing::error!("the store can't be read: {e}");
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).1 = None;
        }
    }
}

impl Kept {
    fn take(&mut self, key: &str) -> Option<Arc<Served>> {
        let at = self.list.iter().position(|(k, _)| k == key)?;
        Some(self.list.remove(at).1)
    }

    /// Keeps what was loaded after so many removals, unless there was another one since.
    fn put(&mut self, key: String, served: Arc<Served>, removals: u64) {
        if self.removals != removals {
            return;
        }
        drop(self.take(&key));
        let excess = (self.list.len() + 1).saturating_sub(self.capacity);
        self.list.drain(..excess);
        self.list.push((key, served));
    }

    fn retain(&mut self, still: impl Fn(&Served) -> bool) {
        self.list.retain(|(_, served)| still(served));
        self.removals += 1;
    }
}

fn stamp(path: PathBuf) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

/// 404 for an adapter that is not there.
pub fn unknown(name: &str) -> Problem {
    Problem::not_found(format!("there is no adapter '{name}'")).hint("see GET /v1/adapters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_used_are_kept_but_nothing_from_before_a_removal() {
        let mut kept = Kept { capacity: 2, ..Kept::default() };
        let served = Arc::<Served>::default();
        for key in ["a@1", "b@1", "b@1", "c@1"] {
            kept.put(key.into(), served.clone(), 0);
        }
        let keys: Vec<&str> = kept.list.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["b@1", "c@1"]);
        // Its generation may be forgotten between being read and being kept.
        kept.retain(|_| true);
        kept.put("d@1".into(), served.clone(), 0);
        assert!(kept.take("d@1").is_none());
        kept.put("d@1".into(), served, 1);
        assert!(kept.take("d@1").is_some() && kept.take("c@1").is_some());
    }
}
