//! Linear layers that read the same input.

use tract_core::internal::*;

use crate::graph::{FrozenLinear, FusedLinear};

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
