//! The public port: upgrades, `GET /v1/session`, health, and what a page may read of it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, CACHE_CONTROL, CONTENT_TYPE, ORIGIN, RETRY_AFTER,
    SEC_WEBSOCKET_VERSION, UPGRADE, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;

use super::workers::Command;
use super::{Edge, client_files, peer_of, upgrade};
use crate::auth::unix_now;
use crate::relay::handshake::{self, Parameters};
use crate::relay::ids::Member;
use crate::relay::ids::{Attempt, Device};
use crate::relay::refusal::{Facts, Refusal};

/// The public port. `page` is served where no upgrade is asked for at `/`, and beside it.
pub fn public(edge: Arc<Edge>, page: Option<Router>) -> Router {
    let routes = Router::new()
        .route("/ws", any(upgrade_only))
        .route("/v1/session", get(session).options(preflight))
        .route("/duorelay.js", get(async |headers: HeaderMap| client_files::SCRIPT.answer(&headers)))
        .route("/duorelay-direct.js", get(async |headers: HeaderMap| client_files::DIRECT.answer(&headers)))
        .route("/duorelay.d.ts", get(async |headers: HeaderMap| client_files::TYPES.answer(&headers)))
        .merge(health_routes());
    let routes = match page {
        None => routes.route("/", any(upgrade_only)),
        Some(page) => {
            let page_at_root = page.clone();
            let root = any(move |State(edge): State<Arc<Edge>>, request: Request| {
                let page = page_at_root.clone();
                async move {
                    if upgrade::is_upgrade(&request) {
                        upgrade::upgrade(edge, request).await
                    } else {
                        tower_service::Service::call(&mut page.clone(), request).await.into_response()
                    }
                }
            });
            routes.route("/", root).fallback_service(page)
        }
    };
    routes.with_state(edge)
}

/// Answered on both ports, for Kubernetes and for App Engine.
pub const HEALTH_PATHS: [&str; 4] =
    ["/healthz/live", "/liveness_check", "/healthz/ready", "/readiness_check"];

/// `GET /healthz/live`, `GET /healthz/ready`, and App Engine's names for them.
pub fn health_routes() -> Router<Arc<Edge>> {
    let [live_path, live_of_app_engine, ready_path, ready_of_app_engine] = HEALTH_PATHS;
    Router::new()
        .route(live_path, get(live))
        .route(live_of_app_engine, get(live))
        .route(ready_path, get(ready))
        .route(ready_of_app_engine, get(ready))
}

async fn upgrade_only(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    upgrade::upgrade(edge, request).await
}

/// The process works. Redis has no part in it: restarting every instance does not bring Redis back.
async fn live() -> Response {
    health(StatusCode::OK, "live")
}

async fn ready(State(edge): State<Arc<Edge>>) -> Response {
    if edge.gate.is_draining() {
        health(StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if edge.readiness.is_foreign() {
        health(StatusCode::SERVICE_UNAVAILABLE, "the prefix in Redis belongs to another issuer or audience")
    } else if !edge.readiness.is_ready() {
        health(StatusCode::SERVICE_UNAVAILABLE, "no backplane")
    } else if !edge.verifier.has_keys() {
        // Each handshake would be refused. Once there were keys, older ones do while the issuer is away.
        health(StatusCode::SERVICE_UNAVAILABLE, "no keys of the issuer")
    } else {
        health(StatusCode::OK, "ready")
    }
}

fn health(status: StatusCode, text: &'static str) -> Response {
    (status, [(CACHE_CONTROL, "no-store")], text).into_response()
}

/// The body of a refusal: `application/problem+json` of RFC 9457.
#[derive(Serialize)]
struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<Attempt>,
}

/// A refusal as an `application/problem+json` document.
fn problem(refusal: Refusal) -> Response {
    let Facts { code, status, retry_after, detail } = refusal.facts();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let problem = Problem {
        r#type: "about:blank",
        title: status.canonical_reason().unwrap_or_default(),
        status: status.as_u16(),
        code,
        detail,
        attempt: if let Refusal::Superseded { attempt } = refusal { Some(attempt) } else { None },
    };
    // Serialising fixed strings cannot fail.
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = (status, [(CONTENT_TYPE, "application/problem+json")], body).into_response();
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if refusal == Refusal::UpgradeRequired {
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    response
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        problem(self)
    }
}

#[derive(Serialize)]
struct Session<'a> {
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    email: Option<&'a str>,
    expires_at: u64,
    room: Slots,
}

#[derive(Serialize)]
struct Slots {
    desktop: Option<Member>,
    mobile: Option<Member>,
}

/// Why was a handshake refused? A browser cannot read it from the handshake itself.
async fn session(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    let peer = peer_of(&request);
    let (parts, _) = request.into_parts();
    let mut response = match read_session(&edge, peer, &parts).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    allow_origin(&edge, &parts.headers, response.headers_mut());
    response
}

async fn read_session(edge: &Edge, peer: SocketAddr, parts: &Parts) -> Result<Response, Refusal> {
    let headers = &parts.headers;
    // The admission ends with this request: it only asks what a handshake would be answered.
    edge.gate.visit_session(peer, headers)?;
    let _admission = edge.gate.admit()?;
    let parameters = Parameters::read(parts.uri.query().unwrap_or_default())?;
    edge.gate.admit_page(headers)?;
    let token = handshake::bearer(headers)?.ok_or(Refusal::MissingToken)?;
    let identity = edge.verifier.verify(token, unix_now()).await?;
    let user = identity.user.clone();
    let [desktop, mobile] =
        edge.workers.ask(&identity.user, |answer| Command::Snapshot(user, answer)).await?;
    for (device, lease) in Device::ALL.into_iter().zip([&desktop, &mobile]) {
        if let Some(attempt) = lease.as_ref().and_then(|lease| parameters.later_attempt(device, lease)) {
            return Err(Refusal::Superseded { attempt });
        }
    }
    let session = Session {
        uid: identity.user.uid(),
        tenant: identity.user.tenant(),
        email: identity.email.as_ref().map(|email| email.as_str()),
        expires_at: identity.expires_at,
        room: Slots {
            desktop: desktop.map(|lease| lease.holder.member),
            mobile: mobile.map(|lease| lease.holder.member),
        },
    };
    let mut response = axum::Json(session).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Cross-origin resource sharing (Fetch standard, section 3.3) for the origins that may connect.
async fn preflight(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    if allow_origin(&edge, request.headers(), headers) {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET"));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization"));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    }
    response
}

fn allow_origin(edge: &Edge, asked: &HeaderMap, headers: &mut HeaderMap) -> bool {
    headers.insert(VARY, HeaderValue::from_static("origin"));
    let Some(origin) = asked.get(ORIGIN).filter(|origin| edge.gate.allows(origin.as_bytes())) else {
        return false;
    };
    let origin = if edge.gate.allows_any_origin() { HeaderValue::from_static("*") } else { origin.clone() };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
    true
}
