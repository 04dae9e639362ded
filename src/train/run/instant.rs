//! The instant head of a run: what its head begins with, and what it must not fall below.

use super::Run;
use crate::adapter::{Adapter, Head};
use crate::error::{Error, Result};
use crate::train::head::{BIAS, WEIGHT};
use crate::train::instant::{Form, Made, features_of, made_of};
use crate::train::options::InstantHead;
use crate::train::prefix::Set;
use crate::train::tasks::Task;

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
        let Some(rows) = self.features(None, Set::Samples, &self.train, go_on)? else {
            return Ok(None);
        };
        let (features, labels) = (&self.trainer.setup.features, self.trainer.labels());
        let made = made_of(rows, &self.samples, &self.train, features, labels, form)?;
        Ok(Some(Some(made)))
    }

    /// Whether what the run begins with answers as the instant head alone does.
    pub(super) fn begins_with_it(&self) -> bool {
        self.begins_instantly() && !self.options.task.rules().has_thresholds()
    }

    /// The instant head of all samples, those held out of them included: it has been judged without those, and
    /// with them it is better. `None` where others are held out, or `go_on` said stop.
    pub(super) fn instant_of_all(&self, go_on: &mut dyn FnMut() -> bool) -> Result<Option<Head>> {
        let form = self.options.task.rules().closed_form();
        let Some(form) = form.filter(|_| self.held_samples.is_none() && !self.held.is_empty())
        else {
            return Ok(None);
        };
        let (features, labels) = (&self.trainer.setup.features, self.trainer.labels());
        let (engine, samples, micro) = (self.engine, &self.samples, self.micro);
        let all: Vec<usize> = (0..samples.len()).collect();
        let rows = features_of(engine, None, samples, &all, features, micro, go_on)?;
        let made = rows.map(|rows| made_of(rows, samples, &all, features, labels, form));
        Ok(made.transpose()?.map(|made| made.head))
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
