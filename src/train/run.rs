//! A whole training run: from samples to an adapter with its record.

use super::checkpoint::{Checkpoint, Trained as Tensor, run_hash};
use super::data::Dataset;
use super::evaluate::evaluate_samples;
use super::lesson::{Lesson, Teacher};
use super::mixer::Mixer;
use super::options::TrainOptions;
use super::progress::{Event, Meter, Progress};
use super::samples::{PICTURE_CACHE, Samples};
use super::split::hold_out;
use super::stopping::{EarlyStopping, Verdict};
use super::trainer::{Answers, MicroBatch, Trainer};
use crate::adapter::{Adapter, ProbeEffect, TensorType, TrainingRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Engine;
use serde::Serialize;
use std::borrow::Cow;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Micro-batch of sentences and raw inputs where none is asked for.
const MICRO_BATCH: usize = 8;
/// Micro-batch of pictures where none is asked for.
const MICRO_BATCH_PICTURES: usize = 1;
/// Training inputs that effects are measured on.
const PROBES: usize = 2;
/// Largest inputs that are stored with an adapter, in bytes.
const MAX_PROBE_BYTES: usize = 256 << 10;
/// Resident bytes of the process beside tensors and the base: code, a gradient and a forward graph
/// for each length of sentences, tokenizer. Measured with MiniLM at micro-batches of 1 to 8.
const PROCESS_BYTES: u64 = 60 << 20;
/// What operators need for themselves while they run, and the gaps that the allocator leaves, by
/// the same measurement a seventh of the graph's own tensors.
const SCRATCH_SHARE: u64 = 6;

/// What a run gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The adapter.
    pub adapter: Adapter,
    /// How it went.
    pub report: TrainReport,
}

/// How a run went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// Optimizer steps taken.
    pub steps: u64,
    /// Passes over the samples.
    pub epochs: f32,
    /// Seconds that this process worked on it.
    pub seconds: f64,
    /// Median milliseconds of a step.
    pub step_ms_median: f64,
    /// Samples trained on.
    pub samples_train: usize,
    /// Samples held out.
    pub samples_holdout: usize,
    /// Loss of the first step's batch.
    pub loss_first: f32,
    /// Mean loss over the last epoch's steps.
    pub loss_last: f32,
    /// Hold-out metrics of the untrained adapter with its random head; none without a hold-out.
    pub before: Vec<(String, f32)>,
    /// Hold-out metrics of the trained adapter.
    pub after: Vec<(String, f32)>,
    /// Targets trained.
    pub targets: usize,
    /// Targets left out because the head's output doesn't depend on them.
    pub skipped: Vec<String>,
    /// Trained values.
    pub parameters: usize,
    /// Bytes that the process is expected to take at most, the mapped base included.
    pub planned_peak_bytes: u64,
    /// Samples that went through the graph at once.
    pub micro_batch: usize,
    /// Threads used.
    pub threads: usize,
    /// The output that the head reads.
    pub output: String,
    /// The labels.
    pub labels: Vec<String>,
    /// Mean |adapted - base| over that output on training inputs; none for a head alone.
    pub effect: Option<f32>,
}

/// Trains an adapter on `data`. `holdout` is measured before and after; without one
/// `options.holdout` of the data is held out. The same base, data and options give the same
/// adapter, bit for bit, on the same machine, whatever the number of threads.
///
/// # Errors
/// Usage: options that make no sense for this base and data. Refused: `options.ram` is too small.
/// Mismatch: a checkpoint of another run. Failed: a loss that is not finite, an adapter that ends
/// up without effect, or `progress` asking to stop.
pub fn train(
    engine: &Engine,
    data: &Dataset,
    holdout: Option<&Dataset>,
    options: &TrainOptions,
    progress: &mut dyn Progress,
) -> Result<Trained> {
    learn(engine, &Lesson::new(data, holdout), options, progress)
}

/// As [`train`], going on from a generation before where the lesson has one.
///
/// # Errors
/// As [`train`]. Mismatch too: a generation before that these options can't go on from.
pub fn learn(
    engine: &Engine,
    lesson: &Lesson<'_>,
    options: &TrainOptions,
    progress: &mut dyn Progress,
) -> Result<Trained> {
    let labels = lesson.labels(options.loss)?;
    let mut trainer = Trainer::new(engine, options, labels)?;
    if let Some(previous) = lesson.previous.filter(|_| options.warm_start) {
        trainer.start_from(previous)?;
    }
    let run = Run::new(engine, lesson, options, trainer)?;
    run.go(progress)
}

/// A run's parts. `held` are places in `held_samples`, or in `samples` where there is no other.
struct Run<'a> {
    engine: &'a Engine,
    options: &'a TrainOptions,
    trainer: Trainer,
    samples: Samples,
    held_samples: Option<Samples>,
    /// New samples, then the replayed ones.
    train: Vec<usize>,
    replayed: usize,
    previous: Option<&'a Adapter>,
    teacher: Option<Teacher>,
    held: Vec<usize>,
    micro: usize,
    threads: usize,
    peak: u64,
}

impl<'a> Run<'a> {
    fn new(
        engine: &'a Engine,
        lesson: &Lesson<'a>,
        options: &'a TrainOptions,
        trainer: Trainer,
    ) -> Result<Run<'a>> {
        let Lesson { data, replayed, holdout, previous } = *lesson;
        if replayed >= data.samples.len() {
            return Err(Error::usage(format!("all {replayed} samples are replayed ones")));
        }
        let encode = |data| Samples::new(engine, data, trainer.labels(), options.max_tokens);
        let samples = encode(data)?;
        let held_samples = holdout.map(encode).transpose()?;
        // Read once an epoch at most: the planned memory goes to what is trained on.
        if let Some(held) = &held_samples {
            held.limit_cache(0);
        }
        let (train, held) = match &held_samples {
            Some(other) => ((0..samples.len()).collect(), (0..other.len()).collect()),
            None if replayed > 0 => ((0..samples.len()).collect(), vec![]),
            None => {
                let classes = data.classes();
                let share = f64::from(options.holdout);
                let split = hold_out(samples.len(), classes.as_deref(), share, options.seed)?;
                (split.train, split.held_out)
            }
        };
        let mut run = Run {
            engine,
            options,
            trainer,
            samples,
            held_samples,
            train,
            replayed,
            previous,
            teacher: None,
            held,
            micro: 0,
            threads: options.threads,
            peak: 0,
        };
        run.choose_micro_batch()?;
        Ok(run)
    }

    /// Bytes of the whole process while micro-batches of `micro` rows run.
    fn planned(&self, micro: usize, threads: usize) -> Result<u64> {
        let longest = self.samples.longest();
        let graph = self.trainer.plan(&self.samples.inputs(&[longest], micro)?)?;
        let tensors = 4 * self.trainer.parameter_count() as u64;
        // The values, a copy as inputs, the sum of the gradients, the best values.
        let state = 4 * tensors + self.trainer.optimizer().state_bytes() as u64;
        let running = threads as u64 * (graph + graph / SCRATCH_SHARE);
        Ok(PROCESS_BYTES + self.engine.base().file_len() + state + running)
    }

    fn choose_micro_batch(&mut self) -> Result<()> {
        let pictures = self.samples.has_pictures();
        let usual = if pictures { MICRO_BATCH_PICTURES } else { MICRO_BATCH };
        let batch = self.options.batch.min(self.train.len().max(1));
        let wanted = self.options.micro_batch.unwrap_or(usual).min(batch);
        if let (Some(fixed), Some(asked)) = (self.samples.fixed_rows(), self.options.micro_batch)
            && asked != fixed
        {
            return Err(Error::usage(format!(
                "the base takes {fixed} samples at once, not micro-batches of {asked}"
            )));
        }
        let wanted = self.samples.fixed_rows().unwrap_or(wanted);
        let cache = if pictures { PICTURE_CACHE } else { 0 };
        let Some(ram) = self.options.ram else {
            self.micro = wanted;
            self.peak = self.planned(wanted, self.threads)? + cache;
            return Ok(());
        };
        let halved = |&n: &usize| (n > 1).then_some(n / 2);
        let sizes: Vec<usize> = match self.samples.fixed_rows().or(self.options.micro_batch) {
            Some(_) => vec![wanted],
            None => std::iter::successors(Some(wanted), halved).collect(),
        };
        // Fewer threads before smaller micro-batches: those change the rounding.
        let mut least = (u64::MAX, wanted);
        for micro in sizes {
            for threads in (1..=self.options.threads).rev() {
                let planned = self.planned(micro, threads)?;
                if planned <= ram {
                    (self.micro, self.threads) = (micro, threads);
                    let spare = (ram - planned).min(cache);
                    self.samples.limit_cache(spare);
                    self.peak = planned + spare;
                    return Ok(());
                }
                least = least.min((planned, micro));
            }
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
        .hint(format!("allow --ram {}M{shorter}", mib(least.0))))
    }

    /// The hold-out's metrics; none without one. `None` where `go_on` said stop.
    fn evaluate(
        &self,
        adapter: &Adapter,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Vec<(String, f32)>>> {
        if self.held.is_empty() {
            return Ok(Some(vec![]));
        }
        let bound = self.engine.bind(&[(adapter, 1.0)])?;
        let samples = self.held_samples.as_ref().unwrap_or(&self.samples);
        let labels = self.trainer.labels();
        let (engine, held, micro) = (self.engine, &self.held, self.micro);
        let found = evaluate_samples(engine, Some(&bound), samples, held, labels, micro, go_on)?;
        Ok(found.map(|e| e.metrics()))
    }

    /// Hash of all that decides the result.
    fn hash(&self, steps: u64) -> Result<[u8; 32]> {
        let deciding = TrainOptions {
            threads: 1,
            ram: None,
            micro_batch: Some(self.micro),
            steps: u32::try_from(steps).ok(),
            checkpoint: None,
            checkpoint_every: 0,
            resume: false,
            ..self.options.clone()
        };
        let options = serde_json::to_vec(&deciding)
            .map_err(|e| Error::failed(format!("settings can't be written: {e}")))?;
        let labels = self.trainer.labels().join("\n");
        let held = self.held_samples.as_ref().unwrap_or(&self.samples).hash(&self.held);
        let train = self.samples.hash(&self.train);
        let previous = match self.previous {
            Some(previous) => previous.to_bytes(TensorType::F32)?,
            None => vec![],
        };
        Ok(run_hash(&[
            env!("CARGO_PKG_VERSION").as_bytes(),
            &options,
            labels.as_bytes(),
            &train,
            &(self.replayed as u64).to_le_bytes(),
            &held,
            &previous,
        ]))
    }

    fn go(mut self, progress: &mut dyn Progress) -> Result<Trained> {
        let started = Instant::now();
        let options = self.options;
        let new = self.train.len() - self.replayed;
        let mut sampler =
            Mixer::new(new, self.replayed, options.replay, options.batch, options.seed)?;
        let per_epoch = sampler.batches_per_epoch();
        let steps = match (options.steps, options.epochs) {
            (Some(steps), _) => u64::from(steps),
            (None, epochs) => u64::from(epochs.unwrap_or(8)) * per_epoch,
        };
        let hash = self.hash(steps)?;
        let mut before = None;
        let mut stopping = EarlyStopping::new(options.patience, 0.0);
        let mut best: Option<Vec<Vec<f32>>> = None;
        let mut losses: Vec<f32> = vec![];
        let mut step = 0;
        if let Some(state) = self.checkpoint_to_resume(&hash)? {
            sampler.resume(state.sampler)?;
            self.trainer.set_values(state.parameters.into_iter().map(|t| t.values).collect());
            self.trainer.set_optimizer(state.optimizer);
            (step, stopping, best, losses) = (state.step, state.stopping, state.best, state.losses);
            before = Some(state.before);
        }
        let mut go_on = || !progress.stop();
        if before.is_none() {
            before = self.evaluate(&self.trainer.adapter(), &mut go_on)?;
        }
        let (true, Some(before)) = (self.ask_teacher(&mut go_on)?, before) else {
            // Nothing was done that a checkpoint would keep.
            return Err(stopped(step, steps, options.checkpoint.is_some()));
        };
        progress.event(&Event::Started {
            steps,
            resumed_at: step,
            samples: self.train.len() as u64,
            held_out: self.held.len() as u64,
            parameters: self.trainer.parameter_count() as u64,
        });
        let mut meter = Meter::new();
        let mut durations = vec![];
        let mut early = None;
        // A checkpoint may have been written after the last look asked to stop.
        if options.patience.is_some() && stopping_is_over(&stopping, options.patience) {
            early = Some("no gain on the hold-out".to_string());
        }
        while step < steps && early.is_none() {
            let began = Instant::now();
            let place = sampler.state();
            let batch: Vec<usize> =
                sampler.next_batch().iter().map(|&place| self.train[place]).collect();
            let rate = options.schedule.rate(options.learning_rate.into(), step, steps);
            let Some(loss) = self.step(&batch, rate, &mut || !progress.stop())? else {
                // In the middle of a step: the state is that before it.
                sampler.resume(place)?;
                let so_far = (stopping, &best, losses.as_slice(), before.as_slice());
                if let Some(path) = options.checkpoint.as_deref() {
                    self.checkpoint(hash, step, &sampler, so_far).write(path)?;
                    progress.event(&Event::Checkpoint { step });
                }
                return Err(stopped(step, steps, options.checkpoint.is_some()));
            };
            step += 1;
            losses.push(loss);
            durations.push(began.elapsed().as_secs_f64() * 1e3);
            meter.step(batch.len() as u64);
            progress.event(&Event::Step {
                step,
                steps,
                loss: loss.into(),
                rate,
                samples_per_second: meter.samples_per_second(),
                seconds_left: meter.seconds_left(steps - step),
            });
            let look = options.patience.is_some()
                && !self.held.is_empty()
                && (step % per_epoch == 0 || step == steps);
            if look {
                early = self.look(step, &mut stopping, &mut best, progress)?;
                meter.pause_ended();
            }
            let stop = progress.stop();
            let due = step % u64::from(options.checkpoint_every.max(1)) == 0 || stop;
            if let Some(path) = options.checkpoint.as_deref().filter(|_| due && step < steps) {
                let so_far = (stopping, &best, losses.as_slice(), before.as_slice());
                self.checkpoint(hash, step, &sampler, so_far).write(path)?;
                progress.event(&Event::Checkpoint { step });
                meter.pause_ended();
            }
            if stop && step < steps && early.is_none() {
                return Err(stopped(step, steps, options.checkpoint.is_some()));
            }
        }
        if let Some(best) = best {
            self.trainer.set_values(best);
        }
        let mut adapter = self.trainer.adapter();
        let Some(after) = self.evaluate(&adapter, &mut || !progress.stop())? else {
            return Err(stopped(step, steps, options.checkpoint.is_some()));
        };
        let effect = self.probe(&mut adapter)?;
        let seconds = started.elapsed().as_secs_f64();
        let last = losses.len().saturating_sub(usize::try_from(per_epoch).unwrap_or(1).max(1));
        let tail = losses.get(last..).unwrap_or(&[]);
        let loss_last = tail.iter().sum::<f32>() / tail.len().max(1) as f32;
        let report = TrainReport {
            steps: step,
            epochs: step as f32 / per_epoch as f32,
            seconds,
            step_ms_median: median(durations),
            samples_train: self.train.len(),
            samples_holdout: self.held.len(),
            loss_first: losses.first().copied().unwrap_or(0.0),
            loss_last,
            before,
            after,
            targets: self.trainer.targets(),
            skipped: self.trainer.skipped().to_vec(),
            parameters: self.trainer.parameter_count(),
            planned_peak_bytes: self.peak,
            micro_batch: self.micro,
            threads: self.threads,
            output: self.trainer.output().to_string(),
            labels: self.trainer.labels().to_vec(),
            effect,
        };
        adapter.training = Some(TrainingRecord {
            samples: self.train.len() as u64,
            steps: step,
            epochs: report.epochs,
            seed: options.seed,
            learning_rate: options.learning_rate,
            final_loss: loss_last,
            before: report.before.clone(),
            after: report.after.clone(),
            date: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            tool: concat!("offshoot ", env!("CARGO_PKG_VERSION")).into(),
        });
        adapter.check()?;
        progress.event(&Event::Finished { step, early, seconds });
        Ok(Trained { adapter, report })
    }

    /// Asks the generation before for its answers, where they are wanted. `false` where `go_on`
    /// said stop.
    fn ask_teacher(&mut self, go_on: &mut dyn FnMut() -> bool) -> Result<bool> {
        let Some(previous) = self.previous.filter(|_| self.options.keep > 0.0) else {
            return Ok(true);
        };
        let (engine, labels) = (self.engine, self.trainer.labels());
        self.teacher = Teacher::ask(engine, previous, &self.samples, labels, self.micro, go_on)?;
        Ok(self.teacher.is_some())
    }

    /// The answers of `group`, those of the generation before mixed in.
    fn answers(&self, group: &[usize]) -> Answers {
        let answers = self.samples.answers(group, self.micro);
        let (Some(teacher), Answers::Classes(rows)) = (&self.teacher, &answers) else {
            return answers;
        };
        let keep = self.options.keep;
        let soft = rows.iter().enumerate().map(|(at, class)| {
            let mut row = vec![0f32; self.trainer.labels().len()];
            *row.get_mut((*class)?)? = 1.0;
            if let Some(before) = group.get(at).and_then(|&s| teacher.row(s)) {
                row.iter_mut().zip(before).for_each(|(r, b)| *r = (1.0 - keep) * *r + keep * b);
            }
            Some(row)
        });
        Answers::Soft(soft.collect())
    }

    /// One optimizer step; the batch's mean loss before it. `None` where `go_on`, asked between
    /// micro-batches, said stop: nothing has changed then.
    fn step(
        &mut self,
        batch: &[usize],
        rate: f64,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<f32>> {
        let groups = self.samples.groups(batch, self.micro);
        let make = |i: usize| -> Result<Cow<'_, MicroBatch>> {
            let inputs = self.samples.inputs(&groups[i], self.micro)?;
            let answers = self.answers(&groups[i]);
            Ok(Cow::Owned(MicroBatch { inputs, answers }))
        };
        let threads = self.threads;
        let count = groups.len();
        let found = self.trainer.gradients_from(count, batch.len(), threads, &make, go_on)?;
        let Some(mut gradients) = found else { return Ok(None) };
        if !gradients.loss.is_finite() {
            return Err(Error::failed(format!("the loss is {}", gradients.loss))
                .hint("a lower learning rate, or --clip 1"));
        }
        self.trainer.apply(&mut gradients, rate)?;
        Ok(Some(gradients.loss))
    }

    /// Measures the hold-out; why to stop, if so.
    fn look(
        &self,
        step: u64,
        stopping: &mut EarlyStopping,
        best: &mut Option<Vec<Vec<f32>>>,
        progress: &mut dyn Progress,
    ) -> Result<Option<String>> {
        // To its end: a checkpoint can't say that a look is still to be done.
        let metrics = self.evaluate(&self.trainer.adapter(), &mut || true)?.unwrap_or_default();
        let loss = metrics.iter().find(|(name, _)| name == "loss");
        let Some(loss) = loss.map(|(_, v)| f64::from(*v)) else { return Ok(None) };
        let verdict = stopping.look(-loss, step);
        if verdict == Verdict::Best {
            *best = Some(self.trainer.values().to_vec());
        }
        if let Some((metric, value)) = metrics.get(1).or(metrics.first()) {
            progress.event(&Event::HoldOut {
                step,
                metric: metric.clone(),
                value: (*value).into(),
                loss,
                best: verdict == Verdict::Best,
            });
        }
        Ok((verdict == Verdict::Stop).then(|| "no gain on the hold-out".into()))
    }

    fn tensors(&self) -> impl Iterator<Item = (&str, usize)> {
        self.trainer.parameters().map(|(name, values)| (name, values.len()))
    }

    fn checkpoint_to_resume(&self, hash: &[u8; 32]) -> Result<Option<Checkpoint>> {
        let Some(path) = self.options.checkpoint.as_deref().filter(|_| self.options.resume) else {
            return Ok(None);
        };
        if !path.exists() {
            return Ok(None);
        }
        let state = Checkpoint::read(path)?;
        let fingerprint = self.engine.base().fingerprint();
        state.check_run(hash, &fingerprint, self.tensors()).map_err(|e| e.at(path.display()))?;
        Ok(Some(state))
    }

    fn checkpoint(
        &self,
        run: [u8; 32],
        step: u64,
        sampler: &Mixer,
        so_far: SoFar<'_>,
    ) -> Checkpoint {
        let (stopping, best, losses, before) = so_far;
        let tensor = |(name, values): (&str, &[f32])| Tensor {
            name: name.to_string(),
            values: values.to_vec(),
        };
        Checkpoint {
            run,
            base: self.engine.base().fingerprint(),
            step,
            sampler: sampler.state(),
            parameters: self.trainer.parameters().map(tensor).collect(),
            optimizer: self.trainer.optimizer().clone(),
            stopping,
            best: best.clone(),
            losses: losses.to_vec(),
            before: before.to_vec(),
        }
    }

    /// Measures how far the adapter moves the head's output on training inputs, and stores the
    /// inputs that are small.
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
            let inputs = self.samples.inputs(&[sample], rows)?;
            let base = self.engine.run(&inputs, None)?;
            let adapted = self.engine.run(&inputs, Some(&bound))?;
            let values = |named: &'_ crate::runtime::Named| -> Result<Vec<f32>> {
                let found = named.iter().find(|(name, _)| name == output);
                let (_, array) =
                    found.ok_or_else(|| Error::failed(format!("output '{output}' is gone")))?;
                Ok(array.as_f32()?.to_vec())
            };
            let (base, adapted) = (values(&base)?, values(&adapted)?);
            let moved: f64 = base.iter().zip(&adapted).map(|(b, a)| f64::from((a - b).abs())).sum();
            let effect = (moved / base.len().max(1) as f64) as f32;
            most = most.max(effect);
            // A picture would be most of the file: its effect is measured but not kept.
            let bytes: usize = inputs.iter().map(|(_, a)| 8 * a.data().len()).sum();
            if effect > 0.0 && bytes <= MAX_PROBE_BYTES {
                probes.push(ProbeEffect { inputs, output: output.to_string(), effect });
            }
        }
        if !(most > 0.0 && most.is_finite()) {
            return Err(Error::failed(format!("the trained adapter has no effect on '{output}'"))
                .hint("more steps or a higher learning rate"));
        }
        adapter.probes = probes;
        Ok(Some(most))
    }
}

/// Early stopping, the best values, the losses, the metrics before the first step.
type SoFar<'a> = (EarlyStopping, &'a Option<Vec<Vec<f32>>>, &'a [f32], &'a [(String, f32)]);

/// Whether the patience was used up by the looks before a checkpoint.
fn stopping_is_over(stopping: &EarlyStopping, patience: Option<u32>) -> bool {
    patience.is_some_and(|p| stopping.without_gain() >= p && stopping.best().is_some())
}

fn stopped(step: u64, steps: u64, kept: bool) -> Error {
    let error = Error::new(ErrorKind::Failed, format!("stopped after step {step} of {steps}"));
    if kept { error.hint("go on with --resume") } else { error }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
