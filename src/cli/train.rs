//! `offshoot train`.

use super::adapter::pool;
use super::data::hold_out;
use super::open_engine;
use super::output::{Out, bytes, count};
use super::plot::Course;
use super::progress::Bar;
use crate::adapter::{Kind, Pool, TensorType};
use crate::error::{Error, Result};
use crate::fs::{open_regular, peak_rss_bytes, remove_stale_temps_of};
use crate::train::data::{Dataset, training};
use crate::train::instant::InstantReport;
use crate::train::schedule::Schedule;
use crate::train::tasks::MAX_BEAM;
use crate::train::{
    InstantHead, OptimizerKind, PrefixReport, TargetChoice, Task, TrainOptions, TrainReport,
    is_cheap, train, train_cheaply, usual_share,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// What `--keep-knowledge` asks for by itself: that of [`usual_share`].
const KEPT: &str = "0.85";

/// `offshoot train`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The base file
    base: PathBuf,
    /// What to learn: .jsonl or .csv with text/image and label or with prompt and completion, .txt, .npz,
    /// or a folder of class folders of pictures; a split 'validation' in it, else 'test', is held out
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// The adapter file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// The adapter's name (default: that of the file)
    #[arg(long)]
    name: Option<String>,
    /// Learn only the instant head: no steps, the base stays as it is
    #[arg(long, conflicts_with_all = ["epochs", "steps", "resume", "ram"])]
    instant: bool,
    #[arg(long, value_name = "KIND", default_value = "lora", value_parser = kind, help = kinds())]
    kind: Chosen,
    /// Rank of every target, where the kind has one [default: 8]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    rank: Option<u32>,
    /// Numerator of the scaling alpha/rank, where the kind has one [default: 16]
    #[arg(long, value_parser = positive)]
    alpha: Option<f32>,
    /// Scale by alpha/sqrt(rank)
    #[arg(long)]
    rslora: bool,
    /// Layers to adapt: auto (for sentences' classes the last third), all-linear, none, or a regular expression
    #[arg(long, value_name = "REGEX", default_value = "auto")]
    targets: String,
    /// The output that the new head reads (default: found)
    #[arg(long, value_name = "OUTPUT")]
    head_from: Option<String>,
    /// How tokens are pooled for the head: mean, cls, max or none
    #[arg(long, value_parser = pool)]
    pool: Option<Pool>,
    #[arg(long, value_parser = Task::parse, help = tasks())]
    task: Option<Task>,
    /// The same by its loss: cross-entropy (classes) or mse (numbers)
    #[arg(long, value_parser = loss, conflicts_with = "task")]
    loss: Option<Task>,
    /// adamw or sgd
    #[arg(long, default_value = "adamw", value_parser = ["adamw", "sgd"])]
    optimizer: String,
    /// SGD's momentum
    #[arg(long, default_value_t = 0.9)]
    momentum: f32,
    /// Peak learning rate
    #[arg(long, default_value_t = 1e-3, value_parser = positive)]
    lr: f32,
    /// How many times that is the head's
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    head_rate: f32,
    /// Weight decay
    #[arg(long, default_value_t = 0.01, value_parser = not_negative)]
    weight_decay: f32,
    /// constant, linear or cosine
    #[arg(long, default_value = "linear", value_parser = Schedule::parse)]
    schedule: Schedule,
    /// Passes over the data [default: 8, of arrays through a small network 200 steps at least]
    #[arg(long, conflicts_with = "steps", value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// Optimizer steps
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Samples a step
    #[arg(long, default_value_t = 16, value_parser = at_least_one)]
    batch: usize,
    /// Samples that go through the network at once
    #[arg(long, value_parser = at_least_one)]
    micro_batch: Option<usize>,
    /// Memory of the whole process: 96M; picks the micro-batch, or refuses
    #[arg(long, value_name = "BYTES", value_parser = memory)]
    ram: Option<u64>,
    /// Threads [default: one a processor]
    #[arg(long, value_parser = at_least_one)]
    threads: Option<usize>,
    /// Decides everything random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Data to hold out; else a split 'validation' or 'test', else a share of the samples
    #[arg(long, value_name = "DATA")]
    holdout_data: Option<PathBuf>,
    /// Share of the samples that is held out where nothing else is [default: 0.2; none with --instant]
    #[arg(long, value_parser = share)]
    holdout: Option<f32>,
    /// Stop after so many looks at the hold-out without a gain, and keep the best values
    #[arg(long)]
    patience: Option<u32>,
    /// Largest norm of a step's gradients
    #[arg(long, value_parser = positive)]
    clip: Option<f32>,
    /// Share of what the base knows that the adapter should leave as it is, measured on inputs that it
    /// isn't taught; 0: it is measured alone, of a language model with --probes [default: 0.85 where classes
    /// of sentences are learned, else 0; without a number 0.85]
    #[arg(long, value_name = "SHARE", num_args = 0..=1, default_missing_value = KEPT, value_parser = whole_share)]
    keep_knowledge: Option<f32>,
    /// Which knowledge: sentences one a line (.txt), a folder of pictures, or a data file; half are
    /// taught of, half measured (default: sentences or pictures that come with the program)
    #[arg(long, value_name = "FILE|FOLDER")]
    probes: Option<PathBuf>,
    /// Longest token sequence
    #[arg(long, value_parser = at_least_one)]
    max_tokens: Option<usize>,
    /// Where the run's state is kept (default: FILE.checkpoint; removed at the end)
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Steps between two checkpoints; slow steps are kept every 30 seconds
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    checkpoint_every: u32,
    /// Go on from the checkpoint of a run that was stopped
    #[arg(long)]
    resume: bool,
    /// Plot the loss, gain against what is kept of the base's knowledge, and which classes are taken for which
    /// into this file; measures four times on the way
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Trains and writes the adapter.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    check_out(&args.out)?;
    args.plot.as_deref().map_or(Ok(()), check_out)?;
    check_kind(args)?;
    let engine = open_engine(&args.base)?;
    let data = training(&args.data, engine.base(), args.task.or(args.loss), args.ram)?;
    if let Some(why) = &data.data.why {
        out.line(format!("task {}: {why}", data.data.task));
    }
    let held_out = match &args.holdout_data {
        Some(path) => Some(hold_out(path, &data.data, args.ram)?),
        None => data.held_out,
    };
    let data = data.data;
    let mut options = options(args, &data);
    options.keep_knowledge =
        args.keep_knowledge.map_or_else(|| usual_share(&engine, &options), Ok)?;
    let checkpoint = options.checkpoint.clone();
    // What a run that was killed was writing.
    for path in [Some(&args.out), checkpoint.as_ref()].into_iter().flatten() {
        if let Err(e) = remove_stale_temps_of(path) {
            out.remark(format!("warning: {e}"));
        }
    }
    if args.plot.is_some() && args.instant && held_out.is_none() && options.holdout == 0.0 {
        return Err(Error::usage("an instant head takes no steps: there is nothing to plot")
            .hint("--holdout 0.2 shows which classes it takes for which"));
    }
    let mut course = Course::new(Bar::new("training", out.json()));
    let trained = match held_out.is_none() && is_cheap(&engine, &data, &options)? {
        true => train_cheaply(&engine, &data, &options, &mut course)?,
        false => train(&engine, &data, held_out.as_ref(), &options, &mut course)?,
    };
    if let Some(path) = &args.plot {
        course.write(&trained.report, path)?;
    }
    drop(course);
    trained.adapter.write(&args.out, TensorType::F32)?;
    if let Some(checkpoint) = checkpoint.filter(|_| args.checkpoint.is_none()) {
        // Missing where the run was shorter than the first checkpoint.
        let _ = std::fs::remove_file(checkpoint);
    }
    let size = open_regular(&args.out, u64::MAX)?.len;
    summary(&trained.report, out);
    out.line(format!("{}: {}", args.out.display(), bytes(size)));
    args.plot.iter().for_each(|path| out.line(format!("{}: the run's plots", path.display())));
    out.document(&json!({
        "out": args.out,
        "bytes": size,
        "name": trained.adapter.name,
        "base": engine.base().fingerprint().to_string(),
        "report": trained.report,
        "peak_rss_bytes": peak_rss_bytes(),
    }))
}

/// The width of a search: each step looks at all that it keeps.
pub fn beam(text: &str) -> Result<usize> {
    let width = text.parse().ok().filter(|width| (1..=MAX_BEAM).contains(width));
    width.ok_or_else(|| Error::usage(format!("expected a number of 1 to {MAX_BEAM}")))
}

/// The report for people.
pub fn summary(report: &TrainReport, out: &Out) {
    if let Some(made) = &report.instant {
        out.line(instant(made, report.samples_train));
    }
    if report.steps > 0 {
        steps(report, out);
    }
    if let Some(prefix) = report.prefix.as_ref().filter(|_| report.steps > 0) {
        below(prefix, out);
    }
    if report.again.stretches > 0 && report.steps > 0 {
        out.line(format!(
            "to fit into memory {} of {} stretches of the network are computed twice",
            report.again.stretches, report.again.of
        ));
    }
    let (targets, values) = (report.targets, count(report.parameters as u64));
    out.line(match report.labels.len() {
        0 => format!("{targets} targets before '{}': {values} trained values", report.output),
        labels => format!(
            "{targets} targets and a head on '{}' with {labels} labels: {values} trained values",
            report.output
        ),
    });
    let samples = report.samples_holdout;
    for (name, after) in &report.after {
        let before = report.before.iter().find(|(n, _)| n == name).map(|(_, v)| *v);
        out.line(match before.filter(|_| report.steps > 0 && report.given_up.is_none()) {
            Some(before) => {
                format!("hold-out {name} ({samples} samples): {before:.3} -> {after:.3}")
            }
            None => format!("hold-out {name} ({samples} samples): {after:.3}"),
        });
    }
    match &report.knowledge {
        Some(found) => {
            out.line(found.sentence());
            found.shortfall().iter().for_each(|why| out.remark(format!("warning: {why}")));
        }
        None if report.targets > 0 => out.line("knowledge kept: 'eval' measures it on other texts"),
        None => out.line("knowledge kept: all, since only a head was trained"),
    }
    if report.given_up.as_ref() == Some(&report.after) {
        out.line("what was trained in the layers changes nothing: the head alone is kept");
    } else if let Some(given_up) = &report.given_up {
        let metrics: Vec<String> =
            given_up.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
        out.line(format!(
            "the steps made it worse on the hold-out ({}): the instant head is kept",
            metrics.join(", ")
        ));
    }
    if let Some(all) = report.of_all {
        out.line(format!("then made of all {all} samples, those held out included"));
    }
}

fn instant(made: &InstantReport, samples: usize) -> String {
    let metrics: Vec<String> =
        made.left_out.iter().take(2).map(|(name, value)| format!("{name} {value:.3}")).collect();
    let measured = match metrics.is_empty() {
        true => "too few to measure it on".to_string(),
        false => format!("each left out once: {}", metrics.join(", ")),
    };
    format!(
        "instant head of {samples} samples ({}, strength {}), {measured}; made in {:.0} ms",
        made.rule, made.strength, made.milliseconds
    )
}

fn steps(report: &TrainReport, out: &Out) {
    out.line(format!(
        "{} steps on {} samples in {:.1} s ({:.0} ms a step), loss {:.3} -> {:.3}",
        report.steps,
        report.samples_train,
        report.seconds,
        report.step_ms_median,
        report.loss_first,
        report.loss_last
    ));
}

/// What became of the frozen layers below the first trained one.
fn below(prefix: &PrefixReport, out: &Out) {
    let layers = match prefix.layers {
        0 => "what lies".to_string(),
        1 => "the frozen layer".to_string(),
        many => format!("the {many} frozen layers"),
    };
    if prefix.rows_run == 0 {
        let why = prefix.why_not.as_deref().unwrap_or("nothing was kept");
        return out.line(format!("{layers} below the trained ones ran in every epoch: {why}"));
    }
    let all = prefix.rows_run + prefix.rows_kept;
    let mut kept = vec![];
    if prefix.memory_bytes > 0 {
        kept.push(format!("{} in memory", bytes(prefix.memory_bytes)));
    }
    if prefix.file_bytes > 0 {
        kept.push(format!("{} in a file", bytes(prefix.file_bytes)));
    }
    let why = prefix.why_not.iter().map(|why| format!("; not all is kept: {why}"));
    out.line(format!(
        "{layers} below the trained ones ran on {} of {} rows, the others were kept ({}){}",
        count(prefix.rows_run),
        count(all),
        kept.join(", "),
        why.collect::<String>()
    ));
}

/// Found before the training, not after it.
pub fn check_out(out: &Path) -> Result<()> {
    if out.file_name().is_none() || std::fs::metadata(out).is_ok_and(|m| !m.is_file()) {
        return Err(Error::usage(format!("'{}' does not name a file to write", out.display())));
    }
    match out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(Error::failed(format!("folder of '{}' does not exist", out.display())))
        }
        _ => Ok(()),
    }
}

fn options(args: &Args, data: &Dataset) -> TrainOptions {
    let stem = args.out.file_stem().map(|s| s.to_string_lossy().into_owned());
    let checkpoint = args.checkpoint.clone().or_else(|| {
        let mut name = args.out.clone().into_os_string();
        name.push(".checkpoint");
        Some(name.into())
    });
    TrainOptions {
        name: args.name.clone().or(stem).unwrap_or_else(|| "adapter".into()),
        kind: args.kind.kind,
        rank: args.rank.unwrap_or(8),
        alpha: args.alpha.unwrap_or(16.0),
        rslora: args.rslora || args.kind.rslora,
        targets: match args.instant {
            true => TargetChoice::None,
            false => TargetChoice::parse(&args.targets),
        },
        instant: if args.instant { InstantHead::Only } else { InstantHead::Start },
        head_from: args.head_from.clone(),
        pool: args.pool,
        task: data.task,
        optimizer: match args.optimizer.as_str() {
            "sgd" => OptimizerKind::Sgd { momentum: args.momentum },
            _ => OptimizerKind::AdamW,
        },
        learning_rate: args.lr,
        head_rate: args.head_rate,
        weight_decay: args.weight_decay,
        schedule: args.schedule,
        epochs: args.epochs,
        steps: args.steps,
        batch: args.batch,
        micro_batch: args.micro_batch,
        ram: args.ram,
        threads: args.threads.unwrap_or_else(processors),
        seed: args.seed,
        // The instant head measures itself without a hold-out.
        holdout: args.holdout.unwrap_or(if args.instant { 0.0 } else { 0.2 }),
        patience: args.patience,
        clip: args.clip,
        checkpoint,
        checkpoint_every: args.checkpoint_every,
        resume: args.resume,
        max_tokens: args.max_tokens,
        probes: args.probes.clone(),
        watch: args.plot.is_some(),
        ..TrainOptions::default()
    }
}

/// Processors that this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// What `--kind` says.
#[derive(Clone, Copy)]
struct Chosen {
    kind: Kind,
    rslora: bool,
}

/// The other name of the first kind with another scaling.
const RSLORA: &str = "rslora";

fn kind_names() -> String {
    let mut names: Vec<&str> = Kind::all().map(Kind::name).collect();
    names.insert(1, RSLORA);
    names.join(", ")
}

fn kinds() -> String {
    format!("The kind of adapter: {}", kind_names())
}

fn tasks() -> String {
    format!("What to learn: {} [default: what the data look like]", Task::names().join(", "))
}

fn kind(text: &str) -> Result<Chosen> {
    if text == RSLORA {
        return Ok(Chosen { kind: Kind::default(), rslora: true });
    }
    let kind = Kind::parse(text);
    let kind = kind.ok_or_else(|| Error::usage(format!("expected one of {}", kind_names())))?;
    Ok(Chosen { kind, rslora: false })
}

/// Options that the kind has no use for are a mistake.
fn check_kind(args: &Args) -> Result<()> {
    let kind = args.kind.kind;
    for (option, given, has) in [
        ("--rank", args.rank.is_some(), kind.takes_rank()),
        ("--alpha", args.alpha.is_some(), kind.is_ranked()),
        ("--rslora", args.rslora, kind.has_rslora()),
    ] {
        if given && !has {
            let name = kind.name();
            return Err(Error::usage(format!("kind '{name}' has no use for {option}")));
        }
    }
    Ok(())
}

fn loss(text: &str) -> Result<Task> {
    match text {
        "cross-entropy" | "ce" => Task::parse("classes"),
        "mse" => Task::parse("numbers"),
        _ => Err(Error::usage("expected cross-entropy or mse")),
    }
}

fn number(text: &str, fits: impl Fn(f32) -> bool, wanted: &str) -> Result<f32> {
    let parsed = text.parse::<f32>().ok().filter(|v| v.is_finite() && fits(*v));
    parsed.ok_or_else(|| Error::usage(format!("expected {wanted}")))
}

pub fn positive(text: &str) -> Result<f32> {
    number(text, |v| v > 0.0, "a number above 0")
}

fn not_negative(text: &str) -> Result<f32> {
    number(text, |v| v >= 0.0, "a number of 0 or more")
}

pub fn share(text: &str) -> Result<f32> {
    number(text, |v| (0.0..1.0).contains(&v), "a number from 0 to below 1")
}

pub fn whole_share(text: &str) -> Result<f32> {
    number(text, |v| (0.0..=1.0).contains(&v), "a number from 0 to 1")
}

/// Reads a whole number of 1 or more.
pub fn at_least_one(text: &str) -> Result<usize> {
    let parsed = text.parse::<usize>().ok().filter(|n| *n > 0);
    parsed.ok_or_else(|| Error::usage("expected a whole number of 1 or more"))
}

/// Reads `96M`: a number of bytes, with K, M or G for powers of 1024.
fn memory(text: &str) -> Result<u64> {
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), 1 << 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 1 << 20),
        Some((at, 'g' | 'G')) => (text.get(..at), 1 << 30),
        _ => (Some(text), 1u64),
    };
    let bytes = digits.and_then(|d| d.parse::<u64>().ok()).and_then(|n| n.checked_mul(factor));
    bytes.filter(|n| *n > 0).ok_or_else(|| Error::usage("expected bytes, as in 96M"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_values() {
        assert_eq!(memory("96M").unwrap(), 96 << 20);
        assert_eq!(memory("1024").unwrap(), 1024);
        assert!(["", "M", "0", "1T", "99999999999G", "9ü"].iter().all(|t| memory(t).is_err()));
        assert!(share("1").is_err() && share("0").is_ok() && positive("0").is_err());
        assert!(positive("NaN").is_err() && positive("inf").is_err());
        assert!(kind("hydra").is_err() && at_least_one("0").is_err());
        assert!(kind(RSLORA).unwrap().rslora && kind("full").unwrap().kind.name() == "full");
    }
}
