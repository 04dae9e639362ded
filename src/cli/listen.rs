//! `offshoot listen`: windows over a stream of sound.

use super::chosen::{self, Choice};
use super::open_engine;
use super::output::Out;
use super::train::{at_least_one, share};
use crate::error::{Error, Result};
use crate::runtime::audio::{Agreement, Stream};
use crate::runtime::{Preprocessor, apply_head, base_predictions, top_k};
use crate::train::Task;
use crate::train::tasks::Wanted;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::PathBuf;

/// Seconds of a window where the base takes clips of any length.
const SECONDS: f32 = 2.0;

/// `offshoot listen`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The base file; sound comes from stdin: arecord -f S16_LE -r 16000 | offshoot listen ...
    base: PathBuf,
    /// An adapter: its name in the store, NAME@GENERATION, or a file; several are summed
    #[arg(long = "adapter", value_name = "NAME|FILE[:WEIGHT]", value_parser = Choice::parse)]
    adapters: Vec<Choice>,
    /// Samples a second, where the stream is no WAV that says so
    #[arg(long, value_name = "HZ", default_value_t = 16_000)]
    rate: u32,
    /// Channels, likewise: 1 or 2
    #[arg(long, value_name = "N", default_value_t = 1)]
    channels: usize,
    /// How samples are written, likewise: s16, s24, s32 or f32, little-endian
    #[arg(long, value_name = "FORMAT", default_value = "s16")]
    format: String,
    /// Length of a window [default: the base's own, else 2]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    window: Option<f32>,
    /// From the beginning of a window to that of the next
    #[arg(long, value_name = "SECONDS", default_value = "0.25", value_parser = seconds)]
    hop: f32,
    /// Least probability of what is heard
    #[arg(long, value_name = "SHARE", default_value = "0.5", value_parser = share)]
    threshold: f32,
    /// Windows whose mean counts
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one)]
    smooth: usize,
    /// Windows in a row that must agree
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_one)]
    agree: usize,
    /// A label that is no event: silence, other speech
    #[arg(long, value_name = "LABEL")]
    ignore: Vec<String>,
    /// What is like nothing that was learned is no event: so much at most of what was never taught
    /// passes (0.01: one in a hundred)
    #[arg(long, value_name = "SHARE", value_parser = share)]
    reject: Option<f32>,
    /// Say what each window is, too: to choose a threshold by
    #[arg(long)]
    every: bool,
    /// Threads
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    threads: usize,
}

fn seconds(text: &str) -> Result<f32> {
    let value = text.parse().ok().filter(|s: &f32| (0.01..=600.0).contains(s));
    value.ok_or_else(|| Error::usage("expected seconds, 0.01 to 600"))
}

/// Answers until the stream ends, or nobody reads the answers.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let engine = open_engine(&args.base)?.with_threads(args.threads)?;
    let preprocessor = Preprocessor::new(&engine);
    let spec = preprocessor.audio_spec()?;
    let adapter = chosen::bind(&engine, &args.adapters)?;
    let head = adapter.as_ref().and_then(|a| a.head.as_ref());
    let task = Task::serving(head, engine.base())?;
    if task != Task::default() {
        return Err(Error::usage(format!("expected an adapter of classes, found the task {task}")));
    }
    let mut stream = Stream::new(std::io::stdin().lock(), args.rate, args.channels, &args.format)?;
    let rate = stream.rate();
    let samples = |seconds: f32| ((seconds * rate as f32).round() as usize).max(1);
    let window = samples(args.window.or(spec.seconds()).unwrap_or(SECONDS));
    let hop = samples(args.hop);
    let mut agreement = Agreement::new(args.smooth, args.agree, args.threshold);
    let mut heard: VecDeque<f32> = VecDeque::with_capacity(window);
    let (mut passed, mut due) = (0u64, window);
    loop {
        let new = stream.read(due)?;
        let over = new.len() < due;
        // A stream that is shorter than one window is one.
        if new.is_empty() || over && passed > 0 {
            return Ok(());
        }
        passed += new.len() as u64;
        let surplus = (heard.len() + new.len()).saturating_sub(window).min(heard.len());
        heard.drain(..surplus);
        heard.extend(&new[new.len().saturating_sub(window)..]);
        let input = preprocessor.clip(rate, heard.make_contiguous())?;
        let inputs = preprocessor.stack(&[&input])?;
        let outputs = engine.run(&inputs, adapter.as_ref())?;
        let predictions = match head {
            Some(head) => apply_head(&engine, head, None, &outputs)?,
            None => base_predictions(&engine, &outputs),
        };
        let prediction = predictions.first().ok_or_else(|| {
            Error::usage("the base has no labels").hint("give an --adapter that has learned some")
        })?;
        let wanted =
            Wanted { top: prediction.labels.len(), reject: args.reject, ..Wanted::default() };
        let answer = task.answer(head, prediction, None, &wanted)?;
        let time = passed as f64 / f64::from(rate);
        let shares = shares(&answer.json, &prediction.labels);
        if args.every {
            let best = top_k(&shares, 1).first().copied();
            say(out, "window", time, best.map(|(at, p)| (label(&prediction.labels, at), p)));
        }
        if let Some((at, p)) = agreement.hear(&shares)
            && !args.ignore.iter().any(|ignored| ignored == label(&prediction.labels, at))
        {
            say(out, "event", time, Some((label(&prediction.labels, at), p)));
        }
        if over || out.closed() {
            return Ok(());
        }
        due = hop;
    }
}

fn label(labels: &[String], at: usize) -> &str {
    labels.get(at).map_or("?", String::as_str)
}

/// The probability of each label; none of what is not known.
fn shares(answer: &Value, labels: &[String]) -> Vec<f32> {
    let mut shares = vec![0.0; labels.len()];
    if answer["label"].is_null() {
        return shares;
    }
    for entry in answer["top"].as_array().into_iter().flatten() {
        let place = labels.iter().position(|l| entry["label"] == l.as_str());
        if let (Some(place), Some(p)) = (place, entry["probability"].as_f64()) {
            shares[place] = p as f32;
        }
    }
    shares
}

/// One line: of an event, or of a window.
fn say(out: &Out, what: &str, time: f64, said: Option<(&str, f32)>) {
    let said = said.filter(|(_, p)| *p > 0.0);
    if out.json() {
        let (label, probability) = (said.map(|s| s.0), said.map(|s| s.1));
        let line = json!({
            "kind": what, "seconds": time, "label": label, "probability": probability,
        });
        out.raw(&format!("{line}\n"));
    } else {
        let (label, p) = said.unwrap_or(("unknown", 0.0));
        let mark = if what == "event" { "" } else { "  (window)" };
        out.line(format!("{time:9.2} s  {:5.1} %  {label}{mark}", 100.0 * p));
    }
}
