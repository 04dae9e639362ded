//! Where a training graph is cut below its first trained layer, and what crosses there.

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{FrozenConv, FrozenLinear, tract_error};
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use tract_core::internal::*;
use tract_core::model::order::eval_order_for_nodes;

/// A tensor that crosses the cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::train) struct Crossing {
    /// In the graph that was cut.
    outlet: OutletId,
    /// The node that gives it, which has this name in the graph of one row too.
    node: String,
    /// The axis along which rows stand.
    pub axis: usize,
    pub dt: DatumType,
    /// Of one row.
    pub shape: TVec<usize>,
}

/// A cut through a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::train) struct Cut {
    pub crossing: Vec<Crossing>,
    /// Frozen layers below it.
    pub layers: usize,
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Failed, &e)
}

/// Cuts below what is trained: `model`'s first `inputs` inputs are the base's own, all others are trained
/// or belong to the loss, and `outputs` are what is differentiated. `alone` is the same graph for one
/// row; where `model` has one row too, all that crosses is that row's. `None` where no work lies below.
///
/// Crossing are the tensors that trained layers read, but for those that others of them give by no more
/// than one frozen product, which is computed anew rather than kept, and those that come from fewer
/// bytes by cheap steps.
///
/// # Errors
/// Unsupported: a tensor crosses in which rows can't be told apart.
pub(in crate::train) fn find(
    model: &TypedModel,
    inputs: usize,
    outputs: &[OutletId],
    alone: &TypedModel,
    rows: usize,
) -> Result<Option<Cut>> {
    let sides = Sides::of(model, inputs, outputs, alone, rows)?;
    let mut crossing = sides.first_read();
    loop {
        let before = crossing.clone();
        sides.leave_out(&mut crossing)?;
        sides.step_down(&mut crossing)?;
        if crossing == before {
            break;
        }
    }
    let (work, layers) = sides.below(&crossing)?;
    if work == 0 {
        return Ok(None);
    }
    let crossing = crossing.into_iter().map(|outlet| sides.crossing(outlet)).collect();
    let crossing: Option<Vec<Crossing>> = crossing;
    Ok(crossing.filter(|c| !c.is_empty()).map(|crossing| Cut { crossing, layers }))
}

/// Makes what crosses the first inputs of `model`, in the place of the base's `inputs`.
pub(in crate::train) fn keep_above(model: &mut TypedModel, cut: &Cut, inputs: usize) -> Result<()> {
    let others = model.inputs.split_off(inputs.min(model.inputs.len()));
    let mut first = vec![];
    for (at, crossing) in cut.crossing.iter().enumerate() {
        let fact = model.outlet_fact(crossing.outlet).map_err(failed)?.without_value();
        let source = model.add_source(format!("below.{at}"), fact).map_err(failed)?;
        let node = model.node(crossing.outlet.node);
        let readers = node.outputs[crossing.outlet.slot].successors.clone();
        for reader in readers {
            model.add_edge(source, reader).map_err(failed)?;
        }
        first.push(source);
    }
    first.extend(others);
    model.set_input_outlets(&first).map_err(failed)
}

/// Makes what crosses the outputs of `model`, whose inputs become the base's `inputs` alone: of the graph
/// that was cut, or that of one row.
pub(in crate::train) fn keep_below(model: &mut TypedModel, cut: &Cut, inputs: usize) -> Result<()> {
    let names = by_name(model);
    let place = |crossing: &Crossing| {
        let node = names.get(crossing.node.as_str());
        let node = node.ok_or_else(|| Error::failed(format!("'{}' is gone", crossing.node)))?;
        Ok(OutletId::new(*node, crossing.outlet.slot))
    };
    let outputs = cut.crossing.iter().map(place).collect::<Result<Vec<_>>>()?;
    model.select_output_outlets(&outputs).map_err(failed)?;
    model.inputs.truncate(inputs);
    Ok(())
}

fn by_name(model: &TypedModel) -> HashMap<String, usize> {
    model.nodes().iter().map(|node| (node.name.clone(), node.id)).collect()
}

/// Which nodes of a graph are trained or hang on what is, and which on samples alone.
struct Sides<'m> {
    model: &'m TypedModel,
    alone: &'m TypedModel,
    names: HashMap<String, usize>,
    rows: usize,
    /// Nodes on the way to the outputs, inputs first.
    order: Vec<usize>,
    /// Of each node its place in the order.
    place: Vec<usize>,
    /// Whether it hangs on the base's inputs.
    fed: Vec<bool>,
    /// Whether it hangs on anything else that is fed.
    above: Vec<bool>,
}

impl<'m> Sides<'m> {
    fn of(
        model: &'m TypedModel,
        inputs: usize,
        outputs: &[OutletId],
        alone: &'m TypedModel,
        rows: usize,
    ) -> Result<Sides<'m>> {
        let ends: Vec<usize> = outputs.iter().map(|outlet| outlet.node).collect();
        let order = eval_order_for_nodes(model.nodes(), &[], &ends, &[]).map_err(failed)?;
        let count = model.nodes().len();
        let (mut fed, mut above, mut place) =
            (vec![false; count], vec![false; count], vec![0; count]);
        for (at, &id) in order.iter().enumerate() {
            place[id] = at;
            let read = &model.node(id).inputs;
            fed[id] = read.iter().any(|input| fed[input.node]);
            above[id] = read.iter().any(|input| above[input.node]);
            if let Some(input) = model.inputs.iter().position(|input| input.node == id) {
                fed[id] = input < inputs;
                above[id] = input >= inputs;
            }
        }
        let names = by_name(alone);
        Ok(Sides { model, alone, names, rows, order, place, fed, above })
    }

    /// Whether it is computed from samples alone.
    fn is_below(&self, outlet: OutletId) -> bool {
        self.fed[outlet.node] && !self.above[outlet.node]
    }

    /// What a node reads that is computed from samples.
    fn read(&self, node: usize) -> impl Iterator<Item = OutletId> + '_ {
        self.model.node(node).inputs.iter().copied().filter(|input| self.fed[input.node])
    }

    /// What lies below and is read from above.
    fn first_read(&self) -> BTreeSet<OutletId> {
        let above = self.order.iter().filter(|id| self.above[**id]);
        above.flat_map(|id| self.read(*id)).filter(|input| self.is_below(*input)).collect()
    }

    /// The latest first.
    fn sorted(&self, crossing: &BTreeSet<OutletId>) -> Vec<OutletId> {
        let mut sorted: Vec<OutletId> = crossing.iter().copied().collect();
        sorted.sort_by_key(|outlet| Reverse((self.place[outlet.node], outlet.slot)));
        sorted
    }

    /// Whether a node does more than pass over its values: products and convolutions.
    fn is_work(&self, id: usize) -> Result<bool> {
        let (node, facts) = (self.model.node(id), self.model.node_input_facts(id).map_err(failed)?);
        if node.op_is::<FrozenLinear>() || node.op_is::<FrozenConv>() {
            return Ok(true);
        }
        let cost = node.op.cost(&facts).map_err(failed)?;
        let multiplied = cost.iter().filter(|(kind, _)| matches!(kind, Cost::FMA(_)));
        let multiplied: usize = multiplied.filter_map(|(_, count)| count.to_usize().ok()).sum();
        let given = node.outputs.iter().map(|output| &output.fact);
        let volumes = facts.iter().copied().chain(given).map(|fact| fact.shape.volume());
        let values: usize = volumes.filter_map(|volume| volume.to_usize().ok()).sum();
        Ok(multiplied >= 2 * values && multiplied > 0)
    }

    /// Takes out what the others give by cheap steps, of which the last may be a product.
    fn leave_out(&self, crossing: &mut BTreeSet<OutletId>) -> Result<()> {
        for outlet in self.sorted(crossing) {
            crossing.remove(&outlet);
            if !self.is_given(outlet, crossing)? {
                crossing.insert(outlet);
            }
        }
        Ok(())
    }

    fn is_given(&self, outlet: OutletId, by: &BTreeSet<OutletId>) -> Result<bool> {
        let mut open = vec![outlet.node];
        let mut seen = BTreeSet::from([outlet.node]);
        while let Some(node) = open.pop() {
            let is_input = self.model.inputs.iter().any(|input| input.node == node);
            if is_input || seen.len() > MOST_STEPS || (node != outlet.node && self.is_work(node)?) {
                return Ok(false);
            }
            for input in self.read(node) {
                if !by.contains(&input) && seen.insert(input.node) {
                    open.push(input.node);
                }
            }
        }
        Ok(true)
    }

    /// Replaces tensors by what they are made of, where that is fewer bytes, or where their rows can't be
    /// told apart.
    fn step_down(&self, crossing: &mut BTreeSet<OutletId>) -> Result<()> {
        for outlet in self.sorted(crossing) {
            let alike = self.crossing(outlet).is_some();
            if self.model.inputs.iter().any(|input| input.node == outlet.node) {
                if alike {
                    continue;
                }
                let name = &self.model.node(outlet.node).name;
                return Err(Error::unsupported(format!("in '{name}' rows can't be told apart")));
            }
            let given: Vec<OutletId> =
                crossing.iter().copied().filter(|other| other.node == outlet.node).collect();
            let made_of: BTreeSet<OutletId> =
                self.read(outlet.node).filter(|input| !crossing.contains(input)).collect();
            let bytes = |outlets: &mut dyn Iterator<Item = &OutletId>| {
                outlets.map(|outlet| self.bytes(*outlet)).fold(0, u64::saturating_add)
            };
            let fewer = bytes(&mut made_of.iter()) < bytes(&mut given.iter());
            if !alike || (fewer && !self.is_work(outlet.node)?) {
                given.iter().for_each(|outlet| _ = crossing.remove(outlet));
                crossing.extend(made_of);
            }
        }
        Ok(())
    }

    /// Bytes of a tensor; as many as there can be where that is open.
    fn bytes(&self, outlet: OutletId) -> u64 {
        let fact = self.model.outlet_fact(outlet).ok();
        let size = fact.and_then(|fact| {
            let volume = fact.shape.volume().to_usize().ok()?;
            Some((volume * fact.datum_type.size_of()) as u64)
        });
        size.unwrap_or(u64::MAX)
    }

    /// A tensor as it crosses; `None` where its rows can't be told apart.
    fn crossing(&self, outlet: OutletId) -> Option<Crossing> {
        let node = self.model.node(outlet.node);
        let other = OutletId::new(*self.names.get(&node.name)?, outlet.slot);
        let fact = self.model.outlet_fact(outlet).ok()?;
        let alone = self.alone.outlet_fact(other).ok()?;
        if fact.datum_type != alone.datum_type || !fact.datum_type.is_copy() {
            return None;
        }
        let (many, one) = (fact.shape.as_concrete()?, alone.shape.as_concrete()?);
        if many.len() != one.len() {
            return None;
        }
        let differ: Vec<usize> = (0..many.len()).filter(|&axis| many[axis] != one[axis]).collect();
        let axis = match (self.rows, differ.as_slice()) {
            (1, []) => 0,
            (rows, &[axis]) if (many[axis], one[axis]) == (rows, 1) => axis,
            _ => return None,
        };
        let (node, dt, shape) = (node.name.clone(), fact.datum_type, one.into());
        Some(Crossing { outlet, node, axis, dt, shape })
    }

    /// Steps below a cut that multiply, and how many of them are frozen layers.
    fn below(&self, crossing: &BTreeSet<OutletId>) -> Result<(usize, usize)> {
        let mut open: Vec<usize> = crossing.iter().map(|outlet| outlet.node).collect();
        let mut seen: BTreeSet<usize> = open.iter().copied().collect();
        let (mut work, mut layers) = (0, 0);
        while let Some(id) = open.pop() {
            let node = self.model.node(id);
            work += usize::from(self.is_work(id)?);
            layers += usize::from(node.op_is::<FrozenLinear>() || node.op_is::<FrozenConv>());
            for input in self.read(id) {
                if seen.insert(input.node) {
                    open.push(input.node);
                }
            }
        }
        Ok((work, layers))
    }
}

/// Steps that are computed anew rather than kept, for one tensor, at most.
const MOST_STEPS: usize = 64;
