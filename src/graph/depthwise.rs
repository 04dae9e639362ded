//! The depthwise convolution, channels last, and its input gradient. Its filters are small: they
//! stay float constants of the graph, not entries of the weight table.

use tract_core::internal::*;

use super::conv::{expect_sides, sides};
use super::weights::{expect_bias, expect_dim, expect_f32, filled, floats};
use super::window::{Window, nhwc, nhwc_fact};
use crate::quant::{Activation, ConvGeometry, depthwise, depthwise_input_gradient};

/// One filter a channel: y\[N, OH, OW, C\] from x\[N, H, W, C\]. Inputs: x, filters\[kh·kw, C\], and
/// bias\[C\] if there is a third.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FrozenDepthwise {
    /// Kernel, stride, dilation, padding.
    pub window: Window,
}

/// Fails unless input 1 is filters\[kh·kw, C\] for `channels`.
fn expect_filters(window: &Window, filters: &TypedFact, channels: &TDim) -> TractResult<()> {
    expect_f32("filters", filters)?;
    ensure!(filters.rank() == 2, "filters: expected axes kh·kw, C, found {:?}", filters.shape);
    expect_dim("filters' first axis", filters.shape.first(), window.area())?;
    if let (Some(TDim::Val(found)), TDim::Val(expected)) = (filters.shape.get(1), channels) {
        ensure!(found == expected, "filters' channels: expected {expected}, found {found}");
    }
    Ok(())
}

impl Op for FrozenDepthwise {
    fn name(&self) -> StaticName {
        "FrozenDepthwise".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![self.window.describe()])
    }

    op_as_typed_op!();
}

impl FrozenDepthwise {
    /// The filters and the bias among the inputs that follow x.
    pub(super) fn constants<'a>(
        &self,
        g: &ConvGeometry,
        inputs: &'a [TValue],
    ) -> TractResult<(&'a [f32], Option<&'a [f32]>)> {
        let w = floats(inputs.first().context("no filters")?)?;
        let bias = inputs.get(1).map(|b| floats(b)).transpose()?;
        ensure!(
            w.len() == g.patch_len() && bias.is_none_or(|b| b.len() == g.channels),
            "filters of {} values don't fit {} channels",
            w.len(),
            g.channels
        );
        Ok((w, bias))
    }

    pub(super) fn compute(
        &self,
        inputs: &[TValue],
        activation: Activation,
    ) -> TractResult<TVec<TValue>> {
        let g = self.window.geometry(nhwc(inputs[0].shape())?)?;
        let (x, (w, bias)) = (floats(&inputs[0])?, self.constants(&g, &inputs[1..])?);
        let y = filled(&[g.batch, g.out_height(), g.out_width(), g.channels], |y| {
            depthwise(&g, w, bias, activation, x, y);
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

impl EvalOp for FrozenDepthwise {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.compute(&inputs, Activation::Identity)
    }
}

impl TypedOp for FrozenDepthwise {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(matches!(inputs.len(), 2 | 3), "expected 2 or 3 inputs, found {}", inputs.len());
        expect_f32("x", inputs[0])?;
        let [n, h, w, c] = nhwc_fact(inputs[0])?;
        expect_filters(&self.window, inputs[1], &c)?;
        if let TDim::Val(channels) = c {
            expect_bias(inputs, 2, channels as usize)?;
        }
        let (oh, ow) = (self.window.output_side(0, &h)?, self.window.output_side(1, &w)?);
        Ok(tvec!(f32::fact([n, oh, ow, c])))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let out = self.output_facts(inputs)?;
        Ok(tvec!((Cost::FMA(f32::datum_type()), out[0].shape.volume() * self.window.area())))
    }
}

/// dx\[N, height, width, C\] from dy\[N, OH, OW, C\] and filters\[kh·kw, C\]: the input gradient of
/// [`FrozenDepthwise`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DepthwiseInputGradient {
    /// The forward convolution's.
    pub window: Window,
    /// H of the forward convolution's input.
    pub height: TDim,
    /// W of the forward convolution's input.
    pub width: TDim,
}

impl Op for DepthwiseInputGradient {
    fn name(&self) -> StaticName {
        "DepthwiseInputGradient".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("to {} x {}", self.height, self.width), self.window.describe()])
    }

    op_as_typed_op!();
}

impl EvalOp for DepthwiseInputGradient {
    // The sides may hold symbols that only a run knows.
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [height, width] = sides(ctx, &self.height, &self.width)?;
        let [n, oh, ow, c] = nhwc(inputs[0].shape())?;
        let g = self.window.geometry([n, height, width, c])?;
        let (dy, w) = (floats(&inputs[0])?, floats(&inputs[1])?);
        ensure!(
            w.len() == g.patch_len() && [oh, ow] == [g.out_height(), g.out_width()],
            "dy of {oh} x {ow} x {c} doesn't fit an input of {height} x {width}"
        );
        let dx = filled(&[n, height, width, c], |dx| {
            depthwise_input_gradient(&g, w, dy, dx);
            Ok(())
        })?;
        Ok(tvec!(dx))
    }
}

impl TypedOp for DepthwiseInputGradient {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 2, "expected 2 inputs, found {}", inputs.len());
        expect_f32("dy", inputs[0])?;
        let [n, oh, ow, c] = nhwc_fact(inputs[0])?;
        expect_filters(&self.window, inputs[1], &c)?;
        expect_sides(&self.window, [&self.height, &self.width], [&oh, &ow])?;
        Ok(tvec!(f32::fact([n, self.height.clone(), self.width.clone(), c])))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let work = inputs[0].shape.volume() * self.window.area();
        Ok(tvec!((Cost::FMA(f32::datum_type()), work)))
    }

    fn set_symbols(
        &self,
        _source: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
        subs: &HashMap<Symbol, TDim>,
    ) -> TractResult<TVec<OutletId>> {
        let op = DepthwiseInputGradient {
            height: self.height.substitute_all(subs)?,
            width: self.width.substitute_all(subs)?,
            ..self.clone()
        };
        let inputs: TVec<OutletId> = node.inputs.iter().map(|i| mapping[i]).collect();
        target.wire_node(&node.name, op, &inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::testing::{dot, naive_conv, run, tensor, values, windows};

    #[test]
    fn each_channel_is_its_own_convolution() {
        for window in windows() {
            let (x, w, bias) =
                (values(2 * 9 * 8 * 5, 1), values(window.area() * 5, 2), values(5, 3));
            let g = window.geometry([2, 9, 8, 5]).unwrap();
            // The same as a dense convolution whose filters are zero off their channel.
            let mut dense = vec![0.0; 5 * g.patch_len()];
            for c in 0..5 {
                for k in 0..window.area() {
                    dense[c * g.patch_len() + k * 5 + c] = w[k * 5 + c];
                }
            }
            let inputs =
                [tensor(&[2, 9, 8, 5], &x), tensor(&[window.area(), 5], &w), tensor(&[5], &bias)];
            let want = naive_conv(&g, &dense, 5, &x, Some(&bias));
            let y = run(FrozenDepthwise { window }, &inputs).unwrap();
            let want = tensor(&[2, g.out_height(), g.out_width(), 5], &want);
            y.close_enough(&want, true).unwrap_or_else(|e| panic!("{window:?}: {e}"));
        }
    }

    #[test]
    fn the_input_gradient_is_the_adjoint() {
        for window in windows() {
            let x = tensor(&[2, 9, 8, 5], &values(2 * 9 * 8 * 5, 1));
            let w = tensor(&[window.area(), 5], &values(window.area() * 5, 2));
            let y = run(FrozenDepthwise { window }, &[x.clone(), w.clone()]).unwrap();
            let dy = tensor(y.shape(), &values(y.len(), 3));
            let op = DepthwiseInputGradient { window, height: 9.to_dim(), width: 8.to_dim() };
            let dx = run(op, &[dy.clone(), w]).unwrap();
            let (a, b) = (dot(&y, &dy), dot(&x, &dx));
            assert!((a - b).abs() < 1e-3 * a.abs().max(1.0), "{window:?}: {a} {b}");
        }
    }

    #[test]
    fn wrong_filters_are_refused_when_wired() {
        let op = FrozenDepthwise { window: windows()[0] };
        let area = op.window.area();
        let x = f32::fact([1, 8, 8, 4]);
        assert!(op.output_facts(&[&x, &f32::fact([area, 4])]).is_ok());
        assert!(op.output_facts(&[&x, &f32::fact([area, 5])]).is_err());
        assert!(op.output_facts(&[&x, &f32::fact([area + 1, 4])]).is_err());
        assert!(op.output_facts(&[&x, &f32::fact([area, 4]), &f32::fact([5])]).is_err());
    }
}
