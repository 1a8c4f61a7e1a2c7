//! What one connection can make the process hold and do, whatever it sends, has an end.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Config, Issuer, RawClient, RawEvent, RawFrame, Relay, Token};

const MIB: u64 = 1 << 20;

/// A connection that reads nothing after its welcome, and whose kernel takes little for it.
async fn silent_reader(relay: &Relay, uid: &str) -> RawClient {
    let handshake = relay.handshake().offer(&["duorelay.v1", &Token::firebase(uid).sign()]);
    let mut raw = handshake.receive_buffer(4096).open_raw().await;
    raw.expect_json("welcome").await;
    raw
}

/// Sends the same frame as fast as the relay takes it.
async fn flood(raw: &mut RawClient, frame: &RawFrame, bytes: u64) {
    let chunk = frame.encode().repeat(64 * 1024 / frame.encode().len());
    for _ in 0..bytes / chunk.len() as u64 {
        raw.write(&chunk).await;
    }
}

#[tokio::test]
async fn control_frames_as_fast_as_they_go_take_no_memory() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let mut warm = silent_reader(&relay, "warm").await;
    flood(&mut warm, &RawFrame::new(0x9, [7; 125]), MIB).await;
    let before = relay.resident();
    let mut pings = silent_reader(&relay, "pings").await;
    flood(&mut pings, &RawFrame::new(0x9, [7; 125]), 64 * MIB).await;
    let mut pongs = silent_reader(&relay, "pongs").await;
    flood(&mut pongs, &RawFrame::new(0xA, [7; 125]), 8 * MIB).await;
    let mut fragments = silent_reader(&relay, "fragments").await;
    fragments.write(&RawFrame { fin: false, ..RawFrame::new(0x2, [0x80]) }.encode()).await;
    flood(&mut fragments, &RawFrame { fin: false, ..RawFrame::new(0x0, []) }, 2 * MIB).await;
    let grown = relay.resident().saturating_sub(before);
    assert!(grown < 2 * MIB, "{grown} bytes more");
    let limited = relay.metric("duorelay_control_frames_limited_total", &[]).await;
    assert!(limited > 500_000.0, "{limited}");
    let unsent = relay.metric("duorelay_queue_bytes", &["outbox"]).await;
    assert!(unsent < 100_000.0, "{unsent} bytes wait");
}

#[tokio::test]
async fn a_burst_of_pings_is_answered_and_ten_seconds_of_too_many_end_in_1008() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let mut raw = relay.handshake().offer(&["duorelay.v1", &Token::firebase("ann").sign()]).open_raw().await;
    raw.expect_json("welcome").await;
    for n in 0..100_u8 {
        raw.send(0x9, &[n]).await;
        assert_eq!(raw.expect(0xA).await, [n]);
    }
    // The bucket is empty: one more in 50 ms. A message is answered all the same.
    for _ in 0..50 {
        raw.send(0x9, b"unheard").await;
    }
    raw.send(0x1, br#"{"type":"ping"}"#).await;
    while !matches!(raw.next().await, RawEvent::Frame(0x1, pong) if pong.starts_with(br#"{"type":"pong""#)) {}

    let started = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let close = loop {
        tokio::select! {
            _ = pace.tick() => raw.send(0x9, &[]).await,
            event = raw.next_within(Duration::from_secs(15)) => match event {
                RawEvent::Frame(0xA, _) => {}
                RawEvent::Frame(0x8, payload) => break payload,
                other => panic!("{other:?}"),
            },
        }
    };
    assert_eq!(close[..2], 1008_u16.to_be_bytes());
    assert!(started.elapsed() > Duration::from_secs(9), "{:?}", started.elapsed());
    assert_eq!(relay.metric("duorelay_closes_total", &["1008"]).await, 1.0);
}
