//! Which layers a coarse scheme harms: measured at pack time on made-up inputs, so that the
//! worst of them are stored finer until the outputs agree with the unquantized model.

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{FrozenWeights, WeightSource, bind_dims, lower, tract_error};
use crate::import::Prepared;
use crate::quant::{Packed, PackedRef, Scheme};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tract_core::internal::*;

/// Inputs made up for each model.
const PROBES: u64 = 3;

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
    let expected: Vec<Vec<Vec<f32>>> = trial.outputs()?;
    let set = |index: usize, exact: bool| mixed.use_exact[index].store(exact, Ordering::Relaxed);
    let candidates: Vec<usize> = (0..mixed.coarse.len())
        .filter(|&i| mixed.coarse[i].scheme() == scheme && mixed.exact[i].is_some())
        .filter(|&i| decided.get(i) != Some(&true))
        .collect();
    let mut harms: Vec<(i32, usize)> = vec![];
    for &i in &candidates {
        set(i, false);
        let harm = turned(&expected, &trial.outputs()?);
        set(i, true);
        let size = (mixed.coarse[i].rows() * mixed.coarse[i].cols()) as f64;
        harms.push((-((harm / size).max(1e-18).log2().round() as i32), i));
    }
    harms.sort_unstable();
    for i in 0..mixed.coarse.len() {
        set(i, false);
    }
    let mut promoted = vec![];
    let mut left = harms.into_iter();
    while turned(&expected, &trial.outputs()?) > allowed(scheme) {
        // A few at a time: one run for each would be slow for deep models.
        let some: Vec<usize> =
            left.by_ref().take((candidates.len() / 24).max(1)).map(|(_, i)| i).collect();
        if some.is_empty() {
            break;
        }
        some.iter().for_each(|&i| set(i, true));
        promoted.extend(some);
    }
    Ok(promoted)
}

/// Largest 1 - cosine over probes and outputs.
fn turned(expected: &[Vec<Vec<f32>>], found: &[Vec<Vec<f32>>]) -> f64 {
    let mut worst = 0f64;
    for (e, f) in expected.iter().flatten().zip(found.iter().flatten()) {
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

/// The model ready to run on its probes.
struct Trial {
    plan: Arc<TypedSimplePlan>,
    probes: Vec<TVec<TValue>>,
}

impl Trial {
    fn new(prepared: &Prepared, mixed: &Arc<Mixed>) -> Result<Trial> {
        let failed = |e: TractError| tract_error(ErrorKind::Unsupported, &e);
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
                    if !dims.iter().any(|(n, _)| *n == name) {
                        dims.push((name, FREE_DIM));
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

    /// The float outputs for every probe.
    fn outputs(&self) -> Result<Vec<Vec<Vec<f32>>>> {
        let failed = |e: TractError| tract_error(ErrorKind::Unsupported, &e);
        let mut all = vec![];
        for probe in &self.probes {
            let mut floats = vec![];
            for value in self.plan.run(probe.clone()).map_err(failed)? {
                if value.datum_type().is_float() {
                    let cast = value.cast_to::<f32>().map_err(failed)?;
                    let plain = cast.try_as_plain_ram().map_err(failed)?;
                    floats.push(plain.as_slice::<f32>().map_err(failed)?.to_vec());
                }
            }
            all.push(floats);
        }
        Ok(all)
    }
}

/// Noise for float inputs; for integers masks of ones, types of zeros, else indices within the
/// largest embedding.
fn made_up(
    name: &str,
    fact: &TypedFact,
    prepared: &Prepared,
    random: &mut Random,
) -> Result<Tensor> {
    let failed = |e: TractError| tract_error(ErrorKind::Unsupported, &e);
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
