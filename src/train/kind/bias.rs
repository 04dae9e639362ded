//! Biases alone: W·x + bias with the bias trained.

use super::{Layer, Start, Wiring};
use crate::adapter::NamedTensor;
use crate::error::Result;
use tract_core::internal::OutletId;

pub(super) struct Bias;

impl Wiring for Bias {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn tensors(&self, start: &Start<'_>) -> Result<Vec<NamedTensor>> {
        start.no_embedding(self.name())?;
        Ok(vec![start.own_bias()])
    }

    fn wire(&self, layer: &mut Layer<'_>, _scaling: f32) -> Result<OutletId> {
        let plain = layer.without_bias()?;
        let bias = layer.along(layer.tensor("bias")?, plain)?;
        layer.w.add(plain, bias)
    }
}
