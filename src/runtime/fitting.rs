//! Before anything is judged or written: whether the graph can be built and run, and what of its free
//! dimensions has to be bound for that.

use super::trial::{Runs, Tried, try_out};
use crate::error::{Error, ErrorKind, Result};
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
/// of each dimension left free; gives the graph and what was bound. With `untried` a graph need not run.
///
/// # Errors
/// Of the graph as it came, if no binding helps.
pub(super) fn fit_dims(
    prepared: &mut Prepared,
    weights: FrozenWeights,
    untried: bool,
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
        let runs = match try_out(&graph, prepared)? {
            Tried::Runs(runs) => Some(runs),
            Tried::Never(_) if untried => None,
            // Binding does not help.
            Tried::Never(e) if e.kind() == ErrorKind::Refused => return Err(e),
            Tried::Never(e) => return Err(never(&e)),
        };
        Ok(Fitted { graph, runs })
    })
}

fn never(e: &Error) -> Error {
    Error::unsupported(format!("it runs on no made-up input: {}", e.message())).hint(
        "--input, --dim and --const say what its inputs are; --untried packs it as it is, \
         for inputs that it does run on",
    )
}
