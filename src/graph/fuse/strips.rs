//! A convolution that widens the channels and the depthwise one that alone reads it, as in each block
//! of MobileNet and EfficientNet: by strips of rows. What lies between them, by far the most values of
//! such a network, is never there as a whole and is read while it is in the cache.

use tract_core::internal::*;

use super::convolution::FusedConvolution;
use super::narrowing::Narrowing;
use super::{joined, only_reader};
use crate::graph::conv::After;
use crate::graph::weights::filled;
use crate::graph::window::{Padding, Window};
use crate::graph::{FrozenConv, FrozenDepthwise, FrozenLinear, FusedLinear};
use crate::quant::{Activation, ConvGeometry, depthwise, threads_for};

/// Floats of a strip for each thread (512 KiB): with inputs and outputs it stays in the L2 cache.
const STRIP: usize = 1 << 17;

/// y = activation(depthwise(between(conv(x)))), or what `last` makes of that. Inputs: x, the bias of
/// `conv` if it has one, the filters of `depthwise`, its bias if it has one, the inputs of `last`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvDepthwise {
    conv: FrozenConv,
    between: Activation,
    depthwise: FrozenDepthwise,
    has_bias: bool,
    pub(super) activation: Activation,
    pub(super) last: Option<Narrowing>,
}

/// The inputs of `conv`, those of `depthwise` beside its x, and those of `last`.
type Split<'a, T> = (&'a [T], &'a [T], &'a [T]);

impl ConvDepthwise {
    fn split<'a, T>(&self, inputs: &'a [T]) -> TractResult<Split<'a, T>> {
        let conv = 1 + usize::from(self.conv.has_bias);
        let (conv, rest) = inputs.split_at_checked(conv).context("too few inputs")?;
        let depthwise = 1 + usize::from(self.has_bias);
        let (depthwise, last) = rest.split_at_checked(depthwise).context("too few inputs")?;
        Ok((conv, depthwise, last))
    }

    /// C of what the depthwise convolution gives.
    pub(super) fn channels(&self) -> usize {
        self.conv.out_features
    }
}

impl Op for ConvDepthwise {
    fn name(&self) -> StaticName {
        "ConvDepthwise".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let mut info = self.conv.info()?;
        info.push(format!("{:?}", self.between));
        info.extend(self.depthwise.info()?);
        info.push(format!("{:?}", self.activation));
        info.extend(self.last.iter().map(|last| format!("{last:?}")));
        Ok(info)
    }

    op_as_typed_op!();
}

/// Rows of a strip of the padded input of a depthwise convolution, and the geometry over those that
/// are there.
struct Strip {
    rows: std::ops::Range<usize>,
    geometry: ConvGeometry,
}

impl Strip {
    /// What the output rows `first .. first + count` read. `reach` rows are read by one.
    fn of(g: &ConvGeometry, reach: usize, first: usize, count: usize) -> Strip {
        let padded = first * g.stride[0]..(first + count - 1) * g.stride[0] + reach;
        let inside = |row: usize| row.saturating_sub(g.pads[0]).min(g.height);
        let rows = inside(padded.start)..inside(padded.end);
        let top = g.pads[0].saturating_sub(padded.start);
        let bottom = padded.len() - top - rows.len();
        let pads = [top, g.pads[1], bottom, g.pads[3]];
        Strip { geometry: ConvGeometry { batch: 1, height: rows.len(), pads, ..*g }, rows }
    }
}

impl EvalOp for ConvDepthwise {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (conv, constants, last) = self.split(&inputs)?;
        let conv = self.conv.ready(ctx, conv, After { add: None, activation: self.between })?;
        let g = self.depthwise.window.geometry(conv.shape)?;
        let (filters, bias) = self.depthwise.constants(&g, constants)?;
        let (line, reach) = (g.width * g.channels, self.depthwise.window.span(0));
        let (out_height, out_line) = (g.out_height(), g.out_width() * g.channels);
        let most =
            (threads_for(usize::MAX) * STRIP / line.max(1)).clamp(reach, reach.max(g.height));
        let step = (most - reach) / g.stride[0] + 1;
        let held = ((step - 1) * g.stride[0] + reach).min(g.height) * line;
        // A tensor: its values begin where a cache line does.
        let mut between = Tensor::zero::<f32>(&[held])?;
        let mut between = between.try_as_plain_ram_mut()?;
        let between = between.as_slice_mut::<f32>()?;
        let out = [g.batch, out_height, g.out_width()];
        let last = self.last.as_ref().map(|l| l.ready(ctx, last, out)).transpose()?;
        let outputs = last.as_ref().map_or(g.channels, |last| last.outputs());
        let to_line = g.out_width() * outputs;
        let mut wide = vec![0.0; if last.is_some() { step.min(out_height) * out_line } else { 0 }];
        let activation = match &last {
            Some(_) => Activation::Identity,
            None => self.activation,
        };
        let y = filled(&[g.batch, out_height, g.out_width(), outputs], |y| {
            for (n, y) in y.chunks_exact_mut((out_height * to_line).max(1)).enumerate() {
                let mut there = 0usize..0;
                for (i, y) in y.chunks_mut(step * to_line).enumerate() {
                    let count = y.len() / to_line;
                    let strip = Strip::of(&g, reach, i * step, count);
                    let rows = strip.rows;
                    // The last strip's last rows are this one's first.
                    let kept = there.end.saturating_sub(rows.start) * line;
                    let held = there.len() * line;
                    between.copy_within(held - kept..held, 0);
                    let first = n * g.height + rows.start.max(there.end);
                    let between = &mut between[..rows.len() * line];
                    conv.pixels(first * g.width, &mut between[kept..])?;
                    there = rows;
                    let Some(last) = &last else {
                        depthwise(&strip.geometry, filters, bias, activation, between, y);
                        continue;
                    };
                    let wide = &mut wide[..count * out_line];
                    depthwise(&strip.geometry, filters, bias, activation, between, wide);
                    last.pixels((n * out_height + i * step) * g.out_width(), wide, y)?;
                }
            }
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

impl TypedOp for ConvDepthwise {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let (conv, constants, last) = self.split(inputs)?;
        let between = self.conv.output_facts(conv)?;
        let inputs: TVec<&TypedFact> = between.iter().chain(constants.iter().copied()).collect();
        let wide = self.depthwise.output_facts(&inputs)?;
        match &self.last {
            Some(narrowing) => narrowing.output_facts(&wide[0], last),
            None => Ok(wide),
        }
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let (conv, constants, last) = self.split(inputs)?;
        let between = self.conv.output_facts(conv)?;
        let inputs: TVec<&TypedFact> = between.iter().chain(constants.iter().copied()).collect();
        let mut cost = self.conv.cost(conv)?;
        cost.extend(self.depthwise.cost(&inputs)?);
        if let Some(narrowing) = &self.last {
            cost.extend(narrowing.cost(&self.depthwise.output_facts(&inputs)?[0], last)?);
        }
        Ok(cost)
    }
}

/// The convolution at `node`, to which nothing is added, and its activation. A linear layer over
/// pixels is one of kernel 1 × 1.
fn convolution(node: &TypedNode) -> Option<(FrozenConv, Activation)> {
    if let Some(fused) = FusedConvolution::at(node) {
        return fused.plain_conv().map(|(conv, between)| (conv.clone(), between));
    }
    let linear = node.op_as::<FrozenLinear>().map(FusedLinear::of);
    let linear = linear.or_else(|| node.op_as::<FusedLinear>().cloned())?;
    let ([part], false) = (linear.parts.as_slice(), linear.has_residual) else { return None };
    let conv = FrozenConv {
        weights: linear.weights.clone(),
        weight: part.weight,
        target: part.target,
        in_features: linear.in_features,
        out_features: part.out_features,
        has_bias: part.has_bias,
        window: Window {
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            padding: Padding::Valid,
        },
    };
    Some((conv, linear.activation))
}

/// A depthwise convolution and the convolution that it alone reads.
pub fn conv_depthwise(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let Some(last) = FusedConvolution::at(node) else { return Ok(None) };
    let Some((depthwise, activation)) = last.depthwise() else { return Ok(None) };
    let reach = depthwise.window.span(0);
    // Each output row reads a row that is there.
    if matches!(depthwise.window.padding, Padding::Explicit([t, _, b, _]) if t.max(b) >= reach) {
        return Ok(None);
    }
    if only_reader(model, node.inputs[0]).is_none() {
        return Ok(None);
    }
    let before = model.node(node.inputs[0].node);
    let Some((conv, between)) = convolution(before) else { return Ok(None) };
    let (depthwise, has_bias) = (depthwise.clone(), node.inputs.len() > 2);
    let op = ConvDepthwise { conv, between, depthwise, has_bias, activation, last: None };
    joined(model, before, node, op).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::RowAdapters;
    use crate::graph::fuse::fuse;
    use crate::graph::testing::{bound, matrix, tensor, values, windows};
    use crate::graph::weights::{FrozenWeights, floats};
    use crate::quant::Threads;
    use tract_core::ops::math::{max, min};

    const C: usize = 3;

    /// Clamped between and after. Lines of `wide` channels.
    fn net(first: Option<Window>, window: Window, wide: usize, shape: [usize; 4]) -> TypedModel {
        let area = first.map_or(1, |w| w.area());
        let (w, bias) = (values(wide * area * C, 1), values(wide, 2));
        let weights = FrozenWeights::new(vec![matrix(wide, area * C, &w)]);
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact(shape)).unwrap();
        let mut count = 0;
        let mut wire = |model: &mut TypedModel, op: Box<dyn TypedOp>, inputs: &[OutletId]| {
            count += 1;
            model.wire_node(format!("n{count}"), op, inputs).unwrap()[0]
        };
        let constants = |model: &mut TypedModel, shape: &[usize], values: &[f32]| {
            let name = format!("c{}", model.nodes.len());
            model.add_const(name, tensor(shape, values)).unwrap()
        };
        let bias = constants(&mut model, &[wide], &bias);
        let conv: Box<dyn TypedOp> = match first {
            Some(window) => Box::new(FrozenConv::new(&weights, 0, Some(0), true, window).unwrap()),
            None => Box::new(FrozenLinear::new(&weights, 0, Some(0), true).unwrap()),
        };
        let y = wire(&mut model, conv, &[x, bias]);
        let low = constants(&mut model, &[1; 4], &[-0.5]);
        let high = constants(&mut model, &[1; 4], &[0.75]);
        let y = wire(&mut model, Box::new(max()), &[y, low]);
        let filters = values(window.area() * wide, 3);
        let filters = constants(&mut model, &[window.area(), wide], &filters);
        let y = wire(&mut model, Box::new(FrozenDepthwise { window }), &[y, filters]);
        let y = wire(&mut model, Box::new(min()), &[y, high]);
        model.select_output_outlets(&[y]).unwrap();
        model
    }

    fn run(model: TypedModel, x: &Tensor, rows: &RowAdapters, threads: usize) -> Tensor {
        let plan = model.into_optimized().unwrap().into_runnable().unwrap();
        let mut state = plan.spawn().unwrap();
        state.turn_state.shared.insert(rows.clone());
        let x = tvec![x.clone().into_tvalue()];
        Threads::new(threads).unwrap().during(|| state.run(x)).unwrap().remove(0).into_tensor()
    }

    /// Against the two steps one after the other, bit by bit, one strip or many, each row of the batch
    /// with its own adapter.
    fn same(first: Option<Window>, window: Window, wide: usize, shape: [usize; 4], threads: usize) {
        let model = net(first, window, wide, shape);
        let (fused, matches) = fuse(model.clone()).unwrap();
        assert!(matches.contains(&("conv-depthwise", 1)), "{first:?} {window:?}: {matches:?}");
        assert_eq!(fused.nodes.iter().filter(|n| n.op_is::<ConvDepthwise>()).count(), 1);
        let inputs = C * first.map_or(1, |w| w.area());
        let (a, b) = (values(2 * inputs, 4), values(wide * 2, 5));
        let active = bound(vec![Some((2, &a, &b))]);
        let adapters = (0..shape[0]).map(|row| (row % 2 == 1).then(|| active.clone()));
        let rows = RowAdapters(adapters.collect());
        let x = tensor(&shape, &values(shape.iter().product(), 6));
        let (want, got) = (run(model, &x, &rows, 1), run(fused, &x, &rows, threads));
        assert_eq!(want.shape(), got.shape());
        assert!(floats(&want).unwrap() == floats(&got).unwrap(), "{first:?} {window:?} {shape:?}");
    }

    #[test]
    fn a_strip_that_holds_all_gives_what_the_two_steps_give() {
        for window in windows() {
            for first in windows().into_iter().map(Some).chain([None]) {
                same(first, window, 6, [3, 19, 21, C], 1);
            }
        }
    }

    #[test]
    fn many_strips_give_what_the_two_steps_give() {
        // Lines of 15,000 floats: strips of eight rows.
        for window in windows() {
            for threads in [1, 2] {
                same(None, window, 500, [2, 37, 30, C], threads);
            }
        }
        let strided = windows().into_iter().find(|w| w.stride != [1, 1]);
        same(strided, windows()[0], 500, [2, 70, 60, C], 1);
    }

    #[test]
    fn what_others_read_is_kept() {
        let mut model = net(None, windows()[0], 6, [1, 9, 9, C]);
        let between = model.nodes.iter().find(|n| n.op_is::<FrozenLinear>()).unwrap().id;
        let outputs = [model.outputs[0], between.into()];
        model.select_output_outlets(&outputs).unwrap();
        let (_, matches) = fuse(model).unwrap();
        assert!(!matches.iter().any(|(rule, _)| *rule == "conv-depthwise"), "{matches:?}");
    }
}
