//! Losses as graph parts, appended to a model. Each is a sum over rows divided by the input
//! `weight_sum`, so that the gradients of micro-batches that share one `weight_sum` add up to the
//! whole batch's, and rows of weight 0 (padding, ignored labels) count for nothing.

use tract_core::internal::*;
use tract_core::ops::nn::{Softmax, SoftmaxKind};

use super::wires::Wires;
use crate::error::{Error, Result};
use crate::graph::{CtcLoss, FrozenLinear, TokenLoss};

/// A loss wired into a model.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The loss: f32, rank 0.
    pub value: OutletId,
    /// New inputs, f32: what the model's output is compared with, and how much each counts; see each
    /// loss. `TaskRules::tensors` gives their values in this order.
    pub targets: Vec<OutletId>,
    /// New input, f32, rank 0: what the sum over rows is divided by.
    pub weight_sum: OutletId,
}

/// The first of [`Loss::targets`].
pub const TARGETS: &str = "loss.targets";
/// The second of [`Loss::targets`], where rows have weights.
const WEIGHTS: &str = "loss.weights";
/// Name of [`Loss::weight_sum`].
pub const WEIGHT_SUM: &str = "loss.weight_sum";

/// Cross-entropy of `logits` (.., classes): -Σ targets · log softmax(logits) / weight_sum.
///
/// `targets` has the shape of `logits`: one-hot rows times the row's weight; soft labels are
/// welcome, zero rows are ignored. With `weight_sum` the number of rows that count this is
/// PyTorch's `cross_entropy`.
pub fn cross_entropy(model: &mut TypedModel, logits: OutletId) -> Result<Loss> {
    let mut w = Wires::new(model, "loss");
    let shape = floats(&w, logits)?;
    let targets = w.source(TARGETS, &shape)?;
    let softmax = Softmax {
        axes: tvec![shape.len() - 1],
        quant_output_dt: None,
        kind: SoftmaxKind::LogSoftmax,
    };
    let log_probability = w.wire(softmax, &[logits])?;
    let product = w.mul(targets, log_probability)?;
    let sum = total(&mut w, product)?;
    let sum = w.neg(sum)?;
    weighted(w, sum, vec![targets])
}

/// Cross-entropy over a vocabulary: `output` (B, T, V), the targets (B, T, 1): 0 for a token that counts
/// for nothing, else 1 + the token that should follow. Where a frozen layer gives the output, its logits are
/// never there as a whole ([`TokenLoss`]).
pub(crate) fn token_loss(model: &mut TypedModel, output: OutletId) -> Result<Loss> {
    let node = model.node(output.node);
    let layer = node.op_as::<FrozenLinear>().map(|op| (op.clone(), node.inputs.clone()));
    let mut w = Wires::new(model, "loss");
    let shape = floats(&w, output)?;
    let [batch, tokens, _] = &*shape else {
        return Err(Error::usage(format!("a loss over tokens takes (B, T, V), found {shape:?}")));
    };
    let targets = w.source(TARGETS, &[batch.clone(), tokens.clone(), 1.to_dim()])?;
    let sum = match layer {
        Some((head, inputs)) => {
            let (x, bias) = (inputs[0], inputs.get(1).copied());
            let inputs: TVec<OutletId> = [x, targets].into_iter().chain(bias).collect();
            w.wire(TokenLoss { head: Some(head) }, &inputs)?
        }
        None => w.wire(TokenLoss { head: None }, &[output, targets])?,
    };
    weighted(w, sum, vec![targets])
}

/// CTC over the symbols of `output` (B, T, C), of which `blank` is none: the targets (B, T, 1), each row's
/// symbols + 1 at its start, and the rows' weights (B). What a softmax gives is read before it.
pub(crate) fn ctc(model: &mut TypedModel, output: OutletId, blank: usize) -> Result<Loss> {
    let output = before_softmax(model, output).map_err(failed)?;
    let mut w = Wires::new(model, "loss");
    let shape = floats(&w, output)?;
    let [batch, steps, _] = &*shape else {
        return Err(Error::usage(format!("a loss over steps takes (B, T, C), found {shape:?}")));
    };
    let targets = w.source(TARGETS, &[batch.clone(), steps.clone(), 1.to_dim()])?;
    let weights = w.source(WEIGHTS, &shape[..1])?;
    let sum = w.wire(CtcLoss { blank }, &[output, targets, weights])?;
    weighted(w, sum, vec![targets, weights])
}

/// The logits of a softmax that gives the output, be it behind moves of axes.
fn before_softmax(model: &mut TypedModel, output: OutletId) -> TractResult<OutletId> {
    let mut at = output;
    while model.node(at.node).op_is::<AxisOp>() {
        at = model.node(at.node).inputs[0];
    }
    let node = model.node(at.node);
    let Some(Softmax { kind: SoftmaxKind::Softmax, .. }) = node.op_as::<Softmax>() else {
        return Ok(output);
    };
    let logits = node.inputs[0];
    for inlet in model.outlet_successors(at).to_vec() {
        model.add_edge(logits, inlet)?;
    }
    Ok(if at == output { logits } else { output })
}

/// Σ weights · mean over the row of each element's loss / weight_sum, of an `output` (B, ..).
///
/// The targets have its shape, the weights, one a row, are (B): new inputs, as [`row_targets`] gives them.
/// `each` wires the elements' losses from the output and the targets.
pub(crate) fn mean_of_rows(
    model: &mut TypedModel,
    output: OutletId,
    each: impl FnOnce(&mut Wires, OutletId) -> Result<OutletId>,
) -> Result<Loss> {
    let mut w = Wires::new(model, "loss");
    let shape = floats(&w, output)?;
    let targets = w.source(TARGETS, &shape)?;
    let weights = w.source(WEIGHTS, &shape[..1])?;
    let each = each(&mut w, targets)?;
    let axes: Vec<usize> = (1..shape.len()).collect();
    let rows = w.mean(each, &axes)?;
    let rows = w.squeeze(rows, &axes)?;
    let product = w.mul(rows, weights)?;
    let sum = total(&mut w, product)?;
    weighted(w, sum, vec![targets, weights])
}

/// The targets of [`mean_of_rows`]: a row without an answer counts for nothing.
///
/// # Errors
/// Those of [`dense`].
pub(crate) fn row_targets(rows: &[Option<Vec<f32>>], shape: &[usize]) -> Result<Vec<Tensor>> {
    let weights: Vec<Option<Vec<f32>>> =
        rows.iter().map(|row| row.is_some().then(|| vec![1.0])).collect();
    Ok(vec![dense(rows, shape, None)?, dense(&weights, &shape[..1], None)?])
}

/// The shape of a float tensor of at least one axis.
pub(super) fn floats(w: &Wires, outlet: OutletId) -> Result<TVec<TDim>> {
    let fact = w.fact(outlet)?;
    if !fact.datum_type.is::<f32>() || fact.rank() == 0 {
        return Err(Error::usage(format!(
            "a loss takes an f32 output of at least 1 axes, found {fact:?}"
        )));
    }
    Ok(fact.shape.to_tvec())
}

/// Sum of all elements, rank 0.
pub(super) fn total(w: &mut Wires, a: OutletId) -> Result<OutletId> {
    let axes: Vec<usize> = (0..w.rank(a)?).collect();
    let sum = w.sum(a, &axes)?;
    w.squeeze(sum, &axes)
}

/// The loss `sum` / weight_sum.
fn weighted(mut w: Wires, sum: OutletId, targets: Vec<OutletId>) -> Result<Loss> {
    let weight_sum = w.source(WEIGHT_SUM, &[])?;
    let value = w.div(sum, weight_sum)?;
    Ok(Loss { value, targets, weight_sum })
}

/// A tensor of `shape`, whose first axis are the rows, each row's values at its start and zeros behind
/// them. With `kept`, one for each of the first two axes' places, the values are spread over the places
/// that are kept.
///
/// # Errors
/// Usage: more values than a row has room for.
pub(crate) fn dense(
    rows: &[Option<Vec<f32>>],
    shape: &[usize],
    kept: Option<&[bool]>,
) -> Result<Tensor> {
    let size: usize = shape.iter().skip(1).product();
    let mut values = vec![0f32; rows.len() * size];
    for (at, (row, to)) in rows.iter().zip(values.chunks_mut(size.max(1))).enumerate() {
        let Some(row) = row else { continue };
        let tokens = shape.get(1).copied().unwrap_or(1);
        let kept = kept.and_then(|kept| kept.get(at * tokens..(at + 1) * tokens));
        let fits = match kept {
            // Of tokens there may be fewer than the batch has.
            None if shape.len() < 3 && row.len() != size => false,
            None => to.get_mut(..row.len()).map(|to| to.copy_from_slice(row)).is_some(),
            Some(kept) => {
                let width = size / tokens.max(1);
                let mut places = to.chunks_mut(width).zip(kept).filter(|(_, kept)| **kept);
                row.chunks(width).all(|part| {
                    places.next().map(|(to, _)| to[..part.len()].copy_from_slice(part)).is_some()
                })
            }
        };
        if !fits {
            return Err(Error::usage(format!("{} values for an output of {size}", row.len())));
        }
    }
    let shape: Vec<usize> =
        std::iter::once(rows.len()).chain(shape.iter().skip(1).copied()).collect();
    Tensor::from_shape(&shape, &values).map_err(failed)
}

fn failed(e: TractError) -> Error {
    crate::graph::tract_error(crate::error::ErrorKind::Failed, &e)
}

/// Losses against formulas and central differences.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::train::vjp::check::{Case, run, slice};

    pub type Part = fn(&mut TypedModel, OutletId) -> Result<Loss>;

    /// The loss's value for an output and its other inputs.
    pub fn value(part: Part, output: Tensor, others: &[Tensor]) -> f32 {
        let mut model = TypedModel::default();
        let x = model.add_source("x", TypedFact::shape_and_dt_of(&output)).unwrap();
        let loss = part(&mut model, x).unwrap();
        model.select_output_outlets(&[loss.value]).unwrap();
        let inputs: Vec<Tensor> = [&[output][..], others].concat();
        slice(&run(&model, &inputs)[0])[0]
    }

    /// The gradient of the output against central differences.
    pub fn differences(part: Part, output: Tensor, others: &[Tensor]) {
        for symbolic in [false, true] {
            let case =
                Case::new([&[output.clone()][..], others].concat(), move |model, sources| {
                    let loss = part(model, sources[0]).unwrap();
                    let new = [&loss.targets[..], &[loss.weight_sum]].concat();
                    // The loss's own inputs are replaced by the case's, which come before them.
                    for (&from, to) in new.iter().zip(&sources[1..]) {
                        for inlet in model.node(from.node).outputs[0].successors.clone() {
                            model.add_edge(*to, inlet).unwrap();
                        }
                    }
                    let mut inputs = model.input_outlets().unwrap().to_vec();
                    inputs.retain(|i| !new.contains(i));
                    model.set_input_outlets(&inputs).unwrap();
                    loss.value
                });
            let case = case.trained(&[0]);
            if symbolic { case.symbolic().check() } else { case.check() }
        }
    }

    pub fn near(got: f32, want: f32) {
        assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{got} {want}");
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{differences, near, value};
    use super::*;
    use crate::train::vjp::check::gradients;
    use crate::train::vjp::check::{random, run, slice};

    /// Reference values by hand: log-softmax of (1, 2, 3) is (-2.40761, -1.40761, -0.40761).
    #[test]
    fn cross_entropy_equals_the_formula_and_ignores_zero_rows() {
        let logits = tensor2(&[[1f32, 2., 3.], [3., 2., 1.], [9., 9., 9.]]);
        let targets = tensor2(&[[0f32, 0., 1.], [0., 0., 1.], [0., 0., 0.]]);
        let got = value(cross_entropy, logits, &[targets, tensor0(2f32)]);
        near(got, (0.407_605_95 + 2.407_606) / 2.0);
    }

    #[test]
    fn cross_entropy_stays_finite_for_great_logits() {
        let logits = tensor2(&[[1000f32, -1000.]]);
        let targets = tensor2(&[[0f32, 1.]]);
        near(value(cross_entropy, logits, &[targets, tensor0(1f32)]), 2000.0);
    }

    #[test]
    fn gradients_agree_with_central_differences() {
        let sum = tensor0(2.5f32);
        for shape in [&[3, 4][..], &[2, 3, 4]] {
            differences(cross_entropy, random(shape, 1), &[random(shape, 2), sum.clone()]);
        }
    }

    #[test]
    fn rows_are_filled_up_and_spread_over_the_places_that_count() {
        let values = |t: Result<Tensor>| slice(&t.unwrap()).to_vec();
        let rows = [Some(vec![1.0, 2.0]), None];
        assert_eq!(values(dense(&rows, &[2, 2], None)), [1.0, 2.0, 0.0, 0.0]);
        let tokens = values(dense(&rows, &[2, 3, 1], Some(&[false, true, true, true, true, true])));
        assert_eq!(tokens, [0.0, 1.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(values(dense(&rows, &[2, 3, 1], None)), [1.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
        assert!(dense(&rows, &[2, 1], None).is_err() && dense(&rows, &[2, 3], None).is_err());
        assert!(dense(&rows, &[2, 2, 1], Some(&[true, false, true, true])).is_err());
    }

    #[test]
    fn micro_batches_add_up_to_the_batch() {
        let (x, t) = (random(&[4, 3], 1), random(&[4, 3], 2));
        let gradient = |from: usize, to: usize| -> Vec<f32> {
            let part = |t: &Tensor| t.slice(0, from, to).unwrap();
            let mut model = TypedModel::default();
            let logits = model.add_source("x", f32::fact([to - from, 3])).unwrap();
            let loss = cross_entropy(&mut model, logits).unwrap();
            let gradients = gradients(&mut model, loss.value, &[logits]).unwrap();
            model.select_output_outlets(&gradients).unwrap();
            slice(&run(&model, &[part(&x), part(&t), tensor0(4f32)])[0]).to_vec()
        };
        assert_eq!(gradient(0, 4), [gradient(0, 1), gradient(1, 4)].concat());
    }

    #[test]
    fn a_loss_takes_floats_and_one_loss_goes_into_a_graph() {
        let mut model = TypedModel::default();
        let ids = model.add_source("ids", i64::fact([2, 3])).unwrap();
        assert!(cross_entropy(&mut model, ids).unwrap_err().message().contains("f32"));
        let x = model.add_source("x", f32::fact([2, 3])).unwrap();
        cross_entropy(&mut model, x).unwrap();
        assert!(cross_entropy(&mut model, x).unwrap_err().message().contains("'loss.targets'"));
    }
}
