//! The OpenAPI document.

use serde_json::Value;

/// The document that is served at `/openapi.json`.
pub fn document() -> Value {
    serde_json::json!({})
}
