//! How near one text is to another: edits of characters and words.

use super::answer::{Measured, Metric, Metrics};
use crate::error::Result;
use crate::train::data::RoughLabel;
use crate::train::metrics::edits;
use serde_json::{Map, Value};

/// What is kept of a row whose label is a text: that under the name of `field`, whatever the row called it.
pub(super) fn stored(field: &str, label: Result<RoughLabel>) -> Map<String, Value> {
    let text = label.ok().and_then(|rough| rough.text).unwrap_or_default().text;
    Map::from_iter([(field.to_string(), text.into())])
}

/// Error rates over many texts.
#[derive(Default)]
pub(super) struct Rates {
    pub samples: usize,
    exact: usize,
    /// Edits, and how much there was to read.
    characters: [usize; 2],
    words: [usize; 2],
}

impl Rates {
    pub fn count(&mut self, text: &str, read: &str) {
        let (wrong, count) = characters(text, read);
        let [said, heard] = [text, read].map(|t| t.split_whitespace().collect::<Vec<&str>>());
        self.samples += 1;
        self.exact += usize::from(wrong == 0);
        self.characters = [self.characters[0] + wrong, self.characters[1] + count];
        self.words = [self.words[0] + edits(&said, &heard), self.words[1] + said.len()];
    }

    /// Of characters and of words: edits of all samples over the length of all texts.
    pub fn rates(&self) -> [f64; 2] {
        [self.characters, self.words].map(|[wrong, count]| wrong as f64 / count.max(1) as f64)
    }

    /// What was counted, beside the loss.
    pub fn measured(&self, loss: f64) -> Measured {
        let [cer, wer] = self.rates();
        let metrics = Metrics(vec![
            Metric::lower("loss", loss),
            Metric::lower("cer", cer),
            Metric::lower("wer", wer),
            Metric::higher("exact", self.exact as f64 / self.samples.max(1) as f64),
        ]);
        Measured { metrics, ..Measured::default() }
    }
}

/// The share of the text's characters that are right, less the edits that what was read takes.
pub(super) fn characters_right(text: &str, read: &str) -> f64 {
    match characters(text, read) {
        (0, _) => 1.0,
        (_, 0) => 0.0,
        (wrong, count) => (1.0 - wrong as f64 / count as f64).max(0.0),
    }
}

/// Edits between the characters of both, and characters of the first.
fn characters(text: &str, read: &str) -> (usize, usize) {
    let [text, read] = [text, read].map(|t| t.chars().collect::<Vec<char>>());
    (edits(&text, &read), text.len())
}

/// A text as what is said: small letters, words with one blank between them. What separates words is
/// [`is_separator`]; an apostrophe within a word stays.
pub(super) fn spoken(text: &str) -> String {
    let lower: Vec<char> = text.to_lowercase().chars().collect();
    let letter =
        |at: Option<usize>| at.and_then(|at| lower.get(at)).is_some_and(|c| !is_separator(*c));
    let mut found = String::with_capacity(text.len());
    for (at, c) in lower.iter().enumerate() {
        let within = letter(at.checked_sub(1)) && letter(Some(at + 1));
        match c {
            '\'' | '\u{2019}' if within => found.push('\''),
            c if is_separator(*c) => found.push(' '),
            c => found.push(*c),
        }
    }
    found.split_whitespace().collect::<Vec<&str>>().join(" ")
}

/// Whether it is a blank or a mark of punctuation: of ASCII and Latin-1 what is no letter and no digit, and
/// the blocks of general, CJK and full-width punctuation. Other marks belong to letters.
fn is_separator(c: char) -> bool {
    let block = matches!(c, '\0'..='\u{bf}' | '\u{2000}'..='\u{206f}' | '\u{2e00}'..='\u{2e7f}'
        | '\u{3000}'..='\u{303f}' | '\u{ff00}'..='\u{ff65}');
    c.is_whitespace() || (block && !c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_has_no_punctuation() {
        for (text, said) in [
            (" Hello,  World! ", "hello world"),
            ("It\u{2019}s 'Anna's' e-mail.", "it's anna's e mail"),
            ("«Où?» – ÉTÉ…", "où été"),
            ("naï\u{301}ve किताब", "naï\u{301}ve किताब"),
            ("你好。再见", "你好 再见"),
            ("7:30", "7 30"),
            ("…", ""),
        ] {
            assert_eq!(spoken(text), said);
        }
    }

    #[test]
    fn rates_are_over_all_texts() {
        let mut rates = Rates::default();
        rates.count("one two three", "one too three");
        rates.count("four", "four");
        let [cer, wer] = rates.rates();
        assert_eq!((cer, wer), (1.0 / 17.0, 1.0 / 4.0));
        assert_eq!(rates.measured(2.0).metrics.get("exact"), Some(0.5));
        assert_eq!(characters_right("ab", "xyz"), 0.0);
        assert_eq!(characters_right("", "x"), 0.0);
    }
}
