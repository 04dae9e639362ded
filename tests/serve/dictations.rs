//! A decoder behind an encoder (as Whisper), from its folder to a promotion: what the base writes down is corrected,
//! the daemon learns it, proves it by its characters, and answers with it.

use crate::kill::BUSY;
use crate::place::{Place, repo};
use crate::sounds::wav;
use crate::support::{Daemon, and};
use base64::Engine as _;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longest that the training of so small a model takes where others work too.
const PATIENCE: Duration = Duration::from_secs(900);

const SAID: [(&str, f32); 2] = [("Tea", 300.0), ("No!", 2400.0)];

fn question(hertz: f32) -> Value {
    json!({"audio": base64::engine::general_purpose::STANDARD.encode(wav(hertz))})
}

#[test]
fn clips_are_corrected_learned_proven_and_written_down() {
    let place = Place::new();
    let (model, tokens) = (repo("models/tiny-whisper"), repo("models/tiny-lm/tokenizer.json"));
    place.ok(&format!(
        "pack {} -o mlp.base --weights f32 --tokenizer {} --audio whisper,seconds=1",
        model.display(),
        tokens.display()
    ));
    // One training with all that was said: a first generation of a few clips may know one word alone.
    let config = ["min_steps = 12", "min_new = 4"]
        .iter()
        .zip(["min_steps = 50", "min_new = 16"])
        .fold(BUSY.to_string(), |config, (from, to)| {
            assert!(config.contains(from));
            config.replace(from, to)
        });
    let daemon = Daemon::start_in(place, &config);
    let heard = |hertz: f32| {
        let answer = daemon.ok("POST", "/v1/predict", Some(&question(hertz)));
        let said = answer["predictions"][0]["transcript"].as_str().map(str::to_string);
        (said.unwrap_or_else(|| panic!("{answer}")), answer["generation"].as_u64())
    };
    let correct = |text: &str, hertz: f32| {
        let told = and(question(hertz), "transcript", json!(text));
        daemon.ok("POST", "/v1/feedback", Some(&and(told, "predicted", json!(heard(hertz).0))));
    };
    for variant in 0..8u8 {
        for (text, hertz) in SAID {
            let hertz = hertz + 3.0 * f32::from(variant);
            assert_ne!(heard(hertz).0, text);
            correct(text, hertz);
        }
    }
    let (began, mut waited) = (Instant::now(), 0u16);
    loop {
        let wrong: Vec<_> = SAID.iter().filter(|s| heard(s.1 + 40.0).0 != s.0).collect();
        if wrong.is_empty() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{:?}: {}", SAID.map(|s| heard(s.1)), daemon.log());
        std::thread::sleep(Duration::from_millis(500));
        // What is still wrong after a while is corrected once more, as a person would.
        waited += 1;
        if waited.is_multiple_of(20) {
            wrong.iter().for_each(|s| correct(s.0, s.1 + f32::from(waited) / 10.0));
        }
    }
    let (said, generation) = heard(305.0);
    assert!(generation >= Some(1));
    let told = and(question(306.0), "transcript", json!("tea."));
    let told = and(and(told, "predicted", json!(said)), "generation", json!(generation));
    let told = daemon.ok("POST", "/v1/feedback", Some(&told));
    let sample = daemon.ok("GET", &format!("/v1/samples/{}", told["id"]), None);
    assert_eq!(sample["answer"], json!({"transcript": "tea."}));
}
