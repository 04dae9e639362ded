//! The daemon's side of the training child: starting it, hearing it, stopping it.

use super::limit::{Held, Limit};
use super::worker::{Line, STOPPED, VERB};
use crate::error::{Error, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of the child's standard error that are kept.
const STDERR_CAP: u64 = 16 << 10;
/// Longest line of its standard output.
const LINE_CAP: u64 = 64 << 10;
/// What a child that was asked to stop gets to write its checkpoint.
pub const GRACE: Duration = Duration::from_secs(3);

/// How far a child is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// Steps done.
    pub step: u64,
    /// Steps to do in all; 0: not known yet.
    pub steps: u64,
    /// The last step's loss.
    pub loss: Option<f64>,
    /// The step of the last checkpoint.
    pub checkpoint: u64,
    /// Whether the candidate is measured now.
    pub measuring: bool,
    /// Most bytes resident at once, once it has ended well.
    pub peak: Option<u64>,
    /// What people should know.
    pub notes: Vec<String>,
    /// Samples that it can't train on, and why.
    pub unusable: Vec<(i64, String)>,
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Trained and measured.
    Done,
    /// Stopped, to go on later.
    Stopped,
    /// Why it failed.
    Failed(String),
}

/// A training child. It and its group are gone when this is dropped.
pub struct Child {
    process: Process,
    limit: Held,
    heard: Arc<Mutex<Heard>>,
    stdout: Option<JoinHandle<()>>,
    stderr: Option<JoinHandle<String>>,
    asked: Option<Instant>,
}

impl Child {
    /// Starts `program` as the child of the job in `folder`. `memory`: bytes that it may plan with.
    ///
    /// # Errors
    /// It can't be started (failed).
    pub fn start(program: &Path, folder: &Path, limit: Limit, memory: u64) -> Result<Child> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::failed(format!("the training process can't be started: {e}"))
        };
        let limit_text = serde_json::to_string(&limit).map_err(|e| failed(&e))?;
        let limit = Held::new(limit);
        let program = startable(program);
        let mut words = lowering().iter();
        let mut command = match words.next() {
            Some(first) => {
                let mut command = Command::new(first);
                command.args(words).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .arg(VERB)
            .arg(folder)
            .arg(limit_text)
            .arg(memory.to_string())
            .arg(std::process::id().to_string())
            // A second heap would reserve 64 MiB of address space.
            .env("MALLOC_ARENA_MAX", "1")
            .env("RUST_LIB_BACKTRACE", "0")
            // What systemd tells the daemon is not for its children.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("LISTEN_FDS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().map_err(|e| failed(&e))?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let stdout = process.stdout.take().map(|pipe| {
            let heard = heard.clone();
            std::thread::Builder::new().spawn(move || listen(pipe, &heard))
        });
        let stderr = process.stderr.take().map(|mut pipe| {
            std::thread::Builder::new().spawn(move || {
                let mut kept = vec![];
                // A broken pipe ends the output; what came before counts.
                let _ = (&mut pipe).take(STDERR_CAP).read_to_end(&mut kept);
                let _ = std::io::copy(&mut pipe, &mut std::io::sink());
                String::from_utf8_lossy(&kept).into_owned()
            })
        });
        let mut child = Child { process, limit, heard, stdout: None, stderr: None, asked: None };
        // A child that nobody hears is ended as it is dropped.
        child.stdout = stdout.transpose().map_err(|e| failed(&e))?;
        child.stderr = stderr.transpose().map_err(|e| failed(&e))?;
        Ok(child)
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// How far it is.
    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks it to write a checkpoint and end; kills it when it was asked [`GRACE`] ago.
    pub fn stop(&mut self) {
        match self.asked {
            None => {
                self.asked = Some(Instant::now());
                self.signal(Signal::TERM);
            }
            Some(asked) if asked.elapsed() >= GRACE => self.signal(Signal::KILL),
            Some(_) => {}
        }
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Not reaped yet, so its number is its own.
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system can't tell (failed).
    pub fn ended(&mut self) -> Result<Option<Ended>> {
        let status = self
            .process
            .try_wait()
            .map_err(|e| Error::failed(format!("waiting for the training process: {e}")))?;
        let Some(status) = status else { return Ok(None) };
        // Its last lines may still be in the pipe.
        let _ = self.stdout.take().map(JoinHandle::join);
        let stderr = self.stderr.take().and_then(|t| t.join().ok()).unwrap_or_default();
        let killed = self.limit.killed_for_memory();
        Ok(Some(meaning(status, &stderr, killed, self.asked.is_some())))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            self.signal(Signal::KILL);
            let _ = self.process.wait();
        }
    }
}

/// The path to start `program` by. The file of a running daemon may have been replaced by an upgrade
/// (the kernel then shows its path with ` (deleted)` behind it); its process still leads to it. By
/// number: where `chrt` starts the program, `self` would be `chrt`.
fn startable(program: &Path) -> PathBuf {
    if program.exists() && !program.as_os_str().as_bytes().ends_with(b" (deleted)") {
        return program.into();
    }
    format!("/proc/{}/exe", std::process::id()).into()
}

/// What an exit means.
fn meaning(status: ExitStatus, stderr: &str, killed_for_memory: bool, asked: bool) -> Ended {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ended::Done,
        (Some(code), _) if code == i32::from(STOPPED) => Ended::Stopped,
        // Killed after its time to stop: it goes on from its last checkpoint.
        (_, Some(9 | 15)) if asked => Ended::Stopped,
        _ if killed_for_memory || stderr.contains("memory allocation of") => {
            Ended::Failed("out of memory: it grew past its limit".into())
        }
        (_, Some(9)) => Ended::Failed("killed by signal 9, perhaps for want of memory".into()),
        (_, Some(signal)) => Ended::Failed(format!("ended by signal {signal}")),
        (code, None) => {
            // A panic's last line tells how to get a backtrace.
            let said = |l: &&str| !l.is_empty() && !l.starts_with("note:");
            let last = stderr.lines().rev().map(str::trim).find(said);
            let text: String = last.unwrap_or("no message").chars().take(400).collect();
            Ended::Failed(format!("{text} (exit code {})", code.unwrap_or(-1)))
        }
    }
}

/// Hears the child's standard output to its end.
pub fn listen(pipe: impl Read, heard: &Mutex<Heard>) {
    let mut lines = BufReader::new(pipe);
    let mut text = vec![];
    loop {
        text.clear();
        match (&mut lines).take(LINE_CAP).read_until(b'\n', &mut text) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let Ok(line) = serde_json::from_slice::<Line>(&text) else { continue };
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        match line {
            Line::Progress { step, steps, loss } => {
                (heard.step, heard.steps) = (step, steps);
                heard.loss = loss.or(heard.loss);
            }
            Line::Checkpoint { step } => heard.checkpoint = step,
            Line::Measuring => heard.measuring = true,
            Line::Peak { bytes } => heard.peak = Some(bytes),
            Line::Note { text } => heard.notes.push(text),
            Line::Unusable { sample, why } => heard.unusable.push((sample, why)),
        }
    }
}

/// The words before the program that give it `SCHED_IDLE` and idle access to the disk: util-linux's
/// `chrt` and `ionice`, where they are there and allowed. `nice` is the child's own doing.
fn lowering() -> &'static [&'static str] {
    static WORDS: OnceLock<Vec<&'static str>> = OnceLock::new();
    WORDS.get_or_init(|| {
        let works = |words: &[&'static str]| {
            let Some((program, rest)) = words.split_first() else { return false };
            let mut command = Command::new(program);
            command.args(rest).arg("true");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|s| s.success())
        };
        let tools: [&[&'static str]; 2] = [&["chrt", "--idle", "0"], &["ionice", "-c", "3"]];
        tools.into_iter().filter(|words| works(words)).flatten().copied().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_told_apart() {
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        let signal = ExitStatus::from_raw;
        assert_eq!(meaning(code(0), "", false, false), Ended::Done);
        assert_eq!(meaning(code(75), "", false, true), Ended::Stopped);
        assert_eq!(meaning(signal(9), "", false, true), Ended::Stopped);
        let failed = |status, stderr: &str, killed| match meaning(status, stderr, killed, false) {
            Ended::Failed(why) => why,
            other => panic!("{other:?}"),
        };
        assert!(failed(signal(9), "", true).starts_with("out of memory"));
        assert!(
            failed(signal(6), "memory allocation of 99 bytes failed", false).starts_with("out of")
        );
        assert!(failed(signal(9), "", false).contains("signal 9"));
        assert!(failed(signal(11), "", false).contains("signal 11"));
        assert_eq!(failed(code(3), "x\nbad sample\n\n", false), "bad sample (exit code 3)");
        let panic = "thread 'main' panicked at src/a.rs:1:2:\nindex 3 of 2\n\
            note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n";
        assert_eq!(failed(code(101), panic, false), "index 3 of 2 (exit code 101)");
    }

    /// After an upgrade under the running daemon every job failed: its path was no file any more.
    #[test]
    fn a_replaced_program_is_started_by_its_process() {
        let own = std::env::current_exe().unwrap();
        assert_eq!(startable(&own), own);
        for gone in ["/usr/bin/offshoot (deleted)", "/no/such/program"] {
            let path = startable(Path::new(gone));
            assert_eq!(std::fs::canonicalize(path).unwrap(), own.canonicalize().unwrap());
        }
        // As `chrt` does it: from another process.
        let script = "exec \"$0\" --list >/dev/null";
        let exe = startable(Path::new("/no/such/program"));
        assert!(Command::new("sh").args(["-c", script]).arg(exe).status().unwrap().success());
    }

    #[test]
    fn a_child_that_cannot_be_started_leaves_no_group() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("train-1");
        std::fs::create_dir(&group).unwrap();
        let limit = Limit::Cgroup { folder: group.clone(), bytes: 1 << 20 };
        // No argument can hold a NUL.
        let e = Child::start(Path::new("/bin/true"), Path::new("a\0b"), limit, 1).err();
        assert!(e.unwrap().message().contains("can't be started"));
        assert!(!group.exists());
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        let heard = Mutex::new(Heard::default());
        let text = b"garbage\n{\"line\":\"progress\",\"step\":3,\"steps\":9,\"loss\":0.5}\n\
            {\"line\":\"checkpoint\",\"step\":3}\n{\"line\":\"peak\",\"bytes\":7}\n\xff\n";
        listen(&text[..], &heard);
        let h = heard.lock().unwrap().clone();
        assert_eq!((h.step, h.steps, h.loss, h.checkpoint, h.peak), (3, 9, Some(0.5), 3, Some(7)));
    }
}
