//! A parsed template's text.

#![warn(clippy::arithmetic_side_effects)]

use super::fail;
use super::parse::{Expr, Part};
use super::value::{Budget, Fields, Value};
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::rc::Rc;

/// Most steps that a template may take, most bytes of its text, and of all values that it makes on the way or
/// looks through: it is a stranger's.
const MAX_STEPS: usize = 2_000_000;
const MAX_TEXT: usize = 8 << 20;
const MAX_MADE: usize = 64 << 20;
/// Most bytes of the characters that are stripped: all are looked at for each of the text's.
const MAX_STRIPPED: usize = 256;
/// Longest range.
const MAX_RANGE: i64 = 20_000;
/// Bytes of a value in a list; of one that is a text of its own.
const A_VALUE: usize = size_of::<Value>();
const A_TEXT: usize = A_VALUE + 32;

/// A template being rendered.
pub(super) struct Rendering {
    /// Names and values, a scope each; the innermost last.
    scopes: Vec<Vec<(String, Value)>>,
    text: String,
    steps: usize,
    budget: Budget,
}

impl Rendering {
    pub(super) fn new(names: Vec<(String, Value)>) -> Rendering {
        Rendering {
            scopes: vec![names],
            text: String::new(),
            steps: 0,
            budget: Budget::new(MAX_MADE),
        }
    }

    /// The whole text.
    pub(super) fn run(mut self, parts: &[Part]) -> Result<String> {
        self.parts(parts)?;
        Ok(self.text)
    }

    fn step(&mut self) -> Result<()> {
        self.steps = self.steps.saturating_add(1);
        match self.steps > MAX_STEPS || self.text.len() > MAX_TEXT {
            true => Err(Error::bad_input("the base's chat template finds no end")),
            false => Ok(()),
        }
    }

    fn parts(&mut self, parts: &[Part]) -> Result<()> {
        for part in parts {
            self.step()?;
            match part {
                Part::Text(text) => self.text.push_str(text),
                Part::Print(value) => {
                    let value = self.value(value)?.shown()?;
                    self.text.push_str(&value);
                }
                Part::Set(name, None, value) => {
                    let value = self.value(value)?;
                    self.look()?;
                    self.set(name, value);
                }
                Part::Set(name, Some(field), value) => {
                    let value = self.value(value)?;
                    match self.name(name) {
                        Value::Namespace(fields) => {
                            value.depth()?;
                            drop(fields.borrow_mut().insert(field.clone(), value))
                        }
                        _ => return Err(fail(format!("a field of '{name}', no namespace,"))),
                    }
                }
                Part::If(arms) => {
                    for (condition, inner) in arms {
                        let holds = match condition {
                            Some(condition) => self.value(condition)?.is_true(),
                            None => true,
                        };
                        if holds {
                            self.parts(inner)?;
                            break;
                        }
                    }
                }
                Part::For(name, list, only, inner) => {
                    self.each(name, list, only.as_ref(), inner)?
                }
            }
        }
        Ok(())
    }

    fn each(&mut self, name: &str, list: &Expr, only: Option<&Expr>, inner: &[Part]) -> Result<()> {
        let all = match self.value(list)? {
            Value::List(values) => {
                self.budget.take(values.len().saturating_mul(A_VALUE))?;
                values.to_vec()
            }
            Value::Undefined => vec![],
            _ => return Err(fail("'for' over no list")),
        };
        let mut values = vec![];
        for value in all {
            self.step()?;
            self.scopes.push(vec![(name.to_string(), value.clone())]);
            let taken = only.map_or(Ok(true), |only| Ok(self.value(only)?.is_true()));
            self.scopes.pop();
            if taken? {
                values.push(value);
            }
        }
        let count = values.len();
        for (at, value) in values.iter().enumerate() {
            let beside = |at: Option<usize>| {
                at.and_then(|at| values.get(at).cloned()).unwrap_or(Value::Undefined)
            };
            let place = Value::map([
                ("index0", Value::Int(at as i64)),
                ("index", Value::Int((at as i64).saturating_add(1))),
                ("first", Value::Bool(at == 0)),
                ("last", Value::Bool(at.saturating_add(1) == count)),
                ("length", Value::Int(count as i64)),
                ("previtem", beside(at.checked_sub(1))),
                ("nextitem", beside(at.checked_add(1))),
            ])?;
            let names = [(name.to_string(), value.clone()), ("loop".to_string(), place)];
            self.scopes.push(names.to_vec());
            let done = self.parts(inner);
            self.scopes.pop();
            done?;
        }
        Ok(())
    }

    /// Takes what looking through all names costs.
    fn look(&mut self) -> Result<()> {
        let names = self.scopes.iter().map(Vec::len).fold(0, usize::saturating_add);
        self.budget.take(names)
    }

    fn set(&mut self, name: &str, value: Value) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.retain(|(known, _)| known != name);
            scope.push((name.to_string(), value));
        }
    }

    fn name(&self, name: &str) -> Value {
        let mut all = self.scopes.iter().rev().flatten();
        all.find(|(known, _)| known == name).map_or(Value::Undefined, |(_, value)| value.clone())
    }

    fn values(&mut self, expressions: &[Expr]) -> Result<Vec<Value>> {
        expressions.iter().map(|e| self.value(e)).collect()
    }

    fn value(&mut self, expression: &Expr) -> Result<Value> {
        self.step()?;
        let value = self.made(expression)?;
        // Whoever asks for it looks through it, or has it in something new.
        match &value {
            Value::Text(text) => self.budget.take(text.len())?,
            Value::List(values) if !matches!(expression, Expr::Name(_) | Expr::Item(..)) => {
                self.budget.take(values.len().saturating_mul(A_VALUE))?;
            }
            _ => {}
        }
        Ok(value)
    }

    fn made(&mut self, expression: &Expr) -> Result<Value> {
        Ok(match expression {
            Expr::None => Value::None,
            Expr::Bool(b) => Value::Bool(*b),
            Expr::Int(n) => Value::Int(*n),
            Expr::Text(text) => Value::text(text),
            Expr::Name(name) => {
                self.look()?;
                self.name(name)
            }
            Expr::List(items) => Value::list(self.values(items)?)?,
            Expr::Map(fields) => {
                let mut map = vec![];
                for (name, value) in fields {
                    map.push((name.clone(), self.value(value)?));
                }
                Value::map(map)?
            }
            Expr::Item(value, key) => {
                let (value, key) = (self.value(value)?, self.value(key)?);
                value.item(&key)?
            }
            Expr::Slice(value, start, stop) => {
                let value = self.value(value)?;
                let mut bound = |bound: &Option<Box<Expr>>| match bound {
                    Some(bound) => match self.value(bound)? {
                        Value::Int(at) => Ok(Some(at)),
                        _ => Err(fail("a slice by what is no number")),
                    },
                    None => Ok(None),
                };
                let (start, stop) = (bound(start)?, bound(stop)?);
                sliced(&value, start, stop)?
            }
            Expr::Call(function, values, named) => self.call(function, values, named)?,
            Expr::Method(value, name, arguments) => {
                let value = self.value(value)?;
                let arguments = self.values(arguments)?;
                self.method(&value, name, &arguments)?
            }
            Expr::Filter(value, name, arguments) => {
                let value = self.value(value)?;
                let arguments = self.values(arguments)?;
                self.filter(value, name, &arguments)?
            }
            Expr::Test(value, test, not) => {
                let value = self.value(value)?;
                let holds = match test.as_str() {
                    "defined" => !matches!(value, Value::Undefined),
                    "undefined" => matches!(value, Value::Undefined),
                    "none" => matches!(value, Value::None),
                    "string" => matches!(value, Value::Text(_)),
                    "mapping" => matches!(value, Value::Map(_) | Value::Namespace(_)),
                    "number" => matches!(value, Value::Int(_)),
                    "boolean" => matches!(value, Value::Bool(_)),
                    "iterable" | "sequence" => {
                        matches!(value, Value::List(_) | Value::Text(_) | Value::Map(_))
                    }
                    "true" => matches!(value, Value::Bool(true)),
                    "false" => matches!(value, Value::Bool(false)),
                    _ => return Err(fail(format!("the test '{test}'"))),
                };
                Value::Bool(holds != *not)
            }
            Expr::Not(value) => Value::Bool(!self.value(value)?.is_true()),
            Expr::Negative(value) => match self.value(value)? {
                Value::Int(n) => {
                    Value::Int(n.checked_neg().ok_or_else(|| fail("so large a number"))?)
                }
                _ => return Err(fail("'-' before what is no number")),
            },
            Expr::Binary(sign, left, right) => self.binary(sign, left, right)?,
            Expr::Choice(condition, then, other) => {
                match (self.value(condition)?.is_true(), other) {
                    (true, _) => self.value(then)?,
                    (false, Some(other)) => self.value(other)?,
                    (false, None) => Value::Undefined,
                }
            }
        })
    }

    fn binary(&mut self, sign: &str, left: &Expr, right: &Expr) -> Result<Value> {
        let left = self.value(left)?;
        match sign {
            "and" if !left.is_true() => return Ok(left),
            "or" if left.is_true() => return Ok(left),
            _ => {}
        }
        let right = self.value(right)?;
        let number = |n: Option<i64>| n.map(Value::Int).ok_or_else(|| fail("so large a number"));
        Ok(match (sign, &left, &right) {
            ("and" | "or", ..) => right,
            ("==", ..) => Value::Bool(left.equals(&right, &mut self.budget)?),
            ("!=", ..) => Value::Bool(!left.equals(&right, &mut self.budget)?),
            ("in", ..) => Value::Bool(right.contains(&left, &mut self.budget)?),
            ("~", ..) => Value::text(left.shown()? + &right.shown()?),
            ("+", Value::Text(a), Value::Text(b)) => Value::text(format!("{a}{b}")),
            ("+", Value::List(a), Value::List(b)) => Value::list([&a[..], &b[..]].concat())?,
            ("+", Value::Int(a), Value::Int(b)) => number(a.checked_add(*b))?,
            ("-", Value::Int(a), Value::Int(b)) => number(a.checked_sub(*b))?,
            ("*", Value::Int(a), Value::Int(b)) => number(a.checked_mul(*b))?,
            ("//", Value::Int(a), Value::Int(b)) if *b > 0 => number(Some(a.div_euclid(*b)))?,
            ("%", Value::Int(a), Value::Int(b)) if *b > 0 => number(Some(a.rem_euclid(*b)))?,
            ("<", Value::Int(a), Value::Int(b)) => Value::Bool(a < b),
            (">", Value::Int(a), Value::Int(b)) => Value::Bool(a > b),
            ("<=", Value::Int(a), Value::Int(b)) => Value::Bool(a <= b),
            (">=", Value::Int(a), Value::Int(b)) => Value::Bool(a >= b),
            ("<", Value::Text(a), Value::Text(b)) => Value::Bool(a < b),
            (">", Value::Text(a), Value::Text(b)) => Value::Bool(a > b),
            ("<=", Value::Text(a), Value::Text(b)) => Value::Bool(a <= b),
            (">=", Value::Text(a), Value::Text(b)) => Value::Bool(a >= b),
            _ => return Err(fail(format!("'{sign}' between these values"))),
        })
    }

    fn call(&mut self, name: &str, values: &[Expr], named: &[(String, Expr)]) -> Result<Value> {
        let values = self.values(values)?;
        match (name, values.as_slice()) {
            ("namespace", []) => {
                let mut fields = Fields::new();
                for (name, value) in named {
                    let value = self.value(value)?;
                    value.depth()?;
                    fields.insert(name.clone(), value);
                }
                Ok(Value::Namespace(Rc::new(RefCell::new(fields))))
            }
            ("raise_exception", [why]) => {
                let why = why.shown()?;
                Err(Error::bad_input(format!("the base's chat template refuses it: {why}")))
            }
            ("range", [Value::Int(end)]) => self.range(0, *end),
            ("range", [Value::Int(start), Value::Int(end)]) => self.range(*start, *end),
            _ => Err(fail(format!("the function '{name}'"))),
        }
    }

    fn range(&mut self, start: i64, end: i64) -> Result<Value> {
        if end.saturating_sub(start) > MAX_RANGE {
            return Err(fail("so long a range"));
        }
        Value::list((start..end).map(Value::Int).collect())
    }

    /// Methods of Python's strings and dictionaries.
    fn method(&mut self, value: &Value, name: &str, arguments: &[Value]) -> Result<Value> {
        let unknown = || fail(format!("the method '{name}' of this value"));
        let given = |at: usize| match arguments.get(at) {
            Some(Value::Text(text)) => Some(&**text),
            _ => None,
        };
        if let (Value::Map(_), "get", Some(key)) = (value, name, given(0)) {
            return Ok(value.field(key).or(arguments.get(1).cloned()).unwrap_or(Value::None));
        }
        let Value::Text(text) = value else { return Err(unknown()) };
        if name.ends_with("strip") && given(0).is_some_and(|set| set.len() > MAX_STRIPPED) {
            return Err(fail("so many characters to strip"));
        }
        Ok(match (name, given(0), given(1), arguments.len()) {
            ("strip", None, _, 0) => Value::text(text.trim()),
            ("lstrip", None, _, 0) => Value::text(text.trim_start()),
            ("rstrip", None, _, 0) => Value::text(text.trim_end()),
            ("strip", Some(set), _, 1) => Value::text(text.trim_matches(|c| set.contains(c))),
            ("lstrip", Some(set), _, 1) => {
                Value::text(text.trim_start_matches(|c| set.contains(c)))
            }
            ("rstrip", Some(set), _, 1) => Value::text(text.trim_end_matches(|c| set.contains(c))),
            ("upper", None, _, 0) => Value::text(text.to_uppercase()),
            ("lower", None, _, 0) => Value::text(text.to_lowercase()),
            ("startswith", Some(start), _, 1) => Value::Bool(text.starts_with(start)),
            ("endswith", Some(end), _, 1) => Value::Bool(text.ends_with(end)),
            ("split", Some(at), _, 1) if !at.is_empty() => {
                self.budget.take(text.matches(at).count().saturating_mul(A_TEXT))?;
                Value::list(text.split(at).map(Value::text).collect())?
            }
            ("replace", Some(from), Some(to), 2) => {
                self.budget.take(text.matches(from).count().saturating_mul(to.len()))?;
                Value::text(text.replace(from, to))
            }
            _ => return Err(unknown()),
        })
    }

    fn filter(&mut self, value: Value, name: &str, arguments: &[Value]) -> Result<Value> {
        Ok(match (name, &value, arguments) {
            ("trim", Value::Text(text), []) => Value::text(text.trim()),
            ("upper", Value::Text(text), []) => Value::text(text.to_uppercase()),
            ("lower", Value::Text(text), []) => Value::text(text.to_lowercase()),
            ("length" | "count", _, []) => Value::Int(value.length()? as i64),
            ("string", _, []) => Value::text(value.shown()?),
            ("safe", _, []) => value,
            ("default", Value::Undefined, [other]) => other.clone(),
            ("default", _, [_]) => value,
            ("first", Value::List(values), []) => {
                values.first().cloned().unwrap_or(Value::Undefined)
            }
            ("last", Value::List(values), []) => values.last().cloned().unwrap_or(Value::Undefined),
            ("list", Value::List(_), []) => value,
            ("join", Value::List(values), [Value::Text(between)]) => {
                for value in values.iter() {
                    let own = if let Value::Text(text) = value { text.len() } else { A_TEXT };
                    self.budget.take(between.len().saturating_add(own))?;
                }
                let shown = values.iter().map(Value::shown).collect::<Result<Vec<String>>>()?;
                Value::text(shown.join(between))
            }
            _ => return Err(fail(format!("the filter '{name}' of this value"))),
        })
    }
}

fn sliced(value: &Value, start: Option<i64>, stop: Option<i64>) -> Result<Value> {
    let range = |count: usize| {
        let at = |bound: i64| {
            let at = if bound < 0 { bound.saturating_add(count as i64) } else { bound };
            at.clamp(0, count as i64) as usize
        };
        let (start, stop) = (start.map_or(0, at), stop.map_or(count, at));
        start..stop.max(start)
    };
    Ok(match value {
        Value::List(values) => Value::list(values[range(values.len())].to_vec())?,
        Value::Text(text) => {
            let range = range(text.chars().count());
            let part: String = text.chars().skip(range.start).take(range.len()).collect();
            Value::text(part)
        }
        _ => return Err(fail("a slice of what has no places")),
    })
}
