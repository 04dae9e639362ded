//! Runs of a plan step by step, so that what several have in common is run once.

use crate::graph::{FrozenConv, FrozenEmbedding, FrozenLinear};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tract_core::internal::*;

/// By weight, the first step of `order` that reads it. Those inside of loops are not among them.
pub(super) fn first_steps(model: &TypedModel, order: &[usize]) -> HashMap<usize, usize> {
    let mut first = HashMap::new();
    for (step, &node) in order.iter().enumerate() {
        let node = model.node(node);
        let linear = node.op_as::<FrozenLinear>().map(|op| op.weight);
        let conv = || node.op_as::<FrozenConv>().map(|op| op.weight);
        let embedding = || node.op_as::<FrozenEmbedding>().map(|op| op.weight);
        if let Some(weight) = linear.or_else(conv).or_else(embedding) {
            first.entry(weight).or_insert(step);
        }
    }
    first
}

/// A run that can be stopped at a step and gone on with twice.
pub(super) struct Walk<'a> {
    plan: &'a Arc<TypedSimplePlan>,
    state: TypedSimpleState,
    /// By step, the nodes whose values nobody reads after it.
    done: Arc<Vec<Vec<usize>>>,
    step: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        plan: &'a Arc<TypedSimplePlan>,
        inputs: TVec<TValue>,
    ) -> TractResult<Walk<'a>> {
        let model = plan.model();
        let order = plan.order_without_consts();
        let mut last: HashMap<usize, usize> = HashMap::new();
        for (step, &node) in order.iter().enumerate() {
            last.insert(node, step);
            last.extend(model.node(node).inputs.iter().map(|i| (i.node, step)));
        }
        let mut done = vec![vec![]; order.len()];
        let kept: HashSet<usize> = model.output_outlets()?.iter().map(|o| o.node).collect();
        for (node, step) in last {
            if !kept.contains(&node) && !model.node(node).op_is::<tract_core::ops::konst::Const>() {
                done[step].push(node);
            }
        }
        let mut state = plan.spawn()?;
        state.set_inputs(inputs)?;
        Ok(Walk { plan, state, done: Arc::new(done), step: 0 })
    }

    pub(super) fn run_to(&mut self, step: usize) -> TractResult<()> {
        let plan = self.plan.clone();
        let order = plan.order_without_consts();
        while self.step < step.min(order.len()) {
            self.state.compute_one(order[self.step])?;
            for &node in &self.done[self.step] {
                self.state.turn_state.values[node] = None;
            }
            self.step += 1;
        }
        Ok(())
    }

    /// What a step before has made, if it is still there.
    pub(super) fn value(&self, outlet: OutletId) -> Option<&TValue> {
        self.state.turn_state.values[outlet.node].as_ref()?.get(outlet.slot)
    }

    /// A second run from here on.
    pub(super) fn branch(&self) -> TractResult<Walk<'a>> {
        let mut state = self.state.clone();
        // tract's clone of a state leaves them out.
        state.turn_state.values = self.state.turn_state.values.clone();
        Ok(Walk { plan: self.plan, state, done: self.done.clone(), step: self.step })
    }

    pub(super) fn finish(mut self) -> TractResult<TVec<TValue>> {
        self.run_to(usize::MAX)?;
        self.state.outputs()
    }
}
