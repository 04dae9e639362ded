//! What follows a frozen linear layer, and layers that read the same input.

use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::math::{Add, Max, Min};
use tract_core::ops::nn::{
    HardSwish, Silu, gelu_approximate::GeluApproximate, gelu_exact::GeluExact,
};

use super::{only_reader, with_constant};
use crate::graph::{FrozenLinear, FusedLinear};
use crate::quant::Activation;

/// The layer that gives `outlet`, as a fused step, where nothing else reads it.
fn layer(model: &TypedModel, outlet: OutletId) -> Option<(&TypedNode, FusedLinear)> {
    only_reader(model, outlet)?;
    let node = model.node(outlet.node);
    let plain = node.op_as::<FrozenLinear>().map(FusedLinear::of);
    let op = plain.or_else(|| node.op_as::<FusedLinear>().cloned())?;
    (op.parts.len() == 1).then_some((node, op))
}

/// The activation that `node` is, and its input.
fn activation_of(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, Activation)> {
    if let Some(ElementWiseOp(op, _)) = node.op_as::<ElementWiseOp>() {
        let activation = if op.is::<GeluExact>() {
            Activation::Gelu
        } else if let Some(gelu) = op.downcast_ref::<GeluApproximate>() {
            if gelu.fast_impl {
                return None;
            }
            Activation::GeluTanh
        } else if op.is::<Silu>() {
            Activation::Silu
        } else if op.is::<HardSwish>() {
            Activation::HardSwish
        } else {
            return None;
        };
        return Some((*node.inputs.first()?, activation));
    }
    if let Some((x, low)) = with_constant::<Max>(model, node) {
        return Some((x, Activation::Clamp { low, high: f32::INFINITY }));
    }
    let (x, high) = with_constant::<Min>(model, node)?;
    Some((x, Activation::Clamp { low: f32::NEG_INFINITY, high }))
}

/// Both in one step, `first` before `second`, if that is one activation.
fn joined(first: Activation, second: Activation) -> Option<Activation> {
    match (first, second) {
        (Activation::Identity, second) => Some(second),
        (Activation::Clamp { low: a, high: b }, Activation::Clamp { low: c, high: d }) => {
            // At least a, at most b, at least c, at most d; NaN bounds have no place here.
            (a <= b && c <= d)
                .then(|| Activation::Clamp { low: a.max(c).min(d), high: b.max(c).min(d) })
        }
        _ => None,
    }
}

/// A layer and the activation that alone reads it.
pub fn activation(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some((x, activation)) = activation_of(model, node) else { return Ok(None) };
    let Some((before, op)) = layer(model, x) else { return Ok(None) };
    let Some(activation) = joined(op.activation, activation) else { return Ok(None) };
    let op = FusedLinear { activation, ..op };
    TypedModelPatch::rewire(model, &before.inputs, &[node.id.into()], &|patch, inputs| {
        patch.wire_node(&node.name, op.clone(), inputs)
    })
    .map(Some)
}

/// A layer and a sum of the same shape that alone reads it.
pub fn residual(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    if !node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Add>()) {
        return Ok(None);
    }
    let [a, b] = [node.inputs[0], node.inputs[1]];
    for (product, other) in [(a, b), (b, a)] {
        let Some((before, op)) = layer(model, product) else { continue };
        let same = model.outlet_fact(product)?.shape == model.outlet_fact(other)?.shape;
        if !same || product == other || op.has_residual || op.activation != Activation::Identity {
            continue;
        }
        let op = FusedLinear { has_residual: true, ..op };
        let from: TVec<OutletId> = before.inputs.iter().copied().chain([other]).collect();
        return TypedModelPatch::rewire(model, &from, &[node.id.into()], &|patch, inputs| {
            patch.wire_node(&node.name, op.clone(), inputs)
        })
        .map(Some);
    }
    Ok(None)
}

/// Two or more layers over the same input, nothing fused to them: x is quantized once for all.
pub fn siblings(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(first) = node.op_as::<FrozenLinear>() else { return Ok(None) };
    let x = node.inputs[0];
    let mut nodes: Vec<(&TypedNode, &FrozenLinear)> = vec![];
    for reader in &model.node(x.node).outputs[x.slot].successors {
        let reader = model.node(reader.node);
        let Some(op) = reader.op_as::<FrozenLinear>() else { continue };
        // A bias that isn't constant could depend on a sibling.
        let constant = reader.inputs[1..]
            .iter()
            .map(|b| Ok(model.outlet_fact(*b)?.konst.is_some()))
            .collect::<TractResult<Vec<bool>>>()?
            .into_iter()
            .all(|c| c);
        let listed = nodes.iter().any(|(n, _)| n.id == reader.id);
        if constant && !listed && reader.inputs[0] == x && op.weights == first.weights {
            nodes.push((reader, op));
        }
    }
    nodes.sort_by_key(|(n, _)| n.id);
    if nodes.len() < 2 || !nodes.iter().any(|(n, _)| n.id == node.id) {
        return Ok(None);
    }
    let op = FusedLinear {
        parts: nodes.iter().flat_map(|(_, op)| FusedLinear::of(op).parts).collect(),
        ..FusedLinear::of(first)
    };
    let from: TVec<OutletId> = std::iter::once(x)
        .chain(nodes.iter().flat_map(|(n, _)| n.inputs[1..].iter().copied()))
        .collect();
    let to: TVec<OutletId> = nodes.iter().map(|(n, _)| n.id.into()).collect();
    TypedModelPatch::rewire(model, &from, &to, &|patch, inputs| {
        patch.wire_node(&node.name, op.clone(), inputs)
    })
    .map(Some)
}
