//! What one device sends to the other, whichever protocols the two speak.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ids::ConnectionId;

/// What one device sends to the other. `Debug` prints its kind and its size.
#[derive(Clone, PartialEq, Eq)]
pub enum Parcel {
    /// A v1 binary message, stream id included; never empty.
    Frame(Bytes),
    /// A v1 `send`: becomes `message`.
    Send {
        /// JSON, as the client wrote it.
        data: Bytes,
        /// The client's id for it.
        id: Option<String>,
        /// The sender's e-mail address or uid, for a classic receiver.
        label: Arc<str>,
        /// The sender waits for an `ack`.
        ack: bool,
    },
    /// A v1 `ack`: becomes `acked`.
    Ack {
        /// The `id` of the acknowledged message.
        id: String,
    },
    /// A v1 `signal`, between two client libraries.
    Signal {
        /// The connection that it is for, and no later one.
        to: ConnectionId,
        /// JSON, as the client wrote it.
        data: Bytes,
        /// The client's id for it, for errors.
        id: Option<String>,
    },
    /// Not from the other device itself: the relay that writes to it reports its reliable queue.
    Pressure(PressureState),
    /// A classic message, text or binary.
    Text {
        /// What the client sent, as text.
        text: Bytes,
        /// The sender's e-mail address or uid.
        label: Arc<str>,
    },
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Frame(_) => "Frame",
            Self::Send { .. } => "Send",
            Self::Text { .. } => "Text",
            Self::Ack { .. } => "Ack",
            Self::Signal { .. } => "Signal",
            Self::Pressure(_) => "Pressure",
        };
        write!(f, "{kind}({} bytes)", self.len())
    }
}

impl Parcel {
    /// True when the parcel must not be lost or replaced on its way.
    #[must_use]
    pub fn is_reliable(&self) -> bool {
        match self {
            Self::Frame(bytes) => bytes.first().is_some_and(|id| *id >= 0x80),
            Self::Send { .. }
            | Self::Text { .. }
            | Self::Ack { .. }
            | Self::Signal { .. }
            | Self::Pressure(_) => true,
        }
    }

    /// The `id` that its client gave it.
    #[must_use]
    pub fn into_id(self) -> Option<String> {
        match self {
            Self::Send { id, .. } | Self::Signal { id, .. } => id,
            Self::Ack { id } => Some(id),
            Self::Frame(_) | Self::Text { .. } | Self::Pressure(_) => None,
        }
    }

    /// What it weighs while it waits, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Frame(bytes) => bytes.len(),
            Self::Send { data, id, label, .. } => {
                data.len() + id.as_ref().map_or(0, String::len) + label.len()
            }
            Self::Text { text, label } => text.len() + label.len(),
            Self::Ack { id } => id.len(),
            Self::Signal { data, id, .. } => data.len() + id.as_ref().map_or(0, String::len),
            Self::Pressure(_) => 0,
        }
    }

    /// True for a parcel without any content.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Whether a receiver's reliable queue is long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PressureState {
    /// Above half of what may wait.
    High,
    /// Below a quarter again.
    Low,
}

/// Why a message that arrived at an instance did not reach what it was meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Undelivered {
    /// A `signal`: the connection is not current any more, or speaks the classic protocol.
    #[serde(rename = "p")]
    PeerAbsent,
    /// A `send` with `ack`: it was delivered, to a classic connection, which will not acknowledge it.
    #[serde(rename = "a")]
    AckUnsupported,
}
