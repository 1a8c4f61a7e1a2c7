//! What waits for one socket, in three lanes: control first, then the reliable queue (bounded by
//! bytes) and the latest frame of each volatile stream in turn.
//!
//! Face data is worth its newest frame: a volatile frame that still waits is replaced by the next one
//! of its stream, so a slow receiver sees fewer frames, not older ones.

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

    /// What has become of the reliable queue since this was last asked: above half of `limit` it is long, and below a
    /// quarter it is short again. In between nothing changes, so that a queue about a bound is not reported each time.
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
            Some(at) if replaced.is_some() => self.volatile.insert(at, frame),
            Some(_) | None => self.volatile.push_back(frame),
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

    fn is_drained(&self) -> bool {
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
    pub fn pop_goodbye(&mut self) -> Option<(Option<Bytes>, Close)> {
        if self.is_drained() { self.goodbye.clone() } else { None }
    }
}

fn shrink_if_empty<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > KEEP {
        *queue = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 10_000;

    fn frame(stream: u8, n: u8) -> Bytes {
        Bytes::from(vec![stream, n])
    }

    fn volatile(outbox: &mut Outbox, stream: u8, n: u8) -> Pushed {
        outbox.push_volatile(StreamId(stream), frame(stream, n), Instant::now(), LIMIT)
    }

    fn reliable(outbox: &mut Outbox, n: u8) {
        outbox.push_reliable(Outgoing::binary(frame(0x80, n), None), LIMIT).unwrap();
    }

    fn drain(outbox: &mut Outbox) -> Vec<Bytes> {
        std::iter::from_fn(|| outbox.pop()).map(|message| message.bytes).collect()
    }

    #[test]
    fn control_goes_first_and_the_first_message_before_it() {
        let mut outbox = Outbox::default();
        reliable(&mut outbox, 1);
        assert_eq!(volatile(&mut outbox, 1, 1), Pushed::Waits);
        outbox.push_control(Bytes::from_static(b"c"), pacing::Kind::Quiet, LIMIT).unwrap();
        outbox.push_first(Bytes::from_static(b"welcome"));
        let order = drain(&mut outbox);
        assert_eq!(order[..2], [Bytes::from_static(b"welcome"), Bytes::from_static(b"c")]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn the_latest_frame_of_a_stream_replaces_the_waiting_one_in_its_turn() {
        let mut outbox = Outbox::default();
        assert_eq!(volatile(&mut outbox, 1, 1), Pushed::Waits);
        assert_eq!(volatile(&mut outbox, 2, 1), Pushed::Waits);
        assert_eq!(volatile(&mut outbox, 1, 2), Pushed::Replaced);
        assert_eq!(drain(&mut outbox), [frame(1, 2), frame(2, 1)]);
    }

    #[test]
    fn reliable_and_volatile_take_turns() {
        let mut outbox = Outbox::default();
        for n in 1..=3 {
            reliable(&mut outbox, n);
            assert_eq!(volatile(&mut outbox, n, 0), Pushed::Waits);
        }
        let order = drain(&mut outbox);
        assert_eq!(
            order,
            [frame(0x80, 1), frame(1, 0), frame(0x80, 2), frame(2, 0), frame(0x80, 3), frame(3, 0)]
        );
    }

    #[test]
    fn the_reliable_queue_is_bounded_and_one_message_always_fits() {
        let mut outbox = Outbox::default();
        let big = || Outgoing::binary(Bytes::from(vec![0x80; 2 * LIMIT]), None);
        assert_eq!(outbox.push_reliable(big(), LIMIT), Ok(()));
        assert_eq!(outbox.push_reliable(big(), LIMIT), Err(TooSlow));
        assert_eq!(outbox.push_reliable(Outgoing::binary(frame(0x80, 1), None), LIMIT), Err(TooSlow));
    }

    #[test]
    fn pressure_is_high_above_half_and_low_below_a_quarter() {
        let mut outbox = Outbox::default();
        let item = 100 - ITEM;
        let push = |outbox: &mut Outbox| {
            let message = Outgoing::binary(Bytes::from(vec![0x80; item]), None);
            outbox.push_reliable(message, 1000).unwrap();
            outbox.pressure_change(1000)
        };
        for waiting in 1..=5 {
            assert_eq!(push(&mut outbox), None, "{waiting}00 of 1000 bytes wait");
        }
        assert_eq!(push(&mut outbox), Some(PressureState::High));
        assert_eq!(push(&mut outbox), None);
        for waiting in (3..=6).rev() {
            outbox.pop();
            assert_eq!(outbox.pressure_change(1000), None, "{waiting}00 of 1000 bytes wait");
            assert!(outbox.is_pressed());
        }
        outbox.pop();
        assert_eq!(outbox.pressure_change(1000), Some(PressureState::Low));
        assert_eq!(outbox.pressure_change(1000), None);
    }

    #[test]
    fn volatile_frames_past_the_limit_drop_the_longest_waiting() {
        let mut outbox = Outbox::default();
        let now = Instant::now();
        let big = |stream: u8| Bytes::from(vec![stream; LIMIT / 3]);
        let at = |ms| now + Duration::from_millis(ms);
        assert_eq!(outbox.push_volatile(StreamId(1), big(1), at(1), LIMIT), Pushed::Waits);
        assert_eq!(outbox.push_volatile(StreamId(2), big(2), at(2), LIMIT), Pushed::Waits);
        assert_eq!(outbox.push_volatile(StreamId(1), big(1), at(3), LIMIT), Pushed::Replaced);
        assert_eq!(outbox.push_volatile(StreamId(3), big(3), at(4), LIMIT), Pushed::Dropped(1));
        assert_eq!(drain(&mut outbox), [big(1), big(3)]);
    }

    #[test]
    fn goodbye_comes_after_what_waits_and_stops_the_rest() {
        let mut outbox = Outbox::default();
        reliable(&mut outbox, 1);
        outbox.close(Some(Bytes::from_static(b"bye")), Close::Overwritten);
        outbox.close(None, Close::Restart);
        reliable(&mut outbox, 2);
        assert_eq!(outbox.pop_goodbye(), None);
        assert_eq!(drain(&mut outbox), [frame(0x80, 1)]);
        assert_eq!(outbox.pop_goodbye(), Some((Some(Bytes::from_static(b"bye")), Close::Overwritten)));
    }

    #[derive(Debug, Clone)]
    enum Op {
        Control,
        Reliable(u8),
        Volatile(u8, u8),
        Pop,
    }

    proptest! {
        /// Against a model: each stream's frames come out in order, reliable ones all of them, and
        /// the last volatile frame of each stream is never lost.
        #[test]
        fn order_and_freshness_hold(ops in prop::collection::vec(prop_oneof![
            Just(Op::Control),
            any::<u8>().prop_map(Op::Reliable),
            (0u8..4, any::<u8>()).prop_map(|(s, n)| Op::Volatile(s, n)),
            Just(Op::Pop),
        ], 0..200)) {
            let mut outbox = Outbox::default();
            let (mut sent_reliable, mut got_reliable) = (vec![], vec![]);
            let mut sent = [const { vec![] }; 4];
            let mut got = [const { vec![] }; 4];
            let take = |message: Option<Outgoing>, got_reliable: &mut Vec<u8>, got: &mut [Vec<u8>; 4]| {
                match message {
                    Some(Outgoing { kind: Kind::Binary, bytes, .. }) if bytes[0] == 0x80 => got_reliable.push(bytes[1]),
                    Some(Outgoing { kind: Kind::Binary, bytes, .. }) => got[usize::from(bytes[0])].push(bytes[1]),
                    Some(Outgoing { kind: Kind::Text, .. }) | None => {}
                }
            };
            for op in ops {
                match op {
                    Op::Control => outbox.push_control(Bytes::from_static(b"c"), pacing::Kind::Quiet, usize::MAX).unwrap(),
                    Op::Reliable(n) => {
                        sent_reliable.push(n);
                        outbox.push_reliable(Outgoing::binary(frame(0x80, n), None), usize::MAX).unwrap();
                    }
                    Op::Volatile(s, n) => {
                        sent[usize::from(s)].push(n);
                        let pushed = outbox.push_volatile(StreamId(s), frame(s, n), Instant::now(), usize::MAX);
                        prop_assert!(!matches!(pushed, Pushed::Dropped(_)));
                    }
                    Op::Pop => take(outbox.pop(), &mut got_reliable, &mut got),
                }
            }
            while !outbox.is_empty() {
                take(outbox.pop(), &mut got_reliable, &mut got);
            }
            prop_assert_eq!(outbox.waiting_bytes(), 0);
            prop_assert_eq!(got_reliable, sent_reliable);
            for (sent, got) in sent.iter().zip(&got) {
                prop_assert_eq!(sent.last(), got.last());
                let mut rest = sent.iter();
                prop_assert!(got.iter().all(|n| rest.any(|s| s == n)), "{:?} is no subsequence of {:?}", got, sent);
            }
        }
    }
}
