//! The world of the model: one room, the instances that have sockets of it, and Redis between them.
//!
//! Rooms and the record are the relay's own code; what is modelled is everything around them.
//!
//! Longer than most files: it is one state and its transitions.

mod hub;
mod redis;

use std::collections::VecDeque;

use duorelay::relay::ids::{Attempt, ClientId, ConnectionId, Device, Generation, InstanceId, Member};
use duorelay::relay::record::{Claimed, Holder, Record, Renewed};
use duorelay::relay::room::{Room, Route};
use uuid::Uuid;

/// A local connection: its place in [`Setup::seats`].
pub(crate) type Seat = u8;

/// A lease, in ticks of the backplane's clock.
pub(crate) const LEASE: u64 = 2;

/// What can happen, and how often.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setup {
    /// The connections that may come: the device and the instance of each.
    pub(crate) seats: Vec<(Device, usize)>,
    /// Frames that are sent, all senders together.
    pub(crate) frames: u8,
    /// Channel messages that do not arrive at one subscriber.
    pub(crate) losses: u8,
    /// Renewals that run while other things are on their way.
    pub(crate) renewals: u8,
    /// Connections that end by themselves.
    pub(crate) leaves: u8,
    /// Instances that stop for good, at once.
    pub(crate) crashes: u8,
    /// Times that Redis loses everything.
    pub(crate) flushes: u8,
    /// Half leases that pass while things are on their way (a stopped process, a slow network).
    pub(crate) ticks: u8,
    /// Instances that another one wrongly or rightly believes to be gone.
    pub(crate) silences: u8,
    /// Markers that are given up before they come back.
    pub(crate) overdues: u8,
    /// A claim's answer may arrive before the claim's own message.
    pub(crate) hasty_answers: bool,
    /// The connections of a device are attempts of one client: the first of [`Self::seats`] is its first.
    pub(crate) attempts: bool,
    /// The mistake that is built in.
    pub(crate) mutation: Option<Mutation>,
}

/// Mistakes that the checker has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A release frees the slot whoever holds it.
    ReleaseOfAnybody,
    /// A renewal puts its slot back although a newer connection holds it.
    RenewalOverNewer,
    /// Generations are counted by the record alone: no clock, nothing known.
    GenerationsForgotten,
    /// A room believes each claim that it hears of, however old.
    ClaimsOfAnyAge,
    /// The short cut is taken without waiting for what travels.
    NoMarker,
    /// A frame is delivered whatever the generation of its sender.
    NoFence,
    /// The channel is subscribed when the claim is answered, not before it is made.
    SubscribedLate,
    /// A claim goes by its arrival, whichever of its client's attempts it is.
    AttemptsIgnored,
}

/// What went wrong on the way, at the moment at which it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wrong {
    /// The end of an old connection freed the slot of a newer one.
    Disturbed,
    /// A connection got `overwritten`, by one that is not newer.
    FalselyOverwritten,
    /// A frame of a sender, or for a receiver, that the instance knew to be overwritten.
    Fence,
    /// A frame overtook another one, or came twice.
    Order,
    /// A frame went to two connections.
    TwoReceivers,
    /// A peer was announced twice, or a disconnect of one that was not announced.
    Peer,
    /// An earlier attempt of a client ended a later one.
    Superseded,
    /// The room let an open connection not send, or an overwritten one send.
    Route,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    New,
    Claiming,
    Open,
    Overwritten,
    Gone,
}

/// What arrives on a channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    Claimed(Device, Holder),
    Released(Device, Member),
    Frame { from: Member, sender: Seat, number: u8 },
    Marker { publisher: usize, nonce: u64 },
}

/// What an instance asks of Redis.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Claim(Seat, Generation),
    Renew(Seat, Holder, Generation),
    Release(Seat),
}

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Claimed(Seat, Holder, Claimed),
    Superseded(Seat),
    Renewed(Seat, Generation, Renewed),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Instance {
    pub(crate) crashed: bool,
    pub(crate) room: Room<Seat>,
    pub(crate) subscribed: [bool; 2],
    /// On their way from Redis: both channels in one order, since they come through one connection.
    pub(crate) inbox: VecDeque<(Device, Message)>,
    /// On their way to Redis.
    pub(crate) calls: VecDeque<Call>,
    /// On their way to Redis, in order for each channel.
    pub(crate) publishes: [VecDeque<Message>; 2],
    /// On their way from Redis, in any order.
    pub(crate) answers: Vec<Answer>,
    /// Instances that it believes to be gone.
    pub(crate) silent: Vec<usize>,
    /// The newest generation of each slot of which it has heard, by whatever way, since it has a room.
    pub(crate) known: [Generation; 2],
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Connection {
    pub(crate) phase: Phase,
    pub(crate) generation: Generation,
    /// What the relay has reported of its peer.
    pub(crate) reported: Option<Member>,
    /// Frames that the relay took from it.
    pub(crate) sent: u8,
    /// Who got each of its frames (a set of seats).
    pub(crate) receivers: Vec<u8>,
    /// The last frame that it got from each seat.
    pub(crate) last: Vec<u8>,
}

/// How often things have happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Spent {
    pub(crate) frames: u8,
    pub(crate) losses: u8,
    pub(crate) renewals: u8,
    pub(crate) leaves: u8,
    pub(crate) crashes: u8,
    pub(crate) flushes: u8,
    pub(crate) ticks: u8,
    pub(crate) silences: u8,
    pub(crate) overdues: u8,
}

impl Spent {
    /// Nothing has happened but claims, frames and renewals: then not one frame may be lost.
    pub(crate) fn is_calm(&self) -> bool {
        let trouble = Self { frames: 0, renewals: 0, ..self.clone() };
        trouble == Self::default()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) record: Record,
    pub(crate) claims: u64,
    pub(crate) clock: u64,
    pub(crate) instances: Vec<Instance>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) spent: Spent,
    pub(crate) wrong: Option<Wrong>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Join(Seat),
    Leave(Seat),
    Send(Seat),
    Renew(Seat),
    Overdue(Seat),
    /// Redis carries out a call of an instance.
    Call(usize, usize),
    /// Redis takes the next publish of an instance on a channel.
    Publish(usize, Device),
    /// The next channel message of an instance arrives.
    Arrive(usize),
    /// The next channel message of an instance is lost.
    Lose(usize),
    Answered(usize, usize),
    Crash(usize),
    Flush,
    Tick,
    Silent(usize, usize),
    Heard(usize, usize),
}

pub(crate) fn connection_id(seat: Seat) -> ConnectionId {
    ConnectionId(Uuid::from_u128(u128::from(seat) + 1))
}

pub(crate) fn seat_of(connection: ConnectionId) -> Seat {
    u8::try_from(connection.0.as_u128() - 1).unwrap()
}

/// The client of a connection, where its attempts are counted, and the number.
fn attempt_of(setup: &Setup, seat: Seat) -> Option<(ClientId, Attempt)> {
    let client = ClientId::new(setup.seats[usize::from(seat)].0.as_str())?;
    Attempt::new(u64::from(seat)).filter(|_| setup.attempts).map(|attempt| (client, attempt))
}

fn instance_id(instance: usize) -> InstanceId {
    InstanceId(Uuid::from_u128(instance as u128 + 0xa))
}

fn instance_of(id: InstanceId) -> Option<usize> {
    usize::try_from(id.0.as_u128()).unwrap().checked_sub(0xa)
}

impl World {
    pub(crate) fn new(setup: &Setup) -> Self {
        let instances = setup.seats.iter().map(|(_, instance)| instance + 1).max();
        let connection = Connection {
            phase: Phase::New,
            generation: Generation::NONE,
            reported: None,
            sent: 0,
            receivers: Vec::new(),
            last: vec![0; setup.seats.len()],
        };
        Self {
            record: Record::default(),
            claims: 0,
            clock: 1,
            instances: vec![Instance::default(); instances.unwrap_or(0)],
            connections: vec![connection; setup.seats.len()],
            spent: Spent::default(),
            wrong: None,
        }
    }

    fn blame(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }

    pub(crate) fn connection(&self, seat: Seat) -> &Connection {
        &self.connections[usize::from(seat)]
    }

    fn connection_mut(&mut self, seat: Seat) -> &mut Connection {
        &mut self.connections[usize::from(seat)]
    }

    pub(crate) fn member(&self, seat: Seat) -> Member {
        Member { connection: connection_id(seat), generation: self.connection(seat).generation }
    }

    /// Which way a connection could send now.
    pub(crate) fn route(&self, setup: &Setup, seat: Seat) -> Route<()> {
        let (device, instance) = setup.seats[usize::from(seat)];
        let mut room = self.instances[instance].room.clone();
        match room.route(device, connection_id(seat)) {
            Route::Here(_) => Route::Here(()),
            Route::Away(from) => Route::Away(from),
            Route::Absent => Route::Absent,
            Route::Wait => Route::Wait,
            Route::Overwritten => Route::Overwritten,
        }
    }

    /// Nothing is on its way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.instances.iter().all(|instance| {
            instance.calls.is_empty()
                && instance.answers.is_empty()
                && instance.inbox.is_empty()
                && instance.publishes.iter().all(VecDeque::is_empty)
        })
    }

    fn is_renewing(&self, seat: Seat, instance: usize) -> bool {
        let instance = &self.instances[instance];
        let asks = |call: &Call| matches!(call, Call::Renew(of, ..) if *of == seat);
        let answers = |answer: &Answer| matches!(answer, Answer::Renewed(of, ..) if *of == seat);
        instance.calls.iter().any(asks) || instance.answers.iter().any(answers)
    }

    /// The claim's own message is still on its way, so that its answer has to wait.
    fn is_early(&self, instance: usize, answer: &Answer, setup: &Setup) -> bool {
        let Answer::Claimed(seat, holder, _) = answer else {
            return false;
        };
        let (device, _) = setup.seats[usize::from(*seat)];
        let own = Message::Claimed(device, holder.clone());
        let inbox = &self.instances[instance].inbox;
        !setup.hasty_answers && inbox.iter().any(|it| *it == (device, own.clone()))
    }

    pub(crate) fn actions(&self, setup: &Setup, actions: &mut Vec<Action>) {
        if self.wrong.is_some() {
            return;
        }
        let spent = &self.spent;
        for (seat, (_, at)) in (0..).zip(&setup.seats) {
            match self.connection(seat).phase {
                Phase::New if !self.instances[*at].crashed => actions.push(Action::Join(seat)),
                Phase::Claiming if spent.leaves < setup.leaves => actions.push(Action::Leave(seat)),
                Phase::Open => {
                    if spent.leaves < setup.leaves {
                        actions.push(Action::Leave(seat));
                    }
                    match self.route(setup, seat) {
                        Route::Absent => {}
                        Route::Wait => {
                            if spent.overdues < setup.overdues {
                                actions.push(Action::Overdue(seat));
                            }
                        }
                        Route::Here(_) | Route::Away(_) | Route::Overwritten => {
                            if spent.frames < setup.frames {
                                actions.push(Action::Send(seat));
                            }
                        }
                    }
                    if spent.renewals < setup.renewals && !self.is_renewing(seat, *at) {
                        actions.push(Action::Renew(seat));
                    }
                }
                Phase::New | Phase::Claiming | Phase::Overwritten | Phase::Gone => {}
            }
        }
        for (at, instance) in self.instances.iter().enumerate() {
            // Many renewals leave in batches, which other calls overtake; claims and releases keep their order.
            let is_renewal = |call: &Call| matches!(call, Call::Renew(..));
            let first = instance.calls.iter().position(|call| !is_renewal(call));
            for (n, call) in instance.calls.iter().enumerate() {
                if is_renewal(call) || first == Some(n) {
                    actions.push(Action::Call(at, n));
                }
            }
            for device in Device::ALL {
                if !instance.publishes[device as usize].is_empty() {
                    actions.push(Action::Publish(at, device));
                }
            }
            if !instance.inbox.is_empty() {
                actions.push(Action::Arrive(at));
                if spent.losses < setup.losses {
                    actions.push(Action::Lose(at));
                }
            }
            for (n, answer) in instance.answers.iter().enumerate() {
                if !self.is_early(at, answer, setup) {
                    actions.push(Action::Answered(at, n));
                }
            }
            if instance.crashed {
                continue;
            }
            if spent.crashes < setup.crashes {
                actions.push(Action::Crash(at));
            }
            for other in 0..self.instances.len() {
                if instance.silent.contains(&other) {
                    if !self.instances[other].crashed {
                        actions.push(Action::Heard(at, other));
                    }
                } else if other != at && spent.silences < setup.silences {
                    actions.push(Action::Silent(at, other));
                }
            }
        }
        if spent.flushes < setup.flushes {
            actions.push(Action::Flush);
        }
        if spent.ticks < setup.ticks {
            actions.push(Action::Tick);
        }
    }

    pub(crate) fn act(&mut self, setup: &Setup, action: Action) {
        match action {
            Action::Join(seat) => self.join(setup, seat),
            Action::Leave(seat) => {
                self.spent.leaves += 1;
                self.leave(setup, seat);
            }
            Action::Send(seat) => {
                self.spent.frames += 1;
                self.send(setup, seat);
            }
            Action::Renew(seat) => {
                self.spent.renewals += 1;
                self.renew(setup, seat);
            }
            Action::Overdue(seat) => {
                self.spent.overdues += 1;
                self.overdue(setup, seat);
            }
            Action::Call(at, n) => {
                if let Some(call) = self.instances[at].calls.remove(n) {
                    self.carry_out(setup, at, call);
                }
            }
            Action::Publish(at, channel) => {
                if let Some(message) = self.instances[at].publishes[channel as usize].pop_front() {
                    self.hand_out(&[channel], &message);
                }
            }
            Action::Arrive(at) => {
                if let Some((channel, message)) = self.instances[at].inbox.pop_front() {
                    self.arrive(setup, at, channel, message);
                }
            }
            Action::Lose(at) => {
                self.spent.losses += 1;
                self.instances[at].inbox.pop_front();
            }
            Action::Answered(at, n) => {
                let answer = self.instances[at].answers.remove(n);
                self.answered(setup, at, answer);
            }
            Action::Crash(at) => {
                self.spent.crashes += 1;
                self.crash(setup, at);
            }
            Action::Flush => {
                self.spent.flushes += 1;
                self.record = Record::default();
            }
            Action::Tick => {
                self.spent.ticks += 1;
                self.clock += 1;
            }
            Action::Silent(at, of) => {
                self.spent.silences += 1;
                self.instances[at].silent.push(of);
                self.with_room(setup, at, |room, effects| {
                    room.on_instance(instance_id(of), true, effects);
                });
            }
            Action::Heard(at, of) => {
                self.instances[at].silent.retain(|silent| *silent != of);
                self.with_room(setup, at, |room, effects| {
                    room.on_instance(instance_id(of), false, effects);
                });
            }
        }
    }
}
