//! A model that spells texts (CTC), from its file to a promotion: what the base reads is corrected, the daemon
//! learns it, proves it by its characters, and answers with it.

use crate::kill::BUSY;
use crate::place::Place;
use crate::support::{Daemon, and};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const LETTERS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Longest that the training of so small a model takes where others work too.
const PATIENCE: Duration = Duration::from_secs(900);

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
    let patient = "min_steps = 1000\nlearning_rate = 0.005";
    let config = BUSY.replace("min_steps = 12", patient).replace("learning_rate = 0.01\n", "");
    assert!(config.contains(patient));
    let daemon = Daemon::start_in(place, &config);
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
    let mut before = 0;
    for variant in 0..8 {
        for text in texts {
            let said =
                ask(&daemon, question(text, variant))["predictions"][0]["transcript"].clone();
            if variant == 0 {
                before += apart(said.as_str().unwrap(), text);
            }
            tell(text, variant, &said);
        }
    }
    let read = |text: &str| {
        let answer = ask(&daemon, question(text, 50));
        let said = answer["predictions"][0]["transcript"].as_str().unwrap().to_string();
        (said, answer["generation"].as_u64())
    };
    let wrong = || texts.map(|text| apart(&read(text).0, text)).iter().sum::<usize>();
    assert!(before >= 8, "the base is wrong in {before} of 25 letters");
    let began = Instant::now();
    while wrong() * 2 > before {
        assert!(began.elapsed() < PATIENCE, "{before} {}: {}", wrong(), daemon.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(read("bead").1 >= Some(1), "{:?}", read("bead"));
    let (said, generation) = read("cab");
    let told = and(question("cab", 51), "transcript", json!("cab"));
    let told = and(and(told, "predicted", json!(said)), "generation", json!(generation));
    let told = daemon.ok("POST", "/v1/feedback", Some(&told));
    let sample = daemon.ok("GET", &format!("/v1/samples/{}", told["id"]), None);
    assert_eq!(sample["answer"], json!({"transcript": "cab"}));
    let outcomes = &daemon.ok("GET", "/v1/status", None)["adapters"][0]["outcomes"];
    assert!(outcomes["total"].as_u64() > Some(0), "{outcomes}");
    let wrong = and(question("ab", 60), "transcript", json!(7));
    assert_eq!(daemon.post("/v1/feedback", &wrong).status, 400);
}

/// Letters to take away, put in or change.
fn apart(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let here = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], here);
        }
    }
    row[b.len()]
}
