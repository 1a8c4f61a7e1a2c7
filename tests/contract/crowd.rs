//! Section 2: many people behind one address, all of whom come back at once.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::{
    Client, Config, Event, Handshake, Issuer, LIMIT, RedisServer, Relay, Token, request, within,
};

fn of_user(relay: &Relay, n: usize) -> Handshake {
    let token = Token::firebase(&format!("user-{n}")).sign();
    relay.handshake().offer(&["duorelay.v1"]).bearer(&token)
}

/// A client that does what a refusal says, and nothing clever.
async fn persistent(handshake: &Handshake) -> Client {
    loop {
        match handshake.try_open().await {
            Ok(Ok(mut client)) => {
                client.welcome = client.expect_json_within(LIMIT * 3, "welcome").await;
                return client;
            }
            Ok(Err(refused)) => {
                assert!(matches!(refused.status, 429 | 503), "{refused:?}");
                let wait = refused.header("retry-after").expect("Retry-After").parse().unwrap();
                assert!((1..=15).contains(&wait), "{refused:?}");
                sleep(Duration::from_secs(wait)).await;
            }
            Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
}

#[tokio::test]
async fn three_hundred_behind_one_address_are_all_back_within_thirty_seconds() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .unset("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP")
        .set("DUORELAY_WORKERS", 2)
        .start()
        .await;
    let begun = Instant::now();
    let handshakes: Vec<Handshake> = (0..300).map(|n| of_user(&relay, n)).collect();
    let clients =
        within(Duration::from_secs(30), "all 300", join_all(handshakes.iter().map(persistent))).await;
    println!("300 were in after {:?}", begun.elapsed());
    assert_eq!(relay.metric("duorelay_connections", &[]).await, 300.0);
    drop(clients);
}

/// Moves when it is asked to, as a library does: the next connection first.
async fn movable(mut old: Client, next: Handshake) -> Client {
    let reconnect = loop {
        match old.next_within(LIMIT * 6).await {
            Event::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                if message["type"] == "reconnect" {
                    break message;
                }
            }
            other => panic!("{other:?}"),
        }
    };
    let asked = Instant::now();
    let ms = |field: &str| Duration::from_millis(reconnect[field].as_u64().unwrap());
    sleep_until(asked + ms("in_ms")).await;
    let next = persistent(&next).await;
    assert!(asked.elapsed() < ms("deadline_ms"), "cut off: {:?} after it was asked", asked.elapsed());
    // The old socket is overwritten by the new one, and not cut.
    while let Event::Text(text) = old.next().await {
        assert!(!text.contains("\"error\""), "{text}");
    }
    next
}

#[tokio::test]
async fn a_drain_of_six_hundred_behind_one_address_cuts_nobody() {
    let (issuer, redis) = (Issuer::start(), RedisServer::start().await);
    let config = Config::new(&issuer).set("REDIS_URL", redis.url()).set("DUORELAY_WORKERS", 2);
    let leaving = config.clone().set("DUORELAY_DRAIN_DELAY_SECONDS", 0).start().await;
    let staying = config.unset("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP").start().await;
    let client_of = |relay: &Relay, n: usize| of_user(relay, n).client("phone");
    let mut olds = Vec::new();
    for n in 0..600 {
        olds.push(client_of(&leaving, n).open_v1().await);
    }
    leaving.signal("TERM");
    let moving = olds.into_iter().enumerate().map(|(n, old)| movable(old, client_of(&staying, n)));
    let news = within(Duration::from_secs(40), "all 600", join_all(moving)).await;
    assert_eq!(staying.metric("duorelay_connections", &[]).await, 600.0);
    assert_eq!(staying.metric("duorelay_handshakes_total", &[r#"result="too_many_attempts""#]).await, 0.0);
    drop(news);
}

#[tokio::test]
async fn refused_handshakes_spend_the_setting_and_good_ones_a_fifth_of_it() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", 3).start().await;
    let expired = relay.handshake().bearer(&Token::firebase("ann").expires_in(-5).sign());
    for _ in 0..3 {
        expired.refused().await.expect_refusal(403, "token_expired");
    }
    expired.refused().await.expect_refusal(429, "too_many_attempts");
    of_user(&relay, 1).refused().await.expect_refusal(429, "too_many_attempts");
    let other = |n: usize| of_user(&relay, n).from([127, 0, 0, 9].into());
    for n in 0..15 {
        assert_eq!(other(n).send().await.1.status, 101, "{n}");
    }
}

#[tokio::test]
async fn the_session_has_a_limit_of_its_own() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", 3).start().await;
    let bearer = format!("Bearer {}", Token::firebase("ann").sign());
    let ask = async || {
        request(relay.public, "GET", "/v1/session", &[("authorization", &bearer)], b"").await.unwrap()
    };
    let mut asked = 0;
    let refused = loop {
        let answer = ask().await;
        if answer.status != 200 {
            break answer;
        }
        asked += 1;
        assert!(asked < 100, "no limit");
    };
    assert!(asked >= 3, "{asked}");
    refused.expect_refusal(429, "too_many_attempts");
    assert!(refused.header("retry-after").is_some());
    // It has spent no handshake.
    of_user(&relay, 1).open_v1().await;

    // An address that has no handshake left hears of it here as well.
    let relay = Config::new(&issuer).set("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", 1).start().await;
    relay.handshake().refused().await.expect_refusal(400, "missing_token");
    let answer =
        request(relay.public, "GET", "/v1/session", &[("authorization", &bearer)], b"").await.unwrap();
    answer.expect_refusal(429, "too_many_attempts");
}

#[tokio::test]
async fn a_balancer_that_is_missing_among_the_trusted_ones_is_noticed() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", 20)
        .set("DUORELAY_TRUSTED_PROXIES", "127.0.0.0/8,169.254.0.0/16")
        .start()
        .await;
    // App Engine's form: the client, the forwarding rule's own address, the last hop.
    for n in 0..60 {
        let forwarded = format!("203.0.113.{n}, 34.120.1.2, 169.254.1.1");
        of_user(&relay, n).header("X-Forwarded-For", &forwarded).send().await;
    }
    let log = relay.log();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("DUORELAY_TRUSTED_PROXIES")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("34.120.1.2") && warnings[0].contains("WARN"), "{}", warnings[0]);
}

#[tokio::test]
async fn an_instance_is_ready_once_the_issuers_keys_were_fetched() {
    let issuer = Issuer::start();
    issuer.status(500);
    let relay = Config::new(&issuer).start_until("/healthz/live").await;
    while issuer.fetches() == 0 {
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(relay.get("/healthz/ready").await.status, 503);
    assert_eq!(relay.get("/readiness_check").await.status, 503);
    issuer.status(200);
    let ready = async {
        while relay.get("/healthz/ready").await.status != 200 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within(LIMIT, "ready", ready).await;
    relay.v1_desktop("ann").await;
    // Once they were there, old ones do.
    issuer.status(500);
    assert_eq!(relay.get("/healthz/ready").await.status, 200);

    // The emulator has no keys to fetch.
    let emulator = Config::new(&issuer)
        .unset("DUORELAY_JWKS_URL")
        .set("FIREBASE_AUTH_EMULATOR_HOST", issuer.host())
        .start()
        .await;
    assert_eq!(emulator.get("/healthz/ready").await.status, 200);
}
