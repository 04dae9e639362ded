//! How the ops find the adapters of a run, and add what those add.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use tract_core::internal::*;

use crate::adapter::Bound;
use crate::quant::{LowRank, PackedRef, Update};

/// The adapter of the current run. Put it into the run's shared resources
/// (`TurnState::shared`); the ops that are targets find it there. Without it they compute the base.
#[derive(Clone)]
pub struct ActiveAdapter(pub Arc<Bound>);

impl fmt::Debug for ActiveAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ActiveAdapter").field(&self.0.names).finish()
    }
}

/// What the active adapter adds to target `target`, if anything.
pub(crate) fn active_lora<'a>(ctx: &EvalContext<'a>, target: Option<usize>) -> Option<&'a LowRank> {
    ctx.shared?.get::<ActiveAdapter>()?.0.targets.get(target?)?.as_ref()
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

/// Rows of the batch, side by side, and what their adapter adds to a target.
pub(crate) struct LoraSpan<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) lora: &'a LowRank,
}

/// What the run's adapters add to target `target`, for a batch of `batch` rows: none where the base
/// answers alone.
pub(crate) fn lora_spans<'a>(
    ctx: &EvalContext<'a>,
    target: Option<usize>,
    batch: usize,
) -> TractResult<TVec<LoraSpan<'a>>> {
    let (Some(shared), Some(target)) = (ctx.shared, target) else { return Ok(tvec!()) };
    let of = |bound: &'a Bound| bound.targets.get(target).and_then(Option::as_ref);
    if let Some(RowAdapters(adapters)) = shared.get::<RowAdapters>() {
        ensure!(adapters.len() == batch, "{} adapters for a batch of {batch}", adapters.len());
        let mut spans: TVec<LoraSpan> = tvec!();
        for (row, adapter) in adapters.iter().enumerate() {
            let Some(lora) = adapter.as_ref().and_then(|bound| of(bound)) else { continue };
            match spans.last_mut() {
                Some(last) if last.rows.end == row && std::ptr::eq(last.lora, lora) => {
                    last.rows.end += 1;
                }
                _ => spans.push(LoraSpan { rows: row..row + 1, lora }),
            }
        }
        return Ok(spans);
    }
    let lora = shared.get::<ActiveAdapter>().and_then(|active| of(&active.0));
    Ok(lora.into_iter().map(|lora| LoraSpan { rows: 0..batch, lora }).collect())
}

/// Checks that a low-rank update fits a layer of `inputs` and `outputs` features.
pub(crate) fn check_lora(lora: &LowRank, inputs: usize, outputs: usize) -> TractResult<()> {
    let (a, b) = (lora.a(), lora.b());
    ensure!(
        a.cols() == inputs && b.rows() == outputs,
        "adapter tensors ({}, {}) and ({}, {}) don't fit a layer of {inputs} inputs and {outputs} outputs",
        a.rows(),
        a.cols(),
        b.rows(),
        b.cols()
    );
    Ok(())
}

/// What the spans add to the rows `rows` of a product with W, counted from the first of them. A row of
/// the batch is `each` of them.
pub(crate) fn updates<'a>(
    spans: &[LoraSpan<'a>],
    w: PackedRef<'_>,
    each: usize,
    rows: Range<usize>,
) -> TractResult<TVec<Update<'a>>> {
    let mut updates = tvec!();
    for span in spans {
        let from = rows.start.max(span.rows.start * each);
        let to = rows.end.min(span.rows.end * each);
        if from < to {
            check_lora(span.lora, w.cols(), w.rows())?;
            let rows = from - rows.start..to - rows.start;
            updates.push(Update { rows, low_rank: span.lora });
        }
    }
    Ok(updates)
}
