//! Adapters and targets for the layer's tests.

use super::{ActivationRange, TrainingRecord};
use super::{Adapter, Head, Pool, ProbeEffect, Target, TargetAdapter, TargetKind};
use crate::fingerprint::BaseFingerprint;
use crate::shape::{Array, Data};

pub fn base(seed: u8) -> BaseFingerprint {
    BaseFingerprint(*blake3::hash(&[seed]).as_bytes())
}

pub fn linear(module_path: &str, in_features: u32, out_features: u32) -> Target {
    Target {
        module_path: module_path.into(),
        node: format!("/{}/MatMul", module_path.replace('.', "/")),
        kind: TargetKind::Linear,
        weight: 0,
        in_features,
        out_features,
    }
}

/// Values that differ everywhere and are exact in f16.
pub fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 64.0 - 0.75).collect()
}

pub fn pair(
    module_path: &str,
    rank: u32,
    alpha: f32,
    inputs: usize,
    outputs: usize,
) -> TargetAdapter {
    let seed = module_path.bytes().map(u32::from).sum::<u32>() + rank;
    let (a, b) = (rank as usize * inputs, rank as usize * outputs);
    TargetAdapter::lora(module_path, rank, alpha, values(a, seed), values(b, seed + 1))
}

pub fn head(name: &str) -> Head {
    Head {
        name: name.into(),
        output: "logits".into(),
        pool: Pool::Cls,
        labels: ["no", "yes"].map(String::from).into(),
        features: 3,
        weight: values(6, 5),
        bias: vec![0.5, -0.25],
        thresholds: vec![0.25, 0.75],
        temperature: 1.5,
        ..Head::default()
    }
}

/// Two targets (a.b: 6 → 4, rank 2; c: 5 → 3, rank 1), a head, a record, one probe.
pub fn small() -> Adapter {
    Adapter {
        name: "täst".into(),
        base: Some(base(1)),
        targets: vec![pair("a.b", 2, 4.0, 6, 4), pair("c", 1, 0.5, 5, 3)],
        heads: vec![head("classifier")],
        training: Some(TrainingRecord {
            samples: 200,
            steps: 75,
            epochs: 3.0,
            seed: 7,
            learning_rate: 1e-3,
            final_loss: 0.125,
            before: vec![("accuracy".into(), 0.25)],
            after: vec![("accuracy".into(), 0.75)],
            date: 1_700_000_000,
            tool: "0.1.0".into(),
        }),
        probes: vec![ProbeEffect {
            inputs: vec![
                ("input_ids".into(), Array::i64([1, 3], vec![101, 7592, -102]).unwrap()),
                ("mask".into(), Array::new([1, 3], Data::Bool(vec![true, true, false])).unwrap()),
                ("x".into(), Array::f32([2], vec![0.1, 1e-9]).unwrap()),
            ],
            output: "logits".into(),
            effect: 0.03125,
        }],
        ranges: vec![ActivationRange { module_path: "c".into(), low: -1.5, high: 2.0 }],
        extras: vec![],
    }
}

/// y += weight · scaling · (x·lora_aᵀ)·lora_bᵀ by plain loops.
pub fn delta(pair: &TargetAdapter, weight: f32, x: &[f32]) -> Vec<f32> {
    let factor = weight * pair.scaling();
    let rank = pair.rank as usize;
    let (a, b) = (&pair.tensors[0].values, &pair.tensors[1].values);
    (0..b.len() / rank)
        .map(|o| {
            let mut sum = 0.0;
            for r in 0..rank {
                let down: f32 = x.iter().zip(&a[r * x.len()..]).map(|(x, a)| x * a).sum();
                sum += down * b[o * rank + r];
            }
            factor * sum
        })
        .collect()
}
