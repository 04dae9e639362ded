//! Attention to states that a graph is given, and gives again with what is new behind them: they stay where they
//! are, and no run copies them.

use tract_core::internal::*;
use tract_core::ops::array::TypedConcat;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math::{Add, Mul};
use tract_core::ops::nn::{Softmax, SoftmaxKind};

use super::attention::{contract, reaches_product};
use super::labels::{Labels, part};
use super::{only_reader, with_constant};
use crate::graph::KeptAttention;

/// A state of a graph, \[1, H, S, D\], by its places among the graph's inputs and outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GivenState {
    /// Where it is given.
    pub input: usize,
    /// Where the graph gives it again, longer.
    pub output: Option<usize>,
}

/// A layer whose keys and values are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptLayer {
    /// The state of its keys, and that of its values.
    pub states: [GivenState; 2],
    /// H.
    pub heads: usize,
    /// D.
    pub head_dim: usize,
    past: Option<TDim>,
}

/// The graph with [`KeptAttention`] in the place of what reads states, and the layers, by their numbers. It has no
/// inputs and outputs for those states any more; its last input is bool \[1, P\], of which nothing is read but its size, how
/// many steps the states know. `None` where no state is read so. The batch is 1 in `model`.
pub fn keep(
    model: &TypedModel,
    states: &[GivenState],
) -> TractResult<Option<(TypedModel, Vec<KeptLayer>)>> {
    let mut kept = model.clone();
    let mut layers: Vec<KeptLayer> = vec![];
    for id in 0..model.nodes().len() {
        let Some(Found { inputs, op, last, layer }) = found(&kept, states, id) else { continue };
        let other_past = layers.iter().filter_map(|l| l.past.as_ref()).next();
        if other_past.is_some_and(|past| layer.past.as_ref().is_some_and(|p| p != past)) {
            continue;
        }
        let op = KeptAttention { layer: layers.len(), ..op };
        let name = kept.node(id).name.clone();
        let shape = kept.outlet_fact(last)?.shape.to_tvec();
        TypedModelPatch::rewire(&kept, &inputs, &[last], &|patch, inputs| {
            let outlet = patch.wire_node(&name, op.clone(), inputs)?[0];
            shaped(patch, &name, outlet, &shape).map(|outlet| tvec![outlet])
        })?
        .apply(&mut kept)?;
        layers.push(layer);
    }
    let Some(past) = layers.iter().find_map(|layer| layer.past.clone()) else { return Ok(None) };
    let gone = || layers.iter().flat_map(|layer| layer.states);
    let inputs = without(&kept.inputs, &mut gone().map(|state| state.input));
    let outputs = without(&kept.outputs, &mut gone().filter_map(|state| state.output));
    kept.inputs = inputs;
    kept.select_output_outlets(&outputs)?;
    kept.add_source("past", bool::fact([1.to_dim(), past]))?;
    kept.compact()?;
    Ok(Some((kept, layers)))
}

/// An outlet in a shape that differs in axes of one alone.
fn shaped(
    patch: &mut TypedModelPatch,
    name: &str,
    mut outlet: OutletId,
    shape: &[TDim],
) -> TractResult<OutletId> {
    let own = patch.model.outlet_fact(outlet)?.shape.to_tvec();
    if own.as_slice() == shape {
        return Ok(outlet);
    }
    let ones = |dims: &[TDim]| (0..dims.len()).filter(|at| dims[*at].is_one()).collect::<Vec<_>>();
    let less = ones(&own).into_iter().rev().map(AxisOp::Rm);
    for (at, op) in less.chain(ones(shape).into_iter().map(AxisOp::Add)).enumerate() {
        outlet = patch.wire_node(format!("{name}.axis.{at}"), op, &[outlet])?[0];
    }
    Ok(outlet)
}

/// All but those at these places.
fn without(all: &[OutletId], places: &mut dyn Iterator<Item = usize>) -> Vec<OutletId> {
    let places: Vec<usize> = places.collect();
    let stays = all.iter().enumerate().filter(|(at, _)| !places.contains(at));
    stays.map(|(_, outlet)| *outlet).collect()
}

struct Found {
    inputs: TVec<OutletId>,
    op: KeptAttention,
    last: OutletId,
    layer: KeptLayer,
}

/// Keys or values where they meet a product.
struct Operand {
    state: GivenState,
    /// What is new of them, and how many there were.
    new: Option<(OutletId, TDim)>,
    heads: usize,
    head_dim: usize,
    labels: Labels,
}

fn operand(model: &TypedModel, states: &[GivenState], outlet: OutletId) -> Option<Operand> {
    let mut moves: Vec<&AxisOp> = vec![];
    let mut source = outlet;
    while let Some(op) = model.node(source.node).op_as::<AxisOp>() {
        only_reader(model, source)?;
        moves.push(op);
        source = *model.node(source.node).inputs.first()?;
    }
    let node = model.node(source.node);
    let readers = |o: OutletId| model.node(o.node).outputs.get(o.slot).map(|o| o.successors.len());
    let given = |o: OutletId| {
        let at = model.inputs.iter().position(|input| *input == o)?;
        states.iter().find(|state| state.input == at).filter(|_| readers(o) == Some(1)).copied()
    };
    let shape = |o: OutletId| model.outlet_fact(o).ok().map(|fact| fact.shape.to_tvec());
    let (state, new) = match (node.op_as::<TypedConcat>(), node.inputs.as_slice()) {
        (Some(TypedConcat { axis: 2 }), &[before, new]) => {
            let state = given(before)?;
            let output = *model.outputs.get(state.output?)?;
            let once = model.outputs.iter().filter(|o| **o == output).count() == 1;
            let past = shape(before)?.get(2)?.clone();
            let free = matches!(past, TDim::Sym(_));
            (output == source && once && free && readers(source) == Some(1)).then_some(())?;
            (state, Some((new, past)))
        }
        (None, _) => (given(source).filter(|state| state.output.is_none())?, None),
        _ => return None,
    };
    let shape = shape(source)?;
    let [one, heads, steps, features] = shape.as_slice() else { return None };
    one.is_one().then_some(())?;
    let labels = vec![vec![], part('h', heads), part('s', steps), part('d', features)];
    let labels = moves.iter().rev().try_fold(Labels(labels), |labels, op| labels.after(op))?;
    let (heads, head_dim) = (heads.to_usize().ok()?, features.to_usize().ok()?);
    Some(Operand { state, new, heads, head_dim, labels })
}

/// What the axes of the queries are: those that they share with the keys, and rows.
fn queries(
    model: &TypedModel,
    product: &TypedNode,
    einsum: &EinSum,
    slot: usize,
    keys: &Labels,
) -> Option<Labels> {
    let shape = &model.outlet_fact(product.inputs[slot]).ok()?.shape;
    let mut labels = Labels(vec![vec![]; shape.rank()]);
    for axis in einsum.axes.iter_all_axes() {
        let at = match axis.inputs[slot].as_slice() {
            [] => continue,
            [at] => *at,
            _ => return None,
        };
        labels.0[at] = match axis.inputs[1 - slot].as_slice() {
            [other] => keys.0.get(*other)?.clone(),
            _ => part('r', &shape[at]),
        };
    }
    let rows = labels.0.iter_mut().flatten().filter(|part| part.0 == 'r');
    match rows.collect::<Vec<_>>().as_mut_slice() {
        [] | [_] => {}
        [group, tokens] => (group.0, tokens.0) = ('g', 't'),
        _ => return None,
    }
    Some(labels)
}

/// Whether values lie in the order heads, their group, tokens, features.
fn in_order(labels: &Labels) -> bool {
    let places = labels.0.iter().flatten().map(|part| "hgrtd".find(part.0));
    places.collect::<Option<Vec<_>>>().is_some_and(|places| places.is_sorted())
}

/// Whether the axes are those of a mask's \[1, heads, tokens, keys\].
fn masked(labels: &Labels) -> bool {
    let only = |axis: &[(char, TDim)], names: &str| axis.iter().all(|part| names.contains(part.0));
    match labels.0.as_slice() {
        [one, heads, tokens, keys] => {
            one.is_empty() && only(heads, "hg") && only(tokens, "rt") && only(keys, "s")
        }
        _ => false,
    }
}

/// Anchored at the softmax, as attention without states is.
fn found(model: &TypedModel, states: &[GivenState], id: usize) -> Option<Found> {
    let node = model.node(id);
    let softmax = node.op_as::<Softmax>()?;
    if !matches!(softmax.kind, SoftmaxKind::Softmax) || softmax.quant_output_dt.is_some() {
        return None;
    }
    let shape = |o: OutletId| model.outlet_fact(o).ok().map(|fact| fact.shape.to_tvec());
    let mut at = *node.inputs.first()?;
    let mut after: Vec<&AxisOp> = vec![];
    let (mut mask, mut factor) = (None, 1.0);
    let product = loop {
        only_reader(model, at)?;
        let before = model.node(at.node);
        if before.op_is::<EinSum>() {
            break before;
        } else if let Some(op) = before.op_as::<AxisOp>() {
            after.push(op);
            at = *before.inputs.first()?;
        } else if let Some((x, value)) = with_constant::<Mul>(model, before) {
            factor *= value;
            at = x;
        } else if before.op_as::<TypedBinOp>()?.0.is::<Add>() && mask.is_none() && factor == 1.0 {
            let [a, b] = [*before.inputs.first()?, *before.inputs.get(1)?];
            let (scores, other) = match (reaches_product(model, a), reaches_product(model, b)) {
                (true, false) => (a, b),
                (false, true) => (b, a),
                _ => return None,
            };
            (shape(scores)? == shape(at)?).then_some(())?;
            let fact = model.outlet_fact(other).ok()?;
            let one = |axis: usize| fact.shape[axis].is_one();
            (fact.rank() == 4 && fact.datum_type == f32::datum_type() && one(0) && one(1))
                .then_some(())?;
            mask = Some((other, after.len()));
            at = scores;
        } else {
            return None;
        }
    };
    let einsum = product.op_as::<EinSum>().filter(|op| op.q_params.is_none())?;
    let side = |slot: usize| Some((slot, operand(model, states, *product.inputs.get(slot)?)?));
    let (slot, keys) = (0..2).find_map(side)?;
    let q = *product.inputs.get(1 - slot)?;
    let rows = queries(model, product, einsum, 1 - slot, &keys.labels)?;
    in_order(&rows).then_some(())?;
    let mut labels = match slot {
        0 => contract(einsum, &keys.labels, &rows, 'd')?,
        _ => contract(einsum, &rows, &keys.labels, 'd')?,
    };
    for (done, op) in after.iter().rev().map(Some).chain([None]).enumerate() {
        if mask.is_some_and(|(_, moves)| moves == after.len() - done) && !masked(&labels) {
            return None;
        }
        labels = op.map_or(Some(labels.clone()), |op| labels.after(op))?;
    }
    let [axis] = softmax.axes.as_slice() else { return None };
    let only_keys = |axis: &Vec<(char, TDim)>| matches!(axis.as_slice(), [('s', _)]);
    labels.0.get(*axis).is_some_and(only_keys).then_some(())?;

    let mut at: OutletId = node.id.into();
    let product = loop {
        let next = only_reader(model, at)?;
        match next.op_as::<AxisOp>() {
            Some(op) => labels = labels.after(op)?,
            None => break next,
        }
        at = next.id.into();
    };
    let einsum = product.op_as::<EinSum>().filter(|op| op.q_params.is_none())?;
    let (left, right) = (*product.inputs.first()?, *product.inputs.get(1)?);
    let values = operand(model, states, if left == at { right } else { left })?;
    labels = match left == at {
        true => contract(einsum, &labels, &values.labels, 's')?,
        false => contract(einsum, &values.labels, &labels, 's')?,
    };
    let last: OutletId = product.id.into();
    // A batch of one may have gone on the way.
    let plain = |dims: TVec<TDim>| dims.into_iter().filter(|d| !d.is_one()).collect::<TVec<_>>();
    let fits = in_order(&labels)
        && plain(shape(last)?) == plain(shape(q)?)
        && (keys.heads, keys.head_dim) == (values.heads, values.head_dim)
        && keys.state != values.state;
    fits.then_some(())?;
    let (new, past) = match (keys.new, values.new) {
        (Some((k, past)), Some((v, other))) if past == other => (vec![k, v], Some(past)),
        (None, None) => (vec![], None),
        _ => return None,
    };
    let op = KeptAttention {
        layer: 0,
        appends: past.is_some(),
        past: past.clone().unwrap_or_default(),
        scale: factor.to_bits(),
        has_mask: mask.is_some(),
    };
    let inputs = [q].into_iter().chain(new).chain(mask.map(|(mask, _)| mask)).collect();
    let (states, heads, head_dim) = ([keys.state, values.state], keys.heads, keys.head_dim);
    Some(Found { inputs, op, last, layer: KeptLayer { states, heads, head_dim, past } })
}
