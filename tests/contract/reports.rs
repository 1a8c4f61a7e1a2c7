//! Section 4.6: what arrives is reported both ways, and frames wait for a path that carries less than they need.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::{Client, Config, Event, Issuer, Relay};

async fn start() -> (Issuer, Relay) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    (issuer, relay)
}

async fn report(client: &mut Client, messages: u64, time: f64) {
    client.send_json(json!({"type": "received", "messages": messages, "time": time})).await;
}

/// The next message but for reports.
async fn next_unreported(client: &mut Client) -> Value {
    loop {
        let message: Value = serde_json::from_str(&client.expect_text().await).unwrap();
        if message["type"] != "received" {
            return message;
        }
    }
}

#[tokio::test]
async fn a_relay_lists_reports_unless_they_are_switched_off() {
    let (_issuer, relay) = start().await;
    let client = relay.v1_mobile("ann").await;
    assert!(client.welcome["features"].as_array().unwrap().contains(&json!("received")));
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_PACING", "false").start().await;
    let mut client = relay.v1_mobile("ann").await;
    assert!(!client.welcome["features"].as_array().unwrap().contains(&json!("received")));
    report(&mut client, 1, 1.0).await;
    client.expect_error("unknown_type").await;
    client.send_json(json!({"type": "reports", "every_ms": 100})).await;
    client.expect_error("unknown_type").await;
}

#[tokio::test]
async fn a_client_that_reports_is_reported_to_and_another_is_not() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    mobile.send_frame(1, b"before").await;
    assert_eq!(desktop.expect_binary().await, b"\x01before");
    // A report that nobody asked for would stand before the pong.
    mobile.sync().await;
    report(&mut mobile, 1, 17.5).await;
    mobile.send_frame(1, b"after").await;
    // The frame, the ping, the report, the frame.
    let first = mobile.expect_json("received").await;
    assert_eq!(first["messages"], 4);
    // What makes no report due is counted with what does.
    mobile.sync().await;
    mobile.send_frame(1, b"last").await;
    let second = mobile.expect_json("received").await;
    assert_eq!(second["messages"], 6);
    let pause = second["time"].as_f64().unwrap() - first["time"].as_f64().unwrap();
    assert!((0.0..2_000.0).contains(&pause), "{first} {second}");
}

#[tokio::test]
async fn a_report_is_due_after_the_pace_that_the_client_asks_for() {
    let (_issuer, relay) = start().await;
    let (_desktop, mut mobile) = relay.v1_pair("ann").await;
    report(&mut mobile, 1, 0.0).await;
    mobile.send_json(json!({"type": "reports", "every_ms": 1000})).await;
    mobile.send_frame(1, b"first").await;
    let first = mobile.expect_json("received").await;
    mobile.send_frame(1, b"second").await;
    let asked = Instant::now();
    let second = mobile.expect_json("received").await;
    assert_eq!(second["messages"].as_u64(), first["messages"].as_u64().map(|messages| messages + 1));
    assert!(asked.elapsed() > Duration::from_millis(40), "nothing was waited for");
    for every_ms in [json!(49), json!(1001), json!(-1), json!(0.5), json!("100"), Value::Null] {
        mobile.send_json(json!({"type": "reports", "every_ms": every_ms})).await;
        mobile.expect_error("bad_field").await;
    }
}

#[tokio::test]
async fn a_report_that_cannot_be_true_is_refused_and_ignored() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    desktop.send_frame(1, b"x").await;
    assert_eq!(mobile.expect_binary().await, b"\x01x");
    // `welcome`, perhaps `peer`, and the frame.
    report(&mut mobile, 2, 5.0).await;
    report(&mut mobile, 2, 5.0).await;
    mobile.sync().await;
    let bad = [
        json!({"type": "received", "messages": 1, "time": 6.0}),
        json!({"type": "received", "messages": 1000, "time": 6.0}),
        json!({"type": "received", "messages": u64::MAX, "time": 6.0}),
        json!({"type": "received", "messages": -1, "time": 6.0}),
        json!({"type": "received", "messages": 3.5, "time": 6.0}),
        json!({"type": "received", "messages": 2}),
        json!({"type": "received", "time": 6.0}),
        json!({"type": "received", "messages": 2, "time": "6"}),
    ];
    for report in bad {
        mobile.send_json(report).await;
        assert_eq!(next_unreported(&mut mobile).await["code"], "bad_field");
    }
    report(&mut mobile, 2, 7.0).await;
    mobile.send_json(json!({"type": "ping"})).await;
    // An error would stand before the pong.
    assert_eq!(next_unreported(&mut mobile).await["type"], "pong");
}

#[tokio::test]
async fn twenty_reports_a_second_are_free_beside_the_rate() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGES_PER_SECOND", 5).start().await;
    let mut mobile = relay.v1_mobile("ann").await;
    for n in 0..20 {
        report(&mut mobile, 1, f64::from(n)).await;
    }
    // The rate is untouched by them.
    for _ in 0..4 {
        mobile.sync().await;
    }
    for n in 20..40 {
        report(&mut mobile, 1, f64::from(n)).await;
    }
    mobile.expect_error("rate_limited").await;
}

/// The reports are those of a client that needs 200 ms for each frame, whatever the kernel takes.
#[tokio::test]
async fn frames_wait_for_a_slow_path_and_newer_ones_replace_them() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    let start = Instant::now();
    let ms = || start.elapsed().as_secs_f64() * 1_000.0;
    report(&mut mobile, 1, ms()).await;
    mobile.sync().await;
    // `welcome` and the pong.
    let (mut arrived, mut asked, mut frames) = (2, false, 0_u32);
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    // What has arrived and is not read yet: how many messages, and when.
    let mut unread: VecDeque<(u64, f64)> = VecDeque::new();
    for n in 0..300_u32 {
        pace.tick().await;
        desktop.send_frame(1, &n.to_be_bytes()).await;
        while let Ok(event) = timeout(Duration::from_millis(1), mobile.next()).await {
            arrived += 1;
            match event {
                Event::Binary(_) => {
                    frames += 1;
                    let free = unread.back().map_or(0.0, |(_, at)| *at);
                    unread.push_back((arrived, free.max(ms()) + 200.0));
                }
                Event::Text(text) => asked |= text.contains(r#""type":"reports","every_ms":100"#),
                other => panic!("{other:?}"),
            }
        }
        while let Some((messages, at)) = unread.pop_front_if(|(_, at)| *at <= ms()) {
            report(&mut mobile, messages, at).await;
        }
    }
    assert!(asked, "the relay asked for no other pace");
    // What had left before the first report that showed a queue, and what the path carries in 6 s.
    assert!((20..110).contains(&frames), "{frames} frames arrived");
    let held = relay.metric("duorelay_frames_held_total", &[]).await;
    let superseded = relay.metric("duorelay_dropped_total", &[r#"cause="window""#]).await;
    assert!(held >= 150.0 && superseded >= 150.0, "{held} held, {superseded} superseded");
    assert!(relay.metric("duorelay_path_queue_seconds_count", &[]).await > 5.0);
}
