//! Batches whose rows carry different adapters.

use super::engine::{Carried, Engine, Named};
use crate::adapter::Bound;
use crate::error::{Error, Result};
use crate::graph::{FrozenConv, FrozenLinear, Watch, places};
use crate::shape::Input;
use std::collections::BTreeSet;
use std::sync::Arc;
use tract_core::internal::*;

impl Engine {
    /// Runs a batch whose rows carry different adapters: `adapters` has one entry for each row, `None`
    /// for the base. Each row answers as it would alone with its adapter; the base's products run once
    /// for all. Rows of one adapter side by side cost least.
    ///
    /// # Errors
    /// As [`Engine::run`]. Usage: not as many adapters as rows. Unsupported: an adapter on a
    /// layer that doesn't see the batch as its first axis (the message names it): run those rows
    /// apart.
    pub fn run_rows<I: Input>(
        &self,
        inputs: &[I],
        adapters: &[Option<Arc<Bound>>],
    ) -> Result<Named> {
        let ordered = self.ordered(inputs)?;
        for view in &ordered {
            let rows = view.shape().first().copied();
            if rows != Some(adapters.len()) {
                return Err(Error::usage(format!(
                    "{} adapters for a batch of {} rows",
                    adapters.len(),
                    rows.unwrap_or(0)
                )));
            }
        }
        let address = |a: &Option<Arc<Bound>>| a.as_ref().map(Arc::as_ptr);
        match adapters {
            [] => self.run(inputs, None),
            [first, rest @ ..] if rest.iter().all(|a| address(a) == address(first)) => {
                self.run(inputs, first.as_ref())
            }
            _ => {
                self.check_rows(adapters)?;
                let mut outputs = vec![];
                self.run_with(&ordered, Carried::Rows(adapters), Watch::default(), &mut outputs)?;
                Ok(outputs)
            }
        }
    }

    /// Whether every layer that one of the adapters changes has the batch as its first axis.
    fn check_rows(&self, adapters: &[Option<Arc<Bound>>]) -> Result<()> {
        let mut changed = BTreeSet::new();
        for bound in adapters.iter().flatten() {
            let targets = bound.targets.iter().enumerate();
            changed.extend(targets.filter(|(_, lora)| lora.is_some()).map(|(target, _)| target));
        }
        let graph = self.graph();
        let places = places(graph);
        let first = |graph: &TypedModel, outlet: OutletId| {
            graph.outlet_fact(outlet).ok()?.shape.first().cloned()
        };
        let mut batches = graph.inputs.iter().map(|input| first(graph, *input));
        let batch = batches.next().flatten().filter(|dim| matches!(dim, TDim::Sym(_)));
        let free = batch.is_some() && batches.all(|other| other == batch);
        let by_rows = |target: usize| {
            let mut seen = false;
            for place in &places {
                let Ok(within) = place.graph(graph) else { return false };
                let node = within.node(place.node);
                let linear = node.op_as::<FrozenLinear>().and_then(|op| op.target);
                let conv = node.op_as::<FrozenConv>().and_then(|op| op.target);
                if linear.or(conv) == Some(target) {
                    seen = true;
                    if node.inputs.first().and_then(|x| first(within, *x)) != batch {
                        return false;
                    }
                }
            }
            seen
        };
        match changed.into_iter().find(|target| !free || !by_rows(*target)) {
            None => Ok(()),
            Some(target) => {
                let path = self.base().targets().get(target).map_or("?", |t| &t.module_path);
                Err(Error::unsupported(format!(
                    "the layer '{path}' can't carry a different adapter in each row"
                ))
                .hint("run the rows of each adapter as a batch of their own"))
            }
        }
    }
}
