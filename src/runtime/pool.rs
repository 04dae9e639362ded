//! The weights and targets of all graphs of a base: what is equal is there once.

use super::calibrate::{self, Settled};
use super::passages::Passages;
use crate::adapter::{Target, TargetKind};
use crate::error::{Error, Result};
use crate::import::{
    Bound, FrozenMatrix, MatrixValues, Prepared, built, errors_of, quantize, tell,
};
use crate::pack::TargetError;
use crate::quant::WeightSource;
use crate::quant::{Packed, PackedRef, Scheme};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// What has been taken of the graphs so far.
#[derive(Default)]
pub(super) struct Pool {
    pub(super) weights: Vec<Arc<Packed>>,
    pub(super) targets: Vec<Target>,
    pub(super) errors: Vec<TargetError>,
    /// By the file's own values: a matrix is quantized once, whichever graphs read it.
    known: HashMap<Key, Known>,
    /// By what is stored: different matrices may come out equal.
    stored: HashMap<(blake3::Hash, Scheme, usize, usize), u32>,
}

type Key = (blake3::Hash, usize, usize, bool);

#[derive(Clone, Copy)]
struct Known {
    weight: u32,
    relative: f32,
    max_abs: f32,
}

/// The weights as the ops read them while a base is packed.
#[derive(Debug)]
pub(super) struct Table(pub(super) Vec<Arc<Packed>>);

impl WeightSource for Table {
    fn weight(&self, index: usize) -> Result<PackedRef<'_>> {
        let missing = || Error::bad_input(format!("weight {index} is missing"));
        Ok(self.0.get(index).ok_or_else(missing)?.view())
    }
}

impl Pool {
    /// Quantizes what a graph brings and is not there yet, and puts the indices of this pool into
    /// its rewritten nodes. `prepared` loses its matrices and targets, and where the graph can't be
    /// built with them, free dimensions, which it gives back.
    pub(super) fn take(
        &mut self,
        prepared: &mut Prepared,
        graph: &str,
        scheme: Scheme,
        untried: bool,
        passages: &Passages,
    ) -> Result<Vec<Bound>> {
        built();
        let mut keys = vec![];
        for (i, matrix) in prepared.matrices.iter().enumerate() {
            let gathered = |t: &Target| t.weight as usize == i && t.kind == TargetKind::Embedding;
            keys.push(key(matrix, prepared.targets.iter().any(gathered)));
        }
        let decided: Vec<bool> = keys.iter().map(|k| self.known.contains_key(k)).collect();
        let mut packed: Vec<Packed> = vec![];
        let mut measured = vec![];
        for (matrix, key) in prepared.matrices.iter().zip(&keys) {
            tell("packing weights", packed.len(), keys.len());
            match self.known.get(key) {
                Some(known) => {
                    packed.push(Packed::clone(&self.weights[known.weight as usize]));
                    measured.push((known.relative, known.max_abs));
                }
                None => {
                    let q = quantize(matrix, scheme, key.3)?;
                    packed.push(q.packed);
                    measured.push((q.relative, q.max_abs));
                }
            }
        }
        let mut wide = vec![];
        for (i, (matrix, packed)) in prepared.matrices.iter().zip(&packed).enumerate() {
            let suits = scheme == Scheme::Q8
                && packed.scheme() == Scheme::Q8
                && !decided[i]
                && suits_wide(i, &prepared.targets);
            wide.push(match suits {
                true => Some(quantize(matrix, Scheme::Q8Wide, false)?.packed),
                false => None,
            });
        }
        let Settled { finer, wide, coarse: mut packed, compensated, bound } =
            calibrate::settle(prepared, (packed, wide), &decided, scheme, untried, passages)?;
        for i in compensated {
            measured[i] = errors_of(&packed[i], &prepared.matrices[i].floats());
        }
        let finer = finer.into_iter().map(|i| (i, calibrate::finer(scheme)));
        for (i, scheme) in finer.chain(wide.into_iter().map(|i| (i, Scheme::Q8Wide))) {
            let q = quantize(&prepared.matrices[i], scheme, keys[i].3)?;
            measured[i] = (q.relative, q.max_abs);
            packed[i] = q.packed;
        }
        prepared.matrices.clear();
        let mut moved = vec![];
        for ((packed, key), (relative, max_abs)) in packed.into_iter().zip(keys).zip(measured) {
            let weight = match self.known.get(&key) {
                Some(known) => known.weight,
                None => self.store(packed),
            };
            self.known.insert(key, Known { weight, relative, max_abs });
            moved.push(Known { weight, relative, max_abs });
        }
        let targets = self.merge(std::mem::take(&mut prepared.targets), &moved, graph);
        for node in prepared.model.graph.iter_mut().flat_map(|g| &mut g.node) {
            if node.op_type.starts_with("Offshoot") {
                for attribute in &mut node.attribute {
                    let old = attribute.i as usize;
                    match attribute.name.as_str() {
                        "weight" => attribute.i = moved[old].weight as i64,
                        "target" => attribute.i = targets[old] as i64,
                        "weights" => attribute
                            .ints
                            .iter_mut()
                            .for_each(|i| *i = moved[*i as usize].weight as i64),
                        "targets" => {
                            attribute.ints.iter_mut().for_each(|i| *i = targets[*i as usize] as i64)
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(bound)
    }

    fn store(&mut self, packed: Packed) -> u32 {
        let key = (blake3::hash(packed.bytes()), packed.scheme(), packed.rows(), packed.cols());
        let next = self.weights.len() as u32;
        let index = *self.stored.entry(key).or_insert(next);
        if index == next {
            self.weights.push(Arc::new(packed));
        }
        index
    }

    /// A layer that an earlier graph has too is the same target, so that an adapter reaches both;
    /// another layer of the same name gets the graph's name before its own. Gives the new indices.
    fn merge(&mut self, found: Vec<Target>, moved: &[Known], graph: &str) -> Vec<u32> {
        let mut taken: HashSet<String> =
            self.targets.iter().map(|t| t.module_path.clone()).collect();
        let before = self.targets.len();
        let mut indices = vec![];
        for mut target in found {
            let Known { weight, relative, max_abs } = moved[target.weight as usize];
            target.weight = weight;
            let same = |t: &Target| Target { node: target.node.clone(), ..t.clone() } == target;
            if let Some(index) = self.targets.iter().take(before).position(same) {
                indices.push(index as u32);
                continue;
            }
            if taken.contains(&target.module_path) {
                let path = format!("{graph}.{}", target.module_path);
                let mut numbered = path.clone();
                let mut number = 1;
                while taken.contains(&numbered) {
                    numbered = format!("{path}_{number}");
                    number += 1;
                }
                target.module_path = numbered;
            }
            taken.insert(target.module_path.clone());
            let index = self.targets.len() as u32;
            let scheme = self.weights[weight as usize].scheme();
            self.errors.push(TargetError { target: index, scheme, relative, max_abs });
            self.targets.push(target);
            indices.push(index);
        }
        indices
    }
}

/// Whether products with the matrix may gain by scales for 64 columns: they are no more than a tenth
/// more, and a block of a convolution with several taps lies in one pixel.
fn suits_wide(matrix: usize, targets: &[Target]) -> bool {
    let mut own = targets.iter().filter(|t| t.weight as usize == matrix).peekable();
    let padded = |cols: u32, to: u64| u64::from(cols).next_multiple_of(to);
    let little = |cols: u32| padded(cols, 64) * 10 <= padded(cols, 32) * 11;
    own.peek().is_some()
        && own.all(|t| match t.kind {
            TargetKind::Linear | TargetKind::Conv { kernel: [1, 1], .. } => little(t.in_features),
            TargetKind::Conv { kernel: [h, w], .. } => {
                (t.in_features / (h * w).max(1)).is_multiple_of(64)
            }
            TargetKind::Embedding => false,
        })
}

fn key(matrix: &FrozenMatrix, gathered: bool) -> Key {
    let mut hasher = blake3::Hasher::new();
    let mut add = |values: &[f32]| {
        for some in values.chunks(1 << 12) {
            let bytes: Vec<u8> = some.iter().flat_map(|v| v.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
    };
    match &matrix.values {
        MatrixValues::F32(values) => add(values),
        MatrixValues::Int8 { ints, scales } => {
            add(scales);
            let bytes: Vec<u8> = ints.iter().map(|&v| v as u8).collect();
            hasher.update(b"int8").update(&bytes);
        }
    }
    (hasher.finalize(), matrix.rows, matrix.cols, gathered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_blocks_are_for_layers_that_fill_them() {
        let target = |kind: TargetKind, in_features: u32| Target {
            module_path: "layer".into(),
            node: "node".into(),
            kind,
            weight: 3,
            in_features,
            out_features: 8,
        };
        let conv = |side: u32, channels: u32| {
            target(
                TargetKind::Conv { kernel: [side, side], one_axis: false },
                side * side * channels,
            )
        };
        let linear = |inputs: u32| target(TargetKind::Linear, inputs);
        for fits in [linear(384), linear(40), linear(672), conv(1, 480), conv(3, 64)] {
            let one = std::slice::from_ref(&fits);
            assert!(suits_wide(3, one), "{fits:?}");
            assert!(!suits_wide(2, one), "another's matrix");
            let table = target(TargetKind::Embedding, 384);
            assert!(!suits_wide(3, &[fits, table]), "rows of a table are gathered");
        }
        for padded in [linear(80), linear(96), linear(160), conv(1, 96), conv(3, 32)] {
            assert!(!suits_wide(3, std::slice::from_ref(&padded)), "{padded:?}");
        }
    }
}
