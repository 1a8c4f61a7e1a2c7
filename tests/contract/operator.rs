//! Section 5: the operators' API and the metrics.

use serde_json::{Value, json};

use crate::support::{ADMIN_TOKEN, Config, Issuer, Relay, request};

async fn start() -> (Issuer, Relay) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    (issuer, relay)
}

const CALLS: [(&str, &str); 5] = [
    ("GET", "/v1/rooms/ann"),
    ("POST", "/v1/rooms/ann/messages"),
    ("DELETE", "/v1/rooms/ann"),
    ("DELETE", "/v1/rooms/ann/mobile"),
    ("GET", "/v1/instances"),
];

#[tokio::test]
async fn operators_show_their_token() {
    let (_issuer, relay) = start().await;
    let right = format!("Bearer {ADMIN_TOKEN}");
    for (method, path) in CALLS {
        let wrong: [&[(&str, &str)]; 4] = [
            &[],
            &[("authorization", "Bearer wrong")],
            &[("authorization", "Basic wrong")],
            &[("authorization", &right[..right.len() - 1])],
        ];
        for headers in wrong {
            let response = request(relay.admin, method, path, headers, br#"{"data":1}"#).await.unwrap();
            assert_eq!(response.status, 401, "{method} {path} {headers:?}");
        }
        // None of it on the public port.
        let public = request(relay.public, method, path, &[("authorization", &right)], br#"{"data":1}"#)
            .await
            .unwrap();
        assert!(matches!(public.status, 404 | 405), "{method} {path}: {}", public.status);
    }
    let metrics = request(relay.public, "GET", "/metrics", &[], b"").await.unwrap();
    assert_eq!(metrics.status, 404);
}

#[tokio::test]
async fn without_a_configured_token_there_is_no_operators_api() {
    let issuer = Issuer::start();
    for config in [
        Config::new(&issuer).unset("DUORELAY_ADMIN_TOKEN"),
        Config::new(&issuer).set("DUORELAY_ADMIN_TOKEN", ""),
    ] {
        let relay = config.start().await;
        for (method, path) in CALLS {
            for headers in [&[][..], &[("authorization", "Bearer ")], &[("authorization", "Bearer x")]] {
                let response = request(relay.admin, method, path, headers, br#"{"data":1}"#).await.unwrap();
                assert_eq!(response.status, 404, "{method} {path}");
            }
        }
        // Metrics need no token.
        assert_eq!(request(relay.admin, "GET", "/metrics", &[], b"").await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_room_names_who_holds_its_slots() {
    let (_issuer, relay) = start().await;
    assert_eq!(relay.room("ann").await, json!({"uid": "ann", "desktop": null, "mobile": null}));
    let desktop = relay.v1_desktop("ann").await;
    let room = relay.room("ann").await;
    assert_eq!((&room["uid"], &room["mobile"]), (&json!("ann"), &json!(null)));
    let slot = &room["desktop"];
    assert_eq!(slot["connection"], desktop.welcome["connection"]);
    assert_eq!(slot["generation"], desktop.welcome["generation"]);
    assert_eq!(slot["instance"], desktop.welcome["instance"]);
    assert!(slot["lease_ms"].is_u64(), "{slot}");
}

#[tokio::test]
async fn a_uid_in_a_path_is_one_encoded_segment() {
    let (_issuer, relay) = start().await;
    let uid = "a/b:{c}*\n%ü";
    let mut desktop = relay.v1_desktop(uid).await;
    let path = "a%2Fb%3A%7Bc%7D%2A%0A%25%C3%BC";
    // A slash stands behind a tenant, unless the query says that there is none.
    let room = relay.room(&format!("{path}?tenant=")).await;
    assert_eq!((&room["uid"], &room["desktop"]["connection"]), (&json!(uid), &desktop.welcome["connection"]));
    let posted =
        relay.operate("POST", &format!("/v1/rooms/{path}/messages?tenant="), &json!({"data": 1})).await;
    assert_eq!(posted.json(), json!({"connected": 1}));
    desktop.expect_json("message").await;
    let deleted = relay.operate("DELETE", &format!("/v1/rooms/{path}/desktop?tenant="), &json!(null)).await;
    assert_eq!(deleted.json(), json!({"disconnected": 1}));
    desktop.expect_close(4002).await;
}

#[tokio::test]
async fn messages_are_posted_to_those_who_are_there() {
    let (_issuer, relay) = start().await;
    let post = async |body: &Value| {
        let response = relay.operate("POST", "/v1/rooms/ann/messages", body).await;
        (response.status, response.json())
    };
    assert_eq!(post(&json!({"data": 1})).await, (200, json!({"connected": 0})));
    let mut desktop = relay.v1_desktop("ann").await;
    assert_eq!(post(&json!({"data": [1, {"a": null}]})).await, (200, json!({"connected": 1})));
    assert_eq!(desktop.expect_json("message").await["data"], json!([1, {"a": null}]));
    assert_eq!(post(&json!({"data": 1, "device": "mobile"})).await, (200, json!({"connected": 0})));
    assert_eq!(post(&json!({"data": "x", "device": "desktop"})).await, (200, json!({"connected": 1})));
    assert_eq!(desktop.expect_json("message").await["data"], "x");
    // Another user's room is untouched.
    let mut bob = relay.v1_desktop("bob").await;
    assert_eq!(post(&json!({"data": "for ann"})).await.1, json!({"connected": 1}));
    bob.sync().await;
}

#[tokio::test]
async fn bad_bodies_and_devices_are_refused() {
    let (_issuer, relay) = start().await;
    let bearer = format!("Bearer {ADMIN_TOKEN}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    for body in
        [&b"not json"[..], b"", b"[]", b"{}", br#"{"device":"mobile"}"#, br#"{"data":1,"device":"phone"}"#]
    {
        let response = request(relay.admin, "POST", "/v1/rooms/ann/messages", &headers, body).await.unwrap();
        assert_eq!(response.status, 400, "{}", String::from_utf8_lossy(body));
    }
    assert_eq!(relay.operate("DELETE", "/v1/rooms/ann/phone", &json!(null)).await.status, 400);
}

#[tokio::test]
async fn operators_disconnect_devices_and_rooms() {
    let (_issuer, relay) = start().await;
    let delete = async |path: &str| relay.operate("DELETE", path, &json!(null)).await.json();
    assert_eq!(delete("/v1/rooms/ann").await, json!({"disconnected": 0}));

    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    let mut bob = relay.v1_desktop("bob").await;
    assert_eq!(delete("/v1/rooms/ann/mobile").await, json!({"disconnected": 1}));
    mobile.expect_close(4002).await;
    assert_eq!(desktop.expect_json("peer").await["state"], "disconnected");
    assert_eq!(delete("/v1/rooms/ann/mobile").await, json!({"disconnected": 0}));

    let mut classic = relay.classic_mobile("ann").await;
    desktop.expect_json("peer").await;
    assert_eq!(delete("/v1/rooms/ann").await, json!({"disconnected": 2}));
    loop {
        // The relay may report its peer as gone before it is closed itself.
        match desktop.next().await {
            crate::support::Event::Close(4002, _) => break,
            crate::support::Event::Text(text) if text.contains("disconnected") => {}
            other => panic!("{other:?}"),
        }
    }
    classic.expect_close(4002).await;
    assert_eq!(relay.room("ann").await, json!({"uid": "ann", "desktop": null, "mobile": null}));
    bob.sync().await;
}

#[tokio::test]
async fn instances_are_listed() {
    let (_issuer, relay) = start().await;
    let (desktop, _mobile) = relay.v1_pair("ann").await;
    let response = relay.operate("GET", "/v1/instances", &json!(null)).await;
    assert_eq!(response.status, 200);
    let instances = response.json()["instances"].as_array().unwrap().clone();
    assert_eq!(instances.len(), 1);
    let instance = &instances[0];
    assert_eq!(instance["instance"], desktop.welcome["instance"]);
    assert_eq!(instance["connections"], 2);
    assert_eq!(instance["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(instance["draining"], false);
    assert!(!instance["started_at"].is_null(), "{instance}");
}

#[tokio::test]
async fn every_call_leaves_an_audit_line_without_the_uid() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("RUST_LOG", "info").start().await;
    let uid = "private-uid@example.org";
    let _desktop = relay.v1_desktop(uid).await;
    let path = "/v1/rooms/private-uid%40example.org";
    relay.operate("POST", &format!("{path}/messages"), &json!({"data": "secret"})).await;
    relay.operate("DELETE", &format!("{path}/mobile"), &json!(null)).await;
    relay.operate("DELETE", &format!("{path}/secret-device"), &json!(null)).await;
    relay.operate("GET", "/v1/instances", &json!(null)).await;
    let guess = [("authorization", "Bearer secret-guess")];
    request(relay.admin, "GET", path, &guess, b"").await.unwrap();
    // The line is written before the answer, but collected from a pipe.
    let lines = loop {
        let lines: Vec<Value> = relay
            .log()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line: &Value| line["message"] == "operator call")
            .collect();
        if lines.len() >= 5 {
            break lines;
        }
        tokio::task::yield_now().await;
    };
    let seen: Vec<_> = lines
        .iter()
        .map(|line| {
            assert_eq!(line["client.address"], "127.0.0.1");
            let fields = ["call", "device", "status", "reached", "user.hash"];
            fields.map(|field| line[field].to_string().replace('"', ""))
        })
        .collect();
    let hash = "4aac6c7bc7f2ff58";
    assert_eq!(
        seen,
        [
            ["POST /v1/rooms/{uid}/messages", "null", "200", "1", hash],
            ["DELETE /v1/rooms/{uid}/{device}", "mobile", "200", "0", hash],
            ["DELETE /v1/rooms/{uid}/{device}", "unknown", "400", "null", hash],
            ["GET /v1/instances", "null", "200", "null", "null"],
            ["GET /v1/rooms/{uid}", "null", "401", "null", hash],
        ]
    );
    for private in ["private-uid", "secret", ADMIN_TOKEN] {
        assert!(!relay.log().contains(private), "{private} is in the log");
    }
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let (_issuer, relay) = start().await;
    let scrape = async |accept| {
        let response = request(relay.admin, "GET", "/metrics", &[("accept", accept)], b"").await.unwrap();
        (response.header("content-type").unwrap().to_owned(), response.text())
    };
    let (kind, text) = scrape("*/*").await;
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert!(text.contains("# TYPE duorelay_frames_total counter\n") && !text.contains("# EOF"), "{text}");
    let (kind, text) = scrape("application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(text.contains("# TYPE duorelay_frames counter\n") && text.ends_with("# EOF\n"), "{text}");
}

#[tokio::test]
async fn metrics_have_the_names_of_the_contract_and_no_users() {
    let (_issuer, relay) = start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("a-user-of-this-test").await;
    let _classic = relay.classic_desktop("bob").await;
    relay.handshake().refused().await;
    for n in 0..10_u8 {
        mobile.send_frame(0x80, &[n; 99]).await;
        desktop.expect_binary().await;
    }
    // A frame to nobody is dropped, and counted.
    let mut alone = relay.v1_mobile("carl").await;
    alone.send_frame(0x01, b"to nobody").await;
    alone.sync().await;
    let _third = relay.v1_desktop("a-user-of-this-test").await;
    desktop.expect_json("overwritten").await;
    desktop.expect_close(4001).await;
    desktop.expect_end().await;

    let text = request(relay.admin, "GET", "/metrics", &[], b"").await.unwrap().text();
    let names = [
        "duorelay_connections",
        "duorelay_handshakes_total",
        "duorelay_frames_total",
        "duorelay_frame_bytes_total",
        "duorelay_dropped_total",
        "duorelay_overwritten_total",
        "duorelay_closes_total",
        "duorelay_relay_seconds_bucket",
        "duorelay_claim_seconds",
        "duorelay_backplane_up",
        "duorelay_backplane_probe_seconds",
        "duorelay_backplane_gaps_total",
    ];
    for name in names {
        let family = name.trim_end_matches("_bucket").trim_end_matches("_total");
        assert!(text.contains(&format!("# TYPE {family}")), "{name} is missing");
    }
    assert_eq!(relay.metric("duorelay_connections", &[r#"device="desktop""#, r#"protocol="v1""#]).await, 1.0);
    assert_eq!(relay.metric("duorelay_connections", &[r#"device="mobile""#, r#"protocol="v1""#]).await, 2.0);
    assert_eq!(
        relay.metric("duorelay_connections", &[r#"device="desktop""#, r#"protocol="classic""#]).await,
        1.0
    );
    assert_eq!(relay.metric("duorelay_handshakes_total", &[r#"result="missing_token""#]).await, 1.0);
    assert_eq!(relay.metric("duorelay_frames_total", &[r#"lane="reliable""#, r#"path="local""#]).await, 10.0);
    assert_eq!(relay.metric("duorelay_frame_bytes_total", &[]).await, 1000.0);
    assert_eq!(relay.metric("duorelay_closes_total", &[r#"code="4001""#]).await, 1.0);
    assert_eq!(relay.metric("duorelay_backplane_up", &[]).await, 1.0);
    assert!(relay.metric("duorelay_relay_seconds_count", &[]).await >= 10.0);
    assert!(relay.metric("duorelay_claim_seconds_count", &[]).await >= 3.0);
    for private in ["a-user-of-this-test", "example.org", "127.0.0.1", desktop.id()] {
        assert!(!text.contains(private), "{private} is in the metrics");
    }
}
