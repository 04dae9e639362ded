//! The state of a run in one file: what a killed run needs to go on to the same result.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `OFFSHCKP` |
//! | 4 | version, little-endian (3) |
//! | to the end less 32 | [`Checkpoint`] as postcard writes it |
//! | 32 | blake3 of everything before |

#![warn(clippy::arithmetic_side_effects)]

use crate::error::{Cause, Error, ErrorKind, Result};
use crate::fingerprint::BaseFingerprint;
use crate::fs::{Access, read_limited, write_atomic};
use crate::train::mixer::MixerState;
use crate::train::optimizer::Optimizer;
use crate::train::stopping::EarlyStopping;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;

const MAGIC: &[u8; 8] = b"OFFSHCKP";
const VERSION: u32 = 3;
const HEADER: usize = MAGIC.len() + 4;
const HASH: usize = 32;

/// Largest checkpoint that is read, in bytes.
pub const MAX_CHECKPOINT_BYTES: u64 = 1 << 30;

/// A trained tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// Its name; unique within a run.
    pub name: String,
    /// Its values.
    pub values: Vec<f32>,
}

/// Everything that decides how a run goes on. One that was read is sound in itself (sizes agree,
/// values finite); whether it belongs to this run is [`Checkpoint::check_run`]'s matter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Hash of all that fixes the run (settings, data, seed): see [`run_hash`].
    pub run: [u8; 32],
    /// The base that is trained on.
    pub base: BaseFingerprint,
    /// Steps done.
    pub step: u64,
    /// Where the sampler stands.
    pub sampler: MixerState,
    /// The tensors after the last step.
    pub parameters: Vec<Trained>,
    /// The optimizer after the last step.
    pub optimizer: Optimizer,
    /// The best hold-out so far and the patience used up.
    pub stopping: EarlyStopping,
    /// The tensors at the best hold-out, in the order of `parameters`.
    pub best: Option<Vec<Vec<f32>>>,
    /// Loss of every step so far.
    pub losses: Vec<f32>,
    /// Hold-out metrics before the first step.
    pub before: Vec<(String, f32)>,
    /// The weight of the penalty that keeps knowledge, once it was weighed.
    pub keep_weight: Option<f32>,
}

/// Hash of what fixes a run: `parts` in order, each with its length, so that no two lists of parts
/// run together.
pub fn run_hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("offshoot run v1");
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

impl Checkpoint {
    /// Writes the file atomically, readable by its owner alone: it holds what was learned from
    /// samples.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomic(path, Access::Private, |file| {
            let mut out = Hashing { inner: file, hasher: blake3::Hasher::new() };
            out.write_all(MAGIC)?;
            out.write_all(&VERSION.to_le_bytes())?;
            postcard::to_io(self, &mut out).map_err(std::io::Error::other)?;
            let hash = out.hasher.finalize();
            out.inner.write_all(hash.as_bytes())
        })
    }

    /// Reads a file. Errors: not a checkpoint, damaged (bad input), another version (mismatch).
    pub fn read(path: &Path) -> Result<Checkpoint> {
        let bytes = read_limited(path, MAX_CHECKPOINT_BYTES)?;
        Checkpoint::from_bytes(&bytes)
            .map_err(|e| match e.kind() {
                ErrorKind::BadInput => e.because(Cause::Checkpoint),
                _ => e,
            })
            .map_err(|e| e.at(path.display()))
    }

    /// Reads the bytes of a file; errors as [`Checkpoint::read`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Checkpoint> {
        if bytes.get(..MAGIC.len()) != Some(MAGIC.as_slice()) {
            return Err(Error::bad_input("not a checkpoint"));
        }
        let truncated = || Error::bad_input("checkpoint is truncated");
        let end = bytes.len().checked_sub(HASH).ok_or_else(truncated)?;
        let (content, hash) = bytes.split_at(end);
        let version = content.get(MAGIC.len()..HEADER).ok_or_else(truncated)?;
        let version = u32::from_le_bytes(version.try_into().map_err(|_| truncated())?);
        if version != VERSION {
            // As another run's: whoever may start anew then does so.
            return Err(Error::mismatch(format!(
                "checkpoint has version {version}, expected {VERSION}"
            ))
            .hint("train without --resume to start anew"));
        }
        if blake3::hash(content).as_bytes() != hash {
            return Err(Error::bad_input("checkpoint is damaged: its hash does not fit"));
        }
        let payload = content.get(HEADER..).ok_or_else(truncated)?;
        let (checkpoint, rest) = postcard::take_from_bytes::<Checkpoint>(payload)
            .map_err(|e| Error::bad_input(format!("checkpoint is damaged: {e}")))?;
        if !rest.is_empty() {
            return Err(Error::bad_input("checkpoint is damaged: bytes left over"));
        }
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// An error unless this is a state of the run with this hash, on this base, training tensors
    /// of these names and lengths.
    pub fn check_run<'a>(
        &self,
        run: &[u8; 32],
        base: &BaseFingerprint,
        tensors: impl IntoIterator<Item = (&'a str, usize)>,
    ) -> Result<()> {
        if self.base != *base {
            return Err(Error::mismatch(format!(
                "checkpoint belongs to base {}, not to {}",
                self.base.short(),
                base.short()
            )));
        }
        if self.run != *run {
            return Err(Error::mismatch("checkpoint belongs to a run with other settings or data")
                .hint("train without --resume to start anew"));
        }
        self.optimizer.check(tensors)
    }

    fn check(&self) -> Result<()> {
        let tensors = self.parameters.iter().map(|t| (t.name.as_str(), t.values.len()));
        self.optimizer.check(tensors)?;
        if self.before.iter().any(|(_, v)| !v.is_finite()) {
            return Err(Error::bad_input("checkpoint holds metrics that are not finite"));
        }
        if self.keep_weight.is_some_and(|w| !(w.is_finite() && w > 0.0)) {
            return Err(Error::bad_input("checkpoint holds a weight that is none"));
        }
        let best = self.best.iter().flatten();
        let finite = self.parameters.iter().map(|t| &t.values).chain(best.clone());
        if finite.flatten().any(|v| !v.is_finite()) {
            return Err(Error::bad_input("checkpoint holds values that are not finite"));
        }
        let lengths = self.parameters.iter().map(|t| t.values.len());
        if self.best.is_some() && !best.map(Vec::len).eq(lengths) {
            return Err(Error::bad_input("checkpoint's best tensors have other sizes"));
        }
        if self.optimizer.steps() != self.step {
            return Err(Error::bad_input(format!(
                "checkpoint of step {} holds an optimizer of step {}",
                self.step,
                self.optimizer.steps()
            )));
        }
        Ok(())
    }
}

/// Hashes what passes through.
struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..n).unwrap_or(bytes));
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::train::init::uniform;
    use crate::train::mixer::Mixer;
    use crate::train::optimizer::{Rule, clip_global_norm};
    use crate::train::schedule::Schedule;
    use crate::train::stopping::Verdict;

    const SAMPLES: usize = 37;
    const STEPS: u64 = 40;

    /// A small real run: least squares with momentum or AdamW, clipping, a schedule, a hold-out.
    struct Run {
        state: Checkpoint,
        sampler: Mixer,
    }

    impl Run {
        fn new(rule: Rule) -> Run {
            let sampler = Mixer::new(SAMPLES, 0, 0.0, 5, 3).unwrap();
            let state = Checkpoint {
                run: run_hash(&[b"test"]),
                base: BaseFingerprint([7; 32]),
                step: 0,
                sampler: sampler.state(),
                parameters: vec![
                    Trained { name: "w".into(), values: uniform(1, "w", 4, 0.5) },
                    Trained { name: "b".into(), values: vec![0.0] },
                ],
                optimizer: Optimizer::new(rule, [("w", 4), ("b", 1)]).unwrap(),
                stopping: EarlyStopping::new(Some(50), 0.0),
                best: None,
                losses: Vec::new(),
                before: vec![],
                keep_weight: Some(20.0),
            };
            Run { state, sampler }
        }

        fn resume(state: Checkpoint) -> Run {
            let mut sampler = Mixer::new(SAMPLES, 0, 0.0, 5, 3).unwrap();
            sampler.resume(state.sampler).unwrap();
            Run { state, sampler }
        }

        fn step(&mut self) {
            let s = &mut self.state;
            let (mut gw, mut gb, mut loss) = (vec![0f32; 4], vec![0f32], 0f32);
            for &i in self.sampler.next_batch() {
                let x = uniform(9, "sample", 4 * SAMPLES, 1.0)[4 * i..4 * i + 4].to_vec();
                let truth = x[0] - 0.5 * x[1] + 0.25 * x[3] + 0.1;
                let y: f32 = x.iter().zip(&s.parameters[0].values).map(|(a, b)| a * b).sum();
                let error = y + s.parameters[1].values[0] - truth;
                loss += error * error;
                gw.iter_mut().zip(&x).for_each(|(g, x)| *g += error * x);
                gb[0] += error;
            }
            let mut gradients = [gw, gb];
            clip_global_norm(&mut gradients, 0.5).unwrap();
            let rate = Schedule::Linear { warmup: 0.1 }.rate(0.05, s.step, STEPS);
            let mut values: Vec<&mut [f32]> =
                s.parameters.iter_mut().map(|t| t.values.as_mut_slice()).collect();
            s.optimizer.step_each(|_| rate, &mut values, &gradients).unwrap();
            s.step += 1;
            s.losses.push(loss);
            if s.stopping.look(-f64::from(loss), s.step) == Verdict::Best {
                s.best = Some(s.parameters.iter().map(|t| t.values.clone()).collect());
            }
            s.sampler = self.sampler.state();
        }
    }

    #[test]
    fn a_run_killed_anywhere_ends_bit_equal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.checkpoint");
        for rule in [Rule::adamw(), Rule::sgd()] {
            let mut whole = Run::new(rule);
            (0..STEPS).for_each(|_| whole.step());
            assert!(whole.state.losses[39] < whole.state.losses[0]);
            for stop in [0, 1, 7, 8, 9, 39, 40] {
                let mut first = Run::new(rule);
                (0..stop).for_each(|_| first.step());
                first.state.write(&path).unwrap();
                drop(first);
                let mut second = Run::resume(Checkpoint::read(&path).unwrap());
                (stop..STEPS).for_each(|_| second.step());
                assert_eq!(second.state, whole.state, "stopped at {stop}");
            }
        }
    }

    fn bytes_of(state: &Checkpoint) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        state.write(&path).unwrap();
        std::fs::read(&path).unwrap()
    }

    /// Puts the right hash under changed bytes.
    fn rehash(bytes: &mut Vec<u8>) {
        let end = bytes.len() - HASH;
        let hash = blake3::hash(&bytes[..end]);
        bytes.truncate(end);
        bytes.extend_from_slice(hash.as_bytes());
    }

    #[test]
    fn damaged_files_are_refused() {
        let mut run = Run::new(Rule::adamw());
        (0..3).for_each(|_| run.step());
        let good = bytes_of(&run.state);
        assert!(Checkpoint::from_bytes(&good).is_ok());
        for cut in 0..good.len() {
            let e = Checkpoint::from_bytes(&good[..cut]).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::BadInput, "cut at {cut}: {e}");
        }
        for i in 0..good.len() {
            let mut bytes = good.clone();
            bytes[i] ^= 0x20;
            assert!(Checkpoint::from_bytes(&bytes).is_err(), "flip at {i}");
            // With a hash made to fit, whatever is still accepted must be sound in itself.
            rehash(&mut bytes);
            if let Ok(c) = Checkpoint::from_bytes(&bytes) {
                c.check().unwrap();
            }
        }
        let mut longer = good[..good.len() - HASH].to_vec();
        longer.extend_from_slice(&[0; 33]);
        rehash(&mut longer);
        let e = Checkpoint::from_bytes(&longer).unwrap_err();
        assert!(e.message().contains("left over"), "{e}");
        let mut newer = good.clone();
        newer[8] = 4;
        assert_eq!(Checkpoint::from_bytes(&newer).unwrap_err().kind(), ErrorKind::Mismatch);
        // A count of 2^63 tensors in a file of a few bytes.
        let mut huge = good[..HEADER + 64].to_vec();
        huge.extend_from_slice(&[0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        huge.extend_from_slice(&[0; HASH]);
        rehash(&mut huge);
        assert!(Checkpoint::from_bytes(&huge).is_err());
    }

    #[test]
    fn unsound_states_are_refused() {
        let mut run = Run::new(Rule::adamw());
        (0..3).for_each(|_| run.step());
        let spoil = |change: fn(&mut Checkpoint)| {
            let mut state = run.state.clone();
            change(&mut state);
            Checkpoint::from_bytes(&bytes_of(&state)).unwrap_err().to_string()
        };
        assert!(spoil(|s| s.parameters[0].values[1] = f32::NAN).contains("finite"));
        assert!(spoil(|s| s.best.as_mut().unwrap()[0][0] = f32::INFINITY).contains("finite"));
        assert!(spoil(|s| _ = s.best.as_mut().unwrap()[1].pop()).contains("other sizes"));
        assert!(spoil(|s| s.parameters[0].values.push(0.0)).contains("expected"));
        assert!(spoil(|s| s.step = 9).contains("step 9"));
    }

    #[test]
    fn another_runs_state_is_refused() {
        let state = Run::new(Rule::adamw()).state;
        let tensors = || [("w", 4), ("b", 1)];
        let (run, base) = (run_hash(&[b"test"]), BaseFingerprint([7; 32]));
        state.check_run(&run, &base, tensors()).unwrap();
        for (run, base, tensors) in [
            (run_hash(&[b"tes", b"t"]), base, tensors()),
            (run, BaseFingerprint([8; 32]), tensors()),
            (run, base, [("w", 4), ("c", 1)]),
        ] {
            let e = state.check_run(&run, &base, tensors).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Mismatch, "{e}");
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let state = Run::new(Rule::sgd()).state;
        let missing = dir.path().join("none").join("c");
        assert_eq!(state.write(&missing).unwrap_err().kind(), ErrorKind::Failed);
        let path = dir.path().join("c");
        state.write(&path).unwrap();
        state.write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path).unwrap(), state);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
