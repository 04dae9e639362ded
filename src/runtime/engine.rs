//! A base made runnable: its graph, and plans for the dimensions it has been run with.

use super::convert::{to_array, to_tensor};
use super::graphs::Graph;
use super::memory::{MemoryLimit, Taken, more};
use super::plans::{Binding, Plan, Plans};
use crate::adapter::{Adapter, Bound, bind};
use crate::error::{Cause, Error, ErrorKind, Result};
use crate::fs::available_bytes;
use crate::graph::{
    ActiveAdapter, FrozenWeights, Halt, KeptStates, RowAdapters, Stop, Watch, bind_dims,
    run_watched, solve, tract_error,
};
use crate::pack::{Base, GraphRecord, IoSpec, Role};
use crate::quant::{PackedRef, Threads, WeightSource, check_kernels};
use crate::shape::{Array, Input, View};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tract_core::internal::*;

/// A mapped base and its plans, shared by all sessions and threads. Cheap to clone.
///
/// It runs one graph of its base: the main one, or that which [`Engine::graph_named`] gives. All
/// graphs share the base, its targets and so every bound adapter; each has its own plans.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    graph: Arc<Graph>,
    threads: Threads,
    memory: Option<MemoryLimit>,
}

struct Shared {
    base: Base,
    /// Names of the base's own classes, shared by all answers.
    labels: Arc<[String]>,
    weights: FrozenWeights,
    /// Those that have been asked for.
    graphs: Mutex<Vec<Arc<Graph>>>,
}

/// A run's outputs, with the memory that is taken for them.
pub(super) struct Made {
    pub outputs: TVec<TValue>,
    _taken: Option<Arc<Mutex<Taken>>>,
}

/// What a run adds to the base.
pub(super) enum Carried<'a> {
    Nothing,
    One(&'a Arc<Bound>),
    /// One entry for each row of the batch.
    Rows(&'a [Option<Arc<Bound>>]),
}

impl WeightSource for Base {
    fn weight(&self, index: usize) -> Result<PackedRef<'_>> {
        Base::weight(self, index)
    }
}

/// Named tensors, in the order of the graph's inputs or outputs.
pub type Named = Vec<(String, Array)>;

impl Engine {
    /// Opens a base file; see [`Base::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Engine> {
        Engine::new(Base::open(path)?)
    }

    /// Reads the base's graph; its weights stay where they are mapped.
    /// They are read ahead where there is memory for it.
    ///
    /// # Errors
    /// A damaged graph ([`ErrorKind::BadInput`]); kernels asked for that can't be had
    /// ([`ErrorKind::Usage`]).
    pub fn new(base: Base) -> Result<Engine> {
        check_kernels()?;
        if available_bytes().is_some_and(|free| free / 2 > base.file_len()) {
            base.will_need();
        }
        let weights = FrozenWeights::new(base.clone());
        let graph = Arc::new(Graph::read(&base, &weights, 0)?);
        let labels = base.preprocess().labels.as_slice().into();
        let shared = Shared { base, labels, weights, graphs: Mutex::new(vec![graph.clone()]) };
        Ok(Engine { shared: Arc::new(shared), graph, threads: Threads::default(), memory: None })
    }

    /// The same base with another of its graphs, which is read when it is first asked for.
    ///
    /// # Errors
    /// No graph of this name ([`ErrorKind::Mismatch`]); a damaged one ([`ErrorKind::BadInput`]).
    pub fn graph_named(&self, name: &str) -> Result<Engine> {
        let base = &self.shared.base;
        let index = base.graph_index(name).ok_or_else(|| {
            Error::mismatch(format!("'{}' has no graph '{name}'", base.path().display()))
                .hint(format!("its graphs are {}", base.graphs().collect::<Vec<_>>().join(", ")))
        })?;
        let mut graphs = self.shared.graphs.lock().unwrap_or_else(PoisonError::into_inner);
        let graph = match graphs.iter().find(|g| g.index == index) {
            Some(graph) => graph.clone(),
            None => {
                let graph = Arc::new(Graph::read(base, &self.shared.weights, index)?);
                graphs.push(graph.clone());
                graph
            }
        };
        drop(graphs);
        Ok(Engine { graph, ..self.clone() })
    }

    /// The same base with a graph made of its own ones.
    pub(super) fn with_graph(&self, model: TypedModel, record: GraphRecord) -> Engine {
        let (index, plans) = (self.graph.index, Plans::default());
        let graph = Graph { index, record: Some(record), model, plans };
        Engine { graph: Arc::new(graph), ..self.clone() }
    }

    /// The name of the graph that this one runs.
    pub fn graph_name(&self) -> &str {
        self.shared.base.graphs().nth(self.graph.index).unwrap_or_default()
    }

    /// The same base and plans, with runs whose larger steps share their work between `threads`
    /// threads: one at the start. The answers have the same bits whatever their number. Of several runs
    /// at once one has the threads, the others stay on their callers'.
    ///
    /// # Errors
    /// A number of 0 or above 256 (usage); threads that the system doesn't give.
    pub fn with_threads(self, threads: usize) -> Result<Engine> {
        Ok(Engine { threads: Threads::new(threads)?, ..self })
    }

    /// The same base and plans, with runs that take their memory of `limit`: what a run takes is
    /// planned from the sizes of its inputs before it starts, and what does not fit is refused.
    /// `None`: whatever they take.
    pub fn with_memory(self, limit: impl Into<Option<MemoryLimit>>) -> Engine {
        Engine { memory: limit.into(), ..self }
    }

    /// What the memory of runs is taken of.
    pub fn memory(&self) -> Option<&MemoryLimit> {
        self.memory.as_ref()
    }

    /// The base.
    pub fn base(&self) -> &Base {
        &self.shared.base
    }

    /// The graph with its dimensions free.
    pub(crate) fn graph(&self) -> &TypedModel {
        &self.graph.model
    }

    /// What was decided about the graph when it was packed.
    pub(crate) fn record(&self) -> Option<&GraphRecord> {
        let own = || self.shared.base.record().graphs.get(self.graph.index);
        self.graph.record.as_ref().or_else(own)
    }

    /// Names of the base's own classes; none where it was packed without.
    pub(crate) fn labels(&self) -> &Arc<[String]> {
        &self.shared.labels
    }

    /// The graph's inputs.
    pub fn inputs(&self) -> &[IoSpec] {
        self.record().map_or(&[], |r| &r.inputs)
    }

    /// The graph's outputs.
    pub fn outputs(&self) -> &[IoSpec] {
        self.record().map_or(&[], |r| &r.outputs)
    }

    /// The graph's first input of this role.
    pub fn input(&self, role: Role) -> Option<&IoSpec> {
        self.inputs().iter().find(|s| s.role == role)
    }

    /// The value that `inputs` give the graph's input of this role.
    pub fn given<'a, I: Input>(&self, inputs: &'a [I], role: Role) -> Option<View<'a>> {
        let name = &self.input(role)?.name;
        inputs.iter().find(|input| input.name() == name).map(I::view)
    }

    /// Makes adapters ready to run on this base, stacked with their weights: all or nothing.
    pub fn bind(&self, adapters: &[(&Adapter, f32)]) -> Result<Arc<Bound>> {
        let base = self.base();
        let bound = bind(adapters, base.targets(), &base.fingerprint(), base)?;
        if let Some(head) = &bound.head {
            // Of any of the graphs: a decoder's head may be another graph's than this one's.
            let graphs = &base.record().graphs;
            let mut outputs = graphs.iter().flat_map(|g| &g.outputs).map(|o| o.name.as_str());
            if !outputs.clone().any(|name| name == head.output) {
                return Err(Error::mismatch(format!(
                    "head '{}' reads the output '{}', which the base does not have",
                    head.name, head.output
                ))
                .hint(format!(
                    "its outputs are {}",
                    outputs.by_ref().collect::<Vec<_>>().join(", ")
                )));
            }
        }
        Ok(Arc::new(bound))
    }

    /// Runs the base with an adapter, or without. `inputs` by name, in any order; every input of
    /// the graph must be there. Outputs come in the graph's order.
    ///
    /// # Errors
    /// Missing, unknown or ill-shaped inputs ([`ErrorKind::BadInput`]); more memory than
    /// [`Engine::with_memory`] allows ([`Cause::TooLarge`], [`Cause::Short`]).
    pub fn run<I: Input>(&self, inputs: &[I], adapter: Option<&Arc<Bound>>) -> Result<Named> {
        let mut outputs = vec![];
        self.run_into(inputs, adapter, &mut outputs)?;
        Ok(outputs)
    }

    /// As [`Engine::run`], into the memory of earlier outputs: `outputs` is what such a run gave, or
    /// empty. After an error it holds nothing of use but that memory.
    pub fn run_into<I: Input>(
        &self,
        inputs: &[I],
        adapter: Option<&Arc<Bound>>,
        outputs: &mut Named,
    ) -> Result<()> {
        let carried = adapter.map_or(Carried::Nothing, Carried::One);
        self.run_with(&self.ordered(inputs)?, carried, Watch::default(), outputs)
    }

    /// As [`Engine::run`], until `stop` says so: it is asked between the steps of the plan.
    ///
    /// # Errors
    /// As [`Engine::run`]; [`Cause::Stopped`].
    pub fn run_until<I: Input>(
        &self,
        inputs: &[I],
        adapter: Option<&Arc<Bound>>,
        stop: Stop,
    ) -> Result<Named> {
        let carried = adapter.map_or(Carried::Nothing, Carried::One);
        let mut outputs = vec![];
        let watch = Watch { stop: Some(stop), ..Watch::default() };
        self.run_with(&self.ordered(inputs)?, carried, watch, &mut outputs)?;
        Ok(outputs)
    }

    pub(super) fn run_with(
        &self,
        ordered: &[View<'_>],
        carried: Carried<'_>,
        watch: Watch,
        named: &mut Named,
    ) -> Result<()> {
        let binding = self.binding(ordered)?;
        let plan = self.plan(&binding)?;
        let mut tensors = tvec![];
        for ((spec, view), outlet) in self.inputs().iter().zip(ordered).zip(&self.graph().inputs) {
            let fact = self
                .graph()
                .outlet_fact(*outlet)
                .map_err(|e| tract_error(ErrorKind::Failed, &e))?;
            tensors.push(to_tensor(&spec.name, *view, fact.datum_type)?.into_tvalue());
        }
        let made = self.execute(&plan, tensors, carried, None, watch)?;
        let outputs = &made.outputs;
        named.truncate(outputs.len());
        for (at, (spec, value)) in self.outputs().iter().zip(outputs.iter()).enumerate() {
            if named.len() == at {
                named.push((String::new(), Array::default()));
            }
            let (name, array) = &mut named[at];
            name.clone_from(&spec.name);
            *array = to_array(name, value, std::mem::take(array))?;
        }
        Ok(())
    }

    /// Runs a plan on tensors in the order of the graph's inputs.
    pub(super) fn execute(
        &self,
        plan: &Plan,
        tensors: TVec<TValue>,
        carried: Carried<'_>,
        kept: Option<&KeptStates>,
        mut watch: Watch,
    ) -> Result<Made> {
        let taken = self.memory.as_ref().map(|limit| limit.take(plan.bytes)).transpose()?;
        let taken = taken.map(|taken| Arc::new(Mutex::new(taken)));
        let mut state = plan.state().map_err(|e| tract_error(ErrorKind::Failed, &e))?;
        let shared = &mut state.turn_state.shared;
        watch.more = taken.clone().map(more);
        watch.open = plan.open.clone();
        if watch.stop.is_some() || watch.more.is_some() || watch.trace.is_some() {
            shared.insert(watch);
        }
        shared.remove::<ActiveAdapter>();
        shared.remove::<RowAdapters>();
        kept.map(|kept| shared.insert(kept.clone()));
        match carried {
            Carried::Nothing => {}
            Carried::One(bound) => drop(shared.insert(ActiveAdapter(bound.clone()))),
            Carried::Rows(bound) => drop(shared.insert(RowAdapters(bound.to_vec()))),
        }
        // A state that failed in the middle of a run is not used again.
        let outputs = match plan.shares {
            true => self.threads.during(|| run_watched(&mut state, tensors)),
            false => run_watched(&mut state, tensors),
        };
        let outputs = outputs.map_err(|e| self.run_error(&e))?;
        state.turn_state.shared.remove::<Watch>();
        state.turn_state.shared.remove::<KeptStates>();
        plan.keep(state);
        Ok(Made { outputs, _taken: taken })
    }

    /// An error if these are not the graph's inputs in name, rank and dimensions; see
    /// [`Engine::run`].
    pub fn check<I: Input>(&self, inputs: &[I]) -> Result<()> {
        let ordered = self.ordered(inputs)?;
        self.binding(&ordered).map(drop)
    }

    /// Builds the plan for inputs of these shapes, so that the first run finds it.
    pub fn prepare<I: Input>(&self, inputs: &[I]) -> Result<()> {
        let ordered = self.ordered(inputs)?;
        self.plan(&self.binding(&ordered)?).map(drop)
    }

    /// The rules of fusing that matched in the plan for inputs of these shapes, and how often.
    pub fn fused<I: Input>(&self, inputs: &[I]) -> Result<Vec<(&'static str, usize)>> {
        let ordered = self.ordered(inputs)?;
        Ok(self.plan(&self.binding(&ordered)?)?.fused.clone())
    }

    pub(crate) fn ordered<'a, I: Input>(&self, inputs: &'a [I]) -> Result<Vec<View<'a>>> {
        let specs = self.inputs();
        let known = || specs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
        let unknown = |input: &&I| !specs.iter().any(|s| s.name == input.name());
        if let Some(input) = inputs.iter().find(unknown) {
            return Err(Error::bad_input(format!("the base has no input '{}'", input.name()))
                .hint(format!("its inputs are {}", known())));
        }
        specs
            .iter()
            .map(|spec| match inputs.iter().find(|input| input.name() == spec.name) {
                Some(input) => Ok(input.view()),
                None => Err(Error::bad_input(format!("input '{}' is missing", spec.name))
                    .hint(format!("the base's inputs are {}", known()))),
            })
            .collect()
    }

    /// Matches the shapes given with the graph's: numbers must agree, free dimensions take the
    /// value found.
    pub(crate) fn binding(&self, ordered: &[View<'_>]) -> Result<Binding> {
        self.binding_of(&ordered.iter().map(|view| view.shape()).collect::<Vec<_>>())
    }

    /// As [`Engine::binding`], of shapes in the order of the inputs.
    pub(super) fn binding_of(&self, shapes: &[&[usize]]) -> Result<Binding> {
        let graph = self.graph();
        let mut binding = Binding::new();
        let mut derived = vec![];
        for ((spec, &shape), outlet) in self.inputs().iter().zip(shapes).zip(&graph.inputs) {
            let fact =
                graph.outlet_fact(*outlet).map_err(|e| tract_error(ErrorKind::Failed, &e))?;
            let wrong = || {
                Error::bad_input(format!(
                    "input '{}': expected shape [{}], found {:?}",
                    spec.name,
                    self.dims_text(&fact.shape),
                    shape
                ))
            };
            if fact.rank() != shape.len() {
                return Err(wrong());
            }
            for (dim, &found) in fact.shape.iter().zip(shape) {
                match dim {
                    TDim::Val(v) if *v == found as i64 => {}
                    TDim::Val(_) => return Err(wrong()),
                    TDim::Sym(s) => {
                        let known = *binding.entry(s.to_string()).or_insert(found as i64);
                        if known != found as i64 {
                            return Err(wrong().hint(format!(
                                "the dimension '{}' is {known} in another input",
                                self.symbol_name(&s.to_string())
                            )));
                        }
                    }
                    expression => derived.push((expression.clone(), found, wrong())),
                }
            }
        }
        for (expression, found, error) in derived {
            let mut values = SymbolValues::default();
            for symbol in expression.symbols() {
                if let Some(&v) = binding.get(&symbol.to_string()) {
                    values.set(&symbol, v);
                }
            }
            if let Some((symbol, v)) = solve(&expression, found as i64, &values) {
                values.set(&symbol, v);
                binding.insert(symbol.to_string(), v);
            }
            if expression.eval(&values).to_i64().ok() != Some(found as i64) {
                return Err(error);
            }
        }
        Ok(binding)
    }

    pub(super) fn symbol_name<'a>(&'a self, safe: &'a str) -> &'a str {
        let symbols = self.record().map_or(&[][..], |r| &r.symbols);
        symbols.iter().find(|(s, _)| s == safe).map_or(safe, |(_, name)| name)
    }

    fn dims_text(&self, shape: &ShapeFact) -> String {
        let dims: Vec<String> = shape
            .iter()
            .map(|d| match d {
                TDim::Sym(s) => self.symbol_name(&s.to_string()).to_string(),
                other => other.to_string(),
            })
            .collect();
        dims.join(", ")
    }

    /// The plan for these dimensions; those that `binding` leaves out stay free in it.
    pub(super) fn plan(&self, binding: &Binding) -> Result<Arc<Plan>> {
        let build = || {
            let bytes = Plan::bytes_to_build(self.graph(), binding).map_err(|e| self.run_error(&e));
            // Given back once it is built: a plan counts its constants in each run.
            let _taken = self.memory.as_ref().map(|limit| limit.take(bytes?)).transpose()?;
            let dims: Vec<(String, i64)> = binding.iter().map(|(k, v)| (k.clone(), *v)).collect();
            let bound = bind_dims(self.graph(), &dims)?;
            Plan::build(self.graph(), bound).map_err(|e| self.run_error(&e))
        };
        self.graph.plans.get(binding, build)
    }

    /// tract's error, with the safe node names replaced by the ONNX file's.
    fn run_error(&self, error: &TractError) -> Error {
        if let Some(halt) = Halt::of(error) {
            let cause = match halt {
                Halt::Stopped => Cause::Stopped,
                Halt::Short { .. } => Cause::Short,
                Halt::TooLarge { .. } => Cause::TooLarge,
            };
            return Error::refused(halt.to_string()).because(cause);
        }
        let named = self.original_names(&format!("{error:#}"));
        Error::bad_input(format!("running the base: {named}"))
    }

    /// `text` with the safe node names replaced by the ONNX file's.
    pub(crate) fn original_names(&self, text: &str) -> String {
        let mut named = String::with_capacity(text.len());
        for word in text.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            let end = word.trim_end_matches(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let names = self.record().map_or(&[][..], |r| &r.node_names);
            match names.iter().find(|(safe, _)| safe == end) {
                Some((_, name)) => named.push_str(&format!("{name}{}", &word[end.len()..])),
                None => named.push_str(word),
            }
        }
        named
    }
}
