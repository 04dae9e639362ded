//! How the ops reach the frozen weights and the active adapter.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use tract_core::internal::*;

use crate::adapter::{Bound, BoundLora};
use crate::quant::{Packed, PackedRef};

/// Something that holds the weight table of a base: its mapping, or matrices in memory.
pub trait WeightSource: Send + Sync + fmt::Debug {
    /// The packed matrix at `index` of the weight table; an error where there is none.
    fn weight(&self, index: usize) -> crate::error::Result<PackedRef<'_>>;
}

impl WeightSource for Vec<Packed> {
    fn weight(&self, index: usize) -> crate::error::Result<PackedRef<'_>> {
        match self.get(index) {
            Some(packed) => Ok(packed.view()),
            None => Err(crate::error::Error::bad_input(format!(
                "weight {index} is outside the weight table of {} entries",
                self.len()
            ))),
        }
    }
}

/// A shared [`WeightSource`]; two are equal when they are the same object.
#[derive(Clone)]
pub struct FrozenWeights(pub Arc<dyn WeightSource>);

impl FrozenWeights {
    /// Shares `source`.
    pub fn new(source: impl WeightSource + 'static) -> FrozenWeights {
        FrozenWeights(Arc::new(source))
    }

    /// The packed matrix at `index`, with tract's error type.
    pub fn weight(&self, index: usize) -> TractResult<PackedRef<'_>> {
        self.0.weight(index).map_err(|e| format_err!("{e}"))
    }

    fn address(&self) -> *const () {
        Arc::as_ptr(&self.0).cast()
    }
}

impl fmt::Debug for FrozenWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrozenWeights")
    }
}

impl PartialEq for FrozenWeights {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.address(), other.address())
    }
}

impl Eq for FrozenWeights {}

impl Hash for FrozenWeights {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

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
    pub(crate) rows: std::ops::Range<usize>,
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

/// The values of a float tensor, row-major.
pub(crate) fn floats(tensor: &Tensor) -> TractResult<&[f32]> {
    tensor.try_as_plain_ram()?.as_slice::<f32>()
}

/// A float tensor of `shape` that `fill` has written to; its values are zero before.
pub(crate) fn filled(
    shape: &[usize],
    fill: impl FnOnce(&mut [f32]) -> TractResult<()>,
) -> TractResult<TValue> {
    let mut tensor = Tensor::zero::<f32>(shape)?;
    fill(tensor.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?)?;
    Ok(tensor.into_tvalue())
}

/// Fails unless `fact` is float.
pub(crate) fn expect_f32(what: &str, fact: &TypedFact) -> TractResult<()> {
    let found = fact.datum_type;
    ensure!(found == f32::datum_type(), "{what}: expected f32 values, found {found:?}");
    Ok(())
}

/// Fails if `dim` is known and not `expected`.
pub(crate) fn expect_dim(what: &str, dim: Option<&TDim>, expected: usize) -> TractResult<()> {
    match dim {
        Some(TDim::Val(found)) if usize::try_from(*found) != Ok(expected) => {
            bail!("{what}: expected {expected}, found {found}")
        }
        Some(_) => Ok(()),
        None => bail!("{what}: expected {expected}, found a scalar"),
    }
}

/// Fails unless input `index` is a bias of `features` floats.
pub(crate) fn expect_bias(inputs: &[&TypedFact], index: usize, features: usize) -> TractResult<()> {
    let Some(bias) = inputs.get(index) else { return Ok(()) };
    expect_f32("bias", bias)?;
    ensure!(bias.rank() == 1, "bias: expected one axis, found {}", bias.rank());
    expect_dim("bias length", bias.shape.first(), features)
}
