//! What waits to be published on one channel.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use fred::bytes_utils::Str;

use crate::backplane::{Published, STALE};
use crate::metrics::{Dropped, Metrics};
use crate::relay::budget::{Budget, Share};
use crate::relay::ids::{Device, StreamId, UserId};
use crate::relay::outbox::{Outbox, Outgoing, Pushed};

/// What may wait for Redis on one worker, on all its ways together.
pub(super) struct Allowance {
    share: Rc<Share>,
    limit: usize,
}

impl Allowance {
    /// So many bytes, which count into the budget of this share.
    pub(super) fn new(share: Rc<Share>, limit: usize) -> Self {
        Self { share, limit }
    }
}

impl Default for Allowance {
    fn default() -> Self {
        Self::new(Budget::new(usize::MAX).share(), usize::MAX)
    }
}

/// A number of bytes that counts into an allowance.
#[derive(Default)]
pub(super) struct Counted {
    allowance: Rc<Allowance>,
    bytes: Cell<usize>,
}

impl Counted {
    /// Starts at zero, within this allowance.
    pub(super) fn new(allowance: &Rc<Allowance>) -> Self {
        Self { allowance: Rc::clone(allowance), bytes: Cell::default() }
    }

    /// The bytes that count now.
    pub(super) fn get(&self) -> usize {
        self.bytes.get()
    }

    /// Counts this many bytes in place of those so far.
    pub(super) fn set(&self, bytes: usize) {
        self.allowance.share.changed(self.bytes.replace(bytes), bytes);
    }

    /// True when the allowance has room for so many more.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.allowance.share.held().saturating_add(bytes) <= self.allowance.limit
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// A publish that has left.
pub(super) struct Departed {
    /// The user who receives it.
    pub(super) user: UserId,
    /// The device that receives it.
    pub(super) device: Device,
    pub(super) channel: Str,
    /// The bytes, as they were published.
    pub(super) envelope: Bytes,
    /// When a volatile frame was read.
    pub(super) since: Option<Instant>,
}

impl Departed {
    /// True for a volatile frame that newer ones are worth more than.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.duration_since(since) > STALE)
    }
}

/// What waits for one channel.
pub(super) struct Queue {
    user: UserId,
    device: Device,
    channel: Str,
    outbox: Outbox,
}

impl Queue {
    pub(super) fn new(user: UserId, device: Device, channel: Str) -> Self {
        Self { user, device, channel, outbox: Outbox::default() }
    }

    /// Lets an envelope wait behind the others; `stream` is that of a volatile frame.
    pub(super) fn push(
        &mut self,
        envelope: Bytes,
        stream: Option<StreamId>,
        since: Instant,
        limit: usize,
        metrics: &Metrics,
    ) -> Published {
        match stream {
            Some(stream) => {
                match self.outbox.push_volatile(stream, envelope, since, limit) {
                    Pushed::Waits => {}
                    Pushed::Replaced => metrics.dropped(Dropped::Superseded, 1),
                    Pushed::Dropped(count) => metrics.dropped(Dropped::QueueFull, count),
                }
                Published::Queued
            }
            None => match self.outbox.push_reliable(Outgoing::binary(envelope, None), limit) {
                Ok(()) => Published::Queued,
                Err(_) => Published::Full,
            },
        }
    }

    /// Takes what leaves next, with its bytes and its age.
    pub(super) fn pop(&mut self) -> Option<Departed> {
        let Outgoing { bytes, since, .. } = self.outbox.pop()?;
        let (user, device, channel) = (self.user.clone(), self.device, self.channel.clone());
        Some(Departed { user, device, channel, envelope: bytes, since })
    }

    /// All that waits; nothing waits here afterwards.
    pub(super) fn take(&mut self) -> Self {
        let (user, device, channel) = (self.user.clone(), self.device, self.channel.clone());
        std::mem::replace(self, Self::new(user, device, channel))
    }

    pub(super) fn channel(&self) -> &Str {
        &self.channel
    }

    /// True when nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Bytes that wait for this channel.
    pub(super) fn bytes(&self) -> usize {
        self.outbox.waiting_bytes()
    }
}
