//! What a step keeps between its ways forward and back, and what it computes again instead.
//!
//! A value that is read on the way back is kept, or its node has a copy that runs again. Cheap steps, as of
//! activations and norms, are repeated from what is kept wherever that keeps less. Where memory is short, so
//! are whole stretches of the graph, from the first on, as few as are needed: of such a stretch only what
//! crosses its ends is kept. Copies are of the same operators over the same values: no bit of a result changes.

mod cheap;
mod copies;
mod stretches;
#[cfg(test)]
pub(super) mod tests;

use super::trainer::Trainer;
use crate::error::Result;
use crate::graph::{memory, order};
use crate::runtime::Named;
use copies::Forward;
use serde::Serialize;
use std::sync::Arc;
use tract_core::internal::*;

/// What a graph of training may run twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Nothing: what the way back reads is kept.
    #[cfg(test)]
    Nothing,
    /// Cheap steps.
    Cheap,
    /// Those and as few stretches as keep its values within so many bytes.
    Within(u64),
}

/// What a graph of training runs twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Repeated {
    /// Steps that are repeated, of all in the graph.
    pub steps: usize,
    /// Stretches that are.
    pub stretches: usize,
    /// Stretches that could be.
    pub of: usize,
}

impl Trainer {
    /// What graphs may run twice from here on.
    pub(super) fn repeat(&mut self, repeat: Repeat) {
        if self.setup.repeat != repeat {
            self.setup.repeat = repeat;
            self.drop_plans();
        }
    }

    /// What the graph for these inputs runs twice.
    pub(super) fn again(&self, inputs: &Named) -> Result<Repeated> {
        let binding = self.engine().binding(&self.engine().ordered(inputs)?)?;
        Ok(self.plan_for(&binding)?.again())
    }
}

/// A graph, the order in which it runs, and the bytes of its values while it does.
struct Ordered {
    model: TypedModel,
    order: Vec<usize>,
    peak: u64,
    again: Repeated,
}

impl Ordered {
    /// Of `model`, which repeats `stretches` and what is cheap.
    fn of(mut model: TypedModel, stretches: &[Vec<usize>]) -> TractResult<Ordered> {
        let mut forward = Forward::of(&model)?;
        let mut forgotten = vec![false; model.nodes().len()];
        stretches.iter().flatten().for_each(|&id| forgotten[id] = true);
        let mut steps = forward.forget(&mut model, &forgotten)?;
        let forgotten = cheap::cheap(&model, &forward);
        steps += forward.forget(&mut model, &forgotten)?;
        Ordered::plain(model, Repeated { steps, stretches: stretches.len(), of: 0 })
    }

    fn plain(model: TypedModel, again: Repeated) -> TractResult<Ordered> {
        let order = order::order(&model)?;
        let peak = memory::peak_in(&model, &order)?;
        Ok(Ordered { model, order, peak, again })
    }
}

/// A plan of an optimized graph whose first output is the loss, and what it repeats. Where its values fit
/// into less than it is allowed in no way, that in which they take least.
pub fn repeating(
    model: TypedModel,
    repeat: Repeat,
) -> TractResult<(Arc<TypedSimplePlan>, Repeated)> {
    let known = |node: &TypedNode| node.outputs.iter().all(|o| o.fact.shape.is_concrete());
    if !model.nodes().iter().all(known) {
        return Ok((TypedSimplePlan::new(model)?, Repeated::default()));
    }
    let found = match repeat {
        #[cfg(test)]
        Repeat::Nothing => Ordered::plain(model, Repeated::default())?,
        Repeat::Cheap => Ordered::of(model, &[])?,
        Repeat::Within(bytes) => fewest(model, bytes)?,
    };
    let Ordered { model, order, again, .. } = found;
    Ok((Arc::new(order::in_order(&Arc::new(model), &order)?), again))
}

/// That which repeats fewest stretches, from the first on, within `allowed` bytes.
fn fewest(model: TypedModel, allowed: u64) -> TractResult<Ordered> {
    let cheap = Ordered::of(model.clone(), &[])?;
    if cheap.peak <= allowed {
        return Ok(cheap);
    }
    // Graphs are large: two of them at a time.
    let cheap = cheap.peak;
    let stretches = stretches::stretches(&model, &Forward::of(&model)?);
    let peak = |count: usize| -> TractResult<u64> {
        Ok(Ordered::of(model.clone(), &stretches[..count])?.peak)
    };
    let (mut few, mut enough) = (0, stretches.len());
    let mut least = peak(enough)?;
    while least <= allowed && few + 1 < enough {
        let middle = few.midpoint(enough);
        let tried = peak(middle)?;
        match tried <= allowed {
            true => (enough, least) = (middle, tried),
            false => few = middle,
        }
    }
    if least > allowed && cheap <= least {
        enough = 0;
    }
    let mut found = Ordered::of(model, &stretches[..enough])?;
    found.again.of = stretches.len();
    Ok(found)
}
