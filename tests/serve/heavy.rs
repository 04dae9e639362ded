//! Requests that ask for much: memory, time. Others are served meanwhile, and the daemon ends in time.

use crate::place::Place;
use crate::support::{Daemon, and, question, read_answer, write_request};
use offshoot::Array;
use offshoot::testing::npy;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// A `.npz` of zeros, which takes a thousandth of its size when it is deflated.
fn zeros(place: &Place, name: &str, shape: &[usize]) -> Vec<u8> {
    use std::io::Write;
    let array = Array::f32(shape.to_vec(), vec![0.0; shape.iter().product()]).unwrap();
    let file = std::fs::File::create(place.path("zeros.npz")).unwrap();
    let mut archive = zip::ZipWriter::new(file);
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated);
    archive.start_file(format!("{name}.npy"), options).unwrap();
    archive.write_all(&npy::to_bytes(&array)).unwrap();
    archive.finish().unwrap();
    place.read("zeros.npz")
}

/// Most memory of its own that the daemon had, in MB (`VmHWM` less what is mapped from files).
fn peak(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let mb = |key: &str| -> u64 {
        let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() / 1024
    };
    mb("VmHWM:") - mb("RssFile:").min(mb("VmHWM:"))
}

fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = String::from_utf8(daemon.get("/metrics").body).unwrap();
    let line = text.lines().find(|l| l.starts_with(&format!("offshoot_{name} "))).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// What a request took is given back when its answer is gone.
fn all_is_given_back(daemon: &Daemon) {
    let start = Instant::now();
    while metric(daemon, "request_memory_bytes") > 0.0 {
        assert!(start.elapsed() < Duration::from_secs(60), "memory stays taken");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A body of some kilobytes took the daemon to gigabytes.
#[test]
fn what_never_fits_is_refused_before_it_is_unpacked_or_run() {
    let daemon = Daemon::start("---[limits]\nmemory_bytes = 33554432\nbody_bytes = 4194304\n");
    let before = peak(&daemon);
    let npz = "application/x-npz";
    // 144 MB to unpack; 14 MB to unpack and 40 MB to run.
    for rows in [3_000_000, 300_000] {
        let answer =
            daemon.send("POST", "/v1/predict", npz, &zeros(&daemon.place, "x", &[rows, 12]));
        assert_eq!((answer.status, answer.error().as_str()), (413, "too_large"), "{rows}");
    }
    // As text: two bytes a number.
    let body = format!(
        r#"{{"inputs": {{"x": {{"shape": [125000, 12], "data": [{}0]}}}}}}"#,
        "0,".repeat(1_499_999)
    );
    let answer = daemon.send("POST", "/v1/predict", "application/json", body.as_bytes());
    assert_eq!((answer.status, answer.error().as_str()), (413, "too_large"));
    let body = and(question(0.5), "adapter", "home");
    assert_eq!(daemon.post("/v1/feedback", &and(body, "label", "a")).status, 201);
    let answer = daemon.send(
        "POST",
        "/v1/feedback?adapter=home&label=a",
        npz,
        &zeros(&daemon.place, "x", &[3_000_000, 12]),
    );
    assert_eq!(answer.status, 413, "{answer:?}");
    all_is_given_back(&daemon);
    daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    let grown = peak(&daemon) - before;
    assert!(grown < 64, "{before} MB, then {grown} MB more");
}

/// Several that fit alone and not together: some are told to come again.
#[test]
fn what_all_take_at_once_stays_below_the_limit() {
    let daemon = Daemon::start("workers = 4\n---[limits]\nmemory_bytes = 67108864\n");
    let before = peak(&daemon);
    let body = zeros(&daemon.place, "x", &[100_000, 12]);
    let mut streams: Vec<UnixStream> = (0..8).map(|_| daemon.connect()).collect();
    for stream in &mut streams {
        let path = "/v1/predict?top=1&outputs=false";
        write_request(stream, "POST", path, "application/x-npz", &body);
    }
    let statuses: Vec<u16> =
        streams.iter_mut().map(|stream| read_answer(stream).unwrap().status).collect();
    assert!(statuses.iter().all(|s| [200, 503].contains(s)), "{statuses:?}");
    assert!(statuses.contains(&200), "{statuses:?}");
    let grown = peak(&daemon) - before;
    assert!(grown < 110, "{before} MB, then {grown} MB more: {statuses:?}");
}

/// Well below what the slow input takes.
const AT_ONCE: Duration = Duration::from_secs(6);

/// A base that goes through its input step by step, and one that takes it many seconds.
fn slow(config: &str) -> (Daemon, Vec<u8>) {
    let place = Place::new();
    place.ok("pack {models}/lstm.onnx -o mlp.base");
    let body = zeros(&place, "mels", &[1, 2_000_000, 6]);
    (Daemon::start_in(place, config), body)
}

/// Until a small question is answered, which on a machine at other work may be late itself.
fn short(daemon: &Daemon) -> Duration {
    let start = Instant::now();
    let inputs = serde_json::json!({"mels": {"shape": [1, 2, 6], "data": vec![0.5; 12]}});
    let question = serde_json::json!({ "inputs": inputs });
    while daemon.post("/v1/predict", &question).status != 200 {
        assert!(start.elapsed() < Duration::from_secs(60), "{}", daemon.log());
    }
    start.elapsed()
}

/// The answer was 503, and the run went on and held its worker.
#[test]
fn a_late_run_frees_its_worker() {
    let (daemon, body) =
        slow("workers = 1\n---[limits]\nrequest_seconds = 1.0\nmemory_bytes = 1000000000\n");
    let answer = daemon.send("POST", "/v1/predict", "application/x-npz", &body);
    assert_eq!((answer.status, answer.error().as_str()), (503, "timeout"));
    let waited = short(&daemon);
    assert!(waited < AT_ONCE, "{waited:?}");
    all_is_given_back(&daemon);
}

#[test]
fn a_run_for_a_client_that_left_ends() {
    let (daemon, body) =
        slow("workers = 1\n---[limits]\nrequest_seconds = 60.0\nmemory_bytes = 1000000000\n");
    let mut stream = daemon.connect();
    write_request(&mut stream, "POST", "/v1/predict", "application/x-npz", &body);
    stream.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "it is not slow");
    drop(stream);
    let waited = short(&daemon);
    assert!(waited < AT_ONCE, "{waited:?}");
}

/// Two questions that take many seconds kept all others waiting.
#[test]
fn small_questions_are_answered_beside_large_ones() {
    let (daemon, body) =
        slow("workers = 2\n---[limits]\nrequest_seconds = 60.0\nmemory_bytes = 4000000000\n");
    let mut streams: Vec<UnixStream> = (0..4).map(|_| daemon.connect()).collect();
    for stream in &mut streams {
        write_request(stream, "POST", "/v1/predict", "application/x-npz", &body);
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(stream.read(&mut [0]).is_err(), "it is not slow");
    }
    for _ in 0..3 {
        let waited = short(&daemon);
        assert!(waited < AT_ONCE / 3, "{waited:?}");
    }
}

/// SIGTERM with `shutdown_seconds = 3` was not obeyed in 120 s.
#[test]
fn the_end_comes_in_time_whatever_runs() {
    for twice in [false, true] {
        let (mut daemon, body) =
            slow("workers = 2\n---[limits]\nshutdown_seconds = 1.0\nmemory_bytes = 1000000000\n");
        let mut streams = [daemon.connect(), daemon.connect()];
        for stream in &mut streams {
            write_request(stream, "POST", "/v1/predict", "application/x-npz", &body);
        }
        std::thread::sleep(Duration::from_millis(400));
        let start = Instant::now();
        daemon.signal("-TERM");
        if twice {
            std::thread::sleep(Duration::from_millis(100));
            let id = daemon.child.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        }
        assert_eq!(daemon.wait(), 0, "{}", daemon.log());
        let took = start.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}: {}", daemon.log());
    }
}
