//! How far next tokens move away from the base's, and the gradient of it, a stretch of rows at a time.

use tract_core::internal::*;

use super::linear::{FrozenLinear, product_fact};
use super::weights::{expect_f32, floats};

/// Rows whose logits, the base's and the adapted ones, are there at once.
const STRETCH: usize = 8;

/// Σ weight · KL(p ‖ q) over the rows that have a weight, and the gradient of that by x: p is what the frozen
/// layer of the vocabulary makes of the base's features, q what it makes of x.
///
/// Inputs: x (B, T, K), the base's (B, T, K), the weights (B, T, 1), and the bias (V) of `head`, if it has one.
/// Outputs: the sum (scalar) and its gradient, as x.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenDrift {
    /// What makes logits of features.
    pub head: FrozenLinear,
}

impl Op for TokenDrift {
    fn name(&self) -> StaticName {
        "TokenDrift".into()
    }

    op_as_typed_op!();
}

/// Log probabilities in the place of logits.
fn log_softmax(row: &mut [f32]) {
    let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|v| f64::from((v - greatest).exp())).sum();
    let norm = greatest + sum.ln() as f32;
    row.iter_mut().for_each(|v| *v -= norm);
}

/// Puts weight · (q - p) in the place of the logits of q; KL(p ‖ q).
fn divergence(p: &mut [f32], q: &mut [f32], weight: f32) -> f64 {
    log_softmax(p);
    log_softmax(q);
    let mut sum = 0f64;
    for (p, q) in p.iter().zip(q) {
        let chance = p.exp();
        sum += f64::from(chance) * f64::from(p - *q);
        *q = weight * (q.exp() - chance);
    }
    sum
}

impl EvalOp for TokenDrift {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [x, base] = [floats(&inputs[0])?, floats(&inputs[1])?];
        let weights = floats(&inputs[2])?;
        let width = self.head.in_features;
        ensure!(x.len() == base.len() && weights.len() * width == x.len(), "a weight for each row");
        let mut sum = 0f64;
        let mut gradient = Tensor::zero::<f32>(inputs[0].shape())?;
        let mut plain = gradient.try_as_plain_ram_mut()?;
        let to = plain.as_slice_mut::<f32>()?;
        let counted: Vec<usize> = (0..weights.len()).filter(|at| weights[*at] > 0.0).collect();
        for rows in counted.chunks(STRETCH) {
            let of = |from: &[f32]| -> Vec<f32> {
                rows.iter().flat_map(|at| &from[at * width..][..width]).copied().collect()
            };
            let both = Tensor::from_shape(&[2 * rows.len(), width], &[of(base), of(x)].concat())?;
            let read = [both.into_tvalue()].into_iter().chain(inputs.get(3).cloned()).collect();
            let mut logits = self.head.eval(ctx, read)?.remove(0).into_tensor();
            let mut values = logits.try_as_plain_ram_mut()?;
            let (p, q) = values.as_slice_mut::<f32>()?.split_at_mut(rows.len() * self.vocabulary());
            let pairs =
                p.chunks_mut(self.vocabulary()).zip(q.chunks_mut(self.vocabulary())).zip(rows);
            for ((p, q), at) in pairs {
                sum += f64::from(weights[*at]) * divergence(p, q, weights[*at]);
            }
            let back = Tensor::from_shape(&[rows.len(), self.vocabulary()], q)?;
            let back = self.head.transposed().eval(ctx, tvec![back.into_tvalue()])?;
            for (from, at) in floats(&back[0])?.chunks(width).zip(rows) {
                to[at * width..][..width].copy_from_slice(from);
            }
        }
        Ok(tvec![tensor0(sum as f32).into_tvalue(), gradient.into_tvalue()])
    }
}

impl TokenDrift {
    fn vocabulary(&self) -> usize {
        self.head.out_features
    }
}

impl TypedOp for TokenDrift {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let expected = 3 + usize::from(self.head.has_bias);
        ensure!(inputs.len() == expected, "expected {expected} inputs, found {}", inputs.len());
        for (what, fact) in ["x", "the base's", "weights"].into_iter().zip(inputs) {
            expect_f32(what, fact)?;
        }
        product_fact(inputs[0], self.head.in_features, self.head.out_features)?;
        Ok(tvec![f32::scalar_fact(), inputs[0].without_value()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_divergence_of_the_distributions_and_its_gradient() {
        let ln = |p: [f32; 2]| p.map(|p| p.ln() + 7.0);
        let (mut p, mut q) = (ln([0.5, 0.5]), ln([0.8, 0.2]));
        let want = 0.5 * (0.5f64 / 0.8).ln() + 0.5 * (0.5f64 / 0.2).ln();
        assert!((divergence(&mut p, &mut q, 2.0) - want).abs() < 1e-6);
        assert!((q[0] - 0.6).abs() < 1e-6 && (q[1] + 0.6).abs() < 1e-6, "{q:?}");
        let (mut p, mut q) = ([1000f32, -1000.0], [1000f32, -1000.0]);
        assert_eq!((divergence(&mut p, &mut q, 1.0), q), (0.0, [0.0; 2]));
    }
}
