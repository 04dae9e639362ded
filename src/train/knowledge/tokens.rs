//! What a language model says next of probes, held to what the base says.
//!
//! The base's features of them, of which its frozen layer makes logits, are kept: its distributions are made of
//! those anew, a few tokens at a time, so that nothing as wide as the vocabulary is.

use super::{Before, Knowledge, Measure, Parts, Probes, TAUGHT, TOKEN_WEIGHT};
use crate::error::{Error, Result};
use crate::runtime::{Binding, Engine};
use crate::train::features::output_layer;
use crate::train::plan::{Setup, base_features, floats};
use crate::train::random::{shuffle, stream};
use crate::train::runnable::{Runnable, tensors};
use crate::train::samples::Samples;
use crate::train::trainer::Trainer;
use crate::train::work::mask;

/// Most tokens whose features are kept: of 576 features 9 MiB.
const MOST_TOKENS: usize = 4096;

impl<'a> Measure<'a> {
    /// For a language model: every second one of `probes` is taught of, the others are measured.
    ///
    /// # Errors
    /// Unsupported: they are no texts. What encoding says.
    pub fn of_texts(
        engine: &Engine,
        probes: Option<&'a Probes>,
        max_tokens: Option<usize>,
        seed: u64,
    ) -> Result<Measure<'a>> {
        let no_texts = || Error::unsupported("a language model's knowledge is measured on texts");
        let probes = probes.ok_or_else(no_texts)?;
        let samples = Samples::new(engine, &probes.data, &probes.data.labels, max_tokens)?;
        if !samples.has_text() {
            return Err(no_texts().hint("give --probes a .txt with a sentence a line"));
        }
        let (mut taught, which): (Vec<usize>, Vec<usize>) =
            (0..samples.len()).partition(|place| place % 2 == 0);
        // A file's neighbours are of one sort.
        shuffle(&mut taught, &mut stream(seed, "probes", 0));
        let mut tokens = 0;
        taught.retain(|&place| {
            let fits = tokens + samples.length(place) <= MOST_TOKENS;
            tokens += if fits { samples.length(place) } else { 0 };
            fits
        });
        // As "11 of 22 stretches of ...".
        let what = format!("{} of {}", which.len(), probes.what);
        Ok(Measure { probes: Some(samples), which, what, taught })
    }

    /// Those taught of; nothing where there are none.
    pub fn taught_texts(&self) -> Option<Texts<'_, 'a>> {
        let samples = self.probes.as_ref()?;
        let length = |place: &usize| samples.length(*place);
        let longest = self.taught.iter().copied().max_by_key(length)?;
        Some(Texts { samples, longest, tokens: self.taught.iter().map(length).sum() })
    }
}

/// Probes that a language model is taught of.
pub(in crate::train) struct Texts<'m, 'a> {
    pub samples: &'m Samples<'a>,
    /// The place of the longest.
    pub longest: usize,
    /// Tokens of all.
    pub tokens: usize,
}

impl Texts<'_, '_> {
    pub fn longest_tokens(&self) -> usize {
        self.samples.length(self.longest)
    }
}

/// Features of a token of which the base's logits are made; 0 where no frozen layer makes them.
pub(in crate::train) fn text_features(engine: &Engine, setup: &Setup) -> Result<usize> {
    let layer = output_layer(engine, setup.features.output)?;
    let layer = layer.and_then(|place| engine.base().targets().get(place));
    Ok(layer.map_or(0, |target| target.in_features as usize))
}

impl<'a> Knowledge<'a> {
    pub(super) fn ask_tokens(
        parts: &Parts<'_, '_>,
        measure: Measure<'a>,
        wanted: f32,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Knowledge<'a>>> {
        let rows = parts.rows;
        let (mut taught, mut a_step) = (vec![], 0);
        if let Some(Texts { samples, tokens, .. }) = measure.taught_texts().filter(|_| wanted > 0.0)
        {
            let found = features(parts.trainer, samples, &measure.taught, rows, go_on)?;
            let Some(found) = found else { return Ok(None) };
            taught = found;
            // About as many tokens as a step's own, so that it takes about twice as long.
            let own: usize = parts.train.iter().map(|&s| parts.samples.length(s)).sum();
            let batch = own * parts.batch / parts.train.len().max(1);
            a_step = (batch * taught.len()).div_ceil(tokens.max(1)).clamp(1, TAUGHT);
        }
        let (seen, weight) = (Before::Tokens, TOKEN_WEIGHT);
        Ok(Some(Knowledge { measure, seen, wanted, taught, a_step, weight }))
    }

    /// Tokens of a probe.
    pub(super) fn tokens(&self, place: usize) -> usize {
        self.measure.probes.as_ref().map_or(0, |probes| probes.length(place))
    }
}

/// The base's features of each token of `which`, in their order. `None` where `go_on`, asked between batches,
/// said stop.
fn features(
    trainer: &Trainer,
    probes: &Samples<'_>,
    which: &[usize],
    rows: usize,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Vec<Vec<f32>>>> {
    let engine = trainer.engine();
    let mut found = vec![vec![]; which.len()];
    let mut last: Option<(Binding, Runnable)> = None;
    for group in probes.groups(which, rows) {
        if !go_on() {
            return Ok(None);
        }
        let inputs = probes.inputs(&group, rows)?;
        let binding = engine.binding(&engine.ordered(&inputs)?)?;
        let runnable = match last.take() {
            Some((known, runnable)) if known == binding => runnable,
            _ => base_features(engine, &binding, &trainer.setup)?,
        };
        let outputs = runnable.run(engine, tensors(engine, &inputs)?)?;
        last = Some((binding, runnable));
        let output = outputs.first().ok_or_else(|| Error::failed("no features were computed"))?;
        let [_, tokens, width] = *output.shape() else {
            return Err(Error::failed("the base's features are not of tokens"));
        };
        let counts = mask(engine, &inputs).unwrap_or_else(|| vec![true; rows.max(1) * tokens]);
        let each = floats(output)?.chunks_exact(width.max(1)).zip(counts);
        let each: Vec<(&[f32], bool)> = each.collect();
        for (place, row) in group.iter().zip(each.chunks(tokens.max(1))) {
            if let Some(at) = which.iter().position(|other| other == place) {
                // Without a mask what fills a row up stands behind it.
                let counted = row.iter().filter(|(_, counts)| *counts).take(probes.length(*place));
                found[at] = counted.flat_map(|(features, _)| features.iter().copied()).collect();
            }
        }
    }
    Ok(Some(found))
}
