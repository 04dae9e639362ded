//! Functions that a file defines itself, put in the place of the nodes that call them.

use crate::error::{Error, Result};
use prost::Message;
use std::collections::HashMap;
use tract_onnx::pb::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto};

/// Functions that call functions, at most so deep.
const MAX_DEPTH: usize = 16;
/// Nodes that all calls together may make.
const MAX_MADE: usize = 100_000;

/// Functions by domain and name, with the values of attributes that a call may leave out.
type Functions = HashMap<(String, String), (FunctionProto, Vec<AttributeProto>)>;

/// The part of ModelProto that tract's description lacks: FunctionProto.attribute_proto (field 11).
#[derive(Clone, PartialEq, Message)]
struct Defaults {
    #[prost(message, repeated, tag = "25")]
    functions: Vec<FunctionDefaults>,
}

#[derive(Clone, PartialEq, Message)]
struct FunctionDefaults {
    #[prost(message, repeated, tag = "11")]
    attribute_proto: Vec<AttributeProto>,
}

/// Replaces every call of one of the file's own functions by the function's nodes.
///
/// # Errors
/// Functions that call themselves or are nested too deeply, that make too many nodes, or that were
/// written for another operator set than the file.
pub(in crate::import) fn inline(model: &mut ModelProto, bytes: &[u8]) -> Result<()> {
    if model.functions.is_empty() {
        return Ok(());
    }
    let defaults = Defaults::decode(bytes)
        .map_err(|e| Error::bad_input(format!("not an ONNX file: {e}")))?
        .functions;
    let version = |domain: &str| {
        let mut sets = model.opset_import.iter();
        sets.find(|o| o.domain == domain).map(|o| o.version)
    };
    let default = version("").or(version("ai.onnx"));
    let mut functions = Functions::new();
    for (function, defaults) in std::mem::take(&mut model.functions).into_iter().zip(defaults) {
        let (domain, name) = (
            function.domain.clone().unwrap_or_default(),
            function.name.clone().unwrap_or_default(),
        );
        let own = function.opset_import.iter().find(|o| o.domain.is_empty()).map(|o| o.version);
        if own.is_some() && own != default {
            return Err(Error::unsupported(format!(
                "function '{name}' is written for operator set {}, the file for {}",
                own.unwrap_or_default(),
                default.unwrap_or_default()
            )));
        }
        let key = (domain, name.clone());
        if functions.insert(key, (function, defaults.attribute_proto)).is_some() {
            return Err(Error::bad_input(format!("two functions are named '{name}'")));
        }
    }
    let mut inliner = Inliner { functions, made: 0, calls: 0 };
    match &mut model.graph {
        Some(graph) => inliner.graph(graph, 0),
        None => Ok(()),
    }
}

struct Inliner {
    functions: Functions,
    made: usize,
    calls: usize,
}

impl Inliner {
    fn graph(&mut self, graph: &mut GraphProto, depth: usize) -> Result<()> {
        let nodes = std::mem::take(&mut graph.node);
        for node in nodes {
            self.node(node, depth, &mut graph.node)?;
        }
        Ok(())
    }

    fn node(&mut self, mut node: NodeProto, depth: usize, into: &mut Vec<NodeProto>) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::bad_input(format!(
                "functions and sub-graphs are nested more than {MAX_DEPTH} deep"
            )));
        }
        for inner in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
            self.graph(inner, depth + 1)?;
        }
        let key = (node.domain.clone(), node.op_type.clone());
        let Some((function, defaults)) = self.functions.get(&key).cloned() else {
            into.push(node);
            return Ok(());
        };
        self.calls += 1;
        self.made += function.node.len();
        if self.made > MAX_MADE || self.calls > MAX_MADE {
            return Err(Error::bad_input(format!(
                "the file's functions make more than {MAX_MADE} nodes"
            )));
        }
        let missing = |a: &AttributeProto| node.attribute.iter().all(|given| given.name != a.name);
        let left_out: Vec<AttributeProto> = defaults.into_iter().filter(missing).collect();
        node.attribute.extend(left_out);
        let call = if node.name.is_empty() { node.op_type.as_str() } else { node.name.as_str() };
        let mut names = Names { prefix: format!("{call}.{}/", self.calls), known: HashMap::new() };
        for (i, formal) in function.input.iter().enumerate() {
            let actual = node.input.get(i).cloned().unwrap_or_default();
            names.known.insert(formal.clone(), actual);
        }
        for (formal, actual) in function.output.iter().zip(&node.output) {
            if actual.is_empty() {
                continue;
            }
            // An output that is an input too is passed on by a node of its own, below.
            if !function.input.contains(formal) {
                names.known.insert(formal.clone(), actual.clone());
            }
        }
        for inner in &function.node {
            let mut inner = inner.clone();
            names.rename(&mut inner);
            take_attributes(&mut inner, &node);
            self.node(inner, depth + 1, into)?;
        }
        for (formal, actual) in function.output.iter().zip(&node.output) {
            if !actual.is_empty() && function.input.contains(formal) {
                let from = names.known.get(formal).cloned().unwrap_or_default();
                into.push(NodeProto {
                    input: vec![from],
                    output: vec![actual.clone()],
                    op_type: "Identity".into(),
                    ..NodeProto::default()
                });
            }
        }
        Ok(())
    }
}

/// What a function's names are outside of it.
struct Names {
    prefix: String,
    known: HashMap<String, String>,
}

impl Names {
    fn outside(&mut self, name: &str) -> String {
        if name.is_empty() {
            return String::new();
        }
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        let outside = format!("{}{name}", self.prefix);
        self.known.insert(name.into(), outside.clone());
        outside
    }

    /// Renames all that a node reads and writes, sub-graphs included.
    fn rename(&mut self, node: &mut NodeProto) {
        if !node.name.is_empty() {
            node.name = format!("{}{}", self.prefix, node.name);
        }
        for name in node.input.iter_mut().chain(&mut node.output) {
            *name = self.outside(name);
        }
        for graph in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
            for info in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info)
            {
                info.name = self.outside(&info.name);
            }
            for tensor in &mut graph.initializer {
                tensor.name = self.outside(&tensor.name);
            }
            for node in &mut graph.node {
                self.rename(node);
            }
        }
    }
}

/// Attributes that refer to the function's get the values of its call, or are left out.
fn take_attributes(node: &mut NodeProto, call: &NodeProto) {
    node.attribute.retain_mut(|attribute| {
        if attribute.ref_attr_name.is_empty() {
            return true;
        }
        match call.attribute.iter().find(|a| a.name == attribute.ref_attr_name) {
            Some(given) => {
                let name = std::mem::take(&mut attribute.name);
                *attribute = given.clone();
                attribute.name = name;
                true
            }
            None => false,
        }
    });
    for graph in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
        for node in &mut graph.node {
            take_attributes(node, call);
        }
    }
}
