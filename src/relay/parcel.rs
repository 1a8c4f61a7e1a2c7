//! What one device sends to the other, whichever protocols the two speak.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// What one device sends to the other. `Debug` prints its kind and its size.
#[derive(Clone, PartialEq, Eq)]
pub enum Parcel {
    /// A v1 binary message, stream id included; never empty.
    Frame(Bytes),
    /// A v1 `send`.
    Send {
        /// JSON, as the client wrote it.
        data: Bytes,
        /// The client's id for it.
        id: Option<String>,
        /// The sender's e-mail address or uid, for a classic receiver.
        label: Arc<str>,
    },
    /// A classic message.
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
            Self::Send { .. } | Self::Text { .. } => true,
        }
    }

    /// What it weighs while it waits, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Frame(bytes) => bytes.len(),
            Self::Send { data, id, label } => data.len() + id.as_ref().map_or(0, String::len) + label.len(),
            Self::Text { text, label } => text.len() + label.len(),
        }
    }

    /// True for a parcel without any content.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
