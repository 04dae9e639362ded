//! `offshoot compare`.

use super::open_engine;
use super::output::{Out, bytes, count, table};
use super::progress::Bar;
use super::train::{at_least_one, check_out, positive, processors, share};
use crate::compare::{
    Came, Comparison, Figure, Figures, Method, News, Plan, Recipe, Row, compare, percent,
};
use crate::error::{Error, Result};
use crate::fs::{Access, write_atomic_bytes};
use crate::plot::{Chart, Panel, Point, Series, svg};
use crate::train::Task;
use crate::train::data::training;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;

/// `offshoot compare`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The base file
    base: PathBuf,
    /// What to learn, as for train
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// The ways to learn: instant, probe, lora-2, lora-8, lora-32, lora-kept (of which lora alone means
    /// all), and each other --kind of train [default: all]
    #[arg(long, value_name = "WAY,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Shares of the samples to train on
    #[arg(long, value_name = "SHARE,...", value_delimiter = ',', default_values_t = [0.05, 1.0], value_parser = part)]
    shares: Vec<f32>,
    /// How many seeds: each another hold-out (where the data have no split for it), other samples of a
    /// share, other first values
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What to learn: classes, numbers, ... [default: what the data look like]
    #[arg(long, value_parser = Task::parse)]
    task: Option<Task>,
    /// Share of the samples that is held out where the data have no split for it
    #[arg(long, default_value_t = 0.2, value_parser = share)]
    holdout: f32,
    /// Passes over the data, 60 steps at least [default: 8]
    #[arg(long, conflicts_with = "steps", value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// Optimizer steps of each run
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Samples a step
    #[arg(long, default_value_t = 16, value_parser = at_least_one)]
    batch: usize,
    /// Samples that go through the network at once
    #[arg(long, value_parser = at_least_one)]
    micro_batch: Option<usize>,
    /// Peak learning rate of LoRA; other kinds have a multiple of it that suits them
    #[arg(long, default_value_t = 1e-3, value_parser = positive)]
    lr: f32,
    /// How many times that is the head's
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    head_rate: f32,
    /// Threads [default: one a processor]
    #[arg(long, value_parser = at_least_one)]
    threads: Option<usize>,
    /// Longest token sequence
    #[arg(long, value_parser = at_least_one)]
    max_tokens: Option<usize>,
    /// What the knowledge is measured on, as for train
    #[arg(long, value_name = "FILE|FOLDER")]
    probes: Option<PathBuf>,
    /// Begin no run after so many minutes; what is there is told
    #[arg(long, value_name = "MINUTES", value_parser = positive)]
    time: Option<f32>,
    /// Plot gain against what is kept of the base's knowledge into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Fewest steps of a run where none are asked for: 5 % of the data are a few batches.
const MIN_STEPS: u32 = 60;

/// Compares and prints.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    args.svg.as_deref().map_or(Ok(()), check_out)?;
    let plan = plan(args)?;
    // Said once and at once, not by each run.
    let engine = open_engine(&args.base)?;
    let data = training(&args.data, engine.base(), args.task, None)?;
    if args.holdout == 0.0 && data.held_out.is_none() {
        return Err(Error::usage("--holdout 0 leaves nothing to compare by")
            .hint("data with a split 'test' have their own hold-out"));
    }
    let task = data.data.task;
    if let Some(why) = &data.data.why {
        out.line(format!("task {task}: {why}"));
    }
    drop((data, engine));
    let mut bar: Option<Bar> = None;
    let found = compare(&plan, &mut |news| match news {
        News::Begun(at, all, run) => {
            let (name, share) = (&run.method.name, percent(run.share));
            let title = format!("{at} of {all}: {name}, {share}, seed {}", run.seed);
            drop(bar.take());
            bar = Some(Bar::new(&title, out.json()));
        }
        News::Event(event) => {
            if let Some(bar) = &mut bar {
                crate::train::progress::Progress::event(bar, event);
            }
        }
    })?;
    drop(bar);
    let rows = found.rows();
    people(&found, &rows, out);
    if let Some(path) = &args.svg {
        write_atomic_bytes(path, Access::Shared, svg(&panels(&rows)).as_bytes())?;
        out.line(format!("{}: gain against what is kept", path.display()));
    }
    out.document(&json!({
        "base": args.base,
        "data": args.data,
        "task": task.name(),
        "recipe": plan.recipe,
        "seeds": plan.seeds,
        "rows": rows,
        "not_begun": found.not_begun,
        "verdict": found.verdict(),
    }))?;
    match found.runs.iter().any(|(_, came)| matches!(came, Came::Done(_))) {
        true => Ok(()),
        false => Err(Error::failed("no run ended well")),
    }
}

fn plan(args: &Args) -> Result<Plan> {
    let mut shares = args.shares.clone();
    shares.sort_by(f32::total_cmp);
    shares.dedup();
    let last = args.seed.checked_add(args.seeds);
    let last = last.ok_or_else(|| Error::usage("--seed is too large"))?;
    Ok(Plan {
        recipe: Recipe {
            base: args.base.clone(),
            data: args.data.clone(),
            task: args.task.map(|task| task.name().into()),
            holdout: args.holdout,
            epochs: args.epochs,
            min_steps: MIN_STEPS,
            steps: args.steps,
            batch: args.batch,
            micro_batch: args.micro_batch,
            learning_rate: args.lr,
            head_rate: args.head_rate,
            threads: args.threads.unwrap_or_else(processors),
            max_tokens: args.max_tokens,
            probes: args.probes.clone(),
        },
        methods: match args.only.is_empty() {
            true => Method::all(),
            false => Method::of_names(&args.only)?,
        },
        shares,
        seeds: (args.seed..last).collect(),
        time: args.time.map(|minutes| Duration::from_secs_f32((minutes * 60.0).min(1e9))),
    })
}

fn people(found: &Comparison, rows: &[Row], out: &Out) {
    let metrics: Vec<String> = rows
        .iter()
        .find_map(|row| row.figures.as_ref())
        .map_or(vec![], |f| f.metrics.iter().map(|m| m.name.clone()).collect());
    let first = ["data", "way", "trained", "file", "step", "peak"].map(String::from);
    let mut lines = vec![[first.to_vec(), metrics.clone(), vec!["kept".into()]].concat()];
    let shown = rows.iter().filter(|row| row.left_out.is_none());
    lines.extend(shown.map(|row| match &row.figures {
        Some(figures) => line(row, figures, &metrics),
        None => vec![
            percent(row.share),
            row.method.name.clone(),
            format!("failed: {}", row.failed.join("; ")),
        ],
    }));
    table(&lines).iter().for_each(|line| out.line(line));
    for row in rows {
        let name = &row.method.name;
        if let Some(why) = &row.left_out {
            out.line(format!("left out: {name}: {why}"));
        } else if let (Some(figures), false) = (&row.figures, row.failed.is_empty()) {
            let why = row.failed.join("; ");
            let (share, runs) = (percent(row.share), figures.seeds.len());
            out.line(format!("{name} at {share}: of {runs} seeds alone, others failed: {why}"));
        }
    }
    if rows.iter().filter_map(|row| row.figures.as_ref()).any(|f| f.worse > 0) {
        out.line("*: of so many seeds the steps made it worse than it began: train writes the instant head then");
    }
    if let Some(kept) = rows.iter().find_map(|r| r.figures.as_ref()?.kept_of.as_ref()) {
        out.line(format!("of one run: {kept}"));
    }
    if found.not_begun > 0 {
        out.line(format!("{} runs were not begun: the time was over", found.not_begun));
    }
    out.line(found.verdict());
}

fn line(row: &Row, figures: &Figures, metrics: &[String]) -> Vec<String> {
    let none = || "-".to_string();
    let worse = match figures.worse {
        0 => String::new(),
        n => format!(" *{n}"),
    };
    let mut cells = vec![
        percent(row.share),
        format!("{}{worse}", row.method.name),
        count(figures.parameters),
        bytes(figures.file_bytes),
        figures.step_ms.as_ref().map_or_else(none, |ms| format!("{:.1} ms", ms.mean)),
        figures.peak_rss_bytes.map_or_else(none, bytes),
    ];
    cells.extend(metrics.iter().map(|name| {
        let metric = figures.metrics.iter().find(|m| m.name == *name);
        metric.map_or_else(none, |m| spread(&m.figure))
    }));
    cells.push(figures.kept.as_ref().map_or_else(none, spread));
    cells
}

fn spread(figure: &Figure) -> String {
    match figure.values.len() {
        1 => format!("{:.3}", figure.mean),
        _ => format!("{:.3} ±{:.3}", figure.mean, figure.spread),
    }
}

/// A chart for each share.
fn panels(rows: &[Row]) -> Vec<Panel> {
    let mut shares: Vec<f32> = rows.iter().map(|row| row.share).collect();
    shares.dedup();
    let mut all: Vec<&str> = vec![];
    for name in rows.iter().map(|row| row.method.name.as_str()) {
        if !all.contains(&name) {
            all.push(name);
        }
    }
    let of = |share: f32| {
        let of_share = || rows.iter().filter(move |row| row.share == share);
        let metric = of_share().find_map(|row| Some(row.figures.as_ref()?.first()?.name.clone()));
        // All ways in each chart, so that a way has the same colour in all.
        let series = all.iter().map(|name| {
            let row = of_share().find(|row| row.method.name == *name);
            let point = row.and_then(|row| {
                let figures = row.figures.as_ref()?;
                let metric = &figures.first()?.figure;
                let x = figures.kept.as_ref()?.mean;
                Some(Point { x, y: metric.mean, spread: metric.spread })
            });
            Series { name: name.to_string(), points: point.into_iter().collect(), line: false }
        });
        Panel::Chart(Chart {
            title: format!("Gain against what is kept: {} of the data", percent(share)),
            axes: ["share of the base's knowledge that is kept".into(), metric.unwrap_or_default()],
            series: series.collect(),
        })
    };
    shares.into_iter().map(of).collect()
}

fn part(text: &str) -> Result<f32> {
    let parsed = text.parse::<f32>().ok().filter(|v| *v > 0.0 && *v <= 1.0);
    parsed.ok_or_else(|| Error::usage("expected a share above 0, 1 at most"))
}
