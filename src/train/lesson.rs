//! What a run learns, and what it goes on from.

use super::data::Dataset;
use super::evaluate::each_row;
use super::samples::Samples;
use super::tasks::Task;
use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::runtime::Engine;

/// What a run learns, what it is measured on, and what it goes on from.
#[derive(Clone, Copy, Debug)]
pub struct Lesson<'a> {
    /// The samples to train on: new ones, then `replayed` older ones.
    pub data: &'a Dataset,
    /// How many samples at the end of `data` are older ones; each batch holds
    /// [`TrainOptions::replay`](super::TrainOptions::replay) of them. 0: all are new.
    pub replayed: usize,
    /// Measured and never trained on. Without one, [`TrainOptions::holdout`](super::TrainOptions)
    /// of `data` is held out; not where samples are replayed.
    pub holdout: Option<&'a Dataset>,
    /// The generation to begin with ([`TrainOptions::warm_start`](super::TrainOptions)) and to stay
    /// near to ([`TrainOptions::keep`](super::TrainOptions::keep)).
    pub previous: Option<&'a Adapter>,
}

impl<'a> Lesson<'a> {
    /// Samples that are all new, with no generation before.
    pub fn new(data: &'a Dataset, holdout: Option<&'a Dataset>) -> Lesson<'a> {
        Lesson { data, replayed: 0, holdout, previous: None }
    }

    /// The head's outputs: the labels of the generation before, then new ones of the data; or one
    /// name per value.
    ///
    /// # Errors
    /// Usage: the data are labelled for another task than `task`.
    pub(super) fn labels(&self, task: Task) -> Result<Vec<String>> {
        let found = self.data.task;
        if found != task {
            return Err(Error::usage(format!(
                "the samples are labelled for the task {found}, not for {task}"
            ))
            .hint(format!("train with --task {found}")));
        }
        let head = self.previous.and_then(Adapter::head);
        let known = head.map_or(&[][..], |head| &head.labels[..]);
        Ok(task.rules().outputs(self.data, known))
    }
}

/// The answers of the generation before to the samples of a run, for those that it answers rightly, in
/// the form of the targets. Where it is wrong the label alone teaches, so that a correction is not
/// weakened by the very answer that it corrects.
///
/// Mixed into the targets of a cross-entropy with weight w they give (1 - w) · cross-entropy with
/// the label + w · KL(before || now) + a constant: learning without forgetting (Li and Hoiem 2016,
/// arXiv:1606.09282), at temperature 1.
pub(super) struct Teacher {
    rows: Vec<Option<Vec<f32>>>,
}

impl Teacher {
    /// Asks `previous` for every one of `samples`; `batch` run at once. `None` where `go_on` said
    /// stop.
    pub(super) fn ask(
        engine: &Engine,
        previous: &Adapter,
        samples: &Samples,
        labels: &[String],
        batch: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Teacher>> {
        let Some(head) = previous.head() else {
            return Err(Error::mismatch("the generation before has no head to learn from"));
        };
        let place = |l: &String| labels.iter().position(|known| known == l);
        let places: Option<Vec<usize>> = head.labels.iter().map(place).collect();
        let places =
            places.ok_or_else(|| Error::mismatch("the generation before knows other labels"))?;
        let bound = engine.bind(&[(previous, 1.0)])?;
        let all: Vec<usize> = (0..samples.len()).collect();
        let mut rows = vec![None; samples.len()];
        let rules = samples.task().rules();
        let mut take = |sample: usize, logits: &[f32]| -> Result<()> {
            rows[sample] = rules.before(&samples.target(sample)?, logits, &places, labels.len());
            Ok(())
        };
        let names = &head.labels;
        let whole = each_row(engine, Some(&bound), samples, &all, names, batch, go_on, &mut take)?;
        Ok(whole.then_some(Teacher { rows }))
    }

    /// What it answered for a sample; `None` where it was wrong.
    pub(super) fn row(&self, sample: usize) -> Option<&[f32]> {
        self.rows.get(sample)?.as_deref()
    }
}
