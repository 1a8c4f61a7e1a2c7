//! The names of keys and channels. Everything of one user shares a hash tag, so that it lives in one slot
//! of a cluster (Redis cluster specification, "Hash tags").

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::relay::ids::{Device, InstanceId, UserId};

/// A uid can hold `{`, `}`, `:`, `*` or a line feed: everything outside A-Z a-z 0-9 - _ is encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Makes names under one prefix.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    /// Names that begin with `prefix`.
    #[must_use]
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The hash of a room.
    #[must_use]
    pub(super) fn room(&self, user: &UserId) -> String {
        self.with(user, "")
    }

    /// The channel of a device.
    #[must_use]
    pub(super) fn channel(&self, user: &UserId, device: Device) -> String {
        self.with(
            user,
            match device {
                Device::Desktop => ":desktop",
                Device::Mobile => ":mobile",
            },
        )
    }

    /// One allocation and no formatting: a name is made for each frame that is published.
    fn with(&self, user: &UserId, end: &str) -> String {
        let mut name = String::with_capacity(self.prefix.len() + user.qualified().len() + 16);
        name.push_str(&self.prefix);
        name.push_str(":{");
        if let Some(tenant) = user.tenant() {
            name.extend(utf8_percent_encode(tenant, ENCODED));
            // A bare slash, which no encoded uid holds: no uid alone gives this name.
            name.push('/');
        }
        name.extend(utf8_percent_encode(user.uid(), ENCODED));
        name.push('}');
        name.push_str(end);
        name
    }

    /// The channel on which instances announce themselves. A uid is never without braces.
    #[must_use]
    pub(super) fn instances(&self) -> String {
        format!("{}:instances", self.prefix)
    }

    /// The channel on which publishers tell of channels on which nobody has heard them.
    #[must_use]
    pub(super) fn unheard(&self) -> String {
        format!("{}:unheard", self.prefix)
    }

    /// The channel on which one worker hears itself.
    #[must_use]
    pub(super) fn probe(&self, instance: InstanceId, worker: usize) -> String {
        format!("{}:probe:{instance}:{worker}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_encoded_into_one_hash_tag() {
        let names = Names::new("duo");
        let user = UserId::new("a{b}:*\né-_9").unwrap();
        assert_eq!(names.room(&user), "duo:{a%7Bb%7D%3A%2A%0A%C3%A9-_9}");
        assert_eq!(names.channel(&user, Device::Mobile), "duo:{a%7Bb%7D%3A%2A%0A%C3%A9-_9}:mobile");
    }

    #[test]
    fn no_two_users_share_a_name() {
        let names = Names::new("duo");
        let table = [
            (UserId::new("a/b").unwrap(), "duo:{a%2Fb}"),
            (UserId::of_tenant("a", "b").unwrap(), "duo:{a/b}"),
            (UserId::of_tenant("a/b", "c").unwrap(), "duo:{a%2Fb/c}"),
            (UserId::of_tenant("a", "b/c").unwrap(), "duo:{a/b%2Fc}"),
        ];
        for (user, name) in table {
            assert_eq!(names.room(&user), name);
        }
    }
}
