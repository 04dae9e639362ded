//! The limits of an adapter and the check that one keeps them.

use super::config::{Adapter, Head, NamedTensor, TargetAdapter};
use super::names::shown;
use crate::error::{Error, Result};
use crate::shape::Data;
use std::collections::HashSet;

/// Most targets of one adapter.
pub const MAX_TARGETS: usize = 65_536;
/// Greatest rank.
pub const MAX_RANK: u32 = 4096;
/// Longest name (adapter, module path, label, input, metric) in bytes of UTF-8.
pub const MAX_NAME: usize = 1024;
/// Most labels of a head.
pub const MAX_LABELS: usize = 65_536;
/// Most probes, most inputs of one, and most metrics of a training record.
pub const MAX_LIST: usize = 256;
/// Most dimensions of a tensor.
pub const MAX_AXES: usize = 8;

impl Adapter {
    /// Whether it keeps the limits of the format: names of at most 1024 bytes without
    /// control characters, no target twice, ranks of 1 to 4096, the tensors that kinds and
    /// labels ask for, finite values. What was read from a file has passed it.
    ///
    /// # Errors
    /// Bad input, naming the first fault.
    pub fn check(&self) -> Result<()> {
        name("adapter name", &self.name)?;
        count("targets", self.targets.len(), MAX_TARGETS)?;
        count("probes", self.probes.len(), MAX_LIST)?;
        let mut seen = HashSet::new();
        for target in &self.targets {
            check_target(target)?;
            if !seen.insert(target.module_path.as_str()) {
                return Err(Error::bad_input(format!(
                    "target '{}' appears twice",
                    shown(&target.module_path)
                )));
            }
        }
        count("heads", self.heads.len(), MAX_LIST)?;
        let mut heads = HashSet::new();
        for head in &self.heads {
            if !heads.insert(head.name.as_str()) {
                return Err(Error::bad_input(format!(
                    "head '{}' appears twice",
                    shown(&head.name)
                )));
            }
            check_head(head).map_err(|e| e.at(format_args!("head '{}'", shown(&head.name))))?;
        }
        if let Some(record) = &self.training {
            name("tool version", &record.tool)?;
            finite("training record", &[record.epochs, record.learning_rate, record.final_loss])?;
            for metrics in [&record.before, &record.after] {
                count("metrics", metrics.len(), MAX_LIST)?;
                for (metric, value) in metrics {
                    name("metric", metric)?;
                    finite("training record", &[*value])?;
                }
            }
        }
        for probe in &self.probes {
            name("probe output", &probe.output)?;
            finite("probe effect", &[probe.effect])?;
            count("probe inputs", probe.inputs.len(), MAX_LIST)?;
            for (input, values) in &probe.inputs {
                name("probe input", input)?;
                count("dimensions", values.shape().len(), MAX_AXES)?;
                if let Data::F32(values) = values.data() {
                    finite("probe input", values)?;
                }
            }
        }
        count("activation ranges", self.ranges.len(), MAX_TARGETS)?;
        for range in &self.ranges {
            name("module path", &range.module_path)?;
            finite("activation range", &[range.low, range.high])?;
        }
        count("extra sections", self.extras.len(), MAX_LIST)?;
        let known = self.heads.iter().any(|head| head.known.is_some());
        for (at, extra) in self.extras.iter().enumerate() {
            name("section", &extra.name)?;
            if extra.name.is_empty()
                || (known && extra.name == super::known::SECTION)
                || self.extras.iter().take(at).any(|e| e.name == extra.name)
            {
                let name = shown(&extra.name);
                return Err(Error::bad_input(format!("section '{name}' has no name of its own")));
            }
        }
        Ok(())
    }
}

pub(super) fn check_target(target: &TargetAdapter) -> Result<()> {
    let path = &target.module_path;
    name("module path", path)?;
    if path.is_empty() {
        return Err(Error::bad_input("a target has an empty module path"));
    }
    check_values(target).map_err(|e| e.at(format_args!("target '{}'", shown(path))))
}

fn check_values(target: &TargetAdapter) -> Result<()> {
    let TargetAdapter { kind, rank, alpha, rslora, .. } = *target;
    if kind.is_ranked() && (rank == 0 || rank > MAX_RANK) {
        return Err(Error::bad_input(format!("rank {rank} is not in 1 to {MAX_RANK}")));
    }
    if !kind.is_ranked() && (rank != 0 || alpha != 0.0) {
        return Err(Error::bad_input(format!("kind '{}' has no rank nor alpha", kind.name())));
    }
    if rslora && !kind.has_rslora() {
        return Err(Error::bad_input(format!("kind '{}' has no rsLoRA", kind.name())));
    }
    finite("alpha", &[alpha])?;
    for tensor in &target.tensors {
        name("tensor name", &tensor.name)?;
        check_tensor(tensor)?;
    }
    let features = target.features()?;
    for side in [features.inputs, features.outputs].into_iter().flatten() {
        if side == 0 || u32::try_from(side).is_err() {
            return Err(Error::bad_input(format!("tensors for a layer of {side} features")));
        }
    }
    Ok(())
}

fn check_tensor(tensor: &NamedTensor) -> Result<()> {
    count("dimensions", tensor.shape.len(), MAX_AXES)?;
    if crate::shape::volume(&tensor.shape) != Some(tensor.values.len()) {
        return Err(Error::bad_input(format!(
            "{} has {} values for shape {:?}",
            shown(&tensor.name),
            tensor.values.len(),
            tensor.shape
        )));
    }
    finite(&tensor.name, &tensor.values)
}

fn check_head(head: &Head) -> Result<()> {
    name("head name", &head.name)?;
    name("head output", &head.output)?;
    count("labels", head.labels.len(), MAX_LABELS)?;
    // Without labels it stands for the output itself.
    if head.bias.is_empty() != head.labels.is_empty() || head.labels.len() != head.classes() {
        return Err(Error::bad_input(format!(
            "{} labels for {} classes",
            head.labels.len(),
            head.classes()
        )));
    }
    let mut seen = HashSet::new();
    for label in head.labels.iter() {
        name("label", label)?;
        if !seen.insert(label) {
            return Err(Error::bad_input(format!("label '{}' appears twice", shown(label))));
        }
    }
    if head.features == 0
        || head.classes().checked_mul(head.features as usize) != Some(head.weight.len())
    {
        return Err(Error::bad_input(format!(
            "weight has {} values, expected {} classes × {} features",
            head.weight.len(),
            head.classes(),
            head.features
        )));
    }
    name("task", &head.task)?;
    if head.task.is_empty() {
        return Err(Error::bad_input("its task has no name"));
    }
    if !head.thresholds.is_empty() && head.thresholds.len() != head.labels.len() {
        return Err(Error::bad_input(format!(
            "{} thresholds for {} labels",
            head.thresholds.len(),
            head.labels.len()
        )));
    }
    finite("thresholds", &head.thresholds)?;
    if !(head.temperature.is_finite() && head.temperature > 0.0) {
        return Err(Error::bad_input(format!("temperature {} is not positive", head.temperature)));
    }
    if let Some(known) = &head.known {
        known.check(head.features)?;
    }
    finite("weight", &head.weight)?;
    finite("bias", &head.bias)
}

pub(super) fn count(what: &str, found: usize, most: usize) -> Result<()> {
    if found > most {
        return Err(Error::bad_input(format!("{found} {what}, at most {most} are allowed")));
    }
    Ok(())
}

pub(super) fn name(what: &str, name: &str) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(Error::bad_input(format!(
            "{what} '{}' has {} bytes, at most {MAX_NAME} are allowed",
            shown(name),
            name.len()
        )));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::bad_input(format!("{what} '{}' has a control character", shown(name))));
    }
    Ok(())
}

pub(super) fn finite(what: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(Error::bad_input(format!("{what} has a value that is not finite at {at}"))),
        None => Ok(()),
    }
}
