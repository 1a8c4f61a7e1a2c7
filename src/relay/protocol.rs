//! The control messages of `duorelay.v1`, in both directions.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::ids::{ConnectionId, Device, Generation, InstanceId, Member};
use super::private::Private;

/// The one `duorelay.` subprotocol that there is.
pub const V1: &str = "duorelay.v1";

/// Which protocol a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Plain text, wrapped in four lines, echoed to both devices.
    Classic,
    /// `duorelay.v1`: binary frames and JSON control messages.
    V1,
}

impl Protocol {
    /// The name in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::V1 => "v1",
        }
    }
}

/// What a v1 client says in a text message.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientMessage<'a> {
    /// To the other device, reliably.
    Send {
        /// Any JSON value, exactly as the client wrote it.
        data: Private<&'a str>,
        /// Repeated to the other device, and in errors.
        id: Option<String>,
    },
    /// An application-level ping: browsers cannot send WebSocket pings.
    Ping {
        /// Repeated in the answer.
        id: Option<String>,
    },
    /// A fresh token for the same user.
    Auth {
        /// The ID token.
        token: Private<String>,
    },
}

/// Why a client's message was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageError {
    /// Stable, for programs.
    pub code: &'static str,
    /// For people.
    pub detail: &'static str,
    /// The `id` of the message, where it had one.
    pub id: Option<String>,
}

impl MessageError {
    /// An error without the `id` of a message.
    #[must_use]
    pub const fn new(code: &'static str, detail: &'static str) -> Self {
        Self { code, detail, id: None }
    }
}

/// A binary message without even a stream id.
pub const EMPTY_FRAME: MessageError =
    MessageError::new("empty_frame", "a binary message needs at least its stream id (byte 0)");

impl<'a> ClientMessage<'a> {
    /// Reads one text message.
    ///
    /// # Errors
    /// `bad_json` (not a JSON object), `unknown_type`, `bad_field`.
    pub fn parse(text: &'a str) -> Result<Self, MessageError> {
        let fields: BTreeMap<Cow<'a, str>, &'a RawValue> = serde_json::from_str(text)
            .map_err(|_| MessageError::new("bad_json", "a text message must be one JSON object"))?;
        let string = |name: &str| -> Result<Option<String>, ()> {
            let Some(raw) = fields.get(name) else {
                return Ok(None);
            };
            serde_json::from_str(raw.get()).map(Some).map_err(|_| ())
        };
        let id = string("id");
        let known_id = id.clone().unwrap_or(None);
        let error = |code, detail| MessageError { code, detail, id: known_id.clone() };
        let bad_id = |()| error("bad_field", "id must be a string");
        let kind = string("type")
            .map_err(|()| error("bad_field", "type must be a string"))?
            .ok_or_else(|| error("bad_field", "type is missing"))?;
        match kind.as_str() {
            "send" => match fields.get("data") {
                Some(data) => Ok(Self::Send { data: data.get().into(), id: id.map_err(bad_id)? }),
                None => Err(error("bad_field", "data is missing (null is a value)")),
            },
            "ping" => Ok(Self::Ping { id: id.map_err(bad_id)? }),
            "auth" => match string("token") {
                Ok(Some(token)) => Ok(Self::Auth { token: token.into() }),
                Ok(None) => Err(error("bad_field", "token is missing")),
                Err(()) => Err(error("bad_field", "token must be a string")),
            },
            _ => Err(error("unknown_type", "type must be send, ping or auth")),
        }
    }
}

/// Who sent a `message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sender {
    /// The user's desktop.
    Desktop,
    /// The user's mobile.
    Mobile,
    /// An operator.
    Server,
}

impl From<Device> for Sender {
    fn from(device: Device) -> Self {
        match device {
            Device::Desktop => Self::Desktop,
            Device::Mobile => Self::Mobile,
        }
    }
}

/// Whether the other slot is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// A connection holds it.
    Connected,
    /// Nobody does.
    Disconnected,
}

/// Whether the relay has its way to other instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackplaneState {
    /// It has not.
    Down,
    /// It has again.
    Up,
}

/// Why a socket will end soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReconnectReason {
    /// The instance is leaving.
    Draining,
    /// The socket reached its maximum lifetime.
    Lifetime,
}

/// What a client may send, told in `welcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ClientLimits {
    /// The largest whole message, stream byte included, in bytes.
    pub message_bytes: usize,
    /// Messages a second; 0 is no limit.
    pub messages_per_second: u32,
    /// What may wait for a slow receiver, in bytes.
    pub queue_bytes: usize,
    /// Bytes a second; 0 is no limit.
    pub bytes_per_second: u32,
}

/// What a relay understands beyond the first version, listed in `welcome`. A client must not send what is not listed:
/// an older relay counts it as an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Feature {
    /// `send` with `ack`, and `ack`.
    Ack,
    /// `signal`.
    Signal,
    /// The relay reports a long reliable queue with `pressure`.
    Pressure,
}

/// Who took a slot over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Successor {
    /// The new connection.
    pub connection: ConnectionId,
    /// Its generation.
    pub generation: Generation,
    /// True for a hand-over: the same client came back.
    pub same_client: bool,
}

/// What the relay says to a v1 client in a text message.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage<'a> {
    /// The first message, always.
    Welcome {
        /// This connection.
        connection: ConnectionId,
        /// Its slot.
        device: Device,
        /// Its generation.
        generation: Generation,
        /// The user.
        uid: &'a str,
        /// Who holds the other slot.
        peer: Option<Member>,
        /// End of the session, Unix seconds.
        expires_at: u64,
        /// How often the relay pings a silent connection, milliseconds.
        heartbeat_ms: u64,
        /// What the client may send.
        limits: ClientLimits,
        /// This instance.
        instance: InstanceId,
        /// What this relay understands beyond the first version.
        features: &'a [Feature],
        /// The user's tenant, where the token names one.
        #[serde(skip_serializing_if = "Option::is_none")]
        tenant: Option<&'a str>,
        /// Servers by which two clients learn their public addresses (RFC 8489), if the operator lists any.
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        stun: &'a [String],
    },
    /// The other slot changed hands or became empty.
    Peer {
        /// The other device.
        device: Device,
        /// Whether it is there.
        state: PeerState,
        /// Which connection came or went.
        connection: ConnectionId,
        /// Its generation.
        generation: Generation,
    },
    /// From the other device, or from an operator.
    Message {
        /// Who sent it.
        from: Sender,
        /// Any JSON value, exactly as its sender wrote it.
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<&'a RawValue>,
        /// What a classic client sent.
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<&'a str>,
        /// The `id` that the sender gave it.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
    /// This connection lost its slot; close 4001 follows.
    Overwritten {
        /// Who holds it now.
        by: Successor,
    },
    /// The token expires soon.
    Expiring {
        /// Unix seconds.
        expires_at: u64,
    },
    /// The session goes on under a fresh token.
    Authenticated {
        /// Unix seconds.
        expires_at: u64,
    },
    /// The relay lost, or has again, its way to other instances.
    Backplane {
        /// Which of the two.
        state: BackplaneState,
    },
    /// This socket will end: connect again first.
    Reconnect {
        /// Why.
        reason: ReconnectReason,
        /// When to connect again, milliseconds from now.
        in_ms: u64,
        /// When this socket is closed with 1012, milliseconds from now.
        deadline_ms: u64,
    },
    /// The answer to `ping`.
    Pong {
        /// The `id` of the ping.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        /// The relay's clock, Unix milliseconds.
        time: u64,
    },
    /// The last message was not accepted.
    Error {
        /// Stable, for programs.
        code: &'a str,
        /// For people.
        detail: &'a str,
        /// The `id` of the message.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
}

impl ServerMessage<'_> {
    /// The text message on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // Serialising strings, numbers and values that are JSON already cannot fail.
        serde_json::to_vec(self).map(Bytes::from).unwrap_or_default()
    }
}

/// JSON without the white space outside strings (RFC 8259 section 2); key order and digits are kept.
#[must_use]
pub fn compact_json(json: &str) -> String {
    let mut compact = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if matches!(c, ' ' | '\t' | '\n' | '\r') {
            continue;
        } else {
            in_string = c == '"';
        }
        compact.push(c);
    }
    compact
}

/// JSON text as a value that is copied as it stands into another JSON text; `null` if it is none.
#[must_use]
pub fn raw_json(json: &str) -> &RawValue {
    serde_json::from_str(json).unwrap_or(RawValue::NULL)
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
