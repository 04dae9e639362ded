//! The matrix form of a convolution's input, and its adjoint, as ops of the gradient graph.

use tract_core::internal::*;

use super::conv::{expect_sides, sides};
use super::weights::{expect_dim, expect_f32, filled, floats};
use super::window::{Window, nhwc, nhwc_fact};
use crate::quant::{col2im_add, im2col};

/// patches\[N, OH, OW, kh·kw·C\] from x\[N, H, W, C\], channels innermost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Im2col {
    /// Kernel, stride, dilation, padding.
    pub window: Window,
}

impl Op for Im2col {
    fn name(&self) -> StaticName {
        "Im2col".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![self.window.describe()])
    }

    op_as_typed_op!();
}

impl EvalOp for Im2col {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let g = self.window.geometry(nhwc(inputs[0].shape())?)?;
        let x = floats(&inputs[0])?;
        let shape = [g.batch, g.out_height(), g.out_width(), g.patch_len()];
        let patches = filled(&shape, |patches| {
            im2col(&g, x, 0, g.pixels(), patches);
            Ok(())
        })?;
        Ok(tvec!(patches))
    }
}

impl TypedOp for Im2col {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1, "expected 1 input, found {}", inputs.len());
        expect_f32("x", inputs[0])?;
        let [n, h, w, c] = nhwc_fact(inputs[0])?;
        let (oh, ow) = (self.window.output_side(0, &h)?, self.window.output_side(1, &w)?);
        Ok(tvec!(f32::fact([n, oh, ow, c * self.window.area()])))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let out = self.output_facts(inputs)?;
        Ok(tvec!((Cost::Buffer(f32::datum_type()), out[0].shape.volume())))
    }
}

/// The adjoint of [`Im2col`]: adds patches\[N, OH, OW, kh·kw·C\] up to x\[N, height, width, C\].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Col2im {
    /// The window of the forward op.
    pub window: Window,
    /// H.
    pub height: TDim,
    /// W.
    pub width: TDim,
    /// C.
    pub channels: usize,
}

impl Op for Col2im {
    fn name(&self) -> StaticName {
        "Col2im".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let to = format!("to {} x {} x {}", self.height, self.width, self.channels);
        Ok(vec![to, self.window.describe()])
    }

    op_as_typed_op!();
}

impl EvalOp for Col2im {
    // The sides may hold symbols that only a run knows.
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [height, width] = sides(ctx, &self.height, &self.width)?;
        let [n, oh, ow, k] = nhwc(inputs[0].shape())?;
        let g = self.window.geometry([n, height, width, self.channels])?;
        ensure!(
            [oh, ow, k] == [g.out_height(), g.out_width(), g.patch_len()],
            "patches of {oh} x {ow} x {k} don't fit an input of {height} x {width} x {}",
            self.channels
        );
        let patches = floats(&inputs[0])?;
        let x = filled(&[n, height, width, self.channels], |x| {
            col2im_add(&g, patches, 0, g.pixels(), x);
            Ok(())
        })?;
        Ok(tvec!(x))
    }
}

impl TypedOp for Col2im {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 1, "expected 1 input, found {}", inputs.len());
        expect_f32("patches", inputs[0])?;
        let [n, oh, ow, k] = nhwc_fact(inputs[0])?;
        let patch = self.window.area().checked_mul(self.channels).context("patches too long")?;
        expect_dim("values of a patch", Some(&k), patch)?;
        expect_sides(&self.window, [&self.height, &self.width], [&oh, &ow])?;
        let channels = self.channels.to_dim();
        Ok(tvec!(f32::fact([n, self.height.clone(), self.width.clone(), channels])))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        Ok(tvec!((Cost::Buffer(f32::datum_type()), inputs[0].shape.volume())))
    }

    fn set_symbols(
        &self,
        _source: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
        subs: &HashMap<Symbol, TDim>,
    ) -> TractResult<TVec<OutletId>> {
        let op = Col2im {
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
    use crate::graph::testing::{dot, naive_conv, run, tensor, values, windows};

    #[test]
    fn patches_times_filters_are_the_convolution() {
        for window in windows() {
            let (x, k) = (values(2 * 9 * 8 * 3, 1), window.area() * 3);
            let w = values(4 * k, 2);
            let patches = run(Im2col { window }, &[tensor(&[2, 9, 8, 3], &x)]).unwrap();
            let y: Vec<f32> = floats(&patches)
                .unwrap()
                .chunks(k)
                .flat_map(|p| w.chunks(k).map(|w| p.iter().zip(w).map(|(a, b)| a * b).sum::<f32>()))
                .collect();
            let g = window.geometry([2, 9, 8, 3]).unwrap();
            let want = naive_conv(&g, &w, 4, &x, None);
            assert_eq!(patches.shape(), &[2, g.out_height(), g.out_width(), k]);
            tensor(&[want.len()], &y).close_enough(&tensor(&[want.len()], &want), true).unwrap();
        }
    }

    #[test]
    fn adding_patches_up_is_the_adjoint() {
        for window in windows() {
            let x = tensor(&[2, 9, 8, 3], &values(2 * 9 * 8 * 3, 1));
            let patches = run(Im2col { window }, std::slice::from_ref(&x)).unwrap();
            let other = tensor(patches.shape(), &values(patches.len(), 2));
            let op = Col2im { window, height: 9.to_dim(), width: 8.to_dim(), channels: 3 };
            let back = run(op, std::slice::from_ref(&other)).unwrap();
            assert_eq!(back.shape(), x.shape());
            let (a, b) = (dot(&patches, &other), dot(&x, &back));
            assert!((a - b).abs() < 1e-3 * a.abs().max(1.0), "{window:?}: {a} {b}");
        }
    }
}
