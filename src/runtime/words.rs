//! Where the words of a sentence stand among its tokens.

/// Where the words of a sentence stand: what labels of tokens belong to. A word is what the tokenizer
/// takes for one before it cuts it into tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Tokens of the sentence, special ones included.
    pub tokens: usize,
    /// The words, in order; those that were cut off are not there.
    pub words: Vec<WordAt>,
}

/// One word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WordAt {
    /// The place of its first token.
    pub token: u32,
    /// Its first character in the sentence.
    pub start: u32,
    /// The character behind its last.
    pub end: u32,
}

impl WordAt {
    /// Its text in `sentence`.
    pub fn text(self, sentence: &str) -> String {
        let (start, end) = (self.start as usize, self.end as usize);
        sentence.chars().skip(start).take(end.saturating_sub(start)).collect()
    }
}

#[cfg(feature = "text")]
impl Words {
    /// Of an encoding whose offsets are characters and that was cut at `tokens` tokens.
    pub(super) fn of(sentence: &str, encoding: &tokenizers::Encoding, tokens: usize) -> Words {
        let characters: Vec<char> = sentence.chars().collect();
        let blank = |at: usize| characters.get(at).is_none_or(|c| c.is_whitespace());
        let mut words: Vec<WordAt> = vec![];
        let mut last = None;
        let special = encoding.get_special_tokens_mask();
        let parts = encoding.get_word_ids().iter().zip(encoding.get_offsets());
        for (at, (word, &(mut start, end))) in parts.enumerate().take(tokens) {
            if special.get(at).is_none_or(|s| *s != 0) || end <= start {
                continue;
            }
            // Some tokenizers count the blank before a word to it.
            while start < end && blank(start) {
                start += 1;
            }
            if start == end {
                continue;
            }
            let (start, end) = (start as u32, end as u32);
            match words.last_mut() {
                Some(open) if word.is_some() && last == *word => open.end = open.end.max(end),
                _ => words.push(WordAt { token: at as u32, start, end }),
            }
            last = *word;
        }
        Words { tokens, words }
    }
}
