//! Which adapter answers: the active generation of each name, ready to run, and others kept for a
//! while.

use super::problem::Problem;
use crate::adapter::{Adapter, Bound};
use crate::error::{Cause, Error, Result};
use crate::runtime::Engine;
use crate::store::{NameEntry, Reference, Store};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

/// How often, at most, it is looked whether another process changed the store.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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
    kept: Mutex<Vec<(String, Arc<Served>)>>,
    default: RwLock<Selection>,
    seen: Mutex<(Option<Instant>, Stamp)>,
    capacity: usize,
}

/// The active generation, or why it can't be served.
type Entry = std::result::Result<Arc<Served>, (u64, String)>;

/// Changes with every commit of any process: time and length of the database and its log.
type Stamp = [Option<(SystemTime, u64)>; 2];

impl Roster {
    /// Loads what is active. A name whose generation can't be loaded is refused, not served by the
    /// base; the others are served.
    pub fn new(engine: Engine, store: Store, capacity: usize) -> Result<Roster> {
        let roster = Roster {
            engine,
            store,
            base: Arc::default(),
            names: RwLock::default(),
            kept: Mutex::default(),
            default: RwLock::default(),
            seen: Mutex::new((None, Stamp::default())),
            capacity,
        };
        roster.refresh_all()?;
        Ok(roster)
    }

    /// What answers requests that name no adapter.
    pub fn set_default(&self, selection: Selection) {
        *self.default.write().unwrap_or_else(PoisonError::into_inner) = selection;
    }

    /// What answers requests that name no adapter.
    pub fn default_selection(&self) -> Selection {
        self.default.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What answers `selection` now.
    ///
    /// # Errors
    /// 404: no such adapter or generation. 503: its file can't be used.
    pub fn resolve(&self, selection: &Selection) -> Result<Arc<Served>, Problem> {
        self.look();
        match selection {
            Selection::Default => match self.default_selection() {
                Selection::Default => Ok(self.base.clone()),
                other => self.resolve_given(&other),
            },
            other => self.resolve_given(other),
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
        match names.get(name) {
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
        self.keep(reference.to_string(), || {
            let loaded = self.store.load(reference)?;
            let bound = self.engine.bind(&[(&loaded.adapter, 1.0)])?;
            Ok(Served {
                name: Some(reference.name().into()),
                generation: Some(generation),
                bound: Some(bound),
            })
        })
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
        {
            let mut kept = self.kept();
            if let Some(at) = kept.iter().position(|(k, _)| *k == key) {
                let entry = kept.remove(at);
                let served = entry.1.clone();
                kept.push(entry);
                return Ok(served);
            }
        }
        let served = Arc::new(make().map_err(adapter_problem)?);
        let mut kept = self.kept();
        if kept.len() >= self.capacity {
            kept.remove(0);
        }
        kept.push((key, served.clone()));
        Ok(served)
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(String, Arc<Served>)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves what the store calls active for `name`.
    ///
    /// # Errors
    /// The generation can't be loaded or does not fit the base: what was served is served on.
    pub fn refresh(&self, name: &str) -> Result<()> {
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
        self.kept().retain(|(_, served)| match (&served.name, served.generation) {
            (Some(name), Some(generation)) if *name == entry.name => {
                entry.generations.contains(&generation)
            }
            (Some(_), _) => true,
            (None, _) => false,
        });
        let current = {
            let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
            names.get(&entry.name).map(|e| match e {
                Ok(served) => Ok(served.generation),
                Err((generation, _)) => Err(*generation),
            })
        };
        if current == Some(Ok(entry.active)) {
            return Ok(());
        }
        let loaded = self.load(entry);
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        match loaded {
            Ok(served) => {
                names.insert(entry.name.clone(), Ok(Arc::new(served)));
                Ok(())
            }
            Err(e) => {
                // What was served goes on being served, if it may.
                let still = current.and_then(|c| c.ok()).is_some_and(|generation| {
                    generation.is_none_or(|g| entry.generations.contains(&g))
                });
                if !still {
                    let why = (entry.active.unwrap_or_default(), e.to_string());
                    names.insert(entry.name.clone(), Err(why));
                }
                Err(e)
            }
        }
    }

    fn load(&self, entry: &NameEntry) -> Result<Served> {
        let bound = match entry.active {
            None => None,
            Some(generation) => {
                let reference = Reference::parse(&format!("{}@{generation}", entry.name))?;
                let adapter = self.store.load(&reference)?.adapter;
                Some(self.engine.bind(&[(&adapter, 1.0)])?)
            }
        };
        Ok(Served { name: Some(entry.name.clone()), generation: entry.active, bound })
    }

    fn drop_kept(&self, gone: impl Fn(&str) -> bool) {
        self.kept().retain(|(_, served)| served.name.as_deref().is_some_and(|name| !gone(name)));
    }

    /// Names, what is active, and whether it can be served.
    pub fn list(&self) -> Vec<(String, Option<u64>, Option<String>)> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let row = |(name, entry): (&String, &Entry)| match entry {
            Ok(served) => (name.clone(), served.generation, None),
            Err((generation, why)) => (name.clone(), Some(*generation), Some(why.clone())),
        };
        names.iter().map(row).collect()
    }

    /// Notices what other processes (the command line) did to the store.
    fn look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.0.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        let stamp = ["state.db", "state.db-wal"].map(|file| stamp(self.store.root().join(file)));
        let changed = seen.1 != stamp;
        *seen = (Some(Instant::now()), stamp);
        drop(seen);
        if changed && let Err(e) = self.refresh_all() {
            tracing::error!("the store can't be read: {e}");
        }
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

/// 404 where the store says so.
fn adapter_problem(e: Error) -> Problem {
    Problem::from(e)
}
