//! Rules of the ops that work on each element alone. Where the output gives the slope it is used,
//! so that the input needn't be kept.

use std::f32::consts::{FRAC_1_SQRT_2, PI};

use tract_core::internal::*;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::logic::comp_gt;
use tract_core::ops::{math, nn};

use super::ops::Gate;
use super::{InputGradients, Site, Wires};
use crate::error::Result;

/// gradient · slope(b, input, output).
fn slope(
    b: &mut Wires,
    site: &Site,
    slope: impl FnOnce(&mut Wires, OutletId, OutletId) -> Result<OutletId>,
) -> Result<InputGradients> {
    let slope = slope(b, site.input(0)?, site.output())?;
    Ok(tvec![Some(b.mul(site.gradient()?, slope)?)])
}

fn mini<'a, T: ElementWiseMiniOp>(site: &'a Site) -> Result<&'a T> {
    let op = site.op::<ElementWiseOp>()?;
    op.0.downcast_ref::<T>().ok_or_else(|| site.unsupported("the table names another type"))
}

/// Steps: the gradient is zero almost everywhere.
pub(super) fn flat(_: &mut Wires, _: &Site) -> Result<InputGradients> {
    Ok(tvec![None])
}

pub(super) fn neg(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    Ok(tvec![Some(b.neg(site.gradient()?)?)])
}

pub(super) fn abs(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| b.unary(math::sign(), x))
}

pub(super) fn exp(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |_, _, y| Ok(y))
}

pub(super) fn ln(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    Ok(tvec![Some(b.div(site.gradient()?, site.input(0)?)?)])
}

pub(super) fn pow_const(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let exponent = mini::<math::PowConst>(site)?.exponent;
    if exponent == 0.0 {
        return Ok(tvec![None]);
    }
    slope(b, site, |b, x, _| {
        let power = b.unary(math::pow_const(exponent - 1.0), x)?;
        b.scale(power, exponent)
    })
}

pub(super) fn square(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| b.scale(x, 2.0))
}

pub(super) fn sqrt(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let half = b.scale(site.gradient()?, 0.5)?;
    Ok(tvec![Some(b.div(half, site.output())?)])
}

/// d x^(-1/2) = -y³/2 dx.
pub(super) fn rsqrt(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, _, y| {
        let square = b.unary(math::square(), y)?;
        let cube = b.mul(square, y)?;
        b.scale(cube, -0.5)
    })
}

pub(super) fn recip(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, _, y| {
        let square = b.unary(math::square(), y)?;
        b.neg(square)
    })
}

pub(super) fn sin(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| b.unary(math::cos(), x))
}

pub(super) fn cos(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| {
        let sin = b.unary(math::sin(), x)?;
        b.neg(sin)
    })
}

/// d tan x = (1 + tan² x) dx.
pub(super) fn tan(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, _, y| {
        let square = b.unary(math::square(), y)?;
        b.shift(square, 1.0)
    })
}

/// (sign·x² + term)^power, for the inverse circular and hyperbolic functions.
fn radical(
    b: &mut Wires,
    x: OutletId,
    sign: f32,
    term: f32,
    power: ElementWiseOp,
) -> Result<OutletId> {
    let square = b.unary(math::square(), x)?;
    let signed = if sign < 0.0 { b.neg(square)? } else { square };
    let inside = b.shift(signed, term)?;
    b.unary(power, inside)
}

pub(super) fn asin(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| radical(b, x, -1.0, 1.0, math::rsqrt()))
}

pub(super) fn acos(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| {
        let slope = radical(b, x, -1.0, 1.0, math::rsqrt())?;
        b.neg(slope)
    })
}

pub(super) fn atan(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| radical(b, x, 1.0, 1.0, math::recip()))
}

pub(super) fn asinh(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| radical(b, x, 1.0, 1.0, math::rsqrt()))
}

pub(super) fn acosh(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| radical(b, x, 1.0, -1.0, math::rsqrt()))
}

pub(super) fn atanh(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| radical(b, x, -1.0, 1.0, math::recip()))
}

pub(super) fn sinh(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| b.unary(math::cosh(), x))
}

pub(super) fn cosh(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| b.unary(math::sinh(), x))
}

pub(super) fn tanh(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, _, y| {
        let square = b.unary(math::square(), y)?;
        b.subtract_from(1.0, square)
    })
}

/// e^(-factor·x²)·height.
fn bell(b: &mut Wires, x: OutletId, factor: f32, height: f32) -> Result<OutletId> {
    let square = b.unary(math::square(), x)?;
    let exponent = b.scale(square, -factor)?;
    let bell = b.unary(math::exp(), exponent)?;
    b.scale(bell, height)
}

pub(super) fn erf(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| bell(b, x, 1.0, 2.0 / PI.sqrt()))
}

pub(super) fn sigmoid(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, _, y| {
        let rest = b.subtract_from(1.0, y)?;
        b.mul(y, rest)
    })
}

/// d x·σ(x) = (y + σ·(1 - y)) dx.
pub(super) fn silu(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, y| {
        let sigmoid = b.unary(nn::sigmoid(), x)?;
        let rest = b.subtract_from(1.0, y)?;
        let part = b.mul(sigmoid, rest)?;
        b.add(y, part)
    })
}

/// x·clip(x/6 + 1/2, 0, 1): the clip's value, and x/6 strictly between -3 and 3.
pub(super) fn hard_swish(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| {
        let sixth = b.scale(x, 1.0 / 6.0)?;
        let gate = b.shift(sixth, 0.5)?;
        let zero = b.scalar(0.0, x)?;
        let gate = b.binary(math::max(), gate, zero)?;
        let one = b.scalar(1.0, x)?;
        let gate = b.binary(math::min(), gate, one)?;
        let inner = b.wire(Gate { low: Some(-3.0), high: Some(3.0) }, &[x, sixth])?;
        b.add(gate, inner)
    })
}

pub(super) fn leaky_relu(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let alpha = mini::<nn::LeakyRelu>(site)?.alpha;
    let (g, x) = (site.gradient()?, site.input(0)?);
    let zero = b.scalar(0.0, x)?;
    let positive = b.compare(comp_gt(), x, zero)?;
    let less = b.scale(g, alpha)?;
    Ok(tvec![Some(b.select(positive, g, less)?)])
}

/// d x·Φ(x) = (Φ(x) + x·φ(x)) dx, with the normal distribution's Φ and density φ.
pub(super) fn gelu_exact(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    slope(b, site, |b, x, _| {
        let scaled = b.scale(x, FRAC_1_SQRT_2)?;
        let erf = b.unary(math::erf(), scaled)?;
        let more = b.shift(erf, 1.0)?;
        let cumulative = b.scale(more, 0.5)?;
        let density = bell(b, x, 0.5, 1.0 / (2.0 * PI).sqrt())?;
        let part = b.mul(x, density)?;
        b.add(cumulative, part)
    })
}

/// y = x/2·(1 + tanh u), u = k·(x + c·x^p) with k = √(2/π), c = 0.044715 and p = 3 (2 where the
/// op says so): (1 + t)/2 + x/2·(1 - t²)·k·(1 + p·c·x^(p-1)).
pub(super) fn gelu_approximate(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let fast = mini::<nn::GeluApproximate>(site)?.fast_impl;
    let (k, c) = ((2.0 / PI).sqrt(), 0.044715);
    slope(b, site, |b, x, _| {
        let square = b.unary(math::square(), x)?;
        let (power, less, p) = match fast {
            true => (square, x, 2.0),
            false => (b.mul(square, x)?, square, 3.0),
        };
        let u = b.scale(power, c)?;
        let u = b.add(x, u)?;
        let u = b.scale(u, k)?;
        let t = b.unary(math::tanh(), u)?;
        let du = b.scale(less, k * c * p)?;
        let du = b.shift(du, k)?;
        let t_square = b.unary(math::square(), t)?;
        let dt = b.subtract_from(1.0, t_square)?;
        let part = b.mul(dt, du)?;
        let part = b.mul(x, part)?;
        let sum = b.add(t, part)?;
        let sum = b.shift(sum, 1.0)?;
        b.scale(sum, 0.5)
    })
}
