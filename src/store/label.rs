//! The right answer to a sample.

use serde::{Deserialize, Serialize};

/// The right answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Label {
    /// A class, by its name.
    Class(String),
    /// Numbers.
    Values(Vec<f32>),
    /// What only its task reads: the fields of a row as a JSON object.
    Answer(String),
}

impl Label {
    /// Bytes of what is kept with the input of each sample: the names of classes are kept once.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Label::Class(_) => 0,
            Label::Values(values) => size_of_val(&values[..]) as u64,
            Label::Answer(text) => text.len() as u64,
        }
    }

    /// What a right prediction says, where that is said in words.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Label::Class(text) | Label::Answer(text) => Some(text),
            Label::Values(_) => None,
        }
    }
}

/// The sort of a [`Label`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// There is none.
    #[default]
    None,
    /// [`Label::Class`].
    Class,
    /// [`Label::Values`].
    Values,
    /// [`Label::Answer`].
    Answer,
}
