//! Sums of kinds, and those that there are none of.

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
    let updates: Vec<Update> = change.iter().map(|change| Update { rows: 0..1, change }).collect();
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
    assert!(Sum::default().bound(Scheme::F32, [INPUTS, OUTPUTS]).unwrap().is_none());
    assert_eq!(answer(&[(&bound, 0.0)]).unwrap(), answer(&[]).unwrap());
}
