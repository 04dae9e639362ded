//! `numbers`: values to meet, one or several a sample. Mean squared error.

use super::answer::{Answer, Given, Measured, Meter, Metric, Metrics, Score};
use super::rules::{ByHand, Sentence, TaskRules};
use crate::error::{Error, Result};
use crate::train::data::{Dataset, Label, Rough, RoughLabel, Row, Seen};
use crate::train::instant::Form;
use crate::train::loss::{Loss, mean_of_rows, row_targets};
use crate::train::metrics::{frequencies, r2};
use serde_json::{Value, json};
use tract_core::internal::{OutletId, Tensor, TypedModel};
use tract_core::ops::math;

/// See the module.
pub(super) struct Numbers;

/// Whole labels of so many different values at most may be classes; of more they are values.
const MOST_CLASSES: usize = 64;

impl TaskRules for Numbers {
    fn name(&self) -> &'static str {
        "numbers"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["label", "values"]
    }

    fn field_schema(&self, _: &str) -> Value {
        json!({"type": "array", "items": {"type": "number"}})
    }

    fn reads(&self, row: &Row<'_>) -> bool {
        row.get("label").is_some() != row.get("values").is_some()
    }

    fn label(&self, row: &Row<'_>) -> Result<RoughLabel> {
        let field = if row.get("values").is_some() { "values" } else { "label" };
        let rough = row.scalar_or_numbers(field)?;
        match rough.names.first() {
            Some(name) => {
                Ok(RoughLabel { values: vec![number(&name.text)?], ..Default::default() })
            }
            None => Ok(rough),
        }
    }

    fn claims(&self, seen: &Seen<'_>) -> Option<String> {
        if seen.lists > 0 {
            return Some("its labels are lists of numbers".into());
        }
        if let Some(example) = seen.fraction {
            return Some(format!("its labels are numbers with a fraction, such as {example}"));
        }
        let many = seen.distinct > MOST_CLASSES || 2 * seen.distinct > seen.rows;
        (seen.words == 0 && seen.whole > 0 && many).then(|| {
            let distinct = seen.distinct;
            format!("its labels are {distinct} different whole numbers written with a point")
        })
    }

    fn has_names(&self) -> bool {
        false
    }

    fn settle(&self, rough: Rough<'_>) -> Result<Label> {
        match rough.names.first() {
            Some(name) => Ok(Label::Values(vec![number(name)?])),
            None => Ok(Label::Values(rough.values)),
        }
    }

    fn outputs(&self, data: &Dataset, _: &[String]) -> Vec<String> {
        let width = data.label_width();
        let name = |i| if width == 1 { "value".to_string() } else { format!("value_{i}") };
        (0..width).map(name).collect()
    }

    fn closed_form(&self) -> Option<Form> {
        Some(Form::Values)
    }

    fn loss(&self, model: &mut TypedModel, output: OutletId, _: &[String]) -> Result<Loss> {
        mean_squared_error(model, output)
    }

    fn target(&self, label: &Label, width: usize, _: Sentence<'_>) -> Result<Vec<f32>> {
        let values = values(label).ok_or_else(|| {
            Error::usage("labels are names, 'numbers' learns numbers")
                .hint("the task 'classes' learns names")
        })?;
        match values.len() == width {
            true => Ok(values.to_vec()),
            false => {
                Err(Error::usage(format!("{} values for a head of {width} outputs", values.len())))
            }
        }
    }

    fn tensors(
        &self,
        rows: &[Option<Vec<f32>>],
        shape: &[usize],
        _: Option<&[bool]>,
    ) -> Result<Vec<Tensor>> {
        row_targets(rows, shape)
    }

    /// They are learned from their labels alone.
    fn has_before(&self) -> bool {
        false
    }

    /// Always the mean.
    fn constant(&self, targets: &[Vec<f32>], width: usize) -> Vec<f32> {
        frequencies(targets, width).into_iter().map(|mean| mean as f32).collect()
    }

    fn score(&self, label: &Label, given: &Given<'_>) -> Score {
        let loss = values(label).and_then(|values| squared_error(values, given.output));
        Score { loss: loss.unwrap_or(f64::INFINITY), right: None, labels: vec![] }
    }

    fn meter(&self, width: usize) -> Box<dyn Meter> {
        Box::new(Gathered { width, truth: vec![], answered: vec![] })
    }

    fn answer(&self, given: &Given<'_>, _top: usize) -> Answer {
        let line = |(place, value): (usize, &f32)| format!("{value}  {}", given.label(place));
        Answer {
            json: json!({"values": given.output}),
            lines: given.output.iter().enumerate().map(line).collect(),
        }
    }

    /// Nobody says how near is right.
    fn right(&self, _: &Row<'_>, _: &Value) -> Option<bool> {
        None
    }

    fn by_hand(&self) -> Option<(&'static str, ByHand)> {
        Some(("values", ByHand::Line))
    }

    /// As many numbers as were answered, with spaces or semicolons between.
    fn typed(&self, line: &str, answered: &Value) -> Result<Value> {
        let parts = line.split(|c: char| c.is_whitespace() || c == ';');
        let parts = parts.map(|part| part.trim_end_matches(',')).filter(|part| !part.is_empty());
        let values = parts.map(number).collect::<Result<Vec<f32>>>()?;
        let expected = answered["values"].as_array().map_or(values.len(), Vec::len);
        if values.is_empty() || values.len() != expected {
            return Err(Error::bad_input(format!(
                "expected {}, with spaces between, found {}",
                match expected {
                    0 | 1 => "1 number".into(),
                    n => format!("{n} numbers"),
                },
                values.len()
            )));
        }
        Ok(json!(values))
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object", "required": ["values"], "description": "numbers",
            "properties": {"values": {"type": "array", "items": {"type": "number"}}}
        })
    }
}

fn values(label: &Label) -> Option<&[f32]> {
    match label {
        Label::Values(values) => Some(values),
        _ => None,
    }
}

fn number(text: &str) -> Result<f32> {
    let parsed = text.parse::<f32>().ok().filter(|v| v.is_finite());
    parsed.ok_or_else(|| Error::bad_input(format!("label '{text}' is no finite number")))
}

/// Mean over the values; `None` where there are not as many of both.
fn squared_error(truth: &[f32], answered: &[f32]) -> Option<f64> {
    let squares = truth.iter().zip(answered).map(|(t, a)| (f64::from(*t) - f64::from(*a)).powi(2));
    (truth.len() == answered.len()).then(|| squares.sum::<f64>() / truth.len().max(1) as f64)
}

/// Σ weights · mean over the row of (output - targets)² / weight_sum, of an output (B, ..).
///
/// The targets have its shape, the weights, one a row, are (B). With weights 1 and `weight_sum` B this
/// is PyTorch's `mse_loss`.
fn mean_squared_error(model: &mut TypedModel, output: OutletId) -> Result<Loss> {
    mean_of_rows(model, output, |w, targets| {
        let difference = w.sub(output, targets)?;
        w.unary(math::square(), difference)
    })
}

struct Gathered {
    width: usize,
    truth: Vec<f32>,
    answered: Vec<f32>,
}

impl Meter for Gathered {
    fn add(&mut self, label: &Label, given: &Given<'_>) -> Result<()> {
        let values = values(label)
            .ok_or_else(|| Error::mismatch("samples have labels, the head answers numbers"))?;
        if values.len() != given.output.len() {
            return Err(Error::mismatch(format!(
                "samples have {} values, the head gives {}",
                values.len(),
                given.output.len()
            )));
        }
        self.truth.extend(values);
        self.answered.extend(given.output);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Measured {
        let error = squared_error(&self.truth, &self.answered).unwrap_or(0.0);
        let pairs = || self.truth.iter().zip(&self.answered);
        let absolute: f64 = pairs().map(|(t, a)| f64::from((t - a).abs())).sum();
        let mut metrics = vec![
            Metric::lower("loss", error),
            Metric::lower("mse", error),
            Metric::lower("mae", absolute / self.truth.len().max(1) as f64),
        ];
        // Of one value: several have no common spread.
        if let (1, Ok(r2)) = (self.width, r2(&self.truth, &self.answered)) {
            metrics.push(Metric::higher("r2", r2));
        }
        Measured { metrics: Metrics(metrics), ..Measured::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::loss::testing::{differences, near, value};
    use crate::train::vjp::check::random;
    use tract_core::internal::*;

    #[test]
    fn mean_squared_error_equals_the_formula() {
        let got = value(
            mean_squared_error,
            tensor2(&[[1f32, 2.], [3., 5.]]),
            &[tensor2(&[[0f32, 2.], [1., 1.]]), tensor1(&[1f32, 0.5]), tensor0(2f32)],
        );
        near(got, (0.5 + 0.5 * 10.0) / 2.0);
    }

    #[test]
    fn gradients_agree_with_central_differences() {
        let (x, t) = (random(&[3, 4], 1), random(&[3, 4], 2));
        differences(mean_squared_error, x, &[t, random(&[3], 3), tensor0(2.5f32)]);
    }
}
