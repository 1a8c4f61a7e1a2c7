//! What the scripts answer of a slot, and what instances announce: what is accepted says the same when it is written again.
#![no_main]

use duorelay::backplane::redis::fuzzing::{announced, slot};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(Some(lease)) = std::str::from_utf8(bytes).ok().and_then(slot) {
        let holder = &lease.holder;
        let client = holder.client.as_ref().map_or(".", |client| client.as_str());
        let (member, instance, end) = (holder.member, holder.instance, lease.ends);
        let text = format!("{} {instance} {client} {} {end}", member.connection, member.generation);
        assert_eq!(slot(&text), Some(Some(lease)));
    }
    let instances = announced(bytes);
    assert!(instances.len() <= 1);
    for (info, bytes) in instances {
        assert_eq!(announced(&bytes).into_iter().map(|(info, _)| info).collect::<Vec<_>>(), [info]);
    }
});
