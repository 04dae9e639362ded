//! Values that look like a request, and an adapter that looks like a trained one.

use crate::adapter::{Adapter, Target, TargetAdapter, TargetKind};
use crate::error::{Error, Result};
use crate::pack::{IoSpec, Role};
use crate::runtime::{Engine, Named};
use crate::shape::{Array, DType, Data, volume};

/// Token ids where the base has no embedding that says how many there are.
const IDS: usize = 100;

/// What free dimensions become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The first dimension of an input.
    pub rows: usize,
    /// The others: tokens of a sentence.
    pub length: usize,
}

/// Inputs of the base with made-up values: ones for masks, zeros for token types, else a spread of
/// values that the type and the base's vocabulary allow.
///
/// # Errors
/// Unsupported: a dimension that is computed from others. Refused: more than the engine's memory.
pub fn inputs(engine: &Engine, sizes: Sizes) -> Result<Named> {
    let vocabulary = engine.base().vocabulary().unwrap_or(IDS);
    let shapes = engine.inputs().iter().map(|spec| Ok((spec, shape(spec, sizes)?)));
    let shapes = shapes.collect::<Result<Vec<(&IoSpec, Vec<usize>)>>>()?;
    if let Some(limit) = engine.memory() {
        let values = shapes.iter().map(|(_, shape)| volume(shape).unwrap_or(usize::MAX) as u64);
        // In the largest type, and once more as the run has them. What they become there is looked at there.
        let bytes = values.fold(0u64, |all, n| all.saturating_add(n.saturating_mul(16)));
        drop(limit.take(bytes)?);
    }
    let one = |(spec, shape): (&IoSpec, Vec<usize>)| {
        Ok((spec.name.clone(), input(spec, shape, vocabulary)?))
    };
    shapes.into_iter().map(one).collect()
}

fn shape(spec: &IoSpec, sizes: Sizes) -> Result<Vec<usize>> {
    let free = |axis| if axis == 0 { sizes.rows } else { sizes.length };
    let is_name = |d: &str| d.chars().all(|c| c.is_alphanumeric() || "_.-:".contains(c));
    let mut shape = vec![];
    for (axis, dim) in spec.dims.iter().enumerate() {
        shape.push(match dim.parse::<usize>() {
            Ok(size) => size,
            Err(_) if is_name(dim) => free(axis),
            Err(_) => {
                let name = &spec.name;
                return Err(Error::unsupported(format!("no made-up '{name}': axis {dim} is open"))
                    .hint("give all inputs as arrays"));
            }
        });
    }
    Ok(shape)
}

fn input(spec: &IoSpec, shape: Vec<usize>, vocabulary: usize) -> Result<Array> {
    let count = volume(&shape).filter(|&n| n <= isize::MAX as usize / 8).ok_or_else(|| {
        Error::usage(format!("input '{}' of shape {shape:?} is too large", spec.name))
    })?;
    let id = |i: usize| match spec.role {
        Role::Mask | Role::EncodedMask => 1,
        Role::Types => 0,
        _ => (1 + spread(i)) % vocabulary.max(1),
    };
    match spec.dtype {
        DType::F32 => Array::f32(shape, (0..count).map(signed).collect()),
        DType::I64 => Array::i64(shape, (0..count).map(|i| id(i) as i64).collect()),
        DType::I32 => Array::new(shape, Data::I32((0..count).map(|i| id(i) as i32).collect())),
        DType::U8 => Array::new(shape, Data::U8((0..count).map(|i| spread(i) as u8).collect())),
        DType::Bool => Array::new(shape, Data::Bool(vec![true; count])),
    }
}

/// An adapter of `rank` on every linear layer and convolution, with small values: it costs what a
/// trained one costs. `None` where the base has no such target.
pub fn adapter(engine: &Engine, rank: u32, seed: usize) -> Option<Adapter> {
    let base = engine.base();
    let pair = |(i, t): (usize, &Target)| {
        let values = |n: u32, seed: usize| -> Vec<f32> {
            let count = rank as usize * n as usize;
            (0..count).map(|j| 0.02 * signed(j + 977 * seed)).collect()
        };
        let a = values(t.in_features, seed + 2 * i);
        let b = values(t.out_features, seed + 2 * i + 1);
        TargetAdapter::lora(&t.module_path, rank, 16.0, a, b)
    };
    let targets: Vec<TargetAdapter> = base
        .targets()
        .iter()
        .filter(|t| t.kind != TargetKind::Embedding)
        .enumerate()
        .map(pair)
        .collect();
    (!targets.is_empty()).then(|| Adapter {
        name: format!("made up {seed}"),
        base: Some(base.fingerprint()),
        targets,
        ..Adapter::default()
    })
}

/// 0..1024, without a pattern that a cache could follow.
fn spread(i: usize) -> usize {
    (i as u32).wrapping_mul(2_654_435_761) as usize >> 7 & 1023
}

/// -1..1.
fn signed(i: usize) -> f32 {
    spread(i) as f32 / 512.0 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: DType, dims: &[&str]) -> IoSpec {
        let dims = dims.iter().map(|d| d.to_string()).collect();
        let role = if name.ends_with("mask") { Role::Mask } else { Role::Other };
        IoSpec { name: name.into(), safe_name: "x0".into(), dtype, dims, role }
    }

    fn input(spec: &IoSpec, sizes: Sizes, vocabulary: usize) -> Result<Array> {
        super::input(spec, shape(spec, sizes)?, vocabulary)
    }

    #[test]
    fn free_dimensions_and_values_follow_the_inputs_roles() {
        let sizes = Sizes { rows: 2, length: 5 };
        let ids = input(&spec("input_ids", DType::I64, &["batch", "seq"]), sizes, 7).unwrap();
        assert_eq!(ids.shape(), [2, 5]);
        assert!(ids.as_i64().unwrap().iter().all(|id| (0..7).contains(id)));
        let mask = input(&spec("attention_mask", DType::I64, &["batch", "seq"]), sizes, 7).unwrap();
        assert_eq!(mask.as_i64().unwrap(), [1; 10]);
        let image = input(&spec("image", DType::F32, &["b", "3", "8", "8"]), sizes, 7).unwrap();
        assert_eq!(image.shape(), [2, 3, 8, 8]);
        assert!(image.as_f32().unwrap().iter().any(|v| *v < -0.5));
        let computed = spec("x", DType::F32, &["2*n+1"]);
        assert!(input(&computed, sizes, 7).unwrap_err().message().contains("2*n+1"));
    }
}
