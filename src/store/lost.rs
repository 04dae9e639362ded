//! What the store's folder holds and its database doesn't know. Files that the database once knew
//! and said to remove (`doomed`) are deleted; all others are moved to `lost`, where nothing touches
//! them but `forget`: beside a database that is new, was emptied or is an older one they may be all
//! that is left.

use super::db::{Fault, Outcome};
use super::events;
use super::folder::{self, ADAPTERS, JOBS, entries, hex};
use super::state::Store;
use crate::adapter::Adapter;
use crate::error::{Error, Result};
use rusqlite::Connection;
use serde::Serialize;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// The folder of what is unknown.
pub(super) const LOST: &str = "lost";
/// Most entries that are listed.
const LISTED: usize = 100;

/// Something in `lost`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Where it is.
    pub path: PathBuf,
    /// The name that the adapter in it has, if it is an adapter's file that can be read.
    pub name: Option<String>,
}

impl Store {
    /// What was found in the folder and not known by the database, the first hundred. 'adapter add'
    /// takes an adapter from there.
    pub fn lost(&self) -> Vec<Lost> {
        let mut paths = entries(&self.root().join(LOST)).unwrap_or_default();
        paths.sort();
        paths.truncate(LISTED);
        let named = |path: PathBuf| {
            let is_adapter = path.extension().is_some_and(|e| e == "adapter");
            let name = is_adapter.then(|| Adapter::read(&path).ok().map(|a| a.name)).flatten();
            Lost { path, name }
        };
        paths.into_iter().map(named).collect()
    }

    /// How much is in `lost`.
    pub fn lost_count(&self) -> usize {
        let entries = std::fs::read_dir(self.root().join(LOST));
        let count = entries.map_or(0, |entries| entries.flatten().count());
        self.inner.lost.store(count, Ordering::Relaxed);
        count
    }

    /// Removes the files that the database has given up, and moves those that it doesn't know to
    /// `lost`. Returns the bytes freed.
    pub(super) fn collect(&self) -> Result<u64> {
        let known = self.read(|c| Known::read(c))?;
        if self.strays(&known)?.is_empty() && self.found_again(&known).is_empty() {
            return match known.doomed.is_empty() {
                true => Ok(0),
                false => self.write(|c| clear(c)).map(|()| 0),
            };
        }
        // Once more with the writers' lock: an adapter's file comes before the row that names it.
        self.write(|c| {
            let known = Known::read(c)?;
            let mut freed = 0;
            let mut lost = 0;
            let strays = self.strays(&known)?;
            for path in &strays {
                let name = path.strip_prefix(self.root()).unwrap_or(path);
                if known.doomed.contains(name) {
                    freed += folder::remove(path)?;
                } else {
                    self.lose(path)?;
                    lost += 1;
                }
            }
            for folder in [ADAPTERS, JOBS].map(|f| self.root().join(f)) {
                if strays.iter().any(|path| path.starts_with(&folder)) {
                    folder::sync(&folder)?;
                }
            }
            for path in self.found_again(&known) {
                folder::remove(&path)?;
            }
            clear(c)?;
            self.lost_count();
            if lost > 0 {
                let text = format!(
                    "{lost} files that the database doesn't know were moved to '{}'",
                    self.root().join(LOST).display()
                );
                tracing::warn!("{text}: 'adapter add' takes an adapter from there");
                events::record(c, "lost", None, &text, None)?;
            }
            Ok(freed)
        })
    }

    /// Moves a file or folder to `lost`, under a name that nothing has there.
    pub(super) fn lose(&self, path: &Path) -> Result<PathBuf> {
        lose(self.root(), path)
    }

    /// Removes all that is in `lost`; gives how many entries that were.
    pub(super) fn clear_lost(&self) -> Result<u64> {
        let folder = self.root().join(LOST);
        let entries = entries(&folder)?;
        for path in &entries {
            folder::remove(path)?;
        }
        if !entries.is_empty() {
            folder::sync(&folder)?;
        }
        self.lost_count();
        Ok(entries.len() as u64)
    }

    /// Files of ours that nothing points to. Names that are not ours are left alone.
    fn strays(&self, known: &Known) -> Result<Vec<PathBuf>> {
        let adapters = self.root().join(ADAPTERS);
        if adapters.is_dir() {
            crate::fs::remove_stale_temps(&adapters)?;
        }
        let mut found = vec![];
        for path in entries(&adapters)? {
            if hash_of(&path).is_some_and(|h| !known.hashes.contains(&h)) {
                found.push(path);
            }
        }
        for path in entries(&self.root().join(JOBS))? {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.parse::<i64>().is_ok_and(|id| !known.jobs.contains(&id)) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Adapters in `lost` that a generation has a file of again.
    fn found_again(&self, known: &Known) -> Vec<PathBuf> {
        let mut paths = entries(&self.root().join(LOST)).unwrap_or_default();
        paths.retain(|path| {
            hash_of(path).is_some_and(|h| known.hashes.contains(&h) && self.get_adapter(&h).is_ok())
        });
        paths
    }
}

/// Moves a file or folder of the store in `root` to `lost`.
pub(super) fn lose(root: &Path, path: &Path) -> Result<PathBuf> {
    let folder = root.join(LOST);
    folder::make(&folder)?;
    let parent = path.parent().unwrap_or(root);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    if parent != root && parent.file_name().is_some_and(|p| p == JOBS) {
        name = [OsStr::new("job-"), &name].join(OsStr::new(""));
    }
    let mut to = folder.join(&name);
    let mut number = 1;
    while to.symlink_metadata().is_ok() {
        number += 1;
        to = folder.join([&name, OsStr::new(&format!(".{number}"))].join(OsStr::new("")));
    }
    match std::fs::rename(path, &to) {
        Ok(()) => folder::sync(&folder).map(|()| to),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(to),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// What the database knows of files.
struct Known {
    hashes: HashSet<[u8; 32]>,
    jobs: HashSet<i64>,
    doomed: HashSet<PathBuf>,
}

impl Known {
    fn read(c: &Connection) -> Outcome<Known> {
        let mut statement = c.prepare_cached("SELECT path FROM doomed")?;
        let doomed = statement
            .query_map([], |row| row.get::<_, String>(0).map(PathBuf::from))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(Known { hashes: folder::pointed_to(c)?, jobs: folder::job_ids(c)?, doomed })
    }
}

fn clear(c: &Connection) -> Outcome<()> {
    c.execute("DELETE FROM doomed", []).map(drop).map_err(Fault::Sql)
}

/// The hash that an adapter's file is named by.
fn hash_of(path: &Path) -> Option<[u8; 32]> {
    let name = path.file_name()?.to_str()?.strip_suffix(".adapter")?;
    let hash = *blake3::Hash::from_hex(name).ok()?.as_bytes();
    // Upper case is nothing that we write.
    (hex(&hash) == name).then_some(hash)
}
