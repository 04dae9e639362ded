//! Branches on what is known: the one that is taken stands in the graph itself, so that its layers are
//! found and its weights quantized. optimum's merged decoders are one `If` on `use_cache_branch`; a scripted
//! `squeeze` is one on a size.

use super::tensor::{float_values, int_values};
use super::validate::{attribute, label};
use crate::error::{Error, Result};
use std::collections::HashSet;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// Branches that are opened.
const MAX_OPENED: usize = 256;
/// Conditions that sizes may decide: for each a graph is built.
const MAX_BUILT: usize = 32;
/// Nodes in a row that are followed to a condition's constants.
const MAX_STEPS: usize = 16;

/// Puts the branch taken in the place of every `If` whose condition constants or, as `decided` finds, the sizes of
/// the inputs decide. Inputs that nothing reads then are no inputs any more.
///
/// # Errors
/// A branch whose outputs are not the node's (bad input).
pub(super) fn take_known_branches(
    graph: &mut GraphProto,
    mut decided: impl FnMut(GraphProto) -> Option<bool>,
) -> Result<()> {
    let (mut opened, mut built) = (0, 0);
    let mut open: HashSet<String> = HashSet::new();
    while opened < MAX_OPENED {
        let by_constants =
            graph.node.iter().enumerate().find_map(|(at, n)| Some((at, condition(graph, n)?)));
        let known = by_constants.or_else(|| {
            for (at, node) in graph.node.iter().enumerate().filter(|(_, n)| n.op_type == "If") {
                let Some(name) = node.input.first().filter(|name| !open.contains(*name)) else {
                    continue;
                };
                if built == MAX_BUILT {
                    break;
                }
                let Some(part) = up_to(graph, name) else { continue };
                built += 1;
                if let Some(value) = decided(part) {
                    return Some((at, value));
                }
                open.insert(name.clone());
            }
            None
        });
        let Some((at, condition)) = known else { break };
        take(graph, at, condition)?;
        opened += 1;
    }
    if opened > 0 {
        let mut read = HashSet::new();
        reads(graph, &mut read);
        graph.input.retain(|i| read.contains(&i.name));
    }
    Ok(())
}

/// The graph with one branch in the place of its node.
fn take(graph: &mut GraphProto, at: usize, condition: bool) -> Result<()> {
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
    Ok(())
}

/// Whether a branch is left in a graph or in one within it.
pub(super) fn branches(graph: &GraphProto) -> bool {
    graph.node.iter().any(is_branch)
}

fn is_branch(node: &NodeProto) -> bool {
    let mut within = node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs));
    node.op_type == "If" || within.any(branches)
}

/// What gives the value `name`, as a graph of its own. `None` where a branch is left in it: of values that may have
/// two shapes tract takes one.
fn up_to(graph: &GraphProto, name: &str) -> Option<GraphProto> {
    let mut needed: HashSet<String> = HashSet::from([name.into()]);
    let mut kept: Vec<&NodeProto> = vec![];
    for node in graph.node.iter().rev() {
        if node.output.iter().any(|o| needed.contains(o)) {
            if is_branch(node) {
                return None;
            }
            node_reads(node, &mut needed);
            kept.push(node);
        }
    }
    Some(GraphProto {
        name: graph.name.clone(),
        node: kept.into_iter().rev().cloned().collect(),
        input: graph.input.iter().filter(|i| needed.contains(&i.name)).cloned().collect(),
        initializer: graph
            .initializer
            .iter()
            .filter(|t| needed.contains(&t.name))
            .cloned()
            .collect(),
        output: vec![ValueInfoProto { name: name.into(), ..ValueInfoProto::default() }],
        ..GraphProto::default()
    })
}

/// The value of an `If`'s condition, where constants of this graph decide it.
fn condition(graph: &GraphProto, node: &NodeProto) -> Option<bool> {
    if node.op_type != "If" {
        return None;
    }
    number(graph, node.input.first()?, MAX_STEPS).map(|value| value != 0.0)
}

/// A value of one element that constants alone decide: a constant, one that is brought into another form, or
/// several that are compared.
fn number(graph: &GraphProto, name: &str, steps: usize) -> Option<f64> {
    let steps = steps.checked_sub(1)?;
    let stated = |t: &TensorProto| match (int_values(t), float_values(t)) {
        (Some(v), _) if v.len() == 1 => Some(v[0] as f64),
        (None, Some(v)) if v.len() == 1 => Some(f64::from(v[0])),
        _ => None,
    };
    if let Some(constant) = graph.initializer.iter().find(|t| t.name == name) {
        return stated(constant);
    }
    let node = graph.node.iter().find(|n| n.output.first().is_some_and(|o| o == name))?;
    let input = |at: usize| number(graph, node.input.get(at)?, steps);
    let truth = |value: bool| f64::from(u8::from(value));
    match node.op_type.as_str() {
        "Constant" => stated(attribute(node, "value")?.t.as_ref()?),
        "Identity" | "Squeeze" | "Unsqueeze" | "Reshape" => input(0),
        "Cast" => {
            let to = attribute(node, "to")?.i as i32;
            let value = input(0)?;
            match to {
                _ if to == DataType::Bool as i32 => Some(truth(value != 0.0)),
                _ if to == DataType::Int64 as i32 || to == DataType::Int32 as i32 => {
                    Some(value.trunc())
                }
                _ if to == DataType::Float as i32 || to == DataType::Double as i32 => Some(value),
                _ => None,
            }
        }
        "Equal" => Some(truth(input(0)? == input(1)?)),
        "Greater" => Some(truth(input(0)? > input(1)?)),
        "GreaterOrEqual" => Some(truth(input(0)? >= input(1)?)),
        "Less" => Some(truth(input(0)? < input(1)?)),
        "LessOrEqual" => Some(truth(input(0)? <= input(1)?)),
        "And" => Some(truth(input(0)? != 0.0 && input(1)? != 0.0)),
        "Or" => Some(truth(input(0)? != 0.0 || input(1)? != 0.0)),
        "Not" => Some(truth(input(0)? == 0.0)),
        _ => None,
    }
}

/// All names that a graph's nodes read, those of graphs within too, and its outputs.
fn reads(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(graph.output.iter().map(|o| o.name.clone()));
    graph.node.iter().for_each(|node| node_reads(node, names));
}

fn node_reads(node: &NodeProto, names: &mut HashSet<String>) {
    names.extend(node.input.iter().cloned());
    node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).for_each(|g| reads(g, names));
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::pb::AttributeProto;

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
            take_known_branches(&mut graph, |_| None).unwrap();
            let ops: Vec<&str> = graph.node.iter().map(|n| n.op_type.as_str()).collect();
            assert_eq!(ops, [op, "Identity", "Relu"]);
            assert_eq!(graph.input.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), [input]);
        }
        let mut free = merged(1);
        free.initializer.clear();
        take_known_branches(&mut free, |_| None).unwrap();
        assert_eq!((free.node.len(), free.input.len()), (2, 2));
        let mut short = merged(1);
        short.node[0].output.push("more".into());
        assert!(
            take_known_branches(&mut short, |_| None).unwrap_err().message().contains("outputs")
        );
    }

    #[test]
    fn constants_that_are_compared_decide_a_branch() {
        let constant = |name: &str, value: i64| TensorProto {
            name: name.into(),
            data_type: DataType::Int64 as i32,
            raw_data: value.to_le_bytes().to_vec(),
            ..TensorProto::default()
        };
        for (rate, op) in [(16000, "Neg"), (8000, "Abs")] {
            let mut graph = merged(1);
            graph.initializer = vec![constant("sr", rate), constant("wanted", 16000)];
            let mut equal = node("Equal", "sr", "same");
            equal.input.push("wanted".into());
            graph.node.splice(0..0, [equal, node("Identity", "same", "use_cache")]);
            take_known_branches(&mut graph, |_| None).unwrap();
            assert!(graph.node.iter().any(|n| n.op_type == op), "{rate}");
            assert!(graph.node.iter().all(|n| n.op_type != "If"));
        }
        // An input decides.
        let mut graph = merged(1);
        graph.initializer = vec![constant("wanted", 16000)];
        let mut equal = node("Equal", "sr", "use_cache");
        equal.input.push("wanted".into());
        graph.node.insert(0, equal);
        take_known_branches(&mut graph, |_| None).unwrap();
        assert!(graph.node.iter().any(|n| n.op_type == "If"));
    }

    #[test]
    fn sizes_decide_what_is_built_up_to_the_condition() {
        let mut graph = merged(1);
        graph.initializer.clear();
        let mut read = node("Less", "sizes", "use_cache");
        read.input.push("limit".into());
        graph.node.splice(0..0, [node("Neg", "x", "unread"), node("Shape", "x", "sizes"), read]);
        let mut asked = vec![];
        take_known_branches(&mut graph, |part| {
            let ops: Vec<&str> = part.node.iter().map(|n| n.op_type.as_str()).collect();
            asked.push(ops.join(" "));
            let output: Vec<&str> = part.output.iter().map(|o| o.name.as_str()).collect();
            assert_eq!((part.input.len(), &output[..]), (1, &["use_cache"][..]));
            Some(false)
        })
        .unwrap();
        assert_eq!(asked, ["Shape Less"]);
        assert!(graph.node.iter().any(|n| n.op_type == "Abs"));
        assert!(graph.node.iter().all(|n| n.op_type != "If"));
    }
}
