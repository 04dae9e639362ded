//! Training steps on made-up samples.

use super::figures::median;
use super::made_up::{Sizes, inputs};
use crate::error::Result;
use crate::runtime::Engine;
use crate::train::data::Label;
use crate::train::{MicroBatch, TrainOptions, Trainer};
use std::time::Instant;

/// Labels of the made-up head.
const LABELS: usize = 3;
/// Steps before those that count: graphs are built, buffers grow.
const WARM_UP: usize = 2;

/// What training takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingFigures {
    /// Median milliseconds of a step: forward, backward, optimizer.
    pub step_ms: f64,
    /// The last step's loss.
    pub loss: f32,
}

/// `steps` steps over batches of `options.batch` rows, of `length` tokens where that is free. A
/// base of fixed rows takes these as its micro-batch.
///
/// # Errors
/// Those of [`Trainer::new`] and of the steps.
pub fn training(
    engine: &Engine,
    length: usize,
    options: &TrainOptions,
    steps: usize,
) -> Result<TrainingFigures> {
    let labels = (0..LABELS).map(|i| format!("label {i}")).collect();
    let mut trainer = Trainer::new(engine, options, labels)?;
    let first = engine.inputs().iter().find_map(|s| s.dims.first());
    let fixed: Option<usize> = first.and_then(|d| d.parse().ok());
    let rows = fixed.unwrap_or(options.micro_batch.unwrap_or(options.batch));
    let named = inputs(engine, Sizes { rows, length })?;
    if let Some(limit) = engine.memory() {
        // Each micro-batch has its own.
        let bytes: usize = named.iter().map(|(_, a)| a.data().byte_len()).sum();
        let each = bytes as u64 + 64 * rows as u64;
        drop(limit.take(each.saturating_mul(options.batch.div_ceil(rows.max(1)) as u64))?);
    }
    let answers = trainer.answers(&[0, 1, 2].map(Label::Class))?;
    let micro = |first: usize| MicroBatch {
        inputs: named.clone(),
        answers: (first..first + rows)
            .map(|row| answers.get(row % LABELS).filter(|_| row < options.batch).cloned().flatten())
            .collect(),
    };
    let batch: Vec<MicroBatch> = (0..options.batch).step_by(rows.max(1)).map(micro).collect();
    let (mut times, mut loss) = (vec![], f32::NAN);
    for step in 0..WARM_UP + steps {
        let start = Instant::now();
        loss = trainer.step(&batch, options.learning_rate.into())?;
        if step >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(TrainingFigures { step_ms: median(&times), loss })
}
