//! IA3 (Liu et al. 2022, arXiv:2205.05638): what a layer gives, bias and all, or what it gets, is
//! multiplied value by value.

use super::super::config::{NamedTensor, TargetAdapter};
use super::super::sum::Sum;
use super::super::target::{Target, TargetKind};
use super::{Features, Part, PeftForm, Rules, Site, expected, kernel, shapes, wrong_shape};
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// out (out_features), or in (in_features; of a convolution one value a channel).
pub(super) struct Ia3;

impl Rules for Ia3 {
    fn name(&self) -> &'static str {
        "ia3"
    }

    fn is_ranked(&self) -> bool {
        false
    }

    fn features(&self, target: &TargetAdapter) -> Result<Features> {
        if target.tensor(IN).is_ok() {
            // How many columns a channel has, the layer tells.
            return match shapes(target, [IN])? {
                [&[channels]] if channels > 0 => Ok(Features::default()),
                [other] => Err(wrong_shape(IN, other, "[inputs]")),
            };
        }
        match shapes(target, [OUT])? {
            [&[outputs]] => Ok(Features { inputs: None, outputs: Some(outputs) }),
            [other] => Err(wrong_shape(OUT, other, "[outputs]")),
        }
    }

    fn add(&self, part: &Part<'_>, sum: &mut Sum) -> Result<()> {
        let by = part.weight;
        let from_one = |values: &[f32]| values.iter().map(|v| (v - 1.0) * by).collect::<Vec<_>>();
        if part.layer.is_some_and(|l| l.target.kind == TargetKind::Embedding) {
            return Err(Error::unsupported("kind 'ia3' has no form for an embedding"));
        }
        if let Ok(values) = part.target.values(OUT) {
            let scale = from_one(values);
            if scale.iter().any(|v| *v != 0.0) {
                sum.keep(scale.clone())?;
                sum.scale(scale)?;
            }
            return Ok(());
        }
        let (values, layer) = (part.target.values(IN)?, part.layer()?.target);
        let area: usize = kernel(layer).iter().product();
        if values.len() * area != layer.in_features as usize {
            return Err(Error::mismatch(format!(
                "expected {} in_features, found {area} times {}",
                layer.in_features,
                values.len()
            )));
        }
        let scale = from_one(values);
        if scale.iter().any(|v| *v != 0.0) {
            sum.input(scale.repeat(area))?;
        }
        Ok(())
    }

    fn peft(&self) -> Option<&dyn PeftForm> {
        Some(self)
    }
}

const OUT: &str = "out";
const IN: &str = "in";
const SAVED: &str = ".ia3_l";

impl Ia3 {
    /// PEFT's shape: (out, 1) or (1, in), of a convolution (1, n, 1, 1).
    fn shape(layer: &Target, input: bool, length: usize) -> Vec<usize> {
        match (kernel(layer).len(), input) {
            (0, true) => vec![1, length],
            (0, false) => vec![length, 1],
            (axes, _) => [vec![1, length], vec![1; axes]].concat(),
        }
    }
}

impl PeftForm for Ia3 {
    fn selected_by(&self) -> (&'static str, Option<&'static str>) {
        ("IA3", None)
    }

    fn without_effect(&self) -> &'static [&'static str] {
        &["fan_in_fan_out", "init_ia3_weights"]
    }

    fn endings(&self) -> &'static [&'static str] {
        &[SAVED]
    }

    fn read(&self, tensors: &[NamedTensor], at: &Site<'_>) -> Result<Vec<NamedTensor>> {
        if at.layer.kind == TargetKind::Embedding {
            return Err(Error::unsupported("IA3 on an embedding is not supported"));
        }
        let (_, channels, outputs) = at.window();
        let (name, length) = if at.feedforward { (IN, channels) } else { (OUT, outputs) };
        let shape = Ia3::shape(at.layer, at.feedforward, length);
        let found = expected(tensors, SAVED, &shape)?;
        Ok(vec![NamedTensor::new(name, &[length], found.values.clone())])
    }

    fn write(&self, target: &TargetAdapter, layer: &Target) -> Result<Vec<NamedTensor>> {
        let input = target.tensor(IN).is_ok();
        let values = target.values(if input { IN } else { OUT })?.to_vec();
        let shape = Ia3::shape(layer, input, values.len());
        Ok(vec![NamedTensor::new(SAVED, &shape, values)])
    }

    fn settings(&self, targets: &[(&TargetAdapter, &Target)]) -> Result<Value> {
        let inputs = targets.iter().filter(|(t, _)| t.tensor(IN).is_ok());
        let paths: Vec<&str> = inputs.map(|(t, _)| t.module_path.as_str()).collect();
        Ok(json!({
            "feedforward_modules": paths,
            "fan_in_fan_out": false,
            "init_ia3_weights": true,
        }))
    }
}
