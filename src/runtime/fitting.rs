//! Before anything is judged or written: whether the graph can be built and run, and what of its free
//! dimensions has to be bound for that.

use super::trial::{Runs, try_out};
use crate::error::Result;
use crate::graph::{FrozenWeights, lower, read_graph, write_graph};
use crate::import::{Bound, Prepared, fit, tell};
use tract_core::internal::TypedModel;

/// A graph that can be written.
pub(super) struct Fitted {
    pub(super) graph: TypedModel,
    /// How it runs, if it runs on made-up inputs.
    pub(super) runs: Option<Runs>,
}

/// Binds what stops `prepared` from becoming a graph that can be written, and that runs at two sizes
/// of each dimension left free; gives the graph and what was bound.
///
/// # Errors
/// Of the graph as it came, if no binding helps.
pub(super) fn fit_dims(
    prepared: &mut Prepared,
    weights: FrozenWeights,
) -> Result<(Fitted, Vec<Bound>)> {
    let mut tries = 0;
    fit(prepared, |prepared| {
        tries += 1;
        tell(if tries == 1 { "building the graph" } else { "trying other dimensions" }, tries, 0);
        let graph = lower(&prepared.model, &weights)?;
        let text = write_graph(&graph)?;
        drop(graph);
        // What is served is what can be read back.
        let graph = read_graph(&text.text, text.constants, &weights)?;
        let runs = try_out(&graph, prepared)?;
        Ok(Fitted { graph, runs })
    })
}
