//! Connections: accepted, counted, timed, and dropped where their client is slow and others wait.
//!
//! A connection is busy from the end of a request's body until its answer is made. Where there are
//! as many connections as may be, a new one takes the place of that one which has waited longest
//! for its client, never one of the port that of one of the socket; only if all are busy does it wait
//! itself.

use super::app::App;
use super::guard;
use super::metrics::count;
use crate::daemon::roles::Peer;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::time::{Sleep, sleep};

/// Longest request head in bytes; longer ones get 431.
const MAX_HEAD: usize = 16 << 10;
/// Most header lines.
const MAX_HEADERS: usize = 64;
/// How long to wait after `accept` failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The Unix socket; the client's user.
    Unix(Option<Peer>),
    /// The loopback port.
    Tcp,
}

/// One connection, as its requests see it.
pub struct Conn {
    /// Where its client is.
    pub transport: Transport,
    state: Mutex<ConnState>,
    drop: Notify,
}

#[derive(Clone, Copy)]
struct ConnState {
    busy: bool,
    since: Instant,
}

impl Conn {
    /// One that waits for its client.
    pub fn new(transport: Transport) -> Conn {
        let state = Mutex::new(ConnState { busy: false, since: Instant::now() });
        Conn { transport, state, drop: Notify::new() }
    }

    /// Marks the connection as working or as waiting for its client.
    pub fn set_busy(&self, busy: bool) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) =
            ConnState { busy, since: Instant::now() };
    }

    fn is_tcp(&self) -> bool {
        self.transport == Transport::Tcp
    }

    fn state(&self) -> ConnState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The open connections.
#[derive(Default)]
pub struct Registry {
    open: Mutex<HashMap<u64, Arc<Conn>>>,
    next: AtomicU64,
    closed: Notify,
}

impl Registry {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Conn>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.open().len()
    }

    /// Tells the connection that waits longest for its client to close, one of the port where there is
    /// such; `false` if all are busy, or, for a new one of the port (`tcp`), all of the port.
    fn evict(&self, tcp: bool) -> bool {
        let mut open = self.open();
        let slowest = open
            .iter()
            .map(|(id, conn)| (!conn.is_tcp(), conn.state(), *id))
            .filter(|(unix, state, _)| !(state.busy || tcp && *unix))
            .min_by_key(|(unix, state, _)| (*unix, state.since));
        let Some(conn) = slowest.and_then(|(.., id)| open.remove(&id)) else { return false };
        conn.drop.notify_one();
        true
    }

    /// Whether one more, of the port or not, finds a place among `limit`. A quarter of the places is
    /// kept from the port, which any program on the machine can reach.
    fn has_room(&self, limit: usize, tcp: bool) -> bool {
        let open = self.open();
        let of_port = || open.values().filter(|conn| conn.is_tcp()).count();
        open.len() < limit && !(tcp && of_port() >= limit - limit / 4)
    }

    /// Makes room for one more among `limit`.
    async fn room(&self, limit: usize, tcp: bool, app: &App) {
        loop {
            let closed = self.closed.notified();
            if self.has_room(limit, tcp) {
                return;
            }
            if self.evict(tcp) {
                count(&app.metrics.evicted);
                continue;
            }
            closed.await;
        }
    }

    /// Waits until none is open.
    pub async fn empty(&self) {
        loop {
            let closed = self.closed.notified();
            if self.len() == 0 {
                return;
            }
            closed.await;
        }
    }
}

/// Takes a connection out of the registry however its task ends.
struct Registered {
    app: Arc<App>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.app.registry.open().remove(&self.id);
        self.app.metrics.connections.fetch_sub(1, Ordering::Relaxed);
        self.app.registry.closed.notify_waiters();
    }
}

/// Accepts until `stop` says so.
pub async fn accept<L: Listener>(app: Arc<App>, listener: L, mut stop: watch::Receiver<bool>) {
    loop {
        let limit = app.config().limits.connections;
        let accepted = tokio::select! {
            () = stopped(&mut stop) => return,
            accepted = async {
                app.registry.room(limit, L::TCP, &app).await;
                listener.accept().await
            } => accepted,
        };
        match accepted {
            Ok((stream, transport)) => start(app.clone(), stream, transport, stop.clone()),
            Err(e) => {
                tracing::warn!("a connection can't be accepted: {e}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn start<S>(app: Arc<App>, stream: S, transport: Transport, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let conn = Arc::new(Conn::new(transport));
    let id = app.registry.next.fetch_add(1, Ordering::Relaxed);
    app.registry.open().insert(id, conn.clone());
    count(&app.metrics.accepted);
    count(&app.metrics.connections);
    let registered = Registered { app: app.clone(), id };
    tokio::spawn(async move {
        let _registered = registered;
        let limits = app.config().limits.clone();
        let own = conn.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (app, conn) = (app.clone(), own.clone());
            async move {
                let response = guard::handle(app, conn, request.map(Body::new)).await;
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let io = TokioIo::new(Timed::new(stream, limits.body()));
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.header())
            .max_buf_size(64 << 10)
            .max_header_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .half_close(false);
        let mut serving = pin!(http.serve_connection(io, service));
        let ended = tokio::select! {
            ended = serving.as_mut() => Some(ended),
            () = conn.drop.notified() => None,
            () = stopped(&mut stop) => {
                serving.as_mut().graceful_shutdown();
                Some(serving.await)
            }
        };
        match ended {
            Some(Ok(())) => {}
            Some(Err(e)) => tracing::debug!("connection {id}: {e}"),
            None => tracing::debug!("connection {id}: dropped, its client is slow"),
        }
    });
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error: the sender is gone, and with it the daemon.
    drop(stop.wait_for(|stop| *stop).await);
}

/// What connections come from.
pub trait Listener: Send + 'static {
    /// Whether it is the port.
    const TCP: bool;

    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Transport)>> + Send;
}

impl Listener for tokio::net::UnixListener {
    const TCP: bool = false;
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<(Self::Stream, Transport)> {
        let (stream, _) = tokio::net::UnixListener::accept(self).await?;
        let peer = stream.peer_cred().ok().map(|c| Peer { user: c.uid(), group: c.gid() });
        Ok((stream, Transport::Unix(peer)))
    }
}

impl Listener for tokio::net::TcpListener {
    const TCP: bool = true;
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<(Self::Stream, Transport)> {
        let (stream, _) = tokio::net::TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, Transport::Tcp))
    }
}

/// A stream whose writes fail when the other side takes nothing for so long.
struct Timed<S> {
    stream: S,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Timed<S> {
    fn new(stream: S, patience: Duration) -> Timed<S> {
        Timed { stream, patience, waiting: None }
    }

    fn timed<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.waiting = None;
            return poll;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        match waiting.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.timed(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.timed(cx, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.timed(cx, poll)
    }
}
