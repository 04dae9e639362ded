//! Layer 6: the daemon. It answers requests, takes samples in, trains when the machine is idle,
//! promotes what is proven, rolls back and forgets.
//!
//! Knows nothing about how operations run.

mod allowed;
mod client;
mod config;
mod hooks;
mod host;
pub mod learn;
mod mqtt;
mod roles;
pub mod serve;
mod tokens;
mod wyoming;

pub use client::Client;
pub use config::{Config, Level, SYSTEM_CONFIG, read_token};
pub use host::Host;
pub use roles::Role;

use crate::error::Result;
use crate::runtime::Engine;
use crate::shape::{Array, Data};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::time::Duration;

/// What the learner needs of the serving side.
pub trait Serving: Send + Sync {
    /// Requests to the base that wait or run now.
    fn in_flight(&self) -> usize;

    /// How long no request to the base has waited or run.
    fn idle_for(&self) -> Duration;

    /// Share of the last minute that the threads which compute answers were busy, 0 to 1; 1 where that is
    /// not measured.
    fn busy(&self) -> f32 {
        1.0
    }

    /// Serves what the store calls active for `name`; requests in flight keep what they have.
    ///
    /// # Errors
    /// The generation can't be loaded or does not fit the base: the one before is served on.
    fn refresh(&self, name: &str) -> Result<()>;

    /// The engine.
    fn engine(&self) -> &Engine;

    /// What is wrong with the base's file, in words, where that is looked at.
    fn damage(&self) -> Option<String> {
        None
    }
}

/// A tensor as requests and answers carry it: `{"shape", "dtype", "data"}`. Values that are not
/// finite become `null`.
pub struct Tensor<'a>(pub &'a Array);

impl Serialize for Tensor<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Tensor", 3)?;
        fields.serialize_field("shape", self.0.shape())?;
        fields.serialize_field("dtype", &self.0.dtype())?;
        match self.0.data() {
            Data::F32(v) => fields.serialize_field("data", v)?,
            Data::I64(v) => fields.serialize_field("data", v)?,
            Data::I32(v) => fields.serialize_field("data", v)?,
            Data::U8(v) => fields.serialize_field("data", v)?,
            Data::Bool(v) => fields.serialize_field("data", v)?,
        }
        fields.end()
    }
}
