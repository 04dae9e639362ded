//! Sentences that ship with the program: what a base is asked to see what an adapter leaves of its knowledge, and
//! what 4-bit weights are made for.

/// Plain sentences of many sorts, one a line: news, letters, talk, questions, recipes, contracts, ...
const SENTENCES: &str = include_str!("sentences.txt");

/// All of them.
pub(crate) fn sentences() -> impl Iterator<Item = &'static str> {
    SENTENCES.lines().filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    #[test]
    fn they_are_many_and_differ() {
        let all: Vec<&str> = super::sentences().collect();
        let different: std::collections::HashSet<&str> = all.iter().copied().collect();
        assert!(all.len() >= 200 && different.len() == all.len());
    }
}
