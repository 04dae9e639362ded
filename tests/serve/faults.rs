//! A daemon on a medium that fails: whatever call it is, once or from then on, it goes on serving or ends with a
//! line, and what it acknowledged is there when it is started anew.

use crate::common::copy;
use crate::kill::{BUSY, LABELS, Seen, Told, look, send};
use crate::place::Place;
use crate::preload::{self, Counts, Fault, every_fault, share};
use crate::support::{Daemon, PATIENCE, and, question, read_answer, write_request};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// No learning: fewer calls, always in the same order.
const QUIET: &str = "adapter = \"home\"\n---[limits]\nshutdown_seconds = 5.0\n";

/// How long a job is waited for that may have failed.
const A_JOB: Duration = Duration::from_secs(4);

/// A state with two generations, the first active, and some samples, at rest.
fn begin() -> Place {
    let mut daemon = Daemon::start(QUIET);
    daemon.add_home();
    daemon.activate(1);
    for i in 0..4u8 {
        let sample = and(question(0.1 + f32::from(i)), "label", "0");
        daemon.ok("POST", "/v1/feedback", Some(&and(sample, "source", "before")));
    }
    daemon.signal("-TERM");
    assert_eq!(daemon.wait(), 0);
    std::mem::replace(&mut daemon.place, Place::new())
}

/// What a client was told of generations: those that may be active, by all it knows.
struct Active(BTreeSet<u64>);

impl Active {
    /// It was asked for one, and told whether it is so.
    fn asked(&mut self, generation: u64, answer: Option<u16>) {
        if answer.is_some_and(|status| status < 300) {
            self.0.clear();
        }
        self.0.insert(generation);
    }
}

/// A daemon whose calls fail.
struct Failing {
    place: Place,
    child: Child,
    wrong: Vec<String>,
}

impl Failing {
    fn start(place: Place, config: &str, fault: &Fault) -> Failing {
        Daemon::configure(&place, config);
        let mut command = place.command(&["serve", "--config", "o.toml"]);
        let log = std::fs::File::create(place.path("log")).unwrap();
        command.stdout(Stdio::null()).stderr(log);
        // Sockets and the log are not of the medium that fails.
        let below = place.path("store").canonicalize().unwrap();
        fault.put(&mut command, &below, &place.path("counts"));
        let child = command.spawn().unwrap();
        let mut failing = Failing { place, child, wrong: vec![] };
        let start = Instant::now();
        while failing.ended().is_none() && failing.ask("GET", "/health", &Value::Null).is_none() {
            if start.elapsed() > PATIENCE {
                failing.wrong.push("it neither serves nor ends".into());
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        failing
    }

    fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().unwrap().map(|status| status.code().unwrap_or(-1))
    }

    /// An answer, of whatever sort; `None` once it is gone.
    fn ask(&mut self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let bytes = if body.is_null() { String::new() } else { body.to_string() };
        self.ask_bytes(method, path, "application/json", bytes.as_bytes())
    }

    fn ask_bytes(
        &mut self,
        method: &str,
        path: &str,
        mime: &str,
        body: &[u8],
    ) -> Option<(u16, Value)> {
        let mut stream = UnixStream::connect(self.place.path("s")).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write_request(&mut stream, method, path, mime, body);
        let answer = match read_answer(&mut stream) {
            Ok(answer) => answer,
            Err(e) => {
                // Sockets are gone a moment before the process is.
                let start = Instant::now();
                while self.ended().is_none() && start.elapsed() < Duration::from_secs(5) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                if self.ended().is_none() {
                    self.wrong.push(format!("{method} {path} has no answer: {e}"));
                }
                return None;
            }
        };
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status >= 400 {
            let message = value["error"]["message"].as_str().unwrap_or_default();
            if message.is_empty() || message.contains('\n') || message.contains("internal error") {
                self.wrong.push(format!("{method} {path}: {answer:?}"));
            }
        }
        Some((answer.status, value))
    }

    /// Ends it; its state's place.
    fn stop(mut self, fault: &Fault) -> (Place, Vec<String>, bool) {
        let by_itself = self.ended();
        let start = Instant::now();
        if by_itself.is_none() {
            let id = self.child.id().to_string();
            let _ = std::process::Command::new("kill").args(["-TERM", &id]).status();
        }
        let code = loop {
            match self.ended() {
                Some(code) => break code,
                None if start.elapsed() > Duration::from_secs(8) => {
                    self.wrong.push("it does not end when told to".into());
                    self.child.kill().unwrap();
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let log = String::from_utf8_lossy(&self.place.read("log")).into_owned();
        let mut wrong = self.wrong;
        if !(0..=6).contains(&code) {
            wrong.push(format!("it ended with {code}"));
        }
        if by_itself.is_some() && (code == 0 || !log.contains("offshoot: ")) {
            wrong.push("it ended without a word".into());
        }
        if log.contains("panicked") || log.contains("internal error") {
            wrong.push("it panicked".into());
        }
        if fault.is_harmless() && by_itself.is_some() {
            wrong.push("it did not go on".into());
        }
        wrong.iter_mut().for_each(|w| *w = format!("{w}; its log: {log}"));
        (self.place, wrong, by_itself.is_some())
    }
}

/// Sends whatever a client may; with the fault that a daemon meets. Whether it met it; complaints.
fn quiet(begin: &Path, fault: &Fault) -> (bool, bool, Vec<String>) {
    let place = Place::new();
    copy(begin, &place.path(""));
    let mut daemon = Failing::start(place, QUIET, fault);
    let (mut kept, mut gone) = (BTreeSet::from([2, 3, 4]), BTreeSet::new());
    let mut active = Active(BTreeSet::from([1]));
    for i in 0..3u8 {
        let sample = and(and(question(20.0 + f32::from(i)), "label", "1"), "source", "now");
        if let Some((201, answer)) = daemon.ask("POST", "/v1/feedback", &sample) {
            kept.insert(answer["id"].as_i64().unwrap());
        }
    }
    let status = |answer: Option<(u16, Value)>| answer.map(|(status, _)| status);
    let asked = daemon.ask("POST", "/v1/adapters/home/activate", &json!({"generation": 2}));
    active.asked(2, status(asked));
    if let Some((200, _)) = daemon.ask("POST", "/v1/forget", &json!({"ids": [1]})) {
        gone.insert(1);
    }
    let bytes = daemon.place.read("1.adapter");
    let mime = "application/octet-stream";
    let added = daemon.ask_bytes("POST", "/v1/adapters/home", mime, &bytes);
    let third = added.is_some_and(|(status, _)| status == 201);
    if third {
        let asked = daemon.ask("POST", "/v1/adapters/home/activate", &json!({"generation": 3}));
        active.asked(3, status(asked));
        let back = daemon.ask("POST", "/v1/adapters/home/rollback", &json!({}));
        let to = back.as_ref().and_then(|(_, b)| b["active"].as_u64());
        match to {
            Some(to) => active.asked(to, status(back)),
            None => active.0.extend([1, 2]),
        }
    }
    if let Some((status, answer)) = daemon.ask("POST", "/v1/predict", &question(1.0))
        && status != 200
        && status != 503
    {
        daemon.wrong.push(format!("a question: {status} {answer}"));
    }
    let (place, mut wrong, by_itself) = daemon.stop(fault);
    let hit = Counts::read(&place.path("counts")).failed > 0;
    if !hit {
        return (false, by_itself, wrong);
    }
    let mut daemon = Daemon::start_in(place, QUIET);
    let health = daemon.ok("GET", "/health", None);
    if health["status"] != "ok" {
        wrong.push(format!("after a clean start: {health}"));
    }
    let samples = daemon.ok("GET", "/v1/samples?limit=100", None);
    let there: BTreeSet<i64> =
        samples["samples"].as_array().unwrap().iter().map(|s| s["id"].as_i64().unwrap()).collect();
    if !kept.is_subset(&there) || !gone.is_disjoint(&there) {
        wrong.push(format!("told {kept:?}, without {gone:?}; there are {there:?}"));
    }
    let status = daemon.ok("GET", "/v1/status", None);
    let now = status["adapters"][0]["active"].as_u64();
    if !now.is_some_and(|now| active.0.contains(&now)) {
        wrong.push(format!("active is {now:?}, by what was told {:?}", active.0));
    }
    let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    if answer["generation"].as_u64() != now {
        wrong.push(format!("{now:?} is active and this answers: {answer}"));
    }
    wrong.extend(temporary(&daemon.place.path("store")));
    daemon.signal("-TERM");
    if daemon.wait() != 0 {
        wrong.push(format!("the clean end: {}", daemon.log()));
    }
    (true, by_itself, wrong)
}

/// Files that a start should have swept.
fn temporary(folder: &Path) -> Vec<String> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
        let name = entry.display().to_string();
        if entry.is_dir() {
            found.extend(temporary(&entry));
        } else if name.ends_with(".tmp") || name.ends_with(".part") {
            found.push(format!("'{name}' stays"));
        }
    }
    found
}

/// The same while it learns: samples, a job, its child, the gate, promotion.
fn busy(begin: &Path, fault: &Fault) -> (bool, bool, Vec<String>) {
    let place = Place::new();
    copy(begin, &place.path(""));
    let mut daemon = Failing::start(place, BUSY, fault);
    let told = Mutex::new(Told::default());
    let socket = daemon.place.path("s");
    for i in 0..12u8 {
        let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
        let label = LABELS[usize::from(i) % 2];
        let sample = and(question(sign * (1.0 + f32::from(i) / 64.0)), "label", label);
        let sample = and(sample, "source", "stays");
        if let Some((201, answer)) = send(&socket, "/v1/feedback", &sample, &told) {
            let id = answer["id"].as_i64().unwrap();
            told.lock().unwrap().kept.insert(id, "stays".into());
        }
    }
    let start = Instant::now();
    let learned = |daemon: &mut Failing| {
        let answer = daemon.ask("GET", "/v1/status", &Value::Null);
        answer.is_some_and(|(_, s)| s["adapters"][0]["active"].as_u64().is_some_and(|g| g > 2))
    };
    while start.elapsed() < A_JOB && daemon.ended().is_none() && !learned(&mut daemon) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let (place, mut wrong, by_itself) = daemon.stop(fault);
    let hit = Counts::read(&place.path("counts")).failed > 0;
    if !hit {
        return (false, by_itself, wrong);
    }
    // Panics where something acknowledged is gone.
    look(&place.path("store"), &told.into_inner().unwrap(), &mut Seen::default());
    let mut daemon = Daemon::start_in(place, BUSY);
    let start = Instant::now();
    loop {
        let status = daemon.ok("GET", "/v1/status", None);
        if status["adapters"][0]["active"].as_u64().is_some_and(|g| g > 2) {
            break;
        }
        if start.elapsed() > PATIENCE {
            wrong.push(format!("started anew it learns nothing: {status}"));
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let health = daemon.ok("GET", "/health", None);
    if health["status"] != "ok" {
        wrong.push(format!("after a clean start: {health}"));
    }
    wrong.extend(temporary(&daemon.place.path("store")));
    daemon.signal("-TERM");
    if daemon.wait() != 0 {
        wrong.push(format!("the clean end: {}", daemon.log()));
    }
    (true, by_itself, wrong)
}

type Trial = fn(&Path, &Fault) -> (bool, bool, Vec<String>);

fn all(trial: Trial, share: u64, seed: u64) -> u64 {
    let begin = begin();
    let (mut ended, mut complaints) = (0, vec![]);
    let start = Instant::now();
    let tried = every_fault(share, seed, |fault| {
        let (hit, by_itself, wrong) = trial(&begin.path(""), fault);
        ended += u64::from(hit && by_itself);
        complaints.extend(wrong.into_iter().map(|w| format!("{fault:?}: {w}")));
        hit
    });
    let took = start.elapsed();
    let n = complaints.len();
    assert!(n == 0, "{n} complaints in {tried} faults:\n{}", complaints.join("\n"));
    println!(
        "{tried} faults, {ended} of them its end with a line, nothing told is lost; {took:.0?}"
    );
    tried
}

#[test]
fn whatever_call_fails_the_daemon_keeps_what_it_acknowledged() {
    if preload::library().is_some() {
        assert!(all(quiet, 80, 5) > 30);
    }
}

#[test]
#[ignore = "takes minutes"]
fn every_fault_of_a_daemon() {
    if preload::library().is_some() {
        assert!(all(quiet, share(1), 5) > 300);
    }
}

#[test]
#[ignore = "takes minutes"]
fn every_fault_of_a_daemon_that_learns() {
    if preload::library().is_some() {
        assert!(all(busy, share(8), 6) > 100);
    }
}
