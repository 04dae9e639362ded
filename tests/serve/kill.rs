//! The whole daemon is killed at any instant, while it takes feedback, trains, measures, promotes,
//! switches, forgets, compacts and is backed up: what it acknowledged is there, and what is active is whole.
//! The same where the power is cut, and what was not synced is lost.

use crate::common::copy;
use crate::phases::{Aim, Before, PROMOTION, Phases, count};
use crate::place::Place;
use crate::preload::{Cut, Medium, library};
use crate::support::{Daemon, PATIENCE, and, question, read_answer, write_request};
use offshoot::store::{Filter, GenerationState, How, JobState, Reference, Store};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Starts a job whenever there are samples, and promotes what is no worse. Half of the samples are held out: a
/// few are proof.
pub const BUSY: &str = "adapter = \"home\"\n---[train]\nmin_steps = 12\nepochs = 1\n\
    learning_rate = 0.01\ncheckpoint_every = 3\nmax_attempts = 1000\n[conditions]\nmin_new = 4\n\
    min_interval_seconds = 0\nidle_seconds = 0\nfree_mib = 1\nmains_only = false\nmax_load = 1.0\nmax_busy = 1.0\n\
    start_celsius = 120.0\nstop_celsius = 125.0\nlook_seconds = 1\n[gate]\nmin_holdout = 1\n\
    min_gain = 0.0\nconfidence = 0.5\nretention_cosine = -1.0\nclass_floor = 0.0\n\
    class_drop = 1.0\nfalse_promotions = 1.0\nmargin = 0.5\nmax_latency_ratio = 1000.0\n[trial]\nseconds = 1\n\
    [samples]\nsource_per_hour = 0\nhold_out = 0.5\n\
    max_samples = 100000\nmax_bytes = 100000000\n";

/// What the generations that are there at the beginning don't know: whatever learned it is better.
pub const LABELS: [&str; 2] = ["up", "down"];

/// What clients were told.
#[derive(Default)]
pub struct Told {
    /// Samples by number, with their source.
    pub kept: BTreeMap<i64, String>,
    /// Sources whose forgetting was asked for, and whether that was acknowledged.
    forgotten: BTreeMap<String, bool>,
    /// Answers to predictions.
    answers: u64,
    /// Paths of requests that are under way.
    pub asked: Vec<String>,
    /// Requests that the daemon had taken and died over, by path.
    cut: BTreeMap<String, u64>,
}

/// `None` once the daemon is gone.
pub fn send(socket: &Path, path: &str, body: &Value, told: &Mutex<Told>) -> Option<(u16, Value)> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let body = body.to_string();
    told.lock().unwrap().asked.push(path.into());
    write_request(&mut stream, "POST", path, "application/json", body.as_bytes());
    let answer = read_answer(&mut stream).ok();
    let answer = answer.and_then(|a| Some((a.status, serde_json::from_slice(&a.body).ok()?)));
    let mut told = told.lock().unwrap();
    let own = told.asked.iter().position(|asked| asked == path);
    own.map(|at| told.asked.swap_remove(at));
    if answer.is_none() {
        *told.cut.entry(path.into()).or_default() += 1;
    }
    answer
}

fn feed(socket: &Path, round: u64, told: &Mutex<Told>, over: &AtomicBool) {
    let mut i = 0;
    while !over.load(Ordering::Relaxed) {
        i += 1;
        // Nobody asks to forget one in sixteen: some stay for good.
        let source = if i % 16 == 1 { format!("stays-{round}") } else { goes(round) };
        let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
        let mut body = question(sign * (1.0 + i as f32 / 64.0));
        // No two samples are alike.
        body["inputs"]["x"]["data"][1] = json!(round as f32 / 1024.0);
        let body = and(and(body, "label", LABELS[i % 2]), "source", source.as_str());
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

/// Of three rounds one begins with switches by hand, one with forgetting what came before it, and one leaves
/// training alone.
fn act(socket: &Path, round: u64, told: &Mutex<Told>, over: &AtomicBool) {
    let mut i = 0;
    while !over.load(Ordering::Relaxed) {
        i += 1;
        let before = goes(round.saturating_sub(i / 4));
        let (path, body) = match (round % 3, i % 4) {
            (0, 0) if i < 20 => ("/v1/adapters/home/rollback", json!({})),
            (0, 1) if i < 20 => {
                ("/v1/adapters/home/activate", json!({"generation": 1 + i / 4 % 2}))
            }
            (1, 0) if i < 16 => {
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
        std::thread::sleep(Duration::from_millis(15));
    }
}

/// What lay on the disk at the kills.
#[derive(Default)]
pub struct Seen {
    /// The newest generation that the daemon trained.
    newest: u64,
    /// Those of them that it promoted.
    promoted: BTreeSet<u64>,
    phases: Phases,
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

/// What lies in a state's folder is what was told. Gives the jobs that were interrupted before: they would wait.
pub fn look(root: &Path, told: &Told, seen: &mut Seen) -> Vec<i64> {
    let files = count(&root.join("adapters"));
    let store = Store::open(root).unwrap();
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
        seen.phases.add("forgetting", any && its.all(|(id, _)| !there.contains(id)));
    }
    let generations = store.generations("home").unwrap();
    let trained = generations.iter().filter(|g| g.job.is_some());
    seen.newest = trained.map(|g| g.number).max().unwrap_or(0).max(seen.newest);
    for switch in store.history("home").unwrap().into_iter().filter(|s| s.how == How::Activated) {
        seen.promoted.extend(switch.generation.filter(|number| *number > 2));
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
    seen.phases.look_at_state(&store, files);
    let jobs = store.jobs().unwrap().into_iter();
    jobs.filter(|j| j.state == JobState::Running && j.attempts > 0).map(|j| j.id).collect()
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
    let (mut backups, mut images) = (0, 0);
    for round in 0..rounds {
        let aim = Aim::of(round, &mut dice);
        let before = Before::of(&daemon.place);
        let shared = Mutex::new(std::mem::take(&mut told));
        let over = AtomicBool::new(false);
        let socket = daemon.socket();
        let Daemon { place, child } = &mut daemon;
        let place = &*place;
        let later = Duration::from_millis(dice(300) as u64);
        let child = &*child;
        let made = std::thread::scope(|scope| {
            scope.spawn(|| feed(&socket, round, &shared, &over));
            scope.spawn(|| act(&socket, round, &shared, &over));
            let backup = (round % 4 == 3).then(|| {
                scope.spawn(|| {
                    std::thread::sleep(later);
                    back_up(place, medium.as_ref(), child.id() as i32, &shared)
                })
            });
            std::thread::sleep(Duration::from_millis(50));
            aim.wait(&before, &shared, &mut dice);
            // All at once, as a cut of power does: the daemon, its child, a backup.
            let group = format!("-{}", child.id());
            assert!(Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
            over.store(true, Ordering::Relaxed);
            backup.and_then(|backup| backup.join().unwrap())
        });
        daemon.child.wait().unwrap();
        told = shared.into_inner().unwrap();
        all_gone(&root);
        seen.phases.look_at_files(&before);
        if let Some(made) = made {
            hold(&daemon.place, made, &told);
            backups += 1;
        }
        // A copy is looked at: the daemon itself is to start on what the kill has left.
        let place = &daemon.place;
        let copied = place.path("copy");
        copy(&root, &copied);
        let mut waiting = look(&copied, &told, &mut seen);
        if let Some(medium) = &medium {
            for cut in [Cut::Strict, Cut::Torn] {
                medium.image(&place.path("image"), cut, &mut dice);
                copy(&place.path("image"), &copied);
                let found = look(&copied, &told, &mut Seen::default());
                images += 1;
                // One of them becomes the state.
                if dice(2) == 0 || cut == Cut::Strict {
                    copy(&place.path("image"), &place.path("next"));
                    waiting = found;
                }
            }
            std::fs::remove_dir_all(&root).unwrap();
            std::fs::rename(place.path("next"), &root).unwrap();
        }
        if !waiting.is_empty() {
            let store = Store::open(&root).unwrap();
            for job in waiting {
                store.update_job(job, JobState::Done, None).unwrap();
                let _ = std::fs::remove_dir_all(store.job_folder(job));
            }
        }
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
        daemon.place.write("log", "");
        // What was asked for is asked again: the next look counts only what the next kill cuts.
        let place = std::mem::replace(&mut daemon.place, Place::new());
        medium = note();
        daemon = start(place, medium.as_ref());
        // And what nobody came to forget: jobs stay small.
        for old in (0..round.saturating_sub(3)).rev().take(3).map(goes) {
            told.forgotten.entry(old).or_default();
        }
        for (source, done) in told.forgotten.iter_mut().filter(|(_, done)| !**done) {
            daemon.ok("POST", "/v1/forget", Some(&json!({"source": source})));
            *done = true;
        }
        let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
        assert_eq!(answer["adapter"], "home");
        let health = daemon.ok("GET", "/health", None);
        assert_eq!(health["status"], "ok", "{health}");
        if round % 100 == 99 {
            println!("{} of {rounds}: {}", round + 1, sum(&told, &seen));
        }
    }
    // Left alone it goes on learning.
    let begun = Instant::now();
    while seen.newest == 0 {
        assert!(begun.elapsed() < 5 * PATIENCE, "nothing was learned: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
        let mut now = Seen::default();
        look(&daemon.place.path("store"), &told, &mut now);
        seen.newest = now.newest;
    }
    println!("{rounds} times {end:?}, {images} images, {backups} backups: {}", sum(&told, &seen));
    assert!(!told.kept.is_empty() && told.answers > 0);
    (told, seen)
}

fn sum(told: &Told, seen: &Seen) -> String {
    let done = told.forgotten.values().filter(|done| **done).count();
    format!(
        "{} samples acknowledged, {done} sources forgotten, {} predictions; requests died over {:?}; generation {} \
         was reached, {} of those trained were promoted; kills fell into {:?}",
        told.kept.len(),
        told.answers,
        told.cut,
        seen.newest,
        seen.promoted.len(),
        seen.phases.kills,
    )
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

/// At the end the log is emptied, and that is not synced: it comes back as a whole or not at all.
#[test]
fn a_cut_of_power_after_a_clean_end_loses_nothing() {
    if library().is_none() {
        return;
    }
    let mut daemon = Daemon::start(BUSY);
    daemon.signal("-TERM");
    assert_eq!(daemon.wait(), 0);
    let place = std::mem::replace(&mut daemon.place, Place::new());
    let (noted, image) = (tempfile::tempdir().unwrap(), place.path("image"));
    let medium = Medium::of(&place.path("store"), noted.path());
    let mut daemon = start(place, Some(&medium));
    for i in 0..20u8 {
        let sample = and(question(1.0 + f32::from(i)), "label", LABELS[0]);
        daemon.ok("POST", "/v1/feedback", Some(&sample));
    }
    daemon.signal("-TERM");
    assert_eq!(daemon.wait(), 0);
    let mut random = 1_usize;
    let mut dice = |n: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % n
    };
    let mut logs = 0;
    for _ in 0..64 {
        medium.image(&image, Cut::Torn, &mut dice);
        logs += usize::from(std::fs::metadata(image.join("state.db-wal")).unwrap().len() > 0);
        let store = Store::open(&image).unwrap();
        assert_eq!((store.doubt(), samples(&store).len()), (None, 20));
    }
    assert!(logs > 10 && logs < 54, "{logs}");
}

fn times(usual: u64) -> u64 {
    std::env::var("KILLS").map_or(usual, |n| n.parse().unwrap())
}

/// So many kills that every phase is met. Many minutes:
/// `KILLS=1000 cargo test --test serve -- --ignored --nocapture hundreds_of_times`.
#[test]
#[ignore = "takes minutes"]
fn a_daemon_killed_hundreds_of_times_keeps_what_it_acknowledged() {
    every_phase(kills(times(300), End::Kill));
}

#[test]
#[ignore = "takes minutes"]
fn a_daemon_whose_power_is_cut_hundreds_of_times_keeps_what_it_acknowledged() {
    if library().is_some() {
        every_phase(kills(times(300), End::PowerCut));
    }
}

fn every_phase((told, seen): (Told, Seen)) {
    for path in ["/v1/feedback", "/v1/forget", "/v1/adapters/home/activate"] {
        assert!(told.cut.contains_key(path), "no kill fell into {path}");
    }
    assert!(!seen.promoted.is_empty(), "nothing was promoted");
    let phases = ["training", "measuring", "judging", "on trial", "forgetting", "moving the log"];
    for phase in phases.into_iter().chain(["backing up"]).chain(PROMOTION) {
        assert!(seen.phases.of(phase) > 0, "no kill fell into: {phase}");
    }
}
