//! Layer 6: the daemon. It answers requests, takes samples in, trains when the machine is idle,
//! promotes what is proven, rolls back and forgets.
//!
//! Knows nothing about how operations run.

pub mod learn;

use crate::error::Result;
use crate::runtime::Engine;
use std::time::Duration;

/// What the learner needs of the serving side.
pub trait Serving: Send + Sync {
    /// Requests to the base that wait or run now.
    fn in_flight(&self) -> usize;

    /// How long no request to the base has waited or run.
    fn idle_for(&self) -> Duration;

    /// Serves what the store calls active for `name`; requests in flight keep what they have.
    ///
    /// # Errors
    /// The generation can't be loaded or does not fit the base: the one before is served on.
    fn refresh(&self, name: &str) -> Result<()>;

    /// The engine.
    fn engine(&self) -> &Engine;
}
