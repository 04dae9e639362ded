//! How far an adapted base answers as the base does.

use super::next_tokens::next_tokens;
use super::samples::Samples;
use super::tasks::Task;
use crate::adapter::{Bound, Head, Pool};
use crate::error::{Error, Result};
use crate::pack::Role;
use crate::runtime::{Engine, Named, argmax, as_tokens, pool, read};
use crate::shape::Array;
use serde::Serialize;
use std::sync::Arc;

/// Nearest neighbours that are compared of each sample.
const NEAREST: usize = 5;
/// Fewest samples that neighbours are compared among.
const FEWEST: usize = 20;
/// Most samples that neighbours are compared among: their number squared is worked on.
const MOST: usize = 1000;

/// How far an adapted base answers as the base does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retention {
    /// Samples compared.
    pub samples: usize,
    /// The output compared.
    pub output: String,
    /// Mean cosine between the base's features and the adapted ones.
    pub cosine_mean: f32,
    /// The least one.
    pub cosine_min: f32,
    /// Share of samples for which the base's own best class stays; none where the base has no
    /// classes.
    pub top1_agreement: Option<f32>,
    /// Share of the samples' five nearest neighbours among the others, by the cosine of their
    /// features, that are the same as with the base alone; none where there are fewer than 20 samples.
    pub neighbours: Option<f32>,
    /// Mean |adapted - base| over the features.
    pub moved: f32,
    /// Whether it is a language model's next tokens that were compared: cosines are of the roots of their
    /// probabilities, so that 1 is the same distribution, and `top1_agreement` is of the likeliest tokens.
    #[serde(skip)]
    pub tokens: bool,
}

impl Retention {
    /// The share of the base's knowledge that is kept, 0 to 1: of its own answers where it has classes,
    /// else of the nearest neighbours, else the mean cosine.
    pub fn kept(&self) -> f32 {
        self.top1_agreement.or(self.neighbours).unwrap_or(self.cosine_mean)
    }

    /// What [`Retention::kept`] counts, in words.
    pub fn sentence(&self) -> String {
        let percent = self.kept() * 100.0;
        let what = match (self.top1_agreement, self.neighbours) {
            (Some(_), _) if self.tokens => {
                "of the likeliest next tokens stay the base's with the adapter on"
            }
            (Some(_), _) => "of the base's own answers stay the same with the adapter on",
            (None, Some(_)) => {
                "of each input's five most similar others are the same as the base alone finds"
            }
            (None, None) => "is the mean cosine between the base's features and the adapted ones",
        };
        format!("{percent:.1} % {what}")
    }
}

/// Compares on `inputs`, one row each; a language model without a head by its next tokens
/// ([`Retention::tokens`]). `None` where `go_on`, asked before each, said stop.
///
/// # Errors
/// What running says; a base without outputs (unsupported).
pub fn retention(
    engine: &Engine,
    bound: &Arc<Bound>,
    inputs: impl IntoIterator<Item = Result<Named>>,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Retention>> {
    if Task::serving(bound.head.as_ref(), engine.base())?.rules().completes() {
        return next_tokens(engine, bound, inputs, go_on);
    }
    let view = Lens::new(engine, bound.head.as_ref())?;
    let (mut before, mut now) = (vec![], vec![]);
    for inputs in inputs {
        if !go_on() {
            return Ok(None);
        }
        let inputs = inputs?;
        before.extend(view.of(engine, &inputs, None)?);
        now.extend(view.of(engine, &inputs, Some(bound))?);
    }
    view.compare(&before, &now).map(Some)
}

/// What is seen of a sample.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// What the head reads of it, pooled.
    pub features: Vec<f32>,
    /// The base's own best class.
    best: Option<usize>,
}

impl Seen {
    /// Of a base without classes.
    pub fn of_features(features: Vec<f32>) -> Seen {
        Seen { features, best: None }
    }
}

/// What is looked at: the output that the head reads, or the base's last, and the base's own classes.
pub(super) struct Lens {
    output: String,
    head: Option<(Pool, usize)>,
    /// The output that has the classes.
    own: Option<String>,
}

impl Lens {
    /// What `head` reads; without one, or where another graph of the base gives that, the base's last output.
    pub fn new(engine: &Engine, head: Option<&Head>) -> Result<Lens> {
        let gives = |head: &&Head| engine.outputs().iter().any(|spec| spec.name == head.output);
        let head = head.filter(gives);
        let output = match head {
            Some(head) => head.output.clone(),
            None => match engine.outputs().last() {
                Some(spec) => spec.name.clone(),
                None => return Err(Error::unsupported("the base has no outputs")),
            },
        };
        let head = head.map(|head| (head.pool, head.features as usize));
        Ok(Lens { output, head, own: own_classes(engine) })
    }

    /// Whether it sees what the head reads and nothing else.
    pub fn sees_features(&self) -> bool {
        self.head.is_some() && self.own.is_none()
    }

    /// Each row of `inputs`.
    fn of(
        &self,
        engine: &Engine,
        inputs: &Named,
        adapter: Option<&Arc<Bound>>,
    ) -> Result<Vec<Seen>> {
        let outputs = engine.run(inputs, adapter)?;
        let array = find(&outputs, &self.output)?;
        let features = match self.head {
            Some((how, width)) => {
                let array = &*read(engine, &self.output, array)?;
                let tokens = as_tokens(array, width)?;
                // Of tokens that are answered for one by one, their mean.
                let each = how == Pool::None && tokens.shape().len() == 3;
                let how = if each { Pool::Mean } else { how };
                let mask = engine.given(inputs, Role::Mask).filter(|_| array.shape().len() != 4);
                pool(how, &tokens, mask)?
            }
            None => rows(array)?,
        };
        let best = match &self.own {
            Some(own) => rows(find(&outputs, own)?)?.iter().map(|row| argmax(row)).collect(),
            None => vec![None; features.len()],
        };
        Ok(features.into_iter().zip(best).map(|(features, best)| Seen { features, best }).collect())
    }

    /// Each of `which` of `samples`, `batch` run at once. `None` where `go_on`, asked between batches,
    /// said stop.
    pub fn of_samples(
        &self,
        engine: &Engine,
        adapter: Option<&Arc<Bound>>,
        samples: &Samples<'_>,
        which: &[usize],
        batch: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Vec<Seen>>> {
        let batch = samples.fixed_rows().unwrap_or_else(|| batch.clamp(1, which.len().max(1)));
        let mut found: Vec<(usize, Seen)> = vec![];
        for group in samples.groups(which, batch) {
            if !go_on() {
                return Ok(None);
            }
            let rows = self.of(engine, &samples.inputs(&group, batch)?, adapter)?;
            found.extend(group.into_iter().zip(rows));
        }
        let mut place: Vec<usize> = vec![0; samples.len()];
        which.iter().enumerate().for_each(|(at, &sample)| place[sample] = at);
        found.sort_by_key(|(sample, _)| place[*sample]);
        Ok(Some(found.into_iter().map(|(_, seen)| seen).collect()))
    }

    /// What is the same in `now` as in `before`, sample by sample.
    ///
    /// # Errors
    /// Usage: no samples.
    pub fn compare(&self, before: &[Seen], now: &[Seen]) -> Result<Retention> {
        let samples = before.len().min(now.len());
        if samples == 0 {
            return Err(Error::usage("no samples to compare"));
        }
        let (mut cosines, mut kept, mut moved, mut values) = (vec![], 0usize, 0f64, 0usize);
        for (from, to) in before.iter().zip(now) {
            kept += usize::from(from.best == to.best);
            let pairs = from.features.iter().zip(&to.features);
            moved += pairs.map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
            values += from.features.len();
            cosines.push(cosine(&from.features, &to.features));
        }
        Ok(Retention {
            samples,
            output: self.output.clone(),
            cosine_mean: (cosines.iter().sum::<f64>() / samples as f64) as f32,
            cosine_min: cosines.iter().copied().fold(f64::INFINITY, f64::min) as f32,
            top1_agreement: self.own.as_ref().map(|_| kept as f32 / samples as f32),
            neighbours: neighbours(before, now),
            moved: (moved / values.max(1) as f64) as f32,
            tokens: false,
        })
    }
}

/// The rows of an output.
fn rows(array: &Array) -> Result<Vec<Vec<f32>>> {
    let values = array.as_f32()?;
    let count = array.shape().first().copied().unwrap_or(1).max(1);
    Ok(values.chunks((values.len() / count).max(1)).map(<[f32]>::to_vec).collect())
}

/// The share of the five nearest neighbours that are the same.
fn neighbours(before: &[Seen], now: &[Seen]) -> Option<f32> {
    let count = before.len().min(now.len()).min(MOST);
    let width = before.first()?.features.len();
    let alike = |seen: &[Seen]| seen.iter().take(count).all(|s| s.features.len() == width);
    if count < FEWEST || !alike(before) || !alike(now) {
        return None;
    }
    let directions =
        |seen: &[Seen]| seen.iter().take(count).map(|s| direction(&s.features)).collect::<Vec<_>>();
    let (before, now) = (directions(before), directions(now));
    let same = |at: usize| {
        let (a, b) = (nearest(&before, at), nearest(&now, at));
        a.iter().filter(|place| b.contains(place)).count()
    };
    let kept: usize = (0..count).map(same).sum();
    Some(kept as f32 / (NEAREST * count) as f32)
}

/// The places of those nearest to the one at `at`.
fn nearest(all: &[Vec<f32>], at: usize) -> Vec<usize> {
    let near = |other: usize| all[at].iter().zip(&all[other]).map(|(a, b)| a * b).sum::<f32>();
    let mut found: Vec<(f32, usize)> =
        (0..all.len()).filter(|&other| other != at).map(|other| (near(other), other)).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    found.into_iter().take(NEAREST).map(|(_, place)| place).collect()
}

/// `features` at length 1; as they are where they are all zero.
pub(super) fn direction(features: &[f32]) -> Vec<f32> {
    let length = features.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let factor = if length > 0.0 { 1.0 / length } else { 1.0 };
    features.iter().map(|v| (f64::from(*v) * factor) as f32).collect()
}

/// The base's own classes: its last output of two axes, if it has as many columns as the base has
/// labels or is called logits.
fn own_classes(engine: &Engine) -> Option<String> {
    let labels = engine.base().preprocess().labels.len().to_string();
    let spec = engine.outputs().iter().rev().find(|o| o.dims.len() == 2)?;
    let classes = spec.dims.last() == Some(&labels) || spec.name.contains("logits");
    classes.then(|| spec.name.clone())
}

fn find<'a>(outputs: &'a Named, name: &str) -> Result<&'a Array> {
    let found = outputs.iter().find(|(n, _)| n == name);
    found
        .map(|(_, array)| array)
        .ok_or_else(|| Error::mismatch(format!("the base has no output '{name}'")))
}

/// 0 where one of them is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines() {
        assert!((cosine(&[1.0, 0.0], &[2.0, 0.0]) - 1.0).abs() < 1e-9);
        assert!(cosine(&[1.0, 0.0], &[0.0, 3.0]).abs() < 1e-9);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
        assert_eq!(direction(&[3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(direction(&[0.0, 0.0]), [0.0, 0.0]);
    }

    #[test]
    fn neighbours_are_counted() {
        let mut rng = crate::train::random::stream(5, "neighbours", 0);
        let mut at = || {
            let features = (0..4).map(|_| crate::train::random::unit(&mut rng) - 0.5).collect();
            Seen { features, best: None }
        };
        let points: Vec<Seen> = (0..40).map(|_| at()).collect();
        assert_eq!(neighbours(&points, &points), Some(1.0));
        let longer =
            |s: &Seen| Seen { features: s.features.iter().map(|v| v * 4.0).collect(), best: None };
        let longer: Vec<Seen> = points.iter().map(longer).collect();
        assert_eq!(neighbours(&points, &longer), Some(1.0));
        // Two change places: both lose nearly all, and each is missed by about five others.
        let mut changed = points.clone();
        changed.swap(0, 20);
        let kept = neighbours(&points, &changed).unwrap();
        assert!((0.8..0.97).contains(&kept), "{kept}");
        assert_eq!(neighbours(&points[..19], &points[..19]), None);
    }
}
