//! GELU as exporters write it out.

use tract_core::internal::*;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::math::{Add, Erf, Mul};
use tract_core::ops::nn::gelu_exact::gelu_exact;

use super::with_constant;
use tract_core::ops::binary::TypedBinOp;

/// Factors of a product of up to three: `x · ½ · (1 + erf(x/√2))` in any order and grouping.
pub fn of_erf(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let mut factors = vec![];
    let mut half = 1.0;
    collect(model, node.id.into(), 3, &mut factors, &mut half);
    if half != 0.5 || factors.len() != 2 {
        return Ok(None);
    }
    let [a, b] = [factors[0], factors[1]];
    for (x, other) in [(a, b), (b, a)] {
        if erf_input(model, other) == Some(x) {
            let rewired = TypedModelPatch::rewire(model, &[x], &[node.id.into()], &|patch, x| {
                patch.wire_node(&node.name, gelu_exact(), x)
            });
            return rewired.map(Some);
        }
    }
    Ok(None)
}

/// Splits a product into its factors, constants gathered in `constant`. Only products of one shape.
fn collect(
    model: &TypedModel,
    outlet: OutletId,
    depth: usize,
    factors: &mut Vec<OutletId>,
    constant: &mut f32,
) {
    let node = model.node(outlet.node);
    let product = node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Mul>());
    if !product || depth == 0 {
        factors.push(outlet);
        return;
    }
    if let Some((other, value)) = with_constant::<Mul>(model, node) {
        *constant *= value;
        collect(model, other, depth - 1, factors, constant);
        return;
    }
    for input in &node.inputs {
        collect(model, *input, depth - 1, factors, constant);
    }
}

/// x of 1 + erf(x/√2).
fn erf_input(model: &TypedModel, outlet: OutletId) -> Option<OutletId> {
    let (erf, one) = with_constant::<Add>(model, model.node(outlet.node))?;
    let node = model.node(erf.node);
    if one != 1.0 || !node.op_as::<ElementWiseOp>()?.0.is::<Erf>() {
        return None;
    }
    let (x, factor) = with_constant::<Mul>(model, model.node(node.inputs.first()?.node))?;
    ((factor - std::f32::consts::FRAC_1_SQRT_2).abs() < 1e-6).then_some(x)
}
