//! What a run does to keep the base's knowledge.

use super::Run;
use super::state::SoFar;
use crate::adapter::{Adapter, TrainingRecord};
use crate::error::Result;
use crate::train::knowledge::{Knowledge, KnowledgeKept, LOOKS, Measure, Parts, is_look};
use crate::train::prefix::Set;
use crate::train::progress::{Event, Progress};
use crate::train::samples::Samples;
use crate::train::work::Work;
use std::borrow::Cow;

/// The name of the share that is kept, in an adapter's record.
const KEPT: &str = "kept";

impl<'a> Run<'a> {
    pub(super) fn parts(&self) -> Parts<'_, 'a> {
        Parts {
            engine: self.engine,
            trainer: &self.trainer,
            samples: &self.samples,
            train: &self.train,
            held: self.held_samples.as_ref(),
            prefix: self.prefix.as_ref(),
            looks: self.looks(),
            as_base: self.begins_as_base(),
            rows: self.micro,
            batch: self.options.batch,
        }
    }

    /// What is measured of the base's knowledge; nothing where only a head is trained, or where none is
    /// asked for that takes as long as a language model's.
    pub(super) fn measure(&self) -> Result<Option<Measure<'a>>> {
        let (options, rules) = (self.options, self.options.task.rules());
        if self.trainer.targets() == 0 || (rules.own_output() && !rules.completes()) {
            return Ok(None);
        }
        let (engine, max_tokens) = (self.engine, options.max_tokens);
        if rules.completes() {
            let asked = options.keep_knowledge > 0.0 || options.probes.is_some() || options.watch;
            let texts = || Measure::of_texts(engine, self.probes, max_tokens, options.seed);
            return asked.then(texts).transpose();
        }
        let sets = [&self.held[..], &self.train[..]];
        Measure::new(engine, self.probes, max_tokens, sets).map(Some)
    }

    /// What says which probes these are, for the run's hash.
    pub(super) fn probes_hash(&self) -> Result<[u8; 32]> {
        let Some(probes) = self.probes else { return Ok([0; 32]) };
        let labels = &probes.data.labels;
        let samples = Samples::new(self.engine, &probes.data, labels, self.options.max_tokens)?;
        Ok(samples.hash(&(0..samples.len()).collect::<Vec<_>>()))
    }

    /// Asks the base alone for what is to be kept, where layers are trained at all; `known` are its features of
    /// the samples trained on, where they are known. `false` where `go_on` said stop.
    pub(super) fn ask_base(
        &mut self,
        known: Vec<Vec<f32>>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool> {
        let Some(measure) = self.measure.take() else { return Ok(true) };
        let adapter = self.trainer.adapter()?;
        let Some(head) = adapter.head() else { return Ok(true) };
        let wanted = self.options.keep_knowledge;
        let found = Knowledge::ask(&self.parts(), measure, head, wanted, known, go_on)?;
        let Some(knowledge) = found else { return Ok(false) };
        self.knowledge = Some(knowledge);
        Ok(true)
    }

    /// Measures what is kept, where that is due after a step, and weighs the penalty anew.
    pub(super) fn look_at_knowledge(
        &mut self,
        so_far: &mut SoFar,
        steps: u64,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let keeping = self.options.keep_knowledge > 0.0;
        let looks = self.knowledge.as_ref().map_or(0, |k| k.looks(steps, self.options.batch));
        // What is only watched changes no weight.
        let weighs = keeping && is_look(so_far.step, steps, looks);
        let watches = self.options.watch && is_look(so_far.step, steps, LOOKS);
        if !weighs && !watches {
            return Ok(());
        }
        if watches {
            let shown = self.shown(&mut || true)?.unwrap_or_default();
            self.tell(so_far.step, &shown.metrics, false, progress);
        }
        // To its end: a checkpoint can't say that a look is still to be done.
        let Some(found) = self.knowledge_of(&self.trainer.adapter()?, &mut || true)? else {
            return Ok(());
        };
        let Some(knowledge) = &mut self.knowledge else { return Ok(()) };
        if weighs {
            knowledge.weigh(found.kept);
            so_far.keep_weight = Some(knowledge.weight);
        }
        progress.event(&Event::Knowledge {
            step: so_far.step,
            kept: found.kept.into(),
            wanted: found.wanted.into(),
            weight: if keeping { knowledge.weight.into() } else { 0.0 },
        });
        Ok(())
    }

    /// What `adapter` keeps; `None` where nothing but a head is trained, or `go_on` said stop.
    pub(super) fn knowledge_of(
        &self,
        adapter: &Adapter,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<KnowledgeKept>> {
        let Some(knowledge) = &self.knowledge else { return Ok(None) };
        knowledge.look(&self.parts(), adapter, go_on)
    }

    /// Micro-batch `i` of step `step`: those of the batch, then those of probes that are taught of.
    pub(super) fn work(&self, batch: &Batch, i: usize) -> Result<Work<'static>> {
        let keeping = self.knowledge.as_ref().filter(|_| self.options.keep_knowledge > 0.0);
        if let Some(group) = batch.groups.get(i) {
            let fed = self.fed(&self.samples, Set::Samples, group, self.micro)?;
            if self.options.task.rules().own_output() {
                let steps = self.trainer.steps(&fed)?;
                group.iter().try_for_each(|&sample| self.samples.fits(sample, steps))?;
            }
            let answers = Cow::Owned(self.answers(group)?);
            let kept = keeping.and_then(|k| k.of_samples(group, self.micro, batch.share));
            return Ok(Work { fed, answers, kept });
        }
        let group = batch.taught.get(i - batch.groups.len()).map_or(&[][..], Vec::as_slice);
        let Some(knowledge) = keeping else {
            return Err(crate::error::Error::failed("there are no probes to learn from"));
        };
        let rows = match self.options.task.rules().completes() {
            // Few and long: to fill them up would take much longer.
            true => self.samples.fixed_rows().unwrap_or(group.len()),
            false => self.micro,
        };
        let (probes, kept) = knowledge.teach(group, rows, batch.share)?;
        let fed = self.fed(probes, Set::Probes, group, rows)?;
        let answers = Cow::Owned(vec![None; kept.base.len()]);
        Ok(Work { fed, answers, kept: Some(kept) })
    }

    /// The micro-batches of step `step`.
    pub(super) fn batch(&self, samples: &[usize], step: u64) -> Batch {
        let groups = self.samples.groups(samples, self.micro);
        let keeping = self.knowledge.as_ref().filter(|_| self.options.keep_knowledge > 0.0);
        let (taught, count) = keeping.map_or((vec![], 0), |k| k.taught(step, self.micro));
        // Of a language model the probes alone are kept near the base.
        let own = if self.options.task.rules().completes() { 0 } else { samples.len() };
        Batch { groups, taught, share: 1.0 / (own + count).max(1) as f32 }
    }
}

/// What a step works on.
pub(super) struct Batch {
    groups: Vec<Vec<usize>>,
    /// Of probes.
    taught: Vec<Vec<usize>>,
    /// Of each row that is kept near the base, in the penalty's mean.
    share: f32,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.groups.len() + self.taught.len()
    }
}

/// Adds what is kept to an adapter's record.
pub(super) fn record(record: &mut TrainingRecord, kept: Option<&KnowledgeKept>) {
    if let Some(kept) = kept {
        record.before.push((KEPT.into(), 1.0));
        record.after.push((KEPT.into(), kept.kept));
    }
}
