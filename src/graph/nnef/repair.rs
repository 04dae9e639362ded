//! Loops whose bodies expect another shape than they get.
//!
//! tract 0.23.9's declutter shares one initial state between the two states of an ONNX LSTM although
//! their bodies take it as \[1, batch, hidden\] and \[batch, 1, hidden\]; with one stream both are the
//! same, with more the second is wrong. The text form states no shapes in bodies, so it must be right.

use tract_core::internal::*;
use tract_core::ops::scan::{InputMapping, Scan};

/// Makes every loop's states and fixed inputs arrive in the shape that its body states, where that
/// is a matter of axes of length 1.
///
/// # Errors
/// Names the loop whose body states a shape of other values.
pub fn repair_loops(model: &mut TypedModel) -> TractResult<()> {
    for id in model.eval_order()? {
        let Some(op) = model.node(id).op_as::<Scan>() else { continue };
        let mut repairs = vec![];
        for (slot, (mapping, inner)) in op.input_mapping.iter().zip(&op.body.inputs).enumerate() {
            let outer = model.node(id).inputs[slot];
            let found = model.outlet_fact(outer)?.shape.to_tvec();
            let expected = op.body.outlet_fact(*inner)?.shape.to_tvec();
            if !matches!(mapping, InputMapping::Scan(_)) && found != expected {
                repairs.push((slot, outer, found, expected));
            }
        }
        for (slot, outer, found, expected) in repairs {
            let real = |dims: &[TDim]| -> TVec<TDim> {
                dims.iter().filter(|d| !d.is_one()).cloned().collect()
            };
            ensure!(
                real(&found) == real(&expected),
                "loop '{}' gets input {slot} as {found:?}, its body states {expected:?}",
                model.node(id).name
            );
            let mut wire = outer;
            let ones = |dims: &[TDim]| -> Vec<usize> {
                (0..dims.len()).filter(|axis| dims[*axis].is_one()).collect()
            };
            let removed = ones(&found).into_iter().rev().map(AxisOp::Rm);
            let added = ones(&expected).into_iter().map(AxisOp::Add);
            for (i, op) in removed.chain(added).enumerate() {
                let name = format!("{}.input{slot}.{i}", model.node(id).name);
                wire = model.wire_node(name, op, &[wire])?[0];
            }
            model.add_edge(wire, InletId::new(id, slot))?;
        }
    }
    Ok(())
}
