//! What costs little is learned longer, and again of all samples.

use super::data::{Dataset, SampleInput};
use super::options::{InstantHead, TrainOptions};
use super::progress::{Event, Progress};
use super::run::{Trained, train};
use super::samples::binding_of_one;
use crate::error::{ErrorKind, Result};
use crate::graph::{bind_dims, macs, tract_error};
use crate::runtime::Engine;

/// Steps at least.
const FEWEST_STEPS: u32 = 200;
/// Multiply-adds of a sample, at most: 200 steps of 16 take a second or two of a processor.
const MOST_WORK: usize = 2 << 20;

/// Whether nobody says how long to learn, and it costs little: arrays through a small network.
///
/// # Errors
/// What binding the base's graph says.
pub(crate) fn is_cheap(engine: &Engine, data: &Dataset, options: &TrainOptions) -> Result<bool> {
    let free = options.epochs.is_none() && options.steps.is_none() && options.patience.is_none();
    let arrays = |input: &SampleInput| matches!(input, SampleInput::Arrays(_));
    let Some(first) = data.samples.first().filter(|first| arrays(&first.input)) else {
        return Ok(false);
    };
    let starts = options.instant == InstantHead::Start;
    if !free || !starts || data.task.rules().closed_form().is_none() {
        return Ok(false);
    }
    let binding = binding_of_one(engine, first)?;
    let model = bind_dims(engine.graph(), &binding)?;
    let work = macs(&model, 0).map_err(|e| tract_error(ErrorKind::Failed, &e))?;
    Ok(work <= MOST_WORK)
}

/// As [`train`] of what [`is_cheap`]: 200 steps at least, and where what the hold-out judged is better than the
/// instant head, the same again of all samples.
///
/// # Errors
/// As [`train`].
pub(crate) fn train_cheaply(
    engine: &Engine,
    data: &Dataset,
    options: &TrainOptions,
    progress: &mut dyn Progress,
) -> Result<Trained> {
    let options = TrainOptions { min_steps: FEWEST_STEPS, ..options.clone() };
    let mut judged = train(engine, data, None, &options, progress)?;
    let report = &mut judged.report;
    if report.given_up.is_some() || report.samples_holdout == 0 {
        return Ok(judged);
    }
    let again = TrainOptions {
        holdout: 0.0,
        steps: u32::try_from(report.steps).ok(),
        checkpoint: None,
        resume: false,
        watch: false,
        ..options
    };
    let whole = train(engine, data, None, &again, &mut Quiet(progress))?;
    report.of_all = Some(data.samples.len());
    let mut adapter = whole.adapter;
    if let (Some(head), Some(measured)) = (adapter.heads.first_mut(), judged.adapter.heads.first())
    {
        head.temperature = measured.temperature;
    }
    if let (Some(record), Some(measured)) = (&mut adapter.training, &judged.adapter.training) {
        (record.before, record.after) = (measured.before.clone(), measured.after.clone());
    }
    judged.adapter = adapter;
    Ok(judged)
}

/// Stops where the other does, and tells nothing.
struct Quiet<'a>(&'a mut dyn Progress);

impl Progress for Quiet<'_> {
    fn event(&mut self, _: &Event) {}

    fn stop(&mut self) -> bool {
        self.0.stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::PackOptions;
    use crate::train::evaluate;
    use crate::train::progress::Silent;
    use crate::train::testing::{bytes, engine, numbers, pictures, points};

    #[test]
    fn few_arrays_are_learned_for_200_steps_and_all_of_them_in_the_end() {
        let (_dir, engine) = engine("mlp", &PackOptions::default());
        let (data, others) = (numbers(50, 1), numbers(200, 2));
        let options = TrainOptions { task: data.task, ..TrainOptions::default() };
        assert!(is_cheap(&engine, &data, &options).unwrap());
        let trained = train_cheaply(&engine, &data, &options, &mut Silent).unwrap();
        let report = &trained.report;
        assert_eq!((report.samples_train, report.of_all), (40, Some(50)));
        assert_eq!((report.steps, &report.given_up), (200, &None));
        let judged = TrainOptions { min_steps: FEWEST_STEPS, ..options.clone() };
        let judged = train(&engine, &data, None, &judged, &mut Silent).unwrap();
        assert_eq!(report.after, judged.report.after);
        let loss = |adapter| {
            let bound = engine.bind(&[(adapter, 1.0)]).unwrap();
            evaluate(&engine, Some(&bound), &others, 8).unwrap().metric("loss").unwrap()
        };
        assert!(loss(&trained.adapter) < loss(&judged.adapter));
        let again = train_cheaply(&engine, &data, &options, &mut Silent).unwrap();
        assert_eq!(bytes(&trained), bytes(&again));
    }

    #[test]
    fn what_somebody_says_or_what_takes_long_is_not_changed() {
        let (_dir, mlp) = engine("mlp", &PackOptions::default());
        let data = points(30, 1);
        let usual = TrainOptions::default();
        assert!(is_cheap(&mlp, &data, &usual).unwrap());
        for options in [
            TrainOptions { epochs: Some(8), ..usual.clone() },
            TrainOptions { steps: Some(8), ..usual.clone() },
            TrainOptions { patience: Some(1), ..usual.clone() },
            TrainOptions { instant: InstantHead::Only, ..usual.clone() },
        ] {
            assert!(!is_cheap(&mlp, &data, &options).unwrap());
        }
        let (_dir, convnet) = engine("convnet", &PackOptions::default());
        let work = binding_of_one(&convnet, &pictures(1, 1).samples[0]).unwrap();
        let work = macs(&bind_dims(convnet.graph(), &work).unwrap(), 0).unwrap();
        let cheap = is_cheap(&convnet, &pictures(4, 1), &usual).unwrap();
        assert_eq!(cheap, work <= MOST_WORK, "{work}");
        assert!(work > 100_000, "{work}");
    }
}
