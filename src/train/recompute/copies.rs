//! The part of a training graph that leads to the loss, and copies of its nodes that run again.

use crate::graph::order::order;
use tract_core::internal::*;
use tract_core::ops::konst::Const;
use tract_core::ops::scan::OptScan;
use tract_core::ops::source::TypedSource;

/// What a graph, whose first output is the loss, does before it goes backward.
pub struct Forward {
    /// Its nodes, inputs before readers.
    pub order: Vec<usize>,
    /// Of each node of the graph, whether it is one of them.
    pub is: Vec<bool>,
}

impl Forward {
    /// In the order in which the graph runs.
    pub fn of(model: &TypedModel) -> TractResult<Forward> {
        let mut is = vec![false; model.nodes().len()];
        let mut stack: Vec<usize> = model.outputs.first().map(|o| o.node).into_iter().collect();
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut is[id], true) {
                stack.extend(model.node(id).inputs.iter().map(|i| i.node));
            }
        }
        let order = order(model)?.into_iter().filter(|&id| is[id]).collect();
        Ok(Forward { order, is })
    }

    /// Those of its nodes that what runs backward reads.
    pub fn read_backward(&self, model: &TypedModel) -> Vec<bool> {
        let mut read = vec![false; model.nodes().len()];
        for node in model.nodes().iter().filter(|node| !self.is[node.id]) {
            node.inputs.iter().filter(|i| self.is[i.node]).for_each(|i| read[i.node] = true);
        }
        read
    }

    /// Lets what runs backward read copies in the place of `forgotten` nodes, which read further copies
    /// or what is kept. The copies are forward nodes from then on; how many there are.
    pub fn forget(&mut self, model: &mut TypedModel, forgotten: &[bool]) -> TractResult<usize> {
        let mut wanted = self.read_backward(model);
        for &id in self.order.iter().rev() {
            if wanted[id] && forgotten[id] {
                model.node(id).inputs.iter().for_each(|i| wanted[i.node] = true);
            }
        }
        // Nodes are large, and a vector that grows by itself doubles.
        let copied = self.order.iter().filter(|&&id| wanted[id] && forgotten[id]).count();
        model.nodes.reserve_exact(copied);
        let backward: Vec<usize> = (0..model.nodes().len()).filter(|&id| !self.is[id]).collect();
        let mut copies: HashMap<usize, usize> = HashMap::new();
        let again = |copies: &HashMap<usize, usize>, from: OutletId| {
            copies.get(&from.node).map_or(from, |&copy| OutletId::new(copy, from.slot))
        };
        for id in self.order.clone() {
            if !wanted[id] || !forgotten[id] {
                continue;
            }
            let node = model.node(id).clone();
            let facts = node.outputs.into_iter().map(|o| o.fact).collect();
            let copy = model.add_node(format!("{}.again", node.name), node.op, facts)?;
            for (slot, &input) in node.inputs.iter().enumerate() {
                model.add_edge(again(&copies, input), InletId::new(copy, slot))?;
            }
            copies.insert(id, copy);
            self.order.push(copy);
            self.is.push(true);
        }
        for id in backward {
            for (slot, input) in model.node(id).inputs.clone().into_iter().enumerate() {
                if copies.contains_key(&input.node) {
                    model.add_edge(again(&copies, input), InletId::new(id, slot))?;
                }
            }
        }
        Ok(copies.len())
    }
}

/// Whether a node gives the same each time that it runs.
pub fn repeats(node: &TypedNode) -> bool {
    // A loop begins at its first state each time.
    node.op_is::<OptScan>()
        || node.op.state(&EvalContext::out_of_plan()).is_ok_and(|state| state.is_none())
}

/// Whether a node's value is there throughout.
pub fn is_given(node: &TypedNode) -> bool {
    node.op_is::<Const>() || node.op_is::<TypedSource>()
}
