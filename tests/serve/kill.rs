//! The whole daemon is killed at any instant, while it takes feedback, starts jobs, switches and
//! forgets: what it acknowledged is there, and what is active is whole.

use crate::place::Place;
use crate::support::{Daemon, and, question, read_answer, write_request};
use offshoot::store::{Filter, Reference, Store};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Starts a job whenever there are samples. The generations that are there have another rank: none
/// of the jobs promotes.
const BUSY: &str = "adapter = \"home\"\n---[train]\nmin_steps = 30\nepochs = 1\nrank = 2\n\
    learning_rate = 0.01\ncheckpoint_every = 5\n[conditions]\nmin_new = 4\n\
    min_interval_seconds = 0\nidle_seconds = 0\nfree_mib = 1\nmains_only = false\nmax_load = 1.0\n\
    start_celsius = 120.0\nstop_celsius = 125.0\nlook_seconds = 1\n[gate]\nmin_holdout = 1\n\
    min_gain = 0.0\nconfidence = 0.5\nretention_cosine = -1.0\nclass_floor = 0.0\n\
    class_drop = 1.0\nmax_latency_ratio = 1000.0\n[trial]\nseconds = 1\n\
    [samples]\nsource_per_hour = 0\n\
    max_samples = 100000\nmax_bytes = 100000000\n";

/// What clients were told.
#[derive(Default)]
struct Told {
    /// Samples by number, with their source.
    kept: BTreeMap<i64, String>,
    /// Sources whose forgetting was asked for, and whether that was acknowledged.
    forgotten: BTreeMap<String, bool>,
    /// Answers to predictions.
    answers: u64,
}

/// `None` once the daemon is gone.
fn send(path: &Path, request: &str, body: &Value) -> Option<(u16, Value)> {
    let mut stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(crate::support::PATIENCE)).ok()?;
    let body = body.to_string();
    write_request(&mut stream, "POST", request, "application/json", body.as_bytes());
    let answer = read_answer(&mut stream).ok()?;
    serde_json::from_slice(&answer.body).ok().map(|body| (answer.status, body))
}

fn feed(socket: &Path, round: u64, told: &Mutex<Told>, over: &AtomicBool) {
    let source = &format!("round-{round}");
    let mut i = 0;
    while !over.load(Ordering::Relaxed) {
        i += 1;
        let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
        let mut body = question(sign * (1.0 + i as f32 / 64.0));
        // No two samples are alike.
        body["inputs"]["x"]["data"][1] = json!(round as f32 / 1024.0);
        let body =
            and(and(body, "label", if sign > 0.0 { "0" } else { "1" }), "source", source.as_str());
        let Some((status, answer)) = send(socket, "/v1/feedback", &body) else { continue };
        assert_eq!(status, 201, "{answer}");
        let id = answer["id"].as_i64().unwrap();
        told.lock().unwrap().kept.insert(id, source.clone());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn switch(socket: &Path, round: u64, told: &Mutex<Told>, over: &AtomicBool) {
    let mut i = round;
    while !over.load(Ordering::Relaxed) {
        i += 1;
        let before = format!("round-{}", round.saturating_sub(1));
        let (path, body) = match i % 6 {
            0 => ("/v1/adapters/home/rollback", json!({})),
            1 => ("/v1/adapters/home/activate", json!({"generation": 1 + i / 6 % 2})),
            2 => ("/v1/train", json!({"adapter": "home"})),
            3 if round % 3 == 1 => {
                told.lock().unwrap().forgotten.entry(before.clone()).or_default();
                ("/v1/forget", json!({"source": before}))
            }
            _ => ("/v1/predict", question(1.0)),
        };
        let Some((status, answer)) = send(socket, path, &body) else { continue };
        let mut told = told.lock().unwrap();
        match path {
            "/v1/predict" => {
                assert_eq!(status, 200, "{answer}");
                told.answers += 1;
            }
            "/v1/forget" => {
                assert_eq!(status, 200, "{answer}");
                told.forgotten.insert(before, true);
            }
            // Nothing to go back to, or a generation that was marked as bad or forgotten.
            _ => assert!(status < 500, "{path}: {answer}"),
        }
    }
}

/// What lies on the disk is what was told.
fn look(place: &Place, told: &Told, seen: &mut Seen) {
    let store = Store::open(place.path("store")).unwrap();
    store.verify().unwrap();
    let mut there = BTreeSet::new();
    let mut after = 0;
    loop {
        let page = store.samples(&Filter { limit: 1000, after, ..Filter::default() }).unwrap();
        let Some(last) = page.last() else { break };
        after = last.id;
        there.extend(page.into_iter().map(|s| s.id));
    }
    for (id, source) in &told.kept {
        match told.forgotten.get(source) {
            None => assert!(there.contains(id), "sample {id} of {source} is lost"),
            Some(true) => assert!(!there.contains(id), "sample {id} of {source} is still there"),
            // The daemon died over it.
            Some(false) => {}
        }
    }
    let entry = store.name("home").unwrap();
    if let Some(active) = entry.active {
        let reference = Reference::parse(&format!("home@{active}")).unwrap();
        assert_eq!(store.load(&reference).unwrap().generation, active);
    }
    seen.generations = seen.generations.max(entry.generations.last().copied().unwrap_or(0));
    seen.running += u64::from(store.jobs().unwrap().iter().any(|j| j.state.is_open()));
}

#[derive(Default)]
struct Seen {
    generations: u64,
    running: u64,
}

fn kills(rounds: u64) {
    let mut told = Told::default();
    let mut seen = Seen::default();
    let mut daemon = Daemon::start(BUSY);
    daemon.add_home();
    daemon.activate(1);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..rounds {
        let shared = Mutex::new(std::mem::take(&mut told));
        let over = AtomicBool::new(false);
        let socket = daemon.socket();
        std::thread::scope(|scope| {
            scope.spawn(|| feed(&socket, round, &shared, &over));
            scope.spawn(|| switch(&socket, round, &shared, &over));
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            std::thread::sleep(Duration::from_micros(50_000 + (random >> 33) % 1_500_000));
            daemon.child.kill().unwrap();
            daemon.child.wait().unwrap();
            over.store(true, Ordering::Relaxed);
        });
        told = shared.into_inner().unwrap();
        look(&daemon.place, &told, &mut seen);
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
        let place = std::mem::replace(&mut daemon.place, Place::new());
        daemon = Daemon::start_in(place, BUSY);
        let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
        assert_eq!(answer["adapter"], "home");
    }
    let done = told.forgotten.values().filter(|done| **done).count();
    println!(
        "{rounds} kills: {} samples acknowledged, {} forgettings asked for, {done} acknowledged, \
         {} predictions; generation {} was reached, a job was open at {} kills",
        told.kept.len(),
        told.forgotten.len(),
        told.answers,
        seen.generations,
        seen.running
    );
    assert!(!told.kept.is_empty() && told.answers > 0);
}

#[test]
fn a_killed_daemon_keeps_what_it_acknowledged() {
    kills(6);
}

/// Some minutes: `cargo test --test serve -- --ignored --nocapture kill`.
#[test]
#[ignore = "takes minutes"]
fn a_daemon_killed_three_hundred_times_keeps_what_it_acknowledged() {
    kills(300);
}
