//! References, comparisons, seeded adapters.

pub use crate::common::{emulated, packed, shared};
use offshoot::adapters::{Target, TargetAdapter};
use offshoot::testing::npy::read_npz;
use offshoot::{Adapter, Array, Engine, Named};
use std::path::{Path, PathBuf};

/// Largest reference file read, in bytes.
const MAX_REFERENCE: u64 = 64 << 20;

/// A file of the repository's `models` folder.
pub fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

/// Inputs of a network and what it answers to them.
pub struct Reference {
    pub inputs: Named,
    pub outputs: Named,
}

/// Reads `in.NAME` and `out.NAME` (where there is none, `ort.NAME`) of an `.npz` file.
pub fn reference(path: &Path) -> Reference {
    let arrays = read_npz(path, MAX_REFERENCE).unwrap();
    let under = |prefix: &str| -> Named {
        let strip = |(name, a): &(String, Array)| {
            name.strip_prefix(prefix).map(|name| (name.to_string(), a.clone()))
        };
        arrays.iter().filter_map(strip).collect()
    };
    let mut outputs = under("out.");
    if outputs.is_empty() {
        outputs = under("ort.");
    }
    let reference = Reference { inputs: under("in."), outputs };
    assert!(!reference.inputs.is_empty() && !reference.outputs.is_empty(), "{}", path.display());
    reference
}

/// The array of this name.
pub fn named<'a>(arrays: &'a Named, name: &str) -> &'a Array {
    &arrays.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no array '{name}'")).1
}

/// Runs the engine without an adapter and gives, for each reference output, (name, found, expected)
/// of equal shapes.
pub fn answers(engine: &Engine, reference: &Reference) -> Vec<(String, Array, Array)> {
    let found = engine.run(&reference.inputs, None).unwrap();
    let pair = |(name, expected): &(String, Array)| {
        let found = named(&found, name).clone();
        assert_eq!(found.shape(), expected.shape(), "output '{name}'");
        (name.clone(), found, expected.clone())
    };
    reference.outputs.iter().map(pair).collect()
}

/// Largest absolute difference; a NaN on either side counts as infinite.
pub fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let apart = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
    a.iter().zip(b).map(apart).fold(0.0, f32::max)
}

/// Cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The least cosine of two arrays' rows (last axis).
pub fn least_cosine(a: &Array, b: &Array) -> f64 {
    let width = *a.shape().last().unwrap();
    let rows = a.as_f32().unwrap().chunks(width).zip(b.as_f32().unwrap().chunks(width));
    rows.map(|(a, b)| cosine(a, b)).fold(f64::INFINITY, f64::min)
}

/// Index of the greatest value of each row (last axis).
pub fn top(a: &Array) -> Vec<usize> {
    let best = |row: &[f32]| (0..row.len()).max_by(|&i, &j| row[i].total_cmp(&row[j])).unwrap();
    a.as_f32().unwrap().chunks(*a.shape().last().unwrap()).map(best).collect()
}

/// `n` values in -spread..spread that depend on `seed` alone.
pub fn values(n: usize, seed: u64, spread: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * spread
    };
    (0..n).map(|_| next()).collect()
}

/// A low-rank pair with random values for `target`.
pub fn pair(target: &Target, rank: u32, seed: u64) -> TargetAdapter {
    let n = |features: u32| (rank * features) as usize;
    let a = values(n(target.in_features), seed, 0.3);
    let b = values(n(target.out_features), seed ^ 0x5555, 0.3);
    TargetAdapter::lora(&target.module_path, rank, 2.0 * rank as f32, a, b)
}

/// An adapter for this base with random pairs on the targets that `keep` selects.
pub fn adapter(engine: &Engine, seed: u64, keep: impl Fn(&Target) -> bool) -> Adapter {
    let base = engine.base();
    let targets = base.targets().iter().filter(|t| keep(t)).zip(seed..);
    let targets: Vec<_> = targets.map(|(t, s)| pair(t, 2, s * 7919)).collect();
    assert!(!targets.is_empty());
    let name = format!("seed-{seed}");
    Adapter { name, base: Some(base.fingerprint()), targets, ..Adapter::default() }
}
