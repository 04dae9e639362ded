//! What is checked of an ONNX file before tract sees it. tract-onnx 0.23.9 panics, hangs or
//! accepts in silence many of these (measured: RELIABILITY §1.4 of the design notes).

#![warn(clippy::arithmetic_side_effects)]

use super::operators::MAX_OPSET;
use super::tensor::{MAX_RANK, check_tensor, int_values, load_external};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as TypeValue;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto};

const MAX_NODES: usize = 32_768;
const MAX_INITIALIZERS: usize = 100_000;
/// Inputs or outputs of one node or graph.
const MAX_ENDS: usize = 4096;
const MAX_GRAPH_DEPTH: usize = 8;
const MAX_DIM: i64 = 1 << 31;
const MAX_NAME: usize = 4096;
/// tract's parser of dimension names recurses: 20,000 nested parentheses overflow its stack.
const MAX_DIM_NAME: usize = 256;
/// Larger kernels, strides and pads than this don't occur; pads of 2^40 hang tract.
const MAX_GEOMETRY: i64 = 1 << 16;
/// Places of a window: tract holds numbers for each.
const MAX_WINDOW: i64 = 1 << 21;
/// Constants that one node makes of a constant shape, in elements.
const MAX_MADE: i64 = 1 << 28;

/// Checks counts, names, sizes, cycles and duplicate outputs; loads external data.
pub(super) fn validate(model: &mut ModelProto, model_dir: &Path) -> Result<()> {
    let opset = model.opset_import.iter().find(|o| matches!(o.domain.as_str(), "" | "ai.onnx"));
    match opset.map(|o| o.version) {
        None => return Err(Error::bad_input("the file does not state its operator set")),
        Some(v) if !(1..=MAX_OPSET).contains(&v) => {
            return Err(Error::unsupported(format!(
                "the file uses operator set {v}, known are 1 to {MAX_OPSET}"
            )));
        }
        Some(_) => {}
    }
    let graph = model.graph.as_mut().ok_or_else(|| Error::bad_input("the file holds no graph"))?;
    load_all_external(graph, model_dir, 0)?;
    drop_long_dims(graph);
    let graph = &*graph;
    if graph.output.is_empty() {
        return Err(Error::bad_input("the graph has no output"));
    }
    check_graph(graph, &HashSet::new())
}

/// The legacy exporter names a computed dimension by its whole formula. Nothing needs the names of
/// dimensions that the graph computes.
fn drop_long_dims(graph: &mut GraphProto) {
    for info in graph.output.iter_mut().chain(&mut graph.value_info) {
        let Some(TypeValue::TensorType(tensor)) =
            info.r#type.as_mut().and_then(|t| t.value.as_mut())
        else {
            continue;
        };
        for dim in tensor.shape.iter_mut().flat_map(|s| &mut s.dim) {
            if matches!(&dim.value, Some(Dim::DimParam(name)) if name.len() > MAX_DIM_NAME) {
                dim.value = None;
            }
        }
    }
    for inner in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        inner.g.iter_mut().chain(&mut inner.graphs).for_each(drop_long_dims);
    }
}

fn load_all_external(graph: &mut GraphProto, dir: &Path, depth: usize) -> Result<()> {
    if depth > MAX_GRAPH_DEPTH {
        return Err(Error::bad_input("sub-graphs are nested too deeply"));
    }
    for tensor in &mut graph.initializer {
        load_external(tensor, dir)?;
    }
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        if let Some(tensor) = &mut attribute.t {
            load_external(tensor, dir)?;
        }
        for tensor in &mut attribute.tensors {
            load_external(tensor, dir)?;
        }
        for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            load_all_external(inner, dir, depth.saturating_add(1))?;
        }
    }
    Ok(())
}

fn check_graph(graph: &GraphProto, outer: &HashSet<&str>) -> Result<()> {
    cap("nodes", graph.node.len(), MAX_NODES)?;
    cap("initializers", graph.initializer.len(), MAX_INITIALIZERS)?;
    cap("outputs", graph.output.len(), MAX_ENDS)?;
    for node in &graph.node {
        cap("inputs of a node", node.input.len(), MAX_ENDS)?;
        cap("outputs of a node", node.output.len(), MAX_ENDS)?;
    }
    if !graph.sparse_initializer.is_empty() {
        return Err(Error::unsupported("the graph has sparse initializers"));
    }
    let mut defined: HashSet<&str> = HashSet::new();
    for tensor in &graph.initializer {
        check_name("initializer", &tensor.name)?;
        check_tensor(tensor)?;
        if !defined.insert(&tensor.name) {
            return Err(Error::bad_input(format!("two initializers are named '{}'", tensor.name)));
        }
    }
    let mut inputs = HashSet::new();
    for info in &graph.input {
        check_info(info)?;
        if !inputs.insert(info.name.as_str()) {
            return Err(Error::bad_input(format!("two inputs are named '{}'", info.name)));
        }
        defined.insert(&info.name);
    }
    for info in graph.output.iter().chain(&graph.value_info) {
        check_info(info)?;
    }
    for node in &graph.node {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            check_name("output", output)?;
            if !defined.insert(output) {
                return Err(Error::bad_input(format!(
                    "{} writes '{output}', which something else writes too",
                    label(node)
                )));
            }
        }
    }
    let mut visible = outer.clone();
    visible.extend(&defined);
    for node in &graph.node {
        for input in node.input.iter().filter(|i| !i.is_empty()) {
            if !visible.contains(input.as_str()) {
                return Err(Error::bad_input(format!(
                    "{} reads '{input}', which nothing writes",
                    label(node)
                )));
            }
        }
        check_node(node).map_err(|e| e.at(label(node)))?;
        for attribute in &node.attribute {
            for tensor in attribute.t.iter().chain(&attribute.tensors) {
                check_tensor(tensor).map_err(|e| e.at(label(node)))?;
            }
            for inner in attribute.g.iter().chain(&attribute.graphs) {
                check_graph(inner, &visible)?;
            }
        }
    }
    for info in &graph.output {
        if !visible.contains(info.name.as_str()) {
            return Err(Error::bad_input(format!("output '{}' is written by nothing", info.name)));
        }
    }
    check_cycles(graph)?;
    check_made_constants(graph)
}

/// How messages name a node: operation, name, first output.
pub(super) fn label(node: &NodeProto) -> String {
    let output = node.output.first().map(String::as_str).unwrap_or("");
    if node.name.is_empty() {
        format!("{} node writing '{output}'", node.op_type)
    } else {
        format!("{} node '{}'", node.op_type, node.name)
    }
}

fn cap(what: &str, count: usize, max: usize) -> Result<()> {
    if count > max {
        return Err(Error::bad_input(format!("{count} {what}, at most {max} are read")));
    }
    Ok(())
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(Error::bad_input(format!("an {what}'s name has {} bytes", name.len())));
    }
    Ok(())
}

fn check_info(info: &ValueInfoProto) -> Result<()> {
    check_name("input", &info.name)?;
    let Some(TypeValue::TensorType(tensor)) = info.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return Ok(());
    };
    let Some(shape) = &tensor.shape else { return Ok(()) };
    cap("dimensions in one shape", shape.dim.len(), MAX_RANK)
        .map_err(|e| e.at(format!("'{}'", info.name)))?;
    for dim in &shape.dim {
        match &dim.value {
            // -1 is what older exporters write for "any".
            Some(Dim::DimValue(v)) if *v > MAX_DIM || *v < -1 => {
                return Err(Error::bad_input(format!("'{}' has a dimension {v}", info.name)));
            }
            Some(Dim::DimParam(p)) if p.len() > MAX_DIM_NAME => {
                return Err(Error::bad_input(format!(
                    "'{}' has a dimension whose name is {} bytes long",
                    info.name,
                    p.len()
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Domains whose operations tract or this crate knows.
const DOMAINS: [&str; 4] = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft"];

/// Attributes that are read here or by `targets`, and the type each must have. Files of the first
/// ONNX version state no type (0).
const ATTRIBUTE_TYPES: [(&str, AttributeType); 10] = [
    ("strides", AttributeType::Ints),
    ("dilations", AttributeType::Ints),
    ("kernel_shape", AttributeType::Ints),
    ("pads", AttributeType::Ints),
    ("perm", AttributeType::Ints),
    ("group", AttributeType::Int),
    ("axis", AttributeType::Int),
    ("transA", AttributeType::Int),
    ("transB", AttributeType::Int),
    ("auto_pad", AttributeType::String),
];

fn check_node(node: &NodeProto) -> Result<()> {
    if !DOMAINS.contains(&node.domain.as_str()) {
        return Err(Error::unsupported(format!(
            "operations of the domain '{}' are not known",
            node.domain
        )));
    }
    for (name, expected) in ATTRIBUTE_TYPES {
        if let Some(a) = attribute(node, name)
            && a.r#type != 0
            && a.r#type != expected as i32
        {
            return Err(Error::bad_input(format!(
                "attribute {name} should be of type {}, found type {}",
                expected.as_str_name(),
                a.r#type
            )));
        }
    }
    let ints = |name: &str| attribute(node, name).map(|a| a.ints.as_slice()).unwrap_or(&[]);
    let range = |name: &str, low: i64| -> Result<()> {
        cap(name, ints(name).len(), 2 * MAX_RANK)?;
        match ints(name).iter().find(|v| !(low..=MAX_GEOMETRY).contains(v)) {
            Some(v) => Err(Error::bad_input(format!("{name} holds {v}"))),
            None => Ok(()),
        }
    };
    let windowed = matches!(
        node.op_type.as_str(),
        "Conv"
            | "ConvTranspose"
            | "ConvInteger"
            | "QLinearConv"
            | "MaxPool"
            | "AveragePool"
            | "LpPool"
            | "QLinearAveragePool"
            | "DeformConv"
    );
    if windowed {
        range("strides", 1)?;
        range("dilations", 1)?;
        range("kernel_shape", 1)?;
        let places = ints("kernel_shape").iter().fold(1, |all: i64, n| all.saturating_mul(*n));
        if places > MAX_WINDOW {
            return Err(Error::bad_input(format!("a window has {places} places")));
        }
        range("pads", 0)?;
        range("output_padding", 0)?;
        if let Some(group) = attribute(node, "group")
            && !(1..=1 << 20).contains(&group.i)
        {
            return Err(Error::bad_input(format!("group is {}", group.i)));
        }
    }
    if let Some(axis) = attribute(node, "axis")
        && axis.i.unsigned_abs() > MAX_RANK as u64
    {
        return Err(Error::bad_input(format!("axis is {}", axis.i)));
    }
    for name in ["axes", "perm"] {
        let values = ints(name);
        cap(name, values.len(), MAX_RANK)?;
        if let Some(v) = values.iter().find(|v| v.unsigned_abs() > MAX_RANK as u64) {
            return Err(Error::bad_input(format!("{name} holds {v}")));
        }
    }
    if node.op_type == "Transpose" && !ints("perm").is_empty() {
        let mut sorted = ints("perm").to_vec();
        sorted.sort_unstable();
        if sorted.iter().enumerate().any(|(i, &v)| v != i as i64) {
            return Err(Error::bad_input(format!("perm {:?} is no permutation", ints("perm"))));
        }
    }
    Ok(())
}

/// A node's attribute.
pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}

fn check_cycles(graph: &GraphProto) -> Result<()> {
    let writers: HashMap<&str, usize> = graph
        .node
        .iter()
        .enumerate()
        .flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i)))
        .collect();
    let precursors: Vec<Vec<usize>> = graph
        .node
        .iter()
        .map(|n| n.input.iter().filter_map(|i| writers.get(i.as_str()).copied()).collect())
        .collect();
    let mut readers = vec![Vec::new(); graph.node.len()];
    let mut waiting: Vec<usize> = precursors.iter().map(Vec::len).collect();
    for (node, before) in precursors.iter().enumerate() {
        for &b in before {
            readers[b].push(node);
        }
    }
    let mut ready: Vec<usize> = (0..waiting.len()).filter(|&n| waiting[n] == 0).collect();
    let mut done = 0;
    while let Some(node) = ready.pop() {
        done = usize::saturating_add(done, 1);
        for &reader in &readers[node] {
            waiting[reader] = waiting[reader].saturating_sub(1);
            if waiting[reader] == 0 {
                ready.push(reader);
            }
        }
    }
    match (0..waiting.len()).find(|&n| waiting[n] > 0) {
        Some(node) if done < waiting.len() => Err(Error::bad_input(format!(
            "{} is on a cycle of the graph",
            label(&graph.node[node])
        ))),
        _ => Ok(()),
    }
}

/// Nodes that make a tensor as large as a constant tells them to.
fn check_made_constants(graph: &GraphProto) -> Result<()> {
    let mut constants: HashMap<&str, Vec<i64>> =
        graph.initializer.iter().filter_map(|t| Some((t.name.as_str(), int_values(t)?))).collect();
    for node in graph.node.iter().filter(|n| n.op_type == "Constant") {
        let tensor = attribute(node, "value").and_then(|a| a.t.as_ref());
        if let (Some(values), Some(output)) = (tensor.and_then(int_values), node.output.first()) {
            constants.insert(output, values);
        }
    }
    for node in &graph.node {
        let ints = |slot: usize| node.input.get(slot).and_then(|n| constants.get(n.as_str()));
        let refuse = |why: String| Err(Error::bad_input(why).at(label(node)));
        match node.op_type.as_str() {
            "ConstantOfShape" | "Tile" | "Expand" => {
                let slot = usize::from(node.op_type != "ConstantOfShape");
                let Some(shape) = ints(slot) else { continue };
                let negative = shape.iter().any(|&d| d < 0);
                let volume = shape.iter().try_fold(1i64, |n, &d| n.checked_mul(d.max(1)));
                if negative && node.op_type != "Expand" || volume.is_none_or(|v| v > MAX_MADE) {
                    return refuse(format!("makes a tensor by the shape {shape:?}"));
                }
            }
            "Range" => {
                let scalar = |slot| ints(slot).and_then(|v| v.first().copied());
                if scalar(2) == Some(0) {
                    return refuse("counts in steps of 0".into());
                }
                if let (Some(start), Some(limit), Some(step)) = (scalar(0), scalar(1), scalar(2)) {
                    let wide = (limit as i128).saturating_sub(start as i128);
                    let count = wide.checked_div(step as i128).unwrap_or(0);
                    if count > MAX_MADE as i128 {
                        return refuse(format!("counts {count} values"));
                    }
                }
            }
            "Pad" => {
                if let Some(pads) = ints(1)
                    && pads.iter().any(|p| p.unsigned_abs() > MAX_GEOMETRY as u64)
                {
                    return refuse(format!("pads by {pads:?}"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
