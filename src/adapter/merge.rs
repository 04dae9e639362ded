//! Several adapters as one: their weighted sum, exact but for the rounding that [`bind`] does too.

use super::algebra::{at_target, check_weight, one_head, two_heads};
use super::check::MAX_RANK;
use super::config::{Adapter, Head, TargetAdapter};
use super::kind::Part;
use super::names::shown;
use super::sum::Sum;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// The weighted sum of `adapters` as one adapter `name`: bound alone it gives the bits that
/// [`Engine::bind`](crate::Engine::bind) gives for all of them. Of each target the ranks add up;
/// scaling and weights are in lora_b, so that alpha is the rank. What adds nothing is left out. The
/// head is theirs where they agree, weights don't apply to it. Probes, activation ranges and
/// training records belong to the parts and are not taken over.
///
/// # Errors
/// Mismatch: different bases or none, other shapes of a target, two different heads. Bad input: what
/// [`Adapter::check`] refuses. Usage: fewer than two adapters, a weight that is not finite, a sum
/// that changes nothing. Unsupported: a kind whose sum is none of the kinds, a rank beyond
/// 4096.
pub fn merge(name: &str, adapters: &[(&Adapter, f32)]) -> Result<Adapter> {
    let [(first, _), _, ..] = adapters else {
        return Err(Error::usage("one adapter alone is no sum: expected two or more"));
    };
    let mut sums: BTreeMap<&str, (Sum, Vec<&TargetAdapter>)> = BTreeMap::new();
    let mut order: Vec<&str> = vec![];
    let mut head: Option<(&Head, &str)> = None;
    for &(adapter, weight) in adapters {
        let place = |e: Error| e.at(format_args!("adapter '{}'", shown(&adapter.name)));
        adapter.check().map_err(place)?;
        check_weight(weight).map_err(place)?;
        match (&adapter.base, &first.base) {
            (None, _) => {
                return Err(place(Error::mismatch("it is not tied to any base"))
                    .hint("import it for the base of the others"));
            }
            (Some(own), Some(other)) if own != other => {
                return Err(place(Error::mismatch(format!(
                    "made for another base than '{}': expected base {}, found {}",
                    shown(&first.name),
                    other.short(),
                    own.short()
                ))));
            }
            _ => {}
        }
        for target in &adapter.targets {
            let path = target.module_path.as_str();
            let place = |e: Error| place(e.at(at_target(target)));
            let (sum, parts) = sums.entry(path).or_insert_with(|| {
                order.push(path);
                (Sum::default(), vec![])
            });
            if let Some(other) = parts.first()
                && !other.features()?.agree(target.features()?)
            {
                return Err(place(Error::mismatch(format!(
                    "it has other shapes than in '{}'",
                    shown(&first.name)
                ))));
            }
            parts.push(target);
            target.kind.rules().add(&Part { target, weight, layer: None }, sum).map_err(place)?;
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
    let mut targets = Vec::with_capacity(order.len());
    for path in order {
        let Some((sum, parts)) = sums.get(path).filter(|(sum, _)| !sum.is_empty()) else {
            continue;
        };
        targets.push(
            as_one(path, sum, parts).map_err(|e| e.at(format_args!("target '{}'", shown(path))))?,
        );
    }
    if targets.is_empty() && head.is_none() {
        return Err(Error::usage("the sum changes nothing: every weight or every pair is zero"));
    }
    let merged = Adapter {
        name: name.into(),
        base: first.base,
        heads: head.map(|(h, _)| h.clone()).into_iter().collect(),
        targets,
        ..Adapter::default()
    };
    merged.check()?;
    Ok(merged)
}

/// A sum of low-rank pairs as one pair.
fn as_one(path: &str, sum: &Sum, parts: &[&TargetAdapter]) -> Result<TargetAdapter> {
    let (rank, lora_a, lora_b) = sum.as_pair().ok_or_else(|| {
        let mut kinds: Vec<&str> = parts.iter().map(|t| t.kind.name()).collect();
        kinds.dedup();
        Error::unsupported(format!("a sum of {} is none of the kinds", kinds.join(" and ")))
            .hint("use the adapters together: they are summed when they are bound")
    })?;
    let rank = u32::try_from(rank).ok().filter(|r| *r <= MAX_RANK).ok_or_else(|| {
        Error::unsupported(format!("the ranks add up to {rank}, at most {MAX_RANK} are possible"))
    })?;
    Ok(TargetAdapter::lora(path, rank, rank as f32, lora_a, lora_b))
}

#[cfg(test)]
mod tests {
    use super::super::bind;
    use super::super::testing::{base, head, linear, pair, small};
    use super::*;
    use crate::error::ErrorKind;
    use crate::quant::{Change, Packed};

    fn second() -> Adapter {
        let mut second = small();
        second.name = "second".into();
        second.targets = vec![pair("z", 1, 2.0, 2, 2), pair("a.b", 4, 3.0, 6, 4)];
        second.targets[1].rslora = true;
        second
    }

    #[test]
    fn the_sum_is_bit_equal_to_both_bound_together() {
        let (one, two) = (small(), second());
        let targets = [linear("a.b", 6, 4), linear("z", 2, 2), linear("c", 5, 3)];
        let weighted = [(&one, 0.5), (&two, -2.0)];
        let merged = merge("sum", &weighted).unwrap();
        let ranks: Vec<_> = merged.targets.iter().map(|t| (&*t.module_path, t.rank)).collect();
        assert_eq!(ranks, [("a.b", 6), ("c", 1), ("z", 1)]);
        assert_eq!((merged.head(), merged.base), (one.head(), Some(base(1))));
        assert!(merged.probes.is_empty() && merged.training.is_none());
        // Through its file, as it is used.
        let bytes = merged.to_bytes(crate::adapter::TensorType::F32).unwrap();
        let merged = Adapter::from_bytes(&bytes).unwrap();
        let both = bind(&weighted, &targets, &base(1), &Vec::<Packed>::new()).unwrap();
        let sum = bind(&[(&merged, 1.0)], &targets, &base(1), &Vec::<Packed>::new()).unwrap();
        for (both, sum) in both.targets.iter().zip(&sum.targets) {
            let pair = |c: &Option<Change>| c.as_ref().unwrap().low_rank.clone().unwrap();
            let (both, sum) = (pair(both), pair(sum));
            assert_eq!(both.rank(), sum.rank());
            assert_eq!(both.a().dequantize(), sum.a().dequantize());
            assert_eq!(both.b().dequantize(), sum.b().dequantize());
        }
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let one = small();
        let refused = |change: fn(&mut Adapter), weight: f32| {
            let mut two = second();
            change(&mut two);
            merge("sum", &[(&one, 1.0), (&two, weight)]).unwrap_err()
        };
        let mismatch = ErrorKind::Mismatch;
        assert_eq!(refused(|a| a.base = Some(base(2)), 1.0).kind(), mismatch);
        assert_eq!(refused(|a| a.base = None, 1.0).kind(), mismatch);
        assert_eq!(refused(|a| a.heads = vec![head("score")], 1.0).kind(), mismatch);
        let error = refused(|a| a.targets[1] = pair("a.b", 4, 3.0, 5, 4), 1.0);
        assert!(error.message().contains("'a.b': it has other shapes"), "{error}");
        assert_eq!(refused(|_| {}, f32::NAN).kind(), ErrorKind::Usage);
        assert_eq!(
            refused(|a| a.targets[0].tensors[0].values[0] = f32::NAN, 1.0).kind(),
            ErrorKind::BadInput
        );
        let error = refused(|a| a.targets[1] = pair("a.b", MAX_RANK, 3.0, 6, 4), 1.0);
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(merge("sum", &[(&one, 1.0)]).unwrap_err().kind(), ErrorKind::Usage);
        let mut bare = small();
        bare.heads.clear();
        let error = merge("sum", &[(&bare, 0.0), (&bare, 0.0)]).unwrap_err();
        assert!(error.message().contains("changes nothing"), "{error}");
    }
}
