//! `offshoot eval`.

use super::chosen::{self, Choice};
use super::data::{inputs_of, measured, split};
use super::open_engine;
use super::output::{Out, table};
use super::train::{at_least_one, beam};
use crate::adapter::Bound;
use crate::error::{Error, Result};
use crate::runtime::{Engine, Preprocessor};
use crate::shape::Array;
use crate::train::data::{SampleInput, Split};
use crate::train::{Evaluation, Retention, Task, evaluate_with, retention as compare};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Classes up to which the confusion is printed.
const MAX_PRINTED: usize = 12;

/// `offshoot eval`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The base file
    base: PathBuf,
    /// Labelled data, as for train
    #[arg(long, value_name = "DATA")]
    data: PathBuf,
    /// An adapter: its name in the store, NAME@GENERATION, or a file; several are summed
    #[arg(long = "adapter", value_name = "NAME|FILE[:WEIGHT]", value_parser = Choice::parse)]
    adapters: Vec<Choice>,
    /// What is asked [default: what answers has learned]
    #[arg(long, value_parser = Task::parse)]
    task: Option<Task>,
    /// Which rows: all, train, test or another split's name [default: test if there is one]
    #[arg(long, value_parser = split)]
    split: Option<Split>,
    /// Also measure how far the base's answers to this data are kept
    #[arg(long, value_name = "DATA", requires = "adapters")]
    retention: Option<PathBuf>,
    /// Samples that run at once
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    batch: usize,
    /// As that of run
    #[arg(long, value_name = "WIDTH", default_value_t = 1, value_parser = beam)]
    beam: usize,
}

/// Measures and prints.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let engine = open_engine(&args.base)?;
    let bound = chosen::bind(&engine, &args.adapters)?;
    let head = bound.as_ref().and_then(|b| b.head.as_ref());
    let data = measured(&args.data, args.task, args.split.as_ref(), &engine, head)?;
    let evaluation = evaluate_with(&engine, bound.as_ref(), &data, args.batch, args.beam)?;
    let retention = match (&args.retention, &bound) {
        (Some(path), Some(bound)) => Some(retention(&engine, bound, path)?),
        _ => None,
    };
    people(&evaluation, retention.as_ref(), out);
    out.document(&json!({
        "base": args.base,
        "adapters": bound.as_ref().map_or(vec![], |b| b.names.clone()),
        "evaluation": evaluation,
        "retention": retention,
    }))
}

fn people(evaluation: &Evaluation, retention: Option<&Retention>, out: &Out) {
    let metrics: Vec<String> =
        evaluation.metrics.0.iter().map(|m| format!("{} {:.4}", m.name, m.value)).collect();
    out.line(format!("{} samples: {}", evaluation.samples, metrics.join(", ")));
    let labels = &evaluation.labels;
    if let Some(confusion) = evaluation.confusion.as_ref().filter(|_| labels.len() <= MAX_PRINTED) {
        out.line("true label, then how often each label was answered:");
        let mut rows = vec![[vec![String::new()], labels.clone()].concat()];
        rows.extend(labels.iter().enumerate().map(|(t, label)| {
            let counts = (0..labels.len()).map(|p| confusion.count(t, p).to_string());
            std::iter::once(label.clone()).chain(counts).collect()
        }));
        table(&rows).iter().for_each(|line| out.line(line));
    }
    if let Some(f1) = evaluation.f1.as_ref().filter(|f| f.len() > 1 && f.len() <= MAX_PRINTED) {
        let mut rows = vec![vec!["label".to_string(), "F1".to_string()]];
        rows.extend(labels.iter().zip(f1).map(|(label, f1)| {
            vec![label.clone(), f1.map_or("-".into(), |f1| format!("{f1:.3}"))]
        }));
        table(&rows).iter().for_each(|line| out.line(line));
    }
    if let Some(r) = retention {
        out.line(format!("knowledge kept: {}, on {} inputs", r.sentence(), r.samples));
        out.line(format!(
            "retention: cosine of '{}' mean {:.4}, least {:.4}",
            r.output, r.cosine_mean, r.cosine_min
        ));
    }
}

fn retention(engine: &Engine, bound: &Arc<Bound>, path: &Path) -> Result<Retention> {
    let data = inputs_of(path)?;
    let preprocessor = Preprocessor::new(engine);
    let inputs = data.samples.iter().map(|sample| match &sample.input {
        SampleInput::Text(text) => preprocessor.text(&[text]),
        SampleInput::Image(file) => preprocessor.images(&[file]),
        SampleInput::Audio(file) => preprocessor.stack(&[&preprocessor.audio(file)?]),
        SampleInput::Stored(picture) => {
            preprocessor.stack(&[&preprocessor.media_bytes(&picture.bytes()?)?])
        }
        SampleInput::Arrays(arrays) => {
            arrays.iter().map(|(n, a)| Ok((n.clone(), batch_of_one(a)?))).collect()
        }
    });
    let found = compare(engine, bound, inputs, &mut || true)?;
    found.ok_or_else(|| Error::failed("the comparison was stopped"))
}

fn batch_of_one(array: &Array) -> Result<Array> {
    let shape: Vec<usize> = std::iter::once(1).chain(array.shape().iter().copied()).collect();
    Array::new(shape, array.data().clone())
}
