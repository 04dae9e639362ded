//! Energies of bands of pitch: stretches of samples, windowed, transformed, summed by bands.

use crate::error::{Error, Result};
use crate::pack::{Edges, Log, MelSpec, Pitch, Window};
use realfft::{RealFftPlanner, RealToComplex};
use std::f64::consts::PI;
use std::sync::Arc;

/// One band: the frequency of its first weight, and its weights.
type Band = (usize, Vec<f32>);

/// Makes rows of bands.
pub struct Mel {
    spec: MelSpec,
    window: Vec<f32>,
    bands: Vec<Band>,
    fft: Arc<dyn RealToComplex<f32>>,
}

impl Mel {
    /// For samples at this rate. `spec` must be sound.
    pub fn new(spec: &MelSpec, rate: u32) -> Mel {
        Mel {
            window: window(spec.shape, spec.window as usize),
            bands: bands(spec, rate),
            fft: RealFftPlanner::new().plan_fft_forward(spec.fft as usize),
            spec: spec.clone(),
        }
    }

    /// All rows, a row of bands behind the other: before logarithms.
    fn energies(&self, samples: &[f32], rows: usize) -> Result<Vec<f32>> {
        let spec = &self.spec;
        let (fft, window, hop) = (spec.fft as usize, spec.window as usize, spec.hop as usize);
        let mut points = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut values = Vec::with_capacity(rows * self.bands.len());
        // Where the window begins among the points, and the first point among the samples.
        let (offset, first) = match spec.edges {
            Edges::Inside => (0, 0),
            _ => ((fft - window) / 2, -(fft as i64 / 2)),
        };
        for row in 0..rows {
            points.fill(0.0);
            let stretch = &mut points[offset..offset + window];
            let start = (row * hop) as i64 + first + offset as i64;
            for (i, point) in stretch.iter_mut().enumerate() {
                *point = self.sample(samples, start + i as i64);
            }
            if spec.remove_mean {
                let mean = stretch.iter().sum::<f32>() / window as f32;
                stretch.iter_mut().for_each(|v| *v -= mean);
            }
            if spec.preemphasis != 0.0 {
                for i in (0..window).rev() {
                    stretch[i] -= spec.preemphasis * stretch[i.saturating_sub(1)];
                }
            }
            stretch.iter_mut().zip(&self.window).for_each(|(v, w)| *v *= w);
            self.fft
                .process_with_scratch(&mut points, &mut spectrum, &mut scratch)
                .map_err(|e| Error::failed(format!("the Fourier transform: {e}")))?;
            for (from, weights) in &self.bands {
                let bins = spectrum[*from..].iter().zip(weights);
                values.push(match spec.power {
                    true => bins.map(|(c, w)| c.norm_sqr() * w).sum(),
                    false => bins.map(|(c, w)| c.norm_sqr().sqrt() * w).sum::<f32>(),
                });
            }
        }
        Ok(values)
    }

    fn sample(&self, samples: &[f32], at: i64) -> f32 {
        let last = samples.len() as i64 - 1;
        let place = match self.spec.edges {
            // To and fro: the first and the last sample stand once.
            Edges::Reflect if last > 0 => {
                let at = at.rem_euclid(2 * last);
                at.min(2 * last - at)
            }
            Edges::Reflect => 0,
            _ => at,
        };
        usize::try_from(place).ok().and_then(|p| samples.get(p)).copied().unwrap_or(0.0)
    }

    /// `rows` rows (frames) of all bands, or fewer bands' columns first as the spec says; the number of
    /// rows that come.
    ///
    /// # Errors
    /// A transform that fails.
    pub fn run(&self, samples: &[f32], rows: usize, frames: usize) -> Result<Vec<f32>> {
        let spec = &self.spec;
        let mels = self.bands.len();
        let mut values = self.energies(samples, rows)?;
        let floor = spec.floor;
        match spec.log {
            Log::None => {}
            Log::Natural => values.iter_mut().for_each(|v| *v = v.max(floor).ln()),
            Log::Ten => values.iter_mut().for_each(|v| *v = v.max(floor).log10()),
            Log::Decibel => values.iter_mut().for_each(|v| *v = 10.0 * v.max(floor).log10()),
        }
        if let Some(range) = spec.range {
            let least = values.iter().copied().fold(f32::MIN, f32::max) - range;
            values.iter_mut().for_each(|v| *v = v.max(least));
        }
        if spec.centre {
            for band in 0..mels {
                let column = || (0..rows).map(|row| row * mels + band);
                let mean = column().map(|at| values[at]).sum::<f32>() / rows.max(1) as f32;
                column().for_each(|at| values[at] -= mean);
            }
        }
        values.resize(frames * mels, 0.0);
        values.iter_mut().for_each(|v| *v = (*v - spec.mean) / spec.std);
        if !spec.mels_first {
            return Ok(values);
        }
        let moved = (0..mels).flat_map(|band| (0..frames).map(move |row| row * mels + band));
        Ok(moved.map(|at| values[at]).collect())
    }
}

fn window(shape: Window, n: usize) -> Vec<f32> {
    let cosine = |i: usize, period: usize| (2.0 * PI * i as f64 / period.max(1) as f64).cos();
    let value = |i: usize| match shape {
        Window::Hann => 0.5 - 0.5 * cosine(i, n),
        Window::HannSymmetric => 0.5 - 0.5 * cosine(i, n - 1),
        Window::Hamming => 0.54 - 0.46 * cosine(i, n - 1),
        Window::Povey => (0.5 - 0.5 * cosine(i, n - 1)).max(0.0).powf(0.85),
        Window::Rectangular => 1.0,
    };
    (0..n).map(|i| value(i) as f32).collect()
}

/// Slaney's mel in logarithmic steps from 1000 Hz on: 27 of them to 6400 Hz.
const SLANEY_STEP: f64 = 0.068_751_777_420_949_12;

fn pitch(scale: Pitch, hertz: f64) -> f64 {
    match scale {
        Pitch::Slaney if hertz >= 1000.0 => 15.0 + (hertz / 1000.0).ln() / SLANEY_STEP,
        Pitch::Slaney => hertz * 3.0 / 200.0,
        Pitch::Htk => 2595.0 * (1.0 + hertz / 700.0).log10(),
        Pitch::Kaldi => 1127.0 * (1.0 + hertz / 700.0).ln(),
    }
}

fn hertz(scale: Pitch, pitch: f64) -> f64 {
    match scale {
        Pitch::Slaney if pitch >= 15.0 => 1000.0 * ((pitch - 15.0) * SLANEY_STEP).exp(),
        Pitch::Slaney => pitch * 200.0 / 3.0,
        Pitch::Htk => 700.0 * (10f64.powf(pitch / 2595.0) - 1.0),
        Pitch::Kaldi => 700.0 * ((pitch / 1127.0).exp() - 1.0),
    }
}

/// The triangles, from the corner of one band before to that of one after.
fn bands(spec: &MelSpec, rate: u32) -> Vec<Band> {
    let scale = spec.pitch;
    let (low, high) = (pitch(scale, spec.low.into()), pitch(scale, spec.high.into()));
    let step = (high - low) / (f64::from(spec.mels) + 1.0);
    let over_pitch = scale == Pitch::Kaldi;
    let corner = |band: u32| {
        let at = low + step * f64::from(band);
        if over_pitch { at } else { hertz(scale, at) }
    };
    let bins = spec.fft as usize / 2 + usize::from(!over_pitch);
    let place = |bin: usize| {
        let at = bin as f64 * f64::from(rate) / f64::from(spec.fft);
        if over_pitch { pitch(scale, at) } else { at }
    };
    let band = |band: u32| -> Band {
        let [left, middle, right] = [band, band + 1, band + 2].map(corner);
        let height = if spec.area { 2.0 / (right - left) } else { 1.0 };
        let weight = |bin: usize| {
            let at = place(bin);
            let sides = ((at - left) / (middle - left), (right - at) / (right - middle));
            (sides.0.min(sides.1).max(0.0) * height) as f32
        };
        let from = (0..bins).find(|&bin| weight(bin) > 0.0).unwrap_or(0);
        (from, (from..bins).map(weight).take_while(|w| *w > 0.0).collect())
    };
    (0..spec.mels).map(band).collect()
}

#[cfg(test)]
#[path = "mel_tests.rs"]
mod tests;
