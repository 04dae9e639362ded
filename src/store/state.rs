//! The store itself: its folder, its database, transactions.

use super::db::{self, Fault, Outcome};
use super::opening::{self, Opened};
use super::rules::Rules;
use super::seal::{Key, random};
use super::witness::{self, Witness};
use super::{ballast, folder};
use crate::error::{Cause, Error, Result};
use crate::fs::fault::{self, Op};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

/// The database's file in the store's folder.
pub(super) const DATABASE: &str = "state.db";

/// How a store is opened.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Encrypts the samples. A store whose samples are plain is encrypted when it is first opened
    /// with a key; without its key a store's samples stay closed, all else works.
    pub key: Option<Key>,
    /// By which samples are taken in.
    pub rules: Rules,
}

/// All that lasts: adapters and their generations, samples, jobs, events. One folder:
/// `state.db` (SQLite) and `adapters/<blake3 of the file>.adapter`, `jobs/N/`.
///
/// Cheap to clone; clones share one connection. Several processes may open one store at once. What
/// a method has changed is on the medium when it returns.
#[derive(Clone)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) root: PathBuf,
    pub(super) database: PathBuf,
    pub(super) connection: Mutex<Connection>,
    pub(super) rules: RwLock<Rules>,
    pub(super) secrets: Secrets,
    pub(super) read_only: bool,
    /// Why nothing is changed until a person decides; a damage that shows later sets it too.
    pub(super) doubt: RwLock<Option<String>>,
    /// Empty where it could not be opened, or nothing is written.
    pub(super) witness: OnceLock<Witness>,
    /// Why the newest change is not in the second record.
    pub(super) unrecorded: RwLock<Option<String>>,
    /// Entries in `lost`, as they were last counted.
    pub(super) lost: AtomicUsize,
    /// Bytes of the log before it is moved into the database.
    pub(super) log_limit: AtomicU64,
}

/// What is needed to read and find samples.
#[derive(Clone)]
pub(super) struct Secrets {
    /// Seals inputs and labels.
    pub key: Option<Key>,
    /// Keys the hashes of inputs and labels; `None` while the store's key is not given.
    hash_key: Option<[u8; 32]>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.inner.root).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in the folder `root`, making it if it is not there, and finishes what a
    /// killed process left half done, if the disk has room for that. A folder that can't be written
    /// is opened for reading. So is a state that is damaged or has lost something that was
    /// acknowledged: [`Store::doubt`] says what is wrong, every change is refused, and nothing in
    /// the folder changes until a person has decided.
    ///
    /// # Errors
    /// Another program's database (bad input), one of a newer version (unsupported), a folder that
    /// everybody may write to (refused), what the file system says (failed).
    pub fn open(root: impl Into<PathBuf>) -> Result<Store> {
        Store::open_with(root, Options::default())
    }

    /// As [`Store::open`]. Errors also: another key than the store's (mismatch), rules that make no
    /// sense (usage).
    pub fn open_with(root: impl Into<PathBuf>, options: Options) -> Result<Store> {
        options.rules.validate()?;
        let root = root.into();
        let database = root.join(DATABASE);
        folder::refuse_old(&root, &database)?;
        folder::refuse_open(&root)?;
        let Opened { connection, read_only, doubt, witness, unrecorded, remark } =
            opening::open(&root)?;
        let doubtful = doubt.is_some();
        let connection = Mutex::new(connection);
        let mut store = Store {
            inner: Arc::new(Inner {
                root,
                database,
                connection,
                rules: RwLock::new(options.rules),
                secrets: Secrets { key: None, hash_key: None },
                read_only,
                doubt: RwLock::new(doubt),
                witness: witness.map_or_else(OnceLock::new, OnceLock::from),
                unrecorded: RwLock::new(unrecorded),
                lost: AtomicUsize::new(0),
                log_limit: AtomicU64::new(db::LOG),
            }),
        };
        let secrets = match store.unlock(options.key) {
            // Nothing is asked of samples that can't be read.
            Err(_) if doubtful => Secrets { key: None, hash_key: None },
            other => other?,
        };
        match Arc::get_mut(&mut store.inner) {
            Some(inner) => inner.secrets = secrets,
            None => return Err(Error::failed("the store was shared while it was opened")),
        }
        if let Some(why) = store.doubt() {
            tracing::error!("{why}");
        }
        if !read_only {
            store.tidy(remark);
        }
        store.lost_count();
        Ok(store)
    }

    /// Finishes what was left half done. On a full disk it stays for a later opening: whoever wants
    /// to make room needs the store open.
    fn tidy(&self, remark: Option<&str>) {
        let root = self.inner.root.display();
        if let Some(remark) = remark {
            tracing::warn!("'{root}': {remark}: it is made anew");
            if let Err(e) = self.event("record", None, &format!("{remark}: made anew"), None) {
                tracing::warn!("'{root}': {e}");
            }
        }
        if let Err(e) = self.finish_forgetting() {
            tracing::warn!("'{root}': what was forgotten is not cleared away yet: {e}");
        }
        if let Err(e) = self.collect() {
            tracing::warn!("'{root}': files that nothing points to stay: {e}");
        }
        if let Err(e) = folder::sweep_copies(&self.inner.root) {
            tracing::warn!("'{root}': copies of the database stay: {e}");
        }
        if let Err(e) = ballast::keep(&self.inner.root) {
            tracing::warn!("'{root}': no room is kept for a full disk: {e}");
        }
    }

    /// Opens the store in `root` if there is one, without making it.
    pub fn open_existing(root: impl Into<PathBuf>, options: Options) -> Result<Option<Store>> {
        let root = root.into();
        folder::refuse_old(&root, &root.join(DATABASE))?;
        // A record of what was acknowledged without the database: that one is lost, and it is said.
        if !root.join(DATABASE).exists() && !root.join(witness::FILE).exists() {
            return Ok(None);
        }
        Store::open_with(root, options).map(Some)
    }

    /// The folder of the user's store: `$OFFSHOOT_STORE`, else `$XDG_DATA_HOME/offshoot`, else
    /// `~/.local/share/offshoot`. Errors: none of the variables is set (usage).
    pub fn folder_of_user() -> Result<PathBuf> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        if let Some(root) = variable("OFFSHOOT_STORE") {
            return Ok(root.into());
        }
        // The XDG specification tells to ignore relative paths.
        let data = variable("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let home = || variable("HOME").map(|home| PathBuf::from(home).join(".local/share"));
        match data.or_else(home) {
            Some(data) => Ok(data.join("offshoot")),
            None => Err(Error::usage("no folder for the store: HOME is not set")
                .hint("set OFFSHOOT_STORE to a folder")),
        }
    }

    /// The user's store. Errors as [`Store::folder_of_user`] and [`Store::open`].
    pub fn of_user() -> Result<Store> {
        Store::open(Store::folder_of_user()?)
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Whether the folder can only be read: every change is an error.
    pub fn read_only(&self) -> bool {
        self.inner.read_only
    }

    /// Whether samples are encrypted under a key that this store was opened with.
    pub fn encrypted(&self) -> bool {
        self.inner.secrets.key.is_some()
    }

    /// Whether samples are encrypted, under whatever key.
    pub fn encrypted_at_rest(&self) -> Result<bool> {
        Ok(self.read(|c| Ok(db::meta(c, "key")?))?.is_some())
    }

    /// The rules in force.
    pub fn rules(&self) -> Rules {
        self.inner.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the rules for what comes in from now on, in this process. Errors as
    /// [`Rules::validate`].
    pub fn set_rules(&self, rules: Rules) -> Result<()> {
        rules.validate()?;
        *self.inner.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
        Ok(())
    }

    /// Reads the whole database and every adapter file and checks them. Takes seconds on a card.
    ///
    /// # Errors
    /// Bad input, naming the first thing that is damaged.
    pub fn verify(&self) -> Result<()> {
        if let Some(why) = self.doubt() {
            return Err(Error::bad_input(why).hint(db::DECIDE).because(Cause::Unreadable));
        }
        let said: String =
            self.read(|c| Ok(c.pragma_query_value(None, "integrity_check", |row| row.get(0))?))?;
        if said != "ok" {
            return Err(Error::bad_input(format!(
                "'{}' is damaged: {said}",
                self.inner.database.display()
            ))
            .because(Cause::Unreadable));
        }
        self.verify_adapters()
    }

    /// Runs `work` on one state of the database.
    pub(super) fn read<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Outcome<T>) -> Result<T> {
        self.transaction(TransactionBehavior::Deferred, work)
    }

    /// Runs `work` as one durable change: all of it or, on an error, nothing.
    pub(super) fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Outcome<T>) -> Result<T> {
        if let Some(why) = self.doubt() {
            return Err(Error::refused(format!("nothing is changed: {why}"))
                .hint(db::DECIDE)
                .because(Cause::Doubtful));
        }
        if self.inner.read_only {
            return Err(Error::failed(format!(
                "the store in '{}' can't be written: read-only",
                self.inner.root.display()
            ))
            .because(Cause::ReadOnly));
        }
        self.transaction(TransactionBehavior::Immediate, work)
    }

    fn transaction<T>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Transaction<'_>) -> Outcome<T>,
    ) -> Result<T> {
        let mut connection = self.connection();
        let run = || -> Outcome<T> {
            let transaction = connection.transaction_with_behavior(behavior)?;
            let before = transaction.total_changes();
            let value = work(&transaction)?;
            if matches!(behavior, TransactionBehavior::Deferred) {
                transaction.commit()?;
                return Ok(value);
            }
            let step = |op| fault::point(op, &self.inner.database);
            // A change of nothing is none.
            let changed = transaction.total_changes() != before;
            let record = if changed { Some(witness::advance(&transaction)?) } else { None };
            step(Op::Commit).map_err(|e| Error::io(&self.inner.database, e))?;
            transaction.commit()?;
            // It is durable: too late to fail.
            let _ = step(Op::Committed);
            if let Some(record) = record {
                self.inner.record(&record);
            }
            Ok(value)
        };
        let result = run().map_err(|fault| self.inner.noticed(fault));
        if result.is_ok() && matches!(behavior, TransactionBehavior::Immediate) {
            self.inner.keep_log_small(&connection);
        }
        result
    }

    pub(super) fn connection(&self) -> MutexGuard<'_, Connection> {
        self.inner.lock()
    }

    pub(super) fn database(&self) -> &Path {
        &self.inner.database
    }

    pub(super) fn secrets(&self) -> &Secrets {
        &self.inner.secrets
    }

    /// Finds the store's secrets, making them where it is new, and encrypts what is plain if there
    /// is a key now.
    fn unlock(&self, key: Option<Key>) -> Result<Secrets> {
        let stored =
            |c: &Connection| -> Outcome<_> { Ok((db::meta(c, "key")?, db::meta(c, "hash_key")?)) };
        let (id, hash_key) = self.read(|c| stored(c))?;
        let Some(hash_key) = hash_key else {
            let hash_key = random()?;
            // Another process may have been quicker: its secrets count then.
            let mine = self.write(|c| {
                if db::meta(c, "hash_key")?.is_some() {
                    return Ok(false);
                }
                let value = match &key {
                    Some(key) => {
                        db::set_meta(c, "key", key.id().as_bytes())?;
                        key.seal(b"hash_key", &hash_key)?
                    }
                    None => hash_key.to_vec(),
                };
                db::set_meta(c, "hash_key", &value)?;
                Ok(true)
            })?;
            return match mine {
                true => Ok(Secrets { key, hash_key: Some(hash_key) }),
                false => self.unlock(key),
            };
        };
        let damaged = || {
            Error::bad_input(format!(
                "'{}' is damaged: its hash key has another length",
                self.inner.database.display()
            ))
            .because(Cause::Unreadable)
        };
        let plain = |bytes: Vec<u8>| bytes.try_into().map_err(|_| damaged());
        match (id, key) {
            (None, None) => Ok(Secrets { key: None, hash_key: Some(plain(hash_key)?) }),
            (Some(_), None) => Ok(Secrets { key: None, hash_key: None }),
            (Some(id), Some(key)) if id == key.id().as_bytes() => {
                let hash_key = plain(key.open(b"hash_key", &hash_key)?)?;
                Ok(Secrets { key: Some(key), hash_key: Some(hash_key) })
            }
            (Some(id), Some(key)) => Err(Error::mismatch(format!(
                "the samples in '{}' are encrypted with another key: expected {}, found {}",
                self.inner.root.display(),
                String::from_utf8_lossy(&id),
                key.id()
            ))
            .because(Cause::Locked)),
            (None, Some(key)) => {
                let hash_key = plain(hash_key)?;
                let secrets = Secrets { key: Some(key), hash_key: Some(hash_key) };
                self.encrypt(&secrets)?;
                Ok(secrets)
            }
        }
    }

    /// The secrets for work on samples, after checking that no other process has encrypted the
    /// store since it was opened.
    pub(super) fn unlocked(&self, c: &Connection) -> Outcome<Unlocked<'_>> {
        let secrets = self.secrets();
        let (Some(hash_key), id) = (&secrets.hash_key, db::meta(c, "key")?) else {
            if let Some(why) = self.doubt() {
                let e = Error::refused(format!("no sample can be read: {why}"));
                return Err(Fault::Ours(e.hint(db::DECIDE).because(Cause::Unreadable)));
            }
            return Err(Fault::Ours(
                Error::refused(format!(
                    "the samples in '{}' are encrypted",
                    self.inner.root.display()
                ))
                .hint("give the key file that the daemon uses")
                .because(Cause::Locked),
            ));
        };
        let own = secrets.key.as_ref().map(|key| key.id().into_bytes());
        if own != id {
            return Err(Fault::Ours(
                Error::refused("the store was encrypted by another process")
                    .hint("open it again with the key")
                    .because(Cause::Locked),
            ));
        }
        Ok(Unlocked { key: secrets.key.as_ref(), hash_key })
    }
}

/// The secrets of a store whose samples can be read. Holding one proves that the key, if the store
/// has one, is the right one.
#[derive(Clone, Copy)]
pub(super) struct Unlocked<'a> {
    key: Option<&'a Key>,
    hash_key: &'a [u8; 32],
}

impl Unlocked<'_> {
    /// A hash that tells nothing to who has not the key.
    pub(super) fn hash(&self, kind: u8, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(self.hash_key);
        hasher.update(&[kind]);
        for part in parts {
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }

    pub(super) fn seal(&self, context: &[u8], plain: Vec<u8>) -> Result<Vec<u8>> {
        match self.key {
            Some(key) => key.seal(context, &plain),
            None => Ok(plain),
        }
    }

    pub(super) fn open(&self, context: &[u8], stored: Vec<u8>) -> Result<Vec<u8>> {
        match self.key {
            Some(key) => key.open(context, &stored),
            None => Ok(stored),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample_tests::sample;
    use super::super::{Selector, tests::store};
    use super::*;
    use std::io;

    /// A card was full when something was forgotten: the store could not be opened any more, so
    /// nobody could make room in it.
    #[test]
    fn a_forgetting_that_a_full_card_keeps_unfinished_leaves_the_store_open() {
        let (_dir, store) = store();
        let root = store.root().to_path_buf();
        store.add_sample(&sample("one", "a", "app")).unwrap();
        // Full once `room` transactions are committed.
        let full = |mut room: u32| {
            move |op: Op, _: &Path| match op {
                Op::Commit if room == 0 => Err(io::ErrorKind::StorageFull.into()),
                Op::Commit => {
                    room -= 1;
                    Ok(())
                }
                _ => Ok(()),
            }
        };
        let all = Selector { all: true, ..Selector::default() };
        let report = fault::with(full(1), || store.forget(&all)).unwrap();
        assert_eq!((report.samples, report.finished), (1, false));
        drop(store);
        let opened = fault::with(full(0), || Store::open(&root)).unwrap();
        let marked = |s: &Store| s.read(|c| Ok(db::meta(c, "forget")?)).unwrap().is_some();
        assert!(marked(&opened));
        // With room again the next one finishes it.
        assert!(!marked(&Store::open(&root).unwrap()));
    }
}
