//! From text, constants and weights to a typed graph.

use std::collections::HashMap;
use std::sync::Arc;

use tract_core::internal::{TDim, Tensor, TractError, TractResult, TypedModel, TypedOp};
use tract_core::ops::array::{DynSlice, Slice};
use tract_core::ops::cast::Cast;
use tract_core::ops::logic::IfThenElse;
use tract_core::ops::scan::Scan;
use tract_nnef::ast::{Identifier, ProtoModel};
use tract_nnef::internal::{Registry, Resource};

use super::guard::check_document;
use super::ops::WeightResource;
use super::parse::parse;
use super::{REGISTRY, WEIGHTS, framework, standard};
use crate::caught::caught;
use crate::error::{Error, Result};
use crate::graph::weights::FrozenWeights;

/// Most brackets and signs in an extension's value: tract's parser of assertions recurses at each.
const MAX_NESTING: usize = 64;

/// Builds the graph that [`super::write_graph`] wrote. Its inputs are named `x0`, `x1`, .. and its
/// outputs `y0`, `y1`, .. in the order of the original's.
///
/// # Errors
/// Text that is damaged, names a constant or weight that is not there or of another shape, or uses
/// an op that is not known: with the node's name where there is one.
pub fn read_graph(
    text: &str,
    constants: impl IntoIterator<Item = (String, Arc<Tensor>)>,
    weights: &FrozenWeights,
) -> Result<TypedModel> {
    let proto = proto_model(text, constants, weights)?;
    let common = standard::common(text).map_err(|e| translation(&e))?;
    let model = match translated(&proto, common) {
        Ok(model) => model,
        Err(_) => translated(&proto, tract_nnef::ops::tract_nnef())?,
    };
    let model = settled(model).map_err(|e| translation(&e))?;
    let names: Vec<&str> = model.inputs.iter().map(|i| model.nodes[i.node].name.as_str()).collect();
    let stated: Vec<&str> = proto.doc.graph_def.parameters.iter().map(|p| p.0.as_str()).collect();
    if names != stated {
        return Err(Error::bad_input(format!(
            "graph text states inputs {stated:?} and defines {names:?}"
        )));
    }
    Ok(model)
}

pub(super) fn proto_model(
    text: &str,
    constants: impl IntoIterator<Item = (String, Arc<Tensor>)>,
    weights: &FrozenWeights,
) -> Result<ProtoModel> {
    let doc = parse(text)?;
    check_document(&doc)?;
    for (id, value) in &doc.extension {
        let known = match id.0.as_str() {
            "tract_registry" => ["tract_core", REGISTRY].contains(&value.trim()),
            "tract_symbol" | "tract_assert" => true,
            _ => false,
        };
        if !known {
            return Err(Error::bad_input(format!(
                "graph text asks for unknown extension '{} {}'",
                id.0,
                short(value.trim())
            )));
        }
        if value.matches(['(', '-']).count() > MAX_NESTING {
            return Err(Error::bad_input(format!(
                "more than {MAX_NESTING} brackets and signs in '{} {}'",
                id.0,
                short(value.trim())
            )));
        }
    }
    let tensors = constants.into_iter().map(|(name, t)| (Identifier(name), t)).collect();
    let weights: Arc<dyn Resource> = Arc::new(WeightResource(weights.clone()));
    let resources = HashMap::from([(WEIGHTS.to_string(), weights)]);
    Ok(ProtoModel { doc, tensors, quantization: None, resources })
}

pub(super) fn translated(proto: &ProtoModel, standard: Registry) -> Result<TypedModel> {
    unpanicked(|| {
        let before = standard::before(&standard);
        let mut nnef = framework(standard, vec![]);
        // The last is asked first.
        nnef.registries.push(before);
        let translated = nnef.translate(proto, TypedModel::default());
        translated.map_err(|(_, e)| translation(&e))
    })?
}

/// The model, bodies included, without what tract's reader adds to each graph: casts of both sides of
/// a binary operator, mostly to the type that they have; slices whose bounds are values where they are
/// constants; loops that go on where another run ended.
fn settled(mut model: TypedModel) -> TractResult<TypedModel> {
    for node in &mut model.nodes {
        if let Some(op) = node.op_as_mut::<Scan>() {
            op.reset_every_turn = true;
            op.body = settled(std::mem::take(&mut op.body))?;
        } else if let Some(op) = node.op_as_mut::<IfThenElse>() {
            op.then_body = settled(std::mem::take(&mut op.then_body))?;
            op.else_body = settled(std::mem::take(&mut op.else_body))?;
        }
    }
    with_constant_bounds(&mut model)?;
    without_idle_casts(&mut model)?;
    model.compact()?;
    Ok(model)
}

/// A `DynSlice` that has constant bounds becomes a `Slice`.
fn with_constant_bounds(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let node = &model.nodes[id];
        let (Some(slice), &[x, start, end]) = (node.op_as::<DynSlice>(), &node.inputs[..]) else {
            continue;
        };
        let bound = |outlet| -> TractResult<Option<TDim>> {
            let Some(value) = &model.outlet_fact(outlet)?.konst else { return Ok(None) };
            Ok(Some(value.cast_to::<TDim>()?.try_as_plain_ram()?.to_scalar::<TDim>()?.clone()))
        };
        let (Some(first), Some(last)) = (bound(start)?, bound(end)?) else { continue };
        let op = Slice::new(slice.axis, first, last);
        let facts = op.output_facts(&[model.outlet_fact(x)?])?;
        for outlet in [start, end] {
            let successors = &mut model.nodes[outlet.node].outputs[outlet.slot].successors;
            successors.retain(|s| s.node != id);
        }
        let node = &mut model.nodes[id];
        node.op = Box::new(op);
        node.inputs.truncate(1);
        node.outputs[0].fact = facts[0].clone();
    }
    Ok(())
}

fn without_idle_casts(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let node = &model.nodes[id];
        let Some(cast) = node.op_as::<Cast>() else { continue };
        let from = node.inputs[0];
        let idle = model.outlet_fact(from)?.datum_type == cast.to;
        if !idle || model.outputs.iter().any(|o| o.node == id) {
            continue;
        }
        let readers = std::mem::take(&mut model.nodes[id].outputs[0].successors);
        for reader in &readers {
            model.nodes[reader.node].inputs[reader.slot] = from;
        }
        let successors = &mut model.nodes[from.node].outputs[from.slot].successors;
        successors.retain(|s| s.node != id);
        successors.extend(readers);
    }
    Ok(())
}

/// tract's translator panics on some damaged texts.
fn unpanicked<T>(f: impl FnOnce() -> T) -> Result<T> {
    caught(|text| Error::bad_input(format!("graph text can't be read: {}", short(text))), f)
}

fn short(text: &str) -> String {
    const MAX: usize = 300;
    match text.char_indices().nth(MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_string(),
    }
}

/// Node and reason out of tract's chain of contexts.
fn translation(error: &TractError) -> Error {
    let node = error.chain().filter_map(|c| {
        let text = c.to_string();
        let name = text.strip_prefix("Plugging in assignement for ")?;
        Some(name.trim_matches('"').to_string())
    });
    let reason = short(&error.root_cause().to_string());
    match node.last() {
        Some(node) => Error::bad_input(format!("graph node '{node}': {reason}")),
        None => Error::bad_input(format!("graph text: {reason}")),
    }
}
