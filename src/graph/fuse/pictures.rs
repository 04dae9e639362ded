//! Steps over pictures that tract takes one value at a time.

use tract_core::internal::*;
use tract_core::ops::cnn::{MaxPool, PaddingSpec};
use tract_core::ops::nn::DataFormat;

use super::only_reader;
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

/// The op for a maximum over windows of two axes whose sides don't round up.
fn largest(op: &MaxPool) -> Option<Largest> {
    let spec = &op.pool_spec;
    let two = |v: &[usize]| <[usize; 2]>::try_from(v).ok();
    let padding = match &spec.padding {
        PaddingSpec::Valid => Padding::Valid,
        PaddingSpec::SameUpper => Padding::SameUpper,
        PaddingSpec::SameLower => Padding::SameLower,
        PaddingSpec::Explicit(before, after)
        | PaddingSpec::ExplicitOnnxPool(before, after, false) => {
            let ([top, left], [bottom, right]) = (two(before)?, two(after)?);
            Padding::Explicit([top, left, bottom, right])
        }
        PaddingSpec::ExplicitOnnxPool(..) => return None,
    };
    let window = Window {
        kernel: two(&spec.kernel_shape)?,
        stride: two(&spec.strides())?,
        dilation: two(&spec.dilations())?,
        padding,
    };
    Some(Largest { window })
}

/// A pool over channels last, which in the text of a graph is one over channels first between two
/// moves of the axes.
pub fn max_pool(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(op) = node.op_as::<MaxPool>() else { return Ok(None) };
    let Some(largest) = largest(op) else { return Ok(None) };
    // The text of a graph always asks for the places of the maxima too; here nobody may read them.
    let places = OutletId::new(node.id, 1);
    let read = node.outputs.get(1).is_some_and(|places| !places.successors.is_empty());
    if read || model.outputs.contains(&places) {
        return Ok(None);
    }
    let is = |node: &TypedNode, axes: AxisOp| node.op_as::<AxisOp>() == Some(&axes);
    let before = model.node(node.inputs[0].node);
    let (from, to) = if op.pool_spec.data_format == DataFormat::NHWC {
        (node.inputs[0], node)
    } else if op.pool_spec.data_format == DataFormat::NCHW
        && is(before, AxisOp::Move(3, 1))
        && let Some(after) = only_reader(model, node.id.into())
        && is(after, AxisOp::Move(1, 3))
    {
        (before.inputs[0], after)
    } else {
        return Ok(None);
    };
    // Only where both agree on the sides.
    let facts = largest.output_facts(&[model.outlet_fact(from)?]);
    if !facts.is_ok_and(|facts| facts[0].shape == to.outputs[0].fact.shape) {
        return Ok(None);
    }
    TypedModelPatch::rewire(model, &[from], &[to.id.into()], &|patch, x| {
        patch.wire_node(&to.name, largest.clone(), x)
    })
    .map(Some)
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
            for format in [DataFormat::NHWC, DataFormat::NCHW] {
                let pool_spec = PoolSpec::new(
                    format,
                    kernel.clone(),
                    padding.clone(),
                    Some(dilation.clone()),
                    Some(stride.clone()),
                    5,
                    5,
                );
                let mut model = TypedModel::default();
                let x = model.add_source("x", f32::fact([2, 5, 9, 8])).unwrap();
                let mut y = model.wire_node("move", AxisOp::Move(1, 3), &[x]).unwrap();
                if format == DataFormat::NCHW {
                    y = model.wire_node("first", AxisOp::Move(3, 1), &y).unwrap();
                }
                let pool = MaxPool { pool_spec, with_index_outputs: None };
                y = model.wire_node("pool", pool, &y).unwrap();
                if format == DataFormat::NCHW {
                    y = model.wire_node("last", AxisOp::Move(1, 3), &y).unwrap();
                }
                model.select_output_outlets(&y).unwrap();
                let (fused, matches) = fuse(model.clone()).unwrap();
                assert_eq!(matches, [("max-pool", 1), ("channels-last", 1)], "{window:?}");
                let x = tensor(&[2, 5, 9, 8], &values(720, 1));
                let run = |model: TypedModel| {
                    let model = model.into_optimized().unwrap();
                    run_model(model, tvec![x.clone().into_tvalue()], None).unwrap().remove(0)
                };
                let (want, got) = (run(model), run(fused));
                assert_eq!(floats(&want).unwrap(), floats(&got).unwrap(), "{window:?}");
            }
        }
    }
}
