//! What a run's hold-out shows, and how sure a head is of what it says.

use super::Run;
use crate::adapter::Adapter;
use crate::error::Result;
use crate::train::evaluate::{Evaluation, evaluate_features, evaluate_samples};
use crate::train::instant::{ENOUGH_HELD, Form, fit, known, linear, temperature};
use crate::train::options::InstantHead;
use crate::train::prefix::Set;
use std::sync::Arc;

/// Training samples whose features are looked at again after training, at most.
const CALIBRATED_ON: usize = 256;

/// What a hold-out shows: metrics by name, and all of it.
#[derive(Default)]
pub(super) struct Shown {
    pub metrics: Vec<(String, f32)>,
    pub evaluation: Option<Evaluation>,
}

impl Shown {
    pub fn of(evaluation: Evaluation) -> Shown {
        let metrics = evaluation.metrics.0.iter().map(|m| (m.name.into(), m.value)).collect();
        Shown { metrics, evaluation: Some(evaluation) }
    }
}

impl Run<'_> {
    /// What the hold-out shows; nothing without one. `None` where `go_on` said stop.
    pub(super) fn evaluate(
        &self,
        adapter: &Adapter,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Shown>> {
        if self.held.is_empty() {
            return Ok(Some(Shown::default()));
        }
        let bound = self.engine.bind(&[(adapter, 1.0)])?;
        let samples = self.held_samples.as_ref().unwrap_or(&self.samples);
        let labels = self.trainer.labels();
        let (engine, held, micro) = (self.engine, &self.held, self.micro);
        let found = evaluate_samples(engine, Some(&bound), samples, held, labels, micro, go_on)?;
        Ok(found.map(Shown::of))
    }

    /// As [`Run::evaluate`] of the values as they are.
    pub(super) fn shown(&self, go_on: &mut dyn FnMut() -> bool) -> Result<Option<Shown>> {
        let adapter = self.trainer.adapter()?;
        let head = adapter.head().filter(|_| self.looks().is_some() && !self.held.is_empty());
        let Some(head) = head else { return self.evaluate(&adapter, go_on) };
        let Some(rows) = self.features(Some(&adapter), Set::Held, &self.held, go_on)? else {
            return Ok(None);
        };
        let held = self.held_samples.as_ref().unwrap_or(&self.samples);
        evaluate_features(held, &self.held, &rows, head).map(|found| Some(Shown::of(found)))
    }

    /// Whether the run makes a head of classes that says how sure it is.
    fn calibrates(&self) -> bool {
        let classes = self.options.task.rules().closed_form() == Some(Form::OneOf);
        classes && self.options.instant == InstantHead::Start
    }

    /// What the hold-out shows of the values as they are, in `adapter`, and the features that the head reads of
    /// it, where they were asked for: a head of classes gets its temperature by them. `None` where `go_on` said stop.
    pub(super) fn judge(
        &self,
        adapter: &mut Adapter,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<(Shown, Vec<Vec<f32>>)>> {
        let asked = self.calibrates() || self.looks().is_some();
        if !asked || self.held.is_empty() {
            return Ok(self.evaluate(adapter, go_on)?.map(|shown| (shown, vec![])));
        }
        let rows = self.features(Some(&*adapter), Set::Held, &self.held, go_on)?;
        let Some(rows) = rows else { return Ok(None) };
        let held = self.held_samples.as_ref().unwrap_or(&self.samples);
        let Some(head) = adapter.heads.first_mut() else { return Ok(None) };
        if self.calibrates() && rows.len() >= ENOUGH_HELD {
            let right = self.held.iter().map(|&s| held.target(s)).collect::<Result<Vec<_>>>()?;
            let logits: Vec<Vec<f32>> =
                rows.iter().map(|row| linear(&head.weight, &head.bias, row)).collect();
            head.temperature = temperature(&logits, &right);
        }
        let shown = evaluate_features(held, &self.held, &rows, head)?;
        Ok(Some((Shown::of(shown), rows)))
    }

    /// Gives a trained head of classes what tells inputs like those learned from others; `held` are the
    /// features of what was held out. `false` where `go_on` said stop.
    pub(super) fn learn_known(
        &self,
        adapter: &mut Adapter,
        held: &[Vec<f32>],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<bool> {
        if !self.calibrates() {
            return Ok(true);
        }
        let step = self.train.len().div_ceil(CALIBRATED_ON).max(1);
        let some: Vec<usize> = self.train.iter().copied().step_by(step).collect();
        let rows = self.features(Some(&*adapter), Set::Samples, &some, go_on)?;
        let Some(rows) = rows else { return Ok(false) };
        let targets = some.iter().map(|&s| self.samples.target(s)).collect::<Result<Vec<_>>>()?;
        let Some(head) = adapter.heads.first_mut() else { return Ok(true) };
        let over = |row: &Vec<f32>| -> Vec<f32> {
            let logits = linear(&head.weight, &head.bias, row);
            logits.into_iter().map(|v| v / head.temperature).collect()
        };
        let logits: Vec<Vec<f32>> = held.iter().map(over).collect();
        if let Some(mut found) = known(&fit(&rows, &targets, Form::OneOf)?, &rows, &targets)? {
            found.held_out(held, &logits);
            head.known = Some(Arc::new(found.finish()));
        }
        Ok(true)
    }
}
