//! What several adapters together do to one layer.

use crate::error::{Error, Result};
use crate::quant::{Bottleneck, Change, LowRank, Rows, Scheme};

/// A sum of what adapters add to a layer's output. Starts at nothing; [`Sum::bound`] makes it ready
/// for the kernels.
///
/// y = W·x + bias becomes W·x + bias + Σ Δ with Δ of these parts: b·a·x, s ⊙ (W·x), k ⊙ bias, t,
/// W·(i ⊙ x), and what can't be summed: other rows of W, or a bottleneck behind the layer.
#[derive(Default)]
pub(crate) struct Sum {
    pairs: Vec<Pair>,
    scale: Option<Vec<f32>>,
    keep: Option<Vec<f32>>,
    shift: Option<Vec<f32>>,
    input: Option<Vec<f32>>,
    rows: Option<Rows>,
    after: Option<Bottleneck>,
}

/// (R, inputs) and (outputs, R), every factor in the second.
struct Pair {
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
}

fn add(to: &mut Option<Vec<f32>>, what: &str, values: Vec<f32>) -> Result<()> {
    super::check::finite(what, &values)?;
    match to {
        Some(sum) => sum.iter_mut().zip(&values).for_each(|(s, v)| *s += v),
        None => *to = Some(values),
    }
    Ok(())
}

impl Sum {
    /// Δ = b·a·x with `a` (rank, inputs) and `b` (outputs, rank), every factor folded in.
    ///
    /// # Errors
    /// Bad input: a value of `b` is not finite.
    pub(crate) fn low_rank(&mut self, rank: usize, a: Vec<f32>, b: Vec<f32>) -> Result<()> {
        super::check::finite("scaled lora_b", &b)?;
        self.pairs.push(Pair { rank, a, b });
        Ok(())
    }

    /// Δ = s ⊙ (W·x), one value an output.
    pub(crate) fn scale(&mut self, values: Vec<f32>) -> Result<()> {
        add(&mut self.scale, "scale", values)
    }

    /// Δ = k ⊙ bias, one value an output.
    pub(crate) fn keep(&mut self, values: Vec<f32>) -> Result<()> {
        add(&mut self.keep, "scale of the bias", values)
    }

    /// Δ = t, one value an output.
    pub(crate) fn shift(&mut self, values: Vec<f32>) -> Result<()> {
        add(&mut self.shift, "bias", values)
    }

    /// Δ = W·(i ⊙ x), one value an input.
    pub(crate) fn input(&mut self, values: Vec<f32>) -> Result<()> {
        add(&mut self.input, "scale", values)
    }

    /// These rows in place of W's.
    ///
    /// # Errors
    /// Unsupported: there are others already.
    pub(crate) fn rows(&mut self, rows: Rows) -> Result<()> {
        match self.rows.replace(rows) {
            None => Ok(()),
            Some(_) => Err(no_sum("two adapters replace its weight")),
        }
    }

    /// This behind the layer.
    ///
    /// # Errors
    /// Unsupported: there is another already.
    pub(crate) fn after(&mut self, bottleneck: Bottleneck) -> Result<()> {
        match self.after.replace(bottleneck) {
            None => Ok(()),
            Some(_) => Err(no_sum("two adapters have a bottleneck there")),
        }
    }

    /// Whether it changes nothing.
    pub(crate) fn is_empty(&self) -> bool {
        let vectors = [&self.scale, &self.keep, &self.shift, &self.input];
        self.pairs.is_empty()
            && vectors.iter().all(|v| v.is_none())
            && self.rows.is_none()
            && self.after.is_none()
    }

    /// As one low-rank pair; `None` where it is more, or nothing.
    pub(crate) fn as_pair(&self) -> Option<(usize, Vec<f32>, Vec<f32>)> {
        let vectors = [&self.scale, &self.keep, &self.shift, &self.input];
        let more = vectors.iter().any(|v| v.is_some()) || self.rows.is_some();
        (!self.pairs.is_empty() && !more && self.after.is_none()).then(|| self.stacked())
    }

    /// R, the first matrices below each other as (R, inputs), and the second side by side as
    /// (outputs, R).
    fn stacked(&self) -> (usize, Vec<f32>, Vec<f32>) {
        let rank: usize = self.pairs.iter().map(|p| p.rank).sum();
        let outputs = self.pairs.first().map_or(0, |p| p.b.len() / p.rank.max(1));
        let a = self.pairs.iter().flat_map(|p| p.a.iter().copied()).collect();
        let mut b = Vec::with_capacity(rank * outputs);
        for out in 0..outputs {
            for pair in &self.pairs {
                let row = pair.b.get(out * pair.rank..(out + 1) * pair.rank);
                b.extend_from_slice(row.unwrap_or_default());
            }
        }
        (rank, a, b)
    }

    /// Ready for a layer whose weight has this scheme, of these in and out features; `None` where it changes nothing.
    ///
    /// # Errors
    /// Unsupported: parts that have no sum.
    pub(crate) fn bound(
        self,
        frozen: Scheme,
        [inputs, outputs]: [usize; 2],
    ) -> Result<Option<Change>> {
        if self.is_empty() {
            return Ok(None);
        }
        if self.input.is_some() && (!self.pairs.is_empty() || self.scale.is_some()) {
            return Err(no_sum("one adapter scales its inputs, another changes its products"));
        }
        let products = !self.pairs.is_empty() || self.scale.is_some() || self.input.is_some();
        if self.rows.is_some() && products {
            return Err(no_sum("one adapter replaces its weight, another changes its products"));
        }
        let from_one = |v: Option<Vec<f32>>| v.map(|v| v.iter().map(|v| 1.0 + v).collect());
        let scale: Option<Vec<f32>> = from_one(self.scale.clone());
        let low_rank = match self.pairs.is_empty() {
            true => None,
            false => {
                let (rank, a, mut b) = self.stacked();
                if let Some(scale) = &scale {
                    unscale(&mut b, scale)?;
                }
                Some(LowRank::new(frozen, rank, [inputs, outputs], &a, &b)?)
            }
        };
        let Sum { keep, shift, input, rows, after, .. } = self;
        let (input, keep) = (from_one(input), from_one(keep));
        Ok(Some(Change { low_rank, input, scale, keep, shift, rows, after }))
    }
}

/// [`Change`] scales both products: `b` is divided by it first.
fn unscale(b: &mut [f32], scale: &[f32]) -> Result<()> {
    let rank = b.len().checked_div(scale.len()).unwrap_or(0).max(1);
    for (row, scale) in b.chunks_exact_mut(rank).zip(scale) {
        if *scale == 0.0 && row.iter().any(|v| *v != 0.0) {
            return Err(no_sum("one adapter makes an output zero that another adds to"));
        }
        if *scale != 0.0 {
            row.iter_mut().for_each(|v| *v /= scale);
        }
    }
    super::check::finite("scaled lora_b", b)
}

fn no_sum(why: &str) -> Error {
    Error::unsupported(format!("these adapters can't be summed: {why}"))
        .hint("use one of them, or adapters that change different layers")
}

#[cfg(test)]
#[path = "sum_tests.rs"]
mod tests;
