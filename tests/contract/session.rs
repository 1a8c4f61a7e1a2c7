//! Section 2: `GET /v1/session`, which answers a page what a refused handshake cannot.

use serde_json::json;

use crate::support::{Config, Issuer, Relay, Response, Token, now, request};

async fn ask(relay: &Relay, headers: &[(&str, &str)]) -> Response {
    request(relay.public, "GET", "/v1/session", headers, b"").await.unwrap()
}

async fn ask_as(relay: &Relay, token: &str) -> Response {
    ask(relay, &[("authorization", &format!("Bearer {token}"))]).await
}

#[tokio::test]
async fn a_session_returns_the_user_the_expiry_and_the_room() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let expires_at = now() + 600;
    let token = Token::firebase("ann").claim("exp", expires_at).sign();

    let empty = ask_as(&relay, &token).await;
    assert_eq!(empty.status, 200);
    let expected = json!({
        "uid": "ann", "email": "ann@example.org", "expires_at": expires_at,
        "room": {"desktop": null, "mobile": null},
    });
    assert_eq!(empty.json(), expected);

    let desktop = relay.v1_desktop("ann").await;
    let room = ask_as(&relay, &token).await.json()["room"].clone();
    assert_eq!(room, json!({"desktop": desktop.as_peer(), "mobile": null}));
    let mobile = relay.v1_mobile("ann").await;
    let room = ask_as(&relay, &token).await.json()["room"].clone();
    assert_eq!(room, json!({"desktop": desktop.as_peer(), "mobile": mobile.as_peer()}));

    let nameless = ask_as(&relay, &Token::firebase("bob").without("email").sign()).await;
    assert_eq!(nameless.json()["email"], json!(null));
    assert_eq!(nameless.json()["room"], json!({"desktop": null, "mobile": null}));
}

#[tokio::test]
async fn a_session_is_refused_exactly_as_the_handshake_would_be() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_ALLOWED_ORIGINS", "https://app.example.org").start().await;
    ask(&relay, &[]).await.expect_refusal(400, "missing_token");
    ask_as(&relay, "x").await.expect_refusal(403, "malformed_token");
    ask_as(&relay, &Token::firebase("ann").expires_in(-5).sign()).await.expect_refusal(403, "token_expired");
    ask_as(&relay, &Token::firebase("ann").claim("aud", "x").sign())
        .await
        .expect_refusal(403, "wrong_audience");
    let bearer = format!("Bearer {}", Token::firebase("ann").sign());
    let evil = ask(&relay, &[("authorization", &bearer), ("origin", "https://evil.example")]).await;
    evil.expect_refusal(403, "origin_not_allowed");
    let headers = [("authorization", bearer.as_str())];
    for (query, code) in [
        ("device=phone", "bad_device"),
        ("client=%20", "bad_request"),
        ("attempt=1", "bad_request"),
        ("client=a&attempt=x", "bad_request"),
    ] {
        let path = format!("/v1/session?{query}");
        request(relay.public, "GET", &path, &headers, b"").await.unwrap().expect_refusal(400, code);
    }
    let path = "/v1/session?device=desktop&client=a&attempt=1&affinity=38390dbb&more=1";
    assert_eq!(request(relay.public, "GET", path, &headers, b"").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_full_relay_answers_so_in_the_session() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MAX_CONNECTIONS", 1).start().await;
    let _only = relay.v1_desktop("ann").await;
    ask_as(&relay, &Token::firebase("bob").sign()).await.expect_refusal(503, "full");
}

#[tokio::test]
async fn asking_for_the_session_does_not_take_the_slot() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let mut desktop = relay.v1_desktop("ann").await;
    assert_eq!(ask_as(&relay, &Token::firebase("ann").sign()).await.status, 200);
    desktop.sync().await;
}

#[tokio::test]
async fn allowed_origins_may_read_the_session_and_its_refusals() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_ALLOWED_ORIGINS", "https://app.example.org").start().await;
    let origin = ("origin", "https://app.example.org");
    let bearer = format!("Bearer {}", Token::firebase("ann").sign());
    let allowed = |response: &Response| {
        matches!(response.header("access-control-allow-origin"), Some("*" | "https://app.example.org"))
    };
    let good = ask(&relay, &[origin, ("authorization", &bearer)]).await;
    assert!(good.status == 200 && allowed(&good), "{good:?}");
    for headers in [vec![origin], vec![origin, ("authorization", "Bearer x")]] {
        let refused = ask(&relay, &headers).await;
        assert!(matches!(refused.status, 400 | 403) && allowed(&refused), "{refused:?}");
    }
    let evil = ask(&relay, &[("origin", "https://evil.example"), ("authorization", &bearer)]).await;
    assert!(!allowed(&evil), "{evil:?}");
}

#[tokio::test]
async fn refusals_for_a_while_may_be_read_with_their_retry_after() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MAX_CONNECTIONS", 1).start().await;
    let _only = relay.v1_desktop("ann").await;
    let bearer = format!("Bearer {}", Token::firebase("bob").sign());
    let full = ask(&relay, &[("origin", "https://any.example"), ("authorization", &bearer)]).await;
    full.expect_refusal(503, "full");
    assert!(matches!(full.header("access-control-allow-origin"), Some("*" | "https://any.example")));
    let exposed = full.header("access-control-expose-headers").unwrap_or_default().to_lowercase();
    assert!(exposed.contains("retry-after"), "a page cannot read a header that is not exposed: {exposed:?}");
}

#[tokio::test]
async fn the_preflight_answers_204_to_allowed_origins() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_ALLOWED_ORIGINS", "https://app.example.org").start().await;
    let preflight = async |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "authorization"),
        ];
        request(relay.public, "OPTIONS", "/v1/session", &headers, b"").await.unwrap()
    };
    let allowed = preflight("https://app.example.org").await;
    assert_eq!(allowed.status, 204);
    assert!(matches!(allowed.header("access-control-allow-origin"), Some("*" | "https://app.example.org")));
    let headers = allowed.header("access-control-allow-headers").unwrap_or_default().to_lowercase();
    // `*` does not stand for Authorization (Fetch, section 3.2.4).
    assert!(headers.split(',').any(|name| name.trim() == "authorization"), "{headers:?}");
    let evil = preflight("https://evil.example").await;
    assert!(!matches!(evil.header("access-control-allow-origin"), Some("*" | "https://evil.example")));
}
