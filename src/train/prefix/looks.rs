//! Features of the values as they are, made of rows that are kept.

use super::{Prefix, Set};
use crate::error::Result;
use crate::runtime::Binding;
use crate::train::plan::Look;
use crate::train::runnable::tensors;
use crate::train::samples::Samples;
use crate::train::trainer::Trainer;
use std::sync::{Arc, Mutex, PoisonError};

/// Graphs kept for different shapes; the oldest goes first.
const MAX_LOOKS: usize = 16;

/// Graphs of the features that the head reads, for the shapes seen so far.
#[derive(Default)]
pub(in crate::train) struct Looks(Mutex<Vec<(Binding, Arc<Look>)>>);

impl Looks {
    /// The features that the head reads of each of `which`, in that order, by the trainer's values as they are.
    /// `None` where `go_on`, asked between batches, said stop.
    ///
    /// # Errors
    /// What building and running say.
    #[allow(clippy::too_many_arguments)]
    pub fn features(
        &self,
        prefix: Option<&Prefix>,
        trainer: &Trainer,
        samples: &Samples<'_>,
        set: Set,
        which: &[usize],
        rows: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Vec<Vec<f32>>>> {
        let (engine, parameters) = (trainer.engine(), trainer.parameter_tensors()?);
        let mut found = vec![vec![]; samples.len()];
        for group in samples.groups(which, rows) {
            if !go_on() {
                return Ok(None);
            }
            let inputs = samples.inputs(&group, rows)?;
            let binding = engine.binding(&engine.ordered(&inputs)?)?;
            let look = self.look(trainer, &binding)?;
            let fed = match (prefix, look.below()) {
                (Some(prefix), Some(below)) => {
                    prefix.crossing(engine, below, &binding, samples, set, &group, rows)?
                }
                _ => tensors(engine, &inputs)?,
            };
            let features = look.run(engine, &fed, &parameters)?;
            group.iter().zip(features).for_each(|(&sample, row)| found[sample] = row);
        }
        Ok(Some(which.iter().map(|&sample| std::mem::take(&mut found[sample])).collect()))
    }

    fn look(&self, trainer: &Trainer, binding: &Binding) -> Result<Arc<Look>> {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, look)) = looks.iter().find(|(known, _)| known == binding) {
            return Ok(look.clone());
        }
        let (setup, parameters) = (&trainer.setup, &trainer.parameters);
        let look = Arc::new(Look::build(trainer.engine(), binding, setup, parameters)?);
        if looks.len() == MAX_LOOKS {
            looks.remove(0);
        }
        looks.push((binding.clone(), look.clone()));
        Ok(look)
    }
}
