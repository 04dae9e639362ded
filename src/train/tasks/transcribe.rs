//! `transcribe`: the text that a sample shows or says, by the base's own output over its symbols at each step,
//! a blank among them (CTC): there is no head.
//!
//! A target has 1 + the symbol for each symbol of the text; behind them may stand zeros, and -1 for each step at
//! the end of its row that counts for nothing.

use super::answer::{Answer, Given, Measured, Meter, Score};
use super::rules::{ByHand, Sentence, Speller, TaskRules};
use super::texts::{Rates, characters_right, stored};
use crate::error::{Error, Result};
use crate::graph::{ctc_loss, ctc_steps};
use crate::runtime::ctc::{ReadText, beam, blank, greedy, log_probabilities};
use crate::train::data::{Label, Rough, RoughLabel, Row, Spelled};
use crate::train::loss::{Loss, ctc, dense};
use crate::train::metrics::LEAST_PROBABILITY;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use tract_core::internal::{OutletId, Tensor, TypedModel};

/// See the module.
pub(super) struct Transcribe;

const FIELD: &str = "transcript";

impl TaskRules for Transcribe {
    fn name(&self) -> &'static str {
        "transcribe"
    }

    fn fields(&self) -> &'static [&'static str] {
        &[FIELD]
    }

    fn field_schema(&self, _: &str) -> Value {
        json!({"type": "string"})
    }

    fn reads(&self, row: &Row<'_>) -> bool {
        row.get(FIELD).is_some()
    }

    /// Labels are texts too where it is asked for: names of folders, symbols of arrays.
    fn reads_asked(&self, row: &Row<'_>) -> bool {
        self.reads(row) || row.get("label").is_some()
    }

    fn label(&self, row: &Row<'_>) -> Result<RoughLabel> {
        let label = row.get("label");
        let text = row.string(FIELD)?.or_else(|| label.and_then(Value::as_str));
        let spelled = match (text, label) {
            (Some(text), _) => Spelled { text: text.trim().into(), symbols: vec![] },
            (None, Some(Value::Number(number))) => {
                Spelled { text: number.to_string(), symbols: vec![] }
            }
            (None, Some(Value::Array(numbers))) => {
                let symbols: Option<Vec<i64>> = numbers.iter().map(Value::as_i64).collect();
                let symbols = symbols.ok_or_else(|| {
                    Error::bad_input("label is no list of whole numbers, one for each symbol")
                })?;
                Spelled { text: String::new(), symbols }
            }
            _ => return Err(Error::bad_input(format!("no field '{FIELD}'"))),
        };
        Ok(RoughLabel { text: Some(spelled), ..RoughLabel::default() })
    }

    fn stored(&self, row: &Row<'_>) -> Map<String, Value> {
        stored(FIELD, self.label(row))
    }

    fn settle(&self, rough: Rough<'_>) -> Result<Label> {
        Ok(Label::Text(rough.text.unwrap_or_default()))
    }

    fn own_output(&self) -> bool {
        true
    }

    fn could_be_written(&self) -> bool {
        true
    }

    fn speller<'a>(&self, names: &'a [String]) -> Result<Speller<'a>> {
        let blank = blank_of(names)?;
        let speller = Letters::new(names);
        Ok(Box::new(move |label| {
            let spelled = spelled(label)?;
            if spelled.symbols.is_empty() {
                let symbols = speller.spell(&spelled.text)?;
                return Ok(Label::Text(Spelled { symbols, ..spelled.clone() }));
            }
            // A row's numbers, which what is negative fills up.
            let symbols = spelled.symbols.iter().copied().filter(|symbol| *symbol >= 0);
            let name = |symbol: i64| {
                let name = usize::try_from(symbol).ok().and_then(|at| names.get(at));
                name.filter(|name| !name.is_empty()).ok_or_else(|| {
                    Error::bad_input(format!(
                        "symbol {symbol} is none of {}, of which {blank} is the blank",
                        names.len()
                    ))
                })
            };
            let symbols: Vec<i64> = symbols.collect();
            let text = symbols.iter().map(|at| name(*at).map(String::as_str));
            let text = text.collect::<Result<String>>()?.trim().to_string();
            Ok(Label::Text(Spelled { text, symbols }))
        }))
    }

    fn fits(&self, label: &Label, steps: usize) -> Result<()> {
        enough(&symbols_of(label)?, steps)
    }

    fn loss(&self, model: &mut TypedModel, output: OutletId, names: &[String]) -> Result<Loss> {
        ctc(model, output, blank_of(names)?)
    }

    fn target(&self, label: &Label, _: usize, _: Sentence<'_>) -> Result<Vec<f32>> {
        Ok(symbols_of(label)?.into_iter().map(|symbol| symbol as f32 + 1.0).collect())
    }

    /// Each row by its length, as PyTorch's mean: long texts outweigh no short ones.
    fn tensors(
        &self,
        rows: &[Option<Vec<f32>>],
        shape: &[usize],
        kept: Option<&[bool]>,
    ) -> Result<Vec<Tensor>> {
        let steps = shape.get(1).copied().unwrap_or(0);
        let (mut targets, mut weights) = (vec![], vec![]);
        for (at, row) in rows.iter().enumerate() {
            let Some(row) = row else {
                targets.push(None);
                weights.push(None);
                continue;
            };
            let symbols = row.iter().take_while(|v| **v > 0.0).map(|v| *v as usize - 1);
            let symbols: Vec<usize> = symbols.collect();
            let mut row = row.clone();
            if let Some(kept) = kept.and_then(|kept| kept.get(at * steps..(at + 1) * steps)) {
                let count = kept.iter().take_while(|kept| **kept).count();
                if kept[count..].contains(&true) {
                    return Err(Error::unsupported("a mask that leaves out steps before others"));
                }
                row.resize(count.max(row.len()), 0.0);
                row.resize(steps.max(row.len()), -1.0);
            }
            let last = row.iter().take_while(|v| **v >= 0.0).count();
            enough(&symbols, if row.len() > last { last } else { steps })?;
            weights.push(Some(vec![1.0 / symbols.len().max(1) as f32]));
            targets.push(Some(row));
        }
        let targets = dense(&targets, &[rows.len(), steps, 1], None)?;
        Ok(vec![targets, dense(&weights, &[rows.len()], None)?])
    }

    fn has_before(&self) -> bool {
        false
    }

    /// No fixed answer is worth anything.
    fn constant(&self, _: &[Vec<f32>], _: usize) -> Vec<f32> {
        vec![]
    }

    /// Right is the share of the text's characters, less the edits that the answer takes.
    fn score(&self, label: &Label, given: &Given<'_>) -> Score {
        let Label::Text(spelled) = label else {
            return Score { loss: most_loss(), right: Some(0.0), labels: vec![] };
        };
        let right = characters_right(&spelled.text, &read(given).text);
        Score { loss: loss_of(label, given).min(most_loss()), right: Some(right), labels: vec![] }
    }

    fn score_name(&self) -> &'static str {
        "1 - CER"
    }

    fn meter(&self, _: usize) -> Box<dyn Meter> {
        Box::new(Gathered::default())
    }

    /// The text of the likeliest symbols; where a search is asked for the likeliest text, and the next ones.
    fn answer(&self, given: &Given<'_>, top: usize) -> Answer {
        let line = |read: &ReadText| format!("{:5.1} %  {}", 100.0 * read.confidence, read.text);
        if given.beam <= 1 {
            let read = greedy(given.output, given.labels);
            let json = json!({"transcript": read.text, "confidence": read.confidence});
            return Answer { json, lines: vec![line(&read)] };
        }
        let mut found = beam(given.output, given.labels, given.beam);
        found.truncate(top.max(1));
        let best = found.first();
        let of = |read: &ReadText| json!({"transcript": read.text, "confidence": read.confidence});
        Answer {
            json: json!({
                "transcript": best.map(|read| &read.text),
                "confidence": best.map(|read| read.confidence),
                "top": found.iter().map(of).collect::<Vec<Value>>(),
            }),
            lines: found.iter().map(line).collect(),
        }
    }

    fn right(&self, row: &Row<'_>, predicted: &Value) -> Option<bool> {
        Some(self.label(row).ok()?.text?.text == predicted.as_str()?.trim())
    }

    fn by_hand(&self) -> Option<(&'static str, ByHand)> {
        Some((FIELD, ByHand::Line))
    }

    fn schema(&self) -> Value {
        let confidence = json!({"type": "number", "description": "0 to 1"});
        json!({
            "type": "object", "required": ["transcript", "confidence"],
            "description": "transcribe: the text; where 'beam' asks for a search the next ones too",
            "properties": {
                "transcript": {"type": "string"},
                "confidence": confidence,
                "top": {"type": "array", "items": {
                    "type": "object", "required": ["transcript", "confidence"],
                    "properties": {"transcript": {"type": "string"}, "confidence": confidence}
                }}
            }
        })
    }
}

/// The greatest loss of a symbol that a sample counts with where it is bounded.
fn most_loss() -> f64 {
    -LEAST_PROBABILITY.ln()
}

fn blank_of(names: &[String]) -> Result<usize> {
    blank(names).ok_or_else(|| {
        Error::usage("the base doesn't say which symbols its output stands for")
            .hint("pack it with --alphabet FILE, and --blank where the file doesn't name the blank")
    })
}

fn spelled(label: &Label) -> Result<&Spelled> {
    match label {
        Label::Text(spelled) => Ok(spelled),
        _ => Err(Error::usage("'transcribe' learns a text for each sample")),
    }
}

fn symbols_of(label: &Label) -> Result<Vec<usize>> {
    let symbols = spelled(label)?.symbols.iter();
    symbols
        .map(|s| usize::try_from(*s).map_err(|_| Error::usage(format!("{s} is no symbol"))))
        .collect()
}

/// Whether so many steps can say it.
fn enough(symbols: &[usize], steps: usize) -> Result<()> {
    let needed = ctc_steps(symbols);
    match needed <= steps {
        true => Ok(()),
        false => Err(Error::bad_input(format!(
            "a text of {} symbols takes {needed} steps (a blank stands between two that are the same), \
             the model has {steps} for this input",
            symbols.len()
        ))),
    }
}

/// Symbols by their names, to spell texts with.
struct Letters<'a> {
    places: HashMap<&'a str, usize>,
    /// Characters of the longest name.
    longest: usize,
    /// Whether words begin with their space, as SentencePiece's do.
    leads: bool,
}

impl<'a> Letters<'a> {
    fn new(names: &'a [String]) -> Letters<'a> {
        let mut places = HashMap::new();
        for (at, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            places.entry(name.as_str()).or_insert(at);
        }
        let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let leads = names.iter().any(|name| name.starts_with(' ') && name.len() > 1);
        Letters { places, longest, leads }
    }

    /// The longest symbol that the rest of the text begins with, again and again.
    fn spell(&self, text: &str) -> Result<Vec<i64>> {
        let led = format!(" {text}");
        let mut rest = if self.leads && !text.is_empty() { &led } else { text };
        let mut symbols = vec![];
        while let Some(first) = rest.chars().next() {
            let ends: Vec<usize> =
                rest.char_indices().take(self.longest).map(|(at, c)| at + c.len_utf8()).collect();
            let found =
                ends.iter().rev().find_map(|end| Some((*end, *self.places.get(&rest[..*end])?)));
            let Some((end, symbol)) = found else {
                return Err(Error::bad_input(format!(
                    "the text '{text}' has '{first}', which is none of the model's {} symbols",
                    self.places.len()
                )));
            };
            symbols.push(symbol as i64);
            rest = &rest[end..];
        }
        Ok(symbols)
    }
}

fn read(given: &Given<'_>) -> ReadText {
    if given.beam > 1
        && let Some(best) = beam(given.output, given.labels, given.beam).into_iter().next()
    {
        return best;
    }
    greedy(given.output, given.labels)
}

/// Of each symbol; infinite where the output can't say the text.
fn loss_of(label: &Label, given: &Given<'_>) -> f64 {
    let (Ok(symbols), Some(blank)) = (symbols_of(label), blank(given.labels)) else {
        return f64::INFINITY;
    };
    let logs = log_probabilities(given.output, given.labels.len());
    let loss = ctc_loss(&logs, given.labels.len(), &symbols, blank, None);
    loss / symbols.len().max(1) as f64
}

#[derive(Default)]
struct Gathered {
    loss: f64,
    rates: Rates,
}

impl Meter for Gathered {
    fn add(&mut self, label: &Label, given: &Given<'_>) -> Result<()> {
        self.rates.count(&spelled(label)?.text, &read(given).text);
        let loss = loss_of(label, given);
        self.loss += if loss.is_finite() { loss } else { most_loss() };
        Ok(())
    }

    fn finish(self: Box<Self>) -> Measured {
        self.rates.measured(self.loss / self.rates.samples.max(1) as f64)
    }
}

#[cfg(test)]
#[path = "transcribe_tests.rs"]
mod tests;
