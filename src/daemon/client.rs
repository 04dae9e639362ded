//! A client of the daemon: one request on one connection.

use super::host::Host;
use super::read_token;
use crate::error::{Error, ErrorKind, Result};
use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Speaks to one daemon.
pub struct Client {
    host: Host,
    token: Option<String>,
    patience: Duration,
}

/// What the daemon answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

impl Client {
    /// For the daemon at `host`. The token of a TCP port is read from the file that
    /// `$OFFSHOOT_TOKEN_FILE` names.
    ///
    /// # Errors
    /// A TCP address without a token, or a token file that can't be read.
    pub fn new(host: Host) -> Result<Client> {
        let token = match (&host, std::env::var_os("OFFSHOOT_TOKEN_FILE")) {
            (Host::Unix(_), _) => None,
            (Host::Tcp(_), Some(file)) => Some(read_token(Path::new(&file))?),
            (Host::Tcp(_), None) => {
                return Err(Error::usage(format!("{host} needs a token"))
                    .hint("set OFFSHOOT_TOKEN_FILE to a file that holds it"));
            }
        };
        Ok(Client { host, token, patience: Duration::from_secs(60) })
    }

    /// Waits up to `patience` for an answer.
    pub fn with_patience(mut self, patience: Duration) -> Client {
        self.patience = patience;
        self
    }

    /// Sends a request and reads the whole answer, whatever its status.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`]: nobody answers, or not in time.
    pub fn send(&self, method: Method, path: &str, mime: &str, body: Vec<u8>) -> Result<Answer> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::failed(format!("the runtime can't be started: {e}")))?;
        let mut request =
            Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, mime);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| Error::usage(format!("the request can't be made: {e}")))?;
        runtime.block_on(async {
            match tokio::time::timeout(self.patience, self.exchange(request)).await {
                Ok(answer) => answer,
                Err(_) => {
                    Err(self
                        .unreachable(&format!("no answer within {} s", self.patience.as_secs())))
                }
            }
        })
    }

    /// As [`Client::send`] with JSON both ways; a refusal of the daemon becomes an error.
    pub fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<serde_json::Value> {
        let bytes = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        self.send(method, path, "application/json", bytes)?.json()
    }

    fn unreachable(&self, why: &str) -> Error {
        Error::new(ErrorKind::Unreachable, format!("the daemon at {}: {why}", self.host))
            .hint("is it running? ('systemctl status offshoot', or 'offshoot serve --base FILE')")
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer> {
        match &self.host {
            Host::Unix(path) => match tokio::net::UnixStream::connect(path).await {
                Ok(stream) => self.over(stream, request).await,
                Err(e) => Err(self.unreachable(&e.to_string())),
            },
            Host::Tcp(address) => match tokio::net::TcpStream::connect(address).await {
                Ok(stream) => self.over(stream, request).await,
                Err(e) => Err(self.unreachable(&e.to_string())),
            },
        }
    }

    async fn over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer> {
        let gone = |e: hyper::Error| self.unreachable(&e.to_string());
        let io = TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(gone)?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(gone)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| self.unreachable(&e.to_string()))?
            .to_bytes();
        connection.abort();
        Ok(Answer { status, body })
    }
}

impl Answer {
    /// The JSON of an answer of success.
    ///
    /// # Errors
    /// The daemon's refusal, its status as this crate's kind; an answer that is no JSON (failed).
    pub fn json(&self) -> Result<serde_json::Value> {
        let value: serde_json::Value = serde_json::from_slice(&self.body).map_err(|_| {
            Error::failed(format!("the daemon's answer (status {}) is no JSON", self.status))
        })?;
        if (200..300).contains(&self.status) {
            return Ok(value);
        }
        let error = value.get("error").cloned().unwrap_or_default();
        let text = |key: &str| error.get(key).and_then(|v| v.as_str()).map(String::from);
        let kind = match self.status {
            // One fault has one exit code, whichever way it comes.
            400 if error["type"] == "bad_input" => ErrorKind::BadInput,
            422 if error["type"] == "unsupported" => ErrorKind::Unsupported,
            400 | 404 | 405 | 413 | 415 => ErrorKind::Usage,
            409 => ErrorKind::Refused,
            401 | 403 => ErrorKind::Refused,
            422 => ErrorKind::Mismatch,
            _ => ErrorKind::Failed,
        };
        let message = text("message").unwrap_or_else(|| format!("status {}", self.status));
        let e = Error::new(kind, message);
        Err(match text("hint") {
            Some(hint) => e.hint(hint),
            None => e,
        })
    }
}
