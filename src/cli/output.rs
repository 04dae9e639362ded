//! What goes to stdout and stderr: lines for people, one JSON document for programs.

use crate::error::{Error, ErrorKind, Result};
use serde::Serialize;
use std::cell::RefCell;
use std::fmt::{Display, Write as _};
use std::io::{self, Write};

/// Standard output. A reader that has gone away (`| head`) ends the output, not the work; another
/// failure is told at the end.
pub struct Out {
    json: bool,
    broken: RefCell<Option<io::Error>>,
}

impl Out {
    /// For people, or with `json` for programs.
    pub fn new(json: bool) -> Out {
        Out { json, broken: RefCell::new(None) }
    }

    /// Whether the output is for programs.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether nobody reads any more.
    pub fn closed(&self) -> bool {
        self.broken.borrow().is_some()
    }

    /// A line for people; nothing with `--json`. Control characters become spaces: part of the
    /// text may come from files.
    pub fn line(&self, text: impl Display) {
        if !self.json {
            let text: String =
                text.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            self.raw(&format!("{}\n", text.trim_end()));
        }
    }

    /// The document for programs; nothing without `--json`.
    pub fn document(&self, value: &impl Serialize) -> Result<()> {
        if self.json {
            let text = serde_json::to_string_pretty(value)
                .map_err(|e| Error::failed(format!("the result can't be written as JSON: {e}")))?;
            self.raw(&format!("{text}\n"));
        }
        Ok(())
    }

    /// Text as it is.
    pub fn raw(&self, text: &str) {
        let mut broken = self.broken.borrow_mut();
        if broken.is_none() {
            let mut stdout = io::stdout().lock();
            *broken = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).err();
        }
    }

    /// A remark for people on stderr; nothing with `--json`.
    pub fn remark(&self, text: impl Display) {
        if !self.json {
            error_line(&text.to_string());
        }
    }

    /// The one line about an error, on stderr.
    pub fn error(&self, error: &Error) {
        if self.json {
            let value = serde_json::json!({"error": {
                "kind": kind_name(error.kind()),
                "message": error.message(),
                "hint": error.hint_text(),
            }});
            // Nobody is left to tell where stderr is closed.
            let _ = writeln!(io::stderr(), "{value}");
        } else {
            error_line(&error.to_string());
        }
    }

    /// An error if the output could not be written whole.
    pub fn finish(&self) -> Result<()> {
        match self.broken.borrow_mut().take() {
            Some(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::failed(format!("standard output: {e}")))
            }
            _ => Ok(()),
        }
    }
}

/// Longest message for people in characters; what is longer repeats itself or comes from a file.
const MAX_MESSAGE: usize = 900;

/// `offshoot: TEXT` on stderr, on one line.
pub fn error_line(text: &str) {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // Nobody is left to tell where stderr is closed.
    let _ = writeln!(io::stderr(), "offshoot: {}", shortened(&text));
}

/// Without the middle, where it is too long: the place stands first, the reason last.
fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= MAX_MESSAGE {
        return text.to_string();
    }
    let part = MAX_MESSAGE / 2;
    let (head, tail) = (text.chars().take(part), text.chars().skip(count - part));
    head.chain(" ... ".chars()).chain(tail).collect()
}

/// The kind's name in JSON.
pub fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Failed => "failed",
        ErrorKind::Usage => "usage",
        ErrorKind::BadInput => "bad_input",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Mismatch => "mismatch",
        ErrorKind::Refused => "refused",
        ErrorKind::Unreachable => "unreachable",
    }
}

/// `24.7 MB`: powers of 1000.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        n if n < 1e3 => format!("{n} B"),
        n if n < 1e6 => format!("{:.1} kB", n / 1e3),
        n if n < 1e9 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.2} GB", n / 1e9),
    }
}

/// `12,345`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(c);
    }
    text
}

/// `1 x 3 x T`.
pub fn dims<T: Display>(dims: &[T]) -> String {
    if dims.is_empty() {
        return "scalar".into();
    }
    dims.iter().map(T::to_string).collect::<Vec<_>>().join(" x ")
}

/// Longest cell of a [`table`] in characters; names come from files and may have any length.
const MAX_CELL: usize = 100;

/// Rows in columns as wide as their widest cell, two spaces between.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let cut = |cell: &String| -> String {
        match cell.chars().count() {
            0..=MAX_CELL => cell.clone(),
            _ => cell.chars().take(MAX_CELL - 3).chain("...".chars()).collect(),
        }
    };
    let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(cut).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let mut line = String::from("  ");
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a string does not fail.
                let _ = write!(line, "{cell:<width$}  ");
            }
            line.trim_end().to_string()
        })
        .collect()
}

/// What a terminal obeys is not written to it: the text is a model's, and may be a stranger's.
#[cfg(any(feature = "daemon", feature = "text"))]
pub(super) fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(any(feature = "daemon", feature = "text"))]
    #[test]
    fn a_terminal_gets_no_commands() {
        assert_eq!(shown("a\n\tb\u{1b}[2J\r"), "a\n\tb\u{fffd}[2J\u{fffd}");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!([bytes(999), bytes(24_700_000), bytes(1_500)], ["999 B", "24.7 MB", "1.5 kB"]);
        assert_eq!([count(1), count(1234), count(1234567)], ["1", "1,234", "1,234,567"]);
        assert_eq!([dims(&[1, 3]), dims::<u8>(&[])], ["1 x 3", "scalar"]);
    }

    #[test]
    fn long_messages_keep_their_ends() {
        assert_eq!(shortened("short"), "short");
        let long = shortened(&format!("file{}reason", "ä".repeat(5000)));
        assert_eq!(long.chars().count(), MAX_MESSAGE + 5);
        assert!(long.starts_with("fileä") && long.ends_with("äreason"));
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "bb".into()], vec!["äöü".into(), "c".into()]];
        assert_eq!(table(&rows), ["  a    bb", "  äöü  c"]);
        let long = table(&[vec!["x".repeat(70_000), "y".into()]]);
        assert_eq!(long[0].len(), 2 + MAX_CELL + 2 + 1);
    }
}
