//! `offshoot forget`: through the daemon if one listens, else on the user's store.

use super::output::{Out, bytes, count};
#[cfg(feature = "daemon")]
use crate::daemon::{Client, Host};
use crate::error::{Error, Result};
use crate::store::{ForgetReport, Key, Options, SampleHash, Selector, Store};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// `offshoot forget`'s arguments: all that is given must hold of a sample.
#[derive(clap::Args)]
pub struct Args {
    /// Samples of these numbers
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    id: Vec<i64>,
    /// Samples of these hashes
    #[arg(long, value_name = "HASH", value_delimiter = ',', value_parser = SampleHash::parse)]
    hash: Vec<SampleHash>,
    /// Samples with this label
    #[arg(long)]
    label: Option<String>,
    /// Samples from this source
    #[arg(long)]
    source: Option<String>,
    /// Samples made at this time or later, in seconds since 1970-01-01 UTC
    #[arg(long, value_name = "SECONDS")]
    since: Option<u64>,
    /// Samples made before this time
    #[arg(long, value_name = "SECONDS")]
    until: Option<u64>,
    /// Samples of this adapter
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Every sample
    #[arg(long, conflicts_with_all = ["id", "hash", "label", "source", "since", "until"])]
    all: bool,
    /// Say what would go, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The state's folder, to work on it without the daemon (default with no daemon: the user's)
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The key of encrypted samples; only with --state
    #[arg(long, value_name = "FILE", requires = "state")]
    key_file: Option<PathBuf>,
    /// The daemon: unix:///PATH or http://127.0.0.1:PORT
    #[cfg(feature = "daemon")]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "state")]
    host: Option<String>,
}

impl Args {
    fn selector(&self) -> Result<Selector> {
        let selector = Selector {
            ids: self.id.clone(),
            hashes: self.hash.clone(),
            label: self.label.clone(),
            source: self.source.clone(),
            since: self.since,
            until: self.until,
            name: self.adapter.clone(),
            all: self.all,
        };
        if selector == Selector::default() {
            return Err(Error::usage("nothing is selected").hint("--all forgets every sample"));
        }
        Ok(selector)
    }
}

/// What to forget, and whether only to say what would go.
struct What {
    selector: Selector,
    dry_run: bool,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Done {
    #[serde(flatten)]
    report: ForgetReport,
    /// The store's folder where no daemon was asked.
    store: Option<PathBuf>,
}

/// Forgets and says what is gone.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let what = What { selector: args.selector()?, dry_run: args.dry_run };
    let done = match &args.state {
        Some(folder) => {
            on_store(folder, args.key_file.as_deref(), &what)?.ok_or_else(|| no_store(folder))?
        }
        None => without_state(args, &what, out)?,
    };
    let report = &done.report;
    let generations: Vec<String> =
        report.generations.iter().map(|g| format!("{}@{}", g.name, g.generation)).collect();
    let forgot = if args.dry_run { "nothing is changed; it would forget" } else { "forgot" };
    out.line(format!("{forgot} {} samples ({})", count(report.samples), bytes(report.bytes)));
    let would = |done: &str, later: &str| if args.dry_run { later } else { done }.to_string();
    if !generations.is_empty() {
        let retired = would("retired", "would retire");
        out.line(format!("{retired} {}, which had learned from them", generations.join(", ")));
    }
    if report.lost > 0 {
        let removed = would("removed", "would remove");
        let lost = report.lost;
        out.line(format!(
            "{removed} the {lost} files in 'lost', which may have learned from them (a former database \
             among them, after a restore or a salvage)"
        ));
    }
    for f in &report.fallbacks {
        let to = f.to.map_or("the base".into(), |g| format!("generation {g}"));
        out.line(format!("'{}' {} {to}", f.name, would("serves now:", "would be served by:")));
    }
    if !report.jobs_queued.is_empty() {
        out.line("training anew is queued");
    }
    if !report.finished && !args.dry_run {
        out.remark(
            "warning: another process reads the store, or the disk is full: its free pages are \
             cleared later",
        );
    }
    out.document(&done)
}

/// `None`: there is no store.
fn on_store(folder: &Path, key: Option<&Path>, what: &What) -> Result<Option<Done>> {
    let key = key.map(Key::read).transpose()?;
    let Some(store) = Store::open_existing(folder, Options { key, ..Options::default() })? else {
        return Ok(None);
    };
    let report = match what.dry_run {
        true => store.would_forget(&what.selector)?,
        false => store.forget(&what.selector)?,
    };
    Ok(Some(Done { report, store: Some(folder.into()) }))
}

fn no_store(folder: &Path) -> Error {
    Error::usage(format!("'{}' holds no store", folder.display()))
        .hint("--state names the folder, --host the daemon")
}

/// On a store that nobody named.
fn on_users_store(folder: &Path, what: &What, out: &Out) -> Result<Option<Done>> {
    let done = on_store(folder, None, what)?;
    if done.is_some() {
        out.remark(format!("no daemon answers: this is the store in '{}'", folder.display()));
    }
    Ok(done)
}

#[cfg(not(feature = "daemon"))]
fn without_state(_: &Args, what: &What, out: &Out) -> Result<Done> {
    let folder = Store::folder_of_user()?;
    on_users_store(&folder, what, out)?.ok_or_else(|| no_store(&folder))
}

#[cfg(feature = "daemon")]
fn without_state(args: &Args, what: &What, out: &Out) -> Result<Done> {
    match &args.host {
        Some(text) => ask(Host::parse(text)?, what),
        None => by_default(Host::default_host()?, Store::folder_of_user, what, out),
    }
}

/// Asks the daemon at `host`; the store in `folder` is worked on only where there surely is none.
/// Somebody who may not speak to it, or waits too long for it, means the daemon's store all the same.
#[cfg(feature = "daemon")]
fn by_default(
    host: Host,
    folder: impl FnOnce() -> Result<PathBuf>,
    what: &What,
    out: &Out,
) -> Result<Done> {
    if !nobody_listens(&host) {
        return ask(host, what);
    }
    let folder = folder()?;
    on_users_store(&folder, what, out)?.ok_or_else(|| {
        let text =
            format!("no daemon listens at {host}, and '{}' holds no store", folder.display());
        Error::new(crate::error::ErrorKind::Unreachable, text)
            .hint("--state names the folder, --host the daemon")
    })
}

#[cfg(feature = "daemon")]
fn nobody_listens(host: &Host) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let connected = match host {
        Host::Unix(path) => std::os::unix::net::UnixStream::connect(path).map(drop),
        Host::Tcp(address) => std::net::TcpStream::connect(address).map(drop),
    };
    connected.is_err_and(|e| matches!(e.kind(), NotFound | ConnectionRefused))
}

#[cfg(feature = "daemon")]
fn ask(host: Host, what: &What) -> Result<Done> {
    let body = serde_json::to_value(&what.selector)
        .map_err(|e| Error::failed(format!("the request can't be written: {e}")))?;
    // Rewriting the database takes a while on a card.
    let client = Client::new(host)?.with_patience(std::time::Duration::from_secs(600));
    let path = if what.dry_run { "/v1/forget?dry_run=true" } else { "/v1/forget" };
    let answer = client.json(hyper::Method::POST, path, Some(&body))?;
    let report = serde_json::from_value(answer)
        .map_err(|e| Error::failed(format!("the daemon's report can't be read: {e}")))?;
    Ok(Done { report, store: None })
}

#[cfg(all(test, feature = "daemon"))]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Without the right to speak to the service's daemon, `forget --all` emptied the caller's own
    /// store, and said that it was done.
    #[test]
    fn the_callers_own_store_is_meant_only_where_no_daemon_listens() {
        let dir = tempfile::tempdir().unwrap();
        let out = Out::new(true);
        let selector = Selector { all: true, ..Selector::default() };
        let all = What { selector, dry_run: false };
        let socket = dir.path().join("s");
        let by = |path: &Path, folder: &str| {
            let folder = || Ok(dir.path().join(folder));
            by_default(Host::Unix(path.into()), folder, &all, &out)
        };
        let own = dir.path().join("own");
        drop(Store::open(&own).unwrap());

        let done = by(&socket, "own").unwrap();
        assert_eq!(done.store.as_deref(), Some(own.as_path()));
        let json = serde_json::to_value(&done).unwrap();
        assert_eq!((&json["samples"], json["store"].as_str()), (&0.into(), own.to_str()));
        assert_eq!(by(&socket, "none").unwrap_err().kind().exit_code(), 6);
        assert!(!dir.path().join("none").exists());

        let listener = UnixListener::bind(&socket).unwrap();
        let hangs_up = std::thread::spawn(move || (0..2).for_each(|_| drop(listener.accept())));
        assert_eq!(by(&socket, "own").unwrap_err().kind().exit_code(), 6);
        hangs_up.join().unwrap();
        // The socket of a daemon that is gone.
        assert!(by(&socket, "own").unwrap().store.is_some());
        // Neither missing nor refused: a file stands where the folder should be.
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(by(&dir.path().join("file/s"), "own").unwrap_err().kind().exit_code(), 6);
    }
}
