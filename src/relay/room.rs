//! One user's room as this instance sees it: its current members, and where each one's frames go.
//!
//! `L` is a local connection. A delivery can only be had from the room that it belongs to, which is why
//! no frame of one user can reach another.
//!
//! Longer than most files: every rule of a room reads and writes the same two slots, and is read beside the others.

use super::classic::Occupancy;
use super::ids::{ConnectionId, Device, Generation, InstanceId, Member};
use super::protocol::Successor;
use super::record::{Claimed, Holder, Renewed};

/// What the hub has to do after an input.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Effect<L> {
    /// A local connection lost its slot: notify and close it.
    Overwrite {
        /// The connection that lost.
        seat: L,
        /// The one that won.
        by: Successor,
    },
    /// The other slot of a local connection changed: drop the volatile frames that wait for it, then notify it.
    Peer {
        /// The connection to notify.
        seat: L,
        /// The slot that changed.
        device: Device,
        /// The connection that came or went.
        member: Member,
        /// True if the member came, false if it went.
        connected: bool,
    },
    /// The other slot of a local connection changed before its `welcome`, which will name it: drop the volatile frames
    /// that wait for it.
    DropVolatile {
        /// The connection whose frames go.
        seat: L,
    },
    /// Publish a marker on a channel: when it comes back, everything sent before it has arrived.
    Mark {
        /// The sender that waits for it.
        seat: L,
        /// The device whose channel carries the marker.
        channel: Device,
        /// Repeated by the marker.
        nonce: u64,
    },
    /// A local sender that waits may go on.
    Resume {
        /// The sender that waits.
        seat: L,
    },
}

/// The way of what a member sends.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Route<L> {
    /// To this local connection.
    Here(L),
    /// To another instance, under this sender's name.
    Away(Member),
    /// Nobody holds the other slot.
    Absent,
    /// Not yet: frames still travel through the backplane, and the next must not overtake them in
    /// memory. The sender waits for [`Effect::Resume`].
    Wait,
    /// The sender has lost its slot; nothing that it sends reaches anyone.
    Overwritten,
}

/// Outcome of a local connection's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Left {
    /// It held its slot: release it.
    Current,
    /// Its claim was still on its way: release whatever comes of it.
    Claiming,
    /// It had lost its slot before.
    Overwritten,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Waiting<L> {
    connection: ConnectionId,
    seat: L,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Slot<L> {
    /// The holder, as far as this instance knows.
    holder: Option<Holder>,
    /// The newest member that is known, also when nobody holds the slot: its generation is the fence.
    newest: Member,
    /// The newest generation that is known to have left for good; no late answer brings it back.
    released: Generation,
    /// The holder's instance has not been heard of for some time: it counts as disconnected.
    silent: bool,
    /// The holder's connection, if it is here.
    here: Option<L>,
    /// What `here` was last notified of the other slot, or what its `welcome` will say.
    reported: Option<Member>,
    /// `here` has its `welcome`.
    welcomed: bool,
    /// `here` has sent frames through the backplane that may still be on their way.
    sent_away: bool,
    /// Set while `here` waits for this marker before it takes the short cut through memory.
    marker: Option<u64>,
    /// Local connections whose claims are on their way.
    waiting: Vec<Waiting<L>>,
}

impl<L> Default for Slot<L> {
    fn default() -> Self {
        Self {
            holder: None,
            newest: Member::NONE,
            released: Generation::NONE,
            silent: false,
            here: None,
            reported: None,
            welcomed: false,
            sent_away: false,
            marker: None,
            waiting: Vec::new(),
        }
    }
}

impl<L> Slot<L> {
    fn visible(&self) -> Option<Member> {
        self.holder.as_ref().filter(|_| !self.silent).map(|holder| holder.member)
    }

    /// Takes the local connection out, and forgets everything that was about it alone.
    fn vacate(&mut self) -> Option<L> {
        self.reported = None;
        self.welcomed = false;
        self.sent_away = false;
        self.marker = None;
        self.here.take()
    }

    fn holds(&self, connection: ConnectionId) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.member.connection == connection)
    }
}

/// One user's room, as one instance sees it.
///
/// A connection calls in this order:
///
/// 1. [`Self::on_claiming`], and only then the backplane is asked, so that the channel is heard before the claim.
/// 2. [`Self::on_claim_answered`] and [`Self::on_welcomed`], or [`Self::on_claim_failed`], which ends it.
/// 3. [`Self::route`] for each message. After [`Route::Wait`] the same message is routed again when
///    [`Effect::Resume`] names the connection, or after [`Self::on_marker_overdue`]. [`Self::on_renewed`] comes with
///    each renewal's answer.
/// 4. [`Self::on_left`], once or more often.
///
/// Between any two of them the channels call: [`Self::on_claimed`], [`Self::on_released`], [`Self::accept`],
/// [`Self::on_marker`] and [`Self::on_instance`]. Each call appends its effects; the caller carries them out in
/// their order, before the next call. [`Self::listens`] and [`Self::is_idle`] then say what is no longer needed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Room<L> {
    desktop: Slot<L>,
    mobile: Slot<L>,
    markers: u64,
}

impl<L> Default for Room<L> {
    fn default() -> Self {
        Self { desktop: Slot::default(), mobile: Slot::default(), markers: 0 }
    }
}

impl<L: Clone> Room<L> {
    fn slot(&self, device: Device) -> &Slot<L> {
        match device {
            Device::Desktop => &self.desktop,
            Device::Mobile => &self.mobile,
        }
    }

    fn slot_mut(&mut self, device: Device) -> &mut Slot<L> {
        match device {
            Device::Desktop => &mut self.desktop,
            Device::Mobile => &mut self.mobile,
        }
    }

    /// The highest generation that is known of the room.
    #[must_use]
    pub fn known(&self) -> Generation {
        self.desktop.newest.generation.max(self.mobile.newest.generation)
    }

    /// The holder of a slot that is not known to be gone.
    #[must_use]
    pub fn visible(&self, device: Device) -> Option<Member> {
        self.slot(device).visible()
    }

    /// Which slots are held.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        Occupancy { desktop: self.desktop.visible().is_some(), mobile: self.mobile.visible().is_some() }
    }

    /// The local connection that holds a slot.
    #[must_use]
    pub fn here(&self, device: Device) -> Option<&L> {
        self.slot(device).here.as_ref()
    }

    /// The local connection that holds a slot, with what the backplane has to know to renew it.
    #[must_use]
    pub fn renewable(&self, device: Device) -> Option<(&L, &Holder)> {
        let slot = self.slot(device);
        slot.here.as_ref().zip(slot.holder.as_ref())
    }

    /// True while this instance needs what is published on the channel of `device`.
    #[must_use]
    pub fn listens(&self, device: Device) -> bool {
        let slot = self.slot(device);
        slot.here.is_some() || !slot.waiting.is_empty()
    }

    /// True when no local connection is left, so that the room can be forgotten.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !Device::ALL.into_iter().any(|device| self.listens(device))
    }

    /// A local connection is about to claim; the channel is subscribed before the claim leaves.
    pub fn on_claiming(&mut self, device: Device, connection: ConnectionId, seat: L) {
        self.slot_mut(device).waiting.push(Waiting { connection, seat });
    }

    /// A slot has a new holder: by a message on a channel, or by the answer to a local claim. Whichever of
    /// the two comes first counts, the second changes nothing, and an older one than what is known
    /// changes nothing either.
    ///
    /// The position of this message among the others of the channel decides which of two sockets gets a
    /// frame. What comes before it is the predecessor's, what comes after it the new holder's.
    pub fn on_claimed(&mut self, device: Device, holder: Holder, effects: &mut Vec<Effect<L>>) {
        let slot = self.slot_mut(device);
        let local = slot.waiting.iter().position(|waiting| waiting.connection == holder.member.connection);
        let local = local.map(|at| slot.waiting.remove(at).seat);
        if holder.member.generation <= slot.newest.generation {
            // The answer to a claim that another one has already overtaken: its connection was
            // overwritten before it was ever current.
            if let Some(seat) = local {
                effects.push(Effect::Overwrite {
                    seat,
                    by: successor(slot.newest, slot.holder.as_ref(), &holder),
                });
            } else if holder.member == slot.newest && slot.newest.generation > slot.released {
                // Known, but perhaps not where it is, or its lease had ended.
                slot.holder = Some(holder);
                self.notify(device.other(), effects);
            }
            return;
        }
        let peer = self.slot(device.other()).visible();
        let slot = self.slot_mut(device);
        let old = slot.holder.replace(holder.clone());
        let was_welcomed = slot.welcomed;
        let evicted = slot.vacate();
        slot.newest = holder.member;
        slot.silent = false;
        slot.here = local;
        slot.reported = peer.filter(|_| slot.here.is_some());
        if let Some((seat, old)) = evicted.zip(old) {
            if !was_welcomed {
                // Changes of the other slot do not reach it any more; its `welcome`, yet to come, names the peer.
                effects.push(Effect::DropVolatile { seat: seat.clone() });
            }
            effects.push(Effect::Overwrite { seat, by: successor(holder.member, Some(&holder), &old) });
        }
        let is_here = slot.here.is_some();
        self.notify(device.other(), effects);
        if is_here {
            self.enter_short_cut(device.other(), effects);
        } else {
            self.leave_short_cut(device.other(), effects);
        }
    }

    /// Something proves that `member` has claimed its slot, although its `claimed` may have been lost on
    /// the way. The next renewal's answer says where it is.
    fn on_seen(&mut self, device: Device, member: Member, effects: &mut Vec<Effect<L>>) {
        if member.generation > self.slot(device).newest.generation {
            self.on_claimed(device, seen(member), effects);
        }
    }

    /// The answer to a local claim. It usually repeats what the channel has delivered, and replaces it if the
    /// channel's message was lost.
    pub fn on_claim_answered(
        &mut self,
        device: Device,
        holder: Holder,
        claimed: &Claimed,
        effects: &mut Vec<Effect<L>>,
    ) {
        let generation = holder.member.generation;
        self.on_claimed(device, holder, effects);
        self.on_other_slot(device.other(), claimed.other.clone(), generation, effects);
    }

    /// What an answer of the backplane said of the slot beside ours. The answer may be older than what
    /// the channel has delivered since: the room applies only what no newer event can have overtaken. `asked` is
    /// the newest generation that the answer certainly includes.
    fn on_other_slot(
        &mut self,
        device: Device,
        other: Option<Holder>,
        asked: Generation,
        effects: &mut Vec<Effect<L>>,
    ) {
        let slot = self.slot_mut(device);
        match other {
            Some(holder) if holder.member.generation >= slot.newest.generation => {
                self.on_claimed(device, holder, effects)
            }
            // Older than a release or a claim that the channel has delivered since.
            Some(_) if slot.here.is_some() || slot.newest.generation > asked => {}
            // The record never goes back by itself: Redis has lost it. An older holder that never heard of
            // the newer one has put its slot back. The newer one will do the same, if it still lives.
            Some(_) if slot.visible().is_some() => {
                slot.holder = None;
                self.notify(device.other(), effects);
            }
            Some(older) => {
                slot.newest = Member::NONE;
                slot.released = Generation::NONE;
                self.on_claimed(device, older, effects);
            }
            None => {
                // A holder that is here knows best, and a claim made after the question is not in its answer.
                if slot.here.is_none() && slot.newest.generation <= asked {
                    slot.holder = None;
                    // If its instance comes back and renews, it is not silent. A slot without a holder does
                    // not notice that its instance was heard again meanwhile.
                    slot.silent = false;
                    self.notify(device.other(), effects);
                }
            }
        }
    }

    /// The claim of a local connection failed, or its client went away before it was answered.
    pub fn on_claim_failed(
        &mut self,
        device: Device,
        connection: ConnectionId,
        effects: &mut Vec<Effect<L>>,
    ) -> Left {
        self.on_left(device, connection, effects)
    }

    /// A slot became free, by a message on a channel.
    pub fn on_released(&mut self, device: Device, member: Member, effects: &mut Vec<Effect<L>>) {
        // Its `claimed` may have been lost: its predecessor has lost the slot all the same.
        self.on_seen(device, member, effects);
        let slot = self.slot_mut(device);
        slot.released = slot.released.max(member.generation);
        // The comparison is with the member, so that the end of an old connection never frees a newer one's
        // slot. What is here is released here, not by an echo.
        if slot.here.is_none() && slot.holder.as_ref().is_some_and(|holder| holder.member == member) {
            slot.holder = None;
            self.notify(device.other(), effects);
        }
    }

    /// A local connection has ended.
    pub fn on_left(
        &mut self,
        device: Device,
        connection: ConnectionId,
        effects: &mut Vec<Effect<L>>,
    ) -> Left {
        let slot = self.slot_mut(device);
        if let Some(at) = slot.waiting.iter().position(|waiting| waiting.connection == connection) {
            slot.waiting.remove(at);
            return Left::Claiming;
        }
        if slot.here.is_none() || !slot.holds(connection) {
            return Left::Overwritten;
        }
        slot.released = slot.newest.generation;
        slot.holder = None;
        slot.vacate();
        self.notify(device.other(), effects);
        self.leave_short_cut(device.other(), effects);
        Left::Current
    }

    /// The answer to the renewal of a local connection's slot; `asked` is what [`Self::known`] was when
    /// the renewal was sent.
    pub fn on_renewed(
        &mut self,
        device: Device,
        connection: ConnectionId,
        asked: Generation,
        renewed: Renewed,
        effects: &mut Vec<Effect<L>>,
    ) {
        if !self.slot(device).holds(connection) {
            return;
        }
        match renewed {
            Renewed::Kept { other } => self.on_other_slot(device.other(), other, asked, effects),
            Renewed::Overwritten { by, holder } => {
                // The channel's message was lost: this is how an overwritten connection learns of it.
                let is_free = holder.is_none();
                match holder {
                    Some(holder) => self.on_claimed(device, holder, effects),
                    None => self.on_seen(device, by, effects),
                }
                // Not a release: perhaps only its lease has ended, and it renews again.
                let slot = self.slot_mut(device);
                if is_free && slot.here.is_none() && slot.holds(by.connection) {
                    slot.holder = None;
                    self.notify(device.other(), effects);
                }
            }
        }
    }

    /// An instance has not been heard of for some time, or is heard of again.
    pub fn on_instance(&mut self, instance: InstanceId, silent: bool, effects: &mut Vec<Effect<L>>) {
        for device in Device::ALL {
            let slot = self.slot_mut(device);
            let is_there = slot.holder.as_ref().is_some_and(|holder| holder.instance == instance);
            if is_there && slot.here.is_none() && slot.silent != silent {
                slot.silent = silent;
                self.notify(device.other(), effects);
            }
        }
    }

    /// Something from `from` has come on the channel of `to`: who gets it. Only the newest connection of
    /// the other device that is known here may speak, and only to the newest of this one.
    pub fn accept(&mut self, to: Device, from: Member, effects: &mut Vec<Effect<L>>) -> Option<&L> {
        let slot = self.slot_mut(to.other());
        if from.generation < slot.newest.generation || from.generation <= slot.released {
            return None;
        }
        if from.generation > slot.newest.generation {
            self.on_seen(to.other(), from, effects);
        } else if slot.visible().is_none() {
            // It was silent, or its lease had ended, or was lost: it lives.
            slot.silent = false;
            slot.holder.get_or_insert_with(|| seen(from));
            self.notify(to, effects);
        } else if slot.here.is_some() && slot.marker.is_none() && !slot.sent_away {
            // A local sender's marker was given up, and this frame comes after all: later ones have
            // overtaken it in memory.
            return None;
        }
        self.slot(to).here.as_ref()
    }

    /// The peer that the new connection's `welcome` names. From now on the room notifies it of changes.
    pub fn on_welcomed(&mut self, device: Device, connection: ConnectionId) -> Option<Member> {
        let peer = self.slot(device.other()).visible();
        let slot = self.slot_mut(device);
        if slot.here.is_some() && slot.holds(connection) {
            slot.reported = peer;
            slot.welcomed = true;
        }
        peer
    }

    /// Notifies the local holder of `device` of the other slot's present member, if it believes otherwise.
    fn notify(&mut self, device: Device, effects: &mut Vec<Effect<L>>) {
        let now = self.slot(device.other()).visible();
        let slot = self.slot_mut(device);
        let Some(seat) = slot.here.clone().filter(|_| slot.reported != now) else {
            return;
        };
        let before = std::mem::replace(&mut slot.reported, now);
        if !slot.welcomed {
            // Frames that wait came from somebody who was seen when they came.
            effects.extend(before.map(|_| Effect::DropVolatile { seat }));
            return;
        }
        let device = device.other();
        match (now, before) {
            (Some(member), _) => effects.push(Effect::Peer { seat, device, member, connected: true }),
            (None, Some(member)) => effects.push(Effect::Peer { seat, device, member, connected: false }),
            (None, None) => {}
        }
    }

    /// Which way `device`'s member sends.
    pub fn route(&mut self, device: Device, connection: ConnectionId) -> Route<L> {
        let (mine, other) = match device {
            Device::Desktop => (&mut self.desktop, &self.mobile),
            Device::Mobile => (&mut self.mobile, &self.desktop),
        };
        let Some(member) = mine.holder.as_ref().map(|holder| holder.member) else {
            return Route::Overwritten;
        };
        if member.connection != connection || mine.here.is_none() {
            return Route::Overwritten;
        }
        if mine.marker.is_some() {
            return Route::Wait;
        }
        if let Some(seat) = &other.here {
            return Route::Here(seat.clone());
        }
        if other.visible().is_none() {
            return Route::Absent;
        }
        mine.sent_away = true;
        Route::Away(member)
    }

    /// The peer of `device`'s member is here now. What the member sent through the backplane may still be on
    /// its way, and what it sends next must not overtake it. So it waits for a marker that follows.
    fn enter_short_cut(&mut self, device: Device, effects: &mut Vec<Effect<L>>) {
        let nonce = self.markers + 1;
        let slot = self.slot_mut(device);
        let Some(seat) = slot.here.clone().filter(|_| slot.sent_away && slot.marker.is_none()) else {
            return;
        };
        slot.marker = Some(nonce);
        self.markers = nonce;
        effects.push(Effect::Mark { seat, channel: device.other(), nonce });
    }

    /// The peer of `device`'s member is not here any more; in memory nothing is ever on its way.
    fn leave_short_cut(&mut self, device: Device, effects: &mut Vec<Effect<L>>) {
        let slot = self.slot_mut(device);
        if slot.marker.take().is_some()
            && let Some(seat) = slot.here.clone()
        {
            effects.push(Effect::Resume { seat });
        }
    }

    /// A marker of this instance came back on the channel of `channel`: the short cut is open.
    pub fn on_marker(&mut self, channel: Device, nonce: u64, effects: &mut Vec<Effect<L>>) {
        let slot = self.slot_mut(channel.other());
        if slot.marker == Some(nonce) {
            slot.sent_away = false;
            self.leave_short_cut(channel.other(), effects);
        }
    }

    /// The marker that `device`'s member waits for did not come back in time. It was lost, and with it
    /// everything before it that has not arrived.
    pub fn on_marker_overdue(&mut self, device: Device, effects: &mut Vec<Effect<L>>) {
        self.slot_mut(device).sent_away = false;
        self.leave_short_cut(device, effects);
    }
}

/// A holder of whom nothing is known but that it is there.
fn seen(member: Member) -> Holder {
    Holder { member, instance: InstanceId::UNKNOWN, client: None }
}

fn successor(new: Member, holder: Option<&Holder>, old: &Holder) -> Successor {
    let same_client = holder.is_some_and(|holder| holder.member == new && holder.is_same_client(old));
    Successor { connection: new.connection, generation: new.generation, same_client }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
