//! A base's graphs as a decoder: tokens go in, the logits of what comes next come out, and the past
//! stays with the caller.
//!
//! Keys and values that layers attend to stay with the layers ([`Engine::for_kept_states`]), and new ones are written
//! behind them. Other states go into the next run as a run gives them: they grow by tract's Concat, one copy a
//! step. Dimensions that grow stay free in plans, so that one plan serves all steps.

use crate::adapter::Bound;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{KeptStates, Stop, Watch, tract_error};
use crate::pack::{IoSpec, Role};
use crate::quant::Kept;
use crate::runtime::engine::Engine;
use crate::runtime::free::PAST;
use crate::runtime::to_tensor;
use crate::shape::Array;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tract_core::internal::*;

/// One row of tokens as it goes through the graphs.
#[derive(Default)]
pub(super) struct Past {
    /// All tokens so far.
    pub(super) ids: Vec<u32>,
    /// How many of them the states know.
    known: usize,
    /// By the states' numbers.
    states: HashMap<u32, TValue>,
    /// Those that stay with the layers of `step`, once it has run.
    kept: Option<KeptStates>,
    /// An encoder's output, for graphs that take it.
    encoded: Option<TValue>,
    /// Asked between the steps of runs whether they end.
    stop: Option<Stop>,
}

impl Past {
    /// Without tokens, behind what [`Decoder::encoded`] gave.
    pub(super) fn behind(encoded: Option<TValue>, stop: Option<Stop>) -> Past {
        Past { encoded, stop, ..Past::default() }
    }
}

/// The graphs that tokens go through.
pub(super) struct Decoder {
    /// For the first tokens.
    first: Engine,
    /// For the next ones; without it all tokens go through `first` each time.
    step: Option<Engine>,
    /// Whether `first` gives the states that `step` begins with; else that begins with empty ones.
    seeds: bool,
    /// What layers of `step` keep of its states.
    kept: Vec<Layer>,
    /// The states of `step`, with its axis of one row.
    #[cfg_attr(not(feature = "daemon"), allow(dead_code))]
    given: (Vec<IoSpec>, Option<String>),
    pub(super) encoder: Option<Engine>,
}

/// The numbers of the states of a layer's keys and values, \[1, heads, S, head_dim\].
struct Layer {
    states: [Option<u32>; 2],
    heads: usize,
    head_dim: usize,
}

impl Decoder {
    /// Of all graphs of the engine's base.
    ///
    /// # Errors
    /// Unsupported: graphs that are no language model, by the name of what they lack or of the input
    /// whose meaning isn't known.
    pub(super) fn new(engine: &Engine) -> Result<Decoder> {
        let has = |name: &str| engine.base().graph_index(name).is_some();
        let named = |name: &str| has(name).then(|| engine.graph_named(name)).transpose();
        let (encoder, step) = (named("encoder")?, named("step")?);
        let first = match encoder {
            Some(_) => engine.graph_named("decoder")?,
            None => engine.graph_named(engine.base().graphs().next().unwrap_or_default())?,
        };
        // A graph of a fixed length is filled up behind the last token.
        let last = |graph: Engine| match fixed(&graph) {
            Some(length) if length > 1 => Ok(graph),
            _ => graph.for_last_token(),
        };
        let (first, step) = (last(first)?, step.map(last).transpose()?);
        let alone = step.is_none() && stateful(&first);
        let step = if alone { Some(first.clone()) } else { step };
        for graph in [Some(&first), step.as_ref()].into_iter().flatten() {
            check(graph).map_err(|e| match engine.base().graphs().count() {
                1 => e,
                _ => e.at(format!("graph '{}'", graph.graph_name())),
            })?;
        }
        let made: Vec<u32> = states(first.outputs()).collect();
        let lacks = |spec: &&IoSpec| matches!(spec.role, Role::State(k) if !made.contains(&k));
        let lost = step.as_ref().and_then(|step| step.inputs().iter().find(lacks));
        if let (Some(spec), Some(_)) = (lost, &encoder) {
            return Err(Error::unsupported(format!(
                "no graph gives the state '{}' that the graph 'step' begins with",
                spec.name
            )));
        }
        let seeds = lost.is_none();
        let given = step.as_ref().map_or((vec![], None), |step| {
            let states = step.inputs().iter().filter(|s| matches!(s.role, Role::State(_)));
            (states.cloned().collect(), step.input(Role::Ids).and_then(|s| s.dims.first().cloned()))
        });
        let mut decoder = Decoder { first, step, seeds, kept: vec![], given, encoder };
        decoder.keep_states(alone)?;
        Ok(decoder)
    }

    /// Has the layers of `step` keep what they can; it is `first` too where it is `alone`.
    fn keep_states(&mut self, alone: bool) -> Result<()> {
        let Some(step) = &self.step else { return Ok(()) };
        let Some((engine, layers)) = step.for_kept_states()? else { return Ok(()) };
        let number = |input: usize| match step.inputs().get(input)?.role {
            Role::State(k) => Some(k),
            _ => None,
        };
        let layer = |layer: &crate::graph::KeptLayer| {
            let (heads, head_dim) = (layer.heads, layer.head_dim);
            Layer { states: layer.states.map(|state| number(state.input)), heads, head_dim }
        };
        self.kept = layers.iter().map(layer).collect();
        if alone {
            self.first = engine.clone();
        }
        self.step = Some(engine);
        Ok(())
    }

    /// What the layers begin with: the states that another graph gave, if one did.
    fn seeded(&self, states: &mut HashMap<u32, TValue>) -> Result<KeptStates> {
        let mut all = vec![];
        for layer in &self.kept {
            let mut kept = Kept::new(layer.heads, layer.head_dim);
            if let [Some(k), Some(v)] = layer.states.map(|number| states.remove(&number?)) {
                let fits = |t: &TValue| {
                    let shape =
                        [1, layer.heads, k.shape().get(2).copied().unwrap_or(0), layer.head_dim];
                    t.shape() == shape
                };
                if !fits(&k) || !fits(&v) {
                    let found = [k.shape(), v.shape()];
                    return Err(Error::unsupported(format!("states of the shapes {found:?}")));
                }
                let plain = |t: &TValue| Ok(t.try_as_plain_ram()?.as_slice::<f32>()?.to_vec());
                let plain = |t: &TValue| plain(t).map_err(failed);
                kept.append(&plain(&k)?, &plain(&v)?);
            }
            all.push(Mutex::new(kept));
        }
        Ok(KeptStates(all.into()))
    }

    /// How many states of the next tokens' graph stay with its layers.
    #[cfg(test)]
    pub(super) fn kept_states(&self) -> usize {
        2 * self.kept.len()
    }

    /// How many tokens the graphs leave room for, where they say.
    pub(super) fn fixed_length(&self) -> Option<usize> {
        match &self.step {
            None => fixed(&self.first),
            Some(_) => None,
        }
    }

    /// Bytes of the states of `tokens` tokens, for which there is room twice, and of a row of logits, which is there three times while a token is chosen.
    #[cfg(feature = "daemon")]
    pub(super) fn kept_bytes(&self, tokens: usize) -> u64 {
        let (states, batch) = &self.given;
        let size = |dim: &String| match dim.parse::<u64>() {
            Ok(size) => size,
            Err(_) if Some(dim) == batch.as_ref() => 1,
            Err(_) => tokens as u64,
        };
        // Of four bytes.
        let kept =
            states.iter().map(|spec| spec.dims.iter().map(size).fold(4, u64::saturating_mul));
        let logits = self.first.outputs().iter().find(|s| s.role == Role::Logits);
        let width = logits.and_then(|s| s.dims.last()?.parse::<u64>().ok()).unwrap_or(0);
        kept.fold(0, u64::saturating_add).saturating_mul(2).saturating_add(3 * 4 * width)
    }

    /// An encoder's output \[1, frames, features\] as the graphs take it, if they do.
    pub(super) fn encoded(&self, encoded: Option<Array>) -> Result<Option<TValue>> {
        match (self.first.input(Role::Encoded), encoded) {
            (Some(spec), Some(array)) => {
                let tensor = to_tensor(&spec.name, array.view(), f32::datum_type())?;
                Ok(Some(tensor.into_tvalue()))
            }
            (Some(spec), None) => {
                let error = format!("the decoder's input '{}' needs the encoder's", spec.name);
                Err(Error::usage(error))
            }
            (None, _) => Ok(None),
        }
    }

    /// Takes `ids` in after what `past` has, and gives the logits of the token that follows, into
    /// `logits`.
    pub(super) fn feed(
        &self,
        past: &mut Past,
        ids: &[u32],
        adapter: Option<&Arc<Bound>>,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let graph = match &self.step {
            Some(step) if past.known > 0 || !self.seeds => step,
            _ => &self.first,
        };
        if stateful(graph) && ids.len() > 1 && fixed(graph) == Some(1) {
            return ids
                .iter()
                .try_for_each(|id| self.feed(past, std::slice::from_ref(id), adapter, logits));
        }
        past.ids.extend_from_slice(ids);
        for spec in graph.inputs() {
            if let Role::State(k) = spec.role
                && !past.states.contains_key(&k)
            {
                past.states.insert(k, empty(graph, spec)?);
            }
        }
        if keeps(graph) && past.kept.is_none() {
            past.kept = Some(self.seeded(&mut past.states)?);
        }
        self.run(graph, past, adapter, logits)
    }

    /// Runs the tokens that the states don't know yet.
    fn run(
        &self,
        graph: &Engine,
        past: &mut Past,
        adapter: Option<&Arc<Bound>>,
        logits: &mut Vec<f32>,
    ) -> Result<()> {
        let stateful = stateful(graph);
        let (mut ids, known) = (past.ids[past.known..].to_vec(), past.known);
        let count = ids.len();
        // A graph of a fixed length is filled up on the right: what follows a token changes nothing.
        if let (Some(length), false) = (fixed(graph), stateful) {
            if count > length {
                return Err(Error::unsupported(format!(
                    "{count} tokens: the base was packed for {length}"
                )));
            }
            ids.resize(length, 0);
        }
        let frames = past.encoded.as_ref().map_or(0, |e| e.shape()[1]);
        let mut tensors = tvec![];
        for (spec, outlet) in graph.inputs().iter().zip(&graph.graph().inputs) {
            let dtype = graph.graph().outlet_fact(*outlet).map_err(failed)?.datum_type;
            let places = ids.len() as i64;
            let row = |values: Vec<i64>| whole(values, dtype);
            tensors.push(match spec.role {
                Role::Ids => row(ids.iter().map(|&id| id.into()).collect())?,
                Role::Mask => {
                    let before = if stateful { known } else { 0 };
                    let seen = (before + count) as i64;
                    let all = before as i64 + places;
                    row((0..all).map(|at| i64::from(at < seen)).collect())?
                }
                Role::Positions => row((0..places).map(|at| known as i64 + at).collect())?,
                Role::Types => row(vec![0; ids.len()])?,
                Role::EncodedMask => row(vec![1; frames])?,
                Role::Encoded => past.encoded.clone().ok_or_else(|| missing(spec))?,
                Role::State(k) => past.states.get(&k).cloned().ok_or_else(|| missing(spec))?,
                Role::Other if spec.name == PAST => {
                    let known = Tensor::zero_dt(bool::datum_type(), &[1, known]);
                    known.map_err(failed)?.into_tvalue()
                }
                _ => return Err(unknown(spec)),
            });
        }
        let watch = Watch { stop: past.stop.clone(), ..Watch::default() };
        let kept = past.kept.as_ref().filter(|_| keeps(graph));
        let outputs = graph.run_free(tensors, &grows(graph, ids.len()), adapter, kept, watch)?;
        let (mut found, mut states) = (None, vec![]);
        for (spec, value) in graph.outputs().iter().zip(outputs) {
            match spec.role {
                Role::Logits => found = Some(value),
                Role::State(k) => states.push((k, value)),
                _ => {}
            }
        }
        let missing = || Error::failed("the graph gave no logits");
        let found = found.ok_or_else(missing)?;
        let &[1, rows, width] = found.shape() else {
            return Err(Error::unsupported(format!("logits of the shape {:?}", found.shape())));
        };
        // Some exports give the last token's alone.
        let last = if rows == 1 { 0 } else { count - 1 };
        let values = found.cast_to::<f32>().map_err(failed)?;
        let values = values.try_as_plain_ram().map_err(failed)?;
        let values = values.as_slice::<f32>().map_err(failed)?;
        logits.clear();
        logits.extend_from_slice(values.get(last * width..(last + 1) * width).ok_or_else(missing)?);
        // Those of an encoder's output stay as they were: a graph doesn't give them again, or empty.
        for (k, state) in states {
            if state.len() > 0 || !past.states.contains_key(&k) {
                past.states.insert(k, state);
            }
        }
        past.known = if self.step.is_some() { past.ids.len() } else { 0 };
        Ok(())
    }
}

/// The numbers of the states among inputs or outputs.
fn states(specs: &[IoSpec]) -> impl Iterator<Item = u32> {
    specs.iter().filter_map(|spec| match spec.role {
        Role::State(k) => Some(k),
        _ => None,
    })
}

/// Whether its layers keep states.
fn keeps(graph: &Engine) -> bool {
    graph.inputs().last().is_some_and(|spec| spec.name == PAST)
}

/// Whether what a run gives goes into the next one.
fn stateful(graph: &Engine) -> bool {
    keeps(graph) || states(graph.inputs()).next().is_some()
}

fn missing(spec: &IoSpec) -> Error {
    Error::failed(format!("nothing was kept for the input '{}'", spec.name))
}

fn unknown(spec: &IoSpec) -> Error {
    Error::unsupported(format!("nothing is known to generate with for the input '{}'", spec.name))
        .hint("--role says at packing what an input stands for, --const fixes it")
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Failed, &e)
}

/// Errors: the graph is no language model, or has an input that nothing is known for (unsupported).
fn check(graph: &Engine) -> Result<()> {
    let ids = graph.input(Role::Ids).ok_or_else(|| {
        Error::unsupported("the base is no language model: it has no input of token ids")
    })?;
    if ids.dims.len() != 2 {
        let dims = ids.dims.join(", ");
        return Err(Error::unsupported(format!("'{}' has the dimensions [{dims}]", ids.name)));
    }
    let logits = graph.outputs().iter().find(|s| s.role == Role::Logits && s.dims.len() == 3);
    if logits.is_none() {
        let found: Vec<&str> = graph.outputs().iter().map(|s| s.name.as_str()).collect();
        return Err(Error::unsupported(format!(
            "the base is no language model: it has no logits of three axes, but {}",
            found.join(", ")
        )));
    }
    for spec in graph.inputs() {
        match spec.role {
            Role::Ids | Role::Mask | Role::Positions | Role::Types => {}
            Role::Encoded | Role::EncodedMask | Role::State(_) => {}
            _ => return Err(unknown(spec)),
        }
    }
    let given = |k: u32| states(graph.outputs()).any(|other| other == k);
    let grown = |spec: &&IoSpec| spec.dims.iter().skip(1).filter(|d| symbol(d)).count() > 1;
    match graph.inputs().iter().find(|s| matches!(s.role, Role::State(k) if given(k)) && grown(s)) {
        Some(spec) => Err(Error::unsupported(format!(
            "the state '{}' has more than one free dimension: [{}]",
            spec.name,
            spec.dims.join(", ")
        ))),
        None => Ok(()),
    }
}

fn symbol(dim: &str) -> bool {
    dim.parse::<usize>().is_err()
}

/// How many tokens a graph takes, where that is fixed.
fn fixed(graph: &Engine) -> Option<usize> {
    graph.input(Role::Ids)?.dims.get(1)?.parse().ok()
}

/// The free dimensions whose values differ from run to run of a step: those of the states that it gives
/// again, of the mask beside them, and of the tokens, where there are no states or several tokens: a plan for each
/// length of a prompt would take longer than it saves. One token, step after step, is worth a plan of its own.
fn grows(graph: &Engine, tokens: usize) -> Vec<String> {
    let given: Vec<u32> = states(graph.outputs()).collect();
    let tokens_differ = if stateful(graph) { tokens > 1 } else { given.is_empty() };
    let ids = graph.input(Role::Ids);
    let mut free = vec![];
    for spec in graph.inputs() {
        let grows = match spec.role {
            Role::State(k) => given.contains(&k),
            Role::Mask => true,
            Role::Other => spec.name == PAST,
            Role::Ids | Role::Positions => tokens_differ,
            _ => false,
        };
        for dim in spec.dims.iter().skip(1).filter(|d| grows && symbol(d)) {
            let of_ids = ids.is_some_and(|ids| ids.dims.contains(dim));
            if (!of_ids || tokens_differ) && !free.contains(dim) {
                free.push(dim.clone());
            }
        }
    }
    free
}

/// A state before the first token: nothing along the free dimension, zeros where there is none.
fn empty(graph: &Engine, spec: &IoSpec) -> Result<TValue> {
    let batch = graph.input(Role::Ids).and_then(|ids| ids.dims.first());
    let size = |(axis, dim): (usize, &String)| match dim.parse::<usize>() {
        Ok(size) => Ok(size),
        Err(_) if Some(dim) == batch => Ok(1),
        Err(_)
            if axis == 0 || !dim.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.') =>
        {
            Err(Error::unsupported(format!(
                "the state '{}' begins with the dimension '{dim}'",
                spec.name
            )))
        }
        Err(_) => Ok(0),
    };
    let shape = spec.dims.iter().enumerate().map(size).collect::<Result<Vec<_>>>()?;
    let outlet = graph.inputs().iter().position(|s| s.name == spec.name);
    let outlet = outlet.and_then(|at| graph.graph().inputs.get(at)).ok_or_else(|| missing(spec))?;
    let dtype = graph.graph().outlet_fact(*outlet).map_err(failed)?.datum_type;
    Tensor::zero_dt(dtype, &shape).map(IntoTValue::into_tvalue).map_err(failed)
}

/// A row of whole numbers, \[1, T\], as the graph takes them: a mask may be bool or float.
fn whole(values: Vec<i64>, dtype: DatumType) -> Result<TValue> {
    let tensor = Tensor::from_shape(&[1, values.len()], &values);
    let tensor = tensor.and_then(|t| Ok(t.cast_to_dt(dtype)?.into_owned()));
    tensor.map(IntoTValue::into_tvalue).map_err(failed)
}
