//! The convolution of 1 × 1 that narrows what a depthwise one gives, as each block of MobileNet and
//! EfficientNet ends: in the same step, where values are clamped between 0 and a bound. Its products take them as
//! integers of one scale that is known beforehand.

use std::ops::Range;
use std::sync::Arc;

use tract_core::internal::*;

use super::convolution::FusedConvolution;
use super::strips::ConvDepthwise;
use super::{joined, only_reader};
use crate::graph::changes::{Span, spans, updates};
use crate::graph::conv::After;
use crate::graph::fused_linear::Part;
use crate::graph::weights::floats;
use crate::graph::{FrozenLinear, FusedLinear};
use crate::quant::{
    Activation, Inputs, PackedRef, Update, bounded_shift, finish, takes_bounded, threads_for,
    try_share,
};

/// y = activation(x · Wᵀ (+ bias) (+ residual)) with x between 0 and a bound. Inputs beside x: the bias if
/// there is one, the residual if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Narrowing {
    /// Of one part.
    linear: FusedLinear,
    /// Bits of the bound.
    bound: u32,
    /// Bits of what the bias holds beside itself.
    shift: Arc<Vec<u32>>,
    /// Whether each row of W has one scale.
    row_scales: bool,
}

/// With its operands.
pub(super) struct Ready<'a> {
    w: PackedRef<'a>,
    bias: Option<&'a [f32]>,
    bound: f32,
    /// The bias of bounded inputs.
    shifted: Vec<f32>,
    spans: TVec<Span<'a>>,
    /// Pixels of a row of the batch.
    each: usize,
    after: After<'a>,
}

impl Narrowing {
    fn of(linear: FusedLinear, bound: f32) -> TractResult<Narrowing> {
        let w = linear.weights.weight(linear.parts[0].weight)?;
        let shift = bounded_shift(w, bound).into_iter().map(f32::to_bits).collect();
        let row_scales = w.find_row_scales();
        Ok(Narrowing { linear, bound: bound.to_bits(), shift: Arc::new(shift), row_scales })
    }

    pub(super) fn ready<'a>(
        &'a self,
        ctx: &EvalContext<'a>,
        inputs: &'a [TValue],
        [batch, height, width]: [usize; 3],
    ) -> TractResult<Ready<'a>> {
        let part = &self.linear.parts[0];
        let w = self.linear.weights.weight(part.weight)?.with_row_scales(self.row_scales);
        let bias = inputs.first().filter(|_| part.has_bias).map(|b| floats(b)).transpose()?;
        let add = inputs.last().filter(|_| self.linear.has_residual);
        let add = add.map(|add| floats(add)).transpose()?;
        ensure!(
            add.is_none_or(|add| add.len() == batch * height * width * w.rows()),
            "the residual has another shape than the product"
        );
        let spans = spans(ctx, part.target, batch)?;
        let own = |o: usize| bias.map_or(0.0, |bias| bias[o]);
        let shifted = self.shift.iter().enumerate();
        let shifted = shifted.map(|(o, shift)| own(o) + f32::from_bits(*shift)).collect();
        let bound = f32::from_bits(self.bound);
        let after = After { add, activation: self.linear.activation };
        Ok(Ready { w, bias, bound, shifted, spans, each: height * width, after })
    }

    fn facts<'a>(&self, x: &'a TypedFact, inputs: &[&'a TypedFact]) -> TVec<&'a TypedFact> {
        std::iter::once(x).chain(inputs.iter().copied()).collect()
    }

    pub(super) fn output_facts(
        &self,
        x: &TypedFact,
        inputs: &[&TypedFact],
    ) -> TractResult<TVec<TypedFact>> {
        self.linear.output_facts(&self.facts(x, inputs))
    }

    pub(super) fn cost(
        &self,
        x: &TypedFact,
        inputs: &[&TypedFact],
    ) -> TractResult<TVec<(Cost, TDim)>> {
        self.linear.cost(&self.facts(x, inputs))
    }
}

impl Ready<'_> {
    /// O.
    pub(super) fn outputs(&self) -> usize {
        self.w.rows()
    }

    /// Of x, which is still to be clamped, the output pixels from `first` on.
    pub(super) fn pixels(&self, first: usize, x: &[f32], y: &mut [f32]) -> TractResult<()> {
        let (w, cols) = (self.w, self.w.cols());
        let m = y.len() / w.rows().max(1);
        let threads = threads_for(y.len().saturating_mul(cols));
        let step = Inputs::stretch(threads, m);
        let stretches = x.chunks((step * cols).max(1)).zip(y.chunks_mut((step * w.rows()).max(1)));
        try_share(
            threads,
            stretches.enumerate(),
            || (),
            |(), (i, (x, y))| {
                let from = first + i * step;
                let count = y.len() / w.rows();
                let updates = updates(&self.spans, w, self.each, from..from + count)?;
                // Rows have the bits that they have alone.
                let (mut done, mut taken) = (0, tvec!());
                for update in updates {
                    if update.change.takes_bounded() {
                        taken.push(update);
                        continue;
                    }
                    let rows = update.rows.clone();
                    self.bounded(done..rows.start, &taken, x, y);
                    self.clamped(update, x, y);
                    (done, taken) = (rows.end, tvec!());
                }
                self.bounded(done..count, &taken, x, y);
                self.after.apply(from * w.rows(), y);
                Ok(())
            },
        )
    }

    fn bounded(&self, rows: Range<usize>, updates: &[Update<'_>], x: &[f32], y: &mut [f32]) {
        if rows.is_empty() {
            return;
        }
        let (w, cols) = (self.w, self.w.cols());
        let own = |u: &Update<'_>| u.rows.start - rows.start..u.rows.end - rows.start;
        let moved = |u| Update { rows: own(u), change: u.change };
        let updates: TVec<Update> = updates.iter().map(moved).collect();
        let y = &mut y[rows.start * w.rows()..rows.end * w.rows()];
        let x = &x[rows.start * cols..rows.end * cols];
        Inputs::bounded(x, cols, self.bound).product(w, Some(&self.shifted), &updates, y);
    }

    /// What other changes than low-rank ones do takes values as they are.
    fn clamped(&self, update: Update<'_>, x: &[f32], y: &mut [f32]) {
        let (w, cols, rows) = (self.w, self.w.cols(), update.rows);
        let mut x = x[rows.start * cols..rows.end * cols].to_vec();
        finish(&mut x, None, Activation::Clamp { low: 0.0, high: self.bound });
        let y = &mut y[rows.start * w.rows()..rows.end * w.rows()];
        let update = Update { rows: 0..rows.len(), change: update.change };
        Inputs::new(&x, cols).product(w, self.bias, &[update], y);
    }
}

/// The layer at `node` as a linear one over pixels, and its inputs.
fn linear(node: &TypedNode) -> Option<FusedLinear> {
    let linear = node.op_as::<FrozenLinear>().map(FusedLinear::of);
    if let Some(linear) = linear.or_else(|| node.op_as::<FusedLinear>().cloned()) {
        return (linear.parts.len() == 1).then_some(linear);
    }
    let fused = FusedConvolution::at(node)?;
    let conv = fused.pointwise()?;
    let part = Part {
        weight: conv.weight,
        target: conv.target,
        out_features: conv.out_features,
        has_bias: conv.has_bias,
    };
    Some(FusedLinear {
        weights: conv.weights.clone(),
        in_features: conv.in_features,
        parts: vec![part],
        has_residual: fused.has_residual,
        activation: fused.activation,
        gated: false,
    })
}

/// The convolution of 1 × 1 that alone reads a [`ConvDepthwise`] with bounded outputs.
pub fn narrowing(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(linear) = linear(node) else { return Ok(None) };
    let before = model.node(node.inputs[0].node);
    let Some(strips) = before.op_as::<ConvDepthwise>() else { return Ok(None) };
    let Activation::Clamp { low: 0.0, high } = strips.activation else { return Ok(None) };
    let bounded = (1e-6..1e6).contains(&high);
    let own = only_reader(model, node.inputs[0]).is_some() && strips.last.is_none();
    let residual = linear.has_residual.then(|| node.inputs[node.inputs.len() - 1]);
    let w = linear.weights.weight(linear.parts[0].weight)?;
    let fits = w.cols() == strips.channels() && residual != Some(node.inputs[0]);
    if !bounded || !own || !fits || !takes_bounded(w) {
        return Ok(None);
    }
    let mut op = strips.clone();
    op.last = Some(Narrowing::of(linear, high)?);
    joined(model, before, node, op).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Bound;
    use crate::graph::fuse::fuse;
    use crate::graph::testing::{bound, matrix, tensor, values, windows};
    use crate::graph::{FrozenConv, FrozenDepthwise, FrozenWeights, RowAdapters, Window};
    use crate::quant::{Change, Packed, Scheme, Threads};
    use tract_core::ops::math::{add, max, min};

    const C: usize = 8;
    const WIDE: usize = 48;
    const HIGH: f32 = 0.75;

    /// A block as of MobileNet: widened, clamped, depthwise, clamped, narrowed by a linear layer or a
    /// convolution, x added where that fits.
    fn net(window: Window, scheme: Scheme, linear: bool, shape: [usize; 4]) -> TypedModel {
        let narrow = Packed::pack(scheme, C, WIDE, &values(C * WIDE, 4)).unwrap();
        let weights = FrozenWeights::new(vec![matrix(WIDE, C, &values(WIDE * C, 1)), narrow]);
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact(shape)).unwrap();
        fn wire(model: &mut TypedModel, op: Box<dyn TypedOp>, inputs: &[OutletId]) -> OutletId {
            model.wire_node(format!("n{}", model.nodes.len()), op, inputs).unwrap()[0]
        }
        let constant = |model: &mut TypedModel, shape: &[usize], values: &[f32]| {
            let name = format!("c{}", model.nodes.len());
            model.add_const(name, tensor(shape, values)).unwrap()
        };
        let clamp = |model: &mut TypedModel, y: OutletId| {
            let low = constant(model, &[1; 4], &[0.0]);
            let high = constant(model, &[1; 4], &[HIGH]);
            let y = wire(model, Box::new(max()), &[y, low]);
            wire(model, Box::new(min()), &[y, high])
        };
        let op = FrozenLinear::new(&weights, 0, Some(0), false).unwrap();
        let y = wire(&mut model, Box::new(op), &[x]);
        let y = clamp(&mut model, y);
        let filters = values(window.area() * WIDE, 2);
        let filters = constant(&mut model, &[window.area(), WIDE], &filters);
        let own = constant(&mut model, &[WIDE], &values(WIDE, 3));
        let y = wire(&mut model, Box::new(FrozenDepthwise { window }), &[y, filters, own]);
        let y = clamp(&mut model, y);
        let bias = constant(&mut model, &[C], &values(C, 5));
        let one = Window { kernel: [1; 2], stride: [1; 2], dilation: [1; 2], ..windows()[0] };
        let one = Window { padding: crate::graph::Padding::Valid, ..one };
        let op: Box<dyn TypedOp> = match linear {
            true => Box::new(FrozenLinear::new(&weights, 1, Some(1), true).unwrap()),
            false => Box::new(FrozenConv::new(&weights, 1, Some(1), true, one).unwrap()),
        };
        let mut y = wire(&mut model, op, &[y, bias]);
        if model.outlet_fact(y).unwrap().shape == model.outlet_fact(x).unwrap().shape {
            y = wire(&mut model, Box::new(add()), &[y, x]);
        }
        model.select_output_outlets(&[y]).unwrap();
        model
    }

    fn run(model: &TypedModel, x: &Tensor, rows: &RowAdapters, threads: usize) -> Vec<f32> {
        let plan = model.clone().into_optimized().unwrap().into_runnable().unwrap();
        let mut state = plan.spawn().unwrap();
        state.turn_state.shared.insert(rows.clone());
        let x = tvec![x.clone().into_tvalue()];
        let y = Threads::new(threads).unwrap().during(|| state.run(x)).unwrap().remove(0);
        floats(&y.into_tensor()).unwrap().to_vec()
    }

    fn narrowings(model: &TypedModel) -> usize {
        let (_, matches) = fuse(model.clone()).unwrap();
        matches.iter().find(|(rule, _)| *rule == "narrowing").map_or(0, |(_, count)| *count)
    }

    /// Beside the steps one after the other, up to how finely inputs are rounded; the same bits on one thread and
    /// on two, in strips of any height, alone and in a batch.
    #[test]
    fn a_block_gives_what_its_steps_give() {
        let a: [Vec<f32>; 2] = [values(2 * C, 6), values(2 * WIDE, 8)];
        let b: [Vec<f32>; 2] = [values(WIDE * 2, 7), values(C * 2, 9)];
        let active = bound(vec![Some((2, &a[0], &b[0])), Some((2, &a[1], &b[1]))]);
        for (i, window) in windows().into_iter().enumerate() {
            let shape = [2, 19, 21, C];
            let scheme = [Scheme::Q8, Scheme::Q4][i / 2 % 2];
            let model = net(window, scheme, i % 2 == 0, shape);
            let (fused, _) = fuse(model.clone()).unwrap();
            assert_eq!(narrowings(&model), usize::from(takes_bounded(w(scheme).view())));
            let x = values(shape.iter().product(), 10);
            for adapters in [[None, None], [None, Some(active.clone())]] {
                let rows = RowAdapters(adapters.to_vec());
                let whole = tensor(&shape, &x);
                let (want, got) = (run(&model, &whole, &rows, 1), run(&fused, &whole, &rows, 1));
                let size = want.iter().fold(0f32, |m, v| m.max(v.abs()));
                let off = want.iter().zip(&got).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(off < 0.02 * size, "{window:?}: {off} of {size}");
                assert_eq!(run(&fused, &whole, &rows, 2), got, "{window:?}");
                let alone = net(window, scheme, i % 2 == 0, [1, 19, 21, C]);
                let (alone, _) = fuse(alone).unwrap();
                let second = tensor(&[1, 19, 21, C], &x[x.len() / 2..]);
                let rows = RowAdapters(adapters[1..].to_vec());
                assert_eq!(run(&alone, &second, &rows, 1), got[got.len() / 2..], "{window:?}");
            }
        }
    }

    fn w(scheme: Scheme) -> Packed {
        Packed::pack(scheme, C, WIDE, &values(C * WIDE, 4)).unwrap()
    }

    /// An adapter of another kind in one row leaves the others' bits alone, and is near the steps.
    #[test]
    fn rows_of_other_kinds_of_adapters_leave_the_rest_alone() {
        let window = windows()[0];
        let (model, three) = (net(window, Scheme::Q8, true, [1, 9, 9, C]), [3, 9, 9, C]);
        let x = values(3 * 81 * C, 10);
        let change = Change { scale: Some(values(C, 11)), ..Change::default() };
        let bound = Bound { targets: vec![None, Some(change)], head: None, names: vec![] };
        let rows = [None, Some(Arc::new(bound)), None];
        let batch = net(window, Scheme::Q8, true, three);
        let all = RowAdapters(rows.to_vec());
        let want = run(&batch, &tensor(&three, &x), &all, 1);
        let got = run(&fuse(batch).unwrap().0, &tensor(&three, &x), &all, 1);
        let off = want.iter().zip(&got).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off < 0.05, "{off}");
        let alone = fuse(model).unwrap().0;
        for (i, row) in rows.into_iter().enumerate() {
            let x = tensor(&[1, 9, 9, C], &x[i * 81 * C..(i + 1) * 81 * C]);
            let y = run(&alone, &x, &RowAdapters(vec![row]), 1);
            assert_eq!(y, got[i * y.len()..(i + 1) * y.len()], "row {i}");
        }
    }

    #[test]
    fn what_is_no_number_shows_in_its_picture_alone() {
        let (fused, _) = fuse(net(windows()[0], Scheme::Q8, true, [2, 9, 9, C])).unwrap();
        let mut x = values(2 * 81 * C, 10);
        x[40 * C + 3] = f32::NAN;
        let y = run(&fused, &tensor(&[2, 9, 9, C], &x), &RowAdapters(vec![None, None]), 1);
        let (first, second) = y.split_at(y.len() / 2);
        assert!(first.iter().any(|v| v.is_nan()) && second.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn layers_that_keep_their_inputs_are_left_as_they_are() {
        for scheme in [Scheme::F16, Scheme::F32] {
            assert_eq!(narrowings(&net(windows()[0], scheme, true, [1, 9, 9, C])), 0);
        }
    }
}
