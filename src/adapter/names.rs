//! The names nearest to one that was not found.

/// Names longer than this are compared by their ends, where module paths differ.
const COMPARED: usize = 96;
/// Bounds the work on a hostile list of names.
const CANDIDATES: usize = 8192;

/// Up to three of `candidates`, nearest first by edit distance; none that has nothing in common
/// with `name`. Ties keep the order of `candidates`.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Vec<&'a str> {
    let name = tail(name);
    let mut found: Vec<(usize, &str)> = Vec::new();
    for candidate in candidates.into_iter().take(CANDIDATES) {
        let other = tail(candidate);
        let distance = distance(&name, &other);
        if distance < name.len().max(other.len()) {
            found.push((distance, candidate));
        }
    }
    found.sort_by_key(|&(distance, _)| distance);
    found.truncate(3);
    found.into_iter().map(|(_, candidate)| candidate).collect()
}

/// A hint from [`nearest`]: `nearest: 'a', 'b'`, or `None`.
pub(super) fn nearest_hint<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let quoted: Vec<String> =
        nearest(name, candidates).into_iter().map(|c| format!("'{}'", shown(c))).collect();
    (!quoted.is_empty()).then(|| format!("nearest: {}", quoted.join(", ")))
}

/// A name from a file, cut to what fits on a line.
pub(super) fn shown(name: &str) -> String {
    const SHOWN: usize = 120;
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.to_string(),
    }
}

fn tail(name: &str) -> Vec<char> {
    let mut tail: Vec<char> = name.chars().rev().take(COMPARED).collect();
    tail.reverse();
    tail
}

/// Levenshtein's distance, one row at a time.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b) {
            let substituted = diagonal + usize::from(x != y);
            diagonal = *cell;
            left = substituted.min(left + 1).min(diagonal + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        let d = |a: &str, b: &str| distance(&tail(a), &tail(b));
        assert_eq!(d("kitten", "sitting"), 3);
        assert_eq!((d("", "abc"), d("abc", ""), d("abc", "abc")), (3, 3, 0));
    }

    #[test]
    fn nearest_come_first() {
        let names = ["layer.0.query", "layer.1.query", "layer.0.key", "xyz"];
        assert_eq!(nearest("layer.0.querry", names)[0], "layer.0.query");
        assert_eq!(nearest("zzz", ["abc"]), Vec::<&str>::new());
        assert_eq!(nearest_hint("a.b", ["a.c"]).as_deref(), Some("nearest: 'a.c'"));
    }
}
