//! Sections 1 and 5: a user is the pair of tenant and uid, and users of the same uid never meet.

use serde_json::{Value, json};

use crate::support::{Client, Config, Issuer, Relay, Token, request};

async fn start() -> (Issuer, Relay) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    (issuer, relay)
}

fn token(tenant: Option<&str>, uid: &str) -> String {
    let mut firebase = json!({"sign_in_provider": "password"});
    if let Some(tenant) = tenant {
        firebase["tenant"] = json!(tenant);
    }
    Token::firebase(uid).claim("firebase", firebase).sign()
}

async fn connect(relay: &Relay, device: &str, token: &str) -> Client {
    relay.handshake().device(device).offer(&["duorelay.v1"]).bearer(token).open_v1().await
}

#[tokio::test]
async fn users_of_the_same_uid_in_different_tenants_never_meet() {
    let (_issuer, relay) = start().await;
    // Each of them could be taken for another by a name that joins tenant and uid in the wrong way.
    let users = [
        (None, "ann"),
        (Some("a"), "ann"),
        (Some("b"), "ann"),
        (None, "a/ann"),
        (Some("a"), "b/ann"),
        (Some("a/b"), "ann"),
        (None, "a%2Fann"),
    ];
    let mut desktops = Vec::new();
    for (tenant, uid) in users {
        let desktop = connect(&relay, "desktop", &token(tenant, uid)).await;
        assert_eq!(desktop.welcome["uid"], uid);
        assert_eq!(desktop.welcome.get("tenant"), tenant.map(|tenant| json!(tenant)).as_ref());
        desktops.push(desktop);
    }
    for (n, (tenant, uid)) in users.into_iter().enumerate() {
        let mut mobile = connect(&relay, "mobile", &token(tenant, uid)).await;
        assert_eq!(mobile.welcome["peer"], desktops[n].as_peer(), "{tenant:?} {uid}");
        mobile.send_json(json!({"type": "send", "data": n})).await;
        desktops[n].expect_json("peer").await;
        assert_eq!(desktops[n].expect_json("message").await["data"], n);
        mobile.send_close(1000, "").await;
        mobile.expect_close(1000).await;
        desktops[n].expect_json("peer").await;
    }
    for desktop in &mut desktops {
        desktop.sync().await;
    }
}

#[tokio::test]
async fn the_session_names_the_tenant() {
    let (_issuer, relay) = start().await;
    let ask = async |token: &str| {
        let bearer = format!("Bearer {token}");
        request(relay.public, "GET", "/v1/session", &[("authorization", &bearer)], b"").await.unwrap()
    };
    let _desktop = connect(&relay, "desktop", &token(Some("acme"), "ann")).await;
    let session = ask(&token(Some("acme"), "ann")).await.json();
    assert_eq!((&session["uid"], &session["tenant"]), (&json!("ann"), &json!("acme")));
    assert!(session["room"]["desktop"].is_object());
    let session = ask(&token(None, "ann")).await.json();
    assert!(session.get("tenant").is_none() && session["room"]["desktop"].is_null(), "{session}");
    for odd in [json!(7), json!(["acme"]), json!("x".repeat(129))] {
        let token = Token::firebase("ann").claim("firebase", json!({"tenant": odd})).sign();
        ask(&token).await.expect_refusal(403, "malformed_token");
    }
    for none in [json!({"tenant": null}), json!({"tenant": ""}), json!({}), json!(null)] {
        let token = Token::firebase("ann").claim("firebase", none).sign();
        assert!(ask(&token).await.json().get("tenant").is_none());
    }
}

#[tokio::test]
async fn a_token_of_another_tenant_is_another_users() {
    let (_issuer, relay) = start().await;
    let mut client = connect(&relay, "desktop", &token(Some("a"), "ann")).await;
    for other in [token(None, "ann"), token(Some("b"), "ann"), token(None, "a/ann")] {
        client.send_json(json!({"type": "auth", "token": other})).await;
        client.expect_error("wrong_user").await;
    }
    client.send_json(json!({"type": "auth", "token": token(Some("a"), "ann")})).await;
    client.expect_json("authenticated").await;
}

#[tokio::test]
async fn other_issuers_have_no_tenants() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .unset("FIREBASE_PROJECT_ID")
        .set("DUORELAY_ISSUER", "https://issuer.example/")
        .set("DUORELAY_AUDIENCE", "app")
        .start()
        .await;
    let token = Token::firebase("ann").claim("iss", "https://issuer.example/").claim("aud", "app");
    let desktop = connect(&relay, "desktop", &token.clone().sign()).await;
    let token = token.claim("firebase", json!({"tenant": "acme"})).sign();
    let mobile = connect(&relay, "mobile", &token).await;
    assert_eq!(mobile.welcome["peer"], desktop.as_peer());
    assert!(mobile.welcome.get("tenant").is_none());
}

#[tokio::test]
async fn operators_name_a_tenants_user_in_two_ways() {
    let (_issuer, relay) = start().await;
    let mut user = connect(&relay, "desktop", &token(Some("acme"), "a/b")).await;
    let mut namesake = connect(&relay, "desktop", &token(None, "acme/a/b")).await;
    let desktop_of = async |path: &str| relay.room(path).await["desktop"]["connection"].clone();
    for path in ["acme%2Fa%2Fb", "a%2Fb?tenant=acme"] {
        let room = relay.room(path).await;
        assert_eq!((&room["uid"], &room["tenant"]), (&json!("a/b"), &json!("acme")));
        assert_eq!(room["desktop"]["connection"], user.welcome["connection"], "{path}");
    }
    assert_eq!(desktop_of("acme%2Fa%2Fb?tenant=").await, namesake.welcome["connection"]);
    assert_eq!(desktop_of("a%2Fb?tenant=").await, Value::Null);

    let message = relay.operate("POST", "/v1/rooms/acme%2Fa%2Fb/messages", &json!({"data": 1})).await;
    assert_eq!(message.json(), json!({"connected": 1}));
    user.expect_json("message").await;
    let path = "/v1/rooms/a%2Fb/desktop?tenant=acme";
    assert_eq!(relay.operate("DELETE", path, &json!(null)).await.json(), json!({"disconnected": 1}));
    user.expect_close(4002).await;
    namesake.sync().await;

    for path in ["/v1/rooms/%2Fb", "/v1/rooms/a%2F", "/v1/rooms/b?tenant=a&tenant=b"] {
        assert_eq!(relay.operate("GET", path, &json!(null)).await.status, 400, "{path}");
    }
}
