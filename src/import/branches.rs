//! Branches on a constant: the one that is taken stands in the graph itself, so that its layers are
//! found and its weights quantized. optimum's merged decoders are one `If` on `use_cache_branch`.

use super::tensor::int_values;
use super::validate::{attribute, label};
use crate::error::{Error, Result};
use std::collections::HashSet;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

/// Branches within each other that are opened.
const MAX_DEPTH: usize = 16;

/// Puts the branch taken in the place of every `If` whose condition is an initializer. Inputs that
/// nothing reads then are no inputs any more.
///
/// # Errors
/// A branch whose outputs are not the node's (bad input).
pub(super) fn take_constant_branches(graph: &mut GraphProto) -> Result<()> {
    let mut taken = false;
    for _ in 0..MAX_DEPTH {
        let known =
            graph.node.iter().enumerate().find_map(|(at, n)| Some((at, condition(graph, n)?)));
        let Some((at, condition)) = known else { break };
        let node = graph.node.remove(at);
        let name = if condition { "then_branch" } else { "else_branch" };
        let branch = attribute(&node, name).and_then(|a| a.g.clone()).unwrap_or_default();
        if branch.output.len() != node.output.len() {
            return Err(Error::bad_input(format!(
                "{} has {} outputs, its {name} gives {}",
                label(&node),
                node.output.len(),
                branch.output.len()
            )));
        }
        let outputs = branch.output.iter().zip(&node.output).map(|(from, to)| NodeProto {
            op_type: "Identity".into(),
            name: format!("{}.{to}", node.name),
            input: vec![from.name.clone()],
            output: vec![to.clone()],
            ..NodeProto::default()
        });
        let inner: Vec<NodeProto> = branch.node.into_iter().chain(outputs).collect();
        graph.node.splice(at..at, inner);
        graph.initializer.extend(branch.initializer);
        taken = true;
    }
    if taken {
        let mut read = HashSet::new();
        reads(graph, &mut read);
        graph.input.retain(|i| read.contains(&i.name));
    }
    Ok(())
}

/// The value of an `If`'s condition, where it is a constant of this graph.
fn condition(graph: &GraphProto, node: &NodeProto) -> Option<bool> {
    if node.op_type != "If" {
        return None;
    }
    let name = node.input.first()?;
    let stated = |t: &TensorProto| int_values(t)?.first().map(|v| *v != 0);
    graph.initializer.iter().find(|t| t.name == *name).and_then(stated)
}

/// All names that a graph's nodes read, those of graphs within too, and its outputs.
fn reads(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(graph.output.iter().map(|o| o.name.clone()));
    for node in &graph.node {
        names.extend(node.input.iter().cloned());
        node.attribute
            .iter()
            .flat_map(|a| a.g.iter().chain(&a.graphs))
            .for_each(|g| reads(g, names));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::pb::tensor_proto::DataType;
    use tract_onnx::pb::{AttributeProto, ValueInfoProto};

    fn value(name: &str) -> ValueInfoProto {
        ValueInfoProto { name: name.into(), ..ValueInfoProto::default() }
    }

    fn node(op: &str, input: &str, output: &str) -> NodeProto {
        NodeProto {
            op_type: op.into(),
            name: output.into(),
            input: vec![input.into()],
            output: vec![output.into()],
            ..NodeProto::default()
        }
    }

    fn branch(op: &str, input: &str, output: &str) -> GraphProto {
        GraphProto {
            node: vec![node(op, input, output)],
            output: vec![value(output)],
            ..GraphProto::default()
        }
    }

    fn merged(on: u8) -> GraphProto {
        let attribute = |name: &str, graph| AttributeProto {
            name: name.into(),
            g: Some(graph),
            ..AttributeProto::default()
        };
        let mut choice = node("If", "use_cache", "y");
        choice.attribute = vec![
            attribute("then_branch", branch("Neg", "past", "a")),
            attribute("else_branch", branch("Abs", "x", "b")),
        ];
        GraphProto {
            node: vec![choice, node("Relu", "y", "z")],
            input: vec![value("x"), value("past")],
            output: vec![value("z")],
            initializer: vec![TensorProto {
                name: "use_cache".into(),
                data_type: DataType::Bool as i32,
                raw_data: vec![on],
                ..TensorProto::default()
            }],
            ..GraphProto::default()
        }
    }

    #[test]
    fn the_branch_taken_is_in_the_graph_and_the_other_is_gone() {
        for (on, op, input) in [(1, "Neg", "past"), (0, "Abs", "x")] {
            let mut graph = merged(on);
            take_constant_branches(&mut graph).unwrap();
            let ops: Vec<&str> = graph.node.iter().map(|n| n.op_type.as_str()).collect();
            assert_eq!(ops, [op, "Identity", "Relu"]);
            assert_eq!(graph.input.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), [input]);
        }
        let mut free = merged(1);
        free.initializer.clear();
        take_constant_branches(&mut free).unwrap();
        assert_eq!((free.node.len(), free.input.len()), (2, 2));
        let mut short = merged(1);
        short.node[0].output.push("more".into());
        assert!(take_constant_branches(&mut short).unwrap_err().message().contains("outputs"));
    }
}
