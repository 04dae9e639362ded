//! Rotary positions (arXiv:2104.09864), halves against each other: a step of plans, made by fusing.

use tract_core::internal::*;

use super::weights::{expect_f32, filled, floats};

/// y\[.., D\] = x · cos + turned · sin, where turned is the second half of x along its last axis, negated, before the
/// first. Inputs: x; cos and sin of the same rank and D, whose other axes are as x's or 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rotary;

impl Op for Rotary {
    fn name(&self) -> StaticName {
        "Rotary".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Rotary {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        ensure!(inputs.len() == 3, "expected 3 inputs, found {}", inputs.len());
        let shape = inputs[0].shape();
        let (x, cos, sin) = (floats(&inputs[0])?, floats(&inputs[1])?, floats(&inputs[2])?);
        let (of_cos, of_sin) = (strides(&inputs[1], shape)?, strides(&inputs[2], shape)?);
        let (&width, leading) = shape.split_last().context("x is a scalar")?;
        ensure!(width > 0 && width % 2 == 0, "{width} values have no halves");
        let y = filled(shape, |y| {
            let mut index: TVec<usize> = leading.iter().map(|_| 0).collect();
            for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
                let row = |all, strides: &[usize]| -> TractResult<_> {
                    let at: usize = index.iter().zip(strides).map(|(i, s)| i * s).sum();
                    <[f32]>::get(all, at..at + width).context("a factor ends too early")
                };
                turn(x, row(cos, &of_cos)?, row(sin, &of_sin)?, y);
                for (i, n) in index.iter_mut().zip(leading).rev() {
                    *i += 1;
                    if *i < *n {
                        break;
                    }
                    *i = 0;
                }
            }
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

/// One row. Products are rounded before their sum, as the steps that this stands for do it.
fn turn(x: &[f32], cos: &[f32], sin: &[f32], y: &mut [f32]) {
    let half = x.len() / 2;
    let (first, second) = x.split_at(half);
    for i in 0..half {
        y[i] = first[i] * cos[i] + -second[i] * sin[i];
        y[half + i] = second[i] * cos[half + i] + first[i] * sin[half + i];
    }
}

/// Values from one to the next along each axis of `shape` but the last; 0 where `factor` has one for all.
fn strides(factor: &TValue, shape: &[usize]) -> TractResult<TVec<usize>> {
    let own = factor.shape();
    let fits = |(axis, (own, of)): (usize, (&usize, &usize))| {
        own == of || (*own == 1 && axis + 1 < shape.len())
    };
    ensure!(
        own.len() == shape.len() && own.iter().zip(shape).enumerate().all(fits),
        "a factor of {own:?} for {shape:?}"
    );
    let mut strides: TVec<usize> = own.iter().map(|_| 0).collect();
    let mut stride = 1;
    for axis in (0..own.len()).rev() {
        strides[axis] = if own[axis] == 1 { 0 } else { stride };
        stride *= own[axis];
    }
    strides.pop();
    Ok(strides)
}

impl TypedOp for Rotary {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 3, "expected 3 inputs, found {}", inputs.len());
        inputs.iter().try_for_each(|fact| expect_f32("an input", fact))?;
        Ok(tvec!(inputs[0].without_value()))
    }
}
