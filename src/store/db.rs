//! The connection: how it is set up, transactions, and SQLite's errors in our words.

use super::schema;
use crate::error::{Cause, Error, Result};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a change waits for another process's.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a page. A sample touches eight or so, which go to the log one after another: small ones
/// spare the card (`wear_tests` has the figures: 12 KB a sentence reach the medium with 1024, 31 KB
/// with 4096).
pub(super) const PAGE: u32 = 1024;
/// Bytes of the write-ahead log before it is moved into the database: small, since it is where
/// damage costs most, and large enough that a page that changes often is moved seldom.
pub(super) const LOG: u64 = 1 << 20;

/// What a person can do about a state that is damaged or has lost something.
pub const DECIDE: &str = "'offshoot restore DIR' puts a backup in its place, 'offshoot restore --salvage' goes on with \
     what can be read; nothing is changed before";

/// How the refusal of another program's database reads.
pub(super) const FOREIGN: &str = "is the database of another program";

/// An error of ours or of SQLite, until the place is known.
pub(super) enum Fault {
    Ours(Error),
    Sql(rusqlite::Error),
}

/// The result of work inside a transaction.
pub(super) type Outcome<T> = std::result::Result<T, Fault>;

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Ours(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Fault {
        Fault::Sql(error)
    }
}

impl Fault {
    /// As an error about the database `path`.
    pub(super) fn at(self, path: &Path) -> Error {
        match self {
            Fault::Ours(error) => error,
            Fault::Sql(error) => explain(path, &error),
        }
    }
}

fn explain(path: &Path, error: &rusqlite::Error) -> Error {
    let path = path.display();
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        return Error::failed(format!("'{path}': {error}"));
    };
    match failure.code {
        ErrorCode::DiskFull => {
            Error::failed(format!("no space left on device while writing '{path}'"))
                .because(Cause::Full)
        }
        ErrorCode::ReadOnly => {
            Error::failed(format!("'{path}' can't be written: read-only")).because(Cause::ReadOnly)
        }
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied => {
            Error::failed(format!("'{path}' can't be opened: {error}"))
                .hint("check who owns the folder and its files")
        }
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            Error::refused(format!("'{path}' is in use by another process"))
                .hint("wait until the other command has ended")
                .because(Cause::Busy)
        }
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            Error::bad_input(format!("'{path}' is damaged: {error}"))
                .hint(DECIDE)
                .because(Cause::Unreadable)
        }
        ErrorCode::SystemIoFailure => Error::failed(format!(
            "'{path}': the disk failed ({error}, code {})",
            failure.extended_code
        )),
        _ => Error::failed(format!("'{path}': {error}")),
    }
}

/// Opens the database, making it or bringing it up to date.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let start = Instant::now();
    loop {
        match open_with(path, schema::STEPS) {
            // SQLite does not wait by itself while another process makes the log of a new database.
            Err(Fault::Sql(e)) if is_busy(&e) && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other.map_err(|e| e.at(path)),
        }
    }
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

/// Whether an error shows that the database is damaged.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

pub(super) fn open_with(path: &Path, steps: &[&str]) -> Outcome<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "page_size", PAGE)?;
    ours(&connection, path)?;
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(Fault::Ours(Error::failed(format!(
            "'{}': the file system has no shared memory for a write-ahead log",
            path.display()
        ))));
    }
    settle(&connection)?;
    // Acknowledged means on the medium.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "secure_delete", "ON")?;
    // The store does both itself, and says in its second record what the database is then.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    schema::upgrade(&mut connection, steps)?;
    Ok(connection)
}

/// Opens the database of a folder that can't be written; nothing is changed.
pub(super) fn open_read_only(path: &Path) -> Result<Connection> {
    let open = || -> Outcome<Connection> {
        let log = path.with_extension("db-wal");
        let log = std::fs::metadata(log).map_or(0, |m| m.len());
        // Without a log nothing can be pending, and without its index a reader would want to make
        // one: then the file is taken for one that never changes.
        let suffix = if log == 0 { "?immutable=1" } else { "" };
        let escaped = escaped(path);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI;
        let mut connection = Connection::open_with_flags(format!("file:{escaped}{suffix}"), flags)?;
        connection.busy_timeout(PATIENCE)?;
        ours(&connection, path)?;
        settle(&connection)?;
        if schema::is_old(&connection)? {
            return Err(Fault::Ours(
                Error::refused("an earlier build made the store, and it can't be written")
                    .hint("open it once where it can be, for example with 'offshoot adapter list'"),
            ));
        }
        schema::upgrade(&mut connection, schema::STEPS)?;
        Ok(connection)
    };
    open().map_err(|e| e.at(path))
}

/// A path as part of a URI.
pub(super) fn escaped(path: &Path) -> String {
    path.to_string_lossy()
        .chars()
        .map(|c| match c {
            '?' | '#' | '%' => format!("%{:02x}", u32::from(c)),
            c => c.to_string(),
        })
        .collect()
}

/// Refuses another program's database.
fn ours(connection: &Connection, path: &Path) -> Outcome<()> {
    // In this order: another process may be making the tables, and the mark comes with them.
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let id: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if id == schema::APPLICATION || tables == 0 {
        return Ok(());
    }
    Err(Fault::Ours(
        Error::bad_input(format!("'{}' {FOREIGN}", path.display())).because(Cause::Unreadable),
    ))
}

fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Seconds since 1970-01-01 UTC; 0 before.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// SQLite's integers are signed.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The other way; what is negative in the database is damaged and reads as 0.
pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A value of `meta`.
pub(super) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([key], |row| row.get(0))
        .optional()
}

/// A number of `meta`.
pub(super) fn meta_number(connection: &Connection, key: &str) -> rusqlite::Result<Option<i64>> {
    Ok(meta(connection, key)?.and_then(|bytes| Some(i64::from_le_bytes(bytes.try_into().ok()?))))
}

/// Sets a number of `meta`.
pub(super) fn set_meta_number(c: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
    set_meta(c, key, &value.to_le_bytes())
}

/// Sets a value of `meta`.
pub(super) fn set_meta(connection: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(rusqlite::params![key, value])?;
    Ok(())
}
