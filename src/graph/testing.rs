//! Helpers of this layer's tests: seeded values, one-node graphs, naive references.

use std::sync::Arc;

use tract_core::internal::*;

use super::changes::ActiveAdapter;
use super::window::{Padding, Window};
use crate::adapter::Bound;
use crate::quant::{ConvGeometry, LowRank, Packed, Scheme};

/// `n` values in -1..1 that depend on `seed` alone.
pub fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

pub fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_shape(shape, values).unwrap()
}

/// An f32-packed matrix: wiring is tested apart from quantization.
pub fn matrix(rows: usize, cols: usize, values: &[f32]) -> Packed {
    Packed::pack(Scheme::F32, rows, cols, values).unwrap()
}

/// An adapter with (rank, lora_a, lora_b) for each target, scaling folded into lora_b.
#[allow(clippy::type_complexity)]
pub fn bound(targets: Vec<Option<(usize, &[f32], &[f32])>>) -> Arc<Bound> {
    let lora = |(rank, a, b): (usize, &[f32], &[f32])| {
        LowRank::new(Scheme::F32, rank, [a.len() / rank, b.len() / rank], a, b).unwrap().into()
    };
    let targets = targets.into_iter().map(|t| t.map(lora)).collect();
    Arc::new(Bound { targets, head: None, names: vec![("test".into(), 1.0)] })
}

pub fn run(op: impl Into<Box<dyn TypedOp>>, inputs: &[Tensor]) -> TractResult<Tensor> {
    run_with(op, inputs, None)
}

/// Runs a graph of one node "frozen" whose inputs are sources.
pub fn run_with(
    op: impl Into<Box<dyn TypedOp>>,
    inputs: &[Tensor],
    adapter: Option<&Arc<Bound>>,
) -> TractResult<Tensor> {
    let mut model = TypedModel::default();
    let mut sources = tvec!();
    for (i, t) in inputs.iter().enumerate() {
        sources.push(model.add_source(format!("in{i}"), t.datum_type().fact(t.shape()))?);
    }
    let out = model.wire_node("frozen", op, &sources)?;
    model.select_output_outlets(&out)?;
    let values = inputs.iter().map(|t| t.clone().into_tvalue()).collect();
    Ok(run_model(model.into_optimized()?, values, adapter)?.remove(0))
}

/// Runs a model, with an adapter active if given.
pub fn run_model(
    model: TypedModel,
    inputs: TVec<TValue>,
    adapter: Option<&Arc<Bound>>,
) -> TractResult<Vec<Tensor>> {
    let plan = model.into_runnable()?;
    let mut state = plan.spawn()?;
    if let Some(bound) = adapter {
        state.turn_state.shared.insert(ActiveAdapter(Arc::clone(bound)));
    }
    Ok(state.run(inputs)?.into_iter().map(|t| t.into_tensor()).collect())
}

pub fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let floats = |t| super::weights::floats(t).unwrap();
    floats(a).iter().zip(floats(b)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Windows with every kind of padding, stride and dilation.
pub fn windows() -> Vec<Window> {
    let w = |kernel, stride, dilation, padding| Window { kernel, stride, dilation, padding };
    vec![
        w([3, 3], [1, 1], [1, 1], Padding::Explicit([1, 1, 1, 1])),
        w([3, 2], [2, 1], [1, 1], Padding::Explicit([0, 1, 2, 0])),
        w([3, 3], [2, 2], [1, 1], Padding::SameUpper),
        w([2, 4], [1, 3], [1, 1], Padding::SameLower),
        w([3, 3], [1, 1], [2, 2], Padding::Valid),
        w([1, 5], [1, 1], [1, 1], Padding::SameUpper),
        w([1, 1], [2, 2], [1, 1], Padding::Valid),
    ]
}

/// The convolution by its definition, filters (out, kh·kw·C).
pub fn naive_conv(
    g: &ConvGeometry,
    w: &[f32],
    out: usize,
    x: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let mut y = Vec::new();
    for n in 0..g.batch {
        for oy in 0..g.out_height() {
            for ox in 0..g.out_width() {
                for o in 0..out {
                    let mut sum = bias.map_or(0.0, |b| b[o]);
                    for ky in 0..g.kernel[0] {
                        for kx in 0..g.kernel[1] {
                            let iy =
                                (oy * g.stride[0] + ky * g.dilation[0]).wrapping_sub(g.pads[0]);
                            let ix =
                                (ox * g.stride[1] + kx * g.dilation[1]).wrapping_sub(g.pads[1]);
                            if iy >= g.height || ix >= g.width {
                                continue;
                            }
                            for c in 0..g.channels {
                                let x_at = ((n * g.height + iy) * g.width + ix) * g.channels + c;
                                let k_at =
                                    ((o * g.kernel[0] + ky) * g.kernel[1] + kx) * g.channels + c;
                                sum += x[x_at] * w[k_at];
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
    }
    y
}
