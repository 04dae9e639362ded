//! A model that spells texts (CTC), from its file to a promotion: what the base reads is corrected, the daemon
//! learns it, proves it by its characters, and answers with it.

use crate::kill::BUSY;
use crate::place::Place;
use crate::support::{Daemon, and};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const LETTERS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Longest that the training of so small a model takes where others work too.
const PATIENCE: Duration = Duration::from_secs(240);

/// Three frames a letter: two of its pattern, one of silence.
fn question(text: &str, variant: usize) -> Value {
    let mut frames = vec![];
    for (at, letter) in text.chars().enumerate() {
        let place = LETTERS.iter().position(|l| l.starts_with(letter)).unwrap();
        for frame in 0..3 {
            for i in 0..6 {
                let noise = ((at * 31 + frame * 17 + i * 7 + variant * 13) % 11) as f32 / 55.0;
                frames.push(noise + if frame < 2 && i == place { 1.0 } else { 0.0 });
            }
        }
    }
    let shape = [1, 3 * text.len(), 6];
    json!({"inputs": {"features": {"shape": shape, "data": frames}}})
}

fn ask(daemon: &Daemon, question: Value) -> Value {
    daemon.ok("POST", "/v1/predict", Some(&question))
}

#[test]
fn texts_are_corrected_learned_proven_and_read() {
    let place = Place::new();
    place.write("letters.txt", LETTERS.join("\n"));
    let packed = place
        .ok("pack {models}/ctc.onnx -o mlp.base --weights f32 --alphabet letters.txt --blank last");
    assert!(packed.contains("spells texts with 5 symbols, the blank is the last"), "{packed}");
    for seed in [1, 2] {
        place.write(&format!("{seed}.adapter"), "");
    }
    let daemon = Daemon::start_in(place, &BUSY.replace("min_steps = 12", "min_steps = 200"));
    let answer = ask(&daemon, question("abc", 1));
    let first = &answer["predictions"][0];
    assert!(first["transcript"].is_string() && first["confidence"].is_number(), "{answer}");
    let searched = ask(&daemon, and(and(question("abc", 1), "beam", json!(4)), "top", json!(2)));
    assert_eq!(searched["predictions"][0]["top"].as_array().unwrap().len(), 2, "{searched}");

    let texts = ["ab", "cad", "bee", "dace", "ea", "bcd", "aab", "deb"];
    let tell = |text: &str, variant: usize, said: &Value| {
        let told = and(question(text, variant), "transcript", json!(text));
        daemon.ok("POST", "/v1/feedback", Some(&and(told, "predicted", said.clone())))
    };
    for variant in 0..8 {
        for text in texts {
            let said =
                ask(&daemon, question(text, variant))["predictions"][0]["transcript"].clone();
            tell(text, variant, &said);
        }
    }
    let began = Instant::now();
    let read = |text: &str| {
        let answer = ask(&daemon, question(text, 50));
        (answer["predictions"][0]["transcript"].clone(), answer["generation"].clone())
    };
    while read("bead").0 != "bead" {
        assert!(began.elapsed() < PATIENCE, "{:?}: {}", read("bead"), daemon.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(read("bead").1.as_u64() >= Some(1), "{:?}", read("bead"));
    assert_eq!(read("cab").0, "cab", "{}", daemon.log());
    let told = tell("cab", 51, &json!("cab"));
    let sample = daemon.ok("GET", &format!("/v1/samples/{}", told["id"]), None);
    assert_eq!(sample["answer"], json!({"transcript": "cab"}));
    let outcomes = &daemon.ok("GET", "/v1/status", None)["adapters"][0]["outcomes"];
    assert!(outcomes["total"].as_u64() > Some(0), "{outcomes}");
    // What nobody can spell is set aside and stops nothing.
    let wrong = and(question("ab", 60), "transcript", json!("xyz"));
    daemon.ok("POST", "/v1/feedback", Some(&wrong));
    let wrong = and(question("ab", 60), "transcript", json!(7));
    assert_eq!(daemon.post("/v1/feedback", &wrong).status, 400);
}
