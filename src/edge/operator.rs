//! The admin port: metrics, and what operators may ask and do.

use std::sync::Arc;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout;
use tracing::info;

use super::http::{Edge, health_routes};
use super::workers::{Command, HAND_OVER_LIMIT};
use crate::hub::InstanceInfo;
use crate::relay::handshake;
use crate::relay::ids::{ConnectionId, Device, Generation, InstanceId, UserId};
use crate::relay::record::Held;
use crate::relay::refusal::Refusal;

/// The admin port's state.
#[derive(Debug, Clone)]
pub struct Operator {
    edge: Arc<Edge>,
    token: Option<Arc<SecretString>>,
    /// This instance, for a backplane that knows no others.
    me: InstanceInfo,
    message_bytes: usize,
}

/// The admin port.
pub fn admin(edge: Arc<Edge>, token: Option<SecretString>, me: InstanceInfo, message_bytes: usize) -> Router {
    let operator = Operator { edge: Arc::clone(&edge), token: token.map(Arc::new), me, message_bytes };
    let calls = Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/rooms/{uid}", get(room).delete(disconnect_room))
        .route("/v1/rooms/{uid}/messages", post(message))
        .route("/v1/rooms/{uid}/{device}", delete(disconnect_device))
        .route("/v1/instances", get(instances))
        .with_state(operator);
    Router::new().merge(health_routes()).with_state(edge).merge(calls)
}

async fn metrics(State(operator): State<Operator>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], operator.edge.metrics.encode()).into_response()
}

/// Proof that the request carries the admin token.
struct Authorized;

impl FromRequestParts<Operator> for Authorized {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, operator: &Operator) -> Result<Self, Response> {
        // Without a token there is no operator API at all.
        let Some(token) = &operator.token else {
            return Err(StatusCode::NOT_FOUND.into_response());
        };
        let given = handshake::bearer(&parts.headers).ok().flatten().unwrap_or_default();
        // In constant time: how long it takes tells nothing about how much of a guess was right.
        let expected = token.expose_secret().as_bytes();
        if aws_lc_rs::constant_time::verify_slices_are_equal(given.as_bytes(), expected).is_err() {
            let mut response = StatusCode::UNAUTHORIZED.into_response();
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Err(response);
        }
        // The audit line: what was asked for, without the user (a uid can be an e-mail address).
        info!(method = %parts.method, "operator call");
        Ok(Self)
    }
}

#[derive(Serialize)]
struct RoomAnswer<'a> {
    uid: &'a str,
    desktop: Option<SlotAnswer>,
    mobile: Option<SlotAnswer>,
}

#[derive(Serialize)]
struct SlotAnswer {
    connection: ConnectionId,
    instance: InstanceId,
    generation: Generation,
    lease_ms: u64,
}

impl From<Held> for SlotAnswer {
    fn from(held: Held) -> Self {
        let holder = held.holder;
        let (connection, generation) = (holder.member.connection, holder.member.generation);
        Self { connection, instance: holder.instance, generation, lease_ms: held.lease_ends }
    }
}

#[derive(Serialize)]
struct Connected {
    connected: usize,
}

#[derive(Serialize)]
struct Disconnected {
    disconnected: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageBody<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    device: Option<Device>,
}

fn user(uid: &str) -> Result<UserId, Refusal> {
    UserId::new(uid).ok_or(Refusal::BadRequest("a uid has 1 to 128 characters"))
}

async fn room(
    _: Authorized,
    State(operator): State<Operator>,
    Path(uid): Path<String>,
) -> Result<Response, Refusal> {
    let user = user(&uid)?;
    let look = |answer| Command::Look(user.clone(), answer);
    let [desktop, mobile] = operator.edge.workers.ask(&user, look).await?;
    let answer = RoomAnswer { uid: &uid, desktop: desktop.map(Into::into), mobile: mobile.map(Into::into) };
    Ok(axum::Json(answer).into_response())
}

async fn message(
    _: Authorized,
    State(operator): State<Operator>,
    Path(uid): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let user = user(&uid)?;
    let body = timeout(HAND_OVER_LIMIT, to_bytes(request.into_body(), operator.message_bytes)).await;
    let body = body.map_err(|_| Refusal::BadRequest("the body took too long"))?;
    let body = body.map_err(|_| Refusal::BadRequest("the body is longer than limits.message_bytes"))?;
    let message: MessageBody<'_> = serde_json::from_slice(&body).map_err(|_| {
        Refusal::BadRequest("the body must be {\"data\": ANY, \"device\"?: \"desktop\" or \"mobile\"}")
    })?;
    let devices = message.device.map_or(Device::ALL.to_vec(), |device| vec![device]);
    let data = bytes::Bytes::copy_from_slice(message.data.get().as_bytes());
    let tell = |answer| Command::Tell(user.clone(), devices, data, answer);
    let connected = operator.edge.workers.ask(&user, tell).await?;
    Ok(axum::Json(Connected { connected }).into_response())
}

async fn disconnect_room(
    _: Authorized,
    State(operator): State<Operator>,
    Path(uid): Path<String>,
) -> Result<Response, Refusal> {
    disconnect(&operator, &uid, Device::ALL.to_vec()).await
}

async fn disconnect_device(
    _: Authorized,
    State(operator): State<Operator>,
    Path((uid, device)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let device = Device::parse(&device).ok_or(Refusal::BadDevice)?;
    disconnect(&operator, &uid, vec![device]).await
}

async fn disconnect(operator: &Operator, uid: &str, devices: Vec<Device>) -> Result<Response, Refusal> {
    let user = user(uid)?;
    let disconnect = |answer| Command::Disconnect(user.clone(), devices, answer);
    let disconnected = operator.edge.workers.ask(&user, disconnect).await?;
    Ok(axum::Json(Disconnected { disconnected }).into_response())
}

#[derive(Serialize)]
struct Instances {
    instances: Vec<InstanceAnswer>,
}

#[derive(Serialize)]
struct InstanceAnswer {
    instance: InstanceId,
    connections: u64,
    version: String,
    started_at: u64,
    draining: bool,
}

async fn instances(_: Authorized, State(operator): State<Operator>) -> Response {
    let mut instances = operator.edge.workers.instances().await;
    // This instance knows itself best, and a backplane without others knows nobody.
    instances.retain(|info| info.instance != operator.me.instance);
    let gate = &operator.edge.gate;
    let connections = u64::from(gate.connections());
    instances.push(InstanceInfo { connections, draining: gate.is_draining(), ..operator.me.clone() });
    let answer = |info: InstanceInfo| InstanceAnswer {
        instance: info.instance,
        connections: info.connections,
        version: info.version,
        started_at: info.started_at,
        draining: info.draining,
    };
    axum::Json(Instances { instances: instances.into_iter().map(answer).collect() }).into_response()
}
