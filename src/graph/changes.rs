//! How the ops find the adapters of a run, and what those do to them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use tract_core::internal::*;

use crate::adapter::Bound;
use crate::quant::{Change, PackedRef, Update};

/// The adapter of the current run. Put it into the run's shared resources
/// (`TurnState::shared`); the ops that are targets find it there. Without it they compute the base.
#[derive(Clone)]
pub struct ActiveAdapter(pub Arc<Bound>);

impl fmt::Debug for ActiveAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ActiveAdapter").field(&self.0.names).finish()
    }
}

/// The adapters of the current run where rows of the batch carry different ones: one entry for each
/// row, `None` for the base. In the run's shared resources in place of an [`ActiveAdapter`].
#[derive(Clone)]
pub struct RowAdapters(pub Vec<Option<Arc<Bound>>>);

impl fmt::Debug for RowAdapters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|b| b.as_ref().map(|b| &b.names))).finish()
    }
}

/// Rows of the batch, side by side, and what their adapter does to a target.
pub(crate) struct Span<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) change: &'a Change,
}

/// What the run's adapters do to target `target`, for a batch of `batch` rows: none where the base
/// answers alone.
pub(crate) fn spans<'a>(
    ctx: &EvalContext<'a>,
    target: Option<usize>,
    batch: usize,
) -> TractResult<TVec<Span<'a>>> {
    let (Some(shared), Some(target)) = (ctx.shared, target) else { return Ok(tvec!()) };
    let of = |bound: &'a Bound| bound.targets.get(target).and_then(Option::as_ref);
    if let Some(RowAdapters(adapters)) = shared.get::<RowAdapters>() {
        // What is the same for all rows (positions of tokens) has no rows of theirs.
        if adapters.iter().flatten().all(|bound| of(bound).is_none()) {
            return Ok(tvec!());
        }
        ensure!(adapters.len() == batch, "{} adapters for a batch of {batch}", adapters.len());
        let mut spans: TVec<Span> = tvec!();
        for (row, adapter) in adapters.iter().enumerate() {
            let Some(change) = adapter.as_ref().and_then(|bound| of(bound)) else { continue };
            match spans.last_mut() {
                Some(last) if last.rows.end == row && std::ptr::eq(last.change, change) => {
                    last.rows.end += 1;
                }
                _ => spans.push(Span { rows: row..row + 1, change }),
            }
        }
        return Ok(spans);
    }
    let change = shared.get::<ActiveAdapter>().and_then(|active| of(&active.0));
    Ok(change.into_iter().map(|change| Span { rows: 0..batch, change }).collect())
}

/// Checks that a change fits a layer of `inputs` and `outputs` features.
pub(crate) fn check_change(change: &Change, inputs: usize, outputs: usize) -> TractResult<()> {
    change.check(inputs, outputs).map_err(|e| format_err!("{e}"))
}

/// What the spans do to the rows `rows` of a product with W, counted from the first of them. A row of
/// the batch is `each` of them.
pub(crate) fn updates<'a>(
    spans: &[Span<'a>],
    w: PackedRef<'_>,
    each: usize,
    rows: Range<usize>,
) -> TractResult<TVec<Update<'a>>> {
    let mut updates = tvec!();
    for span in spans {
        let from = rows.start.max(span.rows.start * each);
        let to = rows.end.min(span.rows.end * each);
        if from < to {
            check_change(span.change, w.cols(), w.rows())?;
            let rows = from - rows.start..to - rows.start;
            updates.push(Update { rows, change: span.change });
        }
    }
    Ok(updates)
}
