//! Answers that come as server-sent events.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// What comes from a channel, until it ends.
pub(super) fn events(receiver: mpsc::Receiver<Bytes>) -> Response {
    let mut response: Response = Body::new(Channel(receiver)).into_response();
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// One event; `data` is JSON, which has no line ends.
pub(super) fn event(name: &str, data: &[u8]) -> Bytes {
    let parts = [b"event: ", name.as_bytes(), b"\ndata: ", data, b"\n\n"];
    parts.concat().into()
}

/// A body from a channel.
struct Channel(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Channel {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b))))
    }
}
