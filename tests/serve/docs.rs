//! The lines of `docs/HTTP.md` do what they say.

use crate::place::repo;
use crate::support::{Answer, Daemon};
use crate::tasks::{base, rows, train};
use serde_json::json;

/// The page's `curl` lines, each as one.
fn lines() -> Vec<String> {
    let page = std::fs::read_to_string(repo("docs/HTTP.md")).unwrap();
    let mut found: Vec<String> = vec![];
    let mut goes_on = false;
    for line in page.lines() {
        let part = line.trim();
        match (goes_on, line.starts_with("    curl ")) {
            (true, _) => found.last_mut().unwrap().push_str(part.trim_end_matches('\\')),
            (false, true) => found.push(part.trim_end_matches('\\').into()),
            (false, false) => continue,
        }
        goes_on = part.ends_with('\\');
    }
    found
}

/// Words of a shell line; quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (vec![], String::new(), None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(q)) if c == q => quote = None,
            ('\'' | '"', None) => quote = Some(c),
            (' ', None) => words.push(std::mem::take(&mut word)),
            (c, _) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|w| !w.is_empty());
    words
}

/// Sends what a `curl` line would.
fn send(daemon: &Daemon, line: &str) -> Answer {
    let (mut method, mut path, mut mime, mut body) = (None, String::new(), String::new(), vec![]);
    let mut follows = false;
    let mut words = words(line).into_iter().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{line}: {word}"));
        match word.as_str() {
            "--unix-socket" => assert_eq!(value(), "$S"),
            // It lasts as long as the job: the job alone is asked for.
            "-N" => follows = true,
            "-X" => method = Some(value()),
            "-H" => mime = value().strip_prefix("Content-Type: ").unwrap().to_string(),
            "-o" => drop(value()),
            "-d" => body = value().into_bytes(),
            "--data-binary" => {
                body = match value().as_str() {
                    "@picture.jpg" => {
                        let sneaker = "models/pictures/wardrobe/test/sneaker/sneaker-001.png";
                        std::fs::read(repo(sneaker)).unwrap()
                    }
                    "@clip.wav" => b"RIFF\0\0\0\0WAVE".to_vec(),
                    "@a.adapter" => daemon.place.read("a.adapter"),
                    other => panic!("{line}: {other}"),
                }
            }
            url => path = url.strip_prefix("http://localhost").unwrap().to_string(),
        }
    }
    if follows {
        path = path.trim_end_matches("/events").into();
    }
    let method = method.unwrap_or(if body.is_empty() { "GET" } else { "POST" }.into());
    daemon.send(&method, &path, &mime, &body)
}

#[test]
fn the_lines_of_the_http_page_work() {
    let place = base();
    place.write(
        "data.jsonl",
        rows(&[
            json!({"text": "lamp on", "label": "on"}),
            json!({"text": "lamp off", "label": "off"}),
        ]),
    );
    train(&place, "data.jsonl", "--epochs 2 --seed 2");
    let second = place.read("a.adapter");
    train(&place, "data.jsonl", "--epochs 2 --seed 1");
    let daemon = Daemon::start_in(place, "adapter = \"home\"\n---[train]\nenabled = false\n");
    for bytes in [daemon.place.read("a.adapter"), second] {
        daemon.send("POST", "/v1/adapters/home", "application/octet-stream", &bytes);
    }
    daemon.activate(1);
    let lines = lines();
    assert!(lines.len() >= 17, "{lines:#?}");
    for line in &lines {
        let answer = send(&daemon, line);
        let body = String::from_utf8_lossy(&answer.body);
        // A base of sentences: it says so.
        let other = [
            ("picture.jpg", "pictures need"),
            ("clip.wav", "sound needs"),
            ("\"tokens\"", "writes no text"),
            ("\"completion\"", "no language model"),
        ];
        match other.iter().find(|(file, _)| line.contains(file)) {
            Some((_, says)) => {
                assert!(answer.status >= 400 && body.contains(says), "{line}: {body}")
            }
            None => assert!((200..300).contains(&answer.status), "{line}: {body}"),
        }
    }
}
