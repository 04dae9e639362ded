//! Tests of the `offshoot` program: every verb, every exit code, files from strangers.

mod audio;
mod bad_input;
mod bench;
mod cli;
#[path = "../common/mod.rs"]
mod common;
mod compare;
mod doctor;
mod faults;
mod generate;
mod harm;
mod hostile;
#[allow(dead_code)]
#[path = "../fuzz/mend.rs"]
mod mend;
#[path = "../preload/mod.rs"]
mod preload;
mod support;
