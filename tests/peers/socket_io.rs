//! Socket.IO, so that the same generator measures a Socket.IO server beside the relay.
//!
//! Of Socket.IO (protocol 5 over Engine.IO 4) it is what a pair of devices needs, over WebSocket from the
//! start. <https://socket.io/docs/v4/engine-io-protocol/> and <https://socket.io/docs/v4/socket-io-protocol/>
//! describe it. The event `f` with one binary argument is a frame in both directions. The relay answers
//! `ping` with `pong`, and the client hears `overwritten`.

use duorelay::loadtest::dialect::{Caller, Dialect, Heard};
use serde::Deserialize;
use serde_json::json;
use tungstenite::{Message, Utf8Bytes};

/// Socket.IO's protocol.
#[derive(Debug)]
pub struct SocketIo;

const fn text(text: &'static str) -> Message {
    Message::Text(Utf8Bytes::from_static(text))
}

impl Dialect for SocketIo {
    fn handshake(&self, _: &Caller<'_>) -> (String, Vec<(&'static str, String)>) {
        ("EIO=4&transport=websocket".to_owned(), Vec::new())
    }

    fn sign_in(&self, caller: &Caller<'_>) -> Option<Message> {
        let device = caller.device.to_string();
        let auth = json!({ "token": caller.token, "device": device, "client": caller.client });
        Some(Message::Text(format!("40{auth}").into()))
    }

    fn announcement(&self) -> Option<Message> {
        Some(text(r#"451-["f",{"_placeholder":true,"num":0}]"#))
    }

    fn ping(&self) -> Message {
        text(r#"42["ping"]"#)
    }

    /// Engine.IO: 0 open, 2 ping, 4 message. Socket.IO, behind the 4: 0 connected, 2 event, 4 refused, 51- an event whose
    /// one binary argument follows.
    fn read(&self, packet: &str) -> Heard {
        #[derive(Deserialize)]
        struct Refusal {
            message: String,
        }
        match packet {
            "2" => Heard::Heartbeat(text("3")),
            r#"42["overwritten"]"# => Heard::Overwritten,
            r#"42["pong"]"# => Heard::Pong,
            _ if packet.starts_with('0') => Heard::Open,
            _ if packet.starts_with("40") => Heard::Welcome { features: Vec::new() },
            _ => match packet.strip_prefix("44").map(serde_json::from_str::<Refusal>) {
                Some(Ok(refusal)) => Heard::Refused(refusal.message),
                Some(Err(_)) => Heard::Refused("refused".to_owned()),
                None => Heard::Other,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_ios_packets_are_distinguished() {
        let heard = |text| SocketIo.read(text);
        assert_eq!(heard(r#"0{"sid":"a","upgrades":[],"pingInterval":25000}"#), Heard::Open);
        assert_eq!(heard(r#"40{"sid":"b"}"#), Heard::Welcome { features: Vec::new() });
        assert_eq!(heard(r#"44{"message":"jwt expired"}"#), Heard::Refused("jwt expired".to_owned()));
        assert_eq!(heard("44"), Heard::Refused("refused".to_owned()));
        assert_eq!(heard("2"), Heard::Heartbeat(text("3")));
        assert_eq!(heard(r#"42["overwritten"]"#), Heard::Overwritten);
        assert_eq!(heard(r#"42["pong"]"#), Heard::Pong);
        assert_eq!(heard(r#"451-["f",{"_placeholder":true,"num":0}]"#), Heard::Other);
        assert_eq!(heard("41"), Heard::Other);
    }
}
