//! Chaos: four real instances on a real Redis, and many users with two devices each. The devices come,
//! stream, roam, vanish and take over. Meanwhile the test kills, stops, drains and cuts off instances, and
//! freezes, kills and empties Redis. Every client looks at each message that it reads. At the end the
//! troubles end, everything settles, and all devices move once more. Then the books have to balance.
//!
//! The short form runs with the other tests. A long one, and a seed that failed once again:
//!
//! ```sh
//! DUORELAY_CHAOS_SECONDS=60 DUORELAY_CHAOS_USERS=300 DUORELAY_CHAOS_TURN_MS=1000 DUORELAY_CHAOS_SEED=7 cargo test --test chaos -- --nocapture
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
mod frame;
mod record;
mod schedule;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep};

use crate::device::{DEVICES, Device, Phase, uid};
use crate::fleet::{Fleet, Holdings, INSTANCES, LEASE};
use crate::record::{Known, Record};
use crate::support::Token;

/// What a process may hold more than at the beginning: what the allocator keeps of the worst moment.
const KEPT: u64 = 32 << 20;

/// The time limit until all is in order again. It covers leases, heartbeats of clients that have vanished,
/// the goodbye of those that do not listen, and everybody's coming back.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);

/// The short form, which runs with the other tests.
const SEED: u64 = 16;
const SECONDS: u64 = 14;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_the_newest_connection_of_each_device_is_left_and_nothing_was_wrong() {
    let seed = setting("DUORELAY_CHAOS_SEED", SEED);
    let length = Duration::from_secs(setting("DUORELAY_CHAOS_SECONDS", SECONDS));
    let users = u32::try_from(setting("DUORELAY_CHAOS_USERS", 30)).unwrap();
    let turn = Duration::from_millis(setting("DUORELAY_CHAOS_TURN_MS", 400));
    eprintln!(
        "DUORELAY_CHAOS_SEED={seed} DUORELAY_CHAOS_SECONDS={} DUORELAY_CHAOS_USERS={users}",
        length.as_secs()
    );

    let (fleet, record) = (Arc::new(Fleet::start().await), Arc::new(Record::default()));
    let (phase, phases) = watch::channel(Phase::Settle);
    let mut devices = Vec::new();
    for user in 0..users {
        let token =
            Token::firebase(&uid(user)).expires_in(3600 + 2 * i64::try_from(length.as_secs()).unwrap());
        let token: Arc<str> = token.sign().into();
        for device in 0..2 {
            let device = Device::new(
                seed,
                user,
                device,
                token.clone(),
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
    // Whatever is not renewed by now is lost.
    sleep(LEASE).await;
    check_all_hear(&record, users, "after the chaos").await;
    check_newest_remain(&fleet, &record, users, "after the chaos").await;

    // Now nothing is wrong, so nothing may be lost.
    record.is_calm.store(true, Ordering::Relaxed);
    phase.send_replace(Phase::Storm);
    sleep(Duration::from_secs(3)).await;
    phase.send_replace(Phase::Silence);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut looks = interval(Duration::from_millis(50));
    while record.calm_missing() > 0 && Instant::now() < deadline {
        looks.tick().await;
    }
    record.check_calm();
    check_newest_remain(&fleet, &record, users, "after the calm").await;
    let after = fleet.holdings().await;

    phase.send_replace(Phase::End);
    for device in devices {
        support::within(Duration::from_secs(20), "a device to leave", device).await.unwrap();
    }
    check_nothing_waits(&fleet, &record, &before, &after).await;
    tokio::join!(fleet.leave(&record), check_redis_forgets(&fleet, &record));
    record.check_takeovers();

    let wrong = record.take_wrong();
    let mut kinds: BTreeMap<_, usize> = BTreeMap::new();
    for fault in &schedule {
        *kinds.entry(fault.trouble.kind()).or_default() += 1;
    }
    eprintln!(
        "seed {seed}: {} troubles ({kinds:?}), {} connections of {users} users, {} overwritten, {} frames checked, {:.0} s; refused: {:?}",
        schedule.len(),
        record.all().len(),
        record.overwritten.load(Ordering::Relaxed),
        record.frames.load(Ordering::Relaxed),
        started.elapsed().as_secs_f64(),
        record.refused.lock().unwrap(),
    );
    let first = wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "DUORELAY_CHAOS_SEED={seed}: {} things are wrong:\n{first}", wrong.len());
}

/// The connections of each device that are open.
fn open(record: &Record) -> BTreeMap<(u32, usize), Vec<(u32, Known)>> {
    let mut open: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (number, known) in (0..).zip(record.all()) {
        if known.is_open() {
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
            for (user, device) in deaf {
                record.wrong_for(user, &format!("{when} the {} does not hear its peer", DEVICES[device]));
            }
            return;
        }
    }
}

/// Exactly the newest connection of each device is open, and all instances say so. Devices go on to move, when their
/// connections' lifetime is over: who is not in order is looked at again for a while.
async fn check_newest_remain(fleet: &Fleet, record: &Record, users: u32, when: &str) {
    let since = Instant::now();
    let mut looks = interval(Duration::from_millis(200));
    let mut rest: Vec<u32> = (0..users).collect();
    loop {
        looks.tick().await;
        let connections = fleet.metric("duorelay_connections", &[]).await;
        let mut wrong = Vec::new();
        for user in rest {
            let room = fleet.room(user as usize % INSTANCES, &uid(user)).await;
            if let Err(what) = only_newest_remain(record, user, &room) {
                wrong.push((user, what));
            }
        }
        if wrong.is_empty() && connections == f64::from(2 * users) {
            eprintln!("{when}: exactly the newest remain, seen after {:?}", since.elapsed());
            return;
        }
        if since.elapsed() >= SETTLES_WITHIN {
            record.wrong(format!("{when}: {connections} connections of {users} users"));
            for (user, what) in &wrong {
                record.wrong_for(*user, &format!("{when}: {what}"));
            }
            return;
        }
        rest = wrong.into_iter().map(|(user, _)| user).collect();
    }
}

fn only_newest_remain(record: &Record, user: u32, room: &Value) -> Result<(), String> {
    let of_user = record.of(user);
    for (device, name) in DEVICES.into_iter().enumerate() {
        let of_device = || of_user.iter().map(|(_, known)| known).filter(|known| known.device == device);
        let newest = of_device().max_by_key(|known| known.generation).unwrap();
        let open = of_device().filter(|known| known.is_open()).map(|known| &*known.id);
        let open: Vec<&str> = open.collect();
        if open != [&*newest.id] {
            return Err(format!("{name}: {open:?} are open, {} is the newest", newest.id));
        }
        if newest.expires < support::now() + 60 {
            return Err(format!("{name}: the token of {} is about to expire", newest.id));
        }
        if room[name]["connection"] != newest.id.as_str() {
            return Err(format!("{name}: {} is the newest, and the room is {room}", newest.id));
        }
    }
    Ok(())
}

/// Everybody has left: nothing of them is left in the instances, and memory is where it was.
async fn check_nothing_waits(
    fleet: &Fleet,
    record: &Record,
    before: &BTreeMap<usize, Holdings>,
    after: &[(usize, Holdings)],
) {
    let deadline = Instant::now() + SETTLES_WITHIN;
    let mut looks = interval(Duration::from_millis(200));
    loop {
        looks.tick().await;
        let mut waiting = BTreeMap::new();
        for gauge in ["duorelay_connections", "duorelay_waiting_connections"] {
            waiting.insert(gauge, fleet.metric(gauge, &[]).await);
        }
        // The other queue has the probes in it, now and then.
        waiting.insert("outbox bytes", fleet.metric("duorelay_queue_bytes", &["outbox"]).await);
        // Beside the users' there are each worker's own probe, instances' announcements, and what nobody has heard.
        let mut channels = fleet.channels().await;
        channels.retain(|channel| is_of_a_room(channel.as_str().unwrap()));
        if waiting.values().all(|waiting| *waiting == 0.0) && channels.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            let channels: Vec<_> = channels.iter().take(30).collect();
            record.wrong(format!("left behind: {waiting:?}, {channels:?}"));
            break;
        }
    }
    let most = before.values().map(|holdings| holdings.resident).max().unwrap();
    // What is free goes back to the system within seconds, and so do the files of connections that end.
    let deadline = Instant::now() + SETTLES_WITHIN;
    let empty = loop {
        looks.tick().await;
        let empty: BTreeMap<_, _> = fleet.holdings().await.into_iter().collect();
        let has_settled = empty.values().all(|holdings| holdings.resident <= most + KEPT);
        if (has_settled && have_equal_files(&empty)) || Instant::now() >= deadline {
            break empty;
        }
    };
    for (process, holdings) in after {
        let left = empty[process];
        eprintln!(
            "process {process}: {} MiB and {} files after the chaos, {} MiB and {} files without connections; {} MiB was the most at the beginning",
            holdings.resident >> 20,
            holdings.files,
            left.resident >> 20,
            left.files,
            most >> 20,
        );
        if left.resident > most + KEPT {
            record.wrong(format!("process {process} keeps {} MiB", left.resident >> 20));
        }
    }
    if !have_equal_files(&empty) {
        let files: Vec<_> = empty.values().map(|holdings| holdings.files).collect();
        record.wrong(format!("without connections, processes keep {files:?} files"));
    }
}

/// All processes are alike, so that one with more open files than the others keeps some.
fn have_equal_files(holdings: &BTreeMap<usize, Holdings>) -> bool {
    let mut files = holdings.values().map(|holdings| holdings.files);
    let first = files.next().unwrap_or_default();
    files.all(|of| of.abs_diff(first) <= 2)
}

/// Is this a room's key or channel? An instance's own have a mark that no percent-encoded uid has, `{!`.
fn is_of_a_room(name: &str) -> bool {
    name.starts_with("duo:{") && !name.starts_with("duo:{!")
}

/// What Redis knew of the rooms ends with their leases. What instances prove to themselves ends some time later.
async fn check_redis_forgets(fleet: &Fleet, record: &Record) {
    let deadline = Instant::now() + 3 * LEASE + Duration::from_secs(6);
    let mut looks = interval(Duration::from_millis(200));
    loop {
        looks.tick().await;
        let mut keys = fleet.keys().await;
        let lasts = async |key: &Value| fleet.expires_in_ms(key.as_str().unwrap()).await == -1;
        for key in &keys {
            if lasts(key).await {
                return record.wrong(format!("{key} never ends"));
            }
        }
        keys.retain(|key| is_of_a_room(key.as_str().unwrap()));
        if keys.is_empty() {
            return;
        }
        if Instant::now() >= deadline {
            return record.wrong(format!("left in Redis: {:?}", &keys[..keys.len().min(30)]));
        }
    }
}
