//! A well-behaved client, on tokio-tungstenite.
//!
//! Expectations are about the very next message, so absence is proved by order: what must not come
//! would stand before the message that must.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{LIMIT, Response, within};

/// What a connection can say; pings are answered and not shown.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// A close frame: code and reason.
    Close(u16, String),
    /// The end of the TCP connection.
    End,
}

/// A WebSocket connection.
#[derive(Debug)]
pub struct Client {
    socket: WebSocketStream<TcpStream>,
    /// The selected subprotocol.
    pub protocol: Option<String>,
    /// The `welcome` of a v1 connection.
    pub welcome: Value,
}

impl Client {
    pub(super) async fn new(stream: TcpStream, response: Response) -> Self {
        let protocol = response.header("sec-websocket-protocol").map(str::to_owned);
        let socket = WebSocketStream::from_partially_read(stream, response.body, Role::Client, None).await;
        Self { socket, protocol, welcome: Value::Null }
    }

    /// The connection's id, from `welcome`.
    pub fn id(&self) -> &str {
        self.welcome["connection"].as_str().unwrap()
    }

    /// The connection's generation, from `welcome`.
    pub fn generation(&self) -> u64 {
        self.welcome["generation"].as_u64().unwrap()
    }

    /// What a `peer` message about this connection says of it.
    pub fn as_peer(&self) -> Value {
        json!({"connection": self.welcome["connection"], "generation": self.welcome["generation"]})
    }

    async fn send(&mut self, message: Message) {
        within(LIMIT, "room to send", self.socket.send(message)).await.unwrap();
    }

    /// Sends a message unless the connection has ended; true if it was written.
    pub async fn try_send_text(&mut self, text: &str) -> bool {
        within(LIMIT, "room to send", self.socket.send(Message::text(text))).await.is_ok()
    }

    /// Lets TCP be reset when this is dropped.
    pub fn reset_on_drop(&self) {
        socket2::SockRef::from(self.socket.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Sends a message; an error where the connection has ended. Waits without limit for room to send.
    pub async fn try_send(&mut self, message: Message) -> Result<(), Error> {
        self.socket.send(message).await
    }

    /// Sends a text message.
    pub async fn send_text(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// Sends a JSON text message.
    pub async fn send_json(&mut self, message: Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends a binary message.
    pub async fn send_binary(&mut self, bytes: impl Into<Vec<u8>>) {
        self.send(Message::Binary(Bytes::from(bytes.into()))).await;
    }

    /// Sends a frame of a stream.
    pub async fn send_frame(&mut self, stream: u8, payload: &[u8]) {
        self.send_binary([&[stream], payload].concat()).await;
    }

    /// Begins a close.
    pub async fn send_close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: code.into(), reason: reason.to_owned().into() };
        self.send(Message::Close(Some(frame))).await;
    }

    /// The next event, at the latest after `limit`.
    pub async fn next_within(&mut self, limit: Duration) -> Event {
        let next = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => return Event::Text(text.as_str().to_owned()),
                    Some(Ok(Message::Binary(bytes))) => return Event::Binary(bytes.to_vec()),
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    Some(Ok(Message::Close(Some(frame)))) => {
                        return Event::Close(frame.code.into(), frame.reason.as_str().to_owned());
                    }
                    // RFC 6455, section 7.1.5: a close frame without a code counts as 1005.
                    Some(Ok(Message::Close(None))) => return Event::Close(1005, String::new()),
                    Some(Err(Error::Io(_) | Error::ConnectionClosed | Error::Protocol(_))) | None => {
                        return Event::End;
                    }
                    Some(Err(error)) => panic!("{error}"),
                }
            }
        };
        within(limit, "the next message", next).await
    }

    /// The next event.
    pub async fn next(&mut self) -> Event {
        self.next_within(LIMIT).await
    }

    /// The next message, which must be text.
    pub async fn expect_text(&mut self) -> String {
        match self.next().await {
            Event::Text(text) => text,
            other => panic!("expected text, got {other:?}"),
        }
    }

    /// The next message, which must be JSON of this type, at the latest after `limit`.
    pub async fn expect_json_within(&mut self, limit: Duration, kind: &str) -> Value {
        match self.next_within(limit).await {
            Event::Text(text) => {
                let message: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(message["type"], kind, "expected {kind}, got {message}");
                message
            }
            other => panic!("expected {kind}, got {other:?}"),
        }
    }

    /// The next message, which must be JSON of this type.
    pub async fn expect_json(&mut self, kind: &str) -> Value {
        self.expect_json_within(LIMIT, kind).await
    }

    /// The next message, which must be an `error` of this code.
    pub async fn expect_error(&mut self, code: &str) -> Value {
        let error = self.expect_json("error").await;
        assert_eq!(error["code"], code, "{error}");
        assert!(error["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{error}");
        error
    }

    /// The next message, which must be binary.
    pub async fn expect_binary(&mut self) -> Vec<u8> {
        match self.next().await {
            Event::Binary(bytes) => bytes,
            other => panic!("expected a frame, got {other:?}"),
        }
    }

    /// The next event, which must be a close with this code; its reason.
    pub async fn expect_close(&mut self, code: u16) -> String {
        self.expect_close_within(LIMIT, code).await
    }

    /// The next event, which must be a close with this code, at the latest after `limit`; its reason.
    pub async fn expect_close_within(&mut self, limit: Duration, code: u16) -> String {
        match self.next_within(limit).await {
            Event::Close(got, reason) if got == code => reason,
            other => panic!("expected close {code}, got {other:?}"),
        }
    }

    /// After a close: the end of the TCP connection.
    pub async fn expect_end(&mut self) {
        assert_eq!(self.next().await, Event::End);
    }

    /// Sends a v1 ping and waits for its pong, which must be the next message. Then nothing else was waiting,
    /// and the relay has handled everything that was sent before.
    pub async fn sync(&mut self) {
        self.send_json(json!({"type": "ping", "id": "sync"})).await;
        loop {
            let message: Value = serde_json::from_str(&self.expect_text().await).unwrap();
            // A receiver that is behind is reported each second, at any time.
            if message["type"] != "pressure" {
                assert_eq!((&message["type"], &message["id"]), (&"pong".into(), &"sync".into()), "{message}");
                return;
            }
        }
    }
}
