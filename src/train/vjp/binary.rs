//! Rules of the binary ops. Their inputs have equal rank and may be broadcast.

use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::logic::{comp_eq, comp_gt, comp_lt};
use tract_core::ops::math;

use super::ops::Gate;
use super::{InputGradients, Site, Wires};
use crate::error::Result;

/// Both inputs' gradients from their formulas at the output's shape.
fn both(
    b: &mut Wires,
    site: &Site,
    left: impl FnOnce(&mut Wires) -> Result<OutletId>,
    right: impl FnOnce(&mut Wires) -> Result<OutletId>,
) -> Result<InputGradients> {
    if site.op::<TypedBinOp>()?.1.is_some() {
        return Err(site.unsupported("it has an output type of its own"));
    }
    let mut gradients = tvec![None, None];
    if site.wants(0) {
        let full = left(b)?;
        gradients[0] = Some(b.unbroadcast_like(full, site.input(0)?)?);
    }
    if site.wants(1) {
        let full = right(b)?;
        gradients[1] = Some(b.unbroadcast_like(full, site.input(1)?)?);
    }
    Ok(gradients)
}

pub(super) fn add(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let g = site.gradient()?;
    both(b, site, |_| Ok(g), |_| Ok(g))
}

pub(super) fn sub(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let g = site.gradient()?;
    both(b, site, |_| Ok(g), |b| b.neg(g))
}

/// SubF(a, b) = b - a.
pub(super) fn sub_flipped(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let g = site.gradient()?;
    both(b, site, |b| b.neg(g), |_| Ok(g))
}

pub(super) fn mul(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let (g, x, y) = (site.gradient()?, site.input(0)?, site.input(1)?);
    both(b, site, |b| b.mul(g, y), |b| b.mul(g, x))
}

pub(super) fn div(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let (g, y, out) = (site.gradient()?, site.input(1)?, site.output());
    both(
        b,
        site,
        |b| b.div(g, y),
        |b| {
            let g = b.mul(g, out)?;
            let g = b.div(g, y)?;
            b.neg(g)
        },
    )
}

/// d x^y = y·x^(y-1) dx + x^y·ln x dy; 0 for dx where y is 0, whatever x is.
pub(super) fn pow(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let (g, x, y, out) = (site.gradient()?, site.input(0)?, site.input(1)?, site.output());
    both(
        b,
        site,
        |b| {
            let less = b.shift(y, -1.0)?;
            let slope = b.binary(math::pow(), x, less)?;
            let slope = b.mul(slope, y)?;
            let (zero, nil) = (b.scalar(0.0, y)?, b.scalar(0.0, slope)?);
            let is_zero = b.compare(comp_eq(), y, zero)?;
            let slope = b.select(is_zero, nil, slope)?;
            b.mul(g, slope)
        },
        |b| {
            let slope = b.unary(math::ln(), x)?;
            let slope = b.mul(out, slope)?;
            b.mul(g, slope)
        },
    )
}

pub(super) fn max(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    extremum(b, site, true)
}

pub(super) fn min(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    extremum(b, site, false)
}

/// Against one constant value (ReLU, ReLU6, clip) the gradient passes strictly inside the bound, as
/// PyTorch's relu, relu6 and hardtanh have it, and is read off the output: the input needn't be
/// kept until then. Between two tensors it goes to the one taken, half to each where they are equal.
fn extremum(b: &mut Wires, site: &Site, is_max: bool) -> Result<InputGradients> {
    let (g, x, y) = (site.gradient()?, site.input(0)?, site.input(1)?);
    for (slot, input, other) in [(0, x, y), (1, y, x)] {
        if let (true, Some(bound)) = (site.wants(slot), uniform(b.model(), other)) {
            let (gate, shown) = match is_max {
                true => (Gate { low: Some(bound), high: None }, clipped_output(b, site, bound)),
                false => (Gate { low: None, high: Some(bound) }, site.output()),
            };
            let gated = b.wire(gate, &[shown, g])?;
            let mut gradients = tvec![None, None];
            gradients[slot] = Some(b.unbroadcast_like(gated, input)?);
            return Ok(gradients);
        }
    }
    let dt = b.fact(g)?.datum_type;
    let taken = b.compare(if is_max { comp_gt() } else { comp_lt() }, x, y)?;
    let taken = b.cast(taken, dt)?;
    let equal = b.compare(comp_eq(), x, y)?;
    let equal = b.cast(equal, dt)?;
    let half = b.scale(equal, 0.5)?;
    let share = b.add(taken, half)?;
    let left = b.mul(g, share)?;
    both(b, site, |_| Ok(left), |b| b.sub(g, left))
}

fn uniform(model: &TypedModel, outlet: OutletId) -> Option<f32> {
    let fact = model.outlet_fact(outlet).ok()?;
    fact.uniform.as_ref()?.cast_to_scalar::<f32>().ok()
}

/// What tells where max(x, bound) took x: its output, or, where min(·, more) alone reads that
/// (ReLU6), min's output, so that only one of the two tensors is kept.
fn clipped_output(b: &Wires, site: &Site, bound: f32) -> OutletId {
    let own = site.output();
    let [only] = b.model().outlet_successors(own) else { return own };
    let next = b.model().node(only.node);
    let is_min = next.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<math::Min>());
    let other = next.inputs.get(1 - only.slot.min(1)).copied();
    let above = other.and_then(|o| uniform(b.model(), o)).is_some_and(|high| high > bound);
    let same = next.outputs[0].fact.shape == site.node.outputs[0].fact.shape;
    if is_min && above && same { OutletId::new(only.node, 0) } else { own }
}
