//! The frozen linear layer and its input gradient.

use tract_core::internal::*;

use super::fused_linear::FusedLinear;
use super::weights::{FrozenWeights, expect_bias, expect_dim, expect_f32, filled, floats};
use crate::quant::product_transposed;

/// y\[.., N\] = x\[.., K\] · Wᵀ (+ bias\[N\]) with W (N, K) in the weight table, plus what the active
/// adapter adds to the target: (x · lora_aᵀ) · lora_bᵀ. Inputs: x, and bias if `has_bias`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrozenLinear {
    /// The weight table.
    pub weights: FrozenWeights,
    /// Index of W in the weight table.
    pub weight: usize,
    /// Index in the target table, if an adapter may change this layer.
    pub target: Option<usize>,
    /// K.
    pub in_features: usize,
    /// N.
    pub out_features: usize,
    /// Whether there is a second input, bias\[N\].
    pub has_bias: bool,
}

impl FrozenLinear {
    /// The layer whose shape is that of weight `weight`; an error if there is no such weight.
    pub fn new(
        weights: &FrozenWeights,
        weight: usize,
        target: Option<usize>,
        has_bias: bool,
    ) -> TractResult<FrozenLinear> {
        let w = weights.weight(weight)?;
        let (out_features, in_features) = (w.rows(), w.cols());
        let weights = weights.clone();
        Ok(FrozenLinear { weights, weight, target, in_features, out_features, has_bias })
    }

    /// The op for this layer's input gradient.
    pub fn transposed(&self) -> FrozenLinearTransposed {
        FrozenLinearTransposed {
            weights: self.weights.clone(),
            weight: self.weight,
            in_features: self.in_features,
            out_features: self.out_features,
        }
    }
}

/// The facts of a product whose last axis goes from `from` to `to`.
pub(super) fn product_fact(x: &TypedFact, from: usize, to: usize) -> TractResult<TypedFact> {
    expect_f32("x", x)?;
    expect_dim("x's last axis", x.shape.last(), from)?;
    let mut shape = x.shape.to_tvec();
    if let Some(last) = shape.last_mut() {
        *last = to.to_dim();
    }
    Ok(f32::fact(shape))
}

/// The shape with `to` as its last axis, and the number of rows before it.
pub(super) fn rows(shape: &[usize], from: usize, to: usize) -> TractResult<(TVec<usize>, usize)> {
    let Some((&last, leading)) = shape.split_last() else { bail!("x is a scalar") };
    ensure!(last == from, "x's last axis: expected {from}, found {last}");
    let mut out: TVec<usize> = leading.into();
    out.push(to);
    Ok((out, leading.iter().product()))
}

impl Op for FrozenLinear {
    fn name(&self) -> StaticName {
        "FrozenLinear".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let (k, n) = (self.in_features, self.out_features);
        Ok(vec![format!("{k} -> {n}, weight {}, target {:?}", self.weight, self.target)])
    }

    op_as_typed_op!();
}

impl EvalOp for FrozenLinear {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        FusedLinear::of(self).eval(ctx, inputs)
    }
}

impl TypedOp for FrozenLinear {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let expected = 1 + self.has_bias as usize;
        ensure!(inputs.len() == expected, "expected {expected} inputs, found {}", inputs.len());
        expect_bias(inputs, 1, self.out_features)?;
        Ok(tvec!(product_fact(inputs[0], self.in_features, self.out_features)?))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let work = inputs[0].shape.volume() * self.out_features;
        let params = (self.in_features * self.out_features).to_dim();
        Ok(tvec!((Cost::FMA(f32::datum_type()), work), (Cost::Params(f32::datum_type()), params)))
    }
}

/// dx\[.., K\] = dy\[.., N\] · W: the input gradient of [`FrozenLinear`], of the base alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrozenLinearTransposed {
    /// The weight table.
    pub weights: FrozenWeights,
    /// Index of W in the weight table.
    pub weight: usize,
    /// K.
    pub in_features: usize,
    /// N.
    pub out_features: usize,
}

impl Op for FrozenLinearTransposed {
    fn name(&self) -> StaticName {
        "FrozenLinearTransposed".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{} -> {}, weight {}", self.out_features, self.in_features, self.weight)])
    }

    op_as_typed_op!();
}

impl EvalOp for FrozenLinearTransposed {
    not_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let w = self.weights.weight(self.weight)?;
        let (shape, _) = rows(inputs[0].shape(), w.rows(), w.cols())?;
        let dy = floats(&inputs[0])?;
        let dx = filled(&shape, |dx| {
            product_transposed(w, dy, dx);
            Ok(())
        })?;
        Ok(tvec!(dx))
    }
}

impl TypedOp for FrozenLinearTransposed {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1, "expected 1 input, found {}", inputs.len());
        Ok(tvec!(product_fact(inputs[0], self.out_features, self.in_features)?))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        Ok(tvec!((Cost::FMA(f32::datum_type()), inputs[0].shape.volume() * self.in_features)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::testing::{bound, matrix, run, run_with, tensor, values};

    /// y = x · Wᵀ + bias, one dot product at a time.
    fn naive(w: &[f32], k: usize, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let n = w.len() / k;
        let dot = |x: &[f32], i: usize| -> f32 {
            x.iter().zip(&w[i * k..][..k]).map(|(a, b)| a * b).sum::<f32>()
        };
        x.chunks(k)
            .flat_map(|x| {
                (0..n).map(move |i| dot(x, i) + bias.map_or(0.0, |b| b[i])).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn output_is_the_product_with_the_frozen_rows() {
        let w = values(6 * 5, 1);
        let weights = FrozenWeights::new(vec![matrix(2, 2, &values(4, 9)), matrix(6, 5, &w)]);
        let (x, bias) = (values(2 * 3 * 5, 2), values(6, 3));
        for has_bias in [false, true] {
            let op = FrozenLinear::new(&weights, 1, None, has_bias).unwrap();
            let mut inputs = vec![tensor(&[2, 3, 5], &x)];
            if has_bias {
                inputs.push(tensor(&[6], &bias));
            }
            let y = run(op, &inputs).unwrap();
            assert_eq!(y.shape(), &[2, 3, 6]);
            let want = naive(&w, 5, &x, has_bias.then_some(&bias[..]));
            assert!(y.close_enough(&tensor(&[2, 3, 6], &want), true).is_ok());
        }
    }

    #[test]
    fn an_active_adapter_adds_its_product_to_its_target_only() {
        let w = values(6 * 5, 1);
        let weights = FrozenWeights::new(vec![matrix(6, 5, &w)]);
        let x = values(4 * 5, 2);
        let (a, b) = (values(2 * 5, 4), values(6 * 2, 5));
        let adapter = bound(vec![None, Some((2, &a, &b))]);
        let inputs = [tensor(&[4, 5], &x)];
        let base = run(FrozenLinear::new(&weights, 0, None, false).unwrap(), &inputs).unwrap();
        let delta = naive(&b, 2, &naive(&a, 5, &x, None), None);
        for (target, changed) in
            [(None, false), (Some(0), false), (Some(1), true), (Some(7), false)]
        {
            let op = FrozenLinear::new(&weights, 0, target, false).unwrap();
            let y = run_with(op, &inputs, Some(&adapter)).unwrap();
            if changed {
                let want: Vec<f32> =
                    floats(&base).unwrap().iter().zip(&delta).map(|(y, d)| y + d).collect();
                assert!(y.close_enough(&tensor(&[4, 6], &want), true).is_ok());
            } else {
                assert_eq!(floats(&y).unwrap(), floats(&base).unwrap(), "bit-equal to the base");
            }
        }
    }

    #[test]
    fn an_adapter_of_another_shape_is_an_error() {
        let weights = FrozenWeights::new(vec![matrix(6, 5, &values(30, 1))]);
        let (a, b) = (values(2 * 4, 4), values(6 * 2, 5));
        let op = FrozenLinear::new(&weights, 0, Some(0), false).unwrap();
        let inputs = [tensor(&[4, 5], &values(20, 2))];
        let e = run_with(op, &inputs, Some(&bound(vec![Some((2, &a, &b))]))).unwrap_err();
        assert!(format!("{e:#}").contains("don't fit"), "{e:#}");
    }

    #[test]
    fn the_input_gradient_is_the_adjoint() {
        let w = values(6 * 5, 1);
        let weights = FrozenWeights::new(vec![matrix(6, 5, &w)]);
        let op = FrozenLinear::new(&weights, 0, None, false).unwrap();
        let (x, dy) = (tensor(&[3, 5], &values(15, 2)), tensor(&[3, 6], &values(18, 3)));
        let y = run(op.clone(), std::slice::from_ref(&x)).unwrap();
        let dx = run(op.transposed(), std::slice::from_ref(&dy)).unwrap();
        assert_eq!(dx.shape(), &[3, 5]);
        let dot = |a: &Tensor, b: &Tensor| -> f64 {
            let pairs = floats(a).unwrap().iter().zip(floats(b).unwrap());
            pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        assert!((dot(&y, &dy) - dot(&x, &dx)).abs() < 1e-4);
    }

    #[test]
    fn wrong_inputs_are_refused_when_wired() {
        let weights = FrozenWeights::new(vec![matrix(6, 5, &values(30, 1))]);
        assert!(FrozenLinear::new(&weights, 1, None, false).is_err());
        let op = FrozenLinear::new(&weights, 0, None, true).unwrap();
        let fact = |dims: &[usize]| f32::fact(dims);
        let facts = |x: &TypedFact, b: &TypedFact| op.output_facts(&[x, b]).map(|_| ());
        assert!(facts(&fact(&[2, 5]), &fact(&[6])).is_ok());
        assert!(facts(&fact(&[2, 4]), &fact(&[6])).is_err());
        assert!(facts(&fact(&[2, 5]), &fact(&[5])).is_err());
        assert!(facts(&fact(&[2, 5]), &fact(&[1, 6])).is_err());
        assert!(facts(&i64::fact([2, 5]), &fact(&[6])).is_err());
        assert!(facts(&fact(&[]), &fact(&[6])).is_err());
        assert!(op.output_facts(&[&fact(&[2, 5])]).is_err());
    }
}
