//! One JSON object a line: `text` or `image`, `label`, optionally `split`; other fields are left.

use super::collect::{Collector, RawLabel};
use super::{MAX_FILE_BYTES, MAX_LINE_BYTES, Place};
use crate::error::{Error, Result};
use crate::fs::open_regular;
use serde::Deserialize;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

#[derive(Deserialize)]
struct Row {
    text: Option<String>,
    image: Option<String>,
    label: Option<Value>,
    split: Option<String>,
}

pub(super) fn read(path: &Path, collector: &mut Collector) -> Result<()> {
    // The limit also holds for a file that grows while it is read.
    let mut reader = BufReader::new(open_regular(path, MAX_FILE_BYTES)?.file.take(MAX_FILE_BYTES));
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut line);
        if read.map_err(|e| Error::io(path, e))? == 0 {
            return Ok(());
        }
        let place = collector.place(number);
        if line.len() > MAX_LINE_BYTES {
            let error = format!("line is longer than {MAX_LINE_BYTES} bytes");
            return Err(Error::bad_input(error).at(place));
        }
        let bytes = match number {
            1 => line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line),
            _ => &line,
        }
        .trim_ascii();
        if !bytes.is_empty() {
            add(collector, bytes, place)?;
        }
    }
    Ok(())
}

fn add(collector: &mut Collector, line: &[u8], place: Place) -> Result<()> {
    // serde would take a list as the fields in order.
    if line.first() != Some(&b'{') {
        let error = match serde_json::from_slice::<serde::de::IgnoredAny>(line) {
            Ok(_) => Error::bad_input("expected a JSON object"),
            Err(e) => malformed(&e),
        };
        return Err(error.at(place));
    }
    let row: Row = serde_json::from_slice(line).map_err(|e| malformed(&e).at(&place))?;
    let input = match (row.text, row.image) {
        (Some(text), None) => collector.text(text, &place)?,
        (None, Some(image)) => collector.picture(&image, &place)?,
        (None, None) => {
            return Err(Error::bad_input("no field 'text' or 'image'").at(place));
        }
        (Some(_), Some(_)) => {
            return Err(Error::bad_input("both fields 'text' and 'image'").at(place));
        }
    };
    let label = match row.label {
        None | Some(Value::Null) => return Err(Error::bad_input("no field 'label'").at(place)),
        Some(value) => label(&value).map_err(|e| e.at(&place))?,
    };
    collector.add(input, label, row.split.as_deref(), place)
}

fn label(value: &Value) -> Result<RawLabel> {
    match value {
        Value::String(name) => Ok(RawLabel::Name(name.clone())),
        Value::Bool(truth) => Ok(RawLabel::Name(truth.to_string())),
        Value::Number(number) => Ok(RawLabel::Scalar(number.to_string())),
        Value::Array(items) => {
            let number = |v: &Value| v.as_f64().map(|v| v as f32);
            let values: Option<Vec<f32>> = items.iter().map(number).collect();
            values
                .map(RawLabel::Values)
                .ok_or_else(|| Error::bad_input("label is a list of something else than numbers"))
        }
        _ => Err(Error::bad_input("label is neither a name nor a number")),
    }
}

/// The library counts lines within the one line it is given: only its column is of use.
fn malformed(e: &serde_json::Error) -> Error {
    let text = e.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    let kind = match e.classify() {
        serde_json::error::Category::Data => "unexpected JSON",
        _ => "not valid JSON",
    };
    Error::bad_input(format!("{kind} at column {}: {what}", e.column()))
}
