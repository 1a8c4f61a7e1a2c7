//! Several instances on one Redis.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Client, Config, Handshake, Issuer, LIMIT, Relay, Response, Token};

/// Short, so that tests need not wait for it.
pub const LEASE: Duration = Duration::from_secs(3);
/// The contract: the relay sends `backplane`, and frames cross again, within this time.
pub const WITHIN: Duration = Duration::from_secs(3);
/// What a busy machine may add to a limit.
pub const SLACK: Duration = Duration::from_millis(700);

/// Instances that share a Redis and an issuer of tokens.
pub struct Fleet {
    pub relays: Vec<Relay>,
    _issuer: Issuer,
}

impl Fleet {
    /// Two instances with a short lease.
    pub async fn start(redis: &str) -> Self {
        Self::start_with(&[redis, redis], |config| config).await
    }

    /// One instance for each of these URLs. Every second one is the program that `OTHER_RELAY` names, if it does:
    /// another version, as during an upgrade.
    pub async fn start_with(urls: &[&str], configure: impl Fn(Config) -> Config) -> Self {
        let issuer = Issuer::start();
        let other = std::env::var("OTHER_RELAY").ok();
        let starts = urls.iter().enumerate().map(|(number, url)| {
            let config = Config::new(&issuer)
                .set("REDIS_URL", url)
                .set("DUORELAY_LEASE_SECONDS", LEASE.as_secs())
                .set("DUORELAY_WORKERS", 2);
            let config = match &other {
                Some(program) if number % 2 == 1 => configure(config).program(program),
                Some(_) | None => configure(config),
            };
            async move { config.start().await }
        });
        let relays = join_all(starts).await;
        Self { relays, _issuer: issuer }
    }

    /// The room, which all instances must come to see in the same way. One that has only just come back may take a
    /// moment.
    pub async fn room(&self, uid: &str) -> Value {
        let deadline = Instant::now() + LIMIT;
        let path = format!("/v1/rooms/{uid}");
        loop {
            let answers = self.relays.iter().map(|relay| relay.operate("GET", &path, &Value::Null));
            let answers = join_all(answers).await;
            let rooms: Vec<_> = answers.iter().map(Response::json).collect();
            let holder =
                |room: &Value| ["desktop", "mobile"].map(|device| room[device]["connection"].clone());
            let agree = rooms.iter().all(|room| holder(room) == holder(&rooms[0]));
            if agree && answers.iter().all(|answer| answer.status == 200) {
                return rooms[0].clone();
            }
            assert!(Instant::now() < deadline, "instances do not agree: {rooms:?}");
        }
    }

    /// Waits until the room's slots are held by these connections.
    pub async fn wait_for_room(&self, uid: &str, desktop: &Client, mobile: &Client) {
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            pause.tick().await;
            let room = self.room(uid).await;
            if room["desktop"]["connection"] == desktop.id() && room["mobile"]["connection"] == mobile.id() {
                return;
            }
            assert!(Instant::now() < deadline, "the slots are not whole again: {room}");
        }
    }
}

/// A v1 handshake as this device.
pub fn v1(relay: &Relay, uid: &str, device: &str) -> Handshake {
    let token = Token::firebase(uid).sign();
    relay.handshake().offer(&["duorelay.v1"]).bearer(&token).device(device)
}

/// A desktop on one instance and a mobile on another, who know of each other.
pub async fn pair(uid: &str, desktop: &Relay, mobile: &Relay) -> (Client, Client) {
    let mut desktop = v1(desktop, uid, "desktop").open_v1().await;
    let mobile = v1(mobile, uid, "mobile").open_v1().await;
    assert_eq!(mobile.welcome["peer"], desktop.as_peer());
    let peer = desktop.expect_json("peer").await;
    assert_eq!((&peer["connection"], &peer["state"]), (&mobile.welcome["connection"], &json!("connected")));
    (desktop, mobile)
}

/// Reads `overwritten` and the close that follows it; messages before it are passed over.
pub async fn expect_overwritten(old: &mut Client, by: &Client) -> Value {
    let overwritten = notified(old, LIMIT, "overwritten").await;
    assert_eq!(overwritten["by"]["connection"], by.welcome["connection"]);
    assert_eq!(overwritten["by"]["generation"], by.welcome["generation"]);
    old.expect_close(4001).await;
    overwritten
}

/// The next message of this type; others are passed over.
pub async fn notified(client: &mut Client, limit: Duration, kind: &str) -> Value {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "waited {limit:?} for {kind}");
        match client.next_within(left).await {
            crate::support::Event::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                if message["type"] == kind {
                    return message;
                }
            }
            crate::support::Event::Binary(_) => {}
            other => panic!("expected {kind}, got {other:?}"),
        }
    }
}
