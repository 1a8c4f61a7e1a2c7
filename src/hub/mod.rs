//! A worker's rooms: asks [`Room`] what to do, and does it. Knows no sockets and no Redis.
//!
//! Everything here runs on one thread. No borrow of a room or an outbox is held while anything that
//! may come back (the backplane, a waker) is called.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::budget::Relief;
pub use crate::backplane::readiness::Readiness;
use crate::backplane::{Backplane, Event, LossCause, Lost, LostMessage, Published, Users};
pub use crate::backplane::{Barrier, CALL_LIMIT, InstanceInfo, RoomSnapshot};
use crate::metrics::{Dropped, Metrics, TakeOver, WorkerGauge};
use crate::relay::budget::{Budget, Share};
use crate::relay::classic::CLASSIC_OVERWRITTEN;
use crate::relay::close::Close;
use crate::relay::envelope::Envelope;
use crate::relay::ids::{Device, InstanceId, Member, UserId};
use crate::relay::outbox::{Outbox, Outgoing};
use crate::relay::protocol::{
    BackplaneState, ClientLimits, Feature, MessageError, PeerState, Protocol, ServerMessage,
};
use crate::relay::renewals;
use crate::relay::room::{Effect, Room};

mod budget;
mod frames;
mod membership;
mod seat;
#[cfg(test)]
mod tests;
mod user;

pub use self::seat::{Drain, Joining, Seat};

type SharedRoom = Rc<RefCell<Room<Rc<Seat>>>>;
/// Outcome of a message to the other device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// It is on its way.
    Done,
    /// The other slot is empty: the message was dropped.
    Absent,
    /// Send it again when the seat is woken, at the latest after [`MARKER_LIMIT`]; read nothing before.
    Wait,
    /// It was delivered, to a classic connection, which will not acknowledge it.
    AckUnsupported,
    /// The backplane's queue is full.
    Refused,
    /// The sender has lost its slot.
    Overwritten,
}

/// How long a sender waits for what it sent through the backplane to arrive.
pub const MARKER_LIMIT: Duration = Duration::from_millis(500);

/// What stays the same for a hub's whole life.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The same for all workers of a process.
    pub instance: InstanceId,
    /// What `welcome` says about limits.
    pub limits: ClientLimits,
    /// What this relay understands beyond the first version.
    pub features: Vec<Feature>,
    /// Servers by which clients learn their public addresses.
    pub stun: Vec<String>,
    /// How often a silent connection is pinged.
    pub heartbeat: Duration,
    /// How long a slot is held without renewal.
    pub lease: Duration,
    /// What all queues of the process may hold together.
    pub budget: Budget,
}

/// One worker's share of this instance's rooms.
pub struct Hub {
    settings: HubSettings,
    rooms: RefCell<HashMap<UserId, SharedRoom>>,
    backplane: Rc<dyn Backplane>,
    metrics: Arc<Metrics>,
    /// This worker's shares of what waits.
    outbox_bytes: WorkerGauge,
    incoming_bytes: WorkerGauge,
    waiting_connections: WorkerGauge,
    users: WorkerGauge,
    leaving: Cell<Option<Instant>>,
    share: Rc<Share>,
    relieved: Cell<Relief>,
    /// Connections without a room, for which something is still written.
    departing: RefCell<Vec<Weak<Seat>>>,
}

impl Hub {
    /// A hub over a backplane that is made with the sink of its events.
    pub fn new(
        settings: HubSettings,
        metrics: Arc<Metrics>,
        make: impl FnOnce(crate::backplane::Sink) -> Rc<dyn Backplane>,
    ) -> Rc<Self> {
        Rc::new_cyclic(|me: &std::rc::Weak<Self>| {
            let me = me.clone();
            let sink: crate::backplane::Sink = Rc::new(move |event| {
                if let Some(hub) = me.upgrade() {
                    hub.on_event(event);
                }
            });
            let backplane = make(sink);
            let share = settings.budget.share();
            Self {
                settings,
                rooms: RefCell::default(),
                backplane,
                outbox_bytes: WorkerGauge::of(&metrics.outbox_bytes),
                incoming_bytes: WorkerGauge::of(&metrics.incoming_bytes),
                waiting_connections: WorkerGauge::of(&metrics.waiting_connections),
                users: WorkerGauge::of(&metrics.users),
                metrics,
                leaving: Cell::new(None),
                share,
                relieved: Cell::new(Relief::Needless),
                departing: RefCell::default(),
            }
        })
    }

    /// A hub over a memory of its own.
    #[cfg(test)]
    pub(crate) fn alone(settings: HubSettings, metrics: Arc<Metrics>) -> Rc<Self> {
        let make = |sink| -> Rc<dyn Backplane> {
            Rc::new(crate::backplane::memory::Memory::default()).attach(sink, 10_000)
        };
        Self::new(settings, metrics, make)
    }

    /// What this process counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The way to other instances.
    #[must_use]
    pub fn backplane(&self) -> &Rc<dyn Backplane> {
        &self.backplane
    }

    /// What clients may send.
    #[must_use]
    pub fn settings(&self) -> &HubSettings {
        &self.settings
    }

    /// Counts users and what waits; called about once a second, so that frames need not.
    pub fn count_waiting(&self) {
        self.users.set(self.rooms.borrow().len());
        let (mut bytes, mut incoming_bytes, mut connections) = (0, 0, 0);
        for room in self.rooms.borrow().values() {
            let room = room.borrow();
            for seat in Device::ALL.into_iter().filter_map(|device| room.here(device)) {
                let [unsent, incoming] = seat.buffered.get();
                let waiting = seat.see_outbox(Outbox::waiting_bytes) + unsent as usize;
                bytes += waiting;
                incoming_bytes += incoming as usize;
                connections += usize::from(waiting > 0);
            }
        }
        self.forget_departed();
        self.outbox_bytes.set(bytes);
        self.incoming_bytes.set(incoming_bytes);
        self.waiting_connections.set(connections);
    }

    fn apply(self: &Rc<Self>, effects: Vec<Effect<Rc<Seat>>>) {
        for effect in effects {
            match effect {
                Effect::Overwrite { seat, by } => {
                    let last = match seat.protocol {
                        Protocol::V1 => ServerMessage::Overwritten { by }.encode(),
                        Protocol::Classic => Bytes::from_static(CLASSIC_OVERWRITTEN.as_bytes()),
                    };
                    self.metrics.overwritten(if by.same_client {
                        TakeOver::HandOver
                    } else {
                        TakeOver::Eviction
                    });
                    seat.close(Some(last), Close::Overwritten);
                    self.note_departing(&seat);
                    self.release_unused(&seat);
                }
                Effect::Peer { seat, device, member, connected } => {
                    let dropped = seat.with_outbox(Outbox::drop_volatile);
                    self.metrics.dropped(Dropped::PeerChanged, dropped);
                    if seat.protocol == Protocol::V1 {
                        let state = if connected { PeerState::Connected } else { PeerState::Disconnected };
                        let Member { connection, generation } = member;
                        let message = ServerMessage::Peer { device, state, connection, generation };
                        self.push_reliable(&seat, Outgoing::text(message.encode(), None));
                    }
                }
                Effect::DropVolatile { seat } => {
                    let dropped = seat.with_outbox(Outbox::drop_volatile);
                    self.metrics.dropped(Dropped::PeerChanged, dropped);
                }
                Effect::Mark { seat, channel, nonce } => {
                    let marker = Envelope::Marker { instance: self.settings.instance, nonce };
                    if self.backplane.publish(&seat.user, channel, marker, Instant::now()) == Published::Full
                    {
                        self.on_marker_overdue(&seat);
                    }
                }
                Effect::Resume { seat } => seat.wake(),
            }
        }
    }

    fn room(&self, user: &UserId) -> Option<SharedRoom> {
        self.rooms.borrow().get(user).cloned()
    }

    fn on_event(self: &Rc<Self>, event: Event<'_>) {
        match event {
            Event::Envelope { user, channel, envelope } => self.on_envelope(user, channel, envelope),
            Event::Unreadable => self.metrics.dropped(Dropped::Unreadable, 1),
            Event::Down(users) => self.on_backplane(BackplaneState::Down, users),
            Event::Up(users) => self.on_backplane(BackplaneState::Up, users),
            Event::Gap(users) => self.renew_soon(users),
            Event::Lost { user, device, lost } => self.on_lost(user, device, lost),
            Event::Silent(instance) => self.on_instance(instance, true),
            Event::Heard(instance) => self.on_instance(instance, false),
        }
    }

    fn on_envelope(self: &Rc<Self>, user: &UserId, channel: Device, envelope: Envelope) {
        let Some(room) = self.room(user) else { return };
        let mut effects = Vec::new();
        match envelope {
            Envelope::Parcel { from, mut parcel } => {
                let (to, occupancy) = {
                    let mut room = room.borrow_mut();
                    let to = room.accept(channel, from, &mut effects).cloned();
                    (to, room.occupancy())
                };
                self.apply(effects);
                match to {
                    Some(to) => {
                        let now = Instant::now();
                        if let Err(cause) = self.deliver(&to, from.connection, occupancy, &mut parcel, now) {
                            let id = parcel.into_id();
                            let envelope = Envelope::Undelivered { connection: from.connection, cause, id };
                            // Its sender waits for an answer with a time limit of its own.
                            let _ = self.backplane.publish(user, channel.other(), envelope, now);
                        }
                    }
                    None => self.metrics.dropped(Dropped::Overwritten, 1),
                }
            }
            Envelope::Claimed { device, holder } => {
                room.borrow_mut().on_claimed(device, holder, &mut effects);
                self.apply(effects);
            }
            Envelope::Released { device, member } => {
                room.borrow_mut().on_released(device, member, &mut effects);
                self.apply(effects);
            }
            Envelope::Marker { instance, nonce } => {
                if instance == self.settings.instance {
                    room.borrow_mut().on_marker(channel, nonce, &mut effects);
                    self.apply(effects);
                }
            }
            Envelope::ServerMessage { data } => {
                let to = room.borrow().here(channel).cloned();
                if let Some(to) = to {
                    self.deliver_server_message(&to, &data);
                }
            }
            Envelope::Disconnect { connection } => {
                let to = room.borrow().here(channel).cloned();
                if let Some(to) = to.filter(|to| to.connection == connection) {
                    self.disconnect(&to);
                }
            }
            Envelope::Undelivered { connection, cause, id } => {
                let to = room.borrow().here(channel).cloned();
                if let Some(to) = to.filter(|to| to.connection == connection) {
                    let error = MessageError { id, ..MessageError::from(cause) };
                    self.send_error(&to, &error);
                }
            }
        }
    }

    /// Sends an `error` to a v1 client.
    pub fn send_error(self: &Rc<Self>, seat: &Rc<Seat>, error: &MessageError) {
        let MessageError { code, detail, id } = error;
        self.metrics.error_sent(code);
        self.control(seat, &ServerMessage::Error { code, detail, id: id.as_deref() });
    }

    fn on_backplane(self: &Rc<Self>, state: BackplaneState, users: Users<'_>) {
        // The notice may go to all sockets of an instance at once: encoded once.
        let message = ServerMessage::Backplane { state };
        let (text, kind) = (message.encode(), message.path_kind());
        for seat in self.seats().into_iter().filter(|seat| users.contains(&seat.user)) {
            self.control_encoded(&seat, text.clone(), kind);
        }
        if state == BackplaneState::Up {
            self.renew_soon(users);
        }
    }

    /// A reliable message was taken from a socket here and did not arrive: its sender learns of it.
    fn on_lost(self: &Rc<Self>, user: &UserId, device: Device, lost: Lost) {
        let Some(room) = self.room(user) else { return };
        let seat = room.borrow().here(device).cloned();
        let Some(seat) = seat.filter(|seat| seat.connection == lost.connection) else { return };
        let (code, detail) = match lost.cause {
            LossCause::Unheard => ("peer_absent", "nobody was there to hear it: the message is lost"),
            LossCause::Unanswered => {
                ("backplane_unavailable", "Redis did not answer: the message may or may not have arrived")
            }
        };
        let id = match &lost.message {
            LostMessage::Send(id) => id.as_deref(),
            LostMessage::Frame(stream) if seat.may_report_loss(*stream, Instant::now()) => None,
            LostMessage::Frame(_) | LostMessage::Text => return,
        };
        self.metrics.error_sent(code);
        self.control(&seat, &ServerMessage::Error { code, detail, id });
    }

    /// Whatever was lost is healed by renewing; spread, so that a full instance does not fall upon a Redis
    /// that has only just come back.
    fn renew_soon(&self, users: Users<'_>) {
        let now = Instant::now();
        let seats: Vec<_> = self.seats().into_iter().filter(|seat| users.contains(&seat.user)).collect();
        let spread = renewals::spread(seats.len(), self.settings.lease);
        for seat in seats {
            seat.renew_at.set(now + spread.mul_f64(fastrand::f64()));
        }
    }

    fn on_instance(self: &Rc<Self>, instance: InstanceId, silent: bool) {
        let rooms: Vec<SharedRoom> = self.rooms.borrow().values().cloned().collect();
        for room in rooms {
            let mut effects = Vec::new();
            room.borrow_mut().on_instance(instance, silent, &mut effects);
            self.apply(effects);
        }
    }
}
