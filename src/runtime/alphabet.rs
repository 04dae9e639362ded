//! The symbols of an output that spells texts (CTC): one a column. In a base the blank among them is the one
//! without a name.

use crate::error::{Error, Result};
use crate::pack::IoSpec;
use serde_json::Value;

/// Symbols as a file or a model lists them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alphabet {
    /// The symbols in the order of the columns, with or without the blank.
    pub symbols: Vec<String>,
    /// The blank: `first`, `last` or the name of a symbol. `None`: it is found by its name.
    pub blank: Option<String>,
}

/// What files name the blank.
const BLANKS: [&str; 7] = ["<blank>", "<blk>", "[blank]", "<ctc>", "<pad>", "[PAD]", "<eps>"];
/// What stands between words in vocabularies of transformers.
const DELIMITER: &str = "|";
/// What stands for a space in SentencePiece's vocabularies.
const LOWER_BLOCK: char = '\u{2581}';

impl Alphabet {
    /// Reads a file: a symbol a line, a symbol and its number a line (`tokens.txt`), or an object of symbols
    /// and numbers (`vocab.json`, whose `|` is a space).
    ///
    /// # Errors
    /// Bad input: a line without a symbol, numbers that are not those of columns.
    pub fn parse(text: &str) -> Result<Alphabet> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut symbols = match text.trim_start().starts_with('{') {
            true => vocabulary(text)?,
            false => lines(text)?,
        };
        for symbol in &mut symbols {
            *symbol = symbol.replace(LOWER_BLOCK, " ");
        }
        Ok(Alphabet { symbols, blank: None })
    }

    /// PaddleOCR's `character` of a model's metadata: the blank is the first column.
    pub fn of_paddle(text: &str) -> Alphabet {
        let symbols = text.split('\n').map(|s| s.trim_end_matches('\r').to_string()).collect();
        Alphabet { symbols, blank: Some("first".into()) }
    }

    /// A name for each column of the output that has as many, the blank's empty.
    ///
    /// # Errors
    /// Mismatch: no output has as many columns. Usage: which one is the blank isn't known.
    pub fn columns(&self, outputs: &[IoSpec]) -> Result<Vec<String>> {
        let mut symbols = self.symbols.clone();
        let count = symbols.len();
        let widths: Vec<usize> = outputs
            .iter()
            .filter(|output| output.dims.len() == 3)
            .filter_map(|output| output.dims.last()?.parse().ok())
            .collect();
        let has = |columns: usize| widths.contains(&columns);
        let blank = self.blank.as_deref();
        let ask = |error: String| {
            Error::usage(error).hint("say which it is: --blank first, last or a symbol's name")
        };
        if has(count) && count > 0 {
            let at = match blank {
                Some("first") => Some(0),
                Some("last") => Some(count - 1),
                Some(name) => Some(symbols.iter().position(|s| s == name).ok_or_else(|| {
                    Error::usage(format!("--blank: the alphabet has no symbol '{name}'"))
                })?),
                None => named_blank(&symbols),
            };
            let at = at.ok_or_else(|| {
                ask(format!("none of the {count} symbols of the alphabet is named as a blank is"))
            })?;
            symbols[at] = String::new();
        } else if has(count + 1) || has(count + 2) {
            if !has(count + 1) {
                // PaddleOCR's `use_space_char`.
                symbols.push(" ".into());
            }
            match blank {
                Some("first") => symbols.insert(0, String::new()),
                Some("last") => symbols.push(String::new()),
                Some(name) => {
                    return Err(Error::usage(format!(
                        "--blank: the alphabet of {count} symbols lacks the blank: it is the first or the \
                         last of the model's columns, not '{name}'"
                    )));
                }
                None => {
                    return Err(ask(format!(
                        "the model has more columns than the {count} symbols of the alphabet, one is the \
                         blank"
                    )));
                }
            }
        } else {
            let found: Vec<String> = widths.iter().map(usize::to_string).collect();
            return Err(Error::mismatch(format!(
                "the alphabet has {count} symbols, the outputs of the model with steps have [{}] columns",
                found.join(", ")
            )));
        }
        match symbols.iter().filter(|s| s.is_empty()).count() {
            1 => Ok(symbols),
            _ => Err(Error::bad_input("the alphabet has a symbol without a name")),
        }
    }
}

/// The symbol that is named as a blank is, where it is one alone.
fn named_blank(symbols: &[String]) -> Option<usize> {
    let is_blank = |symbol: &String| BLANKS.contains(&symbol.as_str());
    let mut places = (0..symbols.len()).filter(|at| is_blank(&symbols[*at]));
    match (places.next(), places.next()) {
        (Some(at), None) => Some(at),
        _ => None,
    }
}

fn lines(text: &str) -> Result<Vec<String>> {
    let text = text.trim_end_matches(['\n', '\r']);
    let lines: Vec<&str> = text.split('\n').map(|line| line.trim_end_matches('\r')).collect();
    if let Some(at) = lines.iter().position(|line| line.is_empty()) {
        return Err(Error::bad_input(format!("line {} is empty", at + 1)));
    }
    let numbered = |line: &&str| {
        let (symbol, number) = line.rsplit_once([' ', '\t'])?;
        Some((symbol.to_string(), number.parse::<usize>().ok()?))
    };
    let pairs: Option<Vec<(String, usize)>> = lines.iter().map(numbered).collect();
    match pairs.filter(|pairs| pairs.len() > 1) {
        Some(pairs) => ordered(pairs),
        None => Ok(lines.into_iter().map(String::from).collect()),
    }
}

fn vocabulary(text: &str) -> Result<Vec<String>> {
    let wrong = || Error::bad_input("the vocabulary is no object of symbols and their numbers");
    let Ok(Value::Object(object)) = serde_json::from_str(text) else { return Err(wrong()) };
    let pair = |(symbol, number): (String, Value)| {
        let number = number.as_u64().and_then(|n| usize::try_from(n).ok());
        let symbol = if symbol == DELIMITER { " ".into() } else { symbol };
        number.map(|number| (symbol, number))
    };
    ordered(object.into_iter().map(pair).collect::<Option<Vec<_>>>().ok_or_else(wrong)?)
}

fn ordered(mut pairs: Vec<(String, usize)>) -> Result<Vec<String>> {
    pairs.sort_by_key(|(_, number)| *number);
    match pairs.iter().enumerate().find(|(at, (_, number))| at != number) {
        Some((at, _)) => Err(Error::bad_input(format!("no symbol has the number {at}"))),
        None => Ok(pairs.into_iter().map(|(symbol, _)| symbol).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Role;
    use crate::shape::DType;

    fn output(columns: usize) -> Vec<IoSpec> {
        let dims = vec!["batch".to_string(), "steps".into(), columns.to_string()];
        let (name, safe_name) = ("logits".to_string(), "x0".to_string());
        vec![IoSpec { name, safe_name, dtype: DType::F32, dims, role: Role::Logits }]
    }

    fn columns(text: &str, blank: Option<&str>, count: usize) -> Result<Vec<String>> {
        let alphabet = Alphabet::parse(text)?;
        Alphabet { blank: blank.map(String::from), ..alphabet }.columns(&output(count))
    }

    #[test]
    fn files_list_symbols_in_three_ways() {
        let want = ["", "a", " b"].map(String::from);
        assert_eq!(columns("<blk>\na\n\u{2581}b\n", None, 3).unwrap(), want);
        assert_eq!(columns("a 1\r\n<blk> 0\r\n\u{2581}b 2\r\n", None, 3).unwrap(), want);
        let json = r#"{"<pad>": 0, "|": 1, "E": 2, "<s>": 3}"#;
        assert_eq!(columns(json, None, 4).unwrap(), ["", " ", "E", "<s>"]);
        for broken in ["a\n\nb", "{\"a\": 0, \"b\": 2}", "{\"a\": -1}", "a 0\nb 0"] {
            assert!(Alphabet::parse(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn the_blank_is_named_or_said_and_never_guessed() {
        assert_eq!(columns("a\nb", Some("first"), 3).unwrap(), ["", "a", "b"]);
        assert_eq!(columns("a\nb", Some("last"), 3).unwrap(), ["a", "b", ""]);
        assert_eq!(columns("a\nb", Some("last"), 2).unwrap(), ["a", ""]);
        assert_eq!(columns("a\nb\nc", Some("b"), 3).unwrap(), ["a", "", "c"]);
        for (text, blank, count, says) in [
            ("a\nb", None, 3, "one is the blank"),
            ("a\nb", None, 2, "named as a blank"),
            ("<pad>\n<blk>", None, 2, "named as a blank"),
            ("a\nb", Some("c"), 2, "no symbol 'c'"),
            ("a\nb", Some("c"), 3, "first or the last"),
            (
                "a\nb",
                Some("first"),
                7,
                "has 2 symbols, the outputs of the model with steps have [7]",
            ),
        ] {
            let e = columns(text, blank, count).unwrap_err();
            assert!(e.message().contains(says), "{e}");
        }
    }

    #[test]
    fn paddles_list_lacks_the_blank_and_the_space() {
        let alphabet = Alphabet::of_paddle("a\nb");
        assert_eq!(alphabet.columns(&output(4)).unwrap(), ["", "a", "b", " "]);
        assert_eq!(alphabet.columns(&output(3)).unwrap(), ["", "a", "b"]);
        assert!(alphabet.columns(&output(9)).is_err());
    }
}
