//! Rounding as quantized models do it, made so that gradients go through, and values that such models
//! take to integers and back kept as floats.

use super::weights::{expect_f32, filled, floats};
use tract_core::internal::*;
use tract_core::ops::cast::Cast;

/// y = x rounded, halves to even. Its gradient is that of y = x (the straight-through estimator, Bengio
/// et al. 2013, arXiv 1308.3432): the true one is zero, and nothing below a rounding would learn.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoundThrough;

/// The scale and zero point of ONNX's DynamicQuantizeLinear, scalars, from x of any shape: 256 steps from
/// the least value to the greatest, 0 among them. Constants to gradients.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange;

/// Floats from here on are whole numbers.
const WHOLE: f32 = 8_388_608.0;

fn round(x: f32) -> f32 {
    let size = x.abs();
    let rounded = ((size + WHOLE) - WHOLE).copysign(x);
    if size < WHOLE { rounded } else { x }
}

impl Op for RoundThrough {
    fn name(&self) -> StaticName {
        "RoundThrough".into()
    }

    op_as_typed_op!();
}

impl EvalOp for RoundThrough {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = floats(&inputs[0])?;
        let y = filled(inputs[0].shape(), |y| {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = round(*x));
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

impl TypedOp for RoundThrough {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1, "expected one input, found {}", inputs.len());
        expect_f32("x", inputs[0])?;
        Ok(tvec!(inputs[0].without_value()))
    }
}

impl Op for ByteRange {
    fn name(&self) -> StaticName {
        "ByteRange".into()
    }

    op_as_typed_op!();
}

impl EvalOp for ByteRange {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = floats(&inputs[0])?;
        let (low, high) = x.iter().fold((0f32, 0f32), |(l, h), v| (l.min(*v), h.max(*v)));
        let width = high - low;
        // As ONNX Runtime has it: no scale of 0.
        let scale = if width == 0.0 { 1.0 } else { width / 255.0 };
        let point = round(-low / scale).clamp(0.0, 255.0);
        Ok(tvec!(tensor0(scale).into_tvalue(), tensor0(point).into_tvalue()))
    }
}

impl TypedOp for ByteRange {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1, "expected one input, found {}", inputs.len());
        expect_f32("x", inputs[0])?;
        let scalar = f32::fact(TVec::<TDim>::new());
        Ok(tvec!(scalar.clone(), scalar))
    }
}

/// Leaves out casts of rounded values to integers and back, through which no gradient would go.
///
/// # Errors
/// tract's, where a patch does not fit.
pub(super) fn rounded_as_floats(model: &mut TypedModel) -> TractResult<()> {
    for id in model.eval_order()? {
        let node = model.node(id);
        let back = node.op_as::<Cast>().is_some_and(|op| op.to == f32::datum_type());
        let Some(before) = node.inputs.first().filter(|_| back) else { continue };
        let to_integer = model.node(before.node);
        let Some(rounded) = to_integer.inputs.first().filter(|_| to_integer.op_is::<Cast>()) else {
            continue;
        };
        let f32s = model.outlet_fact(*rounded)?.datum_type == f32::datum_type();
        let integer = model.outlet_fact(*before)?.datum_type.is_integer();
        if !f32s || !integer || !is_rounded(model, *rounded) {
            continue;
        }
        let mut patch = TypedModelPatch::default();
        let wire = patch.tap_model(model, *rounded)?;
        patch.shunt_outside(model, id.into(), wire)?;
        patch.apply(model)?;
    }
    Ok(())
}

/// Whether a value is a [`RoundThrough`]'s, or one with whole numbers added and limited after it.
fn is_rounded(model: &TypedModel, mut outlet: OutletId) -> bool {
    use tract_core::ops::binary::TypedBinOp;
    use tract_core::ops::math::{Add, Max, Min};
    for _ in 0..4 {
        let node = model.node(outlet.node);
        if node.op_is::<RoundThrough>() {
            return true;
        }
        let Some(op) = node.op_as::<TypedBinOp>() else { return false };
        let Some(first) = node.inputs.first() else { return false };
        if !(op.0.is::<Add>() || op.0.is::<Max>() || op.0.is::<Min>()) {
            return false;
        }
        outlet = *first;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(op: impl EvalOp, x: &[f32]) -> Vec<Vec<f32>> {
        let x = tensor1(x).into_tvalue();
        let found = op.eval(&EvalContext::out_of_plan(), tvec!(x)).unwrap();
        found.iter().map(|t| floats(t).unwrap().to_vec()).collect()
    }

    #[test]
    fn halves_go_to_even_and_large_numbers_stay() {
        let x = [0.5f32, 1.5, 2.5, -0.5, -1.5, 3.499_999, 8_388_609.0, -1e30, 0.49999997, 123.5];
        let y = eval(RoundThrough, &x);
        let expected: Vec<f32> = x.iter().map(|v| v.round_ties_even()).collect();
        assert_eq!(y[0], expected);
        assert!(eval(RoundThrough, &[f32::NAN, f32::INFINITY])[0][0].is_nan());
    }

    /// ONNX's own examples of DynamicQuantizeLinear.
    #[test]
    fn ranges_are_onnxs() {
        let found = eval(ByteRange, &[0.0, 2.0, -3.0, -2.5, 1.34, 0.5]);
        assert!((found[0][0] - 0.019_607_844).abs() < 1e-9);
        assert_eq!(found[1], [153.0]);
        let found = eval(ByteRange, &[-1.0, -2.1, -1.3, -2.5, -3.34, -4.0]);
        assert_eq!(found[1], [255.0]);
        assert_eq!(eval(ByteRange, &[0.0, 0.0]), [[1.0], [0.0]]);
    }
}
