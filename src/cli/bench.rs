//! `offshoot bench`.

use super::chosen::{self, Choice};
use super::inputs::Source;
use super::open_engine;
use super::output::{Out, bytes};
use super::train::at_least_one;
use crate::adapter::{Bound, MAX_RANK};
use crate::bench::{Latency, Sizes, adapter, adapter_cost, inputs, latency, median};
use crate::bench::{switching, training};
use crate::error::{Error, ErrorKind, Result};
use crate::fs::{peak_rss_bytes, unshared_bytes};
use crate::host::Root;
use crate::runtime::{Engine, MemoryLimit, Named};
use crate::train::TrainOptions;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Processes started to time the start.
const STARTS: usize = 5;
/// Requests that such a process answers after its first before it tells its memory.
const MORE_REQUESTS: usize = 10;

/// `offshoot bench`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The base file
    base: PathBuf,
    /// An adapter whose cost is measured: its name in the store, NAME@GENERATION, or a file; several
    /// are summed [default: a made-up one on every layer]
    #[arg(long = "adapter", value_name = "NAME|FILE[:WEIGHT]", value_parser = Choice::parse)]
    adapters: Vec<Choice>,
    #[command(flatten)]
    source: Source,
    /// Rows of the made-up request where the base leaves that open
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    rows: usize,
    /// Tokens of made-up requests and samples where the base leaves that open
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    tokens: usize,
    /// Rank of the made-up adapter and of the trained one
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=MAX_RANK as i64))]
    rank: u32,
    /// Samples of a training step
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    batch: usize,
    /// Samples that go through the network at once in training
    #[arg(long, default_value_t = 2, value_parser = at_least_one)]
    micro_batch: usize,
    /// Training steps that are timed; 0: training is not measured
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Threads of a request and of a training step
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    threads: usize,
    /// Seconds spent on each kind of request
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Keep the base in memory, or fail if the system doesn't allow it
    #[arg(long)]
    lock: bool,
    /// What a process that `bench` starts is for
    #[arg(long, hide = true, value_enum)]
    part: Option<Part>,
}

/// What is measured in a process of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The way to the first answer, and the memory of a process that only answers.
    Start,
    /// Steps, and the memory of a process that trains.
    Train,
}

/// Memory of a process that answers.
#[derive(Serialize, Deserialize)]
struct Memory {
    peak_rss_bytes: Option<u64>,
    unshared_bytes: Option<u64>,
}

/// Training, or why there is none.
#[derive(Serialize, Deserialize)]
struct Training {
    step_ms: Option<f64>,
    peak_rss_bytes: Option<u64>,
    refused: Option<String>,
}

/// All figures; `None`: the base or the system doesn't allow it.
#[derive(Serialize)]
struct Figures {
    latency_ms: Latency,
    start_ms: f64,
    peak_rss_bytes: Option<u64>,
    unshared_bytes: Option<u64>,
    adapter_cost: Option<f64>,
    switch_ns: Option<f64>,
    train_step_ms: Option<f64>,
    train_peak_bytes: Option<u64>,
}

/// Measures.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    match args.part {
        Some(Part::Start) => return start_part(args),
        Some(Part::Train) => return train_part(args),
        None => {}
    }
    let engine = open(args)?;
    let request = request(args, &engine)?;
    // Before others are started: what is wrong with the request is said once, here.
    engine.run(&request, None)?;
    let spend = Duration::from_secs_f64(args.seconds);
    let (bound, other) = (bound(args, &engine, 1)?, bound(args, &engine, 2)?);
    let (base, cost, switch) = match bound.zip(other) {
        Some(pair) => {
            let cost = adapter_cost(&engine, &request, &pair.0, spend)?;
            (cost.base, Some(cost.added), Some(switching(&engine, &pair.into())))
        }
        None => (latency(&engine, &request, None, spend)?, None, None),
    };
    let (mut starts, mut memory) = (vec![], None);
    for _ in 0..STARTS {
        let (ms, told) = start(args)?;
        starts.push(ms);
        memory = Some(told);
    }
    let training = match args.steps {
        0 => Training { step_ms: None, peak_rss_bytes: None, refused: None },
        _ => child(args, "train", |_| {})?,
    };
    let figures = Figures {
        latency_ms: base,
        start_ms: median(&starts),
        peak_rss_bytes: memory.as_ref().and_then(|m: &Memory| m.peak_rss_bytes),
        unshared_bytes: memory.as_ref().and_then(|m| m.unshared_bytes),
        adapter_cost: cost,
        switch_ns: switch,
        train_step_ms: training.step_ms,
        train_peak_bytes: training.peak_rss_bytes,
    };
    print(args, &figures, &request, out);
    if let Some(why) = training.refused {
        out.remark(format!("training is not measured: {why}"));
    }
    out.document(&figures)
}

fn print(args: &Args, figures: &Figures, request: &Named, out: &Out) {
    let shapes: Vec<String> =
        request.iter().map(|(name, a)| format!("{name} {:?}", a.shape())).collect();
    let ms = |v: f64| format!("{v:.2} ms");
    let memory = |v: Option<u64>| v.map_or("not known".into(), bytes);
    let latency = figures.latency_ms;
    out.line(format!("{}: {}", args.base.display(), shapes.join(", ")));
    out.line(format!("latency            {} (95 of 100: {})", ms(latency.median), ms(latency.p95)));
    if let Some(cost) = figures.adapter_cost {
        out.line(format!("an adapter adds    {:.1} %", 100.0 * cost));
    }
    if let Some(ns) = figures.switch_ns {
        out.line(format!("a switch takes     {ns:.0} ns"));
    }
    out.line(format!("start to answer    {}", ms(figures.start_ms)));
    out.line(format!("peak memory        {}", memory(figures.peak_rss_bytes)));
    out.line(format!("of that unshared   {}", memory(figures.unshared_bytes)));
    if let Some(step) = figures.train_step_ms {
        out.line(format!(
            "training step      {} (batch {}, micro-batch {}, rank {})",
            ms(step),
            args.batch,
            args.micro_batch.min(args.batch),
            args.rank
        ));
        out.line(format!("training peak      {}", memory(figures.train_peak_bytes)));
    }
}

fn open(args: &Args) -> Result<Engine> {
    let free = crate::host::memory(&Root::system()).free().map(MemoryLimit::new);
    let engine = open_engine(&args.base)?.with_threads(args.threads)?.with_memory(free);
    if args.lock {
        engine.base().lock()?;
    }
    Ok(engine)
}

fn request(args: &Args, engine: &Engine) -> Result<Named> {
    match args.source.is_given() {
        true => args.source.load(engine),
        false => inputs(engine, Sizes { rows: args.rows, length: args.tokens }),
    }
}

/// The adapter given, else the made-up one of `seed`.
fn bound(args: &Args, engine: &Engine, seed: usize) -> Result<Option<Arc<Bound>>> {
    if !args.adapters.is_empty() {
        return chosen::bind(engine, &args.adapters);
    }
    let made_up = adapter(engine, args.rank, seed);
    made_up.map(|a| engine.bind(&[(&a, 1.0)])).transpose()
}

/// Answers once and says so at once; then some more, and tells the memory.
fn start_part(args: &Args) -> Result<()> {
    let engine = open(args)?;
    let request = request(args, &engine)?;
    engine.run(&request, None)?;
    tell("\n")?;
    for _ in 0..MORE_REQUESTS {
        engine.run(&request, None)?;
    }
    let memory = Memory {
        peak_rss_bytes: peak_rss_bytes(),
        unshared_bytes: unshared_bytes(std::process::id()),
    };
    tell(&json(&memory)?)
}

fn train_part(args: &Args) -> Result<()> {
    let engine = open(args)?;
    let options = TrainOptions {
        rank: args.rank,
        alpha: 2.0 * args.rank as f32,
        batch: args.batch,
        micro_batch: Some(args.micro_batch.min(args.batch)),
        threads: args.threads,
        ..TrainOptions::default()
    };
    let told = match training(&engine, args.tokens, &options, args.steps) {
        Ok(figures) => Training {
            step_ms: Some(figures.step_ms),
            peak_rss_bytes: peak_rss_bytes(),
            refused: None,
        },
        Err(e) if e.kind() == ErrorKind::Unsupported => {
            Training { step_ms: None, peak_rss_bytes: None, refused: Some(e.message().into()) }
        }
        Err(e) => return Err(e),
    };
    tell(&json(&told)?)
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::failed(format!("the figures: {e}")))
}

fn tell(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|e| Error::failed(format!("standard output: {e}")))
}

/// Milliseconds from starting a process to its first answer, and its memory.
fn start(args: &Args) -> Result<(f64, Memory)> {
    let began = Instant::now();
    let mut answered = None;
    let memory = child(args, "start", |first| {
        let mut line = String::new();
        if first.read_line(&mut line).is_ok_and(|n| n > 0) {
            answered = Some(began.elapsed());
        }
    })?;
    let answered = answered.ok_or_else(|| Error::failed("a measuring process did not answer"))?;
    Ok((answered.as_secs_f64() * 1e3, memory))
}

/// Starts this program for one part; `first` sees its output before the rest is read.
fn child<T: DeserializeOwned>(
    args: &Args,
    part: &str,
    first: impl FnOnce(&mut dyn BufRead),
) -> Result<T> {
    let failed = |e: std::io::Error| Error::failed(format!("a measuring process: {e}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.arg("bench").args(arguments(args)).arg(format!("--part={part}"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().map_err(failed)?;
    let mut text = String::new();
    if let Some(stdout) = process.stdout.take() {
        let mut reader = BufReader::new(stdout);
        first(&mut reader);
        // A process that died says why on stderr.
        let _ = reader.read_to_string(&mut text);
    }
    let ended = process.wait_with_output().map_err(failed)?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        let said = said.trim().trim_start_matches("offshoot: ");
        return Err(Error::failed(format!(
            "the {part} measurement ended by {}: {said}",
            ended.status
        )));
    }
    serde_json::from_str(&text)
        .map_err(|e| Error::failed(format!("a measuring process's answer can't be read: {e}")))
}

/// What a part needs to know.
fn arguments(args: &Args) -> Vec<OsString> {
    let mut words = vec![args.base.clone().into_os_string()];
    words.extend(args.source.to_arguments());
    let numbers = [
        ("rows", args.rows),
        ("tokens", args.tokens),
        ("rank", args.rank as usize),
        ("batch", args.batch),
        ("micro-batch", args.micro_batch),
        ("steps", args.steps),
        ("threads", args.threads),
    ];
    words.extend(args.lock.then(|| "--lock".into()));
    words.extend(numbers.map(|(name, value)| format!("--{name}={value}").into()));
    words
}

fn seconds(text: &str) -> Result<f64> {
    let parsed = text.parse::<f64>().ok().filter(|s| (0.0..=3600.0).contains(s));
    parsed.ok_or_else(|| Error::usage("expected seconds, from 0 to 3600"))
}
