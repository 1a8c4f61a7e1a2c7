//! What waits for one socket, in three lanes. Control goes first. Then the reliable queue (bounded by bytes)
//! and the latest frame of each volatile stream go in turn.
//!
//! Face data is worth its newest frame: the next frame of a stream replaces a volatile one that still waits.
//! So a slow receiver sees fewer frames, not older ones.

use std::collections::VecDeque;
use std::fmt;
use std::time::Instant;

use bytes::Bytes;

use super::close::Close;
use super::ids::StreamId;
use super::pacing;
use super::parcel::PressureState;

/// The two kinds of message in a WebSocket (RFC 6455 section 5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text message of WebSocket: valid UTF-8.
    Text,
    /// A binary message of WebSocket.
    Binary,
}

/// One WebSocket message on its way out. `Debug` prints its kind and its size.
#[derive(Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The opcode under which the codec sends it.
    pub kind: Kind,
    /// The payload, shared with every other copy of it.
    pub bytes: Bytes,
    /// When it was read from the other socket or from the backplane; `None` for what the relay says itself.
    pub since: Option<Instant>,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({} bytes)", self.kind, self.bytes.len())
    }
}

impl Outgoing {
    /// A text message; its bytes are UTF-8.
    #[must_use]
    pub const fn text(bytes: Bytes, since: Option<Instant>) -> Self {
        Self { kind: Kind::Text, bytes, since }
    }

    /// A frame of another device, byte for byte.
    #[must_use]
    pub const fn binary(bytes: Bytes, since: Option<Instant>) -> Self {
        Self { kind: Kind::Binary, bytes, since }
    }

    /// The same message in memory of its own. A received payload is a slice of its socket's read
    /// buffer, all of which it keeps alive; what may wait for long must not.
    fn detached(self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), ..self }
    }
}

/// Outcome of pushing a volatile frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Pushed {
    /// It waits, and nothing was lost.
    Waits,
    /// It waits in the place of an older frame of its stream.
    Replaced,
    /// It waits, and this many frames that waited longest were dropped for want of room.
    Dropped(usize),
}

/// The reliable queue or the control lane is full: the receiver is too slow to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSlow;

struct Frame {
    stream: StreamId,
    bytes: Bytes,
    since: Instant,
}

/// What the relay itself says.
struct Control {
    text: Bytes,
    /// As the window sees it: [`pacing::Kind::Control`] or [`pacing::Kind::Quiet`].
    kind: pacing::Kind,
}

/// The three lanes of one connection.
#[derive(Default)]
pub struct Outbox {
    control: VecDeque<Control>,
    reliable: VecDeque<Outgoing>,
    /// At most one frame a stream; those that wait longest first.
    volatile: VecDeque<Frame>,
    control_bytes: usize,
    reliable_bytes: usize,
    volatile_bytes: usize,
    /// The two lower lanes take turns, so that neither starves the other.
    volatile_next: bool,
    /// The reliable queue was long when it was last looked at.
    pressed: bool,
    /// The window of the path holds the volatile frames that wait.
    held: bool,
    goodbye: Option<(Option<Bytes>, Close)>,
}

/// What an item costs beside its payload, in bytes: without it, millions of empty messages would fit
/// into a small queue.
const ITEM: usize = 64;

/// Queues longer than this give their memory back when they are empty.
const KEEP: usize = 4;

impl Outbox {
    /// Queues what the relay itself has to say: before everything that waits.
    ///
    /// # Errors
    /// When more than `limit` bytes of it wait: a client asks and does not read the answers.
    pub fn push_control(&mut self, text: Bytes, kind: pacing::Kind, limit: usize) -> Result<(), TooSlow> {
        if self.goodbye.is_some() {
            return Ok(());
        }
        let bytes = self.control_bytes + text.len() + ITEM;
        // Whatever its size, one message always fits into an empty lane.
        if bytes > limit && !self.control.is_empty() {
            return Err(TooSlow);
        }
        self.control_bytes = bytes;
        self.control.push_back(Control { text, kind });
        Ok(())
    }

    /// Puts the first message of a connection before all others.
    pub fn push_first(&mut self, text: Bytes) {
        self.control_bytes += text.len() + ITEM;
        self.control.push_front(Control { text, kind: pacing::Kind::Control });
    }

    /// Queues a reliable message: first in, first out.
    ///
    /// # Errors
    /// When more than `limit` bytes would wait.
    pub fn push_reliable(&mut self, message: Outgoing, limit: usize) -> Result<(), TooSlow> {
        if self.goodbye.is_some() {
            return Ok(());
        }
        let bytes = self.reliable_bytes + message.bytes.len() + ITEM;
        if bytes > limit && !self.reliable.is_empty() {
            return Err(TooSlow);
        }
        self.reliable_bytes = bytes;
        let message = if self.reliable.is_empty() { message } else { message.detached() };
        self.reliable.push_back(message);
        Ok(())
    }

    /// The change of the reliable queue since this was last asked. Above half of `limit` it is long, and
    /// below a quarter it is short again. In between nothing changes, so that a queue about a bound is not
    /// reported each time.
    pub fn pressure_change(&mut self, limit: usize) -> Option<PressureState> {
        let is_pressed =
            if self.pressed { self.reliable_bytes >= limit / 4 } else { self.reliable_bytes > limit / 2 };
        if is_pressed == self.pressed {
            return None;
        }
        self.pressed = is_pressed;
        Some(if is_pressed { PressureState::High } else { PressureState::Low })
    }

    /// The reliable queue is long.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.pressed
    }

    /// Lets a volatile frame wait; an older one of its stream gives way to it.
    pub fn push_volatile(&mut self, stream: StreamId, bytes: Bytes, since: Instant, limit: usize) -> Pushed {
        if self.goodbye.is_some() {
            return Pushed::Waits;
        }
        let waiting = self.volatile.iter().position(|frame| frame.stream == stream);
        let replaced = waiting.and_then(|at| self.volatile.remove(at));
        if let Some(old) = &replaced {
            self.volatile_bytes -= old.bytes.len() + ITEM;
        }
        self.volatile_bytes += bytes.len() + ITEM;
        let bytes = if self.volatile.is_empty() && replaced.is_none() {
            bytes
        } else {
            Bytes::copy_from_slice(&bytes)
        };
        let frame = Frame { stream, bytes, since };
        // A frame that replaces another takes over its turn: a stream that is replaced all the time
        // must not fall behind the others for ever.
        match waiting {
            Some(at) => self.volatile.insert(at, frame),
            None => self.volatile.push_back(frame),
        }
        let mut dropped = 0;
        while self.volatile_bytes > limit && self.volatile.len() > 1 {
            dropped += usize::from(self.drop_longest_waiting());
        }
        match (dropped, replaced) {
            (0, None) => Pushed::Waits,
            (0, Some(_)) => Pushed::Replaced,
            (n, None) => Pushed::Dropped(n),
            (n, Some(_)) => Pushed::Dropped(n + 1),
        }
    }

    fn drop_longest_waiting(&mut self) -> bool {
        let oldest = self.volatile.iter().enumerate().min_by_key(|(_, frame)| frame.since).map(|(at, _)| at);
        let Some(frame) = oldest.and_then(|at| self.volatile.remove(at)) else {
            return false;
        };
        self.volatile_bytes -= frame.bytes.len() + ITEM;
        true
    }

    /// Drops the volatile frames that wait, because they came from a connection that has lost its slot.
    /// Returns how many there were.
    pub fn drop_volatile(&mut self) -> usize {
        let dropped = self.volatile.len();
        self.volatile = VecDeque::new();
        self.volatile_bytes = 0;
        self.held = false;
        dropped
    }

    /// From now on nothing more is queued. What waits is still written, then `last`, then the close.
    /// The first goodbye wins.
    pub fn close(&mut self, last: Option<Bytes>, close: Close) {
        if self.goodbye.is_none() {
            self.goodbye = Some((last, close));
        }
    }

    /// The same, without what waits: for connections that must leave at once.
    pub fn close_now(&mut self, last: Option<Bytes>, close: Close) {
        if self.goodbye.is_none() {
            self.forget_waiting();
            self.goodbye = Some((last, close));
        }
    }

    /// Drops everything that waits, except the goodbye.
    pub fn forget_waiting(&mut self) {
        *self = Self { goodbye: self.goodbye.take(), ..Self::default() };
    }

    /// True once [`Self::close`] was called.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.goodbye.is_some()
    }

    /// True when only the goodbye is left.
    #[must_use]
    pub fn is_empty_but_goodbye(&self) -> bool {
        self.goodbye.is_some() && self.is_drained()
    }

    /// True when nothing waits, not even a goodbye.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_drained() && self.goodbye.is_none()
    }

    /// True when nothing waits, and nobody has to learn that nothing waits any more.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.is_empty() && !self.pressed && !self.held
    }

    /// True when nothing waits before the goodbye.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.control.is_empty() && self.reliable.is_empty() && self.volatile.is_empty()
    }

    /// Bytes that wait in all lanes, with what the items themselves cost.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.control_bytes + self.reliable_bytes + self.volatile_bytes
    }

    /// The next message to write.
    pub fn pop(&mut self) -> Option<Outgoing> {
        self.pop_if(|_| true).map(|(_, message)| message)
    }

    /// The next message that may leave on its path. Control messages are not asked about: they never wait.
    pub fn pop_if(
        &mut self,
        mut may_leave: impl FnMut(pacing::Kind) -> bool,
    ) -> Option<(pacing::Kind, Outgoing)> {
        if let Some(Control { text, kind }) = self.control.pop_front() {
            self.control_bytes -= text.len() + ITEM;
            shrink_if_empty(&mut self.control);
            return Some((kind, Outgoing::text(text, None)));
        }
        let volatile_first = self.volatile_next || self.reliable.is_empty();
        if volatile_first && let Some(message) = self.pop_volatile(&mut may_leave) {
            return Some((pacing::Kind::Volatile, message));
        }
        if let Some(message) = self.pop_reliable(&mut may_leave) {
            return Some((pacing::Kind::Reliable, message));
        }
        if volatile_first {
            return None;
        }
        self.pop_volatile(&mut may_leave).map(|message| (pacing::Kind::Volatile, message))
    }

    fn pop_volatile(&mut self, may_leave: &mut impl FnMut(pacing::Kind) -> bool) -> Option<Outgoing> {
        let frame = self.volatile.front()?;
        let (length, since) = (frame.bytes.len(), frame.since);
        if !may_leave(pacing::Kind::Volatile) {
            self.held = true;
            return None;
        }
        let frame = self.volatile.pop_front()?;
        (self.held, self.volatile_next) = (false, false);
        self.volatile_bytes -= length + ITEM;
        shrink_if_empty(&mut self.volatile);
        Some(Outgoing::binary(frame.bytes, Some(since)))
    }

    fn pop_reliable(&mut self, may_leave: &mut impl FnMut(pacing::Kind) -> bool) -> Option<Outgoing> {
        if self.reliable.is_empty() || !may_leave(pacing::Kind::Reliable) {
            return None;
        }
        let message = self.reliable.pop_front()?;
        self.volatile_next = true;
        self.reliable_bytes -= message.bytes.len() + ITEM;
        shrink_if_empty(&mut self.reliable);
        Some(message)
    }

    /// Volatile frames that the window of the path holds.
    #[must_use]
    pub fn held(&self) -> usize {
        if self.held { self.volatile.len() } else { 0 }
    }

    /// The last message and the close, once nothing else waits.
    #[must_use]
    pub fn goodbye(&self) -> Option<(Option<Bytes>, Close)> {
        if self.is_drained() { self.goodbye.clone() } else { None }
    }
}

fn shrink_if_empty<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > KEEP {
        *queue = VecDeque::new();
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
