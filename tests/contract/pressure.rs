//! Section 4.3: `pressure`, by which a sender learns that its receiver's reliable queue is long.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Client, Config, Issuer, RawClient, RawEvent, RedisServer, Relay, Token};

const QUEUE: usize = 200_000;
const FRAME: usize = 10_000;

async fn start(redis: Option<&RedisServer>, issuer: &Issuer) -> Relay {
    let mut config = Config::new(issuer)
        .set("DUORELAY_QUEUE_BYTES", QUEUE)
        .set("DUORELAY_MESSAGES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0);
    if let Some(redis) = redis {
        config = config.set("REDIS_URL", redis.url());
    }
    config.start().await
}

/// A mobile that reads nothing after its welcome, and whose kernel takes little for it.
async fn stalled_mobile(relay: &Relay, uid: &str) -> (RawClient, String) {
    let token = Token::firebase(uid).sign();
    let handshake = relay.handshake().offer(&["duorelay.v1"]).header("clientid", &token);
    let mut raw = handshake.receive_buffer(4096).open_raw().await;
    let welcome = raw.expect_json("welcome").await;
    (raw, welcome["connection"].as_str().unwrap().to_owned())
}

/// Sends reliable frames until the relay reports pressure; what it reports, and how many were sent.
async fn fill(sender: &mut Client) -> (Value, usize) {
    for sent in 1.. {
        sender.send_frame(0x80, &[7; FRAME]).await;
        sender.send_json(json!({"type": "ping", "id": "sync"})).await;
        let mut pressure = None;
        loop {
            let text = sender.expect_text().await;
            let message: Value = serde_json::from_str(&text).unwrap();
            match message["type"].as_str().unwrap() {
                "pong" => break,
                "pressure" => pressure = Some(message),
                other => panic!("{other}: {message}"),
            }
        }
        if let Some(pressure) = pressure {
            return (pressure, sent);
        }
        assert!(sent * FRAME < 8 << 20, "nothing was reported");
    }
    unreachable!()
}

/// Reads everything that waits for the receiver, which is `frames` frames.
async fn read_all(receiver: &mut RawClient, frames: usize) {
    let mut read = 0;
    while read < frames {
        match receiver.next().await {
            RawEvent::Frame(0x2, payload) => {
                assert_eq!(payload.len(), FRAME + 1);
                read += 1;
            }
            RawEvent::Frame(0x1 | 0x9, _) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn a_long_queue_is_reported(desktops: &Relay, mobiles: &Relay) {
    let mut desktop = desktops.v1_desktop("ann").await;
    assert!(desktop.welcome["features"].as_array().unwrap().contains(&json!("pressure")));
    let (mut mobile, id) = stalled_mobile(mobiles, "ann").await;
    desktop.expect_json("peer").await;
    let (pressure, sent) = fill(&mut desktop).await;
    assert_eq!(pressure, json!({"type": "pressure", "state": "high", "connection": id}));
    // Less than the queue, which would have ended the receiver; what the kernels hold comes on top.
    let begun = Instant::now();
    // It is repeated each second, also to a connection that has come back meanwhile.
    for _ in 0..2 {
        assert_eq!(desktop.expect_json("pressure").await["state"], "high");
    }
    let took = begun.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_millis(3200)).contains(&took), "{took:?}");
    let mut next = desktops.v1_desktop("ann").await;
    assert_eq!(next.expect_json("pressure").await["connection"], id);
    // The receiver reads on.
    read_all(&mut mobile, sent).await;
    let low = loop {
        let pressure = next.expect_json("pressure").await;
        if pressure["state"] != "high" {
            break pressure;
        }
    };
    assert_eq!(low, json!({"type": "pressure", "state": "low", "connection": id}));
    // It ends with that: what comes next is the answer to this ping, a second and more later.
    tokio::time::timeout(Duration::from_millis(1500), next.next()).await.expect_err("nothing is due");
    next.sync().await;
    // A whole file passes when its sender waits while it is high.
    next.send_frame(0x80, &[7; FRAME]).await;
    read_all(&mut mobile, 1).await;
}

#[tokio::test]
async fn a_long_queue_is_reported_on_one_instance() {
    let issuer = Issuer::start();
    let relay = start(None, &issuer).await;
    a_long_queue_is_reported(&relay, &relay).await;
}

#[tokio::test]
async fn a_long_queue_is_reported_across_instances() {
    let (issuer, redis) = (Issuer::start(), RedisServer::start().await);
    let (desktops, mobiles) = (start(Some(&redis), &issuer).await, start(Some(&redis), &issuer).await);
    a_long_queue_is_reported(&desktops, &mobiles).await;
}

#[tokio::test]
async fn a_new_peer_ends_the_pressure_of_the_old_one() {
    let issuer = Issuer::start();
    let relay = start(None, &issuer).await;
    let mut desktop = relay.v1_desktop("ann").await;
    let (_mobile, _) = stalled_mobile(&relay, "ann").await;
    desktop.expect_json("peer").await;
    fill(&mut desktop).await;
    let mut next = relay.v1_mobile("ann").await;
    loop {
        let text = desktop.expect_text().await;
        let message: Value = serde_json::from_str(&text).unwrap();
        if message["type"] == "peer" {
            break;
        }
        assert_eq!(message["type"], "pressure");
    }
    tokio::time::timeout(Duration::from_millis(1500), desktop.next()).await.expect_err("nothing is due");
    desktop.send_frame(0x80, b"x").await;
    assert_eq!(next.expect_binary().await, b"\x80x");
}
