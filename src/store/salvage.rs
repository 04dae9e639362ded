//! What can still be read of a database that is damaged or has lost something. Nothing in the
//! store's folder is changed: a copy is made, the log is moved into it past its damage, and where
//! that does not give a sound database, the rows that can be read are copied one by one.

use super::db::{self, Outcome, PAGE};
use super::log;
use super::schema;
use super::witness::{Links, Record};
use crate::error::{Error, Result};
use crate::fs::{Access, copy_all, write_atomic};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params_from_iter};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Largest log that is read: ours stay far below.
const MAX_LOG: u64 = 256 << 20;

/// How a copy's name begins.
pub(super) const COPY: &str = ".salvage.";

/// A readable state.
pub(super) struct Salvaged {
    /// For reading alone.
    pub connection: Connection,
    /// All that was acknowledged is in it.
    pub complete: bool,
    /// How it was come by, in words.
    pub how: String,
}

/// The log's bytes; empty where there is none.
pub(super) fn log_of(database: &Path) -> Result<Vec<u8>> {
    let path = database.with_extension("db-wal");
    match std::fs::metadata(&path) {
        Ok(meta) if meta.len() > 0 => crate::fs::read_limited(&path, MAX_LOG),
        _ => Ok(vec![]),
    }
}

/// Reads what can be read of `database`. `record` is what was acknowledged, if that is known.
pub(super) fn salvage(database: &Path, record: Option<&Record>) -> Result<Salvaged> {
    let root = database.parent().unwrap_or(Path::new("."));
    // A folder that can't be written, a disk that is full: without its log the database is read where
    // it is.
    let copied = copy(database, root).or_else(|_| copy(database, &std::env::temp_dir()));
    let as_it_is = |_| Copied { path: database.into(), bad: 0, mended: 0, unsure: true };
    let Copied { path, bad, mended, unsure } = copied.unwrap_or_else(as_it_is);
    let opened = open_copy(&path);
    let result = opened.and_then(|connection| {
        let mut how = match (bad, mended) {
            (0, _) => String::new(),
            (bad, mended) if bad == mended => {
                format!("{bad} places of the log were mended by their checksums")
            }
            (bad, _) => format!("{bad} places of the log are damaged"),
        };
        if let Some(complete) = sound(&connection, record) {
            return Ok(Salvaged { connection, complete: complete && !unsure, how });
        }
        let mut target = empty()?;
        let torn = copy_rows(&connection, &mut target, false)?;
        if !torn.is_empty() {
            let list = torn.join(", ");
            how = format!(
                "{how}{}rows are missing from {list}",
                if how.is_empty() { "" } else { "; " }
            );
        }
        Ok(Salvaged { connection: target, complete: false, how })
    });
    if path != database {
        // An open file stays readable without its name.
        let _ = std::fs::remove_file(&path);
    }
    result.map_err(|e| e.at(database))
}

/// Writes what can be read as a new database, `to`.
pub(super) fn write_salvaged(database: &Path, record: Option<&Record>, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    let Copied { path, .. } = copy(database, folder)?;
    let run = || -> Outcome<()> {
        let source = open_copy(&path)?;
        if sound(&source, record).is_some() {
            source.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
            return Ok(());
        }
        let mut target = Connection::open(to)?;
        prepare(&mut target)?;
        copy_rows(&source, &mut target, true)?;
        Ok(())
    };
    let result = run();
    let _ = std::fs::remove_file(&path);
    result.map_err(|e| e.at(to))
}

/// What is served where nothing can be read.
pub(super) fn nothing() -> Outcome<Salvaged> {
    let how = "nothing of it can be read".into();
    Ok(Salvaged { connection: empty()?, complete: false, how })
}

/// An empty database of this version, in memory.
fn empty() -> Outcome<Connection> {
    let mut connection = Connection::open_in_memory()?;
    prepare(&mut connection)?;
    Ok(connection)
}

fn prepare(connection: &mut Connection) -> Outcome<()> {
    connection.pragma_update(None, "page_size", PAGE)?;
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.set_prepared_statement_cache_capacity(64);
    schema::upgrade(connection, schema::STEPS)
}

struct Copied {
    path: PathBuf,
    bad: usize,
    mended: usize,
    /// A page of it may be wrong.
    unsure: bool,
}

/// A copy of the database in `folder` with its log moved into it.
fn copy(database: &Path, folder: &Path) -> Result<Copied> {
    let bytes = log_of(database).unwrap_or_default();
    let log = log::replay(&bytes, true);
    let path = folder.join(format!("{COPY}{}.db", std::process::id()));
    write_atomic(&path, Access::Private, |to| {
        match std::fs::File::open(database) {
            Ok(file) => copy_all(&file, to)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        to.flush()
    })?;
    let patch = || -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        for (number, content) in &log.pages {
            let at = u64::from(number.saturating_sub(1)) * u64::from(PAGE);
            file.write_all_at(content, at)?;
        }
        let length = file.metadata()?.len();
        let pages = match log.size {
            0 => length / u64::from(PAGE),
            size => u64::from(size),
        };
        file.set_len(pages * u64::from(PAGE))?;
        if pages > 0 {
            set_header(&file, pages)?;
        }
        Ok(())
    };
    match patch() {
        Ok(()) => {
            // Of an earlier build; on one that is damaged this changes nothing.
            let _ = Connection::open(&path).map(|mut c| schema::upgrade(&mut c, schema::STEPS));
            Ok(Copied { path, bad: log.bad, mended: log.mended, unsure: log.unsure })
        }
        Err(e) => {
            let _ = std::fs::remove_file(&path);
            Err(Error::io(&path, e))
        }
    }
}

/// Puts in what every header of ours says, without a log.
fn set_header(file: &std::fs::File, pages: u64) -> io::Result<()> {
    file.write_all_at(b"SQLite format 3\0", 0)?;
    let [high, low] = (PAGE as u16).to_be_bytes();
    // Page size; no log; no bytes reserved; payload fractions.
    file.write_all_at(&[high, low, 1, 1, 0, 64, 32, 32], 16)?;
    let pages = u32::try_from(pages).unwrap_or(u32::MAX);
    file.write_all_at(&pages.to_be_bytes(), 28)?;
    // That the size above is valid: change counter and version-valid-for are equal.
    let mut counter = [0; 4];
    file.read_exact_at(&mut counter, 24)?;
    file.write_all_at(&counter, 92)?;
    // Schema format, UTF-8.
    file.write_all_at(&4u32.to_be_bytes(), 44)?;
    file.write_all_at(&1u32.to_be_bytes(), 56)?;
    let mut version = [0; 4];
    file.read_exact_at(&mut version, 60)?;
    let known = schema::STEPS.len() as u32;
    let version = u32::from_be_bytes(version);
    if version == 0 || version > known {
        file.write_all_at(&known.to_be_bytes(), 60)?;
    }
    file.write_all_at(&(schema::APPLICATION as u32).to_be_bytes(), 68)
}

fn open_copy(path: &Path) -> Outcome<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let connection =
        Connection::open_with_flags(format!("file:{}?immutable=1", db::escaped(path)), flags)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Tables that come before a bad entry of the schema are read.
    connection.pragma_update(None, "writable_schema", true)?;
    // The first look at a bad schema fails, later ones go on with what there is.
    let _ = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
    Ok(connection)
}

/// How its tables were made. A bit of it may have changed and all pages be in order: no column has that name.
fn tables_of(c: &Connection) -> rusqlite::Result<Vec<(String, Option<String>)>> {
    let mut all = c.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name")?;
    all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Whether the database is sound, and then whether all that was acknowledged is in it.
fn sound(c: &Connection, record: Option<&Record>) -> Option<bool> {
    let said: String = c.pragma_query_value(None, "integrity_check", |row| row.get(0)).ok()?;
    let current = !schema::is_old(c).ok()?;
    let tables: i64 = c
        .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'names'", [], |row| row.get(0))
        .ok()?;
    if said != "ok"
        || !current
        || tables == 0
        || tables_of(c).ok()? != tables_of(&empty().ok()?).ok()?
    {
        return None;
    }
    let links = Links::read(c).ok()?;
    Some(match (record, links) {
        (Some(record), Some(links)) => links.newest == record.link,
        _ => false,
    })
}

/// Tables in the order in which they are read: who serves what comes first.
const TABLES: &[&str] = &[
    "meta",
    "names",
    "generations",
    "manifests",
    "history",
    "outcomes",
    "jobs",
    "events",
    "labels",
    "samples",
    "inputs",
];

/// Copies the rows that can be read. Gives the tables of which some could not.
fn copy_rows(from: &Connection, to: &mut Connection, inputs: bool) -> Outcome<Vec<&'static str>> {
    let mut torn = vec![];
    let wanted = TABLES.iter().filter(|table| inputs || **table != "inputs");
    for &table in wanted {
        let transaction = to.transaction()?;
        let columns: Vec<String> = transaction
            .prepare(&format!("SELECT name FROM pragma_table_info('{table}')"))?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if !copy_table(from, &transaction, table, &columns)? {
            torn.push(table);
        }
        transaction.commit()?;
    }
    Ok(torn)
}

/// Whether all rows were read.
fn copy_table(
    from: &Connection,
    to: &Connection,
    table: &str,
    columns: &[String],
) -> Outcome<bool> {
    // One that an earlier version made lacks columns. (In quotes their names would be taken for
    // strings.)
    let has =
        |column: &&String| from.prepare(&format!("SELECT [{column}] FROM {table} LIMIT 0")).is_ok();
    let columns: Vec<&String> = columns.iter().filter(has).collect();
    if columns.is_empty() {
        return Ok(false);
    }
    let list = columns.iter().map(|c| format!("[{c}]")).collect::<Vec<_>>().join(", ");
    let marks = vec!["?"; columns.len()].join(", ");
    let insert = format!("INSERT OR IGNORE INTO {table} ({list}) VALUES ({marks})");
    let mut insert = to.prepare(&insert)?;
    // From both ends, up to what can't be read.
    for order in ["", "ORDER BY 1 DESC"] {
        let whole = (|| -> rusqlite::Result<()> {
            let mut rows = from.prepare(&format!("SELECT {list} FROM {table} {order}"))?;
            let mut rows = rows.query([])?;
            while let Some(row) = rows.next()? {
                let values: Vec<Value> =
                    (0..columns.len()).map(|at| row.get(at)).collect::<rusqlite::Result<_>>()?;
                // A row that breaks a rule of the table is damaged.
                let _ = insert.execute(params_from_iter(values));
            }
            Ok(())
        })();
        if whole.is_ok() {
            return Ok(order.is_empty());
        }
    }
    Ok(false)
}
