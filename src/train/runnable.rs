//! A graph that is ready to run, from several threads at once.

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{contract_einsums, decluttered, memory, tract_error};
use crate::runtime::{Engine, Named, to_tensor};
use crate::train::recompute::{Repeat, Repeated, repeating};
use crate::train::vjp::rows::sum_rows;
use std::sync::{Arc, Mutex, PoisonError};
use tract_core::internal::*;

/// A bound graph of training, optimized.
pub(super) struct Runnable {
    /// What errors call it.
    what: &'static str,
    plan: Arc<TypedSimplePlan>,
    idle: Mutex<Vec<TypedSimpleState>>,
    peak: u64,
    again: Repeated,
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Failed, &e)
}

impl Runnable {
    /// Of `model` with its inputs and outputs selected.
    pub fn of(engine: &Engine, what: &'static str, model: TypedModel) -> Result<Runnable> {
        let plan = optimized(model).and_then(TypedSimplePlan::new);
        Runnable::ready(engine, what, plan.map(|plan| (plan, Repeated::default())))
    }

    /// The same of a graph whose first output is a loss and whose others are gradients.
    pub fn of_gradients(
        engine: &Engine,
        what: &'static str,
        model: TypedModel,
        repeat: Repeat,
    ) -> Result<Runnable> {
        Runnable::ready(engine, what, optimized(model).and_then(|model| repeating(model, repeat)))
    }

    fn ready(
        engine: &Engine,
        what: &'static str,
        found: TractResult<(Arc<TypedSimplePlan>, Repeated)>,
    ) -> Result<Runnable> {
        let found =
            found.map_err(|e| named(engine, tract_error(ErrorKind::Unsupported, &e).at(what)));
        let (plan, again) = found?;
        let peak = memory::peak(&plan).map_err(failed)?;
        Ok(Runnable { what, plan, idle: Mutex::new(vec![]), peak, again })
    }

    /// What it runs twice.
    pub fn again(&self) -> Repeated {
        self.again
    }

    /// Bytes of tensors that are alive at once while it runs, at most.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Its outputs.
    ///
    /// # Errors
    /// Refused: the engine's memory has no room. What running says.
    pub fn run(&self, engine: &Engine, inputs: TVec<TValue>) -> Result<TVec<TValue>> {
        let limit = engine.memory();
        let _taken = limit.map(|limit| limit.take(self.peak + memory::SCRATCH)).transpose()?;
        let running = |e: TractError| {
            let text = engine.original_names(&format!("{e:#}"));
            Error::failed(format!("running the {}: {text}", self.what))
        };
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut state = match idle {
            Some(state) => state,
            None => self.plan.spawn().map_err(running)?,
        };
        // A state that failed in the middle of a run is not used again.
        let outputs = state.run(inputs).map_err(running)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(state);
        Ok(outputs)
    }
}

/// An error with the names of the file that the base was packed from.
pub(super) fn named(engine: &Engine, e: Error) -> Error {
    let text = engine.original_names(e.message());
    let renamed = Error::new(e.kind(), text);
    match e.hint_text() {
        Some(hint) => renamed.hint(hint),
        None => renamed,
    }
}

/// The base's inputs as its graph takes them.
pub(super) fn tensors(engine: &Engine, inputs: &Named) -> Result<TVec<TValue>> {
    let ordered = engine.ordered(inputs)?;
    let graph = engine.graph();
    let each = engine.inputs().iter().zip(ordered).zip(&graph.inputs);
    each.map(|((spec, array), outlet)| {
        let fact = graph.outlet_fact(*outlet).map_err(failed)?;
        Ok(to_tensor(&spec.name, array, fact.datum_type)?.into_tvalue())
    })
    .collect()
}

/// As tract's `into_optimized`, with contractions in place of EinSums: between the two passes, since
/// the first moves transpositions into the EinSums' subscripts and the second packs operands.
fn optimized(model: TypedModel) -> TractResult<TypedModel> {
    let mut model = decluttered(model)?;
    contract_einsums(&mut model)?;
    sum_rows(&mut model)?;
    model.optimize()?;
    Ok(model)
}
