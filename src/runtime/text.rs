//! Sentences to token ids, by the tokenizer stored with a base.

use super::words::Words;
use crate::error::{Error, Result};
use crate::shape::Array;

#[cfg(feature = "text")]
pub use with_tokenizers::TextEncoder;
#[cfg(not(feature = "text"))]
pub use without_tokenizers::TextEncoder;

/// For encoders that cut nothing.
pub const UNLIMITED: usize = 1 << 30;

/// One sentence as ids, special tokens included, cut at the encoder's `max_tokens`, not padded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment of each token (BERT's token type), as long as `ids`.
    pub types: Vec<u32>,
}

/// A padded batch: three i64 arrays of one shape [B, T].
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedText {
    /// Token ids, [B, T].
    pub ids: Array,
    /// 1 for a token, 0 for padding, [B, T].
    pub mask: Array,
    /// Segment ids, [B, T].
    pub types: Array,
}

/// How a batch is filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Padding {
    id: u32,
    type_id: u32,
    left: bool,
}

/// As [`bucket`], in steps of 8 up to 64 and of 16 up to 128: less is padded, more plans are built.
pub fn narrow_bucket(tokens: usize, max_tokens: usize) -> usize {
    let length = match tokens {
        0..=64 => tokens.max(1).next_multiple_of(8),
        65..=128 => tokens.next_multiple_of(16),
        _ => bucket(tokens, max_tokens),
    };
    length.min(max_tokens)
}

/// The padded length for a longest sentence of `tokens`: the next of 8, 16, 32, 48, 64, 96, 128,
/// 192, 256, ... (a power of two or one and a half times one), at most `max_tokens`. Plans are
/// built per length, so few lengths mean few plans.
pub fn bucket(tokens: usize, max_tokens: usize) -> usize {
    let mut power = 8usize;
    loop {
        let half_more = power + power / 2;
        if tokens <= power || power >= max_tokens {
            return power.min(max_tokens);
        }
        if power >= 32 && tokens <= half_more {
            return half_more.min(max_tokens);
        }
        power = match power.checked_mul(2) {
            Some(next) => next,
            None => return max_tokens,
        };
    }
}

/// Pads `rows` to `length` tokens; rows longer than that are an error.
fn pad(rows: &[&Tokens], length: usize, padding: Padding) -> Result<EncodedText> {
    let shape = vec![rows.len(), length];
    let volume = rows.len().saturating_mul(length);
    let mut ids = Vec::with_capacity(volume);
    let mut mask = Vec::with_capacity(volume);
    let mut types = Vec::with_capacity(volume);
    for row in rows {
        let Some(fill) = length.checked_sub(row.ids.len()) else {
            return Err(Error::usage(format!(
                "a sentence of {} tokens does not fit into {length}",
                row.ids.len()
            )));
        };
        if row.types.len() != row.ids.len() {
            return Err(Error::usage("a sentence has not as many token types as ids"));
        }
        let before = if padding.left { fill } else { 0 };
        let after = fill - before;
        let put = |out: &mut Vec<i64>, values: &mut dyn Iterator<Item = i64>, filler: i64| {
            out.extend(std::iter::repeat_n(filler, before));
            out.extend(values);
            out.extend(std::iter::repeat_n(filler, after));
        };
        put(&mut ids, &mut row.ids.iter().map(|&v| v.into()), padding.id.into());
        put(&mut mask, &mut row.ids.iter().map(|_| 1), 0);
        put(&mut types, &mut row.types.iter().map(|&v| v.into()), padding.type_id.into());
    }
    Ok(EncodedText {
        ids: Array::i64(shape.clone(), ids)?,
        mask: Array::i64(shape.clone(), mask)?,
        types: Array::i64(shape, types)?,
    })
}

#[cfg(feature = "text")]
mod with_tokenizers {
    use super::*;
    use crate::caught::caught;
    use crate::limits;
    use crate::runtime::tokenizer_limits::{MAX_SENTENCE_BYTES, check};
    use crate::runtime::wordpiece::WordPiece;
    use tokenizers::{
        DecoderWrapper, Encoding, Model, NormalizerWrapper, PaddingDirection, PostProcessor,
        PostProcessorWrapper, PreTokenizerWrapper, Tokenizer, TokenizerImpl, TruncationDirection,
        TruncationParams,
    };

    type Of<M> = TokenizerImpl<
        M,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >;

    /// WordPiece apart from the rest: its vocabulary in a compact form, and read straight into its
    /// type, where the library's wrapper of all models first buffers every value.
    enum Inner {
        WordPiece(Box<Of<WordPiece>>),
        Any(Box<Tokenizer>),
    }

    macro_rules! of_both {
        ($inner:expr, $it:ident => $call:expr) => {
            match $inner {
                Inner::WordPiece($it) => $call,
                Inner::Any($it) => $call,
            }
        };
    }

    /// A tokenizer with this crate's own truncation and padding: what `tokenizer.json` says about
    /// lengths is overridden (MiniLM's file pads everything to 128), its padding id and side kept.
    pub struct TextEncoder {
        tokenizer: Inner,
        pub(super) max_tokens: usize,
        padding: Padding,
        /// Most bytes of a sentence that go through it.
        limit: usize,
        /// Whether tokens past `max_tokens` are cut off at the end.
        cuts_end: bool,
    }

    impl TextEncoder {
        /// Reads a `tokenizer.json`. Sentences are cut at `max_tokens`, special tokens included.
        ///
        /// Bytes that are no tokenizer are an error, as is a `max_tokens` that leaves no room
        /// beside the special tokens.
        pub fn from_bytes(tokenizer_json: &[u8], max_tokens: usize) -> Result<TextEncoder> {
            if tokenizer_json.len() as u64 > limits::TOKENIZER {
                return Err(Error::bad_input(format!(
                    "tokenizer of {} bytes is larger than the limit of {}",
                    tokenizer_json.len(),
                    limits::TOKENIZER
                )));
            }
            let limit = check(tokenizer_json, max_tokens)?;
            let encoder = guarded(|| {
                let (tokenizer, (padding, cuts_end)) = match serde_json::from_slice(tokenizer_json)
                {
                    Ok(Some::<Of<WordPiece>>(mut it)) => {
                        let prepared = prepare(&mut it, max_tokens)?;
                        (Inner::WordPiece(Box::new(it)), prepared)
                    }
                    _ => {
                        let mut it = Tokenizer::from_bytes(tokenizer_json).map_err(|e| {
                            Error::bad_input(format!("not a usable tokenizer.json: {e}"))
                        })?;
                        let prepared = prepare(&mut it, max_tokens)?;
                        (Inner::Any(Box::new(it)), prepared)
                    }
                };
                Ok(TextEncoder { tokenizer, max_tokens, padding, limit, cuts_end })
            })?;
            // A tokenizer whose model lacks its own unknown token fails here, not at first use.
            encoder.tokens("a \u{1F9ED}")?;
            Ok(encoder)
        }

        /// The most bytes of a sentence that go through the tokenizer.
        pub(crate) fn max_bytes(&self) -> usize {
            self.limit
        }

        /// One sentence's tokens.
        pub fn tokens(&self, sentence: &str) -> Result<Tokens> {
            Ok(self.encoded(sentence, false)?.0)
        }

        /// One sentence's tokens and its words.
        pub fn words(&self, sentence: &str) -> Result<(Tokens, Words)> {
            let (tokens, encoding) = self.encoded(sentence, true)?;
            let words = Words::of(sentence, &encoding, tokens.ids.len());
            Ok((tokens, words))
        }

        /// A text's tokens, with the special ones that the tokenizer sets around it, or without.
        pub fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>> {
            if text.len() > self.limit {
                return Err(self.longer(text));
            }
            let encode = |it: &Inner| of_both!(it, it => it.encode_fast(text, special));
            let encoding = self.guarded_encoding(encode)?;
            Ok(encoding.get_ids().to_vec())
        }

        /// The text of tokens, special ones left out.
        pub fn decode(&self, ids: &[u32]) -> Result<String> {
            guarded(|| {
                let text = of_both!(&self.tokenizer, it => it.decode(ids, true));
                text.map_err(|e| Error::failed(format!("tokens can't be decoded: {e}")))
            })
        }

        /// The number of the token that is called `name`.
        pub fn id_of(&self, name: &str) -> Option<u32> {
            of_both!(&self.tokenizer, it => it.token_to_id(name))
        }

        fn encoded(&self, sentence: &str, offsets: bool) -> Result<(Tokens, Encoding)> {
            let limit = self.limit;
            let is_long = sentence.len() > limit;
            if is_long && (sentence.len() > MAX_SENTENCE_BYTES || !self.cuts_end) {
                return Err(self.longer(sentence));
            }
            let begin = sentence.get(..sentence.floor_char_boundary(limit)).unwrap_or(sentence);
            let encoding = self.guarded_encoding(|it| match offsets {
                false => of_both!(it, it => it.encode_fast(begin, true)),
                true => of_both!(it, it => it.encode_char_offsets(begin, true)),
            })?;
            // Nothing is missing only if there are tokens to cut off anyway.
            if is_long && encoding.get_overflowing().is_empty() {
                return Err(self.longer(sentence));
            }
            let mut ids = encoding.get_ids().to_vec();
            let mut types = encoding.get_type_ids().to_vec();
            // A post-processor that ignores the truncation's room could still exceed it.
            ids.truncate(self.max_tokens);
            types.resize(ids.len(), 0);
            Ok((Tokens { ids, types }, encoding))
        }

        fn longer(&self, sentence: &str) -> Error {
            let (len, limit) = (sentence.len(), self.limit);
            Error::bad_input(format!("sentence of {len} bytes is longer than the limit of {limit}"))
        }

        fn guarded_encoding(
            &self,
            encode: impl FnOnce(&Inner) -> tokenizers::Result<Encoding>,
        ) -> Result<Encoding> {
            guarded(|| {
                encode(&self.tokenizer)
                    .map_err(|e| Error::bad_input(format!("sentence can't be tokenized: {e}")))
            })
        }

        /// A batch padded to exactly `length` tokens; a longer row is an error.
        pub fn batch_of_length(&self, rows: &[&Tokens], length: usize) -> Result<EncodedText> {
            pad(rows, length, self.padding)
        }
    }

    impl std::fmt::Debug for TextEncoder {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("TextEncoder")
                .field("max_tokens", &self.max_tokens)
                .field("padding", &self.padding)
                .finish_non_exhaustive()
        }
    }

    /// Takes the padding over from the tokenizer and sets the truncation; tells whether it cuts the end.
    fn prepare<M: Model>(tokenizer: &mut Of<M>, max_tokens: usize) -> Result<(Padding, bool)> {
        let padding = match tokenizer.get_padding() {
            Some(p) => Padding {
                id: p.pad_id,
                type_id: p.pad_type_id,
                left: matches!(p.direction, PaddingDirection::Left),
            },
            None => Padding {
                id: ["[PAD]", "<pad>", "<|endoftext|>"]
                    .iter()
                    .find_map(|name| tokenizer.token_to_id(name))
                    .unwrap_or(0),
                type_id: 0,
                left: false,
            },
        };
        // tokenizers 0.23.2 subtracts this without a check: a shorter length wraps around.
        let special = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(false));
        if max_tokens <= special {
            return Err(Error::usage(format!(
                "sentences can't be cut at {max_tokens} tokens: {special} are special tokens"
            )));
        }
        let direction = tokenizer.get_truncation().map(|t| t.direction).unwrap_or_default();
        tokenizer.with_padding(None);
        let truncation =
            TruncationParams { max_length: max_tokens, direction, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| {
            Error::usage(format!("sentences can't be cut at {max_tokens} tokens: {e}"))
        })?;
        Ok((padding, direction == TruncationDirection::Right))
    }

    /// The tokenizer file is a stranger's: a panic that it provokes in the library is an error.
    fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
        caught(|_| Error::bad_input("the tokenizer is damaged: it can't be used"), work)?
    }
}

#[cfg(not(feature = "text"))]
mod without_tokenizers {
    use super::*;

    /// Stands where the tokenizer is when the crate is built without the feature `text`: it can't
    /// be made, so no value of it exists.
    #[derive(Debug)]
    pub enum TextEncoder {}

    impl TextEncoder {
        /// Always [`crate::error::ErrorKind::Unsupported`].
        pub fn from_bytes(_tokenizer_json: &[u8], _max_tokens: usize) -> Result<TextEncoder> {
            Err(Error::unsupported("this build takes no sentences")
                .hint("build with the feature 'text'"))
        }

        /// One sentence's tokens.
        pub fn tokens(&self, _sentence: &str) -> Result<Tokens> {
            match *self {}
        }

        /// One sentence's tokens and its words.
        pub fn words(&self, _sentence: &str) -> Result<(Tokens, Words)> {
            match *self {}
        }

        /// A text's tokens.
        pub fn ids(&self, _text: &str, _special: bool) -> Result<Vec<u32>> {
            match *self {}
        }

        /// The text of tokens.
        pub fn decode(&self, _ids: &[u32]) -> Result<String> {
            match *self {}
        }

        pub fn id_of(&self, _name: &str) -> Option<u32> {
            match *self {}
        }

        /// A batch padded to exactly `length` tokens.
        pub fn batch_of_length(&self, rows: &[&Tokens], length: usize) -> Result<EncodedText> {
            pad(rows, length, Padding { id: 0, type_id: 0, left: false })
        }
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
