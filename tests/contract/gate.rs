//! Section 2: how many may come, and which address each of them has.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::handshake::token;
use crate::support::{Config, Issuer, Relay, Token};

#[tokio::test]
async fn a_full_relay_refuses_until_a_connection_ends() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MAX_CONNECTIONS", 2).start().await;
    let mut first = relay.v1_desktop("ann").await;
    let _second = relay.v1_desktop("bob").await;
    let third = relay.handshake().bearer(&Token::firebase("carl").sign());
    third.refused().await.expect_refusal(503, "full");
    assert_eq!(relay.metric("duorelay_handshakes_total", &[r#"result="full""#]).await, 1.0);
    assert_eq!(relay.metric("duorelay_connections", &[]).await, 2.0);
    assert_eq!(relay.metric("duorelay_max_connections", &[]).await, 2.0);

    first.send_close(1000, "").await;
    first.expect_close(1000).await;
    first.expect_end().await;
    // The place is free when the relay has put the connection away, just after its close.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while third.send().await.1.status != 101 {
        assert!(tokio::time::Instant::now() < deadline, "the place was not freed");
    }
}

#[tokio::test]
async fn too_many_handshakes_from_one_address_are_refused_for_a_while() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", 2).start().await;
    // With a good token five times as many come in; each is another user's, since evictions have a limit too.
    let handshake = relay.handshake().bearer(&token());
    let mut refusal = None;
    for n in 0..50 {
        let of_user = relay.handshake().bearer(&Token::firebase(&format!("user-{n}")).sign());
        let (_, response) = of_user.send().await;
        if response.status != 101 {
            assert!(n >= 10, "only {n} came in");
            refusal = Some(response);
            break;
        }
    }
    let refusal = refusal.expect("fifty handshakes at once were let in");
    refusal.expect_refusal(429, "too_many_attempts");
    // Refused before anything else is looked at.
    let without_token = relay.handshake().refused().await;
    without_token.expect_refusal(429, "too_many_attempts");
    assert_eq!(relay.metric("duorelay_handshakes_total", &[r#"result="too_many_attempts""#]).await, 2.0);

    let other_address = handshake.clone().from(Ipv4Addr::new(127, 0, 0, 2).into());
    assert_eq!(other_address.send().await.1.status, 101, "each address has its own limit");

    let wait = refusal.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&wait), "Retry-After: {wait}");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(handshake.send().await.1.status, 101, "Retry-After was enough");
}

#[tokio::test]
async fn handshakes_are_counted_for_the_client_behind_trusted_proxies() {
    let issuer = Issuer::start();
    let config = Config::new(&issuer).set("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", 1);
    let proxied = config.clone().set("DUORELAY_TRUSTED_PROXIES", "127.0.0.0/8,10.0.0.0/8").start().await;
    // A refused handshake spends the setting itself.
    let token = Token::firebase("ann").expires_in(-5).sign();
    let from = |relay: &Relay, forwarded: &str| {
        relay.handshake().bearer(&token).header("X-Forwarded-For", forwarded)
    };

    // The rightmost address that is not a trusted proxy is the client; what stands left of it is its own claim.
    assert_eq!(from(&proxied, "203.0.113.1, 10.1.2.3").send().await.1.status, 403);
    assert_eq!(from(&proxied, "203.0.113.2").send().await.1.status, 403);
    assert_eq!(from(&proxied, "198.51.100.9, 203.0.113.3").send().await.1.status, 403);
    for _ in 0..2 {
        let again = from(&proxied, "192.0.2.77, 203.0.113.3, 10.9.9.9").send().await.1;
        if again.status != 403 {
            again.expect_refusal(429, "too_many_attempts");
        }
    }
    let again = from(&proxied, "192.0.2.78, 203.0.113.3").refused().await;
    again.expect_refusal(429, "too_many_attempts");
    assert!(proxied.metric("duorelay_handshakes_total", &[r#"result="too_many_attempts""#]).await >= 1.0);

    // Nobody is believed by default.
    let direct = config.start().await;
    let mut statuses = Vec::new();
    for last in 1..=5 {
        statuses.push(from(&direct, &format!("203.0.113.{last}")).send().await.1.status);
    }
    assert!(statuses.contains(&429), "{statuses:?}");
}

#[tokio::test]
async fn a_proxy_that_repeats_the_header_is_read_as_one_list() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", 1)
        .set("DUORELAY_TRUSTED_PROXIES", "127.0.0.1/32")
        .start()
        .await;
    let token = Token::firebase("ann").expires_in(-5).sign();
    // RFC 9110, section 5.3: field lines of one name are one list, in their order.
    let statuses: Vec<u16> = {
        let mut statuses = Vec::new();
        for forged in 1..=4 {
            let handshake = relay
                .handshake()
                .bearer(&token)
                .header("X-Forwarded-For", &format!("198.51.100.{forged}"))
                .header("X-Forwarded-For", "203.0.113.7");
            statuses.push(handshake.send().await.1.status);
        }
        statuses
    };
    assert!(statuses.contains(&429), "a forged first line changed the address: {statuses:?}");
}
