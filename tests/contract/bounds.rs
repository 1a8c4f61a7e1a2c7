//! What one connection can make the process hold and do, whatever it sends, has an end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::support::{Config, Issuer, RawClient, RawEvent, RawFrame, Relay, Token};

const MIB: u64 = 1 << 20;

/// A connection that reads nothing after its welcome, and whose kernel takes little for it.
async fn silent_reader(relay: &Relay, uid: &str) -> RawClient {
    let handshake = relay.handshake().offer(&["duorelay.v1", &Token::firebase(uid).sign()]);
    let mut raw = handshake.receive_buffer(4096).open_raw().await;
    raw.expect_json("welcome").await;
    raw
}

/// As many connections as one address may want.
const MANY: usize = 8300;

/// A connection from this address that has asked for a file, and reads nothing of it.
async fn greedy(relay: &Relay, from: [u8; 4]) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(2048)?;
    socket.bind(SocketAddr::new(IpAddr::from(from), 0))?;
    let mut stream = socket.connect(relay.public).await?;
    stream.write_all(b"GET /duorelay.js HTTP/1.1\r\nHost: relay\r\n\r\n").await?;
    Ok(stream)
}

#[tokio::test]
async fn health_checks_and_handshakes_go_on_while_one_address_holds_all_that_it_can() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MAX_CONNECTIONS", 100).start().await;
    // Some are closed at once: the address has more than its share.
    let attack = stream::iter(0..MANY).map(|_| greedy(&relay, [127, 0, 0, 9])).buffer_unordered(64);
    let held: Vec<_> = attack.collect().await;
    assert!(relay.metric("duorelay_http_connections", &[]).await > 2000.0);
    let token = Token::firebase("ann").sign();
    let handshake = relay.handshake().offer(&["duorelay.v1", &token]);
    handshake.clone().from(IpAddr::from([127, 0, 0, 3])).open_v1().await;
    for _ in 0..10 {
        assert_eq!(relay.get("/healthz/live").await.status, 200);
    }
    // Even its own is answered, once its other requests look like nothing moves on them.
    let deadline = Instant::now() + Duration::from_secs(10);
    while handshake.clone().from(IpAddr::from([127, 0, 0, 9])).try_open().await.is_err() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut ended = 0.0;
    for cause in ["cleared", "share"] {
        ended += relay.metric("duorelay_http_closed_total", &[cause]).await;
    }
    assert!(ended > 100.0, "{ended}");
    drop(held);
}

/// Sends the same frame as fast as the relay takes it.
async fn flood(raw: &mut RawClient, frame: &RawFrame, bytes: u64) {
    let chunk = frame.encode().repeat(64 * 1024 / frame.encode().len());
    for _ in 0..bytes / chunk.len() as u64 {
        raw.write(&chunk).await;
    }
}

#[tokio::test]
async fn control_frames_as_fast_as_they_go_take_no_memory() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_BYTES_PER_SECOND", 0).start().await;
    let mut warm = silent_reader(&relay, "warm").await;
    flood(&mut warm, &RawFrame::new(0x9, [7; 125]), MIB).await;
    let before = relay.resident();
    let mut pings = silent_reader(&relay, "pings").await;
    flood(&mut pings, &RawFrame::new(0x9, [7; 125]), 64 * MIB).await;
    let mut pongs = silent_reader(&relay, "pongs").await;
    flood(&mut pongs, &RawFrame::new(0xA, [7; 125]), 16 * MIB).await;
    let mut fragments = silent_reader(&relay, "fragments").await;
    fragments.write(&RawFrame { fin: false, ..RawFrame::new(0x2, [0x80]) }.encode()).await;
    flood(&mut fragments, &RawFrame { fin: false, ..RawFrame::new(0x0, []) }, 4 * MIB).await;
    relay.wait_for_resident(before + 2 * MIB).await;
    let limited = relay.metric("duorelay_control_frames_limited_total", &[]).await;
    assert!(limited > 500_000.0, "{limited}");
    let unsent = relay.metric("duorelay_queue_bytes", &["outbox"]).await;
    assert!(unsent < 100_000.0, "{unsent} bytes wait");
}

#[tokio::test]
async fn a_burst_of_pings_is_answered_and_ten_seconds_of_too_many_end_in_1008() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let mut raw = relay.handshake().offer(&["duorelay.v1", &Token::firebase("ann").sign()]).open_raw().await;
    raw.expect_json("welcome").await;
    for n in 0..100_u8 {
        raw.send(0x9, &[n]).await;
        assert_eq!(raw.expect(0xA).await, [n]);
    }
    // The bucket is empty: one more in 50 ms. A message is answered all the same.
    for _ in 0..50 {
        raw.send(0x9, b"unheard").await;
    }
    raw.send(0x1, br#"{"type":"ping"}"#).await;
    while !matches!(raw.next().await, RawEvent::Frame(0x1, pong) if pong.starts_with(br#"{"type":"pong""#)) {}

    let started = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let close = loop {
        tokio::select! {
            _ = pace.tick() => raw.send(0x9, &[]).await,
            event = raw.next_within(Duration::from_secs(15)) => match event {
                RawEvent::Frame(0xA, _) => {}
                RawEvent::Frame(0x8, payload) => break payload,
                other => panic!("{other:?}"),
            },
        }
    };
    assert_eq!(close[..2], 1008_u16.to_be_bytes());
    assert!(started.elapsed() > Duration::from_secs(9), "{:?}", started.elapsed());
    assert_eq!(relay.metric("duorelay_closes_total", &["1008"]).await, 1.0);
}

#[tokio::test]
async fn a_connection_that_falls_silent_holds_what_one_that_never_spoke_holds() {
    const SILENT: u64 = 500;
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_HANDSHAKES_PER_SECOND_PER_IP", 0).start().await;
    let long_ping = format!(r#"{{"type":"ping","pad":"{}"}}"#, "x".repeat(60_000));
    let speak = async |raw: &mut RawClient| {
        raw.send(0x1, long_ping.as_bytes()).await;
        raw.expect_json("pong").await;
        for _ in 0..2 {
            raw.send(0x2, &[0x80; 30_000]).await;
        }
        raw.expect_json("error").await;
        for _ in 0..20 {
            raw.send(0x1, br#"{"type":"ping"}"#).await;
        }
        for _ in 0..20 {
            raw.expect_json("pong").await;
        }
    };
    let mut clients = Vec::new();
    for number in 0..SILENT {
        let token = Token::firebase(&format!("silent-{number}")).sign();
        let mut raw = relay.handshake().offer(&["duorelay.v1", &token]).open_raw().await;
        raw.expect_json("welcome").await;
        clients.push(raw);
    }
    // What the process itself needs for it.
    let (first, others) = clients.split_at_mut(10);
    for raw in first {
        speak(raw).await;
    }
    let before = relay.resident();
    for raw in others {
        speak(raw).await;
    }
    relay.wait_for_resident(before + SILENT * 1024).await;
}

#[tokio::test]
async fn the_worst_that_one_connection_can_hold_is_a_formula() {
    const QUEUE: u64 = 2 * MIB;
    const MESSAGE: u64 = 64 * 1024;
    const PAIRS: u64 = 4;
    /// Three lanes of the outbox. Half a message that has come and one that waits for its turn. A batch and a
    /// message on their way to the kernel, and another batch's worth that has been read. The connection
    /// itself.
    const WORST: u64 = 3 * QUEUE + 3 * MESSAGE + (16 * 1024 + MESSAGE) + 16 * 1024 + 5 * 1024;
    let issuer = Issuer::start();
    let config =
        Config::new(&issuer).set("DUORELAY_QUEUE_BYTES", QUEUE).set("DUORELAY_MESSAGES_PER_SECOND", 0);
    let relay = config.set("DUORELAY_BYTES_PER_SECOND", 0).start().await;
    let before = relay.resident();
    let mut held = Vec::new();
    for pair in 0..PAIRS {
        let uid = format!("pair-{pair}");
        let mut stalled = silent_reader(&relay, &uid).await;
        let mut mobile = relay.v1_mobile(&uid).await;
        for stream in 0..128_u8 {
            mobile.send_frame(stream, &vec![0x55; 60_000]).await;
        }
        for _ in 0..QUEUE / 60_100 - 1 {
            mobile.send_frame(0x80, &vec![0x55; 60_000]).await;
        }
        mobile.sync().await;
        // Answers that it does not read: each counts with its text and 64 bytes.
        let asks = RawFrame::new(0x1, &br#"{"type":"ping"}"#[..]).encode().repeat(1000);
        for _ in 0..QUEUE / 130_000 {
            stalled.write(&asks).await;
        }
        // Half a message.
        stalled.write(&RawFrame::new(0x2, vec![0x80; MESSAGE as usize - 1]).encode()[..60_000]).await;
        held.push((stalled, mobile));
    }
    let least = (PAIRS * (5 * QUEUE / 2)) as f64;
    relay.wait_for_metric("duorelay_queue_bytes", &["outbox"], least).await;
    relay.wait_for_metric("duorelay_queue_bytes", &["incoming"], (PAIRS * 60_000) as f64).await;
    assert_eq!(relay.metric("duorelay_closes_total", &["4008"]).await, 0.0);
    // The allocator rounds up by a quarter at most.
    let held = relay.wait_for_resident(before + PAIRS * WORST * 5 / 4).await;
    let each = held.saturating_sub(before) / PAIRS;
    assert!(each > 2 * QUEUE, "{each} bytes each, at most {WORST}");
}

#[tokio::test]
async fn fields_that_mean_nothing_cost_what_reading_them_costs() {
    const EACH: u32 = 20;
    let issuer = Issuer::start();
    let config =
        Config::new(&issuer).set("DUORELAY_MESSAGES_PER_SECOND", 0).set("DUORELAY_BYTES_PER_SECOND", 0);
    let relay = config.set("DUORELAY_WORKERS", 1).start().await;
    let mut client = relay.v1_desktop("ann").await;
    let letter = |n: u32| char::from(b'a' + (n % 26) as u8);
    let name = |n: u32| [letter(n / 676), letter(n / 26), letter(n)].iter().collect::<String>();
    let fields: Vec<String> = (0..7_500).map(|n| format!(r#""{}":1"#, name(n))).collect();
    let many = format!(r#"{{"type":"ping",{}}}"#, fields.join(","));
    assert!(many.len() > 60_000 && many.len() < 65_536, "{}", many.len());
    // As long, of one field: what the socket costs, and to look at each byte.
    let one = format!(r#"{{"type":"ping","pad":"{}"}}"#, "x".repeat(many.len() - 24));
    // The least of some rounds: what else runs on the machine only adds to it.
    let mut least = [Duration::MAX; 2];
    for _ in 0..8 {
        for (least, text) in least.iter_mut().zip([&one, &many]) {
            let before = relay.cpu();
            for _ in 0..EACH {
                client.send_text(text).await;
                client.expect_json("pong").await;
            }
            *least = (*least).min((relay.cpu() - before) / EACH);
        }
    }
    let [one, many] = least;
    println!("{one:?} {many:?}");
    assert!(many < one * 8, "7,500 fields take {many:?}, one as long {one:?}");
}

#[tokio::test]
async fn past_the_byte_rate_volatile_frames_are_dropped_and_the_rest_waits() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_BYTES_PER_SECOND", 100_000).start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;
    assert_eq!(mobile.welcome["limits"]["bytes_per_second"], 100_000);
    let started = Instant::now();
    // A burst of four seconds passes at once, and then 50 KB take half a second.
    for _ in 0..12 {
        mobile.send_frame(0x80, &[0x55; 50_000]).await;
    }
    for _ in 0..12 {
        assert_eq!(desktop.expect_binary().await.len(), 50_001);
    }
    let took = started.elapsed();
    assert!(took > Duration::from_millis(1800) && took < Duration::from_secs(6), "{took:?}");
    let error = mobile.expect_error("rate_limited").await;
    assert!(error["detail"].as_str().unwrap().contains("bytes_per_second"), "{error}");
    mobile.send_frame(0x01, &[0x55; 50_000]).await;
    relay.wait_for_metric("duorelay_dropped_total", &["rate"], 1.0).await;
}
