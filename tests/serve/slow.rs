//! Clients that are slow, half there, or too many.

use crate::support::{Daemon, question, read_answer, write_request};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const QUICK: &str = "---[limits]\nheader_seconds = 0.5\nbody_seconds = 0.5\n";

/// Whether the other side closed the connection, perhaps after an answer.
fn closed(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut sink = vec![];
    match stream.read_to_end(&mut sink) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn half_requests_end() {
    let daemon = Daemon::start(QUICK);
    let mut silent = daemon.connect();
    let mut head = daemon.connect();
    head.write_all(b"GET /health HT").unwrap();
    let mut body = daemon.connect();
    body.write_all(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{").unwrap();
    let mut unused = daemon.connect();
    write_request(&mut unused, "GET", "/health", "", b"");
    assert_eq!(read_answer(&mut unused).unwrap().status, 200);
    let answer = read_answer(&mut body).unwrap();
    assert_eq!((answer.status, answer.error().as_str()), (408, "timeout"));
    for stream in [&mut silent, &mut head, &mut body, &mut unused] {
        assert!(closed(stream));
    }
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn a_thousand_slow_connections_do_not_stop_a_normal_client() {
    let daemon = Daemon::start("---[limits]\nconnections = 16\nheader_seconds = 60.0\n");
    let mut slow: Vec<UnixStream> = vec![];
    for i in 0..1000 {
        let mut stream = daemon.connect();
        // Some have sent a part of a head, some a part of a body, some nothing.
        let part: &[u8] = match i % 3 {
            0 => b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{",
            1 => b"GET /health HTTP/1.1\r\nX-Slow: ",
            _ => b"",
        };
        let _ = stream.write_all(part);
        slow.push(stream);
        if i % 100 == 99 {
            let start = Instant::now();
            daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
            assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        }
    }
    let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count();
    assert!(files < 100, "{files} files are open");
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    let evicted = metrics.lines().find(|l| l.starts_with("offshoot_slow_clients_total ")).unwrap();
    let evicted: u64 = evicted.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(evicted >= 900, "{evicted}");
}

#[test]
fn a_client_that_reads_nothing_is_dropped() {
    let daemon = Daemon::start(QUICK);
    let mut stream = daemon.connect();
    // Answers pile up until the socket is full: the writer gives up on it.
    let request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n";
    let start = Instant::now();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    while stream.write_all(request).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20), "it still takes requests");
    }
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn a_full_queue_is_said_at_once() {
    let daemon = Daemon::start("workers = 1\n---[limits]\nqueue = 1\nconnections = 400\n");
    // As many rows as take a while.
    let rows = 20_000;
    let data = vec![0.5f32; rows * 12];
    let big = serde_json::json!({"inputs": {"x": {"shape": [rows, 12], "data": data}}}).to_string();
    let mut streams: Vec<UnixStream> = (0..24).map(|_| daemon.connect()).collect();
    for stream in &mut streams {
        write_request(stream, "POST", "/v1/predict", "application/json", big.as_bytes());
    }
    let mut seen = [0, 0];
    for stream in &mut streams {
        let answer = read_answer(stream).unwrap();
        match answer.status {
            200 => seen[0] += 1,
            503 => {
                assert_eq!(answer.error(), "busy");
                assert!(answer.head.contains("retry-after"), "{}", answer.head);
                seen[1] += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(seen[0] >= 2 && seen[1] >= 1, "{seen:?}");
}
