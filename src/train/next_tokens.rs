//! How far a language model's next tokens stay the base's.

use super::features::choose_features;
use super::retention::Retention;
use crate::adapter::Bound;
use crate::error::{Error, Result};
use crate::pack::Role;
use crate::runtime::{Engine, Named, argmax, counted, softmax};
use crate::shape::Array;
use std::sync::Arc;

/// Compares on `inputs`, one row each, token by token: nothing of the vocabulary's width is kept. The cosine of
/// the roots of two distributions' probabilities is their Bhattacharyya coefficient, Σ √(p·q).
///
/// # Errors
/// As [`retention`](super::retention()).
pub(super) fn next_tokens(
    engine: &Engine,
    bound: &Arc<Bound>,
    inputs: impl IntoIterator<Item = Result<Named>>,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Retention>> {
    let features = choose_features(engine, None, None, true)?;
    let mut found = Compared::default();
    for inputs in inputs {
        if !go_on() {
            return Ok(None);
        }
        let inputs = inputs?;
        let run = |adapter| -> Result<Array> {
            let mut outputs = engine.run(&inputs, adapter)?;
            Ok(outputs.swap_remove(features.output).1)
        };
        let (base, adapted) = (run(None)?, run(Some(bound))?);
        let tokens = base.shape().get(1).copied().unwrap_or(0);
        let mask = engine.given(&inputs, Role::Mask);
        let counts = mask.map_or_else(|| vec![true; tokens], counted);
        let rows = base.as_f32()?.chunks_exact(features.width);
        let rows = rows.zip(adapted.as_f32()?.chunks_exact(features.width));
        found.add(rows.zip(counts).filter(|(_, counts)| *counts).map(|(rows, _)| rows));
    }
    found.finish(features.name).map(Some)
}

/// Sums over samples and their tokens.
#[derive(Default)]
struct Compared {
    overlaps: Vec<f64>,
    tokens: usize,
    same: usize,
    moved: f64,
}

impl Compared {
    /// A sample's logits before and after, a pair for each token.
    fn add<'a>(&mut self, rows: impl Iterator<Item = (&'a [f32], &'a [f32])>) {
        let (mut overlap, mut tokens) = (0.0, 0);
        for (base, adapted) in rows {
            let (p, q) = (softmax(base), softmax(adapted));
            overlap += p.iter().zip(&q).map(|(p, q)| f64::from(p * q).sqrt()).sum::<f64>();
            self.same += usize::from(argmax(base) == argmax(adapted));
            let moved = base.iter().zip(adapted).map(|(a, b)| f64::from((a - b).abs()));
            self.moved += moved.sum::<f64>() / base.len().max(1) as f64;
            tokens += 1;
        }
        if tokens > 0 {
            self.overlaps.push(overlap / f64::from(tokens));
            self.tokens += tokens as usize;
        }
    }

    fn finish(self, output: String) -> Result<Retention> {
        let samples = self.overlaps.len();
        if samples == 0 {
            return Err(Error::usage("no samples to compare"));
        }
        let of_tokens = |sum: f64| (sum / self.tokens as f64) as f32;
        Ok(Retention {
            samples,
            output,
            cosine_mean: (self.overlaps.iter().sum::<f64>() / samples as f64) as f32,
            cosine_min: self.overlaps.iter().copied().fold(f64::INFINITY, f64::min) as f32,
            top1_agreement: Some(of_tokens(self.same as f64)),
            neighbours: None,
            moved: of_tokens(self.moved),
            tokens: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_of_distributions() {
        let ln = |p: [f32; 2]| p.map(f32::ln);
        let (half, uneven, turned) = (ln([0.5, 0.5]), ln([0.9, 0.1]), ln([0.1, 0.9]));
        let mut found = Compared::default();
        // The same, whatever is added to all logits.
        let shifted = uneven.map(|v| v + 3.0);
        found.add([(&uneven[..], &shifted[..])].into_iter());
        found.add([(&half[..], &uneven[..]), (&uneven[..], &turned[..])].into_iter());
        let found = found.finish("logits".into()).unwrap();
        let apart = (0.45f64.sqrt() + 0.05f64.sqrt() + 2.0 * 0.09f64.sqrt()) / 2.0;
        assert!((f64::from(found.cosine_min) - apart).abs() < 1e-6, "{found:?}");
        assert!((f64::from(found.cosine_mean) - (1.0 + apart) / 2.0).abs() < 1e-6, "{found:?}");
        assert_eq!((found.samples, found.top1_agreement), (2, Some(2.0 / 3.0)));
        assert!(found.sentence().starts_with("66.7 % of the likeliest next tokens"));
        assert!(Compared::default().finish(String::new()).is_err());
    }
}
