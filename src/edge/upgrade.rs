//! From a handshake to a socket on its user's worker.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::{Parts, downcast};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{Instrument as _, Span, debug, info_span};
use tungstenite::handshake::derive_accept_key;

use super::gate::Visit;
use super::places::{Connection, Tunnel};
use super::socket::label_of;
use super::stream::MovingStream;
use super::watched::Watched;
use super::workers::{Command, HAND_OVER_LIMIT, Join, Moving};
use super::{Edge, peer_of};
use crate::auth::unix_now;
use crate::hub::Joining;
use crate::relay::handshake;
use crate::relay::refusal::Refusal;
use crate::telemetry::{self, STEPS};

/// How long a client may take to receive the answer to its handshake.
const UPGRADE_LIMIT: Duration = Duration::from_secs(10);

/// Does this request ask for a WebSocket, well or badly?
#[must_use]
pub fn is_upgrade(request: &Request) -> bool {
    request.headers().contains_key(UPGRADE) || is_tunnel(request)
}

/// The methods of an HTTP/1.1 upgrade and of an HTTP/2 tunnel.
fn is_tunnel(request: &Request) -> bool {
    request.method() == Method::CONNECT
        && request
            .extensions()
            .get::<hyper::ext::Protocol>()
            .is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// Answers a handshake: 101 (200 inside HTTP/2), or a refusal.
pub async fn upgrade(edge: Arc<Edge>, mut request: Request) -> Response {
    let metrics = Arc::clone(&edge.metrics);
    let span = telemetry::handshake(request.headers());
    let accepting = async {
        let mut visit = edge.gate.visit(peer_of(&request), request.headers())?;
        let accepted = accept(&edge, &mut request, &mut visit).await;
        accepted.inspect_err(|refusal| visit.on_refused(*refusal))
    };
    let accepted = accepting.instrument(span.clone()).await;
    let _in_its_trace = span.enter();
    match accepted {
        Ok(response) => {
            metrics.handshake(None);
            telemetry::handshake_ended(&span, response.status().as_u16(), "accepted");
            response
        }
        Err(refusal) => {
            metrics.handshake(Some(refusal));
            telemetry::handshake_ended(&span, refusal.status(), refusal.code());
            debug!(code = refusal.code(), "a handshake was refused");
            refusal.into_response()
        }
    }
}

async fn accept(edge: &Edge, request: &mut Request, visit: &mut Visit) -> Result<Response, Refusal> {
    let admission = edge.gate.admit()?;
    let tunnel = is_tunnel(request);
    let query = request.uri().query().unwrap_or_default();
    let handshake = handshake::read(request.method(), query, request.headers(), tunnel)?;
    let on_upgrade = request.extensions_mut().remove::<OnUpgrade>().ok_or(Refusal::UpgradeRequired)?;
    telemetry::handshake_is_for(&Span::current(), handshake.device.as_str(), handshake.protocol.as_str());
    if handshake.may_be_a_pages {
        edge.gate.admit_page(request.headers())?;
    }
    let token = handshake.token.ok_or(Refusal::MissingToken)?;
    let verifying = edge.verifier.verify(&token, unix_now());
    let identity = verifying.instrument(info_span!(target: STEPS, "verify")).await?;
    visit.on_proven();
    // The client may have gone while this process stood still, or while its keys were fetched. Once more through the
    // connection's task, which ends this future at the end of its TCP connection: no claim is made for nobody.
    tokio::task::yield_now().await;

    let (answer, answered) = oneshot::channel();
    let (socket, comes) = oneshot::channel();
    let joining = Joining {
        user: identity.user.clone(),
        device: handshake.device,
        client: handshake.client,
        attempt: handshake.attempt,
        protocol: handshake.protocol,
        label: label_of(&identity),
        expires_at: identity.expires_at,
    };
    let user = identity.user.clone();
    let join = Join { joining, identity, admission, answer, socket: comes, span: Span::current() };
    if !edge.workers.send(&user, Command::Join(Box::new(join))).await {
        return Err(Refusal::Full);
    }
    // The worker answers within the backplane's time limit. If the client goes away meanwhile, this
    // future is dropped, and with it `socket`: the worker then gives the slot back.
    match timeout(HAND_OVER_LIMIT, answered).await {
        Ok(Ok(answer)) => answer?,
        // The worker is overloaded, or gone.
        Ok(Err(_)) | Err(_) => return Err(Refusal::Full),
    }

    let connection = request.extensions_mut().remove::<Arc<Connection>>().ok_or(Refusal::UpgradeRequired)?;
    let is_home = edge.workers.is_home_of(&user);
    tokio::spawn(move_socket(on_upgrade, connection.tunnel(), is_home, socket));
    let mut headers = Vec::with_capacity(4);
    if let Some(selected) = handshake.selected {
        headers.push((SEC_WEBSOCKET_PROTOCOL, selected));
    }
    if tunnel {
        return Ok(empty(StatusCode::OK, &headers));
    }
    let key = request.headers().get(SEC_WEBSOCKET_KEY).map_or(&b""[..], HeaderValue::as_bytes);
    let accept =
        HeaderValue::from_str(&derive_accept_key(key)).map_err(|_| Refusal::BadRequest("bad key"))?;
    headers.push((CONNECTION, HeaderValue::from_static("upgrade")));
    headers.push((UPGRADE, HeaderValue::from_static("websocket")));
    headers.push((SEC_WEBSOCKET_ACCEPT, accept));
    Ok(empty(StatusCode::SWITCHING_PROTOCOLS, &headers))
}

/// An empty answer with these headers.
fn empty(status: StatusCode, headers: &[(HeaderName, HeaderValue)]) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    for (name, value) in headers {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    response
}

/// Takes the socket out of hyper once the answer has left, and hands it to the worker that waits for it.
async fn move_socket(on_upgrade: OnUpgrade, tunnel: Tunnel, is_home: bool, socket: oneshot::Sender<Moving>) {
    let Ok(Ok(upgraded)) = timeout(UPGRADE_LIMIT, on_upgrade).await else {
        return;
    };
    match take_out(upgraded, tunnel, is_home) {
        // A worker that does not wait any more has given the slot back.
        Ok(moving) => drop(socket.send(moving)),
        Err(error) => debug!(%error, "a socket could not be moved to its worker"),
    }
}

fn take_out(upgraded: Upgraded, tunnel: Tunnel, is_home: bool) -> std::io::Result<Moving> {
    match downcast::<TokioIo<Watched>>(upgraded) {
        Ok(Parts { io, read_buf, .. }) => {
            let stream = io.into_inner().stream;
            let stream = if is_home {
                MovingStream::Here(stream)
            } else {
                // Out of this thread's epoll; the other worker registers it anew.
                MovingStream::Away(stream.into_std()?)
            };
            // The bytes are copied, so that hyper's read buffer does not live as long as the socket.
            Ok(Moving { stream, early: Bytes::copy_from_slice(&read_buf) })
        }
        Err(upgraded) => {
            let stream = MovingStream::Tunnel(Box::new(TokioIo::new(upgraded)), tunnel);
            Ok(Moving { stream, early: Bytes::new() })
        }
    }
}
