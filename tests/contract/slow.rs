//! Section 6: who holds a socket without asking for anything has it for seconds only.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Config, Issuer, Relay, Token};

/// A request's head may take 10 s; some more on a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(14);

/// Sends these pieces, one a second, and waits for the end; what the relay answered, and how long it took.
async fn trickle(relay: &Relay, pieces: &[&str]) -> (String, Duration) {
    let start = Instant::now();
    let (mut from, mut to) = TcpStream::connect(relay.public).await.unwrap().into_split();
    let sending = async {
        for piece in pieces {
            // The relay may have had enough.
            if to.write_all(piece.as_bytes()).await.is_err() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let reading = async {
        // A reset is an end as well.
        let _ = from.read_to_end(&mut answer).await;
    };
    tokio::select! {
        () = sending => {}
        ended = timeout(ENDS_WITHIN, reading) => assert!(ended.is_ok(), "still open after {ENDS_WITHIN:?}: {pieces:?}"),
    }
    // HTTP/2 answers with frames.
    (String::from_utf8_lossy(&answer).into_owned(), start.elapsed())
}

#[tokio::test]
async fn sockets_that_ask_for_nothing_are_closed() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let trickled = ["X-A: a\r\n"; 30];
    let attacks: [Vec<&str>; 6] = [
        // No request at all, and one of which nobody knows whether it is HTTP/2.
        vec![],
        vec!["P"],
        vec!["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
        // A head that never ends.
        vec!["GET /ws HTTP/1.1\r\nHost: relay\r\n"],
        ["GET /ws HTTP/1.1\r\n"].into_iter().chain(trickled).collect(),
        // A body that never ends.
        vec!["POST /v1/session HTTP/1.1\r\nHost: relay\r\nContent-Length: 1000\r\n\r\nhalf"],
    ];
    let ends = join_all(attacks.iter().map(|pieces| trickle(&relay, pieces))).await;
    for ((answer, took), pieces) in ends.iter().zip(&attacks) {
        assert!(!answer.contains(" 101 "), "{pieces:?} was let in: {answer}");
        assert!(
            *took > Duration::from_secs(8) || answer.contains("HTTP/1.1 4"),
            "{pieces:?} ended after {took:?}"
        );
    }
    assert_eq!(relay.metric("duorelay_connections", &[]).await, 0.0);
    // All but the body that never ends, whose head was answered.
    assert_eq!(relay.metric("duorelay_requests_overdue_total", &[]).await, (attacks.len() - 1) as f64);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let handshake = relay.handshake().bearer(&Token::firebase("ann").sign());
    handshake.clone().header("X-Large", &"x".repeat(16 * 1024)).open().await;
    let (_, refused) = handshake.header("X-Large", &"x".repeat(33 * 1024)).send().await;
    assert_eq!(refused.status, 431);
}
