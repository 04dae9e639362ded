//! What a comparison says in plain words: is LoRA enough, and what would more cost.

use super::{Figures, Row};

/// A share of right answers is better by this at least.
const POINT: f64 = 0.01;
/// Another metric by this part of it.
const PART: f64 = 0.02;
/// Standard errors of the seeds' differences that a difference must be more than.
const ERRORS: f64 = 2.0;

/// Rows that ended well, by what they cost.
struct Levels<'a> {
    head: Option<Best<'a>>,
    lora: Option<Best<'a>>,
    other: Option<Best<'a>>,
    /// Of the runs that ask for knowledge.
    kept: Option<Best<'a>>,
}

#[derive(Clone, Copy)]
struct Best<'a> {
    row: &'a Row,
    figures: &'a Figures,
}

impl<'a> Best<'a> {
    fn name(&self) -> &'a str {
        &self.row.method.name
    }

    fn quoted(&self) -> String {
        format!("'{}'", self.name())
    }

    fn mean(&self) -> f64 {
        self.figures.first().map_or(0.0, |m| m.figure.mean)
    }

    fn higher_is_better(&self) -> bool {
        self.figures.first().is_some_and(|m| m.higher_is_better)
    }

    /// By how much it is better than `other` on average, and whether that is more than chance.
    fn over(&self, other: &Best<'_>) -> (f64, bool) {
        let (Some(a), Some(b)) = (self.figures.first(), other.figures.first()) else {
            return (0.0, false);
        };
        let sign = if a.higher_is_better { 1.0 } else { -1.0 };
        let seeds = self.figures.seeds.iter().zip(&a.figure.values);
        let pairs = seeds.filter_map(|(seed, one)| {
            let at = other.figures.seeds.iter().position(|s| s == seed)?;
            Some(sign * (one - b.figure.values.get(at)?))
        });
        let by: Vec<f64> = pairs.collect();
        let count = by.len().max(1) as f64;
        let mean = by.iter().sum::<f64>() / count;
        let squares: f64 = by.iter().map(|d| (d - mean).powi(2)).sum();
        let error = if by.len() > 1 { (squares / (count - 1.0) / count).sqrt() } else { 0.0 };
        let least = if a.higher_is_better { POINT } else { PART * b.figure.mean.abs() };
        (mean, mean > least.max(ERRORS * error))
    }

    fn says(&self) -> String {
        let metric = self.figures.first().map_or("", |m| &m.name);
        format!("{} has {} {}", self.quoted(), words(metric), number(self.mean()))
    }
}

/// The verdict at the largest share with what more costs, and where there are several that at the
/// smallest.
pub(super) fn verdict(rows: &[Row]) -> String {
    let largest = rows.iter().map(|r| r.share).fold(0.0, f32::max);
    let smallest = rows.iter().map(|r| r.share).fold(1.0, f32::min);
    let Levels { lora, kept, .. } = Levels::of(rows, largest);
    let mut text = at(rows, largest, true);
    if let Some(kept) = kept.filter(|kept| lora.is_some_and(|lora| lora.name() != kept.name()))
        && let Some(share) = &kept.figures.kept
    {
        let share = share.mean * 100.0;
        text += &format!(" {} and keeps {share:.0} % of what the base knows.", kept.says());
    }
    if smallest < largest {
        text += &format!(" With {} of the data {}", percent(smallest), at(rows, smallest, false));
    }
    let seeds = rows.iter().filter_map(|r| Some(r.figures.as_ref()?.seeds.len())).max();
    if seeds == Some(1) {
        text += " One seed says little about chance: --seeds 3 says more.";
    }
    text
}

fn at(rows: &[Row], share: f32, with_cost: bool) -> String {
    let Levels { head, lora, other, kept } = Levels::of(rows, share);
    let Some(lora) = lora.or(kept) else {
        return "nothing can be said of LoRA: no run of it ended well.".into();
    };
    let takes = |what: &str, one: &Best<'_>, than: &Best<'_>| match with_cost {
        true => format!(" {what} takes {}.", cost(one, than)),
        false => String::new(),
    };
    if let Some(head) = head
        && !lora.over(&head).1
        && !other.is_some_and(|other| other.over(&head).1)
    {
        let (head_says, lora_says) = (head.says(), beside(&lora, &head));
        let takes = takes("LoRA", &lora, &head);
        return format!("a head alone is enough: {head_says}, {lora_says}.{takes}");
    }
    let gain = head.map_or(String::new(), |head| format!(", where {}", head.says()));
    match other.map(|other| (other, other.over(&lora).1)) {
        Some((other, true)) => format!(
            "LoRA is not all that can be had: {}, {}{gain}.{}",
            other.says(),
            lora.says(),
            takes(&other.quoted(), &other, &lora)
        ),
        Some((other, false)) => format!(
            "LoRA is enough: {}{gain}; the best other kind, {}.{}",
            lora.says(),
            beside(&other, &lora),
            takes(&other.quoted(), &other, &lora)
        ),
        None => format!("{}{gain}; no other kind was tried.", lora.says()),
    }
}

/// `one` beside another that is as good.
fn beside(one: &Best<'_>, other: &Best<'_>) -> String {
    let (by, _) = one.over(other);
    match by > 0.0 {
        true => format!("{}, no more than chance", one.says()),
        false => format!("{}, no better", one.says()),
    }
}

impl<'a> Levels<'a> {
    fn of(rows: &'a [Row], share: f32) -> Levels<'a> {
        let best = |is: &dyn Fn(&Row) -> bool| -> Option<Best<'a>> {
            let all = rows.iter().filter(|row| row.share == share && is(row));
            let ended = all.filter_map(|row| Some(Best { row, figures: row.figures.as_ref()? }));
            ended.reduce(|a, b| {
                // The one that stands first costs less.
                let better = match a.higher_is_better() {
                    true => b.mean() > a.mean(),
                    false => b.mean() < a.mean(),
                };
                if better { b } else { a }
            })
        };
        Levels {
            head: best(&|row| row.method.is_head_alone()),
            lora: best(&|row| row.method.is_first_kind() && !row.method.keeps()),
            other: best(&|row| !row.method.is_head_alone() && !row.method.is_first_kind()),
            kept: best(&|row| row.method.keeps()),
        }
    }
}

/// What the first takes, beside what the second does.
fn cost(one: &Best<'_>, other: &Best<'_>) -> String {
    let (a, b) = (one.figures, other.figures);
    let mut parts = vec![format!(
        "{} ({} instead of {})",
        times(a.parameters as f64, b.parameters as f64, "trained values"),
        short(a.parameters),
        short(b.parameters)
    )];
    parts.push(times(a.file_bytes as f64, b.file_bytes as f64, "file size"));
    match (&a.step_ms, &b.step_ms) {
        (Some(x), Some(y)) => parts.push(times(x.mean, y.mean, "step time")),
        _ => parts.push(format!("{:.1} s instead of {:.1} s", a.seconds.mean, b.seconds.mean)),
    }
    if let (Some(x), Some(y)) = (a.peak_rss_bytes, b.peak_rss_bytes) {
        parts.push(times(x as f64, y as f64, "memory"));
    }
    let shares = a.kept.as_ref().zip(b.kept.as_ref());
    let [x, y] = shares.map_or([0.0; 2], |(x, y)| [x.mean, y.mean].map(|s| (s * 100.0).round()));
    match x == y {
        true => parts.join(", "),
        false => {
            format!("{}, and keeps {x} % of what the base knows instead of {y} %", parts.join(", "))
        }
    }
}

fn times(one: f64, other: f64, what: &str) -> String {
    match one / other.max(1e-9) {
        r if r >= 9.5 => format!("{r:.0} times the {what}"),
        r if r >= 1.05 => format!("{r:.1} times the {what}"),
        r if r > 0.95 => format!("the same {what}"),
        r => format!("{r:.2} times the {what}"),
    }
}

fn short(n: u64) -> String {
    match n {
        n if n < 10_000 => n.to_string(),
        n if n < 1_000_000 => format!("{:.0} thousand", n as f64 / 1e3),
        n => format!("{:.1} million", n as f64 / 1e6),
    }
}

/// `macro_f1` for people.
fn words(metric: &str) -> String {
    metric.replace('_', " ")
}

fn number(value: f64) -> String {
    format!("{value:.3}")
}

/// `5 %`.
pub fn percent(share: f32) -> String {
    format!("{} %", (f64::from(share) * 1000.0).round() / 10.0)
}
