//! `tokens`: a label for each word of a sentence, or each place of an array. Cross-entropy over the
//! first token of each word; the others, and words without a label, count for nothing.

use super::answer::{Answer, Given, Measured, Meter, Score};
use super::rules::{Sentence, TaskRules};
use crate::error::{Error, Result};
use crate::runtime::{WordAt, Words, argmax, softmax};
use crate::train::data::{Label, Mark, Rough, RoughLabel, RoughName, Row, Seen};
use crate::train::loss::{Loss, cross_entropy, dense};
use crate::train::metrics::{Confusion, LEAST_PROBABILITY, entropy, frequencies};
use serde_json::{Value, json};
use tract_core::internal::{OutletId, Tensor, TypedModel};

/// See the module.
pub(super) struct Tokens;

/// The label of words outside all spans.
const OUTSIDE: &str = "O";

impl TaskRules for Tokens {
    fn name(&self) -> &'static str {
        "tokens"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["tokens", "tags", "spans", "label"]
    }

    fn field_schema(&self, field: &str) -> Value {
        match field {
            "spans" => json!({"type": "array", "items": {
                "type": "object", "required": ["start", "end", "label"],
                "properties": {"start": {"type": "integer", "minimum": 0},
                    "end": {"type": "integer", "minimum": 0}, "label": {"type": "string"}}
            }}),
            _ => json!({"type": "array", "items": {"type": "string"}}),
        }
    }

    /// A list `label` holds a number for each place of an array.
    fn reads(&self, row: &Row<'_>) -> bool {
        let has = |field: &str| row.get(field).is_some();
        let places = row.get("label").is_some_and(Value::is_array);
        (has("tokens") && has("tags")) != has("spans")
            || (places && !has("tokens") && !has("tags") && !has("spans"))
    }

    fn text(&self, row: &Row<'_>) -> Result<Option<String>> {
        match row.get("tokens") {
            Some(_) => Ok(Some(row.strings("tokens")?.join(" "))),
            None => Ok(None),
        }
    }

    fn label(&self, row: &Row<'_>) -> Result<RoughLabel> {
        if row.get("spans").is_some() {
            return spans(row);
        }
        if row.get("tokens").is_none() {
            return places(row);
        }
        if row.get("text").is_some() {
            return Err(Error::bad_input("both fields 'text' and 'tokens'"));
        }
        let (tokens, tags) = (row.strings("tokens")?, row.strings("tags")?);
        if tokens.len() != tags.len() {
            let (tokens, tags) = (tokens.len(), tags.len());
            return Err(Error::bad_input(format!("{tokens} tokens have {tags} tags")));
        }
        let mut rough = RoughLabel::default();
        let mut start = 0;
        for (token, tag) in tokens.iter().zip(tags) {
            let end = start + token.chars().count() as u32;
            rough.names.push(name(tag));
            rough.spans.push([start, end]);
            start = end + 1;
        }
        Ok(rough)
    }

    fn claims(&self, seen: &Seen<'_>) -> Option<String> {
        (seen.lists == 0).then(|| "its rows have tokens with tags, or spans".into())
    }

    fn settle(&self, rough: Rough<'_>) -> Result<Label> {
        let pairs = rough.places.into_iter().zip(rough.spans);
        let mark = |(label, [start, end]): (usize, [u32; 2])| Mark { start, end, label };
        Ok(Label::Marks(pairs.map(mark).collect()))
    }

    fn per_token(&self) -> bool {
        true
    }

    fn needs_words(&self) -> bool {
        true
    }

    fn loss(&self, model: &mut TypedModel, output: OutletId, _: &[String]) -> Result<Loss> {
        cross_entropy(model, output)
    }

    fn target(&self, label: &Label, width: usize, sentence: Sentence<'_>) -> Result<Vec<f32>> {
        let Label::Marks(marks) = label else {
            return Err(Error::usage("'tokens' learns a label for each word, found one label"));
        };
        let units = units(marks, sentence);
        let places = match sentence {
            Some(words) => words.tokens,
            None => units.iter().map(|(at, _)| at + 1).max().unwrap_or(0),
        };
        let mut target = vec![0f32; places * width];
        for (at, place) in units {
            if place >= width {
                return Err(Error::usage(format!("label {place} is not one of {width}")));
            }
            target[at * width + place] = 1.0;
        }
        Ok(target)
    }

    fn counted(&self, target: &[f32], width: usize) -> usize {
        target.chunks(width.max(1)).filter(|row| row.iter().any(|v| *v != 0.0)).count()
    }

    fn tensors(
        &self,
        rows: &[Option<Vec<f32>>],
        shape: &[usize],
        kept: Option<&[bool]>,
    ) -> Result<Vec<Tensor>> {
        Ok(vec![dense(rows, shape, kept)?])
    }

    fn before(
        &self,
        target: &[f32],
        output: &[f32],
        places: &[usize],
        width: usize,
    ) -> Option<Vec<f32>> {
        let mut row = target.to_vec();
        for (to, logits) in row.chunks_mut(width).zip(output.chunks(places.len().max(1))) {
            let mut before = vec![0f32; width];
            for (&at, p) in places.iter().zip(softmax(logits)) {
                *before.get_mut(at)? = p;
            }
            let labelled = to.iter().any(|v| *v != 0.0);
            let finite = before.iter().all(|p| p.is_finite());
            if labelled && finite && argmax(&before) == argmax(to) {
                to.copy_from_slice(&before);
            }
        }
        Some(row)
    }

    /// Always the most frequent label.
    fn constant(&self, targets: &[Vec<f32>], width: usize) -> Vec<f32> {
        let shares = frequencies(targets, width).into_iter();
        shares.map(|share| share.max(LEAST_PROBABILITY).ln() as f32).collect()
    }

    /// The share of right words; 1 where none has a label.
    fn score(&self, label: &Label, given: &Given<'_>) -> Score {
        let (mut loss, mut right, mut count) = (0.0, 0.0, 0.0);
        let mut labels: Vec<(usize, f64, f64)> = vec![];
        for (at, place) in labelled(label, given) {
            let logits = row(given, at);
            let p = softmax(&logits).get(place).copied().map_or(0.0, f64::from);
            let hit = f64::from(u8::from(argmax(&logits) == Some(place)));
            loss -= p.max(LEAST_PROBABILITY).ln();
            right += hit;
            count += 1.0;
            match labels.iter_mut().find(|(known, ..)| *known == place) {
                Some((_, hits, all)) => (*hits, *all) = (*hits + hit, *all + 1.0),
                None => labels.push((place, hit, 1.0)),
            }
        }
        if count == 0.0 {
            return Score { loss: 0.0, right: Some(1.0), labels: vec![] };
        }
        let share = |(place, hits, all): (usize, f64, f64)| (place, hits / all);
        Score {
            loss: loss / count,
            right: Some(right / count),
            labels: labels.into_iter().map(share).collect(),
        }
    }

    fn meter(&self, width: usize) -> Box<dyn Meter> {
        Box::new(Gathered { loss: 0.0, confusion: Confusion::new(width) })
    }

    fn answer(&self, given: &Given<'_>, _top: usize) -> Answer {
        let best = |at: usize| {
            let probabilities = softmax(&row(given, at));
            let place = argmax(&probabilities).unwrap_or(0);
            (given.label(place), probabilities.get(place).copied().unwrap_or(0.0))
        };
        let mut lines = vec![];
        let tokens: Vec<Value> = match given.sentence {
            Some((text, words)) => words
                .words
                .iter()
                .map(|word| {
                    let (label, p) = best(word.token as usize);
                    let text = word.text(text);
                    lines.push(format!("{:5.1} %  {label}  {text}", 100.0 * p));
                    json!({"text": text, "start": word.start, "end": word.end,
                    "label": label, "probability": p})
                })
                .collect(),
            None => (0..given.output.len() / given.labels.len().max(1))
                .map(|at| {
                    let (label, p) = best(at);
                    lines.push(format!("{:5.1} %  {label}  token {at}", 100.0 * p));
                    json!({"label": label, "probability": p})
                })
                .collect(),
        };
        Answer { json: json!({"tokens": tokens}), lines }
    }

    /// What was answered, one label a word, against tags; or spans against spans.
    fn right(&self, row: &Row<'_>, predicted: &Value) -> Option<bool> {
        predicted.as_array()?;
        Some(row.get("tags").or(row.get("spans"))? == predicted)
    }

    fn said(&self, answer: &Value) -> Option<String> {
        let word = |token: &Value| {
            let label = token["label"].as_str().filter(|label| *label != OUTSIDE)?;
            Some(format!("{}: {label}", token["text"].as_str()?))
        };
        let words: Vec<String> = answer["tokens"].as_array()?.iter().filter_map(word).collect();
        Some(words.join(", "))
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object", "required": ["tokens"],
            "description": "tokens: a label for each word; start and end count characters",
            "properties": {"tokens": {"type": "array", "items": {
                "type": "object", "required": ["label", "probability"],
                "properties": {
                    "text": {"type": "string"}, "start": {"type": "integer"},
                    "end": {"type": "integer"}, "label": {"type": "string"},
                    "probability": {"type": "number"}
                }
            }}}
        })
    }
}

fn name(text: &str) -> RoughName {
    RoughName { text: text.into(), scalar: false }
}

/// Words within a span have its label, all others [`OUTSIDE`], which an empty span says.
fn spans(row: &Row<'_>) -> Result<RoughLabel> {
    let wrong = || Error::bad_input("field 'spans' is no list of {start, end, label}");
    let items = row.get("spans").and_then(Value::as_array).ok_or_else(wrong)?;
    let mut rough =
        RoughLabel { names: vec![name(OUTSIDE)], spans: vec![[0, 0]], ..RoughLabel::default() };
    for item in items {
        let place =
            |key: &str| item.get(key).and_then(Value::as_u64).and_then(|v| u32::try_from(v).ok());
        let label = item.get("label").and_then(Value::as_str);
        let (Some(start), Some(end), Some(label)) = (place("start"), place("end"), label) else {
            return Err(wrong());
        };
        if end <= start {
            return Err(Error::bad_input(format!(
                "the span of '{label}' ends at {end}, not after {start}"
            )));
        }
        rough.names.push(name(label));
        rough.spans.push([start, end]);
    }
    Ok(rough)
}

/// A number for each place of an array; one below 0 (PyTorch's -100) is no label.
fn places(row: &Row<'_>) -> Result<RoughLabel> {
    let wrong = || Error::bad_input("label is no list of whole numbers, one for each place");
    let items = row.get("label").and_then(Value::as_array).ok_or_else(wrong)?;
    let mut rough = RoughLabel::default();
    for (at, item) in (0..).zip(items) {
        let number = item.as_i64().ok_or_else(wrong)?;
        if number >= 0 {
            rough.names.push(RoughName { text: number.to_string(), scalar: true });
            rough.spans.push([at, at + 1]);
        }
    }
    Ok(rough)
}

/// The tokens that have a label, with its place.
fn units(marks: &[Mark], sentence: Sentence<'_>) -> Vec<(usize, usize)> {
    let Some(Words { words, .. }) = sentence else {
        return marks.iter().map(|mark| (mark.start as usize, mark.label)).collect();
    };
    let outside = marks.iter().find(|mark| mark.start == mark.end).map(|mark| mark.label);
    let label = |word: &WordAt| match outside {
        // What a span covers has its label, be it one word or several.
        Some(outside) => {
            let covers = |mark: &&Mark| mark.start <= word.start && word.start < mark.end;
            Some(marks.iter().find(covers).map_or(outside, |mark| mark.label))
        }
        // A row's token may be several words to the tokenizer: the first has its tag.
        None => marks.iter().find(|mark| mark.start == word.start).map(|mark| mark.label),
    };
    words.iter().filter_map(|word| Some((word.token as usize, label(word)?))).collect()
}

/// Those of a label whose token has an output.
fn labelled(label: &Label, given: &Given<'_>) -> Vec<(usize, usize)> {
    let Label::Marks(marks) = label else { return vec![] };
    let mut units = units(marks, given.sentence.map(|(_, words)| words));
    let width = given.labels.len().max(1);
    if given.output.len() > width {
        units.retain(|(at, _)| (at + 1) * width <= given.output.len());
    }
    units
}

/// The logits of one token; the same for all where there is one row alone.
fn row(given: &Given<'_>, at: usize) -> Vec<f32> {
    let width = given.labels.len();
    let part = match given.output.len() == width {
        true => given.output,
        false => given.output.get(at * width..(at + 1) * width).unwrap_or_default(),
    };
    Given { output: part, ..*given }.logits()
}

struct Gathered {
    loss: f64,
    confusion: Confusion,
}

impl Meter for Gathered {
    fn add(&mut self, label: &Label, given: &Given<'_>) -> Result<()> {
        if !matches!(label, Label::Marks(_)) {
            return Err(Error::mismatch("samples have one label, the head answers for each word"));
        }
        for (at, place) in labelled(label, given) {
            let logits = row(given, at);
            self.loss += entropy(&logits, place);
            self.confusion.add(place, argmax(&logits).unwrap_or(0))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Measured {
        let Gathered { loss, confusion } = *self;
        Measured::of_classes(loss, confusion)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn fields(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    /// "New York's" as a tokenizer cuts it: new, york, ', s, with a special token at both ends and
    /// york in two tokens.
    fn words() -> Words {
        let at = |token, start, end| WordAt { token, start, end };
        Words { tokens: 7, words: vec![at(1, 0, 3), at(2, 4, 8), at(4, 8, 9), at(5, 9, 10)] }
    }

    fn settled(row: &Map<String, Value>, places: &[usize]) -> Label {
        let rough = Tokens.label(&Row::typed(row)).unwrap();
        assert_eq!(rough.names.len(), places.len());
        let settled = Rough { places: places.to_vec(), spans: rough.spans, ..Rough::default() };
        Tokens.settle(settled).unwrap()
    }

    #[test]
    fn a_rows_token_labels_the_first_of_its_words_alone() {
        let row = fields(r#"{"tokens": ["New", "York's"], "tags": ["B", "I"]}"#);
        assert_eq!(Tokens.text(&Row::typed(&row)).unwrap().unwrap(), "New York's");
        let label = settled(&row, &[0, 1]);
        let target = Tokens.target(&label, 2, Some(&words())).unwrap();
        let want = [0., 0., 1., 0., 0., 1., 0., 0., 0., 0., 0., 0., 0., 0.];
        assert_eq!(target, want);
        assert_eq!(Tokens.counted(&target, 2), 2);
    }

    #[test]
    fn a_span_labels_all_its_words_and_the_others_are_outside() {
        let row =
            fields(r#"{"text": "New York's", "spans": [{"start": 0, "end": 8, "label": "L"}]}"#);
        let label = settled(&row, &[1, 0]);
        let Label::Marks(marks) = &label else { panic!() };
        assert_eq!(units(marks, Some(&words())), [(1, 0), (2, 0), (4, 1), (5, 1)]);
        let bad = fields(r#"{"spans": [{"start": 3, "end": 3, "label": "L"}]}"#);
        assert!(Tokens.label(&Row::typed(&bad)).is_err());
        let bad = fields(r#"{"tokens": ["a"], "tags": []}"#);
        assert!(Tokens.label(&Row::typed(&bad)).unwrap_err().message().contains("1 tokens have 0"));
    }

    #[test]
    fn numbers_of_an_array_are_labels_of_its_places_and_negative_ones_none() {
        let label = settled(&fields(r#"{"label": [2, -100, 0]}"#), &[1, 0]);
        let target = Tokens.target(&label, 2, None).unwrap();
        assert_eq!(target, [0., 1., 0., 0., 1., 0.]);
    }

    /// Of the labelled words the first is right and the second wrong: accuracy 1/2, F1 of 0 is 2/3, of
    /// 1 nothing: macro 1/3, as scikit-learn's over [0, 1] against [0, 0].
    #[test]
    fn words_are_measured_by_their_first_tokens() {
        let label =
            settled(&fields(r#"{"tokens": ["New", "York's"], "tags": ["B", "I"]}"#), &[0, 1]);
        let labels = ["B", "I"].map(String::from);
        let (mut output, words) = (vec![0.0; 14], words());
        (output[2], output[4]) = (3.0, 3.0);
        let given = Given::plain(&output, &labels);
        let given = Given { sentence: Some(("New York's", &words)), ..given };
        let mut meter = Tokens.meter(2);
        meter.add(&label, &given).unwrap();
        let found = meter.finish().metrics;
        assert_eq!(found.get("accuracy"), Some(0.5));
        assert!((found.get("macro_f1").unwrap() - 1.0 / 3.0).abs() < 1e-6);
        let score = Tokens.score(&label, &given);
        assert_eq!((score.right, &score.labels[..]), (Some(0.5), &[(0, 1.0), (1, 0.0)][..]));
        let said = Tokens.answer(&given, 5).json;
        assert_eq!(said["tokens"][1]["text"], "York");
        assert_eq!(
            (&said["tokens"][0]["label"], &said["tokens"][3]["end"]),
            (&json!("B"), &json!(10))
        );
        // Who always says the same says it of every word.
        let constant = Given { output: &[1.0, 0.0], ..given };
        assert_eq!(Tokens.score(&label, &constant).right, Some(0.5));
    }
}
