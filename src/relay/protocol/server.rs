//! What the relay says to v1 clients in text messages.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::Feature;
use crate::relay::ids::{ConnectionId, Device, Generation, InstanceId, Member};
use crate::relay::pacing;
use crate::relay::parcel::PressureState;

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
        /// `high` above half of the queue's limit, `low` below a quarter again.
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
        /// `down` or `up`.
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
