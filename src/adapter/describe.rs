//! A summary of an adapter for people and for `--json`.

use super::config::{Adapter, Head, Pool, ProbeEffect, TargetAdapter, TrainingRecord};
use serde::Serialize;

/// What [`Adapter::describe`] tells. `null` in JSON where there is nothing to tell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The adapter's name.
    pub name: String,
    /// Its kind: `lora`.
    pub kind: &'static str,
    /// Whether its scaling divides by sqrt(rank).
    pub rslora: bool,
    /// The base's fingerprint, `blake3:<hex>`.
    pub base: Option<String>,
    /// The ranks that occur, ascending.
    pub ranks: Vec<u32>,
    /// Number of trained values, head included.
    pub parameters: u64,
    /// Bytes of those values as f32.
    pub bytes_f32: u64,
    /// The head.
    pub head: Option<HeadDescription>,
    /// How it was trained.
    pub training: Option<TrainingRecord>,
    /// Its measured effects.
    pub probes: Vec<ProbeDescription>,
    /// Norms of the deltas over all targets; `None` without targets.
    pub norms: Option<Norms>,
    /// Every target, in the adapter's order.
    pub targets: Vec<TargetDescription>,
}

/// One target of a [`Description`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TargetDescription {
    /// The target's name.
    pub module_path: String,
    /// R.
    pub rank: u32,
    /// Numerator of the scaling.
    pub alpha: f32,
    /// What the product is multiplied with.
    pub scaling: f32,
    /// Columns of lora_a.
    pub in_features: usize,
    /// Rows of lora_b.
    pub out_features: usize,
    /// Frobenius norm of scaling · lora_b·lora_a.
    pub norm: f64,
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
    /// Its summary. Norms take R² · (in_features + out_features) multiplications a target.
    pub fn describe(&self) -> Description {
        let mut ranks: Vec<u32> = self.targets.iter().map(|t| t.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let targets: Vec<TargetDescription> =
            self.targets.iter().map(|t| self.describe_target(t)).collect();
        Description {
            name: self.name.clone(),
            kind: self.kind.name(),
            rslora: self.rslora,
            base: self.base.map(|b| b.to_string()),
            ranks,
            parameters: self.parameters(),
            bytes_f32: self.parameters() * 4,
            head: self.head.as_ref().map(HeadDescription::of),
            training: self.training.clone(),
            probes: self.probes.iter().map(ProbeDescription::of).collect(),
            norms: Norms::of(targets.iter().map(|t| t.norm).collect()),
            targets,
        }
    }

    fn describe_target(&self, t: &TargetAdapter) -> TargetDescription {
        let scaling = self.scaling(t);
        TargetDescription {
            module_path: t.module_path.clone(),
            rank: t.rank,
            alpha: t.alpha,
            scaling,
            in_features: t.in_features(),
            out_features: t.out_features(),
            norm: f64::from(scaling).abs() * product_norm(t),
        }
    }
}

impl HeadDescription {
    fn of(h: &Head) -> HeadDescription {
        HeadDescription {
            name: h.name.clone(),
            output: h.output.clone(),
            pool: h.pool,
            labels: h.labels.clone(),
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

/// ‖B·A‖ without the product: ‖B·A‖² = Σᵢⱼ (A·Aᵀ)ᵢⱼ (Bᵀ·B)ᵢⱼ.
fn product_norm(t: &TargetAdapter) -> f64 {
    let rank = t.rank as usize;
    let (inputs, outputs) = (t.in_features(), t.out_features());
    if inputs == 0 || outputs == 0 {
        return 0.0;
    }
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let a: Vec<&[f32]> = t.lora_a.chunks_exact(inputs).collect();
    // Columns of lora_b, made rows.
    let b: Vec<f32> =
        (0..rank).flat_map(|r| t.lora_b.iter().skip(r).step_by(rank).copied()).collect();
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
        let mut square = 0.0;
        for o in 0..5 {
            for i in 0..7 {
                let v: f64 = (0..3)
                    .map(|r| f64::from(t.lora_b[o * 3 + r]) * f64::from(t.lora_a[r * 7 + i]))
                    .sum();
                square += v * v;
            }
        }
        assert!((product_norm(&t) - square.sqrt()).abs() < 1e-9);
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
        assert_eq!(json["kind"], "lora");
        assert_eq!(json["head"]["pool"], "cls");
        assert_eq!(json["head"]["labels"][1], "yes");
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
