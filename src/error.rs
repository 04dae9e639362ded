//! The crate's one error type: a kind that fixes the exit code, one line of text, an optional hint.

use std::fmt;
use std::path::Path;

/// What went wrong, coarsely: decides the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The work failed for a reason outside the input (disk full, out of memory). Exit code 1.
    Failed,
    /// The request itself makes no sense (unknown output name, bad option value). Exit code 2.
    Usage,
    /// A file or value that is damaged, truncated or not of the expected format. Exit code 3.
    BadInput,
    /// A well-formed file that asks for something this crate can't do. Exit code 3.
    Unsupported,
    /// Two things that don't belong together (adapter of another base, unmatched target). Exit code 4.
    Mismatch,
    /// Refused by a gate or a limit. Exit code 5.
    Refused,
    /// The daemon can't be reached. Exit code 6.
    Unreachable,
}

impl ErrorKind {
    /// The process exit code for this kind (see the command line's documentation).
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::BadInput | ErrorKind::Unsupported => 3,
            ErrorKind::Mismatch => 4,
            ErrorKind::Refused => 5,
            ErrorKind::Unreachable => 6,
        }
    }
}

/// Why something was refused or failed, for callers that answer by it (HTTP codes, retries).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// There is no adapter, generation, sample or job of that name or number.
    NotFound,
    /// The active generation is another than the caller expected.
    Moved,
    /// A sample came without consent: nothing was stored.
    NoConsent,
    /// Something it learned from was forgotten meanwhile.
    Forgotten,
    /// The samples are encrypted, and no key or another one was given.
    Locked,
    /// Another process holds the store.
    Busy,
    /// The disk, or what one may use of it, is full.
    Full,
    /// The disk or folder can't be written.
    ReadOnly,
    /// The database is damaged or was made by a newer version.
    Unreadable,
    /// The state of a training run is damaged.
    Checkpoint,
    /// It takes more memory than there may be for it, ever.
    TooLarge,
    /// Others have the memory at this moment.
    Short,
    /// It was told to stop.
    Stopped,
    /// The answer holds NaN or infinity.
    NotFinite,
    /// The state is damaged or has lost something: nothing is changed until a person has decided.
    Doubtful,
}

/// An error: kind, one line that says what, where, expected and found, and a hint if there is one.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    cause: Option<Cause>,
    only: Option<(String, i64)>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind`; `message` is lower case, without a period, on one line.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        let message = one_line(&message.into());
        Error(Box::new(Inner { kind, message, hint: None, cause: None, only: None }))
    }

    /// [`ErrorKind::Failed`].
    pub fn failed(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Failed, message)
    }

    /// [`ErrorKind::Usage`].
    pub fn usage(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Usage, message)
    }

    /// [`ErrorKind::BadInput`].
    pub fn bad_input(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::BadInput, message)
    }

    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Unsupported, message)
    }

    /// [`ErrorKind::Mismatch`].
    pub fn mismatch(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Mismatch, message)
    }

    /// [`ErrorKind::Refused`].
    pub fn refused(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Refused, message)
    }

    /// [`ErrorKind::Failed`] from an I/O error at `path`.
    pub fn io(path: impl AsRef<Path>, error: std::io::Error) -> Error {
        Error::failed(format!("{}: {error}", path.as_ref().display()))
    }

    /// Adds what to try next.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint = Some(one_line(&hint.into()));
        self
    }

    /// Adds the cause.
    pub fn because(mut self, cause: Cause) -> Error {
        self.0.cause = Some(cause);
        self
    }

    /// States that a free dimension can have one size alone.
    pub(crate) fn with_only(mut self, dimension: &str, size: i64) -> Error {
        self = self.at(format!("it runs with '{dimension}' = {size} only"));
        self.0.only = Some((dimension.into(), size));
        self
    }

    /// What [`with_only`](Error::with_only) stated.
    pub(crate) fn only(&self) -> Option<(&str, i64)> {
        self.0.only.as_ref().map(|(dimension, size)| (dimension.as_str(), *size))
    }

    /// Puts a place (a file, a node, a tensor) before the message: `place: message`.
    pub fn at(mut self, place: impl fmt::Display) -> Error {
        self.0.message = one_line(&format!("{place}: {}", self.0.message));
        self
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Why, where a caller may want to know.
    pub fn cause(&self) -> Option<Cause> {
        self.0.cause
    }

    /// The line of text without the hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What to try next, if anything is likely to help.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Messages come in part from files: control characters and line breaks are replaced.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_file_stays_on_one_line() {
        let e = Error::bad_input("name 'a\nb\u{1b}[31m'").at("x.base").hint("try\nthis");
        assert_eq!(e.to_string(), "x.base: name 'a b [31m' (hint: try this)");
        assert_eq!(e.kind().exit_code(), 3);
    }
}
