//! The graph section of a base: tract's NNEF text with our ops registered.

mod control;
mod guard;
mod ops;
mod parse;
mod read;
mod repair;
mod standard;
#[cfg(test)]
mod tests;
mod write;

use tract_nnef::internal::{FragmentDef, Nnef, Registry};

pub use read::read_graph;
#[cfg(test)]
use write::GraphText;
pub use write::write_graph;

/// The name under which our ops are registered.
const REGISTRY: &str = "offshoot";
/// The key of the weight table among a document's resources.
const WEIGHTS: &str = "offshoot_weights";

/// tract's NNEF with this registry of the standard operators, tract's own and ours; every constant
/// is kept out of the text. Only writing needs the standard library's fragments.
fn framework(standard: Registry, stdlib: Vec<FragmentDef>) -> Nnef {
    let mut registry = Registry::new(REGISTRY);
    ops::register(&mut registry);
    control::register(&mut registry);
    // Field by field: the default parses tract's standard library twice over.
    Nnef {
        stdlib,
        registries: vec![standard, tract_nnef::ops::tract_core(), registry],
        resource_loaders: vec![],
        allow_extended_identifier_syntax: false,
        extern_all_constants: true,
    }
}
