//! What several adapters together do to one layer.

use crate::error::{Error, Result};
use crate::quant::{Bottleneck, Change, LowRank, Rows};

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

    /// Ready for a layer of these in and out features; `None` where it changes nothing.
    ///
    /// # Errors
    /// Unsupported: parts that have no sum.
    pub(crate) fn bound(self, [inputs, outputs]: [usize; 2]) -> Result<Option<Change>> {
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
                Some(LowRank::new(rank, [inputs, outputs], &a, &b)?)
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
mod tests {
    use super::super::testing::{base, linear, pair, values};
    use super::super::{Adapter, Kind, NamedTensor, TargetAdapter, bind, merge};
    use super::*;
    use crate::error::ErrorKind;
    use crate::quant::{Inputs, Packed, Scheme, Update};

    const INPUTS: usize = 6;
    const OUTPUTS: usize = 4;

    fn weights() -> Vec<Packed> {
        let w = values(INPUTS * OUTPUTS, 3);
        vec![Packed::pack(Scheme::F32, OUTPUTS, INPUTS, &w).unwrap()]
    }

    fn adapter(kind: &str, tensors: Vec<NamedTensor>) -> Adapter {
        let lora = pair("a", 2, 4.0, INPUTS, OUTPUTS);
        let kind = Kind::parse(kind).unwrap();
        let ranked = kind.is_ranked();
        let target = TargetAdapter {
            kind,
            rank: if ranked { lora.rank } else { 0 },
            alpha: if ranked { lora.alpha } else { 0.0 },
            tensors: if ranked { [lora.tensors, tensors].concat() } else { tensors },
            ..TargetAdapter { module_path: "a".into(), ..TargetAdapter::default() }
        };
        let name = target.kind.name().to_string();
        Adapter { name, base: Some(base(1)), targets: vec![target], ..Adapter::default() }
    }

    fn vector(name: &str, len: usize, seed: u32) -> NamedTensor {
        NamedTensor::new(name, &[len], values(len, seed).iter().map(|v| v + 1.1).collect())
    }

    /// What the layer answers with these.
    fn answer(adapters: &[(&Adapter, f32)]) -> Result<Vec<f32>> {
        let weights = weights();
        let targets = [linear("a", INPUTS as u32, OUTPUTS as u32)];
        let bound = bind(adapters, &targets, &base(1), &weights)?;
        let (x, bias) = (values(INPUTS, 8), values(OUTPUTS, 9));
        let change = bound.targets.into_iter().next().flatten();
        let updates: Vec<Update> =
            change.iter().map(|change| Update { rows: 0..1, change }).collect();
        let mut y = vec![0.0; OUTPUTS];
        Inputs::new(&x, INPUTS).product(weights[0].view(), Some(&bias), &updates, &mut y);
        Ok(y)
    }

    #[test]
    fn kinds_add_what_each_adds_alone() {
        let all = [
            adapter("lora", vec![]),
            adapter("dora", vec![vector("magnitude", OUTPUTS, 2)]),
            adapter("bias", vec![vector("bias", OUTPUTS, 5)]),
        ];
        let base = answer(&[]).unwrap();
        let weighted: Vec<(&Adapter, f32)> = all.iter().zip([1.0, 0.5, -0.25]).collect();
        let mut want = base.clone();
        for one in &weighted {
            let alone = answer(std::slice::from_ref(one)).unwrap();
            let changes = alone.iter().zip(&base).any(|(a, b)| (a - b).abs() > 1e-3);
            assert!(changes, "{}", one.0.name);
            want.iter_mut().zip(alone.iter().zip(&base)).for_each(|(w, (a, b))| *w += a - b);
        }
        for (found, want) in answer(&weighted).unwrap().iter().zip(&want) {
            assert!((found - want).abs() < 1e-4, "{found} {want}");
        }
    }

    #[test]
    fn what_has_no_sum_is_refused_by_name() {
        let lora = adapter("lora", vec![]);
        let weight = NamedTensor::new("weight", &[OUTPUTS, INPUTS], values(OUTPUTS * INPUTS, 4));
        let full = adapter("full", vec![weight, vector("bias", OUTPUTS, 5)]);
        assert!(answer(&[(&full, 1.0)]).is_ok());
        for pair in [[(&full, 1.0), (&lora, 1.0)], [(&full, 1.0), (&full, 0.5)]] {
            let error = answer(&pair).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.message().contains("replace"), "{error}");
        }
        let bias = adapter("bias", vec![vector("bias", OUTPUTS, 5)]);
        let error = merge("sum", &[(&lora, 1.0), (&bias, 1.0)]).unwrap_err();
        assert!(error.message().contains("a sum of lora and bias"), "{error}");
        let dora = adapter("dora", vec![vector("magnitude", OUTPUTS, 2)]);
        let error = merge("sum", &[(&lora, 1.0), (&dora, 1.0)]).unwrap_err();
        assert!(error.message().contains("kind 'dora'"), "{error}");
    }

    #[test]
    fn an_adapter_that_changes_nothing_leaves_nothing() {
        let mut bound = adapter("bias", vec![vector("bias", OUTPUTS, 5)]);
        bound.targets[0].tensors[0].values.fill(0.0);
        assert!(Sum::default().bound([INPUTS, OUTPUTS]).unwrap().is_none());
        assert_eq!(answer(&[(&bound, 0.0)]).unwrap(), answer(&[]).unwrap());
    }
}
