//! The side of a comparison that starts runs and hears them.

use super::worker::{Line, VERB};
use super::{Outcome, Recipe, Run};
use crate::error::{Error, ErrorKind, Result};
use crate::train::progress::Event;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

/// Bytes of a run's standard error that are kept.
const STDERR_CAP: u64 = 16 << 10;
/// Longest line of its standard output.
const LINE_CAP: u64 = 64 << 10;

/// A run's process; it is gone when this is dropped.
pub(super) struct Child {
    process: Process,
    stderr: Option<JoinHandle<String>>,
}

impl Child {
    /// Starts this program anew.
    ///
    /// # Errors
    /// Failed: it can't be started.
    pub fn start(recipe: &Recipe, run: &Run) -> Result<Child> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::failed(format!("a run's process can't be started: {e}"))
        };
        let program = std::env::current_exe().map_err(|e| failed(&e))?;
        let mut command = Command::new(program);
        command
            .arg(VERB)
            .arg(serde_json::to_string(recipe).map_err(|e| failed(&e))?)
            .arg(serde_json::to_string(run).map_err(|e| failed(&e))?)
            .arg(std::process::id().to_string())
            .env("RUST_LIB_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = Child { process: command.spawn().map_err(|e| failed(&e))?, stderr: None };
        let stderr = child.process.stderr.take().map(|mut pipe| {
            std::thread::Builder::new().spawn(move || {
                let mut kept = vec![];
                // A broken pipe ends the output; what came before counts.
                let _ = (&mut pipe).take(STDERR_CAP).read_to_end(&mut kept);
                let _ = std::io::copy(&mut pipe, &mut std::io::sink());
                String::from_utf8_lossy(&kept).into_owned()
            })
        });
        child.stderr = stderr.transpose().map_err(|e| failed(&e))?;
        Ok(child)
    }

    /// Hears it to its end.
    ///
    /// # Errors
    /// The run's own. Failed: it died.
    pub fn hear(mut self, tell: &mut dyn FnMut(&Event)) -> Result<Outcome> {
        let mut said = None;
        let mut lines = BufReader::new(self.process.stdout.take().ok_or_else(lost)?);
        let mut text = vec![];
        loop {
            text.clear();
            match (&mut lines).take(LINE_CAP).read_until(b'\n', &mut text) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            match serde_json::from_slice::<Line>(&text) {
                Ok(Line::Started { steps }) => tell(&Event::Started {
                    steps,
                    resumed_at: 0,
                    samples: 0,
                    held_out: 0,
                    parameters: 0,
                }),
                Ok(Line::Step { step, steps, loss, seconds_left }) => tell(&Event::Step {
                    step,
                    steps,
                    loss,
                    rate: 0.0,
                    samples_per_second: 0.0,
                    seconds_left,
                }),
                Ok(Line::Done { outcome }) => said = Some(Ok(outcome)),
                Ok(Line::Failed { unfit, message }) => {
                    let kind = if unfit { ErrorKind::Unsupported } else { ErrorKind::Failed };
                    said = Some(Err(Error::new(kind, message)));
                }
                Err(_) => {}
            }
        }
        let status = self.process.wait().map_err(|_| lost())?;
        let stderr = self.stderr.take().and_then(|t| t.join().ok()).unwrap_or_default();
        said.unwrap_or_else(|| Err(death(status, &stderr)))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Nothing where it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn lost() -> Error {
    Error::failed("a run's process was lost")
}

/// Why a run that said nothing ended.
fn death(status: ExitStatus, stderr: &str) -> Error {
    if stderr.contains("memory allocation of") {
        return Error::failed("out of memory");
    }
    match status.signal() {
        Some(9) => Error::failed("killed by signal 9, perhaps for want of memory"),
        Some(signal) if stderr.trim().is_empty() => {
            Error::failed(format!("ended by signal {signal}"))
        }
        signal => {
            // A panic's last line tells how to get a backtrace.
            let said = |l: &&str| !l.is_empty() && !l.starts_with("note:");
            let last = stderr.lines().rev().map(str::trim).find(said).unwrap_or("no message");
            let text: String = last.chars().take(400).collect();
            match signal {
                Some(signal) => Error::failed(format!("{text} (signal {signal})")),
                None => {
                    Error::failed(format!("{text} (exit code {})", status.code().unwrap_or(-1)))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_are_told_apart() {
        let said =
            |status, stderr| death(ExitStatus::from_raw(status), stderr).message().to_string();
        assert!(said(9, "").contains("want of memory"));
        assert_eq!(said(6, "memory allocation of 99 bytes failed"), "out of memory");
        assert_eq!(said(11, ""), "ended by signal 11");
        assert_eq!(said(6, "index 3 of 2\n"), "index 3 of 2 (signal 6)");
        assert_eq!(
            said(101 << 8, "at a.rs:1\nindex 3 of 2\nnote: run"),
            "index 3 of 2 (exit code 101)"
        );
    }
}
