//! LoRA: y + scaling · (x·lora_aᵀ)·lora_bᵀ. With lora_b = 0 the sum is bit-equal to y.

use super::{Layer, Start, Wiring};
use crate::adapter::{NamedTensor, TargetKind};
use crate::error::Result;
use crate::train::init;
use tract_core::internal::OutletId;

pub(super) struct Lora;

impl Wiring for Lora {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn tensors(&self, start: &Start<'_>) -> Result<Vec<NamedTensor>> {
        Ok(pair(start))
    }

    fn wire(&self, layer: &mut Layer<'_>, scaling: f32) -> Result<OutletId> {
        let delta = delta(layer, scaling)?;
        layer.w.add(layer.y, delta)
    }
}

/// lora_a and lora_b, one of them zero. As PEFT has it, that is lora_a of an embedding, whose columns
/// are rows of a table.
pub(super) fn pair(start: &Start<'_>) -> Vec<NamedTensor> {
    let ([inputs, outputs], rank) = (start.features(), start.rank);
    let name = start.name_of("lora_a");
    let (a, b) = match start.target.kind {
        TargetKind::Embedding => {
            // The variance of PEFT's normal values, 1.
            let bound = 3f32.sqrt();
            let b = init::uniform(start.seed, &start.name_of("lora_b"), outputs * rank, bound);
            (vec![0.0; rank * inputs], b)
        }
        _ => (init::lora_a(start.seed, &name, rank, inputs), init::lora_b(outputs, rank)),
    };
    vec![
        NamedTensor::new("lora_a", &[rank, inputs], a),
        NamedTensor::new("lora_b", &[outputs, rank], b),
    ]
}

/// scaling · (x·lora_aᵀ)·lora_bᵀ.
pub(super) fn delta(layer: &mut Layer<'_>, scaling: f32) -> Result<OutletId> {
    let inner = layer.product_of_input(layer.tensor("lora_a")?)?;
    let inner = if scaling == 1.0 { inner } else { layer.w.scale(inner, scaling)? };
    layer.product(inner, layer.tensor("lora_b")?)
}
