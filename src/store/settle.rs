//! What keeps the store's parts in step: the second record after each change, the log that is moved
//! into the database while it is small, and what a person is told where they are not in step.

use super::db::{self, Fault, Outcome};
use super::lost::LOST;
use super::state::{Inner, Store};
use super::witness::{self, Record, Witness};
use crate::error::{Error, Result};
use crate::fs::fault::{self, Op};
use rusqlite::Connection;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a log is waited for that another process reads, to forget and to end.
const PATIENCE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(1)];

impl Store {
    /// Why nothing is changed until a person has decided: the state is damaged, or has lost
    /// something that was acknowledged. What can be read is read.
    pub fn doubt(&self) -> Option<String> {
        self.inner.doubt.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a person should know of the state, in sentences; none where all is well. Asks no disk.
    pub fn problems(&self) -> Vec<String> {
        let unrecorded = self.inner.unrecorded.read().unwrap_or_else(PoisonError::into_inner);
        let lost = match self.inner.lost.load(Ordering::Relaxed) {
            0 => None,
            count => Some(format!(
                "{count} files that the database doesn't know are in '{}': 'offshoot adapter add' \
                 takes an adapter from there",
                self.inner.root.join(LOST).display()
            )),
        };
        let record =
            unrecorded.as_ref().map(|e| format!("the second record can't be written: {e}"));
        [self.doubt(), record, lost].into_iter().flatten().collect()
    }

    /// Moves the log into the database, where no other process reads or writes: for when there is
    /// nothing to do, and at the end. What was acknowledged is safe either way.
    pub fn settle(&self) -> Result<()> {
        self.inner.settle(PATIENCE[1])
    }

    /// As [`Store::settle`], if nothing was written for this long; waits for nobody.
    pub fn settle_idle(&self, idle: Duration) -> Result<()> {
        let log = std::fs::metadata(self.inner.database.with_extension("db-wal"));
        let age = log.ok().and_then(|meta| meta.modified().ok()?.elapsed().ok());
        if age.is_none_or(|age| age < idle) {
            return Ok(());
        }
        self.inner.settle(Duration::ZERO)
    }

    /// As [`Store::settle`], for who has the connection. Whether the log is empty.
    pub(super) fn move_log(&self, connection: &Connection) -> Outcome<bool> {
        self.inner.move_log(connection, PATIENCE[0])
    }

    /// Has the log moved into the database from so many bytes on.
    #[cfg(test)]
    pub(super) fn limit_log(&self, bytes: u64) {
        self.inner.log_limit.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What stays in the log is safe there; the next that opens the store goes on with it.
        let _ = self.settle(Duration::ZERO);
    }
}

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction has rolled it back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The second record's file. Where it could not be opened it is tried again.
    fn witness(&self) -> Result<&Witness> {
        match self.witness.get() {
            Some(witness) => Ok(witness),
            None => {
                let opened = Witness::open(&self.root)?;
                Ok(self.witness.get_or_init(|| opened))
            }
        }
    }

    /// Puts a change into the second record. It is done and durable whatever comes of this.
    pub(super) fn record(&self, record: &Record) {
        let noted = self.witness().and_then(|witness| witness.note(record));
        let failed = noted.err().map(|e| e.to_string());
        let mut unrecorded = self.unrecorded.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(e) = failed.as_ref().filter(|e| unrecorded.as_ref() != Some(e)) {
            tracing::error!("what is acknowledged can't be recorded a second time: {e}");
        }
        *unrecorded = failed;
    }

    /// An error in our words. After one that shows damage nothing is changed any more.
    pub(super) fn noticed(&self, fault: Fault) -> Error {
        let damage = matches!(&fault, Fault::Sql(e) if db::is_damage(e));
        let error = fault.at(&self.database);
        if damage {
            let mut doubt = self.doubt.write().unwrap_or_else(PoisonError::into_inner);
            doubt.get_or_insert_with(|| {
                tracing::error!("{error}");
                error.message().to_string()
            });
        }
        error
    }

    fn log_length(&self) -> u64 {
        std::fs::metadata(self.database.with_extension("db-wal")).map_or(0, |m| m.len())
    }

    /// Moves the log into the database once it is large.
    pub(super) fn keep_log_small(&self, connection: &Connection) {
        if self.log_length() > self.log_limit.load(Ordering::Relaxed)
            && let Err(e) = self.move_log(connection, Duration::ZERO)
        {
            tracing::warn!("the log is not moved into the database: {}", e.at(&self.database));
        }
    }

    pub(super) fn settle(&self, patience: Duration) -> Result<()> {
        let doubtful = self.doubt.read().unwrap_or_else(PoisonError::into_inner).is_some();
        let known = |root: &Path| {
            witness::read(root).record().is_some_and(|record| record.database.is_some())
        };
        if self.read_only || doubtful || (self.log_length() == 0 && known(&self.root)) {
            return Ok(());
        }
        // Who has it may wait for a medium that hangs.
        let Ok(connection) = self.connection.try_lock() else { return Ok(()) };
        let moved = self.move_log(&connection, patience);
        moved.map(drop).map_err(|e| e.at(&self.database))
    }

    /// Moves the log into the database and empties it. `false` if another process reads an older
    /// state or writes. Before, the second record forgets the database's hash; then it gets the new
    /// one: where it can't be written the log stays.
    pub(super) fn move_log(&self, connection: &Connection, patience: Duration) -> Outcome<bool> {
        let Ok(turn) = self.witness().and_then(Witness::turn) else { return Ok(false) };
        turn.set_database(None)?;
        let start = Instant::now();
        connection.busy_timeout(Duration::ZERO)?;
        let moved = loop {
            let busy: rusqlite::Result<i64> =
                connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
            match busy {
                Ok(0) => {
                    // Too late to fail.
                    let _ = fault::point(Op::Committed, &self.database);
                    break Ok(true);
                }
                Err(e) if !db::is_busy(&e) => break Err(e),
                _ if start.elapsed() >= patience => break Ok(false),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        connection.busy_timeout(db::PATIENCE)?;
        let moved = moved?;
        if moved {
            turn.set_database(Some(witness::hash_of(&self.database)?))?;
        }
        Ok(moved)
    }
}
