//! What keeps the adapted features near the base's: a graph part, appended to a model.

use crate::error::{Error, Result};
use crate::graph::{FrozenLinear, TokenDrift};
use crate::train::loss::{floats, total};
use crate::train::wires::Wires;
use tract_core::internal::*;
use tract_core::ops::math;

/// A penalty wired into a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Penalty {
    /// The sum over rows, or tokens: f32, rank 0.
    pub value: OutletId,
    /// What is held against the base's.
    pub features: OutletId,
    /// New input: the base's of each row (B, F) or token (B, T, F).
    pub base: OutletId,
    /// New input: how much each row (B) or token (B, T, 1) counts; 0 for one that doesn't.
    pub weights: OutletId,
}

/// Added to the square of a length, so that features that are all zero have a gradient too.
const LEAST_SQUARE: f32 = 1e-12;

/// Σ weight · (1 - cosine) of `features` (B, F), the base's being of length 1.
pub(crate) fn penalty(model: &mut TypedModel, features: OutletId) -> Result<Penalty> {
    let mut w = Wires::new(model, "keep");
    let shape = floats(&w, features)?;
    let base = w.source("keep.base", &shape)?;
    let weights = w.source("keep.weights", &shape[..1])?;
    let products = w.mul(features, base)?;
    let product = w.sum(products, &[1])?;
    let squares = w.mul(features, features)?;
    let square = w.sum(squares, &[1])?;
    let square = w.shift(square, LEAST_SQUARE)?;
    let inverse = w.unary(math::rsqrt(), square)?;
    let cosine = w.mul(product, inverse)?;
    let away = w.subtract_from(1.0, cosine)?;
    let away = w.squeeze(away, &[1])?;
    let weighted = w.mul(away, weights)?;
    Ok(Penalty { value: total(&mut w, weighted)?, features, base, weights })
}

/// Σ weight · KL(p ‖ q) over the tokens of `output` (B, T, V), p being what its frozen layer makes of the base's
/// features (B, T, F), q what it makes of its own.
///
/// # Errors
/// Unsupported: no frozen layer gives the output.
pub(crate) fn next_tokens(model: &mut TypedModel, output: OutletId) -> Result<Penalty> {
    let node = model.node(output.node);
    let (Some(head), inputs) = (node.op_as::<FrozenLinear>().cloned(), node.inputs.clone()) else {
        let error = "knowledge can't be kept: no frozen layer gives the base's logits";
        return Err(Error::unsupported(error).hint("train other --targets, or without it"));
    };
    let (features, bias) = (inputs[0], inputs.get(1).copied());
    let mut w = Wires::new(model, "keep");
    let shape = floats(&w, features)?;
    let [batch, tokens, _] = &*shape else {
        return Err(Error::usage(format!("next tokens are kept of (B, T, F), found {shape:?}")));
    };
    let base = w.source("keep.base", &shape)?;
    let weights = w.source("keep.weights", &[batch.clone(), tokens.clone(), 1.to_dim()])?;
    let inputs: TVec<OutletId> = [features, base, weights].into_iter().chain(bias).collect();
    let value = w.wire(TokenDrift { head }, &inputs)?;
    Ok(Penalty { value, features, base, weights })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::vjp::check::{Case, random, run, slice};

    fn unit(rows: usize, width: usize) -> Tensor {
        let values = random(&[rows, width], 3);
        let of_length_1 = |row: &[f32]| {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
            row.iter().map(|v| v / length).collect::<Vec<_>>()
        };
        let values: Vec<f32> = slice(&values).chunks(width).flat_map(of_length_1).collect();
        Tensor::from_shape(&[rows, width], &values).unwrap()
    }

    #[test]
    fn it_is_the_weighted_distance_of_the_directions() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([3, 2])).unwrap();
        let part = penalty(&mut model, x).unwrap();
        model.select_output_outlets(&[part.value]).unwrap();
        let base = tensor2(&[[1f32, 0.], [1., 0.], [0., 1.]]);
        let away = |x: Tensor, weights: [f32; 3]| {
            slice(&run(&model, &[x, base.clone(), tensor1(&weights)])[0])[0]
        };
        // The same direction, across, opposite.
        let x = tensor2(&[[3f32, 0.], [0., 2.], [0., -5.]]);
        assert!((away(x.clone(), [7., 0., 0.])).abs() < 1e-6);
        assert!((away(x.clone(), [0., 2., 0.]) - 2.0).abs() < 1e-6);
        assert!((away(x, [1., 1., 0.5]) - 2.0).abs() < 1e-6);
        assert!(away(tensor2(&[[0f32, 0.]; 3]), [1.; 3]).is_finite());
    }

    #[test]
    fn its_gradient_agrees_with_central_differences() {
        let (base, weights) = (unit(3, 4), tensor1(&[0.5f32, 2.0, 0.0]));
        let case = Case::new([random(&[3, 4], 1), base, weights], |model, sources| {
            let part = penalty(model, sources[0]).unwrap();
            for (from, to) in [(part.base, sources[1]), (part.weights, sources[2])] {
                for inlet in model.node(from.node).outputs[0].successors.clone() {
                    model.add_edge(to, inlet).unwrap();
                }
            }
            let mut inputs = model.input_outlets().unwrap().to_vec();
            inputs.retain(|i| ![part.base, part.weights].contains(i));
            model.set_input_outlets(&inputs).unwrap();
            part.value
        });
        case.trained(&[0]).check();
    }
}
