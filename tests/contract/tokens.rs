//! Section 2: whose ID tokens are accepted, and where the keys come from.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Config, Issuer, Key, PROJECT, Relay, Token, now};

const OTHER_ISSUER: &str = "https://login.example.org/";
const OTHER_AUDIENCE: &str = "duorelay-app";

/// Any other OpenID Connect issuer than Firebase.
fn other_issuer(issuer: &Issuer) -> Config {
    Config::new(issuer)
        .unset("FIREBASE_PROJECT_ID")
        .set("DUORELAY_ISSUER", OTHER_ISSUER)
        .set("DUORELAY_AUDIENCE", OTHER_AUDIENCE)
}

fn other_token() -> Token {
    Token::firebase("ann").claim("iss", OTHER_ISSUER).claim("aud", OTHER_AUDIENCE)
}

async fn expect_accepted(relay: &Relay, token: &str) {
    relay.handshake().offer(&["duorelay.v1"]).bearer(token).open_v1().await;
}

async fn expect_refused(relay: &Relay, token: &str, code: &str) {
    relay.handshake().bearer(token).refused().await.expect_refusal(403, code);
}

#[tokio::test]
async fn firebase_tokens_are_accepted_by_their_rules() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let good = || Token::firebase("ann");
    for token in [
        good(),
        good().without("email"),
        good().expires_in(60),
        // The clocks of two machines differ a little.
        good().claim("iat", now() + 50),
        good().claim("auth_time", now() + 50),
        good().claim("sub", "x".repeat(128)),
        // 128 characters are more bytes.
        good().claim("sub", "ü".repeat(128)),
        good().claim("sub", "{a}:*\n%"),
    ] {
        expect_accepted(&relay, &token.sign()).await;
    }
}

#[tokio::test]
async fn every_broken_rule_has_its_code() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let good = || Token::firebase("ann");
    let refused: &[(&str, Token)] = &[
        ("token_expired", good().expires_in(-1)),
        ("token_expired", good().expires_in(-30)),
        ("token_not_yet_valid", good().claim("iat", now() + 90)),
        ("token_not_yet_valid", good().claim("auth_time", now() + 90)),
        ("wrong_audience", good().claim("aud", "another-project")),
        ("wrong_audience", good().claim("aud", "")),
        ("wrong_issuer", good().claim("iss", "https://securetoken.google.com/another-project")),
        ("wrong_issuer", good().claim("iss", format!("https://securetoken.google.com/{PROJECT}/"))),
        ("wrong_issuer", good().claim("iss", PROJECT)),
        ("unknown_key", good().header("kid", "nobody")),
        ("unknown_key", good().key(Key::OtherRsa)),
        ("bad_signature", good().key(Key::OtherRsa).header("kid", Key::Rsa.id())),
        ("bad_signature", good().header("alg", "RS384")),
        // Firebase signs with RS256 only.
        ("bad_signature", good().key(Key::Ec)),
        ("malformed_token", good().without_header("kid")),
        ("malformed_token", good().header("kid", 7)),
        ("malformed_token", good().claim("sub", "")),
        ("malformed_token", good().claim("sub", "x".repeat(129))),
        ("malformed_token", good().claim("sub", 7)),
        ("malformed_token", good().claim("exp", "tomorrow")),
    ];
    for (code, token) in refused {
        let response = relay.handshake().bearer(&token.sign()).refused().await;
        assert_eq!((response.status, response.json()["code"].as_str()), (403, Some(*code)), "{token:?}");
    }
    for claim in ["aud", "iss", "sub", "exp", "iat", "auth_time"] {
        let response = relay.handshake().bearer(&good().without(claim).sign()).refused().await;
        assert_eq!(response.json()["code"], "malformed_token", "without {claim}");
    }
    // `aud` is one string for Firebase.
    let list = relay.handshake().bearer(&good().claim("aud", json!([PROJECT])).sign()).refused().await;
    assert_eq!(list.status, 403);
}

#[tokio::test]
async fn what_is_no_signed_token_is_refused() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let good = Token::firebase("ann");
    expect_refused(&relay, &good.unsigned(), "bad_signature").await;
    expect_refused(&relay, &good.signed_with_public_key(), "bad_signature").await;

    let signed = good.sign();
    let (signed_part, _) = signed.rsplit_once('.').unwrap();
    expect_refused(&relay, &format!("{signed_part}."), "bad_signature").await;
    expect_refused(&relay, &format!("{signed_part}.AAAA"), "bad_signature").await;
    // Another user's claims under this signature.
    let other = Token::firebase("eve").sign();
    let parts: Vec<&str> = signed.split('.').collect();
    let forged = format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap(), parts[2]);
    expect_refused(&relay, &forged, "bad_signature").await;

    for garbage in
        ["x", "a.b", "a.b.c", "a.b.c.d", "...", &format!("{signed}.x"), &format!("{}.{}", parts[0], parts[1])]
    {
        expect_refused(&relay, garbage, "malformed_token").await;
    }
}

#[tokio::test]
async fn the_first_broken_rule_is_answered() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let mut token = Token::firebase("ann").claim("auth_time", now() + 90);
    let rules: [(&str, &str, Value); 5] = [
        ("token_not_yet_valid", "iat", json!(now() + 90)),
        ("token_expired", "exp", json!(now() - 10)),
        ("malformed_token", "sub", json!("")),
        ("wrong_issuer", "iss", json!("https://other.example")),
        ("wrong_audience", "aud", json!("other")),
    ];
    // Each rule that is broken in addition stands before the earlier ones.
    for (code, claim, value) in rules {
        token = token.claim(claim, value);
        expect_refused(&relay, &token.sign(), code).await;
    }
    let unsigned_by_us = token.key(Key::OtherRsa).header("kid", Key::Rsa.id());
    expect_refused(&relay, &unsigned_by_us.sign(), "bad_signature").await;
}

#[tokio::test]
async fn other_issuers_may_sign_with_either_algorithm_and_list_audiences() {
    let issuer = Issuer::start();
    let relay = other_issuer(&issuer).start().await;
    for token in [
        other_token(),
        other_token().key(Key::Ec),
        other_token().claim("aud", json!(["somebody-else", OTHER_AUDIENCE])),
        other_token().without("auth_time"),
        other_token().without("email"),
    ] {
        expect_accepted(&relay, &token.sign()).await;
    }
    expect_refused(&relay, &other_token().claim("aud", json!(["somebody-else"])).sign(), "wrong_audience")
        .await;
    expect_refused(&relay, &other_token().claim("aud", json!([])).sign(), "wrong_audience").await;
    expect_refused(&relay, &other_token().claim("iss", "https://login.example.org").sign(), "wrong_issuer")
        .await;
    expect_refused(&relay, &other_token().claim("auth_time", now() + 90).sign(), "token_not_yet_valid").await;
    // The RSA key's name with the other key's algorithm, and the other way round.
    expect_refused(&relay, &other_token().key(Key::Ec).header("kid", Key::Rsa.id()).sign(), "bad_signature")
        .await;
    expect_refused(&relay, &other_token().header("kid", Key::Ec.id()).sign(), "bad_signature").await;
    expect_refused(&relay, &other_token().unsigned(), "bad_signature").await;
    expect_refused(&relay, &Token::firebase("ann").sign(), "wrong_audience").await;
}

#[tokio::test]
async fn an_unknown_key_causes_at_most_one_fetch_in_five_seconds() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    expect_accepted(&relay, &Token::firebase("ann").sign()).await;
    let before = issuer.fetches();
    for n in 0..20 {
        expect_refused(
            &relay,
            &Token::firebase("ann").header("kid", format!("nobody-{n}")).sign(),
            "unknown_key",
        )
        .await;
    }
    let asked = issuer.fetches() - before;
    assert!(asked <= 1, "{asked} fetches for 20 unknown keys");
}

#[tokio::test]
async fn a_new_key_is_found_when_a_token_names_it() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    expect_accepted(&relay, &Token::firebase("ann").sign()).await;
    issuer.list(&[Key::Rsa, Key::OtherRsa]);
    let rotated = relay.handshake().bearer(&Token::firebase("ann").key(Key::OtherRsa).sign());
    // The last fetch may have been less than 5 s ago.
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let (_, response) = rotated.send().await;
        if response.status == 101 {
            break;
        }
        response.expect_refusal(403, "unknown_key");
        assert!(Instant::now() < deadline, "the new key was not found");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn keys_are_refreshed_before_they_age_and_used_past_it_while_the_endpoint_is_away() {
    let issuer = Issuer::start();
    issuer.max_age(2);
    let relay = Config::new(&issuer).start().await;
    expect_accepted(&relay, &Token::firebase("ann").sign()).await;
    let before = issuer.fetches();
    // Nobody connects meanwhile: the refresh is in the background.
    wait_until("a refresh in the background", || issuer.fetches() > before).await;

    issuer.status(500);
    let before = issuer.fetches();
    // Two failed refreshes later, the keys are past their age.
    wait_until("failed refreshes", || issuer.fetches() >= before + 2).await;
    expect_accepted(&relay, &Token::firebase("ann").sign()).await;
}

#[tokio::test]
async fn without_keys_handshakes_get_503_until_there_are_some() {
    let issuer = Issuer::start();
    issuer.status(500);
    let relay = Config::new(&issuer).start_until("/healthz/live").await;
    let handshake = relay.handshake().bearer(&Token::firebase("ann").sign());
    handshake.refused().await.expect_refusal(503, "keys_unavailable");
    issuer.status(200);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (_, response) = handshake.send().await;
        if response.status == 101 {
            break;
        }
        response.expect_refusal(503, "keys_unavailable");
        assert!(Instant::now() < deadline, "the keys were not fetched");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_fetch_of_keys_takes_at_most_three_seconds() {
    let issuer = Issuer::start();
    issuer.delay(Duration::from_secs(30));
    let relay = Config::new(&issuer).start_until("/healthz/live").await;
    let started = Instant::now();
    let refused = relay.handshake().bearer(&Token::firebase("ann").sign()).refused().await;
    refused.expect_refusal(503, "keys_unavailable");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_key_set_of_another_place_changes_nothing_else() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    // Firebase's rules still hold for the test's own key set.
    expect_refused(&relay, &Token::firebase("ann").claim("iss", issuer.jwks_url()).sign(), "wrong_issuer")
        .await;
    expect_refused(&relay, &Token::firebase("ann").without("auth_time").sign(), "malformed_token").await;
}

#[tokio::test]
async fn a_token_does_not_open_another_users_room() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let mut ann = relay.v1_desktop("ann").await;
    // The same e-mail, another uid: the uid is the room.
    let token = Token::firebase("eve").claim("email", "ann@example.org").sign();
    let mut eve = relay.handshake().offer(&["duorelay.v1"]).bearer(&token).open_v1().await;
    assert_eq!(eve.welcome["uid"], "eve");
    assert_eq!(eve.welcome["peer"], json!(null));
    eve.send_frame(0x80, b"for ann?").await;
    eve.expect_error("peer_absent").await;
    eve.send_json(json!({"type": "send", "data": "for ann?"})).await;
    eve.expect_error("peer_absent").await;
    ann.sync().await;
}

#[tokio::test]
async fn revoked_sessions_and_disabled_users_are_refused_where_that_is_checked() {
    let issuer = Issuer::start();
    let config =
        Config::new(&issuer).unset("DUORELAY_JWKS_URL").set("FIREBASE_AUTH_EMULATOR_HOST", issuer.host());
    let checking = config.clone().set("DUORELAY_CHECK_REVOKED", "true").start().await;
    let signed_in = now() - 100;
    let token = Token::firebase("ann").claim("auth_time", signed_in).without_header("kid").unsigned();

    issuer.account(json!({"validSince": (signed_in - 1).to_string()}));
    expect_accepted(&checking, &token).await;
    issuer.account(json!({"validSince": (signed_in + 1).to_string()}));
    expect_refused(&checking, &token, "token_revoked").await;
    issuer.account(json!({"validSince": "0", "disabled": true}));
    expect_refused(&checking, &token, "user_disabled").await;
    // The session and a refresh are refused in the same way.
    issuer.account(json!({"validSince": "0"}));
    let mut client = checking.handshake().offer(&["duorelay.v1"]).bearer(&token).open_v1().await;
    issuer.account(json!({"validSince": (signed_in + 1).to_string()}));
    client.send_json(json!({"type": "auth", "token": token})).await;
    client.expect_error("token_revoked").await;

    let not_checking = config.start().await;
    expect_accepted(&not_checking, &token).await;
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    while !condition() {
        pause.tick().await;
        assert!(Instant::now() < deadline, "no {what}");
    }
}
