//! The frozen part below the first trained layer: it gives a sample the same in every epoch, so it runs
//! once a sample, and what crosses to the trained layers is kept.
//!
//! A sentence is padded to the longest of its batch, and what crosses is as long as that: it is kept for
//! each padded length that the sentence was met with. A row runs alone and is kept as it was computed, so
//! that a run's result doesn't depend on how much there is room to keep.

mod below;
mod cut;
mod keep;
mod looks;
#[cfg(test)]
mod tests;

use super::samples::Samples;
use super::trainer::Trainer;
use super::work::{Above, Fed, mask};
use crate::error::Result;
use crate::runtime::{Binding, Engine};
pub(super) use below::Below;
use cut::Crossing;
pub(super) use keep::Set;
use keep::{Keep, Row};
pub(super) use looks::Looks;
use serde::Serialize;
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
#[cfg(test)]
pub(super) use tests::{is_off, plain};
use tract_core::internal::{TValue, TVec};

/// What a run kept of the frozen layers below the first trained one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PrefixReport {
    /// Those layers.
    pub layers: usize,
    /// Rows that they ran on; 0 where nothing is kept, and they run on every row.
    pub rows_run: u64,
    /// Rows whose outputs were there already.
    pub rows_kept: u64,
    /// Bytes kept in memory.
    pub memory_bytes: u64,
    /// Bytes kept in a file.
    pub file_bytes: u64,
    /// Why not all is kept, where that is so.
    pub why_not: Option<String>,
}

/// What is kept, and how much it is used.
pub(super) struct Prefix {
    layers: usize,
    keep: Keep,
    runs: AtomicU64,
    /// The sizes met and what crosses there: their places are part of what rows are kept by.
    met: Mutex<Vec<(Binding, Vec<Crossing>)>>,
    /// That of pictures and sounds, which are all of one size: rows that are kept need no decoding.
    of_media: OnceLock<Binding>,
}

impl Prefix {
    /// Nothing yet. Where memory is full, rows go into a file beside `beside`.
    pub fn new(layers: usize, beside: Option<PathBuf>) -> Prefix {
        Prefix {
            layers,
            keep: Keep::new(beside),
            runs: AtomicU64::new(0),
            met: Mutex::default(),
            of_media: OnceLock::new(),
        }
    }

    /// Gives it room in memory.
    pub fn allow(&self, bytes: u64) {
        self.keep.allow(bytes);
    }

    /// What the trained layers are fed with of `group`, filled up to `rows` rows.
    pub fn fed(
        &self,
        trainer: &Trainer,
        samples: &Samples<'_>,
        set: Set,
        group: &[usize],
        rows: usize,
    ) -> Result<Fed<'static>> {
        let engine = trainer.engine();
        let known = self.of_media.get().filter(|_| samples.is_of_one_size());
        let (binding, inputs) = match known {
            Some(binding) => (binding.clone(), None),
            None => {
                let inputs = samples.inputs(group, rows)?;
                (engine.binding(&engine.ordered(&inputs)?)?, Some(inputs))
            }
        };
        let plan = trainer.plan_for(&binding)?;
        let Some(below) = plan.below() else {
            // Nothing lies below for these sizes.
            let inputs = inputs.map_or_else(|| samples.inputs(group, rows), Ok)?;
            return Ok(Fed::Inputs(Cow::Owned(inputs)));
        };
        let tensors = self.crossing(engine, below, &binding, samples, set, group, rows)?;
        if samples.is_of_one_size() {
            self.of_media.get_or_init(|| binding.clone());
        }
        let inputs = inputs.filter(|_| trainer.is_per_token());
        let mask = inputs.and_then(|inputs| mask(engine, &inputs));
        Ok(Fed::Above(Above { binding, tensors, mask }))
    }

    /// What crosses of `group`, filled up to `rows` rows: what is kept, else made, and kept.
    #[allow(clippy::too_many_arguments)]
    fn crossing(
        &self,
        engine: &Engine,
        below: &Below,
        binding: &Binding,
        samples: &Samples<'_>,
        set: Set,
        group: &[usize],
        rows: usize,
    ) -> Result<TVec<TValue>> {
        let at = self.place(binding, &below.crossing);
        let mut found: Vec<Row> = vec![];
        for &sample in group {
            let key = (set, sample, at);
            found.push(match self.keep.get(&key, &below.crossing) {
                Some(row) => row,
                None => {
                    self.runs.fetch_add(1, Ordering::Relaxed);
                    let row = below.run(engine, &samples.alone(sample, group)?)?;
                    let row = Row::new(row);
                    self.keep.put(key, &row);
                    row
                }
            });
        }
        if let Some(first) = found.first().cloned() {
            found.resize(rows.max(found.len()), first);
        }
        below.gather(&found)
    }

    fn place(&self, binding: &Binding, crossing: &[Crossing]) -> usize {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = met.iter().position(|(known, of)| known == binding && of == crossing) {
            return at;
        }
        met.push((binding.clone(), crossing.to_vec()));
        met.len() - 1
    }

    /// How it went.
    pub fn report(&self) -> PrefixReport {
        let kept = self.keep.kept();
        PrefixReport {
            layers: self.layers,
            rows_run: self.runs.load(Ordering::Relaxed),
            rows_kept: kept.found,
            memory_bytes: kept.memory,
            file_bytes: kept.file,
            why_not: kept.why_not,
        }
    }
}
