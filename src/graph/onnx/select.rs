//! Operators whose output's length depends on values.

use super::{Wire, Wiring};
use crate::graph::select;
use tract_onnx::tract_hir::internal::*;

super::counting_readers! {
    "Compress" => compress;
    "NonMaxSuppression" => suppress;
    "NonZero" => non_zero;
}

fn suppress(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (boxes, scores) = (w.input(0)?, w.input(1)?);
    let center = match w.int("center_point_box", 0) {
        0 => false,
        1 => true,
        other => bail!("center_point_box is {other}"),
    };
    let most = match w.optional(2) {
        Some(most) => most,
        None => w.tensor(tensor0(0i64))?,
    };
    let mut limit = |slot: usize, default: f32| match w.optional(slot) {
        Some(limit) => Ok(limit),
        None => w.tensor(tensor0(default)),
    };
    let (overlap, least) = (limit(3, 0.0)?, limit(4, f32::MIN)?);
    let op = select::NonMaxSuppression { center, count: w.count()? };
    Ok(tvec!(w.op(op, &[boxes, scores, most, overlap, least])?))
}

fn non_zero(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (x, count) = (w.input(0)?, w.count()?);
    Ok(tvec!(w.op(select::NonZero { count }, &[x])?))
}

/// The slices of an axis (or of all elements) for which the condition holds.
fn compress(w: &mut Wiring<'_>) -> TractResult<TVec<Wire>> {
    let (mut x, condition) = (w.input(0)?, w.input(1)?);
    let mut axis = 0;
    if w.has("axis") {
        axis = w.axis(w.int("axis", 0), w.rank(x)?)?;
    } else {
        let all = w.rank(x)?;
        ensure!(all > 0, "a scalar has nothing to choose from");
        x = w.merge_axes(x, 0, all)?;
    }
    let count = w.count()?;
    let places = w.op(select::NonZero { count }, &[condition])?;
    let places = w.remove_axis(places, 0)?;
    Ok(tvec!(w.gather(x, axis, places)?))
}
