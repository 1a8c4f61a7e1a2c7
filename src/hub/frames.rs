//! A frame's way through the hub: from one socket's task to the other's outbox, or to the backplane.

use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;

use crate::backplane::{Barrier, Published};
use crate::metrics::{Dropped, Path};
use crate::relay::classic::{Occupancy, classic_text};
use crate::relay::close::Close;
use crate::relay::direct::Direct;
use crate::relay::envelope::Envelope;
use crate::relay::ids::{ConnectionId, Device, Member, StreamId};
use crate::relay::outbox::{Outbox, Outgoing, Pushed, TooSlow};
use crate::relay::pacing;
use crate::relay::parcel::{Parcel, PressureState, Undelivered};
use crate::relay::protocol::{Protocol, Sender, ServerMessage, compact_json, raw_json};
use crate::relay::room::Route;

use super::{Hub, Seat, Sent, SharedRoom};

impl Hub {
    /// A frame's way in: from a socket's task to wherever the other device is. The bytes of a frame that is delivered
    /// move out of the parcel: a second owner of them would cost an allocation.
    pub fn send(self: &Rc<Self>, seat: &Rc<Seat>, parcel: &mut Parcel, now: Instant) -> Sent {
        let mut room = seat.room.borrow_mut();
        let occupancy = room.occupancy();
        let is_for_peer = match &*parcel {
            Parcel::Signal { to, .. } => {
                room.visible(seat.device.other()).is_some_and(|peer| peer.connection == *to)
            }
            Parcel::Frame(_)
            | Parcel::Send { .. }
            | Parcel::Text { .. }
            | Parcel::Ack { .. }
            | Parcel::Pressure(_) => true,
        };
        let route = room.route(seat.device, seat.connection);
        drop(room);
        let echo = matches!(*parcel, Parcel::Text { .. });
        let sent = match route {
            Route::Wait => return Sent::Wait,
            Route::Overwritten => {
                self.metrics.dropped(Dropped::Overwritten, 1);
                return Sent::Overwritten;
            }
            Route::Here(to) if is_for_peer => self.deliver_here(seat, &to, occupancy, parcel, now),
            Route::Away(from) if is_for_peer => self.publish(seat, from, parcel, now),
            Route::Here(_) | Route::Away(_) | Route::Absent => {
                self.metrics.dropped(Dropped::PeerAbsent, 1);
                Sent::Absent
            }
        };
        if echo {
            // A classic message goes to both members, its sender included; a text always arrives.
            let _ = self.deliver(seat, seat.connection, occupancy, parcel, now);
        }
        sent
    }

    /// Both sockets are here: into the other one's outbox.
    fn deliver_here(
        self: &Rc<Self>,
        seat: &Seat,
        to: &Rc<Seat>,
        occupancy: Occupancy,
        parcel: &mut Parcel,
        now: Instant,
    ) -> Sent {
        self.note_direct_path(seat, parcel, now);
        self.metrics.frame(parcel.is_reliable(), Path::Local, parcel.len());
        match self.deliver(to, seat.connection, occupancy, parcel, now) {
            Ok(()) => Sent::Done,
            Err(Undelivered::PeerAbsent) => Sent::Absent,
            Err(Undelivered::AckUnsupported) => Sent::AckUnsupported,
        }
    }

    /// The other socket is on another instance: to its channel, under this sender's name.
    fn publish(&self, seat: &Seat, from: Member, parcel: &Parcel, now: Instant) -> Sent {
        self.note_direct_path(seat, parcel, now);
        let envelope = Envelope::Parcel { from, parcel: parcel.clone() };
        seat.published.set(true);
        match self.backplane.publish(&seat.user, seat.device.other(), envelope, now) {
            Published::Queued => {
                self.metrics.frame(parcel.is_reliable(), Path::Backplane, parcel.len());
                Sent::Done
            }
            Published::Full => {
                self.metrics.dropped(Dropped::Backplane, 1);
                Sent::Refused
            }
        }
    }

    /// What this parcel shows of a direct path of its sender's.
    fn note_direct_path(&self, seat: &Seat, parcel: &Parcel, now: Instant) {
        if let Some(direct) = &mut *seat.direct.borrow_mut() {
            if let Parcel::Signal { to, .. } = parcel
                && direct.on_answer(*to)
            {
                self.metrics.direct_paths.inc();
            } else if !parcel.is_reliable() {
                direct.on_frame(now);
            }
        }
    }

    /// Counts the frames that pairs on a direct path no longer send by the relay; called about once a second.
    pub fn count_direct_frames(&self) {
        let now = Instant::now();
        for room in self.rooms.borrow().values() {
            let room = room.borrow();
            for device in Device::ALL {
                let Some(seat) = room.here(device) else { continue };
                let mut direct = seat.direct.borrow_mut();
                let Some(known) = &mut *direct else { continue };
                if room.visible(device.other()).is_some_and(|peer| peer.connection == known.peer()) {
                    self.metrics.direct_frames.inc_by(known.unseen(now));
                } else {
                    // The path ends with either connection.
                    *direct = None;
                }
            }
        }
    }

    /// A barrier behind everything that this connection has sent; `None` when all of it has been handed on.
    /// In memory that is when it was sent: only the backplane takes time.
    pub fn barrier(&self, seat: &Seat) -> Option<Barrier> {
        if !seat.published.get() {
            return None;
        }
        let barrier = self.backplane.barrier(&seat.user, seat.device.other());
        seat.published.set(barrier.is_some());
        barrier
    }

    /// A sender has waited long enough for what it sent through the backplane.
    pub fn on_marker_overdue(self: &Rc<Self>, seat: &Rc<Seat>) {
        let mut effects = Vec::new();
        seat.room.borrow_mut().on_marker_overdue(seat.device, &mut effects);
        self.apply(effects);
    }

    /// A frame's way out: into the outbox of the connection that it is for. Its bytes move there.
    ///
    /// # Errors
    /// What the sender has to know, when the connection does not take it as it was meant.
    pub(super) fn deliver(
        self: &Rc<Self>,
        to: &Rc<Seat>,
        from: ConnectionId,
        occupancy: Occupancy,
        parcel: &mut Parcel,
        since: Instant,
    ) -> Result<(), Undelivered> {
        let sender = Sender::from(to.device.other());
        let mut delivered = Ok(());
        let text = match (parcel, to.protocol) {
            (Parcel::Frame(bytes), _) => {
                self.deliver_frame(to, std::mem::take(bytes), since);
                return Ok(());
            }
            (Parcel::Send { data, id, ack, .. }, Protocol::V1) => {
                let data = Some(raw_json(std::str::from_utf8(data).unwrap_or("null")));
                let id = id.as_deref();
                ServerMessage::Message { from: sender, data, text: None, id, ack: *ack }.encode()
            }
            (Parcel::Send { data, label, ack, .. }, Protocol::Classic) => {
                if *ack {
                    delivered = Err(Undelivered::AckUnsupported);
                }
                let data = std::str::from_utf8(data).unwrap_or("null");
                classic_text(occupancy, label, &compact_json(data))
            }
            (Parcel::Text { text, .. }, Protocol::V1) => {
                let text = String::from_utf8_lossy(text);
                let text = Some(&*text);
                ServerMessage::Message { from: sender, data: None, text, id: None, ack: false }.encode()
            }
            (Parcel::Text { text, label }, Protocol::Classic) => {
                classic_text(occupancy, label, &String::from_utf8_lossy(text))
            }
            (Parcel::Ack { id }, Protocol::V1) => ServerMessage::Acked { id }.encode(),
            (Parcel::Signal { to: meant, data, .. }, Protocol::V1) if *meant == to.connection => {
                Direct::on_signal(&mut to.direct.borrow_mut(), to.device, from, since);
                let data = raw_json(std::str::from_utf8(data).unwrap_or("null"));
                ServerMessage::Signal { from, data }.encode()
            }
            (Parcel::Signal { .. }, Protocol::V1 | Protocol::Classic) => {
                self.metrics.dropped(Dropped::PeerAbsent, 1);
                return Err(Undelivered::PeerAbsent);
            }
            (Parcel::Pressure(state), Protocol::V1) => {
                self.control(to, &ServerMessage::Pressure { state: *state, connection: from });
                return Ok(());
            }
            // Nothing that its protocol has a word for.
            (Parcel::Ack { .. } | Parcel::Pressure(_), Protocol::Classic) => return Ok(()),
        };
        self.push_reliable(to, Outgoing::text(text, Some(since)));
        delivered
    }

    /// Reports to the other device that the reliable queue of this connection has become long, or is short again.
    fn report_pressure(self: &Rc<Self>, seat: &Rc<Seat>, state: PressureState) {
        let other = seat.device.other();
        let (from, here, is_there) = {
            let room = seat.room.borrow();
            let me = room.renewable(seat.device).filter(|(here, _)| Rc::ptr_eq(here, seat));
            // A connection that has lost its slot is nobody's peer.
            let Some(from) = me.map(|(_, holder)| holder.member) else { return };
            (from, room.here(other).cloned(), room.visible(other).is_some())
        };
        if let Some(to) = here {
            self.control(&to, &ServerMessage::Pressure { state, connection: seat.connection });
        } else if is_there && self.backplane.is_up(&seat.user) {
            let envelope = Envelope::Parcel { from, parcel: Parcel::Pressure(state) };
            // One that is lost is repeated, or ends by itself.
            let _ = self.backplane.publish(&seat.user, other, envelope, Instant::now());
        }
    }

    /// Something has been written to this connection's socket.
    pub fn on_written(self: &Rc<Self>, seat: &Rc<Seat>) {
        if !seat.see_outbox(Outbox::is_pressed) {
            return;
        }
        let limit = self.settings.limits.queue_bytes;
        if let Some(state) = seat.with_outbox(|outbox| outbox.pressure_change(limit)) {
            self.report_pressure(seat, state);
        }
    }

    /// Repeats `pressure` to the sender of each long queue, about once a second. A sender that has come back meanwhile
    /// has not heard of it, and one that hears nothing more goes on.
    pub fn repeat_pressure(self: &Rc<Self>) {
        let is_pressed = |seat: &&Rc<Seat>| seat.see_outbox(Outbox::is_pressed);
        let pressed: Vec<Rc<Seat>> = {
            let rooms = self.rooms.borrow();
            let here = |room: &SharedRoom| {
                let room = room.borrow();
                Device::ALL.map(|device| room.here(device).filter(is_pressed).cloned())
            };
            rooms.values().flat_map(here).flatten().collect()
        };
        for seat in pressed {
            self.report_pressure(&seat, PressureState::High);
        }
    }

    pub(super) fn deliver_frame(self: &Rc<Self>, to: &Rc<Seat>, bytes: Bytes, since: Instant) {
        let Some(stream) = bytes.first().copied().map(StreamId) else {
            return;
        };
        if stream.is_reliable() {
            return self.push_reliable(to, Outgoing::binary(bytes, Some(since)));
        }
        let limit = self.settings.limits.queue_bytes;
        let (pushed, is_held) =
            to.with_outbox(|outbox| (outbox.push_volatile(stream, bytes, since, limit), outbox.held() > 0));
        self.metrics.frames_held(usize::from(is_held));
        match pushed {
            Pushed::Waits => {}
            Pushed::Replaced if is_held => self.metrics.dropped(Dropped::Window, 1),
            Pushed::Replaced => self.metrics.dropped(Dropped::Superseded, 1),
            Pushed::Dropped(count) => self.metrics.dropped(Dropped::QueueFull, count),
        }
        to.wake();
        self.keep_budget();
    }

    pub(super) fn push_reliable(self: &Rc<Self>, to: &Rc<Seat>, message: Outgoing) {
        let limit = self.settings.limits.queue_bytes;
        let pushed = to.with_outbox(|outbox| {
            outbox.push_reliable(message, limit).map(|()| outbox.pressure_change(limit))
        });
        match pushed {
            Ok(change) => {
                to.wake();
                if let Some(state) = change {
                    self.report_pressure(to, state);
                }
                self.keep_budget();
            }
            Err(TooSlow) => self.too_slow(to),
        }
    }

    /// A control message to a v1 client; classic clients have none.
    pub fn control(self: &Rc<Self>, seat: &Rc<Seat>, message: &ServerMessage<'_>) {
        if seat.protocol == Protocol::V1 {
            self.control_encoded(seat, message.encode(), message.path_kind());
        }
    }

    /// The same, for a message that is encoded already.
    pub(super) fn control_encoded(self: &Rc<Self>, seat: &Rc<Seat>, text: Bytes, kind: pacing::Kind) {
        if seat.protocol == Protocol::Classic {
            return;
        }
        let limit = self.settings.limits.queue_bytes;
        match seat.with_outbox(|outbox| outbox.push_control(text, kind, limit)) {
            Ok(()) => seat.wake(),
            Err(TooSlow) => self.too_slow(seat),
        }
    }

    /// A receiver whose queue is full leaves the room at once, before anything else waits for it.
    pub(super) fn too_slow(self: &Rc<Self>, seat: &Rc<Seat>) {
        seat.close_now(Close::TooSlow);
        self.leave(seat);
    }
}
