//! What can be learned, one file a task: the fields of a row that it reads, the loss, its targets,
//! what an answer is and what it is worth. Trainer, evaluation, gate, HTTP and command line ask the
//! task; nothing else tells one from another.
//!
//! A new task is a file here and a line in `ALL`.

mod answer;
mod classes;
mod language;
mod numbers;
mod rules;
mod tags;
mod texts;
mod tokens;
mod transcribe;
mod translate;

#[cfg(feature = "daemon")]
pub use answer::Wording;
pub use answer::{Answer, MAX_BEAM, Metric, Metrics, Wanted};
pub(crate) use answer::{Given, Score};
#[cfg(all(feature = "daemon", feature = "text"))]
pub(crate) use language::completed;
#[cfg(feature = "text")]
pub(crate) use language::conversation_tokens;
#[cfg(feature = "daemon")]
pub(crate) use language::written as conversation_text;
pub use rules::ByHand;
pub(crate) use rules::{Speller, TaskRules};
#[cfg(feature = "text")]
pub(crate) use translate::written;

use super::data::{Row, Seen};
use crate::error::{Error, Result};
use crate::pack::Problem;
#[cfg(feature = "daemon")]
use crate::runtime::Message;
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::fmt;

/// Those with fields of their own first; of several that read a row, the first that claims the file's
/// labels has them, and the last without a claim.
const ALL: &[Task] = &[
    Task(&translate::Translate),
    Task(&transcribe::Transcribe),
    Task(&language::Language),
    Task(&tokens::Tokens),
    Task(&tags::Tags),
    Task(&numbers::Numbers),
    Task(&classes::Classes),
];

/// What people read above the labels of an input that is like nothing that was learned.
pub const UNKNOWN: &str = "unknown: like nothing that was learned";

/// What is learned: a name of [`Task::names`].
#[derive(Clone, Copy)]
pub struct Task(&'static dyn TaskRules);

impl Task {
    /// The names, as `train --task` takes them.
    pub fn names() -> Vec<&'static str> {
        ALL.iter().rev().map(|task| task.name()).collect()
    }

    /// The task of this name. Errors: there is none (usage).
    pub fn parse(name: &str) -> Result<Task> {
        ALL.iter().copied().find(|task| task.name() == name).ok_or_else(|| {
            Error::usage(format!("'{name}' is no task: expected {}", Task::names().join(", ")))
        })
    }

    /// The task of an adapter's head; one that names none tells classes. Errors: a task that this
    /// version doesn't know (unsupported).
    pub fn of_head(name: &str) -> Result<Task> {
        if name.is_empty() {
            return Ok(Task::default());
        }
        Task::parse(name).map_err(|_| {
            Error::unsupported(format!("the adapter's head has the task '{name}'"))
                .hint(format!("this version knows {}", Task::names().join(", ")))
        })
    }

    /// The task of plain texts, and of bases that are language models.
    pub(crate) fn of_texts() -> Task {
        Task(&language::Language)
    }

    /// The task of bases with a decoder behind an encoder.
    pub(crate) fn of_decoders() -> Task {
        Task(&translate::Translate)
    }

    /// The task of a base's own labels.
    pub(crate) fn of_problem(problem: Problem) -> Result<Task> {
        Task::parse(match problem {
            Problem::Classes => "classes",
            Problem::Tags => "tags",
            Problem::Numbers => "numbers",
            Problem::Text => "transcribe",
            Problem::Tokens => "tokens",
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// Whether an answer is about the words of a sentence: [`Preprocessor::words`] gives them.
    ///
    /// [`Preprocessor::words`]: crate::runtime::Preprocessor::words
    pub fn needs_words(self) -> bool {
        self.0.needs_words()
    }

    /// What the mean of how right answers are is called.
    pub(crate) fn score_name(self) -> &'static str {
        self.0.score_name()
    }

    pub(crate) fn rules(self) -> &'static dyn TaskRules {
        self.0
    }

    /// The tasks that read this row.
    pub(crate) fn reading(row: &Row<'_>) -> Vec<Task> {
        ALL.iter().copied().filter(|task| task.0.reads(row)).collect()
    }

    /// The task that reads this row's label, the most general of several. Errors: none does (bad
    /// input), naming the fields that some do.
    pub(crate) fn reading_one(row: &Row<'_>) -> Result<Task> {
        let fields = row.names();
        let whole = |task: &Task| fields.iter().all(|field| task.0.fields().contains(field));
        Task::reading(row).into_iter().rev().find(whole).ok_or_else(|| {
            Error::bad_input(format!("no task reads a label of {}", fields.join(" and ")))
        })
    }

    /// The sentence that some task makes of a row that has no `text`.
    pub(crate) fn text_of(row: &Row<'_>) -> Result<Option<String>> {
        for task in Task::reading(row) {
            if let Some(text) = task.0.text(row)? {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// Whether what was answered (`predicted`) is what a row says; `None` where nobody can tell.
    pub(crate) fn right(self, row: &Row<'_>, predicted: &serde_json::Value) -> Option<bool> {
        self.0.right(row, predicted)
    }

    /// The numbers of a row's label.
    pub(crate) fn numbers(self, row: &Row<'_>) -> Result<Vec<f32>> {
        Ok(self.0.label(row)?.values)
    }

    /// A row's label as one text, the same for all rows that say the same. Errors: it can't be read
    /// (bad input).
    pub(crate) fn stored(self, row: &Row<'_>) -> Result<String> {
        self.0.label(row)?;
        Ok(Value::Object(self.0.stored(row)).to_string())
    }

    /// The messages of a row that has some, without the answer to them. Errors: they are none (bad input).
    #[cfg(feature = "daemon")]
    pub(crate) fn conversation_of(row: &Row<'_>) -> Result<Option<Vec<Message>>> {
        Ok(language::conversation(row)?.map(|(messages, _)| messages))
    }

    /// A kept text and label as they were sent, where that is another form than the kept one.
    pub(crate) fn shown(text: &str, stored: &serde_json::Map<String, Value>) -> Option<[Value; 2]> {
        ALL.iter().find_map(|task| task.0.shown(text, stored))
    }

    /// Of an answer that people can correct: the task that gave it, the field that says the answer and
    /// takes the right one, and how they fill it in.
    pub(crate) fn by_hand(answer: &Value) -> Option<(Task, &'static str, ByHand)> {
        ALL.iter().rev().find_map(|task| {
            let (field, how) = task.0.by_hand()?;
            answer.get(field).map(|_| (*task, field, how))
        })
    }

    /// What was typed for the field of [`Task::by_hand`], where that is a line. Errors: it is none of
    /// its answers (bad input).
    pub(crate) fn typed(self, line: &str, answered: &Value) -> Result<Value> {
        self.0.typed(line, answered)
    }

    /// An answer in a few words, where it has a short form.
    pub(crate) fn said(answer: &Value) -> Option<String> {
        ALL.iter().rev().find_map(|task| task.0.said(answer))
    }

    /// Which of `candidates` a file's labels are for, and why. `None` where there is no candidate.
    pub(crate) fn decide(candidates: &[Task], seen: &Seen<'_>) -> Option<(Task, String)> {
        let claims = |task: &Task| task.0.claims(seen).map(|why| (*task, why));
        let last = || candidates.last().map(|task| (*task, "its labels are names".to_string()));
        candidates.iter().find_map(claims).or_else(last)
    }

    /// The fields of rows and of feedback that some task reads as a label, each once.
    pub(crate) fn label_fields() -> Vec<&'static str> {
        let mut fields: Vec<&str> =
            ALL.iter().rev().flat_map(|task| task.0.fields()).copied().collect();
        let mut seen = std::collections::HashSet::new();
        fields.retain(|field| seen.insert(*field));
        fields
    }

    /// JSON schemas of [`Task::label_fields`].
    pub(crate) fn field_schemas() -> Vec<(&'static str, Value)> {
        let schema = |field: &'static str| {
            let task = ALL.iter().rev().find(|task| task.0.fields().contains(&field));
            (field, task.map_or_else(|| serde_json::json!({}), |task| task.0.field_schema(field)))
        };
        Task::label_fields().into_iter().map(schema).collect()
    }

    /// JSON schemas of one answer of each task.
    pub(crate) fn answer_schemas() -> Vec<Value> {
        ALL.iter().rev().map(|task| task.0.schema()).collect()
    }
}

impl Default for Task {
    /// Classes: what a base's own labels and imported heads tell.
    fn default() -> Task {
        Task(&classes::Classes)
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for Task {
    fn eq(&self, other: &Task) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Task {}

impl Serialize for Task {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}
