//! The demo's page: its files, its JSON, its tokens, and what its browser may reach.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use include_dir::{Dir, include_dir};
use qrcode::QrCode;
use qrcode::render::svg;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Reach;
use super::faces::{Faces, Source};
use super::identity::IdentityProvider;
use crate::auth::{Email, unix_now};
use crate::relay::ids::{ClientId, UserId};

/// The page, its styles and scripts.
static WEB: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/src/demo/web");

/// How long the demo's tokens last: as long as Firebase's.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// What the page's answers are made of.
pub(super) struct Demo {
    pub(super) provider: IdentityProvider,
    pub(super) faces: Faces,
    pub(super) reach: Reach,
}

/// The page at `/`, and all that belongs to it below `/demo/`.
pub(super) fn router(demo: Arc<Demo>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/demo/{*path}", get(async |Path(path): Path<String>| file(&path)))
        .route("/favicon.ico", get(async || file("icon.svg")))
        .route("/demo/tracker.js", get(tracker))
        .route("/demo/faces/{*address}", get(face_file))
        .route("/demo/config.json", get(configuration))
        .route("/demo/qr.svg", get(qr))
        .route("/demo/token", post(token))
        .with_state(demo)
}

fn file(path: &str) -> Response {
    let Some(file) = WEB.get_file(path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let content_type = match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        _ => "text/plain; charset=utf-8",
    };
    let headers =
        [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-cache"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, file.contents()).into_response()
}

/// The page reaches its own relay, and nothing else.
async fn index(headers: HeaderMap) -> Response {
    let mut response = file("index.html");
    // Safari before 15.4 does not take 'self' for the relay's WebSocket. A host with other characters is none.
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).filter(|host| {
        host.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b':' | b'-' | b'[' | b']'))
    });
    let sockets = host.map(|host| format!(" ws://{host} wss://{host}")).unwrap_or_default();
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'{sockets}; \
         worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    set_policy(&mut response, &policy);
    response
}

/// The tracker's worker, which sees the camera's picture, reaches the place of its library and models, and nothing else.
/// Its policy is this file's own: a worker takes none from the page (Content Security Policy Level 3, section 4.2).
async fn tracker(State(demo): State<Arc<Demo>>) -> Response {
    let mut response = file("tracker.js");
    let policy = format!(
        "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; connect-src blob: {}",
        demo.faces.sources()
    );
    set_policy(&mut response, &policy);
    response
}

fn set_policy(response: &mut Response, policy: &str) {
    if let Ok(policy) = HeaderValue::from_str(policy) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
}

/// `GET /demo/faces/PACKAGE@VERSION/PATH`: a file of the face tracker, where `--faces` names a directory.
async fn face_file(State(demo): State<Arc<Demo>>, Path(address): Path<String>) -> Response {
    match demo.faces.get(&address) {
        Some(bytes) => {
            let headers =
                [(CACHE_CONTROL, "public, max-age=31536000, immutable"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
            (headers, bytes).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[derive(Serialize)]
struct Configuration<'a> {
    lan_url: Option<&'a str>,
    tls_url: Option<&'a str>,
    faces: Source<'a>,
}

async fn configuration(State(demo): State<Arc<Demo>>) -> Response {
    let Reach { lan_url, tls_url, .. } = &demo.reach;
    let faces = demo.faces.source();
    Json(Configuration { lan_url: lan_url.as_deref(), tls_url: tls_url.as_deref(), faces }).into_response()
}

#[derive(Deserialize)]
struct QrQuery {
    data: String,
}

/// `GET /demo/qr.svg?data=TEXT`: at most what fits into one QR code.
async fn qr(Query(QrQuery { data }): Query<QrQuery>) -> Response {
    match QrCode::new(data.as_bytes()) {
        Ok(code) => {
            let svg = code.render::<svg::Color<'_>>().min_dimensions(200, 200).build();
            ([(CONTENT_TYPE, "image/svg+xml"), (CACHE_CONTROL, "no-cache")], svg).into_response()
        }
        Err(_) => (StatusCode::BAD_REQUEST, "the data does not fit into a QR code").into_response(),
    }
}

#[derive(Deserialize)]
struct TokenRequest {
    user: String,
}

#[derive(Serialize)]
struct TokenAnswer<'a> {
    token: String,
    uid: &'a str,
    email: &'a str,
    expires_at: u64,
}

/// `POST /demo/token` with `{"user": NAME}`: signs in as anybody whose name looks like a client id.
async fn token(State(demo): State<Arc<Demo>>, headers: HeaderMap, body: String) -> Response {
    // Only JSON, which no page of another origin can send without asking first (Fetch standard, CORS).
    let is_json =
        headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    let request = is_json.then(|| serde_json::from_str::<TokenRequest>(&body).ok()).flatten();
    let name = request.filter(|request| ClientId::new(&request.user).is_some()).map(|request| request.user);
    let Some((name, user)) = name.and_then(|name| UserId::new(&name).map(|user| (name, user))) else {
        let message = "the body must be JSON: {\"user\": 1 to 64 of A-Z a-z 0-9 - _}";
        return (StatusCode::BAD_REQUEST, message).into_response();
    };
    let address = format!("{name}@demo.example");
    let now = unix_now();
    match demo.provider.mint(&user, Email::new(&address).as_ref(), now, TOKEN_LIFETIME) {
        Ok(token) => {
            let expires_at = now + TOKEN_LIFETIME.as_secs();
            Json(TokenAnswer { token, uid: user.uid(), email: &address, expires_at }).into_response()
        }
        Err(error) => {
            warn!(%error, "a demo token could not be signed");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
