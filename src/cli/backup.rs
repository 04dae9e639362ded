//! `offshoot backup` and `offshoot restore`: the state as a whole.

use super::output::{Out, bytes, count};
#[cfg(feature = "daemon")]
use crate::daemon::{Client, Host};
use crate::error::{Error, Result};
use crate::store::{Options, Store};
use serde_json::json;
use std::path::{Path, PathBuf};

/// `offshoot backup`'s arguments.
#[derive(clap::Args)]
pub struct BackupArgs {
    /// The folder to make
    directory: PathBuf,
    /// The state's folder (default: the running daemon's, else the user's)
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// `offshoot restore`'s arguments.
#[derive(clap::Args)]
pub struct RestoreArgs {
    /// The backup to put in the state's place
    #[arg(required_unless_present = "salvage", conflicts_with = "salvage")]
    directory: Option<PathBuf>,
    /// Go on with what can be read of a state that is damaged or has lost something
    #[arg(long)]
    salvage: bool,
    /// The state's folder (default: the user's)
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Makes a backup, also while a daemon runs.
pub fn backup(args: &BackupArgs, out: &Out) -> Result<()> {
    let folder = match &args.state {
        Some(folder) => folder.clone(),
        None => match daemons_state() {
            Some(folder) => folder,
            None => Store::folder_of_user()?,
        },
    };
    let Some(store) = Store::open_existing(&folder, Options::default())? else {
        return Err(Error::usage(format!("'{}' holds no store", folder.display()))
            .hint("--state names the folder"));
    };
    let made = store.backup(&args.directory)?;
    for path in &made.left_out {
        out.remark(format!("warning: '{}' is missing or damaged: left out", path.display()));
    }
    out.line(format!(
        "{}: {} changes of '{}', {} adapter files, {}",
        made.path.display(),
        count(made.changes),
        folder.display(),
        made.adapters,
        bytes(made.bytes)
    ));
    if store.encrypted_at_rest()? {
        out.line("its samples are encrypted: keep the key file too, elsewhere");
    }
    out.document(&json!({"state": folder, "backup": made}))
}

/// The state of the daemon that runs, if one does.
#[cfg(feature = "daemon")]
fn daemons_state() -> Option<PathBuf> {
    let client = Client::new(Host::default_host().ok()?).ok()?;
    let status = client.json(hyper::Method::GET, "/v1/status", None).ok()?;
    status["state"]["path"].as_str().map(PathBuf::from)
}

#[cfg(not(feature = "daemon"))]
fn daemons_state() -> Option<PathBuf> {
    None
}

/// Puts a backup, or what can be read of a damaged state, in the state's place.
pub fn restore(args: &RestoreArgs, out: &Out) -> Result<()> {
    let folder = args.state.clone().map_or_else(Store::folder_of_user, Ok)?;
    let restored = match &args.directory {
        Some(from) => Store::restore(&folder, from)?,
        None => salvage(&folder)?,
    };
    out.line(format!(
        "'{}': samples up to number {}, {} generations",
        folder.display(),
        restored.samples,
        restored.generations
    ));
    for path in &restored.before {
        out.line(format!("what was there: {}", path.display()));
    }
    out.document(&json!(restored))
}

fn salvage(folder: &Path) -> Result<crate::store::Restored> {
    if !folder.is_dir() {
        return Err(Error::usage(format!("'{}' holds no store", folder.display()))
            .hint("--state names the folder"));
    }
    Store::salvage(folder)
}
