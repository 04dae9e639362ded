//! `--audio`: what a base hears, from and for people.

use crate::error::{Error, Result};
use crate::pack::{AudioSpec, Edges, Front, Log, MelSpec, Pitch, Window};
use std::str::FromStr;

/// The words of a choice, each with what it stands for.
type Words<T> = &'static [(&'static str, T)];

const SHAPES: Words<Window> = &[
    ("hann", Window::Hann),
    ("hann-symmetric", Window::HannSymmetric),
    ("hamming", Window::Hamming),
    ("povey", Window::Povey),
    ("rectangular", Window::Rectangular),
];
const EDGES: Words<Edges> =
    &[("zeros", Edges::Zeros), ("reflect", Edges::Reflect), ("inside", Edges::Inside)];
const PITCHES: Words<Pitch> =
    &[("slaney", Pitch::Slaney), ("htk", Pitch::Htk), ("kaldi", Pitch::Kaldi)];
const LOGS: Words<Log> =
    &[("none", Log::None), ("e", Log::Natural), ("10", Log::Ten), ("db", Log::Decibel)];
const YES: Words<bool> = &[("yes", true), ("no", false)];

/// Reads `FRONT[,KEY=VALUE]...`.
pub fn parse(text: &str) -> Result<AudioSpec> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    let mut spec = AudioSpec::named(name).ok_or_else(|| {
        Error::usage(format!("expected one of {}, found '{name}'", AudioSpec::NAMES.join(", ")))
    })?;
    let (mut seconds, mut high) = (None, false);
    for part in parts {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| Error::usage(format!("expected KEY=VALUE, found '{part}'")))?;
        high |= key == "high";
        match key {
            "rate" => spec.rate = number(key, value)?,
            "seconds" => seconds = Some(free(key, value)?),
            "repeat" => spec.repeat = word(key, value, YES)?,
            "volume" => spec.volume = free(key, value)?,
            "scale" => spec.scale = number(key, value)?,
            _ => set(&mut spec.front, key, value)?,
        }
    }
    if let Front::Mel(mel) = &mut spec.front
        && !high
    {
        mel.high = mel.high.min(spec.rate as f32 / 2.0);
    }
    if let Some(seconds) = seconds {
        // The whole clip in ten minutes at most: `check` says so.
        spec.samples = seconds.map(|s: f32| (s * spec.rate as f32).round() as u32);
    }
    spec.check().map_err(|e| Error::usage(e.message()))?;
    Ok(spec)
}

fn set(front: &mut Front, key: &str, value: &str) -> Result<()> {
    let mel = match front {
        Front::Samples { unit } if key == "unit" => {
            *unit = word(key, value, YES)?;
            return Ok(());
        }
        Front::Samples { .. } => {
            return Err(Error::usage(format!("samples have no '{key}'"))
                .hint("rate, seconds, repeat, volume, scale, unit"));
        }
        Front::Mel(mel) => mel,
    };
    match key {
        "fft" => mel.fft = number(key, value)?,
        "window" => mel.window = number(key, value)?,
        "hop" => mel.hop = number(key, value)?,
        "mels" => mel.mels = number(key, value)?,
        "low" => mel.low = number(key, value)?,
        "high" => mel.high = number(key, value)?,
        "preemphasis" => mel.preemphasis = number(key, value)?,
        "floor" => mel.floor = number(key, value)?,
        "mean" => mel.mean = number(key, value)?,
        "std" => mel.std = number(key, value)?,
        "range" => mel.range = free(key, value)?,
        "frames" => mel.frames = free(key, value)?,
        "shape" => mel.shape = word(key, value, SHAPES)?,
        "edges" => mel.edges = word(key, value, EDGES)?,
        "pitch" => mel.pitch = word(key, value, PITCHES)?,
        "log" => mel.log = word(key, value, LOGS)?,
        "power" => mel.power = word(key, value, YES)?,
        "area" => mel.area = word(key, value, YES)?,
        "remove-mean" => mel.remove_mean = word(key, value, YES)?,
        "centre" => mel.centre = word(key, value, YES)?,
        "drop-last" => mel.drop_last = word(key, value, YES)?,
        "mels-first" => mel.mels_first = word(key, value, YES)?,
        _ => {
            return Err(Error::usage(format!("no key '{key}'")).hint(
                "rate, seconds, repeat, volume, scale, fft, window, hop, shape, edges, remove-mean, \
                 preemphasis, power, mels, low, high, pitch, area, log, floor, range, centre, mean, \
                 std, drop-last, frames, mels-first",
            ));
        }
    }
    Ok(())
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| Error::usage(format!("{key}: expected a number, found '{value}'")))
}

/// A number, or `any` for none.
fn free<T: FromStr>(key: &str, value: &str) -> Result<Option<T>> {
    if value == "any" { Ok(None) } else { number(key, value).map(Some) }
}

fn word<T: Copy>(key: &str, value: &str, words: Words<T>) -> Result<T> {
    let found = words.iter().find(|(word, _)| *word == value);
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        Error::usage(format!("{key}: expected {}, found '{value}'", words.join(", ")))
    })
}

fn name<T: PartialEq>(value: &T, words: Words<T>) -> &'static str {
    words.iter().find(|(_, meaning)| meaning == value).map_or("?", |(word, _)| word)
}

/// What `inspect` says of it.
pub fn describe(spec: &AudioSpec) -> String {
    let length = match spec.seconds() {
        Some(seconds) if spec.repeat => format!("{seconds:.2} s, shorter clips repeated"),
        Some(seconds) => format!("{seconds:.2} s"),
        None => "of any length".into(),
    };
    let volume = spec.volume.map_or(String::new(), |v| format!(", at least {v} dB loud"));
    let scale = if spec.scale == 1.0 { String::new() } else { format!(", times {}", spec.scale) };
    let front = match &spec.front {
        Front::Samples { unit: true } => "samples of mean 0 and deviation 1".into(),
        Front::Samples { unit: false } => "samples".into(),
        Front::Mel(mel) => bands(mel),
    };
    format!("sound of {} Hz, {length}{volume}{scale}: {front}", spec.rate)
}

fn bands(mel: &MelSpec) -> String {
    let mut parts = vec![
        format!(
            "{} mels ({}, {} to {} Hz)",
            mel.mels,
            name(&mel.pitch, PITCHES),
            mel.low,
            mel.high
        ),
        format!(
            "window {} ({}), hop {}, fft {}",
            mel.window,
            name(&mel.shape, SHAPES),
            mel.hop,
            mel.fft
        ),
        format!("edges {}, log {}", name(&mel.edges, EDGES), name(&mel.log, LOGS)),
    ];
    if let Some(frames) = mel.frames {
        parts.push(format!("{frames} frames"));
    }
    if (mel.mean, mel.std) != (0.0, 1.0) {
        parts.push(format!("mean {}, std {}", mel.mean, mel.std));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_ends_are_read_and_wrong_ones_named() {
        let spec = parse("kaldi,mels=40,seconds=2,rate=8000").unwrap();
        assert_eq!((spec.rate, spec.samples), (8000, Some(16_000)));
        assert!(matches!(&spec.front, Front::Mel(mel) if mel.mels == 40 && mel.high == 4000.0));
        assert_eq!(parse("whisper").unwrap(), AudioSpec::named("whisper").unwrap());
        assert_eq!(parse("whisper,seconds=any").unwrap().samples, None);
        assert_eq!(parse("samples,scale=32768").unwrap().scale, 32_768.0);
        for (text, part) in [
            ("mp3", "found 'mp3'"),
            ("kaldi,mels", "KEY=VALUE"),
            ("kaldi,mells=4", "no key 'mells'"),
            ("kaldi,mels=x", "expected a number"),
            ("kaldi,pitch=high", "slaney, htk, kaldi"),
            ("kaldi,fft=300", "window 400"),
            ("samples,mels=4", "samples have no 'mels'"),
            ("samples,rate=1", "rate 1"),
            ("samples,seconds=9999", "ten minutes"),
            ("samples,seconds=-1", "ten minutes"),
            ("samples,seconds=NaN", "ten minutes"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.message().contains(part), "{text}: {e}");
        }
        let words = describe(&AudioSpec::named("whisper").unwrap());
        assert!(words.starts_with("sound of 16000 Hz, 30.00 s: 80 mels (slaney"), "{words}");
    }
}
