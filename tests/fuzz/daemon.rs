//! What the daemon reads: its configuration, its state, requests.

use crate::files::made_up_rows;
use crate::mend::{self, joined, parts};
use crate::place::{Place, file};
use crate::targets::{Ready, ready};
use offshoot::Adapter;
use offshoot::adapters::{TargetAdapter, TensorType};
use offshoot::store::{Filter, Input, Label, NewSample, Origin, Serve, Store};
use offshoot::testing::parsers;
use std::path::Path;

pub fn config(_: Place) -> Ready {
    let whole = file("cross/package/offshoot.toml");
    // With what is commented out, too.
    let text = String::from_utf8(whole.clone()).unwrap();
    let all: Vec<&str> = text
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| rest.contains(" = ")).unwrap_or(line))
        .collect();
    ready(vec![whole, all.join("\n").into_bytes(), b"base = \"a\"\n[serve]\n".to_vec()], |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            parsers::config(text);
        }
    })
}

pub fn topic(_: Place) -> Ready {
    let seeds = [
        "offshoot/board/home/ask/text/tag",
        "offshoot/board/home/ask/picture",
        "offshoot/board/home/feedback",
        "offshoot/board/home/command",
        "homeassistant/status",
        "home@12",
        "lora.kitchen-2@1",
    ];
    ready(seeds.map(|seed| seed.as_bytes().to_vec()).to_vec(), |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        parsers::topic(text);
        drop(offshoot::store::Reference::parse(text));
        drop(offshoot::BaseFingerprint::parse(text));
    })
}

pub fn voice(_: Place) -> Ready {
    let seeds = [
        "{\"type\":\"describe\"}\n{\"type\":\"ping\",\"data\":{\"text\":\"x\"}}\n",
        "{\"type\":\"recognize\",\"version\":\"1.8.0\",\"data_length\":14}\n{\"text\":\"hi\"}\n{\"type\":\"a\"}\n",
        "{\"type\":\"audio-chunk\",\"data\":{\"rate\":16000},\"payload_length\":4}\nabcd{\"type\":\"audio-stop\"}\n",
    ];
    ready(seeds.map(|seed| seed.as_bytes().to_vec()).to_vec(), |bytes| {
        parsers::events(bytes);
    })
}

fn sample(number: u64) -> NewSample {
    let input = match number % 3 {
        0 => Input::Text(format!("sentence {number}")),
        1 => Input::File { bytes: vec![number as u8; 40], mime: "image/png".into() },
        _ => Input::Tensors(vec![1, 2, 3, number as u8]),
    };
    NewSample {
        name: "home".into(),
        input,
        label: Some(Label::Class(["on", "off"][number as usize % 2].into())),
        predicted: None,
        generation: None,
        source: "test".into(),
        time: 1_700_000_000 + number,
        consent: true,
    }
}

/// A store with samples and two generations.
fn filled(place: &Place, name: &str) -> Store {
    let store = Store::open(place.fresh(name)).unwrap();
    for number in 0..12 {
        store.add_sample(&sample(number)).unwrap();
    }
    for scale in [0.5, 0.25] {
        let pair = TargetAdapter::lora("encoder.dense", 1, 1.0, vec![scale; 2], vec![0.5; 3]);
        let adapter = Adapter { targets: vec![pair], ..Adapter::default() };
        store.add_and_serve("home", &adapter, &Origin::default(), Serve::Now).unwrap();
    }
    store
}

/// What a daemon asks of a state at its start, and a person afterwards.
fn use_state(root: &Path) {
    if let Ok(store) = Store::open(root) {
        for entry in store.names().unwrap_or_default() {
            drop((store.generations(&entry.name), store.training_set(&entry.name)));
        }
        for info in store.samples(&Filter::default()).unwrap_or_default() {
            drop(store.sample(info.id));
        }
        drop((store.events(10, 0), store.jobs(), store.verify(), store.lost()));
        drop(store.add_sample(&sample(77)));
    }
    drop(Store::salvage(root));
}

const STATE: [&str; 3] = ["state.db", "state.db-wal", "acknowledged"];

pub fn state(place: Place) -> Ready {
    let store = filled(&place, "source");
    let read = |store: &Store| {
        joined(
            &STATE
                .map(|name| std::fs::read(store.root().join(name)).unwrap_or_default())
                .each_ref()
                .map(Vec::as_slice),
        )
    };
    let with_log = read(&store);
    store.settle().unwrap();
    let settled = read(&store);
    drop(store);
    ready(vec![with_log, settled], move |bytes| {
        let root = place.fresh("state");
        for (name, part) in STATE.iter().zip(parts(bytes)) {
            let part = match *name {
                "acknowledged" => mend::acknowledged(part),
                _ => part.to_vec(),
            };
            if !part.is_empty() {
                std::fs::write(root.join(name), part).unwrap();
            }
        }
        use_state(&root);
    })
}

/// The log by itself, as it stands and with right sums. Bits are mended in `state` alone, which takes long.
pub fn log(place: Place) -> Ready {
    let store = filled(&place, "source");
    let whole = std::fs::read(store.root().join(STATE[1])).unwrap();
    drop(store);
    // To the end of its first change, and of later ones.
    let frames = |count: usize| whole[..whole.len().min(32 + count * (24 + 1024))].to_vec();
    let first = (1..200).find(|count| parsers::log(&frames(*count))).unwrap();
    let seeds = vec![frames(first), frames(first + 4), frames(first + 16)];
    ready(seeds, |bytes| {
        parsers::log(bytes);
        parsers::log(&mend::log(bytes));
    })
}

pub fn backup(place: Place) -> Ready {
    let store = filled(&place, "source");
    let made = place.path("made");
    store.backup(&made).unwrap();
    drop(store);
    let adapters: Vec<_> =
        std::fs::read_dir(made.join("adapters")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let read = |name: &Path| std::fs::read(made.join(name)).unwrap();
    let mut files = vec![read(Path::new("backup.json")), read(Path::new("state.db"))];
    files.extend(adapters.iter().map(|name| read(&Path::new("adapters").join(name))));
    let seed = joined(&files.iter().map(Vec::as_slice).collect::<Vec<_>>());
    ready(vec![seed], move |bytes| {
        let parts = parts(bytes);
        let database = parts.get(1).copied().unwrap_or_default();
        let folder = place.fresh("backup");
        std::fs::create_dir(folder.join("adapters")).unwrap();
        let manifest = mend::manifest(parts[0], database);
        std::fs::write(folder.join("backup.json"), manifest.as_deref().unwrap_or(parts[0]))
            .unwrap();
        std::fs::write(folder.join("state.db"), database).unwrap();
        for (name, part) in adapters.iter().zip(parts.iter().skip(2)) {
            std::fs::write(folder.join("adapters").join(name), part).unwrap();
        }
        let root = place.fresh("root");
        if Store::restore(&root, &folder).is_ok() {
            use_state(&root);
        }
    })
}

/// An input is a request as it stands on the wire, but for the body's length.
pub fn http(place: Place) -> Ready {
    let engine = place.engine("models/tiny/mlp.onnx");
    let rows = std::fs::read(made_up_rows(&place, &engine)).unwrap();
    let adapter = Adapter {
        base: Some(engine.base().fingerprint()),
        targets: engine.base().targets()[..1]
            .iter()
            .map(|t| {
                let (a, b) = (t.in_features as usize, t.out_features as usize);
                TargetAdapter::lora(&t.module_path, 1, 1.0, vec![0.1; a], vec![0.1; b])
            })
            .collect(),
        ..Adapter::default()
    };
    let adapter_bytes = adapter.to_bytes(TensorType::F16).unwrap();
    let input = engine.base().record().graphs[0].inputs[0].clone();
    let width: usize = input.dims.last().unwrap().parse().unwrap();
    let inputs = format!(
        r#"{{"{}": {{"shape": [1, {width}], "dtype": "f32", "data": {:?}}}}}"#,
        input.name,
        vec![0.5f32; width]
    );
    let json = "content-type: application/json\n";
    let mut seeds: Vec<Vec<u8>> = vec![
        format!("POST /v1/predict\n{json}\n{{\"inputs\": {inputs}, \"top\": 2, \"adapter\": \"home@1\"}}"),
        format!("POST /v1/predict\n{json}\n{{\"inputs\": {inputs}, \"lora\": [{{\"id\": 0, \"scale\": 0.5}}]}}"),
        format!("POST /v1/predict\n{json}\n{{\"inputs\": {inputs}, \"reject\": 0.5, \"outputs\": true}}"),
        format!("POST /v1/feedback\n{json}\n{{\"adapter\": \"home\", \"inputs\": {inputs}, \"label\": \"on\", \"source\": \"me\"}}"),
        format!("POST /v1/predict\n{json}\n{{\"messages\": [{{\"role\": \"user\", \"content\": \"hi\"}}], \"tokens\": 3, \"stop\": [\"a\"], \"top_p\": 0.5, \"stream\": true}}"),
        format!("POST /v1/feedback\n{json}\n{{\"adapter\": \"home\", \"messages\": [{{\"role\": \"user\", \"content\": \"hi\"}}], \"completion\": \"yes\"}}"),
        format!("POST /v1/forget\n{json}\n{{\"source\": \"me\", \"dry_run\": true}}"),
        format!("POST /v1/samples/1\n{json}\n{{\"label\": \"off\"}}"),
        format!("POST /v1/adapters/home/activate\n{json}\n{{\"generation\": 1, \"expected\": null}}"),
        format!("POST /v1/adapters/home/rollback\n{json}\n{{}}"),
        format!("POST /v1/train\n{json}\n{{\"adapter\": \"home\"}}"),
        format!("POST /lora-adapters\n{json}\n[{{\"id\": 0, \"scale\": 1.0}}]"),
        format!("POST /v1/tokens\n{json}\n{{\"name\": \"hall\", \"role\": \"teach\"}}"),
        "DELETE /v1/tokens/hall\n\n".into(),
        "GET /health\n\n".into(),
        "GET /metrics\n\n".into(),
        "GET /v1/status\nx-request-id: abc\n\n".into(),
        "GET /v1/events?after=0&limit=3\n\n".into(),
        "GET /v1/samples?name=home&limit=5&state=used\n\n".into(),
        "GET /v1/samples/1?content=true\n\n".into(),
        "GET /v1/adapters/home/1\n\n".into(),
        "GET /v1/train/1\n\n".into(),
        "GET /lora-adapters\n\n".into(),
        "DELETE /v1/adapters/home/1?force=true\n\n".into(),
        "GET /\ncookie: offshoot=1.2.3\naccept-language: de\n\n".into(),
        "PUT /v1/adapters/%ff\n\n".into(),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect();
    seeds
        .push([b"POST /v1/predict?top=3\ncontent-type: application/x-npz\n\n", &rows[..]].concat());
    seeds.push([b"POST /v1/predict\ncontent-type: image/png\n\n", &rows[..]].concat());
    seeds.push(
        [
            b"POST /v1/adapters/other\ncontent-type: application/octet-stream\n\n",
            &adapter_bytes[..],
        ]
        .concat(),
    );
    let store = Store::open(place.fresh("state")).unwrap();
    store.add_and_serve("home", &adapter, &Origin::default(), Serve::Now).unwrap();
    let config = "base = 'x'\n[serve]\nworkers = 1\n[limits]\nmemory_bytes = 67108864\n[samples]\nmax_samples = 50\n";
    let daemon = parsers::InProcess::new(config, engine, store).unwrap();
    ready(seeds, move |bytes| {
        // A panic in a handler would be one of these.
        assert_ne!(answer(&daemon, bytes), Some(500));
    })
}

/// The status of the answer to a request, or to a broker's message: its method is MQTT, its address the topic.
pub fn answer(daemon: &parsers::InProcess, request: &[u8]) -> Option<u16> {
    let end = request.windows(2).position(|w| w == b"\n\n").unwrap_or(request.len());
    let (head, body) = (&request[..end], request.get(end + 2..).unwrap_or_default());
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let (method, uri) = lines.next().and_then(|line| line.split_once(' ')).unwrap_or_default();
    if method == "MQTT" {
        return daemon.message(uri, body);
    }
    let headers: Vec<(&str, &str)> =
        lines.filter_map(|line| line.split_once(": ")).take(64).collect();
    daemon.ask(method, uri, &headers, body)
}
