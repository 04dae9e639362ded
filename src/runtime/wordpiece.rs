//! WordPiece over a compact vocabulary.
//!
//! The tokenizers library keeps a vocabulary twice in hash maps of owned strings: 22 MB of unshared
//! memory for BERT's 30,522 pieces. Here it is one string and two tables, under 1 MB; splitting a
//! word is the library's algorithm (`models/wordpiece/mod.rs`, 0.23), everything around it the
//! library itself.

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::models::wordpiece::WordPieceTrainer;
use tokenizers::{Model, Token};

/// A piece: where its text lies in the vocabulary's string, and its id.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u32,
    end: u32,
    id: u32,
}

/// Pieces and ids, each found by binary search.
#[derive(Debug, Default)]
struct Vocabulary {
    text: String,
    /// Sorted by text.
    pieces: Box<[Piece]>,
    /// Positions in `pieces`, sorted by id.
    by_id: Box<[u32]>,
}

impl Vocabulary {
    fn new(text: String, mut pieces: Vec<Piece>) -> Vocabulary {
        // A text given twice has its last id, as in a map that is filled in order: the sort is
        // stable, and of equal neighbours the later one is kept.
        pieces.sort_by(|a, b| slice(&text, a).cmp(slice(&text, b)));
        pieces.dedup_by(|later, earlier| {
            let same = slice(&text, later) == slice(&text, earlier);
            if same {
                *earlier = *later;
            }
            same
        });
        let mut by_id: Vec<u32> = (0..pieces.len() as u32).collect();
        by_id.sort_by_key(|&at| pieces[at as usize].id);
        Vocabulary { text, pieces: pieces.into(), by_id: by_id.into() }
    }

    fn id(&self, piece: &str) -> Option<u32> {
        let at = self.pieces.binary_search_by(|p| slice(&self.text, p).cmp(piece)).ok()?;
        Some(self.pieces[at].id)
    }

    fn piece(&self, id: u32) -> Option<&str> {
        let of = |&at: &u32| self.pieces[at as usize].id;
        let at = self.by_id.binary_search_by_key(&id, of).ok()?;
        Some(slice(&self.text, &self.pieces[self.by_id[at] as usize]))
    }
}

fn slice<'a>(text: &'a str, piece: &Piece) -> &'a str {
    text.get(piece.start as usize..piece.end as usize).unwrap_or("")
}

/// The model of a tokenizer, read from the `model` part of a `tokenizer.json`.
#[derive(Debug)]
pub(super) struct WordPiece {
    vocabulary: Vocabulary,
    unknown: String,
    /// What stands before a piece that goes on a word, `##`.
    continuing: String,
    /// Longer words are unknown.
    max_chars: usize,
}

impl WordPiece {
    fn unknown(&self, whole: Range<usize>) -> tokenizers::Result<Vec<Token>> {
        let id = self
            .vocabulary
            .id(&self.unknown)
            .ok_or_else(|| format!("the vocabulary lacks its unknown token '{}'", self.unknown))?;
        Ok(vec![Token::new(id, self.unknown.clone(), (whole.start, whole.end))])
    }
}

impl Model for WordPiece {
    type Trainer = WordPieceTrainer;

    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        if word.chars().count() > self.max_chars {
            return self.unknown(0..word.len());
        }
        let mut tokens = vec![];
        let mut candidate = String::with_capacity(self.continuing.len() + word.len());
        let mut start = 0;
        while start < word.len() {
            candidate.clear();
            if start > 0 {
                candidate.push_str(&self.continuing);
            }
            let prefix = candidate.len();
            candidate.push_str(&word[start..]);
            // The longest piece that the rest of the word begins with.
            let id = loop {
                if candidate.len() <= prefix {
                    return self.unknown(0..word.len());
                }
                match self.vocabulary.id(&candidate) {
                    Some(id) => break id,
                    None => drop(candidate.pop()),
                }
            };
            let end = start + candidate.len() - prefix;
            tokens.push(Token::new(id, candidate.clone(), (start, end)));
            start = end;
        }
        Ok(tokens)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.vocabulary.piece(id).map(str::to_string)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        let v = &self.vocabulary;
        v.pieces.iter().map(|p| (slice(&v.text, p).to_string(), p.id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.vocabulary.pieces.len()
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("a base's vocabulary is read only".into())
    }

    fn get_trainer(&self) -> WordPieceTrainer {
        WordPieceTrainer::default()
    }
}

impl<'de> Deserialize<'de> for WordPiece {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<WordPiece, D::Error> {
        from.deserialize_map(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = WordPiece;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a WordPiece model")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WordPiece, A::Error> {
        let (mut vocabulary, mut unknown, mut continuing, mut max_chars) = (None, None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "type" => {
                    let kind = map.next_value::<String>()?;
                    if kind != "WordPiece" {
                        return Err(A::Error::custom(format!("a model of type '{kind}'")));
                    }
                }
                "unk_token" => unknown = Some(map.next_value()?),
                "continuing_subword_prefix" => continuing = Some(map.next_value()?),
                "max_input_chars_per_word" => max_chars = Some(map.next_value()?),
                "vocab" => vocabulary = Some(map.next_value::<Vocabulary>()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(WordPiece {
            vocabulary: vocabulary.ok_or_else(|| A::Error::missing_field("vocab"))?,
            unknown: unknown.ok_or_else(|| A::Error::missing_field("unk_token"))?,
            continuing: continuing
                .ok_or_else(|| A::Error::missing_field("continuing_subword_prefix"))?,
            max_chars: max_chars
                .ok_or_else(|| A::Error::missing_field("max_input_chars_per_word"))?,
        })
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Vocabulary, D::Error> {
        from.deserialize_map(Pieces)
    }
}

struct Pieces;

impl<'de> Visitor<'de> for Pieces {
    type Value = Vocabulary;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary of pieces and ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
        let (mut text, mut pieces) = (String::new(), vec![]);
        loop {
            let start = text.len();
            if map.next_key_seed(Append(&mut text))?.is_none() {
                break;
            }
            let id = map.next_value()?;
            let place = |at: usize| u32::try_from(at).map_err(A::Error::custom);
            pieces.push(Piece { start: place(start)?, end: place(text.len())?, id });
        }
        text.shrink_to_fit();
        Ok(Vocabulary::new(text, pieces))
    }
}

/// Reads a string onto the end of another.
struct Append<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Append<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Append<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a piece")
    }

    fn visit_str<E: serde::de::Error>(self, piece: &str) -> Result<(), E> {
        self.0.push_str(piece);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::models::wordpiece::WordPiece as Theirs;

    const MODEL: &str = r###"{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##",
        "max_input_chars_per_word":9,"vocab":{"[UNK]":7,"un":0,"##aff":1,"##able":2,"u":3,"##n":4,
        "\u00e4":5,"##\u00e4":6,"a":8,"##a":9,"##b":10}}"###;

    fn tokens(model: &impl Model, word: &str) -> Vec<(u32, String, (usize, usize))> {
        let all = model.tokenize(word).unwrap();
        all.into_iter().map(|t| (t.id, t.value, t.offsets)).collect()
    }

    #[test]
    fn words_split_as_the_library_splits_them() {
        let ours: WordPiece = serde_json::from_str(MODEL).unwrap();
        let theirs: Theirs = serde_json::from_str(MODEL).unwrap();
        let words = [
            "",
            "un",
            "unaffable",
            "unn",
            "uä",
            "ää",
            "äb",
            "b",
            "abababab",
            "aaaaaaaaaa",
            "##a",
            "unaffx",
            "ääääääääää",
            "🧭",
        ];
        for word in words {
            assert_eq!(tokens(&ours, word), tokens(&theirs, word), "'{word}'");
        }
        assert_eq!(ours.get_vocab(), theirs.get_vocab());
        for id in 0..12 {
            assert_eq!(ours.id_to_token(id), theirs.id_to_token(id));
        }
        assert_eq!(ours.token_to_id("##able"), Some(2));
        assert_eq!(ours.token_to_id("##abl"), None);
    }

    #[test]
    fn a_piece_given_twice_has_its_last_id() {
        let twice = MODEL.replace("\"##b\":10", "\"##b\":10,\"un\":11");
        let ours: WordPiece = serde_json::from_str(&twice).unwrap();
        assert_eq!(ours.token_to_id("un"), Some(11));
        assert_eq!(ours.id_to_token(0), None);
        assert_eq!(ours.get_vocab_size(), 11);
    }

    #[test]
    fn what_is_missing_is_named() {
        for field in ["unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab"]
        {
            let without = MODEL.replace(&format!("\"{field}\""), "\"other\"");
            let e = serde_json::from_str::<WordPiece>(&without).unwrap_err();
            assert!(e.to_string().contains(field), "{e}");
        }
        assert!(
            serde_json::from_str::<WordPiece>(&MODEL.replace("\"WordPiece\"", "\"BPE\"")).is_err()
        );
        let none = serde_json::from_str::<WordPiece>(&MODEL.replace("\"[UNK]\":7", "\"x\":7"));
        assert!(none.unwrap().tokenize("?").unwrap_err().to_string().contains("[UNK]"));
    }
}
