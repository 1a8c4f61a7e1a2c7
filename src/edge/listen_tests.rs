//! Real sockets on loopback, with times of a fraction of a second.

use std::net::IpAddr;

use axum::routing::{get, post};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::*;

const MS: Duration = Duration::from_millis(1);
const LIMITS: Limits = Limits {
    places: 16,
    answer: Duration::from_millis(400),
    idle: Duration::from_millis(1200),
    last: Duration::from_millis(200),
};

/// A server of its own, and what it counts.
async fn start(limits: Limits) -> (SocketAddr, Arc<Metrics>) {
    let router = Router::new()
        .route("/healthz/live", get(async || "live"))
        .route("/large", get(async || vec![b'x'; 16 << 20]))
        .route("/body", post(async |body: String| body));
    let listener = TcpListener::from_std(bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let (gate, metrics) = (Gate::new(None, None, vec![], None), Arc::new(Metrics::default()));
    tokio::spawn(serve(Port::within(limits, gate, Arc::clone(&metrics)), listener, router));
    (address, metrics)
}

async fn connect(to: SocketAddr, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.bind(SocketAddr::new(IpAddr::from(from), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// Reads until the end; a reset is one as well.
async fn end(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// Writes these pieces, one in 30 ms, and after the last one that one again; how long the server looks on.
async fn lasts(to: SocketAddr, pieces: &[&[u8]], reads: bool) -> Duration {
    let begin = Instant::now();
    let (mut from, mut into) = connect(to, [127, 0, 0, 1]).await.into_split();
    let writing = async {
        for piece in pieces.iter().chain(std::iter::repeat(pieces.last().unwrap())) {
            tokio::time::sleep(30 * MS).await;
            if into.write_all(piece).await.is_err() {
                break;
            }
        }
    };
    let reading = async {
        if reads {
            let _ = from.read_to_end(&mut Vec::new()).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    timeout(Duration::from_secs(10), async {
        tokio::select! { () = writing => {}, () = reading => {} }
    })
    .await
    .unwrap();
    begin.elapsed()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0pingping";
/// `GET http://x/` with HPACK's static table (RFC 7541, appendix A).
const GET_ROOT: &[u8] = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x01\x01x";

#[tokio::test]
async fn a_client_that_asks_for_nothing_or_takes_no_answer_ends_in_time() {
    let (to, metrics) = start(LIMITS).await;
    let table: [(&[&[u8]], bool, Duration, HttpEnded); 8] = [
        (&[b""], true, LIMITS.answer, HttpEnded::Overdue),
        (&[b"P", b""], true, LIMITS.answer, HttpEnded::Overdue),
        (&[b"GET / HTTP/1.1\r\nHost: x\r\n", b"A: a\r\n"], true, LIMITS.answer, HttpEnded::Overdue),
        (&[PREFACE, PING], true, LIMITS.answer, HttpEnded::Overdue),
        (
            &[b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n", b"a"],
            true,
            LIMITS.answer,
            HttpEnded::Untaken,
        ),
        (&[b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n", b""], false, LIMITS.answer, HttpEnded::Untaken),
        (&[b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b""], true, LIMITS.idle, HttpEnded::Idle),
        (&[PREFACE, GET_ROOT, PING], true, LIMITS.idle, HttpEnded::Idle),
    ];
    for (pieces, reads, limit, ended) in table {
        let before = metrics.http_closed(ended);
        let lasted = if reads {
            lasts(to, pieces, true).await
        } else {
            // Only the metric shows it: this client reads nothing, not even the end.
            let begin = Instant::now();
            let mut stream = connect(to, [127, 0, 0, 1]).await;
            stream.write_all(pieces.concat().as_slice()).await.unwrap();
            while metrics.http_closed(ended) == before {
                tokio::time::sleep(10 * MS).await;
                assert!(begin.elapsed() < Duration::from_secs(10));
            }
            begin.elapsed()
        };
        assert!(lasted >= limit - 50 * MS && lasted < limit + 2000 * MS, "{ended:?} after {lasted:?}");
        assert_eq!(
            metrics.http_closed(ended),
            before + 1,
            "{ended:?}, {:?}",
            String::from_utf8_lossy(&pieces.concat())
        );
    }
}

#[tokio::test]
async fn a_client_that_takes_its_answer_slowly_gets_all_of_it() {
    let (to, _) = start(LIMITS).await;
    let mut stream = connect(to, [127, 0, 0, 1]).await;
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let begin = Instant::now();
    let (mut read, mut piece) = (0, vec![0; 1 << 20]);
    while begin.elapsed() < 3 * LIMITS.answer {
        read += stream.read(&mut piece[..4096]).await.unwrap();
        tokio::time::sleep(20 * MS).await;
    }
    while read < 16 << 20 {
        let more = stream.read(&mut piece).await.unwrap();
        assert!(more > 0, "cut off after {read} bytes");
        read += more;
    }
}

#[tokio::test]
async fn health_checks_are_answered_while_an_address_holds_all_that_it_can() {
    // Times that end nobody: only places matter.
    let (to, metrics) = start(Limits { answer: Duration::from_secs(60), ..LIMITS }).await;
    let attacks: [&[u8]; 4] = [
        b"",
        b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n",
        PREFACE,
    ];
    for attack in attacks {
        let mut held = Vec::new();
        for n in 0..40_u8 {
            // First one address, then many.
            let from = if n < 24 { [127, 0, 0, 1] } else { [127, 0, 1, n] };
            let mut stream = connect(to, from).await;
            // The relay may have closed it already.
            let _ = stream.write_all(attack).await;
            held.push(stream);
        }
        for from in [[127, 0, 0, 1], [127, 0, 0, 2]] {
            // Requests on which nothing moves need some seconds to look like it.
            let begin = Instant::now();
            loop {
                let mut check = connect(to, from).await;
                let _ = check
                    .write_all(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    .await;
                let answer = timeout(Duration::from_secs(5), end(&mut check)).await.unwrap();
                if answer.ends_with("live") {
                    break;
                }
                assert!(
                    begin.elapsed() < Duration::from_secs(6),
                    "{from:?} {:?}: {answer}",
                    String::from_utf8_lossy(attack)
                );
                tokio::time::sleep(50 * MS).await;
            }
        }
    }
    assert!(metrics.http_closed(HttpEnded::Cleared) > 0);
}
