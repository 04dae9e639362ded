//! The import worker: a short-lived child process with limits on memory, stack, CPU time, and a
//! deadline, because ONNX files make parsers panic, hang and overflow their stacks.
//!
//! The parent calls [`run_limited`]; the child calls [`enter_worker`] before it reads anything, and
//! does its work inside [`run_worker`], which turns errors and panics into one JSON line on stderr
//! that [`run_limited`] turns back. The child ends with its parent, and has the deadline itself too.

use super::stage::{Stage, begin, listen};
use crate::error::{Error, ErrorKind, Result};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getppid, getrlimit, kill_process_group,
    prlimit, set_parent_process_death_signal, setrlimit, waitid,
};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most bytes of a worker's standard output; more is an error.
const STDOUT_CAP: usize = 4 << 20;
/// Bytes of a worker's standard error that are kept; the rest is dropped.
const STDERR_CAP: usize = 64 << 10;

/// How long after the deadline a worker ends by itself.
const GRACE: Duration = Duration::from_secs(5);

/// What a worker may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Address space (`RLIMIT_AS`), in bytes.
    pub memory_bytes: u64,
    /// Stack of the main thread (`RLIMIT_STACK`), in bytes.
    pub stack_bytes: u64,
    /// CPU time of all threads (`RLIMIT_CPU`), in seconds.
    pub cpu_seconds: u64,
    /// The same until the graph is built ([`built`]): what hangs tract does so there.
    pub building_seconds: u64,
    /// Wall time, held by the parent.
    pub deadline: Duration,
}

impl Default for Limits {
    /// 4 GiB (1 GiB on 32-bit machines) of address space, 64 MiB of stack, 600 s of CPU time, 600 s
    /// of wall time: room for a large model on a slow board.
    fn default() -> Limits {
        Limits {
            memory_bytes: if cfg!(target_pointer_width = "64") { 4 << 30 } else { 1 << 30 },
            stack_bytes: 64 << 20,
            cpu_seconds: 600,
            building_seconds: 600,
            deadline: Duration::from_secs(600),
        }
    }
}

impl Limits {
    /// One word for the worker's command line: the limits, and which process gave them.
    pub fn argument(&self) -> String {
        let Limits { memory_bytes, stack_bytes, cpu_seconds, building_seconds, deadline } = self;
        let (millis, parent) = (deadline.as_millis(), std::process::id());
        format!("{memory_bytes},{stack_bytes},{cpu_seconds},{building_seconds},{millis},{parent}")
    }

    /// Reads [`Limits::argument`]: the limits and the parent's process number. Errors: another
    /// form (usage).
    fn from_argument(text: &str) -> Result<(Limits, u64)> {
        let numbers: Option<Vec<u64>> = text.split(',').map(|n| n.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[memory_bytes, stack_bytes, cpu_seconds, building_seconds, millis, parent]) => {
                let deadline = Duration::from_millis(millis);
                let limits =
                    Limits { memory_bytes, stack_bytes, cpu_seconds, building_seconds, deadline };
                Ok((limits, parent))
            }
            _ => Err(Error::usage(format!("'{text}' is not five limits and a parent"))),
        }
    }

    fn resources(&self) -> [(Resource, u64); 4] {
        [
            (Resource::As, self.memory_bytes),
            (Resource::Stack, self.stack_bytes),
            (Resource::Cpu, self.cpu_seconds),
            (Resource::Core, 0),
        ]
    }
}

/// What a worker that ended well has printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerOutput {
    /// Its standard output, at most 4 MiB.
    pub stdout: Vec<u8>,
    /// Its standard error, the first 64 KiB.
    pub stderr: String,
}

/// Puts the calling process under the limits in `argument` ([`Limits::argument`]), for good: it
/// ends with its parent too, and a while after the deadline whatever the parent does. For the worker,
/// before it reads anything.
///
/// # Errors
/// Usage: another form of argument. Failed: what the system says, or the parent is gone.
pub fn enter_worker(argument: &str) -> Result<()> {
    let (limits, parent) = Limits::from_argument(argument)?;
    // Where the system has no such thing, the deadline below still ends it.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // It may have ended before the line above.
    if getppid().map(|p| p.as_raw_nonzero().get() as u64) != Some(parent) {
        return Err(Error::failed("the process that started the import worker is gone"));
    }
    apply_limits(&limits)?;
    CPU_SECONDS.store(limits.cpu_seconds, Ordering::Relaxed);
    allow_cpu(limits.building_seconds.min(limits.cpu_seconds))?;
    begin();
    // The parent kills at the deadline, and says so; this is for one that is stopped.
    let after = limits.deadline.saturating_add(GRACE);
    std::thread::Builder::new()
        .stack_size(64 << 10)
        .spawn(move || {
            std::thread::sleep(after);
            std::process::exit(ErrorKind::Unsupported.exit_code().into());
        })
        .map_err(|e| Error::failed(format!("the import worker's deadline can't be set: {e}")))?;
    Ok(())
}

/// CPU seconds of a worker in all; 0 where this process is none.
static CPU_SECONDS: AtomicU64 = AtomicU64::new(0);

/// Says that the graph is built: the worker's time from now on is that of all its work.
pub fn built() {
    let seconds = CPU_SECONDS.load(Ordering::Relaxed);
    if seconds > 0 {
        // Where it can't be had, what it has must do.
        let _ = allow_cpu(seconds);
    }
}

/// Lets the process have so much CPU time before the signal that says why; the hard limit stays.
fn allow_cpu(seconds: u64) -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Cpu);
    let current = Some(maximum.map_or(seconds, |most| seconds.min(most)));
    setrlimit(Resource::Cpu, Rlimit { current, maximum })
        .map_err(|e| Error::failed(format!("limit Cpu can't be set: {e}")))
}

fn apply_limits(limits: &Limits) -> Result<()> {
    for (resource, value) in limits.resources() {
        setrlimit(resource, capped(resource, value))
            .map_err(|e| Error::failed(format!("limit {resource:?} can't be set: {e}")))?;
    }
    Ok(())
}

/// Does `work` in the worker process: prints its text to stdout, or its error as one JSON line to
/// stderr, and returns the exit code. A panic becomes an error of kind unsupported that says where.
pub fn run_worker(work: impl FnOnce() -> Result<String>) -> u8 {
    let place = Arc::new(Mutex::new(String::new()));
    let seen = Arc::clone(&place);
    // The default hook prints several lines.
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let text = info.payload_as_str().unwrap_or("no message");
        let at = info.location().map(|l| format!(" ({}:{})", l.file(), l.line()));
        if let Ok(mut seen) = seen.lock() {
            *seen = format!("{text}{}", at.unwrap_or_default());
        }
    }));
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let what = place.lock().map(|p| p.clone()).unwrap_or_default();
        Err(Error::unsupported(format!("the importer gave up: {what}")))
    });
    // Whether the parent still listens does not matter to the exit code.
    match result {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => 0,
            Err(_) => ErrorKind::Failed.exit_code(),
        },
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{}", WorkerError::of(&e).line());
            e.kind().exit_code()
        }
    }
}

/// Runs `command` as a process group of its own under `limits`, waits, and returns what it printed.
/// Its standard input is empty. `source` is the file that it reads, for messages. Whatever the
/// worker left running is killed. `heard` gets what the worker says of its progress.
///
/// Errors: the worker's own error as [`run_worker`] reports it; a worker that died of a signal,
/// panicked, took too long or printed too much (unsupported); one that can't be started (failed).
pub fn run_limited(
    mut command: Command,
    limits: &Limits,
    source: &Path,
    heard: &mut dyn FnMut(Stage),
) -> Result<WorkerOutput> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command
        .spawn()
        .map_err(|e| Error::failed(format!("the import worker can't be started: {e}")))?;
    let mut worker = Worker { child, ended: false };
    let pid = worker.pid();
    for (resource, value) in limits.resources() {
        // The worker limits itself; this holds until it has come to that. The stack's limit can be
        // lost here: an exec still under way puts back the one that it started with.
        let _ = prlimit(pid, resource, capped(resource, value));
    }
    let no_thread =
        |e| Error::failed(format!("there is no thread to listen to the import worker: {e}"));
    let stdout = worker.child.stdout.take().map(|pipe| capture(pipe, STDOUT_CAP));
    let stdout = stdout.transpose().map_err(no_thread)?;
    let (sender, stages) = std::sync::mpsc::channel();
    let stderr = worker.child.stderr.take();
    let stderr = stderr
        .map(|pipe| std::thread::Builder::new().spawn(move || listen(pipe, STDERR_CAP, &sender)));
    let stderr = stderr.transpose().map_err(no_thread)?;
    let in_time = worker.wait(limits.deadline, &mut || stages.try_iter().for_each(&mut *heard))?;
    let status = worker.end()?;
    let (stdout, too_much) = joined(stdout);
    let stderr = stderr.and_then(|t| t.join().ok()).unwrap_or_default();
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    let source = source.display();
    if !in_time {
        return Err(Error::unsupported(format!(
            "import of '{source}' took longer than {} s",
            limits.deadline.as_secs_f32()
        )));
    }
    if !status.success() {
        return Err(failure(status, &stderr, limits, &source.to_string()));
    }
    if too_much {
        return Err(Error::unsupported(format!(
            "import worker printed more than {STDOUT_CAP} bytes while reading '{source}'"
        )));
    }
    Ok(WorkerOutput { stdout, stderr })
}

/// A child process and its group; both are gone when this is dropped.
struct Worker {
    child: Child,
    ended: bool,
}

impl Worker {
    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Waits until the child has ended, without reaping it; `false` if the deadline came first.
    /// `meanwhile` is called again and again.
    fn wait(&mut self, deadline: Duration, meanwhile: &mut dyn FnMut()) -> Result<bool> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        let Some(pid) = self.pid() else { return Ok(false) };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        loop {
            meanwhile();
            match waitid(WaitId::Pid(pid), options) {
                Ok(Some(_)) => return Ok(true),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::failed(format!("waiting for the import worker: {e}"))),
            }
            let left = deadline.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Kills what is left of the group and reaps the child.
    fn end(&mut self) -> Result<ExitStatus> {
        // Before the child is reaped, so that its number still is this group's.
        if let Some(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let status = self.child.wait();
        self.ended = true;
        status.map_err(|e| Error::failed(format!("waiting for the import worker: {e}")))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

/// `value` as soft and hard limit, within what this process may set.
fn capped(resource: Resource, value: u64) -> Rlimit {
    // At the hard limit of CPU time the signal is SIGKILL, which does not say why.
    let hard = if resource == Resource::Cpu { value.saturating_add(1) } else { value };
    let within = |v: u64| getrlimit(resource).maximum.map_or(v, |max| v.min(max));
    Rlimit { current: Some(within(value)), maximum: Some(within(hard)) }
}

/// Reads a pipe to its end in a thread, keeping `cap` bytes; the flag says whether there were more.
fn capture(
    mut pipe: impl Read + Send + 'static,
    cap: usize,
) -> std::io::Result<JoinHandle<(Vec<u8>, bool)>> {
    std::thread::Builder::new().spawn(move || {
        let mut kept = Vec::new();
        // A broken pipe ends the output; what came before counts.
        let _ = (&mut pipe).take(cap as u64).read_to_end(&mut kept);
        let more = std::io::copy(&mut pipe, &mut std::io::sink()).unwrap_or(0);
        (kept, more > 0)
    })
}

fn joined(thread: Option<JoinHandle<(Vec<u8>, bool)>>) -> (Vec<u8>, bool) {
    thread.and_then(|t| t.join().ok()).unwrap_or_default()
}

/// The error of a worker that said this on its standard error and ended with exit code 1, for tests.
pub fn failure_of(stderr: &[u8]) -> Error {
    let (sender, _stages) = std::sync::mpsc::channel();
    let kept = listen(stderr, STDERR_CAP, &sender);
    let limits = Limits {
        memory_bytes: 1 << 31,
        stack_bytes: 1 << 26,
        cpu_seconds: 120,
        building_seconds: 8,
        deadline: Duration::from_secs(180),
    };
    failure(ExitStatus::from_raw(1 << 8), &String::from_utf8_lossy(&kept), &limits, "model.onnx")
}

/// The error of a worker that did not end well.
fn failure(status: ExitStatus, stderr: &str, limits: &Limits, source: &str) -> Error {
    // This process's own limit (`ulimit -v`) is the child's too.
    let own = rustix::process::getrlimit(rustix::process::Resource::As).current;
    let mib = limits.memory_bytes.min(own.unwrap_or(u64::MAX)) >> 20;
    let memory = stderr.contains("memory allocation of");
    if let Some(signal) = status.signal() {
        let overflow = stderr.contains("overflowed its stack");
        let (name, why) = match signal {
            6 if memory => ("SIGABRT", format!("out of memory, limit {mib} MiB")),
            6 | 11 if overflow => {
                (if signal == 6 { "SIGABRT" } else { "SIGSEGV" }, "stack overflow".into())
            }
            4 => ("SIGILL", "illegal instruction".into()),
            6 => ("SIGABRT", "stack overflow or out of memory".into()),
            7 => ("SIGBUS", "the file was cut while it was read".into()),
            8 => ("SIGFPE", "arithmetic fault".into()),
            9 => ("SIGKILL", "killed, perhaps for want of memory".into()),
            11 => ("SIGSEGV", "stack overflow or bad access".into()),
            24 => {
                let Limits { building_seconds, cpu_seconds, .. } = limits;
                let all = format!(
                    "more than {building_seconds} s of CPU time to build the graph, or {cpu_seconds} s in all"
                );
                ("SIGXCPU", all)
            }
            2 | 15 => {
                return Error::failed(format!(
                    "import worker was stopped by signal {signal} while reading '{source}'"
                ));
            }
            _ => ("a signal", "unexpected".into()),
        };
        let died = Error::unsupported(format!(
            "import worker died of signal {signal} ({name}: {why}) while reading '{source}'"
        ));
        return match signal {
            24 => died.hint("a slow machine may need more: OFFSHOOT_IMPORT_SECONDS=600"),
            _ => died,
        };
    }
    let lines = || stderr.lines().rev().map(str::trim).filter(|l| !l.is_empty());
    if let Some(error) = lines().find_map(|l| serde_json::from_str::<WorkerError>(l).ok()) {
        return error.into_error();
    }
    let code = status.code().unwrap_or(-1);
    let last: String = lines().next().unwrap_or("no message").chars().take(300).collect();
    // The exit code of Rust's runtime after a panic in the main thread.
    if code == 101 {
        let panic = stderr.lines().skip_while(|l| !l.contains("panicked at"));
        let panic: Vec<&str> = panic.take(2).map(str::trim).collect();
        let text = if panic.is_empty() { last } else { panic.join(" ") };
        return Error::unsupported(format!(
            "import worker panicked while reading '{source}': {text}"
        ));
    }
    Error::failed(format!("import worker ended with code {code} while reading '{source}': {last}"))
}

/// An [`Error`] as one line between processes.
#[derive(Serialize, Deserialize)]
struct WorkerError {
    kind: String,
    message: String,
    hint: Option<String>,
}

const KINDS: [(ErrorKind, &str); 7] = [
    (ErrorKind::Failed, "failed"),
    (ErrorKind::Usage, "usage"),
    (ErrorKind::BadInput, "bad_input"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::Mismatch, "mismatch"),
    (ErrorKind::Refused, "refused"),
    (ErrorKind::Unreachable, "unreachable"),
];

impl WorkerError {
    fn of(error: &Error) -> WorkerError {
        let kind = KINDS.iter().find(|(k, _)| *k == error.kind()).map_or("failed", |(_, n)| n);
        WorkerError {
            kind: kind.into(),
            message: error.message().into(),
            hint: error.hint_text().map(Into::into),
        }
    }

    fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    fn into_error(self) -> Error {
        let kind = KINDS.iter().find(|(_, n)| *n == self.kind);
        let error = Error::new(kind.map_or(ErrorKind::Failed, |(k, _)| *k), self.message);
        match self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

#[cfg(test)]
#[path = "child_tests.rs"]
mod tests;
