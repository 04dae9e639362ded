//! A summary of an adapter for people and for `--json`.

use super::config::{Adapter, Head, Pool, ProbeEffect, TargetAdapter, TrainingRecord};
use super::kind::{Kind, Part};
use super::sum::Sum;
use serde::Serialize;

/// What [`Adapter::describe`] tells. `null` in JSON where there is nothing to tell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The adapter's name.
    pub name: String,
    /// The kinds of its targets: `lora`, `lora (rslora)`.
    pub kinds: Vec<String>,
    /// The base's fingerprint, `blake3:<hex>`.
    pub base: Option<String>,
    /// The ranks that occur, ascending.
    pub ranks: Vec<u32>,
    /// Number of trained values, head included.
    pub parameters: u64,
    /// Bytes of those values as f32.
    pub bytes_f32: u64,
    /// The heads.
    pub heads: Vec<HeadDescription>,
    /// How it was trained.
    pub training: Option<TrainingRecord>,
    /// Its measured effects.
    pub probes: Vec<ProbeDescription>,
    /// Norms of the deltas over all targets that have one; `None` where none has.
    pub norms: Option<Norms>,
    /// Every target, in the adapter's order.
    pub targets: Vec<TargetDescription>,
}

/// One target of a [`Description`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TargetDescription {
    /// The target's name.
    pub module_path: String,
    /// Its kind.
    pub kind: Kind,
    /// R; 0 where the kind has none.
    pub rank: u32,
    /// Numerator of the scaling.
    pub alpha: f32,
    /// What the product is multiplied with.
    pub scaling: f32,
    /// The layer's in_features, where the tensors tell.
    pub in_features: Option<usize>,
    /// The layer's out_features, where the tensors tell.
    pub out_features: Option<usize>,
    /// Names and shapes of its tensors.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Frobenius norm of what is added to the weight, where it can be told without the base.
    pub norm: Option<f64>,
}

/// A head of a [`Description`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeadDescription {
    /// Its name.
    pub name: String,
    /// The graph output that it reads; empty where unknown.
    pub output: String,
    /// How tokens are pooled before it.
    pub pool: Pool,
    /// What it answers.
    pub task: String,
    /// Its classes.
    pub labels: Vec<String>,
    /// Features that it reads.
    pub features: u32,
}

/// A probe of a [`Description`], without its values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbeDescription {
    /// The inputs' names and shapes.
    pub inputs: Vec<(String, Vec<usize>)>,
    /// The output measured.
    pub output: String,
    /// Mean of |adapted − base| over the output's values.
    pub effect: f32,
}

/// Least, middle and greatest of the targets' norms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Norms {
    /// The least.
    pub min: f64,
    /// The median; of an even number the mean of the two in the middle.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

impl Adapter {
    /// Its summary. A norm takes R² · (in_features + out_features) multiplications.
    pub(crate) fn describe(&self) -> Description {
        let mut ranks: Vec<u32> = self.targets.iter().map(|t| t.rank).filter(|r| *r > 0).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let targets: Vec<TargetDescription> =
            self.targets.iter().map(TargetDescription::of).collect();
        Description {
            name: self.name.clone(),
            kinds: self.kinds(),
            base: self.base.map(|b| b.to_string()),
            ranks,
            parameters: self.parameters(),
            bytes_f32: self.parameters() * 4,
            heads: self.heads.iter().map(HeadDescription::of).collect(),
            training: self.training.clone(),
            probes: self.probes.iter().map(ProbeDescription::of).collect(),
            norms: Norms::of(targets.iter().filter_map(|t| t.norm).collect()),
            targets,
        }
    }
}

impl TargetDescription {
    fn of(t: &TargetAdapter) -> TargetDescription {
        let features = t.features().unwrap_or_default();
        TargetDescription {
            module_path: t.module_path.clone(),
            kind: t.kind,
            rank: t.rank,
            alpha: t.alpha,
            scaling: t.scaling(),
            in_features: features.inputs,
            out_features: features.outputs,
            tensors: t.tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect(),
            norm: norm(t),
        }
    }
}

impl HeadDescription {
    fn of(h: &Head) -> HeadDescription {
        HeadDescription {
            name: h.name.clone(),
            task: h.task.clone(),
            output: h.output.clone(),
            pool: h.pool,
            labels: h.labels.to_vec(),
            features: h.features,
        }
    }
}

impl ProbeDescription {
    fn of(p: &ProbeEffect) -> ProbeDescription {
        let inputs = p.inputs.iter().map(|(name, v)| (name.clone(), v.shape().to_vec())).collect();
        ProbeDescription { inputs, output: p.output.clone(), effect: p.effect }
    }
}

impl Norms {
    fn of(mut norms: Vec<f64>) -> Option<Norms> {
        norms.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*norms.first()?, *norms.last()?);
        let (low, high) = (norms.get((norms.len() - 1) / 2)?, norms.get(norms.len() / 2)?);
        Some(Norms { min, median: (low + high) / 2.0, max })
    }
}

/// Of what a target adds to its layer's weight, where that is a low-rank product.
fn norm(target: &TargetAdapter) -> Option<f64> {
    let mut sum = Sum::default();
    target.kind.rules().add(&Part { target, weight: 1.0, layer: None }, &mut sum).ok()?;
    let (rank, a, b) = sum.as_pair()?;
    Some(product_norm(rank, &a, &b))
}

/// ‖B·A‖ without the product: ‖B·A‖² = Σᵢⱼ (A·Aᵀ)ᵢⱼ (Bᵀ·B)ᵢⱼ.
fn product_norm(rank: usize, a: &[f32], b: &[f32]) -> f64 {
    let of = |values: &[f32]| values.len().checked_div(rank).unwrap_or(0);
    let (inputs, outputs) = (of(a), of(b));
    if inputs == 0 || outputs == 0 {
        return 0.0;
    }
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let a: Vec<&[f32]> = a.chunks_exact(inputs).collect();
    // Columns of lora_b, made rows.
    let b: Vec<f32> = (0..rank).flat_map(|r| b.iter().skip(r).step_by(rank).copied()).collect();
    let b: Vec<&[f32]> = b.chunks_exact(outputs).collect();
    let mut sum = 0.0;
    for (i, (a_i, b_i)) in a.iter().zip(&b).enumerate() {
        for (j, (a_j, b_j)) in a.iter().zip(&b).enumerate().skip(i) {
            let twice = if i == j { 1.0 } else { 2.0 };
            sum += twice * dot(a_i, a_j) * dot(b_i, b_j);
        }
    }
    // Cancellation can leave a hair below zero.
    sum.max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{pair, small};
    use super::*;

    #[test]
    fn the_norm_is_that_of_the_product() {
        let t = pair("a", 3, 1.0, 7, 5);
        let (a, b) = (&t.tensors[0].values, &t.tensors[1].values);
        let mut square = 0.0;
        for o in 0..5 {
            for i in 0..7 {
                let v: f64 =
                    (0..3).map(|r| f64::from(b[o * 3 + r]) * f64::from(a[r * 7 + i])).sum();
                square += v * v;
            }
        }
        assert!((product_norm(3, a, b) - square.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn the_summary_says_what_is_in_it() {
        let adapter = small();
        let d = adapter.describe();
        assert_eq!((d.ranks.as_slice(), d.targets.len()), (&[1, 2][..], 2));
        assert_eq!(d.parameters, (2 * 6 + 4 * 2) + (5 + 3) + 6 + 2);
        let norms = d.norms.unwrap();
        assert!(norms.min < norms.median && norms.median < norms.max);
        assert_eq!(d.targets[0].scaling, 2.0);
        let json = serde_json::to_value(&d).unwrap();
        assert_eq!(json["kinds"][0], "lora");
        assert_eq!(json["heads"][0]["pool"], "cls");
        assert_eq!(json["heads"][0]["labels"][1], "yes");
        assert_eq!(json["training"]["steps"], 75);
        assert_eq!(json["probes"][0]["inputs"][0][0], "input_ids");
        assert!(json["base"].as_str().unwrap().starts_with("blake3:"));
    }

    #[test]
    fn the_median_of_few() {
        assert_eq!(Norms::of(vec![]), None);
        assert_eq!(Norms::of(vec![3.0]).unwrap().median, 3.0);
        assert_eq!(Norms::of(vec![4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Norms::of(vec![4.0, 1.0, 9.0]).unwrap().median, 4.0);
    }
}
