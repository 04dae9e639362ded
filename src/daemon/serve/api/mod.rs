//! The routes and their handlers.

mod adapters;
mod page;
mod predict;
mod samples;
mod status;
mod stream;
mod table;
mod tokens;
mod train;

use super::app::App;
use super::ask::{Mime, object, unsupported_media};
use super::guard::Whole;
use super::problem::Problem;
use super::who::Who;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

pub use page::{has_login, logged_in, socket_form};
#[cfg(feature = "mqtt")]
pub use samples::feedback_to;
pub use status::problems;
#[cfg(test)]
pub use table::Route;
pub use table::{Need, TABLE, router};

/// What a handler gives.
type Answer = Result<Response, Problem>;

/// A request as handlers take it: its faults are ours to word.
struct Call {
    parts: Parts,
    params: Vec<(String, String)>,
    body: Bytes,
    // Holds the body's share of the memory until the handler is done.
    _whole: Option<Whole>,
}

impl FromRequest<Arc<App>> for Call {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Call, Problem> {
        let (mut parts, _) = request.into_parts();
        let params = RawPathParams::from_request_parts(&mut parts, app)
            .await
            .map_err(|_| Problem::invalid("the path is not UTF-8"))?;
        let params = params.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let whole = parts.extensions.remove::<Whole>();
        let body = whole.as_ref().map(|w| w.bytes.clone()).unwrap_or_default();
        Ok(Call { parts, params, body, _whole: whole })
    }
}

impl Call {
    /// Who asks. Routes that need a role have it.
    fn who(&self) -> Result<&Who, Problem> {
        let who = self.parts.extensions.get::<Who>();
        who.ok_or_else(|| Problem::failed("nobody is known to ask"))
    }

    /// A part of the path.
    fn param(&self, key: &str) -> &str {
        self.params.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }

    /// An adapter's name in the path.
    fn name(&self) -> Result<&str, Problem> {
        super::ask::name(self.param("name"))
    }

    /// A number in the path: 404 for what is none, as nothing has such a number.
    fn number(&self, key: &str) -> Result<u64, Problem> {
        let text = self.param(key);
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse()
            .ok()
            .filter(|n| digits && *n <= i64::MAX as u64)
            .ok_or_else(|| Problem::not_found(format!("'{text}' is no number of a {key}")))
    }

    fn query<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        Query::try_from_uri(&self.parts.uri)
            .map(|Query(query)| query)
            .map_err(|e| Problem::invalid(format!("the query: {}", innermost(&e))))
    }

    fn mime(&self) -> Option<Mime> {
        Mime::parse(self.parts.headers.get(header::CONTENT_TYPE)?.to_str().ok()?)
    }

    /// The JSON of the body.
    fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        match self.mime() {
            Some(Mime::Json) => object(&self.body),
            _ => Err(unsupported_media("application/json")),
        }
    }

    /// As [`Call::json`], a missing body as `{}`.
    fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Problem> {
        if self.body.is_empty() { Ok(T::default()) } else { self.json() }
    }
}

/// The last of an error's causes: what the user did.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

fn ok(value: &impl Serialize) -> Answer {
    with(StatusCode::OK, value)
}

fn with(status: StatusCode, value: &impl Serialize) -> Answer {
    Ok((status, axum::Json(value)).into_response())
}

/// Seconds since 1970-01-01 UTC.
pub fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
