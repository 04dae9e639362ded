//! Rotary positions written out.

use tract_core::internal::*;
use tract_core::ops::array::{Slice, TypedConcat};
use tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::math::{Add, Mul, Neg};

use crate::graph::Rotary;

/// `x · cos + concat(-x[half..], x[..half]) · sin` over the last axis.
pub fn rotary(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(sides) = binary::<Add>(node) else { return Ok(None) };
    let Some(inputs) = found(model, sides).or_else(|| found(model, [sides[1], sides[0]])) else {
        return Ok(None);
    };
    TypedModelPatch::rewire(model, &inputs, &[node.id.into()], &|patch, inputs| {
        patch.wire_node(&node.name, Rotary, inputs)
    })
    .map(Some)
}

/// x, cos and sin, where these are the straight and the turned side.
fn found(model: &TypedModel, [straight, across]: [OutletId; 2]) -> Option<[OutletId; 3]> {
    let product = binary::<Mul>(model.node(across.node))?;
    let (x, sin) = [product, [product[1], product[0]]]
        .into_iter()
        .find_map(|[from, sin]| Some((turned(model, from)?, sin)))?;
    let cos = match binary::<Mul>(model.node(straight.node))? {
        [a, cos] if a == x => cos,
        [cos, b] if b == x => cos,
        _ => return None,
    };
    let fact = model.outlet_fact(x).ok()?;
    let same = |factor: OutletId| {
        let factor = model.outlet_fact(factor).ok()?;
        let ranks = factor.rank() == fact.rank() && factor.datum_type == fact.datum_type;
        // What is more than one elsewhere would make x larger.
        let mut pairs = factor.shape.iter().zip(fact.shape.iter()).rev();
        let last = pairs.next().is_some_and(|(own, of)| own == of);
        (ranks && last && pairs.all(|(own, of)| own == of || own.is_one())).then_some(())
    };
    same(cos)?;
    same(sin)?;
    (fact.datum_type == f32::datum_type()).then_some([x, cos, sin])
}

/// What was turned: cut in the middle of its last axis, the second half negated before the first.
fn turned(model: &TypedModel, outlet: OutletId) -> Option<OutletId> {
    let node = model.node(outlet.node);
    let axis = node.op_as::<TypedConcat>()?.axis;
    let &[negated, first] = node.inputs.as_slice() else { return None };
    let negated = model.node(negated.node);
    if !negated.op_as::<ElementWiseOp>()?.0.is::<Neg>() {
        return None;
    }
    let (second, first) = (model.node(negated.inputs.first()?.node), model.node(first.node));
    let x = *second.inputs.first()?;
    let shape = &model.outlet_fact(x).ok()?.shape;
    let width = shape.get(axis)?.to_usize().ok()?;
    let is = |node: &TypedNode, from: usize, to: usize| {
        let cut =
            |op: &Slice| op.axis == axis && op.start == from.to_dim() && op.end == to.to_dim();
        node.op_as::<Slice>().is_some_and(cut) && node.inputs.first() == Some(&x)
    };
    let half = width / 2;
    let whole = axis + 1 == shape.rank() && width == 2 * half;
    (whole && is(second, half, width) && is(first, 0, half)).then_some(x)
}

fn binary<O: BinMiniOp>(node: &TypedNode) -> Option<[OutletId; 2]> {
    let is = node.op_as::<TypedBinOp>()?.0.is::<O>();
    is.then(|| node.inputs.as_slice().try_into().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::super::fuse;
    use super::*;
    use crate::graph::testing::{run_model, tensor, values};
    use crate::graph::weights::floats;
    use tract_core::ops::math::{add, mul, neg};

    const SHAPE: [usize; 4] = [1, 3, 4, 8];

    /// The steps, with cos and sin of a shape; the half that is negated ends at `end`.
    fn written_out(factor: [usize; 4], end: usize, x_first: bool) -> TypedModel {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact(SHAPE)).unwrap();
        let cos = model.add_source("cos", f32::fact(factor)).unwrap();
        let sin = model.add_source("sin", f32::fact(factor)).unwrap();
        let mut wire = |op: Box<dyn TypedOp>, inputs: &[OutletId]| {
            model.wire_node(format!("n{}", model.nodes.len()), op, inputs).unwrap()[0]
        };
        let straight = wire(Box::new(mul()), &[x, cos]);
        let second = wire(Box::new(Slice::new(3, end - 4, end)), &[x]);
        let negated = wire(Box::new(neg()), &[second]);
        let first = wire(Box::new(Slice::new(3, 8 - end, 12 - end)), &[x]);
        let turned = wire(Box::new(TypedConcat { axis: 3 }), &[negated, first]);
        let across = wire(Box::new(mul()), &if x_first { [turned, sin] } else { [sin, turned] });
        let y =
            wire(Box::new(add()), &if x_first { [straight, across] } else { [across, straight] });
        model.select_output_outlets(&[y]).unwrap();
        model
    }

    #[test]
    fn the_steps_and_the_one_have_the_same_bits() {
        for factor in [[1, 1, 4, 8], [1, 3, 1, 8], SHAPE] {
            let model = written_out(factor, 8, factor[1] == 1);
            let volume = factor.iter().product();
            let inputs: TVec<TValue> = tvec![
                tensor(&SHAPE, &values(96, 1)).into_tvalue(),
                tensor(&factor, &values(volume, 2)).into_tvalue(),
                tensor(&factor, &values(volume, 3)).into_tvalue(),
            ];
            let (fused, found) = fuse(model.clone()).unwrap();
            assert_eq!(found, [("rotary", 1)]);
            assert_eq!(fused.nodes.len(), 4);
            let run = |model| run_model(model, inputs.clone(), None).unwrap().remove(0);
            let (want, got) = (run(model), run(fused));
            assert_eq!(floats(&want).unwrap(), floats(&got).unwrap());
        }
    }

    #[test]
    fn another_turn_is_left() {
        let (_, found) = fuse(written_out(SHAPE, 4, true)).unwrap();
        assert!(found.is_empty(), "{found:?}");
    }
}
