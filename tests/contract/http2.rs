//! Section 2: WebSockets over HTTP/2 (RFC 8441), written by hand with RFC 9113's frames.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Config, Issuer, LIMIT, RawFrame, Relay, Token, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
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
        let mut http = Self { stream: TcpStream::connect(relay.public).await.unwrap(), read: Vec::new() };
        http.stream.write_all(PREFACE).await.unwrap();
        http.write(SETTINGS, 0, 0, &[]).await;
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
        within(LIMIT, "an HTTP/2 frame", async {
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
        })
        .await
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
