//! Memory that plans and their building take, told before they do.

use tract_core::internal::*;
use tract_core::ops::konst::Const;

use super::looped::Looped;

/// What steps take beside their values: stretches of rows, pieces of patches, packed operands.
pub const SCRATCH: u64 = 2 << 20;

/// The most bytes of values alive at once, in the plan's own order: a node's outputs come into
/// being beside its inputs, and a value lives until its last reader has run. Constants count
/// throughout; frozen weights, which are mapped, do not. A size that only a run knows counts as none.
pub fn peak(plan: &TypedSimplePlan) -> TractResult<u64> {
    peak_in(plan.model(), plan.order_without_consts())
}

/// As [`peak`], of a graph that runs in this order.
pub fn peak_in(model: &TypedModel, order: &[usize]) -> TractResult<u64> {
    let none = SymbolValues::default();
    // The values in a loop live beside those around it.
    let inside = |node: &TypedNode| node.op_as::<Looped>().map_or(Ok(0), |op| peak(op.body()));
    let size = |node: &TypedNode| size(node, &none);
    let mut last_use: HashMap<usize, usize> = HashMap::new();
    for (step, &id) in order.iter().enumerate() {
        for input in &model.node(id).inputs {
            last_use.insert(input.node, step);
        }
    }
    for output in model.output_outlets()? {
        last_use.insert(output.node, usize::MAX);
    }
    let mut ends: Vec<Vec<usize>> = vec![vec![]; order.len()];
    for (&node, &step) in &last_use {
        if let Some(list) = ends.get_mut(step)
            && !model.node(node).op_is::<Const>()
        {
            list.push(node);
        }
    }
    // All inputs are set before the first step.
    let is_source = |id: usize| model.inputs.iter().any(|o| o.node == id);
    let mut alive = inputs(model);
    let mut most = alive;
    for (step, &id) in order.iter().enumerate() {
        let node = model.node(id);
        if !is_source(id) {
            alive = alive.saturating_add(size(node));
        }
        most = most.max(alive.saturating_add(inside(node)?));
        for &done in &ends[step] {
            alive = alive.saturating_sub(size(model.node(done)));
        }
        if !last_use.contains_key(&id) && !is_source(id) {
            alive = alive.saturating_sub(size(node));
        }
    }
    Ok(most.saturating_add(constants(model)))
}

/// Bytes of a graph's constants.
pub fn constants(model: &TypedModel) -> u64 {
    let none = SymbolValues::default();
    let constants = model.nodes().iter().filter(|n| n.op_is::<Const>());
    constants.map(|n| size(n, &none)).fold(0, u64::saturating_add)
}

/// Bytes of what the building of a plan for these dimensions makes constant: values that hang on no
/// input.
pub fn folded(model: &TypedModel, dims: &SymbolValues) -> TractResult<u64> {
    let mut fixed = vec![false; model.nodes().len()];
    let mut bytes = 0u64;
    for id in model.eval_order()? {
        let node = model.node(id);
        let source = model.inputs.iter().any(|o| o.node == id);
        fixed[id] = !source && node.inputs.iter().all(|i| fixed[i.node]);
        if fixed[id] && !node.op_is::<Const>() {
            bytes = bytes.saturating_add(size(node, dims));
        }
    }
    Ok(bytes)
}

/// Bytes of a graph's inputs.
pub fn inputs(model: &TypedModel) -> u64 {
    let none = SymbolValues::default();
    model.inputs.iter().map(|o| size(model.node(o.node), &none)).fold(0, u64::saturating_add)
}

/// Bytes of a graph's outputs.
pub fn outputs(model: &TypedModel) -> TractResult<u64> {
    let none = SymbolValues::default();
    let mut all = 0u64;
    for outlet in model.output_outlets()? {
        all = all.saturating_add(fact_size(model.outlet_fact(*outlet)?, &none));
    }
    Ok(all)
}

/// Bytes of a node's outputs.
pub fn bytes(node: &TypedNode) -> u64 {
    size(node, &SymbolValues::default())
}

fn size(node: &TypedNode, dims: &SymbolValues) -> u64 {
    node.outputs.iter().map(|o| fact_size(&o.fact, dims)).fold(0, u64::saturating_add)
}

/// 0 where a dimension stays open, the greatest number where they are past all bounds.
fn fact_size(fact: &TypedFact, dims: &SymbolValues) -> u64 {
    let mut bytes = Some(fact.datum_type.size_of() as u64);
    for dim in fact.shape.iter() {
        let Ok(dim) = dim.eval(dims).to_i64() else { return 0 };
        bytes = bytes.and_then(|b| b.checked_mul(u64::try_from(dim).ok()?));
    }
    let Some(exotic) = fact.exotic_fact() else { return bytes.unwrap_or(u64::MAX) };
    // Packed matrices: the shape tells how many there are, not how large one is.
    let sizes = exotic.buffer_sizes();
    let one: u64 = sizes.iter().filter_map(|d| d.eval(dims).to_usize().ok()).sum::<usize>() as u64;
    let count = bytes.map_or(u64::MAX, |bytes| bytes / fact.datum_type.size_of().max(1) as u64);
    count.saturating_mul(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_core::ops::array::MultiBroadcastTo;
    use tract_core::ops::einsum::EinSum;
    use tract_core::ops::math::{add, mul};
    use tract_core::ops::matmul::pack::OptMatMulPack;

    #[test]
    fn values_live_until_their_last_reader() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([100])).unwrap();
        let a = model.wire_node("a", mul(), &[x, x]).unwrap()[0];
        let b = model.wire_node("b", mul(), &[a, a]).unwrap()[0];
        let c = model.wire_node("c", add(), &[b, x]).unwrap()[0];
        model.select_output_outlets(&[c]).unwrap();
        let plan = TypedSimplePlan::new(model).unwrap();
        // x, the last one read, and the one being made.
        assert_eq!(peak(&plan).unwrap(), 3 * 400);
    }

    #[test]
    fn what_hangs_on_no_input_is_made_when_the_plan_is_built() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([3])).unwrap();
        let one = model.add_const("one", tensor1(&[1f32])).unwrap();
        // Of a known size it would be made here already.
        let n = model.symbols.new_with_prefix("n");
        let spread = MultiBroadcastTo { shape: [n.to_dim()].iter().collect() };
        let wide = model.wire_node("wide", spread, &[one]).unwrap()[0];
        model.select_output_outlets(&[x, wide]).unwrap();
        let dims = SymbolValues::default().with(&n, 1 << 20);
        assert_eq!((folded(&model, &dims).unwrap(), constants(&model)), (4 << 20, 4));
        let bound = super::super::bind_dims(&model, &[(n.to_string(), 1 << 20)]).unwrap();
        assert_eq!(outputs(&bound).unwrap(), (4 << 20) + 12);
    }

    #[test]
    fn every_packed_matrix_of_a_batch_counts() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([6, 64, 32])).unwrap();
        let w = model.add_source("w", f32::fact([6, 48, 32])).unwrap();
        let op = EinSum::new("bmk,bnk->bmn".parse().unwrap(), f32::datum_type());
        let y = model.wire_node("y", op, &[x, w]).unwrap()[0];
        model.select_output_outlets(&[y]).unwrap();
        let model = model.into_optimized().unwrap();
        let packs = model.nodes().iter().filter(|node| node.op_is::<OptMatMulPack>());
        let sizes = packs.map(|pack| (bytes(pack), bytes(model.node(pack.inputs[0].node))));
        let sizes: Vec<(u64, u64)> = sizes.collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|(pack, of)| of <= pack && *pack < 2 * of), "{sizes:?}");
    }

    #[test]
    fn sizes_past_all_bounds_are_the_greatest() {
        let fact = f32::fact([1usize << 40, 1 << 40]);
        assert_eq!(fact_size(&fact, &SymbolValues::default()), u64::MAX);
    }
}
