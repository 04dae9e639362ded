//! Full fine-tuning: the frozen weight as a trained f32 tensor, for comparison.

use super::{Layer, Start, Wiring};
use crate::adapter::{NamedTensor, TargetKind};
use crate::error::Result;
use tract_core::internal::OutletId;

pub(super) struct Full;

impl Wiring for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn tensors(&self, start: &Start<'_>) -> Result<Vec<NamedTensor>> {
        let w = start.frozen;
        let mut tensors = vec![NamedTensor::new("weight", &[w.rows(), w.cols()], w.dequantize())];
        if start.target.kind != TargetKind::Embedding {
            tensors.push(start.own_bias());
        }
        Ok(tensors)
    }

    // The best rate of low-rank matrices is ten times that of whole weights (Schulman and others, LoRA
    // Without Regret, 2025).
    fn rate(&self) -> f32 {
        0.1
    }

    fn wire(&self, layer: &mut Layer<'_>, _scaling: f32) -> Result<OutletId> {
        let product = layer.replaced(layer.tensor("weight")?)?;
        if !layer.has("bias") {
            return Ok(product);
        }
        let bias = layer.along(layer.tensor("bias")?, product)?;
        layer.w.add(product, bias)
    }
}
