//! `[limits]`: what clients may ask for at once.

use crate::host::Root;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What requests get where the system does not say what is free.
const UNKNOWN_MEMORY: u64 = 256 << 20;
/// Fewest bytes that requests get: a run of a small base takes 2 MB.
pub(super) const LEAST_MEMORY: u64 = 8 << 20;
/// `[limits]`. Times in seconds.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Requests that wait for a worker.
    pub queue: usize,
    /// New tokens of a text that a language model writes.
    pub tokens: usize,
    /// Waiting requests that one run answers.
    pub batch: usize,
    /// Largest body in bytes.
    pub body_bytes: usize,
    /// A request's head, and what comes between two requests of a connection.
    pub header_seconds: f64,
    /// A request's body, and each write of an answer.
    pub body_seconds: f64,
    /// From the end of a request's body to its answer.
    pub request_seconds: f64,
    /// What has begun, at shutdown.
    pub shutdown_seconds: f64,
    /// Adapters kept ready beside the active ones.
    pub adapters: usize,
    /// Bytes that all requests may take at once. 0: half of what is free at the start.
    pub memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 64,
            queue: 64,
            tokens: 512,
            batch: 4,
            body_bytes: 16 << 20,
            header_seconds: 5.0,
            body_seconds: 20.0,
            request_seconds: 30.0,
            shutdown_seconds: 20.0,
            adapters: 8,
            memory_bytes: 0,
        }
    }
}

impl Limits {
    /// [`Limits::memory_bytes`], where it says none half of what is free: of the machine, and of what
    /// the control group of this process may have.
    pub fn memory(&self) -> u64 {
        if self.memory_bytes > 0 {
            return self.memory_bytes;
        }
        let free = crate::host::memory(&Root::system()).free();
        free.map_or(UNKNOWN_MEMORY, |free| (free / 2).max(LEAST_MEMORY))
    }

    /// [`Limits::header_seconds`].
    pub fn header(&self) -> Duration {
        Duration::from_secs_f64(self.header_seconds)
    }

    /// [`Limits::body_seconds`].
    pub fn body(&self) -> Duration {
        Duration::from_secs_f64(self.body_seconds)
    }

    /// [`Limits::request_seconds`].
    pub fn request(&self) -> Duration {
        Duration::from_secs_f64(self.request_seconds)
    }

    /// [`Limits::shutdown_seconds`].
    pub fn shutdown(&self) -> Duration {
        Duration::from_secs_f64(self.shutdown_seconds)
    }
}
