//! Which token comes next, from the logits of all.

use crate::error::{Error, Result};
use crate::runtime::argmax;

/// How the next token is chosen, in this order: the penalty, the temperature, the `top_k` likeliest, of
/// those the fewest that hold `top_p` of the probability, and one of these by chance. The order and the
/// formulas are those of transformers' logits processors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 takes the likeliest token, always.
    pub temperature: f32,
    /// How many of the likeliest tokens stay; 0: all.
    pub top_k: usize,
    /// The share of the probability that stays, above 0; 1: all.
    pub top_p: f32,
    /// What the logits of tokens that are there already are divided by (multiplied with, below 0),
    /// above 0; 1 changes nothing.
    pub repetition_penalty: f32,
    /// The same seed gives the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// The likeliest token, always.
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Errors: a value out of range (usage).
    pub(super) fn check(&self) -> Result<()> {
        let positive = |v: f32| v.is_finite() && v > 0.0;
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::usage(format!(
                "the temperature is {}, expected 0 or more",
                self.temperature
            )));
        }
        if !(positive(self.top_p) && self.top_p <= 1.0) {
            return Err(Error::usage(format!(
                "top-p is {}, expected above 0, at most 1",
                self.top_p
            )));
        }
        if !positive(self.repetition_penalty) {
            return Err(Error::usage(format!(
                "the repetition penalty is {}, expected above 0",
                self.repetition_penalty
            )));
        }
        Ok(())
    }
}

/// Chooses tokens one after the other.
pub(super) struct Sampler {
    sampling: Sampling,
    random: u64,
    /// Tokens and their logits, reused.
    left: Vec<(u32, f32)>,
}

impl Sampler {
    pub(super) fn new(sampling: Sampling) -> Sampler {
        Sampler { sampling, random: sampling.seed, left: vec![] }
    }

    /// The next token, after `seen`. Changes `logits`. Errors: a logit that is NaN, or none above
    /// negative infinity (failed).
    pub(super) fn next(&mut self, logits: &mut [f32], seen: &[u32]) -> Result<u32> {
        if logits.iter().any(|v| v.is_nan() || *v == f32::INFINITY) {
            return Err(Error::failed("the base gives logits that are no numbers"));
        }
        penalize(logits, seen, self.sampling.repetition_penalty);
        let best = argmax(logits).filter(|at| logits[*at] > f32::NEG_INFINITY);
        let best = best.ok_or_else(|| Error::failed("the base gives no token any chance"))?;
        if self.sampling.temperature == 0.0 {
            return Ok(best as u32);
        }
        self.left.clear();
        self.left.extend((0..).zip(logits.iter().copied()));
        keep_top_k(&mut self.left, self.sampling.top_k);
        let chances = probabilities(&mut self.left, self.sampling.temperature);
        let kept = top_p(&chances, self.sampling.top_p);
        let drawn = self.uniform();
        Ok(self.left[drawn_from(&chances[..kept], drawn)].0)
    }

    /// At least 0, below 1: SplitMix64 (Steele, Lea, Flood 2014), the upper 53 bits.
    fn uniform(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// log softmax(logits) at `id`.
pub(super) fn log_probability(logits: &[f32], id: u32) -> f64 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|v| f64::from(v - greatest).exp()).sum();
    f64::from(logits[id as usize] - greatest) - sum.ln()
}

/// Keskar et al. 2019 (CTRL), section 4.1; each token once, however often it was seen.
fn penalize(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = seen.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// Likeliest first, of equal ones the lower number.
fn order(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Leaves the `k` likeliest, in their order.
fn keep_top_k(left: &mut Vec<(u32, f32)>, k: usize) {
    if k > 0 && k < left.len() {
        left.select_nth_unstable_by(k, order);
        left.truncate(k);
    }
    left.sort_unstable_by(order);
}

/// Softmax of logits / temperature, in their order, which is descending.
fn probabilities(left: &mut [(u32, f32)], temperature: f32) -> Vec<f64> {
    let greatest = left.first().map_or(0.0, |l| f64::from(l.1));
    let weight = |l: &(u32, f32)| ((f64::from(l.1) - greatest) / f64::from(temperature)).exp();
    let weights: Vec<f64> = left.iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

/// How many of descending probabilities hold `p` together (Holtzman et al. 2020), one at least.
fn top_p(chances: &[f64], p: f32) -> usize {
    if p >= 1.0 {
        return chances.len();
    }
    let mut sum = 0.0;
    let enough = chances.iter().position(|chance| {
        sum += chance;
        sum >= f64::from(p)
    });
    enough.map_or(chances.len(), |at| at + 1)
}

/// The place where the running sum passes `drawn` of the whole.
fn drawn_from(chances: &[f64], drawn: f64) -> usize {
    let goal = drawn * chances.iter().sum::<f64>();
    let mut sum = 0.0;
    let passed = chances.iter().position(|chance| {
        sum += chance;
        sum > goal
    });
    passed.unwrap_or(chances.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Logits that look like a small vocabulary's, some of them equal.
    fn logits(seed: u64) -> Vec<f32> {
        let mut sampler = Sampler::new(Sampling { seed, ..Sampling::default() });
        (0..40).map(|_| ((sampler.uniform() * 24.0).floor() / 3.0 - 4.0) as f32).collect()
    }

    /// The distribution by definition: every token asks how much is likelier than it.
    fn slow(logits: &[f32], seen: &[u32], s: &Sampling) -> Vec<f64> {
        let penalized = |(id, &logit): (usize, &f32)| {
            let logit = match (seen.contains(&(id as u32)), logit < 0.0) {
                (true, true) => logit * s.repetition_penalty,
                (true, false) => logit / s.repetition_penalty,
                _ => logit,
            };
            f64::from(logit)
        };
        let scores: Vec<f64> = logits.iter().enumerate().map(penalized).collect();
        let before = |a: usize, b: usize| scores[a] > scores[b] || scores[a] == scores[b] && a < b;
        let all = 0..scores.len();
        let rank = |at: usize| all.clone().filter(|b| before(*b, at)).count();
        let in_k = |at: &usize| s.top_k == 0 || rank(*at) < s.top_k;
        let weight = |at: usize| (scores[at] / f64::from(s.temperature)).exp();
        let sum: f64 = all.clone().filter(in_k).map(weight).sum();
        let ahead = |at: usize| -> f64 {
            all.clone().filter(in_k).filter(|b| before(*b, at)).map(|b| weight(b) / sum).sum()
        };
        let kept = |at: usize| in_k(&at) && (s.top_p >= 1.0 || ahead(at) < f64::from(s.top_p));
        let chance = |at: usize| if kept(at) { weight(at) } else { 0.0 };
        let sum: f64 = all.clone().map(chance).sum();
        all.clone().map(|at| chance(at) / sum).collect()
    }

    #[test]
    fn draws_follow_the_distribution_by_definition() {
        let base = Sampling { temperature: 1.0, ..Sampling::default() };
        let ways = [
            base,
            Sampling { temperature: 0.7, top_k: 5, ..base },
            Sampling { temperature: 1.3, top_p: 0.6, ..base },
            Sampling { temperature: 0.9, top_k: 12, top_p: 0.8, repetition_penalty: 1.5, ..base },
            Sampling { top_k: 1, ..base },
            Sampling { top_p: 1e-6, repetition_penalty: 0.5, ..base },
        ];
        let seen = [3, 3, 17, 900];
        for (at, way) in ways.into_iter().enumerate() {
            let logits = logits(at as u64);
            let want = slow(&logits, &seen, &way);
            const DRAWS: usize = 20_000;
            let mut sampler = Sampler::new(Sampling { seed: 7, ..way });
            let mut counts: HashMap<u32, usize> = HashMap::new();
            for _ in 0..DRAWS {
                *counts.entry(sampler.next(&mut logits.clone(), &seen).unwrap()).or_default() += 1;
            }
            for (id, want) in want.iter().enumerate() {
                let found = counts.get(&(id as u32)).copied().unwrap_or(0);
                let share = found as f64 / DRAWS as f64;
                // Five standard deviations.
                let room = 5.0 * (want * (1.0 - want) / DRAWS as f64).sqrt() + 1e-9;
                assert!((share - want).abs() <= room, "{way:?} token {id}: {share}, want {want}");
                assert!(*want > 0.0 || found == 0, "{way:?} token {id} has no chance");
            }
        }
    }

    #[test]
    fn without_a_temperature_the_likeliest_is_taken_and_equal_ones_by_their_number() {
        let mut sampler = Sampler::new(Sampling::default());
        assert_eq!(sampler.next(&mut [1.0, 3.0, 3.0, -1.0], &[]).unwrap(), 1);
        let penalty = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let mut sampler = Sampler::new(penalty);
        assert_eq!(sampler.next(&mut [2.5, 4.0, 0.0], &[1, 1]).unwrap(), 0);
        // Below 0 the penalty multiplies.
        assert_eq!(sampler.next(&mut [-1.5, -1.0], &[1]).unwrap(), 0);
    }

    #[test]
    fn the_seed_decides() {
        let draw = |seed: u64| -> Vec<u32> {
            let mut s = Sampler::new(Sampling { temperature: 2.0, seed, ..Sampling::default() });
            (0..30).map(|_| s.next(&mut logits(1), &[]).unwrap()).collect()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }

    #[test]
    fn what_is_no_number_and_what_is_out_of_range_is_refused() {
        let mut sampler = Sampler::new(Sampling::default());
        assert!(sampler.next(&mut [1.0, f32::NAN], &[]).is_err());
        assert!(sampler.next(&mut [f32::NEG_INFINITY; 2], &[]).is_err());
        assert!(sampler.next(&mut [], &[]).is_err());
        let base = Sampling::default();
        for bad in [
            Sampling { temperature: -1.0, ..base },
            Sampling { temperature: f32::NAN, ..base },
            Sampling { top_p: 0.0, ..base },
            Sampling { top_p: 1.1, ..base },
            Sampling { repetition_penalty: 0.0, ..base },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert!(base.check().is_ok());
    }
}
