//! Before anything is judged or written: whether the graph can be built, and what of its free
//! dimensions has to be bound for that.

use crate::error::{Error, Result};
use crate::graph::{FrozenWeights, lower, write_graph};
use crate::import::{Bound, Prepared, fit, tell};
use crate::quant::Packed;
use std::sync::Arc;

/// Binds what stops `prepared` from becoming a graph that can be written; gives the weights back and
/// what was bound.
///
/// # Errors
/// Of the graph as it came, if no binding helps.
pub(super) fn fit_dims(
    prepared: &mut Prepared,
    weights: Vec<Packed>,
) -> Result<(Vec<Packed>, Vec<Bound>)> {
    let weights = Arc::new(weights);
    let mut tries = 0;
    let (_, bound) = fit(prepared, |prepared| {
        tries += 1;
        let what = if tries == 1 { "building the graph" } else { "trying other dimensions" };
        tell(what, tries, 0);
        let table = FrozenWeights(weights.clone());
        write_graph(&lower(&prepared.model, &table)?).map(drop)
    })?;
    let weights = Arc::try_unwrap(weights)
        .map_err(|_| Error::failed("the weights are still in use after the graph was built"))?;
    Ok((weights, bound))
}
