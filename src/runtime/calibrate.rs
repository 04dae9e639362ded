//! Which layers a coarse scheme harms: measured at pack time on made-up inputs, so that the
//! worst of them are stored finer until the outputs agree with the unquantized model, and which bear
//! scales for 64 columns.

use super::compensation::compensated;
use super::fitting::{Fitted, fit_dims};
use super::made_up::made_up;
use super::passages::{Passages, Reading};
use super::trial::Runs;
use super::walk::{Walk, first_steps};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{FrozenWeights, bind_dims, tract_error};
use crate::import::{Bound, Prepared, tell};
use crate::quant::{Packed, PackedRef, Scheme, WeightSource};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use tract_core::internal::*;
use tract_core::ops::scan::Scan;

/// Inputs made up for each model.
const PROBES: u64 = 3;

/// Layers are judged one by one up to this many, else in groups of neighbours.
const MAX_GROUPS: usize = 48;

/// The part of what is allowed where the graph has a loop: errors add up from step to step, and real
/// sequences are longer than probes.
const LOOPED_PART: f64 = 0.1;

/// How far the outputs may turn from the unquantized model's, as 1 - cosine, worst output of the
/// worst probe. Tighter than what is promised for real inputs (0.03 and 0.001).
fn allowed(scheme: Scheme) -> f64 {
    if scheme == Scheme::Q4 { 0.01 } else { 0.0003 }
}

/// The scheme that a layer gets instead where its own costs too much.
pub(super) fn finer(scheme: Scheme) -> Scheme {
    if scheme == Scheme::Q4 { Scheme::Q8 } else { Scheme::F16 }
}

/// How much further the outputs may turn by scales for 64 columns, where inputs of products are rounded too.
const WIDE_ADDS: f64 = 0.00015;

/// Which form of a matrix is in use.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
enum Form {
    /// As the file has it.
    Exact,
    /// In the scheme that was asked for.
    Coarse,
    /// With scales for 64 columns.
    Wide,
}

/// All forms of every matrix.
#[derive(Debug)]
struct Mixed {
    exact: Vec<Option<Packed>>,
    coarse: Vec<Packed>,
    wide: Vec<Option<Packed>>,
    /// What takes the place of a coarse one: the same scheme, made for the inputs of texts.
    compensated: Vec<OnceLock<Packed>>,
    /// The [`Form`] of each that is in use.
    used: Vec<AtomicU8>,
    /// Whether inputs of products get errors as large as the integer kernels' rounding.
    disturbing: AtomicBool,
}

impl Mixed {
    fn set(&self, indices: &[usize], form: Form) {
        indices.iter().for_each(|&i| self.used[i].store(form as u8, Ordering::Relaxed));
    }
}

impl WeightSource for Mixed {
    fn weight(&self, index: usize) -> Result<PackedRef<'_>> {
        let missing = || Error::bad_input(format!("weight {index} is missing"));
        let form = self.used.get(index).ok_or_else(missing)?.load(Ordering::Relaxed);
        let other = match form {
            _ if form == Form::Exact as u8 => self.exact.get(index),
            _ if form == Form::Wide as u8 => self.wide.get(index),
            _ => None,
        };
        let made = || self.compensated.get(index).and_then(OnceLock::get);
        let packed =
            other.and_then(Option::as_ref).or_else(made).or_else(|| self.coarse.get(index));
        let view = packed.ok_or_else(missing)?.view();
        // In f32, so that the choice doesn't depend on which kernels the packing machine has.
        Ok(match self.disturbing.load(Ordering::Relaxed) && form != Form::Exact as u8 {
            true => view.disturbing_inputs(),
            false => view.keeping_inputs(),
        })
    }
}

/// What [`settle`] decided.
pub(super) struct Settled {
    /// Indices of matrices to store finer.
    pub(super) finer: Vec<usize>,
    /// Those to store with scales for 64 columns.
    pub(super) wide: Vec<usize>,
    /// The matrices as they were given, but for those of [`Settled::compensated`].
    pub(super) coarse: Vec<Packed>,
    /// Indices of matrices that were made for the inputs of texts.
    pub(super) compensated: Vec<usize>,
    /// What the importer bound.
    pub(super) bound: Vec<Bound>,
}

/// Binds the free dimensions of `prepared` that stop its graph, and says which matrices to store
/// finer, and which wide, of those that have such a form in `wide`. Those that `decided` names stay as
/// they are. With `untried` the model need not run on made-up inputs; then all stay as they are.
///
/// The answer depends on the machine's rounding only where two layers harm equally: harm is
/// compared in steps of a power of two.
///
/// # Errors
/// The graph can't be built whatever is bound.
pub(super) fn settle(
    prepared: &mut Prepared,
    (coarse, wide): (Vec<Packed>, Vec<Option<Packed>>),
    decided: &[bool],
    scheme: Scheme,
    untried: bool,
    passages: &Passages,
) -> Result<Settled> {
    let judged = matches!(scheme, Scheme::Q4 | Scheme::Q8) && !decided.iter().all(|d| *d);
    let mut exact = vec![];
    for (matrix, packed) in prepared.matrices.iter().zip(&coarse) {
        exact.push(match packed.scheme() {
            _ if !judged => None,
            Scheme::F32 => None,
            _ => Some(Packed::pack(Scheme::F32, matrix.rows, matrix.cols, &matrix.floats())?),
        });
    }
    let used = coarse.iter().map(|_| AtomicU8::new(Form::Exact as u8)).collect();
    let compensated = coarse.iter().map(|_| OnceLock::new()).collect();
    let disturbing = AtomicBool::new(false);
    let mixed = Arc::new(Mixed { exact, coarse, wide, compensated, used, disturbing });
    let (fitted, bound) = fit_dims(prepared, FrozenWeights(mixed.clone()), untried)?;
    let chosen = match judged {
        true => choose(fitted, prepared, &mixed, decided, scheme, passages),
        false => {
            drop(fitted);
            Ok((vec![], vec![]))
        }
    };
    let Mixed { mut coarse, compensated, .. } = Arc::try_unwrap(mixed)
        .map_err(|_| Error::failed("the weights are still in use after calibration"))?;
    let (finer, wide) = chosen.unwrap_or_else(|e| {
        tracing::warn!("no layer is stored finer: the model doesn't run on made-up inputs: {e}");
        (vec![], vec![])
    });
    let made = compensated.into_iter().enumerate().filter_map(|(i, m)| Some((i, m.into_inner()?)));
    let mut compensated = vec![];
    for (i, packed) in made {
        coarse[i] = packed;
        compensated.push(i);
    }
    Ok(Settled { finer, wide, coarse, compensated, bound })
}

/// The matrices to store finer, and those to store wide.
fn choose(
    fitted: Fitted,
    prepared: &Prepared,
    mixed: &Arc<Mixed>,
    decided: &[bool],
    scheme: Scheme,
    passages: &Passages,
) -> Result<(Vec<usize>, Vec<usize>)> {
    let runs = fitted.runs.ok_or_else(|| Error::unsupported("no size or value fits"))?;
    let reading = passages.for_graph(&fitted.graph, prepared)?;
    let trial = Trial::new(&fitted.graph, prepared, &runs, &reading)?;
    let every: Vec<usize> = (0..mixed.coarse.len()).collect();
    let open = |&i: &usize| decided.get(i) != Some(&true);
    tell("judging the weights", 0, 0);
    let expected = (0..trial.probes.len()).map(|probe| trial.outputs(probe));
    let expected = expected.collect::<Result<Vec<Floats>>>()?;
    let part = if trial.looped { LOOPED_PART } else { 1.0 };
    if scheme == Scheme::Q4 && reading.reads() {
        let wanted = |i: usize| mixed.coarse[i].scheme() == scheme && open(&i);
        match compensated(&fitted.graph, prepared, &runs, &reading, wanted) {
            Ok(made) => made.into_iter().for_each(|(i, packed)| {
                let _ = mixed.compensated[i].set(packed);
            }),
            Err(e) => tracing::warn!("4-bit weights are not made for the inputs of texts: {e}"),
        }
    }
    mixed.set(&every, Form::Coarse);
    let finer = Search {
        trial: &trial,
        mixed,
        expected: &expected,
        allowed: vec![allowed(scheme) * part; expected.len()],
        forms: [Form::Coarse, Form::Exact],
        candidates: every
            .iter()
            .copied()
            .filter(|&i| mixed.coarse[i].scheme() == scheme && mixed.exact[i].is_some())
            .filter(open)
            // The file's own integers: nothing finer is nearer to them.
            .filter(|&i| scheme != Scheme::Q8 || !prepared.matrices[i].keeps_integers())
            .collect(),
    }
    .better()?;
    // A file's own integers are rounded already, by as much as nobody sees here.
    let rounded = |i: usize| prepared.matrices[i].keeps_integers();
    let wide =
        |i: &usize| mixed.wide[*i].is_some() && open(i) && !finer.contains(i) && !rounded(*i);
    let mut wide: Vec<usize> = every.into_iter().filter(wide).collect();
    if !wide.is_empty() {
        mixed.disturbing.store(true, Ordering::Relaxed);
        let mut search = Search {
            trial: &trial,
            mixed,
            expected: &expected,
            allowed: vec![],
            forms: [Form::Wide, Form::Coarse],
            candidates: wide.clone(),
        };
        let before = search.harms()?;
        search.allowed = before.iter().map(|harm| harm + WIDE_ADDS * part).collect();
        mixed.set(&wide, Form::Wide);
        let kept = search.better()?;
        wide.retain(|i| !kept.contains(i));
    }
    Ok((finer, wide))
}

/// Which of some matrices need the better of two forms.
struct Search<'a> {
    trial: &'a Trial,
    mixed: &'a Mixed,
    /// The unquantized model's outputs for each probe.
    expected: &'a [Floats],
    /// For each probe.
    allowed: Vec<f64>,
    /// The worse, which the candidates have at first, and the better.
    forms: [Form; 2],
    candidates: Vec<usize>,
}

impl Search<'_> {
    fn harm_of(&self, probe: usize) -> Result<f64> {
        Ok(turned(&self.expected[probe], &self.trial.outputs(probe)?))
    }

    fn harms(&self) -> Result<Vec<f64>> {
        (0..self.trial.probes.len()).map(|probe| self.harm_of(probe)).collect()
    }

    fn fine(&self, probe: usize) -> Result<bool> {
        Ok(self.harm_of(probe)? <= self.allowed[probe])
    }

    /// Those that need it, which have it then; the others keep the worse.
    fn better(&self) -> Result<Vec<usize>> {
        let Search { mixed, candidates, .. } = self;
        let [worse, better] = self.forms;
        let over: Vec<f64> =
            self.harms()?.iter().zip(&self.allowed).map(|(harm, allowed)| harm - allowed).collect();
        let probes = 0..over.len();
        if over.iter().all(|over| *over <= 0.0) {
            return Ok(vec![]);
        }
        let worst = probes.clone().max_by(|&a, &b| over[a].total_cmp(&over[b])).unwrap_or(0);
        let groups: Vec<Vec<usize>> = candidates
            .chunks(candidates.len().div_ceil(MAX_GROUPS).max(1))
            .map(<[usize]>::to_vec)
            .collect();
        let harms = self.one_by_one(worst, &groups)?;
        let set = |count: usize, form: Form| {
            harms.iter().take(count).for_each(|(_, group)| mixed.set(group, form));
        };
        // The fewest of the worst groups that are enough for the worst probe, then for all probes; all
        // groups where even that is not.
        let (mut low, mut high) = (0, harms.len());
        while low + 1 < high {
            let middle = (low + high) / 2;
            tell("choosing layers to store finer", middle, harms.len());
            set(middle, better);
            if self.fine(worst)? {
                high = middle
            } else {
                low = middle
            }
            set(middle, worse);
        }
        set(high, better);
        for probe in probes.filter(|&p| p != worst) {
            while !self.fine(probe)? {
                let Some((_, group)) = harms.get(high) else { break };
                mixed.set(group, better);
                high += 1;
            }
        }
        Ok(harms[..high].iter().flat_map(|(_, group)| group.iter().copied()).collect())
    }

    /// The groups by the harm that each does in its worse form beside exact matrices, the worst first.
    fn one_by_one<'a>(
        &self,
        probe: usize,
        groups: &'a [Vec<usize>],
    ) -> Result<Vec<(i32, &'a Vec<usize>)>> {
        let Search { trial, mixed, .. } = self;
        let used = mixed.used.iter().map(|u| u.load(Ordering::Relaxed)).collect::<Vec<u8>>();
        let values = |group: &[usize]| -> usize {
            group.iter().map(|&i| mixed.coarse[i].rows() * mixed.coarse[i].cols()).sum()
        };
        let every: Vec<usize> = (0..used.len()).collect();
        mixed.set(&every, Form::Exact);
        let set = |indices: &[usize], exact: bool| {
            mixed.set(indices, if exact { Form::Exact } else { self.forms[0] });
        };
        let mut harms: Vec<(i32, &Vec<usize>)> = vec![];
        trial.each_alone(probe, groups, &set, |group, outputs| {
            tell("judging layers", harms.len(), groups.len());
            let harm = turned(&self.expected[probe], &outputs);
            harms.push((-((harm / values(group) as f64).max(1e-18).log2().round() as i32), group));
        })?;
        harms.sort_unstable();
        mixed.used.iter().zip(used).for_each(|(now, was)| now.store(was, Ordering::Relaxed));
        Ok(harms)
    }
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
pub(super) struct Trial {
    pub(super) plan: Arc<TypedSimplePlan>,
    pub(super) probes: Vec<TVec<TValue>>,
    /// Whether the graph has a loop.
    looped: bool,
    /// By output, whether it is judged.
    telling: Vec<bool>,
}

impl Trial {
    fn new(
        graph: &TypedModel,
        prepared: &Prepared,
        runs: &Runs,
        reading: &Reading,
    ) -> Result<Trial> {
        if reading.reads() {
            let dims = reading.without_past(graph, &runs.dims)?;
            let read = Trial::of(graph, prepared, &Runs { dims, ..runs.clone() }, reading, PROBES);
            match read.and_then(|trial| trial.outputs(0).map(|_| trial)) {
                Ok(trial) => return Ok(trial),
                Err(e) => {
                    tracing::warn!("layers are judged by random tokens, texts are not read: {e}")
                }
            }
        }
        Trial::of(graph, prepared, runs, &reading.of_none(), PROBES)
    }

    /// With so many probes, of texts where `reading` reads them.
    pub(super) fn of(
        graph: &TypedModel,
        prepared: &Prepared,
        runs: &Runs,
        reading: &Reading,
        probes: u64,
    ) -> Result<Trial> {
        let graph = bind_dims(graph, &runs.dims)?;
        let probe = |seed| {
            let mut inputs = made_up(&graph, prepared, seed, runs.filling)?;
            if reading.reads() {
                reading.put(&mut inputs, seed)?;
            }
            Ok(inputs)
        };
        let probes = (1..=probes).map(probe).collect::<Result<_>>()?;
        let looped = graph.nodes().iter().any(|node| node.op_is::<Scan>());
        let plan = graph.into_optimized().and_then(TypedSimplePlan::new).map_err(failed)?;
        Ok(Trial { plan, probes, looped, telling: reading.telling() })
    }

    fn floats(&self, outputs: TVec<TValue>) -> TractResult<Floats> {
        let telling = self.telling.iter().chain(std::iter::repeat(&true));
        let mut all = vec![];
        for (value, _) in
            outputs.iter().zip(telling).filter(|(v, tells)| **tells && v.datum_type().is_float())
        {
            let cast = value.cast_to::<f32>()?;
            all.push(cast.try_as_plain_ram()?.as_slice::<f32>()?.to_vec());
        }
        Ok(all)
    }

    /// The float outputs for one probe.
    fn outputs(&self, probe: usize) -> Result<Floats> {
        let outputs = self.plan.run(self.probes[probe].clone());
        outputs.and_then(|outputs| self.floats(outputs)).map_err(failed)
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
                false => {
                    let outputs = exact.branch().and_then(Walk::finish);
                    outputs.and_then(|outputs| self.floats(outputs)).map_err(failed)
                }
            };
            set(group, true);
            judge(group, outputs?);
        }
        Ok(())
    }
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Unsupported, &e)
}
