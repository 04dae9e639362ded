//! Attention: heads split off three products, scores, mask, softmax, values, heads merged.

use tract_core::internal::*;
use tract_core::ops::binary::TypedBinOp;
use tract_core::ops::einsum::EinSum;
use tract_core::ops::math::{Add, Mul};
use tract_core::ops::nn::{Softmax, SoftmaxKind};

use super::labels::{Labels, part};
use super::{only_reader, with_constant};
use crate::graph::Attention;

/// One of q, k, v: a value \[B, T, H·D\] and what its axes are where it meets a product.
struct Operand {
    source: OutletId,
    labels: Labels,
    factor: f32,
}

/// Walks back from `outlet` through moves, reshapes and constant factors to a value of three axes.
fn operand(model: &TypedModel, outlet: OutletId, rows: char) -> Option<Operand> {
    let mut moves: Vec<&AxisOp> = vec![];
    let (mut source, mut factor) = (outlet, 1.0);
    loop {
        let node = model.node(source.node);
        if let Some(op) = node.op_as::<AxisOp>() {
            moves.push(op);
            source = *node.inputs.first()?;
        } else if let Some((x, value)) = with_constant::<Mul>(model, node) {
            factor *= value;
            source = x;
        } else {
            break;
        }
    }
    let shape = model.outlet_fact(source).ok()?.shape.as_concrete()?;
    let &[b, t, x] = shape else { return None };
    let mut labels = Labels(vec![part('b', b), part(rows, t), part('x', x)]);
    for op in moves.iter().rev() {
        labels = labels.after(op)?;
    }
    // One head: the features were never cut.
    for axis in &mut labels.0 {
        axis.iter_mut().filter(|p| p.0 == 'x').for_each(|p| p.0 = 'd');
    }
    Some(Operand { source, labels, factor })
}

/// The labels of an einsum's output, if it contracts `contracted` and pairs equal axes only.
pub(super) fn contract(op: &EinSum, a: &Labels, b: &Labels, contracted: char) -> Option<Labels> {
    let mut output = vec![vec![]; op.axes.rank(InOut::Out(0))];
    for axis in op.axes.iter_all_axes() {
        let of = |slot: usize, labels: &Labels| match axis.inputs[slot].as_slice() {
            [] => Some(None),
            [at] => labels.0.get(*at).cloned().map(Some),
            _ => None,
        };
        let (left, right) = (of(0, a)?, of(1, b)?);
        let label = match (left, right) {
            (Some(left), Some(right)) if left == right => left,
            (Some(one), None) | (None, Some(one)) => one,
            _ => return None,
        };
        let both = !axis.inputs[0].is_empty() && !axis.inputs[1].is_empty();
        let is_contracted = label.iter().all(|p| p.0 == contracted);
        match axis.outputs[0].as_slice() {
            [] if both && is_contracted => {}
            [at] if both == label.iter().all(|p| p.0 == 'b' || p.0 == 'h') || label.is_empty() => {
                output[*at] = label;
            }
            _ => return None,
        }
    }
    Some(Labels(output))
}

/// Anchored at the softmax. Axes are followed by name, so any order of moves and reshapes will do
/// whose meaning is attention over heads that lie side by side.
pub fn attention(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let Some(softmax) = node.op_as::<Softmax>() else { return Ok(None) };
    let found = [true, false].iter().find_map(|&q_first| found(model, node, softmax, q_first));
    found.map(|found| found.patch(model, node)).transpose()
}

struct Found {
    inputs: [OutletId; 3],
    mask: Option<OutletId>,
    op: Attention,
    last: OutletId,
}

fn found(model: &TypedModel, node: &TypedNode, softmax: &Softmax, q_first: bool) -> Option<Found> {
    if !matches!(softmax.kind, SoftmaxKind::Softmax) || softmax.quant_output_dt.is_some() {
        return None;
    }
    // Upwards: moves, a mask, a factor, the product of q and k.
    let mut at = *node.inputs.first()?;
    let mut after: Vec<&AxisOp> = vec![];
    let (mut mask, mut factor) = (None, 1.0);
    let scores = loop {
        only_reader(model, at)?;
        let before = model.node(at.node);
        if let Some(op) = before.op_as::<EinSum>() {
            break (before, op);
        } else if let Some(op) = before.op_as::<AxisOp>() {
            after.push(op);
            at = *before.inputs.first()?;
        } else if let Some((x, value)) = with_constant::<Mul>(model, before) {
            factor *= value;
            at = x;
        } else if before.op_as::<TypedBinOp>()?.0.is::<Add>() && mask.is_none() && factor == 1.0 {
            // What scales the scores before the mask is met later. The mask has no part in the product;
            // its axes must be those of the scores.
            let full = &model.outlet_fact(at).ok()?.shape;
            let [a, b] = [*before.inputs.first()?, *before.inputs.get(1)?];
            let leads = |o: OutletId| {
                model.node(o.node).op_is::<EinSum>() || {
                    let n = model.node(o.node);
                    n.op_is::<AxisOp>() || with_constant::<Mul>(model, n).is_some()
                }
            };
            let fits = |o: OutletId| {
                let fact = model.outlet_fact(o).ok();
                fact.is_some_and(|f| &f.shape == full) && only_reader(model, o).is_some()
            };
            let (scores, other) = match (leads(a) && fits(a), leads(b) && fits(b)) {
                (true, false) => (a, b),
                (false, true) => (b, a),
                // Both could be: the one that comes from an einsum.
                (true, true) if reaches_product(model, a) => (a, b),
                (true, true) => (b, a),
                _ => return None,
            };
            mask = Some((other, after.len()));
            at = scores;
        } else {
            return None;
        }
    };
    let (product, einsum) = scores;
    let (left, right) = (*product.inputs.first()?, *product.inputs.get(1)?);
    let (q, k) = if q_first { (left, right) } else { (right, left) };
    let (q, k) = (operand(model, q, 't')?, operand(model, k, 's')?);
    let mut labels = match q_first {
        true => contract(einsum, &q.labels, &k.labels, 'd')?,
        false => contract(einsum, &k.labels, &q.labels, 'd')?,
    };
    let concrete = |o: OutletId| model.outlet_fact(o).ok()?.shape.as_concrete().map(<[_]>::to_vec);
    let (q_shape, k_shape) = (concrete(q.source)?, concrete(k.source)?);
    let heads = heads(&q.labels)?;
    let (batch, queries, keys) = (q_shape[0], q_shape[1], k_shape[1]);
    let full = [part('b', batch), part('h', heads), part('t', queries), part('s', keys)];
    for (i, op) in after.iter().rev().enumerate() {
        if mask.is_some_and(|(_, moves)| moves == after.len() - i) && labels.0 != full {
            return None;
        }
        labels = labels.after(op)?;
    }
    if mask.is_some_and(|(_, moves)| moves == 0) && labels.0 != full {
        return None;
    }
    let [axis] = softmax.axes.as_slice() else { return None };
    if labels.0.get(*axis)? != &part('s', keys) {
        return None;
    }
    // Downwards: moves, the product with v, moves until heads and features are one axis again.
    let mut at: OutletId = node.id.into();
    let product = loop {
        let next = only_reader(model, at)?;
        match next.op_as::<AxisOp>() {
            Some(op) => labels = labels.after(op)?,
            None => break next,
        }
        at = next.id.into();
    };
    let einsum = product.op_as::<EinSum>()?;
    let (left, right) = (*product.inputs.first()?, *product.inputs.get(1)?);
    let v = operand(model, if left == at { right } else { left }, 's')?;
    if v.factor != 1.0 || heads != self::heads(&v.labels)? || concrete(v.source)? != k_shape {
        return None;
    }
    let mut labels = match left == at {
        true => contract(einsum, &labels, &v.labels, 's')?,
        false => contract(einsum, &v.labels, &labels, 's')?,
    };
    let features = q_shape[2] / heads;
    let merged = [part('h', heads), part('d', features)].concat();
    let done = [part('b', batch), part('t', queries), merged];
    let mut last: OutletId = product.id.into();
    while labels.0 != done {
        let next = only_reader(model, last)?;
        labels = labels.after(next.op_as::<AxisOp>()?)?;
        last = next.id.into();
    }
    // q and k agree in everything but their rows.
    let same =
        q_shape[0] == k_shape[0] && q_shape[2] == k_shape[2] && heads == self::heads(&k.labels)?;
    let mask = mask.map(|(mask, _)| mask);
    let four = mask.is_none_or(|m| {
        model.outlet_fact(m).is_ok_and(|f| f.rank() == 4 && f.datum_type == f32::datum_type())
    });
    let scale = (factor * q.factor * k.factor).to_bits();
    (same && four).then(|| Found {
        inputs: [q.source, k.source, v.source],
        mask,
        op: Attention { heads, scale, has_mask: mask.is_some() },
        last,
    })
}

/// Whether `outlet` comes from an einsum through factors and moves.
pub(super) fn reaches_product(model: &TypedModel, mut outlet: OutletId) -> bool {
    loop {
        let node = model.node(outlet.node);
        if node.op_is::<EinSum>() {
            return true;
        }
        match with_constant::<Mul>(model, node) {
            Some((x, _)) => outlet = x,
            None if node.op_is::<AxisOp>() => outlet = node.inputs[0],
            None => return false,
        }
    }
}

/// H.
fn heads(labels: &Labels) -> Option<usize> {
    let parts = labels.0.iter().flatten();
    let heads = parts.clone().find(|p| p.0 == 'h').map_or(Some(1), |p| p.1.to_usize().ok())?;
    parts.clone().any(|p| p.0 == 'd').then_some(heads)
}

impl Found {
    fn patch(&self, model: &TypedModel, node: &TypedNode) -> TractResult<TypedModelPatch> {
        let inputs: TVec<OutletId> = self.inputs.iter().copied().chain(self.mask).collect();
        TypedModelPatch::rewire(model, &inputs, &[self.last], &|patch, inputs| {
            patch.wire_node(&node.name, self.op.clone(), inputs)
        })
    }
}
