//! Plain text, for language models: stretches of whole lines.

use super::collect::Collector;
use super::{MAX_FILE_BYTES, Row};
use crate::error::{Error, Result};
use crate::fs::read_limited;
use crate::train::tasks::Task;
use serde_json::{Map, Value};
use std::path::Path;

/// Characters of a stretch, where lines allow it: some 250 tokens.
const STRETCH: usize = 1000;

pub(super) fn read(path: &Path, collector: &mut Collector) -> Result<()> {
    collector.prefer(Task::of_texts());
    let text = String::from_utf8(read_limited(path, MAX_FILE_BYTES)?)
        .map_err(|_| Error::bad_input(format!("'{}' is no UTF-8 text", path.display())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    for (line, stretch) in stretches(text) {
        let fields = Map::from_iter([("text".to_string(), Value::from(stretch))]);
        collector.row(Row::typed(&fields), collector.place(line))?;
    }
    Ok(())
}

/// Stretches of at most [`STRETCH`] characters, cut at line ends, a longer line at its blanks; each with
/// the number of its first line. What is blank is left out.
fn stretches(text: &str) -> Vec<(u64, String)> {
    let mut found: Vec<(u64, String)> = vec![];
    let mut length = STRETCH;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        for piece in pieces(line) {
            let count = piece.chars().count();
            match found.last_mut() {
                Some((_, last)) if length + count <= STRETCH => {
                    last.push_str(piece);
                    length += count;
                }
                _ => {
                    found.push((number, piece.to_string()));
                    length = count;
                }
            }
        }
    }
    found.retain(|(_, stretch)| !stretch.trim().is_empty());
    found
}

/// A line, or where it is too long parts of it.
fn pieces(line: &str) -> Vec<&str> {
    let mut pieces = vec![];
    let mut rest = line;
    while let Some((most, _)) = rest.char_indices().nth(STRETCH) {
        let at = rest[..most].rfind(' ').map_or(most, |blank| blank + 1);
        let (piece, tail) = rest.split_at(at);
        pieces.push(piece);
        rest = tail;
    }
    pieces.push(rest);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fill_stretches_and_nothing_is_lost() {
        let line = format!("{}\n", "word ".repeat(60).trim_end());
        let long = "w ".repeat(1200);
        let text = format!("{}{long}\n\n  \nend", line.repeat(5));
        let found = stretches(&text);
        let whole: String = found.iter().map(|(_, s)| s.as_str()).collect();
        assert_eq!(whole.trim(), text.trim());
        assert!(found.iter().all(|(_, s)| s.chars().count() <= STRETCH));
        assert_eq!(found[0].0, 1);
        assert_eq!(found[1].0, 4);
        assert!(found.len() >= 4, "{}", found.len());
        assert!(stretches(" \n\n").is_empty());
    }
}
