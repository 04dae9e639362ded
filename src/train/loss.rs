//! Losses as graph parts, appended to a model. Each is a sum over rows divided by the input
//! `weight_sum`, so that the gradients of micro-batches that share one `weight_sum` add up to the
//! whole batch's, and rows of weight 0 (padding, ignored labels) count for nothing.

use tract_core::internal::*;
use tract_core::ops::math;
use tract_core::ops::nn::{Softmax, SoftmaxKind};

use super::wires::Wires;
use crate::error::{Error, Result};

/// A loss wired into a model.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// The loss: f32, rank 0.
    pub value: OutletId,
    /// New input, f32: what the model's output is compared with; see each loss.
    pub targets: OutletId,
    /// New input, f32, where the loss has row weights of its own.
    pub weights: Option<OutletId>,
    /// New input, f32, rank 0: what the sum over rows is divided by.
    pub weight_sum: OutletId,
}

/// Name of [`Loss::targets`].
pub const TARGETS: &str = "loss.targets";
/// Name of [`Loss::weights`].
pub const WEIGHTS: &str = "loss.weights";
/// Name of [`Loss::weight_sum`].
pub const WEIGHT_SUM: &str = "loss.weight_sum";

/// Cross-entropy of `logits` (.., classes): -Σ targets · log softmax(logits) / weight_sum.
///
/// `targets` has the shape of `logits`: one-hot rows times the row's weight; soft labels are
/// welcome, zero rows are ignored. With `weight_sum` the number of rows that count this is
/// PyTorch's `cross_entropy`.
pub fn cross_entropy(model: &mut TypedModel, logits: OutletId) -> Result<Loss> {
    let mut w = Wires::new(model, "loss");
    let shape = floats(&w, logits, 1)?;
    let targets = w.source(TARGETS, &shape)?;
    let log_probability = softmax(&mut w, SoftmaxKind::LogSoftmax, logits)?;
    let product = w.mul(targets, log_probability)?;
    let sum = total(&mut w, product)?;
    let sum = w.neg(sum)?;
    finish(w, sum, targets, None)
}

/// Mean squared error of `output` (B, ..): Σ weights · mean over the row of (output - targets)² /
/// weight_sum.
///
/// `targets` has the shape of `output`, `weights` is (B). With weights 1 and `weight_sum` B this
/// is PyTorch's `mse_loss`.
pub fn mean_squared_error(model: &mut TypedModel, output: OutletId) -> Result<Loss> {
    let mut w = Wires::new(model, "loss");
    let shape = floats(&w, output, 1)?;
    let targets = w.source(TARGETS, &shape)?;
    let weights = w.source(WEIGHTS, &shape[..1])?;
    let difference = w.sub(output, targets)?;
    let square = w.unary(math::square(), difference)?;
    let axes: Vec<usize> = (1..shape.len()).collect();
    let rows = w.mean(square, &axes)?;
    let rows = squeeze(&mut w, rows, &axes)?;
    weighted(w, rows, targets, weights)
}

/// Kullback-Leibler divergence from the base's answer to the adapted one's, a penalty on
/// forgetting: Σ weights · Σ p·(log p - log q) / weight_sum, p = softmax(targets), q =
/// softmax(logits), over the last axis.
///
/// `targets` has the shape of `logits` (.., classes): the base's logits; `weights` is (..). With
/// weights 1 and `weight_sum` the number of rows this is PyTorch's `kl_div` with `batchmean`.
pub fn kl_divergence(model: &mut TypedModel, logits: OutletId) -> Result<Loss> {
    let mut w = Wires::new(model, "loss");
    let shape = floats(&w, logits, 1)?;
    let last = shape.len() - 1;
    let targets = w.source(TARGETS, &shape)?;
    let weights = w.source(WEIGHTS, &shape[..last])?;
    let log_q = softmax(&mut w, SoftmaxKind::LogSoftmax, logits)?;
    let log_p = softmax(&mut w, SoftmaxKind::LogSoftmax, targets)?;
    let p = softmax(&mut w, SoftmaxKind::Softmax, targets)?;
    let ratio = w.sub(log_p, log_q)?;
    let product = w.mul(p, ratio)?;
    let rows = w.sum(product, &[last])?;
    let rows = squeeze(&mut w, rows, &[last])?;
    weighted(w, rows, targets, weights)
}

/// Cosine loss of `embeddings` (B, F) against `targets` (B, F): rows that belong together pay
/// 1 - cos, rows that don't pay max(0, cos - margin).
///
/// `weights` is (B, 2): the row's weight as a pair that belongs together, and as one that doesn't.
/// With one 1 a row and `weight_sum` B this is PyTorch's `cosine_embedding_loss`.
pub fn cosine(model: &mut TypedModel, embeddings: OutletId, margin: f32) -> Result<Loss> {
    let mut w = Wires::new(model, "loss");
    let shape = floats(&w, embeddings, 2)?;
    if shape.len() != 2 {
        return Err(Error::usage("a cosine loss takes embeddings (B, F)"));
    }
    let targets = w.source(TARGETS, &shape)?;
    let weights = w.source(WEIGHTS, &[shape[0].clone(), 2.to_dim()])?;
    let product = w.mul(embeddings, targets)?;
    let dot = w.sum(product, &[1])?;
    let mut norms = tvec![];
    for side in [embeddings, targets] {
        let square = w.unary(math::square(), side)?;
        let sum = w.sum(square, &[1])?;
        norms.push(w.shift(sum, f32::EPSILON)?);
    }
    let norm = w.mul(norms[0], norms[1])?;
    let reciprocal = w.unary(math::rsqrt(), norm)?;
    let cosine = w.mul(dot, reciprocal)?;
    let together = w.from_scalar(1.0, cosine)?;
    let beyond = w.shift(cosine, -margin)?;
    let zero = w.scalar(0.0, beyond)?;
    let apart = w.binary(math::max(), beyond, zero)?;
    let rows = w.wire(tract_core::ops::array::TypedConcat { axis: 1 }, &[together, apart])?;
    weighted(w, rows, targets, weights)
}

/// The shape of a float tensor of at least `rank` axes.
fn floats(w: &Wires, outlet: OutletId, rank: usize) -> Result<TVec<TDim>> {
    let fact = w.fact(outlet)?;
    if !fact.datum_type.is::<f32>() || fact.rank() < rank {
        return Err(Error::usage(format!(
            "a loss takes an f32 output of at least {rank} axes, found {fact:?}"
        )));
    }
    Ok(fact.shape.to_tvec())
}

fn softmax(w: &mut Wires, kind: SoftmaxKind, logits: OutletId) -> Result<OutletId> {
    let axes = tvec![w.rank(logits)? - 1];
    w.wire(Softmax { axes, quant_output_dt: None, kind }, &[logits])
}

fn squeeze(w: &mut Wires, mut a: OutletId, axes: &[usize]) -> Result<OutletId> {
    for &axis in axes.iter().rev() {
        a = w.axis(AxisOp::Rm(axis), a)?;
    }
    Ok(a)
}

/// Sum of all elements, rank 0.
fn total(w: &mut Wires, a: OutletId) -> Result<OutletId> {
    let axes: Vec<usize> = (0..w.rank(a)?).collect();
    let sum = w.sum(a, &axes)?;
    squeeze(w, sum, &axes)
}

fn weighted(mut w: Wires, rows: OutletId, targets: OutletId, weights: OutletId) -> Result<Loss> {
    let product = w.mul(rows, weights)?;
    let sum = total(&mut w, product)?;
    finish(w, sum, targets, Some(weights))
}

fn finish(
    mut w: Wires,
    sum: OutletId,
    targets: OutletId,
    weights: Option<OutletId>,
) -> Result<Loss> {
    let weight_sum = w.source(WEIGHT_SUM, &[])?;
    let value = w.div(sum, weight_sum)?;
    Ok(Loss { value, targets, weights, weight_sum })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::gradient::add_gradients;
    use crate::train::vjp::check::{Case, random, run, slice};

    type Part = fn(&mut TypedModel, OutletId) -> Result<Loss>;

    /// The loss's value for an output and its other inputs.
    fn value(part: Part, output: Tensor, others: &[Tensor]) -> f32 {
        let mut model = TypedModel::default();
        let x = model.add_source("x", TypedFact::shape_and_dt_of(&output)).unwrap();
        let loss = part(&mut model, x).unwrap();
        model.select_output_outlets(&[loss.value]).unwrap();
        let inputs: Vec<Tensor> = [&[output][..], others].concat();
        slice(&run(&model, &inputs)[0])[0]
    }

    /// The gradient of the output against central differences.
    fn differences(part: Part, output: Tensor, others: &[Tensor]) {
        for symbolic in [false, true] {
            let case =
                Case::new([&[output.clone()][..], others].concat(), move |model, sources| {
                    let loss = part(model, sources[0]).unwrap();
                    let new = [Some(loss.targets), loss.weights, Some(loss.weight_sum)];
                    // The loss's own inputs are replaced by the case's, which come before them.
                    for (&from, to) in new.iter().flatten().zip(&sources[1..]) {
                        for inlet in model.node(from.node).outputs[0].successors.clone() {
                            model.add_edge(*to, inlet).unwrap();
                        }
                    }
                    let mut inputs = model.input_outlets().unwrap().to_vec();
                    inputs.retain(|i| !new.contains(&Some(*i)));
                    model.set_input_outlets(&inputs).unwrap();
                    loss.value
                });
            let case = case.trained(&[0]);
            if symbolic { case.symbolic().check() } else { case.check() }
        }
    }

    fn near(got: f32, want: f32) {
        assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{got} {want}");
    }

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
    fn mean_squared_error_equals_the_formula() {
        let got = value(
            mean_squared_error,
            tensor2(&[[1f32, 2.], [3., 5.]]),
            &[tensor2(&[[0f32, 2.], [1., 1.]]), tensor1(&[1f32, 0.5]), tensor0(2f32)],
        );
        near(got, (0.5 + 0.5 * 10.0) / 2.0);
    }

    #[test]
    fn the_divergence_from_itself_is_zero_and_else_the_formula() {
        let x = tensor2(&[[1f32, 2., 3.]]);
        let one = || [tensor1(&[1f32]), tensor0(1f32)];
        let [w, s] = one();
        near(value(kl_divergence, x.clone(), &[x.clone(), w, s]), 0.0);
        let [w, s] = one();
        // p = (0.09003, 0.24473, 0.66524), q = 1/3 each: Σ p·(log p + log 3).
        near(value(kl_divergence, tensor2(&[[5f32; 3]]), &[x, w, s]), 0.266_212_56);
    }

    #[test]
    fn cosine_equals_the_formula_on_both_kinds_of_pairs() {
        let part: Part = |model, x| cosine(model, x, 0.1);
        let got = value(
            part,
            tensor2(&[[3f32, 4.], [1., 0.], [1., 0.]]),
            &[
                tensor2(&[[4f32, 3.], [1., 1.], [-1., 1.]]),
                tensor2(&[[1f32, 0.], [0., 1.], [0., 1.]]),
                tensor0(3f32),
            ],
        );
        near(got, ((1.0 - 0.96) + (std::f32::consts::FRAC_1_SQRT_2 - 0.1)) / 3.0);
    }

    #[test]
    fn gradients_agree_with_central_differences() {
        let (x, t) = (random(&[3, 4], 1), random(&[3, 4], 2));
        let (weights, sum) = (random(&[3], 3), tensor0(2.5f32));
        differences(cross_entropy, x.clone(), &[t.clone(), sum.clone()]);
        for part in [mean_squared_error as Part, kl_divergence] {
            differences(part, x.clone(), &[t.clone(), weights.clone(), sum.clone()]);
        }
        let part: Part = |model, x| cosine(model, x, 0.1);
        differences(part, x, &[t, random(&[3, 2], 3), sum.clone()]);
        let tokens = [random(&[2, 3, 4], 5), random(&[2, 3, 4], 6), random(&[2, 3], 7)];
        let [x, t, weights] = tokens;
        differences(cross_entropy, x.clone(), &[t.clone(), sum.clone()]);
        differences(kl_divergence, x, &[t, weights, sum]);
    }

    #[test]
    fn micro_batches_add_up_to_the_batch() {
        let (x, t) = (random(&[4, 3], 1), random(&[4, 3], 2));
        let gradient = |from: usize, to: usize| -> Vec<f32> {
            let part = |t: &Tensor| t.slice(0, from, to).unwrap();
            let mut model = TypedModel::default();
            let logits = model.add_source("x", f32::fact([to - from, 3])).unwrap();
            let loss = cross_entropy(&mut model, logits).unwrap();
            let gradients = add_gradients(&mut model, loss.value, &[logits]).unwrap();
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
