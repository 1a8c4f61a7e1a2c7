//! Redis stands still, loses its data, cuts connections, or a subscriber cannot keep up.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::fleet::{Fleet, LEASE, SLACK, WITHIN, expect_overwritten, notified, pair, v1};
use crate::support::{Config, Event, LIMIT, Proxy, RedisServer, request};
use crate::traffic::Traffic;

async fn start() -> (RedisServer, Fleet, Traffic) {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&redis.url()).await;
    let traffic = Traffic::new(pair("ann", &fleet.relays[0], &fleet.relays[1]).await);
    (redis, fleet, traffic)
}

/// After a fault the same two connections hold both slots. A newer one takes its slot from either instance,
/// and the older one gets `overwritten`. Exactly the newest remain.
async fn check_newest_remain(fleet: &Fleet, uid: &str, mut traffic: Traffic) {
    fleet.wait_for_room(uid, &traffic.desktop.client, &traffic.mobile.client).await;
    traffic.crosses_after(Instant::now(), WITHIN).await;
    let desktop = v1(&fleet.relays[1], uid, "desktop").open_v1().await;
    let mut old = traffic.replace_desktop(desktop);
    expect_overwritten(&mut old, &traffic.desktop.client).await;
    let mobile = v1(&fleet.relays[0], uid, "mobile").open_v1().await;
    let mut old = traffic.replace_mobile(mobile);
    expect_overwritten(&mut old, &traffic.mobile.client).await;
    traffic.crosses_after(Instant::now(), WITHIN).await;
    let (desktop, mobile) = (&traffic.desktop.client, &traffic.mobile.client);
    fleet.wait_for_room(uid, desktop, mobile).await;
}

#[tokio::test]
async fn killed_connections_are_made_again() {
    let (redis, fleet, mut traffic) = start().await;
    for kind in ["pubsub", "normal"] {
        traffic.crosses_after(Instant::now(), LIMIT).await;
        let start = Instant::now();
        redis.ask(&["CLIENT", "KILL", "TYPE", kind]).await;
        let after = traffic.crosses_after(start, LIMIT).await;
        assert!(after < WITHIN, "{kind}: frames cross again after {after:?}");
        traffic.check_nobody_left(start);
    }
    // All at once.
    let start = Instant::now();
    redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    redis.ask(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    assert!(traffic.crosses_after(start, LIMIT).await < WITHIN);
    assert!(fleet.relays[0].metric("duorelay_backplane_gaps_total", &[]).await > 0.0);
    check_newest_remain(&fleet, "ann", traffic).await;
}

#[tokio::test]
async fn a_redis_that_is_restarted_empty_is_filled_again() {
    let (redis, fleet, mut traffic) = start().await;
    traffic.crosses_after(Instant::now(), LIMIT).await;
    let start = Instant::now();
    let _redis = traffic.during(redis.restart()).await;
    let back = Instant::now();
    let after = traffic.crosses_after(back, LIMIT).await;
    assert!(after < WITHIN, "frames cross again after {after:?}");
    traffic.check_nobody_left(start);
    check_newest_remain(&fleet, "ann", traffic).await;
}

#[tokio::test]
async fn flushall_is_healed_within_one_lease() {
    let (redis, fleet, mut traffic) = start().await;
    traffic.crosses_after(Instant::now(), LIMIT).await;
    let start = Instant::now();
    redis.ask(&["FLUSHALL"]).await;
    // Frames do not need what was lost.
    assert!(traffic.crosses_after(start, LIMIT).await < SLACK);
    traffic.run_for(LEASE).await;
    traffic.check_nobody_left(start);
    let room = fleet.room("ann").await;
    assert_eq!(room["desktop"]["connection"], traffic.desktop.client.id(), "{room}");
    assert_eq!(room["mobile"]["connection"], traffic.mobile.client.id(), "{room}");
    check_newest_remain(&fleet, "ann", traffic).await;
}

#[tokio::test]
async fn while_redis_is_frozen_clients_are_notified_and_nothing_piles_up() {
    let (redis, fleet, mut traffic) = start().await;
    let (mut local_desktop, mut local_mobile) = pair("bob", &fleet.relays[0], &fleet.relays[0]).await;
    let (mut flooding, flooded) = pair("eve", &fleet.relays[0], &fleet.relays[1]).await;
    traffic.crosses_after(Instant::now(), LIMIT).await;
    let before = fleet.relays[0].resident();
    let frozen = Instant::now();
    redis.signal("STOP");
    let notified_down = |traffic: &Traffic| {
        [&traffic.desktop, &traffic.mobile]
            .into_iter()
            .map(|side| side.notified_backplane("down", frozen))
            .max()
            .unwrap()
    };
    let both_down = |traffic: &Traffic| {
        [&traffic.desktop, &traffic.mobile]
            .into_iter()
            .all(|side| side.notified_backplane("down", frozen).is_some())
    };
    // Reliable frames as fast as they are taken, all the time.
    let flood = async {
        let payload = vec![0x55; 60_000];
        loop {
            flooding.send_frame(0x80, &payload).await;
        }
    };
    let rest = async {
        traffic.until(LIMIT, "both to be notified", both_down).await;
        let after = notified_down(&traffic).unwrap().duration_since(frozen);
        assert!(after < WITHIN + SLACK, "notified after {after:?}");
        // Both here: nothing has changed for them but the notice.
        notified(&mut local_desktop, LIMIT, "backplane").await;
        notified(&mut local_mobile, LIMIT, "backplane").await;
        local_desktop.send_frame(0x80, b"still").await;
        assert_eq!(local_mobile.expect_binary().await, b"\x80still");
        local_mobile.send_json(json!({"type": "send", "data": "here"})).await;
        assert_eq!(local_desktop.expect_json("message").await["data"], "here");
        for relay in &fleet.relays {
            let asked = Instant::now();
            let refused = v1(relay, "carol", "desktop").refused().await;
            refused.expect_refusal(503, "backplane_unavailable");
            assert!(asked.elapsed() < Duration::from_secs(2) + SLACK, "refused after {:?}", asked.elapsed());
            assert_eq!(relay.get("/healthz/live").await.status, 200);
        }
        assert_eq!(fleet.relays[0].metric("duorelay_backplane_up", &[]).await, 0.0);
        traffic.until(LIMIT, "5 s to pass", |_| frozen.elapsed() >= Duration::from_secs(5)).await;
        traffic.check_nobody_left(frozen);
    };
    tokio::select! {
        () = flood => unreachable!(),
        () = rest => {}
    }
    // Two workers, each with at most 8 MiB on the way; 1 MiB for the lane; and what the allocator keeps.
    fleet.relays[0].wait_for_resident(before + (48 << 20)).await;

    let thawed = Instant::now();
    redis.signal("CONT");
    let after = traffic.crosses_after(thawed, LIMIT).await;
    assert!(after < WITHIN + SLACK, "frames cross again after {after:?}");
    let both_up = |traffic: &Traffic| {
        [&traffic.desktop, &traffic.mobile]
            .into_iter()
            .all(|side| side.notified_backplane("up", thawed).is_some())
    };
    traffic.until(LIMIT, "both to be notified", both_up).await;
    traffic.check_nobody_left(frozen);
    // But for what had left before anybody could notice.
    let oldest = traffic.oldest_volatile(frozen + SLACK, thawed);
    assert!(oldest < Duration::from_millis(500) + SLACK, "a volatile frame of {oldest:?} was sent");
    drop(flooded);
    fleet.relays[0].wait_for_metric("duorelay_backplane_up", &[], 1.0).await;
    check_newest_remain(&fleet, "ann", traffic).await;
}

#[tokio::test]
async fn refused_handshakes_take_no_memory_while_redis_is_away() {
    let (redis, fleet, mut traffic) = start().await;
    let relay = &fleet.relays[0];
    let away = Instant::now();
    drop(redis);
    let is_notified = |traffic: &Traffic| traffic.desktop.notified_backplane("down", away).is_some();
    traffic.until(WITHIN + SLACK, "the desktop to be notified", is_notified).await;
    let before = relay.resident();
    let attempts = v1(relay, "bob", "desktop");
    join_all((0..8).map(async |_| {
        for _ in 0..500 {
            attempts.refused().await.expect_refusal(503, "backplane_unavailable");
        }
    }))
    .await;
    // 5 KiB for each of the 4,000: a handshake that waits for Redis keeps 10 until Redis is back. The process itself goes
    // up and down by up to 12 MiB meanwhile, as the allocator takes and gives back.
    relay.wait_for_resident(before + (20 << 20)).await;
}

#[tokio::test]
async fn ready_is_lost_without_probes_for_ten_seconds() {
    let (redis, fleet, mut traffic) = start().await;
    let frozen = Instant::now();
    redis.signal("STOP");
    let ready = async |status| {
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        while request(fleet.relays[0].public, "GET", "/healthz/ready", &[], b"").await.unwrap().status
            != status
        {
            pause.tick().await;
        }
    };
    traffic.during(ready(503)).await;
    let after = frozen.elapsed();
    assert!(after > Duration::from_secs(9) && after < Duration::from_secs(11) + SLACK, "after {after:?}");
    traffic.check_nobody_left(frozen);
    let thawed = Instant::now();
    redis.signal("CONT");
    assert!(traffic.crosses_after(thawed, LIMIT).await < WITHIN + SLACK);
    traffic.during(ready(200)).await;
    // The leases had ended long ago; silence is counted from the way's being there again.
    traffic.run_for(Duration::from_secs(1)).await;
    traffic.check_nobody_left(frozen);
    check_newest_remain(&fleet, "ann", traffic).await;
}

#[tokio::test]
async fn a_subscriber_that_redis_cuts_off_comes_back() {
    let (redis, fleet, mut traffic) = start().await;
    traffic.crosses_after(Instant::now(), LIMIT).await;
    // Before the limit, which their claims could meet: they travel on the connection that is subscribed.
    let (mut flooding, _flooded) = pair("eve", &fleet.relays[0], &fleet.relays[1]).await;
    // Each worker hears its probes; a few large frames in one turn are too many now.
    redis.ask(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 1kb 0 0"]).await;
    let (start, payload) = (Instant::now(), vec![0x55; 60_000]);
    let gaps = async || fleet.relays[1].metric("duorelay_backplane_gaps_total", &[]).await;
    let gaps_before = gaps().await;
    let flood = async {
        while gaps().await == gaps_before {
            flooding.send_frame(0x80, &payload).await;
        }
    };
    traffic.during(flood).await;
    redis.ask(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 32mb 8mb 60"]).await;
    let after = traffic.crosses_after(Instant::now(), LIMIT).await;
    assert!(after < WITHIN, "frames cross again after {after:?}");
    traffic.check_nobody_left(start);
    check_newest_remain(&fleet, "ann", traffic).await;
}

#[tokio::test]
async fn an_instance_behind_a_blocked_line_is_down_and_comes_back() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.address()).await;
    let fleet =
        Fleet::start_with(&[&redis.url(), &format!("redis://{}", proxy.address())], |config| config).await;
    let mut traffic = Traffic::new(pair("ann", &fleet.relays[0], &fleet.relays[1]).await);
    traffic.crosses_after(Instant::now(), LIMIT).await;
    let before = fleet.relays[1].resident();
    let held = Instant::now();
    proxy.hold(true);
    let is_notified = |traffic: &Traffic| traffic.mobile.notified_backplane("down", held).is_some();
    traffic.until(WITHIN + SLACK, "the mobile to be notified", is_notified).await;
    // The instance with the way to Redis hears nothing of the other one.
    let is_gone = |traffic: &Traffic| traffic.desktop.notified_disconnected(held);
    traffic.until(Duration::from_secs(8), "the desktop to be notified", is_gone).await;
    assert!(!traffic.mobile.notified_disconnected(held));
    fleet.relays[1].wait_for_resident(before + (32 << 20)).await;
    let back = Instant::now();
    proxy.hold(false);
    let after = traffic.crosses_after(back, LIMIT).await;
    assert!(after < WITHIN + SLACK, "frames cross again after {after:?}");
    let is_notified = |traffic: &Traffic| traffic.mobile.notified_backplane("up", back).is_some();
    traffic.until(LIMIT, "the mobile to be notified", is_notified).await;
    check_newest_remain(&fleet, "ann", traffic).await;
}

#[tokio::test]
async fn a_connection_that_is_overwritten_during_a_break_is_notified_after_it() {
    let redis = RedisServer::start().await;
    let proxy = Proxy::start(redis.address()).await;
    // Three of them: what the fence has to keep out comes from one instance, the newer connection is on another.
    let urls = [redis.url(), format!("redis://{}", proxy.address()), redis.url()];
    let urls = [urls[0].as_str(), urls[1].as_str(), urls[2].as_str()];
    let fleet = Fleet::start_with(&urls, |config| config).await;
    let (mut desktop, mut old) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    proxy.hold(true);
    notified(&mut old, LIMIT, "backplane").await;
    let mut new = v1(&fleet.relays[2], "ann", "mobile").open_v1().await;
    assert_eq!(new.welcome["peer"], desktop.as_peer());
    // What the old one sends now is fenced off, whenever it arrives.
    old.send_frame(0x80, b"old").await;
    proxy.hold(false);
    expect_overwritten(&mut old, &new).await;
    new.send_frame(0x80, b"new").await;
    loop {
        match desktop.next().await {
            Event::Binary(bytes) => break assert_eq!(bytes, b"\x80new"),
            Event::Text(_) => {}
            other => panic!("{other:?}"),
        }
    }
    // What the old one's instance had kept has left, and nothing of it has come.
    fleet.relays[1].wait_for_metric("duorelay_backplane_publishes_total", &["heard"], 1.0).await;
    desktop.sync().await;
    new.sync().await;
    fleet.wait_for_room("ann", &desktop, &new).await;
}

#[tokio::test]
async fn a_redis_that_is_behind_gets_no_claims_that_nobody_will_wait_for() {
    let redis = RedisServer::start().await;
    let one_worker = |config: Config| config.set("DUORELAY_WORKERS", 1);
    let fleet = Fleet::start_with(&[&redis.url()], one_worker).await;
    // Redis knows the script from then on.
    let _first = v1(&fleet.relays[0], "first", "desktop").open_v1().await;
    redis.signal("STOP");
    let crowd = (0..60).map(async |number| {
        let refused = v1(&fleet.relays[0], &format!("crowd-{number}"), "desktop").refused().await;
        refused.expect_refusal(503, "backplane_unavailable");
    });
    join_all(crowd).await;
    redis.signal("CONT");
    // What had left for it while it stood still is carried out by its first turn.
    redis.ask(&["PING"]).await;
    let claimed = redis.ask(&["KEYS", "duo:{crowd-*"]).await;
    let claimed = claimed.as_array().map_or(0, Vec::len);
    assert!((1..=16).contains(&claimed), "{claimed} claims that were refused have reached Redis");
}
