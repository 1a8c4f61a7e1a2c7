//! The names of keys and channels. Everything of one user shares a hash tag, so that it lives in one slot
//! of a cluster (Redis cluster specification, "Hash tags").

use fred::util::redis_keyslot;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::relay::ids::{Device, InstanceId, UserId};

/// A uid can hold `{`, `}`, `:`, `*` or a line feed: everything outside A-Z a-z 0-9 - _ is encoded.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// In so many parts of a cluster's slots an instance can be heard when the node of the common channel is away.
const PARTS: u16 = 4;

/// Makes names under one prefix.
#[derive(Debug, Clone)]
pub(super) struct Names {
    prefix: String,
    /// The end of each channel. Pub/sub knows no databases: on any but the first one, the channel names it.
    database: String,
}

/// A key and a channel on which one worker proves the way to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProbeNames {
    /// What the probe writes.
    pub(super) key: String,
    /// What the probe publishes on.
    pub(super) channel: String,
}

impl Names {
    /// Names that begin with `prefix`, in this database.
    #[must_use]
    pub(super) fn new(prefix: &str, database: u8) -> Self {
        let database = if database == 0 { String::new() } else { format!("@{database}") };
        Self { prefix: prefix.to_owned(), database }
    }

    #[must_use]
    pub(super) fn room(&self, user: &UserId) -> String {
        self.with(user, "", "")
    }

    #[must_use]
    pub(super) fn channel(&self, user: &UserId, device: Device) -> String {
        let end = match device {
            Device::Desktop => ":desktop",
            Device::Mobile => ":mobile",
        };
        self.with(user, end, &self.database)
    }

    /// One allocation and no formatting: a name is made for each frame that is published.
    fn with(&self, user: &UserId, end: &str, database: &str) -> String {
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
        name.push_str(database);
        name
    }

    /// The channel on which instances announce themselves. A uid is never without braces.
    #[must_use]
    pub(super) fn instances(&self) -> String {
        format!("{}:instances{}", self.prefix, self.database)
    }

    /// The channel on which publishers report channels on which nobody has heard them, to every instance.
    #[must_use]
    pub(super) fn unheard(&self) -> String {
        format!("{}:unheard{}", self.prefix, self.database)
    }

    /// The same, to one instance. Instances of the first version do not listen here.
    #[must_use]
    pub(super) fn unheard_by(&self, instance: InstanceId) -> String {
        format!("{}:unheard:{instance}{}", self.prefix, self.database)
    }

    /// The same channel elsewhere, once in each part of a cluster's slots. All instances agree on them.
    #[must_use]
    pub(super) fn elsewhere(&self, channel: &str) -> Vec<String> {
        let stem = channel.strip_suffix(&self.database).unwrap_or(channel);
        let in_part = |part: u16| {
            let mut names = (0u32..).map(|number| format!("{stem}:{number}{}", self.database));
            names.find(|name| redis_keyslot(name.as_bytes()) / (16_384 / PARTS) == part)
        };
        (0..PARTS).filter_map(in_part).collect()
    }

    /// The key that names the owner of this prefix.
    #[must_use]
    pub(super) fn owner(&self) -> String {
        format!("{}:owner", self.prefix)
    }

    /// Channels that are named as those of a user's devices are, and no user's: rights may cover others and not these.
    #[must_use]
    pub(super) fn nobodys(&self, who: &str) -> [String; 2] {
        ["desktop", "mobile"].map(|device| format!("{}:{{!{who}}}:{device}{}", self.prefix, self.database))
    }

    /// What `who` proves a way with. No encoded uid holds a `!`. Different numbers are in different slots of a cluster.
    #[must_use]
    pub(super) fn probe(&self, who: &str, number: u32) -> ProbeNames {
        let key = format!("{}:{{!{who}:{number}}}", self.prefix);
        let channel = format!("{key}:probe{}", self.database);
        ProbeNames { key, channel }
    }
}

/// The channels on which a process hears what instances say. The first of each is the common one, which instances of the
/// first version know as well.
#[derive(Debug, Clone)]
pub(super) struct Ways {
    /// Channels on which instances announce themselves.
    pub(super) announcements: Vec<String>,
    /// Channels on which nobody has heard a publish.
    pub(super) unheard: Vec<String>,
}

impl Ways {
    /// On a cluster they are in several parts of it: the life of no single node decides whether instances are heard.
    #[must_use]
    pub(super) fn new(names: &Names, instance: InstanceId, is_cluster: bool) -> Self {
        let (mut announcements, mut unheard) =
            (vec![names.instances()], vec![names.unheard(), names.unheard_by(instance)]);
        if is_cluster {
            announcements.extend(names.elsewhere(&names.instances()));
            unheard.extend(names.elsewhere(&names.unheard_by(instance)));
        }
        Self { announcements, unheard }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_instance_is_heard_in_every_part_of_a_cluster() {
        let instance = InstanceId(Uuid::from_u128(7));
        for prefix in ["duo", "another:prefix"] {
            for database in [0, 3] {
                let names = Names::new(prefix, database);
                for common in [names.instances(), names.unheard_by(instance)] {
                    let elsewhere = names.elsewhere(&common);
                    let parts: Vec<u16> =
                        elsewhere.iter().map(|name| redis_keyslot(name.as_bytes()) / 4096).collect();
                    assert_eq!(parts, [0, 1, 2, 3], "{elsewhere:?}");
                    assert!(elsewhere.iter().all(|name| name.ends_with(&names.database)), "{elsewhere:?}");
                }
            }
        }
        let names = Names::new("duo", 0);
        assert_eq!(Ways::new(&names, instance, false).announcements, ["duo:instances"]);
        assert_eq!(Ways::new(&names, instance, true).announcements.len(), 5);
    }

    #[test]
    fn a_uid_is_encoded_into_one_hash_tag() {
        let names = Names::new("duo", 0);
        let user = UserId::new("a{b}:*\né-_9").unwrap();
        assert_eq!(names.room(&user), "duo:{a%7Bb%7D%3A%2A%0A%C3%A9-_9}");
        assert_eq!(names.channel(&user, Device::Mobile), "duo:{a%7Bb%7D%3A%2A%0A%C3%A9-_9}:mobile");
    }

    #[test]
    fn no_two_users_share_a_name() {
        let names = Names::new("duo", 0);
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

    #[test]
    fn channels_name_a_database_and_keys_need_not() {
        let names = Names::new("duo", 3);
        let user = UserId::new("ann").unwrap();
        assert_eq!(names.room(&user), "duo:{ann}");
        assert_eq!(names.channel(&user, Device::Mobile), "duo:{ann}:mobile@3");
        assert_eq!(names.instances(), "duo:instances@3");
        assert_eq!(names.unheard(), "duo:unheard@3");
        assert_eq!(names.probe("me", 0).channel, "duo:{!me:0}:probe@3");
        assert_eq!(names.owner(), "duo:owner");
    }
}
