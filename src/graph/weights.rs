//! How the ops reach the frozen weights, and helpers over tensors and facts.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use tract_core::internal::*;

use crate::quant::{PackedRef, WeightSource};

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
