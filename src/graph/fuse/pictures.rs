//! Steps over pictures that tract takes one value at a time.

use tract_core::internal::*;
use tract_core::ops::cnn::{MaxPool, PaddingSpec};
use tract_core::ops::nn::DataFormat;

use crate::graph::weights::{expect_f32, filled, floats};
use crate::graph::window::{Padding, Window, nhwc, nhwc_fact};
use crate::quant;

/// y\[N, H, W, C\] from x\[N, C, H, W\].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ChannelsLast;

impl Op for ChannelsLast {
    fn name(&self) -> StaticName {
        "ChannelsLast".into()
    }

    op_as_typed_op!();
}

impl EvalOp for ChannelsLast {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [n, c, h, w] = nhwc(inputs[0].shape())?;
        let x = floats(&inputs[0])?;
        let y = filled(&[n, h, w, c], |y| {
            quant::channels_last([n, c, h * w], x, y);
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

impl TypedOp for ChannelsLast {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1, "expected 1 input, found {}", inputs.len());
        expect_f32("x", inputs[0])?;
        let [n, c, h, w] = nhwc_fact(inputs[0])?;
        Ok(tvec!(f32::fact([n, h, w, c])))
    }
}

/// The axis move at the start of a channels-last stretch.
pub fn channels_last(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(AxisOp::Move(1, 3)) = node.op_as::<AxisOp>() else { return Ok(None) };
    let x = model.outlet_fact(node.inputs[0])?;
    if x.rank() != 4 || x.datum_type != f32::datum_type() {
        return Ok(None);
    }
    TypedModelPatch::replace_single_op(model, node, &node.inputs, ChannelsLast).map(Some)
}

/// The largest value in each window of each channel, channels last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Largest {
    window: Window,
}

impl Op for Largest {
    fn name(&self) -> StaticName {
        "Largest".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![self.window.describe()])
    }

    op_as_typed_op!();
}

impl EvalOp for Largest {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let g = self.window.geometry(nhwc(inputs[0].shape())?)?;
        let x = floats(&inputs[0])?;
        let y = filled(&[g.batch, g.out_height(), g.out_width(), g.channels], |y| {
            quant::max_pool(&g, x, y);
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

impl TypedOp for Largest {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1, "expected 1 input, found {}", inputs.len());
        expect_f32("x", inputs[0])?;
        let [n, h, w, c] = nhwc_fact(inputs[0])?;
        let (oh, ow) = (self.window.output_side(0, &h)?, self.window.output_side(1, &w)?);
        Ok(tvec!(f32::fact([n, oh, ow, c])))
    }
}

/// A maximum over windows of two axes, channels last, whose sides don't round up.
pub fn max_pool(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(op) = node.op_as::<MaxPool>() else { return Ok(None) };
    let spec = &op.pool_spec;
    let two = |v: &[usize]| <[usize; 2]>::try_from(v).ok();
    let Some(kernel) = two(&spec.kernel_shape) else { return Ok(None) };
    let Some(stride) = two(&spec.strides()) else { return Ok(None) };
    let Some(dilation) = two(&spec.dilations()) else { return Ok(None) };
    let padding = match &spec.padding {
        PaddingSpec::Valid => Padding::Valid,
        PaddingSpec::SameUpper => Padding::SameUpper,
        PaddingSpec::SameLower => Padding::SameLower,
        PaddingSpec::Explicit(before, after)
        | PaddingSpec::ExplicitOnnxPool(before, after, false) => {
            let (Some([top, left]), Some([bottom, right])) = (two(before), two(after)) else {
                return Ok(None);
            };
            Padding::Explicit([top, left, bottom, right])
        }
        PaddingSpec::ExplicitOnnxPool(..) => return Ok(None),
    };
    let x = model.outlet_fact(node.inputs[0])?;
    let plain = op.with_index_outputs.is_none()
        && spec.data_format == DataFormat::NHWC
        && x.datum_type == f32::datum_type();
    let largest = Largest { window: Window { kernel, stride, dilation, padding } };
    // Only where both agree on the sides.
    let same = |facts: TVec<TypedFact>| facts[0].shape == node.outputs[0].fact.shape;
    if !plain || !largest.output_facts(&[x]).is_ok_and(same) {
        return Ok(None);
    }
    TypedModelPatch::replace_single_op(model, node, &node.inputs, largest).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::fuse::fuse;
    use crate::graph::testing::{run_model, tensor, values, windows};
    use tract_core::ops::cnn::PoolSpec;

    #[test]
    fn pools_and_moves_give_what_tracts_give() {
        for window in windows() {
            let padding = match window.padding {
                Padding::Valid => PaddingSpec::Valid,
                Padding::SameUpper => PaddingSpec::SameUpper,
                Padding::SameLower => PaddingSpec::SameLower,
                Padding::Explicit([t, l, b, r]) => {
                    PaddingSpec::ExplicitOnnxPool(tvec!(t, l), tvec!(b, r), false)
                }
            };
            let [kernel, dilation, stride]: [TVec<usize>; 3] =
                [window.kernel, window.dilation, window.stride].map(|a| a.into_iter().collect());
            let (nhwc, none) = (DataFormat::NHWC, None);
            let pool_spec =
                PoolSpec::new(nhwc, kernel, padding, Some(dilation), Some(stride), 5, 5);
            let mut model = TypedModel::default();
            let x = model.add_source("x", f32::fact([2, 5, 9, 8])).unwrap();
            let x = model.wire_node("move", AxisOp::Move(1, 3), &[x]).unwrap();
            let pool = MaxPool { pool_spec, with_index_outputs: none };
            let y = model.wire_node("pool", pool, &x).unwrap();
            model.select_output_outlets(&y).unwrap();
            let (fused, matches) = fuse(model.clone()).unwrap();
            assert_eq!(matches, [("channels-last", 1), ("max-pool", 1)], "{window:?}");
            let x = tensor(&[2, 5, 9, 8], &values(720, 1));
            let run = |model: TypedModel| {
                let model = model.into_optimized().unwrap();
                run_model(model, tvec![x.clone().into_tvalue()], None).unwrap().remove(0)
            };
            assert_eq!(floats(&run(model)).unwrap(), floats(&run(fused)).unwrap(), "{window:?}");
        }
    }
}
