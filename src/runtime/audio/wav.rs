//! WAV files (RIFF, WAVE_FORMAT_PCM, IEEE_FLOAT and EXTENSIBLE) to one channel of samples.

#![warn(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};

/// Least and most samples a second.
pub const RATES: std::ops::RangeInclusive<u32> = 8_000..=48_000;

/// Most samples of one channel that are decoded: 64 MiB of f32, 349 seconds of 48 kHz.
pub const MAX_SAMPLES: usize = 16 << 20;

/// One channel of sound.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Samples a second.
    pub rate: u32,
    /// Of -1 to 1; at least one, all finite.
    pub samples: Vec<f32>,
}

/// Whether the bytes begin as a WAV file does.
pub fn is_wav(bytes: &[u8]) -> bool {
    bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WAVE")
}

/// How samples stand in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Coding {
    Int16,
    Int24,
    Int32,
    Float,
}

impl Coding {
    fn bytes(self) -> usize {
        match self {
            Coding::Int16 => 2,
            Coding::Int24 => 3,
            Coding::Int32 | Coding::Float => 4,
        }
    }

    /// The value of `bytes`, as many as [`Coding::bytes`] says.
    fn value(self, bytes: &[u8]) -> f32 {
        let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
        match self {
            Coding::Int16 => f32::from(i16::from_le_bytes([at(0), at(1)])) / 32_768.0,
            Coding::Int24 => {
                let value = i32::from_le_bytes([0, at(0), at(1), at(2)]) >> 8;
                value as f32 / 8_388_608.0
            }
            Coding::Int32 => {
                i32::from_le_bytes([at(0), at(1), at(2), at(3)]) as f32 / 2_147_483_648.0
            }
            Coding::Float => f32::from_le_bytes([at(0), at(1), at(2), at(3)]),
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Format {
    pub coding: Coding,
    pub channels: usize,
    pub rate: u32,
}

impl Format {
    /// Bytes of one moment.
    pub fn block(&self) -> usize {
        self.channels.saturating_mul(self.coding.bytes())
    }

    /// The first `count` samples of `data`, channels mixed.
    pub fn samples(&self, data: &[u8], count: usize) -> Result<Vec<f32>> {
        let mut samples = Vec::with_capacity(count);
        for (at, frame) in data.chunks_exact(self.block()).take(count).enumerate() {
            let values = frame.chunks_exact(self.coding.bytes()).map(|b| self.coding.value(b));
            let sum: f32 = values.sum();
            if !sum.is_finite() {
                return Err(Error::bad_input(format!("sample {at} is not finite")));
            }
            samples.push(if self.channels == 2 { sum / 2.0 } else { sum });
        }
        Ok(samples)
    }
}

/// Decodes a WAV file of 8 to 48 kHz, one or two channels (their mean is taken), integers of 16, 24 or
/// 32 bits or floats of 32. At most the first `seconds` are decoded, where that is given.
///
/// # Errors
/// Bad input: no WAV file, a damaged or truncated one, no samples, more than [`MAX_SAMPLES`] of them,
/// values that are not finite. Unsupported: other codings, rates and numbers of channels, each by name.
pub fn decode(bytes: &[u8], seconds: Option<f32>) -> Result<Clip> {
    if !is_wav(bytes) {
        return Err(other(bytes));
    }
    let mut rest = bytes.get(12..).unwrap_or_default();
    let mut format = None;
    loop {
        let Some((head, body)) = rest.split_first_chunk::<8>() else {
            let what = if format.is_some() { "samples" } else { "format" };
            return Err(Error::bad_input(format!("WAV file is truncated: no {what} in it")));
        };
        let [a, b, c, d, size @ ..] = *head;
        let size = u32::from_le_bytes(size);
        match (&[a, b, c, d], &format) {
            (b"fmt ", _) => {
                format = Some(read_format(body.get(..size as usize).unwrap_or_default())?);
            }
            (b"data", None) => {
                return Err(Error::bad_input("WAV file has its samples before their format"));
            }
            (b"data", Some(format)) => return samples(data(body, size, format)?, format, seconds),
            _ => {}
        }
        // Chunks are padded to even lengths.
        let next = (size as usize).saturating_add(size as usize & 1);
        rest = body.get(next..).unwrap_or_default();
    }
}

pub(super) fn read_format(chunk: &[u8]) -> Result<Format> {
    let short = |at: usize| -> Result<u16> {
        let bytes = chunk.get(at..).and_then(|b| b.first_chunk::<2>());
        let bytes = bytes.ok_or_else(|| Error::bad_input("WAV file's format is truncated"))?;
        Ok(u16::from_le_bytes(*bytes))
    };
    let rate = u32::from(short(4)?) | u32::from(short(6)?) << 16;
    let (mut tag, channels, block, bits) = (short(0)?, short(2)?, short(12)?, short(14)?);
    if tag == 0xfffe {
        // EXTENSIBLE: the coding is the head of a GUID, xxxx0000-0000-0010-8000-00aa00389b71.
        let tail = chunk.get(26..40);
        if tail != Some(&[0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]) {
            return Err(Error::unsupported("WAV file's samples have a coding that is not known"));
        }
        tag = short(24)?;
    }
    let coding = match (tag, bits) {
        (1, 16) => Coding::Int16,
        (1, 24) => Coding::Int24,
        (1, 32) => Coding::Int32,
        (3, 32) => Coding::Float,
        _ => {
            let name = match tag {
                1 => "integers",
                2 | 0x11 => "ADPCM",
                3 => "floats",
                6 => "A-law",
                7 => "mu-law",
                0x55 => "MP3",
                _ => "a coding that is not known",
            };
            return Err(Error::unsupported(format!(
                "WAV file has {name} of {bits} bits, expected integers of 16, 24 or 32 bits or floats of 32"
            )));
        }
    };
    if !(1..=2).contains(&channels) {
        return Err(Error::unsupported(format!(
            "WAV file has {channels} channels, expected one or two"
        )));
    }
    if !RATES.contains(&rate) {
        return Err(Error::unsupported(format!(
            "WAV file has {rate} samples a second, expected {} to {}",
            RATES.start(),
            RATES.end()
        )));
    }
    let channels = usize::from(channels);
    if usize::from(block) != channels.saturating_mul(coding.bytes()) {
        return Err(Error::bad_input(format!(
            "WAV file says that {channels} samples of {bits} bits take {block} bytes"
        )));
    }
    Ok(Format { coding, channels, rate })
}

/// The bytes of the samples. A file that was written to a pipe says a length near 2^31 or 2^32, or 0
/// as the last thing in it.
fn data<'a>(body: &'a [u8], size: u32, format: &Format) -> Result<&'a [u8]> {
    let block = format.block();
    let rest = body.len().checked_rem(block).unwrap_or(0);
    let whole = &body[..body.len().saturating_sub(rest)];
    if size >= 0x7fff_0000 || size == 0 {
        return Ok(whole);
    }
    match body.get(..size as usize) {
        Some(data) if data.len().is_multiple_of(block) => Ok(data),
        Some(data) => Err(Error::bad_input(format!(
            "WAV file has {} bytes of samples, no multiple of {block}",
            data.len()
        ))),
        None => Err(Error::bad_input(format!(
            "WAV file is truncated: {size} bytes of samples stated, {} there",
            body.len()
        ))),
    }
}

fn samples(data: &[u8], format: &Format, seconds: Option<f32>) -> Result<Clip> {
    let rate = format.rate;
    let all = data.len().checked_div(format.block()).unwrap_or(0);
    // A little more than is asked for, so that the end of what is kept is no edge.
    let wanted = seconds.map_or(all, |s| ((s + 0.1) * rate as f32) as usize).min(all);
    if wanted == 0 {
        return Err(Error::bad_input("WAV file has no samples"));
    }
    if wanted > MAX_SAMPLES {
        return Err(Error::bad_input(format!(
            "WAV file has {} seconds of sound, more than the limit of {}",
            wanted.checked_div(rate as usize).unwrap_or(0),
            MAX_SAMPLES.checked_div(rate as usize).unwrap_or(0)
        )));
    }
    let samples = format.samples(data, wanted).map_err(|e| e.at("WAV file"))?;
    Ok(Clip { rate, samples })
}

/// What is wrong with bytes that are no WAV file.
fn other(bytes: &[u8]) -> Error {
    let starts = |with: &[u8]| bytes.starts_with(with);
    let found = match bytes {
        [] => return Error::bad_input("sound file is empty"),
        _ if starts(b"fLaC") => "FLAC",
        _ if starts(b"OggS") => "Ogg",
        _ if starts(b"ID3") || starts(&[0xff, 0xfb]) || starts(&[0xff, 0xf3]) => "MP3",
        _ if starts(b"RF64") || starts(b"RIFX") => "another kind of RIFF",
        _ if starts(b"FORM") => "AIFF",
        _ if bytes.get(4..8) == Some(b"ftyp") => "MP4 (M4A)",
        _ => return Error::bad_input("not a WAV file"),
    };
    Error::unsupported(format!("expected a WAV file, found {found}"))
        .hint("save it as WAV: ffmpeg -i FILE -ar 16000 -ac 1 FILE.wav")
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
#[path = "wav_tests.rs"]
mod tests;
