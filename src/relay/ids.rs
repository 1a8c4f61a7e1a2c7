//! The identities that every other module speaks of: users, devices, connections, instances.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The user whose room it is: the verified `sub` (uid) of an ID token, within its tenant where the token names one.
///
/// Never the e-mail address: that can be absent, unverified, or change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId {
    /// `UID`, or `TENANT/UID` with a tenant.
    qualified: Arc<str>,
    /// Bytes of the tenant in it; 0 without one. A uid can hold a slash, so the text alone does not say.
    tenant: u16,
}

impl UserId {
    /// The longest `sub` that OpenID Connect and Firebase allow, in characters; a tenant has no more.
    pub const MAX_CHARS: usize = 128;

    /// A user without a tenant, or `None` when the uid is empty or longer than [`Self::MAX_CHARS`].
    #[must_use]
    pub fn new(uid: &str) -> Option<Self> {
        is_short(uid).then(|| Self { qualified: uid.into(), tenant: 0 })
    }

    /// A user of a tenant, or `None` when one of the two is empty or longer than [`Self::MAX_CHARS`].
    #[must_use]
    pub fn of_tenant(tenant: &str, uid: &str) -> Option<Self> {
        let bytes = u16::try_from(tenant.len()).ok()?;
        let is_valid = is_short(tenant) && is_short(uid);
        is_valid.then(|| Self { qualified: format!("{tenant}/{uid}").into(), tenant: bytes })
    }

    /// The uid as it stands in the token.
    #[must_use]
    pub fn uid(&self) -> &str {
        match self.tenant {
            0 => &self.qualified,
            bytes => &self.qualified[usize::from(bytes) + 1..],
        }
    }

    /// The tenant, where there is one.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        (self.tenant > 0).then(|| &self.qualified[..usize::from(self.tenant)])
    }

    /// `UID` or `TENANT/UID`, for people. Two users can have the same one: a uid can hold a slash.
    #[must_use]
    pub fn qualified(&self) -> &str {
        &self.qualified
    }
}

fn is_short(text: &str) -> bool {
    (1..=UserId::MAX_CHARS).contains(&text.chars().count())
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.qualified, f)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.qualified)
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

    /// The name on the wire and in labels: `desktop` or `mobile`.
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
    /// The nil UUID: stands where no connection is.
    pub const NONE: Self = Self(Uuid::nil());
}

impl InstanceId {
    /// An instance that has not been learned yet.
    pub const UNKNOWN: Self = Self(Uuid::nil());
}

/// A number that a connection gets when it claims its slot. It grows with every claim of the room, and the
/// highest one holds the slot. It stays below 2^53, so that JSON and Lua keep it exactly.
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
    /// Unique over all instances and time.
    pub connection: ConnectionId,
    /// The generation under which it holds its slot.
    pub generation: Generation,
}

impl Member {
    /// Older than every member: no connection under generation 0.
    pub const NONE: Self = Self { connection: ConnectionId::NONE, generation: Generation::NONE };
}

/// A number that a client raises with each of its attempts to connect (`?attempt=`). Redis may carry out a
/// handshake late that the client gave up. Such a handshake does not throw out its successor. Below 2^53, so
/// that JSON and Lua keep it exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Attempt(u64);

impl Attempt {
    /// The lowest number, below every clock's.
    pub const ZERO: Self = Self(0);

    /// An attempt, or `None` unless it is below 2^53.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        (number < 1 << 53).then_some(Self(number))
    }

    /// What stands in a query: digits and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| is_number).and_then(Self::new)
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_the_pair_of_tenant_and_uid() {
        let ada = UserId::of_tenant("acme", "ada").unwrap();
        assert_eq!((ada.tenant(), ada.uid(), ada.qualified()), (Some("acme"), "ada", "acme/ada"));
        let plain = UserId::new("ada").unwrap();
        assert_eq!((plain.tenant(), plain.uid(), plain.qualified()), (None, "ada", "ada"));
        // The same text, and three different users.
        let users = [
            UserId::new("a/b/c").unwrap(),
            UserId::of_tenant("a", "b/c").unwrap(),
            UserId::of_tenant("a/b", "c").unwrap(),
        ];
        assert!(users[0] != users[1] && users[1] != users[2] && users[0] != users[2]);
        assert_eq!(UserId::of_tenant("\u{e9}", "\u{e9}/x").unwrap().uid(), "\u{e9}/x");
    }

    #[test]
    fn neither_part_is_empty_or_longer_than_128_characters() {
        let (long, too_long) = ("\u{e9}".repeat(128), "a".repeat(129));
        assert!(UserId::of_tenant(&long, &long).is_some());
        for (tenant, uid) in [("", "a"), ("a", ""), (too_long.as_str(), "a"), ("a", too_long.as_str())] {
            assert!(UserId::of_tenant(tenant, uid).is_none());
        }
    }
}
