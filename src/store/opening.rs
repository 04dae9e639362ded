//! Opening a store's database: what its second record, its log and its own bytes say of it decides
//! whether it is used, or only read until a person has decided.

use super::ballast;
use super::db;
use super::folder;
use super::log;
use super::salvage::{self, Salvaged};
use super::state::DATABASE;
use super::witness::{self, Links, Seen, Standing, Witness};
use crate::error::{Cause, Error, ErrorKind, Result};
use rusqlite::Connection;
use std::path::Path;
use std::time::Duration;

/// How often a look at files is taken again that other processes changed meanwhile.
const LOOKS: usize = 20;

/// A database that can be used, or one that can be read.
pub(super) struct Opened {
    pub connection: Connection,
    pub read_only: bool,
    /// Why it is not to be changed.
    pub doubt: Option<String>,
    /// `None` where nothing is to be written.
    pub witness: Option<Witness>,
    /// Why there is none where there should be one.
    pub unrecorded: Option<String>,
    /// What is worth an event.
    pub remark: Option<&'static str>,
}

pub(super) fn open(root: &Path) -> Result<Opened> {
    let database = root.join(DATABASE);
    let closed = || !folder::writable(root) || (database.exists() && !folder::writable(&database));
    // Before the database: another process that works on it puts it ahead of the record only.
    let (seen, suspicion) = look(root, &database)?;
    if let Some(why) = suspicion {
        return salvaged(root, &database, &seen, &why);
    }
    let opened = match open_database(root, &database) {
        Err(e) if e.cause() == Some(Cause::Full) && ballast::give_up(root) => {
            open_database(root, &database)
        }
        other => other,
    };
    let (connection, read_only) = match opened {
        Ok(connection) => {
            // SQLite opens a file that it can't write for reading.
            let read_only = connection.is_readonly("main").unwrap_or(false) || closed();
            (connection, read_only)
        }
        Err(e) if is_damage(&e, &seen) => return salvaged(root, &database, &seen, e.message()),
        Err(error) if database.exists() && closed() => {
            // What an earlier build made is no other failure's fault.
            let say = |e: Error| if e.kind() == ErrorKind::Refused { e } else { error };
            match db::open_read_only(&database) {
                Ok(connection) => (connection, true),
                Err(e) if is_damage(&e, &seen) => {
                    return salvaged(root, &database, &seen, e.message());
                }
                Err(e) => return Err(say(e)),
            }
        }
        Err(error) => return Err(error),
    };
    let standing = stand(&connection, &seen).map_err(|e| db::Fault::Sql(e).at(&database));
    let remark = match standing {
        Err(e) if is_damage(&e, &seen) => {
            drop(connection);
            return salvaged(root, &database, &seen, e.message());
        }
        Err(e) => return Err(e),
        Ok(Standing::Apart(why)) => {
            drop(connection);
            return salvaged(root, &database, &seen, &why);
        }
        Ok(Standing::Renewed(why)) => Some(why).filter(|why| !why.is_empty()),
        Ok(Standing::Agreed) => None,
    };
    let (mut witness, mut unrecorded) = (None, None);
    if !read_only {
        // On a full disk the store must open all the same: who makes room there needs it.
        let opened = Witness::open(root).or_else(|e| match ballast::give_up(root) {
            true => Witness::open(root),
            false => Err(e),
        });
        match opened {
            Ok(opened) => witness = Some(opened),
            Err(e) => unrecorded = Some(e.to_string()),
        }
    }
    Ok(Opened { connection, read_only, doubt: None, witness, unrecorded, remark })
}

fn stand(connection: &Connection, seen: &Seen) -> rusqlite::Result<Standing> {
    let links = Links::read(connection)?;
    let found = witness::counts(connection)?;
    Ok(witness::judge(seen, links.as_ref(), found))
}

/// Whether an error is damage of a database of ours.
fn is_damage(error: &Error, seen: &Seen) -> bool {
    let unreadable = error.cause() == Some(Cause::Unreadable);
    // One that the record knows is ours, whatever its head says.
    let foreign = error.message().contains(db::FOREIGN) && seen.record().is_none();
    unreadable && error.kind() == ErrorKind::BadInput && !foreign
}

/// The second record, and what files alone show to be wrong.
fn look(root: &Path, database: &Path) -> Result<(Seen, Option<String>)> {
    let mut seen = witness::read(root);
    for _ in 0..LOOKS {
        let found = suspicion(database, &seen)?;
        let again = witness::read(root);
        if found.is_none() || again == seen {
            // A log that another process begins anew looks torn for a moment.
            let still = match &found {
                Some(_) => {
                    std::thread::sleep(Duration::from_millis(5));
                    suspicion(database, &seen)? == found && witness::read(root) == seen
                }
                None => true,
            };
            if still {
                return Ok((seen, found));
            }
        }
        seen = witness::read(root);
    }
    // Somebody works on it without a pause: so it can be used.
    Ok((seen, None))
}

fn suspicion(database: &Path, seen: &Seen) -> Result<Option<String>> {
    let length = std::fs::metadata(database).map_or(0, |meta| meta.len());
    let log = salvage::log_of(database)?;
    let missing = match database.exists() {
        true => "is empty",
        false => "is missing",
    };
    // SQLite would delete a log beside an empty database.
    if length == 0 && !log.is_empty() {
        return Ok(Some(format!("'{DATABASE}' {missing}, and its log is there")));
    }
    let Some(record) = seen.record() else {
        // Of a store from before there was a record.
        return Ok(log::damage(&log).map(in_log));
    };
    if length == 0 && record.link.number > 0 {
        return Ok(Some(format!(
            "'{DATABASE}' {missing}, and {} changes with samples up to number {} and {} generations \
             were acknowledged",
            record.link.number, record.samples, record.generations
        )));
    }
    if let Some(at) = log::damage(&log) {
        return Ok(Some(in_log(at)));
    }
    match record.database {
        Some(hash) if length > 0 && witness::hash_of(database)? != hash => Ok(Some(format!(
            "'{DATABASE}' is another than when it was last written: damaged, replaced, or changed by \
             another program"
        ))),
        _ => Ok(None),
    }
}

fn in_log(at: usize) -> String {
    format!("its log '{DATABASE}-wal' is damaged at byte {at}")
}

/// A state that is read, and changed by nobody until a person has decided.
fn salvaged(root: &Path, database: &Path, seen: &Seen, why: &str) -> Result<Opened> {
    let Salvaged { connection, complete, how } = salvage::salvage(database, seen.record())
        .or_else(|_| salvage::nothing().map_err(|e| e.at(database)))?;
    let mut doubt = format!("the state in '{}' can't be trusted: {why}", root.display());
    if !how.is_empty() {
        doubt.push_str(&format!("; {how}"));
    }
    doubt.push_str(match complete {
        true => "; all that was acknowledged can be read, and is served",
        false => "; what can be read is served",
    });
    let doubt = Some(doubt);
    Ok(Opened { connection, read_only: true, doubt, witness: None, unrecorded: None, remark: None })
}

fn open_database(root: &Path, database: &Path) -> Result<Connection> {
    folder::make(root)?;
    folder::make_private(database)?;
    db::open(database)
}
