//! Backups, and what a person decides where a state can't be trusted.
//!
//! A backup is a folder: `state.db` (a whole database without a log), `adapters/`, and
//! `backup.json`, which names every file and its hash. It is made beside its place and renamed, so
//! that what has its name is whole.

use super::db::{self, Fault};
use super::events;
use super::folder::{self, ADAPTERS, hex};
use super::lost::{LOST, lose};
use super::opening;
use super::salvage;
use super::schema;
use super::state::{DATABASE, Store};
use super::witness::{self, Links, Record, Witness};
use crate::adapter::MAX_FILE;
use crate::error::{Cause, Error, ErrorKind, Result};
use crate::fs::{
    Access, FileLock, copy_all, read_limited, read_text, write_atomic, write_atomic_bytes,
};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What names a backup's files.
const MANIFEST: &str = "backup.json";
const MAX_MANIFEST: u64 = 64 << 20;
/// The form of [`Manifest`].
const VERSION: u32 = 1;
/// What is to become the database.
pub(super) const FRESH: &str = ".restored.db";
/// How often a backup is begun: the daemon may remove an old generation meanwhile.
const TRIES: usize = 3;

/// What is in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    /// When it was made, in seconds since 1970-01-01 UTC.
    time: u64,
    /// blake3 of `state.db`, 64 hex digits.
    database: String,
    changes: u64,
    samples: u64,
    generations: u64,
    /// blake3 of each adapter's file.
    adapters: Vec<String>,
}

/// What [`Store::backup`] has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// The folder.
    pub path: PathBuf,
    /// Adapter files in it.
    pub adapters: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Changes that were acknowledged when it was made: all of them are in it.
    pub changes: u64,
    /// Adapter files that are missing or damaged in the store, so that they are not in it.
    pub left_out: Vec<PathBuf>,
}

/// What [`Store::restore`] and [`Store::salvage`] have put in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The state's folder.
    pub state: PathBuf,
    /// The greatest number that a sample has.
    pub samples: u64,
    /// Generations that were made.
    pub generations: u64,
    /// Where the files that were there are now.
    pub before: Vec<PathBuf>,
}

impl Store {
    /// Makes a backup in the folder `to`, which must not be there. Other processes may use the
    /// store meanwhile; all that was acknowledged when this begins is in it. Adapter files are
    /// linked where that is possible, as they never change; the key is not in it.
    ///
    /// # Errors
    /// `to` is there, or its parent is not (usage); the state can't be trusted (refused); a full
    /// disk (failed). Nothing is left of it then.
    pub fn backup(&self, to: &Path) -> Result<Backup> {
        if let Some(why) = self.doubt() {
            return Err(Error::refused(format!("no backup is made: {why}"))
                .hint(db::DECIDE)
                .because(Cause::Doubtful));
        }
        if to.symlink_metadata().is_ok() {
            return Err(Error::usage(format!("'{}' is there already", to.display()))
                .hint("a backup gets a folder of its own"));
        }
        let parent = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !parent.is_dir() {
            return Err(Error::usage(format!("folder of '{}' does not exist", to.display())));
        }
        let whole = |path: &Path| std::fs::canonicalize(path).map_err(|e| Error::io(path, e));
        if whole(parent)?.starts_with(whole(&self.inner.root)?) {
            return Err(Error::usage(format!("'{}' lies in the state itself", to.display()))
                .hint("a backup belongs into another folder, best on another medium"));
        }
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let staged = Staged(parent.join(format!(".{name}.backup")));
        for again in (0..TRIES).rev() {
            staged.begin()?;
            let (mut made, missing) = self.backup_into(&staged.0)?;
            if missing && again > 0 {
                continue;
            }
            folder::sync(&staged.0)?;
            std::fs::rename(&staged.0, to).map_err(|e| Error::io(to, e))?;
            folder::sync(parent)?;
            made.path = to.into();
            return Ok(made);
        }
        Err(Error::failed("the store's files change all the time"))
    }

    /// Whether a file that the copied database names was missing, too.
    fn backup_into(&self, folder: &Path) -> Result<(Backup, bool)> {
        let database = folder.join(DATABASE);
        // SQLite makes files that others can read.
        folder::make_private(&database)?;
        self.copy_database(&database)?;
        let copy = Connection::open(&database).map_err(|e| Fault::Sql(e).at(&database))?;
        let read = || {
            let links = Links::read(&copy)?;
            Ok((folder::pointed_to(&copy)?, links, witness::counts(&copy)?))
        };
        let (hashes, links, [samples, generations]) = read().map_err(|e: Fault| e.at(&database))?;
        drop(copy);
        File::open(&database).and_then(|f| f.sync_all()).map_err(|e| Error::io(&database, e))?;
        folder::make(&folder.join(ADAPTERS))?;
        let mut bytes = std::fs::metadata(&database).map_or(0, |m| m.len());
        let (mut adapters, mut left_out, mut missing) = (vec![], vec![], false);
        for hash in hashes {
            let from = self.adapter_path(&hash);
            match put(&from, &folder.join(ADAPTERS), &hash) {
                Ok(length) => {
                    bytes += length;
                    adapters.push(hex(&hash));
                }
                Err(e) if e.kind() == ErrorKind::BadInput => {
                    missing |= !from.exists();
                    left_out.push(from);
                }
                Err(e) => return Err(e),
            }
        }
        adapters.sort();
        left_out.sort();
        let changes = links.map_or(0, |l| l.newest.number);
        let made = Backup {
            path: folder.into(),
            adapters: adapters.len() as u64,
            bytes,
            changes,
            left_out,
        };
        let database = blake3::Hash::from_bytes(witness::hash_of(&database)?).to_hex().to_string();
        let time = db::now();
        let manifest =
            Manifest { version: VERSION, time, database, changes, samples, generations, adapters };
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|e| Error::failed(format!("'{MANIFEST}' can't be written: {e}")))?;
        write_atomic_bytes(&folder.join(MANIFEST), Access::Private, &text)?;
        folder::sync(&folder.join(ADAPTERS))?;
        Ok((made, missing))
    }

    /// One state of the database, without its free pages.
    fn copy_database(&self, to: &Path) -> Result<()> {
        let copied = self.connection().execute("VACUUM INTO ?1", [to.to_string_lossy()]);
        copied.map(drop).map_err(|e| Fault::Sql(e).at(self.database()))
    }

    /// Puts the backup in the folder `from` in the place of the state in `root`, which is made if
    /// it is not there. What was there is moved to `lost`. No daemon may run on it.
    ///
    /// # Errors
    /// No whole backup (bad input); a daemon runs (refused); a full disk (failed). After a cut of
    /// power in the middle the state is as it was, or can't be trusted: this can be done again.
    pub fn restore(root: &Path, from: &Path) -> Result<Restored> {
        let manifest = check(from)?;
        let _alone = alone(root)?;
        folder::make(&root.join(ADAPTERS))?;
        for name in &manifest.adapters {
            let hash = *blake3::Hash::from_hex(name).map_err(|_| damaged(from))?.as_bytes();
            let there = read_limited(&root.join(ADAPTERS).join(file(&hash)), MAX_FILE);
            if !there.is_ok_and(|bytes| *blake3::hash(&bytes).as_bytes() == hash) {
                put(&from.join(ADAPTERS).join(file(&hash)), &root.join(ADAPTERS), &hash)?;
            }
        }
        folder::sync(&root.join(ADAPTERS))?;
        let fresh = root.join(FRESH);
        let opened = File::open(from.join(DATABASE)).map_err(|e| Error::io(from, e))?;
        write_atomic(&fresh, Access::Private, |to| copy_all(&opened, to))?;
        let text = format!("the state is that of a backup with {} changes", manifest.changes);
        take_place(root, &fresh, manifest.changes, &text)
    }

    /// Goes on with what can be read of the state in `root`, which is damaged or has lost
    /// something. What was there is moved to `lost`. No daemon may run on it.
    ///
    /// # Errors
    /// Nothing is wrong with the state (usage), a daemon runs (refused), a full disk (failed).
    pub fn salvage(root: &Path) -> Result<Restored> {
        let _alone = alone(root)?;
        let opened = opening::open(root)?;
        let Some(why) = opened.doubt else {
            return Err(Error::usage(format!(
                "nothing is wrong with the state in '{}'",
                root.display()
            )));
        };
        drop(opened.connection);
        let seen = witness::read(root);
        let fresh = root.join(FRESH);
        // Of an earlier try.
        folder::remove(&fresh)?;
        folder::make_private(&fresh)?;
        salvage::write_salvaged(&root.join(DATABASE), seen.record(), &fresh)?;
        let number = seen.record().map_or(0, |record| record.link.number);
        take_place(root, &fresh, number, &format!("what could be read was taken over: {why}"))
    }
}

/// Readies the database `fresh` and puts it in the place of what is there.
fn take_place(root: &Path, fresh: &Path, number: u64, text: &str) -> Result<Restored> {
    let known = witness::read(root).record().map_or(0, |record| record.link.number);
    let record = ready(fresh, number.max(known) + 1, text).map_err(|e| e.at(fresh))?;
    File::open(fresh).and_then(|f| f.sync_all()).map_err(|e| Error::io(fresh, e))?;
    let database = root.join(DATABASE);
    folder::make(&root.join(LOST))?;
    let mut before = vec![];
    // A log belongs to its database: beside another one it would be read as that one's.
    for suffix in ["db-wal", "db-shm"] {
        let path = root.join(DATABASE).with_extension(suffix);
        let empty = std::fs::metadata(&path).is_ok_and(|m| m.len() == 0);
        if suffix == "db-shm" || empty {
            folder::remove(&path)?;
        } else if path.exists() {
            before.push(lose(root, &path)?);
        }
    }
    if database.exists() {
        before.push(lose(root, &database)?);
    }
    std::fs::rename(fresh, &database).map_err(|e| Error::io(&database, e))?;
    folder::sync(root)?;
    Witness::open(root)?.replace(&record)?;
    let Record { samples, generations, .. } = record;
    Ok(Restored { state: root.into(), samples, generations, before })
}

/// Gives a database its link, and takes from it what it says of another folder's files.
fn ready(path: &Path, number: u64, text: &str) -> Result<Record, Fault> {
    let mut connection = Connection::open(path)?;
    schema::upgrade(&mut connection, schema::STEPS)?;
    let transaction = connection.transaction()?;
    transaction.execute("DELETE FROM doomed", [])?;
    events::record(&transaction, "restored", None, text, None)?;
    let record = witness::restart(&transaction, number)?;
    transaction.commit()?;
    Ok(record)
}

/// The right to change the state, which a daemon has while it runs.
fn alone(root: &Path) -> Result<FileLock> {
    folder::make(root)?;
    folder::refuse_open(root)?;
    FileLock::exclusive(&root.join("daemon.lock")).map_err(|e| match e.kind() {
        ErrorKind::Refused => {
            Error::refused(format!("{}: a daemon uses this state", root.display()))
                .hint("stop it first ('systemctl stop offshoot')")
        }
        _ => e,
    })
}

/// Reads a backup's manifest and every file that it names.
fn check(from: &Path) -> Result<Manifest> {
    let text = read_text(&from.join(MANIFEST), MAX_MANIFEST).map_err(|e| {
        let e = e.at(format_args!("'{}' is no backup", from.display()));
        e.hint("'offshoot backup DIR' makes one")
    })?;
    let manifest: Manifest = serde_json::from_str(&text)
        .map_err(|e| Error::bad_input(format!("'{}': {e}", from.join(MANIFEST).display())))?;
    if manifest.version != VERSION {
        return Err(Error::unsupported(format!(
            "'{}' is a backup of version {}, this program knows {VERSION}",
            from.display(),
            manifest.version
        )));
    }
    let hash = blake3::Hash::from_bytes(witness::hash_of(&from.join(DATABASE))?);
    if hash.to_hex().as_str() != manifest.database {
        return Err(damaged(&from.join(DATABASE)));
    }
    for name in &manifest.adapters {
        let path = from.join(ADAPTERS).join(format!("{name}.adapter"));
        let hash = blake3::Hash::from_hex(name).map_err(|_| damaged(&from.join(MANIFEST)))?;
        if blake3::hash(&read_limited(&path, MAX_FILE)?) != hash {
            return Err(damaged(&path));
        }
    }
    Ok(manifest)
}

fn damaged(path: &Path) -> Error {
    Error::bad_input(format!("'{}' is damaged (its hash does not hold)", path.display()))
}

fn file(hash: &[u8; 32]) -> String {
    format!("{}.adapter", hex(hash))
}

/// Puts an adapter's file into `folder`, linked or copied, its hash checked. Gives its bytes.
/// Bad input: missing or damaged.
fn put(from: &Path, folder: &Path, hash: &[u8; 32]) -> Result<u64> {
    let bytes = read_limited(from, MAX_FILE)?;
    if blake3::hash(&bytes).as_bytes() != hash {
        return Err(damaged(from));
    }
    let to = folder.join(file(hash));
    // One that is there is damaged.
    folder::remove(&to)?;
    if std::fs::hard_link(from, &to).is_err() {
        write_atomic_bytes(&to, Access::ReadOnly, &bytes)?;
    }
    Ok(bytes.len() as u64)
}

/// A folder that is removed unless it has got its name.
struct Staged(PathBuf);

impl Staged {
    fn begin(&self) -> Result<()> {
        folder::remove(&self.0)?;
        folder::make(&self.0)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = folder::remove(&self.0);
    }
}
