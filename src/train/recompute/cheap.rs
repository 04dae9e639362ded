//! Values that are computed again from kept ones in far less time than a layer takes.

use super::copies::{Forward, is_given, repeats};
use crate::graph::memory::bytes;
use tract_core::internal::*;
use tract_core::ops::array::{MultiBroadcastTo, Slice, TypedConcat};
use tract_core::ops::binary::{OptBinByScalar, OptBinChain, OptBinUnicast, TypedBinOp};
use tract_core::ops::cast::Cast;
use tract_core::ops::change_axes::IntoShape;
use tract_core::ops::element_wise::ElementWiseOp;
use tract_core::ops::logic::Iff;
use tract_core::ops::matmul::optimized::OptMatMul;
use tract_core::ops::matmul::pack::OptMatMulPack;
use tract_core::ops::nn::{Reduce, RmsNorm, Softmax};

/// Products of so many terms an output at most take about what the exponentials of the softmax behind
/// them do.
const FEW_TERMS: usize = 64;

fn is_short_product(node: &TypedNode) -> bool {
    let terms = node.op_as::<OptMatMul>().and_then(OptMatMul::guess_k);
    terms.and_then(|k| k.to_usize().ok()).is_some_and(|k| k <= FEW_TERMS)
}

/// Products that give attention's scores, and the packing of what they multiply.
fn scores(model: &TypedModel, forward: &Forward) -> Vec<bool> {
    let mut found = vec![false; model.nodes().len()];
    let softmax = |id: &&usize| model.node(**id).op_is::<Softmax>();
    let mut stack: Vec<usize> = forward.order.iter().filter(softmax).copied().collect();
    let mut seen = found.clone();
    while let Some(id) = stack.pop() {
        let node = model.node(id);
        if std::mem::replace(&mut seen[id], true) {
            continue;
        }
        let inputs = node.inputs.iter().map(|i| i.node);
        if is_short_product(node) {
            found[id] = true;
            let packs = inputs.filter(|&id| model.node(id).op_is::<OptMatMulPack>());
            packs.for_each(|id| found[id] = true);
        } else if is_cheap(node) {
            stack.extend(inputs);
        }
    }
    found
}

fn is_cheap(node: &TypedNode) -> bool {
    node.op_is::<ElementWiseOp>()
        || node.op_is::<TypedBinOp>()
        || node.op_is::<OptBinByScalar>()
        || node.op_is::<OptBinUnicast>()
        || node.op_is::<OptBinChain>()
        || node.op_is::<AxisOp>()
        || node.op_is::<IntoShape>()
        || node.op_is::<MultiBroadcastTo>()
        || node.op_is::<Slice>()
        || node.op_is::<TypedConcat>()
        || node.op_is::<Cast>()
        || node.op_is::<Iff>()
        || node.op_is::<Reduce>()
        || node.op_is::<RmsNorm>()
        || node.op_is::<Softmax>()
}

/// The nodes to forget: those that cheap steps give from what is kept, where that keeps fewer bytes.
pub fn cheap(model: &TypedModel, forward: &Forward) -> Vec<bool> {
    let scores = scores(model, forward);
    let mut kept = forward.read_backward(model);
    let mut forgotten = vec![false; kept.len()];
    let (mut cheap, mut given, mut size) =
        (forgotten.clone(), forgotten.clone(), vec![0; kept.len()]);
    for &id in &forward.order {
        let node = model.node(id);
        (cheap[id], given[id]) = ((is_cheap(node) || scores[id]) && repeats(node), is_given(node));
        size[id] = bytes(node);
    }
    let from_inputs = |id: usize, more: &[u64]| {
        let inputs = model.node(id).inputs.iter().map(|i| more[i.node]);
        inputs.fold(0, u64::saturating_add)
    };
    // What one round keeps is there for the choices of the next.
    for _ in 0..MAX_ROUNDS {
        let before = forgotten.clone();
        // Bytes to keep on top of those kept for a node's value to be there again.
        let mut more = vec![0u64; kept.len()];
        for &id in &forward.order {
            if given[id] || kept[id] || forgotten[id] {
                continue;
            }
            more[id] = size[id];
            if cheap[id] {
                more[id] = size[id].min(from_inputs(id, &more));
            }
        }
        for &id in forward.order.iter().rev() {
            if !kept[id] || !cheap[id] || from_inputs(id, &more) >= size[id] {
                continue;
            }
            (kept[id], forgotten[id]) = (false, true);
            let mut stack: Vec<usize> = model.node(id).inputs.iter().map(|i| i.node).collect();
            while let Some(id) = stack.pop() {
                if given[id] || kept[id] || forgotten[id] {
                    continue;
                }
                match cheap[id] && from_inputs(id, &more) < size[id] {
                    true => {
                        forgotten[id] = true;
                        stack.extend(model.node(id).inputs.iter().map(|i| i.node));
                    }
                    false => kept[id] = true,
                }
                more[id] = 0;
            }
        }
        if before == forgotten {
            break;
        }
    }
    forgotten
}

const MAX_ROUNDS: usize = 4;
