//! Tests of the `offshoot` program: every verb, every exit code, files from strangers.

mod bad_input;
mod bench;
mod cli;
mod doctor;
mod hostile;
mod support;
