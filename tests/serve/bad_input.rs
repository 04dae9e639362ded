//! Bad input at every endpoint: a stated status, one sentence, and a daemon that goes on.

use crate::support::{Daemon, and, question, read_answer};
use offshoot::Array;
use offshoot::testing::npy;
use serde_json::json;
use std::io::Write;

const JSON: &str = "application/json";

/// A PNG that states 60,000 x 60,000 pixels.
fn bomb() -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend([0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60, 8, 2, 0, 0, 0]);
    png.extend([0; 4]);
    png
}

#[test]
fn every_endpoint_refuses_what_it_can_not_read() {
    let daemon = Daemon::start("---[limits]\nbody_bytes = 100000\n");
    daemon.add_home();
    daemon.activate(1);
    let deep = format!("{}1{}", "[".repeat(40_000), "]".repeat(40_000));
    let huge = vec![b'x'; 100_001];
    let wrong_shape =
        json!({"inputs": {"x": {"shape": [1, 11], "data": vec![0.0; 11]}}}).to_string();
    let wrong_name =
        json!({"inputs": {"y": {"shape": [1, 12], "data": vec![0.0; 12]}}}).to_string();
    let nan = and(question(1.0), "top", "NaN").to_string();
    let overflow =
        r#"{"inputs": {"x": {"shape": [1, 12], "data": [1e999,0,0,0,0,0,0,0,0,0,0,0]}}}"#;
    let many = json!({"generation": u64::MAX}).to_string();
    let posts: &[(&str, &str, &[u8], u16)] = &[
        ("/v1/predict", JSON, b"", 400),
        ("/v1/predict", JSON, b"{", 400),
        ("/v1/predict", JSON, b"\xff\xfe", 400),
        ("/v1/predict", JSON, b"{\"text\": \"\xff\"}", 400),
        ("/v1/predict", JSON, b"null", 400),
        ("/v1/predict", JSON, b"{\"inputs\": 3}", 400),
        ("/v1/predict", JSON, b"{\"text\": \"a\"} {}", 400),
        ("/v1/predict", JSON, b"{\"text\": \"a\", \"text\": \"b\"}", 400),
        ("/v1/predict", JSON, b"{\"text\": \"a\", \"extra\": 1}", 400),
        ("/v1/predict", JSON, deep.as_bytes(), 400),
        ("/v1/predict", JSON, &huge, 413),
        ("/v1/predict", JSON, wrong_shape.as_bytes(), 400),
        ("/v1/predict", JSON, wrong_name.as_bytes(), 400),
        ("/v1/predict", JSON, nan.as_bytes(), 400),
        ("/v1/predict", JSON, overflow.as_bytes(), 400),
        // This base takes neither sentences nor pictures.
        ("/v1/predict", JSON, b"{\"text\": \"hello\"}", 422),
        ("/v1/predict", "image/png", &bomb(), 422),
        ("/v1/predict", "text/plain", b"hello", 415),
        ("/v1/predict", "", b"{}", 415),
        ("/v1/predict", "application/x-npz", b"PK\x03\x04 no", 400),
        ("/v1/predict?top=x", "application/x-npz", b"PK", 400),
        ("/v1/predict?colour=1", "application/x-npz", b"PK", 400),
        ("/v1/predict?adapter=home", JSON, b"{\"text\": \"a\"}", 400),
        ("/v1/feedback", JSON, b"{}", 400),
        ("/v1/feedback", JSON, b"{\"text\": \"a\", \"adapter\": \"home\"}", 422),
        ("/v1/feedback", JSON, b"{\"text\": \"a\", \"adapter\": \"../x\"}", 400),
        ("/v1/feedback", "image/jpeg", b"no", 400),
        ("/v1/feedback", "text/plain", b"no", 415),
        ("/v1/forget", JSON, b"{}", 400),
        ("/v1/forget", JSON, b"{\"ids\": [\"a\"]}", 400),
        ("/v1/forget", JSON, b"{\"since\": -1}", 400),
        ("/v1/forget", JSON, b"{\"hashes\": [\"abc\"]}", 400),
        ("/v1/samples/1", JSON, b"{\"state\": \"gone\"}", 400),
        ("/v1/samples/1", JSON, b"{\"state\": \"kept\"}", 404),
        ("/v1/samples/x", JSON, b"{\"state\": \"kept\"}", 404),
        ("/v1/adapters/home", "application/octet-stream", b"", 400),
        ("/v1/adapters/home", "application/octet-stream", b"not an adapter", 400),
        ("/v1/adapters/home", JSON, b"{}", 415),
        ("/v1/adapters/Home", "application/octet-stream", b"x", 400),
        ("/v1/adapters/%2e%2e", "application/octet-stream", b"x", 400),
        ("/v1/adapters/%ff", "application/octet-stream", b"x", 400),
        ("/v1/adapters/home/activate", JSON, b"{}", 400),
        ("/v1/adapters/home/activate", JSON, b"{\"generation\": -1}", 400),
        ("/v1/adapters/home/activate", JSON, b"{\"generation\": 1.5}", 400),
        ("/v1/adapters/home/activate", JSON, many.as_bytes(), 404),
        ("/v1/adapters/home/activate", JSON, b"{\"generation\": 0}", 404),
        ("/v1/adapters/home/activate", JSON, b"{\"generation\": 1, \"trial_seconds\": 0}", 400),
        ("/v1/adapters/none/activate", JSON, b"{\"generation\": 1}", 404),
        ("/v1/adapters/none/rollback", JSON, b"{}", 404),
        ("/v1/adapters/home/rollback", JSON, b"{\"why\": 1}", 400),
        ("/v1/train", JSON, b"{}", 400),
        ("/v1/train", JSON, b"{\"adapter\": \"none\"}", 404),
        ("/v1/train", JSON, b"{\"adapter\": \"A\"}", 400),
        ("/lora-adapters", JSON, b"{}", 400),
        ("/lora-adapters", JSON, b"[{\"id\": 5, \"scale\": 1}]", 404),
        ("/lora-adapters", JSON, b"[{\"id\": -1, \"scale\": 1}]", 400),
        ("/health", JSON, b"{}", 405),
    ];
    for (path, mime, body, status) in posts {
        let answer = daemon.send("POST", path, mime, body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        assert_eq!(answer.status, *status, "{path} {shown}: {answer:?}");
        answer.error();
    }
    for (path, status) in [
        ("/v1/samples?limit=0", 400),
        ("/v1/samples?limit=x", 400),
        ("/v1/samples?part=half", 400),
        ("/v1/samples?colour=1", 400),
        ("/v1/samples?since=18446744073709551615", 400),
        ("/v1/samples/9", 404),
        ("/v1/events?after=x", 400),
        ("/v1/adapters/none", 404),
        ("/v1/train/9", 404),
        ("/v1/train/x/events", 404),
        ("/v1/train/99999999999999999999999", 404),
        ("/nowhere", 404),
        ("/v1/adapters/none/1", 404),
        ("/v1/adapters/none/0", 404),
        ("//", 404),
    ] {
        let answer = daemon.get(path);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        answer.error();
    }
    // Nothing of it left a trace.
    let one = daemon.ok("POST", "/v1/predict", Some(&and(question(1.0), "adapter", "home")));
    assert_eq!(one["generation"], 1);
    assert_eq!(daemon.ok("GET", "/v1/samples", None)["samples"], json!([]));
    assert!(!daemon.log().contains("panicked") && !daemon.log().contains("internal error"));
}

#[test]
fn an_answer_that_is_not_finite_names_where_that_comes_from() {
    let daemon = Daemon::start("");
    let array = Array::f32(vec![1, 12], vec![f32::NAN; 12]).unwrap();
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    archive.start_file("x.npy", zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(&npy::to_bytes(&array)).unwrap();
    let body = archive.finish().unwrap().into_inner();
    let answer = daemon.send("POST", "/v1/predict", "application/x-npz", &body);
    assert_eq!((answer.status, answer.error().as_str()), (422, "not_finite"), "{answer:?}");
    let said = answer.json()["error"]["message"].to_string();
    assert!(said.contains("the input 'x' holds"), "{said}");
    daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
}

#[test]
fn an_adapter_of_another_base_is_not_taken() {
    let daemon = Daemon::start("");
    let mut adapter = offshoot::Adapter::read(daemon.place.path("1.adapter")).unwrap();
    adapter.base = Some(offshoot::BaseFingerprint([7; 32]));
    let bytes = adapter.to_bytes(offshoot::adapters::TensorType::F32).unwrap();
    let answer = daemon.send("POST", "/v1/adapters/home", "application/octet-stream", &bytes);
    assert_eq!((answer.status, answer.error().as_str()), (422, "mismatch"), "{answer:?}");
    assert_eq!(daemon.ok("GET", "/v1/adapters", None)["adapters"], json!([]));
}

#[test]
fn broken_http_is_answered_or_dropped() {
    let daemon = Daemon::start("");
    let many = "X-A: b\r\n".repeat(100);
    let long = format!("X-A: {}\r\n", "b".repeat(40_000));
    for (bytes, status) in [
        ("GARBAGE\r\n\r\n".to_string(), Some(400)),
        ("GET / HTTP/9.9\r\n\r\n".into(), Some(400)),
        (format!("GET /health HTTP/1.1\r\nHost: x\r\n{many}\r\n"), Some(431)),
        (format!("GET /health HTTP/1.1\r\nHost: x\r\n{long}\r\n"), Some(431)),
        ("POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".into(), Some(400)),
        (
            "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".into(),
            Some(413),
        ),
        (
            "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\
             Content-Length: 6\r\n\r\nabcdef"
                .into(),
            Some(400),
        ),
        (
            "POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
             fffffffffffffffff\r\n"
                .into(),
            None,
        ),
    ] {
        let mut stream = daemon.connect();
        let _ = stream.write_all(bytes.as_bytes());
        let shown = &bytes[..bytes.len().min(80)];
        match (read_answer(&mut stream), status) {
            (Ok(answer), Some(status)) => assert_eq!(answer.status, status, "{shown:?}"),
            (Ok(answer), None) => assert!((400..500).contains(&answer.status), "{answer:?}"),
            (Err(e), Some(_)) => panic!("{shown:?}: {e}"),
            (Err(_), None) => {}
        }
    }
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn feedback_the_base_can_not_take_is_not_stored() {
    let daemon = Daemon::start("");
    let npz = npy::to_npz(&[("x".into(), Array::f32([1, 3], vec![1.0; 3]).unwrap())]).unwrap();
    let path = "/v1/feedback?adapter=home&label=1";
    let answer = daemon.send("POST", path, "application/x-npz", &npz);
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(daemon.ok("GET", "/v1/samples", None)["samples"], json!([]));
}
