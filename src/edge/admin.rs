//! The admin port: metrics, and what operators may ask and do.

use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{FromRequestParts, MatchedPath, Path, RawPathParams, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use http::header::{ACCEPT, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout;
use tracing::info;

use super::http::health_routes;
use super::workers::{Command, HAND_OVER_LIMIT};
use super::{Edge, peer_of};
use crate::hub::InstanceInfo;
use crate::metrics::Format;
use crate::relay::handshake;
use crate::relay::ids::{ConnectionId, Device, Generation, InstanceId, UserId};
use crate::relay::record::Lease;
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

/// The router of the admin port: health, metrics and the calls of operators.
pub fn admin(edge: Arc<Edge>, token: Option<SecretString>, me: InstanceInfo, message_bytes: usize) -> Router {
    let operator = Operator { edge: Arc::clone(&edge), token: token.map(Arc::new), me, message_bytes };
    let calls = Router::new()
        .route("/v1/rooms/{uid}", get(room).delete(disconnect_room))
        .route("/v1/rooms/{uid}/messages", post(message))
        .route("/v1/rooms/{uid}/{device}", delete(disconnect_device))
        .route("/v1/instances", get(instances))
        .route_layer(from_fn_with_state(operator.clone(), authorize))
        .route("/metrics", get(metrics))
        .with_state(operator);
    Router::new().merge(health_routes()).with_state(edge).merge(calls)
}

async fn metrics(State(operator): State<Operator>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    ([(CONTENT_TYPE, format.content_type())], operator.edge.metrics.encode(format)).into_response()
}

/// How many devices a call has reached, for the audit line.
#[derive(Clone, Copy)]
struct Reached(usize);

/// Lets a call with the admin token through, and writes the audit line of every call. The line has the
/// caller's address, the call, the user's device and the status.
///
/// A uid can be an e-mail address, which no log may hold. The line has a part of its SHA-256 instead
/// (`printf %s UID | sha256sum | cut -c1-16`). An operator finds the calls about one user by it.
async fn authorize(
    State(operator): State<Operator>,
    path: MatchedPath,
    parameters: RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    // Without a token there is no operator API at all.
    let Some(token) = &operator.token else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let (method, address) = (request.method().clone(), peer_of(&request));
    let query = request.uri().query().unwrap_or_default().to_owned();
    let given = handshake::bearer(request.headers()).ok().flatten().unwrap_or_default();
    // In constant time: the time that it takes says nothing about how much of a guess was right.
    let expected = token.expose_secret().as_bytes();
    let is_operator = aws_lc_rs::constant_time::verify_slices_are_equal(given.as_bytes(), expected).is_ok();
    let response = if is_operator {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")]).into_response()
    };
    let parameter = |name| parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| value);
    let hash = |segment: &str| match user_in(segment, &query) {
        Ok(user) => user_hash(user.qualified()),
        Err(_) => user_hash(segment),
    };
    let reached = response.extensions().get::<Reached>();
    // What was logged could be anything: only the names of devices are.
    let device = parameter("device").map(|device| Device::parse(device).map_or("unknown", Device::as_str));
    info!(
        client.address = %address.ip(),
        call = %format_args!("{method} {}", path.as_str()),
        user.hash = parameter("uid").map(hash),
        device,
        status = response.status().as_u16(),
        reached = reached.map(|reached| reached.0),
        "operator call"
    );
    response
}

/// The first 16 digits of the SHA-256 of `UID` or `TENANT/UID`.
fn user_hash(qualified: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, qualified.as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Serialize)]
struct RoomAnswer<'a> {
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
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

impl From<Lease> for SlotAnswer {
    fn from(lease: Lease) -> Self {
        let holder = lease.holder;
        let (connection, generation) = (holder.member.connection, holder.member.generation);
        Self { connection, instance: holder.instance, generation, lease_ms: lease.ends }
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

/// The user of a path segment, which is `UID` or `TENANT/UID`. With `tenant` in the query the segment is the
/// uid alone, so that a uid with a slash can be named too. An empty `tenant` stands for no tenant.
fn user_in(segment: &str, query: &str) -> Result<UserId, Refusal> {
    let mut tenants = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "tenant");
    let (tenant, uid) = match (tenants.next(), tenants.next()) {
        (_, Some(_)) => return Err(Refusal::BadRequest("tenant is given twice")),
        (Some((_, tenant)), None) => (Some(tenant).filter(|tenant| !tenant.is_empty()), segment),
        (None, None) => match segment.split_once('/') {
            Some((tenant, uid)) => (Some(tenant.into()), uid),
            None => (None, segment),
        },
    };
    let user = match tenant {
        Some(tenant) => UserId::of_tenant(&tenant, uid),
        None => UserId::new(uid),
    };
    user.ok_or(Refusal::BadRequest("a uid has 1 to 128 characters, and so has a tenant"))
}

/// The user of a call.
struct Subject(UserId);

impl<S: Send + Sync> FromRequestParts<S> for Subject {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let parameters = RawPathParams::from_request_parts(parts, state).await;
        let parameters = parameters.map_err(|_| Refusal::BadRequest("the path is not UTF-8"))?;
        let segment = parameters.iter().find(|(name, _)| *name == "uid").map_or("", |(_, value)| value);
        user_in(segment, parts.uri.query().unwrap_or_default()).map(Self)
    }
}

async fn room(State(operator): State<Operator>, Subject(user): Subject) -> Result<Response, Refusal> {
    let look = |answer| Command::Snapshot(user.clone(), answer);
    let [desktop, mobile] = operator.edge.workers.ask(&user, look).await?;
    let answer = RoomAnswer {
        uid: user.uid(),
        tenant: user.tenant(),
        desktop: desktop.map(Into::into),
        mobile: mobile.map(Into::into),
    };
    Ok(axum::Json(answer).into_response())
}

async fn message(
    State(operator): State<Operator>,
    Subject(user): Subject,
    request: Request,
) -> Result<Response, Refusal> {
    let body = timeout(HAND_OVER_LIMIT, to_bytes(request.into_body(), operator.message_bytes)).await;
    let body = body.map_err(|_| Refusal::BadRequest("the body took too long"))?;
    let body = body.map_err(|_| Refusal::BadRequest("the body is longer than limits.message_bytes"))?;
    let message: MessageBody<'_> = serde_json::from_slice(&body).map_err(|_| {
        Refusal::BadRequest("the body must be {\"data\": ANY, \"device\"?: \"desktop\" or \"mobile\"}")
    })?;
    let devices = message.device.map_or(Device::ALL.to_vec(), |device| vec![device]);
    let data = bytes::Bytes::copy_from_slice(message.data.get().as_bytes());
    let send = |answer| Command::Send(user.clone(), devices, data, answer);
    let connected = operator.edge.workers.ask(&user, send).await?;
    Ok((Extension(Reached(connected)), axum::Json(Connected { connected })).into_response())
}

async fn disconnect_room(
    State(operator): State<Operator>,
    Subject(user): Subject,
) -> Result<Response, Refusal> {
    disconnect(&operator, &user, Device::ALL.to_vec()).await
}

async fn disconnect_device(
    State(operator): State<Operator>,
    Subject(user): Subject,
    Path((_, device)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let device = Device::parse(&device).ok_or(Refusal::BadDevice)?;
    disconnect(&operator, &user, vec![device]).await
}

async fn disconnect(operator: &Operator, user: &UserId, devices: Vec<Device>) -> Result<Response, Refusal> {
    let disconnect = |answer| Command::Disconnect(user.clone(), devices, answer);
    let disconnected = operator.edge.workers.ask(user, disconnect).await?;
    Ok((Extension(Reached(disconnected)), axum::Json(Disconnected { disconnected })).into_response())
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

async fn instances(State(operator): State<Operator>) -> Response {
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
