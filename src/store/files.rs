//! The folder store: `adapters/NAME/NNNNNN.adapter` (read-only), `adapters/NAME/active` (the
//! generation served now), `lock`.
//!
//! Every change writes, fsyncs, renames and fsyncs the folder before a pointer moves, so that a cut
//! of power leaves the old state or the new one. Readers take no lock: what they open is immutable.

use super::names::{Reference, check_name};
use crate::adapter::{Adapter, MAX_FILE, TensorType};
use crate::error::{Error, ErrorKind, Result};
use crate::fs::{
    Access, FileLock, read_limited, read_text, remove_stale_temps, sync_folder, write_atomic_bytes,
};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The pointer of a name.
const ACTIVE: &str = "active";
/// The number that the next generation takes at least, where the greatest was removed.
const NEXT: &str = "next";
/// Longest pointer file.
const MAX_POINTER: u64 = 32;
/// How long a change waits for another process's.
const PATIENCE: Duration = Duration::from_secs(5);

/// Named adapters in a folder. Several processes may use one store at once.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// One name of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The adapter's name.
    pub name: String,
    /// The generation served now.
    pub active: Option<u64>,
    /// The generations there are, ascending.
    pub generations: Vec<u64>,
}

/// What [`Store::add`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Added {
    /// The generation that holds the adapter.
    pub generation: u64,
    /// Whether it is new; `false` if a generation with the same bytes was there.
    pub new: bool,
    /// Whether it is the active one now.
    pub active: bool,
}

/// An adapter read from the store.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The adapter.
    pub adapter: Adapter,
    /// Its generation.
    pub generation: u64,
    /// Its file.
    pub path: PathBuf,
}

impl Store {
    /// A store in the folder `root`, which is made when something is first added.
    pub fn new(root: impl Into<PathBuf>) -> Store {
        Store { root: root.into() }
    }

    /// The user's store: `$OFFSHOOT_STORE`, else `$XDG_DATA_HOME/offshoot`, else
    /// `~/.local/share/offshoot`. Errors: none of the variables is set (usage).
    pub fn of_user() -> Result<Store> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        if let Some(root) = variable("OFFSHOOT_STORE") {
            return Ok(Store::new(root));
        }
        // The XDG specification tells to ignore relative paths.
        let data = variable("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let home = || variable("HOME").map(|home| PathBuf::from(home).join(".local/share"));
        match data.or_else(home) {
            Some(data) => Ok(Store::new(data.join("offshoot"))),
            None => Err(Error::usage("no folder for the store: HOME is not set")
                .hint("set OFFSHOOT_STORE to a folder")),
        }
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names there are, sorted.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let folder = self.root.join("adapters");
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) => return Err(Error::io(&folder, e)),
        };
        let mut found = vec![];
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&folder, e))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if check_name(&name).is_err() {
                continue;
            }
            let generations = self.generations(&name)?;
            if !generations.is_empty() {
                found.push(Entry { active: self.active(&name)?, name, generations });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The generation that `name` serves now; `None` if it has none.
    pub fn active(&self, name: &str) -> Result<Option<u64>> {
        check_name(name)?;
        self.pointer(&self.folder(name).join(ACTIVE))
    }

    /// Reads the adapter that `reference` names, checking its hash and its values.
    ///
    /// # Errors
    /// No such name or generation (usage), a damaged file (bad input).
    pub fn load(&self, reference: &Reference) -> Result<Loaded> {
        let generation = self.resolve(reference)?;
        let path = self.file(reference.name(), generation);
        let adapter = Adapter::read(&path)?;
        adapter.check().map_err(|e| e.at(format_args!("'{}'", path.display())))?;
        Ok(Loaded { adapter, generation, path })
    }

    /// Stores `adapter` as a new generation of `name`. The first one becomes active, a later one
    /// only with `activate`. Bytes that are there already are not stored twice.
    ///
    /// # Errors
    /// A bad name (usage), values that are not finite (bad input), a change going on elsewhere
    /// (refused), a full disk (failed): the store stays as it was.
    pub fn add(&self, name: &str, adapter: &Adapter, activate: bool) -> Result<Added> {
        check_name(name)?;
        adapter.check()?;
        let mut named = adapter.clone();
        named.name = name.into();
        let bytes = named.to_bytes(TensorType::F32)?;
        let folder = self.folder(name);
        self.make_folder(&folder)?;
        let _lock = self.lock()?;
        remove_stale_temps(&folder)?;
        let generations = self.generations(name)?;
        let active = self.active(name)?;
        let mut same = None;
        for &generation in &generations {
            // A damaged generation is not the same as anything.
            if read_limited(&self.file(name, generation), MAX_FILE).is_ok_and(|b| b == bytes) {
                same = Some(generation);
            }
        }
        let generation = match same {
            Some(generation) => generation,
            None => {
                let after = generations.last().map_or(1, |last| last.saturating_add(1));
                let next = self.pointer(&folder.join(NEXT))?.unwrap_or(1).max(after);
                write_atomic_bytes(&self.file(name, next), Access::ReadOnly, &bytes)?;
                next
            }
        };
        let activate = activate || active.is_none();
        if activate && active != Some(generation) {
            self.point(&folder.join(ACTIVE), generation)?;
        }
        let active = activate || active == Some(generation);
        Ok(Added { generation, new: same.is_none(), active })
    }

    /// Makes `reference`'s generation (its newest, if it names none) the active one, after reading
    /// it. Gives back the generation and the one that was active before.
    ///
    /// # Errors
    /// As [`Store::load`]; a change going on elsewhere (refused).
    pub fn activate(&self, reference: &Reference) -> Result<(u64, Option<u64>)> {
        let name = reference.name();
        self.known(name)?;
        let _lock = self.lock()?;
        let generation = match reference.generation() {
            Some(generation) => generation,
            None => self.known(name)?.last().copied().unwrap_or(1),
        };
        let exact = Reference::parse(&format!("{name}@{generation}"))?;
        self.load(&exact)?;
        // A pointer that can't be read is no reason not to mend it.
        let before = self.active(name).unwrap_or(None);
        if before != Some(generation) {
            self.point(&self.folder(name).join(ACTIVE), generation)?;
        }
        Ok((generation, before))
    }

    /// Removes one generation, or all of a name's. Gives back those removed. The active one goes
    /// only with `force`; then the name serves nothing.
    ///
    /// # Errors
    /// No such name or generation (usage), the active one without `force` (refused).
    pub fn remove(&self, reference: &Reference, force: bool) -> Result<Vec<u64>> {
        let name = reference.name();
        self.known(name)?;
        let _lock = self.lock()?;
        let generations = self.known(name)?;
        let active = self.active(name).or_else(|e| if force { Ok(None) } else { Err(e) })?;
        let gone: Vec<u64> = match reference.generation() {
            Some(_) => vec![self.resolve(reference)?],
            None => generations.clone(),
        };
        let folder = self.folder(name);
        let pointed = active.is_some_and(|a| gone.contains(&a));
        if pointed && !force {
            return Err(Error::refused(format!(
                "generation {} of '{name}' is the active one",
                active.unwrap_or(0)
            ))
            .hint("switch to another one with 'adapter use', or add --force"));
        }
        let synced = || sync_folder(&folder).map_err(|e| Error::io(&folder, e));
        // The pointer goes first: it must never name a file that is gone.
        if pointed || gone.len() == generations.len() {
            remove_file(&folder.join(ACTIVE))?;
            synced()?;
        }
        // A number is never given twice, or a reference could come to name another adapter.
        if let Some(last) = generations.last().filter(|last| gone.contains(last)) {
            self.point(&folder.join(NEXT), last.saturating_add(1))?;
        }
        for &generation in &gone {
            remove_file(&self.file(name, generation))?;
        }
        synced()?;
        Ok(gone)
    }

    /// The file of a generation.
    fn file(&self, name: &str, generation: u64) -> PathBuf {
        self.folder(name).join(format!("{generation:06}.adapter"))
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.root.join("adapters").join(name)
    }

    /// The generations of `name`, ascending; none if there is no such name.
    fn generations(&self, name: &str) -> Result<Vec<u64>> {
        let folder = self.folder(name);
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Ok(vec![]),
            Err(e) => return Err(Error::io(&folder, e)),
        };
        let mut found = vec![];
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&folder, e))?;
            let Ok(file) = entry.file_name().into_string() else { continue };
            let number = file.strip_suffix(".adapter").and_then(|n| n.parse::<u64>().ok());
            // Only the spelling that `file` gives.
            if let Some(n) = number.filter(|n| *n > 0 && format!("{n:06}.adapter") == file) {
                found.push(n);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The generations of a name that must be there.
    fn known(&self, name: &str) -> Result<Vec<u64>> {
        let generations = self.generations(name)?;
        if !generations.is_empty() {
            return Ok(generations);
        }
        let error = Error::usage(format!("no adapter '{name}' in '{}'", self.root.display()));
        let names: Vec<String> = self.list()?.into_iter().map(|e| e.name).collect();
        Err(match names.is_empty() {
            true => error.hint("the store is empty; 'adapter add FILE' fills it"),
            false => error.hint(format!("there are {}", names.join(", "))),
        })
    }

    fn resolve(&self, reference: &Reference) -> Result<u64> {
        let name = reference.name();
        let generations = self.known(name)?;
        let list = || generations.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        match reference.generation() {
            Some(n) if generations.contains(&n) => Ok(n),
            Some(n) => Err(Error::usage(format!("'{name}' has no generation {n}"))
                .hint(format!("it has {}", list()))),
            None => match self.active(name)? {
                Some(n) if generations.contains(&n) => Ok(n),
                Some(n) => Err(Error::bad_input(format!(
                    "the active generation {n} of '{name}' is missing from the store"
                ))
                .hint(format!("switch with 'adapter use' to one of {}", list()))),
                None => Err(Error::usage(format!("no generation of '{name}' is active"))
                    .hint(format!("switch with 'adapter use' to one of {}", list()))),
            },
        }
    }

    /// The number in a pointer file; `None` if there is no such file.
    fn pointer(&self, path: &Path) -> Result<Option<u64>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = read_text(path, MAX_POINTER)?;
        match text.trim_end().parse::<u64>() {
            Ok(n) if n > 0 => Ok(Some(n)),
            _ => Err(Error::bad_input(format!("'{}' holds no generation", path.display()))
                .hint("set it with 'adapter use'")),
        }
    }

    fn point(&self, path: &Path, generation: u64) -> Result<()> {
        write_atomic_bytes(path, Access::Shared, format!("{generation}\n").as_bytes())
    }

    /// Makes a folder and those above it, durably, for the owner alone: adapters tell of samples.
    fn make_folder(&self, folder: &Path) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let mut missing = vec![];
        let mut at = folder;
        while !at.is_dir() {
            missing.push(at);
            match at.parent().filter(|p| !p.as_os_str().is_empty()) {
                Some(parent) => at = parent,
                None => break,
            }
        }
        for folder in missing.into_iter().rev() {
            match std::fs::DirBuilder::new().mode(0o700).create(folder) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => {}
                Err(e) => return Err(Error::io(folder, e)),
            }
            let parent = folder.parent().filter(|p| !p.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            sync_folder(parent).map_err(|e| Error::io(parent, e))?;
        }
        Ok(())
    }

    /// The store's lock, waiting a little for another process's change to end.
    fn lock(&self) -> Result<FileLock> {
        let path = self.root.join("lock");
        let start = Instant::now();
        loop {
            match FileLock::exclusive(&path) {
                Err(e) if e.kind() == ErrorKind::Refused && start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
