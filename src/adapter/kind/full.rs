//! Full fine-tuning, for comparison: a weight of the layer's size in place of its own.

use super::super::config::TargetAdapter;
use super::super::sum::Sum;
use super::super::target::TargetKind;
use super::{Features, Part, Rules, shapes, wrong_shape};
use crate::error::{Error, Result};
use crate::quant::Rows;

/// weight (out_features, in_features) and bias (out_features); of an embedding weight (rows, row
/// length) alone. A convolution's columns are kh·kw·in_channels, channels innermost.
pub(super) struct Full;

impl Rules for Full {
    fn name(&self) -> &'static str {
        "full"
    }

    fn is_ranked(&self) -> bool {
        false
    }

    fn features(&self, target: &TargetAdapter) -> Result<Features> {
        if let Ok([&[rows, length]]) = shapes(target, ["weight"]) {
            return Ok(Features::both(rows, length));
        }
        match shapes(target, ["weight", "bias"])? {
            [&[outputs, inputs], &[own]] if own == outputs => Ok(Features::both(inputs, outputs)),
            [&[outputs, _], bias] => Err(wrong_shape("bias", bias, &format!("[{outputs}]"))),
            [other, _] => Err(wrong_shape("weight", other, "[outputs, inputs]")),
        }
    }

    fn add(&self, part: &Part<'_>, sum: &mut Sum) -> Result<()> {
        let (target, layer, by) = (part.target, part.layer()?, part.weight);
        let table = layer.target.kind == TargetKind::Embedding;
        if table == target.tensor("bias").is_ok() {
            return Err(Error::unsupported(match table {
                true => "an embedding has no bias",
                false => "a weight without its bias",
            }));
        }
        if by == 0.0 {
            return Ok(());
        }
        let frozen = layer.frozen()?;
        let mut weight = target.values("weight")?.to_vec();
        if by != 1.0 {
            // W + weight · (W' - W).
            let mut row = vec![0.0; frozen.cols()];
            for (at, new) in weight.chunks_exact_mut(frozen.cols().max(1)).enumerate() {
                frozen.row(at, &mut row);
                new.iter_mut().zip(&row).for_each(|(n, w)| *n = w + by * (*n - w));
            }
        }
        sum.rows(Rows::new((0..frozen.rows()).collect(), frozen.cols(), &weight)?)?;
        if table {
            return Ok(());
        }
        let bias = target.values("bias")?;
        sum.keep(vec![-by; bias.len()])?;
        sum.shift(bias.iter().map(|v| v * by).collect())
    }
}
