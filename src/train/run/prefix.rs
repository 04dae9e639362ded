//! Keeping what the frozen layers below the first trained one give, in a run.

use super::Run;
use super::budget::usual_micro_batch;
use crate::adapter::Adapter;
use crate::error::{ErrorKind, Result};
use crate::train::instant::features_of;
use crate::train::prefix::{Below, Looks, Prefix, PrefixReport, Set};
use crate::train::samples::Samples;
use crate::train::work::Fed;
use std::borrow::Cow;

/// Bytes that are kept in memory where none are given.
pub(super) const KEPT: u64 = 64 << 20;

impl Run<'_> {
    /// Cuts the run's graphs below the first trained layer, where there is something to keep from one
    /// epoch to the next, and it is the same whatever else is in a batch.
    ///
    /// # Errors
    /// What running the base says.
    pub(super) fn cut(&mut self) -> Result<()> {
        let per_epoch = self.sampler()?.batches_per_epoch();
        if self.options.steps_of(per_epoch) <= per_epoch {
            return Ok(());
        }
        if is_off() {
            self.looks = Some(Looks::default());
            return Ok(());
        }
        let fixed = self.samples.fixed_rows();
        let rows = fixed.unwrap_or_else(|| usual_micro_batch(self.options, &self.samples).min(2));
        let groups = self.samples.groups(&self.train, rows);
        let Some(group) = groups.first() else { return Ok(()) };
        let ram = self.options.ram;
        let values = 4 * (rows * self.samples.length(group[0])) as u64;
        if ram.is_some_and(|bytes| values > bytes) {
            // Refused by what is planned, not by what was tried.
            return Ok(());
        }
        let inputs = self.samples.inputs(group, rows)?;
        let several = fixed.filter(|rows| *rows > 1);
        let alone = match several {
            Some(_) => vec![],
            None => {
                // A row that fills up is the first again.
                let filled = (0..rows).map(|row| *group.get(row).unwrap_or(&group[0]));
                filled.map(|s| self.samples.alone(s, group)).collect::<Result<Vec<_>>>()?
            }
        };
        let setup = &self.trainer.setup;
        let found = match Below::try_rows(self.trainer.engine(), setup, &inputs, &alone, ram) {
            Err(e) if e.kind() == ErrorKind::Unsupported => Err((0, e.message().to_string())),
            Err(e) => return Err(e),
            Ok(None) => return Ok(()),
            Ok(Some((same, layers))) => match several {
                Some(rows) => Err((layers, format!("the base takes {rows} samples at once"))),
                None if same => Ok(layers),
                None => Err((layers, "what they give hangs on other samples or on chance".into())),
            },
        };
        match found {
            Ok(layers) => {
                self.trainer.cut(true);
                self.looks = Some(Looks::default());
                self.prefix = Some(Prefix::new(layers, self.options.checkpoint.clone()));
            }
            Err((layers, why)) => {
                let why_not = Some(why);
                self.uncut = Some(PrefixReport { layers, why_not, ..PrefixReport::default() });
            }
        }
        Ok(())
    }

    /// What the graph is fed with of `group`, filled up to `rows`.
    pub(super) fn fed(
        &self,
        samples: &Samples<'_>,
        set: Set,
        group: &[usize],
        rows: usize,
    ) -> Result<Fed<'static>> {
        match &self.prefix {
            Some(prefix) => prefix.fed(&self.trainer, samples, set, group, rows),
            None => Ok(Fed::Inputs(Cow::Owned(samples.inputs(group, rows)?))),
        }
    }

    /// What makes features of rows from below, where the head reads one row a sample.
    pub(super) fn looks(&self) -> Option<&Looks> {
        let rules = self.options.task.rules();
        self.looks.as_ref().filter(|_| !rules.per_token() && !rules.own_output())
    }

    /// Whether the first values change nothing: no generation before gives them.
    pub(super) fn begins_as_base(&self) -> bool {
        self.previous.is_none() || !self.options.warm_start
    }

    /// The features that the head reads of `which` of the samples, in that order, with `adapter`, which has the
    /// values as they are, or of the base alone, before any has changed. `None` where `go_on` said stop.
    ///
    /// # Errors
    /// As [`features_of`].
    pub(super) fn features(
        &self,
        adapter: Option<&Adapter>,
        set: Set,
        which: &[usize],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        let (samples, set) = match (&self.held_samples, set) {
            (Some(held), Set::Held) => (held, set),
            _ => (&self.samples, Set::Samples),
        };
        let as_is = adapter.is_some() || self.begins_as_base();
        if let Some(looks) = self.looks().filter(|_| as_is) {
            let (prefix, trainer) = (self.prefix.as_ref(), &self.trainer);
            return looks.features(prefix, trainer, samples, set, which, self.micro, go_on);
        }
        let bound = adapter.map(|adapter| self.engine.bind(&[(adapter, 1.0)])).transpose()?;
        let (engine, features) = (self.engine, &self.trainer.setup.features);
        features_of(engine, bound.as_ref(), samples, which, features, self.micro, go_on)
    }

    /// Gives what is kept of `spare` bytes what it needs, for samples as long as `longest`; how many.
    pub(super) fn give_room(&self, spare: u64, longest: usize) -> Result<u64> {
        let Some(prefix) = &self.prefix else { return Ok(0) };
        let row = self.trainer.row_bytes(&self.samples.inputs(&[longest], self.micro)?)?;
        // A text is met with two padded lengths or so.
        let texts = self.samples.has_text() || self.samples.writes();
        let lengths = if texts { 2 } else { 1 };
        let probes = self.probes.map_or(0, |probes| probes.data.samples.len());
        let rows = self.train.len() + self.held.len() + probes;
        let room = spare.min(row * lengths * rows as u64);
        prefix.allow(room);
        Ok(room)
    }
}

#[cfg(not(test))]
fn is_off() -> bool {
    false
}

#[cfg(test)]
use crate::train::prefix::is_off;
