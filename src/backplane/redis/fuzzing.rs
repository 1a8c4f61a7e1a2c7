//! Ways in for the fuzz targets (`fuzz/`), which are not there in any other build.

use std::time::Instant;

use fred::types::Value;

use super::{presence, scripts};
use crate::backplane::InstanceInfo;
use crate::relay::record::Lease;

/// What a script's answer says of a slot: `None` when it makes no sense.
#[must_use]
pub fn slot(text: &str) -> Option<Option<Lease>> {
    scripts::holder(&Value::from(text)).ok()
}

/// The instances that are known after this announcement, and the announcement of each.
#[must_use]
pub fn announced(bytes: &[u8]) -> Vec<(InstanceInfo, Vec<u8>)> {
    let mut presence = presence::Presence::default();
    presence.on_announcement(bytes, Instant::now());
    presence.list().into_iter().map(|info| (info.clone(), presence::announce(&info).to_vec())).collect()
}
