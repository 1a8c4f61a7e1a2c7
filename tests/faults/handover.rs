//! A sender that moves to another instance while what it has sent is still on its way to Redis.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fleet::{Fleet, notified, v1};
use crate::support::{LIMIT, Proxy, RedisServer};

/// What a PUBLISH of the first instance takes: shorter than the 200 ms after which a relay waits for Redis.
const SLOW: Duration = Duration::from_millis(120);

fn ping(id: &str) -> Value {
    json!({"type": "ping", "id": id})
}

#[tokio::test]
async fn after_its_pong_a_sender_moves_without_losing_a_reliable_frame() {
    let redis = RedisServer::start().await;
    let slow = Proxy::start_slow(redis.address(), b"PUBLISH", SLOW).await;
    let slow_url = format!("redis://{}", slow.address());
    let fleet = Fleet::start_with(&[&slow_url, &redis.url()], |config| config).await;
    let [from, to] = [&fleet.relays[0], &fleet.relays[1]];
    let mut old = v1(from, "ann", "desktop").client("tab").open_v1().await;
    let mut mobile = v1(to, "ann", "mobile").open_v1().await;
    notified(&mut old, LIMIT, "peer").await;
    for n in 0..20_u8 {
        old.send_frame(0x80, &[n]).await;
    }
    old.send_json(ping("last")).await;
    // What the relay says meanwhile does not wait for the pong.
    old.send_json(json!({"type": "unknown"})).await;
    old.expect_error("unknown_type").await;
    assert_eq!(notified(&mut old, LIMIT, "pong").await["id"], "last");

    let mut new = v1(to, "ann", "desktop").client("tab").open_v1().await;
    new.send_frame(0x80, b"new").await;
    for n in 0..20_u8 {
        assert_eq!(mobile.expect_binary().await, [0x80, n]);
    }
    assert_eq!(mobile.expect_json("peer").await["connection"], new.id());
    assert_eq!(mobile.expect_binary().await, b"\x80new");
    // Nothing is on its way any more, and there is nothing to wait for.
    new.sync().await;
}

#[tokio::test]
async fn while_redis_is_frozen_pongs_come_in_order_after_a_second() {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&redis.url()).await;
    let mut desktop = v1(&fleet.relays[0], "ann", "desktop").open_v1().await;
    let _mobile = v1(&fleet.relays[1], "ann", "mobile").open_v1().await;
    notified(&mut desktop, LIMIT, "peer").await;
    redis.signal("STOP");
    // A publish without an answer is given up; what follows waits in the relay until Redis is back.
    desktop.send_frame(0x80, b"given up").await;
    desktop.send_json(ping("given up")).await;
    assert_eq!(notified(&mut desktop, LIMIT, "pong").await["id"], "given up");
    desktop.send_frame(0x80, b"waits").await;
    let asked = Instant::now();
    // More than may wait at the same time.
    for n in 0..20 {
        desktop.send_json(ping(&n.to_string())).await;
    }
    for n in 0..20 {
        assert_eq!(notified(&mut desktop, LIMIT, "pong").await["id"], n.to_string());
        let took = asked.elapsed();
        let seconds = if n < 16 { 1.0..2.0 } else { 2.0..4.0 };
        assert!(seconds.contains(&took.as_secs_f64()), "pong {n} after {took:?}");
    }
    redis.signal("CONT");
    notified(&mut desktop, LIMIT, "backplane").await;
}
