//! What a `preprocessor_config.json` says of sound, as transformers' feature extractors read it.

use crate::error::{Error, Result};
use crate::pack::{AudioSpec, Front};
use serde_json::{Map, Value};

/// The front end of a feature extractor of this `kind`; `None` for one that is not known.
///
/// # Errors
/// Bad input: numbers that are none, or that no front end has.
pub(super) fn audio(kind: &str, config: &Map<String, Value>) -> Result<Option<AudioSpec>> {
    let name = match kind {
        "WhisperFeatureExtractor" => "whisper",
        "Wav2Vec2FeatureExtractor" => "wav2vec2",
        "ASTFeatureExtractor" => "ast",
        _ => return Ok(None),
    };
    let Some(mut spec) = AudioSpec::named(name) else { return Ok(None) };
    let number = |key: &str| -> Result<Option<u32>> {
        match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
                let wrong = || Error::bad_input(format!("{key}: expected a number, found {value}"));
                number.map(Some).ok_or_else(wrong)
            }
        }
    };
    let float = |key: &str| config.get(key).and_then(Value::as_f64).map(|v| v as f32);
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    spec.rate = number("sampling_rate")?.unwrap_or(spec.rate);
    match &mut spec.front {
        Front::Samples { unit } => *unit = flag("do_normalize").unwrap_or(true),
        Front::Mel(mel) if name == "whisper" => {
            mel.mels = number("feature_size")?.unwrap_or(mel.mels);
            mel.fft = number("n_fft")?.unwrap_or(mel.fft);
            mel.window = mel.fft;
            mel.hop = number("hop_length")?.unwrap_or(mel.hop);
            let seconds = number("chunk_length")?.unwrap_or(30);
            let samples = seconds.checked_mul(spec.rate);
            let long = || Error::bad_input(format!("chunk_length: {seconds} seconds"));
            spec.samples = Some(samples.ok_or_else(long)?);
        }
        Front::Mel(mel) => {
            mel.mels = number("num_mel_bins")?.unwrap_or(mel.mels);
            mel.frames = number("max_length")?.or(mel.frames);
            if flag("do_normalize") == Some(false) {
                (mel.mean, mel.std) = (0.0, 1.0);
            } else {
                mel.mean = float("mean").unwrap_or(mel.mean);
                mel.std = float("std").map_or(mel.std, |std| 2.0 * std);
            }
            mel.high = spec.rate as f32 / 2.0;
        }
    }
    spec.check()?;
    Ok(Some(spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<AudioSpec>> {
        let Ok(Value::Object(config)) = serde_json::from_str(text) else { panic!() };
        let kind = config.get("feature_extractor_type").and_then(Value::as_str);
        audio(kind.unwrap_or(""), &config)
    }

    #[test]
    fn front_ends_as_their_configurations_say() {
        let whisper = read(
            r#"{"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128,
            "chunk_length": 30, "hop_length": 160, "n_fft": 400, "sampling_rate": 16000}"#,
        );
        let whisper = whisper.unwrap().unwrap();
        assert_eq!(whisper.samples, Some(480_000));
        assert!(matches!(&whisper.front, Front::Mel(mel) if mel.mels == 128 && mel.mels_first));
        let ast = read(
            r#"{"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 128,
            "max_length": 512, "mean": -4.0, "std": 3.0, "sampling_rate": 16000}"#,
        );
        let Front::Mel(mel) = ast.unwrap().unwrap().front else { panic!() };
        assert_eq!((mel.frames, mel.mean, mel.std), (Some(512), -4.0, 6.0));
        let plain = r#"{"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": false,
            "sampling_rate": 16000}"#;
        let plain = read(plain).unwrap().unwrap();
        assert_eq!(plain, AudioSpec::named("samples").unwrap());
        let clap = r#"{"feature_extractor_type": "ClapFeatureExtractor", "sampling_rate": 48000}"#;
        assert_eq!(read(clap).unwrap(), None);
        let wild = r#"{"feature_extractor_type": "WhisperFeatureExtractor", "n_fft": 3,
            "sampling_rate": 16000}"#;
        assert!(read(wild).unwrap_err().message().contains("fft 3"));
    }
}
