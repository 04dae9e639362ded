//! The medium fails: a full disk and one that can't be written to are said, and serving goes on.

use crate::place::Place;
use crate::support::{Daemon, and, question};
use offshoot::Array;
use offshoot::testing::npy;
use serde_json::json;
use std::process::{Command, Stdio};

/// Whether a shell in a mount namespace of its own may run `mount`.
fn can_mount(mount: &str, place: &Place) -> bool {
    std::fs::create_dir_all(place.path("store")).unwrap();
    let mut shell = Command::new("unshare");
    shell.args(["-m", "/bin/sh", "-c", mount]).current_dir(place.path("."));
    let can = shell.stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !can {
        eprintln!("skipped: nothing can be mounted here (needs root)");
    }
    can
}

/// A daemon in a mount namespace of its own, after `mount`.
fn behind(place: Place, mount: &str) -> Daemon {
    Daemon::spawn(place, "adapter = \"home\"", |command| {
        let mut outer = Command::new("unshare");
        outer.args(["-m", "/bin/sh", "-c", &format!("{mount} && exec \"$0\" \"$@\"")]);
        outer.arg(command.get_program()).args(command.get_args());
        outer.current_dir(command.get_current_dir().unwrap());
        for (key, value) in command.get_envs() {
            outer.env(key, value.unwrap());
        }
        outer.stdin(Stdio::null()).stdout(Stdio::null());
        let log = std::fs::File::options().append(true).open(place_log(command)).unwrap();
        outer.stderr(log);
        *command = outer;
    })
}

fn place_log(command: &Command) -> std::path::PathBuf {
    command.get_current_dir().unwrap().join("log")
}

fn sample(i: u32) -> Vec<u8> {
    let rows = 1000;
    let values = (0..rows * 12).map(|k| (k as u32 * 7 + i) as f32).collect();
    npy::to_npz(&[("x".into(), Array::f32([rows, 12], values).unwrap())]).unwrap()
}

#[test]
fn a_full_disk_is_said_and_what_was_acknowledged_stays() {
    let place = Place::new();
    let mount = "mount -t tmpfs -o size=4m,mode=700 none store";
    if !can_mount(mount, &place) {
        return;
    }
    let daemon = behind(place, mount);
    daemon.add_home();
    daemon.activate(1);
    let tell = |i| {
        let path = "/v1/feedback?adapter=home&label=1&source=test";
        daemon.send("POST", path, "application/x-npz", &sample(i))
    };
    let mut kept = vec![];
    let full = (0..200).map(tell).find(|answer| {
        if answer.status == 201 {
            kept.push(answer.json()["id"].clone());
        }
        answer.status != 201
    });
    let full = full.expect("4 MiB hold 200 samples of 48 kB");
    assert_eq!((full.status, full.error().as_str()), (507, "disk_full"), "{full:?}");
    assert!(!kept.is_empty());
    let listed = daemon.ok("GET", "/v1/samples?limit=1000", None);
    let listed: Vec<_> = listed["samples"].as_array().unwrap().iter().map(|s| &s["id"]).collect();
    assert_eq!(listed, kept.iter().collect::<Vec<_>>());
    let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    assert_eq!(answer["generation"], 1);
    assert_eq!(daemon.get("/health").status, 200);
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn a_state_that_can_not_be_written_is_served_on() {
    let place = Place::new();
    let mount = "mount --bind store store && mount -o remount,bind,ro store";
    if !can_mount(mount, &place) {
        return;
    }
    let mut daemon = Daemon::start_in(place, "adapter = \"home\"");
    daemon.add_home();
    daemon.activate(2);
    let before = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    daemon.signal("-TERM");
    assert_eq!(daemon.wait(), 0);
    let place = std::mem::replace(&mut daemon.place, Place::new());
    let daemon = behind(place, mount);
    assert_eq!(daemon.ok("POST", "/v1/predict", Some(&question(1.0))), before);
    assert_eq!(daemon.ok("GET", "/v1/status", None)["read_only"], true);
    let told = and(question(1.0), "label", "0");
    for (path, body) in [
        ("/v1/feedback", told),
        ("/v1/adapters/home/activate", json!({"generation": 1})),
        ("/v1/adapters/home/rollback", json!({})),
        ("/v1/forget", json!({"all": true})),
        ("/v1/train", json!({"adapter": "home"})),
    ] {
        let answer = daemon.post(path, &body);
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (503, "unavailable"),
            "{path}: {answer:?}"
        );
    }
    assert_eq!(daemon.ok("POST", "/v1/predict", Some(&question(1.0))), before);
}

/// The medium hangs: requests are answered as late, and those that had not begun are not done when
/// nobody waits for them any more.
#[test]
fn what_was_answered_as_late_and_had_not_begun_is_not_done() {
    let daemon = Daemon::start("adapter = \"home\"\n---[limits]\nrequest_seconds = 2.0\n");
    daemon.add_home();
    let tell = |i: u8| daemon.post("/v1/feedback", &and(question(f32::from(i)), "label", "0"));
    let other = rusqlite::Connection::open(daemon.place.path("store/state.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        for i in 1..=12 {
            scope.spawn(move || {
                let answer = tell(i);
                assert_eq!((answer.status, answer.error().as_str()), (503, "timeout"), "{i}");
            });
        }
    });
    other.execute_batch("ROLLBACK").unwrap();
    // Its turn comes after all that had begun.
    while tell(13).status != 201 {}
    let listed = daemon.ok("GET", "/v1/samples?limit=1000", None);
    let begun = listed["samples"].as_array().unwrap().len() - 1;
    assert!(begun <= 4, "{begun} of 12 were done, there are 4 threads");
}
