//! Made-up inputs for a graph that is being packed.

use crate::adapter::TargetKind;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::tract_error;
use crate::import::Prepared;
use tract_core::internal::*;

/// Most values of one input.
const MAX_VALUES: usize = 1 << 26;
/// From here on values repeat: making them would take longer than the run.
const PERIOD: usize = 1 << 20;

/// What indices are: any within the largest embedding, or zeros, where a graph reads smaller tables, or
/// ones, where they are lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filling {
    Random,
    Zeros,
    Ones,
}

impl Filling {
    pub(super) const ALL: [Filling; 3] = [Filling::Random, Filling::Zeros, Filling::Ones];
}

/// A free dimension of a graph's inputs.
pub(super) struct FreeSymbol {
    pub(super) name: String,
    /// The input and the axis where it is first met.
    pub(super) place: (usize, usize),
    /// Whether it stands first in an input: the batch.
    pub(super) leads: bool,
    /// Whether it is a dimension by itself, not part of an expression (`32*h`).
    pub(super) plain: bool,
    /// The inputs that have it.
    pub(super) inputs: Vec<usize>,
}

/// The free dimensions in the order of the inputs.
pub(super) fn free_symbols(graph: &TypedModel) -> TractResult<Vec<FreeSymbol>> {
    let mut found: Vec<FreeSymbol> = vec![];
    for (slot, outlet) in graph.input_outlets()?.iter().enumerate() {
        for (axis, dim) in graph.outlet_fact(*outlet)?.shape.iter().enumerate() {
            let mut symbols: Vec<Symbol> = dim.symbols().into_iter().collect();
            symbols.sort();
            for symbol in symbols {
                let (name, plain) = (symbol.to_string(), matches!(dim, TDim::Sym(_)));
                match found.iter_mut().find(|s| s.name == name) {
                    Some(known) => {
                        known.leads |= axis == 0;
                        known.plain &= plain;
                        known.inputs.push(slot);
                    }
                    None => {
                        let (place, leads, inputs) = ((slot, axis), axis == 0, vec![slot]);
                        found.push(FreeSymbol { name, place, leads, plain, inputs });
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Noise for float inputs; for integers masks of ones, types of zeros, else indices.
///
/// # Errors
/// An input whose shape is open or too large.
pub(super) fn made_up(
    graph: &TypedModel,
    prepared: &Prepared,
    seed: u64,
    filling: Filling,
) -> Result<TVec<TValue>> {
    let mut random = Random(seed);
    let mut inputs = tvec![];
    for (slot, outlet) in graph.input_outlets().map_err(failed)?.iter().enumerate() {
        let fact = graph.outlet_fact(*outlet).map_err(failed)?;
        let name = prepared.inputs.get(slot).map_or("", |i| i.name.as_str());
        inputs.push(one(name, fact, prepared, &mut random, filling)?.into_tvalue());
    }
    Ok(inputs)
}

fn one(
    name: &str,
    fact: &TypedFact,
    prepared: &Prepared,
    random: &mut Random,
    filling: Filling,
) -> Result<Tensor> {
    let shape = fact.shape.as_concrete().ok_or_else(|| {
        Error::unsupported(format!("input '{name}' has the open shape {:?}", fact.shape))
    })?;
    let count: usize = shape.iter().product();
    if count > MAX_VALUES {
        return Err(Error::unsupported(format!("input '{name}' has {count} values")));
    }
    let embeddings = prepared.targets.iter().filter(|t| t.kind == TargetKind::Embedding);
    let rows = match filling {
        Filling::Random => embeddings.map(|t| t.in_features as u64).max().unwrap_or(2),
        Filling::Zeros | Filling::Ones => 1,
    };
    let least = i64::from(filling == Filling::Ones);
    let dtype = fact.datum_type;
    let tensor = if dtype.is_float() {
        Tensor::from_shape(shape, &repeated(count, || random.normal()))
    } else {
        let same = match name {
            n if n.contains("mask") || dtype == bool::datum_type() => Some(1),
            n if n.contains("type") => Some(0),
            _ => None,
        };
        let value = || same.unwrap_or_else(|| least + (random.next() % rows) as i64);
        Tensor::from_shape(shape, &repeated(count, value))
    };
    tensor.and_then(|t| t.cast_to_dt(dtype).map(|t| t.into_owned())).map_err(failed)
}

/// So many values, of which the first are made.
fn repeated<T: Copy>(count: usize, make: impl FnMut() -> T) -> Vec<T> {
    let mut values: Vec<T> = std::iter::repeat_with(make).take(count.min(PERIOD)).collect();
    while values.len() < count {
        values.extend_from_within(..values.len().min(count - values.len()));
    }
    values
}

/// Says whether an input is larger than what is made up, whatever its free dimensions are.
pub(super) fn too_large(graph: &TypedModel, prepared: &Prepared) -> TractResult<Option<Error>> {
    for (slot, outlet) in graph.input_outlets()?.iter().enumerate() {
        let shape = &graph.outlet_fact(*outlet)?.shape;
        let fixed = shape.iter().filter_map(|d| d.to_usize().ok()).filter(|d| *d > 0);
        let count = fixed.fold(1usize, usize::saturating_mul);
        if count > MAX_VALUES {
            let name = prepared.inputs.get(slot).map_or("", |i| i.name.as_str());
            return Ok(Some(Error::refused(format!(
                "input '{name}' has {count} values, at most {MAX_VALUES} are tried"
            ))));
        }
    }
    Ok(None)
}

fn failed(e: TractError) -> Error {
    tract_error(ErrorKind::Unsupported, &e)
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
