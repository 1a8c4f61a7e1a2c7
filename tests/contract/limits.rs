//! Section 4.1: sizes and rates.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::{Config, Event, Handshake, Issuer, RawFrame, Relay, Token};

pub fn desktop_of(relay: &Relay, uid: &str) -> Handshake {
    relay.handshake().offer(&["duorelay.v1", &Token::firebase(uid).sign()])
}

#[tokio::test]
async fn a_message_may_have_message_bytes_and_one_more_ends_in_1009() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGE_BYTES", 5000).start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    // The stream byte is part of the size.
    let largest = vec![0x80; 5000];
    mobile.send_binary(largest.clone()).await;
    assert_eq!(desktop.expect_binary().await, largest);
    let padded = |length: usize| {
        let message = r#"{"type":"send","data":""}"#;
        format!("{}{}\"}}", &message[..message.len() - 2], "x".repeat(length - message.len()))
    };
    mobile.send_text(&padded(5000)).await;
    desktop.expect_json("message").await;

    mobile.send_binary(vec![0x80; 5001]).await;
    mobile.expect_close(1009).await;
    assert_eq!(desktop.expect_json("peer").await["state"], "disconnected");
    desktop.send_text(&padded(5001)).await;
    desktop.expect_close(1009).await;

    let mut classic = relay.classic_desktop("bob").await;
    classic.send_text(&"x".repeat(5000)).await;
    classic.expect_text().await;
    classic.send_text(&"x".repeat(5001)).await;
    classic.expect_close(1009).await;
    assert_eq!(relay.metric("duorelay_closes_total", &["1009"]).await, 3.0);
    assert_eq!(relay.metric("duorelay_max_message_bytes", &[]).await, 5000.0);
}

#[tokio::test]
async fn fragments_count_together_and_an_announced_size_is_enough() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGE_BYTES", 1000).start().await;
    let mut raw = desktop_of(&relay, "ann").open_raw().await;
    raw.expect_json("welcome").await;
    for (fin, opcode) in [(false, 0x2), (false, 0x0), (true, 0x0)] {
        raw.write(&RawFrame { fin, ..RawFrame::new(opcode, vec![0x80; 400]) }.encode()).await;
    }
    raw.expect_close(1009).await;

    let mut raw = desktop_of(&relay, "bob").open_raw().await;
    raw.expect_json("welcome").await;
    // Only the head of a frame of 2^62 bytes.
    raw.write(&[&[0x82, 0xFF][..], &(1_u64 << 62).to_be_bytes(), &[1, 2, 3, 4]].concat()).await;
    raw.expect_close(1009).await;
}

#[tokio::test]
async fn past_the_rate_reliable_messages_wait_and_all_arrive() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGES_PER_SECOND", 50).start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    let started = Instant::now();
    // A phone that was in a tunnel sends its backlog of three seconds at once.
    let sending = async {
        for n in 0..150_u32 {
            mobile.send_frame(0x80, &n.to_be_bytes()).await;
        }
    };
    let receiving = async {
        for n in 0..150_u32 {
            assert_eq!(desktop.expect_binary().await[1..], n.to_be_bytes());
            if n == 45 {
                assert!(
                    started.elapsed() < Duration::from_millis(900),
                    "a burst of one second passes at once"
                );
            }
        }
    };
    tokio::join!(sending, receiving);
    let took = started.elapsed();
    assert!(
        took > Duration::from_millis(1700) && took < Duration::from_secs(6),
        "150 at 50 a second took {took:?}"
    );
    // Reported, at most once a second, and never closed for it.
    let mut reported = 0;
    mobile.send_json(json!({"type": "ping"})).await;
    loop {
        let text = mobile.expect_text().await;
        if text.contains("\"pong\"") {
            break;
        }
        assert!(text.contains("rate_limited"), "{text}");
        reported += 1;
    }
    assert!((1..=took.as_secs() + 1).contains(&reported), "{reported} reports in {took:?}");
    assert_eq!(relay.metric("duorelay_errors_total", &["rate_limited"]).await, reported as f64);
}

#[tokio::test]
async fn past_the_rate_volatile_frames_are_dropped() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGES_PER_SECOND", 20).start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    for n in 0..200_u32 {
        mobile.send_frame((n % 100) as u8, &n.to_be_bytes()).await;
    }
    mobile.expect_error("rate_limited").await;
    // The marker waits for its turn; what was dropped does not come after it either.
    mobile.send_json(json!({"type": "send", "data": "marker"})).await;
    let mut frames = 0;
    loop {
        match desktop.next().await {
            Event::Binary(_) => frames += 1,
            Event::Text(text) if text.contains("marker") => break,
            other => panic!("{other:?}"),
        }
    }
    assert!((15..=60).contains(&frames), "{frames} of 200 frames passed at 20 a second");
    assert!(relay.metric("duorelay_dropped_total", &[r#"cause="rate""#]).await >= 100.0);
}

#[tokio::test]
async fn a_minute_of_volatile_frames_at_once_is_survived() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGES_PER_SECOND", 60).start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    for n in 0..3600_u32 {
        mobile.send_frame(0x01, &[&n.to_be_bytes()[..], &[0x55; 296]].concat()).await;
    }
    mobile.send_json(json!({"type": "send", "data": "out of the tunnel"})).await;
    loop {
        match desktop.next().await {
            Event::Binary(_) => {}
            Event::Text(text) => {
                assert!(text.contains("out of the tunnel"), "{text}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // The next stream goes on at once, after the second that the bucket takes to fill.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    mobile.send_frame(0x01, b"fresh").await;
    assert_eq!(desktop.expect_binary().await, b"\x01fresh");
}

#[tokio::test]
async fn pings_and_pongs_do_not_count_as_messages() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGES_PER_SECOND", 5).start().await;
    let mut raw = desktop_of(&relay, "ann").open_raw().await;
    raw.expect_json("welcome").await;
    for _ in 0..90 {
        raw.send(0xA, b"unasked").await;
    }
    // Answered in their order; several may be answered as one (RFC 6455, section 5.5.3).
    raw.send(0x9, b"last").await;
    let started = Instant::now();
    while raw.expect(0xA).await != b"last" {}
    raw.send(0x1, br#"{"type":"ping"}"#).await;
    raw.expect_json("pong").await;
    // As messages they would take 17 s.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn ten_seconds_past_the_rate_without_a_break_end_in_1008() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGES_PER_SECOND", 10).start().await;
    let started = Instant::now();
    let volatile = async {
        let mut client = relay.v1_desktop("ann").await;
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        let mut errors = 0;
        loop {
            pace.tick().await;
            client.send_frame(0x01, b"x").await;
            let Ok(event) = tokio::time::timeout(Duration::from_millis(1), client.next()).await else {
                continue;
            };
            match event {
                Event::Text(text) if text.contains("rate_limited") => errors += 1,
                Event::Close(1008, _) => break errors,
                other => panic!("{other:?}"),
            }
            assert!(started.elapsed() < Duration::from_secs(40), "not closed");
        }
    };
    let reliable = async {
        let mut client = relay.v1_desktop("bob").await;
        let mut raw_peer = relay.v1_mobile("bob").await;
        client.expect_json("peer").await;
        // More than fits into the sockets: the relay stops reading, and the sender is never idle.
        let text = json!({"type": "send", "data": "x".repeat(1000)}).to_string();
        loop {
            if !tokio::time::timeout(Duration::from_millis(20), client.try_send_text(&text))
                .await
                .unwrap_or(true)
            {
                break;
            }
            match tokio::time::timeout(Duration::from_millis(1), client.next()).await {
                Ok(Event::Close(1008, _) | Event::End) => break,
                Ok(Event::Text(_)) | Err(_) => {}
                Ok(other) => panic!("{other:?}"),
            }
            assert!(started.elapsed() < Duration::from_secs(40), "not closed");
        }
        // Its peer hears of it when it has left.
        loop {
            if raw_peer.expect_text().await.contains("disconnected") {
                break;
            }
        }
    };
    let (errors, ()) = tokio::join!(volatile, reliable);
    let took = started.elapsed();
    assert!(took > Duration::from_secs(9), "closed after {took:?} already");
    assert!((5..=13).contains(&errors), "{errors} errors in {took:?}");
    assert_eq!(relay.metric("duorelay_closes_total", &["1008"]).await, 2.0);
    assert!(relay.metric("duorelay_errors_total", &["rate_limited"]).await >= f64::from(errors));
}

#[tokio::test]
async fn at_the_rate_a_stream_goes_on_for_good() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGES_PER_SECOND", 60).start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    let mut pace = tokio::time::interval(Duration::from_millis(18));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for n in 0..120_u32 {
        pace.tick().await;
        mobile.send_frame(0x80, &n.to_be_bytes()).await;
        assert_eq!(desktop.expect_binary().await[1..], n.to_be_bytes());
    }
    mobile.sync().await;
}
