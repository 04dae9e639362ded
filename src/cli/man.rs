//! `offshoot man`: manual pages, made from the definition of the command line.

use super::output::Out;
use crate::error::{Error, Result};
use crate::fs::{Access, write_atomic_bytes};
use clap::Command;
use clap_mangen::Man;
use std::path::PathBuf;

/// `offshoot man`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Write the pages of all verbs into this folder, which is made if it is missing
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    out: Option<PathBuf>,
    /// The verb whose page is printed: `adapter list` (default: the page of offshoot itself)
    #[arg(value_name = "VERB")]
    verb: Vec<String>,
}

/// What holds for all verbs, for the page of offshoot itself. The codes are those of
/// `ErrorKind::exit_code`.
const COMMON: &str = r#".SH "EXIT STATUS"
.TP
\fB0\fR
All went well.
.TP
\fB1\fR
Failed: a disk, a network, this program.
.TP
\fB2\fR
The command line is wrong.
.TP
\fB3\fR
An input file is damaged or asks for what is not supported.
.TP
\fB4\fR
Things do not fit: another base, a target without a match.
.TP
\fB5\fR
Refused by a gate or a limit.
.TP
\fB6\fR
The daemon can't be reached.
.SH ENVIRONMENT
.TP
\fBOFFSHOOT_STORE\fR
The folder of the store. Without it: offshoot/ in XDG_DATA_HOME, else in ~/.local/share.
.TP
\fBOFFSHOOT_KERNELS\fR
The kernels to use instead of the fastest ones; \fBoffshoot doctor\fR lists those that this
processor can run. Others are an error.
.TP
\fBOFFSHOOT_HOST\fR
The daemon that verbs talk to: unix:///PATH or http://127.0.0.1:PORT. Without it: offshoot.sock in
XDG_RUNTIME_DIR if it is there, else the service's socket.
.TP
\fBOFFSHOOT_TOKEN_FILE\fR
The file that holds the token for a daemon on a port.
.SH FILES
.TP
\fI/etc/offshoot/offshoot.toml\fR
The daemon's configuration.
.TP
\fI/var/lib/offshoot\fR
The daemon's state: samples, adapters, jobs.
.TP
\fI/run/offshoot/offshoot.sock\fR
The daemon's socket.
"#;

/// Prints one page of `program`, or writes all of them.
pub fn run(args: &Args, mut program: Command, out: &Out) -> Result<()> {
    program.build();
    let Some(folder) = &args.out else {
        let mut command = &program;
        for word in &args.verb {
            command = shown(command).find(|c| c.get_name() == word).ok_or_else(|| {
                Error::usage(format!("'{}' has no verb '{word}'", display_name(command)))
            })?;
        }
        out.raw(&String::from_utf8_lossy(&page(command, command.get_name() == "offshoot")?));
        return Ok(());
    };
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut written = vec![];
    let mut open = vec![&program];
    while let Some(command) = open.pop() {
        let path = folder.join(format!("{}.1", display_name(command)));
        let is_main = std::ptr::eq(command, &program);
        write_atomic_bytes(&path, Access::Shared, &page(command, is_main)?)?;
        written.push(path);
        open.extend(shown(command));
    }
    written.sort();
    for path in &written {
        out.line(path.display());
    }
    out.document(&serde_json::json!({ "pages": written }))
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|c| !c.is_hide_set())
}

/// `offshoot-adapter-list`.
fn display_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

fn page(command: &Command, is_main: bool) -> Result<Vec<u8>> {
    let mut text = vec![];
    Man::new(command.clone())
        .render(&mut text)
        .map_err(|e| Error::failed(format!("the page of '{}': {e}", display_name(command))))?;
    if is_main {
        text.extend_from_slice(COMMON.as_bytes());
    }
    Ok(text)
}
