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
mod tests {
    use super::*;

    #[test]
    fn buckets_grow_by_halves_up_to_the_limit() {
        let at = |n| bucket(n, 512);
        assert_eq!(
            [0, 1, 8, 9, 17, 33, 49, 65, 97, 129].map(at),
            [8, 8, 8, 16, 32, 48, 64, 96, 128, 192]
        );
        assert_eq!(bucket(100, 100), 100);
        assert_eq!(bucket(4, 5), 5);
        assert_eq!(bucket(65, 80), 80);
        assert_eq!(bucket(usize::MAX, usize::MAX), usize::MAX);
    }

    #[test]
    fn padding_goes_to_the_stated_side() {
        let a = Tokens { ids: vec![5, 6], types: vec![0, 1] };
        let b = Tokens { ids: vec![7], types: vec![0] };
        let right = pad(&[&a, &b], 3, Padding { id: 9, type_id: 2, left: false }).unwrap();
        assert_eq!(right.ids.as_i64().unwrap(), [5, 6, 9, 7, 9, 9]);
        assert_eq!(right.mask.as_i64().unwrap(), [1, 1, 0, 1, 0, 0]);
        assert_eq!(right.types.as_i64().unwrap(), [0, 1, 2, 0, 2, 2]);
        let left = pad(&[&a, &b], 3, Padding { id: 9, type_id: 2, left: true }).unwrap();
        assert_eq!(left.ids.as_i64().unwrap(), [9, 5, 6, 9, 9, 7]);
        assert_eq!(left.ids.shape(), [2, 3]);
        assert!(pad(&[&a], 1, Padding { id: 0, type_id: 0, left: false }).is_err());
    }

    #[cfg(not(feature = "text"))]
    #[test]
    fn a_build_without_tokenizers_says_so() {
        let e = TextEncoder::from_bytes(b"{}", 8).unwrap_err();
        assert_eq!(e.kind(), crate::error::ErrorKind::Unsupported);
    }

    #[cfg(feature = "text")]
    mod encoder {
        use super::*;
        use crate::error::ErrorKind;

        /// A WordPiece tokenizer of the shape that BERT models ship, fixed padding included.
        fn tiny() -> String {
            let words =
                ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "turn", "the", "light", "on", "##s", "off"];
            let vocab: Vec<String> =
                words.iter().enumerate().map(|(i, w)| format!("\"{w}\":{i}")).collect();
            format!(
                r#"{{"version":"1.0","truncation":{{"max_length":4,"strategy":"LongestFirst","stride":0}},
                "padding":{{"strategy":{{"Fixed":128}},"direction":"Right","pad_to_multiple_of":null,
                "pad_id":0,"pad_type_id":0,"pad_token":"[PAD]"}},"added_tokens":[
                {{"id":0,"special":true,"content":"[PAD]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false}}],
                "normalizer":{{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true}},
                "pre_tokenizer":{{"type":"BertPreTokenizer"}},
                "post_processor":{{"type":"TemplateProcessing",
                "single":[{{"SpecialToken":{{"id":"[CLS]","type_id":0}}}},{{"Sequence":{{"id":"A","type_id":0}}}},{{"SpecialToken":{{"id":"[SEP]","type_id":0}}}}],
                "pair":[{{"Sequence":{{"id":"A","type_id":0}}}},{{"Sequence":{{"id":"B","type_id":1}}}}],
                "special_tokens":{{"[CLS]":{{"id":"[CLS]","ids":[2],"tokens":["[CLS]"]}},"[SEP]":{{"id":"[SEP]","ids":[3],"tokens":["[SEP]"]}}}}}},
                "decoder":null,
                "model":{{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"\u0023\u0023","max_input_chars_per_word":100,"vocab":{{{}}}}}}}"#,
                vocab.join(",")
            )
        }

        fn encode<S: AsRef<str>>(encoder: &TextEncoder, sentences: &[S]) -> Result<EncodedText> {
            let rows: Result<Vec<_>> =
                sentences.iter().map(|s| encoder.tokens(s.as_ref())).collect();
            let rows = rows?;
            let longest = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
            let rows: Vec<&Tokens> = rows.iter().collect();
            encoder.batch_of_length(&rows, bucket(longest, encoder.max_tokens))
        }

        #[test]
        fn the_files_own_lengths_are_overridden() {
            let encoder = TextEncoder::from_bytes(tiny().as_bytes(), 10).unwrap();
            let out = encode(&encoder, &["Turn the lights ON", "off"]).unwrap();
            assert_eq!(out.ids.shape(), [2, 8]);
            assert_eq!(out.ids.as_i64().unwrap(), [2, 4, 5, 6, 8, 7, 3, 0, 2, 9, 3, 0, 0, 0, 0, 0]);
            assert_eq!(out.mask.as_i64().unwrap()[..8], [1, 1, 1, 1, 1, 1, 1, 0]);
            assert!(out.types.as_i64().unwrap().iter().all(|&t| t == 0));
        }

        #[test]
        fn long_sentences_are_cut_and_keep_their_last_special_token() {
            let encoder = TextEncoder::from_bytes(tiny().as_bytes(), 10).unwrap();
            let out = encode(&encoder, &["turn ".repeat(40)]).unwrap();
            assert_eq!(out.ids.shape(), [1, 10]);
            assert_eq!(out.ids.as_i64().unwrap()[9], 3);
        }

        #[test]
        fn an_empty_sentence_is_its_special_tokens() {
            let encoder = TextEncoder::from_bytes(tiny().as_bytes(), 16).unwrap();
            assert_eq!(encoder.tokens("").unwrap().ids, [2, 3]);
            assert_eq!(encode::<&str>(&encoder, &[]).unwrap().ids.shape(), [0, 8]);
        }

        #[test]
        fn damaged_files_are_errors() {
            let good = tiny();
            for cut in [0, 1, 20, good.len() / 2, good.len() - 1] {
                let e = TextEncoder::from_bytes(&good.as_bytes()[..cut], 16).unwrap_err();
                assert_eq!(e.kind(), ErrorKind::BadInput, "cut at {cut}");
            }
            let without_unknown = good.replace("\"unk_token\":\"[UNK]\"", "\"unk_token\":\"none\"");
            for bad in [
                "[]",
                "\u{0}",
                &without_unknown,
                &good.replace("WordPiece", "Nothing"),
                &good.replace("\"[UNK]\":1", "\"[UNK]\":-1"),
                &"[".repeat(100_000),
            ] {
                let e = TextEncoder::from_bytes(bad.as_bytes(), 16).unwrap_err();
                assert_eq!(e.kind(), ErrorKind::BadInput, "{e}");
                assert!(!e.message().contains('\n'));
            }
            let large = vec![b' '; crate::limits::TOKENIZER as usize + 1];
            assert!(TextEncoder::from_bytes(&large, 16).unwrap_err().message().contains("larger"));
        }

        #[test]
        fn flipped_bytes_never_panic() {
            let good = tiny();
            for i in 0..good.len() {
                let mut bytes = good.clone().into_bytes();
                bytes[i] ^= 0x11;
                if let Ok(encoder) = TextEncoder::from_bytes(&bytes, 12) {
                    let out = encode(&encoder, &["turn on the light"]);
                    assert!(out.is_err() || out.unwrap().ids.shape()[1] <= 12);
                }
            }
        }

        #[test]
        fn other_models_than_wordpiece_are_read_too() {
            let json = tiny()
                .replace(
                    "WordPiece\",\"unk_token\":\"[UNK]\"",
                    "WordLevel\",\"unk_token\":\"[UNK]\"",
                )
                .replace("\"type\":\"WordPiece\"", "\"type\":\"WordLevel\"");
            let encoder = TextEncoder::from_bytes(json.as_bytes(), 16).unwrap();
            assert_eq!(encoder.tokens("turn lights on").unwrap().ids, [2, 4, 1, 7, 3]);
        }

        #[test]
        fn no_room_beside_the_special_tokens_is_refused() {
            let e = TextEncoder::from_bytes(tiny().as_bytes(), 0).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Usage);
            let e = TextEncoder::from_bytes(tiny().as_bytes(), 1).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Usage);
        }
    }
}
