//! What a client is told when it gets no answer: a status, a type, a sentence.

use crate::error::{Cause, Error, ErrorKind};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::time::Duration;

/// A refusal. Its body is `{"error": {"code", "type", "message", "hint"}}`, in the shape that
/// llama.cpp's server gives.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// A word for programs.
    pub kind: &'static str,
    /// A sentence for people.
    pub message: String,
    /// What to try, if something is likely to help.
    pub hint: Option<String>,
}

impl Problem {
    /// A refusal with this status, word and sentence.
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Problem {
        Problem { status, kind, message: message.into(), hint: None }
    }

    /// 400: the request makes no sense.
    pub fn invalid(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// 404: what is asked for is not there.
    pub fn not_found(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 503: not now; the client may come again.
    pub fn busy(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
    }

    /// 503: took too long.
    pub fn late(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "timeout", message)
    }

    /// 503: no answer within the limit of requests.
    pub fn slow(limit: Duration) -> Problem {
        Problem::late(format!(
            "no answer within {} s (limits.request_seconds)",
            limit.as_secs_f64()
        ))
    }

    /// 500: a fault of the daemon or of the machine.
    pub fn failed(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", message)
    }

    /// What is sent.
    pub fn body(&self) -> Value {
        let mut error = json!({
            "code": self.status.as_u16(), "type": self.kind, "message": self.message,
        });
        if let (Some(hint), Some(map)) = (&self.hint, error.as_object_mut()) {
            map.insert("hint".into(), hint.as_str().into());
        }
        json!({ "error": error })
    }

    /// Adds what to try next.
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Error> for Problem {
    fn from(e: Error) -> Problem {
        let (status, kind) = match (e.cause(), e.kind()) {
            (Some(Cause::NotFound), _) => (StatusCode::NOT_FOUND, "not_found"),
            (Some(Cause::Doubtful), _) => (StatusCode::CONFLICT, "state_doubtful"),
            (Some(Cause::Moved | Cause::Forgotten), _) => (StatusCode::CONFLICT, "conflict"),
            (Some(Cause::Busy), _) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            (Some(Cause::TooLarge), _) => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            (Some(Cause::Short), _) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            (Some(Cause::Stopped), _) => (StatusCode::SERVICE_UNAVAILABLE, "timeout"),
            (Some(Cause::Full), _) => (StatusCode::INSUFFICIENT_STORAGE, "disk_full"),
            (Some(Cause::Locked | Cause::ReadOnly | Cause::Unreadable), _) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
            }
            (Some(Cause::NotFinite), _) => (StatusCode::UNPROCESSABLE_ENTITY, "not_finite"),
            (_, ErrorKind::Failed) => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
            (_, ErrorKind::Usage) => (StatusCode::BAD_REQUEST, "invalid_request"),
            (_, ErrorKind::BadInput) => (StatusCode::BAD_REQUEST, "bad_input"),
            (_, ErrorKind::Unsupported) => (StatusCode::UNPROCESSABLE_ENTITY, "unsupported"),
            (_, ErrorKind::Mismatch) => (StatusCode::UNPROCESSABLE_ENTITY, "mismatch"),
            (_, ErrorKind::Refused) => (StatusCode::CONFLICT, "refused"),
            (_, ErrorKind::Unreachable) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
        };
        Problem {
            status,
            kind,
            message: e.message().to_string(),
            hint: e.hint_text().and_then(for_http),
        }
    }
}

/// A hint of the command line in the words of this interface; none where it has no such thing.
fn for_http(hint: &str) -> Option<String> {
    if hint.contains("--force") {
        return Some("activate another one first, or add ?force=true".into());
    }
    if let Some(list) = hint.strip_prefix("switch with 'adapter use' to one of ") {
        return Some(format!("POST /v1/adapters/NAME/activate makes one of {list} answer"));
    }
    if hint.starts_with("'adapter add") {
        return Some("POST /v1/adapters/NAME adds one, and training makes one".into());
    }
    let commands = ["--", "'adapter ", "'forget", "'offshoot ", "with 'state'"];
    (!commands.iter().any(|c| hint.contains(c))).then(|| hint.to_string())
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_name_no_flags() {
        let hint = |hint: &str| Problem::from(Error::refused("no").hint(hint)).hint;
        assert_eq!(hint("add --force").unwrap(), "activate another one first, or add ?force=true");
        let given = hint("switch with 'adapter use' to one of 1, 2").unwrap();
        assert_eq!(given, "POST /v1/adapters/NAME/activate makes one of 1, 2 answer");
        assert_eq!(hint("pack it with --image SIZE"), None);
        assert_eq!(hint("look again").unwrap(), "look again");
        let bad = Problem::from(Error::bad_input("no picture"));
        assert_eq!((bad.status.as_u16(), bad.kind), (400, "bad_input"));
    }
}
