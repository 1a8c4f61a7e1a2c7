//! A client that reads and writes WebSocket frames by hand: broken frames, silence, a full receive buffer.

use std::io;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http::read_response;
use super::{LIMIT, Response, within};

/// Opcodes (RFC 6455, section 11.8).
pub mod opcode {
    #![allow(missing_docs)]
    pub const CONTINUATION: u8 = 0x0;
    pub const TEXT: u8 = 0x1;
    pub const BINARY: u8 = 0x2;
    pub const CLOSE: u8 = 0x8;
    pub const PING: u8 = 0x9;
    pub const PONG: u8 = 0xA;
}

/// A frame to be sent; each bit can be wrong.
#[derive(Debug, Clone)]
pub struct RawFrame {
    /// FIN
    pub fin: bool,
    /// RSV1-3, in the low three bits.
    pub reserved: u8,
    /// The opcode.
    pub opcode: u8,
    /// Whether the payload is masked, as a client's must be.
    pub masked: bool,
    /// The payload before masking.
    pub payload: Vec<u8>,
}

impl RawFrame {
    /// A correct frame that is a whole message.
    pub fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { fin: true, reserved: 0, opcode, masked: true, payload: payload.into() }
    }

    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
        let mut bytes = vec![u8::from(self.fin) << 7 | self.reserved << 4 | self.opcode];
        let masked = u8::from(self.masked) << 7;
        match self.payload.len() {
            length @ 0..=125 => bytes.push(masked | length as u8),
            length @ 126..=0xFFFF => {
                bytes.push(masked | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(masked | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if self.masked {
            bytes.extend(MASK);
            bytes.extend(self.payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        } else {
            bytes.extend(&self.payload);
        }
        bytes
    }
}

/// What a raw connection read.
#[derive(Debug, Clone, PartialEq)]
pub enum RawEvent {
    /// A frame: its opcode and payload (the relay does not fragment its messages).
    Frame(u8, Vec<u8>),
    /// An orderly end of the TCP connection.
    End,
    /// A TCP reset.
    Reset,
}

/// A WebSocket connection that does only what its caller asks.
#[derive(Debug)]
pub struct RawClient {
    stream: TcpStream,
    read: Vec<u8>,
}

impl RawClient {
    pub(super) fn new(stream: TcpStream, read: Vec<u8>) -> Self {
        Self { stream, read }
    }

    /// Reads the answer to a handshake that was written by hand.
    pub async fn after_handshake(mut stream: TcpStream) -> (Response, Self) {
        let response =
            within(LIMIT, "the answer to the handshake", read_response(&mut stream)).await.unwrap();
        let read = response.body.clone();
        (response, Self::new(stream, read))
    }

    /// Writes bytes.
    pub async fn write(&mut self, bytes: &[u8]) {
        within(LIMIT, "room to write", self.stream.write_all(bytes)).await.unwrap();
    }

    /// Writes bytes unless the connection has ended.
    pub async fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        within(LIMIT, "room to write", self.stream.write_all(bytes)).await
    }

    /// Sends a whole, correct message.
    pub async fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.write(&RawFrame::new(opcode, payload).encode()).await;
    }

    /// Ends its half of the connection, and can still read.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Waits until something has come that was not read, and reads none of it.
    pub async fn readable(&self) {
        let some = within(LIMIT, "something to read", self.stream.peek(&mut [0])).await.unwrap();
        assert_eq!(some, 1, "the connection has ended");
    }

    /// The next frame, at the latest after `limit`.
    pub async fn next_within(&mut self, limit: Duration) -> RawEvent {
        within(limit, "the next frame", async {
            loop {
                if let Some(frame) = self.take_frame() {
                    return frame;
                }
                match self.stream.read_buf(&mut self.read).await {
                    Ok(0) => return RawEvent::End,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                        return RawEvent::Reset;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .await
    }

    /// The next frame.
    pub async fn next(&mut self) -> RawEvent {
        self.next_within(LIMIT).await
    }

    fn take_frame(&mut self) -> Option<RawEvent> {
        let (&first, &second) = (self.read.first()?, self.read.get(1)?);
        assert_eq!(first & 0x70, 0, "a reserved bit is set");
        assert_eq!(first & 0x80, 0x80, "a fragment");
        assert_eq!(second & 0x80, 0, "a server's frame must not be masked (RFC 6455, section 5.1)");
        let number = |range: std::ops::Range<usize>| {
            self.read
                .get(range)
                .map(|bytes| bytes.iter().fold(0, |number, &byte| number << 8 | usize::from(byte)))
        };
        let (start, length) = match second {
            126 => (4, number(2..4)?),
            127 => (10, number(2..10)?),
            short => (2, usize::from(short)),
        };
        let payload = self.read.get(start..start + length)?.to_vec();
        self.read.drain(..start + length);
        Some(RawEvent::Frame(first & 0x0F, payload))
    }

    /// The next frame, which must have this opcode; its payload.
    pub async fn expect(&mut self, opcode: u8) -> Vec<u8> {
        match self.next().await {
            RawEvent::Frame(got, payload) if got == opcode => payload,
            other => panic!("expected opcode {opcode}, got {other:?}"),
        }
    }

    /// The next frame, which must be JSON text of this type.
    pub async fn expect_json(&mut self, kind: &str) -> Value {
        let message: Value = serde_json::from_slice(&self.expect(opcode::TEXT).await).unwrap();
        assert_eq!(message["type"], kind, "{message}");
        message
    }

    /// The next frame, which must be a close with this code.
    pub async fn expect_close(&mut self, code: u16) {
        let payload = self.expect(opcode::CLOSE).await;
        assert_eq!(payload.get(..2), Some(&code.to_be_bytes()[..]), "close {payload:?}, expected {code}");
    }

    /// Waits for a TCP reset, and neither reads what waits nor writes: after an orderly end there is none.
    pub async fn expect_reset(&mut self, limit: Duration) {
        within(limit, "a TCP reset", async {
            let mut pause = tokio::time::interval(Duration::from_millis(20));
            loop {
                pause.tick().await;
                match self.stream.take_error().unwrap() {
                    None => {}
                    Some(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
                    Some(error) => panic!("{error}"),
                }
            }
        })
        .await;
    }

    /// Everything until the connection ends, and how it ended, at the latest after `limit`.
    pub async fn drain(&mut self, limit: Duration) -> (Vec<RawEvent>, RawEvent) {
        within(limit, "the end of the connection", async {
            let mut events = Vec::new();
            loop {
                match self.next_within(limit).await {
                    frame @ RawEvent::Frame(..) => events.push(frame),
                    end @ (RawEvent::End | RawEvent::Reset) => return (events, end),
                }
            }
        })
        .await
    }
}
