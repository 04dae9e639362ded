//! How much a run may do at once within its memory: micro-batch and threads.

use super::Run;
use super::prefix::KEPT;
use crate::error::{Cause, Error, Result};
use crate::train::knowledge::{Measure, text_features};
use crate::train::options::TrainOptions;
use crate::train::recompute::Repeat;
use crate::train::samples::{PICTURE_CACHE, Samples};

/// Micro-batch of raw inputs and of a language model's texts where none is asked for.
const MICRO_BATCH: usize = 8;
/// The same of sentences: they are padded to fewer tokens beside each other, and less is there at once.
const MICRO_BATCH_SENTENCES: usize = 2;
/// Micro-batch of pictures where none is asked for.
const MICRO_BATCH_PICTURES: usize = 1;
/// Resident bytes of the process beside tensors and the base: code, tokenizer, a gradient and a
/// forward graph for each length of sentences. Measured with MiniLM at micro-batches of 1 to 8.
const PROCESS_BYTES: u64 = 60 << 20;
/// What operators need for themselves while they run, and the gaps that the allocator leaves, by
/// the same measurement a seventh of the graph's own tensors.
const SCRATCH_SHARE: u64 = 6;
/// The same for pictures, which are all of one size and need no tokenizer. Measured with
/// EfficientNet-Lite0: 28 MiB, and a quarter of the graph's tensors at a micro-batch of 2.
const PROCESS_BYTES_PICTURES: u64 = 32 << 20;
const SCRATCH_SHARE_PICTURES: u64 = 4;

/// The micro-batch that is asked for, else that of such samples, without a limit to memory.
pub(super) fn usual_micro_batch(options: &TrainOptions, samples: &Samples<'_>) -> usize {
    let sentences = samples.has_text() && !samples.task().rules().learns_texts();
    let usual = match (samples.has_pictures(), sentences) {
        (true, _) => MICRO_BATCH_PICTURES,
        (false, true) => MICRO_BATCH_SENTENCES,
        (false, false) => MICRO_BATCH,
    };
    options.micro_batch.unwrap_or(usual).min(options.batch)
}

/// How a batch is worked on.
#[derive(Clone, Copy)]
struct Split {
    /// Rows of a micro-batch, and how many of those at once.
    micro: usize,
    threads: usize,
    /// Whether stretches of the graph may run twice.
    again: bool,
}

impl Run<'_> {
    /// Bytes of the whole process while micro-batches whose rows are as long as `sample` run; a part of
    /// them where that is more than there is.
    fn planned(&mut self, sample: usize, split: Split) -> Result<u64> {
        let held = self.held_samples.as_ref().map_or(0, Samples::bytes);
        self.planned_with(self.samples.bytes() + held, sample, split)
    }

    /// The same where all samples take `data` bytes.
    fn planned_with(&mut self, data: u64, sample: usize, split: Split) -> Result<u64> {
        let Split { micro, threads, again } = split;
        let tensors = 4 * self.trainer.parameter_count() as u64;
        // The values, a copy as inputs, the sum of the gradients, the best values.
        let state = 4 * tensors + self.trainer.optimizer().state_bytes() as u64;
        let (process, share) = match self.samples.is_of_one_size() {
            true => (PROCESS_BYTES_PICTURES, SCRATCH_SHARE_PICTURES),
            false => (PROCESS_BYTES, SCRATCH_SHARE),
        };
        let setup = &self.trainer.setup;
        let texts = setup.keep && self.options.task.rules().completes();
        let texts = self.measure.as_ref().filter(|_| texts).and_then(Measure::taught_texts);
        // The base's features of each sample, or of each token of probes.
        let known = match &texts {
            Some(texts) => 4 * (texts.tokens * text_features(self.engine, setup)?) as u64,
            None if setup.keep => 4 * (setup.features.width * self.train.len()) as u64,
            None => 0,
        };
        let there = process + self.engine.base().file_len() + state + known + data;
        let inputs = 4 * (threads * micro * self.samples.length(sample)) as u64;
        if self.options.ram.is_some_and(|ram| there + inputs > ram) {
            // To plan it is to make its inputs.
            return Ok(there + inputs);
        }
        let threads = threads as u64;
        self.trainer.repeat(match self.options.ram.filter(|_| again) {
            Some(ram) => Repeat::Within(ram.saturating_sub(there) / threads / (share + 1) * share),
            None => Repeat::Cheap,
        });
        let mut graph = self.trainer.plan(&self.samples.inputs(&[sample], micro)?)?;
        if let Some(texts) = texts.filter(|t| t.longest_tokens() > self.samples.length(sample)) {
            let inputs = texts.samples.inputs(&[texts.longest], micro)?;
            graph = graph.max(self.trainer.plan(&inputs)?);
        }
        Ok(there + threads * (graph + graph / share))
    }

    /// The largest micro-batch and the most threads that fit.
    pub(super) fn choose_micro_batch(&mut self) -> Result<()> {
        let pictures = self.samples.has_pictures();
        let usual = usual_micro_batch(self.options, &self.samples);
        let wanted = usual.min(self.train.len().max(1));
        if let (Some(fixed), Some(asked)) = (self.samples.fixed_rows(), self.options.micro_batch)
            && asked != fixed
        {
            return Err(Error::usage(format!(
                "the base takes {fixed} samples at once, not micro-batches of {asked}"
            )));
        }
        let wanted = self.samples.fixed_rows().unwrap_or(wanted);
        let longest = self.samples.longest();
        // What is kept of the layers below is read in the place of pictures.
        let cache = if pictures && self.prefix.is_none() { PICTURE_CACHE } else { 0 };
        let Some(ram) = self.options.ram else {
            self.micro = wanted;
            let split = Split { micro: wanted, threads: self.threads, again: false };
            let planned = self.planned(longest, split)?;
            self.samples.limit_cache(cache);
            self.peak = planned + self.give_room(KEPT, longest)? + cache;
            return self.look_at_repeated(longest);
        };
        let halved = |&n: &usize| (n > 1).then_some(n / 2);
        let sizes: Vec<usize> = match self.samples.fixed_rows().or(self.options.micro_batch) {
            Some(_) => vec![wanted],
            None => std::iter::successors(Some(wanted), halved).collect(),
        };
        // The micro-batch is what fits on one thread, since another changes the rounding. Stretches run twice
        // where the smallest doesn't, and to let more threads work.
        let smallest = sizes[sizes.len() - 1];
        let mut least = (u64::MAX, wanted);
        for micro in sizes {
            let split = Split { micro, threads: 1, again: micro == smallest };
            let alone = self.planned(longest, split)?;
            let more = (2..=self.options.threads).rev().filter(|_| alone <= ram);
            let mut found = (alone, 1);
            for threads in more {
                let planned = self.planned(longest, Split { micro, threads, again: true })?;
                if planned <= ram {
                    found = (planned, threads);
                    break;
                }
            }
            if found.1 == 1 && self.options.threads > 1 && alone <= ram {
                // As it was planned.
                self.planned(longest, split)?;
            }
            let (planned, threads) = found;
            if planned <= ram {
                (self.micro, self.threads) = (micro, threads);
                // Not to the brim: how much a process takes beside its tensors was measured of two networks.
                let room = (ram - planned).saturating_sub(ram / 8);
                let kept = self.give_room(room, longest)?;
                let spare = (room - kept).min(cache);
                self.samples.limit_cache(spare);
                self.peak = planned + kept + spare;
                return self.look_at_repeated(longest);
            }
            least = least.min((planned, micro));
            self.trainer.drop_plans();
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let shorter =
            if self.samples.has_text() { ", or cut sentences with --max-tokens" } else { "" };
        Err(Error::refused(format!(
            "training takes {} MiB with micro-batches of {}, {} MiB are allowed",
            mib(least.0),
            least.1,
            mib(ram)
        ))
        .because(Cause::TooLarge)
        .hint(format!("allow --ram {}M{shorter}", mib(least.0))))
    }

    /// Notes what the graph of samples as long as `longest` runs twice.
    fn look_at_repeated(&mut self, longest: usize) -> Result<()> {
        self.again = self.trainer.again(&self.samples.inputs(&[longest], self.micro)?)?;
        Ok(())
    }

    /// The samples for which `ram` has no room, one at a time beside all that are shorter.
    pub(super) fn too_large(&mut self, ram: u64) -> Result<Vec<usize>> {
        let rows = self.samples.fixed_rows().unwrap_or(1);
        let mut sorted: Vec<usize> = (0..self.samples.len()).collect();
        sorted.sort_by_key(|&sample| self.samples.length(sample));
        let values = |sample: usize| 4 * self.samples.length(sample) as u64;
        let beside = self.samples.bytes().saturating_sub(sorted.iter().map(|&s| values(s)).sum());
        let data: Vec<u64> = sorted
            .iter()
            .scan(beside, |sum, &sample| {
                *sum += values(sample);
                Some(*sum)
            })
            .collect();
        let (mut fit, mut rest) = (0, sorted.len());
        while fit < rest {
            let middle = fit.midpoint(rest);
            let split = Split { micro: rows, threads: 1, again: true };
            match self.planned_with(data[middle], sorted[middle], split)? <= ram {
                true => fit = middle + 1,
                false => rest = middle,
            }
            self.trainer.drop_plans();
        }
        Ok(sorted.split_off(fit))
    }
}
