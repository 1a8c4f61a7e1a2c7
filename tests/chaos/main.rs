//! Chaos: four real instances on a real Redis, many users with two devices each that come, stream, roam, vanish and
//! take over, while instances are killed, stopped, told to leave and cut off, and Redis is frozen, killed and emptied.
//! Every client looks at each message that it reads; at the end the troubles end, everything settles, all devices
//! move once more, and then the books have to balance.
//!
//! The short form runs with the other tests. A long one, and a seed that failed once again:
//!
//! ```sh
//! DUORELAY_CHAOS_SECONDS=300 DUORELAY_CHAOS_SEED=7 cargo test --test chaos -- --nocapture
//! ```
//!
//! The seed decides what goes wrong when and what each device plans; how processes interleave is theirs.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]
#![allow(unreachable_pub, reason = "the support is shared with other test binaries")]

#[path = "../support/mod.rs"]
mod support;

mod connection;
mod device;
mod fleet;
mod record;
mod schedule;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep};

use crate::device::{Device, Phase, Tokens, uid};
use crate::fleet::{Fleet, HEARTBEAT, Holdings, INSTANCES, LEASE};
use crate::record::{Known, Record};
use crate::support::Token;

/// What a process may hold more than at the beginning: what the allocator keeps of the worst moment.
const KEPT: u64 = 48 << 20;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_the_newest_connection_of_each_device_is_left_and_nothing_was_wrong() {
    let seed = setting("DUORELAY_CHAOS_SEED", 1);
    let length = Duration::from_secs(setting("DUORELAY_CHAOS_SECONDS", 20));
    let users = u32::try_from(setting("DUORELAY_CHAOS_USERS", 100)).unwrap();
    let turn = Duration::from_millis(setting("DUORELAY_CHAOS_TURN_MS", 400));
    eprintln!(
        "DUORELAY_CHAOS_SEED={seed} DUORELAY_CHAOS_SECONDS={} DUORELAY_CHAOS_USERS={users}",
        length.as_secs()
    );

    let (fleet, record) = (Arc::new(Fleet::start().await), Arc::new(Record::default()));
    let (phase, phases) = watch::channel(Phase::Settle);
    let mut devices = Vec::new();
    for user in 0..users {
        let valid = Token::firebase(&uid(user))
            .expires_in(3600 + 2 * i64::try_from(length.as_secs()).unwrap())
            .sign();
        let old = Token::firebase(&uid(user)).expires_in(-1).sign();
        let tokens = Arc::new(Tokens { valid, old });
        for device in 0..2 {
            let device = Device::new(
                seed,
                user,
                device,
                tokens.clone(),
                fleet.clone(),
                record.clone(),
                turn,
                phases.clone(),
            );
            devices.push(tokio::spawn(device.live()));
        }
    }
    let started = Instant::now();
    check_all_hear(&record, users, "at the beginning").await;
    let before: BTreeMap<usize, Holdings> = fleet.holdings().await.into_iter().collect();
    eprintln!("{users} users after {:?}", started.elapsed());

    phase.send_replace(Phase::Chaos);
    let schedule = schedule::schedule(seed, INSTANCES, length);
    let ((), ()) = tokio::join!(fleet.suffer(&schedule, &record), sleep(length));
    phase.send_replace(Phase::Settle);
    fleet.wait_until_ready().await;
    // Leases, heartbeats of who has vanished, the goodbye of who does not listen, and everybody's coming back.
    sleep(LEASE.max(HEARTBEAT * 2) + Duration::from_secs(6)).await;
    check_all_hear(&record, users, "after the chaos").await;
    check_newest_remain(&fleet, &record, users).await;

    // Now nothing is wrong, so nothing may be lost.
    record.is_calm.store(true, Ordering::Relaxed);
    phase.send_replace(Phase::Storm);
    sleep(Duration::from_secs(4)).await;
    phase.send_replace(Phase::Silence);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut looks = interval(Duration::from_millis(50));
    while record.calm_missing() > 0 && Instant::now() < deadline {
        looks.tick().await;
    }
    record.check_calm();
    check_newest_remain(&fleet, &record, users).await;
    let after = fleet.holdings().await;

    phase.send_replace(Phase::End);
    for device in devices {
        support::within(Duration::from_secs(20), "a device to leave", device).await.unwrap();
    }
    check_nothing_is_left(&fleet, &record, &before, &after).await;
    fleet.leave(&record).await;
    record.check_takeovers();

    let wrong = record.take_wrong();
    eprintln!(
        "{} connections, {} overwritten, {} frames; refused: {:?}",
        record.all().len(),
        record.overwritten.load(Ordering::Relaxed),
        record.frames.load(Ordering::Relaxed),
        record.refused.lock().unwrap(),
    );
    let first = wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "DUORELAY_CHAOS_SEED={seed}: {} things are wrong:\n{first}", wrong.len());
}

/// The connections of each device that are open.
fn open(record: &Record) -> BTreeMap<(u32, usize), Vec<(u32, Known)>> {
    let mut open: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (number, known) in (0..).zip(record.all()) {
        if known.end.is_none() && known.vanished.is_none() {
            open.entry((known.user, known.device)).or_default().push((number, known));
        }
    }
    open
}

/// Reliable and volatile frames cross in every room, both ways, from now on.
async fn check_all_hear(record: &Record, users: u32, when: &str) {
    let since = Instant::now();
    let deadline = since + Duration::from_secs(20);
    let mut looks = interval(Duration::from_millis(200));
    loop {
        looks.tick().await;
        let open = open(record);
        let hears = |user: u32, device: usize| {
            let (Some([(_, me)]), Some([(peer, _)])) = (
                open.get(&(user, device)).map(Vec::as_slice),
                open.get(&(user, 1 - device)).map(Vec::as_slice),
            ) else {
                return false;
            };
            me.heard.iter().all(|heard| heard.is_some_and(|(from, at)| from == *peer && at >= since))
        };
        let deaf: Vec<_> = (0..users)
            .flat_map(|user| [(user, 0), (user, 1)])
            .filter(|(user, device)| !hears(*user, *device))
            .collect();
        if deaf.is_empty() {
            eprintln!("{when}: everybody hears their peer after {:?}", since.elapsed());
            return;
        }
        if Instant::now() >= deadline {
            for device in deaf.iter().take(10) {
                record.wrong(format!("{when} {device:?} does not hear its peer: {:?}", open.get(device)));
            }
            return;
        }
    }
}

/// Exactly the newest connection of each device is open, and all instances say so.
async fn check_newest_remain(fleet: &Fleet, record: &Record, users: u32) {
    let connections = fleet.metric("duorelay_connections").await;
    if connections != f64::from(2 * users) {
        record.wrong(format!("{connections} connections of {users} users"));
    }
    let all = record.all();
    let open = open(record);
    for user in 0..users {
        let room = fleet.room(user as usize % INSTANCES, &uid(user)).await;
        for (device, name) in ["desktop", "mobile"].into_iter().enumerate() {
            let of_device = all.iter().filter(|known| (known.user, known.device) == (user, device));
            let newest = of_device.max_by_key(|known| known.generation).unwrap();
            let left: Vec<_> =
                open.get(&(user, device)).into_iter().flatten().map(|(_, known)| known).collect();
            if left.len() != 1 || left[0].id != newest.id {
                record.wrong(format!("user {user}, {name}: {left:?} are open, {newest:?} is the newest"));
            }
            if room[name]["connection"] != newest.id.as_str() {
                record.wrong(format!("the room is {room}, and {newest:?} is the newest"));
            }
        }
    }
}

/// Everybody has left: nothing of them is left, and memory is where it was.
async fn check_nothing_is_left(
    fleet: &Fleet,
    record: &Record,
    before: &BTreeMap<usize, Holdings>,
    after: &[(usize, Holdings)],
) {
    let deadline = Instant::now() + 3 * LEASE + Duration::from_secs(6);
    let mut looks = interval(Duration::from_millis(200));
    // Each worker's own probe, instances' announcements, and what nobody has heard.
    let fixed = 2 + 2 * INSTANCES;
    loop {
        looks.tick().await;
        let connections = fleet.metric("duorelay_connections").await;
        let (channels, keys) = fleet.in_redis().await;
        if connections == 0.0 && channels.len() == fixed && keys.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            let channels: Vec<_> = channels.iter().take(30).collect();
            record
                .wrong(format!("left behind: {connections} connections, {channels:?}, {} keys", keys.len()));
            break;
        }
    }
    let most = before.values().map(|holdings| holdings.resident).max().unwrap();
    let empty: BTreeMap<_, _> = fleet.holdings().await.into_iter().collect();
    for (process, holdings) in after {
        let left = empty[process];
        eprintln!(
            "process {process}: {:?} MiB at the beginning, {} MiB and {} files after the chaos, {} MiB and {} files without connections",
            before.get(process).map(|holdings| holdings.resident >> 20),
            holdings.resident >> 20,
            holdings.files,
            left.resident >> 20,
            left.files,
        );
        if holdings.resident > most + KEPT {
            record.wrong(format!(
                "process {process} holds {} MiB, at the beginning it was {}",
                holdings.resident >> 20,
                most >> 20
            ));
        }
    }
}
