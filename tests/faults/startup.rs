//! How an instance starts when its Redis is not as it should be.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::fleet::{SLACK, WITHIN, v1};
use crate::support::{Config, Issuer, LIMIT, RedisServer};

const SECRET: &str = "a-secret-that-no-log-holds";

/// Starts an instance that must stop by itself; its errors.
async fn stops(url: &str) -> Vec<Value> {
    let issuer = Issuer::start();
    let mut relay = Config::new(&issuer).set("REDIS_URL", url).spawn();
    let status = relay.exit(LIMIT).await;
    assert_eq!(status.code(), Some(1), "{}", relay.log());
    let log = relay.log();
    assert!(!log.contains(SECRET) && !log.contains("wrong-password"), "{log}");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let errors: Vec<_> = lines.filter(|line| line.to_string().contains("ERROR")).collect();
    assert!(!log.contains("panicked"), "{log}");
    errors
}

#[tokio::test]
async fn a_wrong_password_is_one_clear_line_and_the_end() {
    let redis = RedisServer::start_with(&["--requirepass", SECRET]).await;
    let at = redis.address();
    for url in [
        format!("redis://:wrong-password@{at}"),
        format!("redis://nobody:wrong-password@{at}"),
        format!("redis://{at}"),
    ] {
        let errors = stops(&url).await;
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].to_string().contains("REDIS_URL"), "{errors:?}");
    }
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("REDIS_URL", format!("redis://:{SECRET}@{at}")).start().await;
    v1(&relay, "ann", "desktop").open_v1().await.sync().await;
    assert!(!relay.log().contains(SECRET));
}

#[tokio::test]
async fn a_redis_user_without_permissions_is_reported() {
    let redis = RedisServer::start().await;
    redis.ask(&["ACL", "SETUSER", "weak", "on", &format!(">{SECRET}"), "+hello", "+auth", "-ping"]).await;
    let errors = stops(&format!("redis://weak:{SECRET}@{}", redis.address())).await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].to_string().contains("REDIS_URL"), "{errors:?}");
}

#[tokio::test]
async fn a_redis_without_hello_is_one_line_that_names_the_least_version_and_no_password() {
    let redis = RedisServer::start_with(&["--rename-command", "HELLO", ""]).await;
    for user in ["", &format!(":{SECRET}@"), &format!("ann:{SECRET}@")] {
        let errors = stops(&format!("redis://{user}{}", redis.address())).await;
        assert_eq!(errors.len(), 1, "{errors:?}");
        let error = errors[0].to_string();
        assert!(error.contains("REDIS_URL") && error.contains("Redis 6.2 or Valkey 7.2"), "{error}");
    }
}

#[tokio::test]
async fn a_redis_that_speaks_an_older_protocol_alone_is_one_line_that_names_the_least_version() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut command = [0; 1024];
            let _ = client.read(&mut command).await;
            let _ = client.write_all(b"-NOPROTO unsupported protocol version\r\n").await;
        }
    });
    let errors = stops(&format!("redis://{address}")).await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].to_string().contains("Redis 6.2 or Valkey 7.2"), "{errors:?}");
    server.abort();
}

#[tokio::test]
async fn an_instance_waits_for_a_redis_that_is_not_there_yet() {
    let server = RedisServer::start().await;
    let (address, url) = (server.address(), server.url());
    drop(server);
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("REDIS_URL", url).start_until("/healthz/live").await;
    assert_eq!(relay.get("/healthz/ready").await.status, 503);
    relay.wait_for_log("this instance waits for Redis: Connection refused (os error 111)").await;
    let asked = Instant::now();
    v1(&relay, "ann", "desktop").refused().await.expect_refusal(503, "backplane_unavailable");
    assert!(asked.elapsed() < Duration::from_secs(2) + SLACK);
    let room = relay.operate("GET", "/v1/rooms/ann", &json!(null)).await;
    room.expect_refusal(503, "backplane_unavailable");
    assert_eq!(relay.metric("duorelay_backplane_up", &[]).await, 0.0);
    let _server = RedisServer::try_start(address).await.unwrap();
    let start = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    while relay.get("/healthz/ready").await.status != 200 {
        pause.tick().await;
    }
    assert!(start.elapsed() < WITHIN + SLACK, "ready after {:?}", start.elapsed());
    v1(&relay, "ann", "desktop").open_v1().await.sync().await;
    assert_eq!(relay.metric("duorelay_backplane_up", &[]).await, 1.0);
}
