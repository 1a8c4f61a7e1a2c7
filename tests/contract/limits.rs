//! Sections 4.1 and 4.4: sizes, rates, and receivers that cannot keep up.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::{
    Client, Config, Event, Handshake, Issuer, RawClient, RawEvent, RawFrame, Relay, Token, within,
};

fn desktop_of(relay: &Relay, uid: &str) -> Handshake {
    relay.handshake().offer(&["duorelay.v1", &Token::firebase(uid).sign()])
}

/// A desktop that reads nothing after its welcome, and whose kernel takes little for it.
async fn stalled_desktop(relay: &Relay, uid: &str) -> RawClient {
    let mut raw = desktop_of(relay, uid).receive_buffer(4096).open_raw().await;
    raw.expect_json("welcome").await;
    raw
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
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
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
            assert!(started.elapsed() < Duration::from_secs(20), "not closed");
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
            assert!(started.elapsed() < Duration::from_secs(25), "not closed");
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
    // The sockets were full long before half of it: of the rest what waits last is left, one a stream,
    // and what a window probe of the kernel took meanwhile. A queue would hold a thousand.
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
