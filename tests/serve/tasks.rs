//! Each task from its data file to the daemon: train, save, eval, predict, feedback.

use crate::place::Place;
use crate::support::Daemon;
use serde_json::{Value, json};

const WORDS: [&str; 16] = [
    "[PAD]", "[UNK]", "lamp", "door", "radio", "on", "off", "open", "close", "red", "anna",
    "berlin", "in", "the", "is", ".",
];

/// A base of tokens with a vocabulary of its own, as `mlp.base`, the name that the daemon is set to.
pub fn base() -> Place {
    let place = Place::new();
    let vocab: Vec<String> =
        WORDS.iter().enumerate().map(|(id, word)| format!("\"{word}\": {id}")).collect();
    let tokenizer = format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {{"type": "Lowercase"}}, "pre_tokenizer": {{"type": "Whitespace"}},
        "post_processor": null, "decoder": null,
        "model": {{"type": "WordLevel", "vocab": {{{}}}, "unk_token": "[UNK]"}}}}"#,
        vocab.join(", ")
    );
    place.write("tokenizer.json", tokenizer);
    place.ok("pack {models}/attention.onnx -o mlp.base --tokenizer tokenizer.json");
    for seed in [1, 2] {
        place.write(&format!("{seed}.adapter"), "");
    }
    place
}

/// `train` with a task decided by the data.
pub fn train(place: &Place, data: &str, more: &str) -> Value {
    let line = format!(
        "train mlp.base --data {data} --out a.adapter --lr 0.02 --batch 8 --threads 1 {more}"
    );
    place.json(&line)["report"].clone()
}

/// A daemon that serves `a.adapter` by the name `home`.
fn served(place: Place) -> Daemon {
    let daemon = Daemon::start_in(place, "adapter = \"home\"");
    let bytes = daemon.place.read("a.adapter");
    let answer = daemon.send("POST", "/v1/adapters/home", "application/octet-stream", &bytes);
    assert_eq!(answer.status, 201, "{answer:?}");
    daemon.activate(1);
    daemon
}

fn predict(daemon: &Daemon, text: &str) -> Value {
    let answer = daemon.ok("POST", "/v1/predict", Some(&json!({"text": text})));
    answer["predictions"][0].clone()
}

pub fn rows(rows: &[Value]) -> String {
    (0..8).flat_map(|_| rows).map(|row| format!("{row}\n")).collect()
}

#[test]
fn numbers_are_learned_served_and_corrected() {
    let place = base();
    let data = rows(&[
        json!({"text": "lamp on", "values": [1.5, -1.0]}),
        json!({"text": "door off", "values": [-0.5, 1.0]}),
        json!({"text": "radio open", "values": [0.25, 0.0]}),
    ]);
    place.write("data.jsonl", data);
    let report = train(&place, "data.jsonl", "--epochs 40");
    assert_eq!(
        (&report["task"], &report["labels"]),
        (&json!("numbers"), &json!(["value_0", "value_1"]))
    );
    let eval = place.json("eval mlp.base --data data.jsonl --adapter a.adapter");
    assert!(eval["evaluation"]["mse"].as_f64().unwrap() < 0.05, "{eval}");
    let daemon = served(place);
    let said = predict(&daemon, "lamp on");
    assert!((said["values"][0].as_f64().unwrap() - 1.5).abs() < 0.4, "{said}");
    let told = json!({"text": "lamp on", "adapter": "home", "values": [1.0, 2.0]});
    daemon.ok("POST", "/v1/feedback", Some(&told));
    let wrong = json!({"text": "lamp on", "adapter": "home", "values": [1.0], "label": "x"});
    assert_eq!(daemon.post("/v1/feedback", &wrong).status, 400);
}

#[test]
fn tags_are_learned_served_and_judged() {
    let place = base();
    let data = rows(&[
        json!({"text": "lamp on", "labels": ["light", "start"]}),
        json!({"text": "lamp off", "labels": ["light"]}),
        json!({"text": "radio on", "labels": ["sound", "start"]}),
        json!({"text": "door close", "labels": []}),
    ]);
    place.write("data.jsonl", data);
    let report = train(&place, "data.jsonl", "--epochs 30");
    assert_eq!(
        (&report["task"], &report["labels"]),
        (&json!("tags"), &json!(["light", "sound", "start"]))
    );
    let csv = "text,labels\nlamp on,light|start\nradio on,sound; start\ndoor close,\n";
    place.write("test.csv", csv);
    let eval = place.json("eval mlp.base --data test.csv --adapter a.adapter");
    assert_eq!(eval["evaluation"]["exact"], 1.0, "{eval}");
    assert_eq!(eval["evaluation"]["micro_f1"], 1.0, "{eval}");
    let said = place.json("run mlp.base --adapter a.adapter --text=lamp_on");
    assert!(said["predictions"][0]["labels"].is_array(), "{said}");
    let daemon = served(place);
    let said = predict(&daemon, "lamp on");
    assert_eq!(said["labels"], json!(["light", "start"]), "{said}");
    assert_eq!(predict(&daemon, "door close")["labels"], json!([]));
    let feedback = |labels: Value, predicted: Value| {
        let told = json!({"text": "radio off", "adapter": "home", "labels": labels,
            "predicted": predicted, "generation": 1, "source": "me"});
        daemon.ok("POST", "/v1/feedback", Some(&told))
    };
    // The order of labels says nothing: the same sample, and an answer that was right.
    let first = feedback(json!(["sound", "light"]), json!(["light", "sound"]));
    assert_eq!(feedback(json!(["light", "sound"]), json!(["light", "sound"]))["outcome"], "merged");
    let outcomes = &daemon.ok("GET", "/v1/status", None)["adapters"][0]["outcomes"];
    assert_eq!((&outcomes["right"], &outcomes["total"]), (&json!(1), &json!(1)), "{outcomes}");
    let sample = daemon.ok("GET", &format!("/v1/samples/{}", first["id"]), None);
    assert_eq!(sample["answer"], json!({"labels": ["light", "sound"]}));
    let wrong = json!({"text": "lamp on", "adapter": "home", "labels": "light"});
    assert_eq!(daemon.post("/v1/feedback", &wrong).status, 400);
}

#[test]
fn tokens_are_learned_and_served_with_their_texts() {
    let place = base();
    let data = rows(&[
        json!({"tokens": ["Anna", "is", "in", "Berlin."], "tags": ["PER", "O", "O", "LOC"]}),
        json!({"tokens": ["the", "lamp", "is", "red"], "tags": ["O", "O", "O", "O"]}),
        json!({"tokens": ["Berlin", "is", "open"], "tags": ["LOC", "O", "O"]}),
    ]);
    place.write("data.jsonl", data);
    let report = train(&place, "data.jsonl", "--epochs 30");
    assert_eq!(
        (&report["task"], &report["labels"]),
        (&json!("tokens"), &json!(["LOC", "O", "PER"]))
    );
    // The same sentences with spans: all their words have a label.
    let spans = [
        json!({"text": "Berlin is open", "spans": [{"start": 0, "end": 6, "label": "LOC"}]}),
        json!({"text": "the lamp is red", "spans": []}),
    ];
    place.write("test.jsonl", rows(&spans));
    let eval = place.json("eval mlp.base --data test.jsonl --adapter a.adapter");
    assert!(eval["evaluation"]["accuracy"].as_f64().unwrap() > 0.95, "{eval}");
    assert_eq!(eval["evaluation"]["confusion"]["classes"], 3);
    let daemon = served(place);
    let said = predict(&daemon, "Anna is in Berlin.");
    let tokens = said["tokens"].as_array().unwrap();
    let of = |at: usize| (&tokens[at]["text"], &tokens[at]["label"]);
    assert_eq!((tokens.len(), of(0)), (5, (&json!("Anna"), &json!("PER"))), "{said}");
    assert_eq!(of(3), (&json!("Berlin"), &json!("LOC")), "{said}");
    assert_eq!((&tokens[3]["start"], &tokens[3]["end"]), (&json!(11), &json!(17)));
    let told = json!({"text": "Berlin is red", "adapter": "home",
        "spans": [{"start": 0, "end": 6, "label": "LOC"}]});
    daemon.ok("POST", "/v1/feedback", Some(&told));
    let told = json!({"tokens": ["Anna", "is"], "tags": ["PER", "O"], "adapter": "home"});
    let id = daemon.ok("POST", "/v1/feedback", Some(&told))["id"].clone();
    let sample = daemon.ok("GET", &format!("/v1/samples/{id}"), None);
    assert_eq!(sample["input"], json!({"text": "Anna is"}));
}
