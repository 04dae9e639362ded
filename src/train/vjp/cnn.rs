//! Rules of pooling and of the convolutions that stay tract's own.

use tract_core::internal::*;
use tract_core::ops::cnn::{Conv, Deconv, MaxPool, SumPool};
use tract_core::ops::nn::DataFormat;

use super::ops::{ConvInputGradient, MaxPoolGradient, SumPoolGradient};
use super::{InputGradients, Site, Wires};
use crate::error::Result;

pub(super) fn sum_pool(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let pool = site.op::<SumPool>()?.clone();
    let shape = b.fact(site.input(0)?)?.shape.clone();
    Ok(tvec![Some(b.wire(SumPoolGradient { pool, shape }, &[site.gradient()?])?)])
}

pub(super) fn max_pool(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let spec = site.op::<MaxPool>()?.pool_spec.clone();
    Ok(tvec![Some(b.wire(MaxPoolGradient { spec }, &[site.input(0)?, site.gradient()?])?)])
}

/// Gradient of a bias of channels: the sum over all else.
fn bias(b: &mut Wires, site: &Site, format: DataFormat) -> Result<OutletId> {
    let g = site.gradient()?;
    let rank = b.rank(g)?;
    let channels = if format.c_is_last() { rank - 1 } else { format.has_n() as usize };
    let bias = b.fact(site.input(2)?)?.shape.clone();
    let axes: TVec<usize> =
        (0..rank).filter(|&axis| bias.rank() == 0 || axis != channels).collect();
    let mut sum = b.sum(g, &axes)?;
    for axis in axes.into_iter().rev() {
        sum = b.wire(AxisOp::Rm(axis), &[sum])?;
    }
    b.unbroadcast(sum, &bias)
}

/// Gradients of the input and the bias of a transposed convolution; the kernel is frozen.
pub(super) fn deconv(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let deconv = site.op::<Deconv>()?.clone();
    if site.wants(1) {
        return Err(site.unsupported("its kernel can't be trained"));
    }
    let mut gradients = tvec![None, None, None];
    if site.wants(2) {
        gradients[2] = Some(bias(b, site, deconv.pool_spec.data_format)?);
    }
    if site.wants(0) {
        let shape = b.fact(site.input(0)?)?.shape.clone();
        let op = ConvInputGradient {
            spec: deconv.pool_spec,
            format: deconv.kernel_format,
            groups: deconv.group,
            transposed: true,
            shape,
        };
        gradients[0] = Some(b.wire(op, &[site.gradient()?, site.input(1)?])?);
    }
    Ok(gradients)
}

/// Gradients of the input and the bias; the kernel is frozen.
pub(super) fn conv(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let conv = site.op::<Conv>()?.clone();
    if conv.q_params.is_some() {
        return Err(site.unsupported("it is quantized"));
    }
    if site.wants(1) {
        return Err(site.unsupported("its kernel can't be trained"));
    }
    let g = site.gradient()?;
    let mut gradients = tvec![None, None, None];
    if site.wants(2) {
        gradients[2] = Some(bias(b, site, conv.pool_spec.data_format)?);
    }
    if site.wants(0) {
        let shape = b.fact(site.input(0)?)?.shape.clone();
        let op = ConvInputGradient {
            spec: conv.pool_spec,
            format: conv.kernel_fmt,
            groups: conv.group,
            transposed: false,
            shape,
        };
        gradients[0] = Some(b.wire(op, &[g, site.input(1)?])?);
    }
    Ok(gradients)
}
