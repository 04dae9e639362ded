//! LoKr: y + scaling · (w1 ⊗ w2)·x. w1 is zero at the start, sides are split as PEFT does by default;
//! a k×k convolution has its w2 as a tensor of its own.

use super::{Layer, Start, Wiring};
use crate::adapter::NamedTensor;
use crate::adapter::kind::lokr::layout;
use crate::error::Result;
use crate::train::init;
use tract_core::internal::{AxisOp, DimLike, OutletId, ToDim};

pub(super) struct Lokr;

impl Wiring for Lokr {
    fn name(&self) -> &'static str {
        "lokr"
    }

    fn tensors(&self, start: &Start<'_>) -> Result<Vec<NamedTensor>> {
        start.no_embedding(self.name())?;
        let layout = layout(start.target, start.rank, -1, false, true);
        let tensor = |(name, shape): (&'static str, Vec<usize>)| {
            let len: usize = shape.iter().product();
            let inputs: usize = shape.iter().skip(1).product();
            let bound = 1.0 / (inputs.max(1) as f32).sqrt();
            let values = match name {
                "lokr_w1" | "lokr_w1_a" => vec![0.0; len],
                _ => init::uniform(start.seed, &start.name_of(name), len, bound),
            };
            NamedTensor::new(name, &shape, values)
        };
        Ok(layout.into_iter().map(tensor).collect())
    }

    fn wire(&self, layer: &mut Layer<'_>, scaling: f32) -> Result<OutletId> {
        let (right, tensor_form) = right(layer)?;
        let wide = side(layer, right, 1)?;
        let (d, area) = match tensor_form {
            true => {
                let d = side(layer, layer.tensor("lokr_w2_b")?, 1)?;
                (d, wide / d.max(1))
            }
            false => (wide / layer.area().max(1), layer.area()),
        };
        let rows = layer.rows()?;
        let last = layer.w.rank(rows)? - 1;
        let columns = side(layer, rows, last)?;
        let b = columns / wide.max(1);
        // (.., area · b · d) to (.., b, d · area).
        let mut x = reshape(layer, rows, last, &[columns], &[area, b, d])?;
        x = layer.w.axis(AxisOp::Move(last, last + 2), x)?;
        x = reshape(layer, x, last + 1, &[d, area], &[wide])?;
        let mut y = layer.einsum("{rows}sk", "qk", "{rows}sq", &[x, right])?;
        if layer.has("lokr_w2_a") {
            let left = layer.tensor("lokr_w2_a")?;
            let axes = if tensor_form { "qu" } else { "uq" };
            y = layer.einsum("{rows}sq", axes, "{rows}su", &[y, left])?;
        }
        let mut first = vec!["lokr_w1"];
        if layer.has("lokr_w1_b") {
            first = vec!["lokr_w1_b", "lokr_w1_a"];
        }
        for name in first {
            let factor = layer.tensor(name)?;
            y = layer.einsum("{rows}su", "vs", "{rows}vu", &[y, factor])?;
        }
        let (a, c) = (side(layer, y, last)?, side(layer, y, last + 1)?);
        let y = reshape(layer, y, last, &[a, c], &[a * c])?;
        let delta = layer.w.scale(y, scaling)?;
        layer.w.add(layer.y, delta)
    }
}

/// The right factor of w2, or all of it, as (.., d · area); whether it was made of lokr_t2.
fn right(layer: &mut Layer<'_>) -> Result<(OutletId, bool)> {
    if layer.has("lokr_t2") {
        let (t, b) = (layer.tensor("lokr_t2")?, layer.tensor("lokr_w2_b")?);
        let (kh, kw) = (side(layer, t, 2)?, side(layer, t, 3)?);
        let t = reshape(layer, t, 2, &[kh, kw], &[kh * kw])?;
        let product = layer.einsum("ijp", "jt", "itp", &[t, b])?;
        let d = side(layer, b, 1)?;
        return Ok((reshape(layer, product, 1, &[d, kh * kw], &[d * kh * kw])?, true));
    }
    if layer.has("lokr_w2_b") {
        return Ok((layer.tensor("lokr_w2_b")?, false));
    }
    let whole = layer.tensor("lokr_w2")?;
    let rank = layer.w.rank(whole)?;
    let sides = (1..rank).map(|axis| side(layer, whole, axis)).collect::<Result<Vec<_>>>()?;
    let wide = sides.iter().product();
    Ok((if rank == 2 { whole } else { reshape(layer, whole, 1, &sides, &[wide])? }, false))
}

fn side(layer: &Layer<'_>, outlet: OutletId, axis: usize) -> Result<usize> {
    let dim = layer.w.fact(outlet)?.shape[axis].to_usize();
    dim.map_err(|e| crate::error::Error::failed(format!("an axis of a factor is open: {e}")))
}

fn reshape(
    layer: &mut Layer<'_>,
    outlet: OutletId,
    at: usize,
    from: &[usize],
    to: &[usize],
) -> Result<OutletId> {
    let dims = |dims: &[usize]| dims.iter().map(|d| d.to_dim()).collect();
    layer.w.axis(AxisOp::Reshape(at, dims(from), dims(to)), outlet)
}
