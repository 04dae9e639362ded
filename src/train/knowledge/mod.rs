//! Keeping what the base knows while it learns.
//!
//! Each step's loss gets a penalty: weight · the mean of 1 - cosine between the features that the head
//! reads and those of the base alone, over the step's own samples. The base's features are computed
//! once a sample, so that a step costs what it did. Of a language model, whose samples are to change what it
//! says, it is the divergence of its next tokens from the base's, over probes (`tokens.rs`). Now and then the
//! run measures on inputs that it isn't taught of how much is kept, and makes the penalty heavier or lighter,
//! so that the share that was asked for is kept and no more is given up for it than needed.

mod penalty;
mod probes;
mod scenes;
mod tokens;

#[cfg(feature = "cli")]
use super::features::learns_sentences;
#[cfg(feature = "cli")]
use super::options::{InstantHead, TargetChoice, TrainOptions};
use super::prefix::{Looks, Prefix, Set};
use super::retention::{Lens, Retention, Seen, direction, retention};
use super::samples::Samples;
use super::trainer::Trainer;
use crate::adapter::{Adapter, Head, Pool};
use crate::error::{Error, Result};
use crate::runtime::Engine;
use serde::Serialize;
use std::path::Path;

pub(super) use penalty::{Penalty, next_tokens, penalty};
pub(super) use probes::Probes;
pub(super) use tokens::text_features;

/// Weight of the penalty at first.
pub(super) const WEIGHT: f32 = 20.0;
/// The same of next tokens.
const TOKEN_WEIGHT: f32 = 1.0;
/// How far the weight may move from that.
const MOST: f32 = 16.0;
/// What is kept more than asked for that the weight is held, least and most: what is measured differs
/// from input to input.
const SPARE: [f32; 2] = [0.02, 0.06];
/// Looks on the way of a run, at most, ...
pub(super) const LOOKS: u64 = 4;
/// ... and the share of its steps' work that they may take.
const LOOKING: f64 = 0.2;
/// Passes through the network that a sample takes in a step, there and back.
const PASSES: u64 = 3;
/// What is kept where nobody says otherwise, as measured in docs/LEARNING.md.
#[cfg(feature = "cli")]
const USUAL: f32 = 0.85;
/// Probes that are taught of in a step, where they are the user's own.
const TAUGHT: usize = 16;
/// Most samples that are measured on where there are no probes.
const MEASURED: usize = 200;

/// How much of its knowledge a base keeps under an adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KnowledgeKept {
    /// The share that was asked for, 0 to 1; 0 where none was: it is measured alone.
    pub wanted: f32,
    /// The share that is kept: [`Retention::kept`].
    pub kept: f32,
    /// What it was measured on.
    pub measured_on: String,
    /// The penalty's weight at the end.
    pub weight: f32,
    /// All that was measured.
    pub retention: Retention,
}

impl KnowledgeKept {
    /// Whether as much is kept as was asked for.
    pub fn is_enough(&self) -> bool {
        self.kept >= self.wanted
    }

    /// What was measured, and what it means, for people.
    pub fn sentence(&self) -> String {
        format!("knowledge kept: {}, on {}", self.retention.sentence(), self.measured_on)
    }

    /// Why less is kept than was asked for, and what helps; `None` where it is enough.
    pub fn shortfall(&self) -> Option<String> {
        if self.is_enough() {
            return None;
        }
        let [kept, wanted] = [self.kept, self.wanted].map(|share| share * 100.0);
        let first = if self.retention.tokens { TOKEN_WEIGHT } else { WEIGHT };
        let why = if self.weight >= first * MOST {
            "at the heaviest penalty; a lower --lr or fewer --targets keep more"
        } else {
            "when its steps were over; more --epochs or a lower --lr keep more"
        };
        Some(format!("{kept:.1} % is kept, less than the {wanted:.1} % asked for, {why}"))
    }
}

/// Inputs to measure on, encoded.
pub(super) struct Measure<'a> {
    /// `None`: the run's own samples, held out or trained on.
    probes: Option<Samples<'a>>,
    which: Vec<usize>,
    what: String,
    /// Their places that are taught of, in the order in which they are.
    taught: Vec<usize>,
}

impl<'a> Measure<'a> {
    /// On `probes`, else on the samples that are held out, else on those trained on. Of a user's own
    /// probes every second one is taught of and the others are measured.
    pub fn new(
        engine: &Engine,
        probes: Option<&'a Probes>,
        max_tokens: Option<usize>,
        [held, train]: [&[usize]; 2],
    ) -> Result<Measure<'a>> {
        if let Some(probes) = probes {
            let samples = Samples::new(engine, &probes.data, &probes.data.labels, max_tokens)?;
            let samples = samples.padded_narrowly();
            // Read a few times in a run: the planned memory goes to what is trained on.
            samples.limit_cache(0);
            let (taught, which) = match probes.own {
                true => (0..samples.len()).partition(|place| place % 2 == 0),
                false => (vec![], (0..samples.len()).collect::<Vec<_>>()),
            };
            let what = match probes.own {
                true => format!("{} {}", which.len(), probes.what),
                false => probes.what.clone(),
            };
            return Ok(Measure { probes: Some(samples), which, what, taught });
        }
        let (which, what) = if held.is_empty() {
            (train, "samples trained on")
        } else {
            (held, "held-out samples")
        };
        let which: Vec<usize> = which.iter().copied().take(MEASURED).collect();
        let what = format!("{} {what}", which.len());
        Ok(Measure { probes: None, which, what, taught: vec![] })
    }
}

/// What a run needs to keep the base's knowledge, and to measure it.
pub(super) struct Knowledge<'a> {
    measure: Measure<'a>,
    seen: Before,
    /// The share that is to be kept.
    wanted: f32,
    /// The base's features of each probe that is taught of, in their order.
    taught: Vec<Vec<f32>>,
    /// Probes that a step is taught of.
    a_step: usize,
    /// The penalty's weight now.
    pub weight: f32,
}

/// What is known of the base alone.
enum Before {
    /// Of what is measured, what is seen of it; the direction of the features of each of the run's samples, empty
    /// for one that isn't trained on.
    Features { view: Lens, measured: Vec<Seen>, samples: Vec<Vec<f32>> },
    /// Its next tokens: nothing of the vocabulary's width is kept.
    Tokens,
}

/// What a micro-batch should stay near to, row by row; nothing for a row that only fills it up.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kept {
    /// The base's features: of length 1, or of each token.
    pub base: Vec<Option<Vec<f32>>>,
    /// The weight of each row, or of each of its tokens.
    pub weights: Vec<Option<Vec<f32>>>,
}

impl Kept {
    /// Of `rows` rows none.
    pub fn of_no_rows(rows: usize) -> Kept {
        Kept { base: vec![None; rows], weights: vec![None; rows] }
    }
}

/// The parts of a run that knowledge is kept of.
pub(super) struct Parts<'r, 's> {
    pub engine: &'r Engine,
    pub trainer: &'r Trainer,
    pub samples: &'r Samples<'s>,
    pub train: &'r [usize],
    /// The held-out samples, where they are others than `samples`.
    pub held: Option<&'r Samples<'s>>,
    /// What keeps rows from below, and makes features of those.
    pub prefix: Option<&'r Prefix>,
    pub looks: Option<&'r Looks>,
    /// Whether the values at first change nothing.
    pub as_base: bool,
    /// Samples that run at once, and those of a step.
    pub rows: usize,
    pub batch: usize,
}

impl<'a> Knowledge<'a> {
    /// Asks the base alone, once a sample; `known` are the features of those trained on where they are known,
    /// else empty. `None` where `go_on` said stop.
    pub fn ask(
        parts: &Parts<'_, '_>,
        measure: Measure<'a>,
        head: &Head,
        wanted: f32,
        known: Vec<Vec<f32>>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Knowledge<'a>>> {
        if parts.samples.task().rules().completes() {
            return Knowledge::ask_tokens(parts, measure, wanted, go_on);
        }
        let Parts { engine, samples, train, .. } = *parts;
        let view = Lens::new(engine, Some(head))?;
        let mut ask = |(samples, set): (&Samples<'_>, Set), which: &[usize]| {
            parts.seen(&view, None, samples, set, which, go_on)
        };
        let Some(measured) = ask(parts.measured(&measure), &measure.which)? else {
            return Ok(None);
        };
        let mut directions = vec![vec![]; samples.len()];
        let mut taught = vec![];
        if wanted > 0.0 {
            let mut rows = known;
            if rows.len() != train.len() || head.pool == Pool::None {
                let seen = ask((samples, Set::Samples), train)?;
                let Some(seen) = seen else { return Ok(None) };
                rows = seen.into_iter().map(|seen| seen.features).collect();
            }
            for (&sample, row) in train.iter().zip(&rows) {
                directions[sample] = direction(row);
            }
            if let Some(probes) = &measure.probes {
                let seen = ask((probes, Set::Probes), &measure.taught)?;
                let Some(seen) = seen else { return Ok(None) };
                taught = seen.iter().map(|seen| direction(&seen.features)).collect();
            }
        }
        let seen = Before::Features { view, measured, samples: directions };
        let (a_step, weight) = (TAUGHT.min(taught.len()), WEIGHT);
        Ok(Some(Knowledge { measure, seen, wanted, taught, a_step, weight }))
    }

    /// What the rows of `group` should stay near to, filled up to `rows`; each counts `share` of the
    /// weight. Of a language model nothing: what is learned is what it says of them.
    pub fn of_samples(&self, group: &[usize], rows: usize, share: f32) -> Option<Kept> {
        let Before::Features { samples, .. } = &self.seen else { return None };
        let of = |&sample: &usize| samples.get(sample).map_or(&[][..], Vec::as_slice);
        let weight = vec![self.weight * share];
        Some(rows_of(group.iter().map(|sample| (of(sample), weight.clone())), rows))
    }

    /// The same of probes, by their places among those taught of.
    fn of_taught(&self, group: &[usize], rows: usize, share: f32) -> Kept {
        let of = |place: &usize| {
            let at = self.measure.taught.iter().position(|taught| taught == place);
            at.and_then(|at| self.taught.get(at)).map_or(&[][..], Vec::as_slice)
        };
        let weight = |place: &usize| {
            let tokens = match &self.seen {
                Before::Features { .. } => 1,
                // As many rows of the mean, whatever their lengths.
                Before::Tokens => self.tokens(*place),
            };
            vec![self.weight * share / tokens.max(1) as f32; tokens]
        };
        rows_of(group.iter().map(|place| (of(place), weight(place))), rows)
    }

    /// The probes that step `step` is taught of, in groups of at most `rows`, and how many they are.
    pub fn taught(&self, step: u64, rows: usize) -> (Vec<Vec<usize>>, usize) {
        let (all, count) = (&self.measure.taught, self.a_step);
        let (Some(probes), false) = (&self.measure.probes, all.is_empty()) else {
            return (vec![], 0);
        };
        let first = usize::try_from(step).unwrap_or(0).wrapping_mul(count);
        let which: Vec<usize> =
            (0..count).map(|at| all[first.wrapping_add(at) % all.len()]).collect();
        (probes.groups(&which, rows), count)
    }

    /// The probes that a group of [`Knowledge::taught`] is of, and what its rows should stay near to.
    pub fn teach(&self, group: &[usize], rows: usize, share: f32) -> Result<(&Samples<'a>, Kept)> {
        let probes = self.measure.probes.as_ref();
        let probes = probes.ok_or_else(|| Error::failed("there are no probes"))?;
        Ok((probes, self.of_taught(group, rows, share)))
    }

    /// How much `adapter` keeps, which has the trainer's values as they are or no layers. `None` where `go_on` said stop.
    pub fn look(
        &self,
        parts: &Parts<'_, '_>,
        adapter: &Adapter,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<KnowledgeKept>> {
        let (samples, set) = parts.measured(&self.measure);
        let (engine, which) = (parts.engine, &self.measure.which);
        let found = match &self.seen {
            // A head alone leaves the features as they are.
            Before::Features { view, measured, .. } if adapter.targets.is_empty() => {
                Some(view.compare(measured, measured)?)
            }
            Before::Features { view, measured, .. } => {
                let now = parts.seen(view, Some(adapter), samples, set, which, go_on)?;
                now.map(|now| view.compare(measured, &now)).transpose()?
            }
            Before::Tokens => {
                let bound = engine.bind(&[(adapter, 1.0)])?;
                let rows = samples.fixed_rows().unwrap_or(1);
                let inputs = which.iter().map(|&sample| samples.inputs(&[sample], rows));
                retention(engine, &bound, inputs, go_on)?
            }
        };
        Ok(found.map(|retention| KnowledgeKept {
            wanted: self.wanted,
            kept: retention.kept(),
            measured_on: self.measure.what.clone(),
            weight: if self.wanted > 0.0 { self.weight } else { 0.0 },
            retention,
        }))
    }

    /// Looks that are worth their time on the way of a run of `steps` steps of `batch` samples.
    pub fn looks(&self, steps: u64, batch: usize) -> u64 {
        match self.seen {
            Before::Features { .. } => looks(steps, batch, self.measure.which.len()),
            Before::Tokens => LOOKS,
        }
    }

    /// Makes the penalty heavier where less is kept than is wanted, lighter where much more is.
    pub fn weigh(&mut self, kept: f32) {
        let first = match self.seen {
            Before::Features { .. } => WEIGHT,
            Before::Tokens => TOKEN_WEIGHT,
        };
        self.weight = weighed(self.weight, first, self.wanted, kept);
    }
}

/// Filled up to `rows` rows.
fn rows_of<'r>(found: impl Iterator<Item = (&'r [f32], Vec<f32>)>, rows: usize) -> Kept {
    let found = found.map(|(base, weights)| (Some(base.to_vec()), Some(weights)));
    let (mut base, mut weights): (Vec<_>, Vec<_>) = found.unzip();
    base.resize(rows.max(base.len()), None);
    weights.resize(rows.max(weights.len()), None);
    Kept { base, weights }
}

fn weighed(weight: f32, first: f32, wanted: f32, kept: f32) -> f32 {
    let [least, most] = SPARE;
    if kept < wanted + least.min((1.0 - wanted) / 2.0) {
        (weight * 2.0).min(first * MOST)
    } else if kept > wanted + most {
        (weight * 0.7).max(first / MOST)
    } else {
        weight
    }
}

impl<'s> Parts<'_, 's> {
    fn measured<'m>(&'m self, measure: &'m Measure<'s>) -> (&'m Samples<'s>, Set) {
        match (&measure.probes, self.held) {
            (Some(probes), _) => (probes, Set::Probes),
            (None, Some(held)) => (held, Set::Held),
            (None, None) => (self.samples, Set::Samples),
        }
    }

    /// What is seen of each of `which` with `adapter`, which has the trainer's values, or of the base alone,
    /// before any has changed. `None` where `go_on` said stop.
    fn seen(
        &self,
        view: &Lens,
        adapter: Option<&Adapter>,
        samples: &Samples<'_>,
        set: Set,
        which: &[usize],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Vec<Seen>>> {
        let as_is = adapter.is_some() || self.as_base;
        if let Some(looks) = self.looks.filter(|_| as_is && view.sees_features()) {
            let (prefix, trainer, rows) = (self.prefix, self.trainer, self.rows);
            let rows = looks.features(prefix, trainer, samples, set, which, rows, go_on)?;
            return Ok(rows.map(|rows| rows.into_iter().map(Seen::of_features).collect()));
        }
        let bound = adapter.map(|adapter| self.engine.bind(&[(adapter, 1.0)])).transpose()?;
        view.of_samples(self.engine, bound.as_ref(), samples, which, self.rows, go_on)
    }
}

fn looks(steps: u64, batch: usize, measured: usize) -> u64 {
    let work = (steps.saturating_mul(PASSES * batch as u64)) as f64;
    ((LOOKING * work / measured.max(1) as f64) as u64).min(LOOKS)
}

/// Whether one of `looks` looks on the way is due after step `step` of `steps`; the one after the last step is
/// not among them.
pub(super) fn is_look(step: u64, steps: u64, looks: u64) -> bool {
    let part = |step: u64| step.saturating_mul(looks + 1) / steps.max(1);
    step < steps && part(step) > part(step.saturating_sub(1))
}

/// The share that is kept where nobody says otherwise: [`USUAL`] where a base of sentences learns classes in its
/// layers; else 0. Pictures lost more by it than a point of accuracy.
///
/// # Errors
/// What trying the base's inputs says.
#[cfg(feature = "cli")]
pub(crate) fn usual_share(engine: &Engine, options: &TrainOptions) -> Result<f32> {
    let layers = options.targets != TargetChoice::None && options.instant != InstantHead::Only;
    Ok(if layers && learns_sentences(engine, options)? { USUAL } else { 0.0 })
}

/// The user's probes, else those that ship with the program, else none.
///
/// # Errors
/// Those of reading them.
pub(super) fn probes(
    engine: &Engine,
    own: Option<&Path>,
    max_tokens: Option<usize>,
) -> Result<Option<Probes>> {
    match own {
        Some(path) => probes::of(path).map(Some),
        None => probes::shipped(engine, max_tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_spread_over_a_run() {
        let of = |steps: u64, looks| {
            (1..=steps).filter(|&s| is_look(s, steps, looks)).collect::<Vec<_>>()
        };
        assert_eq!(of(100, LOOKS), [20, 40, 60, 80]);
        assert_eq!(of(5, LOOKS), [1, 2, 3, 4]);
        assert_eq!(of(2, LOOKS), [1]);
        assert_eq!(of(90, 2), [30, 60]);
        assert_eq!((of(1, LOOKS), of(100, 0)), (vec![], vec![]));
        // 200 sentences in eight epochs; a few steps aren't worth any.
        assert_eq!((looks(104, 16, 218), looks(50, 16, 218), looks(6, 16, 218)), (4, 2, 0));
    }

    #[test]
    fn the_weight_follows_what_is_kept_within_bounds() {
        assert_eq!(weighed(20.0, 20.0, 0.9, 0.8), 40.0);
        assert_eq!(weighed(20.0, 20.0, 0.9, 0.91), 40.0);
        assert_eq!(weighed(20.0, 20.0, 0.9, 0.93), 20.0);
        assert_eq!(weighed(20.0, 20.0, 0.9, 0.97), 14.0);
        assert_eq!(weighed(20.0, 20.0, 1.0, 1.0), 20.0, "nothing more can be kept");
        let many = |kept| (0..50).fold(1.0, |weight, _| weighed(weight, 1.0, 0.5, kept));
        assert_eq!(many(0.1), 16.0);
        assert_eq!(many(1.0), 1.0 / 16.0);
    }
}
