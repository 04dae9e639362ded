//! Texts that the base's decoder writes behind what its encoder gave.

use crate::adapter::Bound;
use crate::error::Result;
use crate::runtime::{Engine, Named, Prediction, Stop};
use crate::train::Writing;
use std::sync::{Arc, Mutex, PoisonError};

/// The decoder of a base, read when it is first asked.
pub struct Writer {
    engine: Engine,
    writing: Mutex<Option<Arc<Writing>>>,
}

impl Writer {
    /// Of the engine's base; its runs take their memory of the engine's.
    pub fn new(engine: Engine) -> Writer {
        Writer { engine, writing: Mutex::default() }
    }

    /// What the decoder writes of the encoder's outputs, as a prediction; until `stop` says so.
    pub fn write(
        &self,
        encoded: Named,
        adapter: Option<&Arc<Bound>>,
        stop: &Stop,
    ) -> Result<Prediction> {
        let text = self.writing()?.answer(encoded, adapter, &mut || !stop())?;
        Ok(Prediction { logits: text, labels: [].into(), likeness: None })
    }

    fn writing(&self) -> Result<Arc<Writing>> {
        let mut slot = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writing) = &*slot {
            return Ok(writing.clone());
        }
        let writing = Arc::new(Writing::new(&self.engine, None)?);
        *slot = Some(writing.clone());
        Ok(writing)
    }
}
