//! An issuer of ID tokens: keys, tokens with any header and claims, and a JWK set over HTTP.
//!
//! The tests put tokens together and sign them here without a JWT library. So they do not share the relay's
//! idea of what a token is.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RsaKeyPair,
    RsaPublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::now;

/// The Firebase project that the relays under test belong to.
pub const PROJECT: &str = "contract-tests";

/// A signing key; each is made once per test process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// RSA-2048, in the JWK set as `rsa`.
    Rsa,
    /// RSA-2048, `rsa-other`: not in the JWK set until a test puts it there.
    OtherRsa,
    /// P-256, in the JWK set as `ec`.
    Ec,
}

static RSA: LazyLock<RsaKeyPair> = LazyLock::new(new_rsa);
static OTHER_RSA: LazyLock<RsaKeyPair> = LazyLock::new(new_rsa);
static EC: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());

fn new_rsa() -> RsaKeyPair {
    RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap()
}

impl Key {
    /// The `kid` in the JWK set and in the tokens.
    pub fn id(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::OtherRsa => "rsa-other",
            Self::Ec => "ec",
        }
    }

    /// The private RSA key as PKCS #8 in PEM, for a program that signs tokens itself.
    pub fn private_pem(self) -> String {
        let pair = match self {
            Self::Rsa => &*RSA,
            Self::OtherRsa => &*OTHER_RSA,
            Self::Ec => panic!("not an RSA key"),
        };
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let base64 = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
        format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n")
    }

    fn algorithm(self) -> &'static str {
        match self {
            Self::Rsa | Self::OtherRsa => "RS256",
            Self::Ec => "ES256",
        }
    }

    fn rsa(self) -> Option<&'static RsaKeyPair> {
        match self {
            Self::Rsa => Some(&RSA),
            Self::OtherRsa => Some(&OTHER_RSA),
            Self::Ec => None,
        }
    }

    /// The public half (RFC 7517).
    pub fn jwk(self) -> Value {
        let mut jwk = json!({"kid": self.id(), "alg": self.algorithm(), "use": "sig"});
        match self.rsa() {
            Some(pair) => {
                let public = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                jwk["kty"] = "RSA".into();
                jwk["n"] = base64url(&public.n).into();
                jwk["e"] = base64url(&public.e).into();
            }
            None => {
                // An uncompressed point (SEC 1, section 2.3.3): 4, x, y.
                let point = EC.public_key().as_ref();
                jwk["kty"] = "EC".into();
                jwk["crv"] = "P-256".into();
                jwk["x"] = base64url(&point[1..33]).into();
                jwk["y"] = base64url(&point[33..]).into();
            }
        }
        jwk
    }

    fn sign(self, algorithm: &str, input: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let Some(pair) = self.rsa() else {
            return EC.sign(&random, input).unwrap().as_ref().to_vec();
        };
        let padding = if algorithm == "RS384" { &RSA_PKCS1_SHA384 } else { &RSA_PKCS1_SHA256 };
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(padding, &random, input, &mut signature).unwrap();
        signature
    }
}

fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token in the making: every header field and claim can be replaced or taken away.
#[derive(Debug, Clone)]
pub struct Token {
    header: Map<String, Value>,
    claims: Map<String, Value>,
    key: Key,
}

impl Token {
    /// What Firebase would issue to `uid` now: valid for an hour, with an e-mail address.
    pub fn firebase(uid: &str) -> Self {
        let claims = json!({
            "iss": format!("https://securetoken.google.com/{PROJECT}"),
            "aud": PROJECT,
            "auth_time": now() - 60,
            "user_id": uid,
            "sub": uid,
            "iat": now() - 30,
            "exp": now() + 3600,
            "email": email(uid),
            "email_verified": false,
            "firebase": {"identities": {"email": [email(uid)]}, "sign_in_provider": "password"},
        });
        let Value::Object(claims) = claims else { unreachable!() };
        let mut token = Self { header: Map::new(), claims, key: Key::Rsa };
        token.header.insert("typ".into(), "JWT".into());
        token.key(Key::Rsa)
    }

    /// Signs with this key and names it.
    pub fn key(mut self, key: Key) -> Self {
        self.key = key;
        self.header("alg", key.algorithm()).header("kid", key.id())
    }

    /// Replaces a header field.
    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header.insert(name.into(), value.into());
        self
    }

    /// Takes a header field away.
    pub fn without_header(mut self, name: &str) -> Self {
        self.header.remove(name);
        self
    }

    /// Replaces a claim.
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.into(), value.into());
        self
    }

    /// Takes a claim away.
    pub fn without(mut self, name: &str) -> Self {
        self.claims.remove(name);
        self
    }

    /// Sets `exp`, in seconds from now.
    pub fn expires_in(self, seconds: i64) -> Self {
        self.claim("exp", now() + seconds)
    }

    /// The compact form, signed by the key with the header's own algorithm (RS256, RS384 or ES256).
    pub fn sign(&self) -> String {
        let input = self.signing_input();
        let algorithm = self.header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let signature = self.key.sign(algorithm, input.as_bytes());
        format!("{input}.{}", base64url(&signature))
    }

    /// With `alg: none` and an empty signature, as the Firebase emulator issues them.
    pub fn unsigned(&self) -> String {
        format!("{}.", self.clone().header("alg", "none").signing_input())
    }

    /// HS256 with the RSA key's modulus as the secret: the classic confusion of key types.
    pub fn signed_with_public_key(&self) -> String {
        let input = self.clone().header("alg", "HS256").signing_input();
        let public = RsaPublicKeyComponents::<Vec<u8>>::from(RSA.public_key());
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &public.n);
        format!("{input}.{}", base64url(hmac::sign(&secret, input.as_bytes()).as_ref()))
    }

    fn signing_input(&self) -> String {
        let part = |map: &Map<String, Value>| base64url(serde_json::to_string(map).unwrap().as_bytes());
        format!("{}.{}", part(&self.header), part(&self.claims))
    }
}

/// The address that a token of `uid` carries.
pub fn email(uid: &str) -> String {
    format!("{uid}@example.org")
}

/// A JWK set on a loopback port, served by threads of its own until the issuer is dropped.
#[derive(Debug)]
pub struct Issuer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    answer: Mutex<Answer>,
    fetches: AtomicUsize,
    lookups: AtomicUsize,
    machine_tokens: AtomicUsize,
    stopped: AtomicBool,
}

#[derive(Debug, Clone)]
struct Answer {
    status: u16,
    keys: Vec<Key>,
    max_age: u32,
    delay: Duration,
    account: Value,
}

impl Issuer {
    /// An issuer that lists [`Key::Rsa`] and [`Key::Ec`], for an hour.
    pub fn start() -> Self {
        let answer = Answer {
            status: 200,
            keys: vec![Key::Rsa, Key::Ec],
            max_age: 3600,
            delay: Duration::ZERO,
            account: json!({}),
        };
        let shared = Arc::new(Shared {
            answer: Mutex::new(answer),
            fetches: AtomicUsize::new(0),
            lookups: AtomicUsize::new(0),
            machine_tokens: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let shared = serving.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    /// Where the JWK set is.
    pub fn jwks_url(&self) -> String {
        format!("http://{}/jwks", self.address)
    }

    /// How often the JWK set was asked for.
    pub fn fetches(&self) -> usize {
        self.shared.fetches.load(Ordering::SeqCst)
    }

    /// How often the identity service was asked.
    pub fn lookups(&self) -> usize {
        self.shared.lookups.load(Ordering::SeqCst)
    }

    /// How often it was asked for an access token as a metadata server.
    pub fn machine_tokens(&self) -> usize {
        self.shared.machine_tokens.load(Ordering::SeqCst)
    }

    /// Lists these keys from now on.
    pub fn list(&self, keys: &[Key]) {
        self.shared.answer.lock().unwrap().keys = keys.to_vec();
    }

    /// Lets responses be cached for `seconds` from now on.
    pub fn max_age(&self, seconds: u32) {
        self.shared.answer.lock().unwrap().max_age = seconds;
    }

    /// Answers with this status from now on.
    pub fn status(&self, status: u16) {
        self.shared.answer.lock().unwrap().status = status;
    }

    /// `HOST:PORT`, also of an identity service that knows one account (see [`Self::account`]).
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// What the identity service says of the account from now on, next to its `localId`
    /// (<https://cloud.google.com/identity-platform/docs/reference/rest/v1/UserInfo>).
    pub fn account(&self, fields: Value) {
        self.shared.answer.lock().unwrap().account = fields;
    }

    /// Answers this late from now on.
    pub fn delay(&self, delay: Duration) {
        self.shared.answer.lock().unwrap().delay = delay;
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees the flag.
        let _ = TcpStream::connect(self.address);
    }
}

/// Answers one request: for the JWK set, or for the account. A client that goes away early is its own business.
fn serve(stream: io::Result<TcpStream>, shared: &Shared) -> io::Result<()> {
    let mut stream = stream?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut request, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        request.push_str(&line);
    }
    let mut asked = vec![0; length];
    reader.read_exact(&mut asked)?;

    let answer = shared.answer.lock().unwrap().clone();
    if request.starts_with("GET /jwks ") {
        shared.fetches.fetch_add(1, Ordering::SeqCst);
    }
    let is_lookup = request.contains("/accounts:lookup ");
    if is_lookup {
        shared.lookups.fetch_add(1, Ordering::SeqCst);
    }
    let is_machine = request.starts_with("GET /computeMetadata/v1/instance/service-accounts/default/token ")
        && request.to_lowercase().contains("metadata-flavor: google");
    if is_machine {
        shared.machine_tokens.fetch_add(1, Ordering::SeqCst);
    }
    std::thread::sleep(answer.delay);
    let body = if is_machine {
        json!({"access_token": "of-machine", "expires_in": 3600, "token_type": "Bearer"})
    } else if is_lookup {
        let asked: Value = serde_json::from_slice(&asked)?;
        let mut account = answer.account.clone();
        account["localId"] = asked["localId"][0].clone();
        json!({"kind": "identitytoolkit#GetAccountInfoResponse", "users": [account]})
    } else {
        let keys: Vec<Value> = answer.keys.iter().map(|key| key.jwk()).collect();
        json!({"keys": keys})
    };
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {} Status\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Cache-Control: public, max-age={}, must-revalidate\r\nConnection: close\r\n\r\n{body}",
        answer.status,
        body.len(),
        answer.max_age,
    )
}
