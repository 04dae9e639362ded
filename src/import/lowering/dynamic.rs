//! Layers as ONNX Runtime's dynamic quantizer leaves them: a product of integers, a sum with whole numbers
//! perhaps, a cast, a multiplication with both scales. They become the layer over floats that they were,
//! so that it works in its own units: an adapter of the float model fits, and learns as there.

use crate::import::rewritten::int_attribute;
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto};

/// What was found around a product of integers.
struct Layer {
    /// The product's place among the nodes.
    product: usize,
    /// The input's scale and the weight's.
    scales: [String; 2],
    /// What is added before the cast, and the product of the scales.
    bias: Option<(String, String)>,
    output: String,
    /// Nodes that fall away.
    gone: Vec<usize>,
}

/// Writes such layers as DequantizeLinear and MatMul or Conv.
pub(super) fn as_floats(graph: &mut GraphProto) {
    let found: HashMap<usize, Layer> =
        layers(graph).into_iter().map(|layer| (layer.product, layer)).collect();
    if found.is_empty() {
        return;
    }
    let gone: HashSet<usize> = found.values().flat_map(|l| l.gone.iter().copied()).collect();
    let mut inputs = HashSet::new();
    let mut nodes = Vec::with_capacity(graph.node.len());
    for (at, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        match found.get(&at) {
            Some(layer) => write(&node, layer, &mut inputs, &mut nodes),
            None if gone.contains(&at) => {}
            None => nodes.push(node),
        }
    }
    graph.node = nodes;
}

fn layers(graph: &GraphProto) -> Vec<Layer> {
    let mut writers: HashMap<&str, usize> = HashMap::new();
    let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, node) in graph.node.iter().enumerate() {
        writers.extend(node.output.iter().map(|o| (o.as_str(), at)));
        for input in &node.input {
            readers.entry(input).or_default().push(at);
        }
        // What a branch reads of the outer graph stays there.
        for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            for input in inner.node.iter().flat_map(|n| &n.input) {
                readers.entry(input).or_default().extend([at, at]);
            }
        }
    }
    for output in &graph.output {
        readers.entry(&output.name).or_default().extend([usize::MAX, usize::MAX]);
    }
    let constants: HashMap<&str, &[i64]> =
        graph.initializer.iter().map(|t| (t.name.as_str(), t.dims.as_slice())).collect();
    let node = |at: usize| graph.node.get(at);
    let only_reader = |name: &str| match readers.get(name).map(Vec::as_slice) {
        Some(&[at]) => node(at).map(|n| (at, n)),
        _ => None,
    };
    let of = |product: usize| -> Option<Layer> {
        let n = node(product)?;
        let input = |slot: usize| n.input.get(slot).map_or("", String::as_str);
        let range = node(*writers.get(input(0))?)?;
        let ranged = range.op_type == "DynamicQuantizeLinear"
            && range.output.first().is_some_and(|o| o == input(0))
            && range.output.get(2).is_some_and(|o| o == input(2));
        let weight = *constants.get(input(1))?;
        if !ranged {
            return None;
        }
        let (mut at, mut next) = only_reader(n.output.first()?)?;
        let mut gone = vec![];
        let mut bias = None;
        if next.op_type == "Add" {
            let other = next.input.iter().find(|i| Some(*i) != n.output.first())?;
            bias = Some(other.clone());
            gone.push(at);
            (at, next) = only_reader(next.output.first()?)?;
        }
        let float = next.attribute.iter().any(|a| a.name == "to" && a.i == DataType::Float as i64);
        if next.op_type != "Cast" || !float {
            return None;
        }
        gone.push(at);
        let cast = next.output.first()?;
        let (at, last) = only_reader(cast)?;
        gone.push(at);
        let factor = last.input.iter().find(|i| *i != cast).filter(|_| last.op_type == "Mul")?;
        let both = node(*writers.get(factor.as_str())?).filter(|n| n.op_type == "Mul")?;
        let scale = range.output.get(1)?;
        let of_weight = both.input.iter().find(|i| *i != scale)?;
        let dims = *constants.get(of_weight.as_str())?;
        let count = |dims: &[i64]| dims.iter().product::<i64>();
        let zero = input(3);
        let zero_fits =
            zero.is_empty() || constants.get(zero).is_some_and(|z| count(z) == count(dims));
        let axis = if n.op_type == "MatMulInteger" { weight.last() } else { weight.first() };
        // A scale for each output of a convolution is not shaped as its weight's zero points are.
        let shaped = count(dims) == 1
            || n.op_type == "MatMulInteger" && dims.len() == 1 && Some(&dims[0]) == axis;
        if !both.input.contains(scale) || both.input.len() != 2 || !zero_fits || !shaped {
            return None;
        }
        Some(Layer {
            product,
            scales: [scale.clone(), of_weight.clone()],
            bias: bias.map(|b| (b, factor.clone())),
            output: last.output.first()?.clone(),
            gone,
        })
    };
    let is_product = |n: &NodeProto| {
        n.domain.is_empty() && matches!(n.op_type.as_str(), "MatMulInteger" | "ConvInteger")
    };
    (0..graph.node.len()).filter(|at| is_product(&graph.node[*at])).filter_map(of).collect()
}

/// The nodes of `layer`; those of an input of several layers once.
fn write(
    node: &NodeProto,
    layer: &Layer,
    inputs: &mut HashSet<String>,
    nodes: &mut Vec<NodeProto>,
) {
    let input = |slot: usize| node.input.get(slot).cloned().unwrap_or_default();
    let product = node.op_type == "MatMulInteger";
    let mut add = |op_type: &str, mut input: Vec<String>, output: &str, attributes| {
        while input.last().is_some_and(String::is_empty) {
            input.pop();
        }
        // The layer keeps the node's name, which adapters know it by.
        let layer = matches!(op_type, "Conv" | "MatMul");
        nodes.push(NodeProto {
            input,
            output: vec![output.to_string()],
            name: if layer { node.name.clone() } else { format!("{output}.made") },
            op_type: op_type.to_string(),
            attribute: attributes,
            ..NodeProto::default()
        });
    };
    let [scale, of_weight] = layer.scales.clone();
    let x = format!("{}.floats", input(0));
    if inputs.insert(x.clone()) {
        add("DequantizeLinear", vec![input(0), scale, input(2)], &x, vec![]);
    }
    let w = format!("{}.weight", layer.output);
    let axis = int_attribute("axis", if product { -1 } else { 0 });
    add("DequantizeLinear", vec![input(1), of_weight, input(3)], &w, vec![axis]);
    let kind = if product { "MatMul" } else { "Conv" };
    let Some((bias, factor)) = &layer.bias else {
        add(kind, vec![x, w], &layer.output, node.attribute.clone());
        return;
    };
    let [y, whole, moved] = ["product", "whole", "bias"].map(|n| format!("{}.{n}", layer.output));
    add(kind, vec![x, w], &y, node.attribute.clone());
    let to_float = int_attribute("to", DataType::Float as i64);
    add("Cast", vec![bias.clone()], &whole, vec![to_float]);
    add("Mul", vec![whole, factor.clone()], &moved, vec![]);
    add("Add", vec![y, moved], &layer.output, vec![]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tract_onnx::pb::TensorProto;

    fn node(op_type: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        NodeProto {
            op_type: op_type.into(),
            name: format!("node of {}", outputs[0]),
            input: inputs.iter().map(|i| i.to_string()).collect(),
            output: outputs.iter().map(|o| o.to_string()).collect(),
            ..NodeProto::default()
        }
    }

    fn graph(more: Option<NodeProto>) -> GraphProto {
        let mut cast = node("Cast", &["sum"], &["floats"]);
        cast.attribute = vec![int_attribute("to", DataType::Float as i64)];
        let mut graph = GraphProto {
            node: vec![
                node("DynamicQuantizeLinear", &["x"], &["q", "s", "z"]),
                node("Mul", &["s", "ws"], &["both"]),
                node("MatMulInteger", &["q", "w", "z", "wz"], &["product"]),
                node("Add", &["product", "bias"], &["sum"]),
                cast,
                node("Mul", &["floats", "both"], &["y"]),
            ],
            ..GraphProto::default()
        };
        graph.node.extend(more);
        for (name, dims) in [("w", vec![4, 3]), ("ws", vec![3]), ("wz", vec![3]), ("bias", vec![3])]
        {
            graph.initializer.push(TensorProto { name: name.into(), dims, ..Default::default() });
        }
        graph
    }

    #[test]
    fn a_layer_works_in_its_own_units() {
        let mut g = graph(None);
        as_floats(&mut g);
        let kinds: Vec<&str> = g.node.iter().map(|n| n.op_type.as_str()).collect();
        let expected = [
            "DynamicQuantizeLinear",
            "Mul",
            "DequantizeLinear",
            "DequantizeLinear",
            "MatMul",
            "Cast",
            "Mul",
            "Add",
        ];
        assert_eq!(kinds, expected);
        assert_eq!(g.node[4].name, "node of product");
        assert_eq!(g.node[7].output, ["y"]);
    }

    #[test]
    fn what_is_read_besides_stays_as_it_is() {
        let mut g = graph(Some(node("Neg", &["product"], &["other"])));
        as_floats(&mut g);
        assert!(g.node.iter().any(|n| n.op_type == "MatMulInteger"));
    }
}
