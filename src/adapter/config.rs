//! What an adapter is made of: per-target tensors, a head, the record of its training.

use super::kind::{Features, Kind};
use super::known::Known;
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::shape::Array;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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

/// A tensor by its name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamedTensor {
    /// Unique within its target or head.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

impl NamedTensor {
    /// A tensor of these dimensions.
    pub fn new(name: &str, shape: &[usize], values: Vec<f32>) -> NamedTensor {
        NamedTensor { name: name.into(), shape: shape.to_vec(), values }
    }
}

/// What an adapter has for one target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TargetAdapter {
    /// The target's [`module_path`](super::Target::module_path).
    pub module_path: String,
    /// How it changes the target.
    pub kind: Kind,
    /// R, 1 to 4096; 0 where the kind has no rank.
    pub rank: u32,
    /// Numerator of the scaling; 0 where the kind has no rank.
    pub alpha: f32,
    /// Whether the scaling divides by sqrt(rank), not by the rank.
    pub rslora: bool,
    /// What the kind asks for, in its order.
    pub tensors: Vec<NamedTensor>,
}

impl TargetAdapter {
    /// A low-rank pair: `lora_a` (rank, in_features) row-major, for a convolution (rank,
    /// kh·kw·in_channels), channels innermost; `lora_b` (out_features, rank).
    pub fn lora(
        module_path: &str,
        rank: u32,
        alpha: f32,
        lora_a: Vec<f32>,
        lora_b: Vec<f32>,
    ) -> TargetAdapter {
        let r = rank as usize;
        let of = |values: &[f32]| values.len().checked_div(r).unwrap_or(0);
        let (inputs, outputs) = (of(&lora_a), of(&lora_b));
        TargetAdapter {
            module_path: module_path.into(),
            kind: Kind::default(),
            rank,
            alpha,
            rslora: false,
            tensors: vec![
                NamedTensor::new("lora_a", &[r, inputs], lora_a),
                NamedTensor::new("lora_b", &[outputs, r], lora_b),
            ],
        }
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// Bad input: there is none.
    pub fn tensor(&self, name: &str) -> Result<&NamedTensor> {
        let found = self.tensors.iter().find(|t| t.name == name);
        found.ok_or_else(|| Error::bad_input(format!("tensor '{name}' is missing")))
    }

    /// The values of the tensor of this name; errors as [`TargetAdapter::tensor`].
    pub fn values(&self, name: &str) -> Result<&[f32]> {
        Ok(&self.tensor(name)?.values)
    }

    /// What its product is multiplied with; 0 where the kind has no rank.
    pub fn scaling(&self) -> f32 {
        scaling(self.alpha, self.rank, self.rslora)
    }

    /// The features that its tensors are for, as far as they tell.
    ///
    /// # Errors
    /// Bad input: tensors that are not those of its kind.
    pub(crate) fn features(&self) -> Result<Features> {
        self.kind.rules().features(self)
    }
}

/// A new output layer that comes with an adapter: logits = pool(output)·weightᵀ + bias.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Its name (PEFT's module name: `classifier`).
    pub name: String,
    /// What it answers: `classes`, `numbers`.
    pub task: String,
    /// The graph output that it reads; empty where an import could not know it.
    pub output: String,
    /// How tokens are pooled before it.
    pub pool: Pool,
    /// One name per class, in the order of the rows of `weight`. Answers share them.
    pub labels: Arc<[String]>,
    /// Columns of `weight`: features of the output that it reads.
    pub features: u32,
    /// (classes, features) row-major.
    pub weight: Vec<f32>,
    /// (classes).
    pub bias: Vec<f32>,
    /// From where on a label counts, one a label; empty where the task asks for none.
    pub thresholds: Vec<f32>,
    /// What logits are divided by before they become probabilities.
    pub temperature: f32,
    /// What tells inputs like those learned from others; none where that was not measured.
    pub known: Option<Arc<Known>>,
}

impl Default for Head {
    fn default() -> Head {
        Head {
            name: "head".into(),
            task: "classes".into(),
            output: String::new(),
            pool: Pool::default(),
            labels: [].into(),
            features: 0,
            weight: vec![],
            bias: vec![],
            thresholds: vec![],
            temperature: 1.0,
            known: None,
        }
    }
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

/// The values that a layer's input took while an adapter was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivationRange {
    /// The layer: a target's module path.
    pub module_path: String,
    /// The least value.
    pub low: f32,
    /// The greatest value.
    pub high: f32,
}

/// Something that an adapter file carries beside what this version knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A small change of a base: tensors per target, perhaps a head. Plain data; what
/// [`Engine::bind`](crate::Engine::bind) returns is what proves that it fits a base.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Adapter {
    /// Its name, for people.
    pub name: String,
    /// The base that it was made for; `None` only until an import is tied to one.
    pub base: Option<BaseFingerprint>,
    /// What it changes, each target at most once.
    pub targets: Vec<TargetAdapter>,
    /// Its heads.
    pub heads: Vec<Head>,
    /// How it was trained, if this tool did.
    pub training: Option<TrainingRecord>,
    /// Its measured effect.
    pub probes: Vec<ProbeEffect>,
    /// The values that layers' inputs took while its effect was measured; may be empty.
    pub ranges: Vec<ActivationRange>,
    /// Sections that this version doesn't know and that may be skipped: kept as they were read.
    pub extras: Vec<Extra>,
}

impl Adapter {
    /// The head that answers, if there is one.
    pub fn head(&self) -> Option<&Head> {
        self.heads.first()
    }

    /// Number of trained values: all targets and heads.
    pub fn parameters(&self) -> u64 {
        let tensors = self.targets.iter().flat_map(|t| &t.tensors);
        let targets: usize = tensors.map(|t| t.values.len()).sum();
        let heads: usize = self.heads.iter().map(|h| h.weight.len() + h.bias.len()).sum();
        (targets + heads) as u64
    }

    /// The names of the kinds of its targets, each once, in the order in which they come; rsLoRA by
    /// its own.
    pub fn kinds(&self) -> Vec<String> {
        let mut names: Vec<String> = vec![];
        for target in &self.targets {
            let name = target.kind.name();
            let name = if target.rslora { format!("{name} (rslora)") } else { name.to_string() };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
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
        assert!(Kind::all().all(|k| Kind::parse(k.name()) == Some(k)));
        assert_eq!(Kind::parse("lora"), Some(Kind::default()));
        assert_eq!(Kind::parse("hydra"), None);
    }

    #[test]
    fn features_come_from_the_rank() {
        let target = |b| TargetAdapter::lora("a", 2, 1.0, vec![0.0; 6], vec![0.0; b]);
        assert_eq!(target(8).features().unwrap(), Features::both(3, 4));
        assert!(target(1).features().is_err());
    }
}
