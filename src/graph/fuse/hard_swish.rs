//! v · min(max(v + 3, 0), 6) / 6, as exporters write it, taken for one op.

use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::math::{Add, Div, Max, Min, Mul};
use tract_core::ops::nn::hard_swish as op;

use super::{only_reader, uniform, with_constant};

/// Steps with one constant each between two values, read from the later to the earlier.
struct Gate {
    /// The earlier value.
    of: OutletId,
    /// factor · min(max(slope · of + shift, low), high).
    factor: f32,
    low: f32,
    high: f32,
    slope: f32,
    shift: f32,
}

/// The other input and the factor of a product with a constant, or of a division by one.
fn scaled(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, f32)> {
    if let Some(found) = with_constant::<Mul>(model, node) {
        return Some(found);
    }
    let divides = node.op_as::<TypedBinOp>()?.0.is::<Div>();
    let divisor = uniform(model, *node.inputs.get(1)?).filter(|_| divides)?;
    let x = *node.inputs.first()?;
    (model.outlet_fact(x).ok()?.shape == node.outputs[0].fact.shape).then_some((x, 1.0 / divisor))
}

/// What gives `outlet`, if it has the form of [`Gate`] and nothing else reads what lies between.
fn gate(model: &TypedModel, outlet: OutletId) -> Option<Gate> {
    let mut gate = Gate {
        of: outlet,
        factor: 1.0,
        low: f32::NEG_INFINITY,
        high: f32::INFINITY,
        slope: 1.0,
        shift: 0.0,
    };
    // Stages: 0 the factor, 1 the bounds, 2 the line.
    let mut stage = 0;
    loop {
        only_reader(model, gate.of)?;
        let node = model.node(gate.of.node);
        if let Some((x, factor)) = scaled(model, node) {
            match stage {
                0 => gate.factor *= factor,
                _ => {
                    stage = 2;
                    gate.slope *= factor;
                }
            }
            gate.of = x;
        } else if let Some((x, high)) = with_constant::<Min>(model, node).filter(|_| stage < 2) {
            (stage, gate.high, gate.of) = (1, gate.high.min(high), x);
        } else if let Some((x, low)) = with_constant::<Max>(model, node).filter(|_| stage < 2) {
            (stage, gate.low, gate.of) = (1, gate.low.max(low), x);
        } else if let Some((x, shift)) = with_constant::<Add>(model, node).filter(|_| stage > 0) {
            (stage, gate.of) = (2, x);
            gate.shift += gate.slope * shift;
        } else {
            return None;
        }
        // Everything that is read more than once is the value itself.
        let read = &model.node(gate.of.node).outputs[gate.of.slot].successors;
        if read.len() > 1 || model.outputs.contains(&gate.of) {
            return (stage == 2).then_some(gate);
        }
    }
}

/// The last product of a hard swish.
pub fn hard_swish(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let mut product = node;
    let mut factor = 1.0;
    // v · clip(v + 3, 0, 6), then the sixth.
    if let Some((x, sixth)) = scaled(model, node) {
        if only_reader(model, x).is_none() {
            return Ok(None);
        }
        (product, factor) = (model.node(x.node), sixth);
    }
    if !product.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Mul>()) {
        return Ok(None);
    }
    for (v, other) in [(0, 1), (1, 0)] {
        let v = product.inputs[v];
        let Some(found) = gate(model, product.inputs[other]) else { continue };
        let all = factor * found.factor;
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-5;
        // A negative factor would turn the bounds round.
        let is = found.of == v
            && all > 0.0
            && model.outlet_fact(v)?.datum_type == f32::datum_type()
            && near(all * found.low, 0.0)
            && near(all * found.high, 1.0)
            && near(all * found.slope, 1.0 / 6.0)
            && near(all * found.shift, 0.5);
        if is {
            return TypedModelPatch::rewire(model, &[v], &[node.id.into()], &|patch, x| {
                patch.wire_node(&node.name, op(), x)
            })
            .map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::fuse::fuse;
    use crate::graph::testing::{run_model, tensor, values};
    use tract_core::ops::math::{add, div, max, min, mul};

    /// v · clip(v · slope + shift, 0, high), with `last` · after, or before the product.
    fn model(slope: f32, shift: f32, high: f32, last: f32, after: bool) -> TypedModel {
        let mut model = TypedModel::default();
        let mut count = 0;
        let v = model.add_source("v", f32::fact([2, 3, 4, 5])).unwrap();
        let mut step = |model: &mut TypedModel, op: TypedBinOp, x: OutletId, c: f32| {
            count += 1;
            let c = model.add_const(format!("c{count}"), tensor(&[1; 4], &[c])).unwrap();
            model.wire_node(format!("n{count}"), op, &[x, c]).unwrap()[0]
        };
        let mut y = v;
        if slope != 1.0 {
            y = step(&mut model, mul(), y, slope);
        }
        y = step(&mut model, add(), y, shift);
        y = step(&mut model, max(), y, 0.0);
        y = step(&mut model, min(), y, high);
        if !after {
            y = step(&mut model, div(), y, 1.0 / last);
        }
        y = model.wire_node("product", mul(), &[v, y]).unwrap()[0];
        if after {
            y = step(&mut model, mul(), y, last);
        }
        model.select_output_outlets(&[y]).unwrap();
        model
    }

    #[test]
    fn each_form_is_found_and_means_the_same() {
        let v: Vec<f32> = values(120, 1).iter().map(|v| v * 5.0).collect();
        let v = tensor(&[2, 3, 4, 5], &v);
        let sixth = 1.0 / 6.0;
        for model in [
            model(1.0, 3.0, 6.0, sixth, true),
            model(1.0, 3.0, 6.0, sixth, false),
            model(sixth, 0.5, 1.0, 1.0, false),
        ] {
            let (fused, matches) = fuse(model.clone()).unwrap();
            assert_eq!(matches, [("hard-swish", 1)]);
            let run = |m| run_model(m, tvec![v.clone().into_tvalue()], None).unwrap().remove(0);
            run(model).close_enough(&run(fused), true).unwrap();
        }
    }

    #[test]
    fn what_is_almost_one_is_left_alone() {
        let sixth = 1.0 / 6.0;
        for model in [
            model(1.0, 2.0, 6.0, sixth, true),
            model(1.0, 3.0, 5.0, sixth, true),
            model(1.0, 3.0, 6.0, 0.2, false),
            // min(max(-v - 3, 0), -6) is -6.
            model(-1.0, -3.0, -6.0, -sixth, false),
        ] {
            assert!(fuse(model).unwrap().1.is_empty());
        }
    }
}
