//! Feedback changes answers at once.

use crate::place::Place;
use crate::support::{Daemon, PATIENCE, and};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A question around one of three centres.
fn question(class: usize, variant: usize) -> Value {
    let value = |i: usize| {
        let centre = if i % 3 == class { 1.0 } else { -0.5 };
        centre + 0.3 * ((7 * i + 11 * variant) % 13) as f32 / 13.0
    };
    json!({"inputs": {"x": {"shape": [1, 12], "data": (0..12).map(value).collect::<Vec<_>>()}}})
}

fn tell(daemon: &Daemon, question: Value, label: &str) {
    daemon.ok("POST", "/v1/feedback", Some(&and(question, "label", label)));
}

fn ask(daemon: &Daemon, question: Value) -> Value {
    daemon.ok("POST", "/v1/predict", Some(&question))
}

#[test]
fn a_new_name_learns_from_its_first_samples() {
    let daemon = Daemon::start("adapter = \"home\"");
    tell(&daemon, question(0, 0), "a");
    // One label would be the answer to everything.
    assert_eq!(ask(&daemon, question(0, 0))["predictions"], json!([]));
    tell(&daemon, question(1, 0), "b");
    for (class, label) in [(0, "a"), (1, "b")] {
        let answer = ask(&daemon, question(class, 5));
        assert_eq!(answer["predictions"][0]["label"], label, "{answer}");
        assert_eq!((&answer["generation"], &answer["instant"]), (&json!(null), &json!(2)));
    }
    for variant in 1..9 {
        for (class, label) in [(0, "a"), (1, "b")] {
            tell(&daemon, question(class, variant), label);
        }
    }
    // Two classes: nothing could be left out to measure what passes.
    let reject = daemon.post("/v1/predict", &and(question(0, 0), "reject", 0.01));
    assert_eq!((reject.status, reject.error().as_str()), (400, "invalid_request"));
}

/// A name that learned two questions answers the one that is meant.
#[test]
fn labels_to_choose_from_leave_the_others_out() {
    let daemon = Daemon::start("adapter = \"home\"");
    for variant in 0..4 {
        for (class, label) in [(0, "a"), (1, "b"), (2, "c")] {
            tell(&daemon, question(class, variant), label);
        }
    }
    let asked = |labels: Value| ask(&daemon, and(question(0, 5), "among", labels));
    assert_eq!(ask(&daemon, question(0, 5))["predictions"][0]["label"], "a");
    let among = &asked(json!(["c", "b", "c"]))["predictions"][0];
    let sum: f64 =
        among["top"].as_array().unwrap().iter().map(|l| l["probability"].as_f64().unwrap()).sum();
    assert!(among["label"] != "a" && (sum - 1.0).abs() < 1e-5, "{among}");
    assert_eq!(among["top"].as_array().unwrap().len(), 2);
    assert_eq!(asked(json!(["b"]))["predictions"][0]["label"], "b");
    assert_eq!(asked(json!([])), ask(&daemon, question(0, 5)));
    // A query beside JSON would say nothing.
    let beside = daemon.post("/v1/predict?among=b", &question(0, 5));
    assert_eq!((beside.status, beside.error().as_str()), (400, "invalid_request"));
    let other = and(question(0, 5), "among", json!(["a", "d"]));
    let refused = daemon.post("/v1/predict", &other);
    let said = refused.json()["error"].clone();
    assert_eq!(refused.status, 400, "{said}");
    assert!(said["message"].as_str().unwrap().contains("'d'"), "{said}");
    assert_eq!(said["hint"], "it has a, b, c");
}

/// More samples than are fitted at once, so that one more would be taken into the head that is there.
#[test]
fn what_was_forgotten_answers_nothing_more() {
    let daemon = Daemon::start("adapter = \"home\"");
    let sample = |class: usize, variant: usize| {
        let mut question = question(class, variant);
        question["inputs"]["x"]["data"][0] = json!(0.25 + 0.01 * variant as f32);
        question
    };
    for variant in 0..26 {
        for (class, label) in [(1, "a"), (2, "b")] {
            tell(&daemon, sample(class, variant), label);
        }
    }
    let answer = ask(&daemon, sample(1, 30));
    assert_eq!(answer["predictions"][0]["label"], "a", "{answer}");
    assert!(answer["instant"].as_u64().unwrap() > 48, "{answer}");
    daemon.ok("POST", "/v1/forget", Some(&json!({"all": true})));
    assert_eq!(ask(&daemon, sample(1, 30))["predictions"], json!([]));
    tell(&daemon, sample(1, 31), "a");
    let answer = ask(&daemon, sample(1, 30));
    assert_eq!(answer["predictions"], json!([]), "{answer}");
}

/// A generation that was trained elsewhere knows what no sample here tells: two corrections must not
/// replace it. And a daemon can do without.
#[test]
fn a_generation_from_elsewhere_answers_itself() {
    let daemon = Daemon::start("adapter = \"home\"");
    daemon.add_home();
    daemon.activate(1);
    let plain = crate::support::question(1.0);
    let own = ask(&daemon, plain.clone());
    assert!(own.get("instant").is_none());
    let label = own["predictions"][0]["label"].as_str().unwrap();
    let other = if label == "0" { "1" } else { "0" };
    tell(&daemon, plain.clone(), other);
    tell(&daemon, crate::support::question(-1.0), label);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ask(&daemon, plain.clone()), own);
    assert_eq!(ask(&daemon, and(plain, "adapter", "home@1"))["predictions"], own["predictions"]);

    let daemon = Daemon::start("adapter = \"home\"\ninstant = false");
    tell(&daemon, question(0, 0), "a");
    tell(&daemon, question(1, 0), "b");
    assert_eq!(ask(&daemon, question(0, 0))["predictions"], json!([]));
}

/// Another base has other fingerprints: adapters of the one before don't fit it, samples do.
#[test]
fn behind_another_base_the_samples_answer() {
    let mut daemon = Daemon::start("adapter = \"home\"");
    daemon.add_home();
    daemon.activate(1);
    for variant in 0..3 {
        for (class, label) in [(0, "a"), (1, "b")] {
            tell(&daemon, question(class, variant), label);
        }
    }
    daemon.signal("-TERM");
    daemon.wait();
    let place = std::mem::replace(&mut daemon.place, Place::new());
    place.ok("pack {models}/mlp.onnx -o mlp.base --weights f16");
    let daemon = Daemon::start_in(place, "adapter = \"home\"");
    let began = Instant::now();
    let answer = loop {
        let answer = ask(&daemon, question(0, 5));
        if answer.get("instant").is_some() || began.elapsed() > PATIENCE {
            break answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(answer["predictions"][0]["label"], "a", "{answer}");
    assert_eq!((&answer["generation"], &answer["instant"]), (&json!(null), &json!(6)), "{answer}");
    assert_eq!(answer["instead_of"]["generation"], 1, "{answer}");
}
