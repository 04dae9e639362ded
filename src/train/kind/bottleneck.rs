//! Bottleneck adapters, for comparison: y + relu(y·downᵀ + down_bias)·upᵀ + up_bias, with up = 0 at
//! the start. The rank is the width.

use super::{Layer, Start, Wiring};
use crate::adapter::NamedTensor;
use crate::error::Result;
use crate::train::init;
use tract_core::internal::OutletId;
use tract_core::ops::math;

pub(super) struct Bottleneck;

impl Wiring for Bottleneck {
    fn name(&self) -> &'static str {
        "bottleneck"
    }

    fn tensors(&self, start: &Start<'_>) -> Result<Vec<NamedTensor>> {
        start.no_embedding(self.name())?;
        let ([_, outputs], width) = (start.features(), start.rank);
        let bound = 1.0 / (outputs.max(1) as f32).sqrt();
        let uniform = |name: &str, len| init::uniform(start.seed, &start.name_of(name), len, bound);
        Ok(vec![
            NamedTensor::new("down", &[width, outputs], uniform("down", width * outputs)),
            NamedTensor::new("down_bias", &[width], uniform("down_bias", width)),
            NamedTensor::new("up", &[outputs, width], vec![0.0; outputs * width]),
            NamedTensor::new("up_bias", &[outputs], vec![0.0; outputs]),
        ])
    }

    fn wire(&self, layer: &mut Layer<'_>, _scaling: f32) -> Result<OutletId> {
        let inner = layer.product(layer.y, layer.tensor("down")?)?;
        let bias = layer.along(layer.tensor("down_bias")?, inner)?;
        let inner = layer.w.add(inner, bias)?;
        let zero = layer.w.scalar(0.0, inner)?;
        let inner = layer.w.binary(math::max(), inner, zero)?;
        let outer = layer.product(inner, layer.tensor("up")?)?;
        let bias = layer.along(layer.tensor("up_bias")?, outer)?;
        let outer = layer.w.add(outer, bias)?;
        layer.w.add(layer.y, outer)
    }
}
