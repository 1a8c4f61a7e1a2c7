//! A worker's rooms: asks [`Room`] what to do, and does it. Knows no sockets and no Redis.
//!
//! Everything here runs on one thread. No borrow of a room or an outbox is held while anything that
//! may come back (the backplane, a waker) is called.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::timeout;
use tracing::debug;

pub use crate::backplane::readiness::Readiness;
use crate::backplane::{Backplane, Event, Published, Renewal};
pub use crate::backplane::{CALL_LIMIT, InstanceInfo, RoomSnapshot};
use crate::metrics::{Dropped, Metrics, Path};
use crate::relay::close::Close;
use crate::relay::envelope::Envelope;
use crate::relay::ids::{ClientId, ConnectionId, Device, Generation, InstanceId, StreamId, UserId};
use crate::relay::outbox::{Outbox, Outgoing, Pushed, TooSlow};
use crate::relay::protocol::{
    BackplaneState, CLASSIC_OVERWRITTEN, ClientLimits, From, Member, Parcel, PeerState, Protocol,
    ServerMessage, classic_text, compact_json, raw_json,
};
use crate::relay::record::{Claim, ClaimOutcome, Claimed, Holder};
use crate::relay::refusal::Refusal;
use crate::relay::room::{Effect, Left, Room, Route};

type SharedRoom = Rc<RefCell<Room<Rc<Seat>>>>;

/// A connection that is about to claim its slot.
#[derive(Debug, Clone)]
pub struct Joining {
    /// The verified user.
    pub user: UserId,
    /// The slot.
    pub device: Device,
    /// The client, if it named itself.
    pub client: Option<ClientId>,
    /// What it speaks.
    pub protocol: Protocol,
    /// The e-mail address of its token, or the uid where there is none: the classic room's name.
    pub label: Arc<str>,
    /// End of its token, Unix seconds.
    pub expires_at: u64,
}

/// A local connection: what its room and its socket task share.
pub struct Seat {
    /// The connection.
    pub connection: ConnectionId,
    /// Whose.
    pub user: UserId,
    /// Which slot.
    pub device: Device,
    /// What it speaks.
    pub protocol: Protocol,
    client: Option<ClientId>,
    room: SharedRoom,
    label: RefCell<Arc<str>>,
    generation: Cell<Generation>,
    outbox: RefCell<Outbox>,
    waker: RefCell<Option<Waker>>,
    renew_at: Cell<Instant>,
    drain: Cell<Option<Drain>>,
}

/// This instance is leaving: when this connection should come back elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Its turn.
    pub at: Instant,
    /// When it is closed with 1012 if it is still here.
    pub deadline: Instant,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat")
            .field("connection", &self.connection)
            .field("device", &self.device)
            .finish()
    }
}

impl Seat {
    /// What waits for this connection.
    pub fn with_outbox<T>(&self, act: impl FnOnce(&mut Outbox) -> T) -> T {
        act(&mut self.outbox.borrow_mut())
    }

    /// Wakes the socket task of `context` when there is something to write.
    pub fn register(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker
            .as_ref()
            .is_some_and(|known| known.will_wake(context.waker()))
        {
            *waker = Some(context.waker().clone());
        }
    }

    /// Wakes the socket task.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// What waits is written, then `last`, then the close.
    pub fn close(&self, last: Option<Bytes>, close: Close) {
        self.with_outbox(|outbox| outbox.close(last, close));
        self.wake();
    }

    /// The close is written next.
    pub fn close_now(&self, close: Close) {
        self.with_outbox(|outbox| outbox.close_now(None, close));
        self.wake();
    }

    /// When this connection should leave, if the instance is leaving.
    #[must_use]
    pub fn drain(&self) -> Option<Drain> {
        self.drain.get()
    }

    /// The name of the classic room: the e-mail address, or the uid.
    #[must_use]
    pub fn label(&self) -> Arc<str> {
        Arc::clone(&self.label.borrow())
    }

    /// The token was refreshed, perhaps with another e-mail address.
    pub fn set_label(&self, label: Arc<str>) {
        *self.label.borrow_mut() = label;
    }

    fn holder(&self, instance: InstanceId, generation: Generation) -> Holder {
        let member = Member {
            connection: self.connection,
            generation,
        };
        Holder {
            member,
            instance,
            client: self.client.clone(),
        }
    }
}

/// What came of a message to the other device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// It is on its way.
    Done,
    /// Nobody is there.
    Absent,
    /// Send it again when the seat is woken, at the latest after [`MARKER_LIMIT`]; read nothing before.
    Wait,
    /// The backplane's queue is full.
    Refused,
    /// The sender has lost its slot.
    Overwritten,
}

/// How long a sender waits for what it sent through the backplane to arrive.
pub const MARKER_LIMIT: Duration = Duration::from_millis(500);

/// What a hub is told once.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// This process.
    pub instance: InstanceId,
    /// What clients are told.
    pub limits: ClientLimits,
    /// How often a silent connection is pinged.
    pub heartbeat: Duration,
    /// How long a slot is held without renewal.
    pub lease: Duration,
}

/// One worker's share of this instance's rooms.
pub struct Hub {
    settings: HubSettings,
    rooms: RefCell<HashMap<UserId, SharedRoom>>,
    backplane: Rc<dyn Backplane>,
    metrics: Arc<Metrics>,
    is_down: Cell<bool>,
    leaving: Cell<Option<Instant>>,
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
            Self {
                settings,
                rooms: RefCell::default(),
                backplane,
                metrics,
                is_down: Cell::new(false),
                leaving: Cell::new(None),
            }
        })
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

    /// Rooms with a connection here.
    #[must_use]
    pub fn room_count(&self) -> usize {
        self.rooms.borrow().len()
    }

    // ---- a connection comes and goes

    /// Claims a slot for a new connection; its outbox begins with its `welcome`.
    ///
    /// # Errors
    /// [`Refusal::BackplaneUnavailable`] within [`CALL_LIMIT`], or [`Refusal::TooManyAttempts`].
    pub async fn join(
        self: &Rc<Self>,
        joining: Joining,
        connection: ConnectionId,
    ) -> Result<Rc<Seat>, Refusal> {
        let room = self
            .rooms
            .borrow_mut()
            .entry(joining.user.clone())
            .or_default()
            .clone();
        let seat = Rc::new(Seat {
            connection,
            user: joining.user,
            device: joining.device,
            protocol: joining.protocol,
            client: joining.client,
            room,
            label: RefCell::new(joining.label),
            generation: Cell::default(),
            outbox: RefCell::default(),
            waker: RefCell::default(),
            renew_at: Cell::new(Instant::now() + self.settings.lease),
            drain: Cell::new(None),
        });
        let known = {
            let mut room = seat.room.borrow_mut();
            room.on_claiming(seat.device, connection, Rc::clone(&seat));
            room.known()
        };
        let claim = Claim {
            device: seat.device,
            connection,
            instance: self.settings.instance,
            client: seat.client.clone(),
            known,
        };
        let asked = Instant::now();
        let outcome = timeout(CALL_LIMIT, self.backplane.claim(&seat.user, claim)).await;
        self.metrics.claim_seconds.observe(asked.elapsed());
        let refusal = match outcome {
            Ok(Ok(ClaimOutcome::Claimed(claimed))) => {
                self.welcome(&seat, &claimed, joining.expires_at);
                return Ok(seat);
            }
            Ok(Ok(ClaimOutcome::TooManyEvictions { retry_after_ms })) => {
                let retry_after = u32::try_from(retry_after_ms.div_ceil(1000)).unwrap_or(u32::MAX);
                Refusal::TooManyAttempts { retry_after }
            }
            Ok(Err(_)) | Err(_) => Refusal::BackplaneUnavailable,
        };
        let mut effects = Vec::new();
        // The claim may have been carried out although its answer did not come: it is released all the same.
        let left = seat
            .room
            .borrow_mut()
            .on_claim_failed(seat.device, connection, &mut effects);
        self.apply(effects);
        self.release(&seat, left);
        Err(refusal)
    }

    fn welcome(self: &Rc<Self>, seat: &Rc<Seat>, claimed: &Claimed, expires_at: u64) {
        seat.generation.set(claimed.generation);
        seat.renew_at.set(Instant::now() + self.settings.lease / 3);
        let holder = seat.holder(self.settings.instance, claimed.generation);
        let mut effects = Vec::new();
        let peer = {
            let mut room = seat.room.borrow_mut();
            room.on_claim_answered(seat.device, holder, claimed, &mut effects);
            if let Some(other) = claimed
                .other
                .as_ref()
                .filter(|other| self.backplane.is_silent(other.instance))
            {
                room.on_instance(other.instance, true, &mut effects);
            }
            room.on_welcomed(seat.device, seat.connection)
        };
        if seat.protocol == Protocol::V1 {
            let welcome = ServerMessage::Welcome {
                connection: seat.connection,
                device: seat.device,
                generation: claimed.generation,
                uid: &seat.user,
                peer,
                expires_at,
                heartbeat_ms: u64::try_from(self.settings.heartbeat.as_millis())
                    .unwrap_or(u64::MAX),
                limits: self.settings.limits,
                instance: self.settings.instance,
            };
            seat.with_outbox(|outbox| outbox.push_first(welcome.encode()));
            if self.is_down.get() {
                self.control(
                    seat,
                    &ServerMessage::Backplane {
                        state: BackplaneState::Down,
                    },
                );
            }
        }
        if let Some(deadline) = self.leaving.get() {
            // Its handshake was let in before the end of the drain delay.
            let now = Instant::now();
            let at = now
                + deadline
                    .saturating_duration_since(now)
                    .mul_f64(0.8 * fastrand::f64());
            seat.drain.set(Some(Drain { at, deadline }));
        }
        self.apply(effects);
        self.settle(seat);
        self.metrics.connected(seat.device, seat.protocol);
    }

    /// A connection leaves its room, at once and for good; leaving twice changes nothing.
    pub fn leave(self: &Rc<Self>, seat: &Rc<Seat>) {
        let mut effects = Vec::new();
        let left = seat
            .room
            .borrow_mut()
            .on_left(seat.device, seat.connection, &mut effects);
        self.apply(effects);
        self.release(seat, left);
    }

    fn release(self: &Rc<Self>, seat: &Rc<Seat>, left: Left) {
        match left {
            Left::Overwritten => self.settle(seat),
            Left::Current | Left::Claiming => {
                // The room's lane stays subscribed for another connection of this device; the slow work
                // of telling other instances goes on beside.
                self.settle(seat);
                let (hub, seat) = (Rc::clone(self), Rc::clone(seat));
                tokio::task::spawn_local(async move {
                    let release = hub
                        .backplane
                        .release(&seat.user, seat.device, seat.connection);
                    if timeout(CALL_LIMIT, release).await.is_err() {
                        debug!(connection.id = %seat.connection, "a release got no answer; the lease will end");
                    }
                });
            }
        }
    }

    /// Gives back lanes and rooms that nobody here needs any more.
    fn settle(&self, seat: &Seat) {
        let (listens, is_idle) = {
            let room = seat.room.borrow();
            (
                Device::ALL.map(|device| room.listens(device)),
                room.is_idle(),
            )
        };
        for (device, listens) in Device::ALL.into_iter().zip(listens) {
            if !listens {
                self.backplane.unsubscribe(&seat.user, device);
            }
        }
        if is_idle {
            let mut rooms = self.rooms.borrow_mut();
            // A connection that has joined since may have made the room anew.
            if rooms
                .get(&seat.user)
                .is_some_and(|room| Rc::ptr_eq(room, &seat.room))
            {
                rooms.remove(&seat.user);
            }
        }
    }

    // ---- frames

    /// A frame's way in: from a socket's task to wherever the other device is.
    pub fn send(self: &Rc<Self>, seat: &Rc<Seat>, parcel: &Parcel, now: Instant) -> Sent {
        let mut room = seat.room.borrow_mut();
        let occupancy = room.occupancy();
        let to = match room.route(seat.device, seat.connection) {
            Route::Overwritten => {
                self.metrics.dropped(Dropped::Overwritten, 1);
                return Sent::Overwritten;
            }
            Route::Wait => return Sent::Wait,
            Route::Here(to) => Ok(Some(Rc::clone(to))),
            Route::Absent => Ok(None),
            Route::Away(from) => Err(from),
        };
        drop(room);
        let echo = matches!(parcel, Parcel::Text { .. });
        let sent = match to {
            Ok(Some(to)) => {
                self.metrics
                    .frame(parcel.is_reliable(), Path::Local, parcel.len());
                self.deliver(&to, occupancy, parcel, now);
                Sent::Done
            }
            Ok(None) => {
                self.metrics.dropped(Dropped::PeerAbsent, 1);
                Sent::Absent
            }
            Err(from) => {
                let envelope = Envelope::Parcel {
                    from,
                    parcel: parcel.clone(),
                };
                match self
                    .backplane
                    .publish(&seat.user, seat.device.other(), envelope, now)
                {
                    Published::Queued => {
                        self.metrics
                            .frame(parcel.is_reliable(), Path::Backplane, parcel.len());
                        Sent::Done
                    }
                    Published::Full => {
                        self.metrics.dropped(Dropped::Backplane, 1);
                        Sent::Refused
                    }
                }
            }
        };
        if echo {
            // A classic message goes to both members, its sender included.
            self.deliver(seat, occupancy, parcel, now);
        }
        sent
    }

    /// A sender has waited long enough for what it sent through the backplane.
    pub fn on_marker_overdue(self: &Rc<Self>, seat: &Rc<Seat>) {
        let mut effects = Vec::new();
        seat.room
            .borrow_mut()
            .on_marker_overdue(seat.device, &mut effects);
        self.apply(effects);
    }

    /// A frame's way out: into the outbox of the connection that it is for.
    fn deliver(
        self: &Rc<Self>,
        to: &Rc<Seat>,
        occupancy: crate::relay::protocol::Occupancy,
        parcel: &Parcel,
        since: Instant,
    ) {
        let from = From::from(to.device.other());
        let text = match (parcel, to.protocol) {
            (Parcel::Frame(bytes), _) => return self.deliver_frame(to, bytes, since),
            (Parcel::Send { data, id, .. }, Protocol::V1) => {
                let data = std::str::from_utf8(data).unwrap_or("null");
                let id = id.as_deref();
                ServerMessage::Message {
                    from,
                    data: Some(raw_json(data)),
                    text: None,
                    id,
                }
                .encode()
            }
            (Parcel::Send { data, label, .. }, Protocol::Classic) => {
                let data = std::str::from_utf8(data).unwrap_or("null");
                classic_text(occupancy, label, &compact_json(data))
            }
            (Parcel::Text { text, .. }, Protocol::V1) => {
                let text = String::from_utf8_lossy(text);
                ServerMessage::Message {
                    from,
                    data: None,
                    text: Some(&text),
                    id: None,
                }
                .encode()
            }
            (Parcel::Text { text, label }, Protocol::Classic) => {
                classic_text(occupancy, label, &String::from_utf8_lossy(text))
            }
        };
        self.push_reliable(to, Outgoing::Text(text), Some(since));
    }

    fn deliver_frame(self: &Rc<Self>, to: &Rc<Seat>, bytes: &Bytes, since: Instant) {
        let Some(stream) = bytes.first().copied().map(StreamId) else {
            return;
        };
        if stream.is_reliable() {
            return self.push_reliable(to, Outgoing::Binary(bytes.clone()), Some(since));
        }
        let limit = self.settings.limits.queue_bytes;
        match to.with_outbox(|outbox| outbox.push_volatile(stream, bytes.clone(), since, limit)) {
            Pushed::Waits => {}
            Pushed::Replaced => self.metrics.dropped(Dropped::Superseded, 1),
            Pushed::Dropped(count) => self.metrics.dropped(Dropped::QueueFull, count),
        }
        to.wake();
    }

    fn push_reliable(self: &Rc<Self>, to: &Rc<Seat>, message: Outgoing, since: Option<Instant>) {
        let limit = self.settings.limits.queue_bytes;
        match to.with_outbox(|outbox| outbox.push_reliable(message, since, limit)) {
            Ok(()) => to.wake(),
            Err(TooSlow) => self.too_slow(to),
        }
    }

    /// A control message to a v1 client; classic clients have none.
    pub fn control(self: &Rc<Self>, seat: &Rc<Seat>, message: &ServerMessage<'_>) {
        if seat.protocol == Protocol::Classic {
            return;
        }
        let limit = self.settings.limits.queue_bytes;
        match seat.with_outbox(|outbox| outbox.push_control(message.encode(), limit)) {
            Ok(()) => seat.wake(),
            Err(TooSlow) => self.too_slow(seat),
        }
    }

    /// A receiver whose queue is full leaves the room at once, before anything else waits for it.
    fn too_slow(self: &Rc<Self>, seat: &Rc<Seat>) {
        seat.close_now(Close::TooSlow);
        self.leave(seat);
    }

    // ---- what the room and the backplane say

    fn apply(self: &Rc<Self>, effects: Vec<Effect<Rc<Seat>>>) {
        for effect in effects {
            match effect {
                Effect::Overwrite { seat, by } => {
                    let last = match seat.protocol {
                        Protocol::V1 => ServerMessage::Overwritten { by }.encode(),
                        Protocol::Classic => Bytes::from_static(CLASSIC_OVERWRITTEN.as_bytes()),
                    };
                    self.metrics.overwritten(by.same_client);
                    seat.close(Some(last), Close::Overwritten);
                    self.settle(&seat);
                }
                Effect::Peer {
                    seat,
                    device,
                    member,
                    connected,
                } => {
                    let dropped = seat.with_outbox(Outbox::drop_volatile);
                    self.metrics.dropped(Dropped::PeerChanged, dropped);
                    if seat.protocol == Protocol::V1 {
                        let state = if connected {
                            PeerState::Connected
                        } else {
                            PeerState::Disconnected
                        };
                        let Member {
                            connection,
                            generation,
                        } = member;
                        let message = ServerMessage::Peer {
                            device,
                            state,
                            connection,
                            generation,
                        };
                        self.push_reliable(&seat, Outgoing::Text(message.encode()), None);
                    }
                }
                Effect::Mark { seat, lane, nonce } => {
                    let marker = Envelope::Marker {
                        instance: self.settings.instance,
                        nonce,
                    };
                    if self
                        .backplane
                        .publish(&seat.user, lane, marker, Instant::now())
                        == Published::Full
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
            Event::Lane {
                user,
                lane,
                envelope,
            } => self.on_lane(user, lane, envelope),
            Event::Unreadable => self.metrics.dropped(Dropped::Unreadable, 1),
            Event::Down => self.on_backplane(BackplaneState::Down),
            Event::Up => self.on_backplane(BackplaneState::Up),
            Event::Gap => self.renew_soon(),
            Event::Silent(instance) => self.on_instance(instance, true),
            Event::Heard(instance) => self.on_instance(instance, false),
        }
    }

    fn on_lane(self: &Rc<Self>, user: &UserId, lane: Device, envelope: Envelope) {
        let Some(room) = self.room(user) else { return };
        let mut effects = Vec::new();
        match envelope {
            Envelope::Parcel { from, parcel } => {
                let (to, occupancy) = {
                    let mut room = room.borrow_mut();
                    let to = room.on_lane(lane, from, &mut effects).cloned();
                    (to, room.occupancy())
                };
                self.apply(effects);
                match to {
                    Some(to) => self.deliver(&to, occupancy, &parcel, Instant::now()),
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
                    room.borrow_mut().on_marker(lane, nonce, &mut effects);
                    self.apply(effects);
                }
            }
            Envelope::ServerMessage { data } => {
                let to = room.borrow().here(lane).cloned();
                if let Some(to) = to {
                    self.deliver_server_message(&to, &data);
                }
            }
            Envelope::Disconnect { connection } => {
                let to = room.borrow().here(lane).cloned();
                if let Some(to) = to.filter(|to| to.connection == connection) {
                    self.disconnect(&to);
                }
            }
        }
    }

    fn on_backplane(self: &Rc<Self>, state: BackplaneState) {
        let is_down = state == BackplaneState::Down;
        if self.is_down.replace(is_down) == is_down {
            return;
        }
        for seat in self.seats() {
            self.control(&seat, &ServerMessage::Backplane { state });
        }
        if !is_down {
            self.renew_soon();
        }
    }

    /// Whatever was lost is healed by renewing; spread, so that a full instance does not fall upon a Redis
    /// that has only just come back.
    fn renew_soon(&self) {
        let now = Instant::now();
        let spread = (self.settings.lease / 4).min(Duration::from_secs(2));
        for seat in self.seats() {
            seat.renew_at.set(now + spread.mul_f64(fastrand::f64()));
        }
    }

    fn on_instance(self: &Rc<Self>, instance: InstanceId, silent: bool) {
        let rooms: Vec<SharedRoom> = self.rooms.borrow().values().cloned().collect();
        for room in rooms {
            let mut effects = Vec::new();
            room.borrow_mut()
                .on_instance(instance, silent, &mut effects);
            self.apply(effects);
        }
    }

    /// Every local connection that holds its slot.
    #[must_use]
    pub fn seats(&self) -> Vec<Rc<Seat>> {
        let rooms = self.rooms.borrow();
        let here = |room: &SharedRoom| {
            let room = room.borrow();
            Device::ALL.map(|device| room.here(device).cloned())
        };
        rooms.values().flat_map(here).flatten().collect()
    }

    /// Renews the slots whose turn it is; called about once a second.
    pub async fn renew(self: &Rc<Self>) {
        let now = Instant::now();
        let due: Vec<Rc<Seat>> = self
            .seats()
            .into_iter()
            .filter(|seat| seat.renew_at.get() <= now)
            .collect();
        let mut renewals = Vec::with_capacity(due.len());
        let mut asked = Vec::with_capacity(due.len());
        for seat in due {
            // A third of the lease, and some jitter so that connections that came together part.
            let pause = self.settings.lease / 3;
            seat.renew_at
                .set(now + pause.mul_f64(0.8 + 0.2 * fastrand::f64()));
            let room = seat.room.borrow();
            let Some((_, holder)) = room.renewable(seat.device) else {
                continue;
            };
            let renewal = Renewal {
                user: seat.user.clone(),
                device: seat.device,
                holder: holder.clone(),
            };
            let known = room.known();
            drop(room);
            renewals.push(renewal);
            asked.push((seat, known));
        }
        let answers = self.backplane.renew(&renewals).await;
        for ((seat, known), renewed) in asked.into_iter().zip(answers) {
            // Without an answer the lease goes on until the next try.
            let Ok(renewed) = renewed else { continue };
            let mut effects = Vec::new();
            seat.room.borrow_mut().on_renewed(
                seat.device,
                seat.connection,
                known,
                renewed,
                &mut effects,
            );
            self.apply(effects);
            self.settle(&seat);
        }
    }

    /// This instance is leaving: connections come back elsewhere, spread evenly with jitter until
    /// shortly before the deadline.
    pub fn drain(&self, now: Instant, deadline: Instant) {
        self.leaving.set(Some(deadline));
        let seats = self.seats();
        // The last clients need time to move, too.
        let step = deadline.saturating_duration_since(now).mul_f64(0.8)
            / u32::try_from(seats.len().max(1)).unwrap_or(u32::MAX);
        for (turn, seat) in (0u32..).zip(&seats) {
            let at = now + step * turn + step.mul_f64(fastrand::f64());
            seat.drain.set(Some(Drain { at, deadline }));
            seat.wake();
        }
    }

    // ---- operators and GET /v1/session

    /// Who holds the slots of a room, without those whose instance is silent.
    ///
    /// # Errors
    /// [`Refusal::BackplaneUnavailable`]
    pub async fn look(&self, user: &UserId) -> Result<RoomSnapshot, Refusal> {
        match timeout(CALL_LIMIT, self.backplane.room(user)).await {
            Ok(Ok(slots)) => {
                let alive = |slot: Option<_>| {
                    slot.filter(|held: &crate::relay::record::Held| {
                        !self.backplane.is_silent(held.holder.instance)
                    })
                };
                Ok(slots.map(alive))
            }
            Ok(Err(_)) | Err(_) => Err(Refusal::BackplaneUnavailable),
        }
    }

    /// Hands a message from an operator to the devices of a user, wherever they are; returns to how many.
    ///
    /// # Errors
    /// [`Refusal::BackplaneUnavailable`]
    pub async fn tell_user(
        self: &Rc<Self>,
        user: &UserId,
        devices: &[Device],
        data: Bytes,
    ) -> Result<usize, Refusal> {
        let envelope = |_: &Holder| Envelope::ServerMessage { data: data.clone() };
        self.to_devices(user, devices, envelope, |to| {
            self.deliver_server_message(to, &data)
        })
        .await
    }

    /// Disconnects devices of a user with 4002, wherever they are; returns how many.
    ///
    /// # Errors
    /// [`Refusal::BackplaneUnavailable`]
    pub async fn disconnect_user(
        self: &Rc<Self>,
        user: &UserId,
        devices: &[Device],
    ) -> Result<usize, Refusal> {
        let envelope = |holder: &Holder| Envelope::Disconnect {
            connection: holder.member.connection,
        };
        self.to_devices(user, devices, envelope, |to| self.disconnect(to))
            .await
    }

    async fn to_devices(
        self: &Rc<Self>,
        user: &UserId,
        devices: &[Device],
        envelope: impl Fn(&Holder) -> Envelope,
        here: impl Fn(&Rc<Seat>),
    ) -> Result<usize, Refusal> {
        let slots = self.look(user).await?;
        let mut reached = 0;
        for (device, held) in Device::ALL.into_iter().zip(slots) {
            let Some(held) = held.filter(|_| devices.contains(&device)) else {
                continue;
            };
            let local = self
                .room(user)
                .and_then(|room| room.borrow().here(device).cloned());
            if let Some(seat) = local {
                here(&seat);
                reached += 1;
            } else if held.holder.instance != self.settings.instance {
                let published =
                    self.backplane
                        .publish(user, device, envelope(&held.holder), Instant::now());
                reached += usize::from(published == Published::Queued);
            }
        }
        Ok(reached)
    }

    fn deliver_server_message(self: &Rc<Self>, to: &Rc<Seat>, data: &Bytes) {
        let data = std::str::from_utf8(data).unwrap_or("null");
        let text = match to.protocol {
            Protocol::V1 => {
                let (from, data) = (From::Server, Some(raw_json(data)));
                ServerMessage::Message {
                    from,
                    data,
                    text: None,
                    id: None,
                }
                .encode()
            }
            Protocol::Classic => {
                let occupancy = to.room.borrow().occupancy();
                classic_text(occupancy, &to.label(), &compact_json(data))
            }
        };
        self.push_reliable(to, Outgoing::Text(text), None);
    }

    fn disconnect(self: &Rc<Self>, seat: &Rc<Seat>) {
        seat.close(None, Close::Disconnected);
        self.leave(seat);
    }
}
