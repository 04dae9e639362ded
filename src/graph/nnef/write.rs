//! From a typed graph to text and constants.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tract_core::internal::*;
use tract_core::ops::logic::IfThenElse;
use tract_core::ops::scan::Scan;
use tract_nnef::ast::dump::Dumper;
use tract_nnef::ast::{Identifier, LValue};
use tract_nnef::ser::{rewrite_model, to_proto_model};

use super::repair::repair_loops;
use super::{REGISTRY, framework};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::bind::substitute;
use crate::graph::tract_error;

/// The start of the names that symbols have between the model and the text.
const SYMBOL: &str = "offshoot_symbol";

/// The graph section: text whose names are all safe, with the tables back to the model's own names.
#[derive(Clone, Debug)]
pub struct GraphText {
    /// NNEF text. The same graph always gives the same text.
    pub text: String,
    /// Every constant of the graph, sorted by name.
    pub constants: Vec<(String, Arc<Tensor>)>,
    /// Inputs in order: (`x0`, original name).
    pub inputs: Vec<(String, String)>,
    /// Outputs in order: (`y0`, original label, or else the original name of the node).
    pub outputs: Vec<(String, String)>,
    /// Nodes in the order of evaluation: (`n0`, original name). Nodes within loops and conditions
    /// are named after theirs (`n7b3`).
    pub node_names: Vec<(String, String)>,
    /// Free dimensions: (`s0`, original name).
    pub symbols: Vec<(String, String)>,
}

/// Writes a graph as text. Properties stay out of the text, every name is replaced by a safe one.
///
/// # Errors
/// [`ErrorKind::Unsupported`] with the node, where an op, a constant's type or a dimension has no
/// text form.
pub fn write_graph(model: &TypedModel) -> Result<GraphText> {
    let unsupported = |e: &TractError| tract_error(ErrorKind::Unsupported, e);
    let mut model = model.clone();
    model.properties.clear();
    let (mut model, symbols) = unique_symbols(&model).map_err(|e| unsupported(&e))?;
    repair_loops(&mut model).map_err(|e| unsupported(&e))?;
    quiet(|| rewrite_model(&mut model))?;
    let names = rename(&mut model).map_err(|e| unsupported(&e))?;
    let nnef = framework(tract_nnef::ops::tract_nnef(), tract_nnef::framework::stdlib());
    let mut proto =
        quiet(|| to_proto_model(&nnef, &model)).map_err(|e| match unwritable(&model) {
            Some(node) => e.at(format!("node '{}'", names.original(&node))),
            None => e,
        })?;
    if let Some(name) = proto.quantization.as_ref().and_then(|q| q.keys().min()) {
        return Err(Error::unsupported(format!(
            "node '{}' has a quantized tensor type, which the graph section can't hold",
            names.original(&name.0)
        )));
    }
    if !proto.resources.is_empty() {
        return Err(Error::unsupported("graph holds a nested model, which has no text form"));
    }
    // tract's own version properties; the pack format has a version of its own.
    proto.doc.fragments.retain(|f| f.decl.id.0 != "tract_core_properties");
    let version = |name: &Identifier| name.0.starts_with("tract_nnef_");
    proto.tensors.retain(|name, _| !version(name));
    proto.doc.graph_def.body.retain(|a| !matches!(&a.left, LValue::Identifier(id) if version(id)));
    for (name, tensor) in &proto.tensors {
        let dt = tensor.datum_type();
        if !(dt.is_number() || dt == bool::datum_type()) || dt.is_quantized() || !tensor.is_plain()
        {
            return Err(Error::unsupported(format!(
                "constant '{}' has values of type {dt:?}, which the graph section can't hold",
                names.original(&name.0)
            )));
        }
    }
    proto.doc.extension.retain(|(id, _)| id.0 == "tract_registry");
    // tract's writer states only what stands outside of bodies.
    let stated = proto.doc.extension.iter().any(|(_, value)| value.trim() == REGISTRY);
    if !stated && !proto.doc.fragments.is_empty() {
        let registry = Identifier("tract_registry".into());
        proto.doc.extension.push((registry, REGISTRY.into()));
    }
    let mut bytes = vec![];
    Dumper::new(&nnef, &mut bytes).document(&proto.doc).map_err(|e| unsupported(&e))?;
    let text = String::from_utf8(bytes).map_err(|e| Error::failed(format!("graph text: {e}")))?;
    let (text, symbols) = name_symbols(&text, &symbols, &model.symbols);
    let mut constants: Vec<(String, Arc<Tensor>)> =
        proto.tensors.into_iter().map(|(name, tensor)| (name.0, tensor)).collect();
    constants.sort_by(|a, b| a.0.cmp(&b.0));
    let Names { inputs, outputs, nodes } = names;
    Ok(GraphText { text, constants, inputs, outputs, node_names: nodes, symbols })
}

/// tract's writer panics where it has no form for a dimension's expression.
fn quiet<T>(f: impl FnOnce() -> TractResult<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| tract_error(ErrorKind::Unsupported, &e)),
        Err(_) => Err(Error::unsupported("graph has a dimension that can't be written as text")),
    }
}

/// The first node with an expression that tract's writer has no form for.
fn unwritable(model: &TypedModel) -> Option<String> {
    let found = |text: String| {
        ["Ge(", "Eq(", "Broadcast(", "Min(", "Max("].iter().any(|w| text.contains(w))
    };
    let order = model.eval_order().ok()?;
    let node = order.into_iter().map(|id| model.node(id)).find(|n| found(format!("{:?}", n.op)))?;
    Some(node.name.clone())
}

/// Replaces every symbol by one whose name can't be mistaken for anything else in the text, in the
/// same scope: (that name, original). A second call finds the same names.
fn unique_symbols(model: &TypedModel) -> TractResult<(TypedModel, HashMap<String, String>)> {
    ensure!(
        model.symbols.all_scenarios().into_iter().next().is_none(),
        "the graph has scenarios of dimensions, which have no text form"
    );
    let mut subs = HashMap::new();
    let mut names = HashMap::new();
    for (i, symbol) in model.symbols.all_symbols().into_iter().enumerate() {
        let original = symbol.to_string();
        if original.starts_with(SYMBOL) {
            continue;
        }
        let unique = model.symbols.sym(&format!("{SYMBOL}{i}"));
        names.insert(unique.to_string(), original);
        subs.insert(symbol, unique.to_dim());
    }
    for assertion in model.symbols.all_assertions() {
        // l >= r is known as l - r >= 0; an assertion without that form is a hint, not needed.
        if let Some(positive) = assertion.as_known_positive() {
            let renamed = positive.substitute_all(&subs)?;
            let text = format!("{renamed} >= 0");
            let known = model.symbols.all_assertions().iter().any(|a| a.to_string() == text);
            if renamed != positive && !known {
                model.symbols.add_assertion(text)?;
            }
        }
    }
    Ok((substitute(model, &subs)?, names))
}

/// Names the symbols that the text mentions `s0`, `s1`, .. in the order in which they appear, and
/// declares them: import leaves many behind that nothing mentions.
fn name_symbols(
    text: &str,
    originals: &HashMap<String, String>,
    scope: &SymbolScope,
) -> (String, Vec<(String, String)>) {
    let mut safe: HashMap<String, String> = HashMap::new();
    let mut symbols = vec![];
    for word in words(text) {
        if let Some(original) = originals.get(word)
            && !safe.contains_key(word)
        {
            let name = format!("s{}", symbols.len());
            safe.insert(word.to_string(), name.clone());
            symbols.push((name, original.clone()));
        }
    }
    let rename = |text: &str| -> String {
        words(text).map(|w| safe.get(w).map_or(w, String::as_str)).collect()
    };
    let mut declared = String::new();
    for (name, _) in &symbols {
        declared += &format!("extension tract_symbol {name};\n");
    }
    for assertion in scope.all_assertions() {
        let mentioned = assertion.as_known_positive().map(|p| p.symbols()).unwrap_or_default();
        if !mentioned.is_empty() && mentioned.iter().all(|s| safe.contains_key(&s.to_string())) {
            let assertion = rename(&assertion.to_string());
            declared += &format!("extension tract_assert {assertion};\n");
        }
    }
    let text = rename(text);
    let text = match text.split_once("\n\n") {
        Some((version, rest)) => format!("{version}\n\n{declared}{rest}"),
        None => text,
    };
    (text, symbols)
}

/// The text in pieces: words of letters, digits and underscores, and what lies between them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut rest = text;
    std::iter::from_fn(move || {
        let in_word = is_word(rest.chars().next()?);
        let end = rest.find(|c| is_word(c) != in_word).unwrap_or(rest.len());
        let (piece, tail) = rest.split_at(end);
        rest = tail;
        Some(piece)
    })
}

struct Names {
    inputs: Vec<(String, String)>,
    outputs: Vec<(String, String)>,
    nodes: Vec<(String, String)>,
}

impl Names {
    /// The original of a node's safe name, or of a name made from it by the writer.
    fn original(&self, safe: &str) -> String {
        let base = safe.split('_').next().unwrap_or(safe);
        let mut all = self.inputs.iter().chain(&self.nodes);
        all.find(|(s, _)| s == base).map_or_else(|| safe.to_string(), |(_, o)| o.clone())
    }
}

/// Gives every node, input and output a safe name.
fn rename(model: &mut TypedModel) -> TractResult<Names> {
    let outputs: Vec<OutletId> = model.output_outlets()?.to_vec();
    let mut names = Names { inputs: vec![], outputs: vec![], nodes: vec![] };
    for (i, outlet) in outputs.iter().enumerate() {
        let original = match model.outlet_label(*outlet) {
            Some(label) => label.to_string(),
            None => model.node(outlet.node).name.clone(),
        };
        names.outputs.push((format!("y{i}"), original));
    }
    for (i, input) in model.inputs.clone().iter().enumerate() {
        let safe = format!("x{i}");
        let name = &mut model.node_mut(input.node).name;
        names.inputs.push((safe.clone(), std::mem::replace(name, safe)));
    }
    rename_nodes(model, "n", &mut names.nodes)?;
    for (i, outlet) in outputs.iter().enumerate() {
        model.set_outlet_label(*outlet, format!("y{i}"))?;
    }
    Ok(names)
}

/// Renames all nodes but the inputs, in the order of evaluation, bodies included.
fn rename_nodes(
    model: &mut TypedModel,
    prefix: &str,
    names: &mut Vec<(String, String)>,
) -> TractResult<()> {
    let inputs: Vec<usize> = model.inputs.iter().map(|i| i.node).collect();
    let order = model.eval_order()?;
    for (i, id) in order.into_iter().filter(|id| !inputs.contains(id)).enumerate() {
        let safe = format!("{prefix}{i}");
        let node = model.node_mut(id);
        names.push((safe.clone(), std::mem::replace(&mut node.name, safe.clone())));
        if let Some(op) = node.op_as::<Scan>() {
            let mut op = op.clone();
            rename_body(&mut op.body, &format!("{safe}b"), names)?;
            node.op = Box::new(op);
        } else if let Some(op) = node.op_as::<IfThenElse>() {
            let mut op = op.clone();
            rename_body(&mut op.then_body, &format!("{safe}t"), names)?;
            rename_body(&mut op.else_body, &format!("{safe}e"), names)?;
            node.op = Box::new(op);
        }
    }
    Ok(())
}

fn rename_body(
    body: &mut TypedModel,
    prefix: &str,
    names: &mut Vec<(String, String)>,
) -> TractResult<()> {
    for (i, input) in body.inputs.clone().iter().enumerate() {
        body.node_mut(input.node).name = format!("{prefix}x{i}");
    }
    rename_nodes(body, prefix, names)?;
    for (i, outlet) in body.outputs.clone().iter().enumerate() {
        body.set_outlet_label(*outlet, format!("{prefix}y{i}"))?;
    }
    Ok(())
}
