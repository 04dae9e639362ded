//! A program without tokenizers writes no texts.

use super::tasks::Wording;
use crate::adapter::Bound;
use crate::error::{Error, Result};
use crate::runtime::{Engine, Message, Stop};
use serde_json::Value;
use std::sync::Arc;

/// There is none.
pub(crate) enum Completing {}

impl Completing {
    pub fn new(_: &Engine) -> Result<Completing> {
        Err(Error::unsupported("a program without the feature 'text' writes no texts"))
    }

    pub fn prompt(&self, _: &str) -> Result<Vec<u32>> {
        match *self {}
    }

    pub fn conversation(&self, _: &[Message]) -> Result<Vec<u32>> {
        match *self {}
    }

    pub fn bytes(&self, _: &[u32], _: usize) -> u64 {
        match *self {}
    }

    pub fn answer(
        &self,
        _: &[u32],
        _: usize,
        _: &Wording,
        _: Option<&Arc<Bound>>,
        _: &Stop,
        _: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Value> {
        match *self {}
    }
}
