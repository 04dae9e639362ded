//! Before targets are looked for: functions of the file's own inlined, operators that stand for several
//! written out, and what can't be read right refused by name.

mod dynamic;
mod functions;
mod microsoft;
mod quantized;
mod quotients;

pub(super) use functions::inline;

use super::rewritten::float_tensor;
use super::validate::attribute;
use crate::error::Result;
use std::collections::HashMap;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// Writes out what stands for several operators.
pub(super) fn lower(graph: &mut GraphProto) -> Result<()> {
    let shapes = graph.initializer.iter().map(|t| (t.name.clone(), t.dims.clone())).collect();
    let mut added = vec![];
    lower_graph(graph, &shapes, &mut added)?;
    graph.initializer.extend(added);
    Ok(())
}

/// Shapes of constants by name.
type Shapes = HashMap<String, Vec<i64>>;

fn lower_graph(
    graph: &mut GraphProto,
    shapes: &Shapes,
    added: &mut Vec<TensorProto>,
) -> Result<()> {
    dynamic::as_floats(graph);
    quotients::exact(graph);
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        for inner in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
            lower_graph(inner, shapes, added)?;
        }
        let mut emit = Emit { node: &node, shapes, made: vec![], added, count: 0 };
        let done = match node.domain.as_str() {
            "" | "ai.onnx" => quantized::lower(&mut emit),
            "com.microsoft" => quantized::lower(&mut emit) || microsoft::lower(&mut emit),
            _ => false,
        };
        if done {
            nodes.append(&mut emit.made);
        } else {
            if node.domain == "com.microsoft"
                && microsoft::READ_BY_US.contains(&node.op_type.as_str())
            {
                node.op_type = format!("com.microsoft.{}", node.op_type);
            }
            nodes.push(node);
        }
    }
    graph.node = nodes;
    Ok(())
}

/// The nodes that one node becomes.
struct Emit<'a> {
    node: &'a NodeProto,
    shapes: &'a Shapes,
    made: Vec<NodeProto>,
    added: &'a mut Vec<TensorProto>,
    count: usize,
}

impl<'a> Emit<'a> {
    /// The name in an input slot; empty if the node has none there.
    fn input(&self, slot: usize) -> &'a str {
        self.node.input.get(slot).map_or("", String::as_str)
    }

    fn has(&self, slot: usize) -> bool {
        !self.input(slot).is_empty()
    }

    fn output(&self) -> &'a str {
        self.node.output.first().map_or("", String::as_str)
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        attribute(self.node, name).map_or(default, |a| a.i)
    }

    fn float(&self, name: &str, default: f32) -> f32 {
        attribute(self.node, name).map_or(default, |a| a.f)
    }

    fn text(&self, name: &str) -> &'a str {
        attribute(self.node, name).map_or("", |a| std::str::from_utf8(&a.s).unwrap_or("?"))
    }

    /// The node's attributes of these names.
    fn attributes(&self, names: &[&str]) -> Vec<AttributeProto> {
        let wanted = |a: &&AttributeProto| names.contains(&a.name.as_str());
        self.node.attribute.iter().filter(wanted).cloned().collect()
    }

    fn fresh(&mut self) -> String {
        self.count += 1;
        format!("{}.lowered.{}", self.output(), self.count)
    }

    /// A node that writes a value of its own.
    fn op(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.fresh();
        self.write(op_type, inputs, attributes, &output);
        output
    }

    /// A node that writes `output`.
    fn write(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        output: &str,
    ) {
        // The layer keeps the node's name, which adapters know it by.
        let layer = matches!(op_type, "Conv" | "MatMul" | "Gemm" | "LSTM");
        let name = match self.node.name.as_str() {
            "" => String::new(),
            name if layer => name.to_string(),
            name => format!("{name}.{}", self.made.len() + 1),
        };
        let mut input: Vec<String> = inputs.iter().map(|i| i.to_string()).collect();
        while input.last().is_some_and(String::is_empty) {
            input.pop();
        }
        self.made.push(NodeProto {
            input,
            output: vec![output.to_string()],
            name,
            op_type: op_type.to_string(),
            attribute: attributes,
            ..NodeProto::default()
        });
    }

    /// A node that writes the node's own first output.
    fn end(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) {
        let output = self.output();
        self.write(op_type, inputs, attributes, output);
    }

    fn constant(&mut self, shape: &[usize], values: Vec<f32>) -> String {
        let name = self.fresh();
        self.added.push(float_tensor(&name, shape, values));
        name
    }

    fn number(&mut self, value: f32) -> String {
        self.constant(&[], vec![value])
    }

    /// As many ones as the constant of this name has values, in its shape.
    fn ones_like(&mut self, name: &str) -> String {
        match self.shapes.get(name) {
            Some(dims) => {
                let shape: Vec<usize> = dims.iter().map(|d| (*d).max(0) as usize).collect();
                let count = shape.iter().product();
                self.constant(&shape, vec![1.0; count])
            }
            None => self.number(1.0),
        }
    }
}

fn float_attribute(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Float as i32,
        f: value,
        ..AttributeProto::default()
    }
}

fn text_attribute(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::String as i32,
        s: value.as_bytes().to_vec(),
        ..AttributeProto::default()
    }
}
