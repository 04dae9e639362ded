//! One JSON object a line: `text`, `image` or `audio`, the fields of a task (`label`, ...), optionally `split`;
//! other fields are left.

use super::collect::Collector;
use super::{MAX_FILE_BYTES, MAX_LINE_BYTES, Place, Row};
use crate::error::{Error, Result};
use crate::fs::open_regular;
use serde::de::{self, Deserialize, Deserializer, MapAccess};
use serde_json::{Map, Value};
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// An object in which no field stands twice.
struct Fields(Map<String, Value>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Fields, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Map::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if fields.contains_key(&name) {
                        return Err(de::Error::custom(format!("duplicate field `{name}`")));
                    }
                    fields.insert(name, value);
                }
                Ok(Fields(fields))
            }
        }
        d.deserialize_map(Visitor)
    }
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
    let Fields(fields) = serde_json::from_slice(line).map_err(|e| malformed(&e).at(&place))?;
    collector.row(Row::typed(&fields), place)
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
