//! Finds the layers that can carry an adapter and rewrites them to this crate's own operations,
//! so that tract never sees (nor copies) their weights.

use super::names::{Scopes, make_unique};
use super::nbits;
use super::recurrent::{self, Recurrent};
use super::rewritten::{
    ConvAttributes, float_tensor, int_attribute, ints_attribute, op, rewritten,
};
use super::validate::{attribute, label};
use super::weights::{Constants, MatrixValues, Weight};
use crate::adapter::{Target, TargetKind};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

/// Tables with fewer rows than this are no embeddings worth adapting (token types, positions of
/// a shape computation).
const MIN_EMBEDDING_ROWS: usize = 2;

/// A matrix to be packed: rows = out_features, cols = in_features.
pub struct FrozenMatrix {
    /// The initializer's name.
    pub name: String,
    /// out_features (for an embedding: vocabulary).
    pub rows: usize,
    /// in_features (for an embedding: row length).
    pub cols: usize,
    /// The numbers.
    pub values: MatrixValues,
}

/// What was found.
pub(super) struct Found {
    pub targets: Vec<Target>,
    pub matrices: Vec<FrozenMatrix>,
}

struct Finder<'a> {
    graph: &'a GraphProto,
    constants: Constants<'a>,
    scopes: &'a Scopes,
    /// Nodes that read a value, and values that leave the graph or are read by a sub-graph.
    readers: HashMap<&'a str, Vec<usize>>,
    escaping: HashSet<&'a str>,
    found: Found,
    /// Matrices by initializer and orientation, so that tied layers share one.
    matrix_of: HashMap<(String, Vec<usize>), u32>,
    replaced: HashMap<usize, NodeProto>,
    dropped: HashSet<usize>,
    added: Vec<TensorProto>,
    /// Recurrent layers of each module so far.
    layers: HashMap<String, usize>,
}

/// Finds targets in `graph` and rewrites it. Weights that only targets read are removed from it.
pub(super) fn find_and_rewrite(graph: &mut GraphProto, scopes: &Scopes) -> Result<Found> {
    let mut finder = Finder {
        constants: Constants::new(graph),
        graph,
        scopes,
        readers: HashMap::new(),
        escaping: graph.output.iter().map(|o| o.name.as_str()).collect(),
        found: Found { targets: vec![], matrices: vec![] },
        matrix_of: HashMap::new(),
        replaced: HashMap::new(),
        dropped: HashSet::new(),
        added: vec![],
        layers: HashMap::new(),
    };
    finder.index_readers();
    for (index, node) in graph.node.iter().enumerate() {
        if !finder.dropped.contains(&index) {
            finder.visit(index, node).map_err(|e| e.at(label(node)))?;
        }
    }
    let Finder { mut found, mut replaced, dropped, added, .. } = finder;
    let mut paths: Vec<String> = found.targets.iter().map(|t| t.module_path.clone()).collect();
    make_unique(&mut paths);
    for (target, path) in found.targets.iter_mut().zip(paths) {
        target.module_path = path;
    }
    let nodes = std::mem::take(&mut graph.node);
    graph.node = nodes
        .into_iter()
        .enumerate()
        .filter(|(i, _)| !dropped.contains(i))
        .map(|(i, node)| replaced.remove(&i).unwrap_or(node))
        .collect();
    graph.initializer.extend(added);
    remove_unread(graph);
    Ok(found)
}

impl<'a> Finder<'a> {
    fn index_readers(&mut self) {
        fn captured<'a>(graph: &'a GraphProto, names: &mut HashSet<&'a str>) {
            for node in &graph.node {
                names.extend(node.input.iter().map(String::as_str));
                for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
                    captured(inner, names);
                }
            }
            names.extend(graph.output.iter().map(|o| o.name.as_str()));
        }
        for (index, node) in self.graph.node.iter().enumerate() {
            for input in &node.input {
                self.readers.entry(input).or_default().push(index);
            }
            for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
                captured(inner, &mut self.escaping);
            }
        }
    }

    fn visit(&mut self, index: usize, node: &'a NodeProto) -> Result<()> {
        match (node.op_type.as_str(), node.domain.as_str()) {
            ("MatMul", "" | "ai.onnx") => self.matmul(index, node),
            ("Gemm", "" | "ai.onnx") => self.gemm(index, node),
            ("Conv", "" | "ai.onnx") => self.conv(index, node),
            ("Gather", "" | "ai.onnx") => self.gather(index, node),
            ("MatMulNBits", "com.microsoft") => self.matmul_nbits(index, node),
            ("LSTM" | "GRU" | "RNN", "" | "ai.onnx") => self.recurrent(index, node),
            _ => Ok(()),
        }
    }

    fn matmul(&mut self, index: usize, node: &'a NodeProto) -> Result<()> {
        let [x, w] = node.input.as_slice() else { return Ok(()) };
        let Some(weight) = self.constants.weight(w)? else { return Ok(()) };
        let &[k, n] = weight.shape().as_slice() else { return Ok(()) };
        if k == 0 || n == 0 || self.constants.tensor(x).is_some() {
            return Ok(());
        }
        let bias = self.bias_after(node, n);
        let matrix = self.matrix(&weight, &[1, 0], n, k)?;
        self.linear(index, node, x, matrix, (n, k), TargetKind::Linear, bias)
    }

    fn gemm(&mut self, index: usize, node: &'a NodeProto) -> Result<()> {
        let flag = |name: &str| attribute(node, name).is_some_and(|a| a.i != 0);
        let one = |name: &str| attribute(node, name).is_none_or(|a| a.f == 1.0);
        let (Some(x), Some(w)) = (node.input.first(), node.input.get(1)) else { return Ok(()) };
        if flag("transA") || !one("alpha") || !one("beta") {
            return Ok(());
        }
        let Some(weight) = self.constants.weight(w)? else { return Ok(()) };
        let &[a, b] = weight.shape().as_slice() else { return Ok(()) };
        let (n, k, order) = if flag("transB") { (a, b, [0, 1]) } else { (b, a, [1, 0]) };
        if k == 0 || n == 0 {
            return Ok(());
        }
        let matrix = self.matrix(&weight, &order, n, k)?;
        let bias = node.input.get(2).filter(|c| !c.is_empty());
        let bias = bias.map(|c| (c.as_str(), node.output.first().cloned().unwrap_or_default()));
        self.linear(index, node, x, matrix, (n, k), TargetKind::Linear, bias)
    }

    fn matmul_nbits(&mut self, index: usize, node: &'a NodeProto) -> Result<()> {
        let Some((n, k, values)) = nbits::dequantize(node, &self.constants)? else {
            return Ok(());
        };
        let name = node.input.get(1).cloned().unwrap_or_default();
        let matrix = self.add_matrix((name.clone(), vec![]), name, n, k, values);
        let bias = self.bias_after(node, n);
        let Some(x) = node.input.first() else { return Ok(()) };
        self.linear(index, node, x, matrix, (n, k), TargetKind::Linear, bias)
    }

    fn conv(&mut self, index: usize, node: &'a NodeProto) -> Result<()> {
        let (Some(x), Some(w)) = (node.input.first(), node.input.get(1)) else { return Ok(()) };
        let Some(weight) = self.constants.weight(w)? else { return Ok(()) };
        let shape = weight.shape();
        let (&[out, per_group], kernel) = shape.split_at(2.min(shape.len())) else {
            return Ok(());
        };
        let Some(geometry) = ConvAttributes::of(node, kernel) else { return Ok(()) };
        let stated = attribute(node, "kernel_shape").map(|a| a.ints.as_slice()).unwrap_or(&[]);
        if !stated.is_empty() && !stated.iter().map(|&k| k as usize).eq(kernel.iter().copied()) {
            return Err(Error::bad_input(format!(
                "kernel_shape is {stated:?}, the weight's is {kernel:?}"
            )));
        }
        let group = attribute(node, "group").map_or(1, |a| a.i as usize);
        if shape.contains(&0) {
            return Ok(());
        }
        let bias = node.input.get(2).filter(|b| !b.is_empty()).map(String::as_str);
        // (out, in, kh, kw) → (out, kh, kw, in).
        let channels_last: Vec<usize> =
            std::iter::once(0).chain(2..shape.len()).chain(std::iter::once(1)).collect();
        if group == 1 {
            let cols = shape[1..].iter().product();
            let matrix = self.matrix(&weight, &channels_last, out, cols)?;
            let kernel = geometry.kernel.map(|k| k as u32);
            let kind = TargetKind::Conv { kernel, one_axis: geometry.one_axis };
            let mut new = self.target_node(op::CONV, node, matrix, (out, cols), kind);
            new.input = std::iter::once(x.clone()).chain(bias.map(str::to_string)).collect();
            new.attribute.push(ints_attribute("geometry", geometry.encode()));
            self.replaced.insert(index, new);
        } else if group == out && per_group == 1 {
            let taps: usize = kernel.iter().product();
            let order: Vec<usize> = (2..shape.len()).chain([0, 1]).collect();
            let values = match weight.matrix(&order, taps)? {
                MatrixValues::F32(values) => values,
                // Scales follow the channels, which are the columns here: never one a row.
                MatrixValues::Int8 { ints, scales } => ints
                    .chunks(out)
                    .zip(scales)
                    .flat_map(|(row, s)| row.iter().map(move |&v| v as f32 * s))
                    .collect(),
            };
            check_finite(weight.name, &values)?;
            let name = format!("{w}.offshoot.{index}");
            self.added.push(float_tensor(&name, &[taps, out], values));
            let inputs = [x.clone(), name].into_iter().chain(bias.map(str::to_string)).collect();
            let mut new = rewritten(op::DEPTHWISE, node);
            new.input = inputs;
            new.attribute = vec![ints_attribute("geometry", geometry.encode())];
            self.replaced.insert(index, new);
        }
        Ok(())
    }

    fn gather(&mut self, index: usize, node: &'a NodeProto) -> Result<()> {
        let [table, ids] = node.input.as_slice() else { return Ok(()) };
        if attribute(node, "axis").is_some_and(|a| a.i != 0) {
            return Ok(());
        }
        let Some(weight) = self.constants.weight(table)? else { return Ok(()) };
        let &[rows, cols] = weight.shape().as_slice() else { return Ok(()) };
        if rows < MIN_EMBEDDING_ROWS || cols < 2 || self.constants.tensor(ids).is_some() {
            return Ok(());
        }
        let matrix = self.matrix(&weight, &[0, 1], rows, cols)?;
        // In PEFT's terms an embedding maps the vocabulary (in) to its width (out).
        let features = (cols, rows);
        let mut new =
            self.target_node(op::EMBEDDING, node, matrix, features, TargetKind::Embedding);
        new.input = vec![ids.clone()];
        self.replaced.insert(index, new);
        Ok(())
    }

    /// The matrices of a recurrent layer, one for the input and one for the state in each direction.
    /// Those that are no constants stay inputs of the node.
    fn recurrent(&mut self, index: usize, node: &'a NodeProto) -> Result<()> {
        let Some(layer) = Recurrent::of(node)? else { return Ok(()) };
        let [_, w, r, ..] = node.input.as_slice() else { return Ok(()) };
        let weights = (self.constants.weight(w)?, self.constants.weight(r)?);
        let (Some(w), Some(r)) = weights else { return Ok(()) };
        let rows = layer.reversed.len() * layer.cell.gates() * layer.hidden;
        let stated = [layer.reversed.len(), layer.cell.gates() * layer.hidden];
        let columns = |weight: &Weight| match weight.shape().as_slice() {
            &[directions, gates, columns] if [directions, gates] == stated => Ok(columns),
            shape => Err(Error::bad_input(format!(
                "weight '{}' has the shape {shape:?}, expected {stated:?} and the inputs",
                weight.name
            ))),
        };
        let (inputs, state) = (columns(&w)?, columns(&r)?);
        if inputs == 0 || state != layer.hidden {
            return Err(Error::bad_input(format!("{state} columns for {} states", layer.hidden)));
        }
        let path = self.scopes.module_path(node, &[w.name, r.name]);
        let number = self.layers.entry(path.clone()).or_default();
        let place = *number;
        *number += 1;
        let read = |weight: &Weight| weight.matrix(&[0, 1, 2], rows);
        let (input_values, state_values) = (read(&w)?, read(&r)?);
        let mut products = vec![];
        for direction in 0..layer.reversed.len() {
            for (part, (name, rows)) in layer.frozen(direction, place).into_iter().enumerate() {
                let (weight, values, cols) = match part {
                    0 => (&w, &input_values, inputs),
                    _ => (&r, &state_values, state),
                };
                let values = recurrent::pick(values, cols, &rows);
                match &values {
                    MatrixValues::F32(v) => check_finite(weight.name, v)?,
                    MatrixValues::Int8 { scales, .. } => check_finite(weight.name, scales)?,
                }
                let key = (format!("{}.{direction}.{part}", weight.name), vec![]);
                let name_in_file = weight.name.to_string();
                let matrix = self.add_matrix(key, name_in_file, rows.len(), cols, values);
                products.push((matrix, self.found.targets.len()));
                self.found.targets.push(Target {
                    module_path: format!("{path}.{name}"),
                    node: if node.name.is_empty() { path.clone() } else { node.name.clone() },
                    kind: TargetKind::Linear,
                    weight: matrix,
                    in_features: cols as u32,
                    out_features: rows.len() as u32,
                });
            }
        }
        let mut new = rewritten(op::RECURRENT, node);
        new.input = node.input.clone();
        new.input[1].clear();
        new.input[2].clear();
        new.attribute = node.attribute.clone();
        Recurrent::mark(&mut new, &node.op_type, &products);
        self.replaced.insert(index, new);
        Ok(())
    }

    /// The constant bias that the only reader of `node` adds, and the name of the sum; that
    /// reader is dropped.
    fn bias_after(&mut self, node: &NodeProto, n: usize) -> Option<(&'a str, String)> {
        let output = node.output.first()?.as_str();
        if self.escaping.contains(output) {
            return None;
        }
        let &[reader] = self.readers.get(output)?.as_slice() else { return None };
        let add = &self.graph.node[reader];
        if add.op_type != "Add" || add.input.len() != 2 {
            return None;
        }
        let other = add.input.iter().find(|i| i.as_str() != output)?;
        let bias = self.constants.tensor(other)?;
        let float = DataType::try_from(bias.data_type) == Ok(DataType::Float);
        if bias.dims != [n as i64] || !float {
            return None;
        }
        self.dropped.insert(reader);
        Some((other, add.output.first()?.clone()))
    }

    #[allow(clippy::too_many_arguments)]
    fn linear(
        &mut self,
        index: usize,
        node: &NodeProto,
        x: &str,
        matrix: u32,
        features: (usize, usize),
        kind: TargetKind,
        bias: Option<(&str, String)>,
    ) -> Result<()> {
        let mut new = self.target_node(op::LINEAR, node, matrix, features, kind);
        new.input = vec![x.to_string()];
        if let Some((name, output)) = bias {
            new.input.push(name.to_string());
            new.output = vec![output];
        }
        self.replaced.insert(index, new);
        Ok(())
    }

    fn target_node(
        &mut self,
        op_type: &str,
        node: &NodeProto,
        weight: u32,
        (out_features, in_features): (usize, usize),
        kind: TargetKind,
    ) -> NodeProto {
        let initializers: Vec<&str> = node.input.iter().skip(1).map(String::as_str).collect();
        let embedding: Vec<&str> = node.input.first().map(String::as_str).into_iter().collect();
        let named = if kind == TargetKind::Embedding { &embedding } else { &initializers };
        let target = self.found.targets.len() as i64;
        self.found.targets.push(Target {
            module_path: self.scopes.module_path(node, named),
            node: if node.name.is_empty() {
                node.output.first().cloned().unwrap_or_default()
            } else {
                node.name.clone()
            },
            kind,
            weight,
            in_features: in_features as u32,
            out_features: out_features as u32,
        });
        let mut new = rewritten(op_type, node);
        new.attribute = vec![
            int_attribute("weight", weight as i64),
            int_attribute("target", target),
            int_attribute("in_features", in_features as i64),
            int_attribute("out_features", out_features as i64),
        ];
        new
    }

    fn matrix(
        &mut self,
        weight: &Weight,
        order: &[usize],
        rows: usize,
        cols: usize,
    ) -> Result<u32> {
        let axes: Vec<usize> = order.iter().map(|&o| weight.perm[o]).collect();
        let key = (weight.name.to_string(), axes);
        if let Some(&index) = self.matrix_of.get(&key) {
            return Ok(index);
        }
        let values = weight.matrix(order, rows)?;
        match &values {
            MatrixValues::F32(v) => check_finite(weight.name, v)?,
            MatrixValues::Int8 { scales, .. } => {
                check_finite(weight.name, scales)?;
            }
        }
        Ok(self.add_matrix(key, weight.name.to_string(), rows, cols, values))
    }

    fn add_matrix(
        &mut self,
        key: (String, Vec<usize>),
        name: String,
        rows: usize,
        cols: usize,
        values: MatrixValues,
    ) -> u32 {
        let index = self.found.matrices.len() as u32;
        self.found.matrices.push(FrozenMatrix { name, rows, cols, values });
        self.matrix_of.insert(key, index);
        index
    }
}

fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => {
            Err(Error::bad_input(format!("weight '{name}' holds {} at position {i}", values[i])))
        }
        None => Ok(()),
    }
}

/// Removes nodes and initializers that no output depends on any more.
fn remove_unread(graph: &mut GraphProto) {
    fn reads(node: &NodeProto, names: &mut HashSet<String>) {
        names.extend(node.input.iter().cloned());
        for inner in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            inner.node.iter().for_each(|n| reads(n, names));
            names.extend(inner.output.iter().map(|o| o.name.clone()));
        }
    }
    let writers: HashMap<&str, usize> = graph
        .node
        .iter()
        .enumerate()
        .flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i)))
        .collect();
    let mut read: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let mut kept = HashSet::new();
    let mut waiting: Vec<String> = read.iter().cloned().collect();
    while let Some(name) = waiting.pop() {
        let Some(&index) = writers.get(name.as_str()) else { continue };
        if kept.insert(index) {
            let mut names = HashSet::new();
            reads(&graph.node[index], &mut names);
            for name in names {
                if read.insert(name.clone()) {
                    waiting.push(name);
                }
            }
        }
    }
    let mut index = 0;
    graph.node.retain(|_| {
        index += 1;
        kept.contains(&(index - 1))
    });
    graph.initializer.retain(|t| read.contains(&t.name));
}
