//! From a bound graph to one that runs.

use tract_core::internal::*;
use tract_core::ops::scan::Scan;
use tract_core::optim::Optimizer;

use super::fuse;
use super::looped::Looped;
use crate::quant::WORTH_SHARING;

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
    let mut all = 0;
    for node in &model.nodes {
        let cost = node.op.cost(&model.node_input_facts(node.id)?)?;
        let macs = cost.iter().filter(|(kind, _)| matches!(kind, Cost::FMA(_)));
        let macs: usize = macs.filter_map(|(_, count)| count.to_usize().ok()).sum();
        if macs >= WORTH_SHARING {
            all += macs;
        }
    }
    Ok(all)
}

/// How the passes call themselves.
const KEPT: [&str; 2] = ["PropConst", "declutter"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::testing::values;
    use tract_core::ops::array::MultiBroadcastTo;
    use tract_core::ops::math::{add, mul};

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
