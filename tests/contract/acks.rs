//! Section 4.2: `send` with `ack`, `ack`, and `signal`; each on one instance and across two.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Config, Handshake, Issuer, RedisServer, Relay, Token};

/// Where a user's two devices connect.
struct Place {
    relays: Vec<Relay>,
    _issuer: Issuer,
    _redis: Option<RedisServer>,
}

impl Place {
    async fn here() -> Self {
        let issuer = Issuer::start();
        let relay = Config::new(&issuer).start().await;
        Self { relays: vec![relay], _issuer: issuer, _redis: None }
    }

    async fn apart() -> Self {
        let (issuer, redis) = (Issuer::start(), RedisServer::start().await);
        let config = Config::new(&issuer).set("REDIS_URL", redis.url());
        let relays = vec![config.start().await, config.start().await];
        Self { relays, _issuer: issuer, _redis: Some(redis) }
    }

    async fn both() -> [Self; 2] {
        [Self::here().await, Self::apart().await]
    }

    fn desktops(&self) -> &Relay {
        &self.relays[0]
    }

    fn mobiles(&self) -> &Relay {
        self.relays.last().unwrap()
    }

    async fn pair(&self, uid: &str) -> (Client, Client) {
        let mut desktop = self.desktops().v1_desktop(uid).await;
        let mobile = self.mobiles().v1_mobile(uid).await;
        assert_eq!(desktop.expect_json("peer").await["connection"], mobile.id());
        (desktop, mobile)
    }
}

fn signal(to: &str, data: Value) -> Value {
    json!({"type": "signal", "to": to, "data": data})
}

fn mobile_as(relay: &Relay, uid: &str, client: &str) -> Handshake {
    relay.handshake().offer(&["duorelay.v1"]).bearer(&Token::firebase(uid).sign()).client(client)
}

#[tokio::test]
async fn a_message_with_ack_is_acknowledged_to_its_sender() {
    for place in Place::both().await {
        let (mut desktop, mut mobile) = place.pair("ann").await;
        let features = desktop.welcome["features"].as_array().unwrap().clone();
        assert!(features.contains(&json!("ack")), "{features:?}");

        let id = "0123456789abcdef01234567-1";
        mobile.send_json(json!({"type": "send", "data": {"n": 1}, "id": id, "ack": true})).await;
        let expected = json!({"type": "message", "from": "mobile", "data": {"n": 1}, "id": id, "ack": true});
        assert_eq!(desktop.expect_json("message").await, expected);
        // Nothing is acknowledged by itself.
        mobile.sync().await;
        desktop.send_json(json!({"type": "ack", "id": id})).await;
        assert_eq!(mobile.expect_json("acked").await, json!({"type": "acked", "id": id}));
        // Acks stand in order with everything else that is reliable.
        desktop.send_json(json!({"type": "send", "data": 1})).await;
        desktop.send_json(json!({"type": "ack", "id": "a"})).await;
        desktop.send_json(json!({"type": "send", "data": 2})).await;
        assert_eq!(mobile.expect_json("message").await["data"], 1);
        assert_eq!(mobile.expect_json("acked").await["id"], "a");
        assert_eq!(mobile.expect_json("message").await["data"], 2);
        // Without `ack`, or with false, the message is what it always was.
        for message in [json!({"type": "send", "data": 3}), json!({"type": "send", "data": 3, "ack": false})]
        {
            mobile.send_json(message).await;
            assert_eq!(
                desktop.expect_json("message").await,
                json!({"type": "message", "from": "mobile", "data": 3})
            );
        }
        desktop.sync().await;
    }
}

#[tokio::test]
async fn an_ack_needs_an_id_that_is_short() {
    let place = Place::here().await;
    let (mut desktop, mut mobile) = place.pair("ann").await;
    for bad in [
        json!({"type": "send", "data": 1, "ack": true}),
        json!({"type": "send", "data": 1, "ack": true, "id": ""}),
        json!({"type": "send", "data": 1, "ack": true, "id": "x".repeat(65)}),
        json!({"type": "send", "data": 1, "ack": "yes", "id": "x"}),
        json!({"type": "send", "ack": true, "id": "x"}),
        json!({"type": "ack"}),
        json!({"type": "ack", "id": 7}),
    ] {
        mobile.send_json(bad.clone()).await;
        let error = mobile.expect_error("bad_field").await;
        assert_eq!(error.get("id"), bad.get("id").filter(|id| id.is_string()), "{bad}");
    }
    desktop.sync().await;
    let longest = "\u{e9}".repeat(64);
    mobile.send_json(json!({"type": "send", "data": 1, "ack": true, "id": longest})).await;
    assert_eq!(desktop.expect_json("message").await["id"], longest);
}

#[tokio::test]
async fn without_a_peer_a_message_with_ack_is_an_error_and_an_ack_is_nothing() {
    let place = Place::here().await;
    let mut mobile = place.mobiles().v1_mobile("ann").await;
    mobile.send_json(json!({"type": "send", "data": 1, "id": "a", "ack": true})).await;
    assert_eq!(mobile.expect_error("peer_absent").await["id"], "a");
    mobile.send_json(json!({"type": "ack", "id": "a"})).await;
    mobile.sync().await;
}

#[tokio::test]
async fn a_classic_device_gets_the_message_and_cannot_acknowledge_it() {
    for place in Place::both().await {
        let mut desktop = place.desktops().classic_desktop("ann").await;
        let mut mobile = place.mobiles().v1_mobile("ann").await;
        mobile.send_json(json!({"type": "send", "data": [1, 2], "id": "m-1", "ack": true})).await;
        assert!(desktop.expect_text().await.contains("Message: [1,2]\n"));
        assert_eq!(mobile.expect_error("ack_unsupported").await["id"], "m-1");
        assert_eq!(place.mobiles().metric("duorelay_errors_total", &["ack_unsupported"]).await, 1.0);
        // A classic device has no word for an ack either.
        mobile.send_json(json!({"type": "ack", "id": "m-1"})).await;
        mobile.send_json(json!({"type": "send", "data": "next"})).await;
        assert!(desktop.expect_text().await.contains("Message: \"next\"\n"));
        mobile.sync().await;
    }
}

#[tokio::test]
async fn an_ack_reaches_the_connection_that_the_sender_has_now() {
    for place in Place::both().await {
        let mut desktop = place.desktops().v1_desktop("ann").await;
        let mut first = mobile_as(place.mobiles(), "ann", "phone").open_v1().await;
        desktop.expect_json("peer").await;
        first.send_json(json!({"type": "send", "data": 1, "id": "m-1", "ack": true})).await;
        desktop.expect_json("message").await;
        // The phone moves, here to the other instance, before its message is acknowledged.
        let mut second = mobile_as(place.desktops(), "ann", "phone").open_v1().await;
        desktop.expect_json("peer").await;
        desktop.send_json(json!({"type": "ack", "id": "m-1"})).await;
        assert_eq!(second.expect_json("acked").await["id"], "m-1");
        first.expect_json("overwritten").await;
        first.expect_close(4001).await;
    }
}

#[tokio::test]
async fn a_signal_goes_to_one_connection_and_says_whose_it_is() {
    for place in Place::both().await {
        let (mut desktop, mut mobile) = place.pair("ann").await;
        assert!(desktop.welcome["features"].as_array().unwrap().contains(&json!("signal")));
        desktop.send_json(signal(mobile.id(), json!({"sdp": "offer"}))).await;
        let expected = json!({"type": "signal", "from": desktop.id(), "data": {"sdp": "offer"}});
        assert_eq!(mobile.expect_json("signal").await, expected);
        for answer in ["answer", "candidate"] {
            mobile.send_json(signal(desktop.id(), json!(answer))).await;
            let expected = json!({"type": "signal", "from": mobile.id(), "data": answer});
            assert_eq!(desktop.expect_json("signal").await, expected);
            desktop.send_json(signal(mobile.id(), json!(answer))).await;
            mobile.expect_json("signal").await;
        }
        // The pair is counted once, by whichever instance holds the mobile.
        assert_eq!(place.mobiles().metric("duorelay_direct_paths_total", &[]).await, 1.0);
        if place.relays.len() > 1 {
            assert_eq!(place.desktops().metric("duorelay_direct_paths_total", &[]).await, 0.0);
        }

        // To a connection that was the peer's, to the sender itself, and to nobody.
        let old = mobile.id().to_owned();
        let mut next = place.mobiles().v1_mobile("ann").await;
        desktop.expect_json("peer").await;
        let nobody = uuid::Uuid::nil().to_string();
        for to in [old, desktop.id().to_owned(), nobody] {
            desktop.send_json(json!({"type": "signal", "to": to, "data": 1, "id": "s"})).await;
            assert_eq!(desktop.expect_error("peer_absent").await["id"], "s");
        }
        next.sync().await;
    }
}

#[tokio::test]
async fn frames_that_go_straight_across_are_estimated_by_their_rate_before() {
    for place in Place::both().await {
        let (mut desktop, mut mobile) = place.pair("ann").await;
        desktop.send_json(signal(mobile.id(), json!("offer"))).await;
        mobile.expect_json("signal").await;
        mobile.send_json(signal(desktop.id(), json!("answer"))).await;
        desktop.expect_json("signal").await;
        // Some 50 a second, until the direct path opens; nothing comes by the relay from then on.
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..12 {
            pace.tick().await;
            mobile.send_frame(1, b"m").await;
            desktop.expect_binary().await;
            desktop.send_frame(1, b"d").await;
            mobile.expect_binary().await;
        }
        for relay in &place.relays {
            relay.wait_for_metric("duorelay_direct_frames_total", &[], 10.0).await;
        }
        // It ends with either connection.
        drop(mobile);
        desktop.expect_json("peer").await;
        let mut next = place.mobiles().v1_mobile("ann").await;
        desktop.expect_json("peer").await;
        next.sync().await;
    }
}

#[tokio::test]
async fn a_classic_device_gets_no_signal() {
    for place in Place::both().await {
        let mut desktop = place.desktops().classic_desktop("ann").await;
        let mut mobile = place.mobiles().v1_mobile("ann").await;
        let peer = mobile.welcome["peer"]["connection"].as_str().unwrap().to_owned();
        mobile.send_json(signal(&peer, json!(1))).await;
        mobile.expect_error("peer_absent").await;
        mobile.send_json(json!({"type": "send", "data": 2})).await;
        assert!(desktop.expect_text().await.contains("Message: 2\n"));
    }
}

#[tokio::test]
async fn a_signal_has_at_most_16_kib() {
    let place = Place::here().await;
    let (mut desktop, mut mobile) = place.pair("ann").await;
    let largest = "x".repeat(16 * 1024 - 2);
    desktop.send_json(signal(mobile.id(), json!(largest))).await;
    assert_eq!(mobile.expect_json("signal").await["data"], largest);
    for bad in [
        signal(mobile.id(), json!(format!("{largest}x"))),
        signal("somebody", json!(1)),
        json!({"type": "signal", "data": 1}),
        json!({"type": "signal", "to": mobile.id()}),
    ] {
        desktop.send_json(bad).await;
        desktop.expect_error("bad_field").await;
    }
    mobile.sync().await;
}

#[tokio::test]
async fn signals_can_be_switched_off() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_DIRECT", "false").start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    assert!(!desktop.welcome["features"].as_array().unwrap().contains(&json!("signal")));
    desktop.send_json(signal(mobile.id(), json!(1))).await;
    desktop.expect_error("unknown_type").await;
    mobile.sync().await;
}
