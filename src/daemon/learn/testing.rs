//! A serving side that does nothing, for tests.

use crate::daemon::Serving;
use crate::error::Result;
use crate::runtime::Engine;
use std::sync::Mutex;
use std::time::Duration;

/// Idle for an hour; remembers which names were refreshed.
#[derive(Default)]
pub struct Quiet {
    pub engine: Option<Engine>,
    pub refreshed: Mutex<Vec<String>>,
}

impl Serving for Quiet {
    fn in_flight(&self) -> usize {
        0
    }

    fn idle_for(&self) -> Duration {
        Duration::from_secs(3600)
    }

    fn refresh(&self, name: &str) -> Result<()> {
        self.refreshed.lock().unwrap().push(name.into());
        Ok(())
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("a test that needs the engine gives one")
    }
}
