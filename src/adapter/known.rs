//! What tells inputs like those that were learned from all others: kept with a head, asked with each
//! answer.
//!
//! Two questions want two scores. Whether an input is of the sort at all is told by its distance: the
//! mean cosine of its features to the three nearest that were learned from. Whether it is of a class
//! that was taught, by the greatest logit too. Both are taken in deviations from what samples had
//! while they were left out; the score is the first plus the second where that is below 0.

use crate::error::{Error, Result};
use half::f16;
use serde::{Deserialize, Serialize};

/// Name of the section of an adapter file.
pub(super) const SECTION: &str = "known";
/// Nearest exemplars that are looked at.
const NEAREST: usize = 3;
/// Most exemplars of a head.
pub const MOST_EXEMPLARS: usize = 1024;
/// Most scores of each sort.
const MOST_SCORES: usize = 1024;
/// Share of strangers' scores whose excess over the others is taken as exponential.
pub const TAIL: f64 = 0.1;
/// Share of what was learned that is taken for unknown where nobody says how much may pass.
const LOST: f64 = 0.05;

/// Exemplars and scores; see the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Features of what was learned from, each row of length 1, f16 values: (exemplars, features).
    pub exemplars: Vec<f32>,
    /// Features of a row.
    pub features: u32,
    /// Mean and deviation of the mean cosine to the nearest, over samples left out.
    pub near: [f32; 2],
    /// The same of the greatest logit; none where that tells nothing.
    pub logit: Option<[f32; 2]>,
    /// Scores of samples left out, ascending.
    pub accepted: Vec<f32>,
    /// Scores of samples whose whole class was left out, ascending. Empty with fewer than three classes.
    pub strangers: Vec<f32>,
}

/// As it stands in a file.
#[derive(Serialize, Deserialize)]
struct Stored {
    features: u32,
    near: [f32; 2],
    logit: Option<[f32; 2]>,
    accepted: Vec<f32>,
    strangers: Vec<f32>,
    exemplars: Vec<u8>,
}

/// A row of length 1; of one without a direction zeros.
pub fn unit_row(row: &[f32]) -> Vec<f32> {
    let length = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
    row.iter().map(|v| f16::from_f64(f64::from(*v) * factor).to_f32()).collect()
}

/// Σ a·b over equal lengths, in sixteen running sums.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a16.zip(b16) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The mean of the greatest [`NEAREST`] of `cosines`; -1 of none.
pub fn nearness(cosines: impl Iterator<Item = f32>) -> f32 {
    let mut best: [f32; NEAREST] = [f32::NEG_INFINITY; NEAREST];
    for cosine in cosines {
        if let Some(at) = best.iter().position(|b| cosine > *b) {
            best[at..].rotate_right(1);
            best[at] = cosine;
        }
    }
    let found: Vec<f32> = best.into_iter().filter(|b| b.is_finite()).collect();
    if found.is_empty() { -1.0 } else { found.iter().sum::<f32>() / found.len() as f32 }
}

impl Known {
    /// How like an input is to what was learned, from its features and the head's logits over the
    /// temperature: 0 is usual, below it ever less.
    pub fn score(&self, features: &[f32], logits: &[f32]) -> f32 {
        let row = unit_row(features);
        let width = (self.features as usize).max(1);
        self.of(nearness(self.exemplars.chunks(width).map(|other| dot(other, &row))), logits)
    }

    /// The score of a mean cosine to the nearest.
    pub fn of(&self, nearness: f32, logits: &[f32]) -> f32 {
        let deviations = |value: f32, [mean, deviation]: [f32; 2]| (value - mean) / deviation;
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let logit = self.logit.map_or(0.0, |of| deviations(greatest, of).min(0.0));
        deviations(nearness, self.near) + logit
    }

    /// The least score of what is known: so that at most the share `false_accepts` of what is of no
    /// class that was taught passes; without one, so that 5 % of what was learned would not.
    ///
    /// # Errors
    /// Usage: a share that is not between 0 and 1, or one where fewer than three classes were there to
    /// measure it on.
    pub fn threshold(&self, false_accepts: Option<f32>) -> Result<f32> {
        let Some(share) = false_accepts else { return Ok(quantile(&self.accepted, LOST)) };
        if !(share > 0.0 && share < 1.0) {
            return Err(Error::usage(format!("{share} is not a share between 0 and 1")));
        }
        if self.strangers.is_empty() {
            return Err(Error::usage("how much passes that was never taught is not known")
                .hint("train with three classes or more, of two samples at least"));
        }
        let share = f64::from(share);
        if share >= TAIL {
            return Ok(quantile(&self.strangers, 1.0 - share));
        }
        // Beyond the last tenth there are too few: its excess is taken as exponential.
        let (from, mean) = tail(&self.strangers);
        Ok(from + (mean * (TAIL / share).ln()) as f32)
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let exemplars = self.exemplars.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes());
        let stored = Stored {
            features: self.features,
            near: self.near,
            logit: self.logit,
            accepted: self.accepted.clone(),
            strangers: self.strangers.clone(),
            exemplars: exemplars.collect(),
        };
        postcard::to_allocvec(&stored)
            .map_err(|e| Error::failed(format!("section '{SECTION}' can't be encoded: {e}")))
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Known> {
        let wrong = |what: &str| Error::bad_input(format!("section '{SECTION}' {what}"));
        let (stored, rest) =
            postcard::take_from_bytes::<Stored>(bytes).map_err(|_| wrong("can't be decoded"))?;
        if !rest.is_empty() || stored.exemplars.len() % 2 != 0 {
            return Err(wrong("has bytes left over"));
        }
        let value = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
        let Stored { features, near, logit, accepted, strangers, exemplars } = stored;
        let exemplars = exemplars.chunks_exact(2).map(value).collect();
        Ok(Known { exemplars, features, near, logit, accepted, strangers })
    }

    /// Whether it fits a head of so many features and keeps its limits. Errors: bad input.
    pub(super) fn check(&self, features: u32) -> Result<()> {
        let wrong = |what: &str| Err(Error::bad_input(format!("its known inputs {what}")));
        let width = self.features as usize;
        if self.features != features || width == 0 || !self.exemplars.len().is_multiple_of(width) {
            return wrong("are of another number of features");
        }
        if self.exemplars.len() / width > MOST_EXEMPLARS
            || self.accepted.len().max(self.strangers.len()) > MOST_SCORES
        {
            return wrong("are too many");
        }
        let scales = [Some(self.near), self.logit];
        let values = [&self.exemplars, &self.accepted, &self.strangers];
        let finite = values.into_iter().flatten().all(|v| v.is_finite())
            && scales.iter().flatten().flatten().all(|v| v.is_finite())
            && scales.iter().flatten().all(|[_, deviation]| *deviation > 0.0);
        let ascending = |v: &[f32]| v.is_sorted();
        if !finite || !ascending(&self.accepted) || !ascending(&self.strangers) {
            return wrong("have values that make no sense");
        }
        Ok(())
    }
}

/// Where the last [`TAIL`] of `sorted` begins, and how far they lie beyond it on average.
pub fn tail(sorted: &[f32]) -> (f32, f64) {
    let from = quantile(sorted, 1.0 - TAIL);
    let excess: Vec<f64> =
        sorted.iter().filter(|s| **s > from).map(|s| f64::from(s - from)).collect();
    (from, excess.iter().sum::<f64>() / excess.len().max(1) as f64)
}

/// The value below which `share` of `sorted` lies; below all of none.
fn quantile(sorted: &[f32], share: f64) -> f32 {
    let last = sorted.len().saturating_sub(1) as f64;
    let at = share.clamp(0.0, 1.0) * last;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(low), sorted.get(high)) {
        (Some(a), Some(b)) => a + (b - a) * (at - at.floor()) as f32,
        _ => f32::MIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let rows = [[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 2.0]];
        Known {
            exemplars: rows.iter().flat_map(|row| unit_row(row)).collect(),
            features: 2,
            near: [0.85, 0.05],
            logit: Some([3.0, 1.0]),
            accepted: (0..100).map(|i| i as f32 / 50.0 - 1.0).collect(),
            strangers: (0..1000).map(|i| -((1000 - i) as f32 / 1000.0).ln() - 6.0).collect(),
        }
    }

    #[test]
    fn nearness_is_the_mean_of_the_three_greatest() {
        assert!((nearness([0.1, 0.9, 0.5, 0.7, -1.0].into_iter()) - 0.7).abs() < 1e-6);
        assert_eq!(nearness([0.5].into_iter()), 0.5);
        assert_eq!(nearness(std::iter::empty()), -1.0);
    }

    #[test]
    fn distance_and_logits_make_the_score() {
        let known = known();
        let near = known.score(&[0.7, 0.7], &[3.0, 0.0]);
        let far = known.score(&[-0.7, 0.7], &[3.0, 0.0]);
        assert!(near > 0.0 && far < -10.0, "{near} {far}");
        // A small logit takes away, a great one adds nothing.
        assert!((known.score(&[0.7, 0.7], &[1.0, 0.0]) - (near - 2.0)).abs() < 1e-4);
        assert_eq!(known.score(&[0.7, 0.7], &[9.0, 0.0]), near);
        assert!(known.score(&[0.0, 0.0], &[9.0]).is_finite());
    }

    #[test]
    fn thresholds_keep_their_rates() {
        let known = known();
        assert!((known.threshold(None).unwrap() + 0.901).abs() < 1e-3);
        // Of exponential scores a share p lies above -ln p.
        for share in [0.5f32, 0.1, 0.01, 0.001] {
            let threshold = known.threshold(Some(share)).unwrap();
            assert!((threshold + 6.0 + share.ln()).abs() < 0.2, "{share}: {threshold}");
        }
        assert!(known.threshold(Some(0.0)).is_err() && known.threshold(Some(1.0)).is_err());
        let few = Known { strangers: vec![], ..known };
        assert!(few.threshold(Some(0.01)).is_err());
        assert_eq!(Known::default().threshold(None).unwrap(), f32::MIN);
    }

    #[test]
    fn it_is_read_as_it_was_written_and_damage_is_refused() {
        let known = known();
        let bytes = known.to_bytes().unwrap();
        assert_eq!(Known::from_bytes(&bytes).unwrap(), known);
        known.check(2).unwrap();
        assert!(known.check(3).is_err());
        assert!((0..bytes.len()).step_by(7).all(|at| Known::from_bytes(&bytes[..at]).is_err()));
        assert!(Known { near: [0.0, 0.0], ..known.clone() }.check(2).is_err());
        assert!(Known { accepted: vec![1.0, 0.0], ..known.clone() }.check(2).is_err());
        assert!(Known { exemplars: vec![f32::NAN; 2], ..known }.check(2).is_err());
    }
}
