//! The backward part of a graph, wired into the same tract model.
//!
//! Only the nodes on a path from a wanted tensor to a seed get a backward part: what else the
//! graph does (gathers of ids, masks, shapes) needs no rule.

use std::collections::{HashMap, HashSet};

use tract_core::internal::*;
use tract_core::model::order::eval_order_for_nodes;

use super::vjp::{self, Site};
use super::wires::Wires;
use crate::error::{Error, Result};
use crate::graph::{ByteRange, RowNorms};

/// Wires the backward part of `model`: the gradients of Σ seed·outlet over the seeds, by each wanted
/// outlet, of its shape and element type, in the order asked for; zeros where no seed depends on it.
///
/// `seeds` are pairs of a float outlet and its gradient, of the same shape and type; `wanted` are any
/// float outlets. The model's outputs stay as they are: select them afterwards. Dimensions may be
/// symbols; bind those that will be bound before this, since a bound graph runs faster.
///
/// # Errors
/// [`Unsupported`](crate::error::ErrorKind::Unsupported) where an op on the way has no rule, or
/// the rule doesn't cover its attributes: op and node are named.
pub fn backward(
    model: &mut TypedModel,
    seeds: &[(OutletId, OutletId)],
    wanted: &[OutletId],
) -> Result<Vec<OutletId>> {
    let found = wire_backward(model, seeds, wanted)?;
    let mut b = Wires::new(model, "wanted.vjp");
    let mut gradients = vec![];
    for (&outlet, found) in wanted.iter().zip(found) {
        gradients.push(match found {
            Some(gradient) => gradient,
            None => {
                let fact = b.fact(outlet)?.clone();
                b.zeros(fact.datum_type, &fact.shape)?
            }
        });
    }
    Ok(gradients)
}

/// A seed for the gradients of `loss` itself: ones.
pub fn ones(model: &mut TypedModel, loss: OutletId) -> Result<OutletId> {
    let mut b = Wires::new(model, "loss.vjp");
    let fact = b.fact(loss)?.clone();
    let one = tensor0(1f32).cast_to_dt(fact.datum_type).map(|t| t.into_owned());
    let one = one.map_err(|e| Error::usage(format!("a loss is a float: {e:#}")))?;
    let one = b.constant(one)?;
    b.broadcast_to(one, &fact.shape)
}

/// [`backward`] with nothing for what no seed depends on.
pub(super) fn wire_backward(
    model: &mut TypedModel,
    seeds: &[(OutletId, OutletId)],
    wanted: &[OutletId],
) -> Result<Vec<Option<OutletId>>> {
    check(model, seeds, wanted)?;
    let order = forward_order(model, seeds.iter().map(|(outlet, _)| *outlet))?;
    let depends = depends(model, &order, wanted)?;
    let mut b = Wires::new(model, "seeds.vjp");
    let mut gradients: HashMap<OutletId, OutletId> = HashMap::new();
    for &(outlet, seed) in seeds {
        add(&mut b, &mut gradients, outlet, seed)?;
    }
    for &id in order.iter().rev() {
        let node = b.model().node(id).clone();
        if node.inputs.is_empty() {
            continue;
        }
        let wanted: TVec<bool> = node.inputs.iter().map(|i| depends.contains(i)).collect();
        let incoming: TVec<Option<OutletId>> = (0..node.outputs.len())
            .map(|slot| gradients.get(&OutletId::new(id, slot)).copied())
            .collect();
        if !wanted.contains(&true) || incoming.iter().all(Option::is_none) {
            continue;
        }
        b.enter(&format!("{}.vjp", node.name));
        let site = Site { node: &node, gradients: &incoming, wanted: &wanted };
        let outgoing = vjp::apply(&mut b, &site)?;
        for ((&input, &wanted), gradient) in node.inputs.iter().zip(&wanted).zip(outgoing) {
            let Some(gradient) = gradient.filter(|_| wanted) else { continue };
            b.check_like(gradient, input, &node)?;
            add(&mut b, &mut gradients, input, gradient)?;
        }
    }
    Ok(wanted.iter().map(|outlet| gradients.get(outlet).copied()).collect())
}

fn add(
    b: &mut Wires,
    gradients: &mut HashMap<OutletId, OutletId>,
    outlet: OutletId,
    gradient: OutletId,
) -> Result<()> {
    let sum = match gradients.get(&outlet) {
        Some(&before) => b.add(before, gradient)?,
        None => gradient,
    };
    gradients.insert(outlet, sum);
    Ok(())
}

/// Whether each of `wanted` has a path to one of `outlets` along which a gradient could flow.
pub fn reaches(model: &TypedModel, outlets: &[OutletId], wanted: &[OutletId]) -> Result<Vec<bool>> {
    let order = forward_order(model, outlets.iter().copied())?;
    let reached = |outlet: &OutletId| -> Result<bool> {
        let depends = depends(model, &order, std::slice::from_ref(outlet))?;
        Ok(outlets.iter().any(|o| depends.contains(o)))
    };
    wanted.iter().map(reached).collect()
}

fn check(model: &TypedModel, seeds: &[(OutletId, OutletId)], wanted: &[OutletId]) -> Result<()> {
    for &(outlet, seed) in seeds {
        let (outlet, seed) = (fact(model, outlet)?, fact(model, seed)?);
        let like = outlet.rank() == seed.rank() && outlet.datum_type == seed.datum_type;
        if !outlet.datum_type.is_float() || !like {
            return Err(Error::usage(format!("{seed:?} is no gradient of {outlet:?}")));
        }
    }
    for &outlet in wanted {
        let fact = fact(model, outlet)?;
        if !fact.datum_type.is_float() {
            return Err(Error::usage(format!(
                "only floats have a gradient, '{}' is {fact:?}",
                model.node(outlet.node).name
            )));
        }
    }
    Ok(())
}

fn fact(model: &TypedModel, outlet: OutletId) -> Result<&TypedFact> {
    model.outlet_fact(outlet).map_err(|e| Error::usage(format!("no such tensor: {e:#}")))
}

/// The nodes that reach `outlets`, inputs before users.
fn forward_order(
    model: &TypedModel,
    outlets: impl Iterator<Item = OutletId>,
) -> Result<Vec<usize>> {
    let nodes: Vec<usize> = outlets.map(|o| o.node).collect();
    eval_order_for_nodes(model.nodes(), &[], &nodes, &[])
        .map_err(|e| Error::bad_input(format!("the graph can't be ordered: {e:#}")))
}

/// The outlets among the nodes of `order` whose values depend on one of `wanted` through floats.
fn depends(model: &TypedModel, order: &[usize], wanted: &[OutletId]) -> Result<HashSet<OutletId>> {
    let mut found: HashSet<OutletId> = wanted.iter().copied().collect();
    for &id in order {
        let node = model.node(id);
        // A norm that DoRA holds constant, and steps of a rounding.
        if node.op_is::<RowNorms>() || node.op_is::<ByteRange>() {
            continue;
        }
        if node.inputs.iter().any(|i| found.contains(i)) {
            for (slot, output) in node.outputs.iter().enumerate() {
                if output.fact.datum_type.is_float() {
                    found.insert(OutletId::new(id, slot));
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::train::vjp::check::{random, run};
    use tract_core::ops::array::Topk;
    use tract_core::ops::einsum::EinSum;
    use tract_core::ops::math;
    use tract_core::ops::nn::{Reduce, Reducer};

    fn product(model: &mut TypedModel, name: &str, x: OutletId, w: OutletId) -> OutletId {
        let op = EinSum::new("mk,nk->mn".parse().unwrap(), f32::datum_type());
        model.wire_node(name, op, &[x, w]).unwrap()[0]
    }

    fn of(model: &mut TypedModel, loss: OutletId, wanted: &[OutletId]) -> Result<Vec<OutletId>> {
        let one = ones(model, loss)?;
        backward(model, &[(loss, one)], wanted)
    }

    fn total(model: &mut TypedModel, x: OutletId) -> OutletId {
        let axes = (0..model.outlet_fact(x).unwrap().rank()).collect();
        model.wire_node("total", Reduce::new(axes, Reducer::Sum), &[x]).unwrap()[0]
    }

    /// loss = Σ (relu(x·W1ᵀ)·W2ᵀ)²/2: every gradient by hand.
    #[test]
    fn two_layers_equal_the_gradients_by_hand() {
        let (m, k, h, n) = (3, 4, 5, 2);
        let (x, w1, w2) = (random(&[m, k], 1), random(&[h, k], 2), random(&[n, h], 3));
        let mut model = TypedModel::default();
        let xs = model.add_const("x", x.clone()).unwrap();
        let w1s = model.add_source("w1", f32::fact([h, k])).unwrap();
        let w2s = model.add_source("w2", f32::fact([n, h])).unwrap();
        let a = product(&mut model, "a", xs, w1s);
        let zero = model.add_const("zero", tensor2(&[[0f32]])).unwrap();
        let r = model.wire_node("relu", math::max(), &[a, zero]).unwrap()[0];
        let y = product(&mut model, "y", r, w2s);
        let square = model.wire_node("square", math::square(), &[y]).unwrap()[0];
        let half = model.add_const("half", tensor2(&[[0.5f32]])).unwrap();
        let halved = model.wire_node("halved", math::mul(), &[square, half]).unwrap()[0];
        let loss = total(&mut model, halved);
        let grads = of(&mut model, loss, &[w1s, w2s]).unwrap();
        model.select_output_outlets(&grads).unwrap();
        let got = run(&model, &[w1.clone(), w2.clone()]);

        let (x, w1, w2) = (matrix(&x), matrix(&w1), matrix(&w2));
        let a = x.dot(&w1.t());
        let r = a.mapv(|v| v.max(0.0));
        let y = r.dot(&w2.t());
        let dw2 = y.t().dot(&r);
        let da = y.dot(&w2) * a.mapv(|v| if v > 0.0 { 1.0 } else { 0.0 });
        let dw1 = da.t().dot(&x);
        for (got, want) in [(&got[0], dw1), (&got[1], dw2)] {
            let got = matrix(got);
            assert_eq!(got.shape(), want.shape());
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-5), "{got} {want}");
        }
    }

    fn matrix(t: &Tensor) -> tract_ndarray::Array2<f32> {
        t.to_plain_array_view::<f32>().unwrap().into_dimensionality().unwrap().to_owned()
    }

    #[test]
    fn a_missing_rule_is_an_error_that_names_op_and_node() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([5])).unwrap();
        let k = model.add_const("k", tensor1(&[2f32])).unwrap();
        let y = model.wire_node("the rest", math::rem(), &[x, k]).unwrap()[0];
        let loss = total(&mut model, y);
        let e = of(&mut model, loss, &[x]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Unsupported);
        assert!(e.message().contains("Rem") && e.message().contains("'the rest'"), "{e}");
    }

    #[test]
    fn ops_off_the_trained_paths_need_no_rule() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([5])).unwrap();
        let w = model.add_source("w", f32::fact([2])).unwrap();
        let k = model.add_const("k", tensor0(2i64)).unwrap();
        let op = Topk { axis: 0, largest: true, fallback_k: 2.to_dim() };
        let best = model.wire_node("best two", op, &[x, k]).unwrap()[0];
        let y = model.wire_node("y", math::mul(), &[best, w]).unwrap()[0];
        let loss = total(&mut model, y);
        let grads = of(&mut model, loss, &[w]).unwrap();
        model.select_output_outlets(&grads).unwrap();
        let got = run(&model, &[tensor1(&[1f32, 5., 2., 4., 3.]), tensor1(&[1f32, 1.])]);
        assert_eq!(got[0].as_ref(), &tensor1(&[5f32, 4.]));
    }

    #[test]
    fn what_does_not_reach_the_loss_gets_zeros() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([2])).unwrap();
        let idle = model.add_source("idle", f32::fact([3])).unwrap();
        let loss = total(&mut model, x);
        assert_eq!(reaches(&model, &[loss], &[x, idle]).unwrap(), [true, false]);
        let grads = of(&mut model, loss, &[x, idle]).unwrap();
        model.select_output_outlets(&grads).unwrap();
        let got = run(&model, &[tensor1(&[1f32, 2.]), tensor1(&[1f32, 2., 3.])]);
        assert_eq!(got[0].as_ref(), &tensor1(&[1f32, 1.]));
        assert_eq!(got[1].as_ref(), &tensor1(&[0f32, 0., 0.]));
    }

    #[test]
    fn only_floats_have_gradients_and_a_seed_is_like_its_outlet() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([2])).unwrap();
        let ids = model.add_source("ids", i64::fact([2])).unwrap();
        let y = model.wire_node("y", math::exp(), &[x]).unwrap()[0];
        let loss = total(&mut model, y);
        let e = of(&mut model, loss, &[ids]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Usage);
        assert!(e.message().contains("'ids'"), "{e}");
        let matrix = model.add_source("matrix", f32::fact([1, 1])).unwrap();
        for seed in [ids, matrix] {
            let e = backward(&mut model, &[(y, seed)], &[x]).err().unwrap();
            assert_eq!(e.kind(), ErrorKind::Usage);
        }
    }

    /// d (a·exp(x) + b·exp(exp(x))) by x and by exp(x).
    #[test]
    fn several_seeds_add_up_and_any_outlet_may_be_wanted() {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([1])).unwrap();
        let y = model.wire_node("y", math::exp(), &[x]).unwrap()[0];
        let z = model.wire_node("z", math::exp(), &[y]).unwrap()[0];
        let a = model.add_const("a", tensor1(&[2f32])).unwrap();
        let b = model.add_const("b", tensor1(&[0.5f32])).unwrap();
        let found = backward(&mut model, &[(y, a), (z, b)], &[x, y]).unwrap();
        model.select_output_outlets(&found).unwrap();
        let got = run(&model, &[tensor1(&[0.3f32])]);
        let y = 0.3f32.exp();
        let dy = 2.0 + 0.5 * y.exp();
        got[0].close_enough(&tensor1(&[dy * y]), Approximation::Close).unwrap();
        got[1].close_enough(&tensor1(&[dy]), Approximation::Close).unwrap();
    }
}
