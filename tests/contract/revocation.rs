//! `DUORELAY_CHECK_REVOKED`: open sockets are cut off, and an identity service that is slow, away or silent
//! holds nothing up. `tests/auth/` does the first with Firebase's own emulator.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Client, Config, Event, Issuer, LIMIT, Relay, Token, now, within};

/// A relay that asks `issuer` about its users, each second while a socket is open.
async fn checking(issuer: &Issuer) -> Relay {
    Config::new(issuer)
        .unset("DUORELAY_JWKS_URL")
        .set("FIREBASE_AUTH_EMULATOR_HOST", issuer.host())
        .set("DUORELAY_CHECK_REVOKED", "true")
        .set("DUORELAY_REVOCATION_SECONDS", 1)
        .set("DUORELAY_MESSAGES_PER_SECOND", 0)
        .set("DUORELAY_BYTES_PER_SECOND", 0)
        .start()
        .await
}

fn token(uid: &str) -> String {
    Token::firebase(uid).without_header("kid").unsigned()
}

async fn v1(relay: &Relay, uid: &str, device: &str) -> Client {
    relay.handshake().device(device).offer(&["duorelay.v1"]).bearer(&token(uid)).open_v1().await
}

#[tokio::test]
async fn an_open_session_that_is_revoked_or_whose_user_is_disabled_is_cut_off() {
    let issuer = Issuer::start();
    for account in [json!({"disabled": true}), json!({"validSince": now().to_string()})] {
        issuer.account(json!({}));
        let relay = checking(&issuer).await;
        let mut client = v1(&relay, "ann", "desktop").await;
        client.sync().await;
        let changed = Instant::now();
        issuer.account(account.clone());
        client.expect_close(4003).await;
        client.expect_end().await;
        assert!(changed.elapsed() < Duration::from_secs(5), "{account}: after {:?}", changed.elapsed());
        assert!(relay.room("ann").await["desktop"].is_null());
    }
}

#[tokio::test]
async fn a_silent_identity_service_holds_nothing_up() {
    let issuer = Issuer::start();
    let relay = checking(&issuer).await;
    let mut desktop = v1(&relay, "ann", "desktop").await;
    let mut mobile = v1(&relay, "ann", "mobile").await;
    desktop.expect_json("peer").await;

    let asked = issuer.lookups();
    issuer.delay(Duration::from_secs(3600));
    // More handshakes than lookups that may be under way at once: none waits longer for it.
    let refused = join_all((0..100).map(|n| {
        let handshake = relay.handshake().bearer(&token(&format!("user-{n}")));
        async move {
            let begin = Instant::now();
            handshake.refused().await.expect_refusal(503, "keys_unavailable");
            begin.elapsed()
        }
    }));
    // Meanwhile both sockets go on, through several checks that get no answer.
    let traffic = async {
        let begin = Instant::now();
        let (mut slowest, mut frames) = (Duration::ZERO, 0_u32);
        while begin.elapsed() < Duration::from_secs(7) {
            let sent = Instant::now();
            mobile.send_frame(0x80, &frames.to_be_bytes()).await;
            assert_eq!(desktop.expect_binary().await[1..], frames.to_be_bytes());
            desktop.sync().await;
            slowest = slowest.max(sent.elapsed());
            frames += 1;
            assert_eq!(relay.get("/healthz/ready").await.status, 200);
        }
        slowest
    };
    let (refused, slowest) = tokio::join!(refused, traffic);
    let longest = refused.into_iter().max().unwrap();
    assert!(longest < Duration::from_secs(5), "a handshake waited {longest:?}");
    // What waited for the service would take 3 s.
    assert!(slowest < Duration::from_secs(2), "a frame and a pong took {slowest:?}");
    assert!(issuer.lookups() > asked + 2, "nobody was asked");

    // The service is back: new sessions begin, and the old ones are checked again.
    issuer.delay(Duration::ZERO);
    let bob = relay.handshake().bearer(&token("bob"));
    let again = async { while bob.send().await.1.status != 101 {} };
    within(LIMIT, "a handshake that is accepted again", again).await;
    issuer.account(json!({"disabled": true}));
    // Whose turn comes second hears first that the other one has gone.
    let is_notified = |event: &Event| matches!(event, Event::Text(text) if text.contains("disconnected"));
    for client in [&mut desktop, &mut mobile] {
        let mut event = client.next().await;
        if is_notified(&event) {
            event = client.next().await;
        }
        assert!(matches!(event, Event::Close(4003, _)), "{event:?}");
    }
}
