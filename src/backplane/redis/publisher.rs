//! What leaves for other instances: in order for each channel, many at once, never more than is bounded, and
//! never stale.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::bytes_utils::Str;
use fred::clients::{Client, WithOptions};
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike as _, PubsubInterface as _};
use fred::types::config::Options;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;
use tracing::debug;

use super::client::unconnected;
use super::queue::{Allowance, Counted, Departed, Queue};
use super::words::words;
use crate::backplane::{Barrier, Published, STALE};
use crate::metrics::{Dropped, Metrics, PublishResult};
use crate::relay::ids::{Device, StreamId, UserId};

/// Publishes that are under way at the same time.
const IN_FLIGHT: usize = 2048;
/// Bytes that are under way at the same time.
const IN_FLIGHT_BYTES: usize = 8 * 1024 * 1024;
/// A publish without an answer for this long means that Redis stands still. What follows waits here, where
/// newer frames replace older ones, and not in the kernel.
const STALLED: Duration = Duration::from_millis(200);

/// Channels that wait for Redis, each with what waits.
#[derive(Default)]
struct Waiting {
    channels: HashMap<Str, Queue>,
    order: VecDeque<Str>,
    bytes: Counted,
    /// Behind what waits for a channel.
    barriers: HashMap<Str, Vec<oneshot::Sender<()>>>,
}

/// What waits for one channel, and who waits behind it.
pub(super) type Waiter = (Queue, Vec<oneshot::Sender<()>>);

/// Takes what became of each publish: how many have heard it, or why it failed.
pub(super) type OnAnswer = Box<dyn Fn(&Rc<Publisher>, Departed, Result<u64, Error>)>;

/// What one worker publishes through one node.
pub(super) struct Publisher {
    /// The connection in use; none while it is made anew.
    client: RefCell<Option<Rc<WithOptions<Client>>>>,
    sharded: bool,
    /// What may wait for one channel.
    queue_bytes: usize,
    metrics: Arc<Metrics>,
    /// When those that are under way left, oldest first.
    in_flight: RefCell<VecDeque<(u64, Instant)>>,
    next: Cell<u64>,
    in_flight_bytes: Counted,
    /// Each resolves when all numbers below its own have arrived.
    barriers: RefCell<VecDeque<(u64, oneshot::Sender<()>)>>,
    waiting: RefCell<Waiting>,
    on_answer: OnAnswer,
    is_up: Cell<bool>,
    /// Notified when publishes may leave again.
    opened: Notify,
    /// A publish got no answer at all. Nothing leaves until a probe is back: what is written to a Redis that
    /// stands still is lost or arrives stale.
    is_stuck: Cell<bool>,
}

impl Publisher {
    /// A publisher that waits until there is a connection and Redis serves.
    pub(super) fn new(
        sharded: bool,
        queue_bytes: usize,
        allowance: &Rc<Allowance>,
        metrics: Arc<Metrics>,
        on_answer: OnAnswer,
    ) -> Rc<Self> {
        Rc::new(Self {
            client: RefCell::default(),
            sharded,
            queue_bytes,
            metrics,
            in_flight: RefCell::default(),
            next: Cell::default(),
            in_flight_bytes: Counted::new(allowance),
            barriers: RefCell::default(),
            waiting: RefCell::new(Waiting { bytes: Counted::new(allowance), ..Waiting::default() }),
            on_answer,
            is_up: Cell::new(false),
            opened: Notify::new(),
            is_stuck: Cell::new(false),
        })
    }

    /// There is a connection, or none.
    pub(super) fn set_client(&self, client: Option<Client>) {
        // Never a second try: it could arrive twice, or late.
        let options = Options { timeout: Some(STALE), max_attempts: Some(1), ..Options::default() };
        *self.client.borrow_mut() = client.map(|client| Rc::new(client.with_options(&options)));
        self.opened.notify_waiters();
    }

    /// What is published reaches other instances, or does not.
    pub(super) fn set_up(self: &Rc<Self>, is_up: bool) {
        if self.is_up.replace(is_up) != is_up {
            self.opened.notify_waiters();
            self.drain();
        }
    }

    /// A probe is back: Redis answers.
    pub(super) fn on_probe(self: &Rc<Self>) {
        if self.is_stuck.replace(false) {
            self.opened.notify_waiters();
            self.drain();
        }
    }

    /// Publishes on a channel; `stream` is that of a volatile frame.
    pub(super) fn publish(
        self: &Rc<Self>,
        to: (&UserId, Device),
        channel: String,
        envelope: Bytes,
        stream: Option<StreamId>,
        since: Instant,
    ) -> Published {
        if !self.in_flight_bytes.has_room(envelope.len()) {
            return Published::Full;
        }
        let mut waiting = self.waiting.borrow_mut();
        if waiting.order.is_empty() && self.may_send(Instant::now()) {
            drop(waiting);
            let (user, device) = to;
            let since = stream.map(|_| since);
            self.send(Departed { user: user.clone(), device, channel: channel.into(), envelope, since });
            return Published::Queued;
        }
        // Behind what waits already: the order of a channel is kept.
        let channel: Str = channel.into();
        if !waiting.channels.contains_key(&channel) {
            waiting.order.push_back(channel.clone());
        }
        let (user, device) = to;
        let queue = waiting
            .channels
            .entry(channel.clone())
            .or_insert_with(|| Queue::new(user.clone(), device, channel));
        let before = queue.bytes();
        let published = queue.push(envelope, stream, since, self.queue_bytes, &self.metrics);
        let after = queue.bytes();
        waiting.bytes.set(waiting.bytes.get() + after - before);
        published
    }

    /// A barrier behind what was published on this channel. The publisher counts what has left for the whole
    /// worker. Its answers come in order, so to wait for other channels' as well costs at most one round
    /// trip.
    pub(super) fn barrier(&self, channel: &str) -> Option<Barrier> {
        let mut waiting = self.waiting.borrow_mut();
        if let Some((channel, _)) = waiting.channels.get_key_value(channel) {
            let channel = channel.clone();
            let (done, barrier) = oneshot::channel();
            let behind = waiting.barriers.entry(channel).or_default();
            // A channel may wait for as long as Redis is away; who asks does not.
            behind.retain(|done| !done.is_closed());
            behind.push(done);
            Some(barrier)
        } else {
            drop(waiting);
            self.answered()
        }
    }

    /// Resolves when all that has left is answered for; `None` when it is.
    pub(super) fn answered(&self) -> Option<Barrier> {
        if self.in_flight.borrow().is_empty() {
            return None;
        }
        let (done, barrier) = oneshot::channel();
        self.barriers.borrow_mut().push_back((self.next.get(), done));
        Some(barrier)
    }

    /// True when something waits for this channel.
    pub(super) fn waits_for(&self, channel: &str) -> bool {
        self.waiting.borrow().channels.contains_key(channel)
    }

    /// Hands out what waits for these channels: another node serves them now.
    pub(super) fn take(&self, is_elsewhere: impl Fn(&str) -> bool) -> Vec<Waiter> {
        let waiting = &mut *self.waiting.borrow_mut();
        if waiting.order.is_empty() {
            return Vec::new();
        }
        let (gone, kept): (VecDeque<Str>, _) =
            waiting.order.drain(..).partition(|channel| is_elsewhere(channel));
        waiting.order = kept;
        let mut taken = Vec::with_capacity(gone.len());
        for channel in gone {
            let behind = waiting.barriers.remove(&channel).unwrap_or_default();
            if let Some(queue) = waiting.channels.remove(&channel) {
                waiting.bytes.set(waiting.bytes.get() - queue.bytes());
                taken.push((queue, behind));
            }
        }
        taken
    }

    /// Takes over what has waited elsewhere for a channel for which nothing waits here.
    pub(super) fn adopt(self: &Rc<Self>, (queue, behind): Waiter) {
        {
            let waiting = &mut *self.waiting.borrow_mut();
            let channel = queue.channel().clone();
            waiting.bytes.set(waiting.bytes.get() + queue.bytes());
            waiting.order.push_back(channel.clone());
            waiting.barriers.entry(channel.clone()).or_default().extend(behind);
            waiting.channels.insert(channel, queue);
        }
        self.drain();
    }

    /// Waits until publishes may leave, for a limited time.
    pub(super) async fn until_open(&self, limit: Duration) {
        let opened = self.opened.notified();
        if !self.may_send(Instant::now()) {
            // A limit is enough: what waits looks again.
            let _ = timeout(limit, opened).await;
        }
    }

    /// True while publishes may leave.
    pub(super) fn may_send(&self, now: Instant) -> bool {
        let in_flight = self.in_flight.borrow();
        let is_stalled = in_flight.front().is_some_and(|(_, left)| now.duration_since(*left) > STALLED);
        self.client.borrow().is_some()
            && self.is_up.get()
            && !self.is_stuck.get()
            && !is_stalled
            && in_flight.len() < IN_FLIGHT
            && self.in_flight_bytes.get() < IN_FLIGHT_BYTES
    }

    /// Lets what waits leave, as far as it may.
    pub(super) fn drain(self: &Rc<Self>) {
        loop {
            let now = Instant::now();
            if !self.may_send(now) {
                return;
            }
            let mut waiting = self.waiting.borrow_mut();
            let Some(channel) = waiting.order.front().cloned() else {
                return;
            };
            let due = waiting.channels.get_mut(&channel).and_then(|queue| {
                let before = queue.bytes();
                let due = queue.pop()?;
                Some((due, before - queue.bytes()))
            });
            match due {
                None => {
                    waiting.order.pop_front();
                    waiting.channels.remove(&channel);
                    let behind = waiting.barriers.remove(&channel).unwrap_or_default();
                    drop(waiting);
                    let next = self.next.get();
                    self.barriers.borrow_mut().extend(behind.into_iter().map(|done| (next, done)));
                    self.release_barriers();
                }
                Some((due, gone)) => {
                    // In turns: a channel with much to send holds up nobody else's.
                    waiting.order.rotate_left(1);
                    waiting.bytes.set(waiting.bytes.get() - gone);
                    drop(waiting);
                    if due.is_stale(now) {
                        self.metrics.dropped(Dropped::Backplane, 1);
                        continue;
                    }
                    self.send(due);
                }
            }
        }
    }

    fn send(self: &Rc<Self>, departed: Departed) {
        let number = self.left(&departed);
        let publisher = Rc::clone(self);
        // Tasks of this thread begin in the order in which they were spawned. A command takes its place in
        // fred's queue when it is first polled. So the order of a channel is kept.
        tokio::task::spawn_local(async move {
            let (bytes, answer) = (departed.envelope.len(), publisher.ask(&departed).await);
            (publisher.on_answer)(&publisher, departed, answer);
            publisher.arrived(number, bytes);
        });
    }

    /// Publishes at once, before all that waits: what calls this keeps the order of the channel. How many have heard it.
    ///
    /// # Errors
    /// What Redis or fred says.
    pub(super) async fn carry(self: &Rc<Self>, departed: &Departed) -> Result<u64, Error> {
        let number = self.left(departed);
        let answer = self.ask(departed).await;
        self.arrived(number, departed.envelope.len());
        answer
    }

    fn left(&self, departed: &Departed) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        self.in_flight.borrow_mut().push_back((number, Instant::now()));
        self.in_flight_bytes.set(self.in_flight_bytes.get() + departed.envelope.len());
        number
    }

    async fn ask(&self, departed: &Departed) -> Result<u64, Error> {
        let client = self.client.borrow().clone();
        let (channel, envelope) = (departed.channel.clone(), departed.envelope.clone());
        let answer = match client {
            Some(client) if self.sharded => client.spublish::<u64, _, _>(channel, envelope).await,
            Some(client) => client.publish::<u64, _, _>(channel, envelope).await,
            None => Err(unconnected()),
        };
        self.metrics.published(match &answer {
            Ok(0) => PublishResult::Unheard,
            Ok(_) => PublishResult::Heard,
            Err(error) => {
                debug!(error = words(error), "a publish failed");
                if matches!(error.kind(), ErrorKind::Timeout) {
                    self.is_stuck.set(true);
                }
                PublishResult::Failed
            }
        });
        answer
    }

    fn arrived(self: &Rc<Self>, number: u64, bytes: usize) {
        self.in_flight_bytes.set(self.in_flight_bytes.get() - bytes);
        {
            // Answers come in order, except where a cluster's nodes answer on their own.
            let mut in_flight = self.in_flight.borrow_mut();
            if let Ok(at) = in_flight.binary_search_by_key(&number, |(number, _)| *number) {
                in_flight.remove(at);
            }
        }
        self.release_barriers();
        if !self.waiting.borrow().order.is_empty() {
            self.drain();
        }
    }

    fn release_barriers(&self) {
        let oldest = self.in_flight.borrow().front().map_or(u64::MAX, |(number, _)| *number);
        loop {
            let reached = self.barriers.borrow_mut().pop_front_if(|(number, _)| *number <= oldest);
            let Some((_, done)) = reached else { return };
            // The receiver may be gone; ignore the error.
            let _ = done.send(());
        }
    }

    /// Bytes that wait or are under way.
    pub(super) fn queued_bytes(&self) -> usize {
        self.waiting.borrow().bytes.get() + self.in_flight_bytes.get()
    }

    /// True when nothing waits and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.borrow().order.is_empty() && self.in_flight.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::budget::Budget;

    const KIB: usize = 1024;

    fn publish(publisher: &Rc<Publisher>, uid: &str, stream: Option<StreamId>, bytes: usize) -> Published {
        let user = UserId::new(uid).unwrap();
        // What waits counts with 64 bytes on top of each message.
        let envelope = Bytes::from(vec![0; bytes - 64]);
        publisher.publish((&user, Device::Mobile), uid.to_owned(), envelope, stream, Instant::now())
    }

    #[test]
    fn what_waits_for_all_nodes_of_a_worker_is_bounded_and_counts_into_the_budget() {
        let budget = Budget::new(280 * KIB);
        let share = budget.share();
        let allowance = Rc::new(Allowance::new(Rc::clone(&share), 256 * KIB));
        let node = || {
            let metrics = Arc::new(Metrics::default());
            Publisher::new(true, 128 * KIB, &allowance, metrics, Box::new(|_, _, _| ()))
        };
        let (one, other) = (node(), node());
        assert_eq!(publish(&one, "ann", None, 128 * KIB), Published::Queued);
        assert_eq!(publish(&one, "ann", None, KIB), Published::Full, "of one channel");
        assert_eq!(publish(&other, "bob", None, 100 * KIB), Published::Queued);
        // A frame that is replaced makes room for the next one.
        for _ in 0..3 {
            assert_eq!(publish(&other, "eve", Some(StreamId(1)), 14 * KIB), Published::Queued);
        }
        assert_eq!(share.held(), 242 * KIB);
        assert_eq!(publish(&other, "carl", None, 15 * KIB), Published::Full, "of the worker");
        // The connections of the process have what is left of the budget.
        let connections = budget.share();
        connections.changed(0, 64 * KIB);
        assert!(connections.excess() > 0);
        drop(one);
        assert_eq!(share.held(), 114 * KIB);
        assert_eq!(connections.excess(), 0);
        assert_eq!(publish(&other, "carl", None, 15 * KIB), Published::Queued);
    }
}
