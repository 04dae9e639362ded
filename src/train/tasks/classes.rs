//! `classes`: one label of several. Cross-entropy, softmax, accuracy and macro-F1.

use super::UNKNOWN;
use super::answer::{Answer, Given, Measured, Meter, Score};
use super::rules::{ByHand, Sentence, TaskRules};
use crate::error::{Error, Result};
use crate::runtime::{argmax, softmax, top_k};
use crate::train::data::{Label, Rough, RoughLabel, Row, Seen};
use crate::train::instant::Form;
use crate::train::loss::{Loss, cross_entropy, dense};
use crate::train::metrics::{Confusion, LEAST_PROBABILITY, entropy, frequencies};
use serde_json::{Value, json};
use tract_core::internal::{OutletId, Tensor, TypedModel};

/// See the module.
pub(super) struct Classes;

impl TaskRules for Classes {
    fn name(&self) -> &'static str {
        "classes"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["label"]
    }

    fn field_schema(&self, _: &str) -> Value {
        json!({"type": "string"})
    }

    fn reads(&self, row: &Row<'_>) -> bool {
        row.get("label").is_some()
    }

    fn label(&self, row: &Row<'_>) -> Result<RoughLabel> {
        row.scalar_or_numbers("label")
    }

    /// pandas writes whole labels as 0.0, 1.0, ... as soon as one row lacks its label.
    fn claims(&self, seen: &Seen<'_>) -> Option<String> {
        (seen.words == 0).then(|| {
            format!(
                "its labels are {} different whole numbers; --task numbers makes values of them",
                seen.distinct
            )
        })
    }

    fn settle(&self, rough: Rough<'_>) -> Result<Label> {
        match rough.places.first() {
            Some(place) => Ok(Label::Class(*place)),
            None => Err(Error::bad_input("label is a list of numbers, expected a name")),
        }
    }

    fn group(&self, label: &Label) -> usize {
        class(label).unwrap_or(0)
    }

    fn closed_form(&self) -> Option<Form> {
        Some(Form::OneOf)
    }

    fn loss(&self, model: &mut TypedModel, output: OutletId, _: &[String]) -> Result<Loss> {
        cross_entropy(model, output)
    }

    fn target(&self, label: &Label, width: usize, _: Sentence<'_>) -> Result<Vec<f32>> {
        let class = class(label).ok_or_else(|| {
            Error::usage("labels are numbers, 'classes' learns names")
                .hint("the task 'numbers' learns numbers")
        })?;
        let mut target = vec![0f32; width];
        *target
            .get_mut(class)
            .ok_or_else(|| Error::usage(format!("class {class} is not one of {width}")))? = 1.0;
        Ok(target)
    }

    fn tensors(
        &self,
        rows: &[Option<Vec<f32>>],
        shape: &[usize],
        _: Option<&[bool]>,
    ) -> Result<Vec<Tensor>> {
        Ok(vec![dense(rows, shape, None)?])
    }

    fn before(
        &self,
        target: &[f32],
        output: &[f32],
        places: &[usize],
        width: usize,
    ) -> Option<Vec<f32>> {
        let mut row = vec![0f32; width];
        for (&at, p) in places.iter().zip(softmax(output)) {
            *row.get_mut(at)? = p;
        }
        let right = argmax(&row) == argmax(target);
        (right && row.iter().all(|p| p.is_finite())).then_some(row)
    }

    /// Always the most frequent label.
    fn constant(&self, targets: &[Vec<f32>], width: usize) -> Vec<f32> {
        frequencies(targets, width)
            .into_iter()
            .map(|share| share.max(LEAST_PROBABILITY).ln() as f32)
            .collect()
    }

    fn score(&self, label: &Label, given: &Given<'_>) -> Score {
        let class = class(label).unwrap_or(usize::MAX);
        let logits = given.logits();
        let p = softmax(&logits).get(class).copied().map_or(0.0, f64::from);
        let right = f64::from(u8::from(argmax(&logits) == Some(class)));
        let loss = -p.max(LEAST_PROBABILITY).ln();
        Score { loss, right: Some(right), labels: vec![(class, right)] }
    }

    fn meter(&self, width: usize) -> Box<dyn Meter> {
        Box::new(Gathered { loss: 0.0, confusion: Confusion::new(width) })
    }

    fn answer(&self, given: &Given<'_>, top: usize) -> Answer {
        let probabilities = softmax(&given.logits());
        let ranked = top_k(&probabilities, top.max(1));
        let best = ranked.first().map(|(place, _)| given.label(*place));
        let probability = ranked.first().map(|(_, p)| *p);
        let ranked: Vec<(String, f32)> =
            ranked.into_iter().take(top).map(|(place, p)| (given.label(place), p)).collect();
        let line = |(label, p): &(String, f32)| format!("{:5.1} %  {label}", 100.0 * p);
        let mut lines: Vec<String> = ranked.iter().map(line).collect();
        let known = given.known();
        if known == Some(false) {
            lines.insert(0, UNKNOWN.into());
        }
        let best = best.filter(|_| known != Some(false) || !given.rejects);
        let of = |(label, p): &(String, f32)| json!({"label": label, "probability": p});
        let top: Vec<Value> = ranked.iter().map(of).collect();
        let mut json = json!({
            "label": best,
            "probability": probability,
            "top": top,
        });
        if let (Some(known), Some((likeness, least))) = (known, given.likeness) {
            json["known"] = json!(known);
            // Above 0 it is known.
            json["likeness"] = json!(likeness - least);
        }
        Answer { json, lines }
    }

    fn right(&self, row: &Row<'_>, predicted: &Value) -> Option<bool> {
        Some(row.get("label")?.as_str()? == predicted.as_str()?)
    }

    fn by_hand(&self) -> Option<(&'static str, ByHand)> {
        Some(("label", ByHand::Name))
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object", "required": ["label", "top"],
            "description": "classes: the likeliest label, and the likeliest ones in order",
            "properties": {
                "label": {
                    "type": ["string", "null"],
                    "description": "null where the input is unknown and the request says 'reject'"
                },
                "probability": {"type": ["number", "null"]},
                "known": {
                    "type": "boolean",
                    "description": "whether the input is like what was learned"
                },
                "likeness": {"type": "number", "description": "above 0 it is known"},
                "top": {"type": "array", "items": {
                    "type": "object", "required": ["label", "probability"],
                    "properties": {
                        "label": {"type": "string"}, "probability": {"type": "number"}
                    }
                }}
            }
        })
    }
}

fn class(label: &Label) -> Option<usize> {
    match label {
        Label::Class(class) => Some(*class),
        _ => None,
    }
}

struct Gathered {
    loss: f64,
    confusion: Confusion,
}

impl Meter for Gathered {
    fn add(&mut self, label: &Label, given: &Given<'_>) -> Result<()> {
        let class = class(label)
            .ok_or_else(|| Error::mismatch("samples have numbers, the head answers classes"))?;
        let logits = given.logits();
        self.loss += entropy(&logits, class);
        self.confusion.add(class, argmax(&logits).unwrap_or(0))
    }

    fn finish(self: Box<Self>) -> Measured {
        let Gathered { loss, confusion } = *self;
        Measured::of_classes(loss, confusion)
    }
}
