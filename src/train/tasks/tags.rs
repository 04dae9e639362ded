//! `tags`: any number of labels at once. Binary cross-entropy, a threshold a label, F1.

use super::answer::{Answer, Given, Measured, Meter, Metric, Metrics, Score};
use super::rules::{ByHand, Sentence, TaskRules};
use crate::error::{Error, Result};
use crate::runtime::{sigmoid, top_k};
use crate::train::data::{Label, Rough, RoughLabel, RoughName, Row, Seen};
use crate::train::instant::Form;
use crate::train::loss::{Loss, mean_of_rows, row_targets};
use crate::train::metrics::{LEAST_PROBABILITY, frequencies};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use tract_core::internal::{OutletId, Tensor, TypedModel};
use tract_core::ops::math;

/// See the module.
pub(super) struct Tags;

/// What stands between the labels of one cell of a `.csv` file.
const SEPARATORS: [char; 3] = ['|', ';', ','];

impl TaskRules for Tags {
    fn name(&self) -> &'static str {
        "tags"
    }

    fn fields(&self) -> &'static [&'static str] {
        &["labels", "label"]
    }

    fn field_schema(&self, _: &str) -> Value {
        json!({"type": "array", "items": {"type": "string"}})
    }

    /// A list `label` holds a 0 or 1 for each label.
    fn reads(&self, row: &Row<'_>) -> bool {
        let flags = row.get("label").is_some_and(Value::is_array);
        row.get("labels").is_some() != flags
    }

    fn label(&self, row: &Row<'_>) -> Result<RoughLabel> {
        let names: Vec<String> = match (row.get("labels"), row.get("label")) {
            (Some(Value::String(cell)), _) if !row.is_typed() => {
                let parts = cell.split(SEPARATORS).map(str::trim);
                parts.filter(|part| !part.is_empty()).map(String::from).collect()
            }
            (Some(_), _) => row.strings("labels")?.into_iter().map(String::from).collect(),
            (None, Some(Value::Array(flags))) => {
                let mut names = vec![];
                for (at, flag) in flags.iter().enumerate() {
                    match flag.as_f64() {
                        Some(0.0) => {}
                        Some(1.0) => names.push(at.to_string()),
                        _ => {
                            return Err(Error::bad_input(format!("label has {flag}, not 0 or 1")));
                        }
                    }
                }
                names
            }
            _ => {
                let other = if row.get("label").is_some() { ": 'label' holds no list" } else { "" };
                return Err(Error::bad_input(format!("no field 'labels'{other}")));
            }
        };
        let name = |text| RoughName { text, scalar: false };
        Ok(RoughLabel { names: names.into_iter().map(name).collect(), ..RoughLabel::default() })
    }

    fn stored(&self, row: &Row<'_>) -> Map<String, Value> {
        let names = self.label(row).map_or(vec![], |rough| rough.names);
        let names: BTreeSet<String> = names.into_iter().map(|name| name.text).collect();
        Map::from_iter([("labels".to_string(), names.into_iter().collect())])
    }

    fn claims(&self, seen: &Seen<'_>) -> Option<String> {
        (seen.lists == 0).then(|| "its rows have the field 'labels'".into())
    }

    fn settle(&self, rough: Rough<'_>) -> Result<Label> {
        let places: BTreeSet<usize> = rough.places.into_iter().collect();
        Ok(Label::Names(places.into_iter().collect()))
    }

    fn group(&self, label: &Label) -> usize {
        places(label).first().map_or(0, |place| 1 + place)
    }

    fn closed_form(&self) -> Option<Form> {
        Some(Form::Each)
    }

    fn loss(&self, model: &mut TypedModel, output: OutletId, _: &[String]) -> Result<Loss> {
        binary_cross_entropy(model, output)
    }

    fn target(&self, label: &Label, width: usize, _: Sentence<'_>) -> Result<Vec<f32>> {
        let Label::Names(places) = label else {
            return Err(Error::usage("'tags' learns several labels at once, found one label"));
        };
        let mut target = vec![0f32; width];
        for place in places {
            *target
                .get_mut(*place)
                .ok_or_else(|| Error::usage(format!("label {place} is not one of {width}")))? = 1.0;
        }
        Ok(target)
    }

    fn tensors(
        &self,
        rows: &[Option<Vec<f32>>],
        shape: &[usize],
        _: Option<&[bool]>,
    ) -> Result<Vec<Tensor>> {
        row_targets(rows, shape)
    }

    /// Label by label: where it was wrong, and of labels that it didn't know, the label teaches.
    fn before(
        &self,
        target: &[f32],
        output: &[f32],
        places: &[usize],
        _: usize,
    ) -> Option<Vec<f32>> {
        let mut row = target.to_vec();
        for (&place, &logit) in places.iter().zip(output) {
            let (p, to) = (sigmoid(logit), row.get_mut(place)?);
            if p.is_finite() && (p > 0.5) == (*to > 0.5) {
                *to = p;
            }
        }
        Some(row)
    }

    /// Each label as likely as it is frequent.
    fn constant(&self, targets: &[Vec<f32>], width: usize) -> Vec<f32> {
        let logit = |share: f64| {
            let p = share.clamp(LEAST_PROBABILITY, 1.0 - LEAST_PROBABILITY);
            (p / (1.0 - p)).ln() as f32
        };
        frequencies(targets, width).into_iter().map(logit).collect()
    }

    /// F1 of the labels said against the right ones; 1 where there are none of both.
    fn score(&self, label: &Label, given: &Given<'_>) -> Score {
        let right = places(label);
        let probabilities = probabilities(given);
        let said: Vec<usize> = counted(given, &probabilities);
        let hits = right.iter().filter(|place| said.contains(place)).count();
        let f1 = match right.len() + said.len() {
            0 => 1.0,
            both => 2.0 * hits as f64 / both as f64,
        };
        let unknown = right.iter().filter(|place| **place >= probabilities.len()).count();
        let mut loss = -LEAST_PROBABILITY.ln() * unknown as f64;
        for (place, p) in probabilities.iter().enumerate() {
            let p = f64::from(if right.contains(&place) { *p } else { 1.0 - *p });
            loss -= p.max(LEAST_PROBABILITY).ln();
        }
        let hit = |place: &usize| (*place, f64::from(u8::from(said.contains(place))));
        Score {
            loss: loss / (probabilities.len() + unknown).max(1) as f64,
            right: Some(f1),
            labels: right.iter().map(hit).collect(),
        }
    }

    fn score_name(&self) -> &'static str {
        "F1"
    }

    fn meter(&self, width: usize) -> Box<dyn Meter> {
        Box::new(Gathered { samples: 0, exact: 0, loss: 0.0, counts: vec![[0; 3]; width] })
    }

    fn has_thresholds(&self) -> bool {
        true
    }

    fn thresholds(&self, rows: &[(&Label, &[f32])], width: usize) -> Vec<f32> {
        let of = |place: usize| {
            let one = |(label, output): &(&Label, &[f32])| {
                let p = output.get(place).map_or(0.0, |logit| sigmoid(*logit));
                (p, places(label).contains(&place))
            };
            best_threshold(rows.iter().map(one).collect())
        };
        (0..width).map(of).collect()
    }

    fn answer(&self, given: &Given<'_>, top: usize) -> Answer {
        let probabilities = probabilities(given);
        let said = counted(given, &probabilities);
        let ranked = top_k(&probabilities, top);
        let line = |(place, p): &(usize, f32)| {
            let mark = if said.contains(place) { "" } else { "  (below its threshold)" };
            format!("{:5.1} %  {}{mark}", 100.0 * p, given.label(*place))
        };
        let lines = ranked.iter().map(line).collect();
        let of =
            |(place, p): &(usize, f32)| json!({"label": given.label(*place), "probability": p});
        let top: Vec<Value> = ranked.iter().map(of).collect();
        let labels: Vec<String> = said.iter().map(|place| given.label(*place)).collect();
        Answer { json: json!({"labels": labels, "top": top}), lines }
    }

    fn right(&self, row: &Row<'_>, predicted: &Value) -> Option<bool> {
        let said: Option<BTreeSet<&str>> =
            predicted.as_array()?.iter().map(Value::as_str).collect();
        let label = self.label(row).ok()?;
        Some(label.names.iter().map(|name| name.text.as_str()).collect::<BTreeSet<_>>() == said?)
    }

    fn by_hand(&self) -> Option<(&'static str, ByHand)> {
        Some(("labels", ByHand::Names))
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object", "required": ["labels", "top"],
            "description": "tags: the labels above their thresholds, and the likeliest ones in order",
            "properties": {
                "labels": {"type": "array", "items": {"type": "string"}},
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

fn places(label: &Label) -> &[usize] {
    match label {
        Label::Names(places) => places,
        _ => &[],
    }
}

fn probabilities(given: &Given<'_>) -> Vec<f32> {
    given.logits().into_iter().map(sigmoid).collect()
}

/// The labels that are said.
fn counted(given: &Given<'_>, probabilities: &[f32]) -> Vec<usize> {
    let said = probabilities.iter().enumerate().filter(|(at, p)| **p >= given.threshold(*at));
    said.map(|(at, _)| at).collect()
}

/// The threshold with the greatest F1 over pairs of probability and truth; of several the nearest to a
/// half, which it is too where the label never occurs.
fn best_threshold(mut pairs: Vec<(f32, bool)>) -> f32 {
    let positives = pairs.iter().filter(|(_, truth)| *truth).count();
    if positives == 0 {
        return 0.5;
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut best, mut found, mut hits) = (-1.0, 0.5f32, 0);
    for (at, (p, truth)) in pairs.iter().enumerate() {
        hits += usize::from(*truth);
        let next = pairs.get(at + 1).map_or(0.0, |(next, _)| *next);
        if next == *p {
            continue;
        }
        let f1 = 2.0 * hits as f64 / (at + 1 + positives) as f64;
        // Anything between the two says the same.
        let between = if next < 0.5 && 0.5 <= *p { 0.5 } else { (p + next) / 2.0 };
        if f1 > best || (f1 == best && (between - 0.5).abs() < (found - 0.5).abs()) {
            (best, found) = (f1, between);
        }
    }
    found
}

/// Σ weights · mean over the labels of -(t·log p + (1 - t)·log(1 - p)) / weight_sum, p the sigmoid of
/// `logits` (B, C).
///
/// The targets have its shape, the weights, one a row, are (B). With weights 1 and `weight_sum` B this
/// is PyTorch's `binary_cross_entropy_with_logits`, and as that written as max(x, 0) - x·t +
/// log(1 + exp(-|x|)), which no x overflows.
fn binary_cross_entropy(model: &mut TypedModel, logits: OutletId) -> Result<Loss> {
    mean_of_rows(model, logits, |w, targets| {
        let zero = w.scalar(0.0, logits)?;
        let positive = w.binary(math::max(), logits, zero)?;
        let product = w.mul(logits, targets)?;
        let negated = w.neg(logits)?;
        let size = w.binary(math::max(), logits, negated)?;
        let size = w.neg(size)?;
        let small = w.unary(math::exp(), size)?;
        let small = w.shift(small, 1.0)?;
        let small = w.unary(math::ln(), small)?;
        let each = w.sub(positive, product)?;
        w.add(each, small)
    })
}

/// Of each label how often it was rightly said, wrongly said, and missed.
struct Gathered {
    samples: usize,
    exact: usize,
    loss: f64,
    counts: Vec<[u64; 3]>,
}

impl Gathered {
    fn f1(&self) -> Vec<Option<f64>> {
        let f1 = |[hit, wrong, missed]: &[u64; 3]| {
            let both = 2 * hit + wrong + missed;
            (both > 0).then(|| 2.0 * *hit as f64 / both as f64)
        };
        self.counts.iter().map(f1).collect()
    }
}

impl Meter for Gathered {
    fn add(&mut self, label: &Label, given: &Given<'_>) -> Result<()> {
        let Label::Names(right) = label else {
            return Err(Error::mismatch("samples have one label, the head answers several"));
        };
        let said = counted(given, &probabilities(given));
        self.samples += 1;
        let sorted: BTreeSet<usize> = right.iter().copied().collect();
        self.exact += usize::from(said.iter().copied().eq(sorted));
        let logits = given.logits();
        let loss = |(place, x): (usize, &f32)| {
            let (x, t) = (f64::from(*x), f64::from(u8::from(right.contains(&place))));
            x.max(0.0) - x * t + (-x.abs()).exp().ln_1p()
        };
        self.loss += logits.iter().enumerate().map(loss).sum::<f64>() / logits.len().max(1) as f64;
        for (place, [hit, wrong, missed]) in self.counts.iter_mut().enumerate() {
            match (said.contains(&place), right.contains(&place)) {
                (true, true) => *hit += 1,
                (true, false) => *wrong += 1,
                (false, true) => *missed += 1,
                (false, false) => {}
            }
        }
        Ok(())
    }

    /// As scikit-learn's `f1_score` of several labels: micro over all counts, macro the mean over all
    /// labels, 0 for one that neither occurs nor is said.
    fn finish(self: Box<Self>) -> Measured {
        let all = self.counts.iter().fold([0; 3], |[a, b, c], [x, y, z]| [a + x, b + y, c + z]);
        let f1 = self.f1();
        let micro = 2.0 * all[0] as f64 / (2 * all[0] + all[1] + all[2]).max(1) as f64;
        let macro_f1 = f1.iter().map(|f| f.unwrap_or(0.0)).sum::<f64>() / f1.len().max(1) as f64;
        let of = |n: f64| n / self.samples.max(1) as f64;
        let metrics = Metrics(vec![
            Metric::lower("loss", of(self.loss)),
            Metric::higher("micro_f1", micro),
            Metric::higher("macro_f1", macro_f1),
            Metric::higher("exact", of(self.exact as f64)),
        ]);
        Measured { metrics, f1: Some(f1), confusion: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::loss::testing::{differences, near, value};
    use crate::train::vjp::check::random;
    use tract_core::internal::*;

    /// PyTorch: binary_cross_entropy_with_logits([[1, -2], [3, 0.5]], [[1, 0], [0, 1]]) is the mean of
    /// 0.313262, 0.126928, 3.048587, 0.474077.
    #[test]
    fn binary_cross_entropy_equals_the_formula_and_survives_great_logits() {
        let logits = tensor2(&[[1f32, -2.], [3., 0.5]]);
        let targets = tensor2(&[[1f32, 0.], [0., 1.]]);
        let weights = tensor1(&[1f32, 1.]);
        let got = value(binary_cross_entropy, logits, &[targets, weights, tensor0(2f32)]);
        near(got, (0.313_262 + 0.126_928 + 3.048_587 + 0.474_077) / 4.0);
        let (x, t) = (tensor2(&[[1000f32, -1000.]]), tensor2(&[[0f32, 1.]]));
        near(value(binary_cross_entropy, x, &[t, tensor1(&[1f32]), tensor0(1f32)]), 1000.0);
    }

    #[test]
    fn gradients_agree_with_central_differences() {
        let (x, t) = (random(&[3, 4], 1), random(&[3, 4], 2));
        differences(binary_cross_entropy, x, &[t, random(&[3], 3), tensor0(2.5f32)]);
    }

    /// scikit-learn 1.7: y = [[1,0,1,0],[0,1,0,0],[1,1,0,0],[0,0,0,0]], p = [[1,0,0,0],[0,1,1,0],
    /// [1,0,0,0],[0,0,1,0]]: f1_score micro 0.6, macro 5/12 = 0.416667, None [1, 2/3, 0, 0].
    #[test]
    fn f1_is_that_of_scikit_learn() {
        let truth = [&[0, 2][..], &[1], &[0, 1], &[]];
        let said = [[1, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]];
        let labels = ["a", "b", "c", "d"].map(String::from);
        let mut meter = Tags.meter(4);
        for (right, said) in truth.iter().zip(said) {
            let output = said.map(|s| if s == 1 { 2.0 } else { -2.0 });
            meter.add(&Label::Names(right.to_vec()), &Given::plain(&output, &labels)).unwrap();
        }
        let found = meter.finish();
        let metric = |name: &str| found.metrics.get(name).unwrap();
        assert!((metric("micro_f1") - 0.6).abs() < 1e-6, "{found:?}");
        assert!((metric("macro_f1") - 5.0 / 12.0).abs() < 1e-6, "{found:?}");
        assert_eq!(metric("exact"), 0.0);
        let f1 = found.f1.unwrap();
        assert_eq!((f1[0], f1[2], f1[3]), (Some(1.0), Some(0.0), None));
    }

    #[test]
    fn thresholds_are_the_best_ones_nearest_to_a_half() {
        for (pairs, want) in [
            (&[(0.9, true), (0.1, false)][..], 0.5),
            (&[(0.3, true), (0.2, true), (0.1, false)], 0.15),
            (&[(0.9, true), (0.8, false), (0.7, false)], 0.85),
            (&[(0.9, false)], 0.5),
            (&[(0.4, true), (0.4, false), (0.2, false)], 0.3),
        ] {
            near(best_threshold(pairs.to_vec()), want);
        }
    }

    #[test]
    fn an_answer_has_what_is_above_its_threshold() {
        let labels = ["a", "b", "c"].map(String::from);
        let plain = Given::plain(&[0.1, -0.1, 3.0], &labels);
        let said = |given: &Given<'_>| Tags.answer(given, 2).json["labels"].clone();
        assert_eq!(said(&plain), json!(["a", "c"]));
        assert_eq!(said(&Given { thresholds: &[0.6, 0.4, 0.5], ..plain }), json!(["b", "c"]));
        let score = Tags.score(&Label::Names(vec![0, 7]), &plain);
        // One of two right, one said beside; the unknown label counts against it.
        assert_eq!((score.right, score.labels), (Some(0.5), vec![(0, 1.0), (7, 0.0)]));
    }
}
