use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use serde_json::Value;

use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::*;
use crate::auth::firebase;
use crate::auth::settings::{ExternalAccount, ServiceAccount, SubjectToken, SubjectTokenSource};
use crate::auth::signer::Signer;
use crate::auth::testing::{Asked, NOW, PROJECT, Server, claims, ok, status};

fn identity() -> Identity {
    identity_of(None)
}

fn identity_of(tenant: Option<&str>) -> Identity {
    let claims = claims(json!({"firebase": {"tenant": tenant}}));
    firebase::rules(PROJECT).unwrap().identity(claims.to_string().as_bytes(), NOW).unwrap()
}

/// The emulator's own words, with these members of the account in place.
fn found(account: Value) -> String {
    let mut user = json!({"localId": "some-user", "createdAt": "1", "providerUserInfo": []});
    user.as_object_mut().unwrap().extend(account.as_object().unwrap().clone());
    json!({"kind": "identitytoolkit#GetAccountInfoResponse", "users": [user]}).to_string()
}

async fn emulator(
    answer: impl Fn(Asked) -> http::Response<String> + Send + Sync + 'static,
) -> (Checker, Server) {
    let server = Server::start(answer).await;
    let host = server.url.trim_start_matches("http://");
    (Checker::emulator(host, PROJECT).unwrap(), server)
}

#[tokio::test]
async fn the_verdict_is_that_of_the_admin_sdk() {
    use Refusal::*;
    let signed_in = NOW - 60;
    let table = [
        (found(json!({})), None),
        (found(json!({"validSince": (signed_in - 1).to_string()})), None),
        (found(json!({"validSince": signed_in.to_string()})), None),
        (found(json!({"validSince": (signed_in + 1).to_string()})), Some(TokenRevoked)),
        (found(json!({"validSince": signed_in + 1})), Some(TokenRevoked)),
        (found(json!({"disabled": false})), None),
        (found(json!({"disabled": true})), Some(UserDisabled)),
        (found(json!({"disabled": true, "validSince": (signed_in + 1).to_string()})), Some(UserDisabled)),
        (found(json!({"localId": "somebody-else"})), Some(UserDisabled)),
        (json!({"kind": "identitytoolkit#GetAccountInfoResponse"}).to_string(), Some(UserDisabled)),
        (json!({"users": []}).to_string(), Some(UserDisabled)),
        ("<html>".into(), Some(KeysUnavailable)),
        (found(json!({"validSince": "soon"})), Some(KeysUnavailable)),
    ];
    for (answer, refusal) in table {
        let text = answer.clone();
        let (checker, _server) = emulator(move |_| ok(text.clone(), 0)).await;
        assert_eq!(checker.check(&identity()).await.err(), refusal, "{answer}");
    }
}

#[tokio::test]
async fn the_emulator_is_asked_as_its_owner() {
    let (checker, _server) = emulator(|asked| {
        assert_eq!(
            asked.path,
            format!("/identitytoolkit.googleapis.com/v1/projects/{PROJECT}/accounts:lookup")
        );
        assert_eq!(asked.authorization, "Bearer owner");
        assert_eq!(serde_json::from_str::<Value>(&asked.body).unwrap(), json!({"localId": ["some-user"]}));
        ok(found(json!({})), 0)
    })
    .await;
    assert_eq!(checker.check(&identity()).await, Ok(()));
}

#[tokio::test]
async fn a_tenants_user_is_looked_up_in_the_tenant() {
    let (checker, _server) = emulator(|asked| match asked.path.rsplit_once("/projects/").unwrap().1 {
        path if path == format!("{PROJECT}/tenants/acme-7/accounts:lookup") => ok(found(json!({})), 0),
        path if path == format!("{PROJECT}/tenants/a%2F%2E%2E/accounts:lookup") => ok(found(json!({})), 0),
        // The project knows nobody of that name.
        _ => ok(json!({"users": []}).to_string(), 0),
    })
    .await;
    assert_eq!(checker.check(&identity_of(Some("acme-7"))).await, Ok(()));
    assert_eq!(checker.check(&identity_of(Some("a/.."))).await, Ok(()));
    assert_eq!(checker.check(&identity_of(Some("other"))).await, Err(Refusal::UserDisabled));
    assert_eq!(checker.check(&identity()).await, Err(Refusal::UserDisabled));
}

#[tokio::test]
async fn no_answer_is_no_verdict() {
    let (checker, server) = emulator(|asked| status(if asked.number == 1 { 500 } else { 403 })).await;
    assert_eq!(checker.check(&identity()).await, Err(Refusal::KeysUnavailable));
    assert_eq!(checker.check(&identity()).await, Err(Refusal::KeysUnavailable));
    drop(server);
    assert_eq!(checker.check(&identity()).await, Err(Refusal::KeysUnavailable));
}

#[tokio::test(start_paused = true)]
async fn a_check_takes_at_most_three_seconds() {
    // Its queue takes the connection, and nobody ever answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let checker = Checker::emulator(&silent.local_addr().unwrap().to_string(), PROJECT).unwrap();
    let begin = Instant::now();
    let all = join_all((0..200).map(|_| async { checker.check(&identity()).await })).await;
    assert!(all.iter().all(|answer| *answer == Err(Refusal::KeysUnavailable)));
    assert!(begin.elapsed() <= CALL_TIME + Duration::from_millis(10), "{:?}", begin.elapsed());
}

fn account(server: &Server) -> Credentials {
    Credentials::ServiceAccount(service_account(server))
}

fn service_account(server: &Server) -> ServiceAccount {
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let lines: Vec<String> = STANDARD
        .encode(der.as_ref())
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8(line.to_vec()).unwrap())
        .collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    ServiceAccount {
        project_id: PROJECT.into(),
        client_email: "relay@some-project.iam.gserviceaccount.com".into(),
        private_key: pem.into(),
        private_key_id: Some("key-7".into()),
        token_uri: format!("{}/token", server.url),
    }
}

/// An identity service and its token endpoint; grants `access-1`, `access-2` and so on.
async fn google(
    expires_in: u64,
    lookup: impl Fn(Asked) -> http::Response<String> + Send + Sync + 'static,
) -> Server {
    let grants = std::sync::atomic::AtomicUsize::new(0);
    Server::start(move |asked| {
        if asked.path != "/token" {
            return lookup(asked);
        }
        let grant = 1 + grants.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        ok(json!({"access_token": format!("access-{grant}"), "expires_in": expires_in, "token_type": "Bearer"}).to_string(), 0)
    })
    .await
}

#[tokio::test]
async fn google_is_asked_with_one_granted_token_for_all() {
    let server = google(3600, |asked| {
        assert_eq!(asked.authorization, "Bearer access-1");
        assert_eq!(asked.path, format!("/v1/projects/{PROJECT}/accounts:lookup"));
        ok(found(json!({})), 0)
    })
    .await;
    let checker = Checker::google_at(&server.url, &account(&server), PROJECT).unwrap();
    let all = join_all((0..100).map(|_| async { checker.check(&identity()).await })).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(*server.asked.borrow(), 101);
}

#[tokio::test]
async fn a_token_near_its_end_is_replaced() {
    let server = google(60, |asked| match asked.authorization.as_str() {
        "Bearer access-1" | "Bearer access-2" => ok(found(json!({})), 0),
        other => panic!("{other}"),
    })
    .await;
    let checker = Checker::google_at(&server.url, &account(&server), PROJECT).unwrap();
    assert_eq!(checker.check(&identity()).await, Ok(()));
    assert_eq!(checker.check(&identity()).await, Ok(()));
    assert_eq!(*server.asked.borrow(), 4);
}

#[tokio::test]
async fn a_token_that_google_no_longer_accepts_is_replaced() {
    let server = google(3600, |asked| match asked.authorization.as_str() {
        "Bearer access-1" => status(401),
        _ => ok(found(json!({})), 0),
    })
    .await;
    let checker = Checker::google_at(&server.url, &account(&server), PROJECT).unwrap();
    assert_eq!(checker.check(&identity()).await, Err(Refusal::KeysUnavailable));
    assert_eq!(checker.check(&identity()).await, Ok(()));
}

#[tokio::test]
async fn a_refused_grant_is_not_repeated_by_everybody() {
    let server = Server::start(|_| status(400)).await;
    let checker = Checker::google_at(&server.url, &account(&server), PROJECT).unwrap();
    let all = join_all((0..100).map(|_| async { checker.check(&identity()).await })).await;
    assert!(all.iter().all(|answer| *answer == Err(Refusal::KeysUnavailable)));
    assert_eq!(*server.asked.borrow(), 1);
}

#[tokio::test]
async fn the_assertion_is_signed_by_the_service_account() {
    let (give, mut got) = tokio::sync::watch::channel(String::new());
    let server = Server::start(move |asked| {
        if asked.path == "/token" {
            give.send_replace(asked.body);
            return ok(json!({"access_token": "x", "expires_in": 3600}).to_string(), 0);
        }
        ok(found(json!({})), 0)
    })
    .await;
    let account = service_account(&server);
    let credentials = Credentials::ServiceAccount(account.clone());
    let checker = Checker::google_at(&server.url, &credentials, PROJECT).unwrap();
    assert_eq!(checker.check(&identity()).await, Ok(()));
    let form = got.borrow_and_update().clone();
    let assertion = form
        .strip_prefix("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=")
        .unwrap();

    let signer = Signer::from_pem(account.private_key.expose_secret(), None).unwrap();
    let jwks: jsonwebtoken::jwk::JwkSet =
        serde_json::from_str(&signer.jwks_json().replace("null", "\"k\"")).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    validation.set_audience(&[&account.token_uri]);
    validation.set_issuer(&[&account.client_email]);
    let key = jsonwebtoken::DecodingKey::from_jwk(&jwks.keys[0]).unwrap();
    let token = jsonwebtoken::decode::<Value>(assertion, &key, &validation).unwrap();
    assert_eq!(token.header.kid.as_deref(), Some("key-7"));
    assert_eq!(token.claims["scope"], "https://www.googleapis.com/auth/identitytoolkit");
    assert_eq!(token.claims["exp"].as_u64().unwrap() - token.claims["iat"].as_u64().unwrap(), 300);
}

#[tokio::test]
async fn a_wrong_service_account_stops_the_start() {
    let server = Server::start(|_| status(500)).await;
    let good = service_account(&server);
    let with = |change: &dyn Fn(&mut ServiceAccount)| {
        let mut account = good.clone();
        change(&mut account);
        Checker::google(&Credentials::ServiceAccount(account), PROJECT).err()
    };
    assert!(with(&|_| ()).is_none());
    assert!(matches!(with(&|a| a.private_key = "x".into()), Some(AuthError::PrivateKey)));
    assert!(matches!(
        with(&|a| a.private_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----".into()),
        Some(AuthError::PrivateKey)
    ));
    assert!(matches!(
        with(&|a| a.token_uri = "http://issuer.example/".into()),
        Some(AuthError::PlainHttp { .. })
    ));
}

#[tokio::test]
async fn the_metadata_server_speaks_for_the_machine() {
    let server = Server::start(|asked| match asked.path.as_str() {
        "/computeMetadata/v1/instance/service-accounts/default/token" => ok(
            json!({"access_token": "of-machine", "expires_in": 3600, "token_type": "Bearer"}).to_string(),
            0,
        ),
        _ => {
            assert_eq!(asked.authorization, "Bearer of-machine");
            ok(found(json!({})), 0)
        }
    })
    .await;
    let host = server.url.trim_start_matches("http://").to_owned();
    let checker = Checker::google_at(&server.url, &Credentials::Metadata { host }, PROJECT).unwrap();
    assert_eq!(checker.check(&identity()).await, Ok(()));
    assert_eq!(checker.check(&identity()).await, Ok(()));
    assert_eq!(*server.asked.borrow(), 3, "one token for all lookups");
}

#[tokio::test]
async fn a_workload_identity_is_exchanged_and_may_speak_for_a_service_account() {
    let token_file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token_file.path(), "of-pod\n").unwrap();
    let path = token_file.path().to_str().unwrap().to_owned();
    let sources = [
        (SubjectTokenSource::File(path), None),
        (
            SubjectTokenSource::Url { url: "/subject".into(), headers: vec![("x-a".into(), "b".into())] },
            Some("token"),
        ),
    ];
    for (source, field) in sources {
        for impersonates in [false, true] {
            let server = Server::start(|asked| match asked.path.as_str() {
                "/subject" => ok(json!({"token": "of-pod"}).to_string(), 0),
                "/sts" => {
                    assert!(asked.body.contains("subject_token=of-pod"), "{}", asked.body);
                    assert!(asked.body.contains("audience=pool%2Fp"), "{}", asked.body);
                    ok(json!({"access_token": "exchanged", "expires_in": 3600}).to_string(), 0)
                }
                "/impersonate" => {
                    assert_eq!(asked.authorization, "Bearer exchanged");
                    ok(
                        json!({"accessToken": "of-account", "expireTime": "2030-01-01T00:00:00Z"})
                            .to_string(),
                        0,
                    )
                }
                _ => match asked.authorization.as_str() {
                    "Bearer exchanged" | "Bearer of-account" => ok(found(json!({})), 0),
                    other => panic!("{other}"),
                },
            })
            .await;
            let source = match &source {
                SubjectTokenSource::Url { url, headers } => {
                    SubjectTokenSource::Url { url: format!("{}{url}", server.url), headers: headers.clone() }
                }
                SubjectTokenSource::File(path) => SubjectTokenSource::File(path.clone()),
            };
            let account = ExternalAccount {
                audience: "pool/p".into(),
                subject_token_type: "urn:ietf:params:oauth:token-type:jwt".into(),
                token_url: format!("{}/sts", server.url),
                impersonation_url: impersonates.then(|| format!("{}/impersonate", server.url)),
                subject: SubjectToken { source, field: field.map(str::to_owned) },
            };
            let checker = Checker::google_at(&server.url, &Credentials::External(account), PROJECT).unwrap();
            assert_eq!(checker.check(&identity()).await, Ok(()));
        }
    }
}
