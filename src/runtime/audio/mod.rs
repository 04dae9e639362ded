//! Sound (WAV files, samples) to the float tensors that a base takes.

#[cfg(feature = "cli")]
mod agreement;
mod mel;
mod resample;
mod stream;
mod wav;

use crate::error::{Error, Result};
use crate::pack::{AudioSpec, Front};
use crate::shape::Array;
#[cfg(feature = "cli")]
pub use agreement::Agreement;
use mel::Mel;
use resample::Resampler;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
pub use stream::Stream;
pub use wav::{RATES, is_wav};

/// The media type of a picture or sound that can be read, by its first bytes.
#[cfg(feature = "daemon")]
pub fn media_type(bytes: &[u8]) -> Option<&'static str> {
    if is_wav(bytes) { Some("audio/wav") } else { super::picture::media_type(bytes) }
}

/// Largest sound file that is read, in bytes.
pub const MAX_SOUND_BYTES: u64 = 64 << 20;

/// Most values of a clip: samples at the base's rate, or bands.
const MAX_VALUES: usize = wav::MAX_SAMPLES;

/// Makes a base's input of clips, as its [`AudioSpec`] says.
pub struct FrontEnd {
    spec: AudioSpec,
    mel: Option<Mel>,
    /// The last one that was needed, and the rate that it is for.
    resampler: Mutex<Option<(u32, Arc<Resampler>)>>,
}

impl FrontEnd {
    /// `spec` must be sound, as one that a base gives is.
    pub fn new(spec: AudioSpec) -> FrontEnd {
        let mel = match &spec.front {
            Front::Samples { .. } => None,
            Front::Mel(mel) => Some(Mel::new(mel, spec.rate)),
        };
        FrontEnd { spec, mel, resampler: Mutex::default() }
    }

    /// What it was made of.
    pub fn spec(&self) -> &AudioSpec {
        &self.spec
    }

    /// A WAV file's bytes as the input, f32 with a batch of 1 and `rank` axes (2 to 4): (1, samples),
    /// (1, 1, samples), (1, frames, mels), (1, mels, frames), (1, 1, frames, mels).
    ///
    /// # Errors
    /// Bytes that are no WAV file that is read, damaged ones, too many of them: see `wav::decode`. A clip
    /// too short for one row of bands, or too long.
    pub fn wav(&self, bytes: &[u8], rank: usize) -> Result<Array> {
        if bytes.len() as u64 > MAX_SOUND_BYTES {
            return Err(Error::bad_input(format!(
                "sound file is larger than the limit of {MAX_SOUND_BYTES} bytes"
            )));
        }
        let clip = wav::decode(bytes, self.spec.seconds())?;
        self.clip(clip.rate, &clip.samples, rank)
    }

    /// Most bytes of memory that a file of so many bytes takes: its samples, twice those at the base's rate,
    /// and the bands of them twice.
    #[cfg(feature = "daemon")]
    pub fn memory(&self, file: usize) -> u64 {
        let spec = &self.spec;
        let most =
            spec.seconds().map_or(MAX_VALUES, |s| ((s + 0.1) * *RATES.end() as f32) as usize);
        let own = (file / 2).min(most);
        let longer = (spec.rate as usize).div_ceil(*RATES.start() as usize);
        let at_rate = match spec.samples {
            Some(length) => own.saturating_mul(longer).max(length as usize),
            None => own.saturating_mul(longer),
        };
        let mels = match &spec.front {
            Front::Samples { .. } => 0,
            Front::Mel(mel) => mel.mels as usize,
        };
        let at_rate = at_rate.min(2 * MAX_VALUES);
        let values = spec.frames_of(at_rate).saturating_mul(mels).min(MAX_VALUES);
        4 * (own + 2 * at_rate + 2 * values) as u64
    }

    /// Samples of one channel, of -1 to 1 at `rate` a second, as the input: see [`FrontEnd::wav`].
    ///
    /// # Errors
    /// A clip too short for one row of bands, or too long; no samples.
    pub fn clip(&self, rate: u32, samples: &[f32], rank: usize) -> Result<Array> {
        let spec = &self.spec;
        let mut samples = self.at_rate(rate, samples)?.into_owned();
        if let Some(length) = spec.samples {
            samples.truncate(length as usize);
        }
        if samples.is_empty() {
            return Err(Error::bad_input("clip has no samples"));
        }
        if let Some(volume) = spec.volume {
            let factor = 10f64.powf(f64::from(volume) / 20.0) / deviation(&samples, 0.0);
            // Silence stays silent.
            if factor.is_finite() && factor > 1.0 {
                samples.iter_mut().for_each(|v| *v *= factor as f32);
            }
        }
        if spec.scale != 1.0 {
            samples.iter_mut().for_each(|v| *v *= spec.scale);
        }
        if let Front::Samples { unit: true } = spec.front {
            let sum: f64 = samples.iter().map(|v| f64::from(*v)).sum();
            let mean = sum / samples.len() as f64;
            let deviation = (deviation(&samples, mean).powi(2) + 1e-7).sqrt();
            samples.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) / deviation) as f32);
        }
        if let Some(length) = spec.samples {
            let own = samples.len();
            while spec.repeat && samples.len() < length as usize {
                let more = own.min(length as usize - samples.len());
                samples.extend_from_within(..more);
            }
            samples.resize(length as usize, 0.0);
        }
        let ones = |inner: usize| vec![1; rank.saturating_sub(inner)];
        let (Some(mel), Front::Mel(form)) = (&self.mel, &spec.front) else {
            let shape = [ones(1), vec![samples.len()]].concat();
            return Array::f32(shape, samples);
        };
        // Rows that there are, and rows that are asked for.
        let own = AudioSpec {
            front: Front::Mel(crate::pack::MelSpec { frames: None, ..form.clone() }),
            ..spec.clone()
        };
        let rows = own.frames_of(samples.len());
        let frames = form.frames.map_or(rows, |n| n as usize);
        if rows.min(frames) == 0 {
            return Err(Error::bad_input(format!(
                "clip of {} samples is too short: a row of bands takes {}",
                samples.len(),
                form.window
            )));
        }
        let mels = form.mels as usize;
        if rows.max(frames).saturating_mul(mels) > MAX_VALUES {
            return Err(Error::bad_input(format!("clip gives more than {MAX_VALUES} values")));
        }
        let values = mel.run(&samples, rows.min(frames), frames)?;
        let inner = if form.mels_first { vec![mels, frames] } else { vec![frames, mels] };
        Array::f32([ones(2), inner].concat(), values)
    }

    fn at_rate<'a>(&self, rate: u32, samples: &'a [f32]) -> Result<Cow<'a, [f32]>> {
        if rate == self.spec.rate {
            return Ok(Cow::Borrowed(samples));
        }
        if rate == 0
            || samples.len() as u64 * u64::from(self.spec.rate) / u64::from(rate.max(1))
                > MAX_VALUES as u64
        {
            return Err(Error::bad_input(format!(
                "clip has more than {MAX_VALUES} samples at {} a second",
                self.spec.rate
            )));
        }
        let mut slot = self.resampler.lock().unwrap_or_else(PoisonError::into_inner);
        let resampler = match &*slot {
            Some((known, resampler)) if *known == rate => resampler.clone(),
            _ => {
                let made = Arc::new(Resampler::new(rate, self.spec.rate));
                *slot = Some((rate, made.clone()));
                made
            }
        };
        drop(slot);
        Ok(Cow::Owned(resampler.run(samples)))
    }
}

/// The root of the mean square of what differs from `mean`.
fn deviation(samples: &[f32], mean: f64) -> f64 {
    let squares: f64 = samples.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum();
    (squares / samples.len() as f64).sqrt()
}

#[cfg(test)]
mod tests;
