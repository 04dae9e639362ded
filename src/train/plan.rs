//! One gradient graph, bound to a micro-batch's shapes and ready to run.

use super::features::{Features, target_nodes};
use super::forward::{Layer, Trained, change_layer};
use super::gradient::{backward, ones, reaches};
use super::head::{self, pool};
use super::kind;
use super::knowledge::{Kept, Penalty, penalty};
use super::loss::Loss;
use super::parameter::{self, Parameter};
use super::tasks::Task;
use super::vjp::rows::sum_rows;
use crate::adapter::{Kind, Pool};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{bind_dims, contract_einsums, decluttered, memory, tract_error, within};
use crate::pack::Role;
use crate::runtime::{Binding, Engine, Reading};
use std::sync::{Arc, Mutex, PoisonError};
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
    /// The graph's own input at this place.
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
    runnable: Arc<TypedSimplePlan>,
    idle: Mutex<Vec<TypedSimpleState>>,
    slots: Vec<Slot>,
    /// Dimensions of the head's answer: (B, classes) or (B, T, classes).
    answer_shape: Vec<usize>,
    /// Features that the head reads.
    width: usize,
    peak: u64,
}

/// A graph with its loss.
struct Wired {
    model: TypedModel,
    loss: Loss,
    penalty: Option<Penalty>,
    /// The head's answer.
    logits: OutletId,
    /// The inputs that are trained, by their parameters' names.
    trained: Vec<(String, OutletId)>,
}

impl Wired {
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
        let loss = setup.task.rules().loss(&mut model, outlet)?;
        return Ok(Wired { model, loss, penalty: None, logits: outlet, trained });
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
    let loss = setup.task.rules().loss(&mut model, part.logits)?;
    Ok(Wired { model, loss, penalty, logits: part.logits, trained })
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
        let named = |e: Error| {
            let text = engine.original_names(e.message());
            let renamed = Error::new(e.kind(), text);
            match e.hint_text() {
                Some(hint) => renamed.hint(hint),
                None => renamed,
            }
        };
        let wired = wire(engine, binding, setup).map_err(named)?;
        let trained = wired.inputs_of(parameters)?;
        let Wired { mut model, loss, penalty, logits, .. } = wired;
        let shape = model.outlet_fact(logits).map_err(failed)?.shape.as_concrete();
        let answer_shape = shape.map(<[usize]>::to_vec).ok_or_else(|| {
            let name = &setup.features.name;
            Error::unsupported(format!("the sizes of the output '{name}' are open"))
                .hint("fix them with --dim when packing")
        })?;
        let mut seeds = vec![(loss.value, ones(&mut model, loss.value)?)];
        if let Some(penalty) = penalty {
            seeds.push((penalty.value, ones(&mut model, penalty.value)?));
        }
        let gradients = backward(&mut model, &seeds, &trained).map_err(named)?;
        let outputs: Vec<OutletId> = std::iter::once(loss.value).chain(gradients).collect();
        model.select_output_outlets(&outputs).map_err(failed)?;
        let slots = slots(&model, engine.inputs().len(), &loss, penalty, &trained)?;
        let optimizing =
            |e: TractError| named(tract_error(ErrorKind::Unsupported, &e).at("gradient graph"));
        let runnable = optimized(model).and_then(TypedSimplePlan::new).map_err(optimizing)?;
        let peak = memory::peak(&runnable).map_err(failed)?;
        let width = setup.features.width;
        Ok(Plan { runnable, idle: Mutex::new(vec![]), slots, answer_shape, width, peak })
    }

    /// Bytes of tensors that are alive at once while it runs, at most.
    pub(crate) fn peak(&self) -> u64 {
        self.peak
    }

    /// Dimensions of the head's answer.
    pub(crate) fn answer_shape(&self) -> &[usize] {
        &self.answer_shape
    }

    /// An input of the penalty; zeros where nothing is to be kept.
    fn kept(&self, shape: &[usize], values: Option<&[f32]>) -> Result<TValue> {
        let tensor = match values {
            Some(values) => Tensor::from_shape(shape, values),
            None => Tensor::zero::<f32>(shape),
        };
        Ok(tensor.map_err(failed)?.into_tvalue())
    }

    /// The loss and the gradients, in the order of the parameters. `inputs` are the graph's own,
    /// `targets` those of [`Loss::targets`], `kept` what the rows should stay near to.
    pub(crate) fn run(
        &self,
        engine: &Engine,
        inputs: &[TValue],
        parameters: &[Arc<Tensor>],
        targets: &[Tensor],
        weight_sum: f32,
        kept: Option<&Kept>,
    ) -> Result<(f32, Vec<Tensor>)> {
        let limit = engine.memory();
        let _taken = limit.map(|limit| limit.take(self.peak + memory::SCRATCH)).transpose()?;
        let rows = self.answer_shape.first().copied().unwrap_or(1);
        let mut values = tvec![];
        for slot in &self.slots {
            values.push(match *slot {
                Slot::Input(i) => inputs[i].clone(),
                Slot::Parameter(i) => TValue::from_const(parameters[i].clone()),
                Slot::Target(i) => targets
                    .get(i)
                    .cloned()
                    .ok_or_else(|| Error::failed("a loss lacks a target"))?
                    .into_tvalue(),
                Slot::WeightSum => tensor0(weight_sum).into_tvalue(),
                Slot::Base => self.kept(&[rows, self.width], kept.map(|k| &k.base[..]))?,
                Slot::BaseWeights => self.kept(&[rows], kept.map(|k| &k.weights[..]))?,
            });
        }
        let running = |e: TractError| {
            let text = engine.original_names(&format!("{e:#}"));
            Error::failed(format!("running the gradient graph: {text}"))
        };
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut state = match idle {
            Some(state) => state,
            None => self.runnable.spawn().map_err(running)?,
        };
        // A state that failed in the middle of a run is not used again.
        let mut outputs = state.run(values).map_err(running)?.into_iter();
        let loss = outputs.next().ok_or_else(|| Error::failed("no loss was computed"))?;
        let loss = floats(&loss)?.first().copied().unwrap_or(f32::NAN);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(state);
        Ok((loss, outputs.map(|g| g.into_tensor()).collect()))
    }
}

/// As tract's `into_optimized`, with contractions in place of EinSums: between the two passes, since
/// the first moves transpositions into the EinSums' subscripts and the second packs operands.
fn optimized(model: TypedModel) -> TractResult<TypedModel> {
    let mut model = decluttered(model)?;
    contract_einsums(&mut model)?;
    sum_rows(&mut model)?;
    model.optimize()?;
    Ok(model)
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
