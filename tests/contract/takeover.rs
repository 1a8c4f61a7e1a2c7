//! Who holds a slot: overwritten connections, hand-overs, evictions and their limit.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Config, Handshake, Issuer, RawEvent, Relay, Token};

async fn start() -> (Issuer, Relay) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    (issuer, relay)
}

fn desktop_of(relay: &Relay, uid: &str) -> Handshake {
    relay.handshake().offer(&["duorelay.v1", &Token::firebase(uid).sign()])
}

/// Reads `overwritten` and the close that follows it.
async fn expect_overwritten(old: &mut Client, by: &Client, same_client: bool) {
    let overwritten = old.expect_json("overwritten").await;
    let expected: Value = json!({
        "connection": by.welcome["connection"],
        "generation": by.welcome["generation"],
        "same_client": same_client,
    });
    assert_eq!(overwritten["by"], expected);
    old.expect_close(4001).await;
    old.expect_end().await;
}

#[tokio::test]
async fn the_newest_connection_holds_the_slot() {
    let (_issuer, relay) = start().await;
    let mut first = relay.v1_desktop("ann").await;
    let mut second = relay.v1_desktop("ann").await;
    assert!(second.generation() > first.generation());
    expect_overwritten(&mut first, &second, false).await;
    let third = relay.v1_desktop("ann").await;
    assert!(third.generation() > second.generation());
    expect_overwritten(&mut second, &third, false).await;
    let room = relay.room("ann").await;
    assert_eq!(room["desktop"]["connection"], third.id());
    assert_eq!(room["mobile"], json!(null));
}

#[tokio::test]
async fn the_same_client_hands_over_and_others_evict() {
    let (_issuer, relay) = start().await;
    let desktop = || desktop_of(&relay, "ann");
    let mut a = desktop().client("a").open_v1().await;
    let mut a_again = desktop().client("a").open_v1().await;
    expect_overwritten(&mut a, &a_again, true).await;
    let mut b = desktop().client("b").open_v1().await;
    expect_overwritten(&mut a_again, &b, false).await;
    let mut nameless = desktop().open_v1().await;
    expect_overwritten(&mut b, &nameless, false).await;
    // Connections without a name are never the same client.
    let mut nameless_too = desktop().open_v1().await;
    expect_overwritten(&mut nameless, &nameless_too, false).await;
    let a = desktop().client("a").open_v1().await;
    expect_overwritten(&mut nameless_too, &a, false).await;
}

#[tokio::test]
async fn one_client_name_on_two_devices_is_two_slots() {
    let (_issuer, relay) = start().await;
    let desktop = desktop_of(&relay, "ann").client("a");
    let mut first = desktop.open_v1().await;
    let mut mobile = desktop.clone().device("mobile").open_v1().await;
    assert_eq!(first.expect_json("peer").await["connection"], mobile.id());
    first.sync().await;
    mobile.sync().await;
}

#[tokio::test]
async fn what_still_waited_is_written_before_overwritten() {
    let (_issuer, relay) = start().await;
    let (mut old, mut mobile) = relay.v1_pair("ann").await;
    for n in 0..20 {
        mobile.send_json(json!({"type": "send", "data": n})).await;
    }
    mobile.sync().await;
    let new = relay.v1_desktop("ann").await;
    for n in 0..20 {
        assert_eq!(old.expect_json("message").await["data"], n);
    }
    expect_overwritten(&mut old, &new, false).await;
}

#[tokio::test]
async fn a_changed_peer_keeps_its_place_and_its_old_volatile_frames_are_dropped() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_MESSAGES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0)
        .start()
        .await;
    let mut desktop = desktop_of(&relay, "ann").receive_buffer(4096).open_raw().await;
    desktop.expect_json("welcome").await;
    let mut old = relay.v1_mobile("ann").await;
    desktop.expect_json("peer").await;
    // The desktop reads nothing meanwhile: all of this waits in the relay, but for what the sockets take.
    for n in 0..5000_u32 {
        old.send_frame(0x01, &[&n.to_be_bytes()[..], &[0x55; 996]].concat()).await;
    }
    for n in 0..3 {
        old.send_frame(0x80, &[n]).await;
    }
    for stream in 2..=0x7F {
        old.send_frame(stream, b"old").await;
    }
    old.sync().await;
    let mut new = relay.v1_mobile("ann").await;
    new.send_frame(0x80, b"new").await;
    new.send_frame(0x01, b"new").await;
    new.sync().await;

    let (mut reliable, mut peer_at, mut fresh) = (Vec::new(), None, false);
    while !fresh || reliable.len() < 4 {
        match desktop.next().await {
            RawEvent::Frame(0x2, frame) if frame[0] == 0x80 => reliable.push(frame[1..].to_vec()),
            RawEvent::Frame(0x2, frame) if frame[1..] == *b"new" => fresh = true,
            RawEvent::Frame(0x2, frame) => {
                assert!(frame[0] == 0x01, "an old frame of stream {} was still delivered", frame[0]);
            }
            RawEvent::Frame(0x1, text) => {
                let message: Value = serde_json::from_slice(&text).unwrap();
                assert_eq!((&message["type"], &message["connection"]), (&json!("peer"), &json!(new.id())));
                peer_at = Some(reliable.len());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(peer_at, Some(3), "behind what the old peer sent, before what the new one sends");
    assert_eq!(reliable, [vec![0], vec![1], vec![2], b"new".to_vec()]);
}

#[tokio::test]
async fn nothing_that_an_overwritten_connection_sends_reaches_anyone() {
    let (_issuer, relay) = start().await;
    let (mut old, mut mobile) = relay.v1_pair("ann").await;
    let mut new = relay.v1_desktop("ann").await;
    assert_eq!(mobile.expect_json("peer").await["connection"], new.id());
    // It has not read yet that it was overwritten.
    for _ in 0..5 {
        old.try_send_text(r#"{"type":"send","data":"from the past"}"#).await;
    }
    new.send_json(json!({"type": "send", "data": "from now"})).await;
    assert_eq!(mobile.expect_json("message").await["data"], "from now");
    mobile.sync().await;
}

#[tokio::test]
async fn an_old_connections_end_does_not_disturb_the_new_one() {
    let (_issuer, relay) = start().await;
    let (old, mut mobile) = relay.v1_pair("ann").await;
    let mut new = relay.v1_desktop("ann").await;
    assert_eq!(mobile.expect_json("peer").await["connection"], new.id());
    drop(old);
    for n in 0..10 {
        mobile.send_json(json!({"type": "send", "data": n})).await;
        assert_eq!(new.expect_json("message").await["data"], n);
    }
    mobile.sync().await;
    assert_eq!(relay.room("ann").await["desktop"]["connection"], new.id());
}

#[tokio::test]
async fn make_before_break_loses_and_doubles_nothing() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_MESSAGES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0)
        .start()
        .await;
    let mut mobile = relay.v1_mobile("ann").await;
    let phone = desktop_of(&relay, "ann").client("tab");
    let mut socket = phone.open_v1().await;
    mobile.expect_json("peer").await;

    let mut received = Vec::new();
    let mut sent = 0;
    for _ in 0..10 {
        // The sender goes on while the other side moves from socket to socket.
        let sending = async {
            for _ in 0..50 {
                mobile.send_json(json!({"type": "send", "data": sent})).await;
                sent += 1;
            }
        };
        let (mut next, ()) = tokio::join!(phone.open_v1(), sending);
        loop {
            let text = socket.expect_text().await;
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["type"] == "overwritten" {
                assert_eq!(message["by"]["same_client"], true);
                socket.expect_close(4001).await;
                break;
            }
            received.push(message["data"].as_u64().unwrap());
        }
        // The rest of this round came to the new socket: exactly one of the two.
        while received.len() < sent {
            received.push(next.expect_json("message").await["data"].as_u64().unwrap());
        }
        // Peer messages of the move, before the next round.
        assert_eq!(mobile.expect_json("peer").await["connection"], next.id());
        socket = next;
    }
    let expected: Vec<u64> = (0..500).collect();
    assert_eq!(received, expected);
    mobile.sync().await;
}

#[tokio::test]
async fn more_than_ten_evictions_of_a_slot_in_ten_seconds_are_refused_for_a_while() {
    let (_issuer, relay) = start().await;
    let tab = |name: &str| desktop_of(&relay, "ann").client(name);
    let mut current = tab("a").open_v1().await;
    for n in 0..10 {
        let next = tab(if n % 2 == 0 { "b" } else { "a" }).open_v1().await;
        expect_overwritten(&mut current, &next, false).await;
        current = next;
    }
    let refused = tab("b").refused().await;
    refused.expect_refusal(429, "too_many_attempts");
    assert_eq!(relay.metric("duorelay_claims_total", &[r#"result="too_many_attempts""#]).await, 1.0);
    assert_eq!(relay.metric("duorelay_handshakes_total", &[r#"result="too_many_attempts""#]).await, 1.0);
    assert_eq!(relay.metric("duorelay_overwritten_total", &[r#"cause="eviction""#]).await, 10.0);
    // The one that was there stays, and its own client may still come back.
    current.sync().await;
    let again = tab("a").open_v1().await;
    expect_overwritten(&mut current, &again, true).await;
    // The other slot and other users have their own count.
    tab("b").device("mobile").open_v1().await;
    desktop_of(&relay, "bob").client("b").open_v1().await;

    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    // The window is 10 s from the first of them, which was a moment ago.
    assert!((8..=10).contains(&wait), "Retry-After: {wait}");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    tab("b").open_v1().await;
}

#[tokio::test]
async fn hand_overs_never_count_as_evictions() {
    let (_issuer, relay) = start().await;
    let tab = desktop_of(&relay, "ann").client("a");
    let mut current = tab.open_v1().await;
    for _ in 0..30 {
        let next = tab.open_v1().await;
        expect_overwritten(&mut current, &next, true).await;
        current = next;
    }
    // And do not use up what evictions have.
    for n in 0..10 {
        let next = desktop_of(&relay, "ann").client(&format!("other-{n}")).open_v1().await;
        expect_overwritten(&mut current, &next, false).await;
        current = next;
    }
}

#[tokio::test]
async fn coming_back_to_an_empty_slot_is_no_eviction() {
    let (_issuer, relay) = start().await;
    for n in 0..15 {
        let mut client = desktop_of(&relay, "ann").client(&format!("c{n}")).open_v1().await;
        client.send_close(1000, "").await;
        client.expect_close(1000).await;
        client.expect_end().await;
    }
}

#[tokio::test]
async fn takeovers_are_counted_by_their_cause() {
    let (_issuer, relay) = start().await;
    let a = desktop_of(&relay, "ann").client("a");
    let _first = a.open_v1().await;
    let mut second = a.open_v1().await;
    second.sync().await;
    let before = relay.metric("duorelay_overwritten_total", &[]).await;
    assert!(before >= 1.0, "{before}");
    let _third = desktop_of(&relay, "ann").client("b").open_v1().await;
    assert_eq!(relay.metric("duorelay_overwritten_total", &[]).await, before + 1.0);
}
