//! An output of the last row alone: of a prompt's logits no others choose the next token.

use super::FrozenLinear;
use tract_core::internal::*;
use tract_core::ops::array::Slice;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::cast::Cast;
use tract_core::ops::element_wise::ElementWiseOp;

/// The graph whose output `output`, \[B, T, N\], has the last of the T rows alone, made by products with that row
/// alone; `None` where no product stands behind it that a row goes through for itself.
pub fn last_row(model: &TypedModel, output: usize) -> TractResult<Option<TypedModel>> {
    let mut at = *model.outputs.get(output).context("no such output")?;
    let mut chain = vec![];
    while let Some(input) = by_rows(model, at)? {
        chain.push((at.node, input));
        at = model.node(at.node).inputs[input];
    }
    if !chain.iter().any(|(id, _)| model.node(*id).op_is::<FrozenLinear>()) {
        return Ok(None);
    }
    let mut model = model.clone();
    let rows = model.outlet_fact(at)?.shape[1].clone();
    let name = format!("{}.last", model.node(at.node).name);
    let mut row = model.wire_node(name, Slice::new(1, rows.clone() - 1, rows), &[at])?[0];
    for (id, input) in chain.into_iter().rev() {
        let node = model.node(id);
        let (name, op, mut inputs) =
            (format!("{}.last", node.name), node.op.clone(), node.inputs.clone());
        inputs[input] = row;
        row = model.wire_node(name, op, &inputs)?[0];
    }
    model.outputs[output] = row;
    model.compact()?;
    Ok(Some(model))
}

/// The input whose rows (B, T) the rows of this value are made of, each of its own, if there is one.
fn by_rows(model: &TypedModel, outlet: OutletId) -> TractResult<Option<usize>> {
    let node = model.node(outlet.node);
    let constant = |o: &OutletId| model.outlet_fact(*o).is_ok_and(|fact| fact.konst.is_some());
    let same_for_all = |o: &OutletId| {
        let one = |fact: &TypedFact| fact.shape.get(1).is_some_and(TDim::is_one);
        constant(o) && model.outlet_fact(*o).is_ok_and(one)
    };
    let input = if node.op_is::<FrozenLinear>() {
        // A bias that is no constant may be each row's own.
        node.inputs[1..].iter().all(constant).then_some(0)
    } else if node.op_is::<ElementWiseOp>() || node.op_is::<Cast>() {
        Some(0)
    } else if node.op_is::<TypedBinOp>() {
        match (same_for_all(&node.inputs[0]), same_for_all(&node.inputs[1])) {
            (true, false) => Some(1),
            (false, true) => Some(0),
            _ => None,
        }
    } else {
        None
    };
    let Some(input) = input else { return Ok(None) };
    let (from, to) = (model.outlet_fact(node.inputs[input])?, model.outlet_fact(outlet)?);
    let (from, to) = (from.shape.dims(), to.shape.dims());
    Ok((from.len() == 3 && to.len() == 3 && from[..2] == to[..2]).then_some(input))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{matrix, run_model, tensor, values};
    use super::super::{FrozenWeights, weights::floats};
    use super::*;
    use tract_core::ops::math::{mul, tanh};

    /// tanh(0.5 · (x · Wᵀ + b)) and x itself.
    fn model(rows: TDim, model: &mut TypedModel) {
        let weights = FrozenWeights::new(vec![matrix(7, 5, &values(35, 1))]);
        let x = model.add_source("x", f32::fact(dims![1, rows, 5])).unwrap();
        let bias = model.add_const("bias", tensor(&[7], &values(7, 2))).unwrap();
        let half = model.add_const("half", tensor(&[1, 1, 1], &[0.5])).unwrap();
        let head = FrozenLinear::new(&weights, 0, None, true).unwrap();
        let y = model.wire_node("y", head, &[x, bias]).unwrap()[0];
        let scaled = model.wire_node("scaled", mul(), &[half, y]).unwrap()[0];
        let capped = model.wire_node("capped", tanh(), &[scaled]).unwrap()[0];
        model.select_output_outlets(&[x, capped]).unwrap();
    }

    #[test]
    fn the_last_row_has_the_bits_that_it_has_among_all() {
        let mut whole = TypedModel::default();
        let rows = whole.sym("T").to_dim();
        model(rows.clone(), &mut whole);
        let last = last_row(&whole, 1).unwrap().unwrap();
        assert_eq!(last.output_fact(0).unwrap().shape[1], rows);
        assert!(last.output_fact(1).unwrap().shape[1].is_one());
        for rows in [1, 2, 9] {
            let x = tensor(&[1, rows, 5], &values(rows * 5, 3));
            let run = |model: &TypedModel| {
                run_model(model.clone(), tvec![x.clone().into_tvalue()], None).unwrap()
            };
            let (all, one) = (run(&whole), run(&last));
            let all = floats(&all[1]).unwrap().to_vec();
            assert_eq!(floats(&one[0]).unwrap(), floats(&x).unwrap());
            assert_eq!(floats(&one[1]).unwrap(), &all[(rows - 1) * 7..]);
        }
        // Nothing but the values themselves stands behind the first output.
        assert!(last_row(&whole, 0).unwrap().is_none());
    }
}
