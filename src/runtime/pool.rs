//! The weights and targets of all graphs of a base: what is equal is there once.

use super::calibrate::{self, Settled};
use crate::adapter::{Target, TargetKind};
use crate::error::{Error, Result};
use crate::import::{Bound, FrozenMatrix, MatrixValues, Prepared, built, quantize, tell};
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
        let Settled { finer, coarse: mut packed, bound } =
            calibrate::settle(prepared, packed, &decided, scheme, untried)?;
        for i in finer {
            let q = quantize(&prepared.matrices[i], calibrate::finer(scheme), keys[i].3)?;
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
