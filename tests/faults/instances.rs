//! An instance is killed, or stands still.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::fleet::{Fleet, SLACK, WITHIN, expect_overwritten, notified, pair, v1};
use crate::support::{Event, LIMIT, RedisServer};
use crate::traffic::Traffic;

/// The contract: the peer of a killed instance's socket gets its notice within this time.
const NOTIFIED_WITHIN: Duration = Duration::from_secs(8);

#[tokio::test]
async fn a_killed_instances_peers_are_notified_and_its_slots_are_free_at_once() {
    let redis = RedisServer::start().await;
    let url = redis.url();
    // The default lease: nothing may depend on its end.
    let mut fleet = Fleet::start_with(&[&url, &url], |config| config.unset("DUORELAY_LEASE_SECONDS")).await;
    let (mut ann, ann_mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    let (mut bob, _bob_mobile) = pair("bob", &fleet.relays[0], &fleet.relays[1]).await;
    let killed = Instant::now();
    fleet.relays[1].signal("KILL");
    // Anyone can have the slot at once, no name needed.
    let mut new = v1(&fleet.relays[0], "bob", "mobile").open_v1().await;
    // The lease of the dead instance would end after 45 s.
    assert!(killed.elapsed() < WITHIN + SLACK, "let in after {:?}", killed.elapsed());
    assert_eq!(bob.expect_json("peer").await["connection"], new.welcome["connection"]);
    bob.send_frame(0x80, b"hello").await;
    assert_eq!(new.expect_binary().await, b"\x80hello");

    let peer = ann.expect_json_within(LIMIT, "peer").await;
    assert!(killed.elapsed() < NOTIFIED_WITHIN, "notified after {:?}", killed.elapsed());
    assert_eq!(
        (&peer["state"], &peer["connection"]),
        (&json!("disconnected"), &ann_mobile.welcome["connection"])
    );
    ann.send_json(json!({"type": "send", "data": 1})).await;
    ann.expect_error("peer_absent").await;
    let room = fleet.relays[0].room("ann").await;
    assert_eq!((&room["desktop"]["connection"], &room["mobile"]), (&ann.welcome["connection"], &json!(null)));
    let instances = fleet.relays[0].operate("GET", "/v1/instances", &json!(null)).await.json();
    assert_eq!(instances["instances"].as_array().unwrap().len(), 1, "{instances}");
    // The next connection gets no ghost for a peer.
    let late = v1(&fleet.relays[0], "ann", "desktop").open_v1().await;
    assert_eq!(late.welcome["peer"], json!(null));
    let status = fleet.relays[1].exit(LIMIT).await;
    assert!(!status.success());
}

#[tokio::test]
async fn a_stopped_instances_sockets_learn_that_they_were_overwritten() {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&redis.url()).await;
    let (mut desktop, mut old) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    fleet.relays[1].signal("STOP");
    // The lease (3 s) is over when the silence (5 s) is noticed.
    let peer = desktop.expect_json_within(NOTIFIED_WITHIN, "peer").await;
    assert_eq!((&peer["state"], &peer["connection"]), (&json!("disconnected"), &old.welcome["connection"]));
    old.send_frame(0x80, b"old").await;
    old.send_json(json!({"type": "send", "data": "old"})).await;
    let mut new = v1(&fleet.relays[0], "ann", "mobile").open_v1().await;
    assert!(new.generation() > old.generation());
    fleet.relays[1].signal("CONT");
    expect_overwritten(&mut old, &new).await;
    new.send_frame(0x80, b"new").await;
    let peer = desktop.expect_json("peer").await;
    assert_eq!((&peer["state"], &peer["connection"]), (&json!("connected"), &new.welcome["connection"]));
    assert_eq!(desktop.expect_binary().await, b"\x80new", "nothing of the old one's was delivered");
    desktop.sync().await;
    new.sync().await;
    let room = fleet.room("ann").await;
    assert_eq!(room["mobile"]["connection"], new.welcome["connection"]);
}

#[tokio::test]
async fn a_stopped_instances_sockets_go_on_if_nobody_has_taken_over() {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&redis.url()).await;
    let (mut desktop, mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    fleet.relays[1].signal("STOP");
    let peer = desktop.expect_json_within(NOTIFIED_WITHIN, "peer").await;
    assert_eq!(peer["state"], "disconnected");
    fleet.relays[1].signal("CONT");
    let peer = notified(&mut desktop, LIMIT, "peer").await;
    assert_eq!((&peer["state"], &peer["connection"]), (&json!("connected"), &mobile.welcome["connection"]));
    let mut traffic = Traffic::new((desktop, mobile));
    traffic.crosses_after(Instant::now(), LIMIT).await;
    fleet.wait_for_room("ann", &traffic.desktop.client, &traffic.mobile.client).await;
}

#[tokio::test]
async fn two_of_one_slot_after_a_stop_leave_exactly_the_newest() {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&redis.url()).await;
    let (mut desktop, mut oldest) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    fleet.relays[1].signal("STOP");
    // Redis forgets everything meanwhile, so that only generations show who is newer.
    let mut newer = v1(&fleet.relays[0], "ann", "mobile").open_v1().await;
    redis.ask(&["FLUSHALL"]).await;
    fleet.relays[1].signal("CONT");
    expect_overwritten(&mut oldest, &newer).await;
    newer.sync().await;
    let mut newest = v1(&fleet.relays[1], "ann", "mobile").open_v1().await;
    expect_overwritten(&mut newer, &newest).await;
    // The desktop's slot may not have been put back yet: then its peer hears of it when it has.
    if newest.welcome["peer"] == json!(null) {
        let peer = notified(&mut newest, LIMIT, "peer").await;
        assert_eq!(
            (&peer["state"], &peer["connection"]),
            (&json!("connected"), &desktop.welcome["connection"])
        );
    }
    newest.send_frame(0x80, b"newest").await;
    loop {
        match desktop.next().await {
            Event::Binary(bytes) => break assert_eq!(bytes, b"\x80newest"),
            Event::Text(text) => assert!(text.contains("\"peer\""), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    fleet.wait_for_room("ann", &desktop, &newest).await;
}
