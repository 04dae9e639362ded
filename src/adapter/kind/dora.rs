//! DoRA (Liu et al. 2024, arXiv:2402.09353): the weight W + ΔW of a LoRA pair with rows of lengths of
//! their own. y = magnitude / ‖W + ΔW‖ ⊙ ((W + ΔW)·x) + bias, row by row.

use super::super::config::{NamedTensor, TargetAdapter};
use super::super::sum::Sum;
use super::super::target::{Target, TargetKind};
use super::{Features, Part, PeftForm, Rules, Site, kernel, lora, saved, shapes, wrong_shape};
use crate::error::{Error, Result};
use crate::quant::{row_norms, row_squares};
use serde_json::Value;

/// lora_a and lora_b as LoRA's; magnitude (out_features).
pub(super) struct Dora;

impl Rules for Dora {
    fn name(&self) -> &'static str {
        "dora"
    }

    fn is_ranked(&self) -> bool {
        true
    }

    fn features(&self, target: &TargetAdapter) -> Result<Features> {
        let [a, b, magnitude] = shapes(target, ["lora_a", "lora_b", "magnitude"])?;
        let (inputs, outputs) = lora::features(target.rank, a, b)?;
        match magnitude {
            &[length] if length == outputs => Ok(Features::both(inputs, outputs)),
            other => Err(wrong_shape("magnitude", other, &format!("[{outputs}]"))),
        }
    }

    fn add(&self, part: &Part<'_>, sum: &mut Sum) -> Result<()> {
        let (target, layer) = (part.target, part.layer()?);
        if layer.target.kind == TargetKind::Embedding {
            return Err(Error::unsupported("kind 'dora' has no form for an embedding"));
        }
        if part.weight == 0.0 {
            return Ok(());
        }
        let scaling = target.scaling();
        let a = target.values("lora_a")?;
        let b: Vec<f32> = target.values("lora_b")?.iter().map(|v| v * scaling).collect();
        let frozen = layer.frozen()?;
        let norms = row_norms(frozen, &row_squares(frozen), a, &b);
        let rank = target.rank as usize;
        let mut scale = Vec::with_capacity(norms.len());
        for (magnitude, norm) in target.values("magnitude")?.iter().zip(&norms) {
            if *norm == 0.0 {
                return Err(Error::unsupported("a row of the changed weight is all zero"));
            }
            scale.push(magnitude / norm);
        }
        // s ⊙ (W + ΔW) is W + (s - 1) ⊙ W + s ⊙ ΔW.
        let rows = b.chunks_exact(rank.max(1)).zip(&scale);
        let b = rows.flat_map(|(row, s)| row.iter().map(move |v| v * s * part.weight)).collect();
        sum.low_rank(rank, a.to_vec(), b)?;
        sum.scale(scale.iter().map(|s| (s - 1.0) * part.weight).collect())
    }
    fn peft(&self) -> Option<&dyn PeftForm> {
        Some(self)
    }
}

const MAGNITUDE: &str = ".lora_magnitude_vector";
/// As PEFT before 0.12 saved it.
const MAGNITUDE_BEFORE: &str = ".lora_magnitude_vector.weight";

impl PeftForm for Dora {
    fn selected_by(&self) -> (&'static str, Option<&'static str>) {
        ("LORA", Some("use_dora"))
    }

    fn alpha_key(&self) -> &'static str {
        "lora_alpha"
    }

    fn without_effect(&self) -> &'static [&'static str] {
        lora::WITHOUT_EFFECT
    }

    fn endings(&self) -> &'static [&'static str] {
        &[".lora_A.weight", ".lora_B.weight", MAGNITUDE_BEFORE, MAGNITUDE]
    }

    fn read(&self, tensors: &[NamedTensor], at: &Site<'_>) -> Result<Vec<NamedTensor>> {
        if at.layer.kind == TargetKind::Embedding {
            return Err(Error::unsupported("DoRA on an embedding is not supported"));
        }
        let mut read = lora::read_pair(tensors, at)?;
        let found = saved(tensors, MAGNITUDE).or_else(|| saved(tensors, MAGNITUDE_BEFORE));
        let found = found.ok_or_else(|| Error::bad_input("lora_magnitude_vector is missing"))?;
        let (.., outputs) = at.window();
        // (out), of a convolution (1, out, 1, 1).
        let long: Vec<usize> = found.shape.iter().copied().filter(|d| *d != 1).collect();
        if found.values.len() != outputs || long.len() > 1 {
            return Err(lora::wrong_peft_shape("lora_magnitude_vector", &found.shape, &[outputs]));
        }
        read.push(NamedTensor::new("magnitude", &[outputs], found.values.clone()));
        Ok(read)
    }

    fn write(&self, target: &TargetAdapter, layer: &Target) -> Result<Vec<NamedTensor>> {
        let mut written = lora::write_pair(target, layer)?;
        let magnitude = target.values("magnitude")?.to_vec();
        let (length, kernel) = (magnitude.len(), kernel(layer));
        let shape = match kernel.len() {
            0 => vec![length],
            axes => [vec![1, length], vec![1; axes]].concat(),
        };
        written.push(NamedTensor::new(MAGNITUDE, &shape, magnitude));
        Ok(written)
    }

    fn settings(&self, targets: &[(&TargetAdapter, &Target)]) -> Result<Value> {
        Ok(lora::settings(targets, true))
    }
}
