//! From one number of samples a second to another: a windowed sinc, one set of weights for each phase
//! (J. O. Smith, "Digital Audio Resampling"). The filter is torchaudio's `sinc_interp_kaiser` with
//! resampy's "kaiser_best", so that what a model was trained on is what it gets.

use std::f64::consts::PI;

/// Zero crossings of the sinc on each side.
const CROSSINGS: f64 = 64.0;
/// Where the filter's middle lies, as a part of the lower of both Nyquist frequencies.
const ROLLOFF: f64 = 0.947_593_716_739_959_6;
/// Kaiser's window.
const BETA: f64 = 14.769_656_459_379_492;

/// Turns samples at one rate into samples at another.
pub struct Resampler {
    /// Both rates without their common factor: outputs, inputs.
    up: usize,
    down: usize,
    /// Weights of a phase.
    taps: usize,
    /// How many of those lie before the output's place.
    before: usize,
    /// (up, taps).
    weights: Vec<f32>,
}

impl Resampler {
    /// From `from` to `to` samples a second, neither 0.
    pub fn new(from: u32, to: u32) -> Resampler {
        let common = divisor(from, to);
        let (down, up) = ((from / common) as usize, (to / common) as usize);
        let (inputs, outputs) = (down as f64, up as f64);
        // Of the sinc's crossings so many lie between two inputs.
        let step = inputs.min(outputs) * ROLLOFF / inputs;
        let before = (CROSSINGS / step).ceil() as usize;
        let taps = 2 * before + 1;
        let mut weights = Vec::with_capacity(up * taps);
        let whole = bessel(BETA);
        for phase in 0..up {
            for tap in 0..taps {
                let distance = tap as f64 - before as f64 - phase as f64 / outputs;
                let t = (distance * step).clamp(-CROSSINGS, CROSSINGS);
                let window = bessel(BETA * (1.0 - (t / CROSSINGS).powi(2)).max(0.0).sqrt()) / whole;
                let sinc = if t == 0.0 { 1.0 } else { (PI * t).sin() / (PI * t) };
                weights.push((sinc * window * step) as f32);
            }
        }
        Resampler { up, down, taps, before, weights }
    }

    /// Samples that `inputs` become.
    pub fn outputs(&self, inputs: usize) -> usize {
        // Products of long clips are past 32 bits.
        (inputs as u64 * self.up as u64).div_ceil(self.down as u64) as usize
    }

    /// All of `samples` at the other rate; what lies beyond them is silence.
    pub fn run(&self, samples: &[f32]) -> Vec<f32> {
        let one = |output: usize| -> f32 {
            let (place, up) = (output as u64 * self.down as u64, self.up as u64);
            let (at, phase) = ((place / up) as usize, (place % up) as usize);
            let weights = &self.weights[phase * self.taps..(phase + 1) * self.taps];
            // The first weight is that of sample `at - before`.
            let skipped = self.before.saturating_sub(at);
            let first = at.saturating_sub(self.before);
            let heard = samples.get(first..).unwrap_or_default();
            weights.iter().skip(skipped).zip(heard).map(|(w, s)| w * s).sum()
        };
        (0..self.outputs(samples.len())).map(one).collect()
    }
}

fn divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// The modified Bessel function of the first kind, order 0, by its series.
fn bessel(x: f64) -> f64 {
    let (mut sum, mut term) = (1.0, 1.0);
    for k in 1.. {
        term *= (x / (2.0 * f64::from(k))).powi(2);
        sum += term;
        if term < sum * 1e-17 {
            break;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate: u32, hertz: f64, n: usize) -> Vec<f32> {
        (0..n).map(|i| (2.0 * PI * hertz * i as f64 / f64::from(rate)).sin() as f32).collect()
    }

    /// Root of the mean square, edges left out.
    fn level(samples: &[f32]) -> f64 {
        let inner = &samples[samples.len() / 4..samples.len() * 3 / 4];
        (inner.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / inner.len() as f64).sqrt()
    }

    /// Tones up to 85 % of the lower Nyquist frequency come out as they would have been sampled there.
    #[test]
    fn what_both_rates_can_hold_is_kept() {
        for (from, to) in [(8_000, 16_000), (44_100, 16_000), (48_000, 16_000), (16_000, 22_050)] {
            let limit = f64::from(from.min(to)) / 2.0;
            for part in [0.01, 0.3, 0.85] {
                let resampler = Resampler::new(from, to);
                let out = resampler.run(&tone(from, limit * part, from as usize / 2));
                assert_eq!(out.len(), to as usize / 2);
                let wanted = tone(to, limit * part, out.len());
                let worst = (out.len() / 4..out.len() * 3 / 4)
                    .map(|i| (out[i] - wanted[i]).abs())
                    .fold(0.0, f32::max);
                assert!(worst < 2e-5, "{from} to {to}, {part}: {worst}");
            }
        }
    }

    /// Tones above the lower Nyquist frequency would come out as others: 2 % above it they are 100 dB down.
    #[test]
    fn what_one_rate_cannot_hold_is_gone() {
        for (from, to) in [(44_100, 16_000), (48_000, 8_000), (48_000, 44_100)] {
            for part in [1.02, 1.08] {
                let hertz = f64::from(to) / 2.0 * part;
                let out = Resampler::new(from, to).run(&tone(from, hertz, from as usize / 2));
                let down = 20.0 * (level(&out) / 0.5f64.sqrt()).log10();
                assert!(down < -100.0, "{from} to {to}, {part}: {down} dB");
            }
        }
    }

    /// Phase by phase against the sum over all samples.
    #[test]
    fn weights_stand_where_they_belong() {
        let samples: Vec<f32> = (0..300).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        let out = Resampler::new(11_025, 8_000).run(&samples);
        let (down, up) = (441.0, 320.0);
        let step = up / down * ROLLOFF;
        for (k, found) in out.iter().enumerate() {
            let mut sum = 0.0;
            for (n, sample) in samples.iter().enumerate() {
                let t = (n as f64 - k as f64 * down / up) * step;
                if t.abs() < CROSSINGS {
                    let window = bessel(BETA * (1.0 - (t / CROSSINGS).powi(2)).sqrt());
                    let sinc = if t == 0.0 { 1.0 } else { (PI * t).sin() / (PI * t) };
                    sum += f64::from(*sample) * sinc * window / bessel(BETA) * step;
                }
            }
            assert!((sum as f32 - found).abs() < 1e-5, "{k}: {sum} {found}");
        }
    }

    #[test]
    fn equal_rates_and_short_clips() {
        assert_eq!(Resampler::new(8_000, 16_000).run(&[0.0]), [0.0, 0.0]);
        assert_eq!(Resampler::new(16_000, 8_000).run(&[0.0; 3]).len(), 2);
        assert!(Resampler::new(16_000, 8_000).run(&[]).is_empty());
    }
}
