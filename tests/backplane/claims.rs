//! Claims, renewals, releases, leases.

use std::collections::HashMap;
use std::time::Duration;

use duorelay::backplane::Unavailable;
use duorelay::relay::ids::{Attempt, ConnectionId, Device, Generation, UserId};
use duorelay::relay::record::{Claim, ClaimOutcome, Claimed, EVICTION_WINDOW_MS, EVICTIONS, Renewed};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::support::LIMIT;
use crate::world::{Heard, LEASE, Worker, World, claimed, frame, released, user};

const DESKTOP: Device = Device::Desktop;
const MOBILE: Device = Device::Mobile;

/// All claims at the same instant; returns who got which generation, in their order.
async fn claim_at_once(claims: Vec<(&Worker, Claim)>, user: &UserId) -> Vec<(ConnectionId, Claimed)> {
    let claiming = claims.into_iter().map(async |(worker, claim)| {
        let connection = claim.connection;
        match worker.backplane.claim(user, claim).await {
            Ok(ClaimOutcome::Claimed(claimed)) => (connection, claimed),
            Ok(ClaimOutcome::TooManyEvictions { .. } | ClaimOutcome::Superseded { .. })
            | Err(Unavailable) => {
                panic!("was refused")
            }
        }
    });
    let mut outcomes = join_all(claiming).await;
    outcomes.sort_by_key(|(_, claimed)| claimed.generation);
    outcomes
}

fn check_chain(outcomes: &[(ConnectionId, Claimed)]) {
    assert_eq!(outcomes[0].1.replaced, None);
    for pair in outcomes.windows(2) {
        assert!(pair[0].1.generation < pair[1].1.generation, "a generation was given twice");
        let replaced = pair[1].1.replaced.as_ref().unwrap().member;
        assert_eq!((replaced.connection, replaced.generation), (pair[0].0, pair[0].1.generation));
    }
}

pub async fn concurrent_claims_leave_exactly_one_holder(world: &World) {
    let (worker, ann) = (world.attach().await, user("ann"));
    let claims = (0..50).map(|_| (&worker, worker.claim_of(DESKTOP, Some("tab")))).collect();
    let outcomes = claim_at_once(claims, &ann).await;
    check_chain(&outcomes);
    let [desktop, mobile] = worker.holders(&ann).await;
    assert_eq!(desktop.unwrap().member.connection, outcomes.last().unwrap().0);
    assert_eq!(mobile, None);
}

pub async fn claims_of_different_workers_leave_exactly_one_holder(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    for _ in 0..5 {
        let claims = (0..40).map(|n| if n % 2 == 0 { &a } else { &b });
        let claims = claims.map(|worker| (worker, worker.claim_of(MOBILE, Some("phone")))).collect();
        let outcomes = claim_at_once(claims, &ann).await;
        let holder = outcomes.last().unwrap();
        for worker in [&a, &b] {
            assert_eq!(worker.holders(&ann).await[1].as_ref().unwrap().member.connection, holder.0);
        }
        check_chain(&outcomes);
        let mobile = b.holders(&ann).await[1].clone().unwrap();
        a.release(&ann, MOBILE, &mobile).await;
    }
}

pub async fn a_claim_returns_whom_it_replaced_and_who_holds_the_other_slot(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (mobile, first) = a.claim(&ann, MOBILE, None).await;
    assert_eq!((first.replaced, first.other), (None, None));
    let (desktop, first) = b.claim(&ann, DESKTOP, Some("tab")).await;
    assert_eq!((first.replaced, first.other.as_ref()), (None, Some(&mobile)));
    let (_, second) = a.claim(&ann, DESKTOP, None).await;
    assert_eq!((second.replaced.as_ref(), second.other.as_ref()), (Some(&desktop), Some(&mobile)));
    let (_, other_user) = a.claim(&user("bob"), DESKTOP, None).await;
    assert_eq!((other_user.replaced, other_user.other), (None, None));
}

pub async fn generations_grow_past_what_the_claimer_knows(world: &World) {
    let (worker, ann) = (world.attach().await, user("ann"));
    let (_, first) = worker.claim(&ann, DESKTOP, None).await;
    let (_, mobile) = worker.claim(&ann, MOBILE, None).await;
    assert!(mobile.generation > first.generation, "one counter for both slots");
    let (_, second) = worker.claim(&ann, DESKTOP, None).await;
    assert!(second.generation > mobile.generation);
    // What the claimer knows may be ahead of everybody's clock.
    let known = Generation(second.generation.0 + 3_600_000_000);
    let claim = Claim { known, ..worker.claim_of(DESKTOP, None) };
    let outcome = worker.backplane.claim(&ann, claim).await.unwrap();
    let ClaimOutcome::Claimed(third) = outcome else { panic!("{outcome:?}") };
    assert_eq!(third.generation, Generation(known.0 + 1));
    let (_, fourth) = worker.claim(&ann, MOBILE, None).await;
    assert_eq!(fourth.generation, Generation(known.0 + 2));
    assert!(fourth.generation.0 < 1 << 53);
}

pub async fn generations_grow_although_the_room_was_lost(world: &World) {
    let (worker, ann) = (world.attach().await, user("ann"));
    let (_, first) = worker.claim(&ann, DESKTOP, None).await;
    world.lose(&ann).await;
    let (_, second) = worker.claim(&ann, DESKTOP, None).await;
    assert!(second.generation > first.generation);
}

pub async fn a_claims_own_message_is_handed_out_before_its_answer(world: &World) {
    let (a, b) = (world.attach().await, world.attach().await);
    for n in 0..200 {
        let (worker, ann) = (if n % 2 == 0 { &a } else { &b }, user(&format!("ann{}", n / 4)));
        worker.take();
        let (holder, _) = worker.claim(&ann, DESKTOP, Some("tab")).await;
        let expected = Heard::Envelope(ann, DESKTOP, claimed(DESKTOP, &holder));
        let heard = worker.take();
        assert_eq!(heard.iter().filter(|heard| **heard == expected).count(), 1, "{heard:?}");
    }
}

pub async fn behind_a_backlog_claims_still_hear_themselves_first(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    a.claim(&ann, DESKTOP, None).await;
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    // All of a round fits into the queue, should Redis stand still for a moment.
    let payload = vec![0x55; 30_000];
    for round in 0..5 {
        // What the subscriber has to read before it can subscribe more.
        for _ in 0..30 {
            b.publish(&ann, DESKTOP, frame(&mobile, &payload));
        }
        let users: Vec<_> = (0..20).map(|n| user(&format!("user{round}-{n}"))).collect();
        let claims = users.iter().map(async |user| {
            let (holder, _) = a.claim(user, DESKTOP, None).await;
            let own = Heard::Envelope(user.clone(), DESKTOP, claimed(DESKTOP, &holder));
            assert!(a.has_heard(&own), "the answer came first");
        });
        join_all(claims).await;
        if let Some(barrier) = b.backplane.barrier(&ann, DESKTOP) {
            let _ = barrier.await;
        }
        a.take();
    }
}

pub async fn a_release_frees_only_its_own_connections_slot(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    let (old, _) = a.claim(&ann, DESKTOP, None).await;
    let (new, _) = b.claim(&ann, DESKTOP, None).await;
    a.release(&ann, DESKTOP, &old).await;
    a.release(&ann, MOBILE, &new).await;
    a.release(&user("nobody"), DESKTOP, &new).await;
    assert_eq!(b.holders(&ann).await, [Some(new.clone()), Some(mobile.clone())]);
    let nonce = a.mark(&ann, DESKTOP);
    for (_, _, envelope) in b.until_marker(nonce).await {
        assert!(matches!(envelope, duorelay::relay::envelope::Envelope::Claimed { .. }), "{envelope:?}");
    }
    // Whoever asks: the id is what counts.
    a.release(&ann, DESKTOP, &new).await;
    assert_eq!(b.holders(&ann).await, [None, Some(mobile)]);
    assert_eq!(b.next_on_channel().await.2, released(DESKTOP, &new));
}

pub async fn a_renewal_keeps_the_slot_and_extends_its_lease(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (desktop, _) = a.claim(&ann, DESKTOP, Some("tab")).await;
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    let left = async || a.backplane.room(&ann).await.unwrap()[0].as_ref().unwrap().ends;
    let deadline = Instant::now() + LIMIT;
    while left().await > u64::try_from(LEASE.as_millis()).unwrap() - 2000 {
        assert!(Instant::now() < deadline, "the lease does not get shorter");
    }
    assert_eq!(a.renew(&ann, DESKTOP, &desktop).await, Renewed::Kept { other: Some(mobile.clone()) });
    assert!(left().await > u64::try_from(LEASE.as_millis()).unwrap() - 2000);
    // Nothing has changed, so nothing is said.
    let nonce = b.mark(&ann, DESKTOP);
    let heard = a.until_marker(nonce).await;
    assert_eq!(heard.iter().filter(|heard| heard.2 == claimed(DESKTOP, &desktop)).count(), 1);
    b.release(&ann, MOBILE, &mobile).await;
    assert_eq!(a.renew(&ann, DESKTOP, &desktop).await, Renewed::Kept { other: None });
}

pub async fn a_renewal_puts_back_what_was_lost_and_says_so_on_both_lanes(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (desktop, _) = a.claim(&ann, DESKTOP, Some("tab")).await;
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    world.lose(&ann).await;
    for worker in [&a, &b] {
        let channel = if worker.instance == a.instance { DESKTOP } else { MOBILE };
        let nonce = worker.mark(&ann, channel);
        worker.until_marker(nonce).await;
    }
    let Renewed::Kept { .. } = a.renew(&ann, DESKTOP, &desktop).await else {
        panic!("overwritten by nobody")
    };
    assert_eq!(a.next_on_channel().await, (ann.clone(), DESKTOP, claimed(DESKTOP, &desktop)));
    assert_eq!(b.next_on_channel().await, (ann.clone(), MOBILE, claimed(DESKTOP, &desktop)));
    assert_eq!(b.renew(&ann, MOBILE, &mobile).await, Renewed::Kept { other: Some(desktop.clone()) });
    assert_eq!(a.renew(&ann, DESKTOP, &desktop).await, Renewed::Kept { other: Some(mobile.clone()) });
    assert_eq!(a.holders(&ann).await, [Some(desktop.clone()), Some(mobile)]);
    let (_, next) = b.claim(&ann, DESKTOP, None).await;
    assert!(next.generation > desktop.member.generation);
}

pub async fn a_renewal_returns_who_has_overwritten_it(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (old, _) = a.claim(&ann, DESKTOP, Some("tab")).await;
    let (new, _) = b.claim(&ann, DESKTOP, Some("tab")).await;
    let overwritten = Renewed::Overwritten { by: new.member, holder: Some(new.clone()) };
    assert_eq!(a.renew(&ann, DESKTOP, &old).await, overwritten);
    assert_eq!(a.holders(&ann).await[0].as_ref(), Some(&new));
}

pub async fn after_a_loss_the_newer_one_alone_comes_back(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (old, _) = a.claim(&ann, DESKTOP, Some("tab")).await;
    let (new, _) = b.claim(&ann, DESKTOP, Some("tab")).await;
    let overwritten = Renewed::Overwritten { by: new.member, holder: Some(new.clone()) };
    // The older one does not know yet; it learns of the newer one as soon as that has renewed.
    world.lose(&ann).await;
    assert_eq!(a.renew(&ann, DESKTOP, &old).await, Renewed::Kept { other: None });
    assert_eq!(b.renew(&ann, DESKTOP, &new).await, Renewed::Kept { other: None });
    assert_eq!(a.renew(&ann, DESKTOP, &old).await, overwritten);
    assert_eq!(a.holders(&ann).await[0].as_ref(), Some(&new));
}

pub async fn an_overwritten_connection_does_not_get_back_a_slot_that_was_left(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (_mobile, _) = a.claim(&ann, MOBILE, None).await;
    let (old, _) = a.claim(&ann, DESKTOP, None).await;
    let (new, _) = b.claim(&ann, DESKTOP, None).await;
    b.release(&ann, DESKTOP, &new).await;
    let overwritten = Renewed::Overwritten { by: new.member, holder: None };
    assert_eq!(a.renew(&ann, DESKTOP, &old).await, overwritten);
    assert_eq!(a.holders(&ann).await[0], None);
}

pub async fn ten_evictions_in_ten_seconds_are_allowed_and_hand_overs_always(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let worker = |n: usize| if n.is_multiple_of(2) { &a } else { &b };
    let mut holder = a.claim(&ann, DESKTOP, None).await.0;
    for n in 0..EVICTIONS {
        // Two names in turn, and none at all: all of them are others.
        holder = worker(n).claim(&ann, DESKTOP, [None, Some("a"), Some("b")][n % 3]).await.0;
    }
    for n in 0..4 {
        let outcome = worker(n).backplane.claim(&ann, worker(n).claim_of(DESKTOP, None)).await.unwrap();
        let ClaimOutcome::TooManyEvictions { retry_after_ms } = outcome else { panic!("{outcome:?}") };
        assert!((1..=EVICTION_WINDOW_MS).contains(&retry_after_ms), "{retry_after_ms}");
    }
    assert_eq!(a.holders(&ann).await[0].as_ref(), Some(&holder), "a refused claim changes nothing");
    // The other slot has a count of its own, and who leaves was not evicted.
    for n in 0..3 * EVICTIONS {
        let (mobile, _) = worker(n).claim(&ann, MOBILE, None).await;
        worker(n).release(&ann, MOBILE, &mobile).await;
    }
    for n in 0..10 * EVICTIONS {
        worker(n).claim(&ann, MOBILE, Some("phone")).await;
    }
    // The holder itself may always come back.
    let name = holder.client.as_ref().map(|client| client.as_str().to_owned());
    let again = b.backplane.claim(&ann, b.claim_of(DESKTOP, name.as_deref())).await.unwrap();
    assert_eq!(matches!(again, ClaimOutcome::Claimed(_)), name.is_some());
}

pub async fn leases_end_by_the_backplanes_clock(world: &World) {
    // Longer than a busy machine stands still between two lines.
    let lease = Duration::from_millis(1500);
    let (a, b, ann) =
        (world.attach_with_lease(lease).await, world.attach_with_lease(lease).await, user("ann"));
    let (desktop, _) = a.claim(&ann, DESKTOP, None).await;
    b.claim(&ann, MOBILE, None).await;
    let deadline = Instant::now() + LIMIT;
    // The desktop renews, the mobile's instance is gone.
    while b.holders(&ann).await[1].is_some() {
        let Renewed::Kept { .. } = a.renew(&ann, DESKTOP, &desktop).await else {
            panic!("overwritten by nobody")
        };
        assert!(Instant::now() < deadline, "a lease does not end");
    }
    assert_eq!(b.holders(&ann).await, [Some(desktop.clone()), None]);
    assert_eq!(a.renew(&ann, DESKTOP, &desktop).await, Renewed::Kept { other: None });
    let (_, next) = b.claim(&ann, MOBILE, None).await;
    assert_eq!((next.replaced, next.other.as_ref()), (None, Some(&desktop)));
    while b.holders(&ann).await != [None, None] {
        assert!(Instant::now() < deadline, "a lease does not end");
    }
    // Late, but nobody else has come.
    let Renewed::Kept { .. } = a.renew(&ann, DESKTOP, &desktop).await else {
        panic!("overwritten by nobody")
    };
    assert_eq!(b.holders(&ann).await[0].as_ref(), Some(&desktop));
}

pub async fn a_room_shows_its_holders_and_what_is_left_of_their_leases(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    assert_eq!(a.backplane.room(&ann).await.unwrap(), [None, None]);
    let (desktop, _) = a.claim(&ann, DESKTOP, Some("tab")).await;
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    for worker in [&a, &b] {
        let room = worker.backplane.room(&ann).await.unwrap().map(Option::unwrap);
        assert_eq!([&room[0].holder, &room[1].holder], [&desktop, &mobile]);
        let full = u64::try_from(LEASE.as_millis()).unwrap();
        for lease in room {
            assert!((full - 10_000..=full).contains(&lease.ends), "{}", lease.ends);
        }
    }
    assert_eq!(a.backplane.room(&user("bob")).await.unwrap(), [None, None]);
}

pub async fn odd_uids_have_rooms_and_lanes_of_their_own(world: &World) {
    let (a, b) = (world.attach().await, world.attach().await);
    let long = "\u{1d11e}".repeat(UserId::MAX_CHARS);
    let uids = [
        "a",
        "a:desktop",
        "a:mobile",
        "{a}",
        "{a",
        "a}",
        "}{",
        "{}",
        "{",
        "}",
        ":",
        "*",
        "a*",
        "[a]",
        "?",
        "\n",
        "a\n",
        "\r\n",
        "\0",
        " ",
        "%",
        "%7Ba%7D",
        "instances",
        "probe",
        "{a}:desktop",
        "a b",
        "\u{e9}",
        "\u{65}\u{301}",
        "\"",
        "\\",
        long.as_str(),
        &long[4..],
    ];
    let mut holders = HashMap::new();
    for uid in uids {
        let (mobile, first) = b.claim(&user(uid), MOBILE, None).await;
        assert_eq!((first.replaced, first.other), (None, None), "{uid:?} shares a room");
        let (desktop, _) = a.claim(&user(uid), DESKTOP, None).await;
        holders.insert(uid, [desktop, mobile]);
    }
    for uid in uids {
        let ann = user(uid);
        let [desktop, mobile] = &holders[uid];
        assert_eq!(a.holders(&ann).await, [Some(desktop.clone()), Some(mobile.clone())], "{uid:?}");
        a.take();
        b.take();
        a.publish(&ann, MOBILE, frame(desktop, uid.as_bytes()));
        let nonce = a.mark(&ann, MOBILE);
        let heard = b.until_marker(nonce).await;
        assert_eq!(heard, [(ann.clone(), MOBILE, frame(desktop, uid.as_bytes()))], "{uid:?}");
        a.release(&ann, DESKTOP, desktop).await;
        assert_eq!(b.next_on_channel().await, (ann, MOBILE, released(DESKTOP, desktop)), "{uid:?}");
    }
}

pub async fn an_earlier_attempt_of_a_client_changes_nothing(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let attempt = |worker: &Worker, client, number| Claim {
        attempt: Attempt::new(number),
        ..worker.claim_of(DESKTOP, Some(client))
    };
    let second = b.backplane.claim(&ann, attempt(&b, "tab", 20)).await.unwrap();
    let ClaimOutcome::Claimed(second) = second else { panic!("{second:?}") };
    a.take();
    b.take();
    let late = a.backplane.claim(&ann, attempt(&a, "tab", 19)).await.unwrap();
    assert_eq!(late, ClaimOutcome::Superseded { attempt: Attempt::new(20).unwrap() });
    let [lease, _] = b.backplane.room(&ann).await.unwrap();
    let lease = lease.unwrap();
    assert_eq!((lease.holder.member.generation, lease.attempt), (second.generation, Attempt::new(20)));
    // Nothing was published either.
    let nonce = b.mark(&ann, DESKTOP);
    assert_eq!(b.until_marker(nonce).await.len(), 0, "nobody was overwritten");
    // Equal numbers pass, and another client's mean nothing.
    for (client, number) in [("tab", 20), ("other", 1)] {
        let claimed = a.backplane.claim(&ann, attempt(&a, client, number)).await.unwrap();
        assert!(matches!(claimed, ClaimOutcome::Claimed(_)), "{client} {number}: {claimed:?}");
    }
}

pub async fn a_lost_room_is_put_back_with_its_attempt(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let attempt = |worker: &Worker, number| Claim {
        attempt: Attempt::new(number),
        ..worker.claim_of(DESKTOP, Some("tab"))
    };
    let claimed = b.backplane.claim(&ann, attempt(&b, 20)).await.unwrap();
    assert!(matches!(claimed, ClaimOutcome::Claimed(_)), "{claimed:?}");
    let [lease, _] = b.backplane.room(&ann).await.unwrap();
    let lease = lease.unwrap();
    world.lose(&ann).await;
    let _ = b.renew_attempt(&ann, DESKTOP, &lease.holder, lease.attempt).await;
    let late = a.backplane.claim(&ann, attempt(&a, 19)).await.unwrap();
    assert!(matches!(late, ClaimOutcome::Superseded { .. }), "{late:?}");
}
