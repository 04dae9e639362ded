//! What a chat template works with.

use super::fail;
use crate::error::Result;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A value; what is not there is [`Value::Undefined`].
#[derive(Clone, Debug)]
pub(super) enum Value {
    Undefined,
    None,
    Bool(bool),
    Int(i64),
    Text(Rc<str>),
    List(Rc<Vec<Value>>),
    /// Shared, since a namespace's fields are set within loops.
    Map(Rc<RefCell<BTreeMap<String, Value>>>),
}

impl Value {
    pub(super) fn text(text: impl AsRef<str>) -> Value {
        Value::Text(text.as_ref().into())
    }

    pub(super) fn list(values: Vec<Value>) -> Value {
        Value::List(Rc::new(values))
    }

    pub(super) fn map<S: Into<String>>(fields: impl IntoIterator<Item = (S, Value)>) -> Value {
        let fields = fields.into_iter().map(|(name, value)| (name.into(), value)).collect();
        Value::Map(Rc::new(RefCell::new(fields)))
    }

    /// Python's truth.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Value::Undefined | Value::None => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != 0,
            Value::Text(text) => !text.is_empty(),
            Value::List(values) => !values.is_empty(),
            Value::Map(fields) => !fields.borrow().is_empty(),
        }
    }

    pub(super) fn equals(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Undefined, Value::Undefined) | (Value::None, Value::None) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Bool(a), Value::Int(b)) | (Value::Int(b), Value::Bool(a)) => {
                i64::from(*a) == *b
            }
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::List(a), Value::List(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b))
            }
            (Value::Map(a), Value::Map(b)) => {
                let (a, b) = (a.borrow(), b.borrow());
                a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| v.equals(w)))
            }
            _ => false,
        }
    }

    /// As it is printed.
    pub(super) fn shown(&self) -> Result<String> {
        Ok(match self {
            Value::Undefined => String::new(),
            Value::None => "None".into(),
            Value::Bool(true) => "True".into(),
            Value::Bool(false) => "False".into(),
            Value::Int(n) => n.to_string(),
            Value::Text(text) => text.to_string(),
            Value::List(_) | Value::Map(_) => return Err(fail("a list or a dictionary as text")),
        })
    }

    /// What stands at a key or a place.
    pub(super) fn item(&self, key: &Value) -> Result<Value> {
        Ok(match (self, key) {
            (Value::Map(fields), Value::Text(name)) => {
                fields.borrow().get(&**name).cloned().unwrap_or(Value::Undefined)
            }
            (Value::List(values), Value::Int(at)) => {
                let at = place(*at, values.len());
                at.and_then(|at| values.get(at).cloned()).unwrap_or(Value::Undefined)
            }
            (Value::Text(text), Value::Int(at)) => {
                let count = text.chars().count();
                let found = place(*at, count).and_then(|at| text.chars().nth(at));
                found.map_or(Value::Undefined, |c| Value::text(c.to_string()))
            }
            (Value::Undefined, _) => return Err(fail("a field of what is not there")),
            _ => Value::Undefined,
        })
    }

    pub(super) fn length(&self) -> Result<usize> {
        match self {
            Value::Text(text) => Ok(text.chars().count()),
            Value::List(values) => Ok(values.len()),
            Value::Map(fields) => Ok(fields.borrow().len()),
            _ => Err(fail("the length of what has none")),
        }
    }

    /// Whether `self` has `part`: a list's value, a text's part, a dictionary's key.
    pub(super) fn contains(&self, part: &Value) -> Result<bool> {
        match (self, part) {
            (Value::List(values), part) => Ok(values.iter().any(|v| v.equals(part))),
            (Value::Text(text), Value::Text(part)) => Ok(text.contains(&**part)),
            (Value::Map(fields), Value::Text(name)) => Ok(fields.borrow().contains_key(&**name)),
            _ => Err(fail("'in' of what holds nothing")),
        }
    }
}

/// Python's: places below 0 count from the end.
fn place(at: i64, count: usize) -> Option<usize> {
    let at = if at < 0 { at + count as i64 } else { at };
    usize::try_from(at).ok().filter(|at| *at < count)
}
