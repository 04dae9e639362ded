//! Which layers a coarse scheme harms: measured at pack time on made-up inputs, so that the
//! worst of them are stored finer until the outputs agree with the unquantized model.

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    FrozenConv, FrozenEmbedding, FrozenLinear, FrozenWeights, WeightSource, bind_dims, lower,
    tract_error,
};
use crate::import::{Prepared, tell};
use crate::quant::{Packed, PackedRef, Scheme};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tract_core::internal::*;

/// Inputs made up for each model.
const PROBES: u64 = 3;

/// Layers are judged one by one up to this many, else in groups of neighbours.
const MAX_GROUPS: usize = 48;

/// Layers that are tried once more in the coarse scheme after enough of them are finer.
const MAX_BACK: usize = 8;

/// Value of a free dimension other than the batch.
const FREE_DIM: i64 = 24;

/// How far the outputs may turn from the unquantized model's, as 1 - cosine, worst output of the
/// worst probe. Tighter than what is promised for real inputs (0.03 and 0.001).
fn allowed(scheme: Scheme) -> f64 {
    if scheme == Scheme::Q4 { 0.012 } else { 0.0003 }
}

/// The scheme that a layer gets instead where its own costs too much.
pub(super) fn finer(scheme: Scheme) -> Scheme {
    if scheme == Scheme::Q4 { Scheme::Q8 } else { Scheme::F16 }
}

/// Both forms of every matrix, one of them in use.
#[derive(Debug)]
struct Mixed {
    exact: Vec<Option<Packed>>,
    coarse: Vec<Packed>,
    use_exact: Vec<AtomicBool>,
}

impl WeightSource for Mixed {
    fn weight(&self, index: usize) -> Result<PackedRef<'_>> {
        let missing = || Error::bad_input(format!("weight {index} is missing"));
        let exact = self.use_exact.get(index).ok_or_else(missing)?.load(Ordering::Relaxed);
        let packed = match self.exact.get(index) {
            Some(Some(packed)) if exact => Some(packed),
            _ => self.coarse.get(index),
        };
        // In f32, so that the choice doesn't depend on which kernels the packing machine has.
        packed.map(|p| p.view().keeping_inputs()).ok_or_else(missing)
    }
}

/// Gives the indices of matrices to store finer, and `coarse` back. Those that `decided` names stay
/// as they are. Nothing is promoted where the model can't be run on made-up inputs; the error says why.
///
/// The answer depends on the machine's rounding only where two layers harm equally: harm is
/// compared in steps of a power of two.
pub(super) fn promote(
    prepared: &Prepared,
    coarse: Vec<Packed>,
    decided: &[bool],
    scheme: Scheme,
) -> Result<(Vec<usize>, Vec<Packed>)> {
    if decided.iter().all(|d| *d) {
        return Ok((vec![], coarse));
    }
    let mut exact = vec![];
    for (matrix, packed) in prepared.matrices.iter().zip(&coarse) {
        exact.push(match packed.scheme() {
            Scheme::F32 => None,
            _ => Some(Packed::pack(Scheme::F32, matrix.rows, matrix.cols, &matrix.floats())?),
        });
    }
    let use_exact = coarse.iter().map(|_| AtomicBool::new(true)).collect();
    let mixed = Arc::new(Mixed { exact, coarse, use_exact });
    let chosen = choose(prepared, &mixed, decided, scheme);
    let mixed = Arc::try_unwrap(mixed)
        .map_err(|_| Error::failed("the weights are still in use after calibration"))?;
    match chosen {
        Ok(indices) => Ok((indices, mixed.coarse)),
        Err(e) => {
            tracing::warn!(
                "no layer is stored finer: the model doesn't run on made-up inputs: {e}"
            );
            Ok((vec![], mixed.coarse))
        }
    }
}

fn choose(
    prepared: &Prepared,
    mixed: &Arc<Mixed>,
    decided: &[bool],
    scheme: Scheme,
) -> Result<Vec<usize>> {
    let trial = Trial::new(prepared, mixed)?;
    let set = |indices: &[usize], exact: bool| {
        indices.iter().for_each(|&i| mixed.use_exact[i].store(exact, Ordering::Relaxed));
    };
    let every: Vec<usize> = (0..mixed.coarse.len()).collect();
    let candidates: Vec<usize> = every
        .iter()
        .copied()
        .filter(|&i| mixed.coarse[i].scheme() == scheme && mixed.exact[i].is_some())
        .filter(|&i| decided.get(i) != Some(&true))
        .collect();
    let run = |probe: usize| trial.outputs(probe);
    tell("judging the weights", 0, 0);
    let expected = (0..trial.probes.len()).map(run).collect::<Result<Vec<Floats>>>()?;
    set(&every, false);
    let harm_of = |probe: usize| Ok(turned(&expected[probe], &run(probe)?));
    let coarse = (0..trial.probes.len()).map(harm_of).collect::<Result<Vec<f64>>>()?;
    let worst = (0..coarse.len()).max_by(|&a, &b| coarse[a].total_cmp(&coarse[b])).unwrap_or(0);
    if coarse.iter().all(|&harm| harm <= allowed(scheme)) {
        return Ok(vec![]);
    }
    set(&every, true);
    let groups: Vec<Vec<usize>> = candidates
        .chunks(candidates.len().div_ceil(MAX_GROUPS).max(1))
        .map(<[usize]>::to_vec)
        .collect();
    let values = |group: &[usize]| -> usize {
        group.iter().map(|&i| mixed.coarse[i].rows() * mixed.coarse[i].cols()).sum()
    };
    let mut harms: Vec<(i32, &Vec<usize>)> = vec![];
    trial.each_alone(worst, &groups, &set, |group, outputs| {
        tell("judging layers", harms.len(), groups.len());
        let harm = turned(&expected[worst], &outputs);
        harms.push((-((harm / values(group) as f64).max(1e-18).log2().round() as i32), group));
    })?;
    harms.sort_unstable();
    set(&every, false);
    let finer = |count: usize, on: bool| {
        harms.iter().take(count).for_each(|(_, group)| set(group, on));
    };
    // The fewest of the worst groups that are enough for the worst probe, then for all probes; all
    // groups where even that is not.
    let (mut low, mut high) = (0, harms.len());
    while low + 1 < high {
        let middle = (low + high) / 2;
        tell("choosing layers to store finer", middle, harms.len());
        finer(middle, true);
        if harm_of(worst)? <= allowed(scheme) {
            high = middle
        } else {
            low = middle
        }
        finer(middle, false);
    }
    finer(high, true);
    // Large ones that come back without harm: what is left of the harm is not spread evenly.
    let mut large: Vec<&Vec<usize>> = harms[..high].iter().map(|(_, group)| *group).collect();
    large.sort_by_key(|group| std::cmp::Reverse(values(group)));
    let mut back: Vec<&Vec<usize>> = vec![];
    for group in large.into_iter().take(MAX_BACK) {
        set(group, false);
        match harm_of(worst)? <= allowed(scheme) {
            true => back.push(group),
            false => set(group, true),
        }
    }
    for probe in (0..trial.probes.len()).filter(|&p| p != worst) {
        while harm_of(probe)? > allowed(scheme) {
            match back.pop() {
                Some(group) => set(group, true),
                None if high < harms.len() => {
                    set(harms[high].1, true);
                    high += 1;
                }
                None => break,
            }
        }
    }
    let chosen = harms[..high].iter().filter(|(_, group)| !back.contains(group));
    Ok(chosen.flat_map(|(_, group)| group.iter().copied()).collect())
}

/// Largest 1 - cosine over the outputs.
fn turned(expected: &Floats, found: &Floats) -> f64 {
    let mut worst = 0f64;
    for (e, f) in expected.iter().zip(found) {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(x, y)| *x as f64 * *y as f64).sum()
        };
        let norm = (dot(e, e) * dot(f, f)).sqrt();
        if norm > 0.0 {
            worst = worst.max(1.0 - dot(e, f) / norm);
        }
    }
    worst
}

/// The float outputs of one run.
type Floats = Vec<Vec<f32>>;

/// The model ready to run on its probes.
struct Trial {
    plan: Arc<TypedSimplePlan>,
    probes: Vec<TVec<TValue>>,
}

impl Trial {
    fn new(prepared: &Prepared, mixed: &Arc<Mixed>) -> Result<Trial> {
        let graph = lower(&prepared.model, &FrozenWeights(mixed.clone()))?;
        let mut batch = HashSet::new();
        let mut dims: Vec<(String, i64)> = vec![];
        for outlet in graph.input_outlets().map_err(failed)? {
            let fact = graph.outlet_fact(*outlet).map_err(failed)?;
            for (axis, dim) in fact.shape.iter().enumerate() {
                for symbol in dim.symbols() {
                    let name = symbol.to_string();
                    if axis == 0 {
                        batch.insert(name.clone());
                    }
                    // Of a multiple (`32*h`) few are enough.
                    let plain = matches!(dim, TDim::Sym(_));
                    if !dims.iter().any(|(n, _)| *n == name) {
                        dims.push((name, if plain { FREE_DIM } else { 2 }));
                    }
                }
            }
        }
        for (name, value) in &mut dims {
            if batch.contains(name) {
                *value = 1;
            }
        }
        let graph = bind_dims(&graph, &dims)?;
        let mut probes = vec![];
        for seed in 0..PROBES {
            let mut random = Random(seed + 1);
            let mut inputs = tvec![];
            for (slot, outlet) in graph.input_outlets().map_err(failed)?.iter().enumerate() {
                let fact = graph.outlet_fact(*outlet).map_err(failed)?;
                let name = prepared.inputs.get(slot).map_or("", |i| i.name.as_str());
                inputs.push(made_up(name, fact, prepared, &mut random)?.into_tvalue());
            }
            probes.push(inputs);
        }
        let plan = graph.into_optimized().and_then(TypedSimplePlan::new).map_err(failed)?;
        Ok(Trial { plan, probes })
    }

    /// The float outputs for one probe.
    fn outputs(&self, probe: usize) -> Result<Floats> {
        self.plan.run(self.probes[probe].clone()).and_then(floats).map_err(failed)
    }

    /// Gives `judge` the outputs for one probe with each group alone as `set(group, false)` has it.
    /// What comes before a group's first layer is run once for all of them.
    fn each_alone<'a>(
        &self,
        probe: usize,
        groups: &'a [Vec<usize>],
        set: &impl Fn(&[usize], bool),
        mut judge: impl FnMut(&'a Vec<usize>, Floats),
    ) -> Result<()> {
        let model = self.plan.model();
        let order = self.plan.order_without_consts();
        // Sizes that are only known in the run are the plan's own business.
        let open = |n: &TypedNode| {
            n.outputs.iter().any(|o| o.fact.shape.iter().any(|d| !d.symbols().is_empty()))
        };
        let whole = model.nodes().iter().any(open);
        let step_of: HashMap<usize, usize> = match whole {
            true => HashMap::new(),
            false => first_steps(model, order),
        };
        let start = |group: &Vec<usize>| {
            group.iter().map(|i| step_of.get(i).copied().unwrap_or(0)).min().unwrap_or(0)
        };
        let mut sorted: Vec<(usize, &Vec<usize>)> = groups.iter().map(|g| (start(g), g)).collect();
        sorted.sort();
        let mut exact = Walk::new(&self.plan, self.probes[probe].clone()).map_err(failed)?;
        for (step, group) in sorted {
            if !whole {
                exact.run_to(step).map_err(failed)?;
            }
            set(group, false);
            let outputs = match whole {
                true => self.outputs(probe),
                false => exact.branch().and_then(Walk::finish).and_then(floats).map_err(failed),
            };
            set(group, true);
            judge(group, outputs?);
        }
        Ok(())
    }
}

/// By weight, the first step of `order` that reads it. Those inside of loops are not among them.
fn first_steps(model: &TypedModel, order: &[usize]) -> HashMap<usize, usize> {
    let mut first = HashMap::new();
    for (step, &node) in order.iter().enumerate() {
        let node = model.node(node);
        let linear = node.op_as::<FrozenLinear>().map(|op| op.weight);
        let conv = || node.op_as::<FrozenConv>().map(|op| op.weight);
        let embedding = || node.op_as::<FrozenEmbedding>().map(|op| op.weight);
        if let Some(weight) = linear.or_else(conv).or_else(embedding) {
            first.entry(weight).or_insert(step);
        }
    }
    first
}

/// A run that can be stopped at a step and gone on with twice.
struct Walk<'a> {
    plan: &'a Arc<TypedSimplePlan>,
    state: TypedSimpleState,
    /// By step, the nodes whose values nobody reads after it.
    done: Arc<Vec<Vec<usize>>>,
    step: usize,
}

impl<'a> Walk<'a> {
    fn new(plan: &'a Arc<TypedSimplePlan>, inputs: TVec<TValue>) -> TractResult<Walk<'a>> {
        let model = plan.model();
        let order = plan.order_without_consts();
        let mut last: HashMap<usize, usize> = HashMap::new();
        for (step, &node) in order.iter().enumerate() {
            last.insert(node, step);
            last.extend(model.node(node).inputs.iter().map(|i| (i.node, step)));
        }
        let mut done = vec![vec![]; order.len()];
        let kept: HashSet<usize> = model.output_outlets()?.iter().map(|o| o.node).collect();
        for (node, step) in last {
            if !kept.contains(&node) && !model.node(node).op_is::<tract_core::ops::konst::Const>() {
                done[step].push(node);
            }
        }
        let mut state = plan.spawn()?;
        state.set_inputs(inputs)?;
        Ok(Walk { plan, state, done: Arc::new(done), step: 0 })
    }

    fn run_to(&mut self, step: usize) -> TractResult<()> {
        let plan = self.plan.clone();
        let order = plan.order_without_consts();
        while self.step < step.min(order.len()) {
            self.state.compute_one(order[self.step])?;
            for &node in &self.done[self.step] {
                self.state.turn_state.values[node] = None;
            }
            self.step += 1;
        }
        Ok(())
    }

    /// A second run from here on.
    fn branch(&self) -> TractResult<Walk<'a>> {
        let mut state = self.state.clone();
        // tract's clone of a state leaves them out.
        state.turn_state.values = self.state.turn_state.values.clone();
        Ok(Walk { plan: self.plan, state, done: self.done.clone(), step: self.step })
    }

    fn finish(mut self) -> TractResult<TVec<TValue>> {
        self.run_to(usize::MAX)?;
        self.state.outputs()
    }
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Unsupported, &e)
}

fn floats(outputs: TVec<TValue>) -> TractResult<Floats> {
    let mut all = vec![];
    for value in outputs.iter().filter(|v| v.datum_type().is_float()) {
        let cast = value.cast_to::<f32>()?;
        all.push(cast.try_as_plain_ram()?.as_slice::<f32>()?.to_vec());
    }
    Ok(all)
}

/// Noise for float inputs; for integers masks of ones, types of zeros, else indices within the
/// largest embedding.
fn made_up(
    name: &str,
    fact: &TypedFact,
    prepared: &Prepared,
    random: &mut Random,
) -> Result<Tensor> {
    let shape = fact.shape.as_concrete().ok_or_else(|| {
        Error::unsupported(format!("input '{name}' has the open shape {:?}", fact.shape))
    })?;
    let count: usize = shape.iter().product();
    if count > 1 << 26 {
        return Err(Error::unsupported(format!("input '{name}' has {count} values")));
    }
    let rows = prepared
        .targets
        .iter()
        .filter(|t| t.kind == crate::adapter::TargetKind::Embedding)
        .map(|t| t.in_features as u64)
        .max()
        .unwrap_or(2);
    let dtype = fact.datum_type;
    let tensor = if dtype.is_float() {
        let values: Vec<f32> = (0..count).map(|_| random.normal()).collect();
        Tensor::from_shape(shape, &values)
    } else {
        let values: Vec<i64> = (0..count)
            .map(|_| match name {
                n if n.contains("mask") || dtype == bool::datum_type() => 1,
                n if n.contains("type") => 0,
                _ => (random.next() % rows) as i64,
            })
            .collect();
        Tensor::from_shape(shape, &values)
    };
    tensor.and_then(|t| t.cast_to_dt(dtype).map(|t| t.into_owned())).map_err(failed)
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Near enough to a normal: the sum of twelve uniforms less six (no library function, so the
    /// same on every machine).
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u32 << 24) as f32).sum::<f32>() - 6.0
    }
}
