//! What a chat template works with.

#![warn(clippy::arithmetic_side_effects)]

use super::fail;
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Most lists and dictionaries within each other.
const MAX_DEPTH: usize = 32;

/// What a template may still take: bytes that it makes or looks through.
pub(super) struct Budget(usize);

impl Budget {
    pub(super) fn new(bytes: usize) -> Budget {
        Budget(bytes)
    }

    /// Errors: so many are not left (bad input).
    pub(super) fn take(&mut self, bytes: usize) -> Result<()> {
        let left = self.0.checked_sub(bytes);
        self.0 = left.ok_or_else(|| Error::bad_input("the base's chat template takes too much"))?;
        Ok(())
    }
}

/// A value; what is not there is [`Value::Undefined`]. But for namespaces values are made of others and never
/// change, so that none is within itself.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Undefined,
    None,
    Bool(bool),
    Int(i64),
    Text(Rc<str>),
    List(Rc<Nested<Vec<Value>>>),
    Map(Rc<Nested<Fields>>),
    /// Shared, since its fields are set within loops. No part of any other value.
    Namespace(Rc<RefCell<Fields>>),
}

pub(super) type Fields = BTreeMap<String, Value>;

/// Values, and how many of such are within each other.
#[derive(Debug)]
pub(super) struct Nested<T> {
    inner: T,
    depth: usize,
}

impl<T> std::ops::Deref for Nested<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

/// The depth of what has these in it.
fn deeper<'a>(values: impl Iterator<Item = &'a Value>) -> Result<usize> {
    let mut depth = 1;
    for value in values {
        depth = depth.max(value.depth()?.saturating_add(1));
    }
    if depth > MAX_DEPTH {
        return Err(fail("so many lists within each other"));
    }
    Ok(depth)
}

impl Value {
    pub(super) fn text(text: impl AsRef<str>) -> Value {
        Value::Text(text.as_ref().into())
    }

    pub(super) fn list(values: Vec<Value>) -> Result<Value> {
        let depth = deeper(values.iter())?;
        Ok(Value::List(Rc::new(Nested { inner: values, depth })))
    }

    pub(super) fn map<S: Into<String>>(
        fields: impl IntoIterator<Item = (S, Value)>,
    ) -> Result<Value> {
        let fields: Fields = fields.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let depth = deeper(fields.values())?;
        Ok(Value::Map(Rc::new(Nested { inner: fields, depth })))
    }

    /// How many lists and dictionaries are within each other. Errors: a namespace, which may be within none.
    pub(super) fn depth(&self) -> Result<usize> {
        match self {
            Value::List(values) => Ok(values.depth),
            Value::Map(fields) => Ok(fields.depth),
            Value::Namespace(_) => Err(fail("a namespace within another value")),
            _ => Ok(0),
        }
    }

    /// Python's truth.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Value::Undefined | Value::None => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != 0,
            Value::Text(text) => !text.is_empty(),
            Value::List(values) => !values.is_empty(),
            Value::Map(fields) => !fields.is_empty(),
            Value::Namespace(_) => true,
        }
    }

    /// Errors: more than is left in the budget.
    pub(super) fn equals(&self, other: &Value, budget: &mut Budget) -> Result<bool> {
        budget.take(1)?;
        Ok(match (self, other) {
            (Value::Undefined, Value::Undefined) | (Value::None, Value::None) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Bool(a), Value::Int(b)) | (Value::Int(b), Value::Bool(a)) => {
                i64::from(*a) == *b
            }
            (Value::Text(a), Value::Text(b)) => {
                budget.take(a.len().min(b.len()))?;
                a == b
            }
            (Value::List(a), Value::List(b)) => {
                let mut same = a.len() == b.len();
                for (a, b) in a.iter().zip(b.iter()) {
                    same = same && a.equals(b, budget)?;
                }
                same
            }
            (Value::Map(a), Value::Map(b)) => {
                let mut same = a.len() == b.len();
                for (name, a) in a.iter() {
                    same = same
                        && match b.get(name) {
                            Some(b) => a.equals(b, budget)?,
                            None => false,
                        };
                }
                same
            }
            (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
            _ => false,
        })
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
            Value::List(_) | Value::Map(_) | Value::Namespace(_) => {
                return Err(fail("a list or a dictionary as text"));
            }
        })
    }

    /// What stands at a key or a place.
    pub(super) fn item(&self, key: &Value) -> Result<Value> {
        Ok(match (self, key) {
            (Value::Map(_) | Value::Namespace(_), Value::Text(name)) => {
                self.field(name).unwrap_or(Value::Undefined)
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
            Value::Map(fields) => Ok(fields.len()),
            _ => Err(fail("the length of what has none")),
        }
    }

    /// The field of this name of a dictionary or a namespace.
    pub(super) fn field(&self, name: &str) -> Option<Value> {
        match self {
            Value::Map(fields) => fields.get(name).cloned(),
            Value::Namespace(fields) => fields.borrow().get(name).cloned(),
            _ => None,
        }
    }

    /// Whether `self` has `part`: a list's value, a text's part, a dictionary's key.
    pub(super) fn contains(&self, part: &Value, budget: &mut Budget) -> Result<bool> {
        match (self, part) {
            (Value::List(values), part) => {
                for value in values.iter() {
                    if value.equals(part, budget)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            (Value::Text(text), Value::Text(part)) => Ok(text.contains(&**part)),
            (Value::Map(fields), Value::Text(name)) => Ok(fields.contains_key(&**name)),
            _ => Err(fail("'in' of what holds nothing")),
        }
    }
}

/// Python's: places below 0 count from the end.
fn place(at: i64, count: usize) -> Option<usize> {
    let at = if at < 0 { at.saturating_add(count as i64) } else { at };
    usize::try_from(at).ok().filter(|at| *at < count)
}
