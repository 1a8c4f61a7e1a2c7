//! What is said in a WebSocket: the relay's protocol v1, or what a server speaks that is measured beside the relay.

use std::fmt::Debug;

use bytes::Bytes;
use serde::Deserialize;
use tungstenite::{Message, Utf8Bytes};

use crate::relay::ids::Device;

/// What a client and a server say to each other.
pub trait Dialect: Debug + Send + Sync {
    /// The query of the URL, and the headers that sign in.
    fn handshake(&self, caller: &Caller<'_>) -> (String, Vec<(&'static str, String)>);

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
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The user's place among all users.
    pub user: u32,
    /// The slot that it claims.
    pub device: Device,
    /// The query's `client`, the same for all its connections.
    pub client: &'a str,
    /// The ID token, for the header or the packet.
    pub token: &'a str,
}

/// What a message of the server is read for; named as v1's text messages are.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Heard {
    /// The server waits for the sign-in; the relay has seen it in the handshake.
    #[serde(skip)]
    Open,
    /// The first message after the sign-in.
    Welcome {
        /// With `received`, it reads reports of what has arrived.
        #[serde(default)]
        features: Vec<String>,
    },
    /// The sign-in is refused, and why.
    #[serde(skip)]
    Refused(String),
    /// From the other device.
    #[serde(skip)]
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
    /// The last message was not accepted.
    Error {
        /// Why not.
        code: String,
    },
    /// The answer to a ping.
    Pong,
    /// The server wants this answer at once.
    #[serde(skip)]
    Heartbeat(Message),
    /// What the relay has read.
    Received,
    /// Reports are wanted.
    Reports {
        /// How often.
        every_ms: u16,
    },
    /// A message that no scenario waits for.
    #[serde(other)]
    Other,
}

/// The relay's protocol v1.
#[derive(Debug)]
pub struct V1;

impl Dialect for V1 {
    /// Desktops send the token as browsers do, mobiles as native apps do.
    fn handshake(&self, caller: &Caller<'_>) -> (String, Vec<(&'static str, String)>) {
        use crate::relay::protocol::V1;
        let Caller { device, client, token, .. } = caller;
        let headers = match device {
            Device::Desktop => vec![("sec-websocket-protocol", format!("{V1}, {token}"))],
            Device::Mobile => {
                vec![("sec-websocket-protocol", V1.to_owned()), ("authorization", format!("Bearer {token}"))]
            }
        };
        (format!("client={client}"), headers)
    }

    fn ping(&self) -> Message {
        Message::Text(Utf8Bytes::from_static(r#"{"type":"ping"}"#))
    }

    fn read(&self, text: &str) -> Heard {
        serde_json::from_str(text).unwrap_or(Heard::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relays_messages_are_distinguished() {
        let heard = |text| V1.read(text);
        assert_eq!(heard(r#"{"type":"welcome","uid":"a"}"#), Heard::Welcome { features: Vec::new() });
        let welcome = heard(r#"{"type":"welcome","uid":"a","features":["received"]}"#);
        assert_eq!(welcome, Heard::Welcome { features: vec!["received".to_owned()] });
        assert_eq!(heard(r#"{"type":"reports","every_ms":100}"#), Heard::Reports { every_ms: 100 });
        assert_eq!(heard(r#"{"type":"received","messages":1,"time":2.5}"#), Heard::Received);
        assert_eq!(heard(r#"{"type":"overwritten","by":{}}"#), Heard::Overwritten);
        let reconnect = r#"{"type":"reconnect","reason":"draining","in_ms":5,"deadline_ms":9}"#;
        assert_eq!(heard(reconnect), Heard::Reconnect { in_ms: 5, deadline_ms: 9 });
        assert_eq!(
            heard(r#"{"type":"error","code":"bad_json"}"#),
            Heard::Error { code: "bad_json".to_owned() }
        );
        assert_eq!(heard(r#"{"type":"pong","time":1}"#), Heard::Pong);
        for other in [r#"{"type":"peer","state":"connected"}"#, r#"{"type":"open"}"#, "not JSON", "2", "40"] {
            assert_eq!(heard(other), Heard::Other);
        }
    }
}
