//! A base with an active adapter that can be switched while requests are in flight.

use super::engine::{Engine, Named};
use super::head::{Prediction, apply_head};
use crate::adapter::Bound;
use crate::error::{Error, Result};
use crate::pack::Role;
use crate::shape::Input;
use std::sync::{Arc, PoisonError, RwLock};

/// An engine and the adapter it serves now. `run` may be called from many threads at once; each
/// call keeps the adapter that it started with.
pub struct Session {
    engine: Engine,
    active: RwLock<Option<Arc<Bound>>>,
}

impl Session {
    /// A session that serves the base alone.
    pub fn new(engine: Engine) -> Session {
        Session { engine, active: RwLock::new(None) }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Serves `adapter` from now on (`None`: the base alone); gives back the one before. Only a
    /// pointer changes.
    pub fn switch(&self, adapter: Option<Arc<Bound>>) -> Option<Arc<Bound>> {
        let mut active = self.active.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *active, adapter)
    }

    /// The adapter served now.
    pub fn active(&self) -> Option<Arc<Bound>> {
        self.active.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs the base with the active adapter; see [`Engine::run`].
    pub fn run<I: Input>(&self, inputs: &[I]) -> Result<Named> {
        self.engine.run(inputs, self.active().as_ref())
    }

    /// As [`Session::run`], into the memory of earlier outputs; see [`Engine::run_into`].
    pub fn run_into<I: Input>(&self, inputs: &[I], outputs: &mut Named) -> Result<()> {
        self.engine.run_into(inputs, self.active().as_ref(), outputs)
    }

    /// Runs and applies the active adapter's head: one prediction for each row of the batch.
    ///
    /// # Errors
    /// As [`Engine::run`]; a usage error if no adapter with a head is active.
    pub fn predict<I: Input>(&self, inputs: &[I]) -> Result<Vec<Prediction>> {
        let active = self.active();
        let head = active.as_ref().and_then(|b| b.head.as_ref()).ok_or_else(|| {
            Error::usage("no head is active").hint("switch to an adapter that was trained with one")
        })?;
        let outputs = self.engine.run(inputs, active.as_ref())?;
        apply_head(&self.engine, head, self.engine.given(inputs, Role::Mask), &outputs)
    }
}
