//! The whole daemon is killed at any instant, while it takes feedback, trains, measures, promotes,
//! switches, forgets, compacts and is backed up: what it acknowledged is there, and what is active is whole.
//! The same where the power is cut, and what was not synced is lost.

use crate::place::Place;
use crate::preload::{Cut, Medium, library};
use crate::support::{Daemon, PATIENCE, and, question, read_answer, write_request};
use offshoot::store::{Filter, GenerationState, JobState, Reference, Store};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Starts a job whenever there are samples, and promotes what is no worse.
pub const BUSY: &str = "adapter = \"home\"\n---[train]\nmin_steps = 30\nepochs = 1\n\
    learning_rate = 0.01\ncheckpoint_every = 5\n[conditions]\nmin_new = 4\n\
    min_interval_seconds = 0\nidle_seconds = 0\nfree_mib = 1\nmains_only = false\nmax_load = 1.0\nmax_busy = 1.0\n\
    start_celsius = 120.0\nstop_celsius = 125.0\nlook_seconds = 1\n[gate]\nmin_holdout = 1\n\
    min_gain = 0.0\nconfidence = 0.5\nretention_cosine = -1.0\nclass_floor = 0.0\n\
    class_drop = 1.0\nfalse_promotions = 1.0\nmargin = 0.5\nmax_latency_ratio = 1000.0\n[trial]\nseconds = 1\n\
    [samples]\nsource_per_hour = 0\n\
    max_samples = 100000\nmax_bytes = 100000000\n";

/// What clients were told.
#[derive(Default)]
pub struct Told {
    /// Samples by number, with their source.
    pub kept: BTreeMap<i64, String>,
    /// Sources whose forgetting was asked for, and whether that was acknowledged.
    forgotten: BTreeMap<String, bool>,
    /// Answers to predictions.
    answers: u64,
    /// Requests that the daemon had taken and died over, by path.
    cut: BTreeMap<String, u64>,
}

/// `None` once the daemon is gone.
pub fn send(socket: &Path, path: &str, body: &Value, told: &Mutex<Told>) -> Option<(u16, Value)> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let body = body.to_string();
    write_request(&mut stream, "POST", path, "application/json", body.as_bytes());
    let answer = read_answer(&mut stream).ok();
    let answer = answer.and_then(|a| Some((a.status, serde_json::from_slice(&a.body).ok()?)));
    if answer.is_none() {
        *told.lock().unwrap().cut.entry(path.into()).or_default() += 1;
    }
    answer
}

fn feed(socket: &Path, round: u64, told: &Mutex<Told>, over: &AtomicBool) {
    let mut i = 0;
    while !over.load(Ordering::Relaxed) {
        i += 1;
        // Nobody asks to forget one in eight: some stay for good.
        let source = if i % 8 == 1 { format!("stays-{round}") } else { goes(round) };
        let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
        let mut body = question(sign * (1.0 + i as f32 / 64.0));
        // No two samples are alike.
        body["inputs"]["x"]["data"][1] = json!(round as f32 / 1024.0);
        let body =
            and(and(body, "label", if sign > 0.0 { "0" } else { "1" }), "source", source.as_str());
        let Some((status, answer)) = send(socket, "/v1/feedback", &body, told) else { continue };
        assert_eq!(status, 201, "{answer}");
        let id = answer["id"].as_i64().unwrap();
        told.lock().unwrap().kept.insert(id, source);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The source of a round's samples that may be forgotten.
fn goes(round: u64) -> String {
    format!("round-{round}")
}

/// Of three rounds one switches by hand, one forgets, and one leaves training alone.
fn act(socket: &Path, round: u64, told: &Mutex<Told>, over: &AtomicBool) {
    let mut i = 0;
    while !over.load(Ordering::Relaxed) {
        i += 1;
        let before = goes(round.saturating_sub(1 + i / 4 % 3));
        let (path, body) = match (round % 3, i % 4) {
            (0, 0) => ("/v1/adapters/home/rollback", json!({})),
            (0, 1) => ("/v1/adapters/home/activate", json!({"generation": 1 + i / 4 % 2})),
            (1, 0) => {
                told.lock().unwrap().forgotten.entry(before.clone()).or_default();
                ("/v1/forget", json!({"source": before}))
            }
            (_, 2) => ("/v1/train", json!({"adapter": "home"})),
            _ => ("/v1/predict", question(1.0)),
        };
        let Some((status, answer)) = send(socket, path, &body, told) else { continue };
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
        drop(told);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What lay on the disk at the kills.
#[derive(Default)]
pub struct Seen {
    /// The newest generation that the daemon trained.
    newest: u64,
    /// Those of them that it promoted.
    promoted: BTreeSet<u64>,
    /// Kills while a job trained, while its candidate was measured, between that and the job's
    /// end, and while a generation was on trial.
    training: u64,
    measuring: u64,
    deciding: u64,
    trial: u64,
    /// Kills after a forgetting had taken the samples and before it was done with the database.
    compacting: u64,
}

/// Their numbers.
fn samples(store: &Store) -> BTreeSet<i64> {
    let mut there = BTreeSet::new();
    let mut after = 0;
    loop {
        let page = store.samples(&Filter { limit: 1000, after, ..Filter::default() }).unwrap();
        let Some(last) = page.last() else { return there };
        after = last.id;
        there.extend(page.into_iter().map(|s| s.id));
    }
}

/// What lies on the disk is what was told.
pub fn look(place: &Place, told: &Told, seen: &mut Seen) {
    let store = Store::open(place.path("store")).unwrap();
    assert_eq!(store.doubt(), None);
    store.verify().unwrap();
    let there = samples(&store);
    for (id, source) in &told.kept {
        match told.forgotten.get(source) {
            None => assert!(there.contains(id), "sample {id} of {source} is lost"),
            Some(true) => assert!(!there.contains(id), "sample {id} of {source} is still there"),
            // The daemon died over it.
            Some(false) => {}
        }
    }
    for (source, _) in told.forgotten.iter().filter(|(_, done)| !**done) {
        let mut its = told.kept.iter().filter(|(_, s)| *s == source).peekable();
        let any = its.peek().is_some();
        seen.compacting += u64::from(any && its.all(|(id, _)| !there.contains(id)));
    }
    let generations = store.generations("home").unwrap();
    for g in generations.iter().filter(|g| g.number > 2) {
        seen.newest = seen.newest.max(g.number);
        if matches!(g.state, GenerationState::Promoted | GenerationState::Trial) {
            seen.promoted.insert(g.number);
        }
    }
    let entry = store.name("home").unwrap();
    if let Some(active) = entry.active {
        let reference = Reference::parse(&format!("home@{active}")).unwrap();
        assert_eq!(store.load(&reference).unwrap().generation, active);
        let g = generations.iter().find(|g| g.number == active).unwrap();
        let proven = g.verdict.as_ref().is_some_and(|v| v["passed"] == true);
        assert!(proven || active <= 2 && g.job.is_none(), "{g:?}");
        let state = g.state;
        assert!(matches!(state, GenerationState::Promoted | GenerationState::Trial), "{g:?}");
    }
    seen.trial += u64::from(entry.trial.is_some());
    let jobs = store.jobs().unwrap();
    if let Some(job) = jobs.iter().find(|j| j.state == JobState::Running) {
        let has = |file: &str| store.job_folder(job.id).join(file).exists();
        match (has("candidate.adapter"), has("measured.json")) {
            (_, true) => seen.deciding += 1,
            (true, false) => seen.measuring += 1,
            (false, false) => seen.training += 1,
        }
    }
}

/// A backup that was made, and the samples that had been acknowledged when it began.
type BackedUp = Option<(PathBuf, BTreeSet<i64>)>;

/// Makes one; `None` where it is not there by the time of the kill, which meets it too.
fn back_up(place: &Place, medium: Option<&Medium>, group: i32, told: &Mutex<Told>) -> BackedUp {
    let to = place.path("backup");
    let _ = std::fs::remove_dir_all(&to);
    let before: BTreeSet<i64> = told.lock().unwrap().kept.keys().copied().collect();
    let mut command = place.command(&["backup", "backup", "--state", "store"]);
    medium.iter().for_each(|m| m.put(&mut command));
    command.process_group(group);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    child.wait().unwrap();
    // What has the name is whole, be it that its maker did not come to say so.
    to.exists().then_some((to, before))
}

/// A backup has what had been told before it, but for what was to be forgotten.
fn hold(place: &Place, (from, before): (PathBuf, BTreeSet<i64>), told: &Told) {
    let to = place.path("restored");
    let _ = std::fs::remove_dir_all(&to);
    Store::restore(&to, &from).unwrap();
    let there = samples(&Store::open(&to).unwrap());
    for id in before.difference(&there) {
        let source = &told.kept[id];
        assert!(told.forgotten.contains_key(source), "the backup lacks sample {id} of {source}");
    }
}

/// Ways to end it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Kill,
    /// And what was not synced is gone, or any part of it.
    PowerCut,
}

fn start(place: Place, medium: Option<&Medium>) -> Daemon {
    Daemon::spawn(place, BUSY, |command| {
        medium.iter().for_each(|m| m.put(command));
        command.process_group(0);
    })
}

/// Until no process has `words` in its environment: a training child ends a moment after its parent.
fn all_gone(words: &Path) {
    let words = words.display().to_string();
    let begun = Instant::now();
    let lives = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut environments =
            processes.filter_map(|p| std::fs::read(p.path().join("environ")).ok());
        environments.any(|e| String::from_utf8_lossy(&e).contains(&words))
    };
    while lives() {
        assert!(begun.elapsed() < PATIENCE, "a child of the daemon lives on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn kills(rounds: u64, end: End) -> (Told, Seen) {
    let mut told = Told::default();
    let mut seen = Seen::default();
    let mut daemon = Daemon::start(BUSY);
    daemon.add_home();
    daemon.activate(1);
    let root = daemon.place.path("store");
    let noted = tempfile::tempdir().unwrap();
    let note = || (end == End::PowerCut).then(|| Medium::of(&root, noted.path()));
    daemon.signal("-TERM");
    assert_eq!(daemon.wait(), 0);
    let place = std::mem::replace(&mut daemon.place, Place::new());
    let mut medium = note();
    daemon = start(place, medium.as_ref());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut dice = |n: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize % n
    };
    let mut backups = 0;
    for round in 0..rounds {
        let shared = Mutex::new(std::mem::take(&mut told));
        let over = AtomicBool::new(false);
        let socket = daemon.socket();
        let Daemon { place, child } = &mut daemon;
        let place = &*place;
        let wait = dice(1_500_000) as u64;
        let child = &*child;
        let made = std::thread::scope(|scope| {
            scope.spawn(|| feed(&socket, round, &shared, &over));
            scope.spawn(|| act(&socket, round, &shared, &over));
            let backup = (round % 4 == 3).then(|| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_micros(wait / 2));
                    back_up(place, medium.as_ref(), child.id() as i32, &shared)
                })
            });
            std::thread::sleep(Duration::from_micros(50_000 + wait));
            // All at once, as a cut of power does: the daemon, its child, a backup.
            let group = format!("-{}", child.id());
            assert!(Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
            over.store(true, Ordering::Relaxed);
            backup.and_then(|backup| backup.join().unwrap())
        });
        daemon.child.wait().unwrap();
        told = shared.into_inner().unwrap();
        if let Some(made) = made {
            hold(&daemon.place, made, &told);
            backups += 1;
        }
        if let Some(medium) = &medium {
            all_gone(noted.path());
            medium.cut([Cut::Strict, Cut::Torn][dice(2)], &mut dice);
        }
        look(&daemon.place, &told, &mut seen);
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
        // What was asked for is asked again: the next look counts only what the next kill cuts.
        let place = std::mem::replace(&mut daemon.place, Place::new());
        medium = note();
        daemon = start(place, medium.as_ref());
        for (source, done) in told.forgotten.iter_mut().filter(|(_, done)| !**done) {
            daemon.ok("POST", "/v1/forget", Some(&json!({"source": source})));
            *done = true;
        }
        let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
        assert_eq!(answer["adapter"], "home");
        assert_eq!(daemon.ok("GET", "/health", None)["status"], "ok");
        if round % 100 == 99 {
            println!("{} of {rounds}: {} samples acknowledged", round + 1, told.kept.len());
        }
    }
    // Left alone it goes on learning.
    let begun = Instant::now();
    while seen.newest == 0 {
        assert!(begun.elapsed() < 5 * PATIENCE, "nothing was learned: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
        let mut now = Seen::default();
        look(&daemon.place, &told, &mut now);
        seen.newest = now.newest;
    }
    let done = told.forgotten.values().filter(|done| **done).count();
    println!(
        "{rounds} times {end:?}: {} samples acknowledged, {done} sources forgotten, {backups} backups, \
         {} predictions; requests died over: {:?}; generation {} was reached, {} of those trained were promoted; killed while \
         training {}, measuring {}, between that and promotion {}, on trial {}, compacting {}",
        told.kept.len(),
        told.answers,
        told.cut,
        seen.newest,
        seen.promoted.len(),
        seen.training,
        seen.measuring,
        seen.deciding,
        seen.trial,
        seen.compacting,
    );
    assert!(!told.kept.is_empty() && told.answers > 0);
    (told, seen)
}

#[test]
fn a_killed_daemon_keeps_what_it_acknowledged() {
    kills(6, End::Kill);
}

/// SQLite's log, the second record, adapters and their folders: each must have been synced by the time that
/// something is acknowledged.
#[test]
fn a_daemon_whose_power_is_cut_keeps_what_it_acknowledged() {
    if library().is_some() {
        kills(6, End::PowerCut);
    }
}

fn times(usual: u64) -> u64 {
    std::env::var("KILLS").map_or(usual, |n| n.parse().unwrap())
}

/// So many kills that every phase is met. Many minutes:
/// `KILLS=1000 cargo test --test serve -- --ignored --nocapture killed`.
#[test]
#[ignore = "takes minutes"]
fn a_daemon_killed_hundreds_of_times_keeps_what_it_acknowledged() {
    let (told, seen) = kills(times(300), End::Kill);
    for path in ["/v1/feedback", "/v1/forget"] {
        assert!(told.cut.contains_key(path), "no kill fell into {path}");
    }
    assert!(!seen.promoted.is_empty(), "nothing was promoted");
    let phases = [seen.training, seen.measuring, seen.deciding, seen.trial, seen.compacting];
    assert!(phases.iter().all(|&kills| kills > 0), "{phases:?}");
}

#[test]
#[ignore = "takes minutes"]
fn a_daemon_whose_power_is_cut_hundreds_of_times_keeps_what_it_acknowledged() {
    if library().is_some() {
        kills(times(300), End::PowerCut);
    }
}
