//! A whole training run: from samples to an adapter with its record.

mod budget;
mod effect;
mod instant;
mod judge;
mod knowledge;
mod prefix;
mod report;
mod state;

use super::data::Dataset;
use super::knowledge::{Knowledge, Measure, Probes, probes};
use super::lesson::{Lesson, Teacher};
use super::mixer::Mixer;
use super::options::{InstantHead, TrainOptions};
use super::prefix::{Looks, Prefix, PrefixReport};
use super::progress::{Event, Meter, Progress};
use super::recompute::Repeated;
use super::samples::Samples;
use super::start::untaught;
use super::stopping::Verdict;
use super::trainer::{Answers, Trainer};
use crate::adapter::{Adapter, TrainingRecord};
use crate::error::{Error, ErrorKind, Result};
use crate::pack::release_heap;
use crate::runtime::Engine;
use instant::worse;
use judge::Shown;
pub use report::{TrainReport, Trained};
use state::{SoFar, is_due};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

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
    let rules = options.task.rules();
    if rules.own_output() && !rules.completes() && options.keep_knowledge > 0.0 {
        let error = format!("the task {} has no penalty that keeps knowledge", options.task);
        return Err(Error::unsupported(error).hint("measure other texts with eval"));
    }
    let trainer = trainer(engine, lesson, options)?;
    let probes = probes(engine, options.probes.as_deref(), options.max_tokens)?;
    let probes = if rules.completes() { probes.map(Probes::joined) } else { probes };
    let mut run = Run::new(engine, lesson, options, trainer, probes.as_ref())?;
    run.measure = run.measure()?;
    run.cut()?;
    run.choose_micro_batch()?;
    run.go(progress)
}

fn trainer(engine: &Engine, lesson: &Lesson<'_>, options: &TrainOptions) -> Result<Trainer> {
    let mut trainer = untaught(engine, lesson, options)?;
    if let Some(previous) = lesson.previous.filter(|_| options.warm_start) {
        trainer.start_from(previous)?;
    }
    trainer.keep_knowledge(options.keep_knowledge > 0.0);
    Ok(trainer)
}

/// The samples of a lesson, by their places, for which `options.ram` has no room even one at a time.
///
/// # Errors
/// Options that make no sense for this base and data.
pub fn too_large(
    engine: &Engine,
    lesson: &Lesson<'_>,
    options: &TrainOptions,
) -> Result<Vec<usize>> {
    let Some(ram) = options.ram else { return Ok(vec![]) };
    let mut run = Run::new(engine, lesson, options, trainer(engine, lesson, options)?, None)?;
    run.cut()?;
    run.too_large(ram)
}

/// Why [`learn`] can't begin at the values of the lesson's generation before; `None`: it can, or there
/// is none.
///
/// # Errors
/// Options that make no sense for this base and data.
pub fn misfit(
    engine: &Engine,
    lesson: &Lesson<'_>,
    options: &TrainOptions,
) -> Result<Option<Error>> {
    let Some(previous) = lesson.previous else { return Ok(None) };
    let mut trainer = untaught(engine, lesson, options)?;
    match trainer.start_from(previous) {
        Err(e) if e.kind() == ErrorKind::Mismatch => Ok(Some(e)),
        other => other.map(|()| None),
    }
}

/// A run's parts. `held` are places in `held_samples`, or in `samples` where there is no other.
struct Run<'a> {
    engine: &'a Engine,
    options: &'a TrainOptions,
    trainer: Trainer,
    samples: Samples<'a>,
    held_samples: Option<Samples<'a>>,
    /// New samples, then the replayed ones.
    train: Vec<usize>,
    replayed: usize,
    previous: Option<&'a Adapter>,
    teacher: Option<Teacher>,
    probes: Option<&'a Probes>,
    /// What the base's knowledge will be measured on.
    measure: Option<Measure<'a>>,
    knowledge: Option<Knowledge<'a>>,
    /// What the frozen layers below the first trained one gave.
    prefix: Option<Prefix>,
    looks: Option<Looks>,
    /// Why nothing is kept of them, though they are there.
    uncut: Option<PrefixReport>,
    held: Vec<usize>,
    micro: usize,
    threads: usize,
    peak: u64,
    again: Repeated,
}

impl<'a> Run<'a> {
    fn new(
        engine: &'a Engine,
        lesson: &Lesson<'a>,
        options: &'a TrainOptions,
        trainer: Trainer,
        probes: Option<&'a Probes>,
    ) -> Result<Run<'a>> {
        let Lesson { data, replayed, holdout, previous } = *lesson;
        if replayed >= data.samples.len() {
            return Err(Error::usage(format!("all {replayed} samples are replayed ones")));
        }
        let encode = |data| {
            let samples = Samples::new(engine, data, trainer.labels(), options.max_tokens)?;
            Ok(samples.padded_narrowly())
        };
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
                let split = data.hold_out(f64::from(options.holdout), options.seed)?;
                (split.train, split.held_out)
            }
        };
        Ok(Run {
            engine,
            options,
            trainer,
            samples,
            held_samples,
            train,
            replayed,
            previous,
            teacher: None,
            probes,
            measure: None,
            knowledge: None,
            prefix: None,
            looks: None,
            uncut: None,
            held,
            micro: 0,
            threads: options.threads,
            peak: 0,
            again: Repeated::default(),
        })
    }

    fn sampler(&self) -> Result<Mixer> {
        let TrainOptions { replay, batch, seed, .. } = *self.options;
        Mixer::new(self.train.len() - self.replayed, self.replayed, replay, batch, seed)
    }

    fn go(mut self, progress: &mut dyn Progress) -> Result<Trained> {
        let started = Instant::now();
        let options = self.options;
        let mut sampler = self.sampler()?;
        let per_epoch = sampler.batches_per_epoch();
        let steps = options.steps_of(per_epoch);
        let stopped = |step: u64| Err(stopped(step, steps, options.checkpoint.is_some()));
        let hash = self.hash(steps)?;
        let mut go_on = || !progress.stop();
        let Some(mut made) = self.instant(&mut go_on)? else { return stopped(0) };
        let mut features = vec![];
        if let Some(made) = &mut made {
            self.begin_with(made)?;
            let rows = std::mem::take(&mut made.rows);
            features = if options.keep_knowledge > 0.0 { rows } else { vec![] };
        }
        // Before what is resumed: the values change nothing yet.
        if !self.ask_teacher(&mut go_on)? || !self.ask_base(features, &mut go_on)? {
            return stopped(0);
        }
        let mut first = None;
        let begun = match self.resume(&hash, &mut sampler)? {
            Some(resumed) => Some(resumed),
            None => {
                first = self.shown(&mut go_on)?;
                let before = first.as_ref().map(|shown| shown.metrics.clone());
                before.map(|before| SoFar::new(options.patience, before))
            }
        };
        let Some(mut so_far) = begun else { return stopped(0) };
        if let (Some(knowledge), Some(weight)) = (&mut self.knowledge, so_far.keep_weight) {
            knowledge.weight = weight;
        }
        progress.event(&Event::Started {
            steps,
            resumed_at: so_far.step,
            samples: self.train.len() as u64,
            held_out: self.held.len() as u64,
            parameters: self.trainer.parameter_count() as u64,
        });
        let mut meter = Meter::new();
        let mut durations = vec![];
        let mut saved = Instant::now();
        // A checkpoint may have been written after the last look asked to stop.
        let mut over = so_far.stopping.is_over();
        while so_far.step < steps && !over {
            let began = Instant::now();
            let place = sampler.state();
            let batch: Vec<usize> =
                sampler.next_batch().iter().map(|&place| self.train[place]).collect();
            let rate = options.schedule.rate(options.learning_rate.into(), so_far.step, steps);
            let Some(loss) = self.step(&batch, so_far.step, rate, &mut || !progress.stop())? else {
                // In the middle of a step: the state is that before it.
                sampler.resume(place)?;
                self.save(hash, &sampler, &so_far, progress)?;
                return stopped(so_far.step);
            };
            so_far.step += 1;
            so_far.losses.push(loss);
            durations.push(began.elapsed().as_secs_f64() * 1e3);
            meter.step(batch.len() as u64);
            let step = so_far.step;
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
                over = self.look(&mut so_far, progress)?;
                meter.pause_ended();
            }
            self.look_at_knowledge(&mut so_far, steps, progress)?;
            let stop = progress.stop();
            let due = is_due(step, options.checkpoint_every, saved.elapsed()) || stop;
            if due && step < steps {
                self.save(hash, &sampler, &so_far, progress)?;
                saved = Instant::now();
                meter.pause_ended();
            }
            if stop && step < steps && !over {
                return stopped(step);
            }
        }
        // What measures has graphs of its own.
        self.trainer.drop_plans();
        release_heap();
        if let Some(best) = so_far.best.take() {
            self.trainer.set_values(best);
        }
        let only = options.instant == InstantHead::Only;
        let alone = made.as_ref().map(|made| self.head_alone(made.head.clone()));
        let mut adapter = match alone.clone().filter(|_| only) {
            Some(alone) => alone,
            None => self.trainer.adapter()?,
        };
        if !only && !self.fit_thresholds(&mut adapter, &mut || !progress.stop())? {
            return stopped(so_far.step);
        }
        let Some((shown, held)) = self.judge(&mut adapter, &mut || !progress.stop())? else {
            return stopped(so_far.step);
        };
        let Shown { metrics: mut after, mut evaluation } = shown;
        let (mut given_up, mut of_all) = (None, None);
        let may_fall_back = !only && !options.even_if_worse && self.begins_instantly();
        if let Some(alone) = alone.filter(|_| may_fall_back)
            && worse(options.task, &after, &so_far.before)
        {
            given_up = Some(std::mem::replace(&mut after, so_far.before.clone()));
            let shown = match first.filter(|_| self.begins_with_it()) {
                Some(shown) => Some(shown),
                None => self.evaluate(&alone, &mut || !progress.stop())?,
            };
            let Some(shown) = shown else { return stopped(so_far.step) };
            let whole = self.instant_of_all(&mut || !progress.stop())?;
            of_all = whole.as_ref().map(|_| self.train.len() + self.held.len());
            adapter = whole.map_or(alone, |head| self.head_alone(head));
            evaluation = shown.evaluation;
        } else if !self.learn_known(&mut adapter, &held, &mut || !progress.stop())? {
            return stopped(so_far.step);
        }
        let effect = self.effect(&mut adapter, made.is_some())?;
        if effect == Some(0.0) {
            given_up = Some(after.clone());
        }
        let knowledge = self.knowledge_of(&adapter, &mut || !progress.stop())?;
        if self.knowledge.is_some() && knowledge.is_none() {
            return stopped(so_far.step);
        }
        let report = TrainReport {
            steps: so_far.step,
            epochs: so_far.step as f32 / per_epoch as f32,
            seconds: started.elapsed().as_secs_f64(),
            step_ms_median: median(durations),
            samples_train: self.train.len(),
            samples_holdout: self.held.len(),
            loss_first: so_far.losses.first().copied().unwrap_or(0.0),
            loss_last: so_far.mean_of_last(per_epoch),
            before: so_far.before,
            after,
            evaluation,
            instant: made.map(|made| made.report),
            given_up,
            of_all,
            targets: adapter.targets.len(),
            skipped: self.trainer.skipped().to_vec(),
            parameters: self.trainer.parameter_count(),
            planned_peak_bytes: self.peak,
            again: self.again,
            micro_batch: self.micro,
            threads: self.threads,
            task: options.task,
            output: self.trainer.output().to_string(),
            labels: self.trainer.labels().to_vec(),
            effect: effect.filter(|most| *most > 0.0),
            knowledge,
            prefix: self.prefix.as_ref().map(Prefix::report).or_else(|| self.uncut.clone()),
        };
        let mut record = TrainingRecord {
            samples: self.train.len() as u64,
            steps: report.steps,
            epochs: report.epochs,
            seed: options.seed,
            learning_rate: options.learning_rate,
            final_loss: report.loss_last,
            before: report.before.clone(),
            after: report.after.clone(),
            date: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            tool: concat!("offshoot ", env!("CARGO_PKG_VERSION")).into(),
        };
        knowledge::record(&mut record, report.knowledge.as_ref());
        adapter.training = Some(record);
        adapter.check()?;
        let early = over.then(|| "no gain on the hold-out".to_string());
        progress.event(&Event::Finished { step: report.steps, early, seconds: report.seconds });
        Ok(Trained { adapter, report })
    }

    /// Asks the generation before for its answers, where they are wanted. `false` where `go_on`
    /// said stop.
    fn ask_teacher(&mut self, go_on: &mut dyn FnMut() -> bool) -> Result<bool> {
        let wanted = self.options.keep > 0.0 && self.options.task.rules().has_before();
        let Some(previous) = self.previous.filter(|_| wanted) else {
            return Ok(true);
        };
        let (engine, labels) = (self.engine, self.trainer.labels());
        self.teacher = Teacher::ask(engine, previous, &self.samples, labels, self.micro, go_on)?;
        Ok(self.teacher.is_some())
    }

    /// The answers of `group`, those of the generation before mixed in.
    fn answers(&self, group: &[usize]) -> Result<Answers> {
        let mut answers = self.samples.answers(group, self.micro)?;
        let keep = self.options.keep;
        let Some(teacher) = &self.teacher else { return Ok(answers) };
        for (row, &sample) in answers.iter_mut().zip(group) {
            if let (Some(row), Some(before)) = (row, teacher.row(sample)) {
                row.iter_mut().zip(before).for_each(|(r, b)| *r = (1.0 - keep) * *r + keep * b);
            }
        }
        Ok(answers)
    }

    /// One optimizer step; the batch's mean loss before it. `None` where `go_on`, asked between
    /// micro-batches, said stop: nothing has changed then.
    fn step(
        &mut self,
        samples: &[usize],
        step: u64,
        rate: f64,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<f32>> {
        let batch = self.batch(samples, step);
        let make = |i: usize| self.work(&batch, i);
        let (threads, count) = (self.threads, batch.len());
        let counted = self.trainer.counted(&self.samples.answers(samples, 0)?).max(1);
        let found = self.trainer.gradients_from(count, counted, threads, &make, go_on)?;
        let Some(mut gradients) = found else { return Ok(None) };
        if !gradients.loss.is_finite() {
            return Err(Error::failed(format!("the loss is {}", gradients.loss))
                .hint("a lower learning rate, or --clip 1"));
        }
        self.trainer.apply(&mut gradients, rate)?;
        Ok(Some(gradients.loss))
    }

    /// Measures the hold-out; whether to stop.
    fn look(&self, so_far: &mut SoFar, progress: &mut dyn Progress) -> Result<bool> {
        // To its end: a checkpoint can't say that a look is still to be done.
        let shown = self.shown(&mut || true)?.unwrap_or_default();
        let metrics = shown.metrics;
        let loss = metrics.iter().find(|(name, _)| name == "loss");
        let Some(loss) = loss.map(|(_, v)| f64::from(*v)) else { return Ok(false) };
        let verdict = so_far.stopping.look(-loss, so_far.step);
        if verdict == Verdict::Best {
            so_far.best = Some(self.trainer.values().to_vec());
        }
        self.tell(so_far.step, &metrics, verdict == Verdict::Best, progress);
        Ok(verdict == Verdict::Stop)
    }

    /// Tells what the hold-out shows after a step; nothing where there is none.
    fn tell(&self, step: u64, found: &[(String, f32)], best: bool, progress: &mut dyn Progress) {
        let loss = found.iter().find(|(name, _)| name == "loss");
        if let (Some((_, loss)), Some((metric, value))) = (loss, found.get(1).or(found.first())) {
            let (metric, value, loss) = (metric.clone(), (*value).into(), (*loss).into());
            progress.event(&Event::HoldOut { step, metric, value, loss, best });
        }
    }
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
