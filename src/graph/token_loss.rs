//! Cross-entropy over a vocabulary, and its gradient, a stretch of rows at a time.
//!
//! Logits of a whole batch over 50,000 tokens are most of the memory of a step: here those of a few
//! rows are there at once, and the rows that count for nothing are left out. The loss is a sum, so that
//! its gradient is known, but for a factor, in the forward run.

use tract_core::internal::*;

use super::linear::{FrozenLinear, FrozenLinearTransposed, product_fact};
use super::weights::{expect_f32, floats};

/// Rows whose logits are there at once.
const STRETCH: usize = 16;

/// Σ -log softmax(logits)\[target\] over the rows that have one, and the gradient of that by x.
///
/// Inputs: x (B, T, K), the targets (B, T, 1) as f32: 0 for none, else 1 + the token; and the bias (V) of
/// `head`, if it has one. Outputs: the sum (scalar) and its gradient, as x.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenLoss {
    /// What makes logits of x; without it x are the logits.
    pub head: Option<FrozenLinear>,
}

impl Op for TokenLoss {
    fn name(&self) -> StaticName {
        "TokenLoss".into()
    }

    op_as_typed_op!();
}

impl TokenLoss {
    /// Logits of rows (R, K), flat.
    fn logits(&self, ctx: &EvalContext, x: Tensor, bias: Option<&TValue>) -> TractResult<Tensor> {
        let Some(head) = &self.head else { return Ok(x) };
        let inputs: TVec<TValue> = [x.into_tvalue()].into_iter().chain(bias.cloned()).collect();
        Ok(head.eval(ctx, inputs)?.remove(0).into_tensor())
    }

    /// The gradient by x of that by the logits.
    fn back(&self, ctx: &EvalContext, gradient: Tensor) -> TractResult<Tensor> {
        let Some(head) = &self.head else { return Ok(gradient) };
        let back: FrozenLinearTransposed = head.transposed();
        Ok(back.eval(ctx, tvec![gradient.into_tvalue()])?.remove(0).into_tensor())
    }
}

/// Puts softmax - one-hot in the place of a row of logits; -log softmax of `target`.
fn entropy(row: &mut [f32], target: usize) -> f64 {
    let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let at = f64::from(row[target] - greatest);
    let mut sum = 0f64;
    for v in row.iter_mut() {
        *v = (*v - greatest).exp();
        sum += f64::from(*v);
    }
    let scale = (1.0 / sum) as f32;
    row.iter_mut().for_each(|v| *v *= scale);
    row[target] -= 1.0;
    sum.ln() - at
}

impl EvalOp for TokenLoss {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (x, targets) = (floats(&inputs[0])?, floats(&inputs[1])?);
        let width = inputs[0].shape().last().copied().unwrap_or(0);
        ensure!(width > 0 && targets.len() * width == x.len(), "a target for each row");
        let mut sum = 0f64;
        let mut gradient = Tensor::zero::<f32>(inputs[0].shape())?;
        let mut plain = gradient.try_as_plain_ram_mut()?;
        let to = plain.as_slice_mut::<f32>()?;
        let counted: Vec<usize> = (0..targets.len()).filter(|at| targets[*at] > 0.0).collect();
        for rows in counted.chunks(STRETCH) {
            let some: Vec<f32> =
                rows.iter().flat_map(|at| &x[at * width..][..width]).copied().collect();
            let some = Tensor::from_shape(&[rows.len(), width], &some)?;
            let mut logits = self.logits(ctx, some, inputs.get(2))?;
            let vocabulary = logits.shape().last().copied().unwrap_or(0);
            let mut values = logits.try_as_plain_ram_mut()?;
            for (row, at) in values.as_slice_mut::<f32>()?.chunks_mut(vocabulary.max(1)).zip(rows) {
                let target = targets[*at] as usize - 1;
                ensure!(target < vocabulary, "token {target} of a vocabulary of {vocabulary}");
                sum += entropy(row, target);
            }
            let back = self.back(ctx, logits)?;
            for (from, at) in floats(&back)?.chunks(width).zip(rows) {
                to[at * width..][..width].copy_from_slice(from);
            }
        }
        Ok(tvec![tensor0(sum as f32).into_tvalue(), gradient.into_tvalue()])
    }
}

impl TypedOp for TokenLoss {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let bias = self.head.as_ref().is_some_and(|head| head.has_bias);
        let expected = 2 + usize::from(bias);
        ensure!(inputs.len() == expected, "expected {expected} inputs, found {}", inputs.len());
        expect_f32("x", inputs[0])?;
        expect_f32("targets", inputs[1])?;
        if let Some(head) = &self.head {
            product_fact(inputs[0], head.in_features, head.out_features)?;
        }
        Ok(tvec![f32::scalar_fact(), inputs[0].without_value()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// log softmax of (1, 2, 3) is (-2.40761, -1.40761, -0.40761); the second row counts for nothing.
    #[test]
    fn rows_that_count_are_summed_and_their_gradients_are_softmax_less_the_target() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([1, 3, 3])).unwrap();
        let targets = model.add_source("targets", f32::fact([1, 3, 1])).unwrap();
        let y = model.wire_node("loss", TokenLoss { head: None }, &[x, targets]).unwrap();
        model.select_output_outlets(&y).unwrap();
        let logits = [1f32, 2., 3., 9., 9., 9., 1000., -1000., 0.];
        let inputs = tvec![
            Tensor::from_shape(&[1, 3, 3], &logits).unwrap().into_tvalue(),
            Tensor::from_shape(&[1, 3, 1], &[3f32, 0., 1.]).unwrap().into_tvalue(),
        ];
        let found = model.into_runnable().unwrap().run(inputs).unwrap();
        let values = |at: usize| floats(&found[at]).unwrap().to_vec();
        assert!((values(0)[0] - 0.407_606).abs() < 1e-5, "{:?}", values(0));
        let want = [0.090_030_57, 0.244_728_47, 0.665_240_96 - 1.0];
        for (got, want) in values(1)[..3].iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        assert_eq!(values(1)[3..], [0.0; 6]);
    }
}
