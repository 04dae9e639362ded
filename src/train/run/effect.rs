//! What is measured of a trained adapter and kept with it: what it moves, and its thresholds.

use super::Run;
use crate::adapter::{Adapter, ProbeEffect};
use crate::error::{Error, Result};
use crate::runtime::Named;
use crate::shape::Array;
use crate::train::data::Label;
use crate::train::evaluate::each_row;

/// Training inputs that effects are measured on.
const PROBES: usize = 2;
/// Tokens of them where the output has the vocabulary's width for each: whole texts' logits would take
/// more than a step does.
const PROBE_TOKENS: usize = 32;
/// Largest inputs that are stored with an adapter, in bytes.
const MAX_PROBE_BYTES: usize = 256 << 10;

/// Training samples that thresholds are fitted on.
const FITTED: usize = 2000;

impl Run<'_> {
    /// Gives the head the thresholds that are best on what was trained on, where its task has any:
    /// never on the hold-out, which measures them. `false` where `go_on` said stop.
    pub(super) fn fit_thresholds(
        &self,
        adapter: &mut Adapter,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool> {
        let rules = self.options.task.rules();
        if !rules.has_thresholds() {
            return Ok(true);
        }
        let which: Vec<usize> = self.train.iter().copied().take(FITTED).collect();
        let bound = self.engine.bind(&[(&*adapter, 1.0)])?;
        let labels = self.trainer.labels();
        let mut outputs = vec![];
        let mut take = |sample: usize, output: &[f32]| -> Result<()> {
            outputs.push((sample, output.to_vec()));
            Ok(())
        };
        let (engine, samples) = (self.engine, &self.samples);
        let (micro, bound) = (self.micro, Some(&bound));
        if !each_row(engine, bound, samples, &which, labels, micro, go_on, &mut take)? {
            return Ok(false);
        }
        let rows: Vec<(&Label, &[f32])> =
            outputs.iter().map(|(s, output)| (samples.label(*s), output.as_slice())).collect();
        if let Some(head) = adapter.heads.first_mut() {
            head.thresholds = rules.thresholds(&rows, labels.len());
        }
        Ok(true)
    }

    /// As [`Run::probe`]. 0: the targets changed nothing, since the instant head had left nothing to learn,
    /// and the adapter has none any more.
    ///
    /// # Errors
    /// They changed nothing, and there was no instant head; values that are not finite.
    pub(super) fn effect(&self, adapter: &mut Adapter, instant: bool) -> Result<Option<f32>> {
        let effect = self.probe(adapter)?;
        let finite = effect.is_none_or(f32::is_finite);
        if !finite || (effect == Some(0.0) && !instant) {
            let output = self.trainer.output();
            let why = format!("the trained adapter has no effect on '{output}'");
            return Err(Error::failed(why).hint("more steps or a higher learning rate"));
        }
        if effect == Some(0.0) {
            adapter.targets.clear();
        }
        Ok(effect)
    }

    /// Measures how far the adapter moves the head's output on training inputs, and stores the
    /// inputs that are small. `None`: it has no targets.
    fn probe(&self, adapter: &mut Adapter) -> Result<Option<f32>> {
        if adapter.targets.is_empty() {
            return Ok(None);
        }
        let bound = self.engine.bind(&[(&*adapter, 1.0)])?;
        let output = self.trainer.output();
        let mut most = 0f32;
        let mut probes = vec![];
        for &sample in self.train.iter().take(PROBES) {
            let rows = self.samples.fixed_rows().unwrap_or(1);
            let inputs = match self.options.task.rules().learns_texts() {
                true => self.samples.beginning(sample, rows, PROBE_TOKENS)?,
                false => self.samples.inputs(&[sample], rows)?,
            };
            let engine = self.trainer.engine();
            let base = named(engine.run(&inputs, None)?, output)?;
            let adapted = named(engine.run(&inputs, Some(&bound))?, output)?;
            let (base, adapted) = (base.as_f32()?, adapted.as_f32()?);
            let moved: f64 = base.iter().zip(adapted).map(|(b, a)| f64::from((a - b).abs())).sum();
            let effect = (moved / base.len().max(1) as f64) as f32;
            // NaN stays.
            most = if effect > most || effect.is_nan() { effect } else { most };
            // A picture would be most of the file, and a text that is written goes through no one graph of
            // the base: their effect is measured but not kept.
            let bytes: usize = inputs.iter().map(|(_, a)| 8 * a.data().len()).sum();
            if effect > 0.0 && bytes <= MAX_PROBE_BYTES && !self.samples.writes() {
                probes.push(ProbeEffect { inputs, output: output.to_string(), effect });
            }
        }
        adapter.probes = probes;
        Ok(Some(most))
    }
}

fn named(outputs: Named, output: &str) -> Result<Array> {
    let found = outputs.into_iter().find(|(name, _)| name == output);
    found.map(|(_, array)| array).ok_or_else(|| Error::failed(format!("output '{output}' is gone")))
}
