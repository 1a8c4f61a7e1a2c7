//! What operators see of many instances: instances and metrics.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fleet::{Fleet, expect_overwritten, pair, v1};
use crate::support::{LIMIT, RedisServer, since_epoch};

#[tokio::test]
async fn every_instance_lists_all_of_them() {
    let redis = RedisServer::start().await;
    let url = redis.url();
    let fleet = Fleet::start_with(&[&url, &url, &url], |config| config).await;
    let (desktop, _mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    let deadline = Instant::now() + LIMIT;
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    for relay in &fleet.relays {
        loop {
            pause.tick().await;
            let answer = relay.operate("GET", "/v1/instances", &json!(null)).await.json();
            let instances = answer["instances"].as_array().unwrap();
            let connections: u64 = instances.iter().map(|one| one["connections"].as_u64().unwrap()).sum();
            if instances.len() == 3 && connections == 2 {
                check_instances(instances, desktop.welcome["instance"].as_str().unwrap());
                break;
            }
            assert!(Instant::now() < deadline, "{answer}");
        }
    }
    // Each process listens once, whatever its number of workers.
    let listening = redis.ask(&["PUBSUB", "NUMSUB", "duo:instances"]).await;
    assert_eq!(listening[1], 3, "{listening}");
    // One that leaves says so, and then is silent.
    fleet.relays[2].signal("TERM");
    loop {
        pause.tick().await;
        let answer = fleet.relays[0].operate("GET", "/v1/instances", &json!(null)).await.json();
        let instances = answer["instances"].as_array().unwrap();
        if instances.iter().any(|one| one["draining"] == true) || instances.len() == 2 {
            break;
        }
        assert!(Instant::now() < deadline, "{answer}");
    }
}

fn check_instances(instances: &[Value], of_desktop: &str) {
    let now = u64::try_from(since_epoch().as_millis()).unwrap();
    for one in instances {
        assert_eq!(one["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(one["draining"], false);
        let started_at = one["started_at"].as_u64().unwrap();
        assert!((now - 120_000..=now).contains(&started_at), "{one}");
    }
    let desktop = instances.iter().find(|one| one["instance"] == of_desktop).unwrap();
    assert_eq!(desktop["connections"], 1);
}

#[tokio::test]
async fn the_backplane_is_measured() {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&redis.url()).await;
    let [a, b] = &fleet.relays[..] else { unreachable!() };
    let (mut desktop, mut mobile) = pair("ann", a, b).await;
    for relay in [a, b] {
        assert_eq!(relay.metric("duorelay_backplane_up", &[]).await, 1.0);
        assert_eq!(relay.metric("duorelay_backplane_gaps_total", &[]).await, 0.0);
        assert_eq!(relay.metric("duorelay_backplane_lagged_total", &[]).await, 0.0);
        // A subscriber for each of the two workers.
        assert_eq!(relay.metric("duorelay_backplane_connects_total", &[]).await, 2.0);
        let probe = relay.metric("duorelay_backplane_probe_seconds", &[]).await;
        assert!(probe > 0.0 && probe < 5.0, "{probe}");
        assert_eq!(relay.metric("duorelay_claims_total", &["result=\"claimed\""]).await, 1.0);
        assert_eq!(relay.metric("duorelay_claim_seconds_count", &[]).await, 1.0);
    }
    let delivered = b.metric("duorelay_backplane_deliveries_total", &[]).await;
    for n in 0..100 {
        desktop.send_frame(0x80, &[n]).await;
        assert_eq!(mobile.expect_binary().await, [0x80, n]);
    }
    let heard = a.wait_for_metric("duorelay_backplane_publishes_total", &["heard"], 100.0).await;
    assert_eq!(heard, 100.0);
    assert_eq!(a.metric("duorelay_frames_total", &["lane=\"reliable\"", "path=\"backplane\""]).await, 100.0);
    assert_eq!(b.metric("duorelay_backplane_deliveries_total", &[]).await, delivered + 100.0);
    assert_eq!(a.metric("duorelay_backplane_publishes_total", &["unheard"]).await, 0.0);
    assert_eq!(a.metric("duorelay_backplane_publishes_total", &["failed"]).await, 0.0);
    // A third of the lease (3 s).
    a.wait_for_metric("duorelay_renewals_total", &["result=\"kept\""], 2.0).await;

    let tab = v1(b, "ann", "desktop").client("tab").open_v1().await;
    expect_overwritten(&mut desktop, &tab).await;
    let mut tab = tab;
    let again = v1(a, "ann", "desktop").client("tab").open_v1().await;
    expect_overwritten(&mut tab, &again).await;
    // Counted where the overwritten socket was.
    assert_eq!(a.metric("duorelay_overwritten_total", &["cause=\"eviction\""]).await, 1.0);
    assert_eq!(b.metric("duorelay_overwritten_total", &["cause=\"hand_over\""]).await, 1.0);

    redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    a.wait_for_metric("duorelay_backplane_gaps_total", &[], 2.0).await;
    a.wait_for_metric("duorelay_backplane_connects_total", &[], 4.0).await;
    redis.signal("STOP");
    let start = Instant::now();
    while a.metric("duorelay_backplane_up", &[]).await > 0.0 {
        assert!(start.elapsed() < LIMIT, "still up");
    }
    redis.signal("CONT");
    a.wait_for_metric("duorelay_backplane_up", &[], 1.0).await;
}
