//! Section 4.4: receivers that cannot keep up.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::limits::desktop_of;
use crate::support::{Client, Config, Event, Issuer, RawClient, RawEvent, RawFrame, Relay, within};

/// A desktop that reads nothing after its welcome, and whose kernel takes little for it.
async fn stalled_desktop(relay: &Relay, uid: &str) -> RawClient {
    let mut raw = desktop_of(relay, uid).receive_buffer(4096).open_raw().await;
    raw.expect_json("welcome").await;
    raw
}

/// Sends reliable frames of 8 KiB until the relay reports the peer as gone; how many, at most `most`.
async fn overflow(mobile: &mut Client, most: usize) -> usize {
    let mut sent = 0;
    let mut gone = None;
    while gone.is_none() && sent < most {
        mobile.send_frame(0x80, &[0x55; 8191]).await;
        sent += 1;
        gone = tokio::time::timeout(Duration::from_millis(1), mobile.next()).await.ok();
        // A sender that does not wait while the pressure is high.
        gone = gone.filter(|event| !is_pressure(event));
    }
    let gone = match gone {
        Some(gone) => gone,
        None => loop {
            let event = mobile.next().await;
            if !is_pressure(&event) {
                break event;
            }
        },
    };
    assert!(matches!(&gone, Event::Text(text) if text.contains("\"disconnected\"")), "{gone:?}");
    // Frames that were on their way then met nobody.
    mobile.send_json(json!({"type": "ping"})).await;
    loop {
        let text = mobile.expect_text().await;
        if text.contains("\"pong\"") {
            return sent;
        }
        assert!(text.contains("peer_absent"), "{text}");
    }
}

fn is_pressure(event: &Event) -> bool {
    matches!(event, Event::Text(text) if text.contains("\"pressure\""))
}

fn small_queue(issuer: &Issuer) -> Config {
    Config::new(issuer)
        .set("DUORELAY_MESSAGES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0)
        .set("DUORELAY_MESSAGE_BYTES", 16_384)
        .set("DUORELAY_QUEUE_BYTES", 65_536)
}

#[tokio::test]
async fn a_receiver_whose_reliable_queue_overflows_leaves_at_once_and_is_closed_with_4008() {
    let issuer = Issuer::start();
    let relay = small_queue(&issuer).start().await;
    let mut slow = stalled_desktop(&relay, "ann").await;
    let mut mobile = relay.v1_mobile("ann").await;
    let sent = overflow(&mut mobile, 4000).await;
    assert!(sent >= 8, "the queue holds 64 KiB: {sent} frames of 8 KiB were sent");
    assert!(relay.room("ann").await["desktop"].is_null());
    // It reads in time: some of what waited may come, in order, and its close.
    let (events, end) = slow.drain(Duration::from_secs(10)).await;
    let Some(RawEvent::Frame(0x8, payload)) = events.last() else {
        panic!("{:?}, then {end:?}", events.last())
    };
    assert_eq!(payload.get(..2), Some(&4008_u16.to_be_bytes()[..]));
    assert_eq!(relay.metric("duorelay_closes_total", &["4008"]).await, 1.0);
    // The room is free for the next.
    let next = relay.v1_desktop("ann").await;
    assert_eq!(mobile.expect_json("peer").await["connection"], next.id());
}

#[tokio::test]
async fn a_receiver_that_does_not_even_take_its_close_is_reset_after_five_seconds() {
    let issuer = Issuer::start();
    let relay = small_queue(&issuer).start().await;
    let mut slow = stalled_desktop(&relay, "ann").await;
    let mut mobile = relay.v1_mobile("ann").await;
    overflow(&mut mobile, 4000).await;
    let left = Instant::now();
    // Its slot is counted as closed, but the socket is tried for 5 s.
    slow.expect_reset(Duration::from_secs(8)).await;
    let took = left.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(7), "reset after {took:?}");
    assert_eq!(relay.metric("duorelay_closes_total", &["4008"]).await, 1.0, "counted all the same");
}

#[tokio::test]
async fn a_stalled_receiver_gets_the_latest_of_each_volatile_stream() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_MESSAGES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0)
        .start()
        .await;
    let mut slow = stalled_desktop(&relay, "ann").await;
    let mut mobile = relay.v1_mobile("ann").await;
    const ROUNDS: u32 = 10_000;
    let payload = |n: u32| [&n.to_be_bytes()[..], &[0x55; 996]].concat();
    for n in 1..=ROUNDS {
        mobile.send_frame((n % 2) as u8, &payload(n)).await;
    }
    mobile.sync().await;
    // 10 MB were sent; the receiver was never too slow, and memory held two frames for it.
    slow.send(0x1, br#"{"type":"ping","id":"end"}"#).await;
    let (mut newest, mut late, mut ponged) = ([0_u32; 2], 0, false);
    while !(ponged && newest.contains(&ROUNDS) && newest.contains(&(ROUNDS - 1))) {
        match slow.next().await {
            RawEvent::Frame(0x2, frame) => {
                let (stream, n) =
                    (usize::from(frame[0]), u32::from_be_bytes(frame[1..5].try_into().unwrap()));
                assert!(n > newest[stream], "{n} after {} on {stream}", newest[stream]);
                assert_eq!(frame[1..], payload(n), "a frame is whole");
                newest[stream] = n;
                late += u32::from(n > ROUNDS / 2);
            }
            RawEvent::Frame(0x1, text) => {
                let text = String::from_utf8(text).unwrap();
                ponged |= text.contains("pong");
            }
            RawEvent::Frame(0x9, _) => {}
            other => panic!("{other:?}"),
        }
    }
    // The sockets were full long before half of it. Of the rest what waits last is left, one a stream, and
    // what a window probe of the kernel took meanwhile. A queue would hold a thousand.
    assert!(late < 50, "{late} stale frames were queued");
}

#[tokio::test]
async fn waiting_volatile_frames_are_bounded_together_and_the_longest_waiting_goes() {
    let issuer = Issuer::start();
    let relay = small_queue(&issuer).start().await;
    let mut slow = stalled_desktop(&relay, "ann").await;
    let mut mobile = relay.v1_mobile("ann").await;
    let frame = |round: u8| [&[round][..], &[0x55; 16_000]].concat();
    // Until the sockets are full, and 127 other streams wait: some 2 MB for a queue of 64 KiB.
    for _ in 0..300 {
        mobile.send_frame(0x00, &frame(0)).await;
    }
    for stream in 1..=127 {
        mobile.send_frame(stream, &frame(stream)).await;
    }
    mobile.sync().await;
    slow.send(0x1, br#"{"type":"ping","id":"end"}"#).await;
    let mut streams = Vec::new();
    while streams.last() != Some(&127) {
        match slow.next().await {
            RawEvent::Frame(0x2, frame) if frame[0] > 0 => streams.push(frame[0]),
            RawEvent::Frame(..) => {}
            other => panic!("{other:?}"),
        }
    }
    let tail: Vec<u8> = (125..=127).collect();
    assert!(streams.ends_with(&tail), "the newest three fit into 64 KiB: {streams:?}");
    assert!(streams.len() < 40, "more waited than the queue holds: {streams:?}");
    assert!(relay.metric("duorelay_dropped_total", &[r#"cause="queue_full""#]).await >= 80.0);
}

#[tokio::test]
async fn a_stalled_receiver_can_still_send() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_MESSAGES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0)
        .start()
        .await;
    let mut stalled = stalled_desktop(&relay, "ann").await;
    let mut mobile = relay.v1_mobile("ann").await;
    for n in 0..5000_u32 {
        mobile.send_frame(0x01, &[&n.to_be_bytes()[..], &[0x55; 996]].concat()).await;
    }
    mobile.sync().await;
    for n in 0..100_u8 {
        stalled.send(0x2, &[0x80, n]).await;
        assert_eq!(mobile.expect_binary().await, [0x80, n]);
    }
}

#[tokio::test]
async fn a_receiver_that_closes_amid_a_message_gets_the_rest_of_it_and_its_answer() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGE_BYTES", 500_000).start().await;
    let frame = [&[0x80][..], &[0x55; 499_999]].concat();
    let close = RawFrame::new(0x8, 1000_u16.to_be_bytes()).encode();
    // Behind its close a client should be silent, and is not always; TCP's end is the relay's turn, but some do not wait.
    let pinging = RawFrame::new(0x9, "").encode();
    for (uid, behind, ends) in [("ann", vec![], false), ("bob", pinging, false), ("cid", vec![], true)] {
        let mut stalled = stalled_desktop(&relay, uid).await;
        let mut mobile = relay.v1_mobile(uid).await;
        stalled.expect_json("peer").await;
        mobile.send_frame(frame[0], &frame[1..]).await;
        stalled.readable().await;
        stalled.write(&close).await;
        assert_eq!(mobile.expect_json("peer").await["state"], "disconnected");
        stalled.write(&behind).await;
        if ends {
            stalled.finish().await;
        }
        assert_eq!(stalled.expect(0x2).await, frame);
        stalled.expect_close(1000).await;
        assert_eq!(stalled.next().await, RawEvent::End);
    }
    // One that does not read on is not waited for.
    let mut stalled = stalled_desktop(&relay, "dan").await;
    let mut mobile = relay.v1_mobile("dan").await;
    stalled.expect_json("peer").await;
    mobile.send_frame(frame[0], &frame[1..]).await;
    stalled.readable().await;
    stalled.write(&close).await;
    stalled.expect_reset(Duration::from_secs(3)).await;
}

#[tokio::test]
async fn a_stalled_receiver_does_not_hold_up_its_sender_or_others() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_MESSAGES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0)
        .start()
        .await;
    let _stalled = stalled_desktop(&relay, "ann").await;
    let mut mobile = relay.v1_mobile("ann").await;
    let (mut bob_desktop, mut bob_mobile) = relay.v1_pair("bob").await;
    for n in 0..1000_u32 {
        mobile.send_frame(0x01, &[0x55; 4000]).await;
        if n % 100 == 0 {
            mobile.sync().await;
            bob_mobile.send_frame(0x80, &n.to_be_bytes()).await;
            assert_eq!(bob_desktop.expect_binary().await[1..], n.to_be_bytes());
        }
    }
}

#[tokio::test]
async fn an_overwritten_connection_that_does_not_read_is_cut_off() {
    let issuer = Issuer::start();
    let relay = small_queue(&issuer).start().await;
    let mut stalled = stalled_desktop(&relay, "ann").await;
    let mut mobile = relay.v1_mobile("ann").await;
    for stream in 0..=127 {
        for _ in 0..4 {
            mobile.send_frame(stream, &[0x55; 16_000]).await;
        }
    }
    mobile.sync().await;
    let next = relay.v1_desktop("ann").await;
    assert_eq!(mobile.expect_json("peer").await["connection"], next.id());
    // What waited is written for at most 1 s, its close is tried for 5 s.
    let started = Instant::now();
    within(Duration::from_secs(9), "the end of the old socket", async {
        while stalled.try_write(&RawFrame::new(0xA, "").encode()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(8));
}
