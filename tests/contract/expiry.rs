//! Sections 3, 4.2, 4.3 and 4.4: sessions end with their token unless it is refreshed.

use std::time::Duration;

use serde_json::json;

use crate::support::{Client, Config, Issuer, Key, Relay, Token, now, since_epoch};

async fn start() -> (Issuer, Relay) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    (issuer, relay)
}

async fn expiring_desktop(relay: &Relay, uid: &str, expires_at: i64) -> Client {
    let token = Token::firebase(uid).claim("exp", expires_at).sign();
    let client = relay.handshake().offer(&["duorelay.v1", &token]).open_v1().await;
    assert_eq!(client.welcome["expires_at"], expires_at);
    client
}

/// The close comes when the token has expired, at the latest 2 s after it.
async fn expect_expired(client: &mut Client, expires_at: i64) {
    client.expect_close_within(Duration::from_secs(12), 4003).await;
    let late = since_epoch().as_secs_f64() - expires_at as f64;
    assert!((-0.05..=2.1).contains(&late), "closed {late} s after the expiry");
    client.expect_end().await;
}

#[tokio::test]
async fn a_session_that_is_not_refreshed_is_warned_and_closed_within_two_seconds() {
    let (_issuer, relay) = start().await;
    let expires_at = now() + 3;
    let mut client = expiring_desktop(&relay, "ann", expires_at).await;
    // Less than five minutes are left: right after welcome.
    assert_eq!(client.expect_json("expiring").await, json!({"type": "expiring", "expires_at": expires_at}));
    expect_expired(&mut client, expires_at).await;
    assert!(relay.room("ann").await["desktop"].is_null());
}

#[tokio::test]
async fn five_minutes_before_the_expiry_the_client_is_warned() {
    let (_issuer, relay) = start().await;
    let expires_at = now() + 303;
    let mut client = expiring_desktop(&relay, "ann", expires_at).await;
    client.sync().await;
    client.expect_json("expiring").await;
    let left = expires_at as f64 - since_epoch().as_secs_f64();
    assert!((297.9..=300.1).contains(&left), "warned {left} s before the expiry");
    client.sync().await;
}

#[tokio::test]
async fn a_fresh_token_prolongs_the_session() {
    let (_issuer, relay) = start().await;
    let first = now() + 3;
    let mut client = expiring_desktop(&relay, "ann", first).await;
    client.expect_json("expiring").await;

    let second = now() + 6;
    let fresh = Token::firebase("ann").claim("exp", second).sign();
    client.send_json(json!({"type": "auth", "token": fresh})).await;
    assert_eq!(
        client.expect_json("authenticated").await,
        json!({"type": "authenticated", "expires_at": second})
    );
    // Still less than five minutes: warned again, right after the refresh.
    assert_eq!(client.expect_json("expiring").await["expires_at"], second);
    expect_expired(&mut client, second).await;
}

#[tokio::test]
async fn a_long_token_ends_the_hurry() {
    let (_issuer, relay) = start().await;
    let first = now() + 2;
    let mut client = expiring_desktop(&relay, "ann", first).await;
    client.expect_json("expiring").await;
    let second = now() + 3600;
    let fresh = Token::firebase("ann").claim("exp", second).sign();
    client.send_json(json!({"type": "auth", "token": fresh})).await;
    assert_eq!(client.expect_json("authenticated").await["expires_at"], second);
    while since_epoch().as_secs_f64() < first as f64 + 2.5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.sync().await;
}

#[tokio::test]
async fn a_refused_refresh_leaves_the_old_expiry_standing() {
    let (_issuer, relay) = start().await;
    let expires_at = now() + 4;
    let mut client = expiring_desktop(&relay, "ann", expires_at).await;
    client.expect_json("expiring").await;
    let fresh = || Token::firebase("ann");
    let refused = [
        ("wrong_user", Token::firebase("eve").sign()),
        ("token_expired", fresh().expires_in(-5).sign()),
        ("wrong_audience", fresh().claim("aud", "x").sign()),
        ("wrong_issuer", fresh().claim("iss", "x").sign()),
        ("bad_signature", fresh().unsigned()),
        ("unknown_key", fresh().key(Key::OtherRsa).sign()),
        ("token_not_yet_valid", fresh().claim("iat", now() + 90).sign()),
        ("malformed_token", "x".to_owned()),
    ];
    for (code, token) in refused {
        client.send_json(json!({"type": "auth", "token": token, "id": "a"})).await;
        client.expect_error(code).await;
    }
    expect_expired(&mut client, expires_at).await;
}

#[tokio::test]
async fn messages_around_a_refresh_keep_their_order() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    let fresh = Token::firebase("ann").expires_in(7200).sign();
    mobile.send_json(json!({"type": "send", "data": 1})).await;
    mobile.send_json(json!({"type": "auth", "token": fresh})).await;
    mobile.send_json(json!({"type": "send", "data": 2})).await;
    mobile.send_json(json!({"type": "ping", "id": "after"})).await;
    for n in 1..=2 {
        assert_eq!(desktop.expect_json("message").await["data"], n);
    }
    mobile.expect_json("authenticated").await;
    mobile.expect_json("pong").await;
}

#[tokio::test]
async fn a_classic_session_is_closed_at_its_expiry_without_warning() {
    let (_issuer, relay) = start().await;
    let expires_at = now() + 3;
    let token = Token::firebase("ann").claim("exp", expires_at).sign();
    let mut client = relay.handshake().offer(&[&token]).open().await;
    // The close is the first that comes.
    expect_expired(&mut client, expires_at).await;
}

#[tokio::test]
async fn the_peer_is_notified_when_a_session_expires() {
    let (_issuer, relay) = start().await;
    let mut mobile = relay.v1_mobile("ann").await;
    let _desktop = expiring_desktop(&relay, "ann", now() + 2).await;
    mobile.expect_json("peer").await;
    assert_eq!(mobile.expect_json("peer").await["state"], "disconnected");
}

#[tokio::test]
async fn expiry_can_be_switched_off() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_ENFORCE_EXPIRY", "false").start().await;
    let expires_at = now() + 2;
    let token = Token::firebase("ann").claim("exp", expires_at).sign();
    let mut client = relay.handshake().offer(&["duorelay.v1", &token]).open_v1().await;
    let mut classic = relay.handshake().header("clientid", &token).open().await;
    while since_epoch().as_secs_f64() < expires_at as f64 + 2.5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    classic.send_text("still here").await;
    assert!(classic.expect_text().await.contains("Message: still here"));
    client.send_json(json!({"type": "ping"})).await;
    loop {
        let text = client.expect_text().await;
        if text.contains("\"pong\"") {
            break;
        }
    }
    // A handshake still needs a token that has not expired.
    relay.handshake().header("clientid", &token).refused().await.expect_refusal(403, "token_expired");
}
