//! Rules of our own ops over frozen weights. The weights get no gradient; biases may.
//!
//! The gradients are those of the base alone: a training graph runs without an active adapter,
//! what it trains being wired into the graph.

use tract_core::internal::*;

use super::{InputGradients, Site};
use crate::error::Result;
use crate::graph::{
    Col2im, DepthwiseInputGradient, FrozenConv, FrozenDepthwise, FrozenLinear,
    FrozenLinearTransposed, Im2col,
};
use crate::train::wires::Wires;

/// Gradient of a bias over the last axis: the sum over all others.
fn bias(w: &mut Wires, site: &Site, slot: usize) -> Result<OutletId> {
    let shape = w.fact(site.input(slot)?)?.shape.clone();
    w.unbroadcast(site.gradient()?, &shape)
}

/// H and W of an input (N, H, W, C).
fn sides(w: &Wires, site: &Site) -> Result<[TDim; 2]> {
    match w.fact(site.input(0)?)?.shape.dims() {
        [_, height, width, _] => Ok([height.clone(), width.clone()]),
        _ => Err(site.unsupported("its input is not (N, H, W, C)")),
    }
}

pub(super) fn linear(w: &mut Wires, site: &Site) -> Result<InputGradients> {
    let back = site.op::<FrozenLinear>()?.transposed();
    let mut gradients = tvec![None; site.node.inputs.len()];
    if site.wants(0) {
        gradients[0] = Some(w.wire(back, &[site.gradient()?])?);
    }
    if site.wants(1) {
        gradients[1] = Some(bias(w, site, 1)?);
    }
    Ok(gradients)
}

pub(super) fn linear_transposed(w: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<FrozenLinearTransposed>()?.clone();
    let back = FrozenLinear {
        weights: op.weights,
        weight: op.weight,
        target: None,
        in_features: op.in_features,
        out_features: op.out_features,
        has_bias: false,
    };
    Ok(tvec![Some(w.wire(back, &[site.gradient()?])?)])
}

/// The forward run of a loss has made the gradient of the sum: that of the sum's own scales it.
pub(super) fn loss(w: &mut Wires, site: &Site) -> Result<InputGradients> {
    if site.wants(1) || site.wants(2) {
        return Err(site.unsupported("only what it reads rows of can be trained"));
    }
    let made = OutletId::new(site.node.id, 1);
    let mut scale = site.gradient()?;
    for _ in 0..w.rank(made)? {
        scale = w.axis(AxisOp::Add(0), scale)?;
    }
    let mut gradients = tvec![None; site.node.inputs.len()];
    gradients[0] = Some(w.mul(made, scale)?);
    Ok(gradients)
}

pub(super) fn conv(w: &mut Wires, site: &Site) -> Result<InputGradients> {
    let mut gradients = tvec![None; site.node.inputs.len()];
    if site.wants(0) {
        let [height, width] = sides(w, site)?;
        let back = site.op::<FrozenConv>()?.input_gradient(height, width);
        gradients[0] = Some(w.wire(back, &[site.gradient()?])?);
    }
    if site.wants(1) {
        gradients[1] = Some(bias(w, site, 1)?);
    }
    Ok(gradients)
}

pub(super) fn depthwise(w: &mut Wires, site: &Site) -> Result<InputGradients> {
    if site.wants(1) {
        return Err(site.unsupported("its filters can't be trained"));
    }
    let mut gradients = tvec![None; site.node.inputs.len()];
    if site.wants(0) {
        let [height, width] = sides(w, site)?;
        let window = site.op::<FrozenDepthwise>()?.window;
        let back = DepthwiseInputGradient { window, height, width };
        gradients[0] = Some(w.wire(back, &[site.gradient()?, site.input(1)?])?);
    }
    if site.wants(2) {
        gradients[2] = Some(bias(w, site, 2)?);
    }
    Ok(gradients)
}

pub(super) fn im2col(w: &mut Wires, site: &Site) -> Result<InputGradients> {
    let [height, width] = sides(w, site)?;
    let window = site.op::<Im2col>()?.window;
    let channels = w.fact(site.input(0)?)?.shape[3].to_usize();
    let channels = channels.map_err(|_| site.unsupported("its channels are a symbol"))?;
    let back = Col2im { window, height, width, channels };
    Ok(tvec![Some(w.wire(back, &[site.gradient()?])?)])
}

pub(super) fn col2im(w: &mut Wires, site: &Site) -> Result<InputGradients> {
    let window = site.op::<Col2im>()?.window;
    Ok(tvec![Some(w.wire(Im2col { window }, &[site.gradient()?])?)])
}
