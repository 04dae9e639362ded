//! Tying adapters to a base: all or nothing, several at once as one stacked pair per target.

use super::config::{Adapter, Head, Kind, TargetAdapter};
use super::names::{nearest_hint, shown};
use super::target::{Target, TargetKind};
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::quant::LowRank;
use std::collections::HashMap;

/// Adapters tied to a base. One that [`bind`] returned proves that every adapter was made for that
/// base, that every pair found its target with the right shapes, and that all values are finite.
#[derive(Clone, Default)]
pub struct Bound {
    /// One entry for each of the base's targets, in their order; `None` leaves the target as the
    /// base has it, bit for bit. Scaling and weights are folded into lora_b; several adapters stand side
    /// by side along R.
    pub targets: Vec<Option<LowRank>>,
    /// The head, if one of the adapters has one. Weights don't apply to it.
    pub head: Option<Head>,
    /// The adapters' names and weights.
    pub names: Vec<(String, f32)>,
}

/// Ties `adapters`, each with its weight, to the base `base` with the target table `targets`.
/// A pair whose lora_b is all zero, or whose weight or alpha is zero, adds nothing and is left out.
///
/// # Errors
/// Mismatch: an adapter of another base, of none (an import not yet tied to one), a pair without a
/// target or of other shapes, two different heads. Bad input: what [`Adapter::check`] refuses.
/// Usage: a weight that is not finite. Unsupported: a pair on an embedding.
pub fn bind(
    adapters: &[(&Adapter, f32)],
    targets: &[Target],
    base: &BaseFingerprint,
) -> Result<Bound> {
    let mut index = HashMap::with_capacity(targets.len());
    for (i, target) in targets.iter().enumerate() {
        index.insert(target.module_path.as_str(), i);
    }
    let mut parts: Vec<Vec<Part>> = targets.iter().map(|_| Vec::new()).collect();
    let mut head: Option<(&Head, &str)> = None;
    for &(adapter, weight) in adapters {
        let place = |e: Error| e.at(format_args!("adapter '{}'", shown(&adapter.name)));
        check_base(adapter, base).map_err(place)?;
        adapter.check().map_err(place)?;
        check_weight(weight).map_err(place)?;
        match adapter.kind {
            Kind::Lora => {}
        }
        for pair in &adapter.targets {
            let at = match_target(pair, targets, &index).map_err(place)?;
            if let Some(parts) = parts.get_mut(at) {
                parts.extend(Part::of(adapter, pair, weight));
            }
        }
        if let Some(own) = &adapter.head {
            match head {
                Some((other, name)) if other != own => {
                    return Err(two_heads(other, name, own, adapter));
                }
                _ => head = Some((own, &adapter.name)),
            }
        }
    }
    let targets = targets
        .iter()
        .zip(&parts)
        .map(
            |(target, parts)| {
                if parts.is_empty() { Ok(None) } else { pack(target, parts).map(Some) }
            },
        )
        .collect::<Result<Vec<_>>>()?;
    let names = adapters.iter().map(|(a, weight)| (a.name.clone(), *weight)).collect();
    Ok(Bound { targets, head: head.map(|(h, _)| h.clone()), names })
}

/// A pair and what multiplies it: weight · scaling.
pub(super) struct Part<'a> {
    pub pair: &'a TargetAdapter,
    factor: f32,
}

impl<'a> Part<'a> {
    /// `None` for what adds nothing.
    pub(super) fn of(adapter: &Adapter, pair: &'a TargetAdapter, weight: f32) -> Option<Part<'a>> {
        let factor = weight * adapter.scaling(pair);
        (factor != 0.0 && !pair.is_zero()).then_some(Part { pair, factor })
    }
}

pub(super) fn check_weight(weight: f32) -> Result<()> {
    match weight.is_finite() {
        true => Ok(()),
        false => Err(Error::usage(format!("weight {weight} is not finite"))),
    }
}

fn check_base(adapter: &Adapter, base: &BaseFingerprint) -> Result<()> {
    match &adapter.base {
        Some(own) if own == base => Ok(()),
        Some(own) => Err(Error::mismatch(format!(
            "made for another base: expected base {}, found {}",
            own.short(),
            base.short()
        ))
        .hint("use the base that it was trained on, or train it anew")),
        None => Err(Error::mismatch("it is not tied to any base").hint("import it for this base")),
    }
}

fn match_target(
    pair: &TargetAdapter,
    targets: &[Target],
    index: &HashMap<&str, usize>,
) -> Result<usize> {
    let path = pair.module_path.as_str();
    let Some((at, target)) = index.get(path).and_then(|&i| Some((i, targets.get(i)?))) else {
        let error = Error::mismatch(format!("the base has no target '{}'", shown(path)));
        let names = targets.iter().map(|t| t.module_path.as_str());
        return Err(match nearest_hint(path, names) {
            Some(hint) => error.hint(hint),
            None => error,
        });
    };
    if target.kind == TargetKind::Embedding {
        return Err(Error::unsupported(format!(
            "target '{}' is an embedding, which can't carry a low-rank pair yet",
            shown(path)
        )));
    }
    let expected = (target.in_features as usize, target.out_features as usize);
    let found = (pair.in_features(), pair.out_features());
    if expected != found {
        return Err(Error::mismatch(format!(
            "target '{}': expected {} in_features and {} out_features, found {} and {}",
            shown(path),
            expected.0,
            expected.1,
            found.0,
            found.1
        )));
    }
    Ok(at)
}

pub(super) fn two_heads(other: &Head, other_adapter: &str, own: &Head, adapter: &Adapter) -> Error {
    Error::mismatch(format!(
        "two different heads: '{}' of adapter '{}' and '{}' of adapter '{}'",
        shown(&other.name),
        shown(other_adapter),
        shown(&own.name),
        shown(&adapter.name)
    ))
    .hint("only one of the adapters used together may have a head")
}

fn pack(target: &Target, parts: &[Part]) -> Result<LowRank> {
    let place = |e: Error| e.at(format_args!("target '{}'", shown(&target.module_path)));
    let (rank, a, b) = stack(parts).map_err(place)?;
    let features = [target.in_features as usize, target.out_features as usize];
    LowRank::new(rank, features, &a, &b).map_err(place)
}

/// R, lora_a's below each other as (R, in_features), and lora_b's side by side with their factors
/// folded in as (out_features, R). Errors: a value is not finite then.
pub(super) fn stack(parts: &[Part]) -> Result<(usize, Vec<f32>, Vec<f32>)> {
    let rank: usize = parts.iter().map(|p| p.pair.rank as usize).sum();
    let outputs = parts.first().map_or(0, |p| p.pair.out_features());
    let mut a = Vec::with_capacity(parts.iter().map(|p| p.pair.lora_a.len()).sum());
    let mut b = Vec::with_capacity(parts.iter().map(|p| p.pair.lora_b.len()).sum());
    for part in parts {
        a.extend_from_slice(&part.pair.lora_a);
    }
    for out in 0..outputs {
        for part in parts {
            let r = part.pair.rank as usize;
            let row = part.pair.lora_b.get(out * r..out * r + r).unwrap_or_default();
            b.extend(row.iter().map(|v| v * part.factor));
        }
    }
    super::check::finite("scaled lora_b", &b)?;
    Ok((rank, a, b))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{base, delta, head, linear, pair, small, values};
    use super::*;
    use crate::error::ErrorKind;
    use crate::quant::product;

    fn targets() -> Vec<Target> {
        vec![linear("a.b", 6, 4), linear("z", 2, 2), linear("c", 5, 3)]
    }

    fn applied(bound: &LowRank, x: &[f32], outputs: usize) -> Vec<f32> {
        let (mut h, mut y) = (vec![0.0; bound.rank()], vec![0.0; outputs]);
        product(bound.a(), x, None, &mut h);
        product(bound.b(), &h, None, &mut y);
        y
    }

    fn refused(adapter: &Adapter, weight: f32) -> Error {
        bind(&[(adapter, weight)], &targets(), &base(1)).err().expect("must be refused")
    }

    #[test]
    fn a_sum_of_adapters_is_the_sum_of_their_deltas() {
        let first = small();
        let mut second = small();
        second.rslora = true;
        second.targets = vec![pair("a.b", 4, 3.0, 6, 4)];
        let bound = bind(&[(&first, 0.5), (&second, -2.0)], &targets(), &base(1)).unwrap();
        assert_eq!(bound.names.len(), 2);
        assert_eq!(bound.head, first.head);
        assert!(bound.targets[1].is_none());
        let stacked = bound.targets[0].as_ref().unwrap();
        assert_eq!(stacked.rank(), 6);
        let x = values(6, 9);
        let one = delta(&first, &first.targets[0], 0.5, &x);
        let two = delta(&second, &second.targets[0], -2.0, &x);
        for ((y, one), two) in applied(stacked, &x, 4).iter().zip(one).zip(two) {
            assert!((y - one - two).abs() < 1e-4, "{y} {one} {two}");
        }
        assert_eq!(bound.targets[2].as_ref().unwrap().rank(), 1);
    }

    #[test]
    fn what_adds_nothing_is_left_out() {
        let mut adapter = small();
        adapter.targets[0].lora_b.fill(-0.0);
        adapter.targets[1].alpha = 0.0;
        let bound = bind(&[(&adapter, 1.0)], &targets(), &base(1)).unwrap();
        assert!(bound.targets.iter().all(Option::is_none));
        let bound = bind(&[(&small(), 0.0)], &targets(), &base(1)).unwrap();
        assert!(bound.targets.iter().all(Option::is_none));
        assert!(bind(&[], &targets(), &base(1)).unwrap().targets.len() == 3);
    }

    #[test]
    fn another_base_is_a_mismatch_that_names_both() {
        let mut adapter = small();
        adapter.base = Some(base(2));
        let error = refused(&adapter, 1.0);
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert!(error.message().contains(&base(2).short()), "{error}");
        assert!(error.message().contains(&base(1).short()), "{error}");
        adapter.base = None;
        assert_eq!(refused(&adapter, 1.0).kind(), ErrorKind::Mismatch);
    }

    #[test]
    fn an_unmatched_target_is_a_mismatch_with_the_nearest() {
        let mut adapter = small();
        adapter.targets[0].module_path = "a.bb".into();
        let error = refused(&adapter, 1.0);
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert!(error.message().contains("no target 'a.bb'"), "{error}");
        assert!(error.hint_text().unwrap().starts_with("nearest: 'a.b'"), "{error}");
    }

    #[test]
    fn wrong_shapes_values_and_weights_are_refused() {
        let mut adapter = small();
        adapter.targets[0] = pair("a.b", 2, 4.0, 5, 4);
        let error = refused(&adapter, 1.0);
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert!(error.message().contains("expected 6 in_features"), "{error}");

        let mut adapter = small();
        adapter.targets[1].lora_a[2] = f32::NAN;
        assert_eq!(refused(&adapter, 1.0).kind(), ErrorKind::BadInput);
        assert_eq!(refused(&small(), f32::INFINITY).kind(), ErrorKind::Usage);

        let mut adapter = small();
        adapter.targets[0].alpha = f32::MAX;
        adapter.targets[0].lora_b[0] = f32::MAX;
        assert!(refused(&adapter, 1.0).message().contains("not finite"));

        let mut table = targets();
        table[0].kind = TargetKind::Embedding;
        let error = bind(&[(&small(), 1.0)], &table, &base(1)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn heads_must_agree() {
        let (one, mut two) = (small(), small());
        assert!(bind(&[(&one, 1.0), (&two, 1.0)], &targets(), &base(1)).is_ok());
        two.name = "other".into();
        two.head = Some(head("score"));
        let error = bind(&[(&one, 1.0), (&two, 1.0)], &targets(), &base(1)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        for name in ["classifier", "täst", "score", "other"] {
            assert!(error.message().contains(name), "{error}");
        }
    }
}
