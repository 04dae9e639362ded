//! `offshoot serve`.

use super::output::Out;
use crate::daemon::serve::{Overrides, Source, check, run as serve};
use crate::daemon::{Config, Host, SYSTEM_CONFIG};
use crate::error::Result;
use crate::store::Store;
use serde_json::json;
use std::path::PathBuf;

/// `offshoot serve`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration (default: /etc/offshoot/offshoot.toml, or none with --base)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The base, instead of the configuration's; alone it is configuration enough
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// The state's folder, instead of the configuration's (with --base alone: the user's store)
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The socket, instead of the configuration's (with --base alone: in $XDG_RUNTIME_DIR, else in
    /// the state's folder)
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Only check the configuration, and what it names
    #[arg(long)]
    check: bool,
}

impl Args {
    fn source(&self) -> Result<Source> {
        let overrides = || Overrides {
            base: self.base.clone(),
            state: self.state.clone(),
            socket: self.socket.clone(),
        };
        match (&self.config, &self.base) {
            (Some(file), _) => Ok(Source::File(file.clone(), overrides())),
            (None, None) => Ok(Source::File(SYSTEM_CONFIG.into(), overrides())),
            (None, Some(base)) => {
                let state = self.state.clone().map_or_else(Store::folder_of_user, Ok)?;
                let socket = self.socket.clone().or_else(Host::user_socket);
                let socket = socket.unwrap_or_else(|| state.join("offshoot.sock"));
                Ok(Source::Given(Box::new(Config::new(base.clone(), state, socket))))
            }
        }
    }
}

/// Runs the daemon until it is told to stop, or only checks.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let source = args.source()?;
    if !args.check {
        return serve(&source);
    }
    let (config, remarks) = check(&source)?;
    remarks.iter().for_each(|r| out.remark(format!("warning: {r}")));
    out.line("the configuration is sound");
    out.document(&json!({"sound": true, "warnings": remarks, "config": config}))
}
