//! A frame's way through the hub: from one socket's task to the other's outbox, or to the backplane.

use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;

use crate::backplane::{Barrier, Published};
use crate::metrics::{Dropped, Path};
use crate::relay::classic::{Occupancy, classic_text};
use crate::relay::close::Close;
use crate::relay::envelope::Envelope;
use crate::relay::ids::StreamId;
use crate::relay::outbox::{Outgoing, Pushed, TooSlow};
use crate::relay::parcel::Parcel;
use crate::relay::protocol::{Protocol, Sender, ServerMessage, compact_json, raw_json};
use crate::relay::room::Route;

use super::{Hub, Seat, Sent};

impl Hub {
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
                self.metrics.frame(parcel.is_reliable(), Path::Local, parcel.len());
                self.deliver(&to, occupancy, parcel, now);
                Sent::Done
            }
            Ok(None) => {
                self.metrics.dropped(Dropped::PeerAbsent, 1);
                Sent::Absent
            }
            Err(from) => {
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
        };
        if echo {
            // A classic message goes to both members, its sender included.
            self.deliver(seat, occupancy, parcel, now);
        }
        sent
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

    /// A frame's way out: into the outbox of the connection that it is for.
    pub(super) fn deliver(
        self: &Rc<Self>,
        to: &Rc<Seat>,
        occupancy: Occupancy,
        parcel: &Parcel,
        since: Instant,
    ) {
        let from = Sender::from(to.device.other());
        let text = match (parcel, to.protocol) {
            (Parcel::Frame(bytes), _) => return self.deliver_frame(to, bytes, since),
            (Parcel::Send { data, id, .. }, Protocol::V1) => {
                let data = std::str::from_utf8(data).unwrap_or("null");
                let id = id.as_deref();
                ServerMessage::Message { from, data: Some(raw_json(data)), text: None, id }.encode()
            }
            (Parcel::Send { data, label, .. }, Protocol::Classic) => {
                let data = std::str::from_utf8(data).unwrap_or("null");
                classic_text(occupancy, label, &compact_json(data))
            }
            (Parcel::Text { text, .. }, Protocol::V1) => {
                let text = String::from_utf8_lossy(text);
                ServerMessage::Message { from, data: None, text: Some(&text), id: None }.encode()
            }
            (Parcel::Text { text, label }, Protocol::Classic) => {
                classic_text(occupancy, label, &String::from_utf8_lossy(text))
            }
        };
        self.push_reliable(to, Outgoing::text(text, Some(since)));
    }

    pub(super) fn deliver_frame(self: &Rc<Self>, to: &Rc<Seat>, bytes: &Bytes, since: Instant) {
        let Some(stream) = bytes.first().copied().map(StreamId) else {
            return;
        };
        if stream.is_reliable() {
            return self.push_reliable(to, Outgoing::binary(bytes.clone(), Some(since)));
        }
        let limit = self.settings.limits.queue_bytes;
        match to.with_outbox(|outbox| outbox.push_volatile(stream, bytes.clone(), since, limit)) {
            Pushed::Waits => {}
            Pushed::Replaced => self.metrics.dropped(Dropped::Superseded, 1),
            Pushed::Dropped(count) => self.metrics.dropped(Dropped::QueueFull, count),
        }
        to.wake();
    }

    pub(super) fn push_reliable(self: &Rc<Self>, to: &Rc<Seat>, message: Outgoing) {
        let limit = self.settings.limits.queue_bytes;
        match to.with_outbox(|outbox| outbox.push_reliable(message, limit)) {
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
    pub(super) fn too_slow(self: &Rc<Self>, seat: &Rc<Seat>) {
        seat.close_now(Close::TooSlow);
        self.leave(seat);
    }
}
