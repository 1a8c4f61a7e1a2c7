//! The backplane of one process: the embedded default, without Redis.
//!
//! A user belongs to one worker, so that each worker's rooms are its own and nothing is shared.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::{FutureExt as _, LocalBoxFuture, ready};

use super::{Backplane, Event, InstanceInfo, Published, Renewal, RoomSnapshot, Sink, Unavailable};
use crate::relay::envelope::Envelope;
use crate::relay::ids::{ConnectionId, Device, InstanceId, Member, UserId};
use crate::relay::record::{Claim, ClaimOutcome, Claimed, Holder, Lease, Record, Renewed};

/// Rooms that several workers of one thread can be attached to (the relay attaches one; tests more).
#[derive(Default)]
pub struct Memory {
    rooms: RefCell<HashMap<UserId, Room>>,
    /// Rooms without a holder that are kept until their evictions are forgotten.
    leaving: RefCell<Vec<UserId>>,
}

#[derive(Default)]
struct Room {
    record: Record,
    channels: [Vec<Weak<Attached>>; 2],
}

/// One worker's share of a [`Memory`].
pub struct Attached {
    memory: Rc<Memory>,
    sink: Sink,
    lease_ms: u64,
    me: Weak<Self>,
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn now_ms() -> u64 {
    now_us() / 1000
}

impl Memory {
    /// Attaches a worker, whose events go to `sink`.
    #[must_use]
    pub fn attach(self: &Rc<Self>, sink: Sink, lease_ms: u64) -> Rc<Attached> {
        Rc::new_cyclic(|me| Attached { memory: Rc::clone(self), sink, lease_ms, me: me.clone() })
    }

    /// Hands an envelope to everyone who is subscribed to one of the channels. No borrow is held
    /// meanwhile: a sink may call back.
    fn hand_out(&self, user: &UserId, channels: &[Device], envelope: &Envelope) {
        for channel in channels {
            let subscribers = match self.rooms.borrow().get(user) {
                Some(room) => room.channels[*channel as usize].clone(),
                None => return,
            };
            for subscriber in subscribers.iter().filter_map(Weak::upgrade) {
                (subscriber.sink)(Event::Envelope { user, channel: *channel, envelope: envelope.clone() });
            }
        }
    }

    /// Forgets a room that nobody listens to, now or once its evictions are old enough.
    fn forget_idle(&self, user: &UserId) {
        if !self.try_forget(user) {
            let mut leaving = self.leaving.borrow_mut();
            if !leaving.contains(user) {
                leaving.push(user.clone());
            }
        }
    }

    /// False when the room has to be looked at again later.
    fn try_forget(&self, user: &UserId) -> bool {
        let mut rooms = self.rooms.borrow_mut();
        let Some(room) = rooms.get(user) else {
            return true;
        };
        if room.channels.iter().any(|channel| !channel.is_empty()) {
            return true;
        }
        let is_idle = room.record.is_idle(now_ms());
        if is_idle {
            rooms.remove(user);
        }
        is_idle
    }
}

impl Backplane for Attached {
    fn claim<'a>(
        &'a self,
        user: &'a UserId,
        claim: Claim,
    ) -> LocalBoxFuture<'a, Result<ClaimOutcome, Unavailable>> {
        let device = claim.device;
        let (connection, instance, client) = (claim.connection, claim.instance, claim.client.clone());
        let outcome = {
            let mut rooms = self.memory.rooms.borrow_mut();
            let room = rooms.entry(user.clone()).or_default();
            let channel = &mut room.channels[device as usize];
            if !channel.iter().any(|subscriber| subscriber.ptr_eq(&self.me)) {
                channel.push(self.me.clone());
            }
            room.record.claim(now_us(), self.lease_ms, claim)
        };
        if let ClaimOutcome::Claimed(Claimed { generation, .. }) = outcome {
            let holder = Holder { member: Member { connection, generation }, instance, client };
            self.memory.hand_out(user, &Device::ALL, &Envelope::Claimed { device, holder });
        }
        ready(Ok(outcome)).boxed_local()
    }

    fn renew<'a>(&'a self, renewals: &'a [Renewal]) -> LocalBoxFuture<'a, Vec<Result<Renewed, Unavailable>>> {
        let renew = |Renewal { user, device, holder, attempt }: &Renewal| {
            let (renewed, put_back) = {
                let mut rooms = self.memory.rooms.borrow_mut();
                let room = rooms.entry(user.clone()).or_default();
                room.record.renew(now_ms(), self.lease_ms, *device, holder, *attempt)
            };
            if put_back {
                let claimed = Envelope::Claimed { device: *device, holder: holder.clone() };
                self.memory.hand_out(user, &Device::ALL, &claimed);
            }
            Ok(renewed)
        };
        let renewed = renewals.iter().map(renew).collect();
        let leaving = std::mem::take(&mut *self.memory.leaving.borrow_mut());
        let kept = leaving.into_iter().filter(|user| !self.memory.try_forget(user)).collect();
        *self.memory.leaving.borrow_mut() = kept;
        ready(renewed).boxed_local()
    }

    fn release<'a>(
        &'a self,
        user: &'a UserId,
        device: Device,
        connection: ConnectionId,
    ) -> LocalBoxFuture<'a, ()> {
        let released = match self.memory.rooms.borrow_mut().get_mut(user) {
            Some(room) => room.record.release(device, connection),
            None => None,
        };
        if let Some(member) = released {
            self.memory.hand_out(user, &Device::ALL, &Envelope::Released { device, member });
        }
        self.memory.forget_idle(user);
        ready(()).boxed_local()
    }

    fn unsubscribe(&self, user: &UserId, channel: Device) {
        if let Some(room) = self.memory.rooms.borrow_mut().get_mut(user) {
            room.channels[channel as usize].retain(|subscriber| !subscriber.ptr_eq(&self.me));
        }
        self.memory.forget_idle(user);
    }

    fn publish(&self, user: &UserId, channel: Device, envelope: Envelope, _since: Instant) -> Published {
        self.memory.hand_out(user, &[channel], &envelope);
        Published::Queued
    }

    fn room<'a>(&'a self, user: &'a UserId) -> LocalBoxFuture<'a, Result<RoomSnapshot, Unavailable>> {
        let now = now_ms();
        let rooms = self.memory.rooms.borrow();
        let lease = |device| {
            let lease = rooms.get(user).and_then(|room| room.record.holder(device, now))?;
            Some(Lease { ends: lease.ends - now, ..lease.clone() })
        };
        ready(Ok(Device::ALL.map(lease))).boxed_local()
    }

    fn instances(&self) -> Vec<InstanceInfo> {
        // The only instance there is: the server knows itself.
        Vec::new()
    }

    fn is_silent(&self, _instance: InstanceId) -> bool {
        false
    }

    fn close(&self) -> LocalBoxFuture<'_, ()> {
        ready(()).boxed_local()
    }
}
