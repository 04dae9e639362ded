//! What a run keeps of itself, so that one that was stopped goes on to the same result.

use super::Run;
use crate::adapter::TensorType;
use crate::error::{Error, Result};
use crate::train::checkpoint::{Checkpoint, Trained, run_hash};
use crate::train::mixer::Mixer;
use crate::train::options::TrainOptions;
use crate::train::progress::{Event, Progress};
use crate::train::stopping::EarlyStopping;
use std::time::Duration;

/// Longest work that a kill may undo.
const AT_LATEST: Duration = Duration::from_secs(30);

/// Whether a checkpoint is due after step `step`, `since` the last one: every so many steps, or
/// sooner where steps are slow.
pub(super) fn is_due(step: u64, every: u32, since: Duration) -> bool {
    step.is_multiple_of(every.max(1).into()) || since >= AT_LATEST
}

/// How far a run is, its tensors and the sampler's place apart.
pub(super) struct SoFar {
    /// Steps done.
    pub step: u64,
    pub stopping: EarlyStopping,
    /// The values at the best look.
    pub best: Option<Vec<Vec<f32>>>,
    /// One a step.
    pub losses: Vec<f32>,
    /// Hold-out metrics before the first step.
    pub before: Vec<(String, f32)>,
    /// The weight of the penalty that keeps knowledge, once it was weighed.
    pub keep_weight: Option<f32>,
}

impl SoFar {
    /// Before the first step.
    pub fn new(patience: Option<u32>, before: Vec<(String, f32)>) -> SoFar {
        let stopping = EarlyStopping::new(patience, 0.0);
        SoFar { step: 0, stopping, best: None, losses: vec![], before, keep_weight: None }
    }

    /// Mean loss over the last `steps` steps, one at least; 0 before the first.
    pub fn mean_of_last(&self, steps: u64) -> f32 {
        let first = self.losses.len().saturating_sub(usize::try_from(steps).unwrap_or(1).max(1));
        let tail = self.losses.get(first..).unwrap_or(&[]);
        tail.iter().sum::<f32>() / tail.len().max(1) as f32
    }
}

impl Run<'_> {
    /// Hash of all that decides the result.
    pub(super) fn hash(&self, steps: u64) -> Result<[u8; 32]> {
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
        let probes = self.probes_hash()?;
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
            &probes,
        ]))
    }

    /// Puts the run where its checkpoint left it; `None` without one.
    pub(super) fn resume(&mut self, hash: &[u8; 32], sampler: &mut Mixer) -> Result<Option<SoFar>> {
        let Some(path) = self.options.checkpoint.as_deref().filter(|_| self.options.resume) else {
            return Ok(None);
        };
        if !path.exists() {
            return Ok(None);
        }
        let state = Checkpoint::read(path)?;
        let tensors = self.trainer.parameters().map(|(name, values)| (name, values.len()));
        let fingerprint = self.engine.base().fingerprint();
        state.check_run(hash, &fingerprint, tensors).map_err(|e| e.at(path.display()))?;
        sampler.resume(state.sampler)?;
        self.trainer.set_values(state.parameters.into_iter().map(|t| t.values).collect());
        self.trainer.set_optimizer(state.optimizer);
        let Checkpoint { step, stopping, best, losses, before, keep_weight, .. } = state;
        Ok(Some(SoFar { step, stopping, best, losses, before, keep_weight }))
    }

    /// Writes the checkpoint, where one is wanted.
    pub(super) fn save(
        &self,
        run: [u8; 32],
        sampler: &Mixer,
        so_far: &SoFar,
        progress: &mut dyn Progress,
    ) -> Result<()> {
        let Some(path) = self.options.checkpoint.as_deref() else { return Ok(()) };
        let tensor = |(name, values): (&str, &[f32])| Trained {
            name: name.to_string(),
            values: values.to_vec(),
        };
        let checkpoint = Checkpoint {
            run,
            base: self.engine.base().fingerprint(),
            step: so_far.step,
            sampler: sampler.state(),
            parameters: self.trainer.parameters().map(tensor).collect(),
            optimizer: self.trainer.optimizer().clone(),
            stopping: so_far.stopping,
            best: so_far.best.clone(),
            losses: so_far.losses.clone(),
            before: so_far.before.clone(),
            keep_weight: so_far.keep_weight,
        };
        checkpoint.write(path)?;
        progress.event(&Event::Checkpoint { step: so_far.step });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twenty steps of five seconds, in windows of a minute: the job never got on.
    #[test]
    fn slow_steps_are_kept_before_their_count_is_full() {
        let after = Duration::from_secs;
        assert!(is_due(20, 20, after(0)) && !is_due(6, 20, after(29)));
        assert!(is_due(6, 20, after(30)));
        assert!(is_due(7, 0, after(0)), "0 is every step");
    }
}
