//! The order in which samples are trained on.

use crate::error::{Error, Result};
use crate::train::random::{shuffle, stream};
use serde::{Deserialize, Serialize};

/// Where a sampler stands. With the sampler's own parameters it says all that is to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplerState {
    /// Full passes over the samples before the current one.
    pub epoch: u64,
    /// Batches of this epoch that were given out.
    pub batch: u64,
}

/// Gives out batches of sample places for ever: each epoch is a new seeded order, and a sample
/// comes once an epoch. The last batch of an epoch may be smaller.
#[derive(Clone, Debug)]
pub struct Sampler {
    seed: u64,
    count: usize,
    batch: usize,
    state: SamplerState,
    order: Vec<Vec<usize>>,
    ordered: Option<u64>,
}

impl Sampler {
    /// Over `count` samples in batches of `batch`, both at least 1.
    pub fn new(count: usize, batch: usize, seed: u64) -> Result<Sampler> {
        if count == 0 || batch == 0 {
            return Err(Error::usage(format!("no batches of {batch} from {count} samples")));
        }
        Ok(Sampler {
            seed,
            count,
            batch,
            state: SamplerState::default(),
            order: Vec::new(),
            ordered: None,
        })
    }

    /// Batches in one epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.count.div_ceil(self.batch) as u64
    }

    /// Where it stands: the batch that [`Sampler::next_batch`] gives next.
    pub fn state(&self) -> SamplerState {
        self.state
    }

    /// Goes to where another of the same parameters stood. A place past the end of an epoch is an
    /// error.
    pub fn resume(&mut self, state: SamplerState) -> Result<()> {
        if state.batch >= self.batches_per_epoch() {
            return Err(Error::mismatch(format!(
                "batch {} is not one of the {} of an epoch",
                state.batch,
                self.batches_per_epoch()
            )));
        }
        self.state = state;
        Ok(())
    }

    /// The places of the next batch's samples.
    pub fn next_batch(&mut self) -> &[usize] {
        if self.ordered != Some(self.state.epoch) {
            self.order = self.epoch_order(self.state.epoch);
            self.ordered = Some(self.state.epoch);
        }
        let at = self.state.batch as usize;
        self.state.batch += 1;
        if self.state.batch >= self.batches_per_epoch() {
            self.state = SamplerState { epoch: self.state.epoch + 1, batch: 0 };
        }
        self.order.get(at).map_or(&[], Vec::as_slice)
    }

    fn epoch_order(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut places: Vec<usize> = (0..self.count).collect();
        shuffle(&mut places, &mut stream(self.seed, "order of samples", epoch));
        places.chunks(self.batch).map(<[usize]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(sampler: &mut Sampler) -> Vec<Vec<usize>> {
        (0..sampler.batches_per_epoch()).map(|_| sampler.next_batch().to_vec()).collect()
    }

    #[test]
    fn an_epoch_holds_every_sample_once_and_no_two_are_alike() {
        let mut s = Sampler::new(23, 5, 9).unwrap();
        let (first, second) = (epoch(&mut s), epoch(&mut s));
        assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [5, 5, 5, 5, 3]);
        for e in [&first, &second] {
            let mut all = e.concat();
            all.sort_unstable();
            assert_eq!(all, (0..23).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        assert_eq!(first, epoch(&mut Sampler::new(23, 5, 9).unwrap()));
        assert_ne!(first, epoch(&mut Sampler::new(23, 5, 8).unwrap()));
        assert_eq!(s.state(), SamplerState { epoch: 2, batch: 0 });
    }

    #[test]
    fn a_resumed_sampler_goes_on_alike() {
        for stop in 0..25 {
            let make = || Sampler::new(40, 3, 4).unwrap();
            let mut whole = make();
            (0..stop).for_each(|_| _ = whole.next_batch());
            let mut resumed = make();
            resumed.resume(whole.state()).unwrap();
            for _ in 0..30 {
                assert_eq!(whole.next_batch().to_vec(), resumed.next_batch().to_vec());
            }
        }
        let mut s = Sampler::new(4, 2, 0).unwrap();
        assert!(s.resume(SamplerState { epoch: 0, batch: 2 }).is_err());
    }

    #[test]
    fn nothing_to_give_is_an_error() {
        assert!(Sampler::new(0, 1, 0).is_err());
        assert!(Sampler::new(1, 0, 0).is_err());
        assert_eq!(Sampler::new(2, usize::MAX, 0).unwrap().next_batch().len(), 2);
    }
}
