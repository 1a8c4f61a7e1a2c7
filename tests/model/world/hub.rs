//! What an instance's hub does: inputs to the room, its effects, and what comes back from Redis.

use duorelay::relay::ids::{Device, Generation};
use duorelay::relay::record::{Claimed, Holder, Renewed};
use duorelay::relay::room::{Effect, Left, Room, Route};

use super::{
    Answer, Call, Message, Mutation, Phase, Seat, Setup, World, Wrong, connection_id, instance_of, seat_of,
};

impl World {
    /// An input to a room, and what the hub does about its effects.
    pub(super) fn with_room<T>(
        &mut self,
        setup: &Setup,
        at: usize,
        act: impl FnOnce(&mut Room<Seat>, &mut Vec<Effect<Seat>>) -> T,
    ) -> T {
        let mut effects = Vec::new();
        let result = act(&mut self.instances[at].room, &mut effects);
        self.apply(setup, at, effects);
        let instance = &mut self.instances[at];
        for device in Device::ALL {
            instance.subscribed[device as usize] &= instance.room.listens(device);
        }
        if instance.room.is_idle() {
            instance.room = Room::default();
            instance.known = Default::default();
        }
        result
    }

    pub(super) fn apply(&mut self, setup: &Setup, at: usize, effects: Vec<Effect<Seat>>) {
        for effect in effects {
            match effect {
                Effect::Overwrite { seat, by } => {
                    let winner = self.connection(seat_of(by.connection)).generation;
                    let connection = self.connection_mut(seat);
                    let is_fair = winner > connection.generation
                        && matches!(connection.phase, Phase::Open | Phase::Claiming);
                    connection.phase = Phase::Overwritten;
                    if !is_fair {
                        self.blame(Wrong::FalselyOverwritten);
                    }
                    if by.same_client && seat_of(by.connection) < seat {
                        self.blame(Wrong::Superseded);
                    }
                    if self.route(setup, seat) != Route::Overwritten {
                        self.blame(Wrong::Route);
                    }
                    // Its socket ends soon after; that must change nothing.
                    let (device, _) = setup.seats[usize::from(seat)];
                    let mut ended = Vec::new();
                    let left = self.instances[at].room.on_left(device, connection_id(seat), &mut ended);
                    if left != Left::Overwritten || !ended.is_empty() {
                        self.blame(Wrong::Disturbed);
                    }
                }
                Effect::Peer { seat, member, connected, .. } => {
                    let connection = self.connection_mut(seat);
                    let is_news = (connection.reported == Some(member)) != connected;
                    connection.reported = connected.then_some(member);
                    if !is_news {
                        self.blame(Wrong::Peer);
                    }
                }
                Effect::Mark { seat, channel, nonce } => {
                    if setup.mutation == Some(Mutation::NoMarker) {
                        self.overdue(setup, seat);
                        continue;
                    }
                    let publisher = at;
                    self.instances[at].publishes[channel as usize]
                        .push_back(Message::Marker { publisher, nonce });
                }
                Effect::DropVolatile { .. } | Effect::Resume { .. } => {}
            }
        }
    }

    pub(crate) fn join(&mut self, setup: &Setup, seat: Seat) {
        let (device, at) = setup.seats[usize::from(seat)];
        self.connection_mut(seat).phase = Phase::Claiming;
        let instance = &mut self.instances[at];
        instance.room.on_claiming(device, connection_id(seat), seat);
        instance.subscribed[device as usize] |= setup.mutation != Some(Mutation::SubscribedLate);
        let known = instance.room.known();
        instance.calls.push_back(Call::Claim(seat, known));
    }

    pub(super) fn leave(&mut self, setup: &Setup, seat: Seat) {
        let (device, at) = setup.seats[usize::from(seat)];
        self.connection_mut(seat).phase = Phase::Gone;
        let left =
            self.with_room(setup, at, |room, effects| room.on_left(device, connection_id(seat), effects));
        match left {
            Left::Current | Left::Claiming => {
                self.instances[at].calls.push_back(Call::Release(seat));
            }
            Left::Overwritten => self.blame(Wrong::Route),
        }
    }

    pub(crate) fn renew(&mut self, setup: &Setup, seat: Seat) {
        let (device, at) = setup.seats[usize::from(seat)];
        let instance = &mut self.instances[at];
        match instance.room.renewable(device) {
            Some((here, holder)) if *here == seat => {
                let (holder, known) = (holder.clone(), instance.room.known());
                instance.calls.push_back(Call::Renew(seat, holder, known));
            }
            Some(_) | None => self.blame(Wrong::Route),
        }
    }

    pub(crate) fn overdue(&mut self, setup: &Setup, seat: Seat) {
        let (device, at) = setup.seats[usize::from(seat)];
        self.with_room(setup, at, |room, effects| {
            room.on_marker_overdue(device, effects);
        });
    }

    pub(crate) fn send(&mut self, setup: &Setup, seat: Seat) {
        let (device, at) = setup.seats[usize::from(seat)];
        let number = self.connection(seat).sent + 1;
        let room = &mut self.instances[at].room;
        match room.route(device, connection_id(seat)) {
            Route::Here(to) => {
                self.take(seat);
                self.deliver(setup, at, seat, number, to);
            }
            Route::Away(from) => {
                self.take(seat);
                self.instances[at].publishes[device.other() as usize].push_back(Message::Frame {
                    from,
                    sender: seat,
                    number,
                });
            }
            Route::Absent | Route::Wait => {}
            Route::Overwritten => self.blame(Wrong::Route),
        }
    }

    pub(super) fn take(&mut self, seat: Seat) {
        let connection = self.connection_mut(seat);
        connection.sent += 1;
        connection.receivers.push(0);
    }

    pub(super) fn deliver(&mut self, setup: &Setup, at: usize, sender: Seat, number: u8, to: Seat) {
        let is_fenced = [sender, to].into_iter().any(|seat| {
            let (device, _) = setup.seats[usize::from(seat)];
            self.connection(seat).generation < self.instances[at].known[device as usize]
        });
        if is_fenced {
            self.blame(Wrong::Fence);
        }
        let last = &mut self.connection_mut(to).last[usize::from(sender)];
        let is_in_order = *last < number;
        *last = number;
        if !is_in_order {
            self.blame(Wrong::Order);
        }
        let receivers = &mut self.connection_mut(sender).receivers[usize::from(number - 1)];
        *receivers |= 1 << to;
        if receivers.count_ones() > 1 && self.spent.is_calm() && !setup.hasty_answers {
            self.blame(Wrong::TwoReceivers);
        }
    }

    pub(super) fn learn(&mut self, at: usize, device: Device, generation: Generation) {
        let known = &mut self.instances[at].known[device as usize];
        *known = generation.max(*known);
    }

    /// An answer names a holder. One that is older than what was known when the question was asked
    /// shows that Redis has lost its data.
    pub(super) fn learn_of_other(&mut self, at: usize, device: Device, other: &Holder, asked: Generation) {
        if self.spent.flushes > 0 && self.instances[at].known[device as usize] <= asked {
            self.instances[at].known[device as usize] = other.member.generation;
        }
        self.learn(at, device, other.member.generation);
    }

    pub(super) fn arrive(&mut self, setup: &Setup, at: usize, channel: Device, message: Message) {
        if self.instances[at].room.is_idle() {
            return;
        }
        match message {
            Message::Claimed(device, mut holder) => {
                self.learn(at, device, holder.member.generation);
                if setup.mutation == Some(Mutation::ClaimsOfAnyAge) {
                    let known = self.instances[at].known[device as usize];
                    holder.member.generation = Generation(known.0);
                    if self.instances[at].room.visible(device) != Some(holder.member) {
                        holder.member.generation.0 += 1;
                    }
                }
                self.with_room(setup, at, |room, effects| {
                    room.on_claimed(device, holder, effects);
                });
            }
            Message::Released(device, member) => {
                self.learn(at, device, member.generation);
                let before = self.instances[at].room.visible(device);
                self.with_room(setup, at, |room, effects| {
                    room.on_released(device, member, effects);
                });
                let is_newer = before.is_some_and(|lease| lease.generation > member.generation);
                if is_newer && self.instances[at].room.visible(device) != before {
                    self.blame(Wrong::Disturbed);
                }
            }
            Message::Frame { mut from, sender, number } => {
                if setup.mutation == Some(Mutation::NoFence) {
                    let known = self.instances[at].known[channel.other() as usize];
                    from.generation = from.generation.max(known);
                }
                let to =
                    self.with_room(setup, at, |room, effects| room.accept(channel, from, effects).copied());
                if let Some(to) = to {
                    self.deliver(setup, at, sender, number, to);
                }
                self.learn(at, channel.other(), from.generation);
            }
            Message::Marker { publisher, nonce } => {
                if publisher == at {
                    self.with_room(setup, at, |room, effects| {
                        room.on_marker(channel, nonce, effects);
                    });
                }
            }
        }
    }

    pub(super) fn answered(&mut self, setup: &Setup, at: usize, answer: Answer) {
        match answer {
            Answer::Claimed(seat, holder, claimed) => self.welcome(setup, at, seat, holder, claimed),
            Answer::Superseded(seat) => {
                // Unless its client has gone meanwhile.
                if self.connection(seat).phase == Phase::Claiming {
                    self.leave(setup, seat);
                }
            }
            Answer::Renewed(seat, asked, renewed) => {
                let (device, _) = setup.seats[usize::from(seat)];
                if self.connection(seat).phase == Phase::Open {
                    match &renewed {
                        Renewed::Kept { other } => {
                            if let Some(other) = other {
                                self.learn_of_other(at, device.other(), other, asked);
                            }
                        }
                        Renewed::Overwritten { by, .. } => self.learn(at, device, by.generation),
                    }
                }
                self.with_room(setup, at, |room, effects| {
                    room.on_renewed(device, connection_id(seat), asked, renewed, effects);
                });
            }
        }
    }

    pub(super) fn welcome(&mut self, setup: &Setup, at: usize, seat: Seat, holder: Holder, claimed: Claimed) {
        let (device, _) = setup.seats[usize::from(seat)];
        if self.connection(seat).phase == Phase::Gone {
            return;
        }
        self.instances[at].subscribed[device as usize] = true;
        self.learn(at, device, holder.member.generation);
        if let Some(other) = &claimed.other {
            let asked = holder.member.generation;
            self.learn_of_other(at, device.other(), other, asked);
        }
        let silent = claimed.other.as_ref().map(|other| other.instance);
        let silent =
            silent.filter(|id| instance_of(*id).is_some_and(|of| self.instances[at].silent.contains(&of)));
        let peer = self.with_room(setup, at, |room, effects| {
            room.on_claim_answered(device, holder, &claimed, effects);
            if let Some(silent) = silent {
                room.on_instance(silent, true, effects);
            }
            room.on_welcomed(device, connection_id(seat))
        });
        let connection = self.connection_mut(seat);
        if connection.phase == Phase::Claiming {
            connection.phase = Phase::Open;
            connection.reported = peer;
        }
    }
}
