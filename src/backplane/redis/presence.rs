//! Which instances are there: each announces itself every second, and one that is silent for some time
//! counts as gone.

use std::cell::RefCell;
use std::collections::HashMap;
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

/// The bytes of an announcement.
#[must_use]
pub(super) fn announce(info: &InstanceInfo) -> Bytes {
    let announcement =
        Announcement(info.instance.0, info.connections, info.version.clone(), info.started_at, info.draining);
    rmp_serde::to_vec(&announcement).map(Bytes::from).unwrap_or_default()
}

struct Seen {
    info: Option<InstanceInfo>,
    last: Instant,
    silent: bool,
}

/// What has been heard of other instances.
#[derive(Default)]
pub(super) struct Presence(RefCell<HashMap<InstanceId, Seen>>);

impl Presence {
    /// An announcement came; returns an instance that was silent until now.
    pub(super) fn on_announcement(&self, bytes: &[u8], now: Instant) -> Option<InstanceId> {
        let Announcement(instance, connections, version, started_at, draining) =
            rmp_serde::from_slice(bytes).ok()?;
        let instance = InstanceId(instance);
        let info = Some(InstanceInfo { instance, connections, version, started_at, draining });
        let before = self.0.borrow_mut().insert(instance, Seen { info, last: now, silent: false });
        before.is_some_and(|seen| seen.silent).then_some(instance)
    }

    /// A slot names this instance: if it is never heard of, it will count as silent.
    pub(super) fn note(&self, instance: InstanceId, now: Instant) {
        if instance != InstanceId::UNKNOWN {
            self.0.borrow_mut().entry(instance).or_insert(Seen { info: None, last: now, silent: false });
        }
    }

    /// Nobody could be heard until now: silence is counted from here.
    pub(super) fn start_over(&self, now: Instant) {
        for seen in self.0.borrow_mut().values_mut().filter(|seen| !seen.silent) {
            seen.last = now;
        }
    }

    /// The instances that have become silent.
    pub(super) fn sweep(&self, now: Instant) -> Vec<InstanceId> {
        let mut seen = self.0.borrow_mut();
        seen.retain(|_, seen| now.duration_since(seen.last) < FORGET_AFTER);
        let mut silent = Vec::new();
        for (instance, seen) in seen.iter_mut() {
            if !seen.silent && now.duration_since(seen.last) >= SILENT_AFTER {
                seen.silent = true;
                silent.push(*instance);
            }
        }
        silent
    }

    /// True for an instance that has become silent.
    pub(super) fn is_silent(&self, instance: InstanceId) -> bool {
        self.0.borrow().get(&instance).is_some_and(|seen| seen.silent)
    }

    /// Those that are there.
    pub(super) fn list(&self) -> Vec<InstanceInfo> {
        self.0.borrow().values().filter(|seen| !seen.silent).filter_map(|seen| seen.info.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_silent_after_five_seconds_and_heard_again() {
        let (presence, start) = (Presence::default(), Instant::now());
        let instance = InstanceId(Uuid::from_u128(7));
        let info =
            InstanceInfo { instance, connections: 3, version: "1".into(), started_at: 9, draining: false };
        assert_eq!(presence.on_announcement(&announce(&info), start), None);
        assert_eq!(presence.list(), std::slice::from_ref(&info));
        assert!(presence.sweep(start + SILENT_AFTER - Duration::from_millis(1)).is_empty());
        assert_eq!(presence.sweep(start + SILENT_AFTER), [instance]);
        assert!(presence.is_silent(instance) && presence.list().is_empty());
        let later = start + SILENT_AFTER;
        assert_eq!(presence.on_announcement(&announce(&info), later), Some(instance));
        assert!(!presence.is_silent(instance));
    }

    #[test]
    fn silence_is_counted_anew_after_a_break() {
        let (presence, start) = (Presence::default(), Instant::now());
        let instance = InstanceId(Uuid::from_u128(7));
        presence.note(instance, start);
        presence.start_over(start + Duration::from_secs(60));
        assert!(presence.sweep(start + Duration::from_secs(62)).is_empty());
        assert_eq!(presence.sweep(start + Duration::from_secs(65)), [instance]);
    }

    #[test]
    fn no_bytes_break_it() {
        assert_eq!(Presence::default().on_announcement(b"\xff\x00nonsense", Instant::now()), None);
    }
}
