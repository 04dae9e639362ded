//! `offshoot demo`: the whole way on a real network, with what the repository ships.

use super::open_engine;
use super::output::{Out, bytes, table};
use super::pack;
use super::progress::Bar;
use super::train::processors;
use crate::adapter::{Adapter, Bound, TensorType};
use crate::error::{Error, Result};
use crate::fs::{open_regular, peak_rss_bytes, unshared_bytes};
use crate::import::ImportOptions;
use crate::pack::ImageSpec;
use crate::quant::Scheme;
use crate::runtime::{Engine, Files, Named, Preprocessor, Request, Session};
use crate::train::Task;
use crate::train::data::{Dataset, LoadOptions, SampleInput, Split, load};
use crate::train::{TrainOptions, TrainReport, train};
use serde::Serialize;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Switches that are timed.
const SWITCHES: usize = 10_000;

/// `offshoot demo`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// Sentences and MiniLM instead of pictures and EfficientNet
    #[arg(long)]
    text: bool,
    /// Training steps for each adapter
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: Option<u32>,
}

/// One of the two things learned.
struct Lesson {
    name: &'static str,
    what: &'static str,
    data: &'static str,
}

/// A network and what is learned on it.
struct Show {
    model: &'static str,
    tokenizer: Option<&'static str>,
    image: Option<u32>,
    tasks: [Lesson; 2],
    steps: u32,
    /// Samples a step.
    batch: usize,
    learning_rate: f32,
    /// Layers that are adapted, as a regular expression.
    targets: Option<&'static str>,
}

const PICTURES: Show = Show {
    model: "efficientnet-lite0.onnx",
    tokenizer: None,
    image: Some(224),
    tasks: [
        Lesson { name: "wardrobe", what: "what a garment is", data: "pictures/wardrobe" },
        Lesson { name: "laundry", what: "how it is washed", data: "pictures/laundry" },
    ],
    steps: 40,
    batch: 12,
    learning_rate: 3e-3,
    targets: None,
};

const SENTENCES: Show = Show {
    model: "minilm-l6.onnx",
    tokenizer: Some("minilm-l6.tokenizer.json"),
    image: None,
    tasks: [
        Lesson { name: "commands", what: "what is asked for", data: "commands.jsonl" },
        Lesson { name: "rooms", what: "which room is meant", data: "rooms.jsonl" },
    ],
    steps: 60,
    batch: 16,
    learning_rate: 2e-3,
    targets: None,
};

/// What the demo measured.
#[derive(Serialize)]
struct Report {
    model: String,
    base_bytes: u64,
    onnx_bytes: u64,
    pack_seconds: f64,
    fingerprint: String,
    adapters: Vec<Learned>,
    example: Vec<Answer>,
    switch_ns_median: u64,
    switches: usize,
    peak_rss_bytes: Option<u64>,
    unshared_bytes: Option<u64>,
    seconds: f64,
}

/// One adapter of the demo.
#[derive(Serialize)]
struct Learned {
    name: &'static str,
    bytes: u64,
    accuracy_before: Option<f32>,
    accuracy_after: Option<f32>,
    report: TrainReport,
}

/// What an adapter says of the example.
#[derive(Serialize)]
struct Answer {
    adapter: &'static str,
    label: String,
    probability: f32,
}

/// Packs, trains twice, switches.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let start = Instant::now();
    let show = if args.text { &SENTENCES } else { &PICTURES };
    let models = models(show)?;
    let folder = Folder::new()?;
    let path = folder.0.join("demo.base");

    let mut request = Request::of(Scheme::Q8, &ImportOptions::default());
    request.image = show.image.map(|size| ImageSpec { size: [size, size], ..ImageSpec::default() });
    let tokenizer = show.tokenizer.map(|name| models.join(name));
    let source = models.join(show.model);
    let files = Files { tokenizer: tokenizer.as_deref(), ..Files::of(&source) };
    let packed = pack::pack(&request, files, &path, out.json())?;
    out.line(format!(
        "packed {} ({}) as int8 in {:.1} s: {}, {} layers can learn",
        show.model,
        bytes(packed.source_bytes),
        packed.seconds,
        bytes(packed.base_bytes),
        packed.targets
    ));

    let engine = open_engine(&path)?;
    let mut learned = vec![];
    let mut bound: Vec<Arc<Bound>> = vec![];
    let mut example = None;
    for task in &show.tasks {
        let (result, adapter, sample) = learn(&engine, show, task, &models, &folder, args, out)?;
        bound.push(engine.bind(&[(&adapter, 1.0)])?);
        learned.push(result);
        example.get_or_insert(sample);
    }

    let session = Session::new(engine.clone());
    let answers = match &example {
        Some(sample) => answers(&session, show, &bound, sample, out)?,
        None => vec![],
    };
    let switch_ns = switch_time(&session, &bound);
    let report = Report {
        model: show.model.into(),
        base_bytes: packed.base_bytes,
        onnx_bytes: packed.source_bytes,
        pack_seconds: packed.seconds,
        fingerprint: packed.fingerprint,
        adapters: learned,
        example: answers,
        switch_ns_median: switch_ns,
        switches: SWITCHES,
        peak_rss_bytes: peak_rss_bytes(),
        unshared_bytes: unshared_bytes(std::process::id()),
        seconds: start.elapsed().as_secs_f64(),
    };
    figures(&report, out);
    out.document(&report)
}

/// Trains one adapter and writes it; gives back a sample that it has not seen.
fn learn(
    engine: &Engine,
    show: &Show,
    task: &Lesson,
    models: &Path,
    folder: &Folder,
    args: &Args,
    out: &Out,
) -> Result<(Learned, Adapter, SampleInput)> {
    let read = |split| {
        let options =
            LoadOptions { split, task: Some(Task::default()), labels: None, memory: None };
        load(&models.join(task.data), &options)
    };
    let (data, held_out): (Dataset, Dataset) = (read(Split::Train)?, read(Split::Test)?);
    let options = TrainOptions {
        name: task.name.into(),
        steps: Some(args.steps.unwrap_or(show.steps)),
        batch: show.batch,
        learning_rate: show.learning_rate,
        threads: processors().min(2),
        targets: match show.targets {
            Some(regex) => crate::train::TargetChoice::Regex(regex.into()),
            None => crate::train::TargetChoice::AllLinear,
        },
        ..TrainOptions::default()
    };
    let mut bar = Bar::new(&format!("learning '{}'", task.name), out.json());
    let trained = train(engine, &data, Some(&held_out), &options, &mut bar)?;
    drop(bar);
    let path = folder.0.join(format!("{}.adapter", task.name));
    trained.adapter.write(&path, TensorType::F16)?;
    let size = open_regular(&path, u64::MAX)?.len;
    let accuracy = |metrics: &[(String, f32)]| {
        metrics.iter().find(|(name, _)| name == "accuracy").map(|(_, value)| *value)
    };
    let report = trained.report;
    let (before, after) = (accuracy(&report.before), accuracy(&report.after));
    let percent = |v: Option<f32>| v.map_or("?".into(), |v| format!("{:.0} %", v * 100.0));
    out.line(format!(
        "learned '{}' ({}; {} labels) from {} examples in {:.1} s: of {} unseen ones {} right with the \
         instant head, {} with the adapter",
        task.name,
        task.what,
        report.labels.len(),
        report.samples_train,
        report.seconds,
        report.samples_holdout,
        percent(before),
        percent(after),
    ));
    let sample = held_out.samples.into_iter().next().map(|s| s.input);
    let sample = sample.ok_or_else(|| Error::bad_input(format!("no samples in {}", task.data)))?;
    let learned = Learned {
        name: task.name,
        bytes: size,
        accuracy_before: before,
        accuracy_after: after,
        report,
    };
    // What is served is what was stored.
    Ok((learned, Adapter::read(&path)?, sample))
}

/// Both adapters' answers to one sample, on one base.
fn answers(
    session: &Session,
    show: &Show,
    bound: &[Arc<Bound>],
    sample: &SampleInput,
    out: &Out,
) -> Result<Vec<Answer>> {
    let preprocessor = Preprocessor::new(session.engine());
    let (inputs, title): (Named, String) = match sample {
        SampleInput::Text(text) => (preprocessor.text(&[text])?, format!("\"{text}\"")),
        SampleInput::Image(file) => {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let class = file.parent().and_then(Path::file_name).unwrap_or_default();
            let title = format!("the picture {}/{name}", class.to_string_lossy());
            (preprocessor.images(&[file])?, title)
        }
        SampleInput::Arrays(_) | SampleInput::Audio(_) | SampleInput::Stored(_) => {
            return Err(Error::failed("the demo's data are arrays"));
        }
    };
    out.line(format!("asked about {title}:"));
    let mut answers = vec![];
    let mut rows = vec![];
    for (adapter, task) in bound.iter().zip(&show.tasks) {
        session.switch(Some(adapter.clone()));
        let best = session.predict(&inputs)?.first().and_then(|p| p.top(1).into_iter().next());
        if let Some((label, probability)) = best {
            rows.push(vec![
                format!("with '{}'", task.name),
                label.clone(),
                format!("{:.0} %", probability * 100.0),
            ]);
            answers.push(Answer { adapter: task.name, label, probability });
        }
    }
    table(&rows).iter().for_each(|line| out.line(line));
    Ok(answers)
}

/// Median nanoseconds of a switch, the clock's own time included.
fn switch_time(session: &Session, bound: &[Arc<Bound>]) -> u64 {
    let mut times: Vec<u64> = bound
        .iter()
        .cycle()
        .take(SWITCHES)
        .map(|adapter| {
            let next = Some(adapter.clone());
            let start = Instant::now();
            let before = session.switch(next);
            let took = start.elapsed();
            drop(before);
            u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
        })
        .collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or(0)
}

fn figures(report: &Report, out: &Out) {
    let memory = |n: Option<u64>| n.map_or("unknown".into(), bytes);
    let mut rows = vec![
        vec!["switching adapters".into(), format!("{} ns", report.switch_ns_median)],
        vec!["base file, shared".into(), bytes(report.base_bytes)],
    ];
    for adapter in &report.adapters {
        rows.push(vec![format!("adapter '{}'", adapter.name), bytes(adapter.bytes)]);
    }
    rows.push(vec!["most memory, training included".into(), memory(report.peak_rss_bytes)]);
    rows.push(vec!["of it this process's alone now".into(), memory(report.unshared_bytes)]);
    rows.push(vec!["the whole demo".into(), format!("{:.1} s", report.seconds)]);
    table(&rows).iter().for_each(|line| out.line(line));
}

/// The repository's `models` folder: where this program was built, else in the current folder.
fn models(show: &Show) -> Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let here = PathBuf::from("models");
    let has_all = |folder: &PathBuf| {
        let files = [Some(show.model), show.tokenizer, Some(show.tasks[0].data)];
        files.into_iter().flatten().all(|file| folder.join(file).exists())
    };
    [built, here].into_iter().find(has_all).ok_or_else(|| {
        Error::bad_input(format!("the demo's files are not there ('models/{}')", show.model))
            .hint("run it in a clone of the repository")
    })
}

/// A folder of the demo's own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("offshoot-demo-{}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Folder(path)),
            Err(e) => Err(Error::io(&path, e)),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
