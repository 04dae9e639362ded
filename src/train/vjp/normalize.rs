//! Rules of the ops that look along axes: softmax, reductions, root mean square.

use tract_core::internal::*;
use tract_core::ops::logic::comp_eq;
use tract_core::ops::math;
use tract_core::ops::nn::{Reduce, Reducer, RmsNorm, Softmax, SoftmaxKind};

use super::rows::{ProductGradient, RmsNormGradient, SoftmaxGradient};
use super::{InputGradients, Site, Wires};
use crate::error::Result;

/// Softmax: y·(g - Σ g·y). Its logarithm: g - e^y·Σ g.
pub(super) fn softmax(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<Softmax>()?;
    if op.quant_output_dt.is_some() {
        return Err(site.unsupported("it is quantized"));
    }
    let (g, y) = (site.gradient()?, site.output());
    Ok(tvec![Some(match op.kind {
        SoftmaxKind::Softmax if along_rows(b, y, &op.axes)? => b.wire(SoftmaxGradient, &[g, y])?,
        SoftmaxKind::Softmax => {
            let product = b.mul(g, y)?;
            let sum = b.sum(product, &op.axes)?;
            let rest = b.sub(g, sum)?;
            b.mul(y, rest)?
        }
        SoftmaxKind::LogSoftmax => {
            let sum = b.sum(g, &op.axes)?;
            let probability = b.unary(math::exp(), y)?;
            let part = b.mul(probability, sum)?;
            b.sub(g, part)?
        }
    })])
}

/// Whether these axes are the last one, of f32.
fn along_rows(b: &Wires, outlet: OutletId, axes: &[usize]) -> Result<bool> {
    let fact = b.fact(outlet)?;
    let last = fact.rank().checked_sub(1);
    Ok(last.is_some_and(|last| axes == [last]) && fact.datum_type.is::<f32>())
}

/// Sum, product, mean of squares, and the extrema, which share the gradient evenly among equals as
/// PyTorch's amax does.
pub(super) fn reduce(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<Reduce>()?;
    let (g, x, y) = (site.gradient()?, site.input(0)?, site.output());
    let shape = b.fact(x)?.shape.clone();
    Ok(tvec![Some(match op.reducer {
        Reducer::Sum => b.broadcast_to(g, &shape)?,
        Reducer::MeanOfSquares => {
            let count = b.count(x, &op.axes)?;
            let double = b.scale(g, 2.0)?;
            let each = b.div(double, count)?;
            b.mul(x, each)?
        }
        Reducer::Max | Reducer::Min => {
            let dt = b.fact(x)?.datum_type;
            let taken = b.compare(comp_eq(), x, y)?;
            let taken = b.cast(taken, dt)?;
            let ties = b.sum(taken, &op.axes)?;
            let each = b.div(g, ties)?;
            b.mul(taken, each)?
        }
        Reducer::Prod => {
            let op = ProductGradient { axes: op.axes.clone() };
            b.wire(op, &[x, g])?
        }
        Reducer::ArgMax(_) | Reducer::ArgMin(_) | Reducer::All | Reducer::Any => {
            return Ok(tvec![None]);
        }
    })])
}

/// y = x·r with r = 1/√(mean x² + ε): r·(g - y·mean(g·y)).
pub(super) fn rms_norm(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<RmsNorm>()?;
    let (g, x, y) = (site.gradient()?, site.input(0)?, site.output());
    let epsilon = op
        .eps
        .cast_to_scalar::<f32>()
        .map_err(|e| site.unsupported(&format!("its epsilon: {e:#}")))?;
    let axis = [op.axis];
    if along_rows(b, x, &axis)? {
        return Ok(tvec![Some(b.wire(RmsNormGradient { epsilon }, &[g, x])?)]);
    }
    let squares = b.wire(Reduce::new(axis[..].into(), Reducer::MeanOfSquares), &[x])?;
    let inside = b.shift(squares, epsilon)?;
    let r = b.unary(math::rsqrt(), inside)?;
    let product = b.mul(g, y)?;
    let mean = b.mean(product, &axis)?;
    let part = b.mul(y, mean)?;
    let rest = b.sub(g, part)?;
    Ok(tvec![Some(b.mul(rest, r)?)])
}
