//! Gradients and steps over micro-batches: what a training run is made of.

use super::data::Label;
use super::features::{choose_features, choose_targets, output_layer, usual_targets};
use super::head;
use super::kind::{self, Frozen};
use super::optimizer::{Optimizer, Rule, clip_global_norm};
use super::options::{OptimizerKind, TargetChoice, TrainOptions};
use super::parameter::{self, Group, Parameter};
use super::plan::{Plan, Setup, TrainedTarget, floats, reaching};
use super::prefix::Below;
use super::runnable::tensors;
use super::work::{Above, Fed, Work, mask};
use crate::adapter::{Adapter, Head, NamedTensor, TargetAdapter, scaling};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::tract_error;
use crate::runtime::{Binding, Engine, Named};
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use tract_core::internal::Tensor;

/// What the rows of a micro-batch should answer, as [`Trainer::answers`] makes it. `None`: a row that
/// only fills up the batch.
pub type Answers = Vec<Option<Vec<f32>>>;

/// Rows that go through the graph at once.
#[derive(Clone, Debug, PartialEq)]
pub struct MicroBatch {
    /// The base's inputs by name.
    pub inputs: Named,
    /// One answer a row.
    pub answers: Answers,
}

/// The sum over micro-batches: the batch's mean loss and its gradients, in the order of
/// [`Trainer::parameters`].
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// Mean loss over the rows that count.
    pub loss: f32,
    /// One gradient per trained tensor, of its length.
    pub values: Vec<Vec<f32>>,
}

/// Trained tensors, their optimizer, and the gradient graphs for the shapes seen so far. The
/// frozen weights are those that the engine maps.
pub struct Trainer {
    engine: Engine,
    pub(super) setup: Setup,
    options: TrainOptions,
    pub(super) labels: Vec<String>,
    skipped: Vec<String>,
    pub(super) parameters: Vec<Parameter>,
    /// Of each parameter.
    values: Vec<Vec<f32>>,
    optimizer: Optimizer,
    plans: Mutex<Vec<(Binding, Arc<Plan>)>>,
}

/// Gradient graphs kept for different shapes; the oldest goes first.
const MAX_PLANS: usize = 16;

impl Trainer {
    /// For a head with one output per label, at the first values that `options.seed` fixes:
    /// targets change nothing, the head is random.
    ///
    /// # Errors
    /// Usage: unknown output or targets, a rank of 0, no labels. Unsupported: a target that the kind
    /// has no form for, and ops on the way
    /// without a gradient rule (found when the first plan is built).
    pub fn new(engine: &Engine, options: &TrainOptions, labels: Vec<String>) -> Result<Trainer> {
        options.check()?;
        let own_output = options.task.rules().own_output();
        // What is written is taught through both graphs at once.
        let joined = options.task.rules().writes().then(|| engine.joined()).transpose()?;
        let engine = joined.as_ref().unwrap_or(engine);
        if labels.is_empty() && !own_output {
            return Err(Error::usage("a head needs one label at least"));
        }
        let per_token = options.task.rules().per_token();
        let head_from = options.head_from.as_deref();
        let features = choose_features(engine, head_from, options.pool, per_token)?;
        let choice = usual_targets(engine, options)?;
        let mut chosen = choose_targets(engine, &choice, features.output)?;
        let texts = options.task.rules().learns_texts() || options.task.rules().writes();
        if texts && matches!(choice, TargetChoice::AllLinear) {
            // As PEFT has it: of a language model all layers but that of the vocabulary.
            let last = output_layer(engine, features.output)?;
            chosen.retain(|target| Some(*target) != last);
        }
        let (wiring, frozen) = (kind::wiring(options.kind)?, Frozen::of(engine)?);
        let mut parameters = vec![];
        let mut targets = vec![];
        for place in chosen {
            let tensors = wiring.tensors(&frozen.start(place, options)?)?;
            let shapes = tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
            targets.push(TrainedTarget { place, tensors: shapes });
            parameters.push(tensors);
        }
        let ranked = options.kind.is_ranked();
        let mut setup = Setup {
            features,
            classes: labels.len(),
            task: options.task,
            kind: options.kind,
            scaling: if ranked {
                scaling(options.alpha, options.rank, options.rslora)
            } else {
                0.0
            },
            targets,
            keep: false,
            cut: false,
            repeat: super::recompute::Repeat::Cheap,
        };
        let table = engine.base().targets();
        let reached = reaching(engine, &setup)?;
        let lost = setup.targets.iter().zip(&reached).find(|(_, reached)| !**reached);
        if let (TargetChoice::Regex(_), Some((target, _))) = (&choice, lost) {
            let path = &table[target.place].module_path;
            return Err(Error::usage(format!(
                "target '{path}' can't be trained: no gradient flows from the loss to it"
            )));
        }
        let keep = |at: usize| reached.get(at).copied().unwrap_or(false);
        let mut at = 0..;
        setup.targets.retain(|_| at.next().is_some_and(keep));
        let mut at = 0..;
        parameters.retain(|_| at.next().is_some_and(keep));
        let skipped = match choice {
            TargetChoice::AllLinear => (0..table.len())
                .filter(|&t| !setup.targets.iter().any(|target| target.place == t))
                .filter(|&t| table[t].kind != crate::adapter::TargetKind::Embedding)
                .map(|t| table[t].module_path.clone())
                .collect(),
            _ => vec![],
        };
        let of_targets = setup.targets.iter().zip(parameters).flat_map(|(target, tensors)| {
            let path = &table[target.place].module_path;
            tensors.into_iter().map(move |t| Parameter {
                name: parameter::of_target(path, &t.name),
                shape: t.shape,
                group: Group::Targets,
                initial: t.values,
            })
        });
        let mut parameters: Vec<Parameter> = of_targets.collect();
        let width = setup.features.width;
        if !own_output {
            parameters.extend(parameter::of_head(options.seed, labels.len(), width));
        }
        let weight_decay = f64::from(options.weight_decay);
        let rule = match options.optimizer {
            OptimizerKind::AdamW => {
                Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay }
            }
            OptimizerKind::Sgd { momentum } => {
                Rule::Sgd { momentum: momentum.into(), weight_decay, nesterov: false }
            }
        };
        let lengths = parameters.iter().map(|p| (p.name.clone(), p.initial.len()));
        let optimizer = Optimizer::new(rule, lengths)?;
        Ok(Trainer {
            engine: engine.clone(),
            setup,
            options: options.clone(),
            labels,
            skipped,
            // Moved: what is trained is in memory once.
            values: parameters.iter_mut().map(|p| std::mem::take(&mut p.initial)).collect(),
            parameters,
            optimizer,
            plans: Mutex::new(vec![]),
        })
    }

    /// Whether features that move away from the base's cost something from here on.
    pub(super) fn keep_knowledge(&mut self, keep: bool) {
        self.setup.keep = keep && !self.setup.targets.is_empty();
        self.drop_plans();
    }

    /// Whether graphs are cut below the first trained layer from here on.
    pub(super) fn cut(&mut self, cut: bool) {
        self.setup.cut = cut;
        self.drop_plans();
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether every token has an answer of its own.
    pub(super) fn is_per_token(&self) -> bool {
        self.options.task.rules().per_token()
    }

    /// The base's output that the head reads.
    pub fn output(&self) -> &str {
        &self.setup.features.name
    }

    /// The head's labels.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Number of targets trained.
    pub fn targets(&self) -> usize {
        self.setup.targets.len()
    }

    /// Linear and convolutional targets that were left out because the head's output does not
    /// depend on them.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// The trained tensors: `PATH.TENSOR` of each target (of LoRA `lora_a` (R, in_features) and
    /// `lora_b` (out_features, R)), then `head.weight` (labels, features) and `head.bias` (labels).
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.parameters.iter().zip(&self.values).map(|(p, v)| (p.name.as_str(), v.as_slice()))
    }

    /// Number of trained values.
    pub fn parameter_count(&self) -> usize {
        self.values.iter().map(Vec::len).sum()
    }

    /// Sets one of the trained tensors; an error if there is none of that name and length.
    pub fn set_parameter(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let slot = self.value_mut(name)?;
        if slot.len() != values.len() {
            return Err(Error::mismatch(format!(
                "'{name}' has {} values, got {}",
                slot.len(),
                values.len()
            )));
        }
        slot.copy_from_slice(values);
        Ok(())
    }

    /// The values of one of the trained tensors; an error if there is none of that name.
    pub(super) fn value(&self, name: &str) -> Result<&[f32]> {
        Ok(&self.values[parameter::place(&self.parameters, name)?])
    }

    /// As [`Trainer::value`], to change them.
    pub(super) fn value_mut(&mut self, name: &str) -> Result<&mut [f32]> {
        Ok(&mut self.values[parameter::place(&self.parameters, name)?])
    }

    pub(super) fn values(&self) -> &[Vec<f32>] {
        &self.values
    }

    pub(super) fn set_values(&mut self, values: Vec<Vec<f32>>) {
        self.values = values;
    }

    pub(super) fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    pub(super) fn set_optimizer(&mut self, optimizer: Optimizer) {
        self.optimizer = optimizer;
    }

    /// Bytes that the tensors alive at once take, at most, while a micro-batch of these inputs
    /// runs. Builds and keeps its gradient graph.
    pub fn plan(&self, inputs: &Named) -> Result<u64> {
        let ordered = self.engine.ordered(inputs)?;
        Ok(self.plan_for(&self.engine.binding(&ordered)?)?.peak())
    }

    /// Bytes that cross from below for one row of these inputs.
    pub(super) fn row_bytes(&self, inputs: &Named) -> Result<u64> {
        let plan = self.plan_for(&self.engine.binding(&self.engine.ordered(inputs)?)?)?;
        Ok(plan.below().map_or(0, Below::row_bytes))
    }

    /// Forgets the gradient graphs built so far.
    pub(super) fn drop_plans(&self) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The gradient graph of micro-batches of these sizes, built where it isn't yet.
    pub(super) fn plan_for(&self, binding: &Binding) -> Result<Arc<Plan>> {
        // Held while building: threads that ask for the same shapes wait instead of building too.
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plan)) = plans.iter().find(|(b, _)| b == binding) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(Plan::build(&self.engine, binding, &self.setup, &self.parameters)?);
        if plans.len() == MAX_PLANS {
            plans.remove(0);
        }
        plans.push((binding.clone(), plan.clone()));
        Ok(plan)
    }

    /// The gradients of one batch, given as its micro-batches.
    pub fn gradients(&self, batch: &[MicroBatch]) -> Result<Gradients> {
        let counted = batch.iter().map(|m| self.counted(&m.answers)).sum();
        let make = |i: usize| {
            let MicroBatch { inputs, answers } = &batch[i];
            let fed = Fed::Inputs(Cow::Borrowed(inputs));
            Ok(Work { fed, answers: Cow::Borrowed(answers), kept: None })
        };
        let threads = self.options.threads;
        let found = self.gradients_from(batch.len(), counted, threads, &make, &mut || true)?;
        found.ok_or_else(|| Error::failed("the step was stopped"))
    }

    /// How many answers the mean loss counts.
    pub(super) fn counted(&self, answers: &Answers) -> usize {
        let (rules, width) = (self.options.task.rules(), self.labels.len());
        answers.iter().flatten().map(|target| rules.counted(target, width)).sum()
    }

    /// As [`Trainer::gradients`], with `count` micro-batches made on the threads that work on them;
    /// `counted` is the number of answers that count in all of them. Summed in the order of the
    /// micro-batches, so that the number of threads changes nothing. `None` where `go_on`, asked
    /// before micro-batches start, said stop.
    pub(super) fn gradients_from<'a>(
        &self,
        count: usize,
        counted: usize,
        threads: usize,
        make: &(dyn Fn(usize) -> Result<Work<'a>> + Sync),
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Gradients>> {
        if count == 0 || counted == 0 {
            return Err(Error::usage("a batch without rows"));
        }
        let parameters = self.parameter_tensors()?;
        let mut loss = 0.0f64;
        let mut sums: Vec<Vec<f32>> = vec![];
        let mut add = |(part, gradients): (f32, Vec<Tensor>)| -> Result<()> {
            loss += f64::from(part);
            if sums.is_empty() {
                sums = gradients.iter().map(|g| Ok(floats(g)?.to_vec())).collect::<Result<_>>()?;
                return Ok(());
            }
            for (sum, gradient) in sums.iter_mut().zip(&gradients) {
                for (s, g) in sum.iter_mut().zip(floats(gradient)?) {
                    *s += g;
                }
            }
            Ok(())
        };
        let work = |i: usize| self.run_one(make(i)?, counted, &parameters);
        let threads = threads.clamp(1, count);
        if threads == 1 {
            for i in 0..count {
                if !go_on() {
                    return Ok(None);
                }
                add(work(i)?)?;
            }
        } else {
            for first in (0..count).step_by(threads) {
                if !go_on() {
                    return Ok(None);
                }
                let wave: Vec<Result<(f32, Vec<Tensor>)>> = std::thread::scope(|scope| {
                    let start = |i| {
                        let work = &work;
                        let thread = std::thread::Builder::new();
                        let thread = thread.spawn_scoped(scope, move || work(i));
                        thread.map_err(|e| Error::failed(format!("no thread to train with: {e}")))
                    };
                    let handles: Vec<_> = (first..count.min(first + threads)).map(start).collect();
                    let died = |_| Err(Error::failed("a training thread panicked"));
                    let end =
                        |h: std::thread::ScopedJoinHandle<'_, _>| h.join().unwrap_or_else(died);
                    handles.into_iter().map(|handle| handle.and_then(end)).collect()
                });
                for result in wave {
                    add(result?)?;
                }
            }
        }
        Ok(Some(Gradients { loss: loss as f32, values: sums }))
    }

    /// Steps that the head's answer has, or the base's own.
    pub(super) fn steps(&self, fed: &Fed<'_>) -> Result<usize> {
        let binding = match fed {
            Fed::Inputs(inputs) => Cow::Owned(self.engine.binding(&self.engine.ordered(inputs)?)?),
            Fed::Above(above) => Cow::Borrowed(&above.binding),
        };
        Ok(self.plan_for(&binding)?.answer_shape().get(1).copied().unwrap_or(0))
    }

    pub(super) fn parameter_tensors(&self) -> Result<Vec<Arc<Tensor>>> {
        let tensors = self.parameters.iter().zip(&self.values);
        tensors.map(|(p, v)| Ok(Arc::new(tensor(&p.shape, v)?))).collect()
    }

    fn run_one(
        &self,
        Work { fed, answers, kept }: Work<'_>,
        counted: usize,
        parameters: &[Arc<Tensor>],
    ) -> Result<(f32, Vec<Tensor>)> {
        let (engine, rules) = (&self.engine, self.options.task.rules());
        let Above { binding, tensors, mask } = match fed {
            Fed::Inputs(inputs) => Above {
                binding: engine.binding(&engine.ordered(&inputs)?)?,
                tensors: tensors(engine, &inputs)?,
                mask: if rules.per_token() { mask(engine, &inputs) } else { None },
            },
            Fed::Above(above) => above,
        };
        let plan = self.plan_for(&binding)?;
        let shape = plan.answer_shape();
        // A mask of another length is not that of what the head reads.
        let mask = mask.filter(|m| m.len() == shape.iter().take(2).product::<usize>());
        let targets = rules.tensors(&answers, shape, mask.as_deref())?;
        let kept = plan.kept(kept.as_ref(), mask.as_deref())?;
        plan.run(engine, &tensors, parameters, &targets, counted as f32, kept)
    }

    /// What rows with these labels should answer, for [`MicroBatch::answers`]. Labels of tokens are
    /// places among them.
    ///
    /// # Errors
    /// Usage: labels of another sort than the task's, or that the head doesn't have.
    pub fn answers(&self, labels: &[Label]) -> Result<Answers> {
        let (rules, width) = (self.options.task.rules(), self.labels.len());
        labels.iter().map(|label| rules.target(label, width, None).map(Some)).collect()
    }

    /// Clips and takes one optimizer step at learning rate `rate`, the head's by its own factor.
    pub fn apply(&mut self, gradients: &mut Gradients, rate: f64) -> Result<()> {
        if let Some(clip) = self.options.clip {
            clip_global_norm(&mut gradients.values, clip.into())?;
        }
        let factors: Vec<f64> =
            self.parameters.iter().map(|p| p.group.factor(&self.options)).collect();
        let rate_of = |place: usize| rate * factors[place];
        self.optimizer.step_each(rate_of, &mut self.values, &gradients.values)
    }

    /// [`Trainer::gradients`] and [`Trainer::apply`]; the loss before the step.
    pub fn step(&mut self, batch: &[MicroBatch], rate: f64) -> Result<f32> {
        let mut gradients = self.gradients(batch)?;
        self.apply(&mut gradients, rate)?;
        Ok(gradients.loss)
    }

    /// The adapter with the values as they are now; no training record, no probes.
    pub fn adapter(&self) -> Result<Adapter> {
        let table = self.engine.base().targets();
        let kind = self.setup.kind;
        let (rank, alpha, rslora) = match kind.is_ranked() {
            true => (self.options.rank, self.options.alpha, self.options.rslora),
            false => (0, 0.0, false),
        };
        let mut targets = vec![];
        for target in &self.setup.targets {
            let module_path = table[target.place].module_path.clone();
            let mut tensors = vec![];
            for (name, shape) in &target.tensors {
                let values = self.value(&parameter::of_target(&module_path, name))?;
                tensors.push(NamedTensor::new(name, shape, values.to_vec()));
            }
            targets.push(TargetAdapter { module_path, kind, rank, alpha, rslora, tensors });
        }
        let (weight, bias) = match self.options.task.rules().own_output() {
            true => (vec![], vec![]),
            false => (self.value(head::WEIGHT)?.to_vec(), self.value(head::BIAS)?.to_vec()),
        };
        let head = Head {
            task: self.options.task.name().into(),
            output: self.setup.features.name.clone(),
            pool: self.setup.features.pool,
            labels: self.labels.as_slice().into(),
            features: self.setup.features.width as u32,
            weight,
            bias,
            ..Head::default()
        };
        Ok(Adapter {
            name: self.options.name.clone(),
            base: Some(self.engine.base().fingerprint()),
            targets,
            heads: vec![head],
            ..Adapter::default()
        })
    }
}

fn tensor(shape: &[usize], values: &[f32]) -> Result<Tensor> {
    Tensor::from_shape(shape, values).map_err(|e| tract_error(ErrorKind::Failed, &e))
}
