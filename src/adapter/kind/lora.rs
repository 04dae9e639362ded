//! LoRA (Hu et al. 2021, arXiv:2106.09685) and, with another scaling, rsLoRA (Kalajdzievski 2023,
//! arXiv:2312.03732): y = base(x) + scaling · (x·lora_aᵀ)·lora_bᵀ.

use super::super::config::{NamedTensor, TargetAdapter};
use super::super::sum::Sum;
use super::super::target::{Target, TargetKind};
use super::{Features, Part, PeftForm, Rules, Site, channels_last, kernel, saved};
use super::{shapes, wrong_shape};
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// lora_a (R, in_features), for a convolution (R, kh·kw·in_channels), channels innermost; lora_b
/// (out_features, R).
pub(super) struct Lora;

impl Rules for Lora {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn is_ranked(&self) -> bool {
        true
    }

    fn features(&self, target: &TargetAdapter) -> Result<Features> {
        let [a, b] = shapes(target, ["lora_a", "lora_b"])?;
        features(target.rank, a, b).map(|(inputs, outputs)| Features::both(inputs, outputs))
    }

    fn add(&self, part: &Part<'_>, sum: &mut Sum) -> Result<()> {
        let target = part.target;
        let factor = part.weight * target.scaling();
        let (a, b) = (target.values("lora_a")?, target.values("lora_b")?);
        let any = |values: &[f32]| values.iter().any(|v| *v != 0.0);
        if factor != 0.0 && any(a) && any(b) {
            let b = b.iter().map(|v| v * factor).collect();
            sum.low_rank(target.rank as usize, a.to_vec(), b)?;
        }
        Ok(())
    }

    fn peft(&self) -> Option<&dyn PeftForm> {
        Some(self)
    }
}

impl PeftForm for Lora {
    fn selected_by(&self) -> (&'static str, Option<&'static str>) {
        ("LORA", None)
    }

    fn alpha_key(&self) -> &'static str {
        "lora_alpha"
    }

    fn without_effect(&self) -> &'static [&'static str] {
        WITHOUT_EFFECT
    }

    fn endings(&self) -> &'static [&'static str] {
        &[A, B, EMBEDDING_A, EMBEDDING_B]
    }

    fn read(&self, tensors: &[NamedTensor], at: &Site<'_>) -> Result<Vec<NamedTensor>> {
        read_pair(tensors, at)
    }

    fn write(&self, target: &TargetAdapter, layer: &Target) -> Result<Vec<NamedTensor>> {
        write_pair(target, layer)
    }

    fn settings(&self, targets: &[(&TargetAdapter, &Target)]) -> Result<Value> {
        Ok(settings(targets, false))
    }
}

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const EMBEDDING_A: &str = ".lora_embedding_A";
const EMBEDDING_B: &str = ".lora_embedding_B";

pub(super) const WITHOUT_EFFECT: &[&str] = &[
    "lora_dropout",
    // The layer's own weight may lie transposed; lora_A and lora_B do not.
    "fan_in_fan_out",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "runtime_config",
];

/// PEFT's pair as lora_a (R, in_features), channels innermost, and lora_b (out_features, R).
pub(super) fn read_pair(tensors: &[NamedTensor], at: &Site<'_>) -> Result<Vec<NamedTensor>> {
    let r = at.rank as usize;
    let table = at.layer.kind == TargetKind::Embedding;
    let (a, b) = if table { (EMBEDDING_A, EMBEDDING_B) } else { (A, B) };
    let (Some(a), Some(b)) = (saved(tensors, a), saved(tensors, b)) else {
        let missing = if saved(tensors, a).is_some() { b } else { a };
        let name = missing.trim_start_matches('.').trim_end_matches(".weight");
        return Err(Error::bad_input(format!("{name} is missing")));
    };
    if a.shape.first() != Some(&r) {
        return Err(Error::bad_input(format!(
            "lora_A has shape {:?}, expected rank {} of the configuration first",
            a.shape, at.rank
        )));
    }
    let (window, channels, outputs) = at.window();
    let kernel = kernel(at.layer);
    // A convolution of one pixel may be saved as a linear layer, and the other way round.
    let fits = match a.shape.as_slice() {
        [_, c] => window == 1 && *c == channels,
        [_, c, sides @ ..] if !table => {
            *c == channels
                && (sides == kernel
                    || window == 1 && sides.len() <= 2 && sides.iter().all(|&k| k == 1))
        }
        _ => false,
    };
    if !fits {
        let expected = [&[r, channels][..], &kernel].concat();
        return Err(wrong_peft_shape("lora_A", &a.shape, &expected));
    }
    let fits = match b.shape.as_slice() {
        [o, n, ones @ ..] => {
            (*o, *n) == (outputs, r) && ones.len() <= 2 && ones.iter().all(|&d| d == 1)
        }
        _ => false,
    };
    if !fits {
        return Err(wrong_peft_shape("lora_B", &b.shape, &[outputs, r]));
    }
    let a = channels_last(&a.values, channels, window);
    Ok(vec![
        NamedTensor::new("lora_a", &[r, channels * window], a),
        NamedTensor::new("lora_b", &[outputs, r], b.values.clone()),
    ])
}

pub(super) fn wrong_peft_shape(name: &str, found: &[usize], expected: &[usize]) -> Error {
    Error::mismatch(format!("{name} has shape {found:?}, the base expects {expected:?}"))
}

/// The other way round.
pub(super) fn write_pair(target: &TargetAdapter, layer: &Target) -> Result<Vec<NamedTensor>> {
    let (a, b) = (target.values("lora_a")?, target.values("lora_b")?);
    let (r, inputs) = (target.rank as usize, layer.in_features as usize);
    let outputs = layer.out_features as usize;
    if layer.kind == TargetKind::Embedding {
        return Ok(vec![
            NamedTensor::new(EMBEDDING_A, &[r, inputs], a.to_vec()),
            NamedTensor::new(EMBEDDING_B, &[outputs, r], b.to_vec()),
        ]);
    }
    let kernel = kernel(layer);
    let area: usize = kernel.iter().product();
    let channels = inputs.checked_div(area).unwrap_or(0);
    // (R, window, channels) to (R, channels, window): the same turn, the other way about.
    let a = channels_last(a, area, channels);
    let ones = vec![1; kernel.len()];
    Ok(vec![
        NamedTensor::new(A, &[&[r, channels][..], &kernel].concat(), a),
        NamedTensor::new(B, &[&[outputs, r][..], &ones].concat(), b.to_vec()),
    ])
}

pub(super) fn settings(targets: &[(&TargetAdapter, &Target)], dora: bool) -> Value {
    json!({
        "use_rslora": targets.first().is_some_and(|(t, _)| t.rslora),
        "use_dora": dora,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "lora_dropout": 0.0,
    })
}

/// In and out features of a pair of these shapes.
pub(super) fn features(rank: u32, a: &[usize], b: &[usize]) -> Result<(usize, usize)> {
    let rank = rank as usize;
    match (a, b) {
        (&[r, inputs], &[outputs, s]) if r == rank && s == rank && inputs > 0 && outputs > 0 => {
            Ok((inputs, outputs))
        }
        (&[r, inputs], _) if r == rank && inputs > 0 => {
            Err(wrong_shape("lora_b", b, &format!("[outputs, {rank}]")))
        }
        _ => Err(wrong_shape("lora_a", a, &format!("[{rank}, inputs]"))),
    }
}
