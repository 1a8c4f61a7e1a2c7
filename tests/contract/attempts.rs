//! Section 2: `?attempt=`, by which a handshake that was given up does not throw out its successor.

use serde_json::{Value, json};

use crate::support::{
    Client, Config, Handshake, Issuer, LIMIT, RedisServer, Relay, Response, Token, request, within,
};

fn tab(relay: &Relay, attempt: u64) -> Handshake {
    desktop(relay).client("tab").query(&format!("attempt={attempt}"))
}

fn desktop(relay: &Relay) -> Handshake {
    relay.handshake().offer(&["duorelay.v1", &Token::firebase("ann").sign()])
}

async fn session(relay: &Relay, query: &str) -> Response {
    let bearer = format!("Bearer {}", Token::firebase("ann").sign());
    let path = format!("/v1/session?{query}");
    request(relay.public, "GET", &path, &[("authorization", &bearer)], b"").await.unwrap()
}

fn expect_superseded(response: &Response, by: u64) {
    response.expect_refusal(409, "superseded");
    assert_eq!(response.json()["attempt"], by, "{response:?}");
    assert_eq!(response.header("retry-after"), None);
}

async fn expect_overwritten(old: &mut Client, by: &Client) {
    assert_eq!(old.expect_json("overwritten").await["by"]["connection"], by.id());
    old.expect_close(4001).await;
}

#[tokio::test]
async fn a_lower_attempt_of_the_same_client_changes_nothing() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let mut second = tab(&relay, 20).open_v1().await;
    for late in [0, 1, 19] {
        expect_superseded(&tab(&relay, late).refused().await, 20);
        expect_superseded(&session(&relay, &format!("client=tab&attempt={late}")).await, 20);
    }
    second.sync().await;
    assert_eq!(relay.room("ann").await["desktop"]["connection"], second.id());
    assert_eq!(relay.metric("duorelay_handshakes_total", &[r#"result="superseded""#]).await, 3.0);
    assert_eq!(relay.metric("duorelay_overwritten_total", &[]).await, 0.0);

    // Balancers repeat a handshake: an equal number passes, and so does a higher one, and none at all.
    let mut again = tab(&relay, 20).open_v1().await;
    expect_overwritten(&mut second, &again).await;
    let mut third = tab(&relay, 9_007_199_254_740_991).open_v1().await;
    expect_overwritten(&mut again, &third).await;
    let mut uncounted = desktop(&relay).client("tab").open_v1().await;
    expect_overwritten(&mut third, &uncounted).await;
    let mut counted = tab(&relay, 5).open_v1().await;
    expect_overwritten(&mut uncounted, &counted).await;
    // Another client's numbers mean nothing, and each slot has its own.
    let mobile = tab(&relay, 1).device("mobile").open_v1().await;
    assert_eq!(mobile.welcome["peer"], counted.as_peer());
    counted.expect_json("peer").await;
    let mut other = desktop(&relay).client("other").query("attempt=1").open_v1().await;
    expect_overwritten(&mut counted, &other).await;
    // Once it has left, a lower number is as good as any.
    other.send_close(1000, "").await;
    other.expect_close(1000).await;
    while relay.room("ann").await["desktop"] != Value::Null {}
    desktop(&relay).client("other").query("attempt=0").open_v1().await;
}

#[tokio::test]
async fn the_session_answers_for_the_slot_that_is_asked_for() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let _holder = tab(&relay, 20).open_v1().await;
    expect_superseded(&session(&relay, "device=desktop&client=tab&attempt=3").await, 20);
    for query in [
        "device=mobile&client=tab&attempt=3",
        "device=desktop&client=tab&attempt=20",
        "device=desktop&client=tab&attempt=21",
        "device=desktop&client=tab",
        "device=desktop&client=other&attempt=3",
        "",
    ] {
        assert_eq!(session(&relay, query).await.status, 200, "{query}");
    }
}

#[tokio::test]
async fn an_attempt_that_comes_late_at_another_instance_is_refused() {
    let (issuer, redis) = (Issuer::start(), RedisServer::start().await);
    let config = Config::new(&issuer).set("REDIS_URL", redis.url());
    let (a, b) = (config.start().await, config.start().await);
    let _warm = a.v1_mobile("ann").await;
    // The first attempt is on its way to an instance that stands still; its client gives up and goes elsewhere.
    a.signal("STOP");
    let first = tab(&a, 1);
    let late = tokio::spawn(async move { first.refused().await });
    let mut second = tab(&b, 2).open_v1().await;
    a.signal("CONT");
    expect_superseded(&within(LIMIT, "the late answer", late).await.unwrap(), 2);
    expect_superseded(&session(&a, "client=tab&attempt=1").await, 2);
    second.sync().await;
    assert_eq!(b.room("ann").await["desktop"]["connection"], second.id());
}

#[tokio::test]
async fn no_claim_is_made_for_a_client_that_has_gone() {
    let (issuer, redis) = (Issuer::start(), RedisServer::start().await);
    let config = Config::new(&issuer).set("REDIS_URL", redis.url()).set("DUORELAY_WORKERS", 1);
    let (a, b) = (config.start().await, config.start().await);
    let mut phone = a.v1_mobile("ann").await;
    a.signal("STOP");
    // Ten that come and go, and count nothing: each would throw out whoever holds the slot.
    let gone = desktop(&a).client("tab");
    for _ in 0..10 {
        gone.send_and_leave().await;
    }
    let mut second = desktop(&b).client("tab").open_v1().await;
    a.signal("CONT");
    // Whatever the instance still does for them stands before what it does for this one.
    let token = Token::firebase("bob").sign();
    let _bob = within(LIMIT, "the next handshake", a.handshake().bearer(&token).open()).await;
    second.sync().await;
    assert_eq!(phone.expect_json("peer").await["connection"], second.id());
    phone.sync().await;
    let claimed = a.metric("duorelay_claims_total", &[r#"result="claimed""#]).await;
    assert_eq!(claimed, 2.0, "the phone's and the other user's");
}

#[tokio::test]
async fn what_a_balancer_steers_by_means_nothing_to_the_relay() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    for affinity in ["affinity=38390dbb", "affinity=", "affinity=%20%2F", "affinity=a&affinity=b"] {
        let client = desktop(&relay).query(affinity).open_v1().await;
        assert_eq!(client.welcome["uid"], json!("ann"));
    }
}
