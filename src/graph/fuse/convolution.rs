//! Convolutions with what follows them: a residual addition, then an activation. The values are
//! changed while a stretch of them is in the cache, after the adapter's part has been added.

use tract_core::internal::*;

use crate::graph::conv::After;
use crate::graph::weights::floats;
use crate::graph::{FrozenConv, FrozenDepthwise};
use crate::quant::Activation;

/// The convolution that a fused step starts with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Layer {
    Conv(FrozenConv),
    Depthwise(FrozenDepthwise),
}

/// y = activation(layer(x) + other). Inputs: those of the layer, then `other`, of y's shape, if there
/// is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FusedConvolution {
    layer: Layer,
    pub(super) has_residual: bool,
    pub(super) activation: Activation,
}

impl FusedConvolution {
    /// The layer at `node` with nothing after it, or what is fused there so far.
    pub(super) fn at(node: &TypedNode) -> Option<FusedConvolution> {
        if let Some(fused) = node.op_as::<FusedConvolution>() {
            return Some(fused.clone());
        }
        let layer = if let Some(op) = node.op_as::<FrozenConv>() {
            Layer::Conv(op.clone())
        } else if let Some(op) = node.op_as::<FrozenDepthwise>() {
            Layer::Depthwise(op.clone())
        } else {
            return None;
        };
        Some(FusedConvolution { layer, has_residual: false, activation: Activation::Identity })
    }

    /// A convolution to which nothing is added, and its activation.
    pub(super) fn plain_conv(&self) -> Option<(&FrozenConv, Activation)> {
        match &self.layer {
            Layer::Conv(op) if !self.has_residual => Some((op, self.activation)),
            _ => None,
        }
    }

    /// A convolution of which each output pixel sees one input pixel, the one in its place.
    pub(super) fn pointwise(&self) -> Option<&FrozenConv> {
        match &self.layer {
            Layer::Conv(op) => op.window.is_pointwise().then_some(op),
            Layer::Depthwise(_) => None,
        }
    }

    /// A depthwise convolution and its activation.
    pub(super) fn depthwise(&self) -> Option<(&FrozenDepthwise, Activation)> {
        match &self.layer {
            Layer::Depthwise(op) => Some((op, self.activation)),
            Layer::Conv(_) => None,
        }
    }

    /// Whether it can add a residual.
    pub(super) fn adds(&self) -> bool {
        matches!(self.layer, Layer::Conv(_))
    }

    fn layer(&self) -> &dyn TypedOp {
        match &self.layer {
            Layer::Conv(op) => op,
            Layer::Depthwise(op) => op,
        }
    }

    /// The layer's part of `inputs`, and what is added.
    fn split<'a, T>(&self, inputs: &'a [T]) -> TractResult<(&'a [T], Option<&'a T>)> {
        if !self.has_residual {
            return Ok((inputs, None));
        }
        let (last, layer) = inputs.split_last().context("no input to add")?;
        Ok((layer, Some(last)))
    }
}

impl Op for FusedConvolution {
    fn name(&self) -> StaticName {
        "FusedConvolution".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let mut info = vec![self.layer().name().to_string()];
        info.extend(self.layer().info()?);
        info.push(format!("{:?}, residual {}", self.activation, self.has_residual));
        Ok(info)
    }

    op_as_typed_op!();
}

impl EvalOp for FusedConvolution {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (layer, add) = self.split(&inputs)?;
        let add = add.map(|add| floats(add)).transpose()?;
        let after = After { add, activation: self.activation };
        match &self.layer {
            Layer::Conv(op) => op.compute(ctx, layer, after),
            Layer::Depthwise(op) => op.compute(layer, self.activation),
        }
    }
}

impl TypedOp for FusedConvolution {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let (layer, add) = self.split(inputs)?;
        let facts = self.layer().output_facts(layer)?;
        if let Some(add) = add {
            ensure!(
                add.shape == facts[0].shape && add.datum_type == facts[0].datum_type,
                "what is added: expected {:?}, found {:?}",
                facts[0],
                add
            );
        }
        Ok(facts)
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        self.layer().cost(self.split(inputs)?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Bound;
    use crate::graph::fuse::fuse;
    use crate::graph::testing::{bound, matrix, run_model, tensor, values, windows};
    use crate::graph::{FrozenLinear, FrozenWeights, RowAdapters, Window};
    use std::sync::Arc;
    use tract_core::ops::math::{add, max, min};
    use tract_core::ops::nn::{hard_swish, silu};

    const C: usize = 20;

    fn constant(model: &mut TypedModel, shape: &[usize], values: &[f32]) -> OutletId {
        let name = format!("const{}", model.nodes.len());
        model.add_const(name, tensor(shape, values)).unwrap()
    }

    fn wire(model: &mut TypedModel, op: impl Into<Box<dyn TypedOp>>, x: &[OutletId]) -> OutletId {
        let name = format!("node{}", model.nodes.len());
        model.wire_node(name, op, x).unwrap()[0]
    }

    /// x through `layer` ("conv", "pointwise" or "depthwise"), plus x where shapes allow, then
    /// `after`.
    fn net(layer: &str, window: Window, after: &str) -> TypedModel {
        let weights = FrozenWeights::new(vec![
            matrix(C, window.area() * C, &values(window.area() * C * C, 1)),
            matrix(C, C, &values(C * C, 2)),
        ]);
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([2, 17, 19, C])).unwrap();
        let bias = constant(&mut model, &[C], &values(C, 3));
        let mut y = match layer {
            "conv" => {
                let op = FrozenConv::new(&weights, 0, Some(0), true, window).unwrap();
                wire(&mut model, op, &[x, bias])
            }
            "pointwise" => {
                let op = FrozenLinear::new(&weights, 1, Some(1), true).unwrap();
                wire(&mut model, op, &[x, bias])
            }
            _ => {
                let filters = values(window.area() * C, 4);
                let filters = constant(&mut model, &[window.area(), C], &filters);
                wire(&mut model, FrozenDepthwise { window }, &[x, filters, bias])
            }
        };
        if model.outlet_fact(y).unwrap().shape == model.outlet_fact(x).unwrap().shape {
            y = wire(&mut model, add(), &[x, y]);
        }
        y = match after {
            "clip" => {
                let low = constant(&mut model, &[1; 4], &[-0.5]);
                let high = constant(&mut model, &[1; 4], &[0.75]);
                let y = wire(&mut model, max(), &[y, low]);
                wire(&mut model, min(), &[high, y])
            }
            "hard-swish" => wire(&mut model, hard_swish(), &[y]),
            "silu" => wire(&mut model, silu::silu(), &[y]),
            _ => y,
        };
        model.select_output_outlets(&[y]).unwrap();
        model
    }

    fn adapter() -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        (values(2 * 30 * C, 5), values(2 * C, 6), values(C * 2, 7))
    }

    #[test]
    fn fused_steps_give_what_the_single_steps_give() {
        let x = tensor(&[2, 17, 19, C], &values(2 * 17 * 19 * C, 8));
        let (a, a_pointwise, b) = adapter();
        for window in windows() {
            let a = &a[..2 * window.area() * C];
            let active = bound(vec![Some((2, a, &b)), Some((2, &a_pointwise, &b))]);
            for layer in ["conv", "pointwise", "depthwise"] {
                for after in ["nothing", "clip", "hard-swish", "silu"] {
                    for active in [None, Some(&active)] {
                        same(net(layer, window, after), &x, active, after == "clip");
                    }
                }
            }
        }
    }

    #[test]
    fn each_row_of_a_batch_has_its_own_adapter() {
        let x = tensor(&[2, 17, 19, C], &values(2 * 17 * 19 * C, 8));
        let (a, a_pointwise, b) = adapter();
        for window in windows() {
            let a = &a[..2 * window.area() * C];
            let active = bound(vec![Some((2, a, &b)), Some((2, &a_pointwise, &b))]);
            for layer in ["conv", "pointwise"] {
                let run = |model: TypedModel, rows: [Option<Arc<Bound>>; 2]| {
                    let plan = model.into_optimized().unwrap().into_runnable().unwrap();
                    let mut state = plan.spawn().unwrap();
                    state.turn_state.shared.insert(RowAdapters(rows.to_vec()));
                    state.run(tvec![x.clone().into_tvalue()]).unwrap().remove(0).into_tensor()
                };
                let model = net(layer, window, "clip");
                let (fused, _) = fuse(model.clone()).unwrap();
                let [none, all, second] = [
                    [None, None],
                    [Some(active.clone()), Some(active.clone())],
                    [None, Some(active.clone())],
                ]
                .map(|rows| run(fused.clone(), rows));
                let half = none.len() / 2;
                let [none, all, mixed] = [&none, &all, &second].map(|t| floats(t).unwrap());
                assert_eq!((&mixed[..half], &mixed[half..]), (&none[..half], &all[half..]));
                assert_ne!(none, all);
                let plain = run(model, [None, Some(active.clone())]);
                assert_eq!(floats(&plain).unwrap(), mixed);
            }
        }
    }

    fn same(model: TypedModel, x: &Tensor, active: Option<&Arc<Bound>>, exact: bool) {
        let (fused, matches) = fuse(model.clone()).unwrap();
        let run = |model: TypedModel| {
            let model = model.into_optimized().unwrap();
            run_model(model, tvec![x.clone().into_tvalue()], active).unwrap().remove(0)
        };
        let (want, got) = (run(model), run(fused));
        if exact {
            assert_eq!(floats(&want).unwrap(), floats(&got).unwrap(), "{matches:?}");
        }
        want.close_enough(&got, true).unwrap_or_else(|e| panic!("{matches:?}: {e}"));
    }

    #[test]
    fn a_value_that_others_read_is_kept() {
        let window = windows()[0];
        let (_, matches) = fuse(net("conv", window, "clip")).unwrap();
        assert_eq!(matches, [("residual", 1), ("activation", 2)]);
        let mut model = net("conv", window, "silu");
        let outputs: Vec<OutletId> =
            model.nodes.iter().map(|n| n.id.into()).filter(|o| model.outputs[0] != *o).collect();
        let layer = outputs[outputs.len() - 2];
        assert!(model.node(layer.node).op_is::<FrozenConv>());
        let outputs = [model.outputs[0], layer];
        model.select_output_outlets(&outputs).unwrap();
        let (fused, matches) = fuse(model).unwrap();
        assert!(matches.is_empty(), "{matches:?}");
        assert!(fused.nodes.iter().any(|n| n.op_is::<FrozenConv>()));
    }

    #[test]
    fn depthwise_steps_take_no_sum() {
        let (_, matches) = fuse(net("depthwise", windows()[0], "clip")).unwrap();
        assert!(matches.is_empty(), "{matches:?}");
    }
}
