//! One graph of a base, with its plans.

use super::convert::constant;
use super::plans::Plans;
use crate::error::{Error, Result};
use crate::graph::{FrozenWeights, read_graph};
use crate::pack::{Base, GraphRecord};
use tract_core::internal::TypedModel;

/// See the module.
pub(super) struct Graph {
    /// Its number in the base; of a graph made of several that of the first.
    pub index: usize,
    /// What is known of one that the base doesn't have as it is.
    pub record: Option<GraphRecord>,
    pub model: TypedModel,
    pub plans: Plans,
}

impl Graph {
    /// Reads it.
    pub fn read(base: &Base, weights: &FrozenWeights, index: usize) -> Result<Graph> {
        let read = || -> Result<TypedModel> {
            let mut constants = vec![];
            for c in base.constants(index)? {
                constants.push((c.name.to_string(), constant(&c)?));
            }
            let graph = read_graph(base.graph(index)?, constants, weights)?;
            let record = base.graph_record(index)?;
            let (ins, outs) = (record.inputs.len(), record.outputs.len());
            if graph.inputs.len() != ins || graph.outputs.len() != outs {
                return Err(Error::bad_input(format!(
                    "the graph has {} inputs and {} outputs, the record names {ins} and {outs}",
                    graph.inputs.len(),
                    graph.outputs.len(),
                )));
            }
            Ok(graph)
        };
        let name = base.graphs().nth(index).unwrap_or_default();
        let place = match base.graphs().count() {
            1 => base.path().display().to_string(),
            _ => format!("{}: graph '{name}'", base.path().display()),
        };
        let model = read().map_err(|e| e.at(place))?;
        Ok(Graph { index, record: None, model, plans: Plans::default() })
    }
}
