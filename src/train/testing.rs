//! Small bases and data sets for the tests of whole runs.

use super::data::{Dataset, Label, Place, Sample, SampleInput};
use super::random::{below, stream, unit};
use super::{InstantHead, MicroBatch, Task, TrainOptions, Trained, Trainer};
use crate::adapter::TensorType;
use crate::runtime::{Engine, PackOptions, pack};
use crate::shape::Array;
use std::path::Path;
use std::sync::Arc;

/// A short run's settings.
pub fn options() -> TrainOptions {
    TrainOptions {
        rank: 4,
        alpha: 8.0,
        learning_rate: 1e-2,
        batch: 8,
        micro_batch: Some(4),
        epochs: Some(6),
        // What steps learn is looked at, from where they have most to learn.
        instant: InstantHead::Off,
        ..TrainOptions::default()
    }
}

/// The adapter's bytes without the date.
pub fn bytes(trained: &Trained) -> Vec<u8> {
    let mut adapter = trained.adapter.clone();
    if let Some(record) = &mut adapter.training {
        record.date = 0;
    }
    adapter.to_bytes(TensorType::F32).unwrap()
}

/// Holds the gradient of every trained tensor against a central difference along itself, so that
/// rounding is small against the change; gives how many were not zero.
pub fn check_gradients(trainer: &mut Trainer, batch: &[MicroBatch], what: &str) -> usize {
    let gradients = trainer.gradients(batch).unwrap();
    let tensors: Vec<(String, Vec<f32>)> =
        trainer.parameters().map(|(n, v)| (n.to_string(), v.to_vec())).collect();
    let mut checked = 0;
    for ((name, values), gradient) in tensors.iter().zip(&gradients.values) {
        let length = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        if length == 0.0 {
            continue;
        }
        checked += 1;
        let step = 3e-3;
        let mut loss_at = |sign: f64| {
            let along = values.iter().zip(gradient);
            let moved =
                along.map(|(v, g)| (f64::from(*v) + sign * step * f64::from(*g) / length) as f32);
            trainer.set_parameter(name, &moved.collect::<Vec<_>>()).unwrap();
            f64::from(trainer.gradients(batch).unwrap().loss)
        };
        let slope = (loss_at(1.0) - loss_at(-1.0)) / (2.0 * step);
        trainer.set_parameter(name, values).unwrap();
        // Two losses in f32, 6e-3 apart, and the curvature between them.
        let bound = 0.03 * length + 3e-4;
        assert!((slope - length).abs() < bound, "{what} {name}: {slope} {length}");
    }
    checked
}

/// One of `models/tiny`, packed on the fly.
pub fn engine(name: &str, options: &PackOptions) -> (tempfile::TempDir, Engine) {
    let source = format!("{}/models/tiny/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model.base");
    pack(Path::new(&source), &out, options).unwrap();
    (dir, Engine::open(&out).unwrap())
}

pub fn sample(inputs: Vec<(&str, Array)>, label: Label) -> Sample {
    let inputs = inputs.into_iter().map(|(n, a)| (n.to_string(), a)).collect();
    let place = Place::new(&Arc::from("test"), 0);
    Sample { input: SampleInput::Arrays(inputs), label, place }
}

fn dataset(samples: Vec<Sample>, labels: &[&str]) -> Dataset {
    let labels = labels.iter().map(|l| l.to_string()).collect();
    Dataset { samples, labels, splits: Default::default(), task: Task::default(), why: None }
}

/// Points of 12 values around one of three centres, for `mlp`.
pub fn points(count: usize, seed: u64) -> Dataset {
    let mut rng = stream(seed, "points", 0);
    let samples = (0..count).map(|i| {
        let class = i % 3;
        let value = |k: usize| {
            let centre = if k % 3 == class { 1.0 } else { -0.3 };
            centre + 1.6 * (unit(&mut rng) - 0.5)
        };
        let x = Array::f32(vec![12], (0..12).map(value).collect()).unwrap();
        sample(vec![("x", x)], Label::Class(class))
    });
    dataset(samples.collect(), &["a", "b", "c"])
}

/// The same points with two numbers to meet.
pub fn numbers(count: usize, seed: u64) -> Dataset {
    let mut data = points(count, seed);
    data.labels.clear();
    data.task = Task::parse("numbers").unwrap();
    for s in &mut data.samples {
        let SampleInput::Arrays(arrays) = &s.input else { unreachable!() };
        let x = arrays[0].1.as_f32().unwrap();
        s.label = Label::Values(vec![x[0] - x[1], x[2]]);
    }
    data
}

/// Sequences of 8 ids, the last few masked, whose class says which ids are frequent, for
/// `attention`.
pub fn sequences(count: usize, seed: u64) -> Dataset {
    let mut rng = stream(seed, "sequences", 0);
    let samples = (0..count).map(|i| {
        let class = i % 2;
        let length = 4 + below(&mut rng, 5) as usize;
        let id = |rng: &mut _| 1 + 20 * class as i64 + below(rng, 25) as i64;
        let ids = (0..8).map(|t| if t < length { id(&mut rng) } else { 0 }).collect();
        let mask = (0..8).map(|t| i64::from(t < length)).collect();
        let ids = Array::i64(vec![8], ids).unwrap();
        let mask = Array::i64(vec![8], mask).unwrap();
        sample(vec![("input_ids", ids), ("attention_mask", mask)], Label::Class(class))
    });
    dataset(samples.collect(), &["low", "high"])
}

/// Noise with a bright half, for `convnet`.
pub fn pictures(count: usize, seed: u64) -> Dataset {
    let mut rng = stream(seed, "pictures", 0);
    let samples = (0..count).map(|i| {
        let class = i % 2;
        let value = |k: usize| {
            let top = (k / 32) % 32 < 16;
            unit(&mut rng) + if top == (class == 0) { 0.8 } else { -0.8 }
        };
        let x = Array::f32(vec![3, 32, 32], (0..3 * 32 * 32).map(value).collect()).unwrap();
        sample(vec![("image", x)], Label::Class(class))
    });
    dataset(samples.collect(), &["top", "bottom"])
}
