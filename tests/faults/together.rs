//! Two instances are one relay: the contract's main lines, wherever each socket lands.

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fleet::{Fleet, expect_overwritten, notified, pair, v1};
use crate::support::{Client, Event, LIMIT, RedisServer, Token};

/// Where the desktop and the mobile land.
const PLACES: [(usize, usize); 4] = [(0, 0), (0, 1), (1, 0), (1, 1)];

async fn start() -> (RedisServer, Fleet) {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start_with(&[&redis.url(), &redis.url()], |config| {
        config
            .unset("DUORELAY_LEASE_SECONDS")
            .set("DUORELAY_MESSAGES_PER_SECOND", 0)
            .set("DUORELAY_BYTES_PER_SECOND", 0)
    })
    .await;
    (redis, fleet)
}

/// What a classic client is sent.
fn wrapped(desktop: bool, mobile: bool, room: &str, message: &str) -> String {
    format!("\nDesktop connected: {desktop}\nMobile connected: {mobile}\nRoom: {room}\nMessage: {message}\n")
}

#[tokio::test]
async fn a_pair_is_a_pair_wherever_it_lands() {
    let (_redis, fleet) = start().await;
    for (number, (at_desktop, at_mobile)) in PLACES.into_iter().enumerate() {
        let uid = format!("user{number}");
        let (mut desktop, mut mobile) = pair(&uid, &fleet.relays[at_desktop], &fleet.relays[at_mobile]).await;
        for n in 0..100_u8 {
            desktop.send_frame(0x80, &[n]).await;
            desktop.send_json(json!({"type": "send", "data": {"n": n}, "id": n.to_string()})).await;
            mobile.send_frame(0xFF, &[n]).await;
        }
        for n in 0..100_u8 {
            assert_eq!(mobile.expect_binary().await, [0x80, n]);
            let message = mobile.expect_json("message").await;
            assert_eq!(
                message,
                json!({"type": "message", "from": "desktop", "data": {"n": n}, "id": n.to_string()})
            );
            assert_eq!(desktop.expect_binary().await, [0xFF, n]);
        }
        // A volatile frame that nothing follows arrives.
        desktop.send_frame(0x01, b"face").await;
        assert_eq!(mobile.expect_binary().await, b"\x01face");
        // Nothing of it is echoed, and no other user hears it.
        desktop.sync().await;
        mobile.sync().await;
        let room = fleet.room(&uid).await;
        assert_eq!(room["desktop"]["connection"], desktop.id());
        assert_eq!(room["mobile"]["generation"], mobile.generation());
        mobile.send_close(1000, "").await;
        mobile.expect_close(1000).await;
        let peer = desktop.expect_json("peer").await;
        assert_eq!(peer["state"], "disconnected");
        assert_eq!(peer["connection"], mobile.welcome["connection"]);
        desktop.send_json(json!({"type": "send", "data": null})).await;
        desktop.expect_error("peer_absent").await;
    }
}

#[tokio::test]
async fn a_session_shows_the_room_on_every_instance() {
    let (_redis, fleet) = start().await;
    let (desktop, mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    for relay in &fleet.relays {
        let bearer = format!("Bearer {}", Token::firebase("ann").sign());
        let headers = [("authorization", bearer.as_str())];
        let session =
            crate::support::request(relay.public, "GET", "/v1/session", &headers, b"").await.unwrap().json();
        let expected = json!({"desktop": desktop.as_peer(), "mobile": mobile.as_peer()});
        assert_eq!(session["room"], expected);
    }
}

/// A desktop moves from socket to socket, each on the next of these instances, while a mobile sends.
async fn hand_over(uid: &str, fleet: &Fleet, sender: usize, places: &[usize]) {
    const ROUND: usize = 60;
    let mut mobile = v1(&fleet.relays[sender], uid, "mobile").open_v1().await;
    let open = |place: &usize| v1(&fleet.relays[*place], uid, "desktop").client("tab");
    let mut socket = open(&places[0]).open_v1().await;
    mobile.expect_json("peer").await;
    let (mut received, mut sent) = (Vec::new(), 0);
    for place in &places[1..] {
        let sending = async {
            for _ in 0..ROUND {
                mobile.send_json(json!({"type": "send", "data": sent})).await;
                sent += 1;
                tokio::task::yield_now().await;
            }
        };
        let next = open(place);
        let (mut next, ()) = tokio::join!(next.open_v1(), sending);
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
        while received.len() < sent {
            received.push(next.expect_json("message").await["data"].as_u64().unwrap());
        }
        let expected: Vec<u64> = (0..sent as u64).collect();
        assert_eq!(received, expected, "to {place}");
        let peer = mobile.expect_json("peer").await;
        assert_eq!((&peer["connection"], &peer["state"]), (&next.welcome["connection"], &json!("connected")));
        socket = next;
    }
    mobile.sync().await;
    socket.sync().await;
}

#[tokio::test]
async fn a_hand_over_between_instances_loses_and_doubles_nothing() {
    let (_redis, fleet) = start().await;
    let places: Vec<usize> = (0..20).map(|n| [0, 1, 1, 0, 0][n % 5]).collect();
    tokio::join!(hand_over("ann", &fleet, 0, &places), hand_over("bob", &fleet, 1, &places),);
}

#[tokio::test]
async fn an_eviction_on_another_instance_is_notified() {
    let (_redis, fleet) = start().await;
    let (mut desktop, mut mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    for n in 1..=10 {
        let relay = &fleet.relays[n % 2];
        let next = v1(relay, "ann", "mobile").client(&format!("phone{n}")).open_v1().await;
        let overwritten = expect_overwritten(&mut mobile, &next).await;
        assert_eq!(overwritten["by"]["same_client"], false);
        let peer = desktop.expect_json("peer").await;
        assert_eq!(peer["connection"], next.welcome["connection"]);
        mobile = next;
    }
    // The count is the room's, not the instance's.
    for relay in &fleet.relays {
        let refused = v1(relay, "ann", "mobile").client("another").refused().await;
        refused.expect_refusal(429, "too_many_attempts");
    }
    mobile.send_frame(0x80, b"still here").await;
    assert_eq!(desktop.expect_binary().await, b"\x80still here");
    desktop.sync().await;
}

#[tokio::test]
async fn classic_and_v1_speak_to_each_other_across_instances() {
    let (_redis, fleet) = start().await;
    for (number, (at_desktop, at_mobile)) in PLACES.into_iter().enumerate() {
        let uid = format!("user{number}");
        let address = crate::support::email(&uid);
        let mut desktop = fleet.relays[at_desktop].classic_desktop(&uid).await;
        // A classic client gets no notice that it is in its room: it hears itself.
        desktop.send_text("alone").await;
        assert_eq!(desktop.expect_text().await, wrapped(true, false, &address, "alone"));
        let mut mobile = v1(&fleet.relays[at_mobile], &uid, "mobile").open_v1().await;
        assert_ne!(mobile.welcome["peer"], json!(null));
        mobile.send_json(json!({"type": "send", "data": {"a": [1, "x y"]}})).await;
        let text = desktop.expect_text().await;
        assert_eq!(text, wrapped(true, true, &address, "{\"a\":[1,\"x y\"]}"));
        mobile.send_frame(0x01, b"face").await;
        assert_eq!(desktop.expect_binary().await, b"\x01face");
        desktop.send_text("hello").await;
        let message = mobile.expect_json("message").await;
        assert_eq!(message, json!({"type": "message", "from": "desktop", "text": "hello"}));
        assert_eq!(desktop.expect_text().await, wrapped(true, true, &address, "hello"));

        // Two classic clients.
        let mut phone = fleet.relays[at_mobile].classic_mobile(&uid).await;
        notified(&mut mobile, LIMIT, "overwritten").await;
        phone.send_text("from the phone").await;
        for client in [&mut phone, &mut desktop] {
            assert_eq!(client.expect_text().await, wrapped(true, true, &address, "from the phone"));
        }
        // A classic client that loses its slot to another instance.
        let newer = fleet.relays[1 - at_mobile].classic_mobile(&uid).await;
        assert_eq!(phone.expect_text().await, "This connection has been overwritten with a new one");
        phone.expect_close(4001).await;
        drop(newer);
    }
}

async fn operators(fleet: &Fleet, method: &str, path: &str, body: &Value) -> Vec<Value> {
    let mut answers = Vec::new();
    for relay in &fleet.relays {
        let answer = relay.operate(method, path, body).await;
        assert_eq!(answer.status, 200);
        answers.push(answer.json());
    }
    answers
}

#[tokio::test]
async fn operators_reach_every_socket_from_every_instance() {
    let (_redis, fleet) = start().await;
    let (mut desktop, mut mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    for (number, answer) in operators(&fleet, "POST", "/v1/rooms/ann/messages", &json!({"data": [7]}))
        .await
        .into_iter()
        .enumerate()
    {
        assert_eq!(answer, json!({"connected": 2}), "from {number}");
    }
    for client in [&mut desktop, &mut mobile] {
        for _ in 0..2 {
            let message = client.expect_json("message").await;
            assert_eq!(message, json!({"type": "message", "from": "server", "data": [7]}));
        }
    }
    for device in ["desktop", "mobile"] {
        let body = json!({"data": device, "device": device});
        for answer in operators(&fleet, "POST", "/v1/rooms/ann/messages", &body).await {
            assert_eq!(answer, json!({"connected": 1}));
        }
    }
    for (client, device) in [(&mut desktop, "desktop"), (&mut mobile, "mobile")] {
        for _ in 0..2 {
            assert_eq!(client.expect_json("message").await["data"], device);
        }
        client.sync().await;
    }

    // The desktop is on instance 0; instance 1 is asked, and the other way round.
    let answer = fleet.relays[1].operate("DELETE", "/v1/rooms/ann/desktop", &json!(null)).await;
    assert_eq!(answer.json(), json!({"disconnected": 1}));
    desktop.expect_close(4002).await;
    assert_eq!(mobile.expect_json("peer").await["state"], "disconnected");
    let mut desktop = v1(&fleet.relays[1], "ann", "desktop").open_v1().await;
    mobile.expect_json("peer").await;
    let answer = fleet.relays[0].operate("DELETE", "/v1/rooms/ann", &json!(null)).await;
    assert_eq!(answer.json(), json!({"disconnected": 2}));
    expect_disconnected(&mut desktop).await;
    expect_disconnected(&mut mobile).await;
    // A socket is closed before its slot is released.
    let deadline = Instant::now() + LIMIT;
    let empty = json!({"uid": "ann", "desktop": null, "mobile": null});
    while operators(&fleet, "GET", "/v1/rooms/ann", &json!(null)).await != [empty.clone(), empty.clone()] {
        assert!(Instant::now() < deadline, "the slots are not released");
    }
}

async fn expect_disconnected(client: &mut Client) {
    loop {
        match client.next().await {
            Event::Close(code, _) => return assert_eq!(code, 4002),
            // The other one may have gone first.
            Event::Text(text) => assert!(text.contains("\"peer\""), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_leaving_instance_hands_its_sockets_over_without_a_gap() {
    let redis = RedisServer::start().await;
    let mut fleet = Fleet::start_with(&[&redis.url(), &redis.url()], |config| {
        config
            .set("DUORELAY_DRAIN_DELAY_SECONDS", 0)
            .set("DUORELAY_DRAIN_SECONDS", 5)
            .set("DUORELAY_MESSAGES_PER_SECOND", 0)
            .set("DUORELAY_BYTES_PER_SECOND", 0)
    })
    .await;
    let mut desktop = v1(&fleet.relays[1], "ann", "desktop").open_v1().await;
    let phone = |fleet: &Fleet, at: usize| v1(&fleet.relays[at], "ann", "mobile").client("phone");
    let mut old = phone(&fleet, 0).open_v1().await;
    desktop.expect_json("peer").await;
    fleet.relays[0].signal("TERM");
    old.expect_json("reconnect").await;
    let sending = async {
        for n in 0..200 {
            desktop.send_json(json!({"type": "send", "data": n})).await;
            tokio::task::yield_now().await;
        }
    };
    let moving = phone(&fleet, 1);
    let (mut new, ()) = tokio::join!(moving.open_v1(), sending);
    let mut received = Vec::new();
    loop {
        let message: Value = serde_json::from_str(&old.expect_text().await).unwrap();
        if message["type"] == "overwritten" {
            break;
        }
        received.push(message["data"].as_u64().unwrap());
    }
    while received.len() < 200 {
        received.push(new.expect_json("message").await["data"].as_u64().unwrap());
    }
    assert!(received.into_iter().eq(0..200));
    assert!(fleet.relays[0].exit(LIMIT).await.success());
    let peer = desktop.expect_json("peer").await;
    assert_eq!(peer["connection"], new.welcome["connection"]);
    desktop.sync().await;
    new.sync().await;
}
