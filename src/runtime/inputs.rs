//! From sentences, pictures and sound to the inputs of a base.

use super::audio::{FrontEnd, MAX_SOUND_BYTES, is_wav};
use super::engine::{Engine, Named};
use super::picture;
use super::text::{EncodedText, TextEncoder, Tokens, bucket, narrow_bucket};
use super::words::Words;
use crate::error::{Error, Result};
use crate::fs::read_limited;
use crate::pack::{AudioSpec, Base, ImageSpec, IoSpec, Role};
use crate::shape::{Array, DType, Data};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Longest token sequence where the base states none.
pub(super) const DEFAULT_MAX_TOKENS: usize = 512;

/// Makes inputs as the base's preprocessing says. The tokenizer is read at the first sentence.
pub struct Preprocessor {
    engine: Engine,
    max_tokens: Option<usize>,
    narrow: bool,
    encoder: Mutex<Option<Arc<TextEncoder>>>,
    front: Mutex<Option<Arc<FrontEnd>>>,
}

impl Preprocessor {
    /// For the engine's graph.
    pub fn new(engine: &Engine) -> Preprocessor {
        let (engine, encoder, front) = (engine.clone(), Mutex::default(), Mutex::default());
        Preprocessor { engine, max_tokens: None, narrow: false, encoder, front }
    }

    /// Cuts sentences at `max_tokens` (special tokens included) where that is less than the base's
    /// own limit.
    pub fn with_max_tokens(mut self, max_tokens: Option<usize>) -> Preprocessor {
        self.max_tokens = max_tokens;
        self.encoder = Mutex::new(None);
        self
    }

    /// Pads to more lengths than usual, where a mask keeps padding from changing answers: for who asks for
    /// each length many times.
    pub(crate) fn pad_narrowly(&mut self) {
        self.narrow = self.engine.input(Role::Mask).is_some();
    }

    /// The most tokens a sentence gets.
    pub fn max_tokens(&self) -> usize {
        let stored = self.base().preprocess().max_tokens.map(|n| n as usize);
        let limits = [stored, self.max_tokens, self.fixed_length()];
        limits.into_iter().flatten().min().unwrap_or(DEFAULT_MAX_TOKENS)
    }

    /// A batch of sentences, padded to a common length: ids, mask and types, those of them that the
    /// graph has.
    ///
    /// # Errors
    /// Unsupported: a base without tokenizer, or with inputs that are none of these.
    pub fn text(&self, sentences: &[&str]) -> Result<Named> {
        let rows = sentences.iter().map(|s| self.tokens(s)).collect::<Result<Vec<_>>>()?;
        self.batch(&rows.iter().collect::<Vec<_>>())
    }

    /// A batch of picture files for the graph's one input of four axes.
    ///
    /// # Errors
    /// Unsupported: a base packed without picture size, or without one such input. Bad input: a file
    /// that is missing, damaged, too large, or no picture.
    pub fn images(&self, files: &[&Path]) -> Result<Named> {
        let arrays = files.iter().map(|f| self.image(f)).collect::<Result<Vec<_>>>()?;
        self.stack(&arrays.iter().collect::<Vec<_>>())
    }

    /// One sentence's tokens, cut but not padded.
    pub fn tokens(&self, sentence: &str) -> Result<Tokens> {
        self.encoder()?.tokens(sentence)
    }

    /// One sentence's tokens, and where its words stand in it.
    pub fn words(&self, sentence: &str) -> Result<(Tokens, Words)> {
        self.encoder()?.words(sentence)
    }

    /// The padded length of a batch whose longest row has `tokens` tokens.
    pub(crate) fn padded_length(&self, tokens: usize) -> usize {
        let length = if self.narrow { narrow_bucket } else { bucket };
        self.fixed_length().unwrap_or_else(|| length(tokens, self.max_tokens()))
    }

    /// A batch of token rows padded to [`Preprocessor::padded_length`] of the longest; as
    /// [`Preprocessor::text`].
    pub(crate) fn batch(&self, rows: &[&Tokens]) -> Result<Named> {
        self.batch_as_with(rows, rows.iter().map(|r| r.ids.len()).max().unwrap_or(0))
    }

    /// The same as they are padded beside a row of `longest` tokens, which none is longer than.
    pub(crate) fn batch_as_with(&self, rows: &[&Tokens], longest: usize) -> Result<Named> {
        let length = self.padded_length(longest);
        let EncodedText { ids, mask, types } = self.encoder()?.batch_of_length(rows, length)?;
        let named = self.engine.inputs().iter().map(|spec| {
            let name = spec.name.clone();
            match spec.role {
                Role::Ids => Ok((name, of_type(&ids, spec.dtype)?)),
                Role::Mask => Ok((name, of_type(&mask, spec.dtype)?)),
                Role::Types => Ok((name, of_type(&types, spec.dtype)?)),
                Role::Positions => Ok((name, of_type(&positions(&mask)?, spec.dtype)?)),
                Role::State(_) if spec.dtype == DType::F32 => {
                    Ok((name, no_past(spec, rows.len())?))
                }
                _ => Err(Error::unsupported(format!(
                    "sentences don't give the base's input '{name}'"
                ))
                .hint("give all inputs as arrays")),
            }
        });
        named.collect()
    }

    /// One picture file as the base's input with a batch of 1.
    pub fn image(&self, file: &Path) -> Result<Array> {
        picture::from_file(file, self.image_spec()?)
    }

    /// The bytes of one picture file (PNG, JPEG, WebP, GIF) as the base's input with a batch of 1.
    pub fn image_bytes(&self, bytes: &[u8]) -> Result<Array> {
        picture::from_bytes(bytes, self.image_spec()?)
    }

    /// One sound file (WAV) as the base's input with a batch of 1.
    ///
    /// # Errors
    /// Unsupported: a base packed without `--audio`, or with several inputs; a file of another kind. Bad
    /// input: a file that is missing, damaged, too long or too short.
    pub fn audio(&self, file: &Path) -> Result<Array> {
        let (front, rank) = self.front()?;
        let bytes = read_limited(file, MAX_SOUND_BYTES)?;
        front.wav(&bytes, rank).map_err(|e| e.at(file.display()))
    }

    /// The bytes of one sound file (WAV) as the base's input with a batch of 1.
    pub fn audio_bytes(&self, bytes: &[u8]) -> Result<Array> {
        let (front, rank) = self.front()?;
        front.wav(bytes, rank)
    }

    /// Samples of one channel, of -1 to 1 and `rate` a second, as the base's input with a batch of 1.
    pub fn clip(&self, rate: u32, samples: &[f32]) -> Result<Array> {
        let (front, rank) = self.front()?;
        front.clip(rate, samples, rank)
    }

    /// How sound becomes the input. Errors: the base takes none (unsupported).
    pub fn audio_spec(&self) -> Result<AudioSpec> {
        Ok(self.front()?.0.spec().clone())
    }

    /// A picture's or a sound file's bytes, whichever the base takes, with a batch of 1.
    pub(crate) fn media_bytes(&self, bytes: &[u8]) -> Result<Array> {
        match is_wav(bytes) || self.base().audio()?.is_some() {
            true => self.audio_bytes(bytes),
            false => self.image_bytes(bytes),
        }
    }

    /// Most bytes of memory that [`Preprocessor::media_bytes`] takes for these, by what they say themselves.
    #[cfg(feature = "daemon")]
    pub(crate) fn media_memory(&self, bytes: &[u8]) -> Result<u64> {
        match is_wav(bytes) || self.base().audio()?.is_some() {
            true => Ok(self.front()?.0.memory(bytes.len())),
            false => picture::decoding_bytes(bytes),
        }
    }

    /// A batch from arrays of batch 1, for the graph's one input of pictures or sound.
    pub fn stack(&self, rows: &[&Array]) -> Result<Named> {
        let name = match self.engine.inputs() {
            [spec] if matches!(spec.role, Role::Mel | Role::Samples) => spec.name.clone(),
            _ => self.image_input()?.name.clone(),
        };
        Ok(vec![(name.clone(), concat_rows(&name, rows)?)])
    }

    /// What makes clips inputs, and the axes of the input that takes them.
    fn front(&self) -> Result<(Arc<FrontEnd>, usize)> {
        let rank = match self.engine.inputs() {
            [spec] if matches!(spec.role, Role::Mel | Role::Samples) => spec.dims.len(),
            inputs => {
                return Err(Error::unsupported(format!(
                    "sound needs a base with one input for it, this one has {}",
                    describe(inputs)
                ))
                .hint("pack it with --audio"));
            }
        };
        let mut slot = self.front.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(front) = &*slot {
            return Ok((front.clone(), rank));
        }
        let spec = self.base().audio()?.ok_or_else(|| {
            let place = self.base().path().display();
            Error::unsupported(format!("base '{place}' takes no sound")).hint(format!(
                "pack it with --audio and its front end, one of {}",
                AudioSpec::NAMES.join(", ")
            ))
        })?;
        let front = Arc::new(FrontEnd::new(spec));
        *slot = Some(front.clone());
        Ok((front, rank))
    }

    fn image_spec(&self) -> Result<&ImageSpec> {
        self.image_input()?;
        self.base().preprocess().image.as_ref().ok_or_else(|| {
            let place = self.base().path().display();
            Error::unsupported(format!("base '{place}' takes no pictures"))
                .hint("pack it with --image SIZE")
        })
    }

    fn image_input(&self) -> Result<&IoSpec> {
        match self.engine.inputs() {
            [spec] if spec.role == Role::Pixels => Ok(spec),
            inputs => Err(Error::unsupported(format!(
                "pictures need a base with one input for them, this one has {}",
                describe(inputs)
            ))),
        }
    }

    fn encoder(&self) -> Result<Arc<TextEncoder>> {
        let mut slot = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = &*slot {
            return Ok(encoder.clone());
        }
        if self.engine.input(Role::Ids).is_none() {
            return Err(Error::unsupported(format!(
                "sentences need a base with an input of token ids, this one has {}",
                describe(self.engine.inputs())
            )));
        }
        let bytes = self.base().tokenizer()?.ok_or_else(|| {
            let place = self.base().path().display();
            Error::unsupported(format!("base '{place}' has no tokenizer"))
                .hint("pack it with --tokenizer tokenizer.json")
        })?;
        let encoder = Arc::new(TextEncoder::from_bytes(bytes, self.max_tokens())?);
        *slot = Some(encoder.clone());
        Ok(encoder)
    }

    /// The number of tokens, where the graph leaves no choice.
    fn fixed_length(&self) -> Option<usize> {
        self.engine.input(Role::Ids)?.dims.get(1)?.parse().ok()
    }

    fn base(&self) -> &Base {
        self.engine.base()
    }
}

/// How many tokens that count stand before each.
fn positions(mask: &Array) -> Result<Array> {
    let length = mask.shape().last().copied().unwrap_or(0).max(1);
    let mut places = Vec::with_capacity(mask.data().len());
    for row in mask.as_i64()?.chunks(length) {
        let mut seen = 0;
        places.extend(row.iter().map(|m| {
            seen += m;
            (seen - 1).max(0)
        }));
    }
    Array::i64(mask.shape().to_vec(), places)
}

/// A state before the first token: nothing along its free dimension, zeros where there is none.
fn no_past(spec: &IoSpec, batch: usize) -> Result<Array> {
    let size = |(axis, dim): (usize, &String)| match dim.parse::<usize>() {
        Ok(size) => size,
        Err(_) if axis == 0 => batch,
        Err(_) => 0,
    };
    let shape: Vec<usize> = spec.dims.iter().enumerate().map(size).collect();
    let volume = shape.iter().product();
    Array::f32(shape, vec![0.0; volume])
}

/// Whole numbers as the graph takes them: a mask may be a bool or a float.
pub(crate) fn of_type(array: &Array, dtype: DType) -> Result<Array> {
    let values = array.as_i64()?;
    let data = match dtype {
        DType::F32 => Data::F32(values.iter().map(|&v| v as f32).collect()),
        DType::Bool => Data::Bool(values.iter().map(|&v| v != 0).collect()),
        DType::U8 => Data::U8(values.iter().map(|&v| v as u8).collect()),
        // Narrowed where a run takes it.
        DType::I64 | DType::I32 => return Ok(array.clone()),
    };
    Array::new(array.shape().to_vec(), data)
}

fn describe(inputs: &[IoSpec]) -> String {
    let inputs: Vec<String> =
        inputs.iter().map(|s| format!("'{}' [{}]", s.name, s.dims.join(", "))).collect();
    inputs.join(", ")
}

/// Arrays of equal type and shape but for the first axis, joined along it.
pub(crate) fn concat_rows(name: &str, arrays: &[&Array]) -> Result<Array> {
    let Some((first, rest)) = arrays.split_first() else {
        return Err(Error::usage(format!("no rows for input '{name}'")));
    };
    let differs = |other: &Array| {
        Error::bad_input(format!(
            "input '{name}': samples of {} {:?} and {} {:?} can't share a batch",
            first.dtype().name(),
            first.shape(),
            other.dtype().name(),
            other.shape()
        ))
    };
    let mut data = first.data().clone();
    let Some((&rows, inner)) = first.shape().split_first() else {
        return Err(Error::bad_input(format!("input '{name}' is a scalar, it has no batch")));
    };
    let mut rows = rows;
    for other in rest {
        if other.shape().get(1..) != Some(inner) {
            return Err(differs(other));
        }
        match (&mut data, other.data()) {
            (Data::F32(v), Data::F32(o)) => v.extend_from_slice(o),
            (Data::I64(v), Data::I64(o)) => v.extend_from_slice(o),
            (Data::I32(v), Data::I32(o)) => v.extend_from_slice(o),
            (Data::U8(v), Data::U8(o)) => v.extend_from_slice(o),
            (Data::Bool(v), Data::Bool(o)) => v.extend_from_slice(o),
            _ => return Err(differs(other)),
        }
        rows += other.shape().first().copied().unwrap_or(0);
    }
    let shape: Vec<usize> = std::iter::once(rows).chain(inner.iter().copied()).collect();
    Array::new(shape, data)
}

/// Arrays of equal type and shape without a batch, put side by side along a new axis `axis`.
pub(crate) fn concat_axis(name: &str, arrays: &[&Array], axis: usize) -> Result<Array> {
    let one = |array: &&Array| {
        let shape: Vec<usize> = std::iter::once(1).chain(array.shape().iter().copied()).collect();
        Array::new(shape, array.data().clone())
    };
    let cells = arrays.iter().map(one).collect::<Result<Vec<_>>>()?;
    let rows = concat_rows(name, &cells.iter().collect::<Vec<_>>())?;
    let [batch, inner @ ..] = rows.shape() else { return Ok(rows) };
    if axis == 0 || axis > inner.len() {
        return Ok(rows);
    }
    let outer: usize = inner[..axis].iter().product();
    let width: usize = inner[axis..].iter().product();
    let mut shape = inner.to_vec();
    shape.insert(axis, *batch);
    let (batch, data) = (*batch, rows.data());
    fn moved<T: Copy>(values: &[T], [batch, outer, width]: [usize; 3]) -> Vec<T> {
        let part = |o: usize, b: usize| &values[(b * outer + o) * width..][..width];
        (0..outer).flat_map(|o| (0..batch).flat_map(move |b| part(o, b))).copied().collect()
    }
    let sizes = [batch, outer, width];
    let data = match data {
        Data::F32(v) => Data::F32(moved(v, sizes)),
        Data::I64(v) => Data::I64(moved(v, sizes)),
        Data::I32(v) => Data::I32(moved(v, sizes)),
        Data::U8(v) => Data::U8(moved(v, sizes)),
        Data::Bool(v) => Data::Bool(moved(v, sizes)),
    };
    Array::new(shape, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_joined_and_unlike_ones_refused() {
        let a = Array::f32(vec![1, 2], vec![1.0, 2.0]).unwrap();
        let b = Array::f32(vec![2, 2], vec![3.0, 4.0, 5.0, 6.0]).unwrap();
        let joined = concat_rows("x", &[&a, &b]).unwrap();
        assert_eq!(joined.shape(), [3, 2]);
        assert_eq!(joined.as_f32().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let c = Array::f32(vec![1, 3], vec![0.0; 3]).unwrap();
        assert!(concat_rows("x", &[&a, &c]).unwrap_err().message().contains("'x'"));
        let d = Array::i64(vec![1, 2], vec![0; 2]).unwrap();
        assert!(concat_rows("x", &[&a, &d]).is_err());
        assert!(concat_rows("x", &[]).is_err());
    }

    /// A state (layers, batch, width): samples stand side by side along its second axis.
    #[test]
    fn samples_stand_along_the_axis_of_the_batch() {
        let a = Array::f32([2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        let b = Array::f32([2, 2], vec![5.0, 6.0, 7.0, 8.0]).unwrap();
        let joined = concat_axis("x", &[&a, &b], 1).unwrap();
        assert_eq!(joined.shape(), [2, 2, 2]);
        assert_eq!(joined.as_f32().unwrap(), [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
        assert_eq!(
            concat_axis("x", &[&a, &b], 0).unwrap().as_f32().unwrap()[..4],
            [1.0, 2.0, 3.0, 4.0]
        );
    }
}
