//! The protocol of Home Assistant's voice: sentences in, intents out; and what hostile clients get.

use crate::place::Place;
use crate::sounds::wav;
use crate::support::{Daemon, PATIENCE};
use crate::tasks::{base, rows, train};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(place: Place, more: &str) -> (Daemon, u16) {
    let port = free_port();
    let config =
        format!("adapter = \"home\"\n---\n[wyoming]\nlisten = \"127.0.0.1:{port}\"\n{more}");
    let daemon = Daemon::start_in(place, &config);
    let bytes = daemon.place.read("a.adapter");
    daemon.send("POST", "/v1/adapters/home", "application/octet-stream", &bytes);
    daemon.activate(1);
    (daemon, port)
}

fn commands() -> Place {
    let place = base();
    let data = rows(&[
        json!({"text": "lamp on", "label": "HassTurnOn"}),
        json!({"text": "door open", "label": "open door"}),
        json!({"text": "radio on", "label": "radio"}),
    ]);
    place.write("data.jsonl", data);
    train(&place, "data.jsonl", "--epochs 60");
    place
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn new(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// The type and data of the next event; `None`: the connection was closed.
    fn read(&mut self) -> Option<(String, Value)> {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let head: Value = serde_json::from_str(&line).ok()?;
        let mut data = vec![0; head["data_length"].as_u64().unwrap() as usize];
        self.0.read_exact(&mut data).unwrap();
        Some((head["type"].as_str().unwrap().into(), serde_json::from_slice(&data).unwrap()))
    }

    fn ask(&mut self, kind: &str, data: &Value) -> (String, Value) {
        let data = data.to_string();
        self.send(
            format!("{{\"type\":\"{kind}\",\"data_length\":{}}}\n{data}", data.len()).as_bytes(),
        );
        self.read().unwrap()
    }
}

#[test]
fn a_sentence_is_answered_with_its_intent() {
    let (daemon, port) = start(commands(), "languages = [\"en\", \"de\"]\nprobability = 0.4\n");
    let mut client = Client::new(port);
    let (kind, info) = client.ask("describe", &json!({}));
    let program = &info["intent"][0];
    assert_eq!((kind.as_str(), &program["installed"]), ("info", &json!(true)));
    assert_eq!(program["models"][0]["name"], "home");
    assert_eq!(program["models"][0]["languages"], json!(["en", "de"]));

    // What Home Assistant sends for an intent, and what the client library calls it.
    let context = json!({"conversation_id": "7"});
    for kind in ["transcript", "recognize"] {
        let sent = json!({"text": "lamp on", "context": context, "language": "en"});
        let said = client.ask(kind, &sent);
        assert_eq!(said, ("intent".into(), json!({"name": "HassTurnOn", "context": context})));
    }
    let (_, said) = client.ask("recognize", &json!({"text": "door open"}));
    assert_eq!(said, json!({"name": "open door"}));
    // Sound and events of other services are dropped, as the protocol has it.
    client.send(b"{\"type\":\"audio-chunk\",\"payload_length\":4}\n\0\n\0\n{\"type\":\"wave\"}\n");
    assert_eq!(client.ask("ping", &json!({"text": "x"})), ("pong".into(), json!({"text": "x"})));
    // A question without a sentence is an error, and the connection stays.
    let (kind, said) = client.ask("recognize", &json!({"text": 5}));
    assert_eq!((kind.as_str(), &said["code"]), ("error", &json!("invalid_request")));
    assert_eq!(client.ask("ping", &json!({})).0, "pong");

    // After a rollback nothing answers, which is said.
    daemon.ok("POST", "/v1/adapters/home/rollback", Some(&json!({})));
    let (kind, said) = client.ask("recognize", &json!({"text": "lamp on"}));
    assert_eq!(kind, "not-recognized", "{said}");
    assert!(!said["text"].as_str().unwrap().is_empty(), "{said}");
}

#[test]
fn what_is_not_sure_is_no_intent() {
    let (_daemon, port) = start(commands(), "probability = 1.0\n");
    let (kind, said) =
        Client::new(port).ask("recognize", &json!({"text": "radio lamp", "context": {}}));
    assert_eq!((kind.as_str(), &said["context"]), ("not-recognized", &json!({})));
}

#[test]
fn hostile_clients_get_an_error_and_a_closed_connection() {
    let (_daemon, port) = start(commands(), "");
    let long = format!("{{\"type\":\"{}\"}}\n", "x".repeat(70_000));
    for wrong in [
        "GET / HTTP/1.1\r\n",
        "{\"type\":\"a\",\"data_length\":99999999999}\n",
        "{\"type\":\"a\",\"payload_length\":1e30}\n",
        "{\"type\":\"a\",\"payload_length\":99999999999}\n",
        "\u{0}\n",
        &long,
    ] {
        let mut client = Client::new(port);
        client.send(wrong.as_bytes());
        let (kind, said) = client.read().unwrap();
        assert_eq!(
            (kind.as_str(), &said["code"]),
            ("error", &json!("invalid_request")),
            "{wrong:.60}"
        );
        // Nothing but the end, perhaps as a reset where bytes were left unread.
        let mut rest = vec![];
        let _ = client.0.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{wrong:.60}");
    }
    // Many that say nothing don't keep others out for ever: those beyond are closed at once.
    let idle: Vec<Client> = (0..40).map(|_| Client::new(port)).collect();
    let closed = |client: &Client| {
        let stream = client.0.get_ref();
        stream.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        matches!(stream.peek(&mut [0]), Ok(0))
    };
    let refused = idle.iter().filter(|client| closed(client)).count();
    assert!((24..=26).contains(&refused), "{refused}");
    drop(idle);
    let start = std::time::Instant::now();
    loop {
        let mut client = Client::new(port);
        client.send(b"{\"type\":\"ping\"}\n");
        let mut byte = [0];
        if matches!(client.0.read(&mut byte), Ok(1)) {
            break;
        }
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A daemon that was taught tones.
fn ears(more: &str, tones: &[(&str, f32)]) -> (Daemon, u16) {
    let place = Place::new();
    place.ok(
        "pack {models}/conv1d.onnx -o mlp.base --audio \
         librosa,rate=16000,fft=512,window=512,hop=256,mels=4,high=4000,log=db,mean=-40,std=20,seconds=0.5",
    );
    for file in ["1.adapter", "2.adapter"] {
        place.write(file, "");
    }
    let port = free_port();
    let daemon = Daemon::start_in(
        place,
        &format!("adapter = \"ears\"\n---\n[wyoming]\nlisten = \"127.0.0.1:{port}\"\n{more}"),
    );
    for n in 0..8 {
        for (label, hertz) in tones {
            let path = format!("/v1/feedback?adapter=ears&label={label}");
            let told =
                daemon.send("POST", &path, "audio/wav", &wav(hertz * (0.94 + 0.015 * n as f32)));
            assert_eq!(told.status, 201, "{told:?}");
        }
    }
    let start = std::time::Instant::now();
    loop {
        let answer = daemon.send("POST", "/v1/predict?adapter=ears", "audio/wav", &wav(250.0));
        if answer.json()["predictions"][0]["label"] == "hello" {
            return (daemon, port);
        }
        assert!(start.elapsed() < PATIENCE, "{answer:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// Chunks of a tenth of a second of tones, and the end of the stream.
fn sound(tones: &[(f32, usize)]) -> Vec<u8> {
    let mut bytes =
        b"{\"type\":\"audio-start\",\"data\":{\"rate\":16000,\"width\":2,\"channels\":1}}\n"
            .to_vec();
    let mut at = 0;
    for (hertz, tenths) in tones {
        let second = &wav(*hertz)[44..];
        for tenth in 0..*tenths {
            let chunk = &second[(tenth % 10) * 3200..(tenth % 10 + 1) * 3200];
            let head = json!({
                "type": "audio-chunk", "payload_length": chunk.len(),
                "data": {"rate": 16000, "width": 2, "channels": 1, "timestamp": at},
            });
            bytes.extend(format!("{head}\n").into_bytes());
            bytes.extend(chunk);
            at += 100;
        }
    }
    bytes.extend(b"{\"type\":\"audio-stop\"}\n");
    bytes
}

#[test]
fn a_word_is_heard_in_a_stream_once_each_time() {
    let (daemon, port) = ears("", &[("hello", 250.0), ("other", 2600.0)]);
    let mut client = Client::new(port);
    let (_, info) = client.ask("describe", &json!({}));
    assert_eq!(info["intent"], json!([]));
    let models = &info["wake"][0]["models"];
    assert_eq!((models.as_array().unwrap().len(), &models[0]["name"]), (1, &json!("hello")));
    assert_eq!(models[0]["phrase"], "hello");
    assert_eq!(models[0]["description"], "hello");

    let detect = "{\"type\":\"detect\",\"data\":{\"names\":[\"hello\"],\"context\":{\"of\":1}}}\n";
    client.send(detect.as_bytes());
    client.send(&sound(&[(2600.0, 20), (250.0, 15), (2600.0, 20), (260.0, 15), (2600.0, 10)]));
    client.send(b"{\"type\":\"ping\"}\n");
    let mut times = vec![];
    loop {
        let (kind, said) = client.read().unwrap();
        if kind == "pong" {
            break;
        }
        assert_eq!(kind, "detection", "{said}");
        assert_eq!((&said["name"], &said["context"]), (&json!("hello"), &json!({"of": 1})));
        assert!(said.get("speaker").is_none(), "{said}");
        times.push(said["timestamp"].as_u64().unwrap());
    }
    // Within a second of where the tones begin, at 2.0 s and 5.5 s.
    assert_eq!(times.len(), 2, "{times:?}");
    assert!((2000..3000).contains(&times[0]) && (5500..6500).contains(&times[1]), "{times:?}");

    // Sound without it, or of no interest to the client, ends with that said.
    for (names, tones) in [("hello", [(2600.0, 20)]), ("computer", [(250.0, 20)])] {
        let detect = format!("{{\"type\":\"detect\",\"data\":{{\"names\":[\"{names}\"]}}}}\n");
        client.send(detect.as_bytes());
        client.send(&sound(&tones));
        assert_eq!(client.read().unwrap(), ("not-detected".into(), json!({})), "{names}");
    }
    // What can't be heard is an error, and the end.
    client
        .send(b"{\"type\":\"audio-chunk\",\"data\":{\"rate\":16000,\"width\":1,\"channels\":1}}\n");
    let (kind, said) = client.read().unwrap();
    assert!(kind == "error" && said["text"].as_str().unwrap().contains("width"), "{said}");
    assert!(client.read().is_none());
    drop(daemon);
}

#[test]
fn a_speaker_is_named_and_a_stranger_is_not() {
    let (_daemon, port) = ears(
        "speakers = true\nignore = []\nreject = 0.1\nprobability = 0.8\n",
        &[("hello", 250.0), ("other", 2600.0), ("third", 1200.0)],
    );
    let mut client = Client::new(port);
    let (_, info) = client.ask("describe", &json!({}));
    assert_eq!(info["wake"][0]["models"][0]["name"], "ears");
    // Shorter than a window, as long as one, longer.
    for (tenths, hertz, expected) in
        [(4, 250.0, "hello"), (5, 2600.0, "other"), (20, 250.0, "hello")]
    {
        client.send(b"{\"type\":\"detect\",\"data\":{\"names\":[\"ears\"]}}\n");
        client.send(&sound(&[(hertz, tenths)]));
        let (kind, said) = client.read().unwrap();
        assert_eq!((kind.as_str(), &said["name"]), ("detection", &json!("ears")), "{said}");
        assert_eq!(said["speaker"], expected, "{tenths}");
    }
    // Between two that are known.
    client.send(&sound(&[(550.0, 20)]));
    assert_eq!(client.read().unwrap().0, "not-detected");
    // A stream without sound.
    client.send(&sound(&[]));
    assert_eq!(client.read().unwrap().0, "not-detected");
}
