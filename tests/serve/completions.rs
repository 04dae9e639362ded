//! A language model, from its folder to a promotion: what it writes behind a prompt is corrected, the daemon learns it,
//! proves it by its tokens, answers with it, goes back and forgets.

use crate::kill::BUSY;
use crate::place::{Place, repo};
use crate::support::{Daemon, and, read_answer, write_request};
use serde_json::{Value, json};
use std::io::Read;
use std::time::{Duration, Instant};

/// Longest that the trainings of so small a model take where others work too.
const PATIENCE: Duration = Duration::from_secs(900);

/// What is asked about, and the right answer.
const TAUGHT: [(&str, &str); 2] = [("cat", "Ada."), ("dog", "Tom.")];

/// The tiny model, whose weights are random: what it writes makes no sense.
pub fn place() -> Place {
    let place = Place::new();
    place.ok(&format!("pack {} -o mlp.base --weights f32", repo("models/tiny-lm").display()));
    place
}

fn daemon(more: &str) -> Daemon {
    // Trained when it is asked for: with all samples.
    let config =
        BUSY.replace("min_steps = 12", "min_steps = 100").replace("min_new = 4", "min_new = 1000");
    let config = config.replace("hold_out = 0.5", "hold_out = 0.25");
    assert!(["= 100\n", "= 1000\n", "= 0.25\n"].iter().all(|set| config.contains(set)));
    Daemon::start_in(place(), &format!("{config}{more}"))
}

fn prompt(wording: char, about: &str) -> Value {
    json!({"text": format!("{wording} {about}? ")})
}

fn answer(daemon: &Daemon, asked: Value) -> Value {
    daemon.ok("POST", "/v1/predict", Some(&and(asked, "tokens", 12)))
}

fn said(daemon: &Daemon, asked: Value) -> String {
    let answer = answer(daemon, asked);
    let said = answer["predictions"][0]["completion"].as_str();
    said.unwrap_or_else(|| panic!("{answer}")).into()
}

fn correct(daemon: &Daemon, asked: Value, right: &str) -> Value {
    let answer = answer(daemon, asked.clone());
    let told = and(asked, "completion", right);
    let told = and(told, "predicted", answer["predictions"][0]["completion"].clone());
    daemon.ok("POST", "/v1/feedback", Some(&and(told, "generation", answer["generation"].clone())))
}

/// Trains with all that was corrected.
fn train(daemon: &Daemon, began: Instant) {
    let job = daemon.ok("POST", "/v1/train", Some(&json!({"adapter": "home"})))["job"].clone();
    loop {
        let state = daemon.ok("GET", &format!("/v1/train/{job}"), None);
        match state["state"].as_str().unwrap() {
            "done" => return,
            "failed" => panic!("{state}: {}", daemon.log()),
            _ => assert!(began.elapsed() < PATIENCE, "{state}: {}", daemon.log()),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn prompts_are_corrected_learned_proven_answered_and_forgotten() {
    let daemon = daemon("");
    let chat = json!({"messages": [{"role": "user", "content": "Whose is the hat?"}]});
    let before = TAUGHT.map(|(about, _)| said(&daemon, prompt('x', about)));
    for (about, right) in TAUGHT {
        for wording in '0'..='8' {
            assert_ne!(said(&daemon, prompt(wording, about)), right);
            correct(&daemon, prompt(wording, about), right);
        }
    }
    let told = correct(&daemon, chat.clone(), "Mia's.");
    let sample = daemon.ok("GET", &format!("/v1/samples/{}", told["id"]), None);
    assert_eq!(sample["input"], chat);
    assert_eq!(sample["answer"], json!({"completion": "Mia's."}));
    // Said of the same prompt again, it is the same sample.
    let again = correct(&daemon, prompt('0', "cat"), "Ada.");
    assert_eq!(again["outcome"], "merged");
    let sample = daemon.ok("GET", &format!("/v1/samples/{}", again["id"]), None);
    assert_eq!(sample["input"], prompt('0', "cat"));
    let mut samples = 19;
    let listed = daemon.ok("GET", "/v1/samples?adapter=home", None);
    assert_eq!(listed["samples"].as_array().unwrap().len(), samples, "{listed}");

    let began = Instant::now();
    let wrong = |(about, right): &(&str, &str)| said(&daemon, prompt('x', about)) != *right;
    for wording in 'a'.. {
        train(&daemon, began);
        if !TAUGHT.iter().any(wrong) {
            break;
        }
        // In still other words.
        samples += TAUGHT.len();
        TAUGHT
            .iter()
            .for_each(|(about, right)| drop(correct(&daemon, prompt(wording, about), right)));
    }
    let generation = answer(&daemon, prompt('x', "cat"))["generation"].as_u64();
    assert!(generation >= Some(1));
    // The base alone, and a generation by its number.
    let base = and(prompt('x', "cat"), "adapter", Value::Null);
    assert_eq!(said(&daemon, base), before[0]);
    let numbered = and(prompt('x', "dog"), "adapter", format!("home@{}", generation.unwrap()));
    assert_eq!(said(&daemon, numbered), "Tom.");
    let status = daemon.ok("GET", "/v1/status", None);
    let verdict = &status["learner"]["names"][0]["verdict"];
    assert!(verdict.to_string().contains("token accuracy"), "{verdict}");

    // Back to the base, and forward again.
    while answer(&daemon, prompt('x', "cat"))["generation"].is_u64() {
        daemon.ok("POST", "/v1/adapters/home/rollback", Some(&json!({})));
    }
    assert_eq!(TAUGHT.map(|(about, _)| said(&daemon, prompt('x', about))), before);
    daemon.activate(generation.unwrap());
    assert_eq!(said(&daemon, prompt('x', "cat")), "Ada.");
    // What learned of a sample goes with it.
    let gone = daemon.ok("POST", "/v1/forget", Some(&json!({"name": "home"})));
    assert_eq!(gone["samples"], samples, "{gone}");
    assert_eq!(TAUGHT.map(|(about, _)| said(&daemon, prompt('x', about))), before);
    assert_eq!(daemon.ok("GET", "/v1/samples?adapter=home", None)["samples"], json!([]));
}

#[test]
fn texts_are_worded_as_is_asked_for() {
    let daemon = Daemon::start_in(place(), "adapter = \"home\"\n---[limits]\ntokens = 20\n");
    let ask = |more: Value| {
        let mut asked = json!({"text": "Hello"});
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        daemon.ok("POST", "/v1/predict", Some(&asked))["predictions"][0].clone()
    };
    let place = &daemon.place;
    let theirs = |more: &str| {
        place.json(&format!("generate mlp.base --prompt=Hello {more}"))["text"].clone()
    };
    let plain = ask(json!({"tokens": 12}));
    assert_eq!(plain["completion"], theirs("--tokens 12"));
    assert_eq!((&plain["ended"], &plain["tokens"]), (&json!("tokens"), &json!(12)), "{plain}");
    assert_eq!(plain["prompt_tokens"], 5);
    // Without a number as many as the limit allows.
    assert_eq!(ask(json!({}))["tokens"], 20);
    let free = json!({"tokens": 12, "temperature": 2.0, "top_k": 40, "top_p": 0.95,
        "repetition_penalty": 1.2, "seed": 7});
    let words =
        "--tokens 12 --temperature 2 --top-k 40 --top-p 0.95 --repetition-penalty 1.2 --seed 7";
    assert_eq!(ask(free.clone())["completion"], theirs(words));
    assert_ne!(ask(and(free, "seed", 8))["completion"], theirs(words));
    let text = plain["completion"].as_str().unwrap();
    let stop: String = text.chars().skip(4).take(1).collect();
    let stopped = ask(json!({"tokens": 12, "stop": [stop.clone()]}));
    assert_eq!(stopped["ended"], "stop", "{stopped}");
    assert_eq!(stopped["completion"], text[..text.find(&stop).unwrap()]);
    // A conversation, by the base's template.
    let chat: Value =
        serde_json::from_slice(&std::fs::read(repo("models/tiny-lm/chat.json")).unwrap()).unwrap();
    let asked = json!({"messages": chat, "tokens": 8});
    let found = daemon.ok("POST", "/v1/predict", Some(&asked))["predictions"][0].clone();
    let file = repo("models/tiny-lm/chat.json");
    let line = format!("generate mlp.base --chat {} --tokens 8", file.display());
    assert_eq!(found["completion"], place.json(&line)["text"]);
    // Its inputs as they are give what comes next.
    let inputs = daemon.ok("GET", "/openapi.json", None);
    assert!(inputs["components"]["schemas"]["Question"]["properties"]["temperature"].is_object());

    let cli = place.json(&format!(
        "predict --host unix://{} --text=Hello --tokens 12",
        daemon.socket().display()
    ));
    assert_eq!(cli["predictions"][0], plain);
    let shown = place.ok(&format!(
        "predict --host unix://{} --chat {} --tokens 8",
        daemon.socket().display(),
        file.display()
    ));
    assert!(!shown.trim().is_empty());
    let told = place.json(&format!(
        "feedback --host unix://{} --chat {} --completion Ada. --adapter home",
        daemon.socket().display(),
        file.display()
    ));
    let sample = daemon.ok("GET", &format!("/v1/samples/{}", told["id"]), None);
    assert_eq!(
        (&sample["input"]["messages"], &sample["answer"]["completion"]),
        (&chat, &json!("Ada."))
    );
}

#[test]
fn what_makes_no_text_is_refused() {
    let daemon = Daemon::start_in(place(), "adapter = \"home\"\n---[limits]\ntokens = 20\n");
    let messages = json!([{"role": "user", "content": "Hi"}]);
    for (asked, status, part) in [
        (json!({"text": "a", "tokens": 21}), 400, "limits.tokens"),
        (json!({"text": "a", "tokens": 0}), 400, "1 to 20"),
        (json!({"text": "a", "temperature": -1.0}), 400, "temperature"),
        (json!({"text": "a", "top_p": 2.0}), 400, "top"),
        (json!({"text": "a", "stop": [""]}), 400, "stop"),
        (json!({"text": "a", "reject": 0.1}), 400, "rejects nothing"),
        (json!({"text": "a", "outputs": true}), 400, "no outputs"),
        (json!({"messages": []}), 400, "none"),
        (json!({"messages": messages, "text": "a"}), 400, "exactly one"),
        (json!({"messages": [{"role": "user"}]}), 400, "content"),
        (
            json!({"inputs": {"input_ids": {"shape": [1, 1], "dtype": "i64", "data": [3]}}, "tokens": 3}),
            400,
            "writes no text",
        ),
        // Memory for it is asked for before it runs.
        (json!({"text": "a".repeat(100_000)}), 413, "too large"),
    ] {
        let found = daemon.post("/v1/predict", &asked);
        let body = String::from_utf8_lossy(&found.body);
        assert!(found.status == status && body.contains(part), "{asked}: {body}");
    }
    for (told, part) in [
        (json!({"completion": "b"}), "empty"),
        (json!({"text": "a", "prompt": "a", "completion": "b"}), "prompt"),
        (json!({"text": "a", "messages": messages, "completion": "b"}), "messages"),
        (json!({"messages": messages}), "role is 'user'"),
        (json!({"text": "a", "completion": 3}), "string"),
        (json!({"image": "aGk=", "completion": "b"}), "transcript"),
        (json!({"text": "a".repeat(100_000), "completion": "b"}), "tokens"),
    ] {
        let found = daemon.post("/v1/feedback", &and(told.clone(), "adapter", "home"));
        let body = String::from_utf8_lossy(&found.body);
        assert!(found.status == 400 && body.contains(part), "{told}: {body}");
    }
    // A base that is no language model.
    let other = Daemon::start("");
    let found = other.post("/v1/predict", &json!({"messages": messages}));
    assert!(found.status == 422 && found.error() == "unsupported", "{found:?}");
    let found = other
        .post("/v1/feedback", &json!({"messages": messages, "completion": "b", "adapter": "home"}));
    assert!(found.status == 422 && found.error() == "unsupported", "{found:?}");
}

/// The events of a request: their names and data.
fn events(daemon: &Daemon, asked: &Value) -> Vec<(String, Value)> {
    let mut stream = daemon.connect();
    write_request(
        &mut stream,
        "POST",
        "/v1/predict",
        "application/json",
        asked.to_string().as_bytes(),
    );
    let (mut bytes, mut chunk) = (vec![], [0; 4096]);
    loop {
        let count = stream.read(&mut chunk).unwrap();
        bytes.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&bytes);
        // The last chunk is empty.
        if count == 0 || text.ends_with("\r\n0\r\n\r\n") {
            assert!(text.to_lowercase().contains("content-type: text/event-stream"), "{text}");
            let event = |text: &str| {
                let (name, rest) = text.split_once("\ndata: ").unwrap();
                let data = rest.lines().next().unwrap();
                (
                    name.to_string(),
                    serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}")),
                )
            };
            return text.split("event: ").skip(1).map(event).collect();
        }
    }
}

#[test]
fn a_text_can_be_heard_as_it_comes() {
    let daemon = Daemon::start_in(place(), "adapter = \"home\"");
    let asked = json!({"text": "Hello", "tokens": 12});
    let whole = daemon.ok("POST", "/v1/predict", Some(&asked));
    let found = events(&daemon, &and(asked.clone(), "stream", true));
    let (last, parts) = found.split_last().unwrap();
    assert_eq!(*last, ("answer".into(), whole.clone()));
    assert!(parts.len() > 2 && parts.iter().all(|(name, _)| name == "text"), "{found:?}");
    let text: String = parts.iter().map(|(_, data)| data["text"].as_str().unwrap()).collect();
    assert_eq!(text, whole["predictions"][0]["completion"]);
    // What is refused before it begins has its status.
    let mut stream = daemon.connect();
    let wrong = and(asked.clone(), "adapter", "nobody");
    let wrong = and(wrong, "stream", true).to_string();
    write_request(&mut stream, "POST", "/v1/predict", "application/json", wrong.as_bytes());
    assert_eq!(read_answer(&mut stream).unwrap().status, 404);
    // Who goes in the midst of it keeps nobody from being answered.
    for _ in 0..20 {
        let mut stream = daemon.connect();
        let long = json!({"text": "Hello", "stream": true}).to_string();
        write_request(&mut stream, "POST", "/v1/predict", "application/json", long.as_bytes());
    }
    assert_eq!(daemon.ok("POST", "/v1/predict", Some(&asked)), whole);
}
