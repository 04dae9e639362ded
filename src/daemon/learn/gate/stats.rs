//! Exact tests and a seeded bootstrap: how sure a difference is.

use crate::train::random::{below, stream};

/// Resamples of the bootstrap.
const ROUNDS: usize = 2000;
/// Values that a stratum has at least.
const STRATUM: usize = 4;

/// ln k! for k of 0 to n.
fn ln_factorials(n: u64) -> Vec<f64> {
    let mut table = vec![0.0];
    let mut sum = 0.0;
    for k in 1..=n {
        sum += (k as f64).ln();
        table.push(sum);
    }
    table
}

fn ln_choose(table: &[f64], n: u64, k: u64) -> f64 {
    let at = |i: u64| usize::try_from(i).ok().and_then(|i| table.get(i)).copied();
    match (at(n), at(k), n.checked_sub(k).and_then(at)) {
        (Some(n), Some(k), Some(rest)) => n - k - rest,
        _ => f64::NEG_INFINITY,
    }
}

/// McNemar's exact test, one-sided: the probability of `better` or more of `better + worse`
/// discordant pairs if both answered equally well. 1 without discordant pairs.
pub fn mcnemar(better: u64, worse: u64) -> f64 {
    let n = better.saturating_add(worse);
    let table = ln_factorials(n);
    let half = n as f64 * 0.5f64.ln();
    let tail: f64 = (better..=n).map(|k| (ln_choose(&table, n, k) + half).exp()).sum();
    tail.min(1.0)
}

/// The probability of `found` or fewer of `count` where each has probability `share`: how well `found`
/// agrees with a share that great or greater.
pub fn at_most(found: u64, count: u64, share: f64) -> f64 {
    if found >= count || share <= 0.0 {
        return 1.0;
    }
    let table = ln_factorials(count);
    let (yes, no) = (share.min(1.0).ln(), (1.0 - share.min(1.0)).ln());
    let term = |k: u64| {
        let rest = (count - k) as f64;
        // 0 · ln 0 is no term.
        let taken = if k == 0 { 0.0 } else { k as f64 * yes };
        (ln_choose(&table, count, k) + taken + rest * no).exp()
    };
    (0..=found).map(term).sum::<f64>().min(1.0)
}

/// Fisher's exact test, one-sided: the probability of `right` or fewer right answers among `total`
/// if they were drawn without choice from these and the `other_total` answers, of which
/// `other_right` are right. 1 where a side has none.
pub fn fisher_less(right: u64, total: u64, other_right: u64, other_total: u64) -> f64 {
    if total == 0 || other_total == 0 {
        return 1.0;
    }
    let (right, other_right) = (right.min(total), other_right.min(other_total));
    let (all, good) = (total + other_total, right + other_right);
    let table = ln_factorials(all);
    let least = total.saturating_sub(all - good);
    let whole = ln_choose(&table, all, total);
    let term = |k: u64| {
        let ways = ln_choose(&table, good, k) + ln_choose(&table, all - good, total - k);
        (ways - whole).exp()
    };
    (least..=right).map(term).sum::<f64>().min(1.0)
}

/// Differences by stratum. Few values say little of how they vary, one says nothing: strata of
/// fewer than [`STRATUM`] become one.
fn strata(differences: &[(usize, f64)]) -> Vec<Vec<f64>> {
    let mut found: std::collections::BTreeMap<usize, Vec<f64>> = Default::default();
    for &(stratum, difference) in differences {
        found.entry(stratum).or_default().push(difference);
    }
    let (mut strata, small): (Vec<Vec<f64>>, Vec<Vec<f64>>) =
        found.into_values().partition(|values| values.len() >= STRATUM);
    let small = small.concat();
    match strata.first_mut() {
        Some(first) if small.len() < STRATUM => first.extend(small),
        _ => strata.push(small),
    }
    strata
}

/// A lower bound on the mean of paired differences, one-sided at `confidence`: the quantile of
/// means resampled within the strata (the classes), seeded. `differences` are (stratum,
/// difference). Resampling n values gives (n - 1)/n of a mean's variance, which is made up for.
/// Without any there is no bound: minus infinity.
pub fn bootstrap_lower(differences: &[(usize, f64)], confidence: f64, seed: u64) -> f64 {
    if differences.is_empty() {
        return f64::NEG_INFINITY;
    }
    let strata = strata(differences);
    let count = differences.len() as f64;
    let mut rng = stream(seed, "gate bootstrap", 0);
    let mut means: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let mut sum = 0.0;
            for values in &strata {
                let n = values.len() as f64;
                let own: f64 = values.iter().sum();
                let drawn: f64 = (0..values.len())
                    .map(|_| {
                        let at = below(&mut rng, values.len() as u64) as usize;
                        values.get(at).copied().unwrap_or(0.0)
                    })
                    .sum();
                sum += own + (drawn - own) * (n / (n - 1.0).max(1.0)).sqrt();
            }
            sum / count
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = ((1.0 - confidence.clamp(0.5, 1.0)) * ROUNDS as f64).floor() as usize;
    means.get(at).copied().unwrap_or(f64::NEG_INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }

    #[test]
    fn mcnemar_by_hand() {
        near(mcnemar(0, 0), 1.0);
        near(mcnemar(5, 0), 1.0 / 32.0);
        near(mcnemar(0, 5), 1.0);
        // P(X >= 6 of 8) = (28 + 8 + 1) / 256
        near(mcnemar(6, 2), 37.0 / 256.0);
        // Many pairs don't overflow: P(X >= 1000 of 2000) is a hair above one half.
        assert!((0.5..0.52).contains(&mcnemar(1000, 1000)));
    }

    #[test]
    fn at_most_by_hand() {
        near(at_most(0, 3, 0.1), 0.729);
        near(at_most(1, 3, 0.1), 0.729 + 0.243);
        near(at_most(3, 3, 0.1), 1.0);
        near(at_most(0, 0, 0.1), 1.0);
        near(at_most(0, 5, 1.0), 0.0);
        near(at_most(2, 5, 0.0), 1.0);
    }

    #[test]
    fn fisher_by_hand() {
        // Fisher's tea: 1 of 4 right against 3 of 4: (16 + 1) / 70.
        near(fisher_less(1, 4, 3, 4), 17.0 / 70.0);
        near(fisher_less(0, 4, 4, 4), 1.0 / 70.0);
        near(fisher_less(4, 4, 0, 4), 1.0);
        near(fisher_less(0, 0, 3, 4), 1.0);
        near(fisher_less(3, 4, 0, 0), 1.0);
        // All wrong on both sides, all right on both: nothing is worse.
        near(fisher_less(0, 9, 0, 5), 1.0);
        near(fisher_less(9, 9, 5, 5), 1.0);
        assert!(fisher_less(2, 20, 900, 1000) < 1e-12);
    }

    /// Against the definition: all ways to choose, counted.
    #[test]
    fn fisher_agrees_with_counting() {
        let choose = |n: u64, k: u64| -> f64 {
            if k > n { 0.0 } else { (0..k).map(|i| (n - i) as f64 / (k - i) as f64).product() }
        };
        for total in 1..7u64 {
            for other in 1..7u64 {
                for right in 0..=total {
                    for other_right in 0..=other {
                        let good = right + other_right;
                        let ways: f64 = (0..=right)
                            .map(|k| choose(total, k) * choose(other, good.wrapping_sub(k).min(99)))
                            .sum();
                        let all = choose(total + other, good);
                        near(fisher_less(right, total, other_right, other), ways / all);
                    }
                }
            }
        }
    }

    #[test]
    fn the_bootstrap_is_seeded_and_covers() {
        let pairs: Vec<(usize, f64)> =
            (0..60).map(|i| (i % 3, if i % 4 == 0 { 1.0 } else { 0.0 })).collect();
        let low = bootstrap_lower(&pairs, 0.95, 7);
        assert_eq!(low, bootstrap_lower(&pairs, 0.95, 7));
        // Mean 0.25, standard error 0.056: the 5 % quantile of the normal is 0.158.
        assert!((0.12..0.20).contains(&low), "{low}");
        assert!(bootstrap_lower(&pairs, 0.99, 7) < low);
        near(bootstrap_lower(&[(0, 0.5); 9], 0.95, 1), 0.5);
        assert_eq!(bootstrap_lower(&[], 0.95, 1), f64::NEG_INFINITY);
        near(bootstrap_lower(&[(0, 1.0), (1, 1.0), (2, 1.0)], 0.9, 3), 1.0);
    }

    /// A sample a class says how classes vary, not that nothing does.
    #[test]
    fn strata_of_one_are_taken_together() {
        let ones =
            |values: &[f64]| -> Vec<(usize, f64)> { values.iter().copied().enumerate().collect() };
        let mixed = ones(&[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0]);
        assert!(bootstrap_lower(&mixed, 0.9, 1) < 0.0);
        let few = [(0, 0.1), (0, 0.1), (0, 0.1), (0, 0.1), (1, 3.0), (2, -2.0)];
        assert!(bootstrap_lower(&few, 0.9, 1) < 0.0);
        assert!(bootstrap_lower(&ones(&[0.5; 8]), 0.9, 1) > 0.49);
    }

    /// Draws from nearly a normal distribution of mean 0: the bound lies above the mean no more often than
    /// it may, in classes of few values too.
    #[test]
    fn the_bound_errs_no_more_often_than_it_says() {
        use crate::train::random::unit;
        for (classes, each) in [(1, 8), (8, 1), (4, 4), (3, 20)] {
            let (mut above, runs) = (0, 400);
            for run in 0..runs {
                let mut rng = stream(run, "draws", 1);
                let mut normal = || (0..12).map(|_| f64::from(unit(&mut rng))).sum::<f64>() - 6.0;
                let drawn: Vec<(usize, f64)> =
                    (0..classes * each).map(|i| (i % classes, normal())).collect();
                above += usize::from(bootstrap_lower(&drawn, 0.9, run) > 0.0);
            }
            // 40 expected; 48 where 8 values stand for their own variance.
            assert!(above <= 56, "{classes} classes of {each}: {above} of {runs}");
        }
    }
}
