//! What every task says of itself.

use super::answer::{Answer, Given, Meter, Score};
use crate::error::{Error, Result};
#[cfg(feature = "text")]
use crate::runtime::Generator;
use crate::runtime::Words;
use crate::runtime::text::Tokens;
use crate::train::data::{Dataset, Label, Rough, RoughLabel, Row, Seen};
use crate::train::instant::Form;
use crate::train::loss::Loss;
use serde_json::{Map, Value};
use tract_core::internal::{OutletId, Tensor, TypedModel};

/// A sentence's tokens as a task sees them, where it asks for them.
pub(crate) type Sentence<'a> = Option<&'a Words>;

/// Of a label one that names what the base's own output has.
pub(crate) type Speller<'a> = Box<dyn Fn(&Label) -> Result<Label> + 'a>;

/// How people say what the right answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByHand {
    /// One name.
    Name,
    /// Any number of names.
    Names,
    /// A line that is typed: a text, numbers.
    Line,
    /// A text of any number of lines, whose blanks count.
    Text,
}

/// A task's rules. What is called an output are the raw values of the head (or of the base's own
/// output) for one sample: C of them, or C for each token that counts, row by row.
pub(crate) trait TaskRules: Sync {
    /// Its name on the command line, in files and answers.
    fn name(&self) -> &'static str;

    /// The fields of a row that tell the label.
    fn fields(&self) -> &'static [&'static str];

    /// The JSON schema of one of them.
    fn field_schema(&self, field: &str) -> Value;

    /// Whether a row has what it reads.
    fn reads(&self, row: &Row<'_>) -> bool;

    /// The same where the task was asked for by name.
    fn reads_asked(&self, row: &Row<'_>) -> bool {
        self.reads(row)
    }

    /// The sentence of a row that has no field `text`.
    fn text(&self, _row: &Row<'_>) -> Result<Option<String>> {
        Ok(None)
    }

    /// The label of a row.
    fn label(&self, row: &Row<'_>) -> Result<RoughLabel>;

    /// The fields of a row that are kept for its label, in one form for all that say the same.
    fn stored(&self, row: &Row<'_>) -> Map<String, Value> {
        let kept = |field: &&str| Some((field.to_string(), row.get(field)?.clone()));
        self.fields().iter().filter_map(kept).collect()
    }

    /// A text that is kept and the fields that are kept for its label as people sent them, where that is
    /// another form.
    fn shown(&self, _text: &str, _stored: &Map<String, Value>) -> Option<[Value; 2]> {
        None
    }

    /// Why the labels of a whole file are its own, where nobody named a task.
    fn claims(&self, _seen: &Seen<'_>) -> Option<String> {
        None
    }

    /// Whether labels are names, which all samples of a data set share.
    fn has_names(&self) -> bool {
        !self.own_output()
    }

    /// The label, once the names of the whole file are known.
    fn settle(&self, rough: Rough<'_>) -> Result<Label>;

    /// Names of the head's outputs for `data`; `known` are those of the generation before.
    fn outputs(&self, data: &Dataset, known: &[String]) -> Vec<String> {
        if self.own_output() {
            return vec![];
        }
        let new = data.labels.iter().filter(|label| !known.contains(label));
        known.iter().chain(new).cloned().collect()
    }

    /// Whether the answer is one for each token or step, not one for each sample.
    fn per_token(&self) -> bool {
        self.own_output()
    }

    /// Whether what is learned is the base's own output: there is no head.
    fn own_output(&self) -> bool {
        false
    }

    /// Whether [`TaskRules::encode`] makes tokens and labels of texts.
    fn learns_texts(&self) -> bool {
        false
    }

    /// Whether an answer is a text that a decoder writes behind an encoder, which no run of one graph gives.
    fn writes(&self) -> bool {
        false
    }

    /// Whether an answer to a text is what the base writes behind it.
    fn completes(&self) -> bool {
        false
    }

    /// Whether such labels are what a decoder writes, where the base has one behind an encoder.
    fn could_be_written(&self) -> bool {
        false
    }

    /// The tokens of a text, `most` of them, and the label of these, where [`TaskRules::learns_texts`].
    #[cfg(feature = "text")]
    fn encode(
        &self,
        _text: &str,
        _label: &Label,
        _generator: &Generator,
        _most: usize,
    ) -> Result<(Tokens, Label)> {
        Err(Error::failed("only a language model's texts are encoded by their task"))
    }

    /// What makes of a label one that says which of the names that the base has for its own output it
    /// means, where [`TaskRules::own_output`].
    fn speller<'a>(&self, _names: &'a [String]) -> Result<Speller<'a>> {
        Ok(Box::new(|label| Ok(label.clone())))
    }

    /// An error for a label that no output of so many steps can say.
    fn fits(&self, _label: &Label, _steps: usize) -> Result<()> {
        Ok(())
    }

    /// Whether it must know where in a sentence each token stands.
    fn needs_words(&self) -> bool {
        false
    }

    /// What samples share of which each group is held out in its share.
    fn group(&self, _label: &Label) -> usize {
        0
    }

    /// What the outputs of its instant head are; `None`: it has none.
    fn closed_form(&self) -> Option<Form> {
        None
    }

    /// Wires the loss of `output` (B, C) or (B, T, C); `names` are those that the base has for its own.
    fn loss(&self, model: &mut TypedModel, output: OutletId, names: &[String]) -> Result<Loss>;

    /// What the loss compares a sample's output with.
    fn target(&self, label: &Label, width: usize, sentence: Sentence<'_>) -> Result<Vec<f32>>;

    /// How many answers of a target the mean loss counts.
    fn counted(&self, _target: &[f32], _width: usize) -> usize {
        1
    }

    /// The loss's inputs, [`Loss::targets`], for rows of `shape`, that of the output. `None`: a row
    /// that only fills up the batch. `kept`: of outputs (B, T, C), which tokens count.
    fn tensors(
        &self,
        rows: &[Option<Vec<f32>>],
        shape: &[usize],
        kept: Option<&[bool]>,
    ) -> Result<Vec<Tensor>>;

    /// Whether [`TaskRules::before`] has anything to say.
    fn has_before(&self) -> bool {
        true
    }

    /// What the generation before answered, in the form of `target`, where it was right; its outputs
    /// stand for the places `places` among `width` ones. `None`: the label alone teaches.
    fn before(
        &self,
        _target: &[f32],
        _output: &[f32],
        _places: &[usize],
        _width: usize,
    ) -> Option<Vec<f32>> {
        None
    }

    /// The output that serves best if every sample, or every token, gets the same: what anything
    /// learned must beat. `targets` are those of the samples trained on.
    fn constant(&self, targets: &[Vec<f32>], width: usize) -> Vec<f32>;

    /// What one answer is worth. A place that the answerer doesn't know is beyond its outputs.
    fn score(&self, label: &Label, given: &Given<'_>) -> Score;

    /// What the mean of [`Score::right`] is called.
    fn score_name(&self) -> &'static str {
        "accuracy"
    }

    /// Measures many answers.
    fn meter(&self, width: usize) -> Box<dyn Meter>;

    /// The thresholds with which answers to these samples are best; none where it has none.
    fn thresholds(&self, _rows: &[(&Label, &[f32])], _width: usize) -> Vec<f32> {
        vec![]
    }

    /// Whether [`TaskRules::thresholds`] has any.
    fn has_thresholds(&self) -> bool {
        false
    }

    /// What is said for an output; at most `top` labels where labels are ranked.
    fn answer(&self, given: &Given<'_>, top: usize) -> Answer;

    /// Whether what was answered (`predicted`, as feedback tells it) is what the row says.
    fn right(&self, row: &Row<'_>, predicted: &Value) -> Option<bool>;

    /// The field that answers and labels have in common, and how people fill it in; none: they can't.
    fn by_hand(&self) -> Option<(&'static str, ByHand)> {
        None
    }

    /// What was typed for the field of [`TaskRules::by_hand`], where that is [`ByHand::Line`] or [`ByHand::Text`].
    fn typed(&self, line: &str, _answered: &Value) -> Result<Value> {
        Ok(line.trim().into())
    }

    /// An answer in a few words; `None`: it has no short form.
    fn said(&self, answer: &Value) -> Option<String> {
        match answer.get(self.by_hand()?.0)? {
            Value::String(text) => Some(text.clone()),
            Value::Array(all) => {
                let word = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
                Some(all.iter().map(word).collect::<Vec<String>>().join(", "))
            }
            _ => None,
        }
    }

    /// The JSON schema of an answer.
    fn schema(&self) -> Value;
}
