//! Channels-last layout. Import wires `Move(1, 3)` before and `Move(3, 1)` after each of our
//! convolutions. tract's declutter cancels those pairs through elementwise and binary ops, residual
//! additions, reductions, slices and concatenations; it stops at pools and pads, which are turned
//! here.

use tract_core::internal::*;
use tract_core::ops::array::Pad;
use tract_core::ops::cnn::{MaxPool, PoolSpec, SumPool};
use tract_core::ops::nn::DataFormat;

use super::optimize::decluttered;

/// Gives pools and pads over NCHW data the same axis moves that our convolutions have, and lets
/// declutter cancel what meets. For graphs fresh from import: a pad is taken for NCHW.
///
/// # Errors
/// tract's, where a patch does not fit.
pub fn channels_last(mut model: TypedModel) -> TractResult<TypedModel> {
    for id in model.eval_order()? {
        let node = model.node(id);
        let Some(op) = turned(&model, node)? else { continue };
        let name = node.name.clone();
        let mut patch = TypedModelPatch::default();
        let wire = patch.tap_model(&model, node.inputs[0])?;
        let wire = patch.wire_node(format!("{name}.to_nhwc"), AxisOp::Move(1, 3), &[wire])?;
        let wire = patch.wire_node(format!("{name}.nhwc"), op, &wire)?;
        let wire = patch.wire_node(&name, AxisOp::Move(3, 1), &wire)?;
        patch.shunt_outside(&model, id.into(), wire[0])?;
        patch.apply(&mut model)?;
    }
    decluttered(model)
}

/// The op of `node` over NHWC data, if it is one that declutter can't turn.
fn turned(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Box<dyn TypedOp>>> {
    let Some(input) = node.inputs.first() else { return Ok(None) };
    if model.outlet_fact(*input)?.rank() != 4 || node.outputs.len() != 1 {
        return Ok(None);
    }
    let last = |spec: &PoolSpec| PoolSpec { data_format: DataFormat::NHWC, ..spec.clone() };
    if let Some(op) = node.op_as::<MaxPool>().filter(|op| op.with_index_outputs.is_none())
        && op.pool_spec.data_format == DataFormat::NCHW
    {
        return Ok(Some(Box::new(MaxPool { pool_spec: last(&op.pool_spec), ..op.clone() })));
    }
    if let Some(op) = node.op_as::<SumPool>()
        && op.pool_spec.data_format == DataFormat::NCHW
    {
        return Ok(Some(Box::new(SumPool { pool_spec: last(&op.pool_spec), ..op.clone() })));
    }
    if let Some(op) = node.op_as::<Pad>()
        && let [n, c, h, w] = op.pads.as_slice()
    {
        return Ok(Some(Box::new(Pad { pads: vec![*n, *h, *w, *c], mode: op.mode.clone() })));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use tract_core::internal::*;
    use tract_core::ops::array::{Pad, PadMode};
    use tract_core::ops::cnn::{MaxPool, PaddingSpec, PoolSpec, SumPool};
    use tract_core::ops::math::{add, max, min, mul};
    use tract_core::ops::nn::{DataFormat, Reduce, Reducer};

    use super::channels_last;
    use crate::graph::testing::{matrix, run_model, tensor, values};
    use crate::graph::{FrozenConv, FrozenDepthwise, FrozenLinear, FrozenWeights, Padding, Window};

    const C: usize = 6;

    struct Net {
        model: TypedModel,
        weights: FrozenWeights,
        wire: OutletId,
        count: usize,
    }

    impl Net {
        fn new(batch: TDim) -> Net {
            let weights = FrozenWeights::new(vec![
                matrix(C, 9 * C, &values(9 * C * C, 1)),
                matrix(C, C, &values(C * C, 2)),
            ]);
            let mut model = TypedModel::default();
            let fact = f32::fact([batch, C.to_dim(), 8.to_dim(), 10.to_dim()]);
            let wire = model.add_source("x", fact).unwrap();
            Net { model, weights, wire, count: 0 }
        }

        fn op(&mut self, op: impl Into<Box<dyn TypedOp>>) -> &mut Net {
            self.count += 1;
            let name = format!("node{}", self.count);
            self.wire = self.model.wire_node(name, op, &[self.wire]).unwrap()[0];
            self
        }

        /// A binary op with a constant.
        fn with(
            &mut self,
            op: impl Into<Box<dyn TypedOp>>,
            shape: &[usize],
            seed: u64,
        ) -> &mut Net {
            self.count += 1;
            let value = tensor(shape, &values(shape.iter().product(), seed));
            let konst = self.model.add_const(format!("const{}", self.count), value).unwrap();
            let name = format!("node{}", self.count);
            self.wire = self.model.wire_node(name, op, &[self.wire, konst]).unwrap()[0];
            self
        }

        fn plus(&mut self, other: OutletId) -> &mut Net {
            self.count += 1;
            let name = format!("node{}", self.count);
            self.wire = self.model.wire_node(name, add(), &[self.wire, other]).unwrap()[0];
            self
        }

        fn conv(&mut self) -> &mut Net {
            let window = Window {
                kernel: [3, 3],
                stride: [1, 1],
                dilation: [1, 1],
                padding: Padding::Explicit([1; 4]),
            };
            let op = FrozenConv::new(&self.weights, 0, None, false, window).unwrap();
            self.op(AxisOp::Move(1, 3)).op(op).op(AxisOp::Move(3, 1))
        }

        fn pointwise(&mut self) -> &mut Net {
            let op = FrozenLinear::new(&self.weights, 1, None, false).unwrap();
            self.op(AxisOp::Move(1, 3)).op(op).op(AxisOp::Move(3, 1))
        }

        fn depthwise(&mut self) -> &mut Net {
            let window = Window {
                kernel: [3, 3],
                stride: [1, 1],
                dilation: [1, 1],
                padding: Padding::SameUpper,
            };
            self.op(AxisOp::Move(1, 3));
            self.with(FrozenDepthwise { window }, &[9, C], 5).op(AxisOp::Move(3, 1))
        }

        /// Declutters, checks that `moves` moves remain and the outputs are the same; returns it.
        fn check(&mut self, moves: usize) -> TypedModel {
            self.model.select_output_outlets(&[self.wire]).unwrap();
            let clean = channels_last(self.model.clone()).unwrap();
            let left: Vec<String> = clean
                .eval_order()
                .unwrap()
                .into_iter()
                .map(|n| format!("{} {:?}", clean.node(n), clean.node(n).op))
                .collect();
            let found = clean
                .nodes
                .iter()
                .filter(|n| matches!(n.op_as::<AxisOp>(), Some(AxisOp::Move(..))))
                .count();
            assert_eq!(found, moves, "{left:#?}");
            let x = tensor(&[2, C, 8, 10], &values(2 * C * 80, 7));
            let run = |m: &TypedModel| {
                let inputs = tvec![x.clone().into_tvalue()];
                run_model(m.clone(), inputs, None).unwrap().remove(0)
            };
            let (want, got) = (run(&self.model), run(&clean));
            want.close_enough(&got, true).unwrap();
            clean
        }
    }

    fn both(build: impl Fn(&mut Net) -> usize) {
        let mut net = Net::new(2.to_dim());
        let moves = build(&mut net);
        net.check(moves);
        let scope = SymbolScope::default();
        let mut net = Net::new(scope.sym("batch").to_dim());
        net.model.symbols = scope;
        let moves = build(&mut net);
        net.check(moves);
    }

    #[test]
    fn moves_cancel_through_clips_and_residuals() {
        both(|net| {
            net.conv();
            let first = net.wire;
            net.with(max(), &[1, 1, 1, 1], 3).with(min(), &[1, 1, 1, 1], 4).pointwise();
            net.plus(first).depthwise().with(mul(), &[1, C, 1, 1], 5).with(add(), &[1, C, 1, 1], 6);
            let second = net.wire;
            net.conv().plus(second).conv();
            2
        });
    }

    #[test]
    fn moves_cancel_into_a_global_mean() {
        both(|net| {
            net.conv().pointwise();
            net.op(Reduce { axes: tvec!(2, 3), reducer: Reducer::Sum });
            net.op(AxisOp::Rm(3)).op(AxisOp::Rm(2));
            1
        });
    }

    #[test]
    fn moves_cancel_through_a_squeeze_and_excitation_gate() {
        both(|net| {
            net.conv();
            let trunk = net.wire;
            net.op(Reduce { axes: tvec!(2, 3), reducer: Reducer::Sum });
            net.pointwise().op(tract_core::ops::nn::sigmoid());
            let gate = net.wire;
            net.wire = net.model.wire_node("gate", mul(), &[trunk, gate]).unwrap()[0];
            net.conv();
            2
        });
    }

    #[test]
    fn moves_cancel_through_pools_and_pads() {
        both(|net| {
            let pool = || {
                PoolSpec::new(
                    DataFormat::NCHW,
                    tvec!(2, 2),
                    PaddingSpec::Valid,
                    None,
                    Some(tvec!(1, 1)),
                    C,
                    C,
                )
            };
            net.conv().op(MaxPool { pool_spec: pool(), with_index_outputs: None }).conv();
            net.op(SumPool { pool_spec: pool(), count_include_pad: false, normalize: true });
            let pads = vec![(0, 0), (0, 0), (1, 0), (1, 1)];
            net.conv().op(Pad { pads, mode: PadMode::Constant(rctensor0(0f32)) }).conv();
            2
        });
    }
}
