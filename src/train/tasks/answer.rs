//! Answers and what they are worth, whatever the task.

use crate::adapter::{Head, Target, TargetKind};
use crate::error::{Error, Result};
use crate::pack::{Base, Role};
use crate::runtime::{Prediction, Words};
use crate::train::data::Label;
use crate::train::instant::Form;
use crate::train::metrics::Confusion;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// An answer to one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// For programs: an object whose fields the task decides.
    pub json: serde_json::Value,
    /// For people.
    pub lines: Vec<String>,
}

/// The greatest [`Wanted::beam`].
pub const MAX_BEAM: usize = 100;

/// What is asked of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Labels at most, where they are ranked.
    pub top: usize,
    /// The labels that are asked about, of those that classes have; none: all of them.
    pub among: Vec<String>,
    /// What is not known gets no label, and so much at most of what was never taught passes; without it
    /// 5 % of what was learned is called unknown.
    pub reject: Option<f32>,
    /// Prefixes that a search for the likeliest text keeps; 1: the likeliest symbol at each step.
    pub beam: usize,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted { top: 5, among: vec![], reject: None, beam: 1 }
    }
}

/// How a text is asked for that a base is to write. What is not said is as
/// [`GenerateOptions`](crate::runtime) has it.
#[cfg(feature = "daemon")]
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wording {
    /// New tokens at most.
    pub tokens: Option<usize>,
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub seed: Option<u64>,
    /// Texts that end it.
    pub stop: Vec<String>,
    /// Whether it is told as it comes.
    pub stream: bool,
}

/// A measured value.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// `loss`, `accuracy`, ...
    pub name: &'static str,
    /// What was measured.
    pub value: f32,
    /// Whether more is better.
    pub higher_is_better: bool,
}

impl Metric {
    pub(crate) fn higher(name: &'static str, value: f64) -> Metric {
        Metric { name, value: value as f32, higher_is_better: true }
    }

    pub(crate) fn lower(name: &'static str, value: f64) -> Metric {
        Metric { name, value: value as f32, higher_is_better: false }
    }
}

/// Metrics in the order of their weight, `loss` first; in JSON a map of their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub Vec<Metric>);

impl Metrics {
    /// One of them.
    pub fn get(&self, name: &str) -> Option<f32> {
        self.0.iter().find(|m| m.name == name).map(|m| m.value)
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(self.0.len()))?;
        for metric in &self.0 {
            map.serialize_entry(metric.name, &metric.value)?;
        }
        map.end()
    }
}

/// What was measured of many answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Measured {
    pub metrics: Metrics,
    pub confusion: Option<Confusion>,
    /// F1 of each label, where labels have one; `None` for one that neither occurs nor is answered.
    pub f1: Option<Vec<Option<f64>>>,
}

impl Measured {
    /// Of answers that are classes: the sum of their losses, and how often which was given for which.
    pub fn of_classes(loss: f64, confusion: Confusion) -> Measured {
        let metrics = Metrics(vec![
            Metric::lower("loss", loss / confusion.total().max(1) as f64),
            Metric::higher("accuracy", confusion.accuracy()),
            Metric::higher("macro_f1", confusion.macro_f1()),
        ]);
        Measured { metrics, f1: Some(confusion.f1()), confusion: Some(confusion) }
    }
}

/// Gathers answers.
pub(crate) trait Meter {
    fn add(&mut self, label: &Label, given: &Given<'_>) -> Result<()>;
    fn finish(self: Box<Self>) -> Measured;
}

/// What one answer is worth.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Score {
    /// Bounded, so that one sample can't outweigh all others.
    pub loss: f64,
    /// How right it is, 0 to 1; `None` where there is no right and wrong.
    pub right: Option<f64>,
    /// The labels that the right answer has, each with how right the answer is there.
    pub labels: Vec<(usize, f64)>,
}

/// A raw output and what it takes to read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Given<'a> {
    pub output: &'a [f32],
    pub labels: &'a [String],
    /// Values of one answer: one a label, or of the base's own output as many as it has.
    pub width: usize,
    /// One a label, or none.
    pub thresholds: &'a [f32],
    pub temperature: f32,
    /// The sentence and its tokens, where there is one.
    pub sentence: Option<(&'a str, &'a Words)>,
    /// How like the input is to what was learned, and the least of what is known.
    pub likeness: Option<(f32, f32)>,
    /// Whether what is not known gets no label.
    pub rejects: bool,
    /// As [`Wanted::beam`].
    pub beam: usize,
}

impl<'a> Given<'a> {
    /// Without a head: as a base's own labels are read.
    pub fn plain(output: &'a [f32], labels: &'a [String]) -> Given<'a> {
        Given {
            output,
            labels,
            width: labels.len(),
            thresholds: &[],
            temperature: 1.0,
            sentence: None,
            likeness: None,
            rejects: false,
            beam: 1,
        }
    }

    /// As `head` reads it.
    pub fn of_head(output: &'a [f32], labels: &'a [String], head: Option<&'a Head>) -> Given<'a> {
        let plain = Given::plain(output, labels);
        match head {
            Some(head) => Given {
                thresholds: &head.thresholds,
                temperature: head.temperature,
                width: if head.weight.is_empty() { head.features as usize } else { labels.len() },
                ..plain
            },
            None => plain,
        }
    }

    /// The output over the temperature.
    pub fn logits(&self) -> Vec<f32> {
        let scale = if self.temperature > 0.0 { 1.0 / self.temperature } else { 1.0 };
        self.output.iter().map(|v| v * scale).collect()
    }

    /// Whether the input is like what was learned; `None` where that can't be told.
    pub fn known(&self) -> Option<bool> {
        self.likeness.map(|(likeness, least)| likeness >= least)
    }

    pub fn label(&self, place: usize) -> String {
        self.labels.get(place).cloned().unwrap_or_else(|| place.to_string())
    }

    /// Without a head that says otherwise, half.
    pub fn threshold(&self, place: usize) -> f32 {
        self.thresholds.get(place).copied().unwrap_or(0.5)
    }
}

impl super::Task {
    /// What a prediction says: `head` is the one that made it, none where the base's own labels did;
    /// `sentence` the text that was asked, with [`Preprocessor::words`](crate::runtime::Preprocessor),
    /// where the task needs it.
    ///
    /// # Errors
    /// Mismatch: a head that answers for tokens, where the task is about samples. Usage: a `reject` for
    /// what answers without having measured that; labels to choose from that it hasn't got.
    pub fn answer(
        self,
        head: Option<&Head>,
        prediction: &Prediction,
        sentence: Option<(&str, &Words)>,
        wanted: &Wanted,
    ) -> Result<Answer> {
        let (task, &Wanted { top, ref among, reject, beam }) = (self, wanted);
        let (outputs, labels) = (prediction.logits.len(), prediction.labels.len());
        if !task.rules().per_token() && outputs != labels {
            return Err(Error::mismatch(format!(
                "the head gives {outputs} values for {labels} labels: it answers for each token, the \
                task {task} for a sample"
            )));
        }
        let chosen = (!among.is_empty()).then(|| chosen(task, prediction, among)).transpose()?;
        let (logits, labels) = match &chosen {
            Some((logits, labels)) => (logits.as_slice(), labels.as_slice()),
            None => (prediction.logits.as_slice(), &*prediction.labels),
        };
        let given = Given::of_head(logits, labels, head);
        let known = head.and_then(|head| head.known.as_ref());
        let least = known.map(|known| known.threshold(reject)).transpose()?;
        if least.is_none() && reject.is_some() {
            return Err(Error::usage("what answers can't tell what it doesn't know")
                .hint("train it again: a head of classes measures that"));
        }
        let likeness = prediction.likeness.zip(least);
        let rejects = reject.is_some();
        Ok(task.rules().answer(&Given { sentence, likeness, rejects, beam, ..given }, top))
    }

    /// The task that learns such labels on this base.
    pub(crate) fn on(self, base: &Base) -> super::Task {
        match self.rules().could_be_written() && is_decoder(base) {
            true => super::Task::of_decoders(),
            false => self,
        }
    }

    /// The task of what serves: a head, or the base's own labels.
    ///
    /// # Errors
    /// A head of a task that this version doesn't know (unsupported).
    pub fn serving(head: Option<&Head>, base: &Base) -> Result<super::Task> {
        match (head, base.preprocess().problem) {
            (Some(head), _) => super::Task::of_head(&head.task),
            (None, Some(problem)) => super::Task::of_problem(problem),
            (None, None) if is_decoder(base) => Ok(super::Task::of_decoders()),
            (None, None) if is_language_model(base) => Ok(super::Task::of_texts()),
            (None, None) => Ok(super::Task::default()),
        }
    }
}

/// What a prediction says of the labels `among` alone, each once.
fn chosen(
    task: super::Task,
    prediction: &Prediction,
    among: &[String],
) -> Result<(Vec<f32>, Vec<String>)> {
    if task.rules().closed_form() != Some(Form::OneOf) {
        return Err(Error::usage(format!("the task {task} has no labels to choose from")));
    }
    let labels = &prediction.labels;
    if let Some(other) = among.iter().find(|label| !labels.contains(label)) {
        let known: Vec<&str> = labels.iter().take(20).map(String::as_str).collect();
        let more = if labels.len() > known.len() { ", ..." } else { "" };
        return Err(Error::usage(format!("'{other}' is no label of what answers"))
            .hint(format!("it has {}{more}", known.join(", "))));
    }
    let wanted = labels.iter().zip(&prediction.logits).filter(|(label, _)| among.contains(label));
    Ok(wanted.map(|(label, value)| (*value, label.clone())).unzip())
}

/// Whether a decoder stands behind the main graph, and nothing says that that has labels of its own.
fn is_decoder(base: &Base) -> bool {
    let has = |name: &str| base.graph_index(name).is_some();
    base.preprocess().labels.is_empty() && has("encoder") && has("decoder")
}

/// Whether the main graph gives logits over its vocabulary for each token, and nothing says that they are
/// labels.
fn is_language_model(base: &Base) -> bool {
    let Some(graph) = base.record().graphs.first() else { return false };
    let logits = graph.outputs.iter().find(|s| s.role == Role::Logits && s.dims.len() == 3);
    let width = logits.and_then(|s| s.dims.last()?.parse::<u32>().ok());
    let table = |t: &Target| t.kind == TargetKind::Embedding && Some(t.in_features) == width;
    base.preprocess().labels.is_empty()
        && graph.inputs.iter().any(|s| s.role == Role::Ids)
        && base.targets().iter().any(table)
}
