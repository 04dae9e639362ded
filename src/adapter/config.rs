//! What an adapter is made of: per-target tensors, a head, the record of its training.

use crate::fingerprint::BaseFingerprint;
use crate::shape::Array;
use serde::{Deserialize, Serialize};

/// The factor on a low-rank product: alpha/rank, or alpha/sqrt(rank) with rsLoRA
/// (Kalajdzievski 2023, arXiv:2312.03732). The only place that computes it; no file stores it.
/// 0 for rank 0.
pub fn scaling(alpha: f32, rank: u32, rslora: bool) -> f32 {
    if rank == 0 {
        return 0.0;
    }
    // f64 so that the quotient is the one PEFT's Python floats give, rounded once.
    let (alpha, rank) = (f64::from(alpha), f64::from(rank));
    (if rslora { alpha / rank.sqrt() } else { alpha / rank }) as f32
}

/// How an adapter changes its targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// y = base(x) + scaling · (x·lora_aᵀ)·lora_bᵀ (rsLoRA is this with another scaling).
    #[default]
    Lora,
}

impl Kind {
    /// The name used on the command line and in files: `lora`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Lora => "lora",
        }
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Kind> {
        [Kind::Lora].into_iter().find(|k| k.name() == name)
    }
}

/// How a head turns an output with a token axis (B, T, features) into one row per sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// The mean over the tokens that the attention mask keeps.
    #[default]
    Mean,
    /// The first token.
    Cls,
    /// The greatest value over the tokens that the attention mask keeps.
    Max,
    /// No pooling: the output is (B, features) already, or the head answers for each token.
    None,
}

impl Pool {
    /// All of them.
    pub const ALL: [Pool; 4] = [Pool::Mean, Pool::Cls, Pool::Max, Pool::None];

    /// The name used on the command line and in files: `mean`, `cls`, `max`, `none`.
    pub fn name(self) -> &'static str {
        match self {
            Pool::Mean => "mean",
            Pool::Cls => "cls",
            Pool::Max => "max",
            Pool::None => "none",
        }
    }

    /// The pooling of this name.
    pub fn parse(name: &str) -> Option<Pool> {
        Pool::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// The low-rank pair of one target.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetAdapter {
    /// The target's [`module_path`](super::Target::module_path).
    pub module_path: String,
    /// R, 1 to 4096.
    pub rank: u32,
    /// Numerator of [`scaling`].
    pub alpha: f32,
    /// (R, in_features) row-major; for a convolution (R, kh·kw·in_channels), channels innermost.
    pub lora_a: Vec<f32>,
    /// (out_features, R) row-major.
    pub lora_b: Vec<f32>,
}

impl TargetAdapter {
    /// Columns of lora_a; 0 where the number of values is no multiple of the rank.
    pub fn in_features(&self) -> usize {
        features(self.lora_a.len(), self.rank)
    }

    /// Rows of lora_b; 0 where the number of values is no multiple of the rank.
    pub fn out_features(&self) -> usize {
        features(self.lora_b.len(), self.rank)
    }

    /// Whether lora_b is all zero, so that the target stays as the base has it.
    pub fn is_zero(&self) -> bool {
        self.lora_b.iter().all(|&v| v == 0.0)
    }
}

fn features(values: usize, rank: u32) -> usize {
    match rank as usize {
        0 => 0,
        rank if values.is_multiple_of(rank) => values / rank,
        _ => 0,
    }
}

/// A new output layer that comes with an adapter: logits = pool(output)·weightᵀ + bias.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Its name (PEFT's module name: `classifier`).
    pub name: String,
    /// The graph output that it reads; empty where an import could not know it.
    pub output: String,
    /// How tokens are pooled before it.
    pub pool: Pool,
    /// One name per class, in the order of the rows of `weight`.
    pub labels: Vec<String>,
    /// Columns of `weight`: features of the output that it reads.
    pub features: u32,
    /// (classes, features) row-major.
    pub weight: Vec<f32>,
    /// (classes).
    pub bias: Vec<f32>,
}

impl Head {
    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.bias.len()
    }
}

/// How an adapter came to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
    /// Samples trained on (hold-out not counted).
    pub samples: u64,
    /// Optimizer steps taken.
    pub steps: u64,
    /// Passes over the samples; the last may have been partial.
    pub epochs: f32,
    /// Seed of everything random.
    pub seed: u64,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Mean loss over the last epoch's (or last logged) steps.
    pub final_loss: f32,
    /// Hold-out metrics of the base with an untrained adapter: (name, value).
    pub before: Vec<(String, f32)>,
    /// Hold-out metrics of the trained adapter: (name, value).
    pub after: Vec<(String, f32)>,
    /// When training ended, in seconds since 1970-01-01 UTC.
    pub date: u64,
    /// Version of the tool that trained it.
    pub tool: String,
}

/// A measured effect: how far one output moved on stored inputs, so that it can be measured again.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeEffect {
    /// The graph's inputs by name; kept small (one sample).
    pub inputs: Vec<(String, Array)>,
    /// The output that was measured.
    pub output: String,
    /// Mean of |adapted − base| over the output's values.
    pub effect: f32,
}

/// A small change of a base: low-rank pairs per target, perhaps a head. Plain data; what
/// [`bind`](super::bind) returns is what proves that it fits a base.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapter {
    /// Its name, for people.
    pub name: String,
    /// How it changes its targets.
    pub kind: Kind,
    /// The base that it was made for; `None` only until an import is tied to one.
    pub base: Option<BaseFingerprint>,
    /// Whether [`scaling`] divides by sqrt(rank).
    pub rslora: bool,
    /// The pairs, each target at most once.
    pub targets: Vec<TargetAdapter>,
    /// The head, if it has one.
    pub head: Option<Head>,
    /// How it was trained, if this tool did.
    pub training: Option<TrainingRecord>,
    /// Its measured effect.
    pub probes: Vec<ProbeEffect>,
}

impl Adapter {
    /// The scaling of one of its targets.
    pub fn scaling(&self, target: &TargetAdapter) -> f32 {
        scaling(target.alpha, target.rank, self.rslora)
    }

    /// Number of trained values: all pairs and the head.
    pub fn parameters(&self) -> u64 {
        let pairs: usize = self.targets.iter().map(|t| t.lora_a.len() + t.lora_b.len()).sum();
        let head = self.head.as_ref().map_or(0, |h| h.weight.len() + h.bias.len());
        (pairs + head) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_divides_by_rank_or_its_root() {
        assert_eq!(scaling(16.0, 8, false), 2.0);
        assert_eq!(scaling(16.0, 16, true), 4.0);
        assert_eq!(scaling(8.0, 8, true), (8.0 / 8f64.sqrt()) as f32);
        assert_eq!(scaling(8.0, 0, false), 0.0);
    }

    #[test]
    fn names_read_back() {
        assert!(Pool::ALL.into_iter().all(|p| Pool::parse(p.name()) == Some(p)));
        assert_eq!(Kind::parse("lora"), Some(Kind::Lora));
        assert_eq!(Kind::parse("dora"), None);
    }

    #[test]
    fn features_come_from_the_rank() {
        let t = TargetAdapter {
            module_path: "a".into(),
            rank: 2,
            alpha: 1.0,
            lora_a: vec![0.0; 6],
            lora_b: vec![0.0; 5],
        };
        assert_eq!((t.in_features(), t.out_features()), (3, 0));
        assert!(t.is_zero());
    }
}
