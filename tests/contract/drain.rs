//! Sections 3, 4.3 and 5: how an instance and a socket come to their end.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::{Client, Config, Issuer, RawClient, Relay, Token, request};

async fn start(delay: u32, drain: u32) -> (Issuer, Relay) {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_DRAIN_DELAY_SECONDS", delay)
        .set("DUORELAY_DRAIN_SECONDS", drain)
        .start()
        .await;
    (issuer, relay)
}

async fn status(relay: &Relay, path: &str) -> [u16; 2] {
    let mut statuses = [0; 2];
    for (status, address) in statuses.iter_mut().zip([relay.public, relay.admin]) {
        *status = request(address, "GET", path, &[], b"").await.unwrap().status;
    }
    statuses
}

async fn wait_for_status(relay: &Relay, path: &str, expected: u16, limit: Duration) {
    let deadline = Instant::now() + limit;
    while status(relay, path).await != [expected; 2] {
        assert!(Instant::now() < deadline, "{path} is not {expected} after {limit:?}");
    }
}

#[tokio::test]
async fn health_is_answered_on_both_ports_under_both_names() {
    let (_issuer, relay) = start(1, 1).await;
    for path in ["/healthz/live", "/healthz/ready", "/liveness_check", "/readiness_check"] {
        assert_eq!(status(&relay, path).await, [200; 2], "{path}");
    }
}

#[tokio::test]
async fn a_drain_first_turns_unready_then_refuses_then_asks_everyone_to_reconnect() {
    let (_issuer, mut relay) = start(3, 2).await;
    let mut v1 = relay.v1_desktop("ann").await;
    let mut classic = relay.classic_desktop("bob").await;
    relay.signal("TERM");
    let signalled = Instant::now();

    wait_for_status(&relay, "/healthz/ready", 503, Duration::from_secs(1)).await;
    assert_eq!(status(&relay, "/readiness_check").await, [503; 2]);
    assert_eq!(status(&relay, "/healthz/live").await, [200; 2]);

    // During the delay handshakes are let in: balancers need it to notice.
    let mut late = relay.v1_desktop("carl").await;
    assert!(signalled.elapsed() < Duration::from_secs(3));
    v1.sync().await;

    let mut deadlines = Vec::new();
    for client in [&mut v1, &mut late] {
        let reconnect = client.expect_json("reconnect").await;
        let asked = Instant::now();
        assert!(signalled.elapsed() > Duration::from_millis(2900), "asked before the delay was over");
        assert_eq!(reconnect["reason"], "draining");
        let (due, deadline) =
            (reconnect["in_ms"].as_u64().unwrap(), reconnect["deadline_ms"].as_u64().unwrap());
        assert!(due <= deadline && deadline <= 2000, "{reconnect}");
        deadlines.push(asked + Duration::from_millis(deadline));
    }
    // After the delay handshakes are refused, and so is the session.
    let token = Token::firebase("dora").sign();
    relay.handshake().bearer(&token).refused().await.expect_refusal(503, "draining");
    let bearer = format!("Bearer {token}");
    let session =
        request(relay.public, "GET", "/v1/session", &[("authorization", &bearer)], b"").await.unwrap();
    session.expect_refusal(503, "draining");

    // Until their deadline the sockets work; then they are closed, classic ones without warning.
    v1.sync().await;
    for (client, deadline) in [&mut v1, &mut late].into_iter().zip(deadlines) {
        client.expect_close(1012).await;
        let early = deadline.saturating_duration_since(Instant::now());
        assert!(early < Duration::from_millis(300), "closed {early:?} before its deadline");
    }
    classic.expect_close(1012).await;

    let exit = relay.exit(Duration::from_secs(4)).await;
    assert_eq!(exit.code(), Some(0));
    assert!(signalled.elapsed() < Duration::from_millis(7500), "{:?}", signalled.elapsed());
}

#[tokio::test]
async fn whoever_waits_in_the_kernels_queue_when_a_drain_begins_is_answered() {
    let issuer = Issuer::start();
    let mut relay = Config::new(&issuer)
        .set("DUORELAY_WORKERS", 3)
        .set("DUORELAY_DRAIN_DELAY_SECONDS", 1)
        .set("DUORELAY_DRAIN_SECONDS", 1)
        .start()
        .await;
    // While the process stands still, the kernel accepts for it.
    relay.signal("STOP");
    let mut queued = Vec::new();
    for n in 0..60 {
        let token = Token::firebase(&format!("user-{n}")).sign();
        let handshake = relay.handshake().offer(&["duorelay.v1", &token]);
        let mut stream = TcpStream::connect(relay.public).await.unwrap();
        stream.write_all(handshake.head().as_bytes()).await.unwrap();
        queued.push(stream);
    }
    relay.signal("TERM");
    relay.signal("CONT");
    let mut clients = Vec::new();
    for stream in queued {
        let (response, client) = RawClient::after_handshake(stream).await;
        assert_eq!(response.status, 101);
        clients.push(client);
    }
    for client in &mut clients {
        client.expect_json("welcome").await;
        client.expect_json("reconnect").await;
        client.expect_close(1012).await;
    }
    assert_eq!(relay.exit(Duration::from_secs(5)).await.code(), Some(0));
}

#[tokio::test]
async fn due_times_are_spread_over_the_drain_time() {
    let (_issuer, mut relay) = start(0, 4).await;
    let mut clients = Vec::new();
    for n in 0..20 {
        clients.push(relay.v1_desktop(&format!("user-{n}")).await);
    }
    let signalled = Instant::now();
    relay.signal("TERM");
    let mut due = Vec::new();
    for client in &mut clients {
        let reconnect = client.expect_json("reconnect").await;
        // However the message itself is timed, the moment to come back is what is spread.
        let at = signalled.elapsed() + Duration::from_millis(reconnect["in_ms"].as_u64().unwrap());
        assert!(reconnect["in_ms"].as_u64() <= reconnect["deadline_ms"].as_u64());
        due.push(at.as_secs_f64());
    }
    due.sort_by(f64::total_cmp);
    assert!(due[0] < 1.5 && due[19] > 2.5 && due[19] < 4.5, "{due:?}");
    let largest_gap = due.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    assert!(largest_gap < 1.2, "not even: {due:?}");
    drop(clients);
    assert_eq!(relay.exit(Duration::from_secs(3)).await.code(), Some(0));
}

#[tokio::test]
async fn the_process_ends_as_soon_as_nobody_is_left() {
    let (_issuer, mut relay) = start(0, 30).await;
    let mut client = relay.v1_desktop("ann").await;
    relay.signal("TERM");
    client.expect_json("reconnect").await;
    let signalled = Instant::now();
    client.send_close(1000, "").await;
    client.expect_close(1000).await;
    assert_eq!(relay.exit(Duration::from_secs(5)).await.code(), Some(0));
    assert!(signalled.elapsed() < Duration::from_secs(3), "{:?}", signalled.elapsed());
}

#[tokio::test]
async fn an_idle_relay_ends_after_its_delay() {
    let (_issuer, mut relay) = start(1, 30).await;
    relay.signal("TERM");
    let signalled = Instant::now();
    assert_eq!(relay.exit(Duration::from_secs(5)).await.code(), Some(0));
    assert!(signalled.elapsed() < Duration::from_millis(3500), "{:?}", signalled.elapsed());
}

#[tokio::test]
async fn interrupt_drains_too() {
    let (_issuer, mut relay) = start(0, 1).await;
    let mut client = relay.v1_desktop("ann").await;
    relay.signal("INT");
    client.expect_json("reconnect").await;
    client.expect_close(1012).await;
    assert_eq!(relay.exit(Duration::from_secs(5)).await.code(), Some(0));
}

#[tokio::test]
async fn a_hang_up_drains_like_a_termination() {
    let (_issuer, mut relay) = start(3, 1).await;
    let mut client = relay.v1_desktop("ann").await;
    relay.signal("HUP");
    wait_for_status(&relay, "/healthz/ready", 503, Duration::from_secs(1)).await;
    // The delay holds as well: only an interrupt skips it.
    let mut late = relay.v1_desktop("bob").await;
    for client in [&mut client, &mut late] {
        assert_eq!(client.expect_json("reconnect").await["reason"], "draining");
        client.expect_close(1012).await;
    }
    assert_eq!(relay.exit(Duration::from_secs(5)).await.code(), Some(0));
}

#[tokio::test]
async fn a_client_that_moves_to_another_socket_within_the_delay_is_not_asked_twice() {
    let (_issuer, mut relay) = start(0, 2).await;
    let mut client = relay.v1_desktop("ann").await;
    relay.signal("TERM");
    client.expect_json("reconnect").await;
    // Next comes the close, not a second request.
    client.expect_close(1012).await;
    assert_eq!(relay.exit(Duration::from_secs(5)).await.code(), Some(0));
}

#[tokio::test]
async fn a_stalled_client_does_not_hold_up_the_end() {
    let (_issuer, mut relay) = start(0, 1).await;
    let token = Token::firebase("ann").sign();
    let mut stalled = relay.handshake().offer(&["duorelay.v1", &token]).receive_buffer(4096).open_raw().await;
    stalled.expect_json("welcome").await;
    let mut mobile = relay.v1_mobile("ann").await;
    for n in 0..240_u32 {
        mobile.send_frame((n % 100) as u8, &[0x55; 16_000]).await;
    }
    relay.signal("TERM");
    let signalled = Instant::now();
    assert_eq!(relay.exit(Duration::from_secs(6)).await.code(), Some(0));
    // Its close alone would be tried for 5 s.
    assert!(signalled.elapsed() < Duration::from_millis(4500), "{:?}", signalled.elapsed());
}

async fn expect_lifetime(client: &mut Client) {
    let reconnect = client.expect_json("reconnect").await;
    let signalled = Instant::now();
    assert_eq!(reconnect["reason"], "lifetime");
    let (due, deadline) = (reconnect["in_ms"].as_u64().unwrap(), reconnect["deadline_ms"].as_u64().unwrap());
    assert!(due <= deadline && deadline > 0, "{reconnect}");
    client.sync().await;
    let deadline = Duration::from_millis(deadline);
    client.expect_close_within(deadline + Duration::from_secs(2), 1012).await;
    let took = signalled.elapsed();
    assert!(
        took + Duration::from_millis(300) > deadline,
        "closed after {took:?}, announced for {deadline:?}"
    );
}

#[tokio::test]
async fn a_socket_is_asked_to_reconnect_at_the_end_of_its_lifetime() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer)
        .set("DUORELAY_MAX_LIFETIME_SECONDS", 2)
        .set("DUORELAY_DRAIN_SECONDS", 2)
        .start()
        .await;
    let mut v1 = relay.v1_desktop("ann").await;
    let mut classic = relay.classic_mobile("bob").await;
    expect_lifetime(&mut v1).await;
    // Classic: closed without warning.
    classic.expect_close(1012).await;
    assert_eq!(relay.get("/healthz/ready").await.status, 200);
    relay.v1_desktop("ann").await;
}

#[tokio::test]
async fn make_before_break_at_the_end_of_a_lifetime() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MAX_LIFETIME_SECONDS", 2).start().await;
    let tab = relay.handshake().offer(&["duorelay.v1", &Token::firebase("ann").sign()]).client("tab");
    let mut old = tab.open_v1().await;
    old.expect_json("reconnect").await;
    let new = tab.open_v1().await;
    let by = old.expect_json("overwritten").await["by"].clone();
    assert_eq!(
        (&by["connection"], &by["same_client"]),
        (&new.welcome["connection"], &serde_json::json!(true))
    );
    old.expect_close(4001).await;
}

#[tokio::test]
async fn no_lifetime_is_no_limit() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MAX_LIFETIME_SECONDS", 0).start().await;
    let mut client = relay.v1_desktop("ann").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    client.sync().await;
}
