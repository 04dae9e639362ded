//! The engine as its users see it: real and tiny networks packed, run, adapted and switched, and
//! the rules that the sources hold to.

#[path = "../common/mod.rs"]
mod common;
mod fused;
mod fused_convolutions;
mod generate;
mod golden;
mod graphs;
mod kinds;
mod layers;
mod merged;
mod names;
mod peft;
mod shipped;
mod support;
mod switch;
mod threads;
mod tiny;
