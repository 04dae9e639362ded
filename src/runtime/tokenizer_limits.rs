//! What a tokenizer may do: it is a stranger's file, and the library runs whatever it says. Its steps
//! may double a text again and again, its patterns may take gigabytes to compile, or a time that grows
//! with the square of the text.

#![warn(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// Longest sentence that is taken, in bytes.
pub const MAX_SENTENCE_BYTES: usize = 1 << 20;

/// Most bytes that a sentence may become on its way through the normalizers. The library keeps 17
/// bytes for each.
const MAX_NORMALIZED: u64 = 8 << 20;
/// Least that a tokenizer must take.
const LEAST: usize = 2 << 10;
/// What of a sentence goes through a tokenizer: so many bytes for each token that is kept, at least
/// and at most. The library takes some hundred times as much memory.
const A_TOKEN: usize = 64;
const WITHOUT_PATTERNS: (usize, usize) = (64 << 10, MAX_SENTENCE_BYTES);
/// The same for one with patterns of its own, whose time may grow with the square of that.
const WITH_PATTERNS: (usize, usize) = (16 << 10, 128 << 10);

/// Steps of normalizers and pre-tokenizers, nested ones too.
const MAX_STEPS: usize = 64;
/// Longest pattern in bytes: those of the tokenizers that are about have up to 400.
const MAX_PATTERN: usize = 2 << 10;
/// How often a pattern's counted repetitions may make it longer, multiplied.
const MAX_REPETITION: u64 = 1000;
/// Longest text that a step puts in.
const MAX_CONTENT: usize = 1 << 10;
/// WordPiece's time grows with the square of a word.
const MAX_WORD_CHARS: u64 = 1000;
/// Nesting of steps.
const MAX_DEPTH: usize = 8;

#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: ModelPart,
}

#[derive(Deserialize)]
struct ModelPart {
    #[serde(default)]
    max_input_chars_per_word: Option<u64>,
}

/// Looks at a tokenizer.json before the library does. `max_tokens`: what is kept of a sentence. Gives
/// how many bytes of one may go through it.
///
/// # Errors
/// No JSON of a tokenizer, or parts past this module's limits (bad input).
pub fn check(json: &[u8], max_tokens: usize) -> Result<usize> {
    let parts: Parts = serde_json::from_slice(json)
        .map_err(|e| Error::bad_input(format!("not a usable tokenizer.json: {e}")))?;
    if let Some(chars) = parts.model.max_input_chars_per_word.filter(|n| *n > MAX_WORD_CHARS) {
        return Err(refused(format!(
            "max_input_chars_per_word is {chars}, at most {MAX_WORD_CHARS} are taken"
        )));
    }
    let mut steps = Steps::default();
    let growth = steps.growth(&parts.normalizer, MAX_DEPTH)?;
    steps.growth(&parts.pre_tokenizer, MAX_DEPTH)?;
    let fits =
        usize::try_from(MAX_NORMALIZED.checked_div(growth).unwrap_or(0)).unwrap_or(usize::MAX);
    if fits < LEAST {
        return Err(refused(format!("its normalizers make a text up to {growth} times as long")));
    }
    let (least, most) = if steps.patterns > 0 { WITH_PATTERNS } else { WITHOUT_PATTERNS };
    Ok(max_tokens.saturating_mul(A_TOKEN).clamp(least, most).min(fits))
}

fn refused(why: String) -> Error {
    Error::bad_input(format!("the tokenizer is past the limits: {why}"))
}

/// What was met on the way through the steps.
#[derive(Default)]
struct Steps {
    all: usize,
    patterns: usize,
}

impl Steps {
    /// How many times as long a step, with those in it, makes a text at most.
    fn growth(&mut self, step: &Value, depth: usize) -> Result<u64> {
        let Some(fields) = step.as_object() else { return Ok(1) };
        self.all = self.all.saturating_add(1);
        if self.all > MAX_STEPS || depth == 0 {
            return Err(refused(format!("more than {MAX_STEPS} steps, or nested too deep")));
        }
        let text = |key: &str| fields.get(key).and_then(Value::as_str);
        let content = text("content").or(text("prepend")).unwrap_or_default().len();
        if content > MAX_CONTENT {
            return Err(refused(format!("a step puts in {content} bytes")));
        }
        let pattern = fields.get("pattern");
        let own = pattern.and_then(|p| p.get("Regex")).and_then(Value::as_str);
        if let Some(own) = own {
            check_pattern(own)?;
            self.patterns = self.patterns.saturating_add(1);
        }
        let mut growth = match text("type").unwrap_or_default() {
            "Replace" => {
                let from = pattern.and_then(|p| p.get("String")).and_then(Value::as_str);
                match from.map_or(0, str::len) {
                    // Of nothing, before and behind each byte.
                    0 => (content as u64).saturating_add(1),
                    from => content.div_ceil(from).max(1) as u64,
                }
            }
            // The longest that Unicode 16 has: U+FDFA, 3 bytes, and its 33.
            "NFKC" | "NFKD" => 11,
            "NFC" | "NFD" | "Lowercase" | "BertNormalizer" => 3,
            "ByteLevel" => 2,
            "Precompiled" => longest_precompiled(text("precompiled_charsmap").unwrap_or_default()),
            _ => 1,
        };
        for list in ["normalizers", "pretokenizers"] {
            for inner in fields.get(list).and_then(Value::as_array).into_iter().flatten() {
                growth = growth.saturating_mul(self.growth(inner, depth.saturating_sub(1))?);
            }
        }
        Ok(growth)
    }
}

/// An error for a pattern that is long, or gets long where it is compiled.
fn check_pattern(pattern: &str) -> Result<()> {
    if pattern.len() > MAX_PATTERN {
        return Err(refused(format!("a pattern of {} bytes", pattern.len())));
    }
    let mut repetition = 1u64;
    for counts in pattern.split('{').skip(1) {
        let Some((counts, _)) = counts.split_once('}') else { continue };
        // Classes, \p{L}, are no counts.
        let numbers = counts.split(',').filter_map(|n| n.trim().parse::<u64>().ok());
        repetition = repetition.saturating_mul(numbers.max().unwrap_or(1).max(1));
    }
    if repetition > MAX_REPETITION {
        return Err(refused(format!("a pattern repeats its parts {repetition} times")));
    }
    Ok(())
}

/// Bytes of the longest text that a SentencePiece map puts in the place of one, at least 1: it is the
/// size of a table in four bytes, the table, and the texts with a zero behind each, in base64.
fn longest_precompiled(base64: &str) -> u64 {
    let bytes = decoded(base64);
    let table = bytes.first_chunk::<4>().map_or(0, |n| u32::from_le_bytes(*n) as usize);
    let texts = bytes.get(table.saturating_add(4)..).unwrap_or_default();
    texts.split(|b| *b == 0).map(<[u8]>::len).max().unwrap_or(0).max(1) as u64
}

/// What the letters of base64 say; others are passed over.
fn decoded(base64: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(base64.len());
    let (mut bits, mut held) = (0u32, 0);
    for letter in base64.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter.wrapping_sub(b'A'),
            b'a'..=b'z' => letter.wrapping_sub(b'a').wrapping_add(26),
            b'0'..=b'9' => letter.wrapping_sub(b'0').wrapping_add(52),
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = bits << 6 | u32::from(value);
        held = u32::saturating_add(held, 6);
        if held >= 8 {
            held = held.saturating_sub(8);
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use serde_json::json;

    fn limit(normalizer: Value, pre_tokenizer: Value) -> Result<usize> {
        let model = json!({"type": "WordPiece", "vocab": {"a": 0}});
        let all = json!({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": model});
        check(&serde_json::to_vec(&all).unwrap(), 512)
    }

    fn replace(from: Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": from, "content": content})
    }

    #[test]
    fn what_is_about_is_taken_whole() {
        let bert = json!({"type": "BertNormalizer", "lowercase": true});
        let whole = 64 << 10;
        assert_eq!(limit(bert, json!({"type": "BertPreTokenizer"})).unwrap(), whole);
        let space = replace(json!({"String": " "}), "\u{2581}");
        let llama = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"}, space]});
        assert_eq!(limit(llama, Value::Null).unwrap(), whole);
        let gpt = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}{1,3}| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        let split = json!({"type": "Split", "pattern": {"Regex": gpt}, "behavior": "Isolated"});
        let cut = limit(Value::Null, json!({"type": "Sequence", "pretokenizers": [split]}));
        assert_eq!(cut.unwrap(), 32 << 10);
    }

    #[test]
    fn what_grows_past_all_bounds_is_refused() {
        let double = replace(json!({"Regex": "a"}), "aa");
        let doubles = |n| json!({"type": "Sequence", "normalizers": vec![double.clone(); n]});
        assert_eq!(limit(doubles(3), Value::Null).unwrap(), 32 << 10);
        for n in [40, 1000] {
            assert!(limit(doubles(n), Value::Null).is_err(), "{n}");
        }
        let mut nested = json!({"type": "Lowercase"});
        for _ in 0..20 {
            nested = json!({"type": "Sequence", "normalizers": [nested]});
        }
        assert!(limit(nested, Value::Null).is_err());
        assert!(limit(replace(json!({"String": "a"}), &"b".repeat(2000)), Value::Null).is_err());
        let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}});
        for regex in ["(x)+|".repeat(1000), "(?:(?:a{100}){100}){100}".into()] {
            assert!(limit(Value::Null, split(&regex)).is_err(), "{regex}");
        }
        assert!(limit(Value::Null, split(r"\p{Lu}{2,5}x{0,4}")).is_ok());
        for garbage in ["garbage", "[]", "{}", "3"] {
            assert!(check(garbage.as_bytes(), 512).is_err(), "{garbage}");
        }
    }

    #[test]
    fn a_map_of_texts_tells_its_longest() {
        // A table of four bytes, then "ab", "cdefg".
        let bytes = [4, 0, 0, 0, 1, 0, 2, 0, b'a', b'b', 0, b'c', b'd', b'e', b'f', b'g', 0];
        let base64 = "BAAAAAEAAgBhYgBjZGVmZwA=";
        assert_eq!((decoded(base64), longest_precompiled(base64)), (bytes.to_vec(), 5));
    }
}
