//! Quotients that are rounded to whole numbers, whose last place decides over a whole step.

use crate::import::validate::attribute;
use std::collections::HashSet;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto};

/// Marks divisions of floats that are rounded next, for which a product with the reciprocal isn't enough.
pub(super) fn exact(graph: &mut GraphProto) {
    let is = |n: &NodeProto, ops: &[&str]| n.domain.is_empty() && ops.contains(&n.op_type.as_str());
    let to = |n: &NodeProto| attribute(n, "to").map(|a| a.i);
    let float = Some(DataType::Float as i64);
    let mut rounded = HashSet::new();
    let mut cast = HashSet::new();
    let mut floats: HashSet<&str> = graph
        .initializer
        .iter()
        .filter(|t| t.data_type == DataType::Float as i32)
        .map(|t| t.name.as_str())
        .collect();
    for node in &graph.node {
        let (first, last) = (node.input.first(), node.output.first());
        match () {
            () if is(node, &["Floor", "Ceil", "Round"]) => rounded.extend(first.cloned()),
            () if is(node, &["Cast"]) && to(node) != float => cast.extend(first.cloned()),
            () if is(node, &["Cast"]) => floats.extend(last.map(String::as_str)),
            () => {}
        }
    }
    let mut marked = HashSet::new();
    for (at, node) in graph.node.iter().enumerate() {
        // Before operator set 7 attributes say how it broadcasts.
        if !is(node, &["Div"]) || !node.attribute.is_empty() {
            continue;
        }
        let Some(output) = node.output.first() else { continue };
        // Integers are divided and cast as well, where shapes are computed.
        let of_floats = node.input.iter().any(|i| floats.contains(i.as_str()));
        if rounded.contains(output) || (cast.contains(output) && of_floats) {
            marked.insert(at);
        }
    }
    for at in marked {
        if let Some(node) = graph.node.get_mut(at) {
            node.op_type = "OffshootQuotient".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::rewritten::int_attribute;
    use tract_onnx::pb::TensorProto;

    fn node(op_type: &str, inputs: [&str; 2], output: &str) -> NodeProto {
        let given = inputs.iter().filter(|i| !i.is_empty());
        NodeProto {
            op_type: op_type.into(),
            input: given.map(|i| i.to_string()).collect(),
            output: vec![output.into()],
            ..NodeProto::default()
        }
    }

    fn marked(nodes: &[NodeProto]) -> Vec<String> {
        let scale = TensorProto {
            name: "scale".into(),
            data_type: DataType::Float as i32,
            ..TensorProto::default()
        };
        let mut graph =
            GraphProto { node: nodes.to_vec(), initializer: vec![scale], ..GraphProto::default() };
        exact(&mut graph);
        let of = |n: &&NodeProto| n.op_type == "OffshootQuotient";
        graph.node.iter().filter(of).map(|n| n.output[0].clone()).collect()
    }

    #[test]
    fn divisions_of_floats_that_are_rounded_next() {
        let cast = |to: DataType, input, output| NodeProto {
            attribute: vec![int_attribute("to", to as i64)],
            ..node("Cast", [input, ""], output)
        };
        let nodes = [
            node("Div", ["x", "y"], "floored"),
            node("Floor", ["floored", ""], "steps"),
            node("Div", ["x", "scale"], "of a constant"),
            cast(DataType::Int64, "of a constant", "whole"),
            cast(DataType::Float, "size", "float size"),
            node("Div", ["float size", "y"], "of a cast"),
            cast(DataType::Int32, "of a cast", "half"),
            node("Div", ["size", "two"], "perhaps of integers"),
            cast(DataType::Int32, "perhaps of integers", "half"),
            node("Div", ["x", "scale"], "not rounded"),
        ];
        assert_eq!(marked(&nodes), ["floored", "of a constant", "of a cast"]);
    }
}
