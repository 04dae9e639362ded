//! Batches of new samples with a share of older ones, so that new lessons don't erase old ones.

use super::sampler::{Sampler, SamplerState};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Where a mixer stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MixerState {
    /// Among the new samples.
    pub new: SamplerState,
    /// Among the replayed ones.
    pub old: Option<SamplerState>,
}

/// Gives out batches for ever. Without replayed samples it is a [`Sampler`]. With them each batch
/// holds new samples first, then its share of replayed ones; an epoch is a pass over the new ones.
#[derive(Clone, Debug)]
pub struct Mixer {
    new: Sampler,
    old: Option<Old>,
    batch: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Old {
    /// Draws one sample at a time, each once before any comes again.
    sampler: Sampler,
    /// Replayed samples a batch.
    share: usize,
    /// Place of the first replayed sample.
    first: usize,
}

impl Mixer {
    /// Over `new` samples (places 0..new) and `old` ones (places new..new + old) in batches of
    /// `batch`, about `share` (0 to 1) of each batch replayed: one at least, and one new one.
    ///
    /// # Errors
    /// Usage: no new samples, a batch of 0, a batch of 1 where samples are replayed.
    pub fn new(new: usize, old: usize, share: f32, batch: usize, seed: u64) -> Result<Mixer> {
        if old == 0 || share <= 0.0 {
            return Ok(Mixer { new: Sampler::new(new, batch, seed)?, old: None, batch: vec![] });
        }
        if batch < 2 {
            return Err(Error::usage("a batch of 1 has no room for replayed samples")
                .hint("a batch of 2 or more, or a replay share of 0"));
        }
        let wanted = (batch as f64 * f64::from(share.min(1.0))).round() as usize;
        let share = wanted.clamp(1, batch - 1);
        // Another seed, so that the two orders are independent.
        let sampler = Sampler::new(old, 1, seed ^ 0x9e37_79b9_7f4a_7c15)?;
        let old = Some(Old { sampler, share, first: new });
        Ok(Mixer { new: Sampler::new(new, batch - share, seed)?, old, batch: vec![] })
    }

    /// Batches in a pass over the new samples.
    pub fn batches_per_epoch(&self) -> u64 {
        self.new.batches_per_epoch()
    }

    /// Where it stands: the batch that [`Mixer::next_batch`] gives next.
    pub fn state(&self) -> MixerState {
        MixerState { new: self.new.state(), old: self.old.as_ref().map(|o| o.sampler.state()) }
    }

    /// Goes to where another of the same parameters stood. Errors: a place that there isn't
    /// (mismatch).
    pub fn resume(&mut self, state: MixerState) -> Result<()> {
        self.new.resume(state.new)?;
        match (&mut self.old, state.old) {
            (None, None) => Ok(()),
            (Some(old), Some(state)) => old.sampler.resume(state),
            _ => Err(Error::mismatch("a run with replayed samples and one without don't fit")),
        }
    }

    /// The places of the next batch's samples.
    pub fn next_batch(&mut self) -> &[usize] {
        self.batch.clear();
        self.batch.extend_from_slice(self.new.next_batch());
        if let Some(old) = &mut self.old {
            for _ in 0..old.share {
                self.batch.extend(old.sampler.next_batch().iter().map(|at| old.first + at));
            }
        }
        &self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_holds_its_share_of_old_samples_and_each_comes_in_turn() {
        let mut mixer = Mixer::new(10, 7, 0.5, 8, 3).unwrap();
        assert_eq!(mixer.batches_per_epoch(), 3);
        let (mut new, mut old) = (vec![], vec![]);
        for size in [8, 8, 6, 8, 8, 6, 8] {
            let batch = mixer.next_batch();
            assert_eq!(batch.len(), size);
            assert_eq!(batch.iter().filter(|&&at| at >= 10).count(), 4);
            new.extend(batch.iter().copied().filter(|&at| at < 10));
            old.extend(batch.iter().copied().filter(|&at| at >= 10));
        }
        let once = |part: &[usize]| {
            let mut sorted = part.to_vec();
            sorted.sort_unstable();
            sorted
        };
        assert_eq!(once(&new[..10]), (0..10).collect::<Vec<_>>());
        for pass in old.chunks(7) {
            assert_eq!(once(pass), (10..17).collect::<Vec<_>>());
        }
        assert_ne!(old[..7], old[7..14]);
    }

    #[test]
    fn without_old_samples_it_is_the_sampler() {
        let mut plain = Sampler::new(23, 5, 9).unwrap();
        for (old, share) in [(0, 0.5), (4, 0.0)] {
            let mut mixer = Mixer::new(23, old, share, 5, 9).unwrap();
            let mut plain = plain.clone();
            (0..12).for_each(|_| assert_eq!(mixer.next_batch(), plain.next_batch()));
        }
        plain.next_batch();
        assert!(Mixer::new(0, 4, 0.5, 4, 0).is_err() && Mixer::new(4, 4, 0.5, 1, 0).is_err());
        // One of each at least.
        for share in [0.01, 0.99, 7.0] {
            let mut mixer = Mixer::new(4, 4, share, 4, 0).unwrap();
            let old = mixer.next_batch().iter().filter(|&&at| at >= 4).count();
            assert!((1..=3).contains(&old));
        }
    }

    #[test]
    fn a_resumed_mixer_goes_on_alike() {
        for stop in 0..20 {
            let make = || Mixer::new(11, 5, 0.4, 4, 1).unwrap();
            let mut whole = make();
            (0..stop).for_each(|_| _ = whole.next_batch());
            let mut resumed = make();
            resumed.resume(whole.state()).unwrap();
            (0..30).for_each(|_| assert_eq!(whole.next_batch(), resumed.next_batch()));
        }
        let state = Mixer::new(11, 5, 0.4, 4, 1).unwrap().state();
        assert!(Mixer::new(11, 0, 0.4, 4, 1).unwrap().resume(state).is_err());
    }
}
