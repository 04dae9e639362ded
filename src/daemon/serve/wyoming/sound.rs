//! A client's stream of sound: windows over it, and what is heard in them.

#![warn(clippy::arithmetic_side_effects)]

use super::event::Event;
use super::{Said, ask, name};
use crate::daemon::serve::app::App;
use crate::daemon::serve::ask::{AskQuery, MAX_TOP, Mime, Raw};
use crate::daemon::serve::problem::Problem;
use crate::daemon::serve::roster::Selection;
use crate::runtime::audio::{Agreement, RATES};
use crate::store::Reference;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use std::time::Instant;

/// From the beginning of a window to that of the next, in seconds.
const HOP: f32 = 0.25;
/// A window where the base takes any length, and the longest that there may be.
const WINDOW: f32 = 2.0;
const LONGEST: f32 = 10.0;
/// Windows whose mean counts, and those in a row that must agree.
const SMOOTH: usize = 2;
const AGREE: usize = 2;

/// Seconds of a window; `None`: the base takes no sound, or only much at once.
pub fn window(app: &App) -> Option<f32> {
    let seconds = app.answerer.hears()?;
    let seconds = if seconds > 0.0 { seconds } else { WINDOW };
    (seconds <= LONGEST).then_some(seconds)
}

/// The labels that a client may be told of.
pub fn labels(app: &App) -> Vec<String> {
    let config = app.config();
    let reference = name(app, &config.wyoming).and_then(|name| Reference::parse(&name).ok());
    let selection = reference.map_or(Selection::Base, Selection::Named);
    let Ok(served) = app.roster.resolve(&selection) else { return vec![] };
    let Some(head) = served.bound.as_ref().and_then(|b| b.head.as_ref()) else { return vec![] };
    let told = head.labels.iter().filter(|label| !config.wyoming.ignore.contains(label));
    told.cloned().collect()
}

/// How samples are written: little-endian integers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Format {
    rate: u32,
    /// Bytes of a sample.
    width: u16,
    channels: u16,
}

impl Format {
    fn read(data: &Map<String, Value>) -> Result<Format, Problem> {
        let number = |key: &str, least: u32, most: u32| {
            let found = data.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
            found
                .filter(|n| (least..=most).contains(n))
                .ok_or_else(|| Problem::invalid(format!("{key}: expected {least} to {most}")))
        };
        let rate = number("rate", *RATES.start(), *RATES.end())?;
        let (width, channels) = (number("width", 2, 4)? as u16, number("channels", 1, 2)? as u16);
        Ok(Format { rate, width, channels })
    }

    /// Bytes of a sample of all channels.
    fn block(self) -> usize {
        usize::from(self.width).saturating_mul(usize::from(self.channels))
    }

    /// Bytes of so many seconds, whole samples and at least one.
    fn bytes(self, seconds: f32) -> usize {
        let samples = (seconds * self.rate as f32).round() as usize;
        samples.max(1).saturating_mul(self.block())
    }

    /// Samples as a WAV file.
    fn wav(self, samples: &[u8]) -> Vec<u8> {
        let size = samples.len() as u32;
        let bytes_a_second = self.bytes(1.0) as u32;
        let mut file = b"RIFF".to_vec();
        file.extend(size.saturating_add(36).to_le_bytes());
        file.extend(b"WAVEfmt \x10\0\0\0\x01\0");
        file.extend(self.channels.to_le_bytes());
        file.extend(self.rate.to_le_bytes());
        file.extend(bytes_a_second.to_le_bytes());
        file.extend((self.block() as u16).to_le_bytes());
        file.extend(self.width.saturating_mul(8).to_le_bytes());
        file.extend(b"data");
        file.extend(size.to_le_bytes());
        file.extend(samples);
        file
    }
}

/// What a connection listens for.
pub struct Hearing {
    /// Of what it wants to be told; empty: of everything.
    names: Vec<String>,
    context: Option<Value>,
    stream: Option<Stream>,
}

struct Stream {
    format: Format,
    agreement: Agreement,
    /// The labels so far, in the places that the agreement knows them by.
    labels: Vec<String>,
    /// From the beginning of the next window.
    sound: Vec<u8>,
    windows: usize,
    /// The last window's label by itself.
    last: Option<usize>,
    /// Whether the client was told of something.
    told: bool,
}

impl Stream {
    fn new(format: Format, threshold: f32) -> Stream {
        Stream {
            format,
            agreement: Agreement::new(SMOOTH, AGREE, threshold),
            labels: vec![],
            sound: vec![],
            windows: 0,
            last: None,
            told: false,
        }
    }

    /// Takes a window's answer; gives the place of what begins to be heard.
    fn hear(&mut self, answer: &Value, threshold: f32) -> Option<usize> {
        let said = &answer["predictions"][0];
        let known = said["label"].is_string() && said["known"] != Value::Bool(false);
        let mut shares = vec![0.0; self.labels.len()];
        for entry in said["top"].as_array().into_iter().flatten() {
            let (Some(label), Some(p)) = (entry["label"].as_str(), entry["probability"].as_f64())
            else {
                continue;
            };
            let place = self.labels.iter().position(|l| l == label).unwrap_or_else(|| {
                self.labels.push(label.into());
                shares.push(0.0);
                shares.len().saturating_sub(1)
            });
            // What is not known is no label.
            shares[place] = if known { p as f32 } else { 0.0 };
        }
        self.windows = self.windows.saturating_add(1);
        let best = crate::runtime::top_k(&shares, 1).first().copied();
        self.last = best.filter(|(_, p)| *p > 0.0 && *p >= threshold).map(|(at, _)| at);
        self.agreement.hear(&shares).map(|(at, _)| at)
    }
}

impl Hearing {
    pub fn new() -> Hearing {
        Hearing { names: vec![], context: None, stream: None }
    }

    /// Takes an event of sound.
    pub async fn heed(&mut self, app: &App, event: &Event) -> Result<Vec<Event>, Problem> {
        let Some(seconds) = window(app) else { return Ok(vec![]) };
        match event.kind.as_str() {
            "detect" => {
                let names = event.data.get("names").and_then(Value::as_array);
                let names = names.into_iter().flatten().filter_map(Value::as_str);
                self.names = names.map(str::to_string).collect();
                self.context = event.data.get("context").filter(|c| c.is_object()).cloned();
                Ok(vec![])
            }
            "audio-start" => {
                self.stream = None;
                Ok(vec![])
            }
            "audio-stop" => self.stop(app).await,
            _ => self.chunk(app, event, seconds).await,
        }
    }

    async fn chunk(&mut self, app: &App, event: &Event, seconds: f32) -> Said {
        let format = Format::read(&event.data)?;
        let threshold = app.config().wyoming.probability;
        let mut stream = match self.stream.take() {
            Some(stream) if stream.format == format => stream,
            _ => Stream::new(format, threshold),
        };
        stream.sound.extend(&event.payload);
        let window = format.bytes(seconds);
        let mut told = vec![];
        while let Some(sound) = stream.sound.get(..window) {
            let file = format.wav(sound);
            let began = Instant::now();
            let answer = look(app, &file, true).await?;
            if let Some(answer) = answer
                && let Some(at) = stream.hear(&answer, threshold)
                && let Some(event) = self.told(app, &stream.labels[at], event.data.get("timestamp"))
            {
                look(app, &file, false).await?;
                stream.told = true;
                told.push(event);
            }
            // Where a window takes longer than the hop, fewer are heard: the stream is not kept waiting.
            let hop = format.bytes(HOP.max(began.elapsed().as_secs_f32()));
            stream.sound.drain(..hop.min(window));
        }
        self.stream = Some(stream);
        Ok(told)
    }

    /// The end of a stream: one too short for windows to agree is told by its last.
    async fn stop(&mut self, app: &App) -> Said {
        let threshold = app.config().wyoming.probability;
        let mut stream = self.stream.take();
        if let Some(stream) = stream.as_mut().filter(|s| !s.told && s.windows < AGREE) {
            let block = stream.format.block();
            let whole = stream.sound.len().checked_rem(block).unwrap_or(0);
            stream.sound.truncate(stream.sound.len().saturating_sub(whole));
            let file = stream.format.wav(&stream.sound);
            if stream.windows == 0
                && !stream.sound.is_empty()
                && let Some(answer) = look(app, &file, true).await?
            {
                stream.hear(&answer, threshold);
            }
            if let Some(label) = stream.last.and_then(|at| stream.labels.get(at))
                && let Some(event) = self.told(app, label, None)
            {
                look(app, &file, false).await?;
                return Ok(vec![event]);
            }
        }
        if stream.is_some_and(|s| s.told) {
            return Ok(vec![]);
        }
        let mut data = Map::new();
        data.extend(self.context.clone().map(|c| ("context".to_string(), c)));
        Ok(vec![Event::new("not-detected", data)])
    }

    /// What a client is told of a label that was heard; nothing of one that it does not want.
    fn told(&self, app: &App, label: &str, time: Option<&Value>) -> Option<Event> {
        let config = app.config();
        let own = name(app, &config.wyoming).unwrap_or_default();
        let wanted = |n: &String| n == label || config.wyoming.speakers && *n == own;
        if config.wyoming.ignore.iter().any(|l| l == label)
            || !self.names.is_empty() && !self.names.iter().any(wanted)
        {
            return None;
        }
        let mut data = match config.wyoming.speakers {
            true => json!({"name": own, "speaker": label}),
            false => json!({"name": label}),
        };
        data["timestamp"] = time.cloned().unwrap_or(Value::Null);
        if let Some(context) = &self.context {
            data["context"] = context.clone();
        }
        let Value::Object(data) = data else { return None };
        Some(Event::new("detection", data))
    }
}

/// The answer to a window. Nothing where all are busy: the window is not heard. What a client is told of is
/// asked once more, not `aside`: it is kept for people to correct, and told to the home.
async fn look(app: &App, file: &[u8], aside: bool) -> Result<Option<Value>, Problem> {
    let wyoming = &app.config().wyoming;
    let reject = Some(wyoming.reject).filter(|share| *share > 0.0);
    let (adapter, top, outputs) = (wyoming.adapter.clone(), Some(MAX_TOP), Some(false));
    let query = AskQuery { adapter, top, reject, outputs, aside, ..AskQuery::default() };
    let raw = Raw::new(file.to_vec().into(), Mime::File, query);
    match ask(app, raw, !aside).await {
        Ok(answer) => Ok(Some(answer)),
        Err(problem) if problem.status == StatusCode::SERVICE_UNAVAILABLE => Ok(None),
        Err(problem) => Err(problem),
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn format(data: Value) -> Result<Format, Problem> {
        Format::read(data.as_object().unwrap())
    }

    #[test]
    fn only_what_is_known_and_probable_is_heard() {
        let form = format(json!({"rate": 16000, "width": 2, "channels": 1})).unwrap();
        let answer = |label: Value, known: bool, p: f64| {
            let top = json!([{"label": "anna", "probability": p}, {"label": "ben", "probability": 1.0 - p}]);
            json!({"predictions": [{"label": label, "known": known, "top": top}]})
        };
        let anna = answer(json!("anna"), true, 0.9);
        let mut stream = Stream::new(form, 0.6);
        assert_eq!(stream.hear(&anna, 0.6), None);
        assert_eq!((stream.hear(&anna, 0.6), stream.windows), (Some(0), 2));
        assert_eq!((stream.hear(&anna, 0.6), stream.last), (None, Some(0)));
        // A stranger, by either sign, a doubtful one, a daemon that has learned nothing.
        let silent = json!({"predictions": [], "no_answer": "nothing was taught"});
        let unlike = [answer(Value::Null, true, 0.9), answer(json!("anna"), false, 0.9)];
        for unheard in [&unlike[0], &unlike[1], &answer(json!("anna"), true, 0.5), &silent] {
            let mut stream = Stream::new(form, 0.6);
            for _ in 0..3 {
                assert_eq!((stream.hear(unheard, 0.6), stream.last), (None, None), "{unheard}");
            }
        }
        // With a threshold of nothing too.
        let mut stream = Stream::new(form, 0.0);
        for _ in 0..3 {
            assert_eq!((stream.hear(&unlike[0], 0.0), stream.last), (None, None));
        }
        // A label that is learned while the stream goes on.
        let mut later = answer(json!("eve"), true, 0.1);
        later["predictions"][0]["top"][0]["label"] = "eve".into();
        later["predictions"][0]["top"][1]["label"] = "anna".into();
        assert_eq!((stream.hear(&later, 0.0), stream.hear(&later, 0.0)), (None, Some(0)));
        assert_eq!(stream.labels, ["anna", "ben", "eve"]);
    }

    #[test]
    fn samples_are_a_file_and_other_formats_are_refused() {
        let form = format(json!({"rate": 8000, "width": 3, "channels": 2})).unwrap();
        assert_eq!((form.block(), form.bytes(0.5), form.bytes(0.0)), (6, 24_000, 6));
        let file = form.wav(&[0; 24_000]);
        let mut base = crate::pack::AudioSpec::named("samples").unwrap();
        base.rate = 8000;
        let read = crate::runtime::audio::FrontEnd::new(base).wav(&file, 2).unwrap();
        assert_eq!(read.shape(), [1, 4000]);
        for wrong in [
            json!({}),
            json!({"rate": 7999, "width": 2, "channels": 1}),
            json!({"rate": 16000, "width": 1, "channels": 1}),
            json!({"rate": 16000, "width": 2, "channels": 3}),
            json!({"rate": 16000.5, "width": 2, "channels": 1}),
            json!({"rate": -1, "width": 2, "channels": 1}),
        ] {
            assert_eq!(format(wrong.clone()).unwrap_err().status.as_u16(), 400, "{wrong}");
        }
    }
}
