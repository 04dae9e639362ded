//! Promotions and rollbacks under load: no request fails, each is answered by one generation.

use crate::support::{Daemon, question, read_answer, write_request};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const CLIENTS: usize = 4;
const REQUESTS: u64 = 4000;
const SWITCHES: u64 = 20;

#[test]
fn no_request_fails_while_generations_change() {
    let daemon = Daemon::start("adapter = \"home\"");
    daemon.add_home();
    // What each generation says of the question.
    let mut expected: BTreeMap<u64, Value> = BTreeMap::new();
    for generation in [1, 2] {
        daemon.activate(generation);
        let answer = daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
        assert_eq!(answer["generation"], generation);
        expected.insert(generation, answer);
    }
    assert_ne!(expected[&1]["predictions"], expected[&2]["predictions"]);
    let done = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let seen = [AtomicU64::new(0), AtomicU64::new(0)];
    let body = question(1.0).to_string();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut stream = daemon.connect();
                while !over.load(Ordering::Relaxed) || done.load(Ordering::Relaxed) < REQUESTS {
                    write_request(
                        &mut stream,
                        "POST",
                        "/v1/predict",
                        "application/json",
                        body.as_bytes(),
                    );
                    let answer = read_answer(&mut stream).unwrap();
                    assert_eq!(answer.status, 200, "{answer:?}");
                    let answer = answer.json();
                    let generation = answer["generation"].as_u64().unwrap();
                    assert_eq!(answer, expected[&generation]);
                    seen[generation as usize - 1].fetch_add(1, Ordering::Relaxed);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for i in 0..SWITCHES {
            let wait = (i + 1) * REQUESTS / (SWITCHES + 1);
            while done.load(Ordering::Relaxed) < wait {
                std::thread::yield_now();
            }
            match i % 2 {
                0 => {
                    let back = daemon.ok("POST", "/v1/adapters/home/rollback", None);
                    assert_eq!(back["active"], 1);
                }
                _ => {
                    let body = json!({"generation": 2, "expected_generation": 1});
                    daemon.ok("POST", "/v1/adapters/home/activate", Some(&body));
                }
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let [one, two] = seen.map(AtomicU64::into_inner);
    assert!(one > 0 && two > 0 && one + two >= REQUESTS, "{one} {two}");
}
