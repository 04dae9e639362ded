//! The frozen convolution, channels last, and its input gradient.

use tract_core::internal::*;

use super::changes::{Span, spans, updates};
use super::weights::{FrozenWeights, expect_bias, expect_dim, expect_f32, filled, floats};
use super::window::{Window, nhwc, nhwc_fact};
use crate::quant::{Activation, Convolution, PackedRef, Patches, col2im_add, finish};
use crate::quant::{product_transposed, threads_for, try_share};

/// Floats of scratch for the patches of one chunk of output pixels (1 MiB).
const SCRATCH: usize = 1 << 18;

/// Output pixels a chunk: enough rows for the kernels, little enough scratch for the cache.
fn chunk_rows(patch: usize, pixels: usize) -> usize {
    (SCRATCH / patch.max(1)).clamp(32, 256).min(pixels.max(1))
}

/// A convolution with one group over NHWC data: y\[N, OH, OW, O\] from x\[N, H, W, C\], with the
/// filters in the weight table as (O, kh·kw·C), channels innermost (+ bias\[O\]), plus what the
/// active adapter adds to the target: (patches · lora_aᵀ) · lora_bᵀ. Inputs: x, and bias if
/// `has_bias`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrozenConv {
    /// The weight table.
    pub weights: FrozenWeights,
    /// Index of the filters in the weight table.
    pub weight: usize,
    /// Index in the target table, if an adapter may change this layer.
    pub target: Option<usize>,
    /// kh·kw·C.
    pub in_features: usize,
    /// O.
    pub out_features: usize,
    /// Whether there is a second input, bias\[O\].
    pub has_bias: bool,
    /// Kernel, stride, dilation, padding.
    pub window: Window,
}

impl FrozenConv {
    /// The convolution whose features are the shape of weight `weight`; an error if there is no such
    /// weight or its columns are not a multiple of the kernel's area.
    pub fn new(
        weights: &FrozenWeights,
        weight: usize,
        target: Option<usize>,
        has_bias: bool,
        window: Window,
    ) -> TractResult<FrozenConv> {
        window.check()?;
        let w = weights.weight(weight)?;
        let (out_features, in_features) = (w.rows(), w.cols());
        ensure!(
            in_features > 0 && in_features % window.area() == 0,
            "weight {weight} has {in_features} columns, expected a multiple of the kernel {:?}",
            window.kernel
        );
        let weights = weights.clone();
        Ok(FrozenConv { weights, weight, target, in_features, out_features, has_bias, window })
    }

    /// C.
    pub fn in_channels(&self) -> usize {
        self.in_features / self.window.area().max(1)
    }

    /// The op for this layer's input gradient, for an input of `height` × `width`.
    pub fn input_gradient(&self, height: TDim, width: TDim) -> FrozenConvInputGradient {
        FrozenConvInputGradient {
            weights: self.weights.clone(),
            weight: self.weight,
            in_features: self.in_features,
            out_features: self.out_features,
            window: self.window,
            height,
            width,
        }
    }
}

impl Op for FrozenConv {
    fn name(&self) -> StaticName {
        "FrozenConv".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let (k, n) = (self.in_features, self.out_features);
        Ok(vec![
            format!("{k} -> {n}, weight {}, target {:?}", self.weight, self.target),
            self.window.describe(),
        ])
    }

    op_as_typed_op!();
}

/// What a fused step does to the outputs of a layer while they are in the cache.
#[derive(Clone, Copy)]
pub(super) struct After<'a> {
    /// As many values as the layer gives, added first.
    pub(super) add: Option<&'a [f32]>,
    pub(super) activation: Activation,
}

impl After<'_> {
    pub(super) const NOTHING: After<'static> =
        After { add: None, activation: Activation::Identity };

    /// On the outputs `at .. at + y.len()` of the layer.
    pub(super) fn apply(&self, at: usize, y: &mut [f32]) {
        let add = self.add.map(|add| &add[at..at + y.len()]);
        finish(y, add, self.activation);
    }
}

/// A convolution whose operands are there, of which any stretch of output pixels can be had.
pub(super) struct Ready<'a> {
    /// N, OH, OW, O.
    pub(super) shape: [usize; 4],
    w: PackedRef<'a>,
    conv: Convolution<'a>,
    bias: Option<&'a [f32]>,
    spans: TVec<Span<'a>>,
    after: After<'a>,
}

impl Ready<'_> {
    /// Output pixels from `first` on, as many as `y` holds.
    pub(super) fn pixels(&self, first: usize, y: &mut [f32]) -> TractResult<()> {
        let [_, height, width, outputs] = self.shape;
        let count = y.len() / outputs.max(1);
        let threads = threads_for(y.len().saturating_mul(self.w.cols()));
        let step = self.conv.stretch(threads, count);
        let stretches = y.chunks_mut(step * outputs.max(1)).enumerate();
        try_share(threads, stretches, Patches::default, |patches, (i, y)| {
            let from = first + i * step;
            let pixels = from..from + y.len() / outputs.max(1);
            let updates = updates(&self.spans, self.w, height * width, pixels)?;
            self.conv.product(patches, from, self.bias, &updates, y);
            self.after.apply(from * outputs, y);
            Ok(())
        })
    }
}

impl FrozenConv {
    /// Takes the inputs of this op; `after` is for the whole output.
    pub(super) fn ready<'a>(
        &'a self,
        ctx: &EvalContext<'a>,
        inputs: &'a [TValue],
        after: After<'a>,
    ) -> TractResult<Ready<'a>> {
        let w = self.weights.weight(self.weight)?;
        let g = self.window.geometry(nhwc(inputs[0].shape())?)?;
        ensure!(
            g.patch_len() == w.cols() && w.rows() == self.out_features,
            "patches of {} values don't fit weight {} of {} columns",
            g.patch_len(),
            self.weight,
            w.cols()
        );
        let bias = inputs.get(1).filter(|_| self.has_bias).map(|b| floats(b)).transpose()?;
        Ok(Ready {
            shape: [g.batch, g.out_height(), g.out_width(), w.rows()],
            w,
            conv: Convolution::new(&g, w, floats(&inputs[0])?),
            bias,
            spans: spans(ctx, self.target, g.batch)?,
            after,
        })
    }

    pub(super) fn compute(
        &self,
        ctx: &EvalContext,
        inputs: &[TValue],
        after: After<'_>,
    ) -> TractResult<TVec<TValue>> {
        let ready = self.ready(ctx, inputs, after)?;
        Ok(tvec!(filled(&ready.shape, |y| ready.pixels(0, y))?))
    }
}

impl EvalOp for FrozenConv {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.compute(ctx, &inputs, After::NOTHING)
    }
}

impl TypedOp for FrozenConv {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let expected = 1 + self.has_bias as usize;
        ensure!(inputs.len() == expected, "expected {expected} inputs, found {}", inputs.len());
        expect_f32("x", inputs[0])?;
        expect_bias(inputs, 1, self.out_features)?;
        let [n, h, w, c] = nhwc_fact(inputs[0])?;
        expect_dim("x's channels", Some(&c), self.in_channels())?;
        let (oh, ow) = (self.window.output_side(0, &h)?, self.window.output_side(1, &w)?);
        Ok(tvec!(f32::fact([n, oh, ow, self.out_features.to_dim()])))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let out = self.output_facts(inputs)?;
        let work = out[0].shape.volume() * self.in_features;
        let params = (self.in_features * self.out_features).to_dim();
        Ok(tvec!((Cost::FMA(f32::datum_type()), work), (Cost::Params(f32::datum_type()), params)))
    }
}

/// dx\[N, height, width, C\] from dy\[N, OH, OW, O\]: the input gradient of [`FrozenConv`], of the
/// base alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrozenConvInputGradient {
    /// The weight table.
    pub weights: FrozenWeights,
    /// Index of the filters in the weight table.
    pub weight: usize,
    /// kh·kw·C.
    pub in_features: usize,
    /// O.
    pub out_features: usize,
    /// The forward convolution's.
    pub window: Window,
    /// H of the forward convolution's input.
    pub height: TDim,
    /// W of the forward convolution's input.
    pub width: TDim,
}

impl FrozenConvInputGradient {
    fn channels(&self) -> usize {
        self.in_features / self.window.area().max(1)
    }
}

/// Fails if dy's sides are known and are not those of the window over (height, width).
pub(super) fn expect_sides(
    window: &Window,
    [height, width]: [&TDim; 2],
    [found_h, found_w]: [&TDim; 2],
) -> TractResult<()> {
    for (axis, side, found) in [(0, height, found_h), (1, width, found_w)] {
        let expected = window.output_side(axis, side)?;
        if let (TDim::Val(e), TDim::Val(f)) = (&expected, found) {
            ensure!(e == f, "output side {axis}: expected {e}, found {f}");
        }
    }
    Ok(())
}

/// The values of (height, width) in this run.
pub(super) fn sides(ctx: &EvalContext, height: &TDim, width: &TDim) -> TractResult<[usize; 2]> {
    Ok([height.eval(ctx.symbols).to_usize()?, width.eval(ctx.symbols).to_usize()?])
}

impl Op for FrozenConvInputGradient {
    fn name(&self) -> StaticName {
        "FrozenConvInputGradient".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let to = format!("to {} x {} x {}", self.height, self.width, self.channels());
        Ok(vec![format!("weight {}, {to}", self.weight), self.window.describe()])
    }

    op_as_typed_op!();
}

impl EvalOp for FrozenConvInputGradient {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let w = self.weights.weight(self.weight)?;
        let [height, width] = sides(ctx, &self.height, &self.width)?;
        let [n, oh, ow, o] = nhwc(inputs[0].shape())?;
        let g = self.window.geometry([n, height, width, self.channels()])?;
        ensure!(
            g.patch_len() == w.cols() && [oh, ow, o] == [g.out_height(), g.out_width(), w.rows()],
            "dy of {oh} x {ow} x {o} doesn't fit weight {} ({}, {}) and an input of {height} x {width}",
            self.weight,
            w.rows(),
            w.cols()
        );
        let dy = floats(&inputs[0])?;
        let step = chunk_rows(g.patch_len(), g.pixels());
        let mut patches = vec![0.0; step * g.patch_len()];
        let dx = filled(&[n, height, width, g.channels], |dx| {
            for (i, dy) in dy.chunks(step * o.max(1)).enumerate() {
                let count = dy.len() / o.max(1);
                let patches = &mut patches[..count * g.patch_len()];
                product_transposed(w, dy, patches);
                col2im_add(&g, patches, i * step, count, dx);
            }
            Ok(())
        })?;
        Ok(tvec!(dx))
    }
}

impl TypedOp for FrozenConvInputGradient {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1, "expected 1 input, found {}", inputs.len());
        expect_f32("dy", inputs[0])?;
        let [n, oh, ow, o] = nhwc_fact(inputs[0])?;
        expect_dim("dy's channels", Some(&o), self.out_features)?;
        expect_sides(&self.window, [&self.height, &self.width], [&oh, &ow])?;
        let channels = self.channels().to_dim();
        Ok(tvec!(f32::fact([n, self.height.clone(), self.width.clone(), channels])))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        Ok(tvec!((Cost::FMA(f32::datum_type()), inputs[0].shape.volume() * self.in_features)))
    }

    fn set_symbols(
        &self,
        _source: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
        subs: &HashMap<Symbol, TDim>,
    ) -> TractResult<TVec<OutletId>> {
        let op = FrozenConvInputGradient {
            height: self.height.substitute_all(subs)?,
            width: self.width.substitute_all(subs)?,
            ..self.clone()
        };
        target.wire_node(&node.name, op, &[mapping[&node.inputs[0]]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::testing::{
        bound, dot, matrix, naive_conv, run, run_with, tensor, values, windows,
    };

    #[test]
    fn output_is_the_plain_convolution() {
        for (i, window) in windows().into_iter().enumerate() {
            // 17 × 19 pixels a picture: more than one chunk of 256.
            let (x, w) = (values(2 * 17 * 19 * 3, 1), values(5 * window.area() * 3, 2));
            let bias = values(5, 3);
            let weights = FrozenWeights::new(vec![matrix(5, window.area() * 3, &w)]);
            let g = window.geometry([2, 17, 19, 3]).unwrap();
            let has_bias = i % 2 == 0;
            let op = FrozenConv::new(&weights, 0, None, has_bias, window).unwrap();
            let mut inputs = vec![tensor(&[2, 17, 19, 3], &x)];
            if has_bias {
                inputs.push(tensor(&[5], &bias));
            }
            let y = run(op, &inputs).unwrap();
            let want = naive_conv(&g, &w, 5, &x, has_bias.then_some(&bias[..]));
            let want = tensor(&[2, g.out_height(), g.out_width(), 5], &want);
            y.close_enough(&want, true).unwrap_or_else(|e| panic!("{window:?}: {e}"));
        }
    }

    #[test]
    fn an_active_adapter_is_a_convolution_by_a_then_a_product_by_b() {
        for window in windows() {
            let area = window.area();
            let (x, w) = (values(2 * 17 * 19 * 3, 1), values(5 * area * 3, 2));
            let (a, b) = (values(2 * area * 3, 4), values(5 * 2, 5));
            let weights = FrozenWeights::new(vec![matrix(5, area * 3, &w)]);
            let g = window.geometry([2, 17, 19, 3]).unwrap();
            let op = FrozenConv::new(&weights, 0, Some(0), false, window).unwrap();
            let inputs = [tensor(&[2, 17, 19, 3], &x)];
            let y = run_with(op.clone(), &inputs, Some(&bound(vec![Some((2, &a, &b))]))).unwrap();
            // (W + B·A) as one set of filters.
            let mut merged = w.clone();
            for o in 0..5 {
                for k in 0..area * 3 {
                    merged[o * area * 3 + k] +=
                        (0..2).map(|r| b[o * 2 + r] * a[r * area * 3 + k]).sum::<f32>();
                }
            }
            let want = naive_conv(&g, &merged, 5, &x, None);
            let want = tensor(&[2, g.out_height(), g.out_width(), 5], &want);
            y.close_enough(&want, true).unwrap_or_else(|e| panic!("{window:?}: {e}"));
            let base = run(op.clone(), &inputs).unwrap();
            let inactive = run_with(op, &inputs, Some(&bound(vec![None]))).unwrap();
            assert_eq!(floats(&base).unwrap(), floats(&inactive).unwrap());
        }
    }

    #[test]
    fn the_input_gradient_is_the_adjoint() {
        for window in windows() {
            let weights = FrozenWeights::new(vec![matrix(
                5,
                window.area() * 3,
                &values(5 * window.area() * 3, 2),
            )]);
            let g = window.geometry([2, 17, 19, 3]).unwrap();
            let op = FrozenConv::new(&weights, 0, None, false, window).unwrap();
            let x = tensor(&[2, 17, 19, 3], &values(2 * 17 * 19 * 3, 1));
            let y_shape = [2, g.out_height(), g.out_width(), 5];
            let dy = tensor(&y_shape, &values(y_shape.iter().product(), 7));
            let y = run(op.clone(), std::slice::from_ref(&x)).unwrap();
            let dx = run(op.input_gradient(17.to_dim(), 19.to_dim()), std::slice::from_ref(&dy))
                .unwrap();
            let (a, b) = (dot(&y, &dy), dot(&x, &dx));
            assert!((a - b).abs() < 1e-3 * a.abs().max(1.0), "{window:?}: {a} {b}");
        }
    }

    #[test]
    fn wrong_inputs_are_refused_when_wired() {
        let window = windows()[0];
        let area = window.area();
        let weights = FrozenWeights::new(vec![
            matrix(5, area * 3, &values(5 * area * 3, 2)),
            matrix(5, area * 3 + 1, &values(5 * (area * 3 + 1), 2)),
        ]);
        assert!(FrozenConv::new(&weights, 1, None, false, window).is_err());
        let op = FrozenConv::new(&weights, 0, None, false, window).unwrap();
        assert!(op.output_facts(&[&f32::fact([1, 8, 8, 3])]).is_ok());
        assert!(op.output_facts(&[&f32::fact([1, 8, 8, 4])]).is_err());
        assert!(op.output_facts(&[&f32::fact([8, 8, 3])]).is_err());
        let back = op.input_gradient(8.to_dim(), 8.to_dim());
        assert!(back.output_facts(&[&f32::fact([1, 3, 3, 5])]).is_err());
        assert!(back.output_facts(&[&f32::fact([1, 8, 8, 4])]).is_err());
    }
}
