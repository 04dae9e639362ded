//! The daemon as its clients meet it: answers, bad input, slow clients, switches under load,
//! signals.
#![cfg(feature = "daemon")]

mod api;
mod bad_input;
#[path = "../common/mod.rs"]
mod common;
mod completions;
mod corpus;
mod damaged;
mod dictations;
mod docs;
mod faults;
mod heavy;
mod hooks;
mod instant;
mod kill;
mod life;
mod load;
mod medium;
mod mqtt;
mod page;
mod phases;
mod pictures;
#[path = "../it/support.rs"]
#[allow(dead_code)]
mod place;
#[path = "../preload/mod.rs"]
mod preload;
mod roles;
mod schema;
mod slow;
mod soak;
mod sounds;
mod support;
mod tasks;
mod tcp;
mod transcripts;
mod wyoming;
