//! `language`: the next token of a text, by the base's own output over its vocabulary: there is no head
//! with labels. A text is learned as a whole, of a prompt and its completion the completion alone, with the
//! token that ends it.
//!
//! A target has a value for each token: 0 where nothing is learned, else 1 + the token that follows.

use super::answer::{Answer, Given, Measured, Meter, Metric, Metrics, Score};
use super::rules::{Sentence, TaskRules};
use crate::error::{Error, Result};
#[cfg(feature = "text")]
use crate::runtime::Generator;
use crate::runtime::text::Tokens;
use crate::runtime::{Message, argmax, softmax, top_k};
use crate::train::data::{Label, Rough, RoughLabel, Row};
use crate::train::loss::{Loss, dense, token_loss};
use crate::train::metrics::{LEAST_PROBABILITY, entropy};
use serde_json::{Value, json};
use tract_core::internal::{OutletId, Tensor, TypedModel};

/// See the module.
pub(super) struct Language;

impl TaskRules for Language {
    fn name(&self) -> &'static str {
        "language"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["prompt", "completion", "messages"]
    }

    fn field_schema(&self, field: &str) -> Value {
        match field {
            "messages" => json!({"type": "array", "items": {
                "type": "object", "required": ["role", "content"],
                "properties": {"role": {"type": "string"}, "content": {"type": "string"}}
            }}),
            _ => json!({"type": "string"}),
        }
    }

    fn reads(&self, row: &Row<'_>) -> bool {
        row.get("completion").is_some() != row.get("messages").is_some()
    }

    /// Texts are learned too where it is asked for.
    fn reads_asked(&self, row: &Row<'_>) -> bool {
        self.reads(row) || row.get("text").is_some()
    }

    fn text(&self, row: &Row<'_>) -> Result<Option<String>> {
        if let Some(messages) = messages(row)? {
            let text = serde_json::to_string(&messages);
            return text.map(Some).map_err(|e| Error::failed(e.to_string()));
        }
        Ok(parts(row)?.map(|(prompt, completion)| format!("{prompt}{completion}")))
    }

    /// Characters of the prompt; none for a text that is learned as a whole, nor for a conversation.
    fn label(&self, row: &Row<'_>) -> Result<RoughLabel> {
        let (parts, messages) = (parts(row)?, messages(row)?);
        if (parts.is_some() || messages.is_some()) && row.get("text").is_some() {
            return Err(Error::bad_input("both fields 'text' and 'completion' or 'messages'"));
        }
        let values = match parts {
            Some((prompt, _)) => vec![prompt.chars().count() as f32],
            None if messages.is_some() => vec![TALK],
            None => vec![WHOLE],
        };
        Ok(RoughLabel { values, ..RoughLabel::default() })
    }

    fn settle(&self, rough: Rough<'_>) -> Result<Label> {
        Ok(Label::Values(rough.values))
    }

    fn own_output(&self) -> bool {
        true
    }

    fn learns_texts(&self) -> bool {
        true
    }

    #[cfg(feature = "text")]
    fn encode(
        &self,
        text: &str,
        label: &Label,
        generator: &Generator,
        most: usize,
    ) -> Result<(Tokens, Label)> {
        let start = match label {
            Label::Values(values) => values.first().copied().unwrap_or(WHOLE),
            _ => return Err(Error::usage("'language' learns texts")),
        };
        let behind = |mut ids: Vec<u32>, completion: &str| -> Result<(Vec<u32>, usize)> {
            let from = ids.len();
            ids.extend(generator.bare_tokens(completion)?);
            ids.extend(generator.ends().first());
            Ok((ids, from))
        };
        let (mut ids, from) = if start == TALK {
            let said: Vec<Message> =
                serde_json::from_str(text).map_err(|e| Error::failed(e.to_string()))?;
            let (last, before) = said.split_last().ok_or_else(|| Error::failed("no message"))?;
            let prompt = match generator.has_chat()? {
                true => generator.chat(before)?,
                false => generator.tokens(&plain(before))?,
            };
            behind(prompt, &last.content)?
        } else if start >= 0.0 {
            let (prompt, completion) = split(text, start as usize);
            behind(generator.tokens(prompt)?, completion)?
        } else {
            (generator.tokens(text)?, 0)
        };
        ids.truncate(most);
        let learned = |at: &usize| at + 1 >= from.max(1) && at + 1 < ids.len();
        let next: Vec<f32> = (0..ids.len())
            .map(|at| if learned(&at) { 1.0 + ids[at + 1] as f32 } else { 0.0 })
            .collect();
        if next.iter().all(|v| *v == 0.0) {
            let found = ids.len();
            return Err(Error::bad_input(format!(
                "nothing of it can be learned: it has {found} tokens, {most} are taken"
            ))
            .hint("a text has two tokens at least; --max-tokens takes more"));
        }
        let types = vec![0; ids.len()];
        Ok((Tokens { ids, types }, Label::Values(next)))
    }

    fn loss(&self, model: &mut TypedModel, output: OutletId, _: &[String]) -> Result<Loss> {
        token_loss(model, output)
    }

    fn target(&self, label: &Label, _: usize, _: Sentence<'_>) -> Result<Vec<f32>> {
        match label {
            Label::Values(values) => Ok(values.clone()),
            _ => Err(Error::usage("'language' learns a token for each token")),
        }
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

    fn score(&self, label: &Label, given: &Given<'_>) -> Score {
        let found = measured(label, given);
        let loss = found.loss / found.count.max(1) as f64;
        Score { loss: loss.min(-LEAST_PROBABILITY.ln()), right: None, labels: vec![] }
    }

    fn score_name(&self) -> &'static str {
        "perplexity"
    }

    fn meter(&self, _: usize) -> Box<dyn Meter> {
        Box::new(Gathered::default())
    }

    /// What follows the text.
    fn answer(&self, given: &Given<'_>, top: usize) -> Answer {
        let last = given.output.len().saturating_sub(given.width);
        let chances = softmax(given.output.get(last..).unwrap_or_default());
        let best = top_k(&chances, top);
        let lines = best.iter().map(|(id, p)| format!("{:5.1} %  token {id}", 100.0 * p)).collect();
        let next: Vec<Value> =
            best.iter().map(|(id, p)| json!({"token": id, "probability": p})).collect();
        Answer { json: json!({"next": next}), lines }
    }

    fn right(&self, _: &Row<'_>, _: &Value) -> Option<bool> {
        None
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object", "required": ["next"],
            "description": "language: the likeliest tokens behind the text",
            "properties": {"next": {"type": "array", "items": {
                "type": "object", "required": ["token", "probability"],
                "properties": {"token": {"type": "integer"}, "probability": {"type": "number"}}
            }}}
        })
    }
}

/// The label of a text that is learned as a whole.
const WHOLE: f32 = -1.0;
/// That of a conversation, whose text are its messages as JSON: only the base knows how they are written.
const TALK: f32 = -2.0;

/// The text before the character `at`, and the rest.
fn split(text: &str, at: usize) -> (&str, &str) {
    let byte = text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    text.split_at(byte)
}

/// Prompt and completion of a row; `None` where it has none.
fn parts(row: &Row<'_>) -> Result<Option<(String, String)>> {
    let prompt = row.string("prompt")?.unwrap_or_default();
    Ok(row.string("completion")?.map(|c| (prompt.to_string(), c.to_string())))
}

/// The messages of a row, of which the last is learned.
fn messages(row: &Row<'_>) -> Result<Option<Vec<Message>>> {
    let Some(value) = row.get("messages") else { return Ok(None) };
    let wrong =
        |e| Error::bad_input(format!("field 'messages' is no list of {{role, content}}: {e}"));
    let messages: Vec<Message> = serde_json::from_value(value.clone()).map_err(wrong)?;
    match messages.last() {
        Some(last) if last.role == "assistant" => Ok(Some(messages)),
        Some(last) => Err(Error::bad_input(format!(
            "the last of 'messages' is what is learned, its role is '{}', not 'assistant'",
            last.role
        ))),
        None => Err(Error::bad_input("field 'messages' is empty")),
    }
}

/// A conversation where the base has no template.
fn plain(messages: &[Message]) -> String {
    let lines = messages.iter().map(|m| format!("{}: {}\n", m.role, m.content));
    lines.chain(["assistant: ".to_string()]).collect()
}

/// Losses of the tokens that are learned.
#[derive(Default)]
struct Gathered {
    loss: f64,
    right: usize,
    count: usize,
}

fn measured(label: &Label, given: &Given<'_>) -> Gathered {
    let mut found = Gathered::default();
    let Label::Values(next) = label else { return found };
    let learned = next.iter().enumerate().filter(|(_, v)| **v > 0.0);
    for (at, target) in learned.map(|(at, v)| (at, *v as usize - 1)) {
        found.count += 1;
        let row = given.output.get(at * given.width..(at + 1) * given.width);
        match row.filter(|row| target < row.len()) {
            Some(row) => {
                found.loss += entropy(row, target);
                found.right += usize::from(argmax(row) == Some(target));
            }
            None => found.loss -= LEAST_PROBABILITY.ln(),
        }
    }
    found
}

impl Meter for Gathered {
    fn add(&mut self, label: &Label, given: &Given<'_>) -> Result<()> {
        let Gathered { loss, right, count } = measured(label, given);
        self.loss += loss;
        self.right += right;
        self.count += count;
        Ok(())
    }

    /// Over all tokens, not over samples.
    fn finish(self: Box<Self>) -> Measured {
        let count = self.count.max(1) as f64;
        let metrics = Metrics(vec![
            Metric::lower("loss", self.loss / count),
            Metric::lower("perplexity", (self.loss / count).exp()),
            Metric::higher("accuracy", self.right as f64 / count),
        ]);
        Measured { metrics, ..Measured::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn fields(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn rows_have_a_prompt_and_what_is_learned() {
        let row = fields(r#"{"prompt": "Où? ", "completion": "Ici."}"#);
        let row = Row::typed(&row);
        assert_eq!(Language.text(&row).unwrap().unwrap(), "Où? Ici.");
        assert_eq!(Language.label(&row).unwrap().values, [4.0]);
        assert_eq!(split("Où? Ici.", 4), ("Où? ", "Ici."));
        let row = fields(
            r#"{"messages": [{"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes"}]}"#,
        );
        assert_eq!(Language.label(&Row::typed(&row)).unwrap().values, [TALK]);
        let said = messages(&Row::typed(&row)).unwrap().unwrap();
        assert_eq!(plain(&said[..1]), "user: Hi\nassistant: ");
        let text = Language.text(&Row::typed(&row)).unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Vec<Message>>(&text).unwrap(), said);
        let row = fields(r#"{"messages": [{"role": "user", "content": "Hi"}]}"#);
        let e = Language.label(&Row::typed(&row)).unwrap_err();
        assert!(e.message().contains("role is 'user'"), "{e}");
        let row = fields(r#"{"text": "a", "completion": "b"}"#);
        assert!(Language.label(&Row::typed(&row)).is_err());
        let row = fields(r#"{"text": "a"}"#);
        let row = Row::typed(&row);
        assert!(!Language.reads(&row) && Language.reads_asked(&row));
        assert_eq!(Language.label(&row).unwrap().values, [WHOLE]);
    }

    /// Of three tokens the second and third are learned: -ln 1/2 and -ln 1/4.
    #[test]
    fn perplexity_is_over_all_tokens_that_are_learned() {
        let half = 0.5f32.ln();
        let quarter = 0.25f32.ln();
        let output = [0.0, 0.0, half, half, quarter, 0.75f32.ln()];
        let labels: [String; 0] = [];
        let given = Given { width: 2, ..Given::plain(&output, &labels) };
        let label = Label::Values(vec![0.0, 1.0, 1.0]);
        let mut meter = Language.meter(0);
        meter.add(&label, &given).unwrap();
        let found = meter.finish().metrics;
        let mean = -(f64::from(half) + f64::from(quarter)) / 2.0;
        assert!((f64::from(found.get("loss").unwrap()) - mean).abs() < 1e-6);
        assert!((f64::from(found.get("perplexity").unwrap()) - mean.exp()).abs() < 1e-5);
        assert_eq!(found.get("accuracy"), Some(0.5));
        assert!((Language.score(&label, &given).loss - mean).abs() < 1e-6);
        let none = Given::plain(&[], &labels);
        assert!(Language.score(&label, &none).loss > 9.0);
        assert_eq!(Language.answer(&given, 1).json["next"][0]["token"], 1);
    }
}
