//! How far an adapted base answers as the base does.

use crate::adapter::{Bound, Head};
use crate::error::{Error, Result};
use crate::pack::Role;
use crate::runtime::{Engine, Named, argmax, as_tokens, pool};
use crate::shape::{Array, View};
use serde::Serialize;
use std::sync::Arc;

/// How far an adapted base answers as the base does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retention {
    /// Samples compared.
    pub samples: usize,
    /// The output compared.
    pub output: String,
    /// Mean cosine between the base's features and the adapted ones.
    pub cosine_mean: f32,
    /// The least one.
    pub cosine_min: f32,
    /// Share of samples for which the base's own best class stays; none where the base has no
    /// classes.
    pub top1_agreement: Option<f32>,
    /// Mean |adapted - base| over the features.
    pub moved: f32,
}

/// Compares on `inputs`, one row each. `None` where `go_on`, asked before each, said stop.
///
/// # Errors
/// What running says; a base without outputs (unsupported).
pub fn retention(
    engine: &Engine,
    bound: &Arc<Bound>,
    inputs: impl IntoIterator<Item = Result<Named>>,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Retention>> {
    let output = compared_output(engine, bound.head.as_ref())?;
    let own = own_classes(engine);
    let (mut cosines, mut kept) = (vec![], 0usize);
    let (mut moved, mut values) = (0f64, 0usize);
    for inputs in inputs {
        if !go_on() {
            return Ok(None);
        }
        let inputs = inputs?;
        let base = engine.run(&inputs, None)?;
        let adapted = engine.run(&inputs, Some(bound))?;
        let mask = engine.given(&inputs, Role::Mask);
        let features = |outputs: &Named| features(&output, bound.head.as_ref(), mask, outputs);
        let (from, to) = (features(&base)?, features(&adapted)?);
        cosines.push(cosine(&from, &to));
        moved += from.iter().zip(&to).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
        values += from.len();
        if let Some(own) = &own {
            let best = |outputs: &Named| -> Result<Option<usize>> {
                Ok(argmax(find(outputs, own)?.as_f32()?))
            };
            kept += usize::from(best(&base)? == best(&adapted)?);
        }
    }
    let samples = cosines.len();
    if samples == 0 {
        return Err(Error::usage("no samples to compare"));
    }
    Ok(Some(Retention {
        samples,
        output,
        cosine_mean: (cosines.iter().sum::<f64>() / samples as f64) as f32,
        cosine_min: cosines.iter().copied().fold(f64::INFINITY, f64::min) as f32,
        top1_agreement: own.map(|_| kept as f32 / samples as f32),
        moved: (moved / values.max(1) as f64) as f32,
    }))
}

/// What the head reads, or the base's last output.
fn compared_output(engine: &Engine, head: Option<&Head>) -> Result<String> {
    match head {
        Some(head) => Ok(head.output.clone()),
        None => match engine.outputs().last() {
            Some(spec) => Ok(spec.name.clone()),
            None => Err(Error::unsupported("the base has no outputs")),
        },
    }
}

/// The base's own classes: its last output of two axes, if it has as many columns as the base has
/// labels or is called logits.
fn own_classes(engine: &Engine) -> Option<String> {
    let labels = engine.base().preprocess().labels.len().to_string();
    let spec = engine.outputs().iter().rev().find(|o| o.dims.len() == 2)?;
    let classes = spec.dims.last() == Some(&labels) || spec.name.contains("logits");
    classes.then(|| spec.name.clone())
}

fn features(
    output: &str,
    head: Option<&Head>,
    mask: Option<View<'_>>,
    outputs: &Named,
) -> Result<Vec<f32>> {
    let array = find(outputs, output)?;
    let Some(head) = head else { return Ok(array.as_f32()?.to_vec()) };
    let mask = mask.filter(|_| array.shape().len() != 4);
    Ok(pool(head.pool, &*as_tokens(array, head.features as usize)?, mask)?.concat())
}

fn find<'a>(outputs: &'a Named, name: &str) -> Result<&'a Array> {
    let found = outputs.iter().find(|(n, _)| n == name);
    found
        .map(|(_, array)| array)
        .ok_or_else(|| Error::mismatch(format!("the base has no output '{name}'")))
}

/// 0 where one of them is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines() {
        assert!((cosine(&[1.0, 0.0], &[2.0, 0.0]) - 1.0).abs() < 1e-9);
        assert!(cosine(&[1.0, 0.0], &[0.0, 3.0]).abs() < 1e-9);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
