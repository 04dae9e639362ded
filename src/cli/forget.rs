//! `offshoot forget`: through the daemon if one runs on the store, else on the store itself.

use super::output::{Out, bytes, count};
use crate::error::{Error, Result};
use crate::store::{ForgetReport, Key, Options, SampleHash, Selector, Store};
use std::path::PathBuf;

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

/// Forgets and says what is gone.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let selector = args.selector()?;
    let report = match &args.state {
        Some(folder) => on_store(folder.clone(), args.key_file.as_ref(), &selector)?,
        None => with_daemon(args, &selector, out)?,
    };
    let generations: Vec<String> =
        report.generations.iter().map(|g| format!("{}@{}", g.name, g.generation)).collect();
    out.line(format!("forgot {} samples ({})", count(report.samples), bytes(report.bytes)));
    if !generations.is_empty() {
        out.line(format!("retired {}, which had learned from them", generations.join(", ")));
    }
    for f in &report.fallbacks {
        let to = f.to.map_or("the base".into(), |g| format!("generation {g}"));
        out.line(format!("'{}' serves {to} now", f.name));
    }
    if !report.jobs_queued.is_empty() {
        out.line("training anew is queued");
    }
    if !report.finished {
        out.remark("warning: another process reads the store: its free pages are cleared later");
    }
    out.document(&report)
}

fn on_store(folder: PathBuf, key: Option<&PathBuf>, selector: &Selector) -> Result<ForgetReport> {
    let key = key.map(|file| Key::read(file)).transpose()?;
    match Store::open_existing(&folder, Options { key, ..Options::default() })? {
        Some(store) => store.forget(selector),
        None => Err(Error::usage(format!("'{}' holds no store", folder.display()))
            .hint("--state names the folder, --host the daemon")),
    }
}

/// What is done where no daemon is asked.
fn on_users_store(selector: &Selector, out: &Out) -> Result<ForgetReport> {
    let folder = Store::folder_of_user()?;
    let report = on_store(folder.clone(), None, selector)?;
    out.remark(format!("no daemon answers: this is the store in '{}'", folder.display()));
    Ok(report)
}

#[cfg(feature = "daemon")]
fn with_daemon(args: &Args, selector: &Selector, out: &Out) -> Result<ForgetReport> {
    use crate::daemon::{Client, Host};
    use crate::error::ErrorKind;
    let host = match &args.host {
        Some(text) => Host::parse(text)?,
        None => Host::default_host()?,
    };
    let body = serde_json::to_value(selector)
        .map_err(|e| Error::failed(format!("the request can't be written: {e}")))?;
    // Rewriting the database takes a while on a card.
    let client = Client::new(host)?.with_patience(std::time::Duration::from_secs(600));
    match client.json(hyper::Method::POST, "/v1/forget", Some(&body)) {
        Err(e) if e.kind() == ErrorKind::Unreachable && args.host.is_none() => {
            on_users_store(selector, out)
        }
        answer => serde_json::from_value(answer?)
            .map_err(|e| Error::failed(format!("the daemon's report can't be read: {e}"))),
    }
}

#[cfg(not(feature = "daemon"))]
fn with_daemon(_: &Args, selector: &Selector, out: &Out) -> Result<ForgetReport> {
    on_users_store(selector, out)
}
