//! Rules of the ops that move elements and compute nothing: the gradient moves back.

use tract_core::internal::*;
use tract_core::ops::array::{
    CumSum, DynSlice, Gather, GatherElements, Pad, PadMode, ScatterElements, ScatterNd,
    ScatterReduction, Slice, Tile, Trilu, TypedConcat,
};
use tract_core::ops::downsample::Downsample;
use tract_core::ops::logic::comp_lt;

use super::ops::SliceGradient;
use super::{InputGradients, Site, Wires};
use crate::error::Result;

pub(super) fn identity(_: &mut Wires, site: &Site) -> Result<InputGradients> {
    Ok(tvec![Some(site.gradient()?)])
}

pub(super) fn cast(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let dt = b.fact(site.input(0)?)?.datum_type;
    Ok(tvec![Some(b.cast(site.gradient()?, dt)?)])
}

pub(super) fn axis_op(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let back = site.op::<AxisOp>()?.recip();
    Ok(tvec![Some(b.wire(back, &[site.gradient()?])?)])
}

pub(super) fn broadcast(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    Ok(tvec![Some(b.unbroadcast_like(site.gradient()?, site.input(0)?)?)])
}

/// `[zeros | gradient | zeros]` along `axis`, from `start` in an axis of `length`.
fn surround(
    b: &mut Wires,
    gradient: OutletId,
    axis: usize,
    start: TDim,
    length: TDim,
) -> Result<OutletId> {
    let fact = b.fact(gradient)?.clone();
    let rest = length - &start - &fact.shape[axis];
    let mut parts = tvec![gradient];
    for (at, size) in [(0, start), (usize::MAX, rest)] {
        if size != 0.to_dim() {
            let mut shape = fact.shape.clone();
            shape.set(axis, size);
            let zeros = b.zeros(fact.datum_type, &shape)?;
            parts.insert(at.min(parts.len()), zeros);
        }
    }
    if parts.len() == 1 { Ok(gradient) } else { b.wire(TypedConcat { axis }, &parts) }
}

pub(super) fn slice(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<Slice>()?;
    let length = b.fact(site.input(0)?)?.shape[op.axis].clone();
    let gradient = surround(b, site.gradient()?, op.axis, op.start.clone(), length)?;
    Ok(tvec![Some(gradient)])
}

/// Bounds that only a run knows.
pub(super) fn dyn_slice(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let axis = site.op::<DynSlice>()?.axis;
    let shape = b.fact(site.input(0)?)?.shape.clone();
    let op = SliceGradient { axis, shape };
    Ok(tvec![Some(b.wire(op, &[site.gradient()?, site.input(1)?])?), None, None])
}

pub(super) fn concat(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let axis = site.op::<TypedConcat>()?.axis;
    let mut start = 0.to_dim();
    let mut gradients = tvec![];
    for slot in 0..site.node.inputs.len() {
        let end = start.clone() + &b.fact(site.input(slot)?)?.shape[axis];
        gradients.push(match site.wants(slot) {
            true => Some(b.wire(Slice::new(axis, start, end.clone()), &[site.gradient()?])?),
            false => None,
        });
        start = end;
    }
    Ok(gradients)
}

pub(super) fn pad(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<Pad>()?;
    if !matches!(op.mode, PadMode::Constant(_)) {
        return super::moved::moved(b, site);
    }
    let shape = b.fact(site.input(0)?)?.shape.clone();
    let mut gradient = site.gradient()?;
    for (axis, &(before, after)) in op.pads.iter().enumerate() {
        if (before, after) != (0, 0) {
            let end = shape[axis].clone() + before;
            gradient = b.wire(Slice::new(axis, before, end), &[gradient])?;
        }
    }
    Ok(tvec![Some(gradient)])
}

/// Each repeated axis is split in (times, length) and summed over the times.
pub(super) fn tile(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<Tile>()?;
    let shape = b.fact(site.input(0)?)?.shape.clone();
    let mut gradient = site.gradient()?;
    for (axis, times) in op.multipliers.iter().enumerate() {
        if !times.is_one() {
            let tiled = b.fact(gradient)?.shape[axis].clone();
            let split =
                AxisOp::Reshape(axis, tvec![tiled], tvec![times.clone(), shape[axis].clone()]);
            gradient = b.wire(split, &[gradient])?;
            gradient = b.sum(gradient, &[axis])?;
            gradient = b.wire(AxisOp::Rm(axis), &[gradient])?;
        }
    }
    Ok(tvec![Some(gradient)])
}

/// Every `stride`-th element got through: each goes back followed by `stride - 1` zeros.
pub(super) fn downsample(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<Downsample>()?;
    let Some(stride) = usize::try_from(op.stride).ok().filter(|&s| s > 0) else {
        return Err(site.unsupported("its stride is negative"));
    };
    let axis = op.axis;
    let length = b.fact(site.input(0)?)?.shape[axis].clone();
    let mut gradient = site.gradient()?;
    let rank = b.rank(gradient)?;
    gradient = b.wire(AxisOp::Add(axis + 1), &[gradient])?;
    let mut pads = vec![(0, 0); rank + 1];
    pads[axis + 1] = (0, stride - 1);
    gradient = b.wire(Pad { pads, mode: PadMode::default() }, &[gradient])?;
    let kept = b.fact(gradient)?.shape[axis].clone();
    let joined = AxisOp::Reshape(axis, tvec![kept.clone(), stride.to_dim()], tvec![kept * stride]);
    gradient = b.wire(joined, &[gradient])?;
    let mut pads = vec![(0, 0); rank];
    pads[axis] = (op.modulo, 0);
    gradient = b.wire(Pad { pads, mode: PadMode::default() }, &[gradient])?;
    Ok(tvec![Some(b.wire(Slice::new(axis, 0, length), &[gradient])?)])
}

pub(super) fn iff(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let (g, mask) = (site.gradient()?, site.input(0)?);
    let zero = b.scalar(0.0, g)?;
    let mut gradients = tvec![None, None, None];
    for (slot, (yes, no)) in [(1, (g, zero)), (2, (zero, g))] {
        if site.wants(slot) {
            let part = b.select(mask, yes, no)?;
            gradients[slot] = Some(b.unbroadcast_like(part, site.input(slot)?)?);
        }
    }
    Ok(gradients)
}

pub(super) fn trilu(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<Trilu>()?.clone();
    Ok(tvec![Some(b.wire(op, &[site.gradient()?, site.input(1)?])?), None])
}

pub(super) fn cum_sum(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<CumSum>()?;
    let back = CumSum { reverse: !op.reverse, ..op.clone() };
    Ok(tvec![Some(b.wire(back, &[site.gradient()?])?)])
}

/// Indices as i64; those below zero count from the end of an axis of `length`.
fn indices(b: &mut Wires, indices: OutletId, length: TDim) -> Result<OutletId> {
    let dt = i64::datum_type();
    let indices = b.cast(indices, dt)?;
    let length = b.constant(tensor0(length))?;
    let mut length = b.cast(length, dt)?;
    let zero = b.constant(tensor0(0i64))?;
    let mut zero = b.cast(zero, dt)?;
    for _ in 0..b.rank(indices)? {
        length = b.wire(AxisOp::Add(0), &[length])?;
        zero = b.wire(AxisOp::Add(0), &[zero])?;
    }
    let negative = b.compare(comp_lt(), indices, zero)?;
    let wrapped = b.add(indices, length)?;
    b.select(negative, wrapped, indices)
}

/// The rows' gradients are added up at the rows they came from.
pub(super) fn gather(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<Gather>()?;
    let (mut g, data, at) = (site.gradient()?, site.input(0)?, site.input(1)?);
    let fact = b.fact(data)?.clone();
    if !fact.is_plain() || op.output_type.is_some() {
        return Err(site.unsupported("its data is quantized"));
    }
    for axis in 0..b.rank(at)? {
        g = b.wire(AxisOp::Move(op.axis + axis, axis), &[g])?;
    }
    let rows = indices(b, at, fact.shape[op.axis].clone())?;
    let last = b.rank(rows)?;
    let rows = b.wire(AxisOp::Add(last), &[rows])?;
    let mut shape = fact.shape.to_tvec();
    let length = shape.remove(op.axis);
    shape.insert(0, length);
    let zeros = b.zeros(fact.datum_type, &ShapeFact::from_dims(shape))?;
    let sums = b.wire(ScatterNd { reduction: ScatterReduction::Add }, &[zeros, rows, g])?;
    Ok(tvec![Some(b.wire(AxisOp::Move(0, op.axis), &[sums])?), None])
}

pub(super) fn gather_elements(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let axis = site.op::<GatherElements>()?.axis;
    let fact = b.fact(site.input(0)?)?.clone();
    let zeros = b.zeros(fact.datum_type, &fact.shape)?;
    let at = b.cast(site.input(1)?, i64::datum_type())?;
    let op = ScatterElements { axis, reduction: ScatterReduction::Add };
    Ok(tvec![Some(b.wire(op, &[zeros, at, site.gradient()?])?), None])
}
