//! JSON that keeps the order of keys: PEFT's patterns apply in the order of the file.

#![warn(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    /// Without duplicate keys.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Errors: not JSON (nesting is limited to 128), a key twice in one object.
    pub(super) fn parse(text: &str) -> Result<Json> {
        serde_json::from_str(text).map_err(|e| Error::bad_input(format!("not valid JSON: {e}")))
    }

    /// The value as Python's `bool()` sees it: null, false, 0, "" and empty lists are no.
    pub(super) fn truthy(&self) -> bool {
        match self {
            Json::Null => false,
            Json::Bool(b) => *b,
            Json::Number(n) => *n != 0.0,
            Json::Text(t) => !t.is_empty(),
            Json::List(l) => !l.is_empty(),
            Json::Object(o) => !o.is_empty(),
        }
    }

    /// What it is, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Json::Null => "null".into(),
            Json::Bool(b) => b.to_string(),
            Json::Number(n) => n.to_string(),
            Json::Text(t) => format!("'{}'", super::super::names::shown(t)),
            Json::List(_) => "a list".into(),
            Json::Object(_) => "an object".into(),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element()? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut object: Vec<(String, Json)> = Vec::new();
        let mut keys = std::collections::HashSet::new();
        while let Some((key, value)) = map.next_entry::<String, Json>()? {
            if !keys.insert(key.clone()) {
                return Err(de::Error::custom(format!("key '{key}' appears twice")));
            }
            object.push((key, value));
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_duplicates_refused() {
        let Json::Object(o) = Json::parse(r#"{"z": 1, "a": [true, null, "x", -2.5]}"#).unwrap()
        else {
            panic!("an object")
        };
        assert_eq!((o[0].0.as_str(), o[1].0.as_str()), ("z", "a"));
        assert!(Json::parse(r#"{"a": 1, "a": 1}"#).unwrap_err().message().contains("twice"));
        assert!(Json::parse(&"[".repeat(100_000)).is_err());
        assert!(Json::parse("{} x").is_err());
    }
}
