//! What is promised while Redis does not answer, and when it is back.

use std::time::Duration;

use bytes::Bytes;
use duorelay::backplane::{CALL_LIMIT, Published, Renewal, Unavailable};
use duorelay::relay::envelope::Envelope;
use duorelay::relay::ids::{Device, InstanceId, UserId};
use duorelay::relay::parcel::Parcel;
use duorelay::relay::record::{Claim, ClaimOutcome, Holder, Renewed};
use futures_util::future::{FutureExt as _, LocalBoxFuture, join_all};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::support::{LIMIT, Proxy, RedisServer, within};
use crate::world::{Heard, LEASE, QUEUE_BYTES, Worker, World, claimed, frame, run, user};

const DESKTOP: Device = Device::Desktop;
const MOBILE: Device = Device::Mobile;
/// A client gets its notice, and frames cross, within this time by the contract.
const NOTIFIED_WITHIN: Duration = Duration::from_secs(3);
/// A busy machine may be late.
const SLACK: Duration = Duration::from_millis(500);
/// What may be on its way to Redis at the same time, for all channels of a worker.
const IN_FLIGHT_BYTES: usize = 8 << 20;

/// A desktop at one worker and a mobile at another.
async fn pair(world: &World, ann: &UserId) -> (Worker, Holder, Worker, Holder) {
    let (a, b) = (world.attach().await, world.attach().await);
    let (desktop, _) = a.claim(ann, DESKTOP, None).await;
    let (mobile, _) = b.claim(ann, MOBILE, None).await;
    a.take();
    b.take();
    (a, desktop, b, mobile)
}

fn volatile(from: &Holder, stream: u8, payload: &[u8]) -> Envelope {
    Envelope::Parcel { from: from.member, parcel: Parcel::Frame([&[stream], payload].concat().into()) }
}

/// Publishes until one arrives; how long that took.
async fn crosses(from: &Worker, ann: &UserId, channel: Device, to: &Worker) -> Duration {
    let start = Instant::now();
    loop {
        let nonce = from.mark(ann, channel);
        let is_it = |heard: &Heard| matches!(heard, Heard::Envelope(_, _, Envelope::Marker { nonce: this, .. }) if *this == nonce);
        if timeout(Duration::from_millis(50), to.until(is_it)).await.is_ok() {
            return start.elapsed();
        }
        assert!(start.elapsed() < LIMIT, "nothing crosses");
    }
}

async fn timed(what: &str, start: Instant, failed: LocalBoxFuture<'_, bool>) {
    assert!(within(LIMIT, what, failed).await, "{what} has succeeded");
    assert!(start.elapsed() < CALL_LIMIT + 2 * SLACK, "{what} took {:?}", start.elapsed());
}

#[test]
fn every_call_ends_in_time_while_redis_stands_still() {
    run(async {
        let (world, ann) = (World::standalone().await, user("ann"));
        let (a, desktop, b, _) = pair(&world, &ann).await;
        world.server().signal("STOP");
        let start = Instant::now();
        let many: Vec<_> = (0..5000)
            .map(|n| Renewal {
                user: user(&format!("user{n}")),
                device: DESKTOP,
                holder: desktop.clone(),
                attempt: None,
            })
            .collect();
        let (bob, carol) = (user("bob"), user("carol"));
        let new_channel = async { a.backplane.claim(&bob, a.claim_of(DESKTOP, None)).await.is_err() };
        let known_channel = async { b.backplane.claim(&ann, b.claim_of(MOBILE, None)).await.is_err() };
        let renewals = async {
            let answers = a.backplane.renew(&many).await;
            answers.len() == many.len() && answers.iter().all(Result::is_err)
        };
        let release = async {
            a.backplane.release(&carol, DESKTOP, desktop.member.connection).await;
            true
        };
        let look = async { b.backplane.room(&ann).await.is_err() };
        let timed = |what, call| timed(what, start, call);
        tokio::join!(
            timed("a claim of a new channel", new_channel.boxed_local()),
            timed("a claim of a known channel", known_channel.boxed_local()),
            timed("many renewals", renewals.boxed_local()),
            timed("a release", release.boxed_local()),
            timed("a look", look.boxed_local()),
        );
        world.server().signal("CONT");
    });
}

#[test]
fn down_is_reported_and_refuses_claims_at_once_until_up() {
    run(async {
        let (world, ann) = (World::standalone().await, user("ann"));
        let (a, desktop, b, _) = pair(&world, &ann).await;
        let start = Instant::now();
        world.server().signal("STOP");
        for worker in [&a, &b] {
            worker.until(|heard| *heard == Heard::Down).await;
            assert!(start.elapsed() < NOTIFIED_WITHIN + SLACK, "notified after {:?}", start.elapsed());
        }
        let refused = timeout(SLACK, a.backplane.claim(&ann, a.claim_of(DESKTOP, None))).await;
        assert_eq!(refused.unwrap(), Err(Unavailable));
        let start = Instant::now();
        world.server().signal("CONT");
        for worker in [&a, &b] {
            worker.until(|heard| *heard == Heard::Up).await;
            assert!(start.elapsed() < NOTIFIED_WITHIN + SLACK, "notified after {:?}", start.elapsed());
        }
        assert!(crosses(&a, &ann, MOBILE, &b).await < SLACK);
        let (_, again) = b.claim(&ann, DESKTOP, None).await;
        assert_eq!(again.replaced, Some(desktop));
    });
}

#[test]
fn what_waits_for_one_lane_is_bounded() {
    run(async {
        let (world, ann) = (World::standalone().await, user("ann"));
        let (a, desktop, b, _) = pair(&world, &ann).await;
        world.server().signal("STOP");
        let payload = vec![0x55; 1 << 16];
        let mut published = 0;
        let start = Instant::now();
        while a.backplane.publish(&ann, MOBILE, frame(&desktop, &payload), std::time::Instant::now())
            == Published::Queued
        {
            published += payload.len();
            assert!(published <= QUEUE_BYTES + IN_FLIGHT_BYTES + (1 << 17), "more and more is queued");
        }
        // Nothing leaves while Redis stands still, however long it does.
        while start.elapsed() < Duration::from_millis(1500) {
            let more =
                a.backplane.publish(&ann, MOBILE, frame(&desktop, &payload), std::time::Instant::now());
            assert_eq!(more, Published::Full, "after {:?}", start.elapsed());
            // Volatile frames replace each other.
            let newest = volatile(&desktop, 1, &start.elapsed().as_nanos().to_be_bytes());
            let _ = a.backplane.publish(&ann, MOBILE, newest, std::time::Instant::now());
            sleep(Duration::from_millis(20)).await;
        }
        let other =
            a.backplane.publish(&user("bob"), MOBILE, frame(&desktop, b"x"), std::time::Instant::now());
        assert_eq!(other, Published::Queued, "each channel has a queue of its own");
        world.server().signal("CONT");
        crosses(&a, &ann, MOBILE, &b).await;
    });
}

#[test]
fn channels_that_wait_take_turns() {
    run(async {
        let (world, ann, bob) = (World::standalone().await, user("ann"), user("bob"));
        let (a, desktop, b, _) = pair(&world, &ann).await;
        let (other, _) = a.claim(&bob, DESKTOP, None).await;
        b.claim(&bob, MOBILE, None).await;
        b.take();
        world.server().signal("STOP");
        // Given up without an answer: what follows waits.
        a.publish(&ann, MOBILE, frame(&desktop, b"first"));
        sleep(Duration::from_millis(700)).await;
        for _ in 0..100 {
            a.publish(&ann, MOBILE, frame(&desktop, &[0x55; 5_000]));
        }
        for turn in 0..3 {
            a.publish(&bob, MOBILE, frame(&other, &[turn]));
        }
        let nonce = a.mark(&ann, MOBILE);
        world.server().signal("CONT");
        let heard = b.until_marker(nonce).await;
        let waited = heard.iter().filter(|(_, _, envelope)| *envelope != frame(&desktop, b"first"));
        let of_bob: Vec<_> =
            waited.enumerate().filter(|(_, (user, ..))| *user == bob).map(|(place, _)| place).collect();
        assert_eq!(of_bob, [1, 3, 5], "one of each channel in turn");
    });
}

#[test]
fn volatile_frames_that_waited_too_long_are_not_sent() {
    run(async {
        let (world, ann) = (World::standalone().await, user("ann"));
        let (a, desktop, b, _) = pair(&world, &ann).await;
        world.server().signal("STOP");
        // The first of them notice that Redis stands still; for a second and a half nothing is answered.
        let start = Instant::now();
        let mut late = 0;
        while start.elapsed() < Duration::from_millis(1500) {
            let sent = u64::try_from(start.elapsed().as_millis()).unwrap();
            a.publish(&ann, MOBILE, volatile(&desktop, 1, &sent.to_be_bytes()));
            if sent > 300 && sent < 900 {
                a.publish(&ann, MOBILE, volatile(&desktop, 2, b"too late"));
                late += 1;
            }
            sleep(Duration::from_millis(10)).await;
        }
        assert!(late > 10);
        a.publish(&ann, MOBILE, frame(&desktop, b"reliable"));
        world.server().signal("CONT");
        crosses_and_is_fresh(&a, &ann, &b, start).await;
    });
}

async fn crosses_and_is_fresh(a: &Worker, ann: &UserId, b: &Worker, start: Instant) {
    let thawed = u64::try_from(start.elapsed().as_millis()).unwrap();
    let (mut fresh, mut reliable) = (0, false);
    let nonce = a.mark(ann, MOBILE);
    for (_, _, envelope) in b.until_marker(nonce).await {
        let Envelope::Parcel { parcel: Parcel::Frame(bytes), .. } = envelope else {
            continue;
        };
        match bytes[0] {
            1 => {
                let sent = u64::from_be_bytes(bytes[1..].try_into().unwrap());
                // What left before the stop was noticed is in the kernel's hands.
                assert!(sent < 400 || sent + 700 > thawed, "a frame of {sent} ms is sent at {thawed} ms");
                fresh += u32::from(sent + 700 > thawed);
            }
            2 => panic!("a stale frame was sent"),
            _ => reliable = true,
        }
    }
    assert!(fresh > 0, "the newest frame is sent");
    assert!(reliable, "reliable frames wait");
}

#[test]
fn a_claim_waits_until_its_lane_is_acknowledged() {
    run(async {
        let server = RedisServer::start().await;
        let slow = Proxy::start_slow(server.address(), b"SUBSCRIBE", Duration::from_millis(30)).await;
        let world = World::at(slow.address());
        let worker = world.attach().await;
        for n in 0..5 {
            let ann = user(&format!("ann{n}"));
            let (holder, _) = worker.claim(&ann, DESKTOP, None).await;
            let own = Heard::Envelope(ann, DESKTOP, claimed(DESKTOP, &holder));
            assert!(worker.has_heard(&own), "claimed before it was subscribed");
        }
    });
}

#[test]
fn killed_connections_lose_no_lane() {
    run(async {
        let (world, ann) = (World::standalone().await, user("ann"));
        let (a, _, b, _) = pair(&world, &ann).await;
        // More channels than fit into one SUBSCRIBE.
        let users: Vec<_> = (0..1200).map(|n| user(&format!("user{n}"))).collect();
        // A claim waits for its turn for a second, in which a busy machine does not carry out all of them.
        for some in users.chunks(100) {
            join_all(some.iter().map(|user| b.claim(user, MOBILE, None))).await;
        }
        for kind in ["pubsub", "normal"] {
            world.server().ask(&["CLIENT", "KILL", "TYPE", kind]).await;
            assert!(crosses(&a, &ann, MOBILE, &b).await < NOTIFIED_WITHIN, "{kind}");
            assert!(crosses(&b, &ann, DESKTOP, &a).await < NOTIFIED_WITHIN, "{kind}");
            for user in users.iter().step_by(10).chain(users.last()) {
                assert!(crosses(&a, user, MOBILE, &b).await < NOTIFIED_WITHIN, "{kind}: {user:?}");
            }
        }
        assert!(b.metrics.backplane_gaps.get() > 0);
        b.claim(&ann, DESKTOP, None).await;
    });
}

#[test]
fn a_redis_that_comes_back_empty_is_filled_by_renewals() {
    run(async {
        let (mut world, ann) = (World::standalone().await, user("ann"));
        let (a, desktop, b, mobile) = pair(&world, &ann).await;
        world.restart().await;
        for worker in [&a, &b] {
            worker.until(|heard| matches!(heard, Heard::Gap | Heard::Up)).await;
        }
        assert!(crosses(&a, &ann, MOBILE, &b).await < NOTIFIED_WITHIN);
        assert_eq!(b.holders(&ann).await, [None, None]);
        assert!(matches!(a.renew(&ann, DESKTOP, &desktop).await, Renewed::Kept { .. }));
        assert!(matches!(b.renew(&ann, MOBILE, &mobile).await, Renewed::Kept { .. }));
        assert_eq!(b.holders(&ann).await, [Some(desktop), Some(mobile)]);
    });
}

#[test]
fn lanes_that_nobody_needs_are_given_back() {
    run(async {
        let (world, ann) = (World::standalone().await, user("ann"));
        let (a, desktop, b, _) = pair(&world, &ann).await;
        let channels = async || {
            let channels =
                world.server().ask(&["PUBSUB", "CHANNELS", &format!("{}:*", world.key(&ann))]).await;
            channels.as_array().unwrap().len()
        };
        assert_eq!(channels().await, 2);
        a.release(&ann, DESKTOP, &desktop).await;
        a.backplane.unsubscribe(&ann, DESKTOP);
        let deadline = Instant::now() + LIMIT;
        while channels().await != 1 {
            assert!(Instant::now() < deadline, "a channel is not given back");
            sleep(Duration::from_millis(20)).await;
        }
        a.claim(&ann, DESKTOP, None).await;
        assert!(crosses(&b, &ann, DESKTOP, &a).await < NOTIFIED_WITHIN);
        assert_eq!(channels().await, 2);
    });
}

#[test]
fn instances_know_each_other_until_one_is_silent_for_five_seconds() {
    run(async {
        let world = World::standalone().await;
        let (a, b) = (world.attach().await, world.attach().await);
        let known = |worker: &Worker| {
            let mut known: Vec<InstanceId> =
                worker.backplane.instances().iter().map(|info| info.instance).collect();
            known.sort();
            known
        };
        let mut both = vec![a.instance, b.instance];
        both.sort();
        let deadline = Instant::now() + LIMIT;
        while known(&a) != both || known(&b) != both {
            assert!(Instant::now() < deadline, "{:?} {:?}", known(&a), known(&b));
            sleep(Duration::from_millis(20)).await;
        }
        assert!(a.backplane.instances().iter().all(|info| info.connections == 3 && info.version == "test"));
        b.backplane.close().await;
        let closed = Instant::now();
        // An instance that is only known from a slot, and is never heard of.
        let (ann, ghost) = (user("ann"), InstanceId(Uuid::new_v4()));
        let claim = Claim { instance: ghost, ..a.claim_of(MOBILE, None) };
        assert!(matches!(a.backplane.claim(&ann, claim).await, Ok(ClaimOutcome::Claimed(_))));
        let mut silent = Vec::new();
        while silent.len() < 2 {
            if let Heard::Silent(instance) = a.until(|heard| matches!(heard, Heard::Silent(_))).await {
                assert!(a.backplane.is_silent(instance));
                silent.push(instance);
            }
        }
        let after = closed.elapsed();
        assert!(after >= Duration::from_secs(4) && after < Duration::from_secs(7), "silent after {after:?}");
        let mut expected = vec![b.instance, ghost];
        silent.sort();
        expected.sort();
        assert_eq!(silent, expected);
        assert_eq!(known(&a), [a.instance]);
        assert!(!a.backplane.is_silent(a.instance));
    });
}

#[test]
fn a_worker_starts_without_redis_and_waits() {
    run(async {
        let server = RedisServer::start().await;
        let address = server.address();
        drop(server);
        let (world, ann) = (World::at(address), user("ann"));
        let worker = world.attach_at_once(LEASE);
        let refused = timeout(SLACK, worker.backplane.claim(&ann, worker.claim_of(DESKTOP, None))).await;
        assert_eq!(refused.unwrap(), Err(Unavailable));
        let _server = RedisServer::try_start(address).await.unwrap();
        let start = Instant::now();
        worker.until(|heard| *heard == Heard::Up).await;
        assert!(start.elapsed() < NOTIFIED_WITHIN + SLACK, "up after {:?}", start.elapsed());
        worker.claim(&ann, DESKTOP, None).await;
    });
}

#[test]
fn what_is_not_an_envelope_is_reported_and_harms_nobody() {
    run(async {
        let (world, ann) = (World::standalone().await, user("ann"));
        let (a, desktop, b, _) = pair(&world, &ann).await;
        let channel = format!("{}:mobile", world.key(&ann));
        for garbage in ["", "x", "\u{81}\u{a1}f", "[1,2]"] {
            world.server().ask(&["PUBLISH", &channel, garbage]).await;
            b.until(|heard| *heard == Heard::Unreadable).await;
        }
        a.publish(&ann, MOBILE, frame(&desktop, &Bytes::from_static(b"still here")));
        assert_eq!(b.next_on_channel().await.2, frame(&desktop, b"still here"));
    });
}
