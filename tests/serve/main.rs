//! The daemon as its clients meet it: answers, bad input, slow clients, switches under load,
//! signals.
#![cfg(feature = "daemon")]

mod api;
mod bad_input;
mod life;
mod load;
#[path = "../it/support.rs"]
#[allow(dead_code)]
mod place;
mod slow;
mod support;
mod tcp;
