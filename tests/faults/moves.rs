//! Redis moves: a replica takes over, or a cluster's slot gets another owner.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::fleet::{Fleet, WITHIN, expect_overwritten, notified, pair, v1};
use crate::support::{Cluster, LIMIT, Sentinel};
use crate::traffic::Traffic;

/// How long a take-over may take, from the end of the old master to a new one that answers.
const TAKE_OVER: Duration = Duration::from_secs(20);

async fn check_whole(fleet: &Fleet, uid: &str, mut traffic: Traffic) {
    fleet.wait_for_room(uid, &traffic.desktop.client, &traffic.mobile.client).await;
    traffic.crosses_after(Instant::now(), WITHIN).await;
    let desktop = v1(&fleet.relays[1], uid, "desktop").open_v1().await;
    let mut old = traffic.replace_desktop(desktop);
    expect_overwritten(&mut old, &traffic.desktop.client).await;
    traffic.crosses_after(Instant::now(), WITHIN).await;
    let (desktop, mobile) = (&traffic.desktop.client, &traffic.mobile.client);
    fleet.wait_for_room(uid, desktop, mobile).await;
}

#[tokio::test]
async fn a_sentinels_failover_is_followed() {
    let mut sentinel = Sentinel::start().await;
    let fleet = Fleet::start(&sentinel.url()).await;
    let mut ann = Traffic::new(pair("ann", &fleet.relays[0], &fleet.relays[1]).await);
    ann.crosses_after(Instant::now(), LIMIT).await;
    let (start, old) = (Instant::now(), sentinel.master.address());
    sentinel.master.signal("KILL");
    let taken_over = async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        while sentinel.current().await == old || sentinel.replica.role().await != "master" {
            pause.tick().await;
            assert!(start.elapsed() < TAKE_OVER, "the replica does not take over");
        }
    };
    ann.during(taken_over).await;
    let after = ann.crosses_after(Instant::now(), LIMIT).await;
    assert!(after < WITHIN, "frames cross again after {after:?}");
    ann.check_nobody_left(start);
    check_whole(&fleet, "ann", ann).await;
    sentinel.master.reap();
}

#[tokio::test]
async fn a_clusters_failover_is_followed() {
    // Each of the three masters has a replica; the one that has ann's slot is killed.
    let mut cluster = Cluster::start(3).await;
    let fleet = Fleet::start(&cluster.url()).await;
    let slot = cluster.slot("duo:{ann}").await;
    let master = cluster.first_owner(slot);
    let mut ann = Traffic::new(pair("ann", &fleet.relays[0], &fleet.relays[1]).await);
    ann.crosses_after(Instant::now(), LIMIT).await;
    let start = Instant::now();
    cluster.nodes[master].signal("KILL");
    let taken_over = async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        let others = (0..3).filter(|node| *node != master).map(|node| &cluster.nodes[node]);
        for node in others.chain([&cluster.nodes[3 + master]]) {
            while !node.is_well().await || cluster.nodes[3 + master].role().await != "master" {
                pause.tick().await;
                assert!(start.elapsed() < TAKE_OVER, "the replica does not take over");
            }
        }
    };
    ann.during(taken_over).await;
    let after = ann.crosses_after(Instant::now(), LIMIT).await;
    assert!(after < WITHIN, "frames cross again after {after:?}");
    ann.check_nobody_left(start);
    check_whole(&fleet, "ann", ann).await;
    cluster.nodes[master].reap();
}

#[tokio::test]
async fn a_clusters_frozen_node_is_reported_and_comes_back() {
    let cluster = Cluster::start(0).await;
    let fleet = Fleet::start(&cluster.url()).await;
    let slot = cluster.slot("duo:{ann}").await;
    let mut ann = Traffic::new(pair("ann", &fleet.relays[0], &fleet.relays[1]).await);
    ann.crosses_after(Instant::now(), LIMIT).await;
    let start = Instant::now();
    let node = &cluster.nodes[cluster.first_owner(slot)];
    node.signal("STOP");
    let both_down = |traffic: &Traffic| {
        [&traffic.desktop, &traffic.mobile]
            .into_iter()
            .all(|side| side.notified_backplane("down", start).is_some())
    };
    ann.until(WITHIN + crate::fleet::SLACK, "both to be notified", both_down).await;
    ann.check_nobody_left(start);
    node.signal("CONT");
    // A node that its cluster took for failed serves again when the others agree.
    let well = async {
        let mut pause = tokio::time::interval(Duration::from_millis(10));
        for node in &cluster.nodes {
            while !node.is_well().await {
                pause.tick().await;
                assert!(start.elapsed() < TAKE_OVER, "the cluster stays down");
            }
        }
    };
    ann.during(well).await;
    let well = Instant::now();
    let after = ann.crosses_after(well, LIMIT).await;
    assert!(after < WITHIN, "frames cross again after {after:?}");
    ann.check_nobody_left(start);
    check_whole(&fleet, "ann", ann).await;
}

#[tokio::test]
async fn a_slot_that_moves_under_traffic_takes_its_lanes_along() {
    let cluster = Cluster::start(0).await;
    let fleet = Fleet::start(&cluster.url()).await;
    let mut ann = Traffic::new(pair("ann", &fleet.relays[0], &fleet.relays[1]).await);
    let slot = cluster.slot("duo:{ann}").await;
    let first = cluster.first_owner(slot);
    let mut owner = first;
    for turn in 1..=3 {
        ann.crosses_after(Instant::now(), LIMIT).await;
        let (start, next) = (Instant::now(), (first + turn) % 3);
        // Longer than a renewal takes to come: some are answered ASK.
        let between = if turn == 1 { Duration::from_millis(2500) } else { Duration::ZERO };
        ann.during(cluster.migrate(slot, owner, next, between)).await;
        owner = next;
        let after = ann.crosses_after(Instant::now(), LIMIT).await;
        assert!(after < WITHIN, "turn {turn}: frames cross again after {after:?}");
        ann.check_nobody_left(start);
    }
    for relay in &fleet.relays {
        assert!(!relay.log().contains("is made anew"), "a client of Redis has ended: {}", relay.log());
    }
    check_whole(&fleet, "ann", ann).await;
}

#[tokio::test]
async fn who_loses_a_slot_that_is_moving_learns_of_it_at_once() {
    let cluster = Cluster::start(0).await;
    // The default lease: no renewal comes in time for anybody.
    let fleet =
        Fleet::start_with(&[&cluster.url(), &cluster.url()], |config| config.unset("DUORELAY_LEASE_SECONDS"))
            .await;
    let (mut old, mut mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    let slot = cluster.slot("duo:{ann}").await;
    let from = cluster.first_owner(slot);
    let to = (from + 1) % 3;
    // All are subscribed where the slot is, and claims are carried out where it goes to.
    cluster.move_keys(slot, from, to).await;
    let claimed = Instant::now();
    let mut new = v1(&fleet.relays[1], "ann", "desktop").open_v1().await;
    assert_eq!(new.welcome["peer"], mobile.as_peer());
    expect_overwritten(&mut old, &new).await;
    assert_eq!(mobile.expect_json("peer").await["connection"], new.id());
    // The other way round: the one that loses is beside its peer, and the new one elsewhere.
    let mut newest = v1(&fleet.relays[0], "ann", "desktop").open_v1().await;
    expect_overwritten(&mut new, &newest).await;
    assert_eq!(mobile.expect_json("peer").await["connection"], newest.id());
    newest.send_frame(0x80, b"one").await;
    assert_eq!(mobile.expect_binary().await, b"\x80one");
    newest.send_close(1000, "").await;
    newest.expect_close(1000).await;
    let peer = mobile.expect_json("peer").await;
    assert_eq!(
        (&peer["state"], &peer["connection"]),
        (&json!("disconnected"), &newest.welcome["connection"])
    );
    assert!(claimed.elapsed() < 2 * WITHIN, "{:?}", claimed.elapsed());

    cluster.hand_over(slot, from, to).await;
    let desktop = v1(&fleet.relays[0], "ann", "desktop").open_v1().await;
    let peer = notified(&mut mobile, LIMIT, "peer").await;
    assert_eq!((&peer["state"], &peer["connection"]), (&json!("connected"), &desktop.welcome["connection"]));
    let ann = Traffic::new((desktop, mobile));
    check_whole(&fleet, "ann", ann).await;
}

#[tokio::test]
async fn who_only_listens_is_subscribed_where_its_slot_has_moved() {
    let cluster = Cluster::start(0).await;
    let fleet =
        Fleet::start_with(&[&cluster.url(), &cluster.url()], |config| config.unset("DUORELAY_LEASE_SECONDS"))
            .await;
    let (mut desktop, mut mobile) = pair("bob", &fleet.relays[0], &fleet.relays[1]).await;
    let slot = cluster.slot("duo:{bob}").await;
    let from = cluster.first_owner(slot);
    cluster.migrate(slot, from, (from + 1) % 3, Duration::ZERO).await;
    // Nobody renews for 12 s, and nobody publishes: only the move itself can be noticed.
    let subscribed = async || {
        let mut count = 0;
        for channel in ["duo:{bob}:desktop", "duo:{bob}:mobile"] {
            let answer = cluster.nodes[(from + 1) % 3].ask(&["PUBSUB", "SHARDNUMSUB", channel]).await;
            count += answer[1].as_u64().unwrap();
        }
        count
    };
    let moved = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    while subscribed().await < 2 {
        pause.tick().await;
        assert!(moved.elapsed() < 2 * WITHIN, "deaf for {:?}", moved.elapsed());
    }
    desktop.send_frame(0x80, b"one").await;
    assert_eq!(mobile.expect_binary().await, b"\x80one");
    // And there and back again, too quickly to be noticed: the first frame that nobody hears shows it.
    cluster.migrate(slot, (from + 1) % 3, from, Duration::ZERO).await;
    cluster.migrate(slot, from, (from + 1) % 3, Duration::ZERO).await;
    let mut traffic = Traffic::new((desktop, mobile));
    let after = traffic.crosses_after(Instant::now(), LIMIT).await;
    assert!(after < WITHIN, "frames cross again after {after:?}");
    let mut old = traffic.desktop.client;
    let new = v1(&fleet.relays[1], "bob", "desktop").open_v1().await;
    let overwritten = expect_overwritten(&mut old, &new).await;
    assert_eq!(overwritten["by"]["same_client"], json!(false));
}
