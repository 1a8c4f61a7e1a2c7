//! Which instances are there: each announces itself every second, and one that is silent for some time
//! counts as gone. All workers of a process share what one of them has heard.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backplane::InstanceInfo;
use crate::relay::ids::InstanceId;

/// An instance that was not heard of for this long counts as gone.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(5);
/// A silent instance is forgotten after this time.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// An announcement on the wire, as a MessagePack array.
#[derive(Serialize, Deserialize)]
struct Announcement(Uuid, u64, String, u64, bool);

#[must_use]
pub(super) fn announce(info: &InstanceInfo) -> Bytes {
    let announcement =
        Announcement(info.instance.0, info.connections, info.version.clone(), info.started_at, info.draining);
    rmp_serde::to_vec(&announcement).map(Bytes::from).unwrap_or_default()
}

struct Seen {
    info: Option<InstanceInfo>,
    last: Instant,
    /// It may announce itself on the common channel alone, as instances of the first version do. While this
    /// worker cannot hear that channel, the instance does not count as silent.
    is_excused: bool,
}

/// What has been heard of instances.
#[derive(Default)]
pub(super) struct Presence {
    seen: HashMap<InstanceId, Seen>,
    /// Those that were silent when nobody could be heard any more: they stay so.
    silent: HashSet<InstanceId>,
    /// On which channels announcements can be heard; the first is the common one.
    ways: Vec<bool>,
}

impl Presence {
    /// Notes an instance that lives, and whether it is a new one.
    pub(super) fn on_announcement(&mut self, bytes: &[u8], now: Instant) {
        let Ok(Announcement(instance, connections, version, started_at, draining)) =
            rmp_serde::from_slice(bytes)
        else {
            return;
        };
        let instance = InstanceId(instance);
        let info = Some(InstanceInfo { instance, connections, version, started_at, draining });
        self.seen.insert(instance, Seen { info, last: now, is_excused: false });
        self.silent.remove(&instance);
    }

    /// A slot names this instance: if it is never heard of, it will count as silent.
    pub(super) fn note(&mut self, instance: InstanceId, now: Instant) {
        if instance != InstanceId::UNKNOWN {
            let is_excused = !self.hears_common();
            self.seen.entry(instance).or_insert(Seen { info: None, last: now, is_excused });
        }
    }

    /// On which channels announcements can be heard from now on: where there is none, nobody becomes silent. Silence is
    /// counted anew after each change, since whoever announces itself has to find another way as well.
    pub(super) fn set_ways(&mut self, ways: Vec<bool>, now: Instant) {
        if ways == self.ways {
            return;
        }
        if self.hears() {
            self.sweep(now);
        }
        self.ways = ways;
        let is_excused = !self.hears_common();
        for (instance, seen) in &mut self.seen {
            if !self.silent.contains(instance) {
                seen.last = now;
                seen.is_excused = is_excused;
            }
        }
    }

    fn hears(&self) -> bool {
        self.ways.contains(&true)
    }

    fn hears_common(&self) -> bool {
        self.ways.first().is_some_and(|hears| *hears)
    }

    fn sweep(&mut self, now: Instant) {
        self.seen.retain(|_, seen| now.duration_since(seen.last) < FORGET_AFTER);
        self.silent.retain(|instance| self.seen.contains_key(instance));
        for (instance, seen) in &self.seen {
            if !seen.is_excused && now.duration_since(seen.last) >= SILENT_AFTER {
                self.silent.insert(*instance);
            }
        }
    }

    pub(super) fn silent(&mut self, now: Instant) -> &HashSet<InstanceId> {
        if self.hears() {
            self.sweep(now);
        }
        &self.silent
    }

    pub(super) fn list(&self) -> Vec<InstanceInfo> {
        let there = self.seen.iter().filter(|(instance, _)| !self.silent.contains(instance));
        there.filter_map(|(_, seen)| seen.info.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> InstanceId {
        InstanceId(Uuid::from_u128(7))
    }

    fn announcement() -> (InstanceInfo, Bytes) {
        let info = InstanceInfo {
            instance: instance(),
            connections: 3,
            version: "1".into(),
            started_at: 9,
            draining: false,
        };
        let bytes = announce(&info);
        (info, bytes)
    }

    #[test]
    fn an_instance_is_silent_after_five_seconds_and_heard_again() {
        let (mut presence, start) = (Presence::default(), Instant::now());
        presence.set_ways(vec![true], start);
        let (info, bytes) = announcement();
        presence.on_announcement(&bytes, start);
        assert_eq!(presence.list(), [info]);
        assert!(presence.silent(start + SILENT_AFTER - Duration::from_millis(1)).is_empty());
        assert!(presence.silent(start + SILENT_AFTER).contains(&instance()));
        assert!(presence.list().is_empty());
        presence.on_announcement(&bytes, start + SILENT_AFTER);
        assert!(presence.silent(start + SILENT_AFTER).is_empty());
    }

    #[test]
    fn silence_is_counted_anew_after_a_break() {
        let (mut presence, start) = (Presence::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        presence.note(instance(), start);
        assert!(presence.silent(after(60)).is_empty(), "nobody can be heard");
        presence.set_ways(vec![true], after(60));
        assert!(presence.silent(after(62)).is_empty());
        assert!(presence.silent(after(65)).contains(&instance()));
        presence.set_ways(vec![false], after(66));
        presence.set_ways(vec![true], after(90));
        assert!(presence.silent(after(91)).contains(&instance()), "a break makes nobody come back");
    }

    #[test]
    fn a_break_that_begins_in_time_makes_nobody_silent() {
        let (mut presence, start) = (Presence::default(), Instant::now());
        presence.set_ways(vec![true], start);
        presence.note(instance(), start);
        presence.set_ways(vec![false], start + Duration::from_secs(4));
        assert!(presence.silent(start + Duration::from_secs(20)).is_empty());
    }

    /// What happens at a second: the ways change, or an announcement comes.
    enum Step {
        Ways(u64, [bool; 3]),
        Heard(u64),
    }

    #[test]
    fn no_single_node_decides_who_is_silent() {
        use Step::{Heard, Ways};
        const ALL: [bool; 3] = [true; 3];
        const COMMON_AWAY: [bool; 3] = [false, true, true];
        const NONE: [bool; 3] = [false; 3];
        let table: [(&str, &[Step], u64, bool); 9] = [
            ("silent where all can be heard", &[], 5, true),
            ("the common channel's node goes: it may know no other", &[Ways(3, COMMON_AWAY)], 60, false),
            ("it is heard elsewhere", &[Ways(3, COMMON_AWAY), Heard(7)], 11, false),
            ("and is silent there as well", &[Ways(3, COMMON_AWAY), Heard(7)], 12, true),
            (
                "another node takes over: counted anew",
                &[Ways(3, COMMON_AWAY), Heard(7), Ways(10, ALL)],
                14,
                false,
            ),
            ("and not heard there", &[Ways(3, COMMON_AWAY), Heard(7), Ways(10, ALL)], 15, true),
            ("another channel's node goes: counted anew", &[Ways(4, [true, false, true])], 8, false),
            ("and silent on all others", &[Ways(4, [true, false, true])], 9, true),
            ("nothing can be heard", &[Ways(4, NONE)], 60, false),
        ];
        for (what, steps, asked, is_silent) in table {
            let (mut presence, start) = (Presence::default(), Instant::now());
            let after = |seconds: u64| start + Duration::from_secs(seconds);
            presence.set_ways(ALL.to_vec(), start);
            let (_, bytes) = announcement();
            presence.on_announcement(&bytes, start);
            for step in steps {
                match step {
                    Ways(at, ways) => presence.set_ways(ways.to_vec(), after(*at)),
                    Heard(at) => presence.on_announcement(&bytes, after(*at)),
                }
            }
            assert_eq!(presence.silent(after(asked)).contains(&instance()), is_silent, "{what}");
        }
    }

    #[test]
    fn the_long_silent_are_forgotten() {
        let (mut presence, start) = (Presence::default(), Instant::now());
        presence.set_ways(vec![true], start);
        presence.note(instance(), start);
        assert!(presence.silent(start + SILENT_AFTER).contains(&instance()));
        assert!(presence.silent(start + FORGET_AFTER).is_empty());
    }

    #[test]
    fn no_bytes_break_it() {
        let mut presence = Presence::default();
        presence.on_announcement(b"\xff\x00nonsense", Instant::now());
        assert!(presence.list().is_empty());
    }
}
