//! How the ops find the adapters of a run, and add what those add.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use tract_core::internal::*;

use crate::adapter::{Bound, BoundLora};
use crate::quant::{PackedRef, product, product_add};

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
pub(crate) fn active_lora<'a>(
    ctx: &EvalContext<'a>,
    target: Option<usize>,
) -> Option<&'a BoundLora> {
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
    pub(crate) lora: &'a BoundLora,
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

/// Checks that a bound LoRA fits a layer of `inputs` and `outputs` features.
pub(crate) fn check_lora(lora: &BoundLora, inputs: usize, outputs: usize) -> TractResult<()> {
    let (a, b) = (lora.a.view(), lora.b.view());
    ensure!(
        a.cols() == inputs && b.rows() == outputs && a.rows() == b.cols(),
        "adapter tensors ({}, {}) and ({}, {}) don't fit a layer of {inputs} inputs and {outputs} outputs",
        a.rows(),
        a.cols(),
        b.rows(),
        b.cols()
    );
    Ok(())
}

/// The parts of the rows `rows` that carry an adapter. A row of the batch is `each` of them.
pub(crate) fn overlaps<'a>(
    spans: &'a [LoraSpan<'a>],
    each: usize,
    rows: Range<usize>,
) -> impl Iterator<Item = (Range<usize>, &'a BoundLora)> {
    spans.iter().filter_map(move |span| {
        let from = rows.start.max(span.rows.start * each);
        let to = rows.end.min(span.rows.end * each);
        (from < to).then_some((from..to, span.lora))
    })
}

/// y += (x · lora_aᵀ) · lora_bᵀ for whole rows of x and y, beside the layer W.
pub(crate) fn add_lora(
    lora: &BoundLora,
    w: PackedRef<'_>,
    x: &[f32],
    y: &mut [f32],
) -> TractResult<()> {
    check_lora(lora, w.cols(), w.rows())?;
    let rows = y.len() / w.rows().max(1);
    let mut inner = vec![0.0; rows * lora.a.view().rows()];
    product(lora.a.view(), x, None, &mut inner);
    product_add(lora.b.view(), &inner, y);
    Ok(())
}
