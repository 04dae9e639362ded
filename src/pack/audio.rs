//! How sound becomes the input tensor.
//!
//! Stored with postcard like `record.rs`: the order of fields and variants is part of the format.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The curve that is laid over each stretch of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// 0.5 - 0.5 cos(2πi/N).
    #[default]
    Hann,
    /// The same with N - 1: both ends are 0.
    HannSymmetric,
    /// 0.54 - 0.46 cos(2πi/(N - 1)).
    Hamming,
    /// The symmetric Hann window to the power 0.85 (Kaldi).
    Povey,
    /// All ones.
    Rectangular,
}

/// What stands before the first sample and behind the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edges {
    /// Silence: a stretch has its middle at each hop.
    #[default]
    Zeros,
    /// The samples mirrored: a stretch has its middle at each hop.
    Reflect,
    /// Nothing: stretches lie within the samples.
    Inside,
}

/// How pitch is measured, and with it where the bands lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pitch {
    /// Slaney's mel (Auditory Toolbox): linear up to 1000 Hz, then logarithmic. Triangles over Hz.
    #[default]
    Slaney,
    /// 2595 log10(1 + f/700). Triangles over Hz.
    Htk,
    /// 1127 ln(1 + f/700). Triangles over that pitch, the highest frequency left out.
    Kaldi,
}

/// What is made of a band's energy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Log {
    /// The energy itself.
    #[default]
    None,
    /// Its natural logarithm.
    Natural,
    /// Its logarithm to the base of 10.
    Ten,
    /// Ten times that.
    Decibel,
}

/// Energies of bands of pitch, a row a hop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MelSpec {
    /// Points of the Fourier transform.
    pub fft: u32,
    /// Samples of a stretch; at most `fft`. In the middle of the transform's points, but for
    /// [`Edges::Inside`], where it begins them.
    pub window: u32,
    /// Samples from stretch to stretch.
    pub hop: u32,
    /// What is laid over a stretch.
    pub shape: Window,
    /// What lies beyond the clip.
    pub edges: Edges,
    /// Whether the mean of each stretch is taken away first.
    pub remove_mean: bool,
    /// What of the sample before is taken away from each; 0 for none.
    pub preemphasis: f32,
    /// Whether squares are summed, else magnitudes.
    pub power: bool,
    /// Bands.
    pub mels: u32,
    /// Where the lowest begins, in Hz.
    pub low: f32,
    /// Where the highest ends, in Hz.
    pub high: f32,
    /// How pitch is measured.
    pub pitch: Pitch,
    /// Whether triangles have equal areas, else equal heights.
    pub area: bool,
    /// What is made of energies.
    pub log: Log,
    /// The least energy before a logarithm.
    pub floor: f32,
    /// How far below the clip's greatest value others may lie, after the logarithm.
    pub range: Option<f32>,
    /// Whether the mean of each band over the clip is taken away.
    pub centre: bool,
    /// Last of all values become (value - mean)/std.
    pub mean: f32,
    /// Not zero.
    pub std: f32,
    /// Whether the last row is left out.
    pub drop_last: bool,
    /// Exactly so many rows: cut at the end, or filled with zeros before `mean` and `std`.
    pub frames: Option<u32>,
    /// Whether the tensor is (1, mels, frames), else (1, frames, mels).
    pub mels_first: bool,
}

/// What a base takes of a clip.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Front {
    /// The samples.
    Samples {
        /// Whether the clip's mean becomes 0 and its deviation 1 (wav2vec 2.0).
        unit: bool,
    },
    /// Bands of pitch.
    Mel(MelSpec),
}

/// How a clip becomes the input tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AudioSpec {
    /// Samples a second.
    pub rate: u32,
    /// Exactly so many samples: cut at the end, or filled up with silence. `None`: the clip's own.
    pub samples: Option<u32>,
    /// Whether a clip that is shorter is repeated until it has them, in the place of silence.
    pub repeat: bool,
    /// A quieter clip is made as loud as this (root of the mean square, in dB of the greatest value).
    pub volume: Option<f32>,
    /// What samples of -1 to 1 are multiplied by.
    pub scale: f32,
    /// What is made of them.
    pub front: Front,
}

/// Least and most samples a second.
const RATES: std::ops::RangeInclusive<u32> = 4_000..=48_000;

impl AudioSpec {
    /// The front end of this name, with bands as its own program has them: see [`AudioSpec::NAMES`].
    pub fn named(name: &str) -> Option<AudioSpec> {
        let mel = MelSpec {
            fft: 400,
            window: 400,
            hop: 160,
            shape: Window::Hann,
            edges: Edges::Zeros,
            remove_mean: false,
            preemphasis: 0.0,
            power: true,
            mels: 40,
            low: 0.0,
            high: 8000.0,
            pitch: Pitch::Slaney,
            area: true,
            log: Log::None,
            floor: 1e-10,
            range: None,
            centre: false,
            mean: 0.0,
            std: 1.0,
            drop_last: false,
            frames: None,
            mels_first: false,
        };
        let plain = |front| AudioSpec {
            rate: 16_000,
            samples: None,
            repeat: false,
            volume: None,
            scale: 1.0,
            front,
        };
        // Kaldi's compute-fbank-feats without dither.
        let kaldi = MelSpec {
            fft: 512,
            shape: Window::Povey,
            edges: Edges::Inside,
            remove_mean: true,
            preemphasis: 0.97,
            mels: 80,
            low: 20.0,
            pitch: Pitch::Kaldi,
            area: false,
            log: Log::Natural,
            floor: f32::EPSILON,
            ..mel.clone()
        };
        Some(match name {
            "samples" => plain(Front::Samples { unit: false }),
            "wav2vec2" => plain(Front::Samples { unit: true }),
            // 30 seconds; log10 within 8 of the clip's greatest, (x + 4)/4.
            "whisper" => AudioSpec {
                samples: Some(480_000),
                ..plain(Front::Mel(MelSpec {
                    edges: Edges::Reflect,
                    mels: 80,
                    log: Log::Ten,
                    range: Some(8.0),
                    mean: -4.0,
                    std: 4.0,
                    drop_last: true,
                    mels_first: true,
                    ..mel
                }))
            },
            // Resemblyzer 0.1.4: 160 rows, quiet clips raised to -30 dB, energies as they are.
            "resemblyzer" => AudioSpec {
                samples: Some(25_600),
                volume: Some(-30.0),
                ..plain(Front::Mel(MelSpec { drop_last: true, ..mel }))
            },
            "kaldi" => AudioSpec { scale: 32_768.0, ..plain(Front::Mel(kaldi)) },
            // Audio spectrogram transformer: AudioSet's mean and twice its deviation.
            "ast" => plain(Front::Mel(MelSpec {
                shape: Window::HannSymmetric,
                mels: 128,
                frames: Some(1024),
                mean: -4.267_739_3,
                std: 2.0 * 4.568_997_4,
                ..kaldi
            })),
            // librosa.feature.melspectrogram with its own defaults.
            "librosa" => AudioSpec {
                rate: 22_050,
                ..plain(Front::Mel(MelSpec {
                    fft: 2048,
                    window: 2048,
                    hop: 512,
                    mels: 128,
                    high: 11_025.0,
                    mels_first: true,
                    ..mel
                }))
            },
            _ => return None,
        })
    }

    /// The names that [`AudioSpec::named`] knows.
    pub const NAMES: [&str; 7] =
        ["whisper", "kaldi", "ast", "librosa", "resemblyzer", "wav2vec2", "samples"];

    /// How long the clips are that it cuts or fills, in seconds.
    pub fn seconds(&self) -> Option<f32> {
        self.samples.map(|n| n as f32 / self.rate as f32)
    }

    /// Rows of bands that `samples` samples become; of raw samples 0.
    pub fn frames_of(&self, samples: usize) -> usize {
        let Front::Mel(mel) = &self.front else { return 0 };
        if let Some(frames) = mel.frames {
            return frames as usize;
        }
        let (hop, window) = (mel.hop.max(1) as usize, mel.window as usize);
        let all = match mel.edges {
            Edges::Zeros | Edges::Reflect => 1 + samples / hop,
            Edges::Inside => match samples.checked_sub(window) {
                Some(rest) => 1 + rest / hop,
                None => 0,
            },
        };
        all.saturating_sub(usize::from(mel.drop_last))
    }

    /// Fits clips to the dimensions of the input that takes them: the order of its axes, and a length
    /// that it fixes where none is stated.
    pub(crate) fn laid_out(mut self, dims: &[String]) -> AudioSpec {
        let sizes: Vec<Option<u32>> = dims.iter().map(|d| d.parse().ok()).collect();
        let last = sizes.last().copied().flatten();
        let before = sizes.len().checked_sub(2).and_then(|at| sizes.get(at).copied().flatten());
        match &mut self.front {
            Front::Samples { .. } => self.samples = self.samples.or(last.filter(|n| *n > 1)),
            Front::Mel(mel) => {
                match (before == Some(mel.mels), last == Some(mel.mels)) {
                    (true, false) => mel.mels_first = true,
                    (false, true) => mel.mels_first = false,
                    _ => {}
                }
                let frames = if mel.mels_first { last } else { before };
                if let (Some(frames), None, None) = (frames, self.samples, mel.frames) {
                    let rows = frames.saturating_add(u32::from(mel.drop_last)).saturating_sub(1);
                    let first = if mel.edges == Edges::Inside { mel.window } else { 0 };
                    self.samples = rows.checked_mul(mel.hop).and_then(|n| n.checked_add(first));
                }
            }
        }
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::bad_input(format!("audio: {what}")));
        if !RATES.contains(&self.rate) {
            return wrong(format!(
                "rate {} is not within {} to {}",
                self.rate,
                RATES.start(),
                RATES.end()
            ));
        }
        let longest = self.rate * 600;
        if let Some(n) = self.samples.filter(|n| !(1..=longest).contains(n)) {
            return wrong(format!("{n} samples are not within 1 to {longest}, ten minutes"));
        }
        if !self.scale.is_finite() || self.volume.is_some_and(|v| !(-100.0..=0.0).contains(&v)) {
            return wrong("scale is not finite or volume not within -100 to 0".into());
        }
        let Front::Mel(mel) = &self.front else { return Ok(()) };
        if !(16..=65_536).contains(&mel.fft) || mel.fft % 2 != 0 {
            return wrong(format!("fft {} is no even number within 16 to 65536", mel.fft));
        }
        if !(2..=mel.fft).contains(&mel.window) || !(1..=mel.fft).contains(&mel.hop) {
            return wrong(format!(
                "window {} or hop {} is not within the fft's {}",
                mel.window, mel.hop, mel.fft
            ));
        }
        if !(1..=512).contains(&mel.mels) || mel.frames.is_some_and(|n| !(1..=65_536).contains(&n))
        {
            return wrong(format!("{} mels are not within 1 to 512, or frames 65536", mel.mels));
        }
        let nyquist = self.rate as f32 / 2.0;
        if !(0.0 <= mel.low && mel.low < mel.high && mel.high <= nyquist) {
            return wrong(format!(
                "bands from {} to {} Hz don't lie within 0 to {nyquist}",
                mel.low, mel.high
            ));
        }
        let numbers = [mel.mean, mel.std, mel.preemphasis, mel.range.unwrap_or(0.0)];
        if numbers.iter().any(|v| !v.is_finite())
            || mel.std == 0.0
            || !(0.0..1.0).contains(&mel.floor)
        {
            return wrong("mean, std, range, preemphasis or floor is no usable number".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_front_end_is_sound() {
        for name in AudioSpec::NAMES {
            AudioSpec::named(name).unwrap().check().unwrap();
        }
        assert!(AudioSpec::named("mp3").is_none());
    }

    #[test]
    fn the_graph_says_length_and_order() {
        let dims = |d: [&str; 3]| d.map(String::from);
        let free = AudioSpec { samples: None, ..AudioSpec::named("whisper").unwrap() };
        let fixed = free.clone().laid_out(&dims(["batch", "80", "3000"]));
        assert_eq!((fixed.samples, fixed.frames_of(480_000)), (Some(480_000), 3000));
        let turned = free.laid_out(&dims(["batch", "frames", "80"]));
        assert_eq!(turned.samples, None);
        assert!(matches!(turned.front, Front::Mel(mel) if !mel.mels_first));
        let kaldi = AudioSpec::named("kaldi").unwrap().laid_out(&dims(["1", "200", "80"]));
        assert_eq!(kaldi.frames_of(kaldi.samples.unwrap() as usize), 200);
        let raw = AudioSpec::named("samples").unwrap().laid_out(&dims(["b", "1", "16000"]));
        assert_eq!(raw.samples, Some(16_000));
    }
}
