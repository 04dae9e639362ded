//! Comma-separated values with a header: `text` or `image`, `label`, optionally `split`.

use super::collect::{Collector, RawLabel};
use super::{MAX_FILE_BYTES, MAX_LINE_BYTES};
use crate::error::{Error, Result};
use crate::fs::open_regular;
use csv::{ErrorKind, ReaderBuilder, StringRecord};
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
    let columns = Columns::find(&header).map_err(|e| e.at(collector.place(1)))?;
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
        let field = |column: Option<usize>| column.and_then(|c| record.get(c));
        let input = match (field(columns.text), field(columns.image)) {
            (Some(text), _) => collector.text(text.to_string(), &place)?,
            (None, Some(image)) => collector.picture(image.trim(), &place)?,
            (None, None) => return Err(Error::bad_input("record is too short").at(place)),
        };
        let label = field(Some(columns.label)).unwrap_or("").trim().to_string();
        let split = field(columns.split).map(str::trim).filter(|s| !s.is_empty());
        collector.add(input, RawLabel::Scalar(label), split, place)?;
    }
}

struct Columns {
    text: Option<usize>,
    image: Option<usize>,
    label: usize,
    split: Option<usize>,
}

impl Columns {
    fn find(header: &StringRecord) -> Result<Columns> {
        let find = |name: &str| {
            let mut found =
                (0..header.len()).filter(|&i| header.get(i).map(str::trim) == Some(name));
            match (found.next(), found.next()) {
                (first, None) => Ok(first),
                _ => Err(Error::bad_input(format!("two columns '{name}'"))),
            }
        };
        let missing = |what: &str| {
            let names: Vec<&str> = header.iter().take(10).collect();
            Error::bad_input(format!("no column {what}, found '{}'", names.join("', '")))
        };
        let (text, image) = (find("text")?, find("image")?);
        match (text, image) {
            (None, None) => return Err(missing("'text' or 'image'")),
            (Some(_), Some(_)) => {
                return Err(Error::bad_input("both columns 'text' and 'image'"));
            }
            _ => {}
        }
        let label = find("label")?.ok_or_else(|| missing("'label'"))?;
        Ok(Columns { text, image, label, split: find("split")? })
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
