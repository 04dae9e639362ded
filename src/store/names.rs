//! Names of adapters in the store, and references to their generations.

use crate::error::{Error, Result};
use std::fmt;

/// Longest name in bytes.
pub const MAX_NAME: usize = 64;

/// An error unless `name` can name an adapter: 1 to 64 of `a-z0-9._-`, the first a letter or a
/// digit, no `..`. Such a name is safe as a folder's name.
pub fn check_name(name: &str) -> Result<()> {
    let wrong = |why: String| {
        Err(Error::usage(format!("adapter name '{name}' {why}"))
            .hint("names hold a-z, 0-9, '.', '_' and '-', at most 64 of them"))
    };
    if name.is_empty() {
        return wrong("is empty".into());
    }
    if name.len() > MAX_NAME {
        return wrong(format!("has {} bytes, at most {MAX_NAME}", name.len()));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if let Some(c) = name.chars().find(|c| !allowed(*c)) {
        return wrong(format!("holds '{c}'"));
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        return wrong("does not start with a letter or a digit".into());
    }
    if name.contains("..") {
        return wrong("holds '..'".into());
    }
    Ok(())
}

/// `NAME` or `NAME@GENERATION`. Holding one proves that the name is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    name: String,
    generation: Option<u64>,
}

impl Reference {
    /// Reads `NAME` or `NAME@GENERATION` (1 and up). Errors: another form (usage).
    pub fn parse(text: &str) -> Result<Reference> {
        let (name, generation) = match text.split_once('@') {
            None => (text, None),
            Some((name, number)) => {
                let parsed = number.parse::<u64>().ok().filter(|&n| n > 0);
                let digits = number.bytes().all(|b| b.is_ascii_digit());
                match parsed.filter(|_| digits) {
                    Some(n) => (name, Some(n)),
                    None => {
                        return Err(Error::usage(format!(
                            "'{text}' names no generation: expected NAME@NUMBER"
                        )));
                    }
                }
            }
        };
        check_name(name)?;
        Ok(Reference { name: name.into(), generation })
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The generation asked for; `None`: the active one.
    pub fn generation(&self) -> Option<u64> {
        self.generation
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.generation {
            Some(n) => write!(f, "@{n}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for good in ["a", "kitchen-2", "0.1", "my_adapter.v3", &"x".repeat(64)] {
            check_name(good).unwrap();
        }
        let long = "x".repeat(65);
        for bad in ["", ".", "..", "a..b", "a/b", "/a", "A", "ä", "-a", ".a", "a b", "a\n", &long]
        {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn references() {
        let r = Reference::parse("home@12").unwrap();
        assert_eq!((r.name(), r.generation(), r.to_string()), ("home", Some(12), "home@12".into()));
        assert_eq!(Reference::parse("home").unwrap().generation(), None);
        for bad in ["home@", "home@0", "home@x", "home@+1", "home@1@2", "@1"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
