//! The room as all instances share it: who holds each slot, under which generation, until when.
//!
//! These are the rules of claim, renew and release. The memory backplane calls them as they are; the
//! Redis backplane runs the same rules as Lua scripts, where each is atomic.

use super::ids::{Attempt, ClientId, ConnectionId, Device, Generation, InstanceId, Member};

/// A connection that holds a slot, and where its socket is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The connection and its generation.
    pub member: Member,
    /// The instance that has the socket.
    pub instance: InstanceId,
    /// The client, if it named itself.
    pub client: Option<ClientId>,
}

impl Holder {
    /// True when `other` is the same client coming back (a hand-over). Connections without a client
    /// name are never the same client.
    #[must_use]
    pub fn is_same_client(&self, other: &Self) -> bool {
        self.client.is_some() && self.client == other.client
    }
}

/// A holder and the end of its lease, in milliseconds of the backplane's clock.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The connection that holds the slot.
    pub holder: Holder,
    /// When the slot is free again unless it is renewed before.
    pub ends: u64,
    /// Its client's attempt, if the client counts them.
    pub attempt: Option<Attempt>,
}

/// What a new connection asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The slot that the connection wants.
    pub device: Device,
    /// The connection that claims, unique over all time.
    pub connection: ConnectionId,
    /// Where its socket is.
    pub instance: InstanceId,
    /// Its client, if it named itself.
    pub client: Option<ClientId>,
    /// Which of its client's attempts it is, if the client counts them.
    pub attempt: Option<Attempt>,
    /// The highest generation that the claiming instance knows of the room.
    pub known: Generation,
}

/// Outcome of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[must_use]
pub enum ClaimOutcome {
    /// The slot is the new connection's.
    Claimed(Claimed),
    /// Too many evictions of this slot in a short time: two tabs take over from each other.
    TooManyEvictions {
        /// When a claim can succeed again, milliseconds from now.
        retry_after_ms: u64,
    },
    /// The slot is held by a later attempt of the same client: this one was given up, and comes late.
    Superseded {
        /// The holder's attempt, which is higher.
        attempt: Attempt,
    },
}

/// A claim that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claimed {
    /// The new connection's generation.
    pub generation: Generation,
    /// The holder until this claim.
    pub replaced: Option<Holder>,
    /// The holder of the other slot.
    pub other: Option<Holder>,
}

/// Outcome of a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[must_use]
pub enum Renewed {
    /// The slot is still mine (or mine again, after the backplane lost data).
    Kept {
        /// The holder of the other slot.
        other: Option<Holder>,
    },
    /// A newer connection stands there, or stood there after mine; or mine has released the slot.
    Overwritten {
        /// The last connection that held the slot.
        by: Member,
        /// The present holder; nobody, if that connection has left since, or its lease has ended.
        holder: Option<Holder>,
    },
}

/// Evictions of one slot that are allowed in [`EVICTION_WINDOW_MS`].
pub const EVICTIONS: usize = 10;
/// The time over which evictions are counted, in milliseconds.
pub const EVICTION_WINDOW_MS: u64 = 10_000;

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Slot {
    lease: Option<Lease>,
    /// The last member that the slot had, also when it is free: a connection that was overwritten by
    /// one that has left since must not get the slot back.
    newest: Option<Member>,
    /// When the slot was evicted lately, oldest first.
    evictions: Vec<u64>,
}

/// The shared record of one room.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Record {
    last: Generation,
    desktop: Slot,
    mobile: Slot,
}

impl Record {
    fn slot(&self, device: Device) -> &Slot {
        match device {
            Device::Desktop => &self.desktop,
            Device::Mobile => &self.mobile,
        }
    }

    fn slot_mut(&mut self, device: Device) -> &mut Slot {
        match device {
            Device::Desktop => &mut self.desktop,
            Device::Mobile => &mut self.mobile,
        }
    }

    /// The holder of a slot at `now` (milliseconds).
    #[must_use]
    pub fn holder(&self, device: Device, now: u64) -> Option<&Lease> {
        self.slot(device).lease.as_ref().filter(|lease| lease.ends > now)
    }

    /// Gives the slot to a new connection, under the next generation: above the last one, above every
    /// one that the claimer knows, and not below the clock in microseconds, so that it grows even after
    /// the record was lost.
    pub fn claim(&mut self, now_us: u64, lease_ms: u64, claim: Claim) -> ClaimOutcome {
        let now = now_us / 1000;
        let lease = self.holder(claim.device, now);
        let held_attempt = lease.and_then(|lease| lease.attempt);
        let replaced = lease.map(|lease| lease.holder.clone());
        let generation = Generation((self.last.0 + 1).max(claim.known.0 + 1).max(now_us));
        let holder = Holder {
            member: Member { connection: claim.connection, generation },
            instance: claim.instance,
            client: claim.client,
        };
        let is_same_client = replaced.as_ref().is_some_and(|old| old.is_same_client(&holder));
        if let Some(later) =
            held_attempt.filter(|held| is_same_client && claim.attempt.is_some_and(|it| it < *held))
        {
            return ClaimOutcome::Superseded { attempt: later };
        }
        let slot = self.slot_mut(claim.device);
        if replaced.is_some() && !is_same_client {
            slot.evictions.retain(|at| at + EVICTION_WINDOW_MS > now);
            if let Some(first) = slot.evictions.first().filter(|_| slot.evictions.len() >= EVICTIONS) {
                return ClaimOutcome::TooManyEvictions { retry_after_ms: first + EVICTION_WINDOW_MS - now };
            }
            slot.evictions.push(now);
        }
        slot.newest = Some(holder.member);
        slot.lease = Some(Lease { holder, ends: now + lease_ms, attempt: claim.attempt });
        self.last = generation;
        let other = self.holder(claim.device.other(), now).map(|lease| lease.holder.clone());
        ClaimOutcome::Claimed(Claimed { generation, replaced, other })
    }

    /// Extends a lease; puts a slot back that is missing or older (the backplane lost data). True beside
    /// the answer when the slot had to be put back and must be published again.
    pub fn renew(
        &mut self,
        now: u64,
        lease_ms: u64,
        device: Device,
        mine: &Holder,
        attempt: Option<Attempt>,
    ) -> (Renewed, bool) {
        let slot = self.slot_mut(device);
        // Nobody holds the slot though it was mine last: I have released it, and this renewal, sent before,
        // was overtaken by that.
        let is_over = |newest: &Member| {
            newest.generation > mine.member.generation || (*newest == mine.member && slot.lease.is_none())
        };
        if let Some(newest) = slot.newest.filter(is_over) {
            let holder = self.holder(device, now).map(|lease| lease.holder.clone());
            return (Renewed::Overwritten { by: newest, holder }, false);
        }
        let slot = self.slot_mut(device);
        let put_back = slot.lease.as_ref().is_none_or(|lease| lease.holder.member != mine.member);
        slot.newest = Some(mine.member);
        slot.lease = Some(Lease { holder: mine.clone(), ends: now + lease_ms, attempt });
        self.last = self.last.max(mine.member.generation);
        let other = self.holder(device.other(), now).map(|lease| lease.holder.clone());
        (Renewed::Kept { other }, put_back)
    }

    /// Frees the slot if `connection` still holds it, and returns what it held.
    ///
    /// The connection's id is enough: it is used for one claim only. A claim whose answer was lost has no
    /// generation to compare yet.
    pub fn release(&mut self, device: Device, connection: ConnectionId) -> Option<Member> {
        let slot = self.slot_mut(device);
        let lease = slot.lease.take_if(|lease| lease.holder.member.connection == connection)?;
        Some(lease.holder.member)
    }

    /// True when nobody holds a slot and nothing is left to remember for the next claim.
    #[must_use]
    pub fn is_idle(&self, now: u64) -> bool {
        Device::ALL.into_iter().all(|device| {
            self.holder(device, now).is_none()
                && self.slot(device).evictions.last().is_none_or(|at| at + EVICTION_WINDOW_MS <= now)
        })
    }
}

#[cfg(test)]
mod tests {
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
}
