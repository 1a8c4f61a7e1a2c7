use uuid::Uuid;

use super::*;

const LEASE: u64 = 45_000;
const SECOND: u64 = 1_000_000;

fn claim(n: u128, client: Option<&str>) -> Claim {
    Claim {
        device: Device::Desktop,
        connection: ConnectionId(Uuid::from_u128(n)),
        instance: InstanceId(Uuid::from_u128(1)),
        client: client.and_then(ClientId::new),
        attempt: None,
        known: Generation::NONE,
    }
}

fn claimed(outcome: ClaimOutcome) -> Claimed {
    match outcome {
        ClaimOutcome::Claimed(claimed) => claimed,
        refused @ (ClaimOutcome::TooManyEvictions { .. } | ClaimOutcome::Superseded { .. }) => {
            panic!("{refused:?}")
        }
    }
}

fn holder(n: u128, generation: Generation) -> Holder {
    Holder {
        member: Member { connection: ConnectionId(Uuid::from_u128(n)), generation },
        instance: InstanceId(Uuid::from_u128(1)),
        client: None,
    }
}

#[test]
fn generations_grow_past_the_last_the_known_and_the_clock() {
    let mut record = Record::default();
    assert_eq!(claimed(record.claim(5 * SECOND, LEASE, claim(1, None))).generation.0, 5 * SECOND);
    assert_eq!(claimed(record.claim(4 * SECOND, LEASE, claim(2, None))).generation.0, 5 * SECOND + 1);
    let known = Claim { known: Generation(9 * SECOND), ..claim(3, None) };
    assert_eq!(claimed(record.claim(6 * SECOND, LEASE, known)).generation.0, 9 * SECOND + 1);
}

#[test]
fn a_claim_replaces_and_returns_the_other_slot() {
    let mut record = Record::default();
    let mobile = Claim { device: Device::Mobile, ..claim(7, None) };
    let mobile = claimed(record.claim(SECOND, LEASE, mobile));
    let first = claimed(record.claim(SECOND, LEASE, claim(1, None)));
    let second = claimed(record.claim(SECOND, LEASE, claim(2, None)));
    assert_eq!(first.replaced, None);
    assert_eq!(second.replaced, Some(holder(1, first.generation)));
    assert_eq!(second.other, Some(holder(7, mobile.generation)));
}

#[test]
fn a_release_frees_only_its_own_slot() {
    let mut record = Record::default();
    let _ = claimed(record.claim(SECOND, LEASE, claim(1, None)));
    let second = claimed(record.claim(SECOND, LEASE, claim(2, None)));
    assert_eq!(record.release(Device::Desktop, ConnectionId(Uuid::from_u128(1))), None);
    assert!(record.holder(Device::Desktop, 1000).is_some());
    let released = record.release(Device::Desktop, ConnectionId(Uuid::from_u128(2)));
    assert_eq!(released.map(|member| member.generation), Some(second.generation));
    assert!(record.holder(Device::Desktop, 1000).is_none());
}

#[test]
fn a_lease_ends_by_the_clock_and_a_renewal_extends_it() {
    let mut record = Record::default();
    let generation = claimed(record.claim(SECOND, LEASE, claim(1, None))).generation;
    assert!(record.holder(Device::Desktop, 1000 + LEASE - 1).is_some());
    assert!(record.holder(Device::Desktop, 1000 + LEASE).is_none());
    let (renewed, again) = record.renew(40_000, LEASE, Device::Desktop, &holder(1, generation), None);
    assert_eq!((renewed, again), (Renewed::Kept { other: None }, false));
    assert!(record.holder(Device::Desktop, 40_000 + LEASE - 1).is_some());
    assert!(record.holder(Device::Desktop, 40_000 + LEASE).is_none());
}

#[test]
fn a_renewal_puts_back_what_was_lost_and_publishes_it() {
    let mut record = Record::default();
    let mine = holder(1, Generation(77));
    let (renewed, again) = record.renew(1000, LEASE, Device::Desktop, &mine, None);
    assert_eq!((renewed, again), (Renewed::Kept { other: None }, true));
    assert_eq!(claimed(record.claim(0, LEASE, claim(2, None))).generation, Generation(78));
}

#[test]
fn an_overwritten_connection_never_gets_its_slot_back() {
    let mut record = Record::default();
    let first = claimed(record.claim(SECOND, LEASE, claim(1, None)));
    let second = claimed(record.claim(SECOND, LEASE, claim(2, None)));
    let by = holder(2, second.generation);
    let overwritten = Renewed::Overwritten { by: by.member, holder: Some(by.clone()) };
    let (renewed, _) = record.renew(1001, LEASE, Device::Desktop, &holder(1, first.generation), None);
    assert_eq!(renewed, overwritten);
    assert!(record.release(Device::Desktop, ConnectionId(Uuid::from_u128(2))).is_some());
    let (renewed, again) = record.renew(1002, LEASE, Device::Desktop, &holder(1, first.generation), None);
    assert_eq!((renewed, again), (Renewed::Overwritten { by: by.member, holder: None }, false));
    assert!(record.holder(Device::Desktop, 1003).is_none());
}

#[test]
fn a_renewal_that_comes_after_the_release_puts_nothing_back() {
    let mut record = Record::default();
    let first = claimed(record.claim(SECOND, LEASE, claim(1, None)));
    let mine = holder(1, first.generation);
    assert!(record.release(Device::Desktop, mine.member.connection).is_some());
    let (renewed, put_back) = record.renew(1001, LEASE, Device::Desktop, &mine, None);
    assert!(matches!(renewed, Renewed::Overwritten { holder: None, .. }));
    assert!(!put_back);
    assert!(record.holder(Device::Desktop, 1002).is_none());
}

#[test]
fn a_lease_that_ended_is_renewed_again() {
    let mut record = Record::default();
    let first = claimed(record.claim(SECOND, LEASE, claim(1, None)));
    let mine = holder(1, first.generation);
    assert!(record.holder(Device::Desktop, 1000 + LEASE).is_none());
    let (renewed, _) = record.renew(1001 + LEASE, LEASE, Device::Desktop, &mine, None);
    assert_eq!(renewed, Renewed::Kept { other: None });
    assert!(record.holder(Device::Desktop, 1002 + LEASE).is_some());
}

#[test]
fn evictions_are_limited_and_hand_overs_are_not() {
    let mut record = Record::default();
    for n in 0..=10 {
        let _ = claimed(record.claim(SECOND + n * SECOND / 100, LEASE, claim(u128::from(n), None)));
    }
    let outcome = record.claim(2 * SECOND, LEASE, claim(11, None));
    assert_eq!(outcome, ClaimOutcome::TooManyEvictions { retry_after_ms: 9_010 });
    let _ = claimed(record.claim(12 * SECOND, LEASE, claim(12, None)));

    let mut record = Record::default();
    for n in 0..100 {
        let _ = claimed(record.claim(SECOND, LEASE, claim(n, Some("tab"))));
    }
}

#[test]
fn an_earlier_attempt_of_the_same_client_changes_nothing() {
    let attempt = |n: u128, client, attempt| Claim { attempt: Attempt::new(attempt), ..claim(n, client) };
    let mut record = Record::default();
    let second = claimed(record.claim(SECOND, LEASE, attempt(2, Some("tab"), 20)));
    let before = record.clone();
    let late = record.claim(2 * SECOND, LEASE, attempt(1, Some("tab"), 19));
    assert_eq!(late, ClaimOutcome::Superseded { attempt: Attempt::new(20).unwrap() });
    assert_eq!(record, before);
    // Balancers repeat a handshake, and a client that does not count comes as it always did.
    let _ = claimed(record.claim(SECOND, LEASE, attempt(3, Some("tab"), 20)));
    let _ = claimed(record.claim(SECOND, LEASE, claim(4, Some("tab"))));
    let _ = claimed(record.claim(SECOND, LEASE, attempt(5, Some("tab"), 1)));
    // Another client's numbers do not count. Nor do those of a client that has left, or has let its lease end.
    let third = claimed(record.claim(SECOND, LEASE, attempt(6, Some("other"), 0)));
    assert!(third.generation > second.generation);
    let _ = record.release(Device::Desktop, ConnectionId(Uuid::from_u128(6)));
    let _ = claimed(record.claim(SECOND, LEASE, attempt(7, Some("tab"), 30)));
    let _ = claimed(record.claim(SECOND + LEASE * 1000, LEASE, attempt(8, Some("tab"), 2)));
}

#[test]
fn a_renewal_that_puts_a_slot_back_puts_back_its_attempt() {
    let mut record = Record::default();
    let mine = Holder { client: ClientId::new("tab"), ..holder(2, Generation(77)) };
    let (_, put_back) = record.renew(1000, LEASE, Device::Desktop, &mine, Attempt::new(20));
    assert!(put_back);
    let late = Claim { attempt: Attempt::new(19), ..claim(1, Some("tab")) };
    let late = record.claim(SECOND, LEASE, late);
    assert_eq!(late, ClaimOutcome::Superseded { attempt: Attempt::new(20).unwrap() });
}

#[test]
fn evictions_are_forgotten_when_the_window_is_over() {
    let mut record = Record::default();
    for n in 0..=10 {
        let _ = claimed(record.claim(SECOND, LEASE, claim(n, None)));
    }
    let at = |ms: u64, n| (ms * 1000, claim(n, None));
    let (now, again) = at(1000 + EVICTION_WINDOW_MS - 1, 11);
    let refused = record.claim(now, LEASE, again);
    assert_eq!(refused, ClaimOutcome::TooManyEvictions { retry_after_ms: 1 });
    let (now, again) = at(1000 + EVICTION_WINDOW_MS, 12);
    let _ = claimed(record.claim(now, LEASE, again));
}

#[test]
fn a_room_is_idle_without_holders_and_without_evictions_to_remember() {
    let mut record = Record::default();
    assert!(record.is_idle(0));
    for device in Device::ALL {
        let connection = ConnectionId(Uuid::from_u128(1));
        let _ = claimed(record.claim(SECOND, LEASE, Claim { device, ..claim(1, None) }));
        assert!(!record.is_idle(1000), "{device} is held");
        assert!(record.is_idle(1000 + LEASE), "its lease has ended");
        let _ = record.release(device, connection);
        assert!(record.is_idle(1000));
    }
    for n in [1, 2] {
        let _ = claimed(record.claim(SECOND, LEASE, claim(n, None)));
    }
    let _ = record.release(Device::Desktop, ConnectionId(Uuid::from_u128(2)));
    assert!(!record.is_idle(1000 + EVICTION_WINDOW_MS - 1), "an eviction counts");
    assert!(record.is_idle(1000 + EVICTION_WINDOW_MS));
}

#[test]
fn a_renewal_knows_both_slots_and_what_came_before() {
    let mut record = Record::default();
    let first = claimed(record.claim(SECOND, LEASE, claim(1, None)));
    let mobile = Claim { device: Device::Mobile, ..claim(7, None) };
    let mobile = claimed(record.claim(SECOND, LEASE, mobile));
    let other = Some(holder(7, mobile.generation));
    let mine = holder(1, first.generation);
    let (renewed, put_back) = record.renew(1000, LEASE, Device::Desktop, &mine, None);
    assert_eq!((renewed, put_back), (Renewed::Kept { other }, false));
    assert_eq!(record.holder(Device::Desktop, 1000).map(|lease| &lease.holder), Some(&mine));
    // An older one that stands there after a loss gives way to a newer one's renewal, and that is said.
    let mut record = Record::default();
    let _ = record.renew(1000, LEASE, Device::Desktop, &mine, None);
    let newer = holder(2, Generation(first.generation.0 + 5));
    let (renewed, put_back) = record.renew(1000, LEASE, Device::Desktop, &newer, None);
    assert_eq!((renewed, put_back), (Renewed::Kept { other: None }, true));
    let (renewed, _) = record.renew(1000, LEASE, Device::Desktop, &mine, None);
    let expected = Renewed::Overwritten { by: newer.member, holder: Some(newer.clone()) };
    assert_eq!(renewed, expected);
    // What the record has once seen is never given again.
    let next = claimed(record.claim(0, LEASE, claim(3, None)));
    assert_eq!(next.generation.0, newer.member.generation.0 + 1);
}
