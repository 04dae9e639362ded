//! A daemon in a home: pictures, the page and its forms, a broker's messages; who may ask, who is told.

use crate::daemon::answer;
use crate::place::Place;
use crate::targets::{Ready, ready};
use offshoot::Adapter;
use offshoot::adapters::{Head, Pool};
use offshoot::packing::{ImageSpec, PackOptions};
use offshoot::store::{Origin, Serve, Store};
use offshoot::testing::parsers;
use std::os::unix::fs::PermissionsExt;

const TOKEN: &str = "a-token-of-the-port";
/// What stands in an input for the token of a form.
const FORM: &[u8] = b"FORM";

fn png(side: u32) -> Vec<u8> {
    let pixels = image::RgbImage::from_fn(side, side, |x, y| image::Rgb([x as u8, y as u8, 90]));
    let mut bytes = std::io::Cursor::new(vec![]);
    pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut made = vec![];
    let mut rest = bytes;
    while let Some(at) = rest.windows(from.len()).position(|w| w == from) {
        made.extend_from_slice(&rest[..at]);
        made.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    made.extend_from_slice(rest);
    made
}

/// An input is a request as `http` has them, or with the method MQTT a topic and a message.
pub fn home(place: Place) -> Ready {
    let image = ImageSpec { size: [32, 32], ..ImageSpec::default() };
    let options = PackOptions { image: Some(image), ..PackOptions::default() };
    let engine = place.engine_with("models/tiny/convnet.onnx", &options);
    let head = Head {
        labels: ["on".to_string(), "off".to_string()].into(),
        output: "features".into(),
        pool: Pool::None,
        features: 12,
        weight: (0..24).map(|i| i as f32 / 8.0 - 1.0).collect(),
        bias: vec![0.0, 0.5],
        ..Head::default()
    };
    let base = Some(engine.base().fingerprint());
    let adapter = Adapter { base, heads: vec![head], ..Adapter::default() };
    let store = Store::open(place.fresh("state")).unwrap();
    store.add_and_serve("home", &adapter, &Origin::default(), Serve::Now).unwrap();
    let token = place.path("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = format!(
        "base = 'x'\n[serve]\nworkers = 1\ntcp = '127.0.0.1:7777'\ntoken_file = '{}'\n[limits]\n\
         memory_bytes = 268435456\n[samples]\nmax_samples = 50\n[mqtt]\nbroker = 'localhost'\nid = 'board'\n",
        token.display()
    );
    let daemon = parsers::InProcess::new(&config, engine, store).unwrap();
    let form = daemon.form_token().unwrap();
    let with_form = move |bytes: &[u8]| replaced(bytes, FORM, form.as_bytes());

    let picture = png(40);
    let form = "content-type: application/x-www-form-urlencoded\n";
    let mut seeds: Vec<Vec<u8>> = [
        "GET /?adapter=home\n\n".to_string(),
        "GET /login\ncookie: a=b; offshoot=1.2.3\n\n".into(),
        format!("POST /login\n{form}origin: http://localhost\nhost: localhost\n\ntoken=a-token-of-the-port"),
        "POST /logout\nsec-fetch-site: same-origin\n\n".into(),
        "GET /page/style.css\n\n".into(),
        "GET /page/input/1\n\n".into(),
        "GET /page/sample/1\n\n".into(),
        "GET /page/rollback?adapter=home\n\n".into(),
        "GET /page/forget?adapter=home&label=on&id=1\n\n".into(),
        format!("POST /page/answer\n{form}\nform=FORM&id=1&adapter=home&verdict=right&label=%C3%BCber+all&sure=1"),
        format!("POST /page/answer\n{form}\nform=FORM&id=2&adapter=home&other=off"),
        format!("POST /page/train\n{form}\nform=FORM&adapter=home"),
        format!("POST /page/rollback\n{form}\nform=FORM&adapter=home&generation=7"),
        format!("POST /page/forget\n{form}\nform=FORM&adapter=home&label=nothing"),
        "MQTT offshoot/board/home/command\n\ntrain".into(),
        "MQTT offshoot/board/home/command\n\nrollback".into(),
        "MQTT offshoot/board/home/ask/text/hall\n\na sentence".into(),
        "MQTT offshoot/board/home/feedback\n\n{\"label\": \"on\", \"image\": \"aGVsbG8=\", \"source\": \"me\"}".into(),
        "MQTT homeassistant/status\n\nonline".into(),
    ]
    .map(String::into_bytes)
    .to_vec();
    for head in [
        "POST /v1/predict?adapter=home&top=2\ncontent-type: image/png\n\n",
        "POST /v1/feedback?adapter=home&label=on\ncontent-type: image/png\n\n",
        "MQTT offshoot/board/home/ask/picture/door\n\n",
    ] {
        seeds.push([head.as_bytes(), &picture].concat());
    }
    // Forms reach what they do, and pictures an answer.
    assert_eq!(answer(&daemon, &with_form(&seeds[11])), Some(303));
    assert_eq!(answer(&daemon, &seeds[11]), Some(403));
    assert_eq!(answer(&daemon, seeds.last().unwrap()), Some(200));
    ready(seeds, move |bytes| {
        assert_ne!(answer(&daemon, &with_form(bytes)), Some(500));
    })
}

/// The file of a state's tokens.
pub fn tokens(place: Place) -> Ready {
    let hash = blake3::hash(b"offshoot_a").to_hex();
    let one = |name: &str, role: &str| {
        format!(r#"{{"name":"{name}","role":"{role}","created":7,"hash":"{hash}"}}"#)
    };
    let file = |tokens: &[String]| format!(r#"{{"version":1,"tokens":[{}]}}"#, tokens.join(","));
    let all = [one("home", "answer"), one("kitchen", "teach"), one("me", "administer")];
    let seeds = vec![file(&[]).into_bytes(), file(&all).into_bytes()];
    let folder = place.fresh("state");
    let path = folder.join("tokens.json");
    let taken = move |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        parsers::tokens(&folder)
    };
    assert!(seeds.iter().all(|seed| taken(seed)));
    ready(seeds, move |bytes| {
        taken(bytes);
    })
}

/// The file of what waits for a webhook.
pub fn hooks(place: Place) -> Ready {
    let message = |id: &str, answer: bool| {
        format!(r#"{{"id":"{id}","body":"{{\"version\":1,\"label\":\"on\"}}","answer":{answer}}}"#)
    };
    let file = |waiting: &[String]| {
        format!(
            r#"{{"version":1,"event":7,"delivered":3,"dropped":0,"refused":1,"last_success":1700000000,"waiting":[{}]}}"#,
            waiting.join(",")
        )
    };
    let all = [message("a-1", true), message("a-2", false)];
    let seeds = vec![file(&[]).into_bytes(), file(&all).into_bytes()];
    let path = place.path("home.json");
    let taken = move |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        parsers::hook_queue(&path)
    };
    assert!(seeds.iter().all(|seed| taken(seed)));
    ready(seeds, move |bytes| {
        taken(bytes);
    })
}
