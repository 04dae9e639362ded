//! Runs whose plan leaves dimensions free: what differs in every run would else need a plan each.

use super::engine::{Carried, Engine};
use crate::adapter::Bound;
use crate::error::Result;
use crate::graph::Watch;
use std::sync::Arc;
use tract_core::internal::*;

impl Engine {
    /// Runs tensors in the order of the graph's inputs by a plan that leaves the dimensions `free`, by
    /// the names that inputs have them, open. Slower by what fusing needs sizes for.
    pub(super) fn run_free(
        &self,
        tensors: TVec<TValue>,
        free: &[String],
        adapter: Option<&Arc<Bound>>,
        watch: Watch,
    ) -> Result<TVec<TValue>> {
        let mut binding =
            self.binding_of(&tensors.iter().map(|t| t.shape()).collect::<Vec<_>>())?;
        binding.retain(|safe, _| !free.iter().any(|name| name == self.symbol_name(safe)));
        let plan = self.plan(&binding)?;
        let carried = adapter.map_or(Carried::Nothing, Carried::One);
        Ok(self.execute(&plan, tensors, carried, watch)?.outputs)
    }
}
