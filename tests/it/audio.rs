//! Sound: clips and streams, from packing to what is heard. Tones, made here, by a convolution of four
//! channels over the bands that `BANDS` makes.

use crate::support::{Place, done};
use std::f32::consts::PI;
use std::process::Stdio;

/// Half a second in four bands up to 4 kHz, in decibels.
const BANDS: &str = "librosa,rate=16000,fft=512,window=512,hop=256,mels=4,high=4000,log=db,\
                     mean=-40,std=20,seconds=0.5";

/// A tone with a little noise; loudness and phase by `seed`.
fn tone(rate: u32, hertz: f32, seconds: f32, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    let (loud, phase) = (0.1 + 0.5 * random(), 2.0 * PI * random());
    let pitch = hertz * (0.95 + 0.1 * random());
    let n = (rate as f32 * seconds) as usize;
    let one = |i: usize| loud * (2.0 * PI * pitch * i as f32 / rate as f32 + phase).sin();
    (0..n).map(|i| one(i) + 0.004 * (random() - 0.5)).collect()
}

fn s16(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|v| ((v * 32_767.0) as i16).to_le_bytes()).collect()
}

/// A WAV file of 16-bit samples.
pub fn wav(rate: u32, channels: u16, data: &[u8]) -> Vec<u8> {
    let mut file = b"RIFF".to_vec();
    file.extend((36 + data.len() as u32).to_le_bytes());
    file.extend(*b"WAVEfmt \x10\0\0\0\x01\0");
    file.extend(channels.to_le_bytes());
    file.extend(rate.to_le_bytes());
    file.extend((rate * 2 * u32::from(channels)).to_le_bytes());
    file.extend((2 * channels).to_le_bytes());
    file.extend(*b"\x10\0data");
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}

const SOUNDS: [(&str, f32); 3] = [("low", 250.0), ("middle", 900.0), ("high", 2600.0)];

/// `ears.base`, and `tones/train` and `tones/test` with folders of clips at several rates.
fn tones(place: &Place) {
    place.ok(&format!("pack {{models}}/conv1d.onnx -o ears.base --weights f32 --audio {BANDS}"));
    for (split, clips) in [("train", 0..12), ("test", 50..58)] {
        for (name, hertz) in SOUNDS {
            let folder = format!("tones/{split}/{name}");
            std::fs::create_dir_all(place.path(&folder)).unwrap();
            for n in clips.clone() {
                let rate = [8_000, 16_000, 44_100, 48_000][n as usize % 4];
                let file = wav(rate, 1, &s16(&tone(rate, hertz, 0.6, n)));
                place.write(&format!("{folder}/{n}.wav"), file);
            }
        }
    }
}

#[test]
fn tones_are_learned_from_folders_and_told_apart() {
    let place = Place::new();
    tones(&place);
    let shown = place.ok("inspect ears.base");
    assert!(shown.contains("sound of 16000 Hz, 0.50 s: 4 mels (slaney"), "{shown}");
    let inspected = place.json("inspect ears.base");
    assert_eq!(inspected["audio"]["rate"], 16_000);
    assert_eq!(inspected["inputs"][0]["role"], "mel");

    place.json("train ears.base --data tones --out now.adapter --instant");
    place.json("train ears.base --data tones --out ears.adapter --steps 60 --batch 6 --lr 0.02");
    for adapter in ["now", "ears"] {
        let judged = place
            .json(&format!("eval ears.base --data tones --split test --adapter {adapter}.adapter"));
        let accuracy = judged["evaluation"]["accuracy"].as_f64().unwrap_or(-1.0);
        assert!(accuracy > 0.95, "{adapter}: {judged}");
    }
    // Two channels of another rate are the same sound.
    let stereo: Vec<f32> = tone(44_100, 2600.0, 0.6, 99).iter().flat_map(|v| [*v, *v]).collect();
    place.write("stereo.wav", wav(44_100, 2, &s16(&stereo)));
    let said = place.json("run ears.base --adapter now.adapter --audio stereo.wav");
    assert_eq!(said["predictions"][0]["label"], "high", "{said}");
    // A row of a table may name a clip too.
    place.write("clips.csv", "audio,label\nstereo.wav,high\nstereo.wav,high\n");
    let judged = place.json("eval ears.base --data clips.csv --adapter now.adapter");
    assert_eq!(judged["evaluation"]["accuracy"], 1.0, "{judged}");
}

#[test]
fn a_stream_is_heard_in_windows() {
    let place = Place::new();
    tones(&place);
    place.json("train ears.base --data tones --out ears.adapter --instant");
    let mut stream = tone(16_000, 250.0, 2.0, 3);
    stream.extend(tone(16_000, 2600.0, 2.0, 4));
    let listen = |line: &str, bytes: &[u8]| {
        place.write("stream", bytes);
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut command = place.command(&words);
        command.stdin(Stdio::from(std::fs::File::open(place.path("stream")).unwrap()));
        done(command)
    };
    let line = "listen ears.base --adapter ears.adapter --hop 0.1 --json";
    let raw = listen(line, &s16(&stream));
    assert_eq!(raw.code, 0, "{raw:?}");
    let events: Vec<serde_json::Value> =
        raw.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let labels: Vec<&str> = events.iter().filter_map(|e| e["label"].as_str()).collect();
    assert_eq!((labels[0], labels[labels.len() - 1]), ("low", "high"), "{events:?}");
    let begins = events[events.len() - 1]["seconds"].as_f64().unwrap();
    assert!((2.0..2.8).contains(&begins), "{events:?}");
    // As `arecord` writes it: a WAV file without an end, which says its format itself.
    let mut recorded = wav(16_000, 1, &s16(&stream));
    recorded[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(listen(&format!("{line} --rate 8000"), &recorded).stdout, raw.stdout);
    let ignored = listen(&format!("{line} --ignore low --ignore middle"), &recorded);
    assert_eq!(ignored.stdout.lines().count(), 1, "{ignored:?}");
    let people = listen("listen ears.base --adapter ears.adapter", &s16(&stream));
    assert!(people.stdout.lines().all(|l| l.contains(" s ") && l.contains(" %  ")), "{people:?}");
    // Shorter than a window: one window. Nothing at all: nothing heard.
    let every = format!("{line} --every");
    assert_eq!(listen(&every, &s16(&stream[..3000])).stdout.lines().count(), 1);
    assert_eq!(listen(&every, &[]).stdout, "");
    listen("listen ears.base --format u8", &[]).failed(2, "a format that is none");
    listen("listen ears.base --hop 0", &[]).failed(2, "no hop");
    listen("listen ears.base", &s16(&stream)).failed(2, "a base without labels");
}

#[test]
fn what_is_no_sound_for_the_base_is_one_line() {
    let place = Place::new();
    tones(&place);
    place.ok("pack {models}/conv1d.onnx -o deaf.base");
    place.ok("pack {models}/mlp.onnx -o mlp.base");
    place.write("good.wav", wav(16_000, 1, &s16(&[0.5; 8000])));
    place.write(
        "eight.wav",
        wav(16_000, 1, &s16(&[0.5; 8000])).into_iter().take(60).collect::<Vec<_>>(),
    );
    place.write("song.mp3", b"ID3\x04 song");
    let says = |line: &str, code: i32, part: &str| {
        let error = place.fails(line, code);
        assert!(error.contains(part), "{line}: {error}");
    };
    says("run deaf.base --audio good.wav", 3, "pack it with --audio");
    says("run mlp.base --audio good.wav", 3, "one input for it");
    says("run ears.base --audio eight.wav", 3, "truncated");
    says("run ears.base --audio song.mp3", 3, "found MP3");
    says("run ears.base --audio none.wav", 3, "none.wav");
    says("run ears.base --image good.wav", 3, "pictures need");
    says("pack {models}/mlp.onnx -o x.base --audio whisper", 2, "float input of 3 or 4 axes");
    says("pack {models}/conv1d.onnx -o x.base --audio mp3", 2, "whisper, kaldi");
    says("pack {models}/conv1d.onnx -o x.base --audio kaldi,mells=4", 2, "no key 'mells'");
    std::fs::create_dir_all(place.path("songs/a")).unwrap();
    place.write("songs/a/song.mp3", b"ID3");
    says("train ears.base --data songs --out x.adapter", 3, "sound is not WAV");
    std::fs::create_dir_all(place.path("mixed/a")).unwrap();
    place.write("mixed/a/1.png", b"png");
    place.write("mixed/a/1.wav", b"wav");
    says("train ears.base --data mixed --out x.adapter", 3, "sample is sound, those before are");
}
