//! PEFT's module names against the base's targets: equal, or all apart by one and the same prefix.

#![warn(clippy::arithmetic_side_effects)]

use super::super::names::{nearest_hint, shown};
use super::super::target::Target;
use super::config::is_suffix;
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;

/// What turns a PEFT name into a `module_path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    Same,
    /// PEFT's names start with this (`bert.`), the base's don't.
    Strip(String),
    /// The base's names start with this, PEFT's don't.
    Add(String),
}

impl Prefix {
    /// The `module_path` of a PEFT name; `None` where the prefix is not there.
    fn apply<'a>(&self, peft: &'a str) -> Option<Cow<'a, str>> {
        match self {
            Prefix::Same => Some(Cow::Borrowed(peft)),
            Prefix::Strip(prefix) => peft.strip_prefix(prefix.as_str()).map(Cow::Borrowed),
            Prefix::Add(prefix) => Some(Cow::Owned(format!("{prefix}{peft}"))),
        }
    }

    /// The PEFT name of a `module_path`.
    pub(super) fn invert<'a>(&self, module_path: &'a str) -> Option<Cow<'a, str>> {
        match self {
            Prefix::Same => Some(Cow::Borrowed(module_path)),
            Prefix::Strip(prefix) => Some(Cow::Owned(format!("{prefix}{module_path}"))),
            Prefix::Add(prefix) => module_path.strip_prefix(prefix.as_str()).map(Cow::Borrowed),
        }
    }

    fn describe(&self) -> String {
        match self {
            Prefix::Same => "as they are".into(),
            Prefix::Strip(prefix) => format!("without '{}'", shown(prefix)),
            Prefix::Add(prefix) => format!("with '{}' before them", shown(prefix)),
        }
    }
}

/// The prefix that matches every one of `paths`, and the index in `targets` of each.
///
/// # Errors
/// Mismatch: no prefix matches all (naming the first left over and its nearest targets), or
/// several do.
pub(super) fn match_all(paths: &[&str], targets: &[Target]) -> Result<(Prefix, Vec<usize>)> {
    let index: HashMap<&str, usize> =
        targets.iter().enumerate().map(|(i, t)| (t.module_path.as_str(), i)).collect();
    let find = |prefix: &Prefix, path: &str| {
        prefix.apply(path).and_then(|module_path| index.get(module_path.as_ref()).copied())
    };
    let all = |prefix: &Prefix| paths.iter().map(|p| find(prefix, p)).collect::<Option<Vec<_>>>();
    if let Some(found) = all(&Prefix::Same) {
        return Ok((Prefix::Same, found));
    }
    let candidates = candidates(paths, targets, &index);
    let mut matching: Vec<(Prefix, Vec<usize>)> =
        candidates.iter().filter_map(|p| Some((p.clone(), all(p)?))).collect();
    if matching.len() > 1 {
        let ways: Vec<String> = matching.iter().take(3).map(|(p, _)| p.describe()).collect();
        return Err(Error::mismatch(format!(
            "the adapter's module names match the base's targets in several ways: {}",
            ways.join("; ")
        )));
    }
    if let Some(found) = matching.pop() {
        return Ok(found);
    }
    let count = |prefix: &Prefix| paths.iter().filter(|p| find(prefix, p).is_some()).count();
    let best = candidates
        .into_iter()
        .fold((count(&Prefix::Same), Prefix::Same), |best, prefix| {
            let count = count(&prefix);
            if count > best.0 { (count, prefix) } else { best }
        })
        .1;
    let left: Vec<&&str> = paths.iter().filter(|p| find(&best, p).is_none()).collect();
    let first = left.first().map_or("", |p| **p);
    let error = Error::mismatch(format!(
        "module '{}' of the adapter has no target in the base ({} of {} have none)",
        shown(first),
        left.len(),
        paths.len()
    ));
    let sought = best.apply(first).unwrap_or(Cow::Borrowed(first));
    Err(match nearest_hint(&sought, targets.iter().map(|t| t.module_path.as_str())) {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

/// Prefixes that match the first path, or the last where none matches the first.
fn candidates(paths: &[&str], targets: &[Target], index: &HashMap<&str, usize>) -> Vec<Prefix> {
    for path in paths.first().into_iter().chain(paths.last()) {
        let dots = path.match_indices('.').map(|(at, _)| path.split_at(at.saturating_add(1)));
        let strip = dots
            .filter(|(_, rest)| index.contains_key(rest))
            .map(|(prefix, _)| Prefix::Strip(prefix.to_string()));
        let add = targets
            .iter()
            .filter(|t| is_suffix(&t.module_path, path))
            .filter_map(|t| t.module_path.strip_suffix(path))
            .map(|prefix| Prefix::Add(prefix.to_string()));
        let found: Vec<Prefix> = strip.chain(add).collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::super::super::testing::linear;
    use super::*;

    fn targets(paths: &[&str]) -> Vec<Target> {
        paths.iter().map(|p| linear(p, 2, 2)).collect()
    }

    #[test]
    fn equal_names_or_one_prefix_either_way() {
        let base = targets(&["enc.0.q", "enc.0.k", "enc.1.q"]);
        let (prefix, found) = match_all(&["enc.1.q", "enc.0.q"], &base).unwrap();
        assert_eq!((prefix, found), (Prefix::Same, vec![2, 0]));
        let (prefix, found) = match_all(&["m.bert.enc.0.k", "m.bert.enc.1.q"], &base).unwrap();
        assert_eq!((prefix.clone(), found), (Prefix::Strip("m.bert.".into()), vec![1, 2]));
        assert_eq!(prefix.invert("enc.0.q").unwrap(), "m.bert.enc.0.q");
        let (prefix, found) = match_all(&["0.q", "0.k"], &base).unwrap();
        assert_eq!((prefix.clone(), found), (Prefix::Add("enc.".into()), vec![0, 1]));
        assert_eq!(prefix.invert("enc.0.q").unwrap(), "0.q");
    }

    #[test]
    fn a_prefix_must_hold_for_all() {
        let base = targets(&["enc.0.q", "enc.0.k"]);
        let error = match_all(&["bert.enc.0.q", "enc.0.k"], &base).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Mismatch);
        let error = match_all(&["bert.enc.0.q", "bert.enc.0.kk"], &base).unwrap_err();
        assert!(error.message().contains("'bert.enc.0.kk'"), "{error}");
        assert!(error.message().contains("1 of 2"), "{error}");
        assert!(error.hint_text().unwrap().starts_with("nearest: 'enc.0.k'"), "{error}");
    }

    #[test]
    fn several_ways_are_refused() {
        let base = targets(&["a.q", "b.q"]);
        assert!(match_all(&["q"], &base).unwrap_err().message().contains("several ways"));
        assert!(match_all(&["xq"], &base).is_err());
        assert_eq!(match_all(&[], &base).unwrap().1.len(), 0);
    }
}
