//! What one run of a gradient graph works on.

use super::knowledge::Kept;
use super::trainer::Answers;
use crate::pack::Role;
use crate::runtime::{Binding, Engine, Named};
use std::borrow::Cow;
use tract_core::internal::{TValue, TVec};

/// A micro-batch, and what its features should stay near to.
pub(super) struct Work<'a> {
    pub fed: Fed<'a>,
    pub answers: Cow<'a, Answers>,
    pub kept: Option<Kept>,
}

/// What a micro-batch's graph is fed with.
pub(super) enum Fed<'a> {
    /// The base's inputs.
    Inputs(Cow<'a, Named>),
    /// What crosses from below the first trained layer.
    Above(Above),
}

/// Tensors that cross from below, and what a loss reads of the inputs themselves.
pub(super) struct Above {
    pub binding: Binding,
    pub tensors: TVec<TValue>,
    pub mask: Option<Vec<bool>>,
}

/// Which tokens of a batch count, where the base has a mask for them.
pub(super) fn mask(engine: &Engine, inputs: &Named) -> Option<Vec<bool>> {
    engine.given(inputs, Role::Mask).map(crate::runtime::counted)
}
