//! From an output over symbols, a blank among them, at each step to a text: the likeliest symbol of each
//! step, or a search over prefixes (Graves and Jaitly 2014). The blank is the symbol whose name is empty.

use std::collections::HashMap;

/// A text that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadText {
    /// The text.
    pub text: String,
    /// How sure it is, 0 to 1: of the likeliest symbols the mean probability of those that the text is of
    /// (of an empty text, of its blanks); of a search the probability of the text.
    pub confidence: f32,
}

/// Symbols beside the blank that a search looks at in each step.
const LIKELIEST: usize = 40;

/// The place of the blank among names of symbols.
pub fn blank(names: &[String]) -> Option<usize> {
    names.iter().position(String::is_empty)
}

/// log p of each symbol at each step: of logits, or of what is all probabilities already.
pub fn log_probabilities(output: &[f32], symbols: usize) -> Vec<f32> {
    let rows = || output.chunks(symbols.max(1));
    let is_share = |row: &[f32]| {
        let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
        (sum - 1.0).abs() < 1e-3 && row.iter().all(|v| (0.0..=1.001).contains(v))
    };
    if rows().all(is_share) {
        return output.iter().map(|p| p.max(f32::MIN_POSITIVE).ln()).collect();
    }
    rows()
        .flat_map(|row| {
            let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|v| f64::from(v - greatest).exp()).sum();
            let log = greatest + sum.ln() as f32;
            row.iter().map(move |v| v - log)
        })
        .collect()
}

/// The likeliest symbol of each step, repeats as one.
pub fn greedy(output: &[f32], names: &[String]) -> ReadText {
    let logs = log_probabilities(output, names.len());
    let (mut text, mut last) = (String::new(), None);
    let (mut read, mut blanks) = (vec![], vec![]);
    for row in logs.chunks(names.len().max(1)) {
        let Some(at) = (0..row.len()).reduce(|a, b| if row[b] > row[a] { b } else { a }) else {
            continue;
        };
        let name = names.get(at).map_or("", String::as_str);
        let sure = row[at].exp();
        match name.is_empty() {
            true => blanks.push(sure),
            false if last != Some(at) => {
                text.push_str(name);
                read.push(sure);
            }
            false => {}
        }
        last = Some(at);
    }
    let counted = if read.is_empty() { blanks } else { read };
    let confidence = counted.iter().sum::<f32>() / counted.len().max(1) as f32;
    ReadText { text: text.trim().to_string(), confidence }
}

/// The `width` likeliest texts of a search that keeps as many prefixes, likeliest first.
pub fn beam(output: &[f32], names: &[String], width: usize) -> Vec<ReadText> {
    let Some(blank) = blank(names) else { return vec![] };
    let logs = log_probabilities(output, names.len());
    let mut tree = Prefixes::default();
    let mut kept: Vec<(usize, Ends)> = vec![(Prefixes::EMPTY, Ends { blank: 0.0, ..Ends::NONE })];
    for row in logs.chunks(names.len().max(1)) {
        let mut symbols: Vec<usize> = (0..row.len()).filter(|at| *at != blank).collect();
        let by_log = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
        if symbols.len() > LIKELIEST {
            symbols.select_nth_unstable_by(LIKELIEST, by_log);
            symbols.truncate(LIKELIEST);
        }
        let mut next: HashMap<Step, Ends> = HashMap::new();
        let mut add = |step: Step, blank: f64, symbol: f64| {
            let ends = next.entry(step).or_insert(Ends::NONE);
            ends.blank = add_logs(ends.blank, blank);
            ends.symbol = add_logs(ends.symbol, symbol);
        };
        for (prefix, ends) in &kept {
            let last = tree.last(*prefix);
            let all = ends.all();
            // The same symbol once more is the same text.
            let stays = last.map_or(f64::NEG_INFINITY, |last| ends.symbol + f64::from(row[last]));
            add((*prefix, None), all + f64::from(row[blank]), stays);
            for &symbol in &symbols {
                let from = if last == Some(symbol) { ends.blank } else { all };
                if from > f64::NEG_INFINITY {
                    let log = from + f64::from(row[symbol]);
                    add(tree.step(*prefix, symbol), f64::NEG_INFINITY, log);
                }
            }
        }
        let mut found: Vec<(Step, Ends)> = next.into_iter().collect();
        found.sort_by(|a, b| b.1.all().total_cmp(&a.1.all()).then(a.0.cmp(&b.0)));
        found.truncate(width.max(1));
        kept = found.into_iter().map(|(step, ends)| (tree.take(step), ends)).collect();
    }
    let read = |(prefix, ends): &(usize, Ends)| {
        let symbols = tree.symbols(*prefix);
        let text: String =
            symbols.iter().filter_map(|s| names.get(*s).map(String::as_str)).collect();
        ReadText { text: text.trim().to_string(), confidence: ends.all().exp().min(1.0) as f32 }
    };
    kept.iter().map(read).collect()
}

/// log p of all alignments of a prefix, by whether they end with a blank.
#[derive(Clone, Copy, Debug)]
struct Ends {
    blank: f64,
    symbol: f64,
}

impl Ends {
    const NONE: Ends = Ends { blank: f64::NEG_INFINITY, symbol: f64::NEG_INFINITY };

    fn all(&self) -> f64 {
        add_logs(self.blank, self.symbol)
    }
}

fn add_logs(a: f64, b: f64) -> f64 {
    let (most, least) = if a > b { (a, b) } else { (b, a) };
    if least == f64::NEG_INFINITY { most } else { most + (least - most).exp().ln_1p() }
}

/// A prefix, and what comes behind it.
type Step = (usize, Option<usize>);

/// Prefixes as a tree: each is another and one symbol more.
struct Prefixes {
    nodes: Vec<(usize, usize)>,
    known: HashMap<(usize, usize), usize>,
}

impl Default for Prefixes {
    fn default() -> Prefixes {
        Prefixes { nodes: vec![(Prefixes::EMPTY, 0)], known: HashMap::new() }
    }
}

impl Prefixes {
    const EMPTY: usize = 0;

    fn last(&self, prefix: usize) -> Option<usize> {
        (prefix != Self::EMPTY).then(|| self.nodes[prefix].1)
    }

    /// The prefix itself, where it is known, that a symbol makes of another.
    fn step(&self, prefix: usize, symbol: usize) -> Step {
        match self.known.get(&(prefix, symbol)) {
            Some(longer) => (*longer, None),
            None => (prefix, Some(symbol)),
        }
    }

    fn take(&mut self, (prefix, symbol): Step) -> usize {
        let Some(symbol) = symbol else { return prefix };
        self.nodes.push((prefix, symbol));
        self.known.insert((prefix, symbol), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn symbols(&self, mut prefix: usize) -> Vec<usize> {
        let mut found = vec![];
        while prefix != Self::EMPTY {
            found.push(self.nodes[prefix].1);
            prefix = self.nodes[prefix].0;
        }
        found.reverse();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(symbols: &[&str]) -> Vec<String> {
        symbols.iter().map(|s| s.to_string()).collect()
    }

    /// Steps of probabilities.
    fn steps(rows: &[&[f32]]) -> Vec<f32> {
        rows.concat()
    }

    #[test]
    fn repeats_are_one_symbol_unless_a_blank_stands_between() {
        let names = names(&["a", "b", ""]);
        let (a, b, none) = ([5f32, 0., 0.], [0f32, 5., 0.], [0f32, 0., 5.]);
        let output = steps(&[&a, &a, &none, &a, &b, &none, &none]);
        let found = greedy(&output, &names);
        assert_eq!(found.text, "aab");
        let p = 5f32.exp() / (5f32.exp() + 2.0);
        assert!((found.confidence - p).abs() < 1e-6);
        let silence = greedy(&steps(&[&none, &none]), &names);
        assert_eq!(silence.text, "");
        assert!((silence.confidence - p).abs() < 1e-6);
        assert_eq!(greedy(&[], &names), ReadText { text: String::new(), confidence: 0.0 });
    }

    #[test]
    fn probabilities_are_taken_as_they_are_and_logits_are_not() {
        let shares = [0.25f32, 0.75, 0.0, 0.5, 0.5, 0.0];
        let logs = log_probabilities(&shares, 3);
        assert!((logs[1] - 0.75f32.ln()).abs() < 1e-6 && logs[2] < -80.0);
        let logs = log_probabilities(&[0.25, 0.75, 0.0, 0.5, 0.5, 1.0], 3);
        let want = 0.75 - (0.25f32.exp() + 0.75f32.exp() + 1.0).ln();
        assert!((logs[1] - want).abs() < 1e-6);
    }

    /// Each step prefers the blank, and yet "a" is likelier than nothing.
    #[test]
    fn a_search_finds_the_likeliest_text_where_the_likeliest_path_is_not_its() {
        let names = names(&["", "a", "b"]);
        let output = steps(&[&[0.6, 0.4, 0.0], &[0.6, 0.4, 0.0]]);
        assert_eq!(greedy(&output, &names).text, "");
        let found = beam(&output, &names, 3);
        assert_eq!(found[0].text, "a");
        assert!((found[0].confidence - 0.64).abs() < 1e-5, "{found:?}");
        assert_eq!(found[1].text, "");
        assert!((found[1].confidence - 0.36).abs() < 1e-5, "{found:?}");
    }

    /// A search that keeps every prefix gives each text the probability of all its alignments.
    #[test]
    fn a_wide_search_is_the_sum_over_all_alignments() {
        let names = names(&["a", "", "b"]);
        let output: Vec<f32> = (0..12).map(|v| ((v * 7 % 5) as f32 - 2.0) * 0.7).collect();
        let found = beam(&output, &names, 1000);
        let total: f32 = found.iter().map(|read| read.confidence).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
        for read in &found {
            let symbols: Vec<usize> =
                read.text.chars().map(|c| if c == 'a' { 0 } else { 2 }).collect();
            let log = -crate::graph::ctc_loss(&output, 3, &symbols, 1, None);
            assert!((f64::from(read.confidence) - log.exp()).abs() < 1e-6, "{read:?}");
        }
    }
}
