//! Sound over HTTP.

use crate::place::Place;
use crate::support::Daemon;
use base64::Engine as _;
use serde_json::json;

/// A second of a tone, 16 kHz, one channel, 16 bits.
pub fn wav(hertz: f32) -> Vec<u8> {
    let turn = 2.0 * std::f32::consts::PI * hertz / 16_000.0;
    let samples = (0..16_000).map(|i| ((turn * i as f32).sin() * 12_000.0) as i16);
    let data: Vec<u8> = samples.flat_map(i16::to_le_bytes).collect();
    let mut file = b"RIFF".to_vec();
    file.extend((36 + data.len() as u32).to_le_bytes());
    file.extend(*b"WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data");
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}

#[test]
fn a_clip_is_answered_alike_as_a_body_and_in_json_and_learned() {
    let place = Place::new();
    place.ok(
        "pack {models}/conv1d.onnx -o mlp.base --audio \
         librosa,rate=16000,fft=512,window=512,hop=256,mels=4,high=4000,log=db,mean=-40,std=20,seconds=0.5",
    );
    for file in ["1.adapter", "2.adapter"] {
        place.write(file, "");
    }
    let daemon = Daemon::start_in(place, "");
    let (low, high) = (wav(250.0), wav(2600.0));
    let ask = |bytes: &[u8]| {
        let answer = daemon.send("POST", "/v1/predict?outputs=true", "audio/wav", bytes);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    };
    let raw = ask(&low);
    assert_eq!(raw["outputs"]["y"]["shape"], json!([1, 6]));
    assert_ne!(raw, ask(&high));
    let text = base64::engine::general_purpose::STANDARD.encode(&low);
    let asked = json!({"audio": text, "outputs": true});
    assert_eq!(daemon.ok("POST", "/v1/predict", Some(&asked)), raw);
    let both = json!({"audio": text, "text": "a"});
    assert_eq!(daemon.post("/v1/predict", &both).status, 400);

    // Feedback is kept as it came and answers at once.
    for n in 0..6 {
        for (label, hertz) in [("low", 230.0 + 7.0 * n as f32), ("high", 2500.0 + 40.0 * n as f32)]
        {
            let path = format!("/v1/feedback?adapter=ears&label={label}");
            let told = daemon.send("POST", &path, "audio/wav", &wav(hertz));
            assert_eq!(told.status, 201, "{told:?}");
        }
    }
    let told = daemon.send("POST", "/v1/feedback?adapter=ears&label=low", "audio/wav", &low);
    let shown = daemon.ok("GET", &format!("/v1/samples/{}", told.json()["id"]), None);
    assert_eq!(shown["input"], json!({"audio": text, "mime": "audio/wav"}));
    let start = std::time::Instant::now();
    loop {
        let answer = daemon.send("POST", "/v1/predict?adapter=ears", "audio/wav", &high).json();
        if answer["predictions"][0]["label"] == "high" {
            break;
        }
        assert!(start.elapsed() < crate::support::PATIENCE, "{answer}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let cut = &low[..low.len() / 2];
    for bytes in [cut, &b"no sound"[..], &b"fLaC...."[..]] {
        let answer = daemon.send("POST", "/v1/predict", "audio/wav", bytes);
        assert!((400..500).contains(&answer.status), "{answer:?}");
        answer.error();
    }
}
