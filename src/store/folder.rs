//! The store's files: content-addressed adapters, folders, and what is left over in them.

use super::db::{Fault, Outcome};
use super::state::Store;
use crate::adapter::MAX_FILE;
use crate::error::{Error, Result};
use crate::fs::{Access, read_limited, remove_stale_temps, sync_folder, write_atomic_bytes};
use rusqlite::Connection;
use std::collections::HashSet;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The folder of adapters.
const ADAPTERS: &str = "adapters";
/// The folder of jobs.
const JOBS: &str = "jobs";

/// Hex of a file's hash.
fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

/// Makes a folder and those above it, durably, for the owner alone: what is in it tells of samples.
pub(super) fn make(folder: &Path) -> Result<()> {
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
        sync(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

/// Makes the database's file for the owner alone, before SQLite makes one for everybody. Its log
/// takes the same mode.
pub(super) fn make_private(path: &Path) -> Result<()> {
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => sync(path.parent().unwrap_or(Path::new("."))),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// Whether this process may write the file `path`, or make files in the folder `path`.
pub(super) fn writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// An error if `root` holds a store of the form before there was a database.
pub(super) fn refuse_old(root: &Path, database: &Path) -> Result<()> {
    if database.exists() {
        return Ok(());
    }
    let Ok(entries) = std::fs::read_dir(root.join(ADAPTERS)) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.path().is_dir() {
            return Err(Error::unsupported(format!(
                "'{}' holds a store of an earlier version (a folder for each name)",
                root.display()
            ))
            .hint("move it away and add its files with 'adapter add'"));
        }
    }
    Ok(())
}

pub(super) fn sync(folder: &Path) -> Result<()> {
    sync_folder(folder).map_err(|e| Error::io(folder, e))
}

impl Store {
    /// The file of an adapter with this hash.
    pub(super) fn adapter_path(&self, hash: &[u8; 32]) -> PathBuf {
        self.root().join(ADAPTERS).join(format!("{}.adapter", hex(hash)))
    }

    /// The folder of a job's files (checkpoint, candidate, log). Made by [`Store::make_job_folder`].
    pub fn job_folder(&self, job: i64) -> PathBuf {
        self.root().join(JOBS).join(job.to_string())
    }

    /// Makes the folder of a job's files, clears it of what a killed child was writing, and gives
    /// back its path.
    pub fn make_job_folder(&self, job: i64) -> Result<PathBuf> {
        let folder = self.job_folder(job);
        make(&folder)?;
        remove_stale_temps(&folder)?;
        Ok(folder)
    }

    /// Writes an adapter's bytes, durably, before anything points to them. Inside a write
    /// transaction, so that [`Store::collect`] doesn't take them for left over.
    pub(super) fn put_adapter(&self, hash: &[u8; 32], bytes: &[u8]) -> Result<()> {
        let path = self.adapter_path(hash);
        make(&self.root().join(ADAPTERS))?;
        // A file that is damaged, or was never synced, is written anew.
        write_atomic_bytes(&path, Access::ReadOnly, bytes)
    }

    /// An adapter's bytes, their hash checked.
    pub(super) fn get_adapter(&self, hash: &[u8; 32]) -> Result<Vec<u8>> {
        let path = self.adapter_path(hash);
        let bytes = read_limited(&path, MAX_FILE)?;
        if blake3::hash(&bytes).as_bytes() != hash {
            return Err(Error::bad_input(format!(
                "'{}' is damaged (its hash does not hold)",
                path.display()
            ))
            .hint("go back with 'adapter rollback', or add the adapter again"));
        }
        Ok(bytes)
    }

    pub(super) fn verify_adapters(&self) -> Result<()> {
        let hashes: HashSet<[u8; 32]> = self.read(|c| pointed_to(c))?;
        for hash in hashes {
            self.get_adapter(&hash)?;
        }
        Ok(())
    }

    /// Removes files that nothing points to: of an add that was cut before its transaction, of
    /// removals that were cut after theirs. Returns the bytes freed.
    pub(super) fn collect(&self) -> Result<u64> {
        let hashes = self.read(|c| pointed_to(c))?;
        let jobs = self.read(|c| job_ids(c))?;
        if self.left_over(&hashes, &jobs)?.is_empty() {
            return Ok(0);
        }
        // Once more with the writers' lock: an adapter's file comes before the row that names it.
        self.write(|c| {
            let left = self.left_over(&pointed_to(c)?, &job_ids(c)?)?;
            let mut freed = 0;
            for path in &left {
                freed += remove(path)?;
            }
            for folder in [ADAPTERS, JOBS].map(|f| self.root().join(f)) {
                if left.iter().any(|path| path.starts_with(&folder)) {
                    sync(&folder)?;
                }
            }
            Ok(freed)
        })
    }

    /// Files of the store that nothing points to. Names that are not ours are left alone.
    fn left_over(&self, hashes: &HashSet<[u8; 32]>, jobs: &HashSet<i64>) -> Result<Vec<PathBuf>> {
        let adapters = self.root().join(ADAPTERS);
        if adapters.is_dir() {
            remove_stale_temps(&adapters)?;
        }
        let mut found = vec![];
        for path in entries(&adapters)? {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let hash = name.strip_suffix(".adapter").and_then(|h| blake3::Hash::from_hex(h).ok());
            if hash.is_some_and(|h| !hashes.contains(h.as_bytes())) {
                found.push(path);
            }
        }
        for path in entries(&self.root().join(JOBS))? {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.parse::<i64>().is_ok_and(|id| !jobs.contains(&id)) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            entries.map(|e| e.map(|e| e.path()).map_err(|e| Error::io(folder, e))).collect()
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(e) => Err(Error::io(folder, e)),
    }
}

/// Removes a file or a folder of files; returns its bytes. One that is gone already is no error.
fn remove(path: &Path) -> Result<u64> {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(Error::io(path, e)),
    };
    let mut bytes = meta.len();
    let removed = if meta.is_dir() {
        bytes = entries(path)?.iter().filter_map(|p| Some(p.symlink_metadata().ok()?.len())).sum();
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(bytes),
    }
}

/// The hashes of all files that generations have.
fn pointed_to(c: &Connection) -> Outcome<HashSet<[u8; 32]>> {
    let mut statement = c.prepare_cached("SELECT hash FROM generations WHERE state <> ?1")?;
    let rows = statement
        .query_map([super::generations::GenerationState::Retired.code()], |row| row.get(0))?;
    rows.map(|hash| hash.map_err(Fault::Sql)).collect()
}

/// The jobs whose files may stay.
fn job_ids(c: &Connection) -> Outcome<HashSet<i64>> {
    let mut statement = c.prepare_cached("SELECT id FROM jobs WHERE state <> ?1")?;
    let rows = statement.query_map([super::jobs::JobState::Forgotten.code()], |row| row.get(0))?;
    rows.map(|id| id.map_err(Fault::Sql)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::store;

    /// A child killed while it wrote its checkpoint left a file of that size at every stop.
    #[test]
    fn a_jobs_folder_is_cleared_of_what_a_killed_child_was_writing() {
        let (_dir, store) = store();
        let folder = store.make_job_folder(3).unwrap();
        std::fs::write(folder.join(".checkpoint.4000000.0.tmp"), b"half").unwrap();
        std::fs::write(folder.join("checkpoint"), b"whole").unwrap();
        assert_eq!(store.make_job_folder(3).unwrap(), folder);
        let left: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "checkpoint");
    }
}
