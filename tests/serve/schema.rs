//! Holds what a daemon answers against the document that it serves.

use crate::support::{Answer, Daemon, read_answer, write_request};
use serde_json::Value;
use std::sync::OnceLock;

/// Panics where an answer in JSON is not as `/openapi.json` says. What the document doesn't list is passed over:
/// another test asks for paths and methods.
pub fn hold(daemon: &Daemon, method: &str, path: &str, answer: &Answer) {
    if !answer.head.to_lowercase().contains("\r\ncontent-type: application/json") {
        return;
    }
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    let document = DOCUMENT.get_or_init(|| {
        let mut stream = daemon.connect();
        write_request(&mut stream, "GET", "/openapi.json", "", b"");
        read_answer(&mut stream).unwrap().json()
    });
    let path = path.split('?').next().unwrap();
    let paths = document["paths"].as_object().unwrap();
    let Some(operation) = paths
        .iter()
        .find(|(template, _)| matches(template, path))
        .map(|(_, operations)| &operations[method.to_lowercase()])
        .filter(|operation| operation.is_object())
    else {
        return;
    };
    let content = &operation["responses"][answer.status.to_string()]["content"];
    let schema = &content["application/json"]["schema"];
    let found = answer.json();
    if schema.is_null() {
        panic!("{method} {path} answers {} with {found}, which the document lacks", answer.status);
    }
    if let Err(why) = check(document, schema, &found, "") {
        panic!("{method} {path}, {}: {why}: {found}", answer.status);
    }
}

fn matches(template: &str, path: &str) -> bool {
    let (mut a, mut b) = (template.split('/'), path.split('/'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b || (a.starts_with('{') && !b.is_empty()) => {}
            _ => return false,
        }
    }
}

fn check(document: &Value, schema: &Value, found: &Value, at: &str) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return check(document, document.pointer(&reference[1..]).unwrap(), found, at);
    }
    if found.is_null() && schema["nullable"] == true {
        return Ok(());
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        check(document, part, found, at)?;
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let tried: Vec<_> = any.iter().map(|one| check(document, one, found, at)).collect();
        if tried.iter().all(Result::is_err) {
            return Err(format!("{at} is none of those listed: {tried:?}"));
        }
    }
    let right = match schema["type"].as_str() {
        None => true,
        Some("object") => found.is_object(),
        Some("array") => found.is_array(),
        Some("string") => found.is_string(),
        Some("boolean") => found.is_boolean(),
        Some("number") => found.is_number(),
        Some("integer") => found.is_i64() || found.is_u64(),
        Some(other) => panic!("{other}: no type of ours"),
    };
    if !right {
        return Err(format!("{at} is no {}", schema["type"]));
    }
    if let Some(choices) = schema["enum"].as_array()
        && !choices.contains(found)
    {
        return Err(format!("{at} is none of {choices:?}"));
    }
    for (i, item) in found.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{at}/{i}"))?;
    }
    let Some(object) = found.as_object() else { return Ok(()) };
    for key in schema["required"].as_array().into_iter().flatten() {
        if !object.contains_key(key.as_str().unwrap()) {
            return Err(format!("{at} lacks {key}"));
        }
    }
    for (key, value) in object {
        let at = format!("{at}/{key}");
        if let Some(property) = schema["properties"].get(key) {
            check(document, property, value, &at)?;
        } else if schema["additionalProperties"].is_object() {
            check(document, &schema["additionalProperties"], value, &at)?;
        } else if schema["properties"].is_object() {
            return Err(format!("{at} is not documented"));
        }
    }
    Ok(())
}

#[test]
fn what_differs_from_its_schema_is_found() {
    let document = serde_json::json!({"components": {"schemas": {"A": {
        "type": "object", "required": ["a"],
        "properties": {"a": {"type": "integer", "nullable": true}, "b": {"type": "array", "items": {"type": "string"}}},
    }}}});
    let schema = serde_json::json!({"$ref": "#/components/schemas/A"});
    let says = |found: Value| check(&document, &schema, &found, "");
    assert_eq!(says(serde_json::json!({"a": null, "b": ["x"]})), Ok(()));
    for wrong in [
        serde_json::json!([]),
        serde_json::json!({"b": []}),
        serde_json::json!({"a": 1.5}),
        serde_json::json!({"a": 1, "b": [1]}),
        serde_json::json!({"a": 1, "c": 1}),
    ] {
        assert!(says(wrong.clone()).is_err(), "{wrong}");
    }
}
