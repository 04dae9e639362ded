//! Attention to keys and values that stay from one run to the next.

use std::sync::{Arc, Mutex, PoisonError};

use tract_core::internal::*;

use super::weights::{expect_f32, filled, floats};
use crate::quant::{Kept, Mask, attention_to_kept};

/// What the layers of a graph keep, by their numbers. In the run's shared resources.
#[derive(Clone)]
pub struct KeptStates(pub Arc<[Mutex<Kept>]>);

/// y = softmax(scale · q · kᵀ (+ mask)) · v: q and y are \[H, G, T, D\] in the order of their values, whatever their
/// axes are; k and v are what is kept, and what is new of them, \[1, H, T, D\], which is kept behind the first `past`.
/// Inputs: q, new k and v if it `appends`, the mask \[1, 1, T, S\] if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeptAttention {
    /// The layer's number among [`KeptStates`].
    pub layer: usize,
    /// Whether keys and values are added.
    pub appends: bool,
    /// How many were there before.
    pub past: TDim,
    /// The bits of the scale, f32.
    pub scale: u32,
    /// Whether there is a mask.
    pub has_mask: bool,
}

impl Op for KeptAttention {
    fn name(&self) -> StaticName {
        "KeptAttention".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let scale = f32::from_bits(self.scale);
        Ok(vec![format!("layer {}, scale {scale}, mask {}", self.layer, self.has_mask)])
    }

    op_as_typed_op!();
}

impl EvalOp for KeptAttention {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let kept = ctx.shared.and_then(|shared| shared.get::<KeptStates>());
        let kept = kept.and_then(|kept| kept.0.get(self.layer)).context("nothing is kept")?;
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if self.appends {
            let past = self.past.eval(ctx.symbols).to_usize()?;
            ensure!(past <= kept.len(), "{} are kept, expected {past}", kept.len());
            kept.truncate(past);
            kept.append(floats(&inputs[1])?, floats(&inputs[2])?);
        }
        ensure!(kept.len() > 0, "nothing is kept of layer {}", self.layer);
        let mask = match inputs.last().filter(|_| self.has_mask) {
            Some(mask) => {
                let &[1, 1, t, s] = mask.shape() else { bail!("a mask of {:?}", mask.shape()) };
                ensure!(s == 1 || s == kept.len(), "a mask for {s} of {}", kept.len());
                Some(Mask { values: floats(mask)?, shape: [1, 1, t, s] })
            }
            None => None,
        };
        let tokens = mask.map_or(1, |mask| mask.shape[2]);
        let (q, scale) = (floats(&inputs[0])?, f32::from_bits(self.scale));
        let y = filled(inputs[0].shape(), |y| {
            attention_to_kept(&kept, scale, tokens, q, mask, y);
            Ok(())
        })?;
        Ok(tvec!(y))
    }
}

impl TypedOp for KeptAttention {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let expected = 1 + 2 * usize::from(self.appends) + usize::from(self.has_mask);
        ensure!(inputs.len() == expected, "expected {expected} inputs, found {}", inputs.len());
        inputs.iter().try_for_each(|fact| expect_f32("an input", fact))?;
        Ok(tvec!(inputs[0].without_value()))
    }

    fn set_symbols(
        &self,
        _source: &TypedModel,
        node: &TypedNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
        subs: &HashMap<Symbol, TDim>,
    ) -> TractResult<TVec<OutletId>> {
        let op = KeptAttention { past: self.past.substitute_all(subs)?, ..self.clone() };
        let inputs = node.inputs.iter().map(|i| mapping[i]).collect::<TVec<_>>();
        target.wire_node(&node.name, op, &inputs)
    }
}
