//! What follows a layer value by value: a residual sum, then an activation, then the product with a sibling. The
//! layer takes it over, after the adapter's part, while a stretch of its outputs is in the cache.

use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::math::{Add, Max, Min, Mul};
use tract_core::ops::nn::{
    HardSwish, Silu, gelu_approximate::GeluApproximate, gelu_exact::GeluExact,
};

use super::convolution::FusedConvolution;
use super::{only_reader, with_constant};
use crate::graph::{FrozenLinear, FusedLinear};
use crate::quant::Activation;

/// A layer with what it has taken over so far.
enum Layer {
    Linear(FusedLinear),
    Convolution(FusedConvolution),
}

impl Layer {
    /// The layer that gives `outlet`, where nothing else reads that.
    fn before(model: &TypedModel, outlet: OutletId) -> Option<(&TypedNode, Layer)> {
        only_reader(model, outlet)?;
        let node = model.node(outlet.node);
        let linear = node.op_as::<FrozenLinear>().map(FusedLinear::of);
        let layer = match linear.or_else(|| node.op_as::<FusedLinear>().cloned()) {
            // What follows one of several siblings is not for the others.
            Some(op) if op.parts.len() != 1 => return None,
            Some(op) => Layer::Linear(op),
            None => Layer::Convolution(FusedConvolution::at(node)?),
        };
        Some((node, layer))
    }

    fn adds(&self) -> bool {
        match self {
            Layer::Linear(_) => true,
            Layer::Convolution(op) => op.adds(),
        }
    }

    /// Whether it adds a residual, and its activation.
    fn following(&mut self) -> (&mut bool, &mut Activation) {
        match self {
            Layer::Linear(op) => (&mut op.has_residual, &mut op.activation),
            Layer::Convolution(op) => (&mut op.has_residual, &mut op.activation),
        }
    }

    /// The patch that puts it, at `node`, in the place of `last` too, which alone reads it.
    fn replaces(
        self,
        model: &TypedModel,
        node: &TypedNode,
        residual: Option<OutletId>,
        last: &TypedNode,
    ) -> TractResult<Option<TypedModelPatch>> {
        let op: Box<dyn TypedOp> = match self {
            Layer::Linear(op) => Box::new(op),
            Layer::Convolution(op) => Box::new(op),
        };
        let from: TVec<OutletId> = node.inputs.iter().copied().chain(residual).collect();
        TypedModelPatch::rewire(model, &from, &[last.id.into()], &|patch, inputs| {
            patch.wire_node(&last.name, op.clone(), inputs)
        })
        .map(Some)
    }
}

/// The activation that `node` is, and its input.
fn activation_of(model: &TypedModel, node: &TypedNode) -> Option<(OutletId, Activation)> {
    if let Some(ElementWiseOp(op, _)) = node.op_as::<ElementWiseOp>() {
        let activation = if op.is::<GeluExact>() {
            Activation::Gelu
        } else if let Some(gelu) = op.downcast_ref::<GeluApproximate>() {
            if gelu.fast_impl {
                return None;
            }
            Activation::GeluTanh
        } else if op.is::<Silu>() {
            Activation::Silu
        } else if op.is::<HardSwish>() {
            Activation::HardSwish
        } else {
            return None;
        };
        return Some((*node.inputs.first()?, activation));
    }
    if let Some((x, low)) = with_constant::<Max>(model, node) {
        return Some((x, Activation::Clamp { low, high: f32::INFINITY }));
    }
    let (x, high) = with_constant::<Min>(model, node)?;
    Some((x, Activation::Clamp { low: f32::NEG_INFINITY, high }))
}

/// Both in one step, `first` before `second`, if that is one activation.
fn joined(first: Activation, second: Activation) -> Option<Activation> {
    match (first, second) {
        (Activation::Identity, second) => Some(second),
        (Activation::Clamp { low: a, high: b }, Activation::Clamp { low: c, high: d }) => {
            // At least a, at most b, at least c, at most d; NaN bounds have no place here.
            (a <= b && c <= d)
                .then(|| Activation::Clamp { low: a.max(c).min(d), high: b.max(c).min(d) })
        }
        _ => None,
    }
}

/// A layer and a sum of the same shape that alone reads it.
pub fn residual(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    if !node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Add>()) {
        return Ok(None);
    }
    // Of two layers the later takes the sum.
    let mut sides = [0, 1];
    sides.sort_by_key(|i| std::cmp::Reverse(node.inputs[*i].node));
    for i in sides {
        let (from, other) = (node.inputs[i], node.inputs[1 - i]);
        let Some((before, mut layer)) = Layer::before(model, from) else { continue };
        let (y, add) = (model.outlet_fact(from)?, model.outlet_fact(other)?);
        let fits = y.shape == add.shape && y.datum_type == add.datum_type && from != other;
        let adds = layer.adds();
        let (has_residual, activation) = layer.following();
        if fits && adds && !*has_residual && *activation == Activation::Identity {
            *has_residual = true;
            return layer.replaces(model, before, Some(other), node);
        }
    }
    Ok(None)
}

/// A layer and the activation that alone reads it.
pub fn activation(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some((x, next)) = activation_of(model, node) else { return Ok(None) };
    let Some((before, mut layer)) = Layer::before(model, x) else { return Ok(None) };
    let (_, activation) = layer.following();
    let Some(both) = joined(*activation, next) else { return Ok(None) };
    *activation = both;
    layer.replaces(model, before, None, node)
}

/// The product of two layers over the same input, of which one may have an activation (arXiv:2002.05202).
pub fn gate(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    if !node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Mul>()) {
        return Ok(None);
    }
    let alone = |outlet: OutletId| match Layer::before(model, outlet)? {
        (node, Layer::Linear(op)) if !op.has_residual && !op.gated => Some((node, op)),
        _ => None,
    };
    let [a, b] = [node.inputs[0], node.inputs[1]];
    for sides in [[a, b], [b, a]] {
        let [Some((gate, op)), Some((other, plain))] = sides.map(alone) else { return Ok(None) };
        let one = gate.inputs[0] == other.inputs[0] && op.weights == plain.weights;
        let wide = op.parts[0].out_features == plain.parts[0].out_features;
        if plain.activation != Activation::Identity || !one || !wide {
            continue;
        }
        let from: TVec<OutletId> = gate.inputs.iter().chain(&other.inputs[1..]).copied().collect();
        let parts = op.parts.iter().chain(&plain.parts).cloned().collect();
        let op = FusedLinear { parts, gated: true, ..op };
        return TypedModelPatch::rewire(model, &from, &[node.id.into()], &|patch, inputs| {
            patch.wire_node(&node.name, op.clone(), inputs)
        })
        .map(Some);
    }
    Ok(None)
}
