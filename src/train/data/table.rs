//! Comma-separated values with a header: `text`, `image` or `audio`, the fields of a task (`label`, ...),
//! optionally `split`.

use super::collect::Collector;
use super::{MAX_FILE_BYTES, MAX_LINE_BYTES, Row};
use crate::error::{Error, Result};
use crate::fs::open_regular;
use crate::train::tasks::Task;
use csv::{ErrorKind, ReaderBuilder, StringRecord};
use serde_json::Map;
use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

/// Bytes that the parser reads at once, ahead of the record it is in.
const AHEAD: usize = 64 << 10;

/// Fails when more is read than is left: the parser itself has no limit on a record, and a quote
/// that is never closed makes one of the whole file.
struct Capped<R> {
    inner: R,
    left: Rc<Cell<usize>>,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        match self.left.get().checked_sub(n) {
            Some(left) => self.left.set(left),
            None => {
                let error = format!("record is longer than {MAX_LINE_BYTES} bytes");
                return Err(io::Error::other(Error::bad_input(error).hint("a quote not closed")));
            }
        }
        Ok(n)
    }
}

pub(super) fn read(path: &Path, collector: &mut Collector) -> Result<()> {
    let file = open_regular(path, MAX_FILE_BYTES)?.file.take(MAX_FILE_BYTES);
    let left = Rc::new(Cell::new(MAX_LINE_BYTES + AHEAD));
    let mut reader = ReaderBuilder::new()
        .buffer_capacity(AHEAD)
        .from_reader(Capped { inner: file, left: left.clone() });
    let header = match reader.headers() {
        Ok(header) => header.clone(),
        Err(e) => return Err(failure(e, 1, path, collector)),
    };
    if header.is_empty() {
        return Err(Error::bad_input("no samples").at(collector.place(0)));
    }
    let columns = columns(&header).map_err(|e| e.at(collector.place(1)))?;
    let mut record = StringRecord::new();
    loop {
        left.set(MAX_LINE_BYTES + AHEAD);
        let line = reader.position().line();
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(e) => return Err(failure(e, line, path, collector)),
        }
        let line = record.position().map_or(line, csv::Position::line);
        let place = collector.place(line);
        let mut fields = Map::new();
        for (name, column) in &columns {
            let cell = record.get(*column).unwrap_or("");
            let cell = if name == "text" { cell } else { cell.trim() };
            fields.insert(name.clone(), cell.into());
        }
        collector.row(Row::untyped(&fields), place)?;
    }
}

/// The columns that are read, by name.
fn columns(header: &StringRecord) -> Result<Vec<(String, usize)>> {
    let labels = Task::label_fields();
    let known = || ["text", "image", "audio", "split"].iter().chain(&labels);
    let mut columns: Vec<(String, usize)> = vec![];
    for (column, name) in header.iter().enumerate() {
        let name = name.trim();
        if !known().any(|k| *k == name) {
            continue;
        }
        if columns.iter().any(|(other, _)| other == name) {
            return Err(Error::bad_input(format!("two columns '{name}'")));
        }
        columns.push((name.into(), column));
    }
    let has = |name: &str| columns.iter().any(|(other, _)| other == name);
    let missing = |what: &str| {
        let names: Vec<&str> = header.iter().take(10).collect();
        Err(Error::bad_input(format!("no column {what}, found '{}'", names.join("', '"))))
    };
    let inputs: Vec<&str> = ["text", "image", "audio"].into_iter().filter(|n| has(n)).collect();
    match inputs.as_slice() {
        [] => missing("'text', 'image' or 'audio'"),
        [one, other, ..] => Err(Error::bad_input(format!("both columns '{one}' and '{other}'"))),
        _ if !labels.iter().any(|name| has(name)) => missing("'label'"),
        _ => Ok(columns),
    }
}

fn failure(e: csv::Error, line: u64, path: &Path, collector: &Collector) -> Error {
    let line = e.position().map_or(line, csv::Position::line);
    let place = collector.place(line);
    match e.into_kind() {
        ErrorKind::Io(e) => match e.downcast::<Error>() {
            Ok(ours) => ours.at(place),
            Err(e) => Error::io(path, e),
        },
        ErrorKind::Utf8 { err, .. } => {
            Error::bad_input(format!("field {} is not UTF-8 text", err.field() + 1)).at(place)
        }
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            Error::bad_input(format!("expected {expected_len} fields, found {len}")).at(place)
        }
        _ => Error::bad_input("malformed record").at(place),
    }
}
