//! Losses that are part of a graph.

use super::{Wire, Wiring};
use tract_onnx::tract_core::ops::nn::{Softmax, SoftmaxKind};
use tract_onnx::tract_hir::internal::*;

super::readers! {
    "NegativeLogLikelihoodLoss" => likelihood;
    "SoftmaxCrossEntropyLoss" => cross_entropy;
}

fn likelihood(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    Ok(tvec!(loss(w, x)?))
}

fn cross_entropy(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    ensure!(w.rank(x)? >= 2, "scores of {} axes", w.rank(x)?);
    let kind = SoftmaxKind::LogSoftmax;
    let x = w.op(Softmax { axes: tvec!(1), quant_output_dt: None, kind }, &[x])?;
    Ok(tvec!(loss(w, x)?, x))
}

/// −Σ weight · x at each label, of log-probabilities x (N, C, d1, …) and labels (N, d1, …).
fn loss(w: &mut Wiring<'_>, x: Wire) -> TractResult<Wire> {
    let labels = w.input(1)?;
    let labels = w.cast(labels, i64::datum_type())?;
    let rank = w.rank(x)?;
    let classes = w.shape(x)?[1].clone();
    let mut numbers = w.counting(&classes)?;
    for _ in 2..rank {
        let last = w.rank(numbers)?;
        numbers = w.add_axis(numbers, last)?;
    }
    let spread = w.add_axis(labels, 1)?;
    let hit = w.equal(spread, numbers)?;
    let zero = w.number(0.0, x)?;
    let picked = w.select(hit, x, zero)?;
    let picked = w.sum(picked, &[1], false)?;
    let mut weights = match w.optional(2) {
        Some(weights) => {
            let mut shaped = weights;
            for _ in 2..rank {
                let last = w.rank(shaped)?;
                shaped = w.add_axis(shaped, last)?;
            }
            let weights = w.select(hit, shaped, zero)?;
            Some(w.sum(weights, &[1], false)?)
        }
        None => None,
    };
    if w.has("ignore_index") {
        let ignored = w.number_of(w.int("ignore_index", 0) as f64, i64::datum_type())?;
        let ignored = w.equal(labels, ignored)?;
        let counted = match weights {
            Some(weights) => weights,
            None => {
                let shape = w.shape(labels)?;
                let one = w.number(1.0, x)?;
                w.broadcast(one, &shape)?
            }
        };
        weights = Some(w.select(ignored, zero, counted)?);
    }
    let mut each = w.neg(picked)?;
    if let Some(weights) = weights {
        each = w.mul(each, weights)?;
    }
    let axes: Vec<usize> = (0..rank - 1).collect();
    match w.text("reduction", "mean") {
        "none" => Ok(each),
        "sum" => w.sum(each, &axes, false),
        "mean" => {
            let Some(weights) = weights else {
                let mut mean = w.mean(each, &axes)?;
                for _ in &axes {
                    mean = w.remove_axis(mean, 0)?;
                }
                return Ok(mean);
            };
            let sum = w.sum(each, &axes, false)?;
            let weight = w.sum(weights, &axes, false)?;
            w.div(sum, weight)
        }
        other => bail!("reduction is '{other}', known are none, sum and mean"),
    }
}
