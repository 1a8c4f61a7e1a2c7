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
    /// The last member that the slot had, also when it is free. A newer connection may have overwritten an
    /// older one and left since. The older one must not get the slot back.
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

    /// Gives the slot to a new connection, under the next generation. That is above the last one, and above
    /// every one that the claimer knows. It is not below the clock in microseconds, so that it grows even
    /// after the record was lost.
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
#[path = "record_tests.rs"]
mod tests;
