//! A local connection: what its room and its socket task share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::Bytes;

use crate::relay::budget::Share;
use crate::relay::close::Close;
use crate::relay::direct::Direct;
use crate::relay::ids::{
    Attempt, ClientId, ConnectionId, Device, Generation, InstanceId, Member, StreamId, UserId,
};
use crate::relay::limits::AbsentNotices;
use crate::relay::outbox::Outbox;
use crate::relay::protocol::Protocol;
use crate::relay::record::Holder;

use super::SharedRoom;

/// A connection that is about to claim its slot.
#[derive(Clone)]
pub struct Joining {
    /// The user of the verified token.
    pub user: UserId,
    /// The slot that the connection claims.
    pub device: Device,
    /// The client, if it named itself.
    pub client: Option<ClientId>,
    /// Which of its client's attempts it is, if the client counts them.
    pub attempt: Option<Attempt>,
    /// The dialect of its socket.
    pub protocol: Protocol,
    /// The e-mail address of its token, or the uid where there is none: the classic room's name.
    pub label: Arc<str>,
    /// End of its token, Unix seconds.
    pub expires_at: u64,
}

/// A local connection: what its room and its socket task share.
pub struct Seat {
    /// The connection that holds the seat.
    pub connection: ConnectionId,
    /// The user of the verified token.
    pub user: UserId,
    /// The slot that it claims or holds.
    pub device: Device,
    /// The dialect of its socket.
    pub protocol: Protocol,
    pub(super) client: Option<ClientId>,
    pub(super) attempt: Option<Attempt>,
    pub(super) room: SharedRoom,
    pub(super) label: RefCell<Arc<str>>,
    pub(super) generation: Cell<Generation>,
    pub(super) outbox: RefCell<Outbox>,
    pub(super) waker: RefCell<Option<Waker>>,
    pub(super) renew_at: Cell<Instant>,
    /// How many renewals have got no answer since the last one that did.
    pub(super) unanswered: Cell<u8>,
    /// Since when renewals have found nobody in the other slot, although somebody is known to be there.
    pub(super) other_missing: Cell<Option<Instant>>,
    pub(super) drain: Cell<Option<Drain>>,
    /// Bytes that its socket holds beside the outbox: encoded and not sent, received and not passed on.
    pub(super) buffered: Cell<[u32; 2]>,
    /// What the worker's share of the budget knows of this connection.
    pub(super) held: Cell<usize>,
    pub(super) share: Rc<Share>,
    /// Something of it may be on its way through the backplane.
    pub(super) published: Cell<bool>,
    /// Streams whose losses were reported lately; most connections never lose anything.
    pub(super) losses: RefCell<Option<Box<AbsentNotices>>>,
    /// Its direct path; most connections never get a `signal`.
    pub(super) direct: RefCell<Option<Box<Direct>>>,
}

/// This instance is leaving: when this connection should come back elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// The connection gets `reconnect` or 1012 at this time.
    pub at: Instant,
    /// When it is closed with 1012 if it is still here.
    pub deadline: Instant,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").field("connection", &self.connection).field("device", &self.device).finish()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.share.changed(self.held.get(), 0);
    }
}

impl Seat {
    /// What waits for this connection.
    pub fn with_outbox<T>(&self, act: impl FnOnce(&mut Outbox) -> T) -> T {
        let mut outbox = self.outbox.borrow_mut();
        let acted = act(&mut outbox);
        self.account(outbox.waiting_bytes());
        acted
    }

    /// A look at what waits, which changes nothing.
    pub fn see_outbox<T>(&self, look: impl FnOnce(&Outbox) -> T) -> T {
        look(&self.outbox.borrow())
    }

    /// Wakes the socket task of `context` when there is something to write. True when that is another waker than before.
    pub fn register(&self, context: &Context<'_>) -> bool {
        let mut waker = self.waker.borrow_mut();
        let is_new = !waker.as_ref().is_some_and(|known| known.will_wake(context.waker()));
        if is_new {
            *waker = Some(context.waker().clone());
        }
        is_new
    }

    /// Wakes the socket task.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Notes two numbers of bytes. `unsent` ones are encoded and wait for the kernel. `incoming` ones have
    /// come and wait for the rest of their message or for their turn.
    pub fn note_buffered(&self, unsent: usize, incoming: usize) {
        self.buffered.set([unsent, incoming].map(|bytes| u32::try_from(bytes).unwrap_or(u32::MAX)));
        self.account(self.outbox.borrow().waiting_bytes());
    }

    fn account(&self, waiting: usize) {
        let [unsent, incoming] = self.buffered.get().map(|bytes| bytes as usize);
        let now = waiting + unsent + incoming;
        self.share.changed(self.held.replace(now), now);
    }

    /// All that is held for this connection, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.held.get()
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

    /// Lost frames are reported at most once a second for each stream.
    pub(super) fn may_report_loss(&self, stream: StreamId, now: Instant) -> bool {
        self.losses.borrow_mut().get_or_insert_default().is_due(stream, now)
    }

    pub(super) fn holder(&self, instance: InstanceId, generation: Generation) -> Holder {
        let member = Member { connection: self.connection, generation };
        Holder { member, instance, client: self.client.clone() }
    }
}
