//! `adapter_model.safetensors`: what each tensor is by its name.

#![warn(clippy::arithmetic_side_effects)]

use super::super::config::NamedTensor;
use super::super::kind::Kind;
use super::super::names::{nearest_hint, shown};
use super::super::tensor::{Stored, decode_f32};
use super::config::{Config, is_suffix};
use crate::error::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeMap;

/// Longest JSON header in bytes.
const MAX_HEADER: u64 = 16 << 20;
/// What PEFT puts before every name; some writers leave it out.
pub(super) const PREFIX: &str = "base_model.model.";

/// Endings of tensors that belong to options or methods that are not supported.
const REFUSED: &[(&str, &str)] = &[
    (".lora_B.bias", "biases on lora_B are not supported"),
    (".base_layer.bias", "trained biases are not supported"),
    (".token_adapter.trainable_tokens_delta", "trained token embeddings are not supported"),
    (".hada_w1_a", "LoHa is not supported"),
    (".hada_w1_b", "LoHa is not supported"),
    (".vera_lambda_b", "VeRA is not supported"),
    (".vera_lambda_d", "VeRA is not supported"),
];

/// A module saved in full.
pub(super) struct Saved {
    pub weight: NamedTensor,
    pub bias: Option<NamedTensor>,
}

/// Every tensor of the file, by module; prefixes stripped.
pub(super) struct Tensors {
    /// What the kind has of a module, named by their endings, in PEFT's shapes.
    pub changed: BTreeMap<String, Vec<NamedTensor>>,
    pub saved: BTreeMap<String, Saved>,
}

/// Errors: bad input (no safetensors file, a value that is not finite); unsupported (a tensor of
/// another method, a type other than F32, F16, BF16), naming the tensor.
pub(super) fn read(bytes: &[u8], config: &Config) -> Result<Tensors> {
    if let Some(len) = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b))
        && len > MAX_HEADER
    {
        return Err(Error::bad_input(format!(
            "header of {len} bytes, at most {MAX_HEADER} are allowed"
        )));
    }
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| Error::bad_input(format!("not a safetensors file: {e}")))?;
    let mut views: Vec<(&str, TensorView)> = file.iter().collect();
    views.sort_by_key(|(name, _)| *name);
    let names: Vec<&str> = views.iter().map(|(name, _)| *name).collect();
    let mut tensors = Tensors { changed: BTreeMap::new(), saved: BTreeMap::new() };
    let mut full: BTreeMap<String, Vec<NamedTensor>> = BTreeMap::new();
    for (name, view) in &views {
        let (module, ending, changes) = place(name, config, &names)?;
        let tensor =
            values(ending, view).map_err(|e| e.at(format_args!("tensor '{}'", shown(name))))?;
        let parts = if changes { &mut tensors.changed } else { &mut full };
        let parts = parts.entry(module.to_string()).or_default();
        if parts.iter().any(|t| t.name == ending) {
            return Err(Error::bad_input(format!(
                "tensor '{}' is there with and without '{PREFIX}'",
                shown(name)
            )));
        }
        parts.push(tensor);
    }
    for (module, parts) in full {
        if tensors.changed.contains_key(&module) {
            let module = shown(&module);
            return Err(Error::bad_input(format!(
                "module '{module}' is changed and saved in full"
            )));
        }
        let part = |ending: &str| {
            parts.iter().position(|t| t.name == ending).and_then(|at| parts.get(at).cloned())
        };
        let (weight, bias) = (part(".weight"), part(".bias"));
        let weight = weight.ok_or_else(|| {
            Error::bad_input(format!("module '{}': weight is missing", shown(&module)))
        })?;
        tensors.saved.insert(module, Saved { weight, bias });
    }
    Ok(tensors)
}

/// The module, the ending, and whether it is the kind's: else the module is saved in full.
fn place<'a>(
    name: &'a str,
    config: &Config,
    names: &[&str],
) -> Result<(&'a str, &'static str, bool)> {
    let path = name.strip_prefix(PREFIX).unwrap_or(name);
    let own = config.form().map_or(&[][..], |form| form.endings());
    // The longest: `.x.weight` is not `.weight`.
    let mut found = own.iter().filter(|e| path.ends_with(**e)).collect::<Vec<_>>();
    found.sort_by_key(|e| e.len());
    if let Some(&&ending) = found.last()
        && let Some(module) = path.strip_suffix(ending)
    {
        return Ok((module, ending, true));
    }
    if let Some((_, reason)) = REFUSED.iter().find(|(ending, _)| path.ends_with(ending)) {
        return Err(Error::unsupported(format!("tensor '{}': {reason}", shown(name))));
    }
    for kind in Kind::all() {
        let endings = kind.rules().peft().map_or(&[][..], |form| form.endings());
        if endings.iter().any(|e| path.ends_with(e)) {
            return Err(Error::unsupported(format!(
                "tensor '{}' belongs to kind '{}', the configuration is of kind '{}'",
                shown(name),
                kind.name(),
                config.kind.name()
            )));
        }
    }
    for ending in [".weight", ".bias"] {
        if let Some(module) = path.strip_suffix(ending)
            && config.saved.iter().any(|s| module == s || is_suffix(module, s))
        {
            return Ok((module, ending, false));
        }
    }
    let error = Error::unsupported(format!(
        "tensor '{}' is no part of kind '{}' nor of 'modules_to_save'",
        shown(name),
        config.kind.name()
    ));
    Err(match nearest_hint(name, names.iter().copied().filter(|n| *n != name)) {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

fn values(ending: &str, view: &TensorView) -> Result<NamedTensor> {
    let dtype = match view.dtype() {
        Dtype::F32 => Stored::F32,
        Dtype::F16 => Stored::F16,
        Dtype::BF16 => Stored::Bf16,
        other => {
            return Err(Error::unsupported(format!(
                "type {other:?} is not supported, expected F32, F16 or BF16"
            )));
        }
    };
    Ok(NamedTensor::new(ending, view.shape(), decode_f32(dtype, view.data())?))
}
