//! What every request passes before its handler: an id, the token, the host, the body's limits,
//! the time limit, the log and the counters.

use super::app::App;
use super::connection::{Conn, Transport};
use super::problem::Problem;
use super::who::Who;
use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

/// The header that carries a request's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How long a request with a wrong token waits for its answer.
const GUESS_PAUSE: Duration = Duration::from_secs(1);
/// How often wrong tokens are logged.
const GUESS_LOG: Duration = Duration::from_secs(60);
/// Bytes of a body that take nothing of the common budget.
const SMALL_BODY: usize = 64 << 10;
/// Bytes of one permit of the budget.
pub const PERMIT: usize = 64 << 10;

/// A request's body, whole, with its share of the memory for bodies.
#[derive(Clone)]
pub struct Whole {
    /// The bytes.
    pub bytes: Bytes,
    _share: Option<Arc<OwnedSemaphorePermit>>,
}

/// Answers a request, whatever it is.
pub async fn handle(app: Arc<App>, conn: Arc<Conn>, request: Request) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let checked = admit(&app, &conn, request).await;
    conn.set_busy(true);
    let mut response = match checked {
        Ok(request) => {
            let service = TowerToHyperService::new(app.router());
            let limit = app.config().limits.request();
            match tokio::time::timeout(limit, Guarded(service.call(request))).await {
                Ok(Ok(response)) => response,
                Ok(Err(problem)) => problem.into_response(),
                Err(_) => Problem::slow(limit).into_response(),
            }
        }
        Err(problem) => problem.into_response(),
    };
    conn.set_busy(false);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let route = response.extensions().get::<MatchedPath>().map(|p| p.as_str().to_string());
    let status = response.status();
    app.metrics.request(route.as_deref().unwrap_or("other"), known(&method), status.as_u16());
    let took = started.elapsed().as_secs_f64() * 1e3;
    let from = conn.transport;
    match status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
        true => tracing::error!("{id}: {method} {path}: {status} after {took:.1} ms"),
        false => tracing::debug!("{id}: {method} {path}: {status} after {took:.1} ms ({from:?})"),
    }
    response
}

/// Methods that are counted by name.
fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        _ => "other",
    }
}

/// Copies the route to the answer, for the counters: a layer of the router.
pub async fn note_route(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    if let Some(route) = route {
        response.extensions_mut().insert(route);
    }
    response
}

/// The client's id if it is a fit one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let fit = |text: &&str| {
        (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    match headers.get(REQUEST_ID).and_then(|v| v.to_str().ok()).filter(fit) {
        Some(id) => id.to_string(),
        None => {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            format!("{:08x}-{n}", std::process::id())
        }
    }
}

/// The request with its body read, if it may pass.
async fn admit(app: &App, conn: &Conn, request: Request) -> Result<Request, Problem> {
    let who = match conn.transport {
        Transport::Unix(peer) => Some(app.keeper.by_peer(peer)),
        Transport::Tcp => {
            check_host(app, &request)?;
            match super::api::has_login(request.uri().path()) {
                true => super::api::logged_in(app, request.headers()),
                false => match by_token(app, request.headers()) {
                    Ok(who) => Some(who),
                    Err(problem) => {
                        if request.headers().contains_key(header::AUTHORIZATION) {
                            app.guesses.wrong().await;
                        }
                        return Err(problem);
                    }
                },
            }
        }
    };
    let (parts, body) = request.into_parts();
    let whole = read(app, &parts.headers, body).await?;
    let mut request = Request::from_parts(parts, Body::empty());
    request.extensions_mut().insert(whole);
    request.extensions_mut().insert(conn.transport);
    if let Some(who) = who {
        request.extensions_mut().insert(who);
    }
    Ok(request)
}

/// Keeps web pages that a browser on this machine shows from reaching the port under another name.
fn check_host(app: &App, request: &Request) -> Result<(), Problem> {
    let host = request.headers().get(header::HOST).and_then(|v| v.to_str().ok());
    let host = host.or_else(|| request.uri().host()).unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    if app.config().serve.hosts.iter().any(|h| h.eq_ignore_ascii_case(name)) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        format!("the Host '{name}' is not one that this port answers to"),
    )
    .hint("see serve.hosts"))
}

fn by_token(app: &App, headers: &HeaderMap) -> Result<Who, Problem> {
    let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let given = given.and_then(|v| {
        let (scheme, token) = v.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let wrong = |what: &str| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", what);
    let given = given.ok_or_else(|| wrong("expected 'Authorization: Bearer TOKEN'"))?;
    app.keeper.by_token(given).ok_or_else(|| wrong("the token is wrong"))
}

/// Reads a body within the limits on bytes, time and memory.
async fn read(app: &App, headers: &HeaderMap, body: Body) -> Result<Whole, Problem> {
    let config = app.config();
    let limit = config.limits.body_bytes;
    let too_large = || {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("the body is larger than {limit} bytes (limits.body_bytes)"),
        )
    };
    let stated = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
    if stated.and_then(|v| v.parse::<u64>().ok()).is_some_and(|n| n > limit as u64) {
        return Err(too_large());
    }
    let deadline = tokio::time::Instant::now() + config.limits.body();
    let mut bytes = Vec::new();
    let mut share: Option<OwnedSemaphorePermit> = None;
    let mut body = pin!(body);
    loop {
        let frame = timeout_at(deadline, body.frame()).await.map_err(|_| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "timeout",
                format!(
                    "the body did not come within {} s (limits.body_seconds)",
                    config.limits.body_seconds
                ),
            )
        })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| Problem::invalid(format!("the body can't be read: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
        let held = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let need = bytes.len().saturating_sub(SMALL_BODY).div_ceil(PERMIT);
        if need > held {
            let more = app.bodies.clone().try_acquire_many_owned((need - held) as u32);
            let more = more.map_err(|_| Problem::busy("too many large bodies at once"))?;
            match share.as_mut() {
                Some(share) => share.merge(more),
                None => share = Some(more),
            }
        }
    }
    Ok(Whole { bytes: bytes.into(), _share: share.map(Arc::new) })
}

/// Requests with a wrong token.
#[derive(Default)]
pub struct Guesses(Mutex<Guessed>);

#[derive(Default)]
struct Guessed {
    all: u64,
    logged: u64,
    at: Option<Instant>,
    at_once: bool,
}

impl Guesses {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).all
    }

    /// One more: one a connection and second, and the log says so.
    pub async fn wrong(&self) {
        if !self.note() {
            tokio::time::sleep(GUESS_PAUSE).await;
        }
    }

    /// From now on none waits, for tests.
    pub fn answer_at_once(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).at_once = true;
    }

    /// Whether it is answered at once.
    fn note(&self) -> bool {
        let mut guessed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guessed.all += 1;
        if guessed.at.is_none_or(|at| at.elapsed() >= GUESS_LOG) {
            let new = guessed.all - guessed.logged;
            tracing::warn!("{new} requests on the port with a wrong token");
            guessed.logged = guessed.all;
            guessed.at = Some(Instant::now());
        }
        guessed.at_once
    }
}

/// A future whose panic is a failed request.
struct Guarded<F>(F);

impl<F, E> Future for Guarded<F>
where
    F: Future<Output = Result<Response, E>> + Unpin,
{
    type Output = Result<Response, Problem>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let failed = || Poll::Ready(Err(Problem::failed("internal error in the handler")));
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.0).poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(response))) => Poll::Ready(Ok(response)),
            Ok(Poll::Ready(Err(_))) | Err(_) => failed(),
        }
    }
}
