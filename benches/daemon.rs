//! The daemon under load and at rest: `cargo bench --bench daemon -- [load|idle|latency|training]`.
//!
//! `load`: 200,000 requests from four clients on a tiny base while generations are promoted and
//! rolled back 100 times; every answer is checked against its generation. `idle`: resident memory
//! and wake-ups over a minute with MiniLM in q8. `latency`: MiniLM's predict, one and four clients.
//! `training`: the same for a client of 20 requests a second, before, beside and after a job that
//! trains to its end.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/it/support.rs"]
#[allow(dead_code)]
mod place;
#[path = "../tests/serve/schema.rs"]
mod schema;
#[path = "../tests/serve/support.rs"]
#[allow(dead_code)]
mod support;

use place::{Place, repo};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Answer, Daemon, question, read_answer, write_request};

const CLIENTS: usize = 4;
const REQUESTS: u64 = 200_000;
const SWITCHES: u64 = 100;

fn main() {
    let chosen: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|c| c == name);
    if wanted("load") {
        load();
    }
    if wanted("training") {
        training(&minilm("---[train]\nmin_steps = 500"));
    }
    if wanted("idle") || wanted("latency") {
        let daemon = minilm("");
        if wanted("latency") {
            latency(&daemon);
        }
        if wanted("idle") {
            drop(daemon);
            idle(&minilm(""));
        }
    }
}

fn ask(stream: &mut UnixStream, body: &str) -> Answer {
    write_request(stream, "POST", "/v1/predict", "application/json", body.as_bytes());
    read_answer(stream).unwrap()
}

fn load() {
    let daemon = Daemon::start("adapter = \"home\"");
    daemon.add_home();
    let mut expected: BTreeMap<u64, Value> = BTreeMap::new();
    for generation in [1, 2] {
        daemon.activate(generation);
        expected.insert(generation, daemon.ok("POST", "/v1/predict", Some(&question(1.0))));
    }
    let (done, failed, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let seen = [AtomicU64::new(0), AtomicU64::new(0)];
    let times: Mutex<Vec<Duration>> = Mutex::default();
    let body = question(1.0).to_string();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut stream = daemon.connect();
                let mut own = vec![];
                while !over.load(Ordering::Relaxed) || done.load(Ordering::Relaxed) < REQUESTS {
                    let before = Instant::now();
                    let answer = ask(&mut stream, &body);
                    own.push(before.elapsed());
                    let right = answer.status == 200 && {
                        let answer = answer.json();
                        let generation = answer["generation"].as_u64().unwrap_or(0);
                        if let Some(seen) = seen.get(generation.wrapping_sub(1) as usize) {
                            seen.fetch_add(1, Ordering::Relaxed);
                        }
                        expected.get(&generation) == Some(&answer)
                    };
                    failed.fetch_add(u64::from(!right), Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                }
                times.lock().unwrap().extend(own);
            });
        }
        for i in 0..SWITCHES {
            while done.load(Ordering::Relaxed) < (i + 1) * REQUESTS / (SWITCHES + 1) {
                std::thread::sleep(Duration::from_micros(200));
            }
            match i % 2 {
                0 => daemon.ok("POST", "/v1/adapters/home/rollback", None),
                _ => daemon.ok(
                    "POST",
                    "/v1/adapters/home/activate",
                    Some(&json!({"generation": 2, "expected_generation": 1})),
                ),
            };
        }
        over.store(true, Ordering::Relaxed);
    });
    let took = start.elapsed().as_secs_f64();
    let [one, two] = seen.map(AtomicU64::into_inner);
    println!(
        "load: {} requests, {SWITCHES} switches, {} failed or wrong; generation 1 answered {one}, 2 {two}; {:.0} a second",
        done.load(Ordering::Relaxed),
        failed.load(Ordering::Relaxed),
        done.load(Ordering::Relaxed) as f64 / took
    );
    spread("load", times.into_inner().unwrap());
    println!("load: resident after it {:.1} MB", resident(&daemon));
}

/// Prints and gives the p99 in milliseconds.
fn spread(name: &str, mut times: Vec<Duration>) -> f64 {
    times.sort();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e3;
    println!(
        "{name}: median {:.2} ms, p95 {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
        at(0.5),
        at(0.95),
        at(0.99),
        at(1.0)
    );
    at(0.99)
}

fn minilm(config: &str) -> Daemon {
    let place = Place::new();
    let model = repo("models/minilm-l6.onnx").display().to_string();
    let tokenizer = repo("models/minilm-l6.tokenizer.json").display().to_string();
    place.ok(&format!("pack {model} -o mlp.base --tokenizer {tokenizer}"));
    for file in ["1.adapter", "2.adapter"] {
        place.write(file, "");
    }
    Daemon::start_in(place, config)
}

fn latency(daemon: &Daemon) {
    let body = json!({"text": "turn on the light in the kitchen", "outputs": false}).to_string();
    for clients in [1, 4] {
        let times: Mutex<Vec<Duration>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..clients {
                scope.spawn(|| {
                    let mut stream = daemon.connect();
                    let mut own = vec![];
                    for _ in 0..400 {
                        let before = Instant::now();
                        assert_eq!(ask(&mut stream, &body).status, 200);
                        own.push(before.elapsed());
                    }
                    times.lock().unwrap().extend(own);
                });
            }
        });
        spread(&format!("MiniLM, {clients} clients"), times.into_inner().unwrap());
    }
    let metrics = String::from_utf8(daemon.get("/metrics").body).unwrap();
    metrics.lines().filter(|l| l.starts_with("offshoot_batch")).for_each(|l| println!("{l}"));
}

/// One request each 50 ms until `enough` says so.
fn paced(daemon: &Daemon, mut enough: impl FnMut(usize) -> bool) -> Vec<Duration> {
    let body = json!({"text": "turn on the light in the kitchen", "outputs": false}).to_string();
    let mut stream = daemon.connect();
    let mut times = vec![];
    while !enough(times.len()) {
        let before = Instant::now();
        assert_eq!(ask(&mut stream, &body).status, 200);
        times.push(before.elapsed());
        std::thread::sleep(Duration::from_millis(50).saturating_sub(before.elapsed()));
    }
    times
}

fn training(daemon: &Daemon) {
    let samples = std::fs::read_to_string(repo("models/commands.jsonl")).unwrap();
    for line in samples.lines() {
        let sample: Value = serde_json::from_str(line).unwrap();
        let sample = json!({"text": sample["text"], "label": sample["label"], "adapter": "home"});
        assert_eq!(daemon.post("/v1/feedback", &sample).status, 201, "{sample}");
    }
    let before = paced(daemon, |n| n == 600);
    spread("before training", before.clone());
    let job = daemon.ok("POST", "/v1/train", Some(&json!({"adapter": "home"})))["job"].clone();
    let told = || daemon.ok("GET", &format!("/v1/train/{job}"), None);
    while told()["state"] == "queued" {
        std::thread::sleep(Duration::from_millis(100));
    }
    let beside = paced(daemon, |n| n % 20 == 19 && told()["state"] != "running");
    println!("training: {} requests beside job {}", beside.len(), told());
    assert_eq!(told()["state"], "done");
    let after = paced(daemon, |n| n == 600);
    let p99 = spread("beside training", beside);
    spread("after training", after.clone());
    let alone = spread("alone, before and after", [before, after].concat());
    println!("training: p99 {:.2} times that without", p99 / alone);
}

fn status_field(daemon: &Daemon, pid_path: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/{pid_path}", daemon.child.id())).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

fn resident(daemon: &Daemon) -> f64 {
    status_field(daemon, "status", "VmRSS:") as f64 * 1024.0 / 1e6
}

/// Times that any of its threads went to sleep.
fn wakes(daemon: &Daemon) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
    let of =
        |id: String| status_field(daemon, &format!("task/{id}/status"), "voluntary_ctxt_switches:");
    tasks.map(|t| of(t.unwrap().file_name().into_string().unwrap())).sum()
}

fn idle(daemon: &Daemon) {
    daemon.ok("POST", "/v1/predict", Some(&json!({"text": "turn on the light", "outputs": false})));
    std::thread::sleep(Duration::from_secs(15));
    let before = wakes(daemon);
    std::thread::sleep(Duration::from_secs(60));
    let file = status_field(daemon, "status", "RssFile:") as f64 * 1024.0 / 1e6;
    println!(
        "idle: {:.1} MB resident ({file:.1} MB of it files), {} wake-ups in 60 s",
        resident(daemon),
        wakes(daemon) - before
    );
}
