//! Samples from a pipe: raw PCM, or what a recorder writes as a WAV file without an end.

use super::wav::{Coding, Format, is_wav, read_format};
use crate::error::{Error, Result};
use std::io::Read;

/// Longest chunk before the samples.
const MAX_CHUNK: u32 = 1 << 16;

/// One channel of samples as they come.
pub struct Stream<R> {
    reader: R,
    format: Format,
    /// Bytes that were read already.
    ahead: Vec<u8>,
}

impl<R: Read> Stream<R> {
    /// Raw samples at `rate`, of one or two `channels`, `coding` one of `s16`, `s24`, `s32` and `f32`
    /// (little-endian); where the bytes begin as a WAV file that says so itself.
    ///
    /// # Errors
    /// Usage: another coding, rate or number of channels. Of a WAV file as [`decode`](super::wav::decode);
    /// a reader that fails.
    pub fn new(mut reader: R, rate: u32, channels: usize, coding: &str) -> Result<Stream<R>> {
        let mut format = Format::of(rate, channels, coding)?;
        let mut ahead = fill(&mut reader, 12)?;
        if is_wav(&ahead) {
            let mut known = None;
            loop {
                let head = fill(&mut reader, 8)?;
                let Some(([a, b, c, d], size)) = head.split_first_chunk::<4>() else {
                    return Err(Error::bad_input("the stream ends before its samples"));
                };
                let size = size.first_chunk::<4>().map_or(0, |s| u32::from_le_bytes(*s));
                match (&[*a, *b, *c, *d], size) {
                    (b"data", _) => break,
                    (_, MAX_CHUNK..) => {
                        return Err(Error::bad_input(
                            "the stream has no samples where they should be",
                        ));
                    }
                    (b"fmt ", _) => known = Some(read_format(&fill(&mut reader, size as usize)?)?),
                    (_, size) => drop(fill(&mut reader, (size + size % 2) as usize)?),
                }
            }
            format = known
                .ok_or_else(|| Error::bad_input("the stream's samples come before their format"))?;
            ahead.clear();
        }
        Ok(Stream { reader, format, ahead })
    }

    /// Samples a second.
    pub fn rate(&self) -> u32 {
        self.format.rate
    }

    /// The next `count` samples, fewer where the stream ends: none once it is over.
    ///
    /// # Errors
    /// A reader that fails; samples that are not finite (bad input).
    pub fn read(&mut self, count: usize) -> Result<Vec<f32>> {
        let block = self.format.block();
        let wanted = count.saturating_mul(block);
        let rest = self.ahead.split_off(wanted.min(self.ahead.len()));
        let mut bytes = std::mem::replace(&mut self.ahead, rest);
        bytes.extend(fill(&mut self.reader, wanted - bytes.len())?);
        self.format.samples(&bytes, bytes.len() / block)
    }
}

/// The next `count` bytes, fewer at the end.
fn fill(reader: &mut impl Read, count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let read = reader.take(count as u64).read_to_end(&mut bytes);
    read.map_err(|e| Error::failed(format!("the stream can't be read: {e}")))?;
    Ok(bytes)
}

impl Format {
    fn of(rate: u32, channels: usize, coding: &str) -> Result<Format> {
        let coding = match coding {
            "s16" => Coding::Int16,
            "s24" => Coding::Int24,
            "s32" => Coding::Int32,
            "f32" => Coding::Float,
            _ => return Err(Error::usage("expected s16, s24, s32 or f32")),
        };
        if !(1..=2).contains(&channels) || !super::RATES.contains(&rate) {
            return Err(Error::usage(format!(
                "expected one or two channels of {} to {} samples a second",
                super::RATES.start(),
                super::RATES.end()
            )));
        }
        Ok(Format { coding, channels, rate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8], channels: usize, coding: &str) -> Vec<f32> {
        let mut stream = Stream::new(bytes, 16_000, channels, coding).unwrap();
        let mut all = vec![];
        loop {
            let some = stream.read(3).unwrap();
            if some.is_empty() {
                return all;
            }
            all.extend(some);
        }
    }

    #[test]
    fn raw_samples_come_in_pieces() {
        let samples: Vec<i16> = (0..10).map(|i| i * 1024).collect();
        let bytes: Vec<u8> = samples.iter().flat_map(|v| v.to_le_bytes()).collect();
        let wanted: Vec<f32> = samples.iter().map(|v| f32::from(*v) / 32_768.0).collect();
        assert_eq!(all(&bytes, 1, "s16"), wanted);
        // Half a sample at the end is none.
        assert_eq!(all(&bytes[..19], 1, "s16"), wanted[..9]);
        assert_eq!(all(&bytes, 2, "s16").len(), 5);
        assert!(all(&[], 1, "f32").is_empty());
    }

    #[test]
    fn a_recorders_wav_says_its_format_itself() {
        let mut bytes = b"RIFF\xff\xff\xff\xffWAVELIST\x03\0\0\0abc\0fmt \x10\0\0\0".to_vec();
        bytes.extend([3, 0, 1, 0, 0x40, 0x1f, 0, 0, 0, 0x7d, 0, 0, 4, 0, 32, 0]);
        bytes.extend(*b"data\xff\xff\xff\x7f");
        bytes.extend(0.25f32.to_le_bytes());
        let mut stream = Stream::new(bytes.as_slice(), 16_000, 2, "s16").unwrap();
        assert_eq!((stream.rate(), stream.read(9).unwrap()), (8_000, vec![0.25]));
        assert!(Stream::new(&bytes[..30], 16_000, 1, "s16").is_err());
        let e = Stream::new(&b""[..], 96_000, 1, "s16").err().unwrap();
        assert!(e.message().contains("8000 to 48000"), "{e}");
        assert!(Stream::new(&b""[..], 8_000, 1, "u8").is_err());
    }
}
