//! Conversations in files.

use crate::error::{Error, Result};
use crate::fs::read_limited;
use crate::limits;
use crate::runtime::Message;
use serde_json::Value;
use std::path::Path;

/// A conversation: a list of messages, or an object that has one.
pub(super) fn messages(path: &Path) -> Result<Vec<Message>> {
    let wrong = |why: String| Error::bad_input(format!("'{}': {why}", path.display()));
    let mut value: Value = serde_json::from_slice(&read_limited(path, limits::CONFIG)?)
        .map_err(|e| wrong(e.to_string()))?;
    if let Some(inner) = value.get_mut("messages") {
        value = inner.take();
    }
    let messages: Vec<Message> = serde_json::from_value(value)
        .map_err(|e| wrong(format!("no list of {{role, content}}: {e}")))?;
    if messages.is_empty() {
        return Err(wrong("no message".into()));
    }
    Ok(messages)
}
