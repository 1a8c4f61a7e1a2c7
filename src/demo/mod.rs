//! `duorelay demo`: one instance, a development identity provider, and a page that two devices open.
//! Several of them behind a balancer share a backplane, and then the provider's key.
//!
//! Nothing here can be reached from `duorelay serve`.

pub mod identity;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use include_dir::{Dir, include_dir};
use qrcode::QrCode;
use qrcode::render::svg;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use self::identity::{IdentityProvider, PROJECT_ID, SignError};
use crate::auth::settings::{Issuer, Settings};
use crate::auth::{AuthError, Email, unix_now};
use crate::config::{Config, Instance};
use crate::metrics::Metrics;
use crate::relay::ids::{ClientId, UserId};
use crate::server::{self, ServerError};

/// The page, its styles and scripts. Every relay serves the browser client itself.
static WEB: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/src/demo/web");

/// How long the demo's tokens last: as long as Firebase's.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// Why the demo cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The identity provider's key cannot be made.
    #[error("the demo's identity provider cannot start: {0}")]
    Sign(#[from] SignError),
    /// Its tokens cannot be verified.
    #[error("the demo's tokens cannot be verified: {0}")]
    Auth(#[from] AuthError),
    /// The instance cannot run.
    #[error(transparent)]
    Server(#[from] ServerError),
}

struct Demo {
    provider: IdentityProvider,
    lan_url: Option<String>,
}

/// Serves the demo until it is interrupted.
///
/// # Errors
/// See [`DemoError`].
pub async fn run(instance: Instance) -> Result<(), DemoError> {
    warn!("this is the demo: anybody who reaches it can sign in as anybody");
    // With others there is a balancer in front, and this instance's own address is of no use to a person.
    let alone = instance.is_alone();
    let lan_url = lan_url(instance.listen).filter(|_| alone);
    if alone {
        info!("open http://localhost:{}", instance.listen.port());
    }
    if let Some(url) = &lan_url {
        info!("on a phone in the same network: {url}");
    }
    let proposal = IdentityProvider::generate()?.to_text()?;
    let agreed = server::agree(&instance, "signing-key", proposal).await?;
    let provider = IdentityProvider::from_text(&agreed)?;
    let metrics = Arc::new(Metrics::default());
    let verifier = provider.verifier(Arc::clone(&metrics))?;
    let page = page(Arc::new(Demo { provider, lan_url }));
    // The provider's verifier is the one that is used; the settings only name the project.
    let issuer = Issuer::Firebase { project_id: PROJECT_ID.to_owned(), jwks_url: None };
    let auth = Settings { issuer, revocation: None };
    let config = Config { instance, auth, enforce_expiry: true };
    server::serve(config, verifier, metrics, Some(page)).await?;
    Ok(())
}

fn page(demo: Arc<Demo>) -> Router {
    Router::new()
        .route("/", get(async || file("index.html")))
        .route("/demo/{*path}", get(async |Path(path): Path<String>| file(&path)))
        .route("/favicon.ico", get(async || file("icon.svg")))
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
    ([(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-cache")], file.contents()).into_response()
}

#[derive(Serialize)]
struct Configuration<'a> {
    lan_url: Option<&'a str>,
}

async fn configuration(State(demo): State<Arc<Demo>>) -> Response {
    Json(Configuration { lan_url: demo.lan_url.as_deref() }).into_response()
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

/// Where a phone in the same network finds the demo: the first private IPv4 address of this machine.
fn lan_url(listen: SocketAddr) -> Option<String> {
    if listen.ip().is_loopback() {
        return None;
    }
    let private = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(_) => false,
    };
    let addresses = if_addrs::get_if_addrs().ok()?;
    // Bridges of container engines are private, too, but no phone is on them.
    let is_bridge =
        |name: &str| ["docker", "br-", "veth", "virbr"].iter().any(|prefix| name.starts_with(prefix));
    let mut on_lan =
        addresses.iter().filter(|interface| !is_bridge(&interface.name)).map(if_addrs::Interface::ip);
    let address = on_lan.find(private)?;
    Some(format!("http://{address}:{}", listen.port()))
}
