//! Section 6: what log lines look like, and what none of them holds.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Config, Issuer, RedisServer, Token};

#[tokio::test]
async fn no_log_at_any_level_holds_a_token_an_address_or_a_payload() {
    let issuer = Issuer::start();
    let redis = RedisServer::start().await;
    redis.ask(&["CONFIG", "SET", "requirepass", "secret-redis"]).await;
    let url = format!("redis://:secret-redis@{}", redis.address());
    let relay = Config::new(&issuer).set("RUST_LOG", "trace").set("REDIS_URL", url).start().await;
    let wrong = [("authorization", "Bearer secret-operator")];
    let refused = crate::support::request(relay.admin, "GET", "/v1/instances", &wrong, b"").await.unwrap();
    assert_eq!(refused.status, 401);
    let token = Token::firebase("ann").claim("email", "secret-address@example.org").sign();
    let expired = Token::firebase("ann").expires_in(-5).sign();
    let native = relay.handshake().offer(&["duorelay.v1"]);
    relay.handshake().header("clientid", &expired).refused().await;
    relay.handshake().bearer("secret-garbage").refused().await;
    relay.handshake().offer(&["duorelay.v1", &token, "secret-second"]).refused().await;
    let mut desktop = relay.handshake().offer(&["duorelay.v1", &token]).open_v1().await;
    let mut mobile = native.header("clientid", &token).open_v1().await;
    desktop.expect_json("peer").await;
    mobile.send_frame(0x80, b"secret-frame").await;
    desktop.expect_binary().await;
    mobile.send_json(serde_json::json!({"type": "send", "data": "secret-data", "id": "secret-id"})).await;
    desktop.expect_json("message").await;
    mobile.send_text("secret-bad-json").await;
    mobile.expect_error("bad_json").await;
    mobile.send_json(serde_json::json!({"type": "auth", "token": token})).await;
    mobile.expect_json("authenticated").await;
    let mut classic = relay.handshake().offer(&[&token]).open().await;
    classic.send_text("secret-text").await;
    classic.expect_text().await;
    relay.operate("POST", "/v1/rooms/ann/messages", &serde_json::json!({"data": "secret-notice"})).await;
    mobile.send_close(1000, "secret-reason").await;
    // Broken frames, and a Redis that goes away, are errors that are logged.
    let mut raw = relay.handshake().offer(&["duorelay.v1"]).bearer(&token).open_raw().await;
    raw.write(b"\xffsecret-bytes").await;
    drop(redis);
    relay.wait_for_log("the backplane is in trouble").await;

    // The last lines are written when the process has ended.
    let mut relay = relay;
    drop((desktop, classic, mobile));
    relay.signal("TERM");
    relay.exit(Duration::from_secs(15)).await;
    let log = relay.log();
    assert!(log.len() > 200, "a log at level trace says something: {log}");
    for secret in [
        "secret",
        &token[..40],
        &expired[..40],
        token.rsplit('.').next().unwrap(),
        crate::support::ADMIN_TOKEN,
    ] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret:?} is in the log");
    }
}

#[tokio::test]
async fn log_lines_are_json_by_default_and_cloud_loggings_on_request() {
    let issuer = Issuer::start();
    for (config, field) in [
        (Config::new(&issuer).unset("LOG_FORMAT"), "level"),
        (Config::new(&issuer).set("LOG_FORMAT", "json"), "level"),
        (Config::new(&issuer).set("LOG_FORMAT", "gcp"), "severity"),
    ] {
        let mut relay = config.set("DUORELAY_DRAIN_DELAY_SECONDS", 0).start().await;
        relay.signal("TERM");
        relay.exit(Duration::from_secs(10)).await;
        let log = relay.log();
        assert!(!log.is_empty());
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(line[field].is_string(), "{line}");
        }
    }
}

#[tokio::test]
async fn no_log_holds_the_password_of_redis() {
    let issuer = Issuer::start();
    let url = "redis://user:secret-password@127.0.0.1:1/0";
    let config = Config::new(&issuer).set("RUST_LOG", "trace,fred=trace").set("REDIS_URL", url);
    let mut relay = config.set("DUORELAY_DRAIN_DELAY_SECONDS", 0).start_until("/healthz/live").await;
    relay.signal("TERM");
    relay.exit(Duration::from_secs(10)).await;
    let log = relay.log();
    assert!(log.contains("this instance waits for Redis"), "{log}");
    assert!(!log.contains("secret-password"), "{log}");
}
