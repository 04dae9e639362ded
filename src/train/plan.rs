//! One gradient graph, bound to a micro-batch's shapes and ready to run.

use super::features::{Features, target_nodes};
use super::forward::{Layer, Trained, change_layer};
use super::gradient::{backward, ones, reaches};
use super::head::{self, pool};
use super::kind;
use super::knowledge::{Kept, Penalty, next_tokens, penalty};
use super::loss::{Loss, dense};
use super::parameter::{self, Group, Parameter};
use super::prefix::Below;
use super::recompute::{Repeat, Repeated};
use super::runnable::{Runnable, named};
use super::tasks::Task;
use crate::adapter::{Kind, Pool};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{bind_dims, tract_error, within};
use crate::pack::Role;
use crate::runtime::{Binding, Engine, Reading};
use std::sync::Arc;
use tract_core::internal::*;

/// What is trained, apart from shapes.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub features: Features,
    /// Outputs of the head.
    pub classes: usize,
    pub task: Task,
    pub kind: Kind,
    /// Of rank and alpha, where the kind has them.
    pub scaling: f32,
    pub targets: Vec<TrainedTarget>,
    /// Whether features that move away from the base's cost something.
    pub keep: bool,
    /// Whether graphs are cut below the first trained layer.
    pub cut: bool,
    /// What graphs may run twice, so that they keep less.
    pub repeat: Repeat,
}

/// A target and its trained tensors.
#[derive(Clone, Debug)]
pub(crate) struct TrainedTarget {
    /// Its place in the target table.
    pub place: usize,
    /// In the order of the kind.
    pub tensors: Vec<Trained>,
}

/// What an input of a gradient graph is fed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// The graph's own input at this place, or what crosses from below.
    Input(usize),
    /// The parameter at this place.
    Parameter(usize),
    /// The loss's target at this place.
    Target(usize),
    WeightSum,
    /// The base's features, and how much each row counts.
    Base,
    BaseWeights,
}

/// A gradient graph ready to run, from several threads at once.
pub(crate) struct Plan {
    runnable: Runnable,
    /// What gives its inputs, where it was cut.
    below: Option<Below>,
    slots: Vec<Slot>,
    /// Dimensions of the head's answer: (B, classes) or (B, T, classes).
    answer_shape: Vec<usize>,
    /// Those of the penalty's two inputs, where there is one.
    kept_shapes: Option<[Vec<usize>; 2]>,
}

/// A graph with its loss.
struct Wired {
    model: TypedModel,
    loss: Loss,
    penalty: Option<Penalty>,
    /// The features that the head reads.
    features: OutletId,
    /// The head's answer.
    logits: OutletId,
    /// The inputs that are trained, by their parameters' names.
    trained: Vec<(String, OutletId)>,
}

impl Wired {
    fn differentiated(&self) -> Vec<OutletId> {
        let penalty = self.penalty.map(|penalty| penalty.value);
        std::iter::once(self.loss.value).chain(penalty).collect()
    }

    /// The input of each of `parameters`.
    fn inputs_of(&self, parameters: &[Parameter]) -> Result<Vec<OutletId>> {
        let input = |p: &Parameter| {
            let found = self.trained.iter().find(|(name, _)| *name == p.name);
            found.map(|(_, outlet)| *outlet).ok_or_else(|| {
                Error::failed(format!("the trained tensor '{}' is not in the graph", p.name))
            })
        };
        parameters.iter().map(input).collect()
    }
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Failed, &e)
}

fn wire(engine: &Engine, binding: &Binding, setup: &Setup) -> Result<Wired> {
    let dims: Vec<(String, i64)> = binding.iter().map(|(k, v)| (k.clone(), *v)).collect();
    let mut model = bind_dims(engine.graph(), &dims)?;
    let mask = engine.inputs().iter().position(|s| s.role == Role::Mask);
    let mask = mask.and_then(|at| model.inputs.get(at).copied());
    let outlet = model.output_outlets().map_err(failed)?.get(setup.features.output).copied();
    let outlet = outlet.ok_or_else(|| Error::failed("the head's output is gone"))?;
    model.select_output_outlets(&[outlet]).map_err(failed)?;

    let nodes = target_nodes(&model)?;
    let wiring = kind::wiring(setup.kind)?;
    let mut trained = vec![];
    for TrainedTarget { place, tensors } in &setup.targets {
        let path = &engine.base().targets()[*place].module_path;
        let stands = nodes.get(place).ok_or_else(|| {
            Error::unsupported(format!("target '{path}' is not in the graph of these dimensions"))
        })?;
        let wire = |layer: &mut Layer<'_>| wiring.wire(layer, setup.scaling);
        let mut change = |model: &mut TypedModel, node| change_layer(model, node, tensors, &wire);
        let inputs = within(&mut model, stands, &mut change)
            .map_err(|e| e.at(format!("target '{path}'")))?;
        for ((tensor, _), outlet) in tensors.iter().zip(inputs) {
            trained.push((parameter::of_target(path, tensor), outlet));
        }
    }
    // A target's sum may have taken the place of the output.
    let outlet = model.output_outlets().map_err(failed)?[0];
    let mut outlet = outlet;
    for (at, op) in Reading::of(engine, setup.features.output).axes().into_iter().enumerate() {
        outlet = model.wire_node(format!("reading.{at}"), op, &[outlet]).map_err(failed)?[0];
    }
    if setup.task.rules().own_output() {
        let loss = setup.task.rules().loss(&mut model, outlet, engine.labels())?;
        let penalty = setup.keep.then(|| next_tokens(&mut model, outlet)).transpose()?;
        return Ok(Wired { model, loss, penalty, features: outlet, logits: outlet, trained });
    }
    let map = model.outlet_fact(outlet).map_err(failed)?.rank() == 4;
    let outlet = head::as_tokens(&mut model, outlet, setup.features.width)?;
    let mask = mask.filter(|_| !map);
    let pooled = pool(&mut model, setup.features.pool, outlet, mask)?;
    let penalty = match setup.keep {
        // Of tokens that are answered for one by one, their mean.
        true if model.outlet_fact(pooled).map_err(failed)?.rank() == 3 => {
            let mean = pool(&mut model, Pool::Mean, pooled, mask)?;
            Some(penalty(&mut model, mean)?)
        }
        true => Some(penalty(&mut model, pooled)?),
        false => None,
    };
    let part = head::head(&mut model, pooled, setup.classes)?;
    trained.push((head::WEIGHT.to_string(), part.weight));
    trained.push((head::BIAS.to_string(), part.bias));
    let loss = setup.task.rules().loss(&mut model, part.logits, engine.labels())?;
    Ok(Wired { model, loss, penalty, features: pooled, logits: part.logits, trained })
}

/// The forward graph for `binding`, and what is differentiated in it.
pub(super) fn forward(
    engine: &Engine,
    binding: &Binding,
    setup: &Setup,
) -> Result<(TypedModel, Vec<OutletId>)> {
    let wired = wire(engine, binding, setup).map_err(|e| named(engine, e))?;
    let outputs = wired.differentiated();
    Ok((wired.model, outputs))
}

/// What gives the features of the base alone that a penalty holds others against, of the base's own inputs.
pub(super) fn base_features(engine: &Engine, binding: &Binding, setup: &Setup) -> Result<Runnable> {
    let setup = Setup { targets: vec![], keep: true, ..setup.clone() };
    let Wired { mut model, penalty, .. } = wire(engine, binding, &setup)?;
    let penalty = penalty.ok_or_else(|| Error::failed("there is no penalty"))?;
    model.select_output_outlets(&[penalty.features]).map_err(failed)?;
    model.inputs.truncate(engine.inputs().len());
    Runnable::of(engine, "graph of the base's features", model)
}

/// Those of the targets whose gradients reach the loss.
pub(crate) fn reaching(engine: &Engine, setup: &Setup) -> Result<Vec<bool>> {
    let wired = wire(engine, &Binding::new(), setup)?;
    let mut last = Vec::with_capacity(setup.targets.len());
    for TrainedTarget { place, tensors } in &setup.targets {
        let path = &engine.base().targets()[*place].module_path;
        let name = tensors.last().map(|(name, _)| parameter::of_target(path, name));
        let found = wired.trained.iter().find(|(other, _)| Some(other) == name.as_ref());
        let found = found.ok_or_else(|| Error::failed(format!("'{path}' has no tensors")))?;
        last.push(found.1);
    }
    reaches(&wired.model, &[wired.loss.value], &last)
}

impl Plan {
    /// Gives the gradients of `parameters`, in their order.
    pub(crate) fn build(
        engine: &Engine,
        binding: &Binding,
        setup: &Setup,
        parameters: &[Parameter],
    ) -> Result<Plan> {
        let named = |e: Error| named(engine, e);
        let mut wired = wire(engine, binding, setup).map_err(named)?;
        let outputs = wired.differentiated();
        let below = match setup.cut {
            true => Below::split(engine, binding, setup, &mut wired.model, &outputs)?,
            false => None,
        };
        let trained = wired.inputs_of(parameters)?;
        let Wired { mut model, loss, penalty, logits, .. } = wired;
        let shape = |outlet| {
            let shape = model.outlet_fact(outlet).map_err(failed)?.shape.as_concrete();
            shape.map(<[usize]>::to_vec).ok_or_else(|| {
                let name = &setup.features.name;
                Error::unsupported(format!("the sizes of the output '{name}' are open"))
                    .hint("fix them with --dim when packing")
            })
        };
        let answer_shape = shape(logits)?;
        let kept_shapes = match penalty {
            Some(Penalty { base, weights, .. }) => Some([shape(base)?, shape(weights)?]),
            None => None,
        };
        let mut seeds = vec![];
        for outlet in outputs {
            seeds.push((outlet, ones(&mut model, outlet)?));
        }
        let gradients = backward(&mut model, &seeds, &trained).map_err(named)?;
        let outputs: Vec<OutletId> = std::iter::once(loss.value).chain(gradients).collect();
        model.select_output_outlets(&outputs).map_err(failed)?;
        let inputs = below.as_ref().map_or(engine.inputs().len(), |below| below.crossing.len());
        let slots = slots(&model, inputs, &loss, penalty, &trained)?;
        let rows = below.as_ref().map_or(0, |below| rows(&answer_shape) * below.row_bytes());
        let repeat = match setup.repeat {
            Repeat::Within(bytes) => Repeat::Within(bytes.saturating_sub(rows)),
            other => other,
        };
        let runnable = Runnable::of_gradients(engine, "gradient graph", model, repeat)?;
        Ok(Plan { runnable, below, slots, answer_shape, kept_shapes })
    }

    /// What it runs twice.
    pub(crate) fn again(&self) -> Repeated {
        self.runnable.again()
    }

    /// Bytes of tensors that are alive at once while it runs, at most; what lies below, if that runs
    /// apart, included.
    pub(crate) fn peak(&self) -> u64 {
        let above = self.runnable.peak();
        let rows = rows(&self.answer_shape);
        // Rows are made one by one before they are put together.
        self.below.as_ref().map_or(above, |b| above.max(b.peak()) + rows * b.row_bytes())
    }

    /// What lies below the first trained layer, where the graph was cut there.
    pub(crate) fn below(&self) -> Option<&Below> {
        self.below.as_ref()
    }

    /// Dimensions of the head's answer.
    pub(crate) fn answer_shape(&self) -> &[usize] {
        &self.answer_shape
    }

    /// The penalty's inputs, zeros where nothing is to be kept: the base's features and what they weigh, of
    /// tokens at the places that `mask` counts. Nothing where there is no penalty.
    pub(crate) fn kept(
        &self,
        kept: Option<&Kept>,
        mask: Option<&[bool]>,
    ) -> Result<Option<[Tensor; 2]>> {
        let Some([base, weights]) = &self.kept_shapes else { return Ok(None) };
        let none = || Kept::of_no_rows(base.first().copied().unwrap_or(1));
        let kept = kept.cloned().unwrap_or_else(none);
        let mask = mask.filter(|_| base.len() == 3);
        Ok(Some([dense(&kept.base, base, mask)?, dense(&kept.weights, weights, mask)?]))
    }

    /// The loss and the gradients, in the order of the parameters. `inputs` are the graph's own or what
    /// crosses from below, `targets` those of [`Loss::targets`], `kept` those of [`Plan::kept`].
    pub(crate) fn run(
        &self,
        engine: &Engine,
        inputs: &[TValue],
        parameters: &[Arc<Tensor>],
        targets: &[Tensor],
        weight_sum: f32,
        kept: Option<[Tensor; 2]>,
    ) -> Result<(f32, Vec<Tensor>)> {
        let of_penalty = |at: usize| {
            let tensor = kept.as_ref().map(|kept| kept[at].clone().into_tvalue());
            tensor.ok_or_else(|| Error::failed("a penalty lacks an input"))
        };
        let mut values = tvec![];
        for slot in &self.slots {
            values.push(match *slot {
                Slot::Input(i) => {
                    let input = inputs.get(i).cloned();
                    input.ok_or_else(|| Error::failed("the gradient graph lacks an input"))?
                }
                Slot::Parameter(i) => TValue::from_const(parameters[i].clone()),
                Slot::Target(i) => targets
                    .get(i)
                    .cloned()
                    .ok_or_else(|| Error::failed("a loss lacks a target"))?
                    .into_tvalue(),
                Slot::WeightSum => tensor0(weight_sum).into_tvalue(),
                Slot::Base => of_penalty(0)?,
                Slot::BaseWeights => of_penalty(1)?,
            });
        }
        let mut outputs = self.runnable.run(engine, values)?.into_iter();
        let loss = outputs.next().ok_or_else(|| Error::failed("no loss was computed"))?;
        let loss = floats(&loss)?.first().copied().unwrap_or(f32::NAN);
        Ok((loss, outputs.map(|g| g.into_tensor()).collect()))
    }
}

/// The way there alone: what gives the features that the head reads, by the targets' values.
pub(crate) struct Look {
    runnable: Runnable,
    below: Option<Below>,
    slots: Vec<Slot>,
}

impl Look {
    pub(crate) fn build(
        engine: &Engine,
        binding: &Binding,
        setup: &Setup,
        parameters: &[Parameter],
    ) -> Result<Look> {
        let Wired { mut model, features, trained, .. } = wire(engine, binding, setup)?;
        let below = match setup.cut {
            true => Below::split(engine, binding, setup, &mut model, &[features])?,
            false => None,
        };
        model.select_output_outlets(&[features]).map_err(failed)?;
        let given = below.as_ref().map_or(engine.inputs().len(), |below| below.crossing.len());
        let mut inputs: Vec<OutletId> = model.inputs.iter().copied().take(given).collect();
        let mut slots: Vec<Slot> = (0..given).map(Slot::Input).collect();
        for (at, parameter) in parameters.iter().enumerate() {
            let found = trained.iter().find(|(name, _)| *name == parameter.name);
            // The head's are not on the way.
            let targets = parameter.group == Group::Targets;
            if let Some((_, outlet)) = found.filter(|_| targets) {
                inputs.push(*outlet);
                slots.push(Slot::Parameter(at));
            }
        }
        model.set_input_outlets(&inputs).map_err(failed)?;
        let runnable = Runnable::of(engine, "graph of the features", model)?;
        Ok(Look { runnable, below, slots })
    }

    /// What lies below the first trained layer, where the graph was cut there.
    pub(crate) fn below(&self) -> Option<&Below> {
        self.below.as_ref()
    }

    /// The features, a row each; `inputs` are the graph's own or what crosses from below.
    pub(crate) fn run(
        &self,
        engine: &Engine,
        inputs: &[TValue],
        parameters: &[Arc<Tensor>],
    ) -> Result<Vec<Vec<f32>>> {
        let mut values = tvec![];
        for slot in &self.slots {
            let value = match *slot {
                Slot::Parameter(i) => parameters.get(i).map(|p| TValue::from_const(p.clone())),
                Slot::Input(i) => inputs.get(i).cloned(),
                _ => None,
            };
            values.push(value.ok_or_else(|| Error::failed("the features' graph lacks an input"))?);
        }
        let outputs = self.runnable.run(engine, values)?;
        let output = outputs.first().ok_or_else(|| Error::failed("no features were computed"))?;
        let width = output.shape().last().copied().unwrap_or(1).max(1);
        Ok(floats(output)?.chunks(width).map(<[f32]>::to_vec).collect())
    }
}

/// Rows that an answer of this shape has.
fn rows(answer_shape: &[usize]) -> u64 {
    answer_shape.first().copied().unwrap_or(1) as u64
}

/// The values of an f32 tensor.
pub(crate) fn floats(tensor: &Tensor) -> Result<&[f32]> {
    let plain = tensor.try_as_plain_ram().map_err(failed)?;
    plain.as_slice::<f32>().map_err(failed)
}

fn slots(
    model: &TypedModel,
    inputs: usize,
    loss: &Loss,
    penalty: Option<Penalty>,
    trained: &[OutletId],
) -> Result<Vec<Slot>> {
    let outlets = model.input_outlets().map_err(failed)?;
    let slot = |(at, outlet): (usize, &OutletId)| {
        if at < inputs {
            Ok(Slot::Input(at))
        } else if let Some(i) = trained.iter().position(|p| p == outlet) {
            Ok(Slot::Parameter(i))
        } else if let Some(i) = loss.targets.iter().position(|t| t == outlet) {
            Ok(Slot::Target(i))
        } else if *outlet == loss.weight_sum {
            Ok(Slot::WeightSum)
        } else if penalty.is_some_and(|p| p.base == *outlet) {
            Ok(Slot::Base)
        } else if penalty.is_some_and(|p| p.weights == *outlet) {
            Ok(Slot::BaseWeights)
        } else {
            Err(Error::failed(format!("input '{}' is unknown", model.node(outlet.node).name)))
        }
    };
    outlets.iter().enumerate().map(slot).collect()
}
