//! Section 2: WebSockets over HTTP/2 (RFC 8441), written by hand with RFC 9113's frames.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, timeout};

use crate::support::{Config, Issuer, LIMIT, RawFrame, Relay, Token, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const WINDOW_UPDATE: u8 = 0x8;
const INITIAL_WINDOW_SIZE: u16 = 0x4;
const ENABLE_CONNECT_PROTOCOL: u16 = 0x8;
const END_HEADERS: u8 = 0x4;
const ACK: u8 = 0x1;
/// `:status: 200` in HPACK's static table (RFC 7541, appendix A).
const STATUS_200: u8 = 0x88;

struct Http2 {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Http2 {
    /// Connects and waits until the server allows extended CONNECT.
    async fn connect(relay: &Relay) -> Self {
        Self::with_window(relay, 65_535).await
    }

    /// The same, and each stream may have so many bytes under way at first.
    async fn with_window(relay: &Relay, bytes: u32) -> Self {
        let mut http = Self { stream: TcpStream::connect(relay.public).await.unwrap(), read: Vec::new() };
        http.stream.write_all(PREFACE).await.unwrap();
        let window = [&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &bytes.to_be_bytes()].concat();
        http.write(SETTINGS, 0, 0, &window).await;
        let settings = http.expect(SETTINGS).await;
        let allowed = settings.chunks(6).any(|setting| {
            setting[..2] == ENABLE_CONNECT_PROTOCOL.to_be_bytes() && setting[2..] == 1_u32.to_be_bytes()
        });
        assert!(allowed, "SETTINGS_ENABLE_CONNECT_PROTOCOL is not set: {settings:?}");
        http.write(SETTINGS, ACK, 0, &[]).await;
        http
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await.unwrap();
    }

    /// The payload of the next frame of that type; others are passed over.
    async fn expect(&mut self, kind: u8) -> Vec<u8> {
        within(LIMIT, "an HTTP/2 frame", self.next(kind)).await
    }

    /// The same without a time limit. Nothing is lost when it is given up.
    async fn next(&mut self, kind: u8) -> Vec<u8> {
        loop {
            if self.read.len() >= 9 {
                let length = usize::from(self.read[0]) << 16
                    | usize::from(self.read[1]) << 8
                    | usize::from(self.read[2]);
                if self.read.len() >= 9 + length {
                    let frame: Vec<u8> = self.read.drain(..9 + length).collect();
                    // An acknowledgement of ours is not the server's own settings.
                    if frame[3] == kind && !(kind == SETTINGS && frame[4] & ACK != 0) {
                        return frame[9..].to_vec();
                    }
                    continue;
                }
            }
            assert_ne!(self.stream.read_buf(&mut self.read).await.unwrap(), 0, "the connection ended");
        }
    }

    /// Lets the server send so many bytes more on this stream; 0 is the connection.
    async fn grant(&mut self, stream: u32, bytes: u32) {
        self.write(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await;
    }

    async fn send_json(&mut self, message: &Value) {
        let frame = RawFrame::new(0x1, message.to_string().into_bytes());
        self.write(DATA, 0, 1, &frame.encode()).await;
    }

    /// Sends an extended CONNECT; the encoded header block of the answer.
    async fn open(&mut self, stream: u32, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        let pseudo = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
        ];
        for (name, value) in pseudo.iter().chain(headers) {
            // A literal that is not indexed, with a new name, without Huffman (RFC 7541, section 6.2.2).
            block.push(0);
            for text in [name, value] {
                integer(&mut block, text.len());
                block.extend(text.as_bytes());
            }
        }
        self.write(HEADERS, END_HEADERS, stream, &block).await;
        self.expect(HEADERS).await
    }
}

/// An integer with a 7-bit prefix (RFC 7541, section 5.1).
fn integer(block: &mut Vec<u8>, value: usize) {
    if value < 127 {
        block.push(value as u8);
        return;
    }
    block.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        block.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    block.push(rest as u8);
}

#[tokio::test]
async fn extended_connect_opens_a_websocket() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let token = Token::firebase("ann").sign();
    let mut http = Http2::connect(&relay).await;
    let headers =
        [("sec-websocket-version", "13"), ("sec-websocket-protocol", "duorelay.v1"), ("clientid", &token)];
    let answer = http.open(1, "/ws?client=tab", &headers).await;
    assert_eq!(answer.first(), Some(&STATUS_200), "{answer:?}");

    let text = String::from_utf8_lossy(&http.expect(DATA).await).into_owned();
    assert!(text.contains(r#""type":"welcome""#) && text.contains(r#""device":"mobile""#), "{text}");
    let mut desktop = relay.v1_desktop("ann").await;
    let peer = String::from_utf8_lossy(&http.expect(DATA).await).into_owned();
    assert!(peer.contains(r#""type":"peer""#), "{peer}");
    http.write(DATA, 0, 1, &RawFrame::new(0x2, b"\x80over http/2").encode()).await;
    assert_eq!(desktop.expect_binary().await, b"\x80over http/2");
    desktop.send_frame(0x80, b"and back").await;
    // An unmasked binary frame of nine bytes.
    assert_eq!(http.expect(DATA).await, b"\x82\x09\x80and back");
}

#[tokio::test]
async fn extended_connect_is_refused_as_any_handshake() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let mut http = Http2::connect(&relay).await;
    let answer = http.open(1, "/ws", &[("sec-websocket-version", "13"), ("clientid", "x")]).await;
    assert_ne!(answer.first(), Some(&STATUS_200));
    let body = String::from_utf8_lossy(&http.expect(DATA).await).into_owned();
    assert!(body.contains("malformed_token"), "{body}");
}

/// A WebSocket message of a tunnel's bytes, if it is whole: its opcode and payload.
fn take_message(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (start, length) = match second {
        126 => (4, usize::from(*bytes.get(2)?) << 8 | usize::from(*bytes.get(3)?)),
        short => (2, usize::from(short)),
    };
    let payload = bytes.get(start..start + length)?.to_vec();
    bytes.drain(..start + length);
    Some((first & 0x0F, payload))
}

/// A tunnel of a mobile, whose stream may have so many bytes under way at first.
async fn tunnel(relay: &Relay, user: &str, window: u32) -> Http2 {
    let token = Token::firebase(user).sign();
    let mut http = Http2::with_window(relay, window).await;
    let headers =
        [("sec-websocket-version", "13"), ("sec-websocket-protocol", "duorelay.v1"), ("clientid", &token)];
    assert_eq!(http.open(1, "/ws", &headers).await.first(), Some(&STATUS_200));
    http
}

/// A frame of a volatile stream, with the time at which it was made.
fn stamped(now: Duration) -> Vec<u8> {
    let mut payload = vec![0; 299];
    payload[..8].copy_from_slice(&now.as_secs_f64().to_be_bytes());
    payload
}

#[tokio::test]
async fn a_tunnel_that_stands_still_holds_few_frames() {
    const WINDOW: u32 = 4_096;
    /// What hyper buffers for a stream, and one batch of the socket.
    const HELD: usize = 16 * 1024 + 4 * 1024;
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_MESSAGES_PER_SECOND", 0).start().await;
    let mut desktop = relay.v1_desktop("ann").await;
    let mut http = tunnel(&relay, "ann", WINDOW).await;
    desktop.expect_json("peer").await;
    let frames = 600_u32;
    for n in 0..frames {
        desktop.send_frame(1, &[&n.to_be_bytes()[..], &[0; 295]].concat()).await;
        // The relay has taken it, and a socket that takes it has it.
        desktop.sync().await;
    }
    http.grant(0, 1 << 20).await;
    http.grant(1, 1 << 20).await;
    let (mut bytes, mut total, mut newest) = (Vec::new(), 0, None);
    while newest != Some(frames - 1) {
        let data = http.expect(DATA).await;
        total += data.len();
        bytes.extend(data);
        while let Some((opcode, payload)) = take_message(&mut bytes) {
            if opcode == 0x2 {
                newest = Some(u32::from_be_bytes(payload[1..5].try_into().unwrap()));
            }
        }
    }
    assert!(total <= WINDOW as usize + HELD, "{total} bytes");
}

/// The stream's window lets through half of what the frames need, and the client reports what it reads: the law holds
/// frames there, too.
#[tokio::test]
async fn frames_stay_fresh_in_a_thin_tunnel() {
    const SECONDS: f64 = 9.0;
    const FPS: f64 = 30.0;
    const RATE: f64 = 304.0 * FPS / 2.0;
    /// A packet of the link.
    const PACKET: f64 = 608.0;
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let mut desktop = relay.v1_desktop("ann").await;
    let mut http = tunnel(&relay, "ann", PACKET as u32).await;
    desktop.expect_json("peer").await;
    let start = Instant::now();
    let sending = tokio::spawn(async move {
        let mut pace = interval(Duration::from_secs_f64(1.0 / FPS));
        while start.elapsed().as_secs_f64() < SECONDS {
            pace.tick().await;
            desktop.send_frame(1, &stamped(start.elapsed())).await;
        }
    });

    let (mut bytes, mut ages) = (Vec::new(), Vec::new());
    // What the server may send, how far that is granted, and what was read.
    let (mut credit, mut granted_at, mut messages, mut reported) = (PACKET, 0.0, 0, (0, 0.0));
    while start.elapsed().as_secs_f64() < SECONDS {
        let data = timeout(Duration::from_millis(20), http.next(DATA)).await;
        let now = start.elapsed().as_secs_f64();
        if let Ok(data) = data {
            credit -= data.len() as f64;
            bytes.extend(data);
        }
        while let Some((opcode, payload)) = take_message(&mut bytes) {
            messages += 1;
            if opcode == 0x2 && now > SECONDS * 0.6 {
                ages.push(now - f64::from_be_bytes(payload[1..9].try_into().unwrap()));
            }
        }
        // What the link does not carry in time is gone.
        let grant = ((now - granted_at) * RATE).min(PACKET - credit).floor();
        if grant >= 64.0 || credit >= PACKET - 64.0 {
            granted_at = now;
        }
        if grant >= 64.0 {
            credit += grant;
            http.grant(1, grant as u32).await;
        }
        if messages > reported.0 && now - reported.1 >= 0.1 {
            reported = (messages, now);
            let time = now * 1_000.0;
            http.send_json(&json!({"type": "received", "messages": messages, "time": time})).await;
        }
    }
    sending.await.unwrap();
    ages.sort_by(f64::total_cmp);
    let could = SECONDS * 0.4 * FPS / 2.0;
    assert!(ages.len() as f64 >= 0.75 * could, "{} of {could} frames", ages.len());
    let oldest = ages[ages.len() * 95 / 100];
    assert!(oldest <= 0.8, "{oldest} s, of {} frames", ages.len());
    let held = relay.metric("duorelay_frames_held_total", &[]).await;
    assert!(held > 20.0, "the law held {held} frames");
}
