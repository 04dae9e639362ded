//! Scan: one loop back through time. Its body is the backward part of the forward body; what that
//! reads of a step, the forward loop keeps, so that no step is computed twice.

use tract_core::internal::*;
use tract_core::model::order::eval_order_for_nodes;
use tract_core::ops::konst::Const;
use tract_core::ops::scan::{InputMapping, OutputMapping, Scan, ScanInfo};

use super::ops::Blank;
use super::{InputGradients, Site, Wires};
use crate::error::{Error, Result};
use crate::train::gradient::{reaches, wire_backward};

pub(super) fn scan(b: &mut Wires, site: &Site) -> Result<InputGradients> {
    let op = site.op::<Scan>()?;
    let inputs = op.input_mapping.iter().filter_map(InputMapping::as_scan);
    let outputs = op.output_mapping.iter().filter_map(|o| o.scan.as_ref().map(|(_, info)| info));
    if op.skip != 0 || inputs.chain(outputs).any(|info| info.chunk.unsigned_abs() != 1) {
        return Err(site.unsupported("it goes by several values at a time"));
    }
    let varying = varying(op, site)?;
    let mut model = op.body.clone();
    let forward = model.nodes().len();
    let mut seeds = vec![];
    let mut back = Back::new(&model, site, op, forward);
    for (ix, mapping) in op.output_mapping.iter().enumerate() {
        let outlet = op.body.outputs[ix];
        let slot = |slot: usize| site.gradients.get(slot).copied().flatten();
        let fact = outlet_fact(&model, outlet)?.without_value();
        let mut seed = |mapping, outer, back: &mut Back| -> Result<OutletId> {
            let name = format!("seed.{}", seeds.len());
            let source = model.add_source(name, fact.clone()).map_err(failed)?;
            seeds.push((outlet, source));
            back.feed(source, &fact, mapping, outer)?;
            Ok(source)
        };
        if let Some((at, info)) = mapping.scan
            && let Some(gradient) = slot(at)
        {
            seed(InputMapping::Scan(reversed(&info)), Outer::Is(gradient), &mut back)?;
        }
        let last = mapping.last_value_slot.and_then(slot);
        let state = state_input(op, ix).filter(|&input| varying[input]);
        if let Some(input) = state {
            let source = seed(InputMapping::State, last.into(), &mut back)?;
            back.next.push(Next::State { input, source });
        } else if !mapping.state && last.is_some() {
            // Of the last step alone: a state that is zero from the next one on.
            let source = seed(InputMapping::State, last.into(), &mut back)?;
            back.next.push(Next::Nothing { source });
        }
    }
    let wanted: Vec<usize> = (0..varying.len()).filter(|&slot| varying[slot]).collect();
    let sources: Vec<OutletId> = wanted.iter().map(|&slot| op.body.inputs[slot]).collect();
    let found = wire_backward(&mut model, &seeds, &sources)?;
    let mut gradients: Vec<Option<OutletId>> = vec![None; varying.len()];
    for (slot, gradient) in wanted.into_iter().zip(found) {
        gradients[slot] = gradient;
    }
    back.wire(b, model, gradients)
}

fn failed(e: TractError) -> Error {
    Error::failed(format!("a loop's backward part: {e:#}"))
}

fn outlet_fact(model: &TypedModel, outlet: OutletId) -> Result<&TypedFact> {
    model.outlet_fact(outlet).map_err(failed)
}

/// The same steps in the other order.
fn reversed(info: &ScanInfo) -> ScanInfo {
    ScanInfo { axis: info.axis, chunk: -info.chunk }
}

/// The input that takes over what output `ix` of the body gives.
fn state_input(op: &Scan, ix: usize) -> Option<usize> {
    let mut inputs = (0..op.input_mapping.len()).filter(|&slot| op.input_mapping[slot].is_state());
    let mut outputs = (0..op.output_mapping.len()).filter(|&ix| op.output_mapping[ix].state);
    inputs.nth(outputs.position(|state| state == ix)?)
}

/// The inputs of the body that need a gradient: those wanted, and the states that depend on them.
fn varying(op: &Scan, site: &Site) -> Result<Vec<bool>> {
    let body = &op.body;
    let mut varying: Vec<bool> = (0..body.inputs.len()).map(|slot| site.wants(slot)).collect();
    loop {
        let before = varying.clone();
        let on: Vec<OutletId> =
            (0..varying.len()).filter(|&s| varying[s]).map(|s| body.inputs[s]).collect();
        for (ix, &output) in body.outputs.iter().enumerate() {
            if let Some(slot) = state_input(op, ix)
                && outlet_fact(body, output)?.datum_type.is_float()
                && reaches(body, &[output], &on)?.contains(&true)
            {
                varying[slot] = true;
            }
        }
        if varying == before {
            return Ok(varying);
        }
    }
}

/// Where an input of the backward loop comes from.
enum Outer {
    Is(OutletId),
    Zeros,
    /// What the forward loop keeps of each step, by place.
    Kept(usize),
}

impl From<Option<OutletId>> for Outer {
    fn from(outlet: Option<OutletId>) -> Outer {
        outlet.map_or(Outer::Zeros, Outer::Is)
    }
}

/// What a state of the backward loop becomes in a step.
enum Next {
    /// The gradient of the forward loop's state at this input.
    State { input: usize, source: OutletId },
    /// Nothing.
    Nothing { source: OutletId },
}

/// The backward loop as it grows.
struct Back<'a> {
    site: &'a Site<'a>,
    op: &'a Scan,
    /// Nodes of the body below this one are forward.
    forward: usize,
    model: TypedModel,
    /// From the body with both parts to the backward loop's.
    map: HashMap<OutletId, OutletId>,
    inputs: Vec<(InputMapping, Outer)>,
    next: Vec<Next>,
    /// Values of the forward body that the backward one reads.
    kept: Vec<OutletId>,
}

impl<'a> Back<'a> {
    fn new(body: &TypedModel, site: &'a Site<'a>, op: &'a Scan, forward: usize) -> Back<'a> {
        let model = TypedModel { symbols: body.symbols.clone(), ..TypedModel::default() };
        let (map, inputs, next, kept) = (HashMap::new(), vec![], vec![], vec![]);
        Back { site, op, forward, model, map, inputs, next, kept }
    }

    /// A new input of the backward loop.
    fn input(&mut self, fact: TypedFact, mapping: InputMapping, outer: Outer) -> Result<OutletId> {
        let name = format!("input.{}", self.inputs.len());
        self.inputs.push((mapping, outer));
        self.model.add_source(name, fact).map_err(failed)
    }

    /// A new input that stands for `outlet`.
    fn feed(
        &mut self,
        outlet: OutletId,
        fact: &TypedFact,
        mapping: InputMapping,
        outer: Outer,
    ) -> Result<()> {
        let source = self.input(fact.without_value(), mapping, outer)?;
        self.map.insert(outlet, source);
        Ok(())
    }

    /// Wires the loop with the backward nodes of `model` as its body; `gradients` are those of the
    /// body's inputs.
    fn wire(
        mut self,
        b: &mut Wires,
        mut model: TypedModel,
        gradients: Vec<Option<OutletId>>,
    ) -> Result<InputGradients> {
        let (op, site) = (self.op, self.site);
        let mut results: TVec<Option<usize>> = tvec![None; gradients.len()];
        let mut outputs: Vec<(OutletId, OutputMapping<TDim>)> = vec![];
        let mut slots = 0;
        let mut shown = |results: &mut TVec<Option<usize>>, input: usize| {
            site.wants(input).then(|| {
                results[input] = Some(slots);
                slots += 1;
                slots - 1
            })
        };
        let of = |scan, last_value_slot, state| OutputMapping {
            scan,
            full_dim_hint: None,
            last_value_slot,
            state,
        };
        let mut inner = Wires::new(&mut model, "loop.vjp");
        for next in &self.next {
            let (found, slot) = match *next {
                Next::State { input, source } => {
                    let found = match gradients[input] {
                        Some(gradient) => gradient,
                        None => inner.wire(Blank, &[source])?,
                    };
                    (found, shown(&mut results, input))
                }
                Next::Nothing { source } => (inner.wire(Blank, &[source])?, None),
            };
            outputs.push((found, of(None, slot, true)));
        }
        for (input, mapping) in op.input_mapping.iter().enumerate() {
            let Some(gradient) = gradients[input] else { continue };
            match mapping {
                InputMapping::State => {}
                InputMapping::Scan(info) => {
                    let slot = shown(&mut results, input);
                    let scan = slot.map(|slot| (slot, reversed(info)));
                    outputs.push((gradient, of(scan, None, false)));
                }
                InputMapping::Full => {
                    let fact = inner.fact(op.body.inputs[input])?.without_value();
                    let sum = inner.state(&format!("sum.{input}"), fact.clone())?;
                    let outer = self.input(fact, InputMapping::State, Outer::Zeros)?;
                    self.map.insert(sum, outer);
                    let sum = inner.add(sum, gradient)?;
                    outputs.push((sum, of(None, shown(&mut results, input), true)));
                }
            }
        }
        if outputs.is_empty() {
            return Ok(tvec![None; gradients.len()]);
        }
        self.body(&model, &outputs)?;
        let kept = self.keep(b, model)?;
        if !self.inputs.iter().any(|(mapping, _)| mapping.is_scan()) {
            return Err(site.unsupported("nothing of its steps takes part in the gradient"));
        }
        let mut wires = vec![];
        for ((_, outer), source) in self.inputs.iter().zip(&self.model.inputs) {
            wires.push(match *outer {
                Outer::Is(outlet) => outlet,
                Outer::Kept(at) => OutletId::new(site.node.id, kept + at),
                Outer::Zeros => {
                    let fact = outlet_fact(&self.model, *source)?;
                    b.zeros(fact.datum_type, &fact.shape)?
                }
            });
        }
        let mapping = self.inputs.into_iter().map(|(mapping, _)| mapping).collect();
        let shown = outputs.into_iter().map(|(_, mapping)| mapping).collect();
        let mut back = Scan::new(self.model, mapping, shown, 0).map_err(failed)?;
        back.reset_every_turn = true;
        let found = b.wire_all(back, &wires)?;
        Ok(results.into_iter().map(|slot| slot.map(|slot| found[slot])).collect())
    }

    /// Copies the nodes that `outputs` need.
    fn body(
        &mut self,
        model: &TypedModel,
        outputs: &[(OutletId, OutputMapping<TDim>)],
    ) -> Result<()> {
        let needed: Vec<usize> = outputs.iter().map(|(outlet, _)| outlet.node).collect();
        let order = eval_order_for_nodes(model.nodes(), &[], &needed, &[]).map_err(failed)?;
        for id in order {
            if id >= self.forward && !self.map.contains_key(&id.into()) {
                self.copy(model, id)?;
            }
        }
        let mut outlets = vec![];
        for (outlet, _) in outputs {
            outlets.push(self.value(model, *outlet)?);
        }
        self.model.select_output_outlets(&outlets).map_err(failed)
    }

    fn copy(&mut self, model: &TypedModel, id: usize) -> Result<()> {
        let node = model.node(id);
        let mut inputs = tvec![];
        for input in &node.inputs {
            inputs.push(self.value(model, *input)?);
        }
        let wires = match node.op_as::<Const>() {
            Some(value) => {
                tvec![self.model.add_const(&node.name, value.val().clone()).map_err(failed)?]
            }
            None => self.model.wire_node(&node.name, node.op.clone(), &inputs).map_err(failed)?,
        };
        for (slot, wire) in wires.into_iter().enumerate() {
            self.map.insert(OutletId::new(id, slot), wire);
        }
        Ok(())
    }

    /// What stands for an outlet of `model` in the backward loop.
    fn value(&mut self, model: &TypedModel, outlet: OutletId) -> Result<OutletId> {
        if let Some(&found) = self.map.get(&outlet) {
            return Ok(found);
        }
        let slot = self.op.body.inputs.iter().position(|input| *input == outlet);
        let mapping = slot.map(|slot| (slot, &self.op.input_mapping[slot]));
        let fact = outlet_fact(model, outlet)?.without_value();
        let node = model.node(outlet.node);
        match mapping {
            Some((slot, InputMapping::Full)) => {
                let outer = Outer::Is(self.site.input(slot)?);
                self.feed(outlet, &fact, InputMapping::Full, outer)?;
            }
            Some((slot, InputMapping::Scan(info))) => {
                let outer = Outer::Is(self.site.input(slot)?);
                self.feed(outlet, &fact, InputMapping::Scan(reversed(info)), outer)?;
            }
            None if node.op_is::<AxisOp>() || self.steady(model, outlet.node) => {
                self.copy(model, outlet.node)?;
            }
            _ => {
                // A step's value under a new first axis, along which the steps lie.
                let mut stepped = fact;
                stepped.shape.insert_axis(0).map_err(failed)?;
                let mapping = InputMapping::Scan(ScanInfo { axis: 0, chunk: -1 });
                let source = self.input(stepped, mapping, Outer::Kept(self.kept.len()))?;
                let name = format!("kept.{}", self.kept.len());
                let op = AxisOp::Rm(0);
                let value = self.model.wire_node(name, op, &[source]).map_err(failed)?[0];
                self.kept.push(outlet);
                self.map.insert(outlet, value);
            }
        }
        self.map.get(&outlet).copied().ok_or_else(|| Error::failed("a loop's value is gone"))
    }

    /// Whether a forward node gives the same in each step.
    fn steady(&self, model: &TypedModel, id: usize) -> bool {
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            let slot = self.op.body.inputs.iter().position(|input| input.node == id);
            match slot {
                Some(slot) if self.op.input_mapping[slot] != InputMapping::Full => return false,
                _ => open.extend(model.node(id).inputs.iter().map(|input| input.node)),
            }
        }
        true
    }

    /// Lets the forward loop keep what is read of its steps; gives the slot of the first.
    fn keep(&self, b: &mut Wires, mut model: TypedModel) -> Result<usize> {
        let first = self.site.node.outputs.len();
        if self.kept.is_empty() {
            return Ok(first);
        }
        let mut outputs = self.op.body.outputs.clone();
        let mut mapping = self.op.output_mapping.clone();
        for (at, outlet) in self.kept.iter().enumerate() {
            let name = format!("kept.{}.{}", outlet.node, outlet.slot);
            outputs.extend(model.wire_node(name, AxisOp::Add(0), &[*outlet]).map_err(failed)?);
            mapping.push(OutputMapping {
                scan: Some((first + at, ScanInfo { axis: 0, chunk: 1 })),
                full_dim_hint: None,
                last_value_slot: None,
                state: false,
            });
        }
        model.set_input_outlets(&self.op.body.inputs).map_err(failed)?;
        model.select_output_outlets(&outputs).map_err(failed)?;
        model.compact().map_err(failed)?;
        let op =
            Scan { body: model, decluttered: false, output_mapping: mapping, ..self.op.clone() };
        b.extend(self.site.node.id, op)?;
        Ok(first)
    }
}
