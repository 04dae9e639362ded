//! Plans whose steps follow each other so that their values take little room.

use super::memory::bytes;
use std::collections::BTreeSet;
use tract_core::internal::*;
use tract_core::ops::konst::Const;

/// A plan that runs these nodes, which are all that the outputs need but for constants, in this order.
pub fn in_order(model: &Arc<TypedModel>, order: &[usize]) -> TractResult<TypedSimplePlan> {
    let after = needed(model, order);
    let options = RunOptions { skip_order_opt_ram: true, ..RunOptions::default() };
    // Replaced by nothing: there is no other way to say what follows what.
    #[allow(deprecated)]
    TypedSimplePlan::build_with_outputs_and_deps(model.clone(), &model.outputs, &after, &options)
}

/// Pairs (node, the one right before it in `order`) that tract must be told to run the graph in this order:
/// it looks at each pair for each node. It goes from the outputs to what they read, first to nodes that read
/// something themselves, then to those that it is told of: where the one before has run by then, nothing is
/// to be told.
fn needed(model: &TypedModel, order: &[usize]) -> Vec<(usize, usize)> {
    let mut before = vec![None; model.nodes().len()];
    order.windows(2).for_each(|pair| before[pair[1]] = Some(pair[0]));
    let mut done = vec![false; before.len()];
    model.inputs.iter().for_each(|o| done[o.node] = true);
    let mut told = vec![];
    for output in &model.outputs {
        let mut stack = vec![(output.node, 0)];
        while let Some((id, at)) = stack.pop() {
            if done[id] {
                continue;
            }
            let inputs = model.node(id).inputs.iter().map(|i| i.node);
            let reads = |id: &usize| !model.node(*id).inputs.is_empty();
            let next = inputs.filter(reads).nth(at);
            match (next, before[id]) {
                (Some(input), _) => stack.extend([(id, at + 1), (input, 0)]),
                (None, Some(first)) if !done[first] => {
                    told.push((id, first));
                    stack.extend([(id, at), (first, 0)]);
                }
                _ => done[id] = true,
            }
        }
    }
    told
}

/// The nodes that the outputs need but for constants: whichever can run and frees more than it makes, else
/// the next of those that lead to the first output, then to the last, the last but one and so on, since
/// gradients come into being from the last layer to the first.
pub fn order(model: &TypedModel) -> TractResult<Vec<usize>> {
    let lazy = lazy(model)?;
    let count = model.nodes().len();
    let mut place = vec![usize::MAX; count];
    lazy.iter().enumerate().for_each(|(at, &id)| place[id] = at);
    let needed = |id: usize| place[id] != usize::MAX;
    // Readers yet to run, by nodes; inputs yet to come.
    let (mut readers, mut missing) = (vec![0usize; count], vec![0usize; count]);
    let mut next: Vec<Vec<usize>> = vec![vec![]; count];
    for &id in &lazy {
        for from in distinct(model.node(id)).filter(|&from| needed(from)) {
            readers[from] += 1;
            missing[id] += 1;
            next[from].push(id);
        }
    }
    for output in &model.outputs {
        readers[output.node] += 1;
    }
    let size: Vec<i128> = model.nodes().iter().map(|node| bytes(node).into()).collect();
    let mut ready: BTreeSet<usize> =
        lazy.iter().filter(|&&id| missing[id] == 0).map(|&id| place[id]).collect();
    let mut found = Vec::with_capacity(lazy.len());
    // Inputs of the model are there from the start, whether they have been read or not.
    let mut source = vec![false; count];
    model.inputs.iter().for_each(|o| source[o.node] = true);
    while let Some(&first) = ready.first() {
        let grows = |at: usize| -> i128 {
            let node = model.node(lazy[at]);
            let dies = |from: &usize| needed(*from) && readers[*from] == 1;
            let freed: i128 = distinct(node).filter(dies).map(|from| size[from]).sum();
            let made = if readers[node.id] == 0 { 0 } else { size[node.id] };
            made - freed
        };
        let least = ready.iter().map(|&at| (grows(at), at)).min();
        let at = match least {
            _ if source[lazy[first]] => first,
            Some((growth, at)) if growth < 0 => at,
            _ => first,
        };
        ready.remove(&at);
        let id = lazy[at];
        found.push(id);
        for from in distinct(model.node(id)).filter(|&from| needed(from)) {
            readers[from] -= 1;
        }
        for &reader in &next[id] {
            missing[reader] -= 1;
            if missing[reader] == 0 {
                ready.insert(place[reader]);
            }
        }
    }
    Ok(found)
}

/// The nodes that `node` reads, each once.
fn distinct(node: &TypedNode) -> impl Iterator<Item = usize> + '_ {
    let inputs = &node.inputs;
    let first =
        |(at, input): &(usize, &OutletId)| inputs[..*at].iter().all(|i| i.node != input.node);
    inputs.iter().enumerate().filter(first).map(|(_, input)| input.node)
}

/// Each node as late as the outputs, the first and then the others from the last on, let it: of its inputs
/// that with the longest way to it first.
fn lazy(model: &TypedModel) -> TractResult<Vec<usize>> {
    let mut height = vec![0usize; model.nodes().len()];
    for id in model.eval_order()? {
        let inputs = &model.node(id).inputs;
        height[id] = inputs.iter().map(|i| height[i.node] + 1).max().unwrap_or(0);
    }
    let mut done = vec![false; height.len()];
    let mut order = vec![];
    let first = model.outputs.iter().take(1);
    let inputs = model.inputs.iter();
    for target in inputs.chain(first).chain(model.outputs.iter().skip(1).rev()) {
        let mut stack = vec![(target.node, false)];
        while let Some((id, entered)) = stack.pop() {
            if done[id] || model.node(id).op_is::<Const>() {
                continue;
            }
            if entered {
                done[id] = true;
                order.push(id);
                continue;
            }
            stack.push((id, true));
            let mut inputs: Vec<usize> = distinct(model.node(id)).filter(|&i| !done[i]).collect();
            inputs.sort_by_key(|&i| height[i]);
            stack.extend(inputs.into_iter().map(|i| (i, false)));
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::memory::peak_in;
    use tract_core::ops::math::{add, exp, mul};

    /// y = Σ (x_i + 1)·e^x_i, whose terms tract would make one after the other before it adds them up.
    fn terms(count: usize) -> TypedModel {
        let mut model = TypedModel::default();
        let one = model.add_const("one", tensor1(&[1f32])).unwrap();
        let mut sum: Option<OutletId> = None;
        for i in 0..count {
            let x = model.add_source(format!("x{i}"), f32::fact([64])).unwrap();
            let a = model.wire_node(format!("a{i}"), add(), &[x, one]).unwrap()[0];
            let b = model.wire_node(format!("b{i}"), exp(), &[x]).unwrap()[0];
            let y = model.wire_node(format!("y{i}"), mul(), &[a, b]).unwrap()[0];
            sum = Some(match sum {
                Some(sum) => model.wire_node(format!("s{i}"), add(), &[sum, y]).unwrap()[0],
                None => y,
            });
        }
        model.select_output_outlets(&[sum.unwrap()]).unwrap();
        model
    }

    #[test]
    fn what_frees_memory_runs_first_and_the_plan_follows() {
        let model = Arc::new(terms(12));
        let order = order(&model).unwrap();
        let plan = Arc::new(in_order(&model, &order).unwrap());
        let source = |id: &usize| model.inputs.iter().any(|o| o.node == *id);
        let without = |order: &[usize]| -> Vec<usize> {
            order.iter().copied().filter(|id| !source(id)).collect()
        };
        assert_eq!(without(plan.order_without_consts()), without(&order));
        // The inputs, three values of a term or one and the sum, and the constant.
        let most = peak_in(&model, &order).unwrap();
        assert!(most <= (12 + 3) * 256 + 4, "{most}");
        let theirs =
            peak_in(&model, TypedSimplePlan::new(model.clone()).unwrap().order_without_consts());
        assert!(most <= theirs.unwrap());
        let inputs = || -> TVec<TValue> {
            (0..12).map(|i| tensor1(&[i as f32 / 9.0; 64]).into_tvalue()).collect()
        };
        let want = TypedSimplePlan::new(model).unwrap().run(inputs()).unwrap();
        assert_eq!(plan.run(inputs()).unwrap(), want);
    }

    #[test]
    fn any_order_can_be_told() {
        let model = Arc::new(terms(4));
        let inputs = model.inputs.iter().map(|o| o.node);
        let made = |letter: char| {
            let named = |node: &&TypedNode| node.name.starts_with(letter);
            model.nodes().iter().filter(named).map(|node| node.id).collect::<Vec<_>>()
        };
        let rest = ['b', 'a', 'y', 's'].map(made).concat();
        let order: Vec<usize> = inputs.clone().chain(rest.clone()).collect();
        let plan = in_order(&model, &order).unwrap();
        let found = plan.order_without_consts().iter().copied();
        let inputs: Vec<usize> = inputs.collect();
        assert_eq!(found.filter(|id| !inputs.contains(id)).collect::<Vec<_>>(), rest);
    }
}
