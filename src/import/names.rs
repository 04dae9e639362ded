//! Module paths: PEFT's dotted names for the layers of an ONNX file.
//!
//! tract drops the metadata that newer exporters write on nodes (and its protobuf description
//! predates the field), so it is read here from the file's own bytes.

#![warn(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use prost::Message;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::NodeProto;

/// The parts of ModelProto that tract's description lacks: NodeProto.metadata_props (field 9,
/// ONNX IR version 10).
#[derive(Clone, PartialEq, Message)]
struct ModelMetadata {
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphMetadata {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeMetadata {
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(message, repeated, tag = "9")]
    metadata_props: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// Module scopes by the name of a node's first output.
pub(super) struct Scopes(HashMap<String, String>);

impl Scopes {
    /// Reads `pkg.torch.onnx.name_scopes` of every node that has it.
    pub(super) fn read(model_bytes: &[u8]) -> Result<Scopes> {
        let model = ModelMetadata::decode(model_bytes)
            .map_err(|e| Error::bad_input(format!("not an ONNX file: {e}")))?;
        let mut scopes = HashMap::new();
        for node in model.graph.unwrap_or_default().node {
            let Some(output) = node.output.first() else { continue };
            let entry = node.metadata_props.iter().find(|e| e.key == "pkg.torch.onnx.name_scopes");
            if let Some(path) = entry.and_then(|e| innermost_module(&e.value)) {
                scopes.insert(output.clone(), path);
            }
        }
        Ok(Scopes(scopes))
    }

    /// The module path of a node (DESIGN §5): from its metadata, else from its scoped name, else
    /// from its weight's or bias's initializer name, else its own name.
    pub(super) fn module_path(&self, node: &NodeProto, initializers: &[&str]) -> String {
        let from_metadata = node.output.first().and_then(|o| self.0.get(o)).cloned();
        from_metadata
            .or_else(|| from_node_scope(&node.name))
            .or_else(|| from_value_scope(node))
            .or_else(|| initializers.iter().find_map(|n| from_initializer(n)))
            .or_else(|| Some(node.name.clone()).filter(|n| !n.is_empty()))
            .or_else(|| node.output.first().cloned())
            .unwrap_or_default()
    }
}

/// Optimizers drop the names of nodes and keep those of values: `/fc1/MatMul_output_0`.
fn from_value_scope(node: &NodeProto) -> Option<String> {
    let output = node.output.first().filter(|_| node.name.is_empty())?;
    let (scope, slot) = output.rsplit_once("_output_")?;
    slot.parse::<usize>().ok()?;
    from_node_scope(scope)
}

/// `['', 'bert', 'bert.encoder', …, 'bert.encoder.layer.0.attention.self.query', 'linear']`: the
/// last entry is the operation itself, the one before it the innermost module.
fn innermost_module(value: &str) -> Option<String> {
    let inner = value.trim().strip_prefix('[')?.strip_suffix(']')?;
    let entries: Vec<&str> =
        inner.split(',').map(|e| e.trim().trim_matches(|c| c == '\'' || c == '"')).collect();
    let modules = entries.split_last()?.1;
    modules.last().filter(|m| !m.is_empty()).map(|m| m.to_string())
}

/// `/bert/encoder/layer.0/attention/self/query/MatMul` → `bert.encoder.layer.0.attention.self.query`.
fn from_node_scope(name: &str) -> Option<String> {
    let (scope, _operation) = name.strip_prefix('/')?.rsplit_once('/')?;
    (!scope.is_empty()).then(|| scope.replace('/', "."))
}

/// `encoder.layer.0.attention.self.query.weight` → without the last part. Generated names such as
/// `onnx::MatMul_732` and `val_54` say nothing.
fn from_initializer(name: &str) -> Option<String> {
    let stem = ["weight", "bias", "kernel", "w_0", "b_0"]
        .into_iter()
        .find_map(|suffix| name.strip_suffix(suffix)?.strip_suffix(['.', '_', '/']))
        .or_else(|| name.strip_suffix("_weights"))
        .or_else(|| name.strip_suffix("_bias"))?;
    (!stem.is_empty() && !stem.contains("::")).then(|| stem.replace('/', "."))
}

/// Makes each name unique by a numbered suffix, in order.
pub(super) fn make_unique(names: &mut [String]) {
    let mut taken: HashSet<String> = HashSet::new();
    // The next suffix of a name: thousands of equal ones are not counted anew each time.
    let mut next: HashMap<String, usize> = HashMap::new();
    for name in names {
        let mut candidate = name.clone();
        if !taken.insert(candidate.clone()) {
            let number = next.entry(name.clone()).or_insert(1);
            while !taken.insert(candidate.clone()) {
                candidate = format!("{name}_{number}");
                *number = number.saturating_add(1);
            }
        }
        *name = candidate;
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn every_source_of_a_name() {
        let scopes = "['', 'bert', 'bert.encoder.layer.0.attention.self.query', 'linear']";
        assert_eq!(
            innermost_module(scopes).as_deref(),
            Some("bert.encoder.layer.0.attention.self.query")
        );
        assert_eq!(innermost_module("['', 'index']"), None);
        assert_eq!(
            from_node_scope("/bert/encoder/layer.0/output/dense/MatMul").as_deref(),
            Some("bert.encoder.layer.0.output.dense")
        );
        assert_eq!(from_node_scope("node_MatMul_53"), None);
        assert_eq!(from_initializer("conv2d_10.w_0").as_deref(), Some("conv2d_10"));
        assert_eq!(from_initializer("conv2_expand_weights").as_deref(), Some("conv2_expand"));
        assert_eq!(from_initializer("linear.weight").as_deref(), Some("linear"));
        assert_eq!(from_initializer("onnx::MatMul_732"), None);
    }

    #[test]
    fn repeated_names_get_numbers() {
        let mut names = vec!["a".to_string(), "a".into(), "a_1".into(), "a".into()];
        make_unique(&mut names);
        assert_eq!(names, ["a", "a_1", "a_1_1", "a_2"]);
    }
}
