//! A state that is damaged or has lost something: what can be read is served, nothing is changed,
//! everything is said, until a person has decided.

use crate::place::{Place, done, learnable};
use crate::support::{self, Daemon, and, question};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A daemon that learned something, killed.
fn killed() -> (Place, Value) {
    let mut daemon = Daemon::start("adapter = \"home\"");
    daemon.add_home();
    daemon.activate(1);
    daemon.activate(2);
    for i in 0..20u8 {
        daemon.ok("POST", "/v1/feedback", Some(&and(question(f32::from(i)), "label", "0")));
    }
    let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    daemon.signal("-KILL");
    daemon.wait();
    (std::mem::replace(&mut daemon.place, Place::new()), answer)
}

fn adapters(place: &Place) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place.path("store/adapters")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 4;
    // Adapter files are read-only.
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn feedback() -> Value {
    and(question(99.0), "label", "0")
}

#[test]
fn a_damaged_log_is_said_and_served_until_a_person_decides() {
    let (place, before) = killed();
    let there = adapters(&place);
    let log = place.path("store/state.db-wal");
    flip(&log, std::fs::metadata(&log).unwrap().len() as usize / 3);
    let mut daemon = Daemon::start_in(place, "adapter = \"home\"");
    assert_eq!(daemon.ok("POST", "/v1/predict", Some(&question(1.0))), before);
    let health = daemon.ok("GET", "/health", None);
    assert_eq!(health["status"], "degraded");
    let problem = health["problems"][0].as_str().unwrap();
    assert!(problem.contains("log 'state.db-wal' is damaged at byte"), "{problem}");
    let status = daemon.ok("GET", "/v1/status", None);
    assert_eq!(status["state"]["doubt"], problem);
    assert_eq!(status["adapters"][0]["samples"]["kept"], 20);
    for (path, body) in [
        ("/v1/feedback", feedback()),
        ("/v1/adapters/home/activate", json!({"generation": 1})),
        ("/v1/forget", json!({"all": true})),
        ("/v1/train", json!({"adapter": "home"})),
    ] {
        let answer = daemon.post(path, &body);
        assert_eq!((answer.status, answer.error().as_str()), (409, "state_doubtful"), "{path}");
    }
    let socket = daemon.socket().display().to_string();
    let host = format!("unix://{socket}");
    let status = daemon.place.ok(&format!("status --host {host}"));
    assert!(status.contains("PROBLEM: ") && status.contains("offshoot restore DIR"), "{status}");
    for line in [
        "adapter add 1.adapter --name home",
        "adapter use home@1",
        "forget --all --state store",
        "restore --salvage",
        "backup b",
    ] {
        let error = daemon.place.fails(line, 5);
        let words = ["can't be trusted", "a daemon uses this state"];
        assert!(words.iter().any(|w| error.contains(w)), "{line}: {error}");
    }
    assert_eq!(adapters(&daemon.place), there);
    assert!(daemon.log().contains("can't be trusted"), "{}", daemon.log());
    daemon.signal("-TERM");
    assert_eq!(daemon.wait(), 0);
    let place = std::mem::replace(&mut daemon.place, Place::new());
    let told = place.ok("restore --salvage");
    assert!(told.contains("samples up to number 20, 2 generations"), "{told}");
    let daemon = Daemon::start_in(place, "adapter = \"home\"");
    assert_eq!(daemon.ok("POST", "/v1/predict", Some(&question(1.0))), before);
    daemon.ok("POST", "/v1/feedback", Some(&feedback()));
    assert_eq!(adapters(&daemon.place), there);
}

#[test]
fn a_missing_database_is_not_made_anew() {
    let (place, _) = killed();
    let there = adapters(&place);
    for file in ["state.db", "state.db-wal", "state.db-shm"] {
        std::fs::remove_file(place.path("store").join(file)).unwrap();
    }
    let daemon = Daemon::start_in(place, "adapter = \"home\"");
    let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    assert_eq!(answer["generation"], Value::Null);
    assert_eq!(daemon.post("/v1/feedback", &feedback()).status, 409);
    let health = daemon.ok("GET", "/health", None);
    assert!(health["problems"][0].as_str().unwrap().contains("is missing"), "{health}");
    assert!(!daemon.place.path("store/state.db").exists());
    assert_eq!(adapters(&daemon.place), there);
}

#[test]
fn a_backup_while_it_runs_is_put_back() {
    let mut daemon = Daemon::start("adapter = \"home\"");
    daemon.add_home();
    daemon.activate(2);
    daemon.ok("POST", "/v1/feedback", Some(&feedback()));
    let before = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    let host = format!("unix://{}", daemon.socket().display());
    let mut command = daemon.place.command(&["backup", "b", "--json"]);
    // The daemon's state, not the user's.
    command.env("OFFSHOOT_HOST", &host).env("OFFSHOOT_STORE", daemon.place.path("none"));
    let made = done(command);
    assert_eq!(made.code, 0, "{made:?}");
    let made: Value = serde_json::from_str(&made.stdout).unwrap();
    assert_eq!(made["backup"]["adapters"], 2, "{made}");
    daemon.ok("POST", "/v1/feedback", Some(&and(question(5.0), "label", "1")));
    daemon.activate(1);
    let refused = daemon.place.fails("restore b", 5);
    assert!(refused.contains("a daemon uses this state"), "{refused}");
    daemon.signal("-TERM");
    assert_eq!(daemon.wait(), 0);
    let log = daemon.place.path("store/state.db-wal");
    assert_eq!(std::fs::metadata(log).map_or(0, |m| m.len()), 0, "the log is empty after the end");
    let place = std::mem::replace(&mut daemon.place, Place::new());
    place.ok("restore b");
    let daemon = Daemon::start_in(place, "adapter = \"home\"");
    assert_eq!(daemon.ok("POST", "/v1/predict", Some(&question(1.0))), before);
    let samples = daemon.ok("GET", "/v1/samples", None);
    assert_eq!(samples["samples"].as_array().unwrap().len(), 1);
}

#[test]
fn where_the_active_generation_is_damaged_the_one_before_answers() {
    let (place, _) = killed();
    let status = place.json("adapter show home@2");
    let path = PathBuf::from(status["file"].as_str().or(status["path"].as_str()).unwrap());
    flip(&place.path("").join(path), 300);
    let daemon = Daemon::start_in(place, "adapter = \"home\"");
    let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    assert_eq!(
        (&answer["generation"], &answer["instead_of"]["generation"]),
        (&json!(1), &json!(2))
    );
    let health = daemon.ok("GET", "/health", None);
    assert_eq!(health["status"], "degraded");
    let problem = health["problems"][0].as_str().unwrap();
    assert!(problem.contains("generation 1 answers in its place"), "{problem}");
    let status = daemon.ok("GET", "/v1/status", None);
    let row = &status["adapters"][0];
    assert_eq!((&row["active"], &row["served"]), (&json!(2), &json!(1)), "{row}");
    let events = status["events"].as_array().unwrap();
    assert!(events.iter().any(|e| e["kind"] == "fallback"), "{events:?}");
    // The file again: it is served again.
    let bytes = daemon.place.read("2.adapter");
    let mime = "application/octet-stream";
    assert_eq!(daemon.send("POST", "/v1/adapters/home", mime, &bytes).status, 200);
    daemon.activate(2);
    let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    assert_eq!((&answer["generation"], &answer["instead_of"]), (&json!(2), &Value::Null));
}

#[test]
fn a_state_that_everybody_may_write_to_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let (place, _) = killed();
    let open = PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(place.path("store"), open).unwrap();
    let error = place.fails("serve --config o.toml", 5);
    assert!(error.contains("everybody can change the state"), "{error}");
}

#[test]
fn a_damaged_weight_is_found_and_said_while_it_is_served() {
    let place = Place::new();
    learnable(&place);
    let shown: Value = serde_json::from_str(&place.ok("inspect mlp.base --json")).unwrap();
    let sections = shown["sections"].as_array().unwrap();
    let weights = sections.iter().find(|s| s["name"] == "weights").unwrap();
    flip(&place.path("mlp.base"), weights["offset"].as_u64().unwrap() as usize + 5);
    let x = offshoot::Array::f32(vec![1, 12], vec![0.5; 12]).unwrap();
    offshoot::testing::npy::write(place.path("x.npy"), &x).unwrap();
    place.ok("run mlp.base --input x=x.npy");
    let error = place.fails("run mlp.base --input x=x.npy --verify", 3);
    assert!(error.contains("section 'weights' is damaged"), "{error}");

    let daemon = Daemon::start_in(place, "");
    let integrity = || daemon.ok("GET", "/v1/status", None)["base"]["integrity"].clone();
    let start = std::time::Instant::now();
    while integrity() != "damaged" {
        assert!(start.elapsed() < support::PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let health = daemon.ok("GET", "/health", None);
    assert_eq!(health["status"], "degraded");
    assert!(health["problems"][0].as_str().unwrap().contains("section 'weights' is damaged"));
    daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    let whole = Daemon::start("");
    let start = std::time::Instant::now();
    while whole.ok("GET", "/v1/status", None)["base"]["integrity"] != "whole" {
        assert!(start.elapsed() < support::PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// It was answered from, 200, whatever the file held by then.
#[test]
fn a_base_that_was_changed_in_place_is_not_answered_from() {
    let daemon = Daemon::start("");
    daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    // A writer would wait for the lease; this is what it leaves.
    let file = std::fs::File::open(daemon.place.path("mlp.base")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let answer = daemon.post("/v1/predict", &question(1.0));
    assert_eq!((answer.status, answer.error().as_str()), (503, "unavailable"), "{answer:?}");
    let health = daemon.ok("GET", "/health", None);
    assert_eq!((&health["status"], &health["base_changed"]), (&json!("degraded"), &json!(true)));
    let problem = health["problems"][0].as_str().unwrap();
    assert!(problem.contains("was changed in place"), "{problem}");
}
