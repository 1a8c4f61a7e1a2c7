//! Keys and an HTTP server for this module's tests.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::signer::Signer;

pub(super) const NOW: u64 = 1_800_000_000;
pub(super) const PROJECT: &str = "some-project";

/// The issuer's RSA key, `kid` "rsa-1"; made once, since making one takes a while.
pub(super) static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::generate("rsa-1".into()).unwrap());
/// Somebody else's RSA key that claims the same `kid`.
pub(super) static FORGED: LazyLock<Signer> = LazyLock::new(|| Signer::generate("rsa-1".into()).unwrap());
/// The issuer's P-256 key, `kid` "ec-1".
pub(super) static EC: LazyLock<EcKey> =
    LazyLock::new(|| EcKey(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()));

pub(super) struct EcKey(EcdsaKeyPair);

impl EcKey {
    pub(super) fn sign_parts(&self, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", encode(header), encode(payload));
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encode(signature))
    }

    pub(super) fn jwk(&self) -> Value {
        let point = self.0.public_key().as_ref();
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "ec-1",
            "x": encode(&point[1..33]), "y": encode(&point[33..65])})
    }
}

pub(super) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The public JWK of [`RSA`] with these members in place of its own; `null` takes one away.
pub(super) fn rsa_jwk(changes: Value) -> Value {
    let mut set: Value = serde_json::from_str(&RSA.jwks_json()).unwrap();
    let mut jwk = set["keys"][0].take();
    change(&mut jwk, changes);
    jwk
}

/// A JWK set of [`RSA`] and [`EC`].
pub(super) fn both_keys() -> String {
    json!({"keys": [rsa_jwk(json!({})), EC.jwk()]}).to_string()
}

/// The claims of a good Firebase token with these in place of its own; `null` takes one away.
pub(super) fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": format!("https://securetoken.google.com/{PROJECT}"),
        "aud": PROJECT,
        "sub": "some-user",
        "exp": NOW + 3600,
        "iat": NOW,
        "auth_time": NOW - 60,
        "email": "someone@example.com",
    });
    change(&mut claims, changes);
    claims
}

fn change(object: &mut Value, changes: Value) {
    let object = object.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap().clone() {
        if value.is_null() {
            object.remove(&name)
        } else {
            object.insert(name, value)
        };
    }
}

/// What a request held.
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) authorization: String,
    pub(super) body: String,
    /// 1 for the first request.
    pub(super) number: usize,
}

/// An HTTP server on a port of its own; dropping it closes its port and its connections.
pub(super) struct Server {
    pub(super) url: String,
    pub(super) asked: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(super) async fn start(answer: impl Fn(Asked) -> Response<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (count, asked) = watch::channel(0);
        let (answer, count) = (Arc::new(answer), Arc::new(count));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
                    async move {
                        let mut number = 0;
                        count.send_modify(|asked| {
                            *asked += 1;
                            number = *asked;
                        });
                        let path = request.uri().path().to_owned();
                        let header = request.headers().get("authorization");
                        let authorization = header.map_or("", |value| value.to_str().unwrap()).to_owned();
                        let body = request.into_body().collect().await?.to_bytes();
                        let body = String::from_utf8(body.to_vec()).unwrap();
                        let answer = answer(Asked { path, authorization, body, number });
                        Ok::<_, hyper::Error>(answer.map(|body| Full::new(Bytes::from(body))))
                    }
                });
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, asked, task }
    }

    /// Waits until so many requests have come.
    pub(super) async fn asked_at_least(&self, times: usize) {
        let mut asked = self.asked.clone();
        let waited = asked.wait_for(|asked| *asked >= times);
        tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap().unwrap();
    }
}

/// A 200 with this body, which may be kept for so many seconds.
pub(super) fn ok(body: impl Into<String>, max_age: u64) -> Response<String> {
    let cache_control = format!("public, max-age={max_age}, must-revalidate, no-transform");
    Response::builder().header("cache-control", cache_control).body(body.into()).unwrap()
}

pub(super) fn status(status: u16) -> Response<String> {
    Response::builder().status(status).body(String::new()).unwrap()
}
