//! Section 3: the classic protocol, and rooms in which both protocols meet.

use serde_json::json;

use crate::support::{Client, Config, Event, Issuer, RawFrame, Relay, Token};

async fn start() -> (Issuer, Relay) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    (issuer, relay)
}

/// The wrapped form of a classic message.
fn wrapped(desktop: bool, mobile: bool, room: &str, text: &str) -> String {
    format!("\nDesktop connected: {desktop}\nMobile connected: {mobile}\nRoom: {room}\nMessage: {text}\n")
}

const ROOM: &str = "ann@example.org";

#[tokio::test]
async fn every_message_reaches_both_members_wrapped() {
    let (_issuer, relay) = start().await;
    let mut desktop = relay.classic_desktop("ann").await;
    desktop.send_text("alone").await;
    assert_eq!(desktop.expect_text().await, wrapped(true, false, ROOM, "alone"));

    let mut mobile = relay.classic_mobile("ann").await;
    mobile.send_text("from the phone").await;
    // Nothing was sent on connect: the next message is this one.
    for client in [&mut desktop, &mut mobile] {
        assert_eq!(client.expect_text().await, wrapped(true, true, ROOM, "from the phone"));
    }
    desktop.send_text("from the desktop").await;
    for client in [&mut desktop, &mut mobile] {
        assert_eq!(client.expect_text().await, wrapped(true, true, ROOM, "from the desktop"));
    }

    mobile.send_close(1000, "").await;
    mobile.expect_close(1000).await;
    // Nothing was sent on disconnect: the room is watched from outside until the slot is empty.
    wait_for_empty(&relay, "ann", "mobile").await;
    desktop.send_text("alone again").await;
    assert_eq!(desktop.expect_text().await, wrapped(true, false, ROOM, "alone again"));

    drop(desktop);
    wait_for_empty(&relay, "ann", "desktop").await;
    let mut mobile = relay.classic_mobile("ann").await;
    mobile.send_text("only the phone").await;
    assert_eq!(mobile.expect_text().await, wrapped(false, true, ROOM, "only the phone"));
}

async fn wait_for_empty(relay: &Relay, uid: &str, device: &str) {
    let deadline = tokio::time::Instant::now() + crate::support::LIMIT;
    while !relay.room(uid).await[device].is_null() {
        assert!(tokio::time::Instant::now() < deadline, "{device} is still there");
    }
}

#[tokio::test]
async fn binary_is_read_as_text_lossily() {
    let (_issuer, relay) = start().await;
    let mut desktop = relay.classic_desktop("ann").await;
    let mut mobile = relay.classic_mobile("ann").await;
    mobile.send_binary("bytes: é".as_bytes()).await;
    mobile.send_binary(vec![b'<', 0xFF, 0xC3, b'>']).await;
    for client in [&mut desktop, &mut mobile] {
        assert_eq!(client.expect_text().await, wrapped(true, true, ROOM, "bytes: é"));
        assert_eq!(client.expect_text().await, wrapped(true, true, ROOM, "<\u{FFFD}\u{FFFD}>"));
    }
}

#[tokio::test]
async fn any_text_is_passed_on_as_it_is() {
    let (_issuer, relay) = start().await;
    let mut desktop = relay.classic_desktop("ann").await;
    let long = "x".repeat(20_000);
    for text in ["", "\n", r#"{"type":"ping"}"#, "two\nlines\r\n", "Message: x\n", "\u{0}\u{1F600}", &long] {
        desktop.send_text(text).await;
        assert_eq!(desktop.expect_text().await, wrapped(true, false, ROOM, text));
    }
}

#[tokio::test]
async fn the_room_is_named_by_the_senders_address_or_uid() {
    let (_issuer, relay) = start().await;
    let mut desktop = relay.classic_desktop("ann").await;
    let nameless = Token::firebase("ann").without("email").sign();
    let mut mobile = relay.handshake().header("clientid", &nameless).open().await;
    mobile.send_text("a").await;
    for client in [&mut desktop, &mut mobile] {
        assert_eq!(client.expect_text().await, wrapped(true, true, "ann", "a"));
    }
    desktop.send_text("b").await;
    for client in [&mut desktop, &mut mobile] {
        assert_eq!(client.expect_text().await, wrapped(true, true, ROOM, "b"));
    }
}

#[tokio::test]
async fn users_do_not_hear_each_other() {
    let (_issuer, relay) = start().await;
    let mut ann = relay.classic_desktop("ann").await;
    let mut bob = relay.classic_mobile("bob").await;
    for n in 0..20 {
        ann.send_text(&format!("ann {n}")).await;
        bob.send_text(&format!("bob {n}")).await;
    }
    for n in 0..20 {
        assert_eq!(ann.expect_text().await, wrapped(true, false, ROOM, &format!("ann {n}")));
        assert_eq!(bob.expect_text().await, wrapped(false, true, "bob@example.org", &format!("bob {n}")));
    }
}

#[tokio::test]
async fn classic_messages_are_reliable_and_in_order() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_MESSAGES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0)
        .start()
        .await;
    let mut desktop = relay.classic_desktop("ann").await;
    let mut mobile = relay.classic_mobile("ann").await;
    // The sender hears itself too, so it reads as it writes.
    for n in 0..500 {
        mobile.send_text(&n.to_string()).await;
        assert_eq!(mobile.expect_text().await, wrapped(true, true, ROOM, &n.to_string()));
    }
    for n in 0..500 {
        assert_eq!(desktop.expect_text().await, wrapped(true, true, ROOM, &n.to_string()));
    }
}

#[tokio::test]
async fn a_classic_connection_that_loses_its_slot_is_notified_and_closed() {
    let (_issuer, relay) = start().await;
    let mut old = relay.classic_desktop("ann").await;
    let mut mobile = relay.classic_mobile("ann").await;
    let mut new = relay.classic_desktop("ann").await;
    assert_eq!(old.expect_text().await, "This connection has been overwritten with a new one");
    // Nothing that it sends after it lost its slot reaches anyone.
    old.try_send_text("from the past").await;
    old.expect_close(4001).await;
    old.expect_end().await;
    new.send_text("from now").await;
    for client in [&mut new, &mut mobile] {
        assert_eq!(client.expect_text().await, wrapped(true, true, ROOM, "from now"));
    }
}

#[tokio::test]
async fn a_new_mobile_does_not_disturb_the_desktop() {
    let (_issuer, relay) = start().await;
    let mut desktop = relay.classic_desktop("ann").await;
    let mut old = relay.classic_mobile("ann").await;
    let mut new = relay.classic_mobile("ann").await;
    assert_eq!(old.expect_text().await, "This connection has been overwritten with a new one");
    old.expect_close(4001).await;
    new.send_text("hello").await;
    for client in [&mut desktop, &mut new] {
        assert_eq!(client.expect_text().await, wrapped(true, true, ROOM, "hello"));
    }
}

/// A classic desktop and a v1 mobile of one user, who know of each other.
async fn mixed(relay: &Relay) -> (Client, Client) {
    let classic = relay.classic_desktop("ann").await;
    let v1 = relay.v1_mobile("ann").await;
    assert!(v1.welcome["peer"]["connection"].is_string());
    (classic, v1)
}

#[tokio::test]
async fn classic_text_and_binary_arrive_at_v1_as_text_messages() {
    let (_issuer, relay) = start().await;
    let (mut classic, mut v1) = mixed(&relay).await;
    classic.send_text("a \"quoted\"\nline").await;
    classic.send_binary(vec![b'b', 0xFF]).await;
    // The sender hears itself in a mixed room too.
    assert_eq!(classic.expect_text().await, wrapped(true, true, ROOM, "a \"quoted\"\nline"));
    assert_eq!(classic.expect_text().await, wrapped(true, true, ROOM, "b\u{FFFD}"));
    for text in ["a \"quoted\"\nline", "b\u{FFFD}"] {
        assert_eq!(
            v1.expect_json("message").await,
            json!({"type": "message", "from": "desktop", "text": text})
        );
    }
}

#[tokio::test]
async fn v1_send_arrives_at_classic_as_compact_json() {
    let (_issuer, relay) = start().await;
    let (mut classic, mut v1) = mixed(&relay).await;
    let sends = [
        (
            r#"{"type":"send","data":{ "z" : 1.0, "a":[1 ,2.50,  1e3], "s":"two  spaces\t \" , :" }}"#,
            r#"{"z":1.0,"a":[1,2.50,1e3],"s":"two  spaces\t \" , :"}"#,
        ),
        ("{\"type\":\"send\",\n\"data\": 12345678901234567890.10}", "12345678901234567890.10"),
        (r#"{"type":"send","data":null,"id":"7"}"#, "null"),
        (r#"{"type":"send","data":"text"}"#, r#""text""#),
        (r#"{"type":"send","data":[ ]}"#, "[]"),
    ];
    for (sent, data) in sends {
        v1.send_text(sent).await;
        assert_eq!(classic.expect_text().await, wrapped(true, true, ROOM, data));
    }
    // A v1 sender is not echoed.
    v1.sync().await;
}

#[tokio::test]
async fn v1_frames_arrive_at_classic_unchanged() {
    let (_issuer, relay) = start().await;
    let (mut classic, mut v1) = mixed(&relay).await;
    v1.send_frame(0x80, b"reliable\xFF").await;
    assert_eq!(classic.expect_binary().await, b"\x80reliable\xFF");
    v1.send_frame(0x00, b"volatile").await;
    assert_eq!(classic.expect_binary().await, b"\x00volatile");
}

#[tokio::test]
async fn v1_learns_of_classic_members_and_they_take_over_from_each_other() {
    let (_issuer, relay) = start().await;
    let mut phone = relay.v1_mobile("ann").await;
    let mut classic = relay.classic_desktop("ann").await;
    let peer = phone.expect_json("peer").await;
    assert_eq!((&peer["device"], &peer["state"]), (&json!("desktop"), &json!("connected")));

    let v1 = relay.v1_desktop("ann").await;
    assert_eq!(classic.expect_text().await, "This connection has been overwritten with a new one");
    classic.expect_close(4001).await;
    assert_eq!(phone.expect_json("peer").await["connection"], v1.id());
}

#[tokio::test]
async fn a_server_message_arrives_wrapped_with_the_receivers_own_address() {
    let (_issuer, relay) = start().await;
    let mut desktop = relay.classic_desktop("ann").await;
    let nameless = Token::firebase("ann").without("email").sign();
    let mut mobile = relay.handshake().header("clientid", &nameless).open().await;
    // Both are members before the message is posted: each has heard its own.
    mobile.send_text("here").await;
    for client in [&mut desktop, &mut mobile] {
        client.expect_text().await;
    }
    let answer = relay.operate("POST", "/v1/rooms/ann/messages", &json!({"data": {"n": 1}})).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"connected": 2})));
    assert_eq!(desktop.expect_text().await, wrapped(true, true, ROOM, r#"{"n":1}"#));
    assert_eq!(mobile.expect_text().await, wrapped(true, true, "ann", r#"{"n":1}"#));
}

#[tokio::test]
async fn pings_are_answered_and_fragments_put_together() {
    let (_issuer, relay) = start().await;
    let token = Token::firebase("ann").sign();
    let mut raw = relay.handshake().offer(&[&token]).open_raw().await;
    raw.send(0x9, b"are you there").await;
    assert_eq!(raw.expect(0xA).await, b"are you there");
    let fragment = |fin, opcode, text: &str| RawFrame { fin, ..RawFrame::new(opcode, text) }.encode();
    raw.write(&fragment(false, 0x1, "in ")).await;
    // Control frames may stand between fragments (RFC 6455, section 5.4).
    raw.send(0x9, b"between").await;
    raw.write(&fragment(false, 0x0, "three ")).await;
    raw.write(&fragment(true, 0x0, "parts")).await;
    assert_eq!(raw.expect(0xA).await, b"between");
    assert_eq!(raw.expect(0x1).await, wrapped(true, false, ROOM, "in three parts").as_bytes());
}

#[tokio::test]
async fn a_classic_client_that_closes_gets_its_code_back() {
    let (_issuer, relay) = start().await;
    let mut client = relay.classic_desktop("ann").await;
    client.send_close(1001, "going away").await;
    client.expect_close(1001).await;
    assert_eq!(client.next().await, Event::End);
}
