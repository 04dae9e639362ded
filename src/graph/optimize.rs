//! From a bound graph to one that runs.

use tract_core::internal::*;
use tract_core::ops::scan::Scan;
use tract_core::optim::Optimizer;

use super::fuse;
use super::looped::Looped;
use crate::quant::WORTH_SHARING;

/// As tract's `into_decluttered`, without the pass over masks whose values it knows by their places:
/// it splits a causal mask, where both axes are one free dimension, into two rows
/// (`FoldUniformMask`, tract 0.23.9).
pub fn decluttered(mut model: TypedModel) -> TractResult<TypedModel> {
    let mut declutter = Optimizer::declutter();
    let all = declutter.passes.len();
    declutter.passes.retain(|pass| !format!("{pass:?}").starts_with(LEFT_OUT));
    ensure!(declutter.passes.len() + 1 == all, "{LEFT_OUT} is not among tract's passes");
    declutter.optimize(&mut model)?;
    Ok(model)
}

/// As tract's `into_optimized`, in half the time: of its decluttering passes only the folding of
/// constants, which settles shapes once dimensions are bound, and the operators' own simplifications.
/// The graph was decluttered as a whole when it was packed; moving axes and slices about again finds
/// nothing that shows in a run's time, and takes longest.
pub fn optimized(mut model: TypedModel) -> TractResult<TypedModel> {
    let mut declutter = Optimizer::declutter();
    let all = declutter.passes.len();
    declutter.passes.retain(|pass| KEPT.iter().any(|name| format!("{pass:?}").starts_with(name)));
    ensure!(declutter.passes.len() == KEPT.len(), "{KEPT:?} are not among tract's {all} passes");
    declutter.optimize(&mut model)?;
    with_loops(&mut model)?;
    model.optimize()?;
    Ok(model)
}

/// Makes loops and their bodies ready to run.
fn with_loops(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let Some(scan) = model.node(id).op_as::<Scan>() else { continue };
        let ready = |body| optimized(fuse(body)?.0);
        let looped = Looped::of(scan, &model.node_input_facts(id)?, ready);
        if let Some(looped) = looped.with_context(|| format!("loop '{}'", model.node(id).name))? {
            model.node_mut(id).op = Box::new(looped);
        }
    }
    Ok(())
}

/// Multiply-adds of the steps that are worth several threads each. A size that only a run knows counts
/// as none.
pub fn shared_macs(model: &TypedModel) -> TractResult<usize> {
    macs(model, WORTH_SHARING)
}

/// Multiply-adds of the steps that have `least` of them or more.
pub fn macs(model: &TypedModel, least: usize) -> TractResult<usize> {
    let mut all = 0usize;
    for node in &model.nodes {
        let cost = node.op.cost(&model.node_input_facts(node.id)?)?;
        let macs = cost.iter().filter(|(kind, _)| matches!(kind, Cost::FMA(_)));
        let macs: usize = macs.filter_map(|(_, count)| count.to_usize().ok()).sum();
        if macs >= least {
            all = all.saturating_add(macs);
        }
    }
    Ok(all)
}

/// How the passes call themselves.
const LEFT_OUT: &str = "FoldUniformMask";
const KEPT: [&str; 2] = ["PropConst", "declutter"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::testing::values;
    use tract_core::ops::array::MultiBroadcastTo;
    use tract_core::ops::math::{add, mul};

    /// A causal mask beside one of padding: tract's own declutter gives two rows, whatever T is.
    #[test]
    fn a_causal_mask_over_a_free_dimension_stays_whole() {
        use tract_core::ops::array::Range;
        use tract_core::ops::binary::TypedBinOp;
        use tract_core::ops::logic::{And, comp_lte};
        let mut model = TypedModel::default();
        let t = model.sym("t").to_dim();
        let padding = model.add_source("padding", bool::fact(dims!(1, t.clone()))).unwrap();
        let constant = |model: &mut TypedModel, name: &str, value: TDim| {
            model.add_const(name, tensor0(value)).unwrap()
        };
        let (zero, end, one) = (
            constant(&mut model, "zero", 0.to_dim()),
            constant(&mut model, "end", t.clone()),
            constant(&mut model, "one", 1.to_dim()),
        );
        let places = model.wire_node("places", Range::new(t), &[zero, end, one]).unwrap()[0];
        let columns = model.wire_node("columns", AxisOp::Add(0), &[places]).unwrap()[0];
        let rows = model.wire_node("rows", AxisOp::Add(1), &[places]).unwrap()[0];
        let causal =
            model.wire_node("causal", TypedBinOp(comp_lte(), None), &[columns, rows]).unwrap()[0];
        let and = TypedBinOp(Box::new(And), None);
        let mask = model.wire_node("mask", and, &[causal, padding]).unwrap();
        model.select_output_outlets(&mask).unwrap();
        let plan = decluttered(model).unwrap().into_runnable().unwrap();
        let padding = Tensor::from_shape(&[1, 4], &[true, true, false, true]).unwrap();
        let found = plan.run(tvec![padding.into_tvalue()]).unwrap().remove(0);
        let found = found.try_as_plain_ram().unwrap().as_slice::<bool>().unwrap().to_vec();
        let want = |at: usize| at % 4 <= at / 4 && at % 4 != 2;
        assert_eq!(found, (0..16).map(want).collect::<Vec<_>>());
    }

    #[test]
    fn constants_fold_and_the_answer_stays() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([3, 4])).unwrap();
        let one = model.add_const("one", tensor0(1f32)).unwrap();
        let spread = MultiBroadcastTo { shape: [3, 4].iter().collect() };
        let ones = model.wire_node("ones", spread, &[one]).unwrap()[0];
        let two = model.wire_node("two", add(), &[ones, ones]).unwrap()[0];
        let y = model.wire_node("y", mul(), &[x, two]).unwrap();
        model.select_output_outlets(&y).unwrap();
        let fast = optimized(model.clone()).unwrap();
        assert!(fast.nodes().len() < model.nodes().len(), "{fast}");
        let x = Tensor::from_shape(&[3, 4], &values(12, 1)).unwrap();
        let run = |model: TypedModel| {
            let inputs = tvec![x.clone().into_tvalue()];
            model.into_runnable().unwrap().run(inputs).unwrap().remove(0)
        };
        assert_eq!(run(fast), run(model));
    }
}
