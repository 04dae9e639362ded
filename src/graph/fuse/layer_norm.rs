//! Layer normalization, written out or partly fused by tract.

use tract_core::internal::*;
use tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_core::ops::math::{Add, Mul, Sub};
use tract_core::ops::nn::{Reduce, Reducer, RmsNorm};

use super::{only_reader, with_constant};
use crate::graph::LayerNorm;

/// `RmsNorm(x - Σx / n)` over the last axis.
pub fn layer_norm(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(norm) = node.op_as::<RmsNorm>() else { return Ok(None) };
    let fact = model.outlet_fact(node.inputs[0])?;
    let Some(epsilon) = norm.eps.cast_to_scalar::<f32>().ok() else { return Ok(None) };
    if norm.axis + 1 != fact.rank() || fact.datum_type != f32::datum_type() {
        return Ok(None);
    }
    let centred = model.node(node.inputs[0].node);
    let [x, mean] = match (centred.op_as::<TypedBinOp>(), centred.inputs.as_slice()) {
        (Some(op), &[x, mean]) if op.0.is::<Sub>() => [x, mean],
        _ => return Ok(None),
    };
    if !is_mean(model, mean, x, norm.axis)? {
        return Ok(None);
    }
    let op = LayerNorm { epsilon: epsilon.to_bits(), has_scale: false, has_shift: false };
    TypedModelPatch::rewire(model, &[x], &[node.id.into()], &|patch, x| {
        patch.wire_node(&node.name, op.clone(), x)
    })
    .map(Some)
}

/// Whether `mean` is the mean of x over its last axis.
fn is_mean(model: &TypedModel, mean: OutletId, x: OutletId, axis: usize) -> TractResult<bool> {
    let width = model.outlet_fact(x)?.shape[axis].to_i64().ok();
    let Some((sum, factor)) = with_constant::<Mul>(model, model.node(mean.node)) else {
        return Ok(false);
    };
    let node = model.node(sum.node);
    let Some(reduce) = node.op_as::<Reduce>() else { return Ok(false) };
    let over = reduce.reducer == Reducer::Sum && reduce.axes.as_slice() == [axis];
    let n = width.map(|n| n as f32).filter(|n| (factor * n - 1.0).abs() < 1e-5);
    Ok(over && node.inputs.first() == Some(&x) && n.is_some())
}

/// A constant factor after [`LayerNorm`].
pub fn scale(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    absorb::<Mul>(model, node, |norm| match norm {
        LayerNorm { has_scale: false, has_shift: false, .. } => {
            Some(LayerNorm { has_scale: true, ..norm.clone() })
        }
        _ => None,
    })
}

/// A constant summand after [`LayerNorm`].
pub fn shift(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    absorb::<Add>(model, node, |norm| {
        (!norm.has_shift).then(|| LayerNorm { has_shift: true, ..norm.clone() })
    })
}

/// The op for a `LayerNorm` and a binary `O` with a constant along the last axis.
fn absorb<O: BinMiniOp>(
    model: &TypedModel,
    node: &TypedNode,
    grown: impl Fn(&LayerNorm) -> Option<LayerNorm>,
) -> TractResult<Option<TypedModelPatch>> {
    if !node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<O>()) {
        return Ok(None);
    }
    let [a, b] = [node.inputs[0], node.inputs[1]];
    for (norm, constant) in [(a, b), (b, a)] {
        let before = model.node(norm.node);
        let Some(op) = before.op_as::<LayerNorm>().and_then(&grown) else { continue };
        if only_reader(model, norm).is_none() {
            continue;
        }
        let width = model.outlet_fact(norm)?.shape.last().and_then(|d| d.to_usize().ok());
        let Some(konst) = model.outlet_fact(constant)?.konst.clone() else { continue };
        if Some(konst.len()) != width || konst.shape().last().copied() != width {
            continue;
        }
        let vector = konst.into_tensor().into_shape(&[width.unwrap_or(0)])?;
        let mut patch = TypedModelPatch::default();
        let mut inputs = patch.taps(model, &before.inputs)?;
        inputs.push(patch.add_const(format!("{}.vector", node.name), vector)?);
        let wired = patch.wire_node(&node.name, op, &inputs)?;
        patch.shunt_outside(model, node.id.into(), wired[0])?;
        return Ok(Some(patch));
    }
    Ok(None)
}
