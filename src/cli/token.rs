//! `offshoot token`: who may use the daemon's port, and for what.

use super::daemon::Where;
use super::output::{Out, table};
use crate::daemon::Role;
use crate::error::{Error, Result};
use crate::fs::{Access, write_atomic_bytes};
use hyper::Method;
use serde_json::{Value, json};
use std::path::PathBuf;

/// `offshoot token`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Make a token and show it, this one time
    Add {
        /// Whose it is, or what for: it stands in the log and with what it teaches
        name: String,
        /// What it may do: answer (ask, read the status), teach (correct too), administer (everything)
        #[arg(long, value_parser = Role::parse)]
        role: Role,
        /// Write it into this file, which nobody else can read, instead of showing it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        daemon: Where,
    },
    /// List tokens, without what would let somebody in
    List {
        #[command(flatten)]
        daemon: Where,
    },
    /// Take a token's rights away, at once; it ends its logins on the page too
    Revoke {
        /// Its name
        name: String,
        #[command(flatten)]
        daemon: Where,
    },
}

/// `offshoot token`.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    match &args.verb {
        Verb::Add { name, role, out: file, daemon } => {
            let body = json!({"name": name, "role": role.name()});
            let mut answer = daemon.client()?.json(Method::POST, "/v1/tokens", Some(&body))?;
            let token = answer["token"].as_str().unwrap_or_default().to_string();
            match file {
                None => {
                    out.remark(format!("token '{name}' ({role}); it is not shown again:"));
                    out.line(token);
                }
                Some(file) => {
                    let written =
                        write_atomic_bytes(file, Access::Private, format!("{token}\n").as_bytes());
                    if let Err(e) = written {
                        // Nobody has it.
                        let path = format!("/v1/tokens/{name}");
                        daemon.client()?.json(Method::DELETE, &path, None)?;
                        return Err(e);
                    }
                    if let Some(answer) = answer.as_object_mut() {
                        answer.remove("token");
                    }
                    out.line(format!("token '{name}' ({role}) is in '{}'", file.display()));
                }
            }
            out.document(&answer)
        }
        Verb::List { daemon } => {
            let answer = daemon.client()?.json(Method::GET, "/v1/tokens", None)?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
            let rows: Vec<Vec<String>> = answer["tokens"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default()
                .iter()
                .map(|token| vec![text(&token["name"]), text(&token["role"])])
                .collect();
            if rows.is_empty() {
                out.line("no tokens");
            }
            table(&rows).iter().for_each(|line| out.line(line));
            out.document(&answer)
        }
        Verb::Revoke { name, daemon } => {
            crate::store::check_name(name)
                .map_err(|_| Error::usage(format!("there is no token '{name}'")))?;
            let path = format!("/v1/tokens/{name}");
            let answer = daemon.client()?.json(Method::DELETE, &path, None)?;
            out.line(format!("token '{name}' lets nobody in any more"));
            out.document(&answer)
        }
    }
}
