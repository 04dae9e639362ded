//! The store's files: content-addressed adapters, folders, and what is left over in them.

use super::db::{Fault, Outcome};
use super::state::Store;
use crate::adapter::MAX_FILE;
use crate::error::{Error, Result};
use crate::fs::{Access, read_limited, remove_stale_temps, sync_folder, write_atomic_bytes};
use rusqlite::Connection;
use std::collections::HashSet;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder of adapters.
pub(super) const ADAPTERS: &str = "adapters";
/// The folder of jobs.
pub(super) const JOBS: &str = "jobs";

/// A copy of the database that is so old is nobody's any more.
const COPIES: Duration = Duration::from_secs(600);

/// Hex of a file's hash.
pub(super) fn hex(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

/// The path of an adapter's file in the store's folder, as `doomed` has it.
pub(super) fn relative(hash: &[u8; 32]) -> String {
    format!("{ADAPTERS}/{}.adapter", hex(hash))
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

/// An error if everybody may write to the store's folder: who can replace its files decides what
/// is served.
pub(super) fn refuse_open(root: &Path) -> Result<()> {
    let mode = std::fs::metadata(root).map_or(0, |meta| meta.mode());
    if mode & 0o002 == 0 {
        return Ok(());
    }
    let shown = root.display();
    Err(Error::refused(format!(
        "'{shown}' has mode {:04o}: everybody can change the state in it",
        mode & 0o7777
    ))
    .hint(format!("chmod 700 {shown}, after looking at who has been there")))
}

/// Removes copies of the database that a killed process left: they hold samples.
pub(super) fn sweep_copies(root: &Path) -> Result<()> {
    for path in entries(root)? {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        // Those of a temporary file begin with one dot more.
        let name = name.strip_prefix('.').filter(|n| n.starts_with('.')).unwrap_or(name);
        let ours = name.starts_with(super::salvage::COPY) || name.starts_with(super::backup::FRESH);
        let age = path.symlink_metadata().ok().and_then(|m| m.modified().ok()?.elapsed().ok());
        if ours && age.is_some_and(|age| age > COPIES) {
            remove(&path)?;
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
        self.root().join(relative(hash))
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

    /// Notes that an adapter's file is to come: what a kill or a cut of power leaves without a row that points to
    /// it is ours to remove. One that is there already is not ours.
    pub(super) fn expect_adapter(&self, hash: &[u8; 32]) -> Result<()> {
        if self.adapter_path(hash).exists() {
            return Ok(());
        }
        self.write(|c| {
            c.execute("INSERT OR IGNORE INTO doomed VALUES (?1)", [relative(hash)])?;
            Ok(())
        })
    }

    /// Writes an adapter's bytes, durably, before anything points to them. Inside a write
    /// transaction, so that [`Store::collect`] doesn't take them for lost.
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
}

pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            entries.map(|e| e.map(|e| e.path()).map_err(|e| Error::io(folder, e))).collect()
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(e) => Err(Error::io(folder, e)),
    }
}

/// Removes a file or a folder of files; returns its bytes. One that is gone already is no error.
pub(super) fn remove(path: &Path) -> Result<u64> {
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
pub(super) fn pointed_to(c: &Connection) -> Outcome<HashSet<[u8; 32]>> {
    let mut statement = c.prepare_cached("SELECT hash FROM generations WHERE state <> ?1")?;
    let rows = statement
        .query_map([super::generations::GenerationState::Retired.code()], |row| row.get(0))?;
    rows.map(|hash| hash.map_err(Fault::Sql)).collect()
}

/// The jobs whose files may stay.
pub(super) fn job_ids(c: &Connection) -> Outcome<HashSet<i64>> {
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
