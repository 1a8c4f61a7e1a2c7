//! Sections 4.2 to 4.4: control messages, errors, and how connections end.

use serde_json::{Value, json};

use crate::support::{Config, Event, Issuer, RawClient, RawEvent, RawFrame, Relay, Token, since_epoch};

async fn start() -> (Issuer, Relay) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    (issuer, relay)
}

#[tokio::test]
async fn send_arrives_as_a_message_exactly_as_it_was_written() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    let values = [
        "null",
        "true",
        "0",
        "-1.50e+10",
        "123456789012345678901234567890",
        r#""é \"\u0041""#,
        "[]",
        r#"{"b":1,"a":{"x":[1,2]}}"#,
    ];
    for data in values {
        mobile.send_text(&format!(r#"{{"type":"send","data":{data}}}"#)).await;
        let text = desktop.expect_text().await;
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&message["type"], &message["from"]), (&json!("message"), &json!("mobile")));
        assert!(message.get("id").is_none() && message.get("text").is_none(), "{message}");
        assert!(message.get("data").is_some(), "{message}");
        assert!(text.contains(&format!(r#""data":{data}"#)), "{text}");
    }
    desktop.send_json(json!({"type": "send", "data": {"n": 1}, "id": "m-1"})).await;
    let expected = json!({"type": "message", "from": "desktop", "data": {"n": 1}, "id": "m-1"});
    assert_eq!(mobile.expect_json("message").await, expected);
    // No echo.
    desktop.sync().await;
    mobile.sync().await;
}

#[tokio::test]
async fn fields_may_come_in_any_order_with_unknown_ones_among_them() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    mobile.send_text(r#" { "future" : [1] , "id":"x", "data" : 1 , "type" : "\u0073end" } "#).await;
    let message = desktop.expect_json("message").await;
    assert_eq!((&message["data"], &message["id"]), (&json!(1), &json!("x")));
}

#[tokio::test]
async fn each_send_without_a_peer_is_reported() {
    let (_issuer, relay) = start().await;
    let mut mobile = relay.v1_mobile("ann").await;
    for n in 0..30 {
        mobile.send_json(json!({"type": "send", "data": n, "id": format!("m{n}")})).await;
        assert_eq!(mobile.expect_error("peer_absent").await["id"], format!("m{n}"));
    }
    // 30 of them do not count as errors that end the connection.
    mobile.sync().await;
    let mut desktop = relay.v1_desktop("ann").await;
    desktop.sync().await;
}

#[tokio::test]
async fn ping_is_answered_with_the_relays_clock() {
    let (_issuer, relay) = start().await;
    let mut client = relay.v1_desktop("ann").await;
    let before = u64::try_from(since_epoch().as_millis()).unwrap();
    client.send_json(json!({"type": "ping", "id": "p"})).await;
    let pong = client.expect_json("pong").await;
    let after = u64::try_from(since_epoch().as_millis()).unwrap();
    assert_eq!(pong["id"], "p");
    assert!((before..=after).contains(&pong["time"].as_u64().unwrap()), "{pong} not in {before}..={after}");
    client.send_json(json!({"type": "ping"})).await;
    let pong = client.expect_json("pong").await;
    assert!(pong.get("id").is_none_or(Value::is_null) && pong["time"].is_u64(), "{pong}");
}

#[tokio::test]
async fn what_is_not_understood_is_an_error_and_the_connection_stays() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    let table = [
        ("", "bad_json"),
        ("hello", "bad_json"),
        ("{", "bad_json"),
        (r#"{"type":"ping"} x"#, "bad_json"),
        (r#""ping""#, "bad_json"),
        (r#"["ping"]"#, "bad_json"),
        (r#"{"type":"dance"}"#, "unknown_type"),
        (r#"{"type":"welcome"}"#, "unknown_type"),
        (r#"{"type":"send"}"#, "bad_field"),
        (r#"{"type":"send","data":1,"id":7}"#, "bad_field"),
        (r#"{"type":"ping","id":{}}"#, "bad_field"),
        (r#"{"type":"auth"}"#, "bad_field"),
        (r#"{"type":"auth","token":1}"#, "bad_field"),
        (r#"{"data":1}"#, "bad_field"),
        (r#"{"type":1}"#, "bad_field"),
    ];
    for (text, code) in table {
        mobile.send_text(text).await;
        let error = mobile.expect_json("error").await;
        assert_eq!(error["code"], code, "{text} -> {error}");
        assert!(error["detail"].is_string());
    }
    mobile.send_json(json!({"type": "dance", "id": "d"})).await;
    assert_eq!(mobile.expect_error("unknown_type").await["id"], "d");
    mobile.sync().await;
    // None of it reached the other device.
    desktop.sync().await;
}

#[tokio::test]
async fn the_twenty_first_error_in_ten_seconds_ends_the_connection() {
    let (_issuer, relay) = start().await;
    let mut client = relay.v1_desktop("ann").await;
    for _ in 0..20 {
        client.send_text("?").await;
        client.expect_error("bad_json").await;
    }
    client.sync().await;
    client.send_text("?").await;
    // The last one may be reported too.
    match client.next().await {
        Event::Text(text) => {
            assert!(text.contains("bad_json"), "{text}");
            client.expect_close(1008).await;
        }
        Event::Close(1008, _) => {}
        other => panic!("expected 1008, got {other:?}"),
    }
    client.expect_end().await;
    assert_eq!(relay.metric("duorelay_errors_total", &["bad_json"]).await, 21.0);
    assert_eq!(relay.metric("duorelay_closes_total", &["1008"]).await, 1.0);
}

#[tokio::test]
async fn empty_frames_count_as_errors() {
    let (_issuer, relay) = start().await;
    let mut client = relay.v1_desktop("ann").await;
    for _ in 0..21 {
        client.send_binary(Vec::new()).await;
    }
    let mut errors = 0;
    loop {
        match client.next().await {
            Event::Text(text) if text.contains("empty_frame") => errors += 1,
            Event::Close(1008, _) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!((20..=21).contains(&errors), "{errors}");
}

#[tokio::test]
async fn the_peer_is_reported_as_it_comes_and_goes() {
    let (_issuer, relay) = start().await;
    let mut desktop = relay.v1_desktop("ann").await;
    let peer = |state: &str, connection: &Value, generation: &Value| json!({"type": "peer", "device": "mobile", "state": state, "connection": connection, "generation": generation});

    let mut first = relay.v1_mobile("ann").await;
    let (id, generation) = (first.welcome["connection"].clone(), first.welcome["generation"].clone());
    assert_eq!(desktop.expect_json("peer").await, peer("connected", &id, &generation));
    first.send_close(1000, "").await;
    first.expect_close(1000).await;
    assert_eq!(desktop.expect_json("peer").await, peer("disconnected", &id, &generation));

    // A phone that vanishes without a close.
    let second = relay.v1_mobile("ann").await;
    let (id, generation) = (second.welcome["connection"].clone(), second.welcome["generation"].clone());
    assert_eq!(desktop.expect_json("peer").await, peer("connected", &id, &generation));
    drop(second);
    assert_eq!(desktop.expect_json("peer").await, peer("disconnected", &id, &generation));

    // A slot that is taken over is only connected again.
    let third = relay.v1_mobile("ann").await;
    assert_eq!(desktop.expect_json("peer").await["connection"], third.id());
    let fourth = relay.v1_mobile("ann").await;
    let (id, generation) = (fourth.welcome["connection"].clone(), fourth.welcome["generation"].clone());
    assert_eq!(desktop.expect_json("peer").await, peer("connected", &id, &generation));
    drop(third);
    desktop.sync().await;
    assert!(fourth.generation() > desktop.generation());
}

#[tokio::test]
async fn a_close_is_answered_with_its_code() {
    let (_issuer, relay) = start().await;
    for code in [1000, 1001, 3000, 4999] {
        let mut client = relay.v1_desktop("ann").await;
        client.send_close(code, "bye").await;
        client.expect_close(code).await;
        client.expect_end().await;
    }
    // A close without a code is answered without one, or with 1000 (RFC 6455, section 5.5.1).
    let mut raw = raw_desktop(&relay).await;
    raw.send(0x8, b"").await;
    let payload = raw.expect(0x8).await;
    assert!(payload.is_empty() || payload == 1000_u16.to_be_bytes(), "{payload:?}");
    assert_eq!(raw.next().await, RawEvent::End);
}

async fn raw_desktop(relay: &Relay) -> RawClient {
    let token = Token::firebase("ann").sign();
    let mut raw = relay.handshake().offer(&["duorelay.v1", &token]).open_raw().await;
    raw.expect_json("welcome").await;
    raw
}

#[tokio::test]
async fn broken_frames_end_in_1002() {
    let (_issuer, relay) = start().await;
    let good = RawFrame::new(0x1, r#"{"type":"ping"}"#);
    let broken: [(&str, Vec<u8>); 8] = [
        ("unmasked", RawFrame { masked: false, ..good.clone() }.encode()),
        ("a reserved bit", RawFrame { reserved: 0b100, ..good.clone() }.encode()),
        ("a reserved opcode", RawFrame::new(0x3, "x").encode()),
        ("a reserved control opcode", RawFrame::new(0xB, "x").encode()),
        ("a fragmented ping", RawFrame { fin: false, ..RawFrame::new(0x9, "x") }.encode()),
        ("a long ping", RawFrame::new(0x9, vec![b'x'; 126]).encode()),
        ("a continuation of nothing", RawFrame::new(0x0, "x").encode()),
        (
            "a new message within another",
            [RawFrame { fin: false, ..good.clone() }.encode(), good.encode()].concat(),
        ),
    ];
    for (what, bytes) in broken {
        let mut raw = raw_desktop(&relay).await;
        raw.write(&bytes).await;
        match raw.next().await {
            RawEvent::Frame(0x8, payload) => {
                assert_eq!(payload.get(..2), Some(&1002_u16.to_be_bytes()[..]), "{what}")
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_broken_close_frame_ends_in_1002_or_1007() {
    let (_issuer, relay) = start().await;
    for (what, payload, code) in [
        ("one byte", vec![3], 1002_u16),
        ("a code that must not be sent", 1006_u16.to_be_bytes().to_vec(), 1002),
        ("a reason that is not UTF-8", [&1000_u16.to_be_bytes()[..], &[0xFF]].concat(), 1007),
    ] {
        let mut raw = raw_desktop(&relay).await;
        raw.send(0x8, &payload).await;
        match raw.next().await {
            RawEvent::Frame(0x8, answer) => {
                assert_eq!(answer.get(..2), Some(&code.to_be_bytes()[..]), "{what}")
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn text_that_is_not_utf8_ends_in_1007() {
    let (_issuer, relay) = start().await;
    let classic = relay.handshake().offer(&[&Token::firebase("bob").sign()]).open_raw().await;
    for mut raw in [raw_desktop(&relay).await, classic] {
        raw.send(0x1, b"\xFF\xFE").await;
        raw.expect_close(1007).await;
    }
}

#[tokio::test]
async fn a_broken_connection_leaves_the_room() {
    let (_issuer, relay) = start().await;
    let mut mobile = relay.v1_mobile("ann").await;
    let mut raw = raw_desktop(&relay).await;
    mobile.expect_json("peer").await;
    raw.write(&RawFrame { masked: false, ..RawFrame::new(0x1, "x") }.encode()).await;
    assert_eq!(mobile.expect_json("peer").await["state"], "disconnected");
}

#[tokio::test]
async fn an_operators_message_comes_from_the_server() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    let post = async |body: Value| relay.operate("POST", "/v1/rooms/ann/messages", &body).await;
    assert_eq!(post(json!({"data": {"n": 1}})).await.json(), json!({"connected": 2}));
    let expected = json!({"type": "message", "from": "server", "data": {"n": 1}});
    assert_eq!(desktop.expect_json("message").await, expected);
    assert_eq!(mobile.expect_json("message").await, expected);
    assert_eq!(post(json!({"data": null, "device": "mobile"})).await.json(), json!({"connected": 1}));
    assert_eq!(
        mobile.expect_json("message").await,
        json!({"type": "message", "from": "server", "data": null})
    );
    desktop.sync().await;
}
