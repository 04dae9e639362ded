//! From tokens to text while they come: whole characters only, and nothing of a stop text.

use crate::error::Result;

/// What an unfinished character is decoded as.
const UNFINISHED: char = '\u{fffd}';

/// Gives out the text of tokens as far as it is certain.
pub(super) struct TextStream<'a> {
    stops: &'a [String],
    ids: Vec<u32>,
    /// Tokens before this have been given out; those from `context` on decide how the next ones are
    /// read (blanks at the start of a text).
    context: usize,
    read: usize,
    /// Decoded, not given out: it may become a stop text.
    held: String,
    /// All that was given out.
    text: String,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(stops: &'a [String]) -> TextStream<'a> {
        let (ids, held, text) = (vec![], String::new(), String::new());
        TextStream { stops, ids, context: 0, read: 0, held, text }
    }

    /// The text that is certain after one more token, and whether a stop text was reached.
    pub(super) fn push(
        &mut self,
        id: u32,
        decode: &dyn Fn(&[u32]) -> Result<String>,
    ) -> Result<(String, bool)> {
        self.ids.push(id);
        let before = decode(&self.ids[self.context..self.read])?;
        let whole = decode(&self.ids[self.context..])?;
        if whole.ends_with(UNFINISHED) {
            return Ok((String::new(), false));
        }
        let new = whole.strip_prefix(before.as_str()).unwrap_or_default();
        self.held.push_str(new);
        (self.context, self.read) = (self.read, self.ids.len());
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Ok((self.give(self.held.len()), true));
        }
        let certain = self.held.len() - self.could_stop();
        Ok((self.give(certain), false))
    }

    /// The rest, once no more tokens come.
    pub(super) fn finish(&mut self, decode: &dyn Fn(&[u32]) -> Result<String>) -> Result<String> {
        let before = decode(&self.ids[self.context..self.read])?;
        let whole = decode(&self.ids[self.context..])?;
        self.held.push_str(whole.strip_prefix(before.as_str()).unwrap_or_default());
        self.read = self.ids.len();
        Ok(self.give(self.held.len()))
    }

    /// All text that was given out.
    pub(super) fn into_text(self) -> String {
        self.text
    }

    fn give(&mut self, bytes: usize) -> String {
        let given: String = self.held.drain(..bytes).collect();
        self.text.push_str(&given);
        given
    }

    /// Bytes at the end of what is held that a stop text may begin with.
    fn could_stop(&self) -> usize {
        let begins = |from: &usize| {
            let end = &self.held[*from..];
            self.stops.iter().any(|stop| stop.starts_with(end))
        };
        let mut starts = self.held.char_indices().map(|(at, _)| at);
        starts.find(begins).map_or(0, |from| self.held.len() - from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte a token; what is no character yet is a replacement.
    fn decode(ids: &[u32]) -> Result<String> {
        let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn streamed(text: &str, stops: &[&str]) -> (Vec<String>, bool, String) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut stream = TextStream::new(&stops);
        let mut parts = vec![];
        for byte in text.bytes() {
            let (part, stopped) = stream.push(byte.into(), &decode).unwrap();
            parts.push(part);
            if stopped {
                return (parts, true, stream.into_text());
            }
        }
        parts.push(stream.finish(&decode).unwrap());
        (parts, false, stream.into_text())
    }

    #[test]
    fn characters_are_given_out_whole() {
        let (parts, stopped, text) = streamed("aé→b", &[]);
        assert_eq!(parts, ["a", "", "é", "", "", "→", "b", ""]);
        assert!(!stopped);
        assert_eq!(text, "aé→b");
    }

    #[test]
    fn nothing_of_a_stop_text_is_given_out() {
        let (parts, stopped, text) = streamed("say EN? no END of it", &["END", "\n\n"]);
        assert!(stopped);
        assert_eq!(text, "say EN? no ");
        assert_eq!(parts.concat(), text);
        // What only looked like one is.
        assert_eq!(streamed("an EN", &["END"]).2, "an EN");
        // Of two the earlier.
        assert_eq!(streamed("abcd", &["cd", "bcd"]).2, "a");
    }

    #[test]
    fn an_unfinished_character_at_the_end_is_shown_as_such() {
        let mut stream = TextStream::new(&[]);
        assert_eq!(stream.push(0xc3, &decode).unwrap(), (String::new(), false));
        assert_eq!(stream.finish(&decode).unwrap(), "\u{fffd}");
    }
}
