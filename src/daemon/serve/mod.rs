//! The serving side: HTTP on a Unix socket and, if configured, on a loopback port.

mod answer;
mod api;
mod app;
mod ask;
mod busy;
mod completion;
mod connection;
mod guard;
mod hooks;
mod in_process;
mod instant;
mod integrity;
mod kept;
mod learned;
mod line;
mod listen;
mod log;
mod look;
mod metrics;
#[cfg(feature = "mqtt")]
mod mqtt;
mod names;
mod openapi;
mod pool;
mod problem;
mod recent;
mod roster;
mod rows;
mod run;
mod served;
mod waiting;
mod who;
mod writer;
mod written;
mod wyoming;

pub use in_process::{InProcess, hook_queue, recent_answers, tokens};
#[cfg(feature = "mqtt")]
pub use mqtt::Topics;
pub use run::{Overrides, Source, check, run};
pub use wyoming::events;
