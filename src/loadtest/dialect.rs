//! What is said in a WebSocket: the relay's protocol v1, or Socket.IO's, so that the same generator can measure
//! a Socket.IO server beside the relay.
//!
//! Of Socket.IO (protocol 5 over Engine.IO 4, <https://socket.io/docs/v4/engine-io-protocol/> and
//! <https://socket.io/docs/v4/socket-io-protocol/>) it is what a pair of devices needs, over WebSocket from the start: the event `f` with one
//! binary argument is a frame in both directions, `ping` is answered with `pong`, and `overwritten` is heard.

use std::net::IpAddr;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tungstenite::Message;

use super::settings::{Dialect, Link};
use crate::relay::ids::Device;
use crate::relay::protocol::V1;

/// The parameters of one connection.
pub(super) struct Caller<'a> {
    pub(super) device: Device,
    /// The query's `client`.
    pub(super) client: &'a str,
    pub(super) token: &'a str,
    /// The local address to connect from; the system's choice without.
    pub(super) source: Option<IpAddr>,
    pub(super) dialect: Dialect,
    /// Only for receivers behind a thin link.
    pub(super) link: Option<Link>,
    /// It reports what it has read.
    pub(super) reports: bool,
    /// Which of the target's addresses.
    pub(super) turn: usize,
}

/// What a message of the server is read for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The server waits for the sign-in (Socket.IO only: the relay has seen it in the handshake).
    Open,
    /// The first message after the sign-in.
    Welcome {
        /// It reads reports of what has arrived.
        received: bool,
    },
    /// The sign-in is refused, and why (Socket.IO only).
    Refused(String),
    /// From the other device.
    Frame(Bytes),
    /// This socket lost its slot.
    Overwritten,
    /// Connect again, then let this socket go.
    Reconnect {
        in_ms: u64,
        /// When this socket is closed.
        deadline_ms: u64,
    },
    /// The last message was not accepted, and why.
    Error(String),
    /// The answer to a ping.
    Pong,
    /// The server wants an answer of its own kind at once (Engine.IO's heartbeat).
    Heartbeat,
    /// What the relay has read.
    Received,
    /// Reports are wanted each so many milliseconds.
    Reports(u16),
    /// A message that no scenario waits for.
    Other,
}

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

impl Dialect {
    /// The path with its query, and the header lines that sign in. Desktops send the token as browsers do, mobiles as
    /// native apps do.
    pub(super) fn handshake(self, path: &str, caller: &Caller<'_>) -> (String, String) {
        let Caller { device, client, token, .. } = caller;
        match (self, device) {
            (Self::V1, Device::Desktop) => {
                (format!("{path}?client={client}"), format!("Sec-WebSocket-Protocol: {V1}, {token}\r\n"))
            }
            (Self::V1, Device::Mobile) => (
                format!("{path}?client={client}"),
                format!("Sec-WebSocket-Protocol: {V1}\r\nAuthorization: Bearer {token}\r\n"),
            ),
            (Self::SocketIo, _) => (format!("{path}?EIO=4&transport=websocket"), String::new()),
        }
    }

    /// The answer to [`Heard::Open`].
    pub(super) fn sign_in(caller: &Caller<'_>) -> Message {
        let auth =
            json!({ "token": caller.token, "device": caller.device.to_string(), "client": caller.client });
        Message::Text(format!("40{auth}").into())
    }

    /// The answer to [`Heard::Heartbeat`].
    pub(super) const fn heartbeat() -> Message {
        Message::Text(tungstenite::Utf8Bytes::from_static("3"))
    }

    /// The messages that carry a frame.
    pub(super) fn frame(self, frame: Bytes) -> impl Iterator<Item = Message> {
        const ANNOUNCEMENT: &str = r#"451-["f",{"_placeholder":true,"num":0}]"#;
        let announcement = match self {
            Self::V1 => None,
            Self::SocketIo => Some(Message::Text(tungstenite::Utf8Bytes::from_static(ANNOUNCEMENT))),
        };
        announcement.into_iter().chain([Message::Binary(frame)])
    }

    /// A message that is answered.
    pub(super) const fn ping(self) -> Message {
        Message::Text(tungstenite::Utf8Bytes::from_static(match self {
            Self::V1 => r#"{"type":"ping"}"#,
            Self::SocketIo => r#"42["ping"]"#,
        }))
    }

    /// Reads one message of the relay or of a Socket.IO server.
    pub(super) fn read(self, message: Message) -> Heard {
        match (self, message) {
            (_, Message::Binary(frame)) => Heard::Frame(frame),
            (Self::V1, Message::Text(text)) => read_control(&text),
            (Self::SocketIo, Message::Text(text)) => read_packet(&text),
            (_, Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => Heard::Other,
        }
    }
}

fn read_control(text: &str) -> Heard {
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

/// Engine.IO: 0 open, 2 ping, 4 message. Socket.IO, behind the 4: 0 connected, 2 event, 4 refused, 51- an event whose
/// one binary argument follows.
fn read_packet(text: &str) -> Heard {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    if text == "2" {
        Heard::Heartbeat
    } else if text.starts_with('0') {
        Heard::Open
    } else if text.starts_with("40") {
        Heard::Welcome { received: false }
    } else if let Some(refusal) = text.strip_prefix("44") {
        let refusal = serde_json::from_str::<Refusal>(refusal);
        Heard::Refused(refusal.map_or_else(|_| "refused".to_owned(), |refusal| refusal.message))
    } else {
        match text {
            r#"42["overwritten"]"# => Heard::Overwritten,
            r#"42["pong"]"# => Heard::Pong,
            _ => Heard::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(dialect: Dialect, text: &str) -> Heard {
        dialect.read(Message::Text(text.into()))
    }

    #[test]
    fn the_relays_messages_are_distinguished() {
        let heard = |text| heard(Dialect::V1, text);
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

    #[test]
    fn socket_ios_packets_are_distinguished() {
        let heard = |text| heard(Dialect::SocketIo, text);
        assert_eq!(heard(r#"0{"sid":"a","upgrades":[],"pingInterval":25000}"#), Heard::Open);
        assert_eq!(heard(r#"40{"sid":"b"}"#), Heard::Welcome { received: false });
        assert_eq!(heard(r#"44{"message":"jwt expired"}"#), Heard::Refused("jwt expired".to_owned()));
        assert_eq!(heard("2"), Heard::Heartbeat);
        assert_eq!(heard(r#"42["overwritten"]"#), Heard::Overwritten);
        assert_eq!(heard(r#"42["pong"]"#), Heard::Pong);
        assert_eq!(heard(r#"451-["f",{"_placeholder":true,"num":0}]"#), Heard::Other);
        assert_eq!(heard("41"), Heard::Other);
    }

    #[test]
    fn a_frame_is_one_message_or_is_announced_by_another() {
        let frame = Bytes::from_static(b"\x01frame");
        assert_eq!(Dialect::V1.frame(frame.clone()).collect::<Vec<_>>(), [Message::Binary(frame.clone())]);
        let packets: Vec<_> = Dialect::SocketIo.frame(frame.clone()).collect();
        let announcement = Message::Text(r#"451-["f",{"_placeholder":true,"num":0}]"#.into());
        assert_eq!(packets, [announcement, Message::Binary(frame)]);
    }
}
