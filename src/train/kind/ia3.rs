//! IA3: what a layer gives is multiplied value by value, from ones on.

use super::{Layer, Start, Wiring};
use crate::adapter::NamedTensor;
use crate::error::Result;
use tract_core::internal::OutletId;

pub(super) struct Ia3;

impl Wiring for Ia3 {
    fn name(&self) -> &'static str {
        "ia3"
    }

    fn tensors(&self, start: &Start<'_>) -> Result<Vec<NamedTensor>> {
        start.no_embedding(self.name())?;
        let [_, outputs] = start.features();
        Ok(vec![NamedTensor::new("out", &[outputs], vec![1.0; outputs])])
    }

    // 3e-3, where low-rank matrices have 1e-3 (Liu and others, T-Few, 2022).
    fn rate(&self) -> f32 {
        3.0
    }

    fn wire(&self, layer: &mut Layer<'_>, _scaling: f32) -> Result<OutletId> {
        let scale = layer.along(layer.tensor("out")?, layer.y)?;
        layer.w.mul(layer.y, scale)
    }
}
