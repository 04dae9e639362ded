//! A row's fields, of whatever file, and its label before the names of the whole file are known.

use super::Spelled;
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// The fields of one row by name. In a `.csv` file each is a string, which may be a number.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    fields: &'a Map<String, Value>,
    typed: bool,
}

impl<'a> Row<'a> {
    /// Fields whose types say what they are.
    pub fn typed(fields: &'a Map<String, Value>) -> Row<'a> {
        Row { fields, typed: true }
    }

    /// Strings whose looks say what they are.
    pub fn untyped(fields: &'a Map<String, Value>) -> Row<'a> {
        Row { fields, typed: false }
    }

    /// Whether types say what values are.
    pub(crate) fn is_typed(&self) -> bool {
        self.typed
    }

    /// A field that is there and not null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// The names of its fields.
    pub(crate) fn names(&self) -> Vec<&'a str> {
        self.fields.keys().map(String::as_str).collect()
    }

    /// A field's string. Errors: another type (bad input).
    pub(crate) fn string(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Error::bad_input(format!("field '{name}' is no string"))),
        }
    }

    /// A list of strings. Errors: there is none (bad input).
    pub(crate) fn strings(&self, name: &str) -> Result<Vec<&'a str>> {
        let wrong = || Error::bad_input(format!("field '{name}' is no list of strings"));
        let items = self.get(name).and_then(Value::as_array).ok_or_else(wrong)?;
        items.iter().map(|item| item.as_str().ok_or_else(wrong)).collect()
    }

    /// A name, a number, or a list of numbers. Errors: anything else (bad input).
    pub(crate) fn scalar_or_numbers(&self, name: &str) -> Result<RoughLabel> {
        let named = |text: String, scalar: bool| RoughLabel {
            names: vec![RoughName { text, scalar }],
            ..RoughLabel::default()
        };
        match self.get(name) {
            None | Some(Value::Null) => Err(Error::bad_input(format!("no field '{name}'"))),
            Some(Value::String(text)) => Ok(named(text.clone(), !self.typed)),
            Some(Value::Bool(truth)) => Ok(named(truth.to_string(), false)),
            Some(Value::Number(number)) => Ok(named(number.to_string(), true)),
            Some(Value::Array(items)) => {
                let number = |v: &Value| v.as_f64().map(|v| v as f32);
                let values: Option<Vec<f32>> = items.iter().map(number).collect();
                let values = values.ok_or_else(|| {
                    Error::bad_input(format!("{name} is a list of something else than numbers"))
                })?;
                if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
                    return Err(Error::bad_input(format!("{name} is no list of finite numbers")));
                }
                Ok(RoughLabel { values, ..RoughLabel::default() })
            }
            Some(Value::Object(_)) => {
                Err(Error::bad_input(format!("{name} is neither a name nor a number")))
            }
        }
    }
}

/// A label as a row has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RoughLabel {
    pub names: Vec<RoughName>,
    /// Of each name where in the input it stands, where that is said: characters of a text or places
    /// of an array, the end not included.
    pub spans: Vec<[u32; 2]>,
    pub values: Vec<f32>,
    /// Where the label is a text.
    pub text: Option<Spelled>,
}

/// A label's name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RoughName {
    pub text: String,
    /// Whether it may be a number.
    pub scalar: bool,
}

/// A [`RoughLabel`] whose names are known: by their text, and by their places in
/// [`Dataset::labels`](super::Dataset::labels) (none where the task has no names).
#[derive(Clone, Debug, Default)]
pub(crate) struct Rough<'a> {
    pub names: Vec<&'a str>,
    pub places: Vec<usize>,
    pub spans: Vec<[u32; 2]>,
    pub values: Vec<f32>,
    pub text: Option<Spelled>,
}

/// What the labels of a whole file look like.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen<'a> {
    pub rows: usize,
    /// Different names.
    pub distinct: usize,
    /// Of those, how many are no numbers.
    pub words: usize,
    /// Whole numbers written with a point.
    pub whole: usize,
    /// A number with a fraction.
    pub fraction: Option<&'a str>,
    /// Rows whose label is a list of numbers.
    pub lists: usize,
}
