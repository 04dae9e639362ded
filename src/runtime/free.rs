//! Runs whose plan leaves dimensions free: what differs in every run would else need a plan each.

use super::engine::{Carried, Engine};
use crate::adapter::Bound;
use crate::error::{ErrorKind, Result};
use crate::graph::{
    GivenState, KeptLayer, KeptStates, Watch, keep, last_row, substitute, tract_error,
};
use crate::pack::{IoSpec, Role};
use crate::shape::DType;
use std::collections::HashMap;
use std::sync::Arc;
use tract_core::internal::*;

/// The input of a graph that keeps its states: (1, steps that they know), of any value.
pub(super) const PAST: &str = "steps that are kept";

impl Engine {
    /// The same base with a graph that computes the logits of the last token alone, where its own gives all;
    /// it has plans of its own.
    pub(super) fn for_last_token(&self) -> Result<Engine> {
        let Some(at) = self.outputs().iter().position(|spec| spec.role == Role::Logits) else {
            return Ok(self.clone());
        };
        let model = last_row(self.graph(), at).map_err(|e| tract_error(ErrorKind::Failed, &e))?;
        let Some(model) = model else { return Ok(self.clone()) };
        let mut record = self.record().cloned().unwrap_or_default();
        if let Some(tokens) = record.outputs.get_mut(at).and_then(|spec| spec.dims.get_mut(1)) {
            *tokens = "1".into();
        }
        Ok(self.with_graph(model, record))
    }

    /// The same base with a graph that keeps the states of its layers, and those layers; `None` where it has none that
    /// it knows how to keep. In the place of their states that graph takes [`PAST`] as its last input.
    pub(super) fn for_kept_states(&self) -> Result<Option<(Engine, Vec<KeptLayer>)>> {
        let failed = |e: TractError| tract_error(ErrorKind::Failed, &e);
        let state = |(input, spec): (usize, &IoSpec)| {
            let again = |o: &IoSpec| o.role == spec.role;
            let output = self.outputs().iter().position(again);
            matches!(spec.role, Role::State(_)).then_some(GivenState { input, output })
        };
        let states: Vec<GivenState> = self.inputs().iter().enumerate().filter_map(state).collect();
        let model = substitute(self.graph(), &self.known_dims(&states)).map_err(failed)?;
        let Some((model, layers)) = keep(&model, &states).map_err(failed)? else {
            return Ok(None);
        };
        let gone = || layers.iter().flat_map(|layer| layer.states);
        let mut record = self.record().cloned().unwrap_or_default();
        let mut at = 0..;
        record.inputs.retain(|_| at.next().is_some_and(|at| gone().all(|s| s.input != at)));
        let mut at = 0..;
        record.outputs.retain(|_| at.next().is_some_and(|at| gone().all(|s| s.output != Some(at))));
        let past = model.inputs.last().and_then(|o| model.outlet_fact(*o).ok());
        let past = past.map_or(String::new(), |fact| fact.shape[1].to_string());
        let dims = vec!["1".into(), self.symbol_name(&past).into()];
        let (name, safe_name, role) = (PAST.into(), "past".into(), Role::Other);
        record.inputs.push(IoSpec { name, safe_name, dtype: DType::Bool, dims, role });
        Ok(Some((self.with_graph(model, record), layers)))
    }

    /// What is known of a decoder's free dimensions: one row, and a mask of all that the states know and all that is
    /// new.
    fn known_dims(&self, states: &[GivenState]) -> HashMap<Symbol, TDim> {
        let dim = |input: Option<usize>, axis: usize| {
            let outlet = self.graph().inputs.get(input?)?;
            self.graph().outlet_fact(*outlet).ok()?.shape.get(axis).cloned()
        };
        let of = |role: Role| self.inputs().iter().position(|spec| spec.role == role);
        let mut known = HashMap::new();
        if let Some(TDim::Sym(batch)) = dim(of(Role::Ids), 0) {
            known.insert(batch, 1.to_dim());
        }
        let grows = states.iter().find(|state| state.output.is_some()).map(|state| state.input);
        if let (Some(TDim::Sym(all)), Some(tokens), Some(past)) =
            (dim(of(Role::Mask), 1), dim(of(Role::Ids), 1), dim(grows, 2))
            && all.to_dim() != tokens
            && all.to_dim() != past
        {
            known.insert(all, tokens + past);
        }
        known
    }

    /// Runs tensors in the order of the graph's inputs by a plan that leaves the dimensions `free`, by
    /// the names that inputs have them, open. Slower by what fusing needs sizes for.
    pub(super) fn run_free(
        &self,
        tensors: TVec<TValue>,
        free: &[String],
        adapter: Option<&Arc<Bound>>,
        kept: Option<&KeptStates>,
        watch: Watch,
    ) -> Result<TVec<TValue>> {
        let mut binding =
            self.binding_of(&tensors.iter().map(|t| t.shape()).collect::<Vec<_>>())?;
        binding.retain(|safe, _| !free.iter().any(|name| name == self.symbol_name(safe)));
        let plan = self.plan(&binding)?;
        let carried = adapter.map_or(Carried::Nothing, Carried::One);
        Ok(self.execute(&plan, tensors, carried, kept, watch)?.outputs)
    }
}
