//! Biases alone (BitFit, Ben Zaken et al. 2021, arXiv:2106.10199): the layer's bias is replaced, or
//! one is added where it has none.

use super::super::config::TargetAdapter;
use super::super::sum::Sum;
use super::super::target::TargetKind;
use super::{Features, Part, Rules, shapes, wrong_shape};
use crate::error::{Error, Result};

/// bias (out_features).
pub(super) struct Bias;

impl Rules for Bias {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn is_ranked(&self) -> bool {
        false
    }

    fn features(&self, target: &TargetAdapter) -> Result<Features> {
        match shapes(target, ["bias"])? {
            [&[outputs]] => Ok(Features { inputs: None, outputs: Some(outputs) }),
            [other] => Err(wrong_shape("bias", other, "[outputs]")),
        }
    }

    fn add(&self, part: &Part<'_>, sum: &mut Sum) -> Result<()> {
        if part.layer.is_some_and(|l| l.target.kind == TargetKind::Embedding) {
            return Err(Error::unsupported("an embedding has no bias"));
        }
        if part.weight == 0.0 {
            return Ok(());
        }
        let bias = part.target.values("bias")?;
        sum.keep(vec![-part.weight; bias.len()])?;
        sum.shift(bias.iter().map(|v| v * part.weight).collect())
    }
}
