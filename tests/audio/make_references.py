#!/usr/bin/env python3
"""Writes references.npz: what transformers, torchaudio and librosa make of one short clip.

    pip install numpy torch torchaudio librosa transformers
    python tests/audio/make_references.py

Made with torch 2.15.0, torchaudio 2.11.1, librosa 0.11.0, transformers 5.24.0. Arrays: `clip` (16 kHz),
`clip44` (44.1 kHz), and of each front end the first ROWS rows: `NAME` f32[rows, bands]; `resampled.*`.
"""

from pathlib import Path

import librosa
import numpy as np
import torch
import torchaudio
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

ROWS = 24


def clip(rate, seconds):
    """A rising tone with overtones, a pulse and some noise, as 16-bit samples have it."""
    t = np.arange(int(rate * seconds)) / rate
    rising = 2 * np.pi * (200 * t + 1500 * t * t)
    wave = 0.3 * np.sin(rising) + 0.1 * np.sin(3.1 * rising) + 0.05 * np.sin(7.3 * rising)
    wave += 0.01 * np.random.default_rng(1).standard_normal(len(t))
    wave[len(t) // 3] += 0.4
    return (np.round(wave * 20000) / 32768).astype(np.float32)


def main():
    wave = clip(16000, 0.4)
    wave44 = clip(44100, 0.05)
    out = {"clip": wave, "clip44": wave44}
    whisper = WhisperFeatureExtractor()(wave, sampling_rate=16000, return_tensors="np")
    out["whisper"] = whisper["input_features"][0].T[:ROWS]
    out["whisper.fill"] = whisper["input_features"][0].T[-1]
    tensor = torch.from_numpy(wave)[None]
    kaldi = torchaudio.compliance.kaldi.fbank(
        tensor * 32768, num_mel_bins=80, sample_frequency=16000, dither=0.0
    )
    out["kaldi"] = kaldi.numpy()[:ROWS]
    ast = ASTFeatureExtractor()(wave, sampling_rate=16000, return_tensors="np")["input_values"][0]
    out["ast"] = ast[:ROWS]
    out["ast.fill"] = ast[-1]
    out["librosa"] = librosa.feature.melspectrogram(y=wave, sr=22050).T[:ROWS]
    # Resemblyzer 0.1.4: normalize_volume, the clip filled to 160 rows, wav_to_mel_spectrogram.
    rms = np.sqrt(np.mean(wave.astype(np.float64) ** 2))
    loud = wave * max(1.0, 10 ** (-30 / 20) / rms)
    quiet = wave / 64
    for name, samples in (("resemblyzer", loud), ("resemblyzer.quiet", quiet)):
        rms = np.sqrt(np.mean(samples.astype(np.float64) ** 2))
        samples = samples * max(1.0, 10 ** (-30 / 20) / rms)
        samples = np.pad(samples, (0, 25600 - len(samples))).astype(np.float32)
        mel = librosa.feature.melspectrogram(
            y=samples, sr=16000, n_fft=400, hop_length=160, n_mels=40
        )
        out[name] = mel.T[:ROWS].astype(np.float32)
    # A general set: HTK's pitch, magnitudes, decibels, a shorter window than the transform.
    general = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=512, win_length=320, hop_length=200, f_min=50.0, f_max=7000.0, n_mels=32,
        power=1.0, norm=None, mel_scale="htk", window_fn=torch.hann_window, pad_mode="reflect",
    )(tensor)[0]
    out["general"] = (10 * torch.log10(general.clamp(min=1e-10))).numpy().T[:ROWS]
    wav2vec2 = Wav2Vec2FeatureExtractor(do_normalize=True)
    out["wav2vec2"] = wav2vec2(wave, sampling_rate=16000, return_tensors="np")["input_values"][0]
    best = dict(
        lowpass_filter_width=64, rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser", beta=14.769656459379492,
    )
    for name, samples, old, new in (
        ("44100.16000", wave44, 44100, 16000),
        ("8000.16000", wave44[:600], 8000, 16000),
        ("48000.8000", wave44, 48000, 8000),
    ):
        resampled = torchaudio.functional.resample(torch.from_numpy(samples).double(), old, new, **best)
        out[f"resampled.{name}"] = resampled.numpy()
    out = {name: np.ascontiguousarray(values, np.float32) for name, values in out.items()}
    path = Path(__file__).parent / "references.npz"
    np.savez_compressed(path, **out)
    print(path, path.stat().st_size, {name: values.shape for name, values in out.items()})


if __name__ == "__main__":
    main()
