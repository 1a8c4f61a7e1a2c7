//! Who and what: the identities that every other module speaks of.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The verified `sub` (uid) of an ID token; the key of a room.
///
/// Never the e-mail address: that can be absent, unverified, or change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(Arc<str>);

impl UserId {
    /// The longest `sub` that OpenID Connect and Firebase allow, in characters.
    pub const MAX_CHARS: usize = 128;

    /// A user id, or `None` when it is empty or longer than [`Self::MAX_CHARS`].
    #[must_use]
    pub fn new(sub: &str) -> Option<Self> {
        let chars = sub.chars().count();
        (1..=Self::MAX_CHARS).contains(&chars).then(|| Self(sub.into()))
    }

    /// The uid as it stands in the token.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One of the two slots of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The computer, on which the character is shown.
    Desktop,
    /// The phone, whose camera follows the face.
    Mobile,
}

impl Device {
    /// Both devices, in the order in which they are listed everywhere.
    pub const ALL: [Self; 2] = [Self::Desktop, Self::Mobile];

    /// The other slot of the same room.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Desktop => Self::Mobile,
            Self::Mobile => Self::Desktop,
        }
    }

    /// `desktop` or `mobile`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Desktop => "desktop",
            Self::Mobile => "mobile",
        }
    }

    /// The device of that name, exactly as [`Self::as_str`] writes it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|device| device.as_str() == name)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

uuid_id! {
    /// One WebSocket (a UUIDv7, so that ids sort by age).
    ConnectionId
}
uuid_id! {
    /// One running relay process.
    InstanceId
}

impl ConnectionId {
    /// No connection.
    pub const NONE: Self = Self(Uuid::nil());
}

impl InstanceId {
    /// An instance that has not been learned yet.
    pub const UNKNOWN: Self = Self(Uuid::nil());
}

/// A number that a connection gets when it claims its slot: it grows with every claim of the
/// room, stays below 2^53 (so that JSON and Lua keep it exactly), and the highest one holds the slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// Below every generation that was ever given.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// One installation or browser tab, named by itself (`?client=`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ClientId(Arc<str>);

/// From an envelope: other instances are held to the rule as well.
impl TryFrom<String> for ClientId {
    type Error = &'static str;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        Self::new(&id).ok_or("not the name of a client")
    }
}

impl ClientId {
    /// A client id, or `None` unless it is 1 to 64 of `A-Z a-z 0-9 - _`.
    #[must_use]
    pub fn new(id: &str) -> Option<Self> {
        let valid = (1..=64).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        valid.then(|| Self(id.into()))
    }

    /// The id as the client wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A connection that holds a slot, as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
pub struct Member {
    /// Which connection.
    pub connection: ConnectionId,
    /// The generation under which it holds its slot.
    pub generation: Generation,
}

impl Member {
    /// Before any member.
    pub const NONE: Self = Self { connection: ConnectionId::NONE, generation: Generation::NONE };
}

/// Byte 0 of a binary frame: which stream it belongs to, and so which lane it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u8);

impl StreamId {
    /// True for 0x80-0xFF: delivered first in, first out. False for 0x00-0x7F: the latest wins.
    #[must_use]
    pub const fn is_reliable(self) -> bool {
        self.0 >= 0x80
    }
}
