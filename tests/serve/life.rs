//! Start, readiness, reload, stop; what is there before and after.

use crate::place::{Place, done};
use crate::support::{Daemon, PATIENCE, and, question, read_answer, write_request};
use serde_json::json;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

fn receive(socket: &UnixDatagram) -> String {
    let mut buffer = [0u8; 4096];
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let n = socket.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

#[test]
fn systemd_is_told_when_it_is_ready_alive_reloading_and_stopping() {
    let place = Place::new();
    let path = place.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut daemon = Daemon::spawn(place, "", |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
    });
    assert!(receive(&socket).contains("READY=1"));
    assert_eq!(receive(&socket).trim(), "WATCHDOG=1");
    assert_eq!(receive(&socket).trim(), "WATCHDOG=1");
    daemon.signal("-HUP");
    let mut seen = String::new();
    while !seen.contains("READY=1") {
        seen.push_str(&receive(&socket));
    }
    assert!(seen.contains("RELOADING=1") && seen.contains("MONOTONIC_USEC="), "{seen}");
    daemon.signal("-TERM");
    while !seen.contains("STOPPING=1") {
        seen.push_str(&receive(&socket));
    }
    assert_eq!(daemon.wait(), 0);
    assert!(!daemon.socket().exists());
}

/// What the end of a second heap keeps is never given back.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
#[test]
fn the_threads_share_one_heap() {
    let daemon = Daemon::spawn(Place::new(), "threads = 2", |command| {
        command.env_remove("MALLOC_ARENA_MAX");
    });
    daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    // glibc reserves 64 MiB for each further heap, on a multiple of that, and opens the first part.
    const HEAP: usize = 64 << 20;
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.child.id())).unwrap();
    let parts: Vec<(usize, usize, &str)> = maps
        .lines()
        .map(|line| {
            let (range, rest) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let at = |text| usize::from_str_radix(text, 16).unwrap();
            (at(start), at(end), &rest[..4])
        })
        .collect();
    let further = parts.windows(2).filter(|two| {
        let ((start, end, open), (next, last, closed)) = (two[0], two[1]);
        let whole = start % HEAP == 0 && end == next && last == start + HEAP;
        whole && open == "rw-p" && closed == "---p"
    });
    assert_eq!(further.count(), 0, "{maps}");
}

#[test]
fn what_has_begun_is_finished_at_shutdown() {
    let mut daemon = Daemon::start("");
    let mut stream = daemon.connect();
    let body = question(1.0).to_string();
    let (first, rest) = body.split_at(10);
    write_request(&mut stream, "POST", "/v1/predict", "application/json", b"");
    assert_eq!(read_answer(&mut stream).unwrap().status, 400);
    use std::io::Write;
    write!(
        stream,
        "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{first}",
        body.len()
    )
    .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    daemon.signal("-TERM");
    std::thread::sleep(Duration::from_millis(200));
    assert!(daemon.child.try_wait().unwrap().is_none(), "{}", daemon.log());
    stream.write_all(rest.as_bytes()).unwrap();
    let answer = read_answer(&mut stream).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.to_lowercase().contains("connection: close"), "{}", answer.head);
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn a_reload_takes_what_it_can_and_keeps_the_rest() {
    let daemon = Daemon::start("");
    daemon.add_home();
    daemon.activate(1);
    let named = || daemon.ok("POST", "/v1/predict", Some(&question(1.0)))["adapter"].clone();
    assert!(named().is_null());
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "{what}: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    Daemon::configure(&daemon.place, "adapter = \"home\"\nworkers = 3\n");
    daemon.signal("-HUP");
    until("the default adapter", &|| named() == "home");
    until("what takes a restart", &|| daemon.log().contains("serve.workers has changed"));
    Daemon::configure(&daemon.place, "adapter = 3\n");
    daemon.signal("-HUP");
    until("the refusal", &|| daemon.log().contains("stays as it was"));
    assert_eq!(named(), "home");
    // What takes a restart is said each time, as it is not done yet.
    Daemon::configure(&daemon.place, "workers = 3\n");
    daemon.signal("-HUP");
    until("the default adapter's end", &|| named().is_null());
    until("the second saying", &|| daemon.log().matches("serve.workers has changed").count() == 2);
}

#[test]
fn a_bad_start_is_one_line_and_its_code() {
    let place = Place::new();
    place.write("o.toml", "base = \"missing.base\"\nstate = \"store\"\n[serve]\nsocket = \"s\"");
    place.fails("serve --config o.toml", 3);
    assert!(!place.path("s").exists());
    place.fails("serve --config missing.toml", 3);
    place.write("o.toml", "base = \"missing.base\"\ncolour = 1");
    assert!(place.fails("serve --config o.toml --check", 3).contains("colour"));
    place.fails("serve --colour", 2);

    let daemon = Daemon::start("");
    let again = daemon.place.command(&["serve", "--config", "o.toml"]);
    let second = done(again);
    assert_eq!(second.code, 5, "{second:?}");
    assert!(second.stderr.contains("another daemon"), "{second:?}");
    // Not on another socket either: it would train on the same state.
    daemon.place.fails("serve --config o.toml --socket other", 5);
    assert!(!daemon.place.path("other").exists());
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn the_shipped_configuration_is_sound() {
    let place = Place::new();
    let file = crate::place::repo("cross/package/offshoot.toml");
    let line = format!("serve --check --config {}", file.display());
    let checked = place.json(&line);
    assert_eq!(checked["sound"], true);
    assert!(checked["warnings"][0].as_str().unwrap().contains("model.base"));
}

#[test]
fn a_base_that_is_removed_or_replaced_is_served_on() {
    let daemon = Daemon::start("");
    let before = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    daemon.place.write("new.base", b"another file");
    std::fs::rename(daemon.place.path("new.base"), daemon.place.path("mlp.base")).unwrap();
    assert_eq!(daemon.ok("POST", "/v1/predict", Some(&question(1.0))), before);
    std::fs::remove_file(daemon.place.path("mlp.base")).unwrap();
    assert_eq!(daemon.ok("POST", "/v1/predict", Some(&question(1.0))), before);
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn in_place_of_a_damaged_adapter_the_base_answers_and_the_others_serve() {
    let mut daemon = Daemon::start("");
    daemon.add_home();
    daemon.activate(1);
    let bytes = daemon.place.read("2.adapter");
    let mime = "application/octet-stream";
    assert_eq!(daemon.send("POST", "/v1/adapters/other", mime, &bytes).status, 201);
    let body = serde_json::json!({"generation": 1});
    daemon.ok("POST", "/v1/adapters/other/activate", Some(&body));
    let shown = daemon.ok("GET", "/v1/adapters/other", None);
    let hash = shown["generations"][0]["hash"].as_str().unwrap().to_string();
    daemon.signal("-TERM");
    daemon.wait();
    let place = std::mem::replace(&mut daemon.place, Place::new());
    let file = place.path(&format!("store/adapters/{hash}.adapter"));
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "damaged").unwrap();
    let daemon = Daemon::start_in(place, "");
    let asked = |name: &str| daemon.post("/v1/predict", &and(question(1.0), "adapter", name));
    assert_eq!(asked("home").status, 200);
    let answer = asked("other");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["instead_of"]["generation"], 1, "{answer:?}");
}

#[test]
fn systemd_hands_over_the_socket() {
    let there = Command::new("systemd-socket-activate").arg("--version").output();
    if !there.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: systemd-socket-activate is absent");
        return;
    }
    let place = Place::new();
    drop(Daemon::start_in(Place::new(), ""));
    let socket = place.path("s");
    let daemon = Daemon::spawn(place, "", |command| {
        let own = command.get_program().to_owned();
        let arguments: Vec<_> = command.get_args().map(|a| a.to_owned()).collect();
        let folder = command.get_current_dir().unwrap().to_owned();
        let mut outer = Command::new("systemd-socket-activate");
        outer.arg("-l").arg(&socket).arg(own).args(arguments).current_dir(folder);
        outer.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        *command = outer;
    });
    daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
}

/// A restart within the trial of a name's first generation, and one rolled back.
#[test]
fn a_name_answers_after_a_restart_within_its_first_trial() {
    let mut daemon = Daemon::start("adapter = \"home\"");
    daemon.add_home();
    let body = json!({"generation": 1, "trial_seconds": 3600});
    daemon.ok("POST", "/v1/adapters/home/activate", Some(&body));
    daemon.signal("-TERM");
    assert_eq!(daemon.wait(), 0);
    let place = std::mem::replace(&mut daemon.place, Place::new());
    let daemon = Daemon::start_in(place, "adapter = \"home\"");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
        if answer["generation"] == 1 {
            break assert_eq!(answer["predictions"][0]["label"], "0");
        }
        assert!(Instant::now() < deadline, "{answer}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    daemon.ok("POST", "/v1/adapters/home/rollback", Some(&json!({"why": "it errs"})));
    let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    assert_eq!(answer["predictions"], json!([]));
    let why = answer["no_answer"].as_str().unwrap();
    assert!(why.contains("generation 1 of 'home' was rolled back (it errs)"), "{why}");
}
