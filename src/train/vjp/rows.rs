//! Steps of gradient graphs that go along rows (the last axis) once, where tract's separate ops go
//! over the whole tensor again and again.

use tract_core::internal::*;
use tract_core::ops::nn::{Reduce, Reducer};
use tract_core::ops::scan::Scan;

use super::ops::into_f32;

/// dx of a softmax over rows from (dy, y): y·(dy - Σ dy·y).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SoftmaxGradient;

/// dx of y = x·r, r = 1/√(mean x² + ε) over rows, from (dy, x): r·(dy - x·r²·mean(dy·x)).
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNormGradient {
    /// ε.
    pub epsilon: f32,
}

impl Eq for RmsNormGradient {}

/// Sums of rows; the axis stays, of length 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowSum;

/// Lanes that a sum is spread over, so that it can be computed with vectors.
const LANES: usize = 16;

/// Σ a·b.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

fn sum(a: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = a.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    for a in chunks {
        for (lane, a) in lanes.iter_mut().zip(a) {
            *lane += a;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Calls `row` with each row of dy, to be changed in place, and of `other`.
fn each_row(inputs: TVec<TValue>, row: impl Fn(&mut [f32], &[f32])) -> TractResult<TVec<TValue>> {
    let (dy, other) = args_2!(inputs);
    ensure!(dy.shape() == other.shape(), "shapes {:?} and {:?}", dy.shape(), other.shape());
    let len = dy.shape().last().copied().unwrap_or(1).max(1);
    // Copied only where somebody else reads it too.
    let mut dy = dy.into_tensor();
    let others = other.try_as_plain_ram()?.as_slice::<f32>()?.chunks_exact(len);
    let mut plain = dy.try_as_plain_ram_mut()?;
    for (dy, other) in plain.as_slice_mut::<f32>()?.chunks_exact_mut(len).zip(others) {
        row(dy, other);
    }
    Ok(tvec!(dy.into_tvalue()))
}

fn two_alike(inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
    ensure!(inputs.len() == 2 && inputs.iter().all(|f| f.datum_type == f32::datum_type()));
    ensure!(inputs[0].rank() == inputs[1].rank() && inputs[0].rank() > 0);
    Ok(tvec!(inputs[0].without_value()))
}

impl Op for SoftmaxGradient {
    fn name(&self) -> StaticName {
        "OffshootSoftmaxGradient".into()
    }

    op_as_typed_op!();
}

impl EvalOp for SoftmaxGradient {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        each_row(inputs, |dy, y| {
            let shared = dot(dy, y);
            for (dy, y) in dy.iter_mut().zip(y) {
                *dy = y * (*dy - shared);
            }
        })
    }
}

impl TypedOp for SoftmaxGradient {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        two_alike(inputs)
    }
}

impl Op for RmsNormGradient {
    fn name(&self) -> StaticName {
        "OffshootRmsNormGradient".into()
    }

    op_as_typed_op!();
}

impl EvalOp for RmsNormGradient {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        each_row(inputs, |dy, x| {
            let len = x.len() as f32;
            let r = (dot(x, x) / len + self.epsilon).sqrt().recip();
            let shared = r * r * dot(dy, x) / len;
            for (dy, x) in dy.iter_mut().zip(x) {
                *dy = r * (*dy - x * shared);
            }
        })
    }
}

impl TypedOp for RmsNormGradient {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        two_alike(inputs)
    }
}

impl Op for RowSum {
    fn name(&self) -> StaticName {
        "OffshootRowSum".into()
    }

    op_as_typed_op!();
}

impl EvalOp for RowSum {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = args_1!(inputs);
        let mut shape: TVec<usize> = x.shape().into();
        let len = shape.last().copied().context("a row needs an axis")?;
        shape.pop();
        shape.push(1);
        let mut sums = Tensor::zero::<f32>(&shape)?;
        if len > 0 {
            let rows = x.try_as_plain_ram()?.as_slice::<f32>()?.chunks_exact(len);
            let mut plain = sums.try_as_plain_ram_mut()?;
            for (to, row) in plain.as_slice_mut::<f32>()?.iter_mut().zip(rows) {
                *to = sum(row);
            }
        }
        Ok(tvec!(sums.into_tvalue()))
    }
}

impl TypedOp for RowSum {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1 && inputs[0].rank() > 0);
        let mut fact = inputs[0].without_value();
        fact.shape.set(fact.rank() - 1, 1.to_dim());
        Ok(tvec!(fact))
    }
}

/// Makes a [`RowSum`] of every sum of f32 over the last axis alone.
pub fn sum_rows(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes().len() {
        if let Some(scan) = model.nodes_mut()[id].op_as_mut::<Scan>() {
            sum_rows(&mut scan.body)?;
        }
        let node = model.node(id);
        let Some(op) = node.op_as::<Reduce>() else { continue };
        let fact = model.outlet_fact(node.inputs[0])?;
        let last = fact.rank().checked_sub(1).is_some_and(|last| op.axes[..] == [last]);
        if op.reducer == Reducer::Sum && last && fact.datum_type == f32::datum_type() {
            model.nodes_mut()[id].op = Box::new(RowSum);
        }
    }
    Ok(())
}

/// dx of a product over `axes` from (x, dy): dy times the product of the others, zeros or not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProductGradient {
    /// The axes that were multiplied up; they stay with length 1.
    pub axes: TVec<usize>,
}

impl Op for ProductGradient {
    fn name(&self) -> StaticName {
        "OffshootProductGradient".into()
    }

    op_as_typed_op!();
}

impl EvalOp for ProductGradient {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (x, dy) = args_2!(inputs);
        let dt = x.datum_type();
        let (x, dy) = (into_f32(x)?, into_f32(dy)?);
        let values = x.try_as_plain_ram()?.as_slice::<f32>()?;
        let dy = dy.try_as_plain_ram()?.as_slice::<f32>()?;
        // The places of x by the place of dy that they are multiplied to.
        let mut factors: Vec<Vec<usize>> = vec![vec![]; dy.len()];
        for at in 0..values.len() {
            let (mut rest, mut to, mut stride) = (at, 0, 1);
            for (axis, &length) in x.shape().iter().enumerate().rev() {
                if !self.axes.contains(&axis) {
                    to += rest % length * stride;
                    stride *= length;
                }
                rest /= length;
            }
            factors.get_mut(to).context("shape of dy")?.push(at);
        }
        let mut dx = Tensor::zero::<f32>(x.shape())?;
        let mut plain = dx.try_as_plain_ram_mut()?;
        let slopes = plain.as_slice_mut::<f32>()?;
        for (factors, dy) in factors.iter().zip(dy) {
            let mut before = *dy;
            for &at in factors {
                slopes[at] = before;
                before *= values[at];
            }
            let mut behind = 1.0;
            for &at in factors.iter().rev() {
                slopes[at] *= behind;
                behind *= values[at];
            }
        }
        Ok(tvec![dx.cast_to_dt(dt)?.into_owned().into_tvalue()])
    }
}

impl TypedOp for ProductGradient {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 2 && inputs[0].rank() == inputs[1].rank());
        Ok(tvec![inputs[0].without_value()])
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::vjp::check::random;

    #[test]
    fn sums_do_not_depend_on_the_length_of_a_row() {
        for len in [0, 1, 15, 16, 17, 50] {
            let a: Vec<f32> = (0..len).map(|i| i as f32 - 7.0).collect();
            let b: Vec<f32> = (0..len).map(|i| 3.0 - i as f32).collect();
            assert_eq!(sum(&a), a.iter().sum::<f32>());
            assert_eq!(dot(&a, &b), a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>());
        }
    }

    #[test]
    fn only_sums_over_the_last_axis_are_replaced() {
        for (axes, replaced) in [(tvec![2], true), (tvec![1], false), (tvec![1, 2], false)] {
            let mut model = TypedModel::default();
            let x = model.add_source("x", f32::fact([2, 3, 21])).unwrap();
            let op = Reduce::new(axes, Reducer::Sum);
            let y = model.wire_node("y", op, &[x]).unwrap();
            model.select_output_outlets(&y).unwrap();
            let run = |model: &TypedModel| {
                let x = random(&[2, 3, 21], 1).into_tvalue();
                model.clone().into_runnable().unwrap().run(tvec![x]).unwrap().remove(0)
            };
            let want = run(&model);
            sum_rows(&mut model).unwrap();
            assert_eq!(model.node(y[0].node).op_is::<RowSum>(), replaced);
            run(&model).close_enough(&want, Approximation::Approximate).unwrap();
        }
    }
}
