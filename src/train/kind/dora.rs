//! DoRA: magnitude / ‖W + ΔW‖ ⊙ ((W + ΔW)·x) + bias. Starts at the base, with the lengths of W's rows.

use super::{Layer, Start, Wiring, lora};
use crate::adapter::NamedTensor;
use crate::error::Result;
use crate::quant::{row_norms, row_squares};
use tract_core::internal::OutletId;

pub(super) struct Dora;

impl Wiring for Dora {
    fn name(&self) -> &'static str {
        "dora"
    }

    fn tensors(&self, start: &Start<'_>) -> Result<Vec<NamedTensor>> {
        start.no_embedding(self.name())?;
        let mut tensors = lora::pair(start);
        let lengths = row_norms(start.frozen, &row_squares(start.frozen), &[], &[]);
        tensors.push(NamedTensor::new("magnitude", &[lengths.len()], lengths));
        Ok(tensors)
    }

    fn wire(&self, layer: &mut Layer<'_>, scaling: f32) -> Result<OutletId> {
        let (a, b) = (layer.tensor("lora_a")?, layer.tensor("lora_b")?);
        let scaled = layer.w.scale(b, scaling)?;
        let norms = layer.norms(a, scaled)?;
        let scale = layer.w.div(layer.tensor("magnitude")?, norms)?;
        let delta = lora::delta(layer, scaling)?;
        let plain = layer.without_bias()?;
        let sum = layer.w.add(plain, delta)?;
        let scale = layer.along(scale, sum)?;
        let product = layer.w.mul(sum, scale)?;
        match layer.bias() {
            Some(bias) => {
                let bias = layer.along(bias, product)?;
                layer.w.add(product, bias)
            }
            None => Ok(product),
        }
    }

    /// The norm is no part of the gradient (section 4.3 of the paper; PEFT does so too).
    #[cfg(test)]
    fn held_constant(&self) -> &'static [&'static str] {
        &["lora_a", "lora_b"]
    }
}
