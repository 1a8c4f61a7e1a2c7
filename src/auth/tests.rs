//! The whole verifier, from settings to verdict.

use futures_util::future::join_all;
use proptest::prelude::*;
use serde_json::json;

use super::testing::{EC, FORGED, NOW, PROJECT, RSA, Server, both_keys, claims, encode, ok, rsa_jwk};
use super::*;

fn firebase_at(url: &str) -> Settings {
    let issuer = Issuer::Firebase { project_id: PROJECT.into(), jwks_url: Some(url.into()) };
    Settings { issuer, revocation: None }
}

fn emulator_at(host: &str, revocation: Option<Revocation>) -> Settings {
    let issuer = Issuer::Emulator { project_id: PROJECT.into(), host: host.into() };
    Settings { issuer, revocation }
}

fn ask_emulator() -> Revocation {
    Revocation { service: IdentityService::Emulator, pause: Duration::from_secs(180) }
}

/// As the emulator writes them.
fn unsigned(claims: &serde_json::Value) -> String {
    format!("{}.{}.", encode(r#"{"alg":"none","typ":"JWT"}"#), encode(claims.to_string()))
}

#[tokio::test]
async fn firebase_tokens_are_verified_with_the_endpoints_keys() {
    let server = Server::start(|_| ok(both_keys(), 3600)).await;
    let verifier = Verifier::start(firebase_at(&server.url), &Arc::default()).unwrap();
    let good = RSA.sign(&claims(json!({}))).unwrap();
    let identity = verifier.verify(&good, NOW).await.unwrap();
    assert_eq!(identity.user.uid(), "some-user");
    assert_eq!(verifier.check(&identity).await, Ok(()));
    for (token, refusal) in [
        (FORGED.sign(&claims(json!({}))).unwrap(), Refusal::BadSignature),
        (RSA.sign(&claims(json!({"exp": NOW}))).unwrap(), Refusal::TokenExpired),
        (unsigned(&claims(json!({}))), Refusal::BadSignature),
        (
            EC.sign_parts(r#"{"alg":"ES256","kid":"ec-1"}"#, &claims(json!({})).to_string()),
            Refusal::BadSignature,
        ),
    ] {
        assert_eq!(verifier.verify(&token, NOW).await, Err(refusal), "{token}");
    }
    assert_eq!(*server.asked.borrow(), 1);
}

#[tokio::test]
async fn a_rotated_key_is_fetched_once_for_everybody() {
    let rotated = json!({"keys": [rsa_jwk(json!({"kid": "rsa-2"}))]}).to_string();
    let server =
        Server::start(move |asked| ok(if asked.number == 1 { both_keys() } else { rotated.clone() }, 3600))
            .await;
    let verifier = Verifier::start(firebase_at(&server.url), &Arc::default()).unwrap();
    let old = RSA.sign(&claims(json!({}))).unwrap();
    assert!(verifier.verify(&old, NOW).await.is_ok());
    let new = RSA.sign_parts(r#"{"alg":"RS256","kid":"rsa-2"}"#, &claims(json!({})).to_string()).unwrap();
    let all = join_all((0..100).map(|_| verifier.verify(&new, NOW))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(verifier.verify(&old, NOW).await, Err(Refusal::UnknownKey));
    assert_eq!(*server.asked.borrow(), 2);
}

#[tokio::test]
async fn keys_outlive_their_endpoint() {
    let server = Server::start(|_| ok(both_keys(), 1)).await;
    let verifier = Verifier::start(firebase_at(&server.url), &Arc::default()).unwrap();
    let good = RSA.sign(&claims(json!({}))).unwrap();
    assert!(verifier.verify(&good, NOW).await.is_ok());
    drop(server);
    // An unknown key forces the fetch that fails.
    let unknown = RSA.sign_parts(r#"{"alg":"RS256","kid":"rsa-2"}"#, "{}").unwrap();
    assert_eq!(verifier.verify(&unknown, NOW).await, Err(Refusal::UnknownKey));
    assert!(verifier.verify(&good, NOW).await.is_ok());
}

#[tokio::test]
async fn no_endpoint_and_no_keys_is_unavailable() {
    let server = Server::start(|_| ok(both_keys(), 1)).await;
    let url = server.url.clone();
    drop(server);
    let verifier = Verifier::start(firebase_at(&url), &Arc::default()).unwrap();
    let good = RSA.sign(&claims(json!({}))).unwrap();
    assert_eq!(verifier.verify(&good, NOW).await, Err(Refusal::KeysUnavailable));
    // What is malformed needs no keys to be refused.
    assert_eq!(verifier.verify("x", NOW).await, Err(Refusal::MalformedToken));
}

#[tokio::test]
async fn another_issuer_may_sign_with_es256() {
    let server = Server::start(|_| ok(both_keys(), 3600)).await;
    let issuer = Issuer::OpenId {
        issuer: "https://issuer.example/".into(),
        audience: PROJECT.into(),
        jwks_url: server.url.clone(),
    };
    let verifier = Verifier::start(Settings { issuer, revocation: None }, &Arc::default()).unwrap();
    let payload = claims(json!({"iss": "https://issuer.example/", "aud": ["x", PROJECT], "auth_time": null}));
    let token = EC.sign_parts(r#"{"alg":"ES256","kid":"ec-1"}"#, &payload.to_string());
    assert_eq!(verifier.verify(&token, NOW).await.unwrap().auth_time, None);
    let token = RSA.sign(&payload).unwrap();
    assert!(verifier.verify(&token, NOW).await.is_ok());
}

#[tokio::test]
async fn the_emulators_tokens_are_unsigned_and_keep_every_other_rule() {
    use Refusal::*;
    let verifier = Verifier::start(emulator_at("127.0.0.1:9099", None), &Arc::default()).unwrap();
    let payload = encode(claims(json!({})).to_string());
    let header = |json: &str| encode(json);
    let table = [
        (unsigned(&claims(json!({}))), None),
        (unsigned(&claims(json!({"aud": "other"}))), Some(WrongAudience)),
        (unsigned(&claims(json!({"exp": NOW}))), Some(TokenExpired)),
        (unsigned(&claims(json!({"iat": NOW + 61}))), Some(TokenNotYetValid)),
        (unsigned(&claims(json!({"sub": ""}))), Some(MalformedToken)),
        (unsigned(&json!("x")), Some(MalformedToken)),
        (RSA.sign(&claims(json!({}))).unwrap(), Some(BadSignature)),
        (format!("{}x", unsigned(&claims(json!({})))), Some(BadSignature)),
        (format!("{}.{payload}.", header(r#"{"alg":"None"}"#)), Some(BadSignature)),
        (format!("{}.{payload}.", header(r#"{"alg":"RS256","kid":"rsa-1"}"#)), Some(BadSignature)),
        (format!("{}.{payload}.", header("{}")), Some(MalformedToken)),
        (format!("{}.{payload}", header(r#"{"alg":"none"}"#)), Some(MalformedToken)),
        (format!("{}.{payload}..", header(r#"{"alg":"none"}"#)), Some(MalformedToken)),
        (format!("{}.!.", header(r#"{"alg":"none"}"#)), Some(MalformedToken)),
    ];
    for (token, refusal) in table {
        assert_eq!(verifier.verify(&token, NOW).await.err(), refusal, "{token}");
    }
}

#[tokio::test]
async fn a_revoked_session_is_refused_at_sign_in_and_found_later() {
    let account = |valid_since: u64| {
        json!({"users": [{"localId": "some-user", "validSince": valid_since.to_string()}]}).to_string()
    };
    let server = Server::start(move |asked| ok(account(if asked.number == 1 { 0 } else { NOW }), 0)).await;
    let host = server.url.trim_start_matches("http://");
    let verifier = Verifier::start(emulator_at(host, Some(ask_emulator())), &Arc::default()).unwrap();
    let token = unsigned(&claims(json!({})));
    let identity = verifier.verify(&token, NOW).await.unwrap();
    assert_eq!(verifier.check(&identity).await, Err(Refusal::TokenRevoked));
    assert_eq!(verifier.verify(&token, NOW).await, Err(Refusal::TokenRevoked));
    // A token that is refused by itself is not asked about.
    assert_eq!(verifier.verify(&unsigned(&claims(json!({"exp": 0}))), NOW).await, Err(Refusal::TokenExpired));
    assert_eq!(*server.asked.borrow(), 3);
    drop(server);
    assert_eq!(verifier.check(&identity).await, Err(Refusal::KeysUnavailable));
}

#[tokio::test]
async fn mistakes_in_the_settings_stop_the_start() {
    let error = |settings| Verifier::start(settings, &Arc::default()).err().unwrap();
    let openid = |issuer: &str, audience: &str| Settings {
        issuer: Issuer::OpenId {
            issuer: issuer.into(),
            audience: audience.into(),
            jwks_url: "https://issuer.example/keys".into(),
        },
        revocation: None,
    };
    assert!(matches!(error(firebase_at("http://10.0.0.1/keys")), AuthError::PlainHttp { .. }));
    assert!(matches!(error(firebase_at("keys")), AuthError::Url { .. }));
    assert!(matches!(error(openid("", "x")), AuthError::Empty(_)));
    assert!(matches!(error(openid("https://issuer.example", "")), AuthError::Empty(_)));
    let mut crossed = openid("https://issuer.example", "x");
    crossed.revocation = Some(ask_emulator());
    assert!(matches!(error(crossed), AuthError::RevocationIssuer));
    for host in [
        "",
        "localhost",
        "http://localhost:9099",
        "localhost:9099/x",
        "a@localhost:9099",
        "localhost:x",
        ":9099",
    ] {
        assert!(matches!(error(emulator_at(host, None)), AuthError::EmulatorHost(_)), "{host}");
    }
    for host in ["localhost:9099", "firebase:9099", "[::1]:9099", "127.0.0.1:80"] {
        assert!(Verifier::start(emulator_at(host, None), &Arc::default()).is_ok(), "{host}");
    }
}

#[test]
fn a_verifier_needs_a_runtime() {
    let started = Verifier::start(firebase_at("http://127.0.0.1:9/"), &Arc::default());
    assert!(matches!(started, Err(AuthError::NoRuntime)));
}

#[test]
fn a_verifier_and_what_it_does_go_to_every_thread() {
    fn everywhere<T: Clone + Send + Sync + 'static>() {}
    fn spawned(verifier: Verifier, identity: Identity) -> impl Future + Send {
        async move { (verifier.verify("x", NOW).await, verifier.check(&identity).await) }
    }
    everywhere::<Verifier>();
    let _ = spawned;
}

#[tokio::test]
async fn without_a_url_of_its_own_firebase_is_asked_at_google() {
    let issuer = Issuer::Firebase { project_id: PROJECT.into(), jwks_url: None };
    assert!(Verifier::start(Settings { issuer, revocation: None }, &Arc::default()).is_ok());
    assert!(firebase::JWKS_URL.starts_with("https://www.googleapis.com/"));
}

proptest! {
    #[test]
    fn no_unsigned_text_panics_or_passes(text in any::<String>(), header in ".*", payload in ".*") {
        for token in [text, format!("{}.{}.", encode(header), encode(&payload)), unsigned(&json!(payload))] {
            let refused = emulator::payload(&token)
                .and_then(|payload| firebase::rules(PROJECT).unwrap().identity(&payload, NOW));
            prop_assert!(refused.is_err());
        }
    }
}
