//! `adapter_model.safetensors`: what each tensor is by its name, and its values in our layout.

use super::super::names::{nearest_hint, shown};
use super::super::target::{Target, TargetKind};
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
    (".lora_embedding_A", "adapters on embeddings are not supported"),
    (".lora_embedding_B", "adapters on embeddings are not supported"),
    (".lora_magnitude_vector", "DoRA is not supported"),
    (".lora_magnitude_vector.weight", "DoRA is not supported"),
    (".lora_B.bias", "biases on lora_B are not supported"),
    (".base_layer.bias", "trained biases are not supported"),
    (".token_adapter.trainable_tokens_delta", "trained token embeddings are not supported"),
    (".ia3_l", "IA3 is not supported"),
    (".hada_w1_a", "LoHa is not supported"),
    (".hada_w1_b", "LoHa is not supported"),
    (".lokr_w1", "LoKr is not supported"),
    (".lokr_w1_a", "LoKr is not supported"),
    (".vera_lambda_b", "VeRA is not supported"),
    (".vera_lambda_d", "VeRA is not supported"),
];

/// A tensor's values as floats, in PEFT's shape.
#[derive(Debug)]
pub(super) struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// lora_A and lora_B of one module.
pub(super) struct Pair {
    pub a: Tensor,
    pub b: Tensor,
}

/// A module saved in full.
pub(super) struct Saved {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

/// Every tensor of the file, by module; prefixes stripped.
pub(super) struct Tensors {
    pub pairs: BTreeMap<String, Pair>,
    pub saved: BTreeMap<String, Saved>,
}

/// Errors: bad input (no safetensors file, half a pair, a value that is not finite); unsupported
/// (a tensor of another method, a type other than F32, F16, BF16), naming the tensor.
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
    let mut parts: BTreeMap<String, [Option<Tensor>; 4]> = BTreeMap::new();
    for (name, view) in &views {
        let (module, slot) = place(name, config, &names)?;
        let tensor = values(view).map_err(|e| e.at(format_args!("tensor '{}'", shown(name))))?;
        let slot = parts.entry(module.to_string()).or_default().get_mut(slot as usize);
        if slot.is_none_or(|s| s.replace(tensor).is_some()) {
            return Err(Error::bad_input(format!(
                "tensor '{}' is there with and without '{PREFIX}'",
                shown(name)
            )));
        }
    }
    let mut tensors = Tensors { pairs: BTreeMap::new(), saved: BTreeMap::new() };
    for (module, parts) in parts {
        match parts {
            [Some(a), Some(b), None, None] => drop(tensors.pairs.insert(module, Pair { a, b })),
            [None, None, Some(weight), bias] => {
                drop(tensors.saved.insert(module, Saved { weight, bias }));
            }
            [a, b, weight, _] => {
                let missing = match (a, b, weight) {
                    (None, Some(_), None) => "lora_A is missing",
                    (Some(_), None, None) => "lora_B is missing",
                    (None, None, None) => "weight is missing",
                    _ => "it has a pair and a full weight",
                };
                return Err(Error::bad_input(format!("module '{}': {missing}", shown(&module))));
            }
        }
    }
    Ok(tensors)
}

#[derive(Clone, Copy)]
enum Slot {
    A = 0,
    B = 1,
    Weight = 2,
    Bias = 3,
}

/// The module and the part of it that a tensor is.
fn place<'a>(name: &'a str, config: &Config, names: &[&str]) -> Result<(&'a str, Slot)> {
    let path = name.strip_prefix(PREFIX).unwrap_or(name);
    for (ending, slot) in [(".lora_A.weight", Slot::A), (".lora_B.weight", Slot::B)] {
        if let Some(module) = path.strip_suffix(ending) {
            return Ok((module, slot));
        }
    }
    if let Some((_, reason)) = REFUSED.iter().find(|(ending, _)| path.ends_with(ending)) {
        return Err(Error::unsupported(format!("tensor '{}': {reason}", shown(name))));
    }
    for (ending, slot) in [(".weight", Slot::Weight), (".bias", Slot::Bias)] {
        if let Some(module) = path.strip_suffix(ending)
            && config.saved.iter().any(|s| module == s || is_suffix(module, s))
        {
            return Ok((module, slot));
        }
    }
    let error = Error::unsupported(format!(
        "tensor '{}' is no part of a pair nor of 'modules_to_save'",
        shown(name)
    ));
    Err(match nearest_hint(name, names.iter().copied().filter(|n| *n != name)) {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

fn values(view: &TensorView) -> Result<Tensor> {
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
    Ok(Tensor { shape: view.shape().to_vec(), values: decode_f32(dtype, view.data())? })
}

/// lora_A as (R, in_features), channels innermost; lora_B as (out_features, R).
///
/// # Errors
/// Bad input: a rank other than the configuration's. Mismatch: shapes that are not the target's.
/// Unsupported: an embedding.
pub(super) fn to_target(pair: Pair, target: &Target, rank: u32) -> Result<(Vec<f32>, Vec<f32>)> {
    let r = rank as usize;
    if pair.a.shape.first() != Some(&r) {
        return Err(Error::bad_input(format!(
            "lora_A has shape {:?}, expected rank {rank} of the configuration first",
            pair.a.shape
        )));
    }
    let (inputs, outputs) = (target.in_features as usize, target.out_features as usize);
    let ([kh, kw], one_axis) = match target.kind {
        TargetKind::Linear => ([1, 1], false),
        TargetKind::Conv { kernel, one_axis } => (kernel.map(|k| k as usize), one_axis),
        TargetKind::Embedding => {
            return Err(Error::unsupported("the target is an embedding, which is not supported"));
        }
    };
    let window = kh * kw;
    let channels = inputs.checked_div(window).unwrap_or(0);
    let fits = match *pair.a.shape.as_slice() {
        [_, c] => window == 1 && c == channels,
        [_, c, k] => (one_axis || window == 1) && (c, k) == (channels, window),
        [_, c, h, w] => (c, h, w) == (channels, kh, kw),
        _ => false,
    };
    if !fits {
        let expected = if window == 1 { vec![r, channels] } else { vec![r, channels, kh, kw] };
        return Err(wrong_shape("lora_A", &pair.a.shape, &expected));
    }
    let fits = match pair.b.shape.as_slice() {
        [o, n, ones @ ..] => {
            (*o, *n) == (outputs, r) && ones.len() <= 2 && ones.iter().all(|&d| d == 1)
        }
        _ => false,
    };
    if !fits {
        return Err(wrong_shape("lora_B", &pair.b.shape, &[outputs, r]));
    }
    Ok((channels_last(pair.a.values, channels, window), pair.b.values))
}

fn wrong_shape(name: &str, found: &[usize], expected: &[usize]) -> Error {
    Error::mismatch(format!("{name} has shape {found:?}, the base expects {expected:?}"))
}

/// (R, channels, window) to (R, window, channels).
pub(super) fn channels_last(values: Vec<f32>, channels: usize, window: usize) -> Vec<f32> {
    if window == 1 {
        return values;
    }
    let mut out = Vec::with_capacity(values.len());
    for filter in values.chunks_exact((channels * window).max(1)) {
        for at in 0..window {
            out.extend(filter.iter().skip(at).step_by(window));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::linear;
    use super::*;
    use crate::error::ErrorKind;

    fn tensor(shape: &[usize]) -> Tensor {
        let n = shape.iter().product::<usize>();
        Tensor { shape: shape.to_vec(), values: (0..n).map(|i| i as f32).collect() }
    }

    fn pair(a: &[usize], b: &[usize]) -> Pair {
        Pair { a: tensor(a), b: tensor(b) }
    }

    #[test]
    fn kernels_are_turned_channels_last() {
        let mut target = linear("c", 12, 3);
        target.kind = TargetKind::Conv { kernel: [2, 3], one_axis: false };
        let (a, b) = to_target(pair(&[1, 2, 2, 3], &[3, 1, 1, 1]), &target, 1).unwrap();
        assert_eq!(a, [0., 6., 1., 7., 2., 8., 3., 9., 4., 10., 5., 11.]);
        assert_eq!(b, [0., 1., 2.]);
        target.kind = TargetKind::Conv { kernel: [1, 6], one_axis: true };
        let (a, _) = to_target(pair(&[2, 2, 6], &[3, 2, 1]), &target, 2).unwrap();
        assert_eq!(a[..4], [0., 6., 1., 7.]);
        assert_eq!(a[12..14], [12., 18.]);
    }

    #[test]
    fn a_one_by_one_kernel_is_a_linear_layer() {
        let mut target = linear("c", 4, 3);
        for kind in [TargetKind::Linear, TargetKind::Conv { kernel: [1, 1], one_axis: false }] {
            target.kind = kind;
            for (a, b) in [(vec![2, 4], vec![3, 2]), (vec![2, 4, 1, 1], vec![3, 2, 1, 1])] {
                assert_eq!(to_target(pair(&a, &b), &target, 2).unwrap().0.len(), 8);
            }
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let target = linear("c", 4, 3);
        for (a, b, kind) in [
            (vec![2, 5], vec![3, 2], ErrorKind::Mismatch),
            (vec![2, 4], vec![4, 2], ErrorKind::Mismatch),
            (vec![2, 4, 1, 2], vec![3, 2], ErrorKind::Mismatch),
            (vec![2, 4], vec![3, 2, 2], ErrorKind::Mismatch),
            (vec![2], vec![3, 2], ErrorKind::Mismatch),
            (vec![1, 4], vec![3, 1], ErrorKind::BadInput),
            (vec![], vec![], ErrorKind::BadInput),
        ] {
            assert_eq!(to_target(pair(&a, &b), &target, 2).err().unwrap().kind(), kind, "{a:?}");
        }
        let mut target = linear("e", 4, 3);
        target.kind = TargetKind::Embedding;
        let error = to_target(pair(&[2, 4], &[3, 2]), &target, 2).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
