//! `offshoot eval`.

use super::chosen::{self, Choice};
use super::data::{measured, split};
use super::output::{Out, table};
use super::train::at_least_one;
use crate::adapter::{Bound, Head};
use crate::error::{Error, Result};
use crate::runtime::{Engine, MASK_INPUT, Named, Preprocessor, pool};
use crate::shape::Array;
use crate::train::data::{SampleInput, Split};
use crate::train::metrics::argmax;
use crate::train::{Evaluation, evaluate};
use serde::Serialize;
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
    /// Which rows: all, train, test or another split's name [default: test if there is one]
    #[arg(long, value_parser = split)]
    split: Option<Split>,
    /// Also measure how far the base's answers to this data are kept
    #[arg(long, value_name = "DATA", requires = "adapters")]
    retention: Option<PathBuf>,
    /// Samples that run at once
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    batch: usize,
}

/// How far an adapted base answers as the base does.
#[derive(Clone, Debug, Serialize)]
struct Retention {
    /// Samples compared.
    samples: usize,
    /// The output compared.
    output: String,
    /// Mean cosine between the base's features and the adapted ones.
    cosine_mean: f32,
    /// The least one.
    cosine_min: f32,
    /// Share of samples for which the base's own best class stays; none where the base has no
    /// classes.
    top1_agreement: Option<f32>,
}

/// Measures and prints.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let engine = Engine::open(&args.base)?;
    let bound = chosen::bind(&engine, &args.adapters)?;
    let head = bound.as_ref().and_then(|b| b.head.as_ref());
    let labels = match head {
        Some(head) => &head.labels,
        None => &engine.base().preprocess().labels,
    };
    let data = measured(&args.data, args.split.as_ref(), Some(labels))?;
    let evaluation = evaluate(&engine, bound.as_ref(), &data, args.batch)?;
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
        evaluation.metrics().iter().map(|(name, v)| format!("{name} {v:.4}")).collect();
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
    if let Some(r) = retention {
        out.line(format!(
            "retention on {} samples: cosine of '{}' mean {:.4}, least {:.4}",
            r.samples, r.output, r.cosine_mean, r.cosine_min
        ));
        if let Some(agreement) = r.top1_agreement {
            out.line(format!("the base's best class stays in {:.1} %", agreement * 100.0));
        }
    }
}

fn retention(engine: &Engine, bound: &Arc<Bound>, path: &Path) -> Result<Retention> {
    let data = measured(path, None, None)?;
    let preprocessor = Preprocessor::new(engine);
    let output = compared_output(engine, bound.head.as_ref())?;
    let own = own_classes(engine);
    let (mut cosines, mut kept) = (vec![], 0usize);
    for sample in &data.samples {
        let inputs = match &sample.input {
            SampleInput::Text(text) => preprocessor.text(&[text])?,
            SampleInput::Image(file) => preprocessor.images(&[file])?,
            SampleInput::Stored(picture) => {
                preprocessor.stack(&[&preprocessor.image_bytes(&picture.bytes()?)?])?
            }
            SampleInput::Arrays(arrays) => arrays
                .iter()
                .map(|(n, a)| Ok((n.clone(), batch_of_one(a)?)))
                .collect::<Result<_>>()?,
        };
        let base = engine.run(&inputs, None)?;
        let adapted = engine.run(&inputs, Some(bound))?;
        let features = |outputs: &Named| features(&output, bound.head.as_ref(), &inputs, outputs);
        cosines.push(cosine(&features(&base)?, &features(&adapted)?));
        if let Some(own) = &own {
            let best = |outputs: &Named| -> Result<Option<usize>> {
                Ok(argmax(find(outputs, own)?.as_f32()?))
            };
            kept += usize::from(best(&base)? == best(&adapted)?);
        }
    }
    let samples = cosines.len();
    Ok(Retention {
        samples,
        output,
        cosine_mean: (cosines.iter().sum::<f64>() / samples.max(1) as f64) as f32,
        cosine_min: cosines.iter().copied().fold(f64::INFINITY, f64::min) as f32,
        top1_agreement: own.map(|_| kept as f32 / samples.max(1) as f32),
    })
}

/// What the head reads, or the base's last output.
fn compared_output(engine: &Engine, head: Option<&Head>) -> Result<String> {
    match head {
        Some(head) => Ok(head.output.clone()),
        None => match engine.outputs().last() {
            Some(spec) => Ok(spec.name.clone()),
            None => Err(Error::unsupported("the base has no outputs")),
        },
    }
}

/// The base's own classes: its last output of two axes, if it has as many columns as the base has
/// labels or is called logits.
fn own_classes(engine: &Engine) -> Option<String> {
    let labels = engine.base().preprocess().labels.len().to_string();
    let spec = engine.outputs().iter().rev().find(|o| o.dims.len() == 2)?;
    let classes = spec.dims.last() == Some(&labels) || spec.name.contains("logits");
    classes.then(|| spec.name.clone())
}

fn features(
    output: &str,
    head: Option<&Head>,
    inputs: &Named,
    outputs: &Named,
) -> Result<Vec<f32>> {
    let array = find(outputs, output)?;
    let Some(head) = head else { return Ok(array.as_f32()?.to_vec()) };
    let mask = inputs.iter().find(|(name, _)| name.ends_with(MASK_INPUT)).map(|(_, a)| a);
    Ok(pool(head.pool, array, mask)?.concat())
}

fn find<'a>(outputs: &'a Named, name: &str) -> Result<&'a Array> {
    let found = outputs.iter().find(|(n, _)| n == name);
    found
        .map(|(_, array)| array)
        .ok_or_else(|| Error::mismatch(format!("the base has no output '{name}'")))
}

fn batch_of_one(array: &Array) -> Result<Array> {
    let shape: Vec<usize> = std::iter::once(1).chain(array.shape().iter().copied()).collect();
    Array::new(shape, array.data().clone())
}

/// 0 where one of them is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines() {
        assert!((cosine(&[1.0, 0.0], &[2.0, 0.0]) - 1.0).abs() < 1e-9);
        assert!(cosine(&[1.0, 0.0], &[0.0, 3.0]).abs() < 1e-9);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
