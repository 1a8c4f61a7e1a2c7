//! The control messages of `duorelay.v1`, in both directions.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};
use serde_json::value::RawValue;

use super::ids::{ConnectionId, Device, Generation, InstanceId, Member};
use super::pacing;
use super::parcel::{PressureState, Undelivered};
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
#[derive(Debug, PartialEq)]
pub enum ClientMessage<'a> {
    /// To the other device, reliably.
    Send {
        /// Any JSON value, exactly as the client wrote it.
        data: Private<&'a str>,
        /// Repeated to the other device, and in errors.
        id: Option<String>,
        /// The sender waits for `acked`; then there is an `id`.
        ack: bool,
    },
    /// A message with `ack` has been delivered.
    Ack {
        /// The `id` of the acknowledged message.
        id: String,
    },
    /// To the other device's client library, to arrange a direct path.
    Signal {
        /// The connection that it is for, and no later one.
        to: ConnectionId,
        /// Any JSON value, exactly as the client wrote it.
        data: Private<&'a str>,
        /// Errors about this message repeat it.
        id: Option<String>,
    },
    /// What the client has read of this connection.
    Received {
        /// Messages, `welcome` being the first.
        messages: u64,
        /// The client's clock when it read the last of them, milliseconds.
        time: f64,
    },
    /// How often the client wants to hear `received`.
    Reports {
        /// The pace in milliseconds.
        every_ms: u64,
    },
    /// An application-level ping: browsers cannot send WebSocket pings.
    Ping {
        /// Repeated in the answer.
        id: Option<String>,
    },
    /// A fresh token for the same user.
    Auth {
        /// The new ID token, of the same user.
        token: Private<String>,
    },
}

/// What a relay understands beyond the first version, unless the operator has switched it off.
#[must_use]
pub fn features(pacing: bool, direct: bool) -> Vec<Feature> {
    let is_on = |feature: &Feature| match feature {
        Feature::Received => pacing,
        Feature::Signal => direct,
        Feature::Ack | Feature::Pressure => true,
    };
    let all = [Feature::Received, Feature::Ack, Feature::Signal, Feature::Pressure];
    all.into_iter().filter(is_on).collect()
}

/// Why a client's message was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageError {
    /// Stable: programs may compare it.
    pub code: &'static str,
    /// A sentence for people; it may change.
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

impl From<Undelivered> for MessageError {
    fn from(cause: Undelivered) -> Self {
        match cause {
            Undelivered::PeerAbsent => PEER_ABSENT,
            Undelivered::AckUnsupported => ACK_UNSUPPORTED,
        }
    }
}

/// The other slot is empty, or a `signal` was for another connection than the one that holds it.
pub const PEER_ABSENT: MessageError = MessageError::new(
    "peer_absent",
    "nobody who could take it holds the other slot: the message was dropped",
);
/// A `send` with `ack` to a classic connection.
pub const ACK_UNSUPPORTED: MessageError = MessageError::new(
    "ack_unsupported",
    "the other device speaks classic: it got the message, and sends no ack",
);
/// The backplane's queue is full.
pub const BACKPLANE_BLOCKED: MessageError = MessageError::new(
    "backplane_unavailable",
    "the way to the other device is blocked: the message was dropped",
);

/// A report that claims more than was sent, goes back, or is nonsense.
pub const BAD_REPORT: MessageError =
    MessageError::new("bad_field", "the report claims more than was sent, goes back, or is out of bounds");

/// The operator has switched reports off; `features` says so.
pub const REPORTS_OFF: MessageError =
    MessageError::new("unknown_type", "reports are switched off on this relay, and not among its features");

/// The operator has switched direct paths off; `features` says so.
pub const SIGNAL_IS_OFF: MessageError =
    MessageError::new("unknown_type", "signal is switched off on this relay, and not among its features");

/// Characters of the `id` of a message with `ack`, at most.
pub const ACK_ID_CHARS: usize = 64;
/// Bytes of the `data` of a `signal`, at most: a description of a session with all its candidates has a few thousand.
pub const SIGNAL_BYTES: usize = 16 * 1024;

/// The fields that mean something in any message, each as it was written. Others are read over: they cost no memory.
#[derive(Default)]
struct Fields<'a> {
    kind: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    token: Option<&'a RawValue>,
    ack: Option<&'a RawValue>,
    messages: Option<&'a RawValue>,
    time: Option<&'a RawValue>,
    every_ms: Option<&'a RawValue>,
    to: Option<&'a RawValue>,
}

#[derive(DeriveDeserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Name {
    Type,
    Id,
    Data,
    Token,
    Ack,
    Messages,
    Time,
    EveryMs,
    To,
    #[serde(other)]
    Unknown,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key()? {
                    // Of a field that is given twice the last one counts.
                    let field = match name {
                        Name::Type => &mut fields.kind,
                        Name::Id => &mut fields.id,
                        Name::Data => &mut fields.data,
                        Name::Token => &mut fields.token,
                        Name::Ack => &mut fields.ack,
                        Name::Messages => &mut fields.messages,
                        Name::Time => &mut fields.time,
                        Name::EveryMs => &mut fields.every_ms,
                        Name::To => &mut fields.to,
                        Name::Unknown => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    *field = Some(map.next_value()?);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// The value of a field; an error when it is there and of another type.
fn read<'a, T: Deserialize<'a>>(field: Option<&'a RawValue>) -> Result<Option<T>, ()> {
    field.map(|raw| serde_json::from_str(raw.get())).transpose().map_err(|_| ())
}

impl<'a> ClientMessage<'a> {
    /// Reads one text message.
    ///
    /// # Errors
    /// `bad_json` (not a JSON object), `unknown_type`, `bad_field`.
    pub fn parse(text: &'a str) -> Result<Self, MessageError> {
        let fields: Fields<'a> = serde_json::from_str(text)
            .map_err(|_| MessageError::new("bad_json", "a text message must be one JSON object"))?;
        let id = read::<String>(fields.id);
        let error = |code, detail| MessageError { code, detail, id: id.clone().unwrap_or(None) };
        let bad = |detail| move |()| MessageError { code: "bad_field", detail, id: None };
        let id_of = || id.clone().map_err(bad("id must be a string"));
        let data_of = |limit: usize| match fields.data {
            Some(data) if data.get().len() <= limit => Ok(Private::from(data.get())),
            Some(_) => Err(error("bad_field", "data is longer than 16 KiB")),
            None => Err(error("bad_field", "data is missing (null is a value)")),
        };
        let ack_id_of = || match id_of()? {
            Some(id) if (1..=ACK_ID_CHARS).contains(&id.chars().count()) => Ok(id),
            _ => Err(error("bad_field", "with ack, an id of 1 to 64 characters is needed")),
        };
        let kind = read::<String>(fields.kind)
            .map_err(|()| error("bad_field", "type must be a string"))?
            .ok_or_else(|| error("bad_field", "type is missing"))?;
        match kind.as_str() {
            "send" => {
                let data = data_of(usize::MAX)?;
                match read(fields.ack).map_err(|()| error("bad_field", "ack must be true or false"))? {
                    Some(true) => Ok(Self::Send { data, id: Some(ack_id_of()?), ack: true }),
                    Some(false) | None => Ok(Self::Send { data, id: id_of()?, ack: false }),
                }
            }
            "ack" => Ok(Self::Ack { id: ack_id_of()? }),
            "signal" => {
                let to = read(fields.to).unwrap_or(None);
                let to = to.ok_or_else(|| error("bad_field", "to must be a connection's id"))?;
                Ok(Self::Signal { to, data: data_of(SIGNAL_BYTES)?, id: id_of()? })
            }
            "received" => match (read(fields.messages), read(fields.time)) {
                (Ok(Some(messages)), Ok(Some(time))) => Ok(Self::Received { messages, time }),
                _ => Err(error("bad_field", "messages must be a count, and time a number")),
            },
            "reports" => match read(fields.every_ms) {
                Ok(Some(every_ms)) => Ok(Self::Reports { every_ms }),
                Ok(None) | Err(()) => Err(error("bad_field", "every_ms must be a whole number")),
            },
            "ping" => Ok(Self::Ping { id: id_of()? }),
            "auth" => match read::<String>(fields.token) {
                Ok(Some(token)) => Ok(Self::Auth { token: token.into() }),
                Ok(None) => Err(error("bad_field", "token is missing")),
                Err(()) => Err(error("bad_field", "token must be a string")),
            },
            _ => {
                Err(error("unknown_type", "type must be send, ack, signal, received, reports, ping or auth"))
            }
        }
    }
}

/// The sender of a `message`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sender {
    /// The device in the `desktop` slot.
    Desktop,
    /// The device in the `mobile` slot.
    Mobile,
    /// An operator's call, not a device.
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
    /// The other slot is empty.
    Disconnected,
}

/// Whether the relay has its way to other instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackplaneState {
    /// Other instances are unreachable.
    Down,
    /// Other instances are reachable again.
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

/// What a client may send. `welcome` carries it.
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
    /// The relay reads `received` and sends `reports`.
    Received,
    /// `send` with `ack`, and `ack`.
    Ack,
    /// Client libraries may exchange `signal`.
    Signal,
    /// The relay reports a long reliable queue with `pressure`.
    Pressure,
}

/// The connection that took a slot over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Successor {
    /// The connection that holds the slot now.
    pub connection: ConnectionId,
    /// The generation under which it claimed the slot.
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
        /// The id of the connection that reads this.
        connection: ConnectionId,
        /// The slot that this connection holds.
        device: Device,
        /// The generation under which it holds the slot.
        generation: Generation,
        /// The uid, without its tenant.
        uid: &'a str,
        /// The holder of the other slot.
        peer: Option<Member>,
        /// End of the session, Unix seconds.
        expires_at: u64,
        /// How often the relay pings a silent connection, milliseconds.
        heartbeat_ms: u64,
        /// What the client may send.
        limits: ClientLimits,
        /// The instance that has the socket.
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
        /// The slot that changed, never the reader's own.
        device: Device,
        /// Whether it is there.
        state: PeerState,
        /// Which connection came or went.
        connection: ConnectionId,
        /// The generation of that connection.
        generation: Generation,
    },
    /// From the other device, or from an operator.
    Message {
        /// The sender, as far as a client may know it.
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
        /// The sender waits for an `ack`.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        ack: bool,
    },
    /// The other device has delivered a message with `ack`.
    Acked {
        /// The `id` of the acknowledged message.
        id: &'a str,
    },
    /// From the other device's client library.
    Signal {
        /// The connection that sent it.
        from: ConnectionId,
        /// Any JSON value, exactly as its sender wrote it.
        data: &'a RawValue,
    },
    /// The reliable queue of the other device's connection has become long, or is short again.
    Pressure {
        /// Which of the two.
        state: PressureState,
        /// The receiver's connection: its queue is long, or short again.
        connection: ConnectionId,
    },
    /// What the relay has read of this connection.
    Received {
        /// Messages, the client's first being 1.
        messages: u32,
        /// The relay's own clock when it read the last of them, milliseconds.
        time: f64,
    },
    /// How often the relay wants to hear `received`.
    Reports {
        /// The pace in milliseconds.
        every_ms: u16,
    },
    /// This connection lost its slot; close 4001 follows.
    Overwritten {
        /// The new holder of the slot.
        by: Successor,
    },
    /// The token expires soon.
    Expiring {
        /// Unix seconds, from the token's `exp`.
        expires_at: u64,
    },
    /// The session goes on under a fresh token.
    Authenticated {
        /// Unix seconds, from the new token's `exp`.
        expires_at: u64,
    },
    /// The relay lost, or has again, its way to other instances.
    Backplane {
        /// Which of the two.
        state: BackplaneState,
    },
    /// This socket will end: connect again first.
    Reconnect {
        /// Why the socket is going to end.
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
        /// Stable: programs may compare it.
        code: &'a str,
        /// A sentence for people; it may change.
        detail: &'a str,
        /// The `id` of the message.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
    },
}

impl ClientMessage<'_> {
    /// It makes no report due: two ends would answer each other for ever.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        match self {
            Self::Received { .. } | Self::Reports { .. } | Self::Ping { .. } => true,
            Self::Send { .. } | Self::Ack { .. } | Self::Signal { .. } | Self::Auth { .. } => false,
        }
    }
}

/// False for a text message that makes a report due for certain. It costs less than reading the message.
#[must_use]
pub fn is_perhaps_quiet(text: &str) -> bool {
    ["\"received\"", "\"reports\"", "\"ping\""].iter().any(|kind| text.contains(kind))
}

impl ServerMessage<'_> {
    /// How the window of a path sees it.
    #[must_use]
    pub const fn path_kind(&self) -> pacing::Kind {
        match self {
            Self::Received { .. } | Self::Reports { .. } | Self::Pong { .. } => pacing::Kind::Quiet,
            Self::Welcome { .. }
            | Self::Peer { .. }
            | Self::Message { .. }
            | Self::Acked { .. }
            | Self::Signal { .. }
            | Self::Pressure { .. }
            | Self::Overwritten { .. }
            | Self::Expiring { .. }
            | Self::Authenticated { .. }
            | Self::Backplane { .. }
            | Self::Reconnect { .. }
            | Self::Error { .. } => pacing::Kind::Control,
        }
    }

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
