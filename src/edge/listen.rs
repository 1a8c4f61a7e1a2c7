//! Accepting TCP connections and speaking HTTP on them until they are upgraded.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower_service::Service as _;
use tracing::{debug, warn};

use super::PeerAddress;
use super::stream::tune;
use crate::metrics::Metrics;

/// Connections that may wait in the kernel.
const BACKLOG: i32 = 4096;
/// Connections that speak HTTP at the same time; upgraded ones do not count.
const HTTP_CONNECTIONS: usize = 8192;
/// How long a request's headers may take, also on a connection that has just been accepted.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// A token has about 1 KiB; cookies and proxies add theirs.
const HEADER_BYTES: usize = 32 * 1024;
/// Streams that one HTTP/2 connection may have open at the same time.
const HTTP2_STREAMS: u32 = 1024;

/// Opens a listening socket.
///
/// # Errors
/// What the system says, for instance that the address is in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // [::] takes IPv4 as well.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts and serves for ever.
pub async fn serve(listener: TcpListener, router: Router, metrics: Arc<Metrics>) {
    let places = Arc::new(Semaphore::new(HTTP_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // No file descriptors left, or a client that is gone already: the next one may do better.
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (router, metrics) = (router.clone(), Arc::clone(&metrics));
        tokio::spawn(async move {
            metrics.http_connections.inc();
            if let Err(error) = speak(stream, peer, router, &metrics).await {
                debug!(%error, "an HTTP connection ended early");
            }
            metrics.http_connections.dec();
            drop(place);
        });
    }
}

type HttpError = Box<dyn std::error::Error + Send + Sync>;

async fn speak(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    metrics: &Metrics,
) -> Result<(), HttpError> {
    tune(&stream)?;
    let has_asked = Arc::new(AtomicBool::new(false));
    let asks = Arc::clone(&has_asked);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        asks.store(true, Ordering::Relaxed);
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(PeerAddress(peer));
        router.clone().call(request)
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(HEADER_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(Some(Duration::from_secs(25)))
        .keep_alive_timeout(Duration::from_secs(25));
    let mut connection = pin!(http.serve_connection_with_upgrades(TokioIo::new(stream), service));
    // hyper's own limits begin when it knows which version is spoken, for which it waits without one; and an HTTP/2
    // connection may ask for nothing for ever.
    let ended = match timeout(HEADER_LIMIT, &mut connection).await {
        Ok(ended) => ended,
        Err(_) if !has_asked.load(Ordering::Relaxed) => Err("no request came in time".into()),
        Err(_) => return connection.await,
    };
    // A connection that is kept alive and has nothing to ask any more ends in the same error, and is none of these.
    if let Err(error) = &ended
        && !has_asked.load(Ordering::Relaxed)
        && error.downcast_ref::<hyper::Error>().is_none_or(hyper::Error::is_timeout)
    {
        metrics.requests_overdue.inc();
    }
    ended
}
