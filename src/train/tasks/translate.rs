//! `translate`: the text that a decoder writes of what its encoder read, token by token: there is no head.
//!
//! A label's symbols are, once the base has spelled it, one for each token that the decoder reads: the one that
//! should follow, or -1 behind those that it only begins with. A target has 1 + them.
//!
//! No run of one graph gives an output: it is the mean loss of the label's tokens, then the characters of
//! the text that was written, as numbers.

use super::answer::{Answer, Given, Measured, Meter, Score};
use super::rules::{Sentence, TaskRules};
use super::texts::{Rates, characters_right, spoken, stored};
use crate::error::{Error, Result};
use crate::train::data::{Label, Rough, RoughLabel, Row, Spelled};
use crate::train::loss::{Loss, dense, token_loss};
use crate::train::metrics::LEAST_PROBABILITY;
use serde_json::{Map, Value, json};
use tract_core::internal::{OutletId, Tensor, TypedModel};

/// See the module.
pub(super) struct Translate;

const FIELD: &str = "transcript";

/// An output of [`Translate`].
pub(crate) fn written(loss: f64, text: &str) -> Vec<f32> {
    let characters = text.chars().map(|c| u32::from(c) as f32);
    std::iter::once(loss as f32).chain(characters).collect()
}

impl TaskRules for Translate {
    fn name(&self) -> &'static str {
        "translate"
    }

    fn fields(&self) -> &'static [&'static str] {
        &[FIELD]
    }

    fn field_schema(&self, _: &str) -> Value {
        json!({"type": "string"})
    }

    /// What rows with a transcript are for, the base decides.
    fn reads(&self, _: &Row<'_>) -> bool {
        false
    }

    fn reads_asked(&self, row: &Row<'_>) -> bool {
        [FIELD, "completion", "label"].iter().any(|field| row.get(field).is_some())
    }

    fn label(&self, row: &Row<'_>) -> Result<RoughLabel> {
        let text = match row.string(FIELD)? {
            Some(text) => text.to_string(),
            None => match (row.string("completion")?, row.get("label")) {
                (Some(text), _) => text.to_string(),
                (None, Some(Value::String(text))) => text.clone(),
                (None, Some(Value::Number(number))) => number.to_string(),
                _ => return Err(Error::bad_input(format!("no field '{FIELD}'"))),
            },
        };
        let spelled = Spelled { text: text.trim().into(), symbols: vec![] };
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

    fn writes(&self) -> bool {
        true
    }

    fn loss(&self, model: &mut TypedModel, output: OutletId, _: &[String]) -> Result<Loss> {
        token_loss(model, output)
    }

    fn target(&self, label: &Label, _: usize, _: Sentence<'_>) -> Result<Vec<f32>> {
        Ok(spelled(label)?.symbols.iter().map(|symbol| *symbol as f32 + 1.0).collect())
    }

    fn counted(&self, target: &[f32], _: usize) -> usize {
        target.iter().filter(|v| **v > 0.0).count()
    }

    fn tensors(
        &self,
        rows: &[Option<Vec<f32>>],
        shape: &[usize],
        kept: Option<&[bool]>,
    ) -> Result<Vec<Tensor>> {
        let tokens = shape.get(1).copied().unwrap_or(1);
        Ok(vec![dense(rows, &[rows.len(), tokens, 1], kept)?])
    }

    fn has_before(&self) -> bool {
        false
    }

    /// No fixed answer is worth anything.
    fn constant(&self, _: &[Vec<f32>], _: usize) -> Vec<f32> {
        vec![]
    }

    /// Right is the share of the text's characters, less the edits that the answer takes, of both as they are said.
    fn score(&self, label: &Label, given: &Given<'_>) -> Score {
        let said = spelled(label).map(|spelled| spoken(&spelled.text)).unwrap_or_default();
        let right = characters_right(&said, &spoken(&read(given)));
        Score { loss: loss_of(given), right: Some(right), labels: vec![] }
    }

    fn score_name(&self) -> &'static str {
        "1 - CER"
    }

    fn meter(&self, _: usize) -> Box<dyn Meter> {
        Box::new(Gathered::default())
    }

    fn answer(&self, given: &Given<'_>, _: usize) -> Answer {
        let text = read(given);
        Answer { json: json!({"transcript": text}), lines: vec![text] }
    }

    fn right(&self, row: &Row<'_>, predicted: &Value) -> Option<bool> {
        let said = self.label(row).ok()?.text?.text;
        Some(spoken(&said) == spoken(predicted.as_str()?))
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object", "required": ["transcript"],
            "description": "translate: the text that the decoder wrote",
            "properties": {"transcript": {"type": "string"}}
        })
    }
}

pub(super) fn spelled(label: &Label) -> Result<&Spelled> {
    match label {
        Label::Text(spelled) => Ok(spelled),
        _ => Err(Error::usage("'translate' learns a text for each sample")),
    }
}

/// The text of an output.
fn read(given: &Given<'_>) -> String {
    let characters = given.output.iter().skip(1);
    characters.filter_map(|v| char::from_u32(*v as u32)).collect()
}

/// Of each token, bounded.
fn loss_of(given: &Given<'_>) -> f64 {
    let most = -LEAST_PROBABILITY.ln();
    given.output.first().map_or(most, |loss| f64::from(*loss).min(most))
}

#[derive(Default)]
struct Gathered {
    loss: f64,
    tokens: usize,
    rates: Rates,
}

impl Meter for Gathered {
    fn add(&mut self, label: &Label, given: &Given<'_>) -> Result<()> {
        let spelled = spelled(label)?;
        let tokens = spelled.symbols.iter().filter(|symbol| **symbol >= 0).count();
        let loss = given.output.first().copied().unwrap_or_default();
        self.loss += f64::from(loss) * tokens as f64;
        self.tokens += tokens;
        self.rates.count(&spoken(&spelled.text), &spoken(&read(given)));
        Ok(())
    }

    /// The loss is over all tokens.
    fn finish(self: Box<Self>) -> Measured {
        self.rates.measured(self.loss / self.tokens.max(1) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str, symbols: &[i64]) -> Label {
        Label::Text(Spelled { text: text.into(), symbols: symbols.into() })
    }

    #[test]
    fn rows_say_their_text_in_one_of_three_fields() {
        let of = |row: &str| -> Result<String> {
            let fields: Map<String, Value> = serde_json::from_str(row).unwrap();
            let row = Row::typed(&fields);
            assert!(!Translate.reads(&row));
            Ok(Translate.label(&row)?.text.unwrap().text)
        };
        assert_eq!(of(r#"{"transcript": " Hello. ", "label": "x"}"#).unwrap(), "Hello.");
        assert_eq!(of(r#"{"completion": "Yes"}"#).unwrap(), "Yes");
        assert_eq!(of(r#"{"label": 7}"#).unwrap(), "7");
        for broken in [r#"{"transcript": 3}"#, r#"{"label": [1]}"#, "{}"] {
            assert!(of(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn what_is_said_counts_and_how_it_is_written_does_not() {
        let names: [String; 0] = [];
        let output = written(0.5, "Anna, call Jörg!");
        let given = Given::plain(&output, &names);
        let said = label("anna call jörg", &[-1, 4, 5, 6]);
        let mut meter = Translate.meter(0);
        meter.add(&said, &given).unwrap();
        let other = written(2.0, "Yes");
        meter.add(&label("No", &[1, 2]), &Given::plain(&other, &names)).unwrap();
        let found = meter.finish().metrics;
        // (3 * 0.5 + 2 * 2)/5 a token; 3 edits of 16 characters, 1 of 4 words.
        assert!((found.get("loss").unwrap() - 1.1).abs() < 1e-6);
        assert_eq!(found.get("cer"), Some(3.0 / 16.0));
        assert_eq!((found.get("wer"), found.get("exact")), (Some(0.25), Some(0.5)));
        let score = Translate.score(&said, &given);
        assert_eq!((score.loss, score.right), (0.5, Some(1.0)));
        assert_eq!(Translate.answer(&given, 1).json["transcript"], "Anna, call Jörg!");
        assert_eq!(Translate.score(&said, &Given::plain(&[], &names)).right, Some(0.0));
        assert_eq!(Translate.target(&said, 0, None).unwrap(), [0.0, 5.0, 6.0, 7.0]);
        let fields: Map<String, Value> = serde_json::from_str(r#"{"transcript": "No"}"#).unwrap();
        assert_eq!(Translate.right(&Row::typed(&fields), &json!("no.")), Some(true));
    }
}
