//! Section 4.5: pings to silent connections, and the end of those from which nothing comes.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Config, Handshake, Issuer, RawClient, RawEvent, Relay, Token};

async fn start(seconds: u32) -> (Issuer, Relay) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_HEARTBEAT_SECONDS", seconds).start().await;
    (issuer, relay)
}

fn desktop_of(relay: &Relay, uid: &str) -> Handshake {
    relay.handshake().offer(&["duorelay.v1", &Token::firebase(uid).sign()])
}

async fn raw_desktop(relay: &Relay, uid: &str) -> RawClient {
    let mut raw = desktop_of(relay, uid).open_raw().await;
    let welcome = raw.expect_json("welcome").await;
    assert_eq!(welcome["heartbeat_ms"], 1000);
    raw
}

#[tokio::test]
async fn a_silent_connection_is_pinged_each_period_and_stays_while_it_answers() {
    let (_issuer, relay) = start(1).await;
    let answering = async {
        let mut raw = raw_desktop(&relay, "ann").await;
        let mut last = Instant::now();
        for _ in 0..4 {
            let payload = raw.expect(0x9).await;
            let period = last.elapsed();
            assert!(
                period > Duration::from_millis(400) && period < Duration::from_millis(2200),
                "{period:?}"
            );
            last = Instant::now();
            raw.send(0xA, &payload).await;
        }
        raw
    };
    // Classic connections are looked after in the same way.
    let classic = async {
        let mut raw = relay.handshake().header("clientid", &Token::firebase("bob").sign()).open_raw().await;
        for _ in 0..4 {
            let payload = raw.expect(0x9).await;
            raw.send(0xA, &payload).await;
        }
        raw
    };
    let (mut v1, _classic) = tokio::join!(answering, classic);
    v1.send(0x1, br#"{"type":"ping"}"#).await;
    v1.expect_json("pong").await;
}

#[tokio::test]
async fn a_connection_that_never_answers_is_dropped_after_two_periods() {
    let (_issuer, relay) = start(1).await;
    let mut peer = relay.v1_mobile("ann").await;
    let mut raw = raw_desktop(&relay, "ann").await;
    let connected = Instant::now();
    assert_eq!(peer.expect_json("peer").await["state"], "connected");
    assert_eq!(peer.expect_json("peer").await["state"], "disconnected");
    let took = connected.elapsed();
    assert!(
        took > Duration::from_millis(1500) && took < Duration::from_millis(5000),
        "dropped after {took:?}"
    );
    let (events, end) = raw.drain(Duration::from_secs(8)).await;
    assert!(events.iter().any(|event| matches!(event, RawEvent::Frame(0x9, _))), "no ping came: {events:?}");
    let Some(RawEvent::Frame(0x8, payload)) = events.last() else { panic!("{events:?}, then {end:?}") };
    assert_eq!(payload.get(..2), Some(&4009_u16.to_be_bytes()[..]));
    // The other one has been silent since as well.
    assert!(relay.metric("duorelay_closes_total", &["4009"]).await >= 1.0);
    assert!(relay.metric("duorelay_heartbeats_missed_total", &[]).await >= 1.0);
}

#[tokio::test]
async fn any_byte_counts_as_a_sign_of_life() {
    let (_issuer, relay) = start(1).await;
    // It never answers a ping, but it speaks: by whole messages, and by one byte of a frame at a time.
    let mut speaking = raw_desktop(&relay, "ann").await;
    let mut trickling = raw_desktop(&relay, "bob").await;
    let frame = crate::support::RawFrame::new(0x1, r#"{"type":"ping"}"#).encode();
    let mut bytes = frame.chunks(2);
    let mut pace = tokio::time::interval(Duration::from_millis(500));
    for _ in 0..8 {
        pace.tick().await;
        speaking.send(0x1, br#"{"type":"ping"}"#).await;
        trickling.write(bytes.next().unwrap()).await;
    }
    for rest in bytes {
        trickling.write(rest).await;
    }
    for raw in [&mut speaking, &mut trickling] {
        loop {
            match raw.next().await {
                RawEvent::Frame(0x9, _) => {}
                RawEvent::Frame(0x1, text) if String::from_utf8_lossy(&text).contains("pong") => {
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_half_open_connection_that_reads_nothing_is_reset() {
    let (_issuer, relay) = start(1).await;
    let mut raw = desktop_of(&relay, "ann").receive_buffer(4096).open_raw().await;
    raw.expect_json("welcome").await;
    let mut mobile = relay.v1_mobile("ann").await;
    // Its socket is full: not even the close can be written.
    let sending = async {
        loop {
            mobile.send_frame(0x01, &[0x55; 16_000]).await;
            match tokio::time::timeout(Duration::from_millis(5), mobile.next()).await {
                Err(_) => {}
                Ok(crate::support::Event::Text(text)) if text.contains("disconnected") => return,
                Ok(crate::support::Event::Text(_)) => {}
                Ok(other) => panic!("{other:?}"),
            }
        }
    };
    crate::support::within(Duration::from_secs(6), "the peer to be gone", sending).await;
    raw.expect_reset(Duration::from_secs(8)).await;
    assert!(relay.metric("duorelay_heartbeats_missed_total", &[]).await >= 1.0);
}

#[tokio::test]
async fn a_connection_that_speaks_is_not_pinged() {
    let (_issuer, relay) = start(2).await;
    let mut raw = desktop_of(&relay, "ann").open_raw().await;
    raw.expect_json("welcome").await;
    let mut pace = tokio::time::interval(Duration::from_millis(250));
    for _ in 0..14 {
        pace.tick().await;
        raw.send(0x1, br#"{"type":"ping"}"#).await;
        // The answer is next: no ping came before it.
        raw.expect_json("pong").await;
    }
}

#[tokio::test]
async fn a_process_that_stood_still_reads_before_it_judges() {
    let (_issuer, relay) = start(1).await;
    let mut raw = raw_desktop(&relay, "ann").await;
    let payload = raw.expect(0x9).await;
    relay.signal("STOP");
    raw.send(0xA, &payload).await;
    raw.send(0x1, br#"{"type":"ping","id":"meanwhile"}"#).await;
    // Longer than two periods: what the client has sent waits in the kernel.
    tokio::time::sleep(Duration::from_secs(3)).await;
    relay.signal("CONT");
    loop {
        match raw.next().await {
            RawEvent::Frame(0x9, payload) => raw.send(0xA, &payload).await,
            RawEvent::Frame(0x1, text) => {
                let text = String::from_utf8(text).unwrap();
                break assert!(text.contains("meanwhile"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(relay.metric("duorelay_closes_total", &["4009"]).await, 0.0);
}
