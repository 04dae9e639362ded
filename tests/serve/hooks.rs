//! Webhooks: what is told, to a server that fails, is slow, is away, or sends elsewhere.

use crate::place::Place;
use crate::support::{Daemon, PATIENCE, and, question};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A request as it came: head and body.
type Got = Arc<Mutex<Vec<(String, String)>>>;

fn read_request(stream: &mut TcpStream) -> Option<(String, String)> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut bytes = vec![];
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok())?;
            if bytes.len() >= end + 4 + length {
                let body = String::from_utf8(bytes[end + 4..].to_vec()).ok()?;
                return Some((String::from_utf8_lossy(&bytes[..end]).into_owned(), body));
            }
        }
        match stream.read(&mut chunk).ok()? {
            0 => return None,
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}

/// A server that answers its nth request with these; `None`: it is silent for two seconds.
fn listen(listener: TcpListener, answer: impl Fn(usize) -> Option<String> + Send + 'static) -> Got {
    let got = Got::default();
    let seen = got.clone();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let Some(request) = read_request(&mut stream) else { continue };
            seen.lock().unwrap().push(request);
            match answer(n) {
                Some(head) => drop(write!(stream, "HTTP/1.1 {head}\r\nContent-Length: 0\r\n\r\n")),
                None => std::thread::sleep(Duration::from_secs(2)),
            }
        }
    });
    got
}

fn well(_: usize) -> Option<String> {
    Some("204 No Content".into())
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn hook(port: u16, more: &str) -> String {
    format!(
        "---[train]\nenabled = false\n[mqtt]\nid = \"pi\"\n[[webhook]]\nname = \"hall\"\n\
         url = \"http://127.0.0.1:{port}/told?by=pi\"\n{more}\n"
    )
}

fn wait<T>(what: &str, daemon: &Daemon, look: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn bodies(got: &Got) -> Vec<Value> {
    got.lock().unwrap().iter().map(|(_, body)| serde_json::from_str(body).unwrap()).collect()
}

fn wait_for(got: &Got, n: usize, daemon: &Daemon) -> Vec<Value> {
    wait("messages", daemon, || Some(bodies(got)).filter(|b| b.len() >= n))
}

fn state(daemon: &Daemon) -> Value {
    daemon.ok("GET", "/v1/status", None)["webhooks"][0].clone()
}

fn ask(daemon: &Daemon) {
    daemon.ok("POST", "/v1/predict", Some(&and(question(1.0), "adapter", "home")));
}

#[test]
fn what_happens_is_told_in_order_and_signed() {
    let (listener, port) = listener();
    let got = listen(listener, well);
    let place = Place::new();
    let key = "0123456789abcdef".repeat(4);
    place.write("hook.key", &key);
    std::fs::set_permissions(place.path("hook.key"), PermissionsExt::from_mode(0o600)).unwrap();
    let more = "events = [\"answer\", \"rolled_back\", \"act\", \"samples\"]\n\
                secret_file = \"hook.key\"\nadapters = [\"home\"]";
    let daemon = Daemon::start_in(place, &hook(port, more));
    daemon.add_home();
    daemon.activate(2);
    daemon.activate(1);
    ask(&daemon);
    daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    ask(&daemon);
    let told = wait_for(&got, 6, &daemon);
    daemon.ok("POST", "/v1/adapters/home/rollback", Some(&json!({"why": "by hand"})));
    let told = [told.clone(), wait_for(&got, 8, &daemon)[told.len()..].to_vec()].concat();
    let answers: Vec<&Value> = told.iter().filter(|t| t["event"] == "answer").collect();
    assert_eq!(answers.len(), 2, "the base's answer is of no adapter that was chosen: {told:#?}");
    for answer in &answers {
        assert_eq!((&answer["adapter"], &answer["board"]), (&json!("home"), &json!("pi")));
        assert!(answer["predictions"][0]["label"].is_string(), "{answer}");
        assert!(answer.get("outputs").is_none() && answer["generation"] == 1, "{answer}");
    }
    let back = told.iter().find(|t| t["event"] == "rolled_back").unwrap();
    assert!(
        back["text"].as_str().unwrap().contains("by hand") && back["adapter"] == "home",
        "{back}"
    );
    let act = told.iter().rfind(|t| t["event"] == "act").unwrap();
    assert!(act["text"].as_str().unwrap().contains("POST /v1/adapters/home/rollback"), "{act}");
    let ids: std::collections::HashSet<String> = told.iter().map(|t| t["id"].to_string()).collect();
    assert_eq!(ids.len(), told.len());
    // Events are told in the order of the state's numbers, answers in that of theirs.
    let numbers: Vec<u64> =
        told.iter().filter_map(|t| t["id"].as_str()?.strip_prefix('e')?.parse().ok()).collect();
    assert!(numbers.len() >= 5 && numbers.is_sorted(), "{numbers:?}");
    for (head, body) in got.lock().unwrap().iter() {
        let field = |name: &str| {
            let line = head.lines().find(|l| l.to_lowercase().starts_with(name));
            line.unwrap_or_else(|| panic!("{name}: {head}")).split_once(": ").unwrap().1
        };
        assert!(head.starts_with("POST /told?by=pi HTTP/1.1"), "{head}");
        let key: Vec<u8> =
            (0..32).map(|i| u8::from_str_radix(&key[2 * i..2 * i + 2], 16).unwrap()).collect();
        let signed = format!("{}.{body}", field("x-offshoot-time:"));
        let hash = blake3::keyed_hash(&key.try_into().unwrap(), signed.as_bytes());
        assert_eq!(field("x-offshoot-signature:"), format!("blake3={hash}"));
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["version"], &body["dropped"]), (&json!(1), &json!(0)));
        assert_eq!(body["id"], field("x-offshoot-id:"));
    }
    let shown = wait("all", &daemon, || Some(state(&daemon)).filter(|s| s["waiting"] == 0));
    assert_eq!(
        (&shown["name"], &shown["dropped"], &shown["failing"]),
        (&json!("hall"), &json!(0), &Value::Null)
    );
    assert!(shown["delivered"].as_u64().unwrap() >= 8 && shown["last_success"].is_u64(), "{shown}");
    let text = daemon.place.ok("status --host s");
    assert!(text.contains("webhook 'hall': "), "{text}");
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    assert!(metrics.contains("offshoot_webhook_waiting{webhook=\"hall\"} 0"), "{metrics}");
}

#[test]
fn a_server_that_fails_is_tried_again_and_sends_nobody_elsewhere() {
    let ((listener, port), (elsewhere, trap)) = (listener(), listener());
    let caught = listen(elsewhere, well);
    let got = listen(listener, move |n| match n {
        0 => Some("503 Busy".into()),
        // Longer than timeout_seconds.
        1 => None,
        2 => Some(format!("307 There\r\nLocation: http://127.0.0.1:{trap}/")),
        // One that it will never take, which keeps none behind it.
        4 => Some("422 What".into()),
        _ => well(n),
    });
    let daemon = Daemon::start(&hook(port, "events = [\"answer\"]\ntimeout_seconds = 0.3"));
    daemon.add_home();
    daemon.activate(1);
    for _ in 0..3 {
        ask(&daemon);
    }
    let failing = wait("a failure", &daemon, || {
        Some(state(&daemon)).filter(|s| s["failing"]["tries"].as_u64() >= Some(2))
    });
    assert_eq!((&failing["waiting"], &failing["delivered"]), (&json!(3), &json!(0)));
    assert!(failing["failing"]["why"].as_str().unwrap().contains("0.3 s"), "{failing}");
    assert!(daemon.place.ok("status --host s").contains("FAILING"));
    let told = wait_for(&got, 6, &daemon);
    let ids: Vec<&Value> = told.iter().map(|t| &t["id"]).collect();
    assert!(ids[..4].iter().all(|id| *id == ids[0]), "the first, until it is taken: {ids:?}");
    assert!(ids[4] != ids[0] && ids[5] != ids[4] && told.len() == 6, "{ids:?}");
    let end = wait("the end", &daemon, || Some(state(&daemon)).filter(|s| s["waiting"] == 0));
    assert_eq!(
        (&end["delivered"], &end["refused"], &end["failing"]),
        (&json!(2), &json!(1), &Value::Null)
    );
    assert!(caught.lock().unwrap().is_empty(), "a redirect was followed");
    assert!(daemon.log().contains("is lost: it answers 422"), "{}", daemon.log());
}

#[test]
fn what_waits_is_told_after_a_restart() {
    let (held, port) = listener();
    drop(held);
    let config = hook(port, "events = [\"answer\", \"act\"]");
    let mut daemon = Daemon::start(&config);
    daemon.add_home();
    daemon.activate(1);
    for _ in 0..3 {
        ask(&daemon);
    }
    wait("all that waits", &daemon, || Some(state(&daemon)).filter(|s| s["waiting"] == 6));
    daemon.signal("-TERM");
    daemon.wait();
    let file = daemon.place.path("store/webhooks/hall.json");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let ids: Vec<String> =
        kept["waiting"].as_array().unwrap().iter().map(|m| m["id"].to_string()).collect();
    assert_eq!(ids.len(), 6);
    let place = std::mem::replace(&mut daemon.place, Place::new());
    let got = listen(TcpListener::bind(("127.0.0.1", port)).unwrap(), well);
    let mut daemon = Daemon::start_in(place, &config);
    wait_for(&got, 6, &daemon);
    // Killed: events are read again from the state.
    daemon.child.kill().unwrap();
    daemon.wait();
    let place = std::mem::replace(&mut daemon.place, Place::new());
    let daemon = Daemon::start_in(place, &config);
    daemon.activate(2);
    wait("the last", &daemon, || {
        bodies(&got)
            .iter()
            .any(|b| {
                b["text"].to_string().contains("activate") && !ids.contains(&b["id"].to_string())
            })
            .then_some(())
    });
    let told: Vec<String> = bodies(&got).iter().map(|b| b["id"].to_string()).collect();
    assert_eq!(told[..6], ids, "in order");
    let distinct: std::collections::HashSet<&String> = told.iter().collect();
    assert_eq!(distinct.len(), 7, "what came twice is known by its id: {told:?}");
}

#[test]
fn what_there_is_no_room_for_is_counted_and_what_is_seldom_stays() {
    let (held, port) = listener();
    drop(held);
    let daemon = Daemon::start(&hook(port, "events = [\"answer\", \"act\"]\nqueue = 10"));
    daemon.add_home();
    daemon.activate(1);
    wait("the acts", &daemon, || Some(state(&daemon)).filter(|s| s["waiting"] == 3));
    for _ in 0..20 {
        ask(&daemon);
    }
    let full =
        wait("a full queue", &daemon, || Some(state(&daemon)).filter(|s| s["dropped"] == 13));
    assert_eq!(full["waiting"], 10);
    let got = listen(TcpListener::bind(("127.0.0.1", port)).unwrap(), well);
    let told = wait_for(&got, 10, &daemon);
    assert!(told[..3].iter().all(|t| t["event"] == "act"), "{told:#?}");
    assert!(told[3..].iter().all(|t| t["event"] == "answer"));
    assert_eq!(told[9]["dropped"], 12, "what was dropped before it: {}", told[9]);
}

#[test]
fn an_address_with_tls_is_refused_by_name() {
    let place = Place::new();
    place.write(
        "o.toml",
        "base = \"m.base\"\n[[webhook]]\nname = \"hall\"\nurl = \"https://box/x\"\n",
    );
    let said = place.fails("serve --config o.toml --check", 3);
    assert!(said.contains("webhook 'hall'") && said.contains("no TLS"), "{said}");
}
