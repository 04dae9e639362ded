//! Attention as one step of plans, made by fusing.

use tract_core::internal::*;

use super::weights::{expect_f32, filled, floats};
use crate::quant::{self, Mask};

/// y = softmax(scale · q · kᵀ (+ mask)) · v, head by head: q and y are \[B, T, H·D\], k and v
/// \[B, S, H·D\], the mask broadcasts to \[B, H, T, S\]. Inputs: q, k, v, and the mask if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attention {
    /// H.
    pub heads: usize,
    /// The bits of the scale, f32.
    pub scale: u32,
    /// Whether there is a mask.
    pub has_mask: bool,
}

impl Op for Attention {
    fn name(&self) -> StaticName {
        "Attention".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let scale = f32::from_bits(self.scale);
        Ok(vec![format!("{} heads, scale {scale}, mask {}", self.heads, self.has_mask)])
    }

    op_as_typed_op!();
}

impl EvalOp for Attention {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (&[batch, queries, width], &[b, keys, w]) = (inputs[0].shape(), inputs[1].shape())
        else {
            bail!("q and k: expected three axes");
        };
        ensure!(
            b == batch && w == width && inputs[1].shape() == inputs[2].shape(),
            "q {:?}, k {:?} and v {:?} don't fit",
            inputs[0].shape(),
            inputs[1].shape(),
            inputs[2].shape()
        );
        ensure!(
            self.heads > 0 && width % self.heads == 0,
            "{width} features, {} heads",
            self.heads
        );
        let a = quant::Attention {
            batch,
            heads: self.heads,
            queries,
            keys,
            head_dim: width / self.heads,
            scale: f32::from_bits(self.scale),
        };
        let mask = match inputs.get(3) {
            Some(mask) => {
                let &[n, h, t, s] = mask.shape() else { bail!("a mask has four axes") };
                let full = [batch, self.heads, queries, keys];
                let fits = [n, h, t, s].iter().zip(full).all(|(m, f)| *m == 1 || *m == f);
                ensure!(fits, "a mask of {:?} for {full:?}", mask.shape());
                Some(Mask { values: floats(mask)?, shape: [n, h, t, s] })
            }
            None => None,
        };
        let (q, k, v) = (floats(&inputs[0])?, floats(&inputs[1])?, floats(&inputs[2])?);
        let y = filled(inputs[0].shape(), |y| {
            quant::attention(&a, q, k, v, mask, y);
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

impl TypedOp for Attention {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let expected = 3 + usize::from(self.has_mask);
        ensure!(inputs.len() == expected, "expected {expected} inputs, found {}", inputs.len());
        for (what, fact) in ["q", "k", "v", "mask"].into_iter().zip(inputs) {
            expect_f32(what, fact)?;
            let rank = if what == "mask" { 4 } else { 3 };
            ensure!(fact.rank() == rank, "{what}: expected {rank} axes, found {}", fact.rank());
        }
        Ok(tvec!(inputs[0].without_value()))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let work = inputs[0].shape.volume() * &inputs[1].shape[1] * 2;
        Ok(tvec!((Cost::FMA(f32::datum_type()), work)))
    }
}
