//! Channels whose slot changes its node. For a while their publishes leave one by one, each when the node has
//! answered for the one before. The relay tries one again that a node has refused, or that nobody has heard
//! yet. Nothing overtakes it. `carrier.rs` carries this out.
//!
//! Longer than most files: its tests stand below it, and each reads like one detour.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use fred::bytes_utils::Str;
use fred::util::redis_keyslot;
use tokio::sync::{Notify, oneshot};

use super::publisher::{Publisher, Waiter};
use super::queue::{Allowance, Counted, Departed, Queue};
use crate::backplane::{Barrier, CALL_LIMIT, LossCause, Published};

/// After a change, for so long a publish is tried again: its receiver follows a little later. Past it, a detour ends as
/// soon as nothing is under way.
const FOLLOWS: Duration = CALL_LIMIT;

/// The answer to a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one subscriber received it.
    Heard,
    /// It was carried out, and nobody was subscribed.
    Unheard,
    /// It was certainly not carried out.
    Refused,
    /// It may have been carried out.
    Unanswered,
}

/// What follows from an answer on a detour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The next one leaves.
    Done,
    /// The same one leaves again, a little later.
    Again,
    /// Its sender learns of it, and the next one leaves.
    Lost(LossCause),
}

/// What reached nobody may leave again; what may have reached somebody may not.
pub(super) fn verdict(answer: Answer, may_try: bool) -> Verdict {
    match (answer, may_try) {
        (Answer::Heard, _) => Verdict::Done,
        (Answer::Unheard | Answer::Refused, true) => Verdict::Again,
        (Answer::Unheard | Answer::Refused, false) => Verdict::Lost(LossCause::Unheard),
        (Answer::Unanswered, _) => Verdict::Lost(LossCause::Unanswered),
    }
}

/// A slot that has another node since a short time.
struct Moved {
    from: Rc<Publisher>,
    until: Instant,
}

/// The channels of one worker whose slots change their node.
#[derive(Default)]
pub(super) struct Detours {
    slots: RefCell<HashMap<u16, Moved>>,
    channels: RefCell<HashMap<Str, Rc<Detour>>>,
    /// Neither of them has an entry: most of the time one look is enough.
    is_busy: Cell<bool>,
    /// What waits on all detours.
    bytes: Counted,
    begun: RefCell<Vec<Rc<Detour>>>,
    news: Notify,
}

/// What waits for one channel while its slot changes its node.
pub(super) struct Detour {
    pub(super) channel: Str,
    pub(super) slot: u16,
    /// Notified when something waits.
    pub(super) more: Notify,
    state: RefCell<State>,
}

struct State {
    /// Refused by the old node: they leave first.
    refused: VecDeque<Departed>,
    queue: Queue,
    /// Each resolves when a node has answered for what left before.
    before: Vec<Barrier>,
    /// Behind what waits here.
    behind: Vec<oneshot::Sender<()>>,
    is_under_way: bool,
    /// Something has left from here: nothing that was refused before may follow it.
    has_left: bool,
    until: Instant,
}

impl State {
    fn bytes(&self) -> usize {
        self.queue.bytes() + self.refused.iter().map(|refused| refused.envelope.len()).sum::<usize>()
    }

    fn is_empty(&self) -> bool {
        self.refused.is_empty() && self.queue.is_empty()
    }
}

impl Detours {
    /// None; what waits counts into this allowance.
    pub(super) fn new(allowance: &Rc<Allowance>) -> Self {
        Self { bytes: Counted::new(allowance), ..Self::default() }
    }

    /// True when this slot has another node since a short time.
    pub(super) fn knows(&self, slot: u16) -> bool {
        !self.is_quiet() && self.slots.borrow().contains_key(&slot)
    }

    /// True when there is none.
    pub(super) fn is_quiet(&self) -> bool {
        !self.is_busy.get()
    }

    /// Slots have left the node of this publisher. What waits there for their channels waits here from now on.
    pub(super) fn on_moved(&self, slots: &[u16], from: &Rc<Publisher>, now: Instant) {
        self.is_busy.set(true);
        let until = now + FOLLOWS;
        self.slots
            .borrow_mut()
            .extend(slots.iter().map(|slot| (*slot, Moved { from: Rc::clone(from), until })));
        let moved: HashSet<u16> = slots.iter().copied().collect();
        for waiter in from.take(|channel| moved.contains(&redis_keyslot(channel.as_bytes()))) {
            let (queue, behind) = waiter;
            let slot = redis_keyslot(queue.channel().as_bytes());
            self.bytes.set(self.bytes.get() + queue.bytes());
            self.begin(slot, queue, behind, from.answered().into_iter().collect(), until);
        }
    }

    fn begin(
        &self,
        slot: u16,
        queue: Queue,
        behind: Vec<oneshot::Sender<()>>,
        before: Vec<Barrier>,
        until: Instant,
    ) -> Rc<Detour> {
        self.is_busy.set(true);
        let channel = queue.channel().clone();
        let (is_under_way, has_left) = (false, false);
        let state = State { refused: VecDeque::new(), queue, before, behind, is_under_way, has_left, until };
        let detour =
            Rc::new(Detour { channel: channel.clone(), slot, more: Notify::new(), state: state.into() });
        self.channels.borrow_mut().insert(channel, Rc::clone(&detour));
        self.begun.borrow_mut().push(Rc::clone(&detour));
        self.news.notify_one();
        detour
    }

    /// Detours that have begun since this was asked; waits for the next one.
    pub(super) async fn begun(&self) -> Vec<Rc<Detour>> {
        self.news.notified().await;
        std::mem::take(&mut *self.begun.borrow_mut())
    }

    /// The detour that a publish on this channel has to take, if any; `current` is the publisher of the slot's node.
    pub(super) fn of(
        &self,
        slot: u16,
        current: &Rc<Publisher>,
        now: Instant,
        channel: &str,
        queue: impl FnOnce() -> Queue,
    ) -> Option<Rc<Detour>> {
        if self.is_quiet() {
            return None;
        }
        if let Some(detour) = self.channels.borrow().get(channel) {
            return Some(Rc::clone(detour));
        }
        let (until, before) = {
            let slots = self.slots.borrow();
            let moved = slots.get(&slot).filter(|moved| now < moved.until && !current.waits_for(channel))?;
            let is_back = Rc::ptr_eq(&moved.from, current);
            let from = if is_back { None } else { moved.from.answered() };
            (moved.until, from.into_iter().chain(current.answered()).collect())
        };
        Some(self.begin(slot, queue(), Vec::new(), before, until))
    }

    pub(super) fn publish(
        &self,
        detour: &Detour,
        bytes: usize,
        push: impl FnOnce(&mut Queue) -> Published,
    ) -> Published {
        if !self.bytes.has_room(bytes) {
            return Published::Full;
        }
        let published = self.update(detour, |state| push(&mut state.queue));
        detour.more.notify_one();
        published
    }

    /// A node has refused a publish. The detour keeps it for another try, in its order. It hands it back when
    /// the time is over, or when what came behind it has left already.
    pub(super) fn refuse(
        &self,
        slot: u16,
        by: &Rc<Publisher>,
        departed: Departed,
        now: Instant,
    ) -> Result<(), Departed> {
        let known = self.channels.borrow().get(&departed.channel).cloned();
        let detour = match known {
            Some(detour) => detour,
            None if by.waits_for(&departed.channel) => return Err(departed),
            None => {
                let (user, device) = (departed.user.clone(), departed.device);
                let queue = Queue::new(user, device, departed.channel.clone());
                let before = by.answered().into_iter().collect();
                self.begin(slot, queue, Vec::new(), before, now + FOLLOWS)
            }
        };
        let is_late = {
            let state = detour.state.borrow();
            state.has_left || now >= state.until
        };
        if is_late {
            return Err(departed);
        }
        self.update(&detour, |state| state.refused.push_back(departed));
        detour.more.notify_one();
        Ok(())
    }

    /// A publish that left the usual way was carried out, or may have been. What was refused before it must not follow
    /// it any more: it is handed out.
    pub(super) fn on_overtaken(&self, channel: &str) -> VecDeque<Departed> {
        let detour = self.channels.borrow().get(channel).cloned();
        let Some(detour) = detour.filter(|detour| !detour.state.borrow().has_left) else {
            return VecDeque::new();
        };
        self.update(&detour, |state| std::mem::take(&mut state.refused))
    }

    /// Barriers that a detour has to wait for before anything leaves.
    pub(super) fn before(&self, detour: &Detour) -> Vec<Barrier> {
        std::mem::take(&mut detour.state.borrow_mut().before)
    }

    /// What leaves next; it counts as under way until this is asked again.
    pub(super) fn next(&self, detour: &Detour) -> Option<Departed> {
        let (next, behind) = self.update(detour, |state| {
            let next = state.refused.pop_front().or_else(|| state.queue.pop());
            state.is_under_way = next.is_some();
            state.has_left |= next.is_some();
            let behind = if next.is_none() { std::mem::take(&mut state.behind) } else { Vec::new() };
            (next, behind)
        });
        for done in behind {
            // The receiver may be gone; ignore the error.
            let _ = done.send(());
        }
        next
    }

    /// The node cannot be reached yet: the time for other tries begins when it can.
    pub(super) fn extend(&self, detour: &Detour, now: Instant) {
        detour.state.borrow_mut().until = now + FOLLOWS;
    }

    /// Ends a detour of which nothing is under way. What still waits goes on the usual way.
    pub(super) fn end(&self, detour: &Detour) -> Option<Waiter> {
        self.channels.borrow_mut().remove(&detour.channel)?;
        let mut state = detour.state.borrow_mut();
        self.bytes.set(self.bytes.get() - state.bytes());
        let behind = std::mem::take(&mut state.behind);
        let queue = state.queue.take();
        (!queue.is_empty() || !behind.is_empty()).then_some((queue, behind))
    }

    /// A barrier behind what waits here for this channel, or what its slot's old node has not answered for.
    pub(super) fn barrier(&self, slot: u16, channel: &str) -> Option<Barrier> {
        if self.is_quiet() {
            return None;
        }
        if let Some(detour) = self.channels.borrow().get(channel) {
            let mut state = detour.state.borrow_mut();
            if state.is_under_way || !state.is_empty() {
                let (done, barrier) = oneshot::channel();
                // A channel may wait for as long as its node is away; who asks does not.
                state.behind.retain(|done| !done.is_closed());
                state.behind.push(done);
                return Some(barrier);
            }
        }
        self.slots.borrow().get(&slot)?.from.answered()
    }

    /// Forgets slots whose change is long over.
    pub(super) fn sweep(&self, now: Instant) {
        if self.is_quiet() {
            return;
        }
        let mut slots = self.slots.borrow_mut();
        slots.retain(|_, moved| now < moved.until);
        self.is_busy.set(!slots.is_empty() || !self.channels.borrow().is_empty());
    }

    /// Bytes of everything that waits.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// True when nothing waits and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        let is_idle = |detour: &Rc<Detour>| {
            let state = detour.state.borrow();
            !state.is_under_way && state.is_empty()
        };
        self.channels.borrow().values().all(is_idle)
    }

    fn update<T>(&self, detour: &Detour, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = detour.state.borrow_mut();
        let before = state.bytes();
        let output = change(&mut state);
        self.bytes.set(self.bytes.get() + state.bytes() - before);
        output
    }
}

impl Detour {
    /// True while a publish may be tried again.
    pub(super) fn may_try(&self, now: Instant) -> bool {
        now < self.until()
    }

    /// True when what waits may take the usual way: the time is over, and nothing that was refused is left.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        !self.may_try(now) && self.state.borrow().refused.is_empty()
    }

    /// Until when a publish may be tried again.
    pub(super) fn until(&self) -> Instant {
        self.state.borrow().until
    }
}

#[cfg(test)]
#[path = "detours_tests.rs"]
mod tests;
