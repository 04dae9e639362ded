//! One message to a webhook's server: one request on a connection of its own. No redirect is followed.

use crate::daemon::hooks::Address;
use axum::body::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;

/// Why a message was not taken, in words.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server, or the way to it: it is tried again.
    Server(String),
    /// The message itself: the server will never take it.
    Message(String),
}

/// Sends a body; `Ok`: the server has taken it.
pub async fn send(
    to: &Address,
    key: Option<&[u8; 32]>,
    id: &str,
    body: &str,
    now: u64,
    patience: Duration,
) -> Result<(), Failure> {
    let request = request(to, key, id, body, now).map_err(Failure::Message)?;
    match tokio::time::timeout(patience, exchange(to, request)).await {
        Ok(answered) => judged(answered.map_err(Failure::Server)?),
        Err(_) => Err(Failure::Server(format!("no answer within {} s", patience.as_secs_f64()))),
    }
}

fn request(
    to: &Address,
    key: Option<&[u8; 32]>,
    id: &str,
    body: &str,
    now: u64,
) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(&to.path)
        .header(header::HOST, &to.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("offshoot/", env!("CARGO_PKG_VERSION")))
        .header("x-offshoot-id", id)
        .header("x-offshoot-time", now);
    if let Some(key) = key {
        request = request.header("x-offshoot-signature", signature(key, now, body));
    }
    let body = Full::new(Bytes::from(body.to_string()));
    request.body(body).map_err(|e| format!("the request can't be made: {e}"))
}

/// BLAKE3 with a key, of the time, a dot and the body.
fn signature(key: &[u8; 32], now: u64, body: &str) -> String {
    let hash = blake3::keyed_hash(key, format!("{now}.{body}").as_bytes());
    format!("blake3={}", hash.to_hex())
}

async fn exchange(to: &Address, request: Request<Full<Bytes>>) -> Result<StatusCode, String> {
    let words = |e: &dyn std::fmt::Display| e.to_string();
    let stream = TcpStream::connect((to.host.as_str(), to.port)).await.map_err(|e| words(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| words(&e))?;
    let connection = tokio::spawn(connection);
    let answered = sender.send_request(request).await.map_err(|e| words(&e));
    // What the server says more is not read.
    connection.abort();
    Ok(answered?.status())
}

/// What the status of an answer means.
fn judged(status: StatusCode) -> Result<(), Failure> {
    let says = format!("it answers {}", status.as_u16());
    match status.as_u16() {
        200..=299 => Ok(()),
        400 | 413 | 415 | 422 => Err(Failure::Message(says)),
        300..=399 => Err(Failure::Server(format!("{says}: redirects are not followed"))),
        _ => Err(Failure::Server(says)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_the_servers_fault_or_the_messages() {
        let of = |status: u16| judged(StatusCode::from_u16(status).unwrap());
        assert!(of(200).is_ok() && of(204).is_ok());
        for status in [301, 308, 401, 403, 404, 408, 429, 500, 503] {
            assert!(matches!(of(status), Err(Failure::Server(_))), "{status}");
        }
        for status in [400, 413, 415, 422] {
            assert!(matches!(of(status), Err(Failure::Message(_))), "{status}");
        }
    }

    /// As a server checks it that docs/WEBHOOKS.md shows: the hash is of Python's package `blake3`.
    #[test]
    fn a_signature_is_of_time_and_body() {
        let key = *blake3::Hash::from_hex("0123456789abcdef".repeat(4)).unwrap().as_bytes();
        let told = signature(&key, 1_764_400_000, "{\"version\":1}");
        let python = "4175a67b80dbeed2f37570823ff3572226ce867b6c3a7951cebbc2a599084c00";
        assert_eq!(told, format!("blake3={python}"));
        assert_ne!(told, signature(&key, 1_764_400_001, "{\"version\":1}"));
    }
}
