use super::*;
use crate::npy::read_npz;
use crate::pack::{Edges, Log, MelSpec, Pitch};
use std::path::Path;

/// `make_references.py` beside it says what made them.
fn references() -> Vec<(String, Array)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/audio/references.npz");
    read_npz(Path::new(path), 4 << 20).unwrap()
}

fn named<'a>(all: &'a [(String, Array)], name: &str) -> &'a Array {
    &all.iter().find(|(n, _)| n == name).unwrap().1
}

/// The largest difference from `wanted` [rows, bands] in the first rows of `found`.
fn worst(found: &Array, wanted: &Array, mels_first: bool) -> f32 {
    let (shape, values) = (found.shape(), found.as_f32().unwrap());
    let [rows, bands] = wanted.shape() else { panic!() };
    let frames = shape[if mels_first { 2 } else { 1 }];
    assert_eq!(shape[if mels_first { 1 } else { 2 }], *bands);
    let at = |row: usize, band: usize| {
        if mels_first { values[band * frames + row] } else { values[row * bands + band] }
    };
    let wanted = wanted.as_f32().unwrap();
    (0..*rows)
        .flat_map(|row| (0..*bands).map(move |band| (row, band)))
        .map(|(row, band)| (at(row, band) - wanted[row * bands + band]).abs())
        .fold(0.0, f32::max)
}

fn general() -> AudioSpec {
    let spec = AudioSpec::named("librosa").unwrap();
    let Front::Mel(mel) = spec.front else { unreachable!() };
    let mel = MelSpec {
        fft: 512,
        window: 320,
        hop: 200,
        edges: Edges::Reflect,
        power: false,
        mels: 32,
        low: 50.0,
        high: 7000.0,
        pitch: Pitch::Htk,
        area: false,
        log: Log::Decibel,
        ..mel
    };
    AudioSpec { rate: 16_000, front: Front::Mel(mel), ..spec }
}

/// Against transformers, torchaudio and librosa.
#[test]
fn front_ends_give_what_their_own_programs_give() {
    let all = references();
    let clip = named(&all, "clip").as_f32().unwrap();
    // Of energies without a logarithm a share of the greatest, else units of the logarithm.
    let cases = [
        ("whisper", AudioSpec::named("whisper").unwrap(), 1e-4),
        ("kaldi", AudioSpec::named("kaldi").unwrap(), 1e-3),
        ("ast", AudioSpec::named("ast").unwrap(), 1e-4),
        ("librosa", AudioSpec::named("librosa").unwrap(), 1e-4),
        ("resemblyzer", AudioSpec::named("resemblyzer").unwrap(), 1e-5),
        ("general", general(), 1e-3),
    ];
    for (name, spec, allowed) in cases {
        let Front::Mel(mel) = spec.front.clone() else { unreachable!() };
        let rate = spec.rate;
        let found = FrontEnd::new(spec).clip(rate, clip, 3).unwrap();
        let error = worst(&found, named(&all, name), mel.mels_first);
        println!("{name}: {:?}, off by {error}", found.shape());
        assert!(error <= allowed, "{name}: off by {error}");
        if let Some((_, fill)) = all.iter().find(|(n, _)| *n == format!("{name}.fill")) {
            let frames = found.shape()[if mel.mels_first { 2 } else { 1 }];
            let values = found.as_f32().unwrap();
            let last = if mel.mels_first { values[frames - 1] } else { values[values.len() - 1] };
            assert!((last - fill.as_f32().unwrap()[0]).abs() < 1e-4, "{name}: filled with {last}");
        }
    }
    let quiet: Vec<f32> = clip.iter().map(|v| v / 64.0).collect();
    let found = FrontEnd::new(AudioSpec::named("resemblyzer").unwrap()).clip(16_000, &quiet, 3);
    assert!(worst(&found.unwrap(), named(&all, "resemblyzer.quiet"), false) < 1e-5);
    let unit = FrontEnd::new(AudioSpec::named("wav2vec2").unwrap()).clip(16_000, clip, 2).unwrap();
    let wanted = named(&all, "wav2vec2").as_f32().unwrap();
    assert_eq!(unit.shape(), [1, clip.len()]);
    assert!(unit.as_f32().unwrap().iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-4));
}

/// Against torchaudio's resample with the same filter.
#[test]
fn rates_are_changed_as_torchaudio_does() {
    let all = references();
    let clip = named(&all, "clip44").as_f32().unwrap();
    for (name, from, to, n) in [
        ("44100.16000", 44_100, 16_000, clip.len()),
        ("8000.16000", 8_000, 16_000, 600),
        ("48000.8000", 48_000, 8_000, clip.len()),
    ] {
        let wanted = named(&all, &format!("resampled.{name}")).as_f32().unwrap();
        let found = Resampler::new(from, to).run(&clip[..n]);
        assert_eq!(found.len(), wanted.len(), "{name}");
        let error = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < 2e-6, "{name}: {error}");
    }
}

/// Five spoken clips, in float64 by their own script; `../shared` has them where it stands.
#[test]
fn whispers_features_of_spoken_clips() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/whisper");
    let Ok(all) = read_npz(folder.join("features.npz"), 8 << 20) else {
        let needed = std::env::var_os("OFFSHOOT_NEEDS_SHARED").is_some();
        assert!(!needed, "{} is absent", folder.display());
        println!("skipped: no {}", folder.display());
        return;
    };
    let front = FrontEnd::new(AudioSpec::named("whisper").unwrap());
    for n in 0..5 {
        let bytes = std::fs::read(folder.join(format!("clips/clip{n}.wav"))).unwrap();
        let found = front.wav(&bytes, 3).unwrap();
        assert_eq!(found.shape(), [1, 80, 3000]);
        let wanted = named(&all, &format!("clip{n}.features"));
        let frames = wanted.shape()[1];
        let fill = named(&all, &format!("clip{n}.fill")).as_f32().unwrap()[0];
        let wanted = wanted.as_f32().unwrap();
        let mut error = 0f32;
        for (i, value) in found.as_f32().unwrap().iter().enumerate() {
            let (band, frame) = (i / 3000, i % 3000);
            let wanted = if frame < frames { wanted[band * frames + frame] } else { fill };
            error = error.max((value - wanted).abs());
        }
        println!("clip{n}: off by {error}");
        assert!(error < 1e-4, "clip{n}: off by {error}");
    }
}

#[test]
fn clips_have_the_length_that_is_asked_for() {
    let spec = AudioSpec { samples: Some(100), ..AudioSpec::named("samples").unwrap() };
    let front = FrontEnd::new(spec);
    let long = front.clip(16_000, &[0.5; 300], 3).unwrap();
    assert_eq!((long.shape(), long.as_f32().unwrap()[99]), (&[1, 1, 100][..], 0.5));
    let short = front.clip(16_000, &[0.5; 30], 2).unwrap();
    assert_eq!((short.as_f32().unwrap()[29], short.as_f32().unwrap()[30]), (0.5, 0.0));
    let spec = AudioSpec { repeat: true, ..front.spec().clone() };
    let again = FrontEnd::new(spec).clip(16_000, &[0.1, 0.2, 0.3], 2).unwrap();
    assert_eq!(again.as_f32().unwrap()[96..], [0.1, 0.2, 0.3, 0.1]);
    let slow = front.clip(8_000, &[0.5; 300], 2).unwrap();
    assert_eq!(slow.shape(), [1, 100]);
    assert!(front.clip(16_000, &[], 2).unwrap_err().message().contains("no samples"));
    let kaldi = FrontEnd::new(AudioSpec::named("kaldi").unwrap());
    assert!(kaldi.clip(16_000, &[0.1; 399], 3).unwrap_err().message().contains("too short"));
    assert_eq!(kaldi.clip(16_000, &[0.1; 560], 4).unwrap().shape(), [1, 1, 2, 80]);
    // Silence is no reason to divide by nothing.
    let silent = FrontEnd::new(AudioSpec::named("resemblyzer").unwrap());
    let silent = silent.clip(16_000, &[0.0; 560], 3).unwrap();
    assert!(silent.as_f32().unwrap().iter().all(|v| *v == 0.0));
}

/// What is heard depends on no rate of the file.
#[test]
fn memory_is_bounded() {
    let spec = AudioSpec { rate: 48_000, ..AudioSpec::named("samples").unwrap() };
    let clip = vec![0.0; MAX_VALUES / 4];
    let e = FrontEnd::new(spec).clip(8_000, &clip, 2).unwrap_err();
    assert!(e.message().contains("more than"), "{e}");
}
