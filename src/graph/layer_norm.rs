//! Layer normalization over the last axis: a step of plans, made by fusing.

use tract_core::internal::*;

use super::weights::{expect_bias, expect_f32, filled, floats};
use crate::quant;

/// y = (x - mean) / √(variance + epsilon) (· scale\[N\]) (+ shift\[N\]) over the last axis of x\[.., N\].
/// Inputs: x, scale, shift, the latter two if there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayerNorm {
    /// The bits of epsilon, f32.
    pub epsilon: u32,
    /// Whether there is a scale.
    pub has_scale: bool,
    /// Whether there is a shift.
    pub has_shift: bool,
}

impl Op for LayerNorm {
    fn name(&self) -> StaticName {
        "LayerNorm".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("epsilon {:e}", f32::from_bits(self.epsilon))])
    }

    op_as_typed_op!();
}

impl EvalOp for LayerNorm {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = floats(&inputs[0])?;
        let width = inputs[0].shape().last().copied().unwrap_or(0);
        let mut more = inputs[1..].iter().map(|t| floats(t));
        let mut next = |there: bool| if there { more.next().transpose() } else { Ok(None) };
        let (scale, shift) = (next(self.has_scale)?, next(self.has_shift)?);
        let y = filled(inputs[0].shape(), |y| {
            let norm =
                quant::LayerNorm { width, epsilon: f32::from_bits(self.epsilon), scale, shift };
            if width > 0 {
                quant::layer_norm(&norm, x, y);
            }
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

impl TypedOp for LayerNorm {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let expected = 1 + usize::from(self.has_scale) + usize::from(self.has_shift);
        ensure!(inputs.len() == expected, "expected {expected} inputs, found {}", inputs.len());
        expect_f32("x", inputs[0])?;
        let width = inputs[0].shape.last().context("x is a scalar")?.to_usize()?;
        for i in 1..expected {
            expect_bias(inputs, i, width)?;
        }
        Ok(tvec!(inputs[0].without_value()))
    }
}
