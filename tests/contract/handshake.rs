//! Section 2: where the token is looked for, which device and protocol come of it, and what is refused.

use serde_json::json;

use crate::support::{Client, Config, Issuer, Relay, Token, now, request};

async fn start() -> (Issuer, Relay) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    (issuer, relay)
}

pub fn token() -> String {
    Token::firebase("ann").sign()
}

/// The device of a v1 connection, as its welcome says.
fn device(client: &Client) -> &str {
    client.welcome["device"].as_str().unwrap()
}

#[tokio::test]
async fn both_paths_upgrade() {
    let (_issuer, relay) = start().await;
    for path in ["/", "/ws"] {
        let client = relay.handshake().path(path).offer(&["duorelay.v1", &token()]).open_v1().await;
        assert_eq!(device(&client), "desktop");
    }
}

#[tokio::test]
async fn welcome_names_the_user_and_the_limits() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_MESSAGE_BYTES", 4096)
        .set("DUORELAY_QUEUE_BYTES", 70_000)
        .set("DUORELAY_MESSAGES_PER_SECOND", 77)
        .set("DUORELAY_BYTES_PER_SECOND", 400_000)
        .set("DUORELAY_HEARTBEAT_SECONDS", 9)
        .set("DUORELAY_STUN_URLS", "stun:stun.example.org:3478,stuns:other.example.org")
        .start()
        .await;
    let expires_at = now() + 1000;
    let token = Token::firebase("ann").claim("exp", expires_at).sign();
    let desktop = relay.handshake().offer(&["duorelay.v1", &token]).open_v1().await;
    let welcome = &desktop.welcome;
    let limits = json!({
        "message_bytes": 4096, "messages_per_second": 77, "queue_bytes": 70_000, "bytes_per_second": 400_000,
    });
    assert_eq!(welcome["device"], "desktop");
    assert_eq!(welcome["uid"], "ann");
    assert_eq!(welcome["peer"], json!(null));
    assert_eq!(welcome["expires_at"], expires_at);
    assert_eq!(welcome["heartbeat_ms"], 9000);
    assert_eq!(welcome["limits"], limits);
    assert!(welcome["features"].is_array(), "{welcome}");
    assert_eq!(welcome["stun"], json!(["stun:stun.example.org:3478", "stuns:other.example.org"]));
    assert!(welcome.get("tenant").is_none(), "{welcome}");
    assert!(desktop.generation() > 0 && desktop.generation() < 1 << 53);
    let connection = uuid::Uuid::parse_str(desktop.id()).unwrap();
    assert_eq!(connection.get_version_num(), 7);
    uuid::Uuid::parse_str(welcome["instance"].as_str().unwrap()).unwrap();

    let mobile = relay.v1_mobile("ann").await;
    assert_eq!(mobile.welcome["device"], "mobile");
    assert_eq!(mobile.welcome["peer"], desktop.as_peer());
    assert_eq!(mobile.welcome["instance"], welcome["instance"]);
    assert!(mobile.generation() > desktop.generation(), "a generation grows with every claim of the room");
    assert_ne!(mobile.id(), desktop.id());
}

#[tokio::test]
async fn the_place_of_the_token_decides_the_device() {
    let (_issuer, relay) = start().await;
    let (relay, token) = (&relay, token());
    let v1 = || relay.handshake().offer(&["duorelay.v1"]);

    let browser = relay.handshake().offer(&["duorelay.v1", &token]);
    assert_eq!(device(&browser.open_v1().await), "desktop");
    assert_eq!(device(&v1().header("clientid", &token).open_v1().await), "mobile");
    assert_eq!(device(&v1().bearer(&token).open_v1().await), "mobile");
    for scheme in ["bearer", "BEARER", "bEaReR"] {
        let header = format!("{scheme} {token}");
        assert_eq!(device(&v1().header("Authorization", &header).open_v1().await), "mobile");
    }
    assert_eq!(
        device(&v1().header("ClientID", &token).open_v1().await),
        "mobile",
        "header names ignore case"
    );
}

#[tokio::test]
async fn the_device_parameter_wins_over_the_place() {
    let (_issuer, relay) = start().await;
    let token = token();
    let browser = relay.handshake().offer(&["duorelay.v1", &token]);
    let native = relay.handshake().offer(&["duorelay.v1"]).header("clientid", &token);
    for name in ["desktop", "mobile"] {
        assert_eq!(device(&browser.clone().device(name).open_v1().await), name);
        assert_eq!(device(&native.clone().device(name).open_v1().await), name);
    }
}

#[tokio::test]
async fn a_token_is_taken_from_the_first_place_that_has_one() {
    let (_issuer, relay) = start().await;
    let (relay, token) = (&relay, token());
    let garbage = "not-a-token";

    let offer_first =
        relay.handshake().offer(&["duorelay.v1", &token]).header("clientid", garbage).bearer(garbage);
    assert_eq!(device(&offer_first.open_v1().await), "desktop");
    let header_first = relay.handshake().offer(&["duorelay.v1"]).header("clientid", &token).bearer(garbage);
    assert_eq!(device(&header_first.open_v1().await), "mobile");

    let bad_offer = relay.handshake().offer(&["duorelay.v1", garbage]).header("clientid", &token);
    bad_offer.refused().await.expect_refusal(403, "malformed_token");
    let bad_header = relay.handshake().header("clientid", garbage).bearer(&token);
    bad_header.refused().await.expect_refusal(403, "malformed_token");
}

#[tokio::test]
async fn v1_is_selected_and_the_token_is_never_echoed_beside_it() {
    let (_issuer, relay) = start().await;
    let token = token();
    let orders: [&[&str]; 4] = [
        &["duorelay.v1", &token],
        &[&token, "duorelay.v1"],
        &["duorelay.v2", "duorelay.v1", &token],
        &["duorelay.v1", "duorelay.v2", &token],
    ];
    for offer in orders {
        let (_stream, response) = relay.handshake().offer(offer).send().await;
        assert_eq!(response.status, 101);
        assert_eq!(response.header("sec-websocket-protocol"), Some("duorelay.v1"));
        assert!(response.headers.iter().all(|(_, value)| !value.contains(&token)));
    }
    let in_two_fields = relay.handshake().offer(&["duorelay.v1"]).offer(&[&token]);
    in_two_fields.open_v1().await;
    let with_header = relay.handshake().offer(&["duorelay.v1"]).bearer(&token);
    with_header.open_v1().await;
}

#[tokio::test]
async fn an_offered_token_alone_is_echoed_and_speaks_classic() {
    let (_issuer, relay) = start().await;
    let token = token();
    let mut client = relay.handshake().offer(&[&token]).open().await;
    assert_eq!(client.protocol.as_deref(), Some(token.as_str()));
    client.send_text("hello").await;
    assert!(client.expect_text().await.contains("Message: hello"));
}

#[tokio::test]
async fn without_an_offer_nothing_is_selected_and_classic_is_spoken() {
    let (_issuer, relay) = start().await;
    let token = token();
    for handshake in [relay.handshake().header("clientid", &token), relay.handshake().bearer(&token)] {
        let mut client = handshake.open().await;
        assert_eq!(client.protocol, None);
        client.send_text("hello").await;
        assert!(client.expect_text().await.contains("Message: hello"));
    }
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let (_issuer, relay) = start().await;
    let (relay, token) = (&relay, token());
    let browser = || relay.handshake().offer(&["duorelay.v1", &token]);

    relay.handshake().refused().await.expect_refusal(400, "missing_token");
    relay.handshake().offer(&["duorelay.v1"]).refused().await.expect_refusal(400, "missing_token");
    let basic = relay.handshake().header("Authorization", "Basic YW5uOnNlY3JldA==");
    basic.refused().await.expect_refusal(400, "missing_token");

    for device in ["phone", "Desktop", ""] {
        browser().device(device).refused().await.expect_refusal(400, "bad_device");
    }
    browser().device("desktop").device("mobile").refused().await.expect_refusal(400, "bad_device");
    browser().device("desktop").device("desktop").refused().await.expect_refusal(400, "bad_device");

    let unknown = relay.handshake().offer(&["duorelay.v2"]).header("clientid", &token);
    unknown.refused().await.expect_refusal(400, "unsupported_protocol");
    let unknown = relay.handshake().offer(&["duorelay.v2", &token]);
    unknown.refused().await.expect_refusal(400, "unsupported_protocol");

    for client in ["", "a b", "a%20b", "a.b", "%C3%A9", &"x".repeat(65)] {
        let response = browser().client(&client.replace(' ', "+")).refused().await;
        response.expect_refusal(400, "bad_request");
    }
    let two_tokens = relay.handshake().offer(&["duorelay.v1", &token, &token]);
    two_tokens.refused().await.expect_refusal(400, "bad_request");
    let two_tokens = relay.handshake().offer(&[&token, "another"]);
    two_tokens.refused().await.expect_refusal(400, "bad_request");
    let no_key = browser().without("Sec-WebSocket-Key");
    no_key.refused().await.expect_refusal(400, "bad_request");
}

#[tokio::test]
async fn a_client_name_may_have_64_letters_digits_dashes_and_underscores() {
    let (_issuer, relay) = start().await;
    let token = token();
    for client in ["a", "Tab-1_x", &"x".repeat(64)] {
        relay.handshake().offer(&["duorelay.v1", &token]).client(client).open_v1().await;
    }
}

#[tokio::test]
async fn anything_but_an_upgrade_gets_426() {
    let (_issuer, relay) = start().await;
    for path in ["/", "/ws"] {
        let response = relay.get(path).await;
        response.expect_refusal(426, "upgrade_required");
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let response = request(relay.public, method, path, &[], b"").await.unwrap();
            response.expect_refusal(426, "upgrade_required");
        }
        let other_upgrade =
            relay.handshake().path(path).without("Upgrade").header("Upgrade", "h2c").bearer(&token());
        other_upgrade.refused().await.expect_refusal(426, "upgrade_required");
        for version in ["8", "12", "14", ""] {
            let other_version = relay
                .handshake()
                .path(path)
                .without("Sec-WebSocket-Version")
                .header("Sec-WebSocket-Version", version)
                .bearer(&token());
            other_version.refused().await.expect_refusal(426, "upgrade_required");
        }
        let post = relay.handshake().path(path).method("POST").bearer(&token());
        post.refused().await.expect_refusal(426, "upgrade_required");
    }
}

#[tokio::test]
async fn other_pages_origins_are_refused() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_ALLOWED_ORIGINS", "https://app.example.org,http://localhost:5173")
        .start()
        .await;
    let token = token();
    let from = |origin: &str| relay.handshake().offer(&["duorelay.v1", &token]).header("Origin", origin);
    for origin in ["https://app.example.org", "http://localhost:5173"] {
        from(origin).open_v1().await;
    }
    for origin in [
        "https://evil.example",
        "http://app.example.org",
        "https://app.example.org.evil.example",
        "http://localhost",
        "null",
    ] {
        from(origin).refused().await.expect_refusal(403, "origin_not_allowed");
    }
    assert_eq!(relay.metric("duorelay_handshakes_total", &[r#"result="origin_not_allowed""#]).await, 5.0);
    // Native apps send none.
    relay.handshake().offer(&["duorelay.v1", &token]).open_v1().await;
}

#[tokio::test]
async fn a_token_in_a_header_is_no_pages_whatever_its_library_sends_as_origin() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_ALLOWED_ORIGINS", "https://app.example.org").start().await;
    let token = token();
    let from = |origin: &str| relay.handshake().header("Origin", origin);
    for origin in ["http://127.0.0.1:3000", "https://evil.example", "null", "file://"] {
        from(origin).offer(&["duorelay.v1"]).bearer(&token).open_v1().await;
        from(origin).header("clientid", &token).open().await;
        // A page can do this, and this.
        let both = from(origin).offer(&["duorelay.v1", &token]).bearer(&token);
        both.refused().await.expect_refusal(403, "origin_not_allowed");
        from(origin).offer(&["duorelay.v1"]).refused().await.expect_refusal(403, "origin_not_allowed");
        from(origin).refused().await.expect_refusal(403, "origin_not_allowed");
    }
    from("https://app.example.org").refused().await.expect_refusal(400, "missing_token");
}

#[tokio::test]
async fn what_a_proxy_could_read_differently_is_refused_before_anything_is_claimed() {
    let (_issuer, relay) = start().await;
    let token = token();
    let mut holder = relay.v1_mobile("ann").await;
    let native = || relay.handshake().offer(&["duorelay.v1"]).bearer(&token);
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    for odd in [
        native().without("Host"),
        native().header("Host", "other.example"),
        native().header("Host", &relay.public.to_string()),
        native().without("Host").header("Host", ""),
        native().header("Sec-WebSocket-Key", key),
        native().header("Sec-WebSocket-Version", "13"),
        native().header("Content-Length", "5"),
        native().header("Transfer-Encoding", "chunked"),
        native().bearer(&token),
        native().header("clientid", &token).header("clientid", &token),
    ] {
        let response = odd.refused().await;
        assert_eq!(response.status, 400, "{}: {response:?}", odd.head());
    }
    holder.sync().await;
    native().header("Content-Length", "0").open_v1().await;
    holder.expect_json("overwritten").await;
}

#[tokio::test]
async fn any_origin_may_connect_by_default() {
    let (_issuer, relay) = start().await;
    let token = token();
    relay.handshake().offer(&["duorelay.v1", &token]).header("Origin", "https://any.example").open_v1().await;
}

#[tokio::test]
async fn the_first_of_several_refusals_is_answered() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_ALLOWED_ORIGINS", "https://app.example.org")
        .set("DUORELAY_MAX_CONNECTIONS", 1)
        .start()
        .await;
    let relay = &relay;
    let expired = Token::firebase("ann").expires_in(-5).sign();
    let bad_origin = |token: &str| relay.handshake().header("Origin", "https://evil.example").offer(&[token]);

    // Form before Origin, Origin before token.
    bad_origin(&expired).device("phone").refused().await.expect_refusal(400, "bad_device");
    bad_origin(&expired).refused().await.expect_refusal(403, "origin_not_allowed");
    relay.handshake().bearer(&expired).refused().await.expect_refusal(403, "token_expired");

    // Full before form.
    let _only = relay.v1_desktop("bob").await;
    bad_origin(&expired).device("phone").refused().await.expect_refusal(503, "full");
}

#[tokio::test]
async fn an_idle_tcp_connection_does_not_hold_up_others() {
    let (_issuer, relay) = start().await;
    let mut idle = Vec::new();
    for _ in 0..50 {
        idle.push(tokio::net::TcpStream::connect(relay.public).await.unwrap());
    }
    relay.v1_desktop("ann").await;
    drop(idle);
}

#[tokio::test]
async fn frames_that_follow_the_handshake_at_once_are_not_lost() {
    use tokio::io::AsyncWriteExt;
    let (_issuer, relay) = start().await;
    let frame = crate::support::RawFrame::new(0x1, r#"{"type":"ping","id":"early"}"#).encode();
    let handshake = relay.handshake().offer(&["duorelay.v1", &token()]);
    let mut stream = tokio::net::TcpStream::connect(relay.public).await.unwrap();
    stream.write_all(&[handshake.head().as_bytes(), &frame].concat()).await.unwrap();
    let (_, mut raw) = crate::support::RawClient::after_handshake(stream).await;
    raw.expect_json("welcome").await;
    assert_eq!(raw.expect_json("pong").await["id"], "early");
}

#[tokio::test]
async fn unknown_paths_are_not_found() {
    let (_issuer, relay) = start().await;
    assert_eq!(relay.get("/no-such-page").await.status, 404);
}
