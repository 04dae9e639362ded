//! The instant head of a run: what its head begins with, and what it must not fall below.

use super::Run;
use crate::adapter::{Adapter, Head};
use crate::error::{Error, Result};
use crate::train::head::{BIAS, WEIGHT};
use crate::train::instant::{
    ENOUGH_HELD, Form, Made, features_of, fit, known, linear, make, temperature,
};
use crate::train::options::InstantHead;
use crate::train::samples::Samples;
use crate::train::tasks::Task;
use std::sync::Arc;

/// Training samples whose features are looked at again after training, at most.
const CALIBRATED_ON: usize = 256;

impl Run<'_> {
    /// The instant head of the samples trained on; none where the run wants none or the task has none.
    /// The outer `None`: `go_on` said stop.
    ///
    /// # Errors
    /// Unsupported: the run is for nothing else, and the task has none. What running says.
    pub(super) fn instant(&self, go_on: &mut dyn FnMut() -> bool) -> Result<Option<Option<Made>>> {
        let task = self.options.task;
        let wanted = self.options.instant;
        let form = match task.rules().closed_form().filter(|_| wanted != InstantHead::Off) {
            Some(form) => form,
            None if wanted == InstantHead::Only => {
                return Err(Error::unsupported(format!("the task {task} has no instant head"))
                    .hint("train without --instant"));
            }
            None => return Ok(Some(None)),
        };
        let features = &self.trainer.setup.features;
        let (engine, samples, which) = (self.engine, &self.samples, &self.train);
        let labels = self.trainer.labels();
        let made = make(engine, None, samples, which, features, labels, form, self.micro, go_on)?;
        Ok(made.map(Some))
    }

    /// Whether the trained head begins with the instant one: no generation before has one.
    pub(super) fn begins_instantly(&self) -> bool {
        let previous = self.previous.filter(|_| self.options.warm_start);
        previous.and_then(Adapter::head).is_none()
    }

    /// Puts the instant head where the trained one begins.
    pub(super) fn begin_with(&mut self, made: &Made) -> Result<()> {
        if self.begins_instantly() {
            self.trainer.set_parameter(WEIGHT, &made.head.weight)?;
            self.trainer.set_parameter(BIAS, &made.head.bias)?;
        }
        Ok(())
    }

    /// Gives a trained head of classes its temperature, by what was held out, and what tells inputs like
    /// those learned from others. `false` where `go_on` said stop.
    pub(super) fn calibrate(
        &self,
        adapter: &mut Adapter,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool> {
        if self.options.task.rules().closed_form() != Some(Form::OneOf) {
            return Ok(true);
        }
        let bound = self.engine.bind(&[(&*adapter, 1.0)])?;
        let features = &self.trainer.setup.features;
        let mut ask = |samples: &Samples<'_>, which: &[usize]| {
            features_of(self.engine, Some(&bound), samples, which, features, self.micro, go_on)
        };
        let step = self.train.len().div_ceil(CALIBRATED_ON).max(1);
        let some: Vec<usize> = self.train.iter().copied().step_by(step).collect();
        let Some(rows) = ask(&self.samples, &some)? else { return Ok(false) };
        let targets = some.iter().map(|&s| self.samples.target(s)).collect::<Result<Vec<_>>>()?;
        let held = self.held_samples.as_ref().unwrap_or(&self.samples);
        let Some(held_rows) = ask(held, &self.held)? else { return Ok(false) };
        let Some(head) = adapter.heads.first_mut() else { return Ok(true) };
        let mut logits: Vec<Vec<f32>> =
            held_rows.iter().map(|row| linear(&head.weight, &head.bias, row)).collect();
        if logits.len() >= ENOUGH_HELD {
            let right = self.held.iter().map(|&s| held.target(s)).collect::<Result<Vec<_>>>()?;
            head.temperature = temperature(&logits, &right);
            logits.iter_mut().flatten().for_each(|v| *v /= head.temperature);
        }
        if let Some(mut found) = known(&fit(&rows, &targets, Form::OneOf)?, &rows, &targets)? {
            found.held_out(&held_rows, &logits);
            head.known = Some(Arc::new(found.finish()));
        }
        Ok(true)
    }

    /// An adapter of a head alone.
    pub(super) fn head_alone(&self, head: Head) -> Adapter {
        Adapter {
            name: self.options.name.clone(),
            base: Some(self.engine.base().fingerprint()),
            heads: vec![head],
            ..Adapter::default()
        }
    }
}

/// Whether metrics `a` are worse than `b`: fewer right answers, or where nothing is right or wrong a
/// greater loss.
pub(super) fn worse(task: Task, a: &[(String, f32)], b: &[(String, f32)]) -> bool {
    let at = |m: &[(String, f32)], place: usize| m.get(place).map_or(0.0, |(_, value)| *value);
    match task.rules().closed_form() {
        Some(Form::Values) => at(a, 0) > at(b, 0),
        _ => at(a, 1) < at(b, 1),
    }
}
