use super::*;
use crate::pack::AudioSpec;

fn spec(name: &str) -> MelSpec {
    match AudioSpec::named(name).unwrap().front {
        crate::pack::Front::Mel(mel) => mel,
        _ => unreachable!(),
    }
}

/// A band's energy by the transform's definition, in f64.
fn slow(mel: &Mel, samples: &[f32], row: usize, band: usize) -> f64 {
    let spec = &mel.spec;
    let (fft, window) = (spec.fft as usize, spec.window as usize);
    let before = if spec.edges == Edges::Inside { 0 } else { fft as i64 / 2 };
    let offset = if spec.edges == Edges::Inside { 0 } else { (fft - window) / 2 };
    let mut stretch: Vec<f64> = (0..window)
        .map(|i| {
            let mut at = (row * spec.hop as usize + offset + i) as i64 - before;
            if spec.edges == Edges::Reflect {
                while at < 0 || at >= samples.len() as i64 {
                    at = if at < 0 { -at } else { 2 * (samples.len() as i64 - 1) - at };
                }
            }
            usize::try_from(at).ok().and_then(|i| samples.get(i)).copied().unwrap_or(0.0).into()
        })
        .collect();
    if spec.remove_mean {
        let mean = stretch.iter().sum::<f64>() / window as f64;
        stretch.iter_mut().for_each(|v| *v -= mean);
    }
    let factor = f64::from(spec.preemphasis);
    let emphasised: Vec<f64> =
        (0..window).map(|i| stretch[i] - factor * stretch[i.saturating_sub(1)]).collect();
    let (from, weights) = &mel.bands[band];
    weights
        .iter()
        .enumerate()
        .map(|(k, weight)| {
            let (mut re, mut im) = (0.0, 0.0);
            for (i, v) in emphasised.iter().enumerate() {
                let turn = 2.0 * PI * ((from + k) * (offset + i)) as f64 / fft as f64;
                re += v * f64::from(mel.window[i]) * turn.cos();
                im -= v * f64::from(mel.window[i]) * turn.sin();
            }
            let square = re * re + im * im;
            f64::from(*weight) * if spec.power { square } else { square.sqrt() }
        })
        .sum()
}

#[test]
fn rows_are_what_the_definition_says() {
    let samples: Vec<f32> =
        (0..2000).map(|i| ((i * i) as f32 * 0.0007).sin() * 0.4 + 0.1).collect();
    let odd = MelSpec { fft: 512, window: 321, hop: 77, power: false, ..spec("whisper") };
    let cases = [
        ("whisper", spec("whisper"), 16_000),
        ("resemblyzer", spec("resemblyzer"), 16_000),
        ("kaldi", spec("kaldi"), 16_000),
        ("librosa", spec("librosa"), 22_050),
        ("a window within the transform", odd, 16_000),
        ("HTK", MelSpec { pitch: Pitch::Htk, shape: Window::Hamming, ..spec("librosa") }, 22_050),
    ];
    for (name, spec, rate) in cases {
        let mel = Mel::new(&spec, rate);
        let found = mel.energies(&samples, 4).unwrap();
        let mels = spec.mels as usize;
        let largest = found.iter().copied().fold(0.0, f32::max);
        for row in [0, 3] {
            for band in (0..mels).step_by(7) {
                let wanted = slow(&mel, &samples, row, band);
                let error = (f64::from(found[row * mels + band]) - wanted).abs();
                // Sums of f32: magnitudes carry the rounding of the largest.
                let noise = if spec.power { 1e-9 } else { 1e-7 };
                let allowed = 1e-4 * wanted + noise * f64::from(largest);
                assert!(error <= allowed.max(1e-12), "{name}, {row}, {band}: {error} of {wanted}");
            }
        }
    }
}

/// Mirrored as often as it takes.
#[test]
fn a_clip_shorter_than_its_edge_is_mirrored_to_and_fro() {
    let mel = Mel::new(&spec("whisper"), 16_000);
    let places: Vec<f32> = (-4..7).map(|at| mel.sample(&[0.0, 1.0, 2.0], at)).collect();
    assert_eq!(places, [0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0]);
    assert_eq!(mel.sample(&[3.0], -9), 3.0);
}

#[test]
fn bands_follow_each_other_up_to_the_highest() {
    for (name, rate) in [("whisper", 16_000), ("kaldi", 16_000), ("librosa", 22_050)] {
        let spec = spec(name);
        let bands = bands(&spec, rate);
        assert_eq!(bands.len(), spec.mels as usize);
        let bins = spec.fft as usize / 2 + 1;
        assert!(bands.windows(2).all(|b| b[0].0 <= b[1].0), "{name}");
        assert!(bands.iter().all(|(from, weights)| from + weights.len() <= bins), "{name}");
    }
    for scale in [Pitch::Slaney, Pitch::Htk, Pitch::Kaldi] {
        for f in [20.0, 999.0, 1001.0, 7000.0] {
            assert!((hertz(scale, pitch(scale, f)) - f).abs() < 1e-6, "{scale:?} {f}");
        }
    }
    // Slaney's step: the natural logarithm of 6.4 over 27.
    assert!((SLANEY_STEP - 6.4f64.ln() / 27.0).abs() < 1e-15);
}
