//! What v1 clients say in text messages, and what is wrong with it.

use std::fmt;

use serde::Deserialize as DeriveDeserialize;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::relay::ids::ConnectionId;
use crate::relay::parcel::Undelivered;
use crate::relay::private::Private;

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
        if let Some((messages, time)) = plain_received(text) {
            return Ok(Self::Received { messages, time });
        }
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

/// How the client libraries begin a `received`.
const PLAIN_RECEIVED: &str = r#"{"type":"received","messages":"#;

/// A `received` as the client libraries write it, which costs a tenth of reading JSON: they come all the time. What is
/// written in another way is left to [`ClientMessage::parse`].
fn plain_received(text: &str) -> Option<(u64, f64)> {
    let is_whole = |digits: &str| {
        matches!(digits.as_bytes(), [b'0'] | [b'1'..=b'9', ..]) && digits.bytes().all(|c| c.is_ascii_digit())
    };
    let fields = text.strip_prefix(PLAIN_RECEIVED)?.strip_suffix('}')?;
    let (messages, time) = fields.split_once(',')?;
    let time = time.strip_prefix(r#""time":"#)?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    // Beyond that, only JSON's own reader says what is out of range.
    let is_plain = time.len() <= 16
        && is_whole(messages)
        && is_whole(whole)
        && !fraction.is_empty()
        && fraction.bytes().all(|c| c.is_ascii_digit());
    if is_plain { messages.parse().ok().zip(time.parse().ok()) } else { None }
}

/// False for a text message that makes a report due for certain. It costs less than reading the message.
#[must_use]
pub fn is_perhaps_quiet(text: &str) -> bool {
    text.starts_with(PLAIN_RECEIVED)
        || ["\"received\"", "\"reports\"", "\"ping\""].iter().any(|kind| text.contains(kind))
}
