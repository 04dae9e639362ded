//! What a base's own files say of generating: where a text ends, with which tokens it begins.

use crate::error::{Error, Result};
use crate::pack::Base;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Read of `generation_config.json`, `config.json` and `tokenizer_config.json`, in that order.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Settings {
    /// Tokens that end a text; the first is what a learned text ends with.
    pub(super) ends: Vec<u32>,
    /// Tokens that a decoder behind an encoder begins with.
    pub(super) starts: Vec<u32>,
    /// Tokens that are never written.
    pub(super) suppressed: Vec<u32>,
    /// Special tokens by the names that chat templates have for them (`bos_token`), with their texts.
    pub(super) names: Vec<(String, String)>,
}

/// What a decoder begins with where no file says it: the English Whispers, whose end is token 50256, know only one
/// language and task (openai/whisper, `tokenizer.py`).
const ENGLISH: (&str, u32, [&str; 2]) =
    ("<|endoftext|>", 50256, ["<|startoftranscript|>", "<|notimestamps|>"]);

/// What these never write: marks that no one says, such as the bracket of `[Music]`, and tokens of other tasks
/// (openai/whisper, `non_speech_tokens` and `_get_suppress_tokens`).
const ENGLISH_SUPPRESSED: [u32; 90] = [
    1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93, 357,
    366, 438, 532, 685, 705, 796, 930, 1058, 1220, 1267, 1279, 1303, 1343, 1377, 1391, 1635, 1782,
    1875, 2162, 2361, 2488, 3467, 4008, 4211, 4600, 4808, 5299, 5855, 6329, 7203, 9609, 9959,
    10563, 10786, 11420, 11709, 11907, 13163, 13697, 13700, 14808, 15306, 16410, 16791, 17992,
    19203, 19510, 20724, 22305, 22935, 27007, 30109, 30420, 33409, 34949, 40283, 40493, 40549,
    47282, 49146, 50257, 50357, 50358, 50359, 50360, 50361,
];

/// Names of tokens that end a text or a turn, where no file names them.
const ENDS: [&str; 7] =
    ["<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<eos>"];

impl Settings {
    /// `token` gives the number of a token by its name, where there is a tokenizer.
    ///
    /// # Errors
    /// Bad input: a file of the base that is no JSON object.
    pub(super) fn read(base: &Base, token: &dyn Fn(&str) -> Option<u32>) -> Result<Settings> {
        let mut files = vec![];
        for name in ["generation_config.json", "config.json", "tokenizer_config.json"] {
            if let Some(text) = base.text(name)? {
                let object: Map<String, Value> = serde_json::from_str(text)
                    .map_err(|e| Error::bad_input(format!("{name} in the base: {e}")))?;
                files.push(object);
            }
        }
        Ok(Settings::of(&files, token))
    }

    fn of(files: &[Map<String, Value>], token: &dyn Fn(&str) -> Option<u32>) -> Settings {
        let first = |key: &str| -> Vec<u32> {
            let found = files.iter().filter_map(|file| file.get(key));
            let mut found = found.map(|value| ids(value, token)).filter(|ids| !ids.is_empty());
            found.next().unwrap_or_default()
        };
        let mut ends = ["eos_token_id", "eos_token"].map(first).concat();
        if ends.is_empty() {
            ends = ENDS.iter().filter_map(|name| token(name)).collect();
        }
        let mut seen = HashSet::new();
        ends.retain(|id| seen.insert(*id));
        let mut starts = first("decoder_start_token_id");
        // Pairs of a place and its token.
        let forced = files.iter().find_map(|file| file.get("forced_decoder_ids")?.as_array());
        for pair in forced.into_iter().flatten() {
            let at = pair.get(0).and_then(Value::as_u64);
            match pair.get(1).map(|value| ids(value, token)).as_deref() {
                Some([id]) if at == Some(starts.len() as u64) => starts.push(*id),
                _ => break,
            }
        }
        let mut suppressed = first("suppress_tokens");
        let (end, number, names) = ENGLISH;
        if starts.is_empty() && token(end) == Some(number) {
            starts =
                names.iter().map(|name| token(name)).collect::<Option<_>>().unwrap_or_default();
            if suppressed.is_empty() && !starts.is_empty() {
                suppressed = ENGLISH_SUPPRESSED.to_vec();
            }
        }
        let named =
            ["bos_token", "eos_token", "pad_token", "unk_token"].iter().filter_map(|name| {
                let value = files.iter().find_map(|file| file.get(*name))?;
                let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
                Some((name.to_string(), text.to_string()))
            });
        Settings { ends, starts, suppressed, names: named.collect() }
    }
}

/// A number, a token's name, or a list of them; a name may stand in an object's `content`.
fn ids(value: &Value, token: &dyn Fn(&str) -> Option<u32>) -> Vec<u32> {
    match value {
        Value::Number(n) => n.as_u64().and_then(|n| u32::try_from(n).ok()).into_iter().collect(),
        Value::String(name) => token(name).into_iter().collect(),
        Value::Array(items) => items.iter().flat_map(|item| ids(item, token)).collect(),
        Value::Object(object) => object.get("content").map_or(vec![], |v| ids(v, token)),
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[&str]) -> Settings {
        let files: Vec<Map<String, Value>> =
            files.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let token = |name: &str| match name {
            "</s>" => Some(2),
            "<|im_end|>" => Some(7),
            _ => None,
        };
        Settings::of(&files, &token)
    }

    #[test]
    fn the_first_file_that_says_it_counts() {
        let found = of(&[r#"{"eos_token_id": [5, 4]}"#, r#"{"eos_token_id": 9}"#]);
        assert_eq!(found, Settings { ends: vec![5, 4], ..Settings::default() });
        let found = of(&[r#"{"eos_token": {"content": "</s>"}, "pad_token": null}"#]);
        assert_eq!(found.ends, [2]);
        assert_eq!(found.names, [("eos_token".to_string(), "</s>".to_string())]);
        // Nothing said: the tokens that usually end texts.
        assert_eq!(of(&[r#"{"eos_token_id": null}"#]).ends, [7, 2]);
    }

    #[test]
    fn a_decoder_begins_with_its_start_and_what_is_forced() {
        let file = r#"{"decoder_start_token_id": 50257, "forced_decoder_ids": [[1, 50362]]}"#;
        assert_eq!(of(&[file]).starts, [50257, 50362]);
        let unknown = r#"{"decoder_start_token_id": 1, "forced_decoder_ids": [[1, null], [2, 3]]}"#;
        assert_eq!(of(&[unknown]).starts, [1]);
    }

    #[test]
    fn marks_that_no_one_says_are_suppressed() {
        assert_eq!(of(&[r#"{"suppress_tokens": [3, 8]}"#]).suppressed, [3, 8]);
        assert!(of(&[r#"{"suppress_tokens": null}"#]).suppressed.is_empty());
        let token = |name: &str| match name {
            "<|endoftext|>" => Some(50256),
            "<|startoftranscript|>" => Some(50257),
            "<|notimestamps|>" => Some(50362),
            _ => None,
        };
        // The English Whispers, with no file beside their graphs: [ is 58, its end and the blank may be written.
        let found = Settings::of(&[], &token);
        assert_eq!(found.starts, [50257, 50362]);
        let never = |id: u32| found.suppressed.contains(&id);
        assert!(never(58) && never(50257) && !never(50256) && !never(220));
        // A language model of the same vocabulary writes all.
        let plain = |name: &str| (name == "<|endoftext|>").then_some(50256);
        assert!(Settings::of(&[], &plain).suppressed.is_empty());
    }
}
