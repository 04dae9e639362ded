//! Tying adapters to a base: all or nothing, several at once as one sum per target.

use super::config::{Adapter, Head, TargetAdapter};
use super::kind::{Layer, Part};
use super::names::{nearest_hint, shown};
use super::sum::Sum;
use super::target::Target;
use crate::error::{Error, Result};
use crate::fingerprint::BaseFingerprint;
use crate::quant::{Change, Scheme, WeightSource};
use std::collections::HashMap;

/// Adapters tied to a base. One that [`Engine::bind`](crate::Engine::bind) returned proves that every
/// adapter was made for that base, that every target was found with the right shapes, and that all
/// values are finite.
#[derive(Clone, Default)]
pub struct Bound {
    /// One entry for each of the base's targets, in their order; `None` leaves the target as the
    /// base has it, bit for bit. Scaling and weights are folded in; several adapters stand side by
    /// side.
    pub(crate) targets: Vec<Option<Change>>,
    /// The head, if one of the adapters has one. Weights don't apply to it.
    pub head: Option<Head>,
    /// The adapters' names and weights.
    pub names: Vec<(String, f32)>,
}

/// Ties `adapters`, each with its weight, to the base `base` with the target table `targets` over
/// the weight table `weights`. What changes nothing (a pair whose lora_b is all zero, a weight or
/// an alpha of zero) is left out.
///
/// # Errors
/// Mismatch: an adapter of another base, of none (an import not yet tied to one), tensors without a
/// target or of other shapes, two different heads. Bad input: what [`Adapter::check`] refuses.
/// Usage: a weight that is not finite. Unsupported: a kind on a layer that it has no form for, and
/// kinds that have no sum.
pub fn bind(
    adapters: &[(&Adapter, f32)],
    targets: &[Target],
    base: &BaseFingerprint,
    weights: &dyn WeightSource,
) -> Result<Bound> {
    let mut index = HashMap::with_capacity(targets.len());
    for (i, target) in targets.iter().enumerate() {
        index.insert(target.module_path.as_str(), i);
    }
    let mut sums: Vec<Sum> = targets.iter().map(|_| Sum::default()).collect();
    let mut head: Option<(&Head, &str)> = None;
    for &(adapter, weight) in adapters {
        let place = |e: Error| e.at(format_args!("adapter '{}'", shown(&adapter.name)));
        check_base(adapter, base).map_err(place)?;
        adapter.check().map_err(place)?;
        check_weight(weight).map_err(place)?;
        for target in &adapter.targets {
            let at = match_target(target, targets, &index).map_err(place)?;
            if let (Some(sum), Some(layer)) = (sums.get_mut(at), targets.get(at)) {
                let layer = Some(Layer { target: layer, weights });
                let part = Part { target, weight, layer };
                let place = |e: Error| place(e.at(at_target(target)));
                target.kind.rules().add(&part, sum).map_err(place)?;
            }
        }
        if let Some(own) = one_head(adapter).map_err(place)? {
            match head {
                Some((other, name)) if other != own => {
                    return Err(two_heads(other, name, own, adapter));
                }
                _ => head = Some((own, &adapter.name)),
            }
        }
    }
    let bound = |(target, sum): (&Target, Sum)| {
        let features = [target.in_features as usize, target.out_features as usize];
        let place = |e: Error| e.at(format_args!("target '{}'", shown(&target.module_path)));
        // Where no weights are at hand nothing is multiplied either.
        let frozen = weights.weight(target.weight as usize).map_or(Scheme::F32, |w| w.scheme());
        sum.bound(frozen, features).map_err(place)
    };
    let targets = targets.iter().zip(sums).map(bound).collect::<Result<Vec<_>>>()?;
    let names = adapters.iter().map(|(a, weight)| (a.name.clone(), *weight)).collect();
    let mut head = head.map(|(h, _)| h.clone());
    if let Some(head) = head.as_mut().filter(|_| adapters.len() > 1) {
        // Measured with the features of one.
        head.known = None;
    }
    Ok(Bound { targets, head, names })
}

/// Where an error of a target's tensors arose.
pub(super) fn at_target(target: &TargetAdapter) -> String {
    format!("target '{}'", shown(&target.module_path))
}

/// The head of an adapter that is to answer.
pub(super) fn one_head(adapter: &Adapter) -> Result<Option<&Head>> {
    match adapter.heads.as_slice() {
        [] => Ok(None),
        [head] => Ok(Some(head)),
        more => Err(Error::unsupported(format!("it has {} heads, one can be served", more.len()))),
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
    found: &TargetAdapter,
    targets: &[Target],
    index: &HashMap<&str, usize>,
) -> Result<usize> {
    let path = found.module_path.as_str();
    let Some((at, target)) = index.get(path).and_then(|&i| Some((i, targets.get(i)?))) else {
        let error = Error::mismatch(format!("the base has no target '{}'", shown(path)));
        let names = targets.iter().map(|t| t.module_path.as_str());
        return Err(match nearest_hint(path, names) {
            Some(hint) => error.hint(hint),
            None => error,
        });
    };
    let features = found.features()?;
    for (side, expected, found) in [
        ("in", target.in_features as usize, features.inputs),
        ("out", target.out_features as usize, features.outputs),
    ] {
        if let Some(found) = found.filter(|found| *found != expected) {
            return Err(Error::mismatch(format!(
                "target '{}': expected {expected} {side}_features, found {found}",
                shown(path)
            )));
        }
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

#[cfg(test)]
mod tests {
    use super::super::testing::{base, delta, head, linear, pair, small, values};
    use super::*;
    use crate::error::ErrorKind;
    use crate::quant::{LowRank, Packed, Scheme, product};

    fn frozen() -> Vec<Packed> {
        vec![Packed::pack(Scheme::F32, 4, 6, &values(24, 3)).unwrap()]
    }

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
        bind(&[(adapter, weight)], &targets(), &base(1), &frozen()).err().expect("must be refused")
    }

    #[test]
    fn a_sum_of_adapters_is_the_sum_of_their_deltas() {
        let first = small();
        let mut second = small();
        second.targets = vec![pair("a.b", 4, 3.0, 6, 4)];
        second.targets[0].rslora = true;
        let bound =
            bind(&[(&first, 0.5), (&second, -2.0)], &targets(), &base(1), &frozen()).unwrap();
        assert_eq!(bound.names.len(), 2);
        assert_eq!(bound.head.as_ref(), first.head());
        assert!(bound.targets[1].is_none());
        let stacked = bound.targets[0].as_ref().unwrap().low_rank.as_ref().unwrap();
        assert_eq!(stacked.rank(), 6);
        let x = values(6, 9);
        let one = delta(&first.targets[0], 0.5, &x);
        let two = delta(&second.targets[0], -2.0, &x);
        for ((y, one), two) in applied(stacked, &x, 4).iter().zip(one).zip(two) {
            assert!((y - one - two).abs() < 1e-4, "{y} {one} {two}");
        }
        assert_eq!(bound.targets[2].as_ref().unwrap().low_rank.as_ref().unwrap().rank(), 1);
    }

    #[test]
    fn what_adds_nothing_is_left_out() {
        let mut adapter = small();
        adapter.targets[0].tensors[1].values.fill(-0.0);
        adapter.targets[1].alpha = 0.0;
        let bound = bind(&[(&adapter, 1.0)], &targets(), &base(1), &frozen()).unwrap();
        assert!(bound.targets.iter().all(Option::is_none));
        let bound = bind(&[(&small(), 0.0)], &targets(), &base(1), &frozen()).unwrap();
        assert!(bound.targets.iter().all(Option::is_none));
        assert!(bind(&[], &targets(), &base(1), &frozen()).unwrap().targets.len() == 3);
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
        adapter.targets[1].tensors[0].values[2] = f32::NAN;
        assert_eq!(refused(&adapter, 1.0).kind(), ErrorKind::BadInput);
        assert_eq!(refused(&small(), f32::INFINITY).kind(), ErrorKind::Usage);

        let mut adapter = small();
        adapter.targets[0].alpha = f32::MAX;
        adapter.targets[0].tensors[1].values[0] = f32::MAX;
        assert!(refused(&adapter, 1.0).message().contains("not finite"));

        let mut adapter = small();
        adapter.heads.push(head("second"));
        assert_eq!(refused(&adapter, 1.0).kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn heads_must_agree() {
        let (one, mut two) = (small(), small());
        assert!(bind(&[(&one, 1.0), (&two, 1.0)], &targets(), &base(1), &frozen()).is_ok());
        two.name = "other".into();
        two.heads = vec![head("score")];
        let error =
            bind(&[(&one, 1.0), (&two, 1.0)], &targets(), &base(1), &frozen()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        for name in ["classifier", "täst", "score", "other"] {
            assert!(error.message().contains(name), "{error}");
        }
    }
}
