//! `language`: the next token of a text, by the base's own output over its vocabulary: there is no head
//! with labels. A text is learned as a whole, of a prompt and its completion the completion alone, with the
//! token that ends it.
//!
//! A target has a value for each token: 0 where nothing is learned, else 1 + the token that follows.

use super::answer::{Answer, Given, Measured, Meter, Metric, Metrics, Score};
use super::rules::{ByHand, Sentence, TaskRules};
use crate::error::{Error, Result};
#[cfg(all(feature = "daemon", feature = "text"))]
use crate::runtime::Generated;
#[cfg(feature = "text")]
use crate::runtime::Generator;
use crate::runtime::text::Tokens;
use crate::runtime::{Message, argmax, softmax, top_k};
use crate::train::data::{Follows, Label, Rough, RoughLabel, Row, Spelled};
use crate::train::loss::{Loss, dense, token_loss};
use crate::train::metrics::{LEAST_PROBABILITY, entropy};
use serde_json::{Map, Value, json};
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
        row.get(COMPLETION).is_some() || row.get(MESSAGES).is_some()
    }

    /// Texts are learned too where it is asked for.
    fn reads_asked(&self, row: &Row<'_>) -> bool {
        self.reads(row) || row.get("text").is_some()
    }

    /// The prompt, or the messages before the answer as JSON.
    fn text(&self, row: &Row<'_>) -> Result<Option<String>> {
        if let Some((before, _)) = conversation(row)? {
            return Ok(Some(written(&before)));
        }
        Ok(match (row.string("prompt")?, row.string(COMPLETION)?) {
            (prompt, Some(_)) => Some(prompt.unwrap_or_default().into()),
            (_, None) => None,
        })
    }

    /// What follows as a text, with a mark of what it follows on.
    fn label(&self, row: &Row<'_>) -> Result<RoughLabel> {
        let both = |a: &str, b: &str| Err(Error::bad_input(format!("both fields '{a}' and '{b}'")));
        let (kind, text) = match (conversation(row)?, row.string(COMPLETION)?) {
            (Some(_), _) if row.get("text").is_some() => return both("text", MESSAGES),
            (Some(_), _) if row.get("prompt").is_some() => return both("prompt", MESSAGES),
            (Some((_, reply)), _) => (REPLY, reply),
            (None, Some(_)) if row.get("text").is_some() && row.get("prompt").is_some() => {
                return both("text", "prompt");
            }
            (None, Some(text)) => (AFTER_PROMPT, text.to_string()),
            (None, None) => (WHOLE, String::new()),
        };
        let text = Some(Spelled { text, symbols: vec![] });
        Ok(RoughLabel { values: vec![kind], text, ..RoughLabel::default() })
    }

    /// Of a conversation the answer alone: its other messages are the input.
    fn stored(&self, row: &Row<'_>) -> Map<String, Value> {
        let kept = |name: &str, value: Value| Map::from_iter([(name.to_string(), value)]);
        if let Ok(Some((_, reply))) = conversation(row) {
            return kept(MESSAGES, json!([{"role": ASSISTANT, "content": reply}]));
        }
        kept(COMPLETION, row.get(COMPLETION).cloned().unwrap_or_default())
    }

    fn shown(&self, text: &str, stored: &Map<String, Value>) -> Option<[Value; 2]> {
        let reply = stored.get(MESSAGES)?.get(0)?.get("content")?;
        let before: Value = serde_json::from_str(text).ok()?;
        Some([json!({MESSAGES: before}), json!({COMPLETION: reply})])
    }

    fn settle(&self, rough: Rough<'_>) -> Result<Label> {
        let text = rough.text.unwrap_or_default().text;
        Ok(Label::Follows(match rough.values.first() {
            Some(&kind) if kind == REPLY => Follows::Reply(text),
            Some(&kind) if kind == AFTER_PROMPT => Follows::Completion(text),
            _ => Follows::Nothing,
        }))
    }

    fn own_output(&self) -> bool {
        true
    }

    fn learns_texts(&self) -> bool {
        true
    }

    fn completes(&self) -> bool {
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
        let Label::Follows(follows) = label else {
            return Err(Error::usage("'language' learns texts"));
        };
        let (mut ids, completion) = match follows {
            Follows::Nothing => (generator.tokens(text)?, None),
            Follows::Completion(completion) => (generator.tokens(text)?, Some(completion)),
            Follows::Reply(reply) => {
                let said: Vec<Message> =
                    serde_json::from_str(text).map_err(|e| Error::failed(e.to_string()))?;
                (conversation_tokens(generator, &said)?, Some(reply))
            }
        };
        let mut from = 0;
        if let Some(completion) = completion {
            from = ids.len();
            ids.extend(generator.bare_tokens(completion)?);
            ids.extend(generator.ends().first());
        }
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

    /// Right is the share of the learned tokens that are the likeliest behind the right ones before them: all
    /// of them are where the text is what would be written.
    fn score(&self, label: &Label, given: &Given<'_>) -> Score {
        let found = measured(label, given);
        let share = |sum: f64| sum / found.count.max(1) as f64;
        let loss = share(found.loss).min(-LEAST_PROBABILITY.ln());
        Score { loss, right: Some(share(found.right as f64)), labels: vec![] }
    }

    fn score_name(&self) -> &'static str {
        "token accuracy"
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

    fn right(&self, row: &Row<'_>, predicted: &Value) -> Option<bool> {
        let said = match conversation(row).ok()? {
            Some((_, reply)) => reply,
            None => row.string(COMPLETION).ok()??.into(),
        };
        Some(said.trim() == predicted.as_str()?.trim())
    }

    fn by_hand(&self) -> Option<(&'static str, ByHand)> {
        Some((COMPLETION, ByHand::Text))
    }

    /// Blanks count. Line ends come as forms send them; what a page can't show came back as a replacement.
    fn typed(&self, line: &str, answered: &Value) -> Result<Value> {
        let line = line.replace("\r\n", "\n");
        let answered = answered[COMPLETION].as_str().unwrap_or_default();
        let pairs = || answered.chars().zip(line.chars());
        let same = answered.chars().count() == line.chars().count()
            && pairs().all(|(said, typed)| said == typed || typed == char::REPLACEMENT_CHARACTER);
        Ok(if same { answered.into() } else { line.into() })
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "description": "language: the text that the base writes behind what it was asked and why it ended; \
                where it was asked with its inputs, the likeliest next tokens",
            "anyOf": [
                {"required": [COMPLETION, "ended", "tokens", "prompt_tokens"]}, {"required": ["next"]}
            ],
            "properties": {
                COMPLETION: {"type": "string"},
                "ended": {"type": "string", "enum": ["end", "stop", "tokens", "full"]},
                "tokens": {"type": "integer"}, "prompt_tokens": {"type": "integer"},
                "next": {"type": "array", "items": {
                    "type": "object", "required": ["token", "probability"],
                    "properties": {"token": {"type": "integer"}, "probability": {"type": "number"}}
                }}
            }
        })
    }
}

const COMPLETION: &str = "completion";
const MESSAGES: &str = "messages";
const ASSISTANT: &str = "assistant";

/// In a row's label: a text that is learned as a whole.
const WHOLE: f32 = 0.0;
/// A text that follows on a prompt.
const AFTER_PROMPT: f32 = 1.0;
/// One that answers a conversation.
const REPLY: f32 = 2.0;

/// What is said of a text that was generated.
#[cfg(all(feature = "daemon", feature = "text"))]
pub(crate) fn completed(found: &Generated) -> Value {
    json!({
        COMPLETION: found.text, "ended": found.ended.name(), "tokens": found.ids.len(),
        "prompt_tokens": found.prompt_tokens,
    })
}

/// The tokens of a conversation up to where the assistant speaks: by the base's own template, else in lines.
#[cfg(feature = "text")]
pub(crate) fn conversation_tokens(generator: &Generator, said: &[Message]) -> Result<Vec<u32>> {
    match generator.has_chat()? {
        true => generator.chat(said),
        false => generator.tokens(&plain(said)),
    }
}

/// A conversation where the base has no template.
fn plain(messages: &[Message]) -> String {
    let lines = messages.iter().map(|m| format!("{}: {}\n", m.role, m.content));
    lines.chain([format!("{ASSISTANT}: ")]).collect()
}

/// A conversation as an input that is a text.
pub(crate) fn written(messages: &[Message]) -> String {
    let one = |m: &Message| json!({"role": m.role, "content": m.content});
    Value::Array(messages.iter().map(one).collect()).to_string()
}

/// The messages of a row and the answer to them: the completion, else the last of them.
pub(super) fn conversation(row: &Row<'_>) -> Result<Option<(Vec<Message>, String)>> {
    let Some(value) = row.get(MESSAGES) else { return Ok(None) };
    let wrong =
        |e| Error::bad_input(format!("field 'messages' is no list of {{role, content}}: {e}"));
    let mut said: Vec<Message> = serde_json::from_value(value.clone()).map_err(wrong)?;
    if let Some(completion) = row.string(COMPLETION)? {
        return Ok(Some((said, completion.into())));
    }
    match said.pop() {
        Some(last) if last.role == ASSISTANT => Ok(Some((said, last.content))),
        Some(last) => Err(Error::bad_input(format!(
            "the last of 'messages' is what is learned, its role is '{}', not 'assistant'",
            last.role
        ))),
        None => Err(Error::bad_input("field 'messages' is empty")),
    }
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

    fn settled(row: &Row<'_>) -> Follows {
        let RoughLabel { values, text, .. } = Language.label(row).unwrap();
        match Language.settle(Rough { values, text, ..Rough::default() }).unwrap() {
            Label::Follows(follows) => follows,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rows_have_a_prompt_and_what_is_learned() {
        let row = fields(r#"{"prompt": "Où? ", "completion": "Ici."}"#);
        let row = Row::typed(&row);
        assert_eq!(Language.text(&row).unwrap().unwrap(), "Où? ");
        assert_eq!(settled(&row), Follows::Completion("Ici.".into()));
        assert_eq!(Value::Object(Language.stored(&row)), json!({"completion": "Ici."}));
        let hi = Message { role: "user".into(), content: "Hi".into() };
        let asked = json!([{"role": "user", "content": "Hi"}]);
        let said =
            json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]);
        for row in [json!({"messages": said}), json!({"messages": asked, "completion": "Yes"})] {
            let row = row.as_object().unwrap();
            let row = Row::typed(row);
            assert_eq!(settled(&row), Follows::Reply("Yes".into()));
            let text = Language.text(&row).unwrap().unwrap();
            assert_eq!(text, written(std::slice::from_ref(&hi)));
            // What is stored of it says the same of that text.
            let stored = Language.stored(&row);
            assert_eq!(settled(&Row::typed(&stored)), Follows::Reply("Yes".into()));
            let [input, answer] = Language.shown(&text, &stored).unwrap();
            assert_eq!((&input["messages"], &answer["completion"]), (&asked, &json!("Yes")));
            assert_eq!(Language.right(&row, &json!(" Yes\n")), Some(true));
            assert_eq!(Language.right(&row, &json!("No")), Some(false));
        }
        assert_eq!(plain(&[hi]), "user: Hi\nassistant: ");
        let row = fields(r#"{"messages": [{"role": "user", "content": "Hi"}]}"#);
        let e = Language.label(&Row::typed(&row)).unwrap_err();
        assert!(e.message().contains("role is 'user'"), "{e}");
        let row = fields(r#"{"text": "a", "completion": "b"}"#);
        assert_eq!(settled(&Row::typed(&row)), Follows::Completion("b".into()));
        for broken in [
            r#"{"text": "a", "prompt": "a", "completion": "b"}"#,
            r#"{"text": "a", "messages": [{"role": "assistant", "content": "b"}]}"#,
            r#"{"prompt": "a", "messages": [{"role": "assistant", "content": "b"}]}"#,
            r#"{"completion": 3}"#,
            r#"{"messages": [3]}"#,
        ] {
            assert!(Language.label(&Row::typed(&fields(broken))).is_err(), "{broken}");
        }
        let said = json!({"completion": " a\tb\n"});
        assert_eq!(Language.typed(" a\u{fffd}b\r\n", &said).unwrap(), " a\tb\n");
        assert_eq!(Language.typed(" a\r\nc ", &said).unwrap(), " a\nc ");
        let row = fields(r#"{"text": "a"}"#);
        let row = Row::typed(&row);
        assert!(!Language.reads(&row) && Language.reads_asked(&row));
        assert_eq!(settled(&row), Follows::Nothing);
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
        let score = Language.score(&label, &given);
        assert!((score.loss - mean).abs() < 1e-6);
        assert_eq!(score.right, Some(0.5));
        let none = Given::plain(&[], &labels);
        let none = Language.score(&label, &none);
        assert!(none.loss > 9.0 && none.right == Some(0.0));
        assert_eq!(Language.answer(&given, 1).json["next"][0]["token"], 1);
    }
}
