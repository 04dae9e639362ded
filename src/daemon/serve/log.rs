//! The log on stderr: for journald with its level prefixes and without times, else with times.

use crate::daemon::Level;
use std::io::{self, Write};
use std::sync::OnceLock;
use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

type SetFilter = Box<dyn Fn(EnvFilter) + Send + Sync>;

static SET: OnceLock<SetFilter> = OnceLock::new();

/// Starts logging. Another call changes the level only.
pub fn start(level: Level) {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_target(false)
        .with_ansi(false)
        .with_writer(Stderr { journal });
    let (set, started): (SetFilter, _) = if journal {
        let builder = builder.without_time().with_level(false).with_filter_reloading();
        let handle = builder.reload_handle();
        // Reloading fails only where the subscriber is gone: never, it is the process's own.
        let set = move |filter| drop(handle.reload(filter));
        (Box::new(set), tracing::subscriber::set_global_default(builder.finish()))
    } else {
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        let set = move |filter| drop(handle.reload(filter));
        (Box::new(set), tracing::subscriber::set_global_default(builder.finish()))
    };
    if started.is_ok() {
        // Set once, as the subscriber.
        let _ = SET.set(set);
    } else {
        set_level(level);
    }
}

/// Changes what is logged.
pub fn set_level(level: Level) {
    if let Some(set) = SET.get() {
        set(filter(level));
    }
}

fn filter(level: Level) -> EnvFilter {
    EnvFilter::new(format!("warn,offshoot={}", level.name()))
}

/// Writes lines with sd-daemon(3)'s prefixes where journald reads them.
struct Stderr {
    journal: bool,
}

struct Line {
    prefix: &'static str,
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { prefix: "" }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        let prefix = match *meta.level() {
            _ if !self.journal => "",
            tracing::Level::ERROR => "<3>",
            tracing::Level::WARN => "<4>",
            tracing::Level::INFO => "<6>",
            _ => "<7>",
        };
        Line { prefix }
    }
}

impl Write for Line {
    /// The formatter hands over a whole line at once.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut line = Vec::with_capacity(self.prefix.len() + bytes.len());
        line.extend_from_slice(self.prefix.as_bytes());
        line.extend_from_slice(bytes);
        io::stderr().lock().write_all(&line)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
