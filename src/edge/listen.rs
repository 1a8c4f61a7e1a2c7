//! Accepting TCP connections and speaking HTTP on them until they are upgraded.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse as _;
use http::HeaderValue;
use http::header::CONNECTION;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service as _;
use tracing::{debug, warn};

use super::PeerAddress;
use super::gate::Gate;
use super::http::HEALTH_PATHS;
use super::places::{Connection, Limits, Places};
use super::stream::tune;
use super::watched::{Answer, Watched};
use crate::metrics::{HttpEnded, Metrics};
use crate::relay::refusal::Refusal;

/// Connections that may wait in the kernel.
const BACKLOG: i32 = 4096;
/// Connections that one turn accepts. What a thread has accepted no other can serve, so none takes the whole queue.
const ACCEPTS_A_TURN: usize = 4;
/// Between two warnings that nothing can be accepted.
const WARN_PAUSE: Duration = Duration::from_secs(60);
/// What hyper takes for a WebSocket inside HTTP/2 before the path does: as much as the socket gathers at once. Frames that
/// wait longer are replaced by newer ones in the outbox.
const TUNNEL_BUFFER: usize = 16 * 1024;
/// A token has about 1 KiB; cookies and proxies add theirs.
const HEADER_BYTES: usize = 32 * 1024;
/// Streams that one HTTP/2 connection may have open at the same time.
const HTTP2_STREAMS: u32 = 1024;

/// Opens a listening socket, which is registered with no runtime yet.
///
/// # Errors
/// What the system says, for instance that the address is in use.
pub fn bind(address: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // [::] takes IPv4 as well.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What all threads that accept on one port share.
#[derive(Debug)]
pub struct Port {
    limits: Limits,
    gate: Arc<Gate>,
    metrics: Arc<Metrics>,
    places: Mutex<Places>,
    /// When it was last said that nothing can be accepted.
    warned: Mutex<Option<Instant>>,
}

impl Port {
    /// Without any connection yet.
    #[must_use]
    pub fn new(gate: Arc<Gate>, metrics: Arc<Metrics>) -> Arc<Self> {
        Self::within(Limits::default(), gate, metrics)
    }

    fn within(limits: Limits, gate: Arc<Gate>, metrics: Arc<Metrics>) -> Arc<Self> {
        let places = Mutex::new(Places::new(limits));
        Arc::new(Self { limits, gate, metrics, places, warned: Mutex::default() })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No file descriptors left, or a client that is gone already: the next one may do better.
    fn on_failed(&self, error: &io::Error, now: Instant) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|then| now.saturating_duration_since(then) >= WARN_PAUSE) {
            warn!(%error, "a connection could not be accepted");
            *warned = Some(now);
        }
        drop(warned);
        self.places().clear(now, None);
    }
}

/// Accepts on this thread and serves here what it accepts, for ever. Several threads may do so, each with a
/// copy of one listening socket. The kernel's queue is one, so another thread takes what one has no time for.
pub async fn serve(port: Arc<Port>, listener: TcpListener, router: Router) {
    let mut turns = (1..=ACCEPTS_A_TURN).cycle();
    loop {
        if turns.next() == Some(ACCEPTS_A_TURN) {
            tokio::task::yield_now().await;
        }
        let accepted = listener.accept().await;
        let now = Instant::now();
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                port.on_failed(&error, now);
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let network = port.gate.network_of_client(peer.ip());
        let connection = match port.places().enter(network, now) {
            Ok(connection) => connection,
            Err(ended) => {
                port.metrics.http_ended(ended);
                continue;
            }
        };
        let place = Place { port: Arc::clone(&port), connection };
        let router = router.clone();
        tokio::spawn(async move {
            place.port.metrics.http_connections.inc();
            if let Err(error) = speak(stream, peer, router, &place).await {
                debug!(%error, "an HTTP connection ended early");
            }
        });
    }
}

/// A place that is free again when this is dropped.
struct Place {
    port: Arc<Port>,
    connection: Arc<Connection>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.port.places().leave(&self.connection);
        self.port.metrics.http_connections.dec();
    }
}

type HttpError = Box<dyn std::error::Error + Send + Sync>;

async fn speak(stream: TcpStream, peer: SocketAddr, router: Router, place: &Place) -> Result<(), HttpError> {
    tune(&stream)?;
    let limits = &place.port.limits;
    let connection = Arc::clone(&place.connection);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let asking = connection.ask(Instant::now());
        let refused = connection.is_last() && !is_health_check(request.uri().path());
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(PeerAddress(peer));
        request.extensions_mut().insert(Arc::clone(&connection));
        let is_last = connection.is_last();
        let answered = if refused { None } else { Some(router.clone().call(request)) };
        async move {
            let mut response = match answered {
                Some(answered) => answered.await?,
                None => Refusal::Full.into_response(),
            };
            if is_last {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response.map(|body| Answer::new(body, asking)))
        }
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    // Times are counted here: hyper's for a request's head runs while a connection is idle, too.
    http.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEADER_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_send_buf_size(TUNNEL_BUFFER)
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(Duration::from_secs(25)))
        .keep_alive_timeout(Duration::from_secs(25));
    let watched = Watched { stream, connection: Arc::clone(&place.connection) };
    let mut serving = pin!(http.serve_connection_with_upgrades(TokioIo::new(watched), service));
    loop {
        let deadline = place.connection.deadline(limits);
        // A tunnel that ends has no other way to say so.
        let at = deadline.map_or_else(|| Instant::now() + limits.answer, |(at, _)| at);
        let ended = tokio::select! {
            ended = &mut serving => return ended,
            () = place.connection.cleared.notified() => HttpEnded::Cleared,
            () = tokio::time::sleep_until(at.into()) => match place.connection.deadline(limits) {
                Some((at, ended)) if at <= Instant::now() => ended,
                Some(_) | None => continue,
            },
        };
        place.port.metrics.http_ended(ended);
        return Err(format!("{ended:?}").into());
    }
}

fn is_health_check(path: &str) -> bool {
    HEALTH_PATHS.contains(&path)
}

#[cfg(test)]
#[path = "listen_tests.rs"]
mod tests;
