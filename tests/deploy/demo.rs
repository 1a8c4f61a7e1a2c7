//! Several demos are one demo: what docker-compose.yml starts.

use std::net::SocketAddr;

use serde_json::json;

use crate::support::{Config, Issuer, RedisServer, Relay, request};

async fn demo(redis: Option<&RedisServer>) -> Relay {
    let mut config = Config::new(&Issuer::start()).without_command().arg("demo");
    if let Some(redis) = redis {
        config = config.arg("--redis-url").arg(&redis.url());
    }
    config.start().await
}

async fn token(address: SocketAddr, user: &str) -> String {
    let headers = [("content-type", "application/json")];
    let body = json!({ "user": user }).to_string();
    let answer = request(address, "POST", "/demo/token", &headers, body.as_bytes()).await;
    answer.unwrap().json()["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn demos_with_one_redis_believe_each_others_tokens_and_share_rooms() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(demo(Some(&redis)), demo(Some(&redis)));
    let offer = ["duorelay.v1", &token(one.public, "ada").await];
    let mut desktop = two.handshake().offer(&offer).open_v1().await;
    let bearer = token(two.public, "ada").await;
    let mobile = one.handshake().offer(&["duorelay.v1"]).bearer(&bearer);
    let mut mobile = mobile.open_v1().await;
    assert_eq!(desktop.expect_json("peer").await["device"], "mobile");
    mobile.send_binary(&[0x80, 7]).await;
    assert_eq!(desktop.expect_binary().await, [0x80, 7]);
}

#[tokio::test]
async fn demos_without_redis_are_strangers() {
    let (one, two) = tokio::join!(demo(None), demo(None));
    let offer = ["duorelay.v1", &token(one.public, "ada").await];
    let refused = two.handshake().offer(&offer).refused().await;
    refused.expect_refusal(403, "unknown_key");
}
