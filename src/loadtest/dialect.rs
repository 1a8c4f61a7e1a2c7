//! What is said in a WebSocket: the relay's protocol v1, or what a server speaks that is measured beside the relay.

use std::fmt::Debug;

use bytes::Bytes;
use serde::Deserialize;
use tungstenite::{Message, Utf8Bytes};

use crate::relay::ids::Device;

/// What a client and a server say to each other.
pub trait Dialect: Debug + Send + Sync {
    /// The path with its query, and the header lines that sign in.
    fn handshake(&self, path: &str, caller: &Caller<'_>) -> (String, String);

    /// The answer to [`Heard::Open`].
    fn sign_in(&self, _caller: &Caller<'_>) -> Option<Message> {
        None
    }

    /// The text that goes before the binary message of each frame.
    fn announcement(&self) -> Option<Message> {
        None
    }

    /// A message that is answered.
    fn ping(&self) -> Message;

    /// Reads a text message; binary ones are frames.
    fn read(&self, text: &str) -> Heard;
}

/// The parameters of one connection.
pub struct Caller<'a> {
    /// The slot that it claims.
    pub device: Device,
    /// The query's `client`, the same for all its connections.
    pub client: &'a str,
    /// The ID token, for the header or the packet.
    pub token: &'a str,
}

/// What a message of the server is read for.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The server waits for the sign-in; the relay has seen it in the handshake.
    Open,
    /// The first message after the sign-in.
    Welcome {
        /// It reads reports of what has arrived.
        received: bool,
    },
    /// The sign-in is refused, and why.
    Refused(String),
    /// From the other device.
    Frame(Bytes),
    /// This socket lost its slot.
    Overwritten,
    /// Connect again, then let this socket go.
    Reconnect {
        /// How long to wait before that.
        in_ms: u64,
        /// When this socket is closed.
        deadline_ms: u64,
    },
    /// The last message was not accepted, and why.
    Error(String),
    /// The answer to a ping.
    Pong,
    /// The server wants this answer at once.
    Heartbeat(Message),
    /// What the relay has read.
    Received,
    /// Reports are wanted each so many milliseconds.
    Reports(u16),
    /// A message that no scenario waits for.
    Other,
}

/// The relay's protocol v1.
#[derive(Debug)]
pub struct V1;

/// v1's text messages, as far as they are read.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Control {
    Welcome {
        #[serde(default)]
        features: Vec<String>,
    },
    Reports {
        every_ms: u16,
    },
    Received {},
    Overwritten {},
    Reconnect {
        in_ms: u64,
        deadline_ms: u64,
    },
    Error {
        code: String,
    },
    Pong {},
    #[serde(other)]
    Other,
}

impl Dialect for V1 {
    /// Desktops send the token as browsers do, mobiles as native apps do.
    fn handshake(&self, path: &str, caller: &Caller<'_>) -> (String, String) {
        use crate::relay::protocol::V1;
        let Caller { device, client, token, .. } = caller;
        let sign_in = match device {
            Device::Desktop => format!("Sec-WebSocket-Protocol: {V1}, {token}\r\n"),
            Device::Mobile => format!("Sec-WebSocket-Protocol: {V1}\r\nAuthorization: Bearer {token}\r\n"),
        };
        (format!("{path}?client={client}"), sign_in)
    }

    fn ping(&self) -> Message {
        Message::Text(Utf8Bytes::from_static(r#"{"type":"ping"}"#))
    }

    fn read(&self, text: &str) -> Heard {
        match serde_json::from_str(text) {
            Ok(Control::Welcome { features }) => {
                Heard::Welcome { received: features.iter().any(|feature| feature == "received") }
            }
            Ok(Control::Reports { every_ms }) => Heard::Reports(every_ms),
            Ok(Control::Received {}) => Heard::Received,
            Ok(Control::Overwritten {}) => Heard::Overwritten,
            Ok(Control::Reconnect { in_ms, deadline_ms }) => Heard::Reconnect { in_ms, deadline_ms },
            Ok(Control::Error { code }) => Heard::Error(code),
            Ok(Control::Pong {}) => Heard::Pong,
            Ok(Control::Other) | Err(_) => Heard::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relays_messages_are_distinguished() {
        let heard = |text| V1.read(text);
        assert_eq!(heard(r#"{"type":"welcome","uid":"a"}"#), Heard::Welcome { received: false });
        assert_eq!(heard(r#"{"type":"overwritten","by":{}}"#), Heard::Overwritten);
        let reconnect = r#"{"type":"reconnect","reason":"draining","in_ms":5,"deadline_ms":9}"#;
        assert_eq!(heard(reconnect), Heard::Reconnect { in_ms: 5, deadline_ms: 9 });
        assert_eq!(heard(r#"{"type":"error","code":"bad_json"}"#), Heard::Error("bad_json".to_owned()));
        assert_eq!(heard(r#"{"type":"pong","time":1}"#), Heard::Pong);
        for other in [r#"{"type":"peer","state":"connected"}"#, "not JSON", "2", "40"] {
            assert_eq!(heard(other), Heard::Other);
        }
    }
}
