//! Section 4.1: binary frames.

use serde_json::json;

use crate::support::{Config, Event, Issuer, Relay};

async fn start() -> (Issuer, Relay) {
    let issuer = Issuer::start();
    // These tests are about what arrives, not about how much may be sent.
    let relay = Config::new(&issuer)
        .set("DUORELAY_MESSAGES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0)
        .start()
        .await;
    (issuer, relay)
}

#[tokio::test]
async fn frames_reach_the_other_device_unchanged_and_are_never_echoed() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    let everything: Vec<u8> = (0..=255).collect();
    for stream in [0x00, 0x01, 0x7F, 0x80, 0x81, 0xFF] {
        for payload in [&b""[..], b"x", b"\x00\xFF\xC3", &everything, &[0x55; 60_000]] {
            let frame = [&[stream], payload].concat();
            mobile.send_binary(frame.clone()).await;
            assert_eq!(desktop.expect_binary().await, frame);
            desktop.send_binary(frame.clone()).await;
            assert_eq!(mobile.expect_binary().await, frame);
        }
    }
    // An echo would stand before the pong.
    desktop.sync().await;
    mobile.sync().await;
}

#[tokio::test]
async fn reliable_streams_and_sends_keep_the_order_in_which_they_were_sent() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    let streams = [0x80, 0xC0, 0xFF];
    for n in 0..300_u32 {
        if n % 4 == 3 {
            mobile.send_json(json!({"type": "send", "data": n})).await;
        } else {
            mobile.send_frame(streams[n as usize % 3], &n.to_be_bytes()).await;
        }
    }
    for n in 0..300_u32 {
        match desktop.next().await {
            Event::Text(text) => {
                assert_eq!(n % 4, 3, "{text} before {n}");
                let message: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(message["data"], n);
            }
            Event::Binary(frame) => {
                assert_eq!(frame, [&[streams[n as usize % 3]], &n.to_be_bytes()[..]].concat());
            }
            other => panic!("{other:?} before {n}"),
        }
    }
}

#[tokio::test]
async fn volatile_frames_are_never_reordered_and_the_last_one_arrives() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    const LAST: u32 = 2000;
    for n in 1..=LAST {
        mobile.send_frame((n % 3) as u8, &n.to_be_bytes()).await;
    }
    let mut newest = [0; 3];
    while newest.iter().max() != Some(&LAST) || newest.iter().min().is_some_and(|&n| n < LAST - 2) {
        let frame = desktop.expect_binary().await;
        let n = u32::from_be_bytes(frame[1..].try_into().unwrap());
        let stream = usize::from(frame[0]);
        assert_eq!(n as usize % 3, stream);
        assert!(n > newest[stream], "{n} after {}", newest[stream]);
        newest[stream] = n;
    }
}

#[tokio::test]
async fn a_paced_volatile_stream_loses_nothing() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    for n in 0..200_u32 {
        mobile.send_frame(0x01, &n.to_be_bytes()).await;
        assert_eq!(desktop.expect_binary().await[1..], n.to_be_bytes());
    }
}

#[tokio::test]
async fn without_a_peer_volatile_frames_are_dropped_silently_and_counted() {
    let (_issuer, relay) = start().await;
    let mut mobile = relay.v1_mobile("ann").await;
    for _ in 0..25 {
        mobile.send_frame(0x01, b"to nobody").await;
    }
    mobile.sync().await;
    assert!(relay.metric("duorelay_dropped_total", &[]).await >= 25.0);
    // What was sent to nobody does not reach who comes later.
    let mut desktop = relay.v1_desktop("ann").await;
    desktop.sync().await;
}

#[tokio::test]
async fn without_a_peer_reliable_frames_are_reported_once_a_second_per_stream() {
    let (_issuer, relay) = start().await;
    let mut mobile = relay.v1_mobile("ann").await;
    for _ in 0..10 {
        mobile.send_frame(0x80, b"to nobody").await;
    }
    mobile.send_frame(0x81, b"to nobody").await;
    mobile.expect_error("peer_absent").await;
    mobile.expect_error("peer_absent").await;
    // The relay reports neither stream a second time within the second.
    mobile.sync().await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    mobile.send_frame(0x80, b"to nobody").await;
    mobile.expect_error("peer_absent").await;
    let mut desktop = relay.v1_desktop("ann").await;
    desktop.sync().await;
}

#[tokio::test]
async fn an_empty_binary_message_is_an_error() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    mobile.send_binary(Vec::new()).await;
    mobile.expect_error("empty_frame").await;
    mobile.send_frame(0x80, b"still here").await;
    assert_eq!(desktop.expect_binary().await, b"\x80still here");
}

#[tokio::test]
async fn frames_stay_in_their_room() {
    let (_issuer, relay) = start().await;
    let (mut ann_desktop, mut ann_mobile) = relay.v1_pair("ann").await;
    let (mut bob_desktop, mut bob_mobile) = relay.v1_pair("bob").await;
    for n in 0..50_u8 {
        ann_mobile.send_frame(0x80, &[b'a', n]).await;
        bob_mobile.send_frame(0x80, &[b'b', n]).await;
    }
    for n in 0..50_u8 {
        assert_eq!(ann_desktop.expect_binary().await, [0x80, b'a', n]);
        assert_eq!(bob_desktop.expect_binary().await, [0x80, b'b', n]);
    }
    for client in [&mut ann_desktop, &mut bob_desktop, &mut ann_mobile, &mut bob_mobile] {
        client.sync().await;
    }
}

#[tokio::test]
async fn a_fragmented_frame_is_delivered_whole() {
    use crate::support::{RawFrame, Token};
    let (_issuer, relay) = start().await;
    let mut desktop = relay.v1_desktop("ann").await;
    let token = Token::firebase("ann").sign();
    let mut mobile = relay.handshake().offer(&["duorelay.v1"]).header("clientid", &token).open_raw().await;
    mobile.expect_json("welcome").await;
    desktop.expect_json("peer").await;
    for (fin, opcode, payload) in
        [(false, 0x2, &b"\x80one"[..]), (false, 0x0, b" two"), (true, 0x0, b" three")]
    {
        mobile.write(&RawFrame { fin, ..RawFrame::new(opcode, payload) }.encode()).await;
    }
    assert_eq!(desktop.expect_binary().await, b"\x80one two three");
}
