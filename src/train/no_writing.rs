//! A program without tokenizers writes no texts.

use super::data::Label;
use crate::adapter::Bound;
use crate::error::{Error, Result};
use crate::runtime::{Engine, Named};
use crate::shape::Array;
use std::sync::Arc;

/// There is none.
pub(crate) enum Writing {}

impl Writing {
    pub fn new(_: &Engine, _: Option<usize>) -> Result<Writing> {
        Err(Error::unsupported("a program without the feature 'text' writes no texts"))
    }

    pub fn spell(&self, _: &Label) -> Result<Label> {
        match *self {}
    }

    pub fn ids(&self, _: &[&Label], _: usize) -> Result<(String, Array)> {
        match *self {}
    }

    pub fn output(&self, _: &Named, _: &Label, _: Option<&Arc<Bound>>) -> Result<Vec<f32>> {
        match *self {}
    }

    #[cfg(feature = "daemon")]
    pub fn answer(
        &self,
        _: Named,
        _: Option<&Arc<Bound>>,
        _: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<f32>> {
        match *self {}
    }
}
