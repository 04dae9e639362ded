//! Bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751), for comparison: a small network
//! behind the layer. y + relu(y·downᵀ + down_bias)·upᵀ + up_bias.

use super::super::config::TargetAdapter;
use super::super::sum::Sum;
use super::super::target::TargetKind;
use super::{Features, Part, Rules, shapes, wrong_shape};
use crate::error::{Error, Result};
use crate::quant::Bottleneck as Bound;

/// down (R, out_features), down_bias (R), up (out_features, R), up_bias (out_features).
pub(super) struct Bottleneck;

impl Rules for Bottleneck {
    fn name(&self) -> &'static str {
        "bottleneck"
    }

    /// R is its width; alpha means nothing and is 0.
    fn is_ranked(&self) -> bool {
        false
    }

    fn takes_rank(&self) -> bool {
        true
    }

    fn features(&self, target: &TargetAdapter) -> Result<Features> {
        let [down, down_bias, up, up_bias] =
            shapes(target, ["down", "down_bias", "up", "up_bias"])?;
        let &[width, outputs] = down else {
            return Err(wrong_shape("down", down, "[width, outputs]"));
        };
        for (name, found, expected) in [
            ("down_bias", down_bias, &[width][..]),
            ("up", up, &[outputs, width][..]),
            ("up_bias", up_bias, &[outputs][..]),
        ] {
            if found != expected {
                return Err(wrong_shape(name, found, &format!("{expected:?}")));
            }
        }
        Ok(Features { inputs: None, outputs: Some(outputs) })
    }

    fn add(&self, part: &Part<'_>, sum: &mut Sum) -> Result<()> {
        let (target, by) = (part.target, part.weight);
        if part.layer.is_some_and(|l| l.target.kind == TargetKind::Embedding) {
            return Err(Error::unsupported("kind 'bottleneck' has no form for an embedding"));
        }
        let scaled = |name| -> Result<Vec<f32>> {
            Ok(target.values(name)?.iter().map(|v| v * by).collect())
        };
        let (up, up_bias) = (scaled("up")?, scaled("up_bias")?);
        if up.iter().chain(&up_bias).all(|v| *v == 0.0) {
            return Ok(());
        }
        let (down, down_bias) = (target.tensor("down")?, target.values("down_bias")?);
        let shape = [down_bias.len(), up_bias.len()];
        sum.after(Bound::new(shape, [&down.values, down_bias, &up, &up_bias])?)
    }
}
