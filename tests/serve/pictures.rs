//! Pictures over HTTP.

use crate::place::{Place, repo};
use crate::support::Daemon;
use base64::Engine as _;
use serde_json::json;
use std::path::{Path, PathBuf};

/// All files below a folder, sorted.
fn pictures(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { pictures(&path) } else { vec![path] };
    let mut files: Vec<PathBuf> = entries.flat_map(below).collect();
    files.sort();
    files
}

#[test]
fn a_picture_is_answered_alike_as_a_body_and_in_json_and_kept_as_it_is() {
    let place = Place::new();
    let model = repo("models/efficientnet-lite0.onnx").display().to_string();
    place.ok(&format!(
        "pack {model} -o mlp.base --image 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
    ));
    for file in ["1.adapter", "2.adapter"] {
        place.write(file, "");
    }
    let daemon = Daemon::start_in(place, "");
    let files = pictures(&repo("models/pictures"));
    let [one, two] = [&files[0], &files[1]].map(|file| std::fs::read(file).unwrap());
    let mime =
        |bytes: &[u8]| if bytes.starts_with(b"\x89PNG") { "image/png" } else { "image/jpeg" };
    let ask = |bytes: &[u8]| {
        let answer = daemon.send("POST", "/v1/predict?outputs=true", mime(bytes), bytes);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let raw = ask(&one);
    assert_eq!(raw["outputs"]["logits"]["shape"], json!([1, 1000]));
    assert_ne!(raw, ask(&two));
    let text = base64::engine::general_purpose::STANDARD.encode(&one);
    let asked = json!({"image": text, "outputs": true});
    assert_eq!(daemon.ok("POST", "/v1/predict", Some(&asked)), raw);

    let path = "/v1/feedback?adapter=home&label=a";
    let told = daemon.send("POST", path, mime(&one), &one);
    assert_eq!(told.status, 201, "{told:?}");
    let shown = daemon.ok("GET", &format!("/v1/samples/{}", told.json()["id"]), None);
    assert_eq!(shown["input"], json!({"image": text, "mime": mime(&one)}));
    let cut = &one[..one.len() / 2];
    for (path, bytes) in [("/v1/predict", cut), (path, cut), ("/v1/predict", &b"no picture"[..])] {
        let answer = daemon.send("POST", path, mime(&one), bytes);
        assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
        answer.error();
    }
    let list = daemon.ok("GET", "/v1/samples", None);
    assert_eq!(list["samples"].as_array().unwrap().len(), 1);
}
