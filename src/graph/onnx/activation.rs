//! Activations and arithmetic: what tract leaves out of an operator, and the old ways to broadcast.

use super::{Wire, Wiring};
use tract_onnx::model::OnnxOpRegister;
use tract_onnx::tract_core::ops::binary::BinMiniOp;
use tract_onnx::tract_core::ops::logic::{And, Or, Xor, comp_eq, comp_gt, comp_lt};
use tract_onnx::tract_core::ops::math::{Add, Div, Mul, Pow, Rem, ShiftLeft, ShiftRight, Sub};
use tract_onnx::tract_hir::internal::*;

super::readers! {
    "Celu" => celu;
    "CumProd" => cumprod;
    "BitShift" => shift;
    "Mod" => modulo;
    "Swish" => swish;
    "SwiGLU" => swiglu;
    "com.microsoft.QuickGelu" => quick_gelu;
}

/// max(0, x) + min(0, α·(exp(x / α) − 1))
fn celu(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let alpha = w.float("alpha", 1.0) as f64;
    ensure!(alpha != 0.0, "alpha is 0");
    let zero = w.number(0.0, x)?;
    let above = w.max(x, zero)?;
    // Above 0 the exponential counts for nothing and must not overflow.
    let below = w.min(x, zero)?;
    let below = w.scaled(below, 1.0 / alpha)?;
    let below = w.exp(below)?;
    let below = w.shifted(below, -1.0)?;
    let below = w.scaled(below, alpha)?;
    let below = w.min(below, zero)?;
    Ok(tvec!(w.add(above, below)?))
}

/// x · sigmoid(α·x)
fn gated(w: &mut Wiring<'_>, x: Wire, alpha: f64) -> TractResult<Wire> {
    let scaled = if alpha == 1.0 { x } else { w.scaled(x, alpha)? };
    let gate = w.sigmoid(scaled)?;
    w.mul(x, gate)
}

fn swish(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, alpha) = (w.input(0)?, w.float("alpha", 1.0) as f64);
    Ok(tvec!(gated(w, x, alpha)?))
}

fn quick_gelu(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, alpha) = (w.input(0)?, w.float("alpha", 1.702) as f64);
    Ok(tvec!(gated(w, x, alpha)?))
}

/// swish(a) · b
fn swiglu(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (a, b) = (w.input(0)?, w.input(1)?);
    let a = gated(w, a, w.float("alpha", 1.0) as f64)?;
    Ok(tvec!(w.mul(a, b)?))
}

/// Bits moved; by as many as there are or more, or by a negative number, none of the value is left.
fn shift(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, by) = (w.input(0)?, w.input(1)?);
    let dtype = w.dtype(x)?;
    let by = w.cast(by, dtype)?;
    let most = 8.0 * dtype.size_of() as f64 - 1.0;
    let (zero, last) = (w.number(0.0, by)?, w.number(most, by)?);
    let (above, below) = (w.less(by, zero)?, w.greater(by, last)?);
    let outside = w.binary(Box::new(Or), above, below)?;
    let right = match w.text("direction", "LEFT") {
        "RIGHT" => true,
        "LEFT" => false,
        other => bail!("direction is '{other}'"),
    };
    // To the right the sign remains.
    let instead = if right && dtype.is_signed() { last } else { zero };
    let inside = w.select(outside, instead, by)?;
    if right {
        let y = w.binary(Box::new(ShiftRight), x, inside)?;
        return Ok(tvec!(if dtype.is_signed() { y } else { w.select(outside, zero, y)? }));
    }
    let y = w.binary(Box::new(ShiftLeft), x, inside)?;
    Ok(tvec!(w.select(outside, zero, y)?))
}

/// The remainder, with the sign of the divisor or (fmod) of the dividend.
fn modulo(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (a, b) = (w.input(0)?, w.input(1)?);
    let rest = w.binary(Box::new(Rem), a, b)?;
    let dtype = w.dtype(rest)?;
    if w.int("fmod", 0) == 1 || dtype.is_unsigned() || dtype == TDim::datum_type() {
        return Ok(tvec!(rest));
    }
    let b = w.cast(b, dtype)?;
    let zero = w.number(0.0, rest)?;
    let exact = w.equal(rest, zero)?;
    let (left, right) = (w.less(rest, zero)?, w.less(b, zero)?);
    let other = w.binary(Box::new(Xor), left, right)?;
    let moved = w.add(rest, b)?;
    let moved = w.select(other, moved, rest)?;
    Ok(tvec!(w.select(exact, rest, moved)?))
}

/// Products of the elements so far, for an axis whose length is known.
fn cumprod(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let x = w.input(0)?;
    let axis = w.constant_ints(1, "axis")?.and_then(|v| v.first().copied()).context("no axis")?;
    let axis = w.axis(axis, w.rank(x)?)?;
    let length = w.shape(x)?[axis].to_usize().context("the axis must have a fixed length")?;
    ensure!((1..=256).contains(&length), "the axis has {length} elements, at most 256 are read");
    let reverse = w.int("reverse", 0) != 0;
    let parts: TVec<Wire> =
        (0..length).map(|i| w.slice(x, axis, i, i + 1)).collect::<TractResult<_>>()?;
    let mut made = vec![];
    let ones = w.number(1.0, x)?;
    let shape = w.shape(parts[0])?;
    let mut product = w.broadcast(ones, &shape)?;
    for i in 0..length {
        let part = parts[if reverse { length - 1 - i } else { i }];
        let next = w.mul(product, part)?;
        made.push(if w.int("exclusive", 0) != 0 { product } else { next });
        product = next;
    }
    if reverse {
        made.reverse();
    }
    Ok(tvec!(w.concat(axis, &made)?))
}

/// Operators that broadcast by attributes before operator set 7: `axis` says where the second
/// input's dimensions begin.
pub(super) fn register_old(operators: &mut OnnxOpRegister) {
    operators.insert("Add", |c, n| super::composed(c, n, |w| placed(w, Box::new(Add))));
    operators.insert("Sub", |c, n| super::composed(c, n, |w| placed(w, Box::new(Sub))));
    operators.insert("Mul", |c, n| super::composed(c, n, |w| placed(w, Box::new(Mul))));
    operators.insert("Div", |c, n| super::composed(c, n, |w| placed(w, Box::new(Div))));
    operators.insert("Pow", |c, n| super::composed(c, n, |w| placed(w, Box::new(Pow))));
    operators.insert("And", |c, n| super::composed(c, n, |w| placed(w, Box::new(And))));
    operators.insert("Or", |c, n| super::composed(c, n, |w| placed(w, Box::new(Or))));
    operators.insert("Xor", |c, n| super::composed(c, n, |w| placed(w, Box::new(Xor))));
    operators.insert("Equal", |c, n| super::composed(c, n, |w| placed(w, comp_eq())));
    operators.insert("Greater", |c, n| super::composed(c, n, |w| placed(w, comp_gt())));
    operators.insert("Less", |c, n| super::composed(c, n, |w| placed(w, comp_lt())));
}

fn placed(w: &mut Wiring<'_>, op: Box<dyn BinMiniOp>) -> TractResult<TVec<Wire>> {
    let (a, mut b) = (w.input(0)?, w.input(1)?);
    let (rank, own) = (w.rank(a)?, w.rank(b)?);
    if w.int("broadcast", 0) == 0 {
        ensure!(
            w.shape(a)? == w.shape(b)?,
            "the inputs have the shapes {:?} and {:?}, and broadcast is not set",
            w.shape(a)?,
            w.shape(b)?
        );
    } else if w.has("axis") {
        let axis = w.axis(w.int("axis", 0), rank)?;
        ensure!(axis + own <= rank, "axis {axis} leaves no room for {own} axes in {rank}");
        for _ in axis + own..rank {
            let last = w.rank(b)?;
            b = w.add_axis(b, last)?;
        }
    }
    Ok(tvec!(w.binary(op, a, b)?))
}
