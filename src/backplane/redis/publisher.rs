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
use tokio::sync::oneshot;
use tracing::debug;

use super::client::unconnected;
use crate::backplane::{Barrier, Published, STALE};
use crate::metrics::{Dropped, Metrics, PublishResult};
use crate::relay::ids::{Device, StreamId, UserId};
use crate::relay::outbox::{Outbox, Outgoing, Pushed};

/// Publishes that are under way at the same time.
const IN_FLIGHT: usize = 2048;
/// Bytes that are under way at the same time.
const IN_FLIGHT_BYTES: usize = 8 * 1024 * 1024;
/// A publish without an answer for this long: Redis stands still, and what follows waits here, where newer
/// frames replace older ones, and not in the kernel.
const STALLED: Duration = Duration::from_millis(200);

/// Bytes that may wait for all channels of a worker together.
const WAITING_BYTES: usize = 64 * 1024 * 1024;

/// Channels that wait for Redis, each with what waits.
#[derive(Default)]
struct Waiting {
    channels: HashMap<Str, Queue>,
    order: VecDeque<Str>,
    bytes: usize,
    /// Behind what waits for a channel.
    barriers: HashMap<Str, Vec<oneshot::Sender<()>>>,
}

/// A publish that has left.
pub(super) struct Departed {
    /// The receiver.
    pub(super) user: UserId,
    /// The receiver's device.
    pub(super) device: Device,
    /// Its channel.
    pub(super) channel: Str,
    /// What was published.
    pub(super) envelope: Bytes,
}

/// What waits for one channel.
struct Queue {
    user: UserId,
    device: Device,
    outbox: Outbox,
}

/// Takes each publish that nobody has heard, or that has failed.
pub(super) type OnLost = Box<dyn Fn(&Departed, Option<&Error>)>;

/// What one worker publishes through one node.
pub(super) struct Publisher {
    /// The present connection.
    client: RefCell<Option<Rc<WithOptions<Client>>>>,
    sharded: bool,
    /// What may wait for one channel.
    queue_bytes: usize,
    metrics: Arc<Metrics>,
    /// When those that are under way left, oldest first.
    in_flight: RefCell<VecDeque<(u64, Instant)>>,
    next: Cell<u64>,
    in_flight_bytes: Cell<usize>,
    /// Each told when all numbers below its own have arrived.
    barriers: RefCell<VecDeque<(u64, oneshot::Sender<()>)>>,
    waiting: RefCell<Waiting>,
    on_lost: OnLost,
    is_up: Cell<bool>,
    /// A publish got no answer at all. Nothing leaves until a probe is back: what is written to a Redis that
    /// stands still is lost or arrives stale.
    is_stuck: Cell<bool>,
}

impl Publisher {
    /// A publisher that waits until there is a connection and Redis serves.
    pub(super) fn new(sharded: bool, queue_bytes: usize, metrics: Arc<Metrics>, on_lost: OnLost) -> Rc<Self> {
        Rc::new(Self {
            client: RefCell::default(),
            sharded,
            queue_bytes,
            metrics,
            in_flight: RefCell::default(),
            next: Cell::default(),
            in_flight_bytes: Cell::default(),
            barriers: RefCell::default(),
            waiting: RefCell::default(),
            on_lost,
            is_up: Cell::new(false),
            is_stuck: Cell::new(false),
        })
    }

    /// There is a connection, or none.
    pub(super) fn set_client(&self, client: Option<Client>) {
        // Never a second try: it could arrive twice, or late.
        let options = Options { timeout: Some(STALE), max_attempts: Some(1), ..Options::default() };
        *self.client.borrow_mut() = client.map(|client| Rc::new(client.with_options(&options)));
    }

    /// What is published reaches other instances, or does not.
    pub(super) fn set_up(self: &Rc<Self>, is_up: bool) {
        if self.is_up.replace(is_up) != is_up {
            self.drain();
        }
    }

    /// A probe is back: Redis answers.
    pub(super) fn on_probe(self: &Rc<Self>) {
        if self.is_stuck.replace(false) {
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
        let mut waiting = self.waiting.borrow_mut();
        if waiting.order.is_empty() && self.may_send(Instant::now()) {
            drop(waiting);
            let (user, device) = to;
            self.send(Departed { user: user.clone(), device, channel: channel.into(), envelope });
            return Published::Queued;
        }
        if waiting.bytes + envelope.len() > WAITING_BYTES {
            return Published::Full;
        }
        // Behind what waits already: the order of a channel is kept.
        let channel: Str = channel.into();
        if !waiting.channels.contains_key(&channel) {
            waiting.order.push_back(channel.clone());
        }
        let (user, device) = to;
        let queue = waiting.channels.entry(channel).or_insert_with(|| Queue {
            user: user.clone(),
            device,
            outbox: Outbox::default(),
        });
        let outbox = &mut queue.outbox;
        let before = outbox.waiting_bytes();
        let published = match stream {
            Some(stream) => {
                match outbox.push_volatile(stream, envelope, since, self.queue_bytes) {
                    Pushed::Waits => {}
                    Pushed::Replaced => self.metrics.dropped(Dropped::Superseded, 1),
                    Pushed::Dropped(count) => self.metrics.dropped(Dropped::QueueFull, count),
                }
                Published::Queued
            }
            None => match outbox.push_reliable(Outgoing::binary(envelope, None), self.queue_bytes) {
                Ok(()) => Published::Queued,
                Err(_) => Published::Full,
            },
        };
        let after = outbox.waiting_bytes();
        waiting.bytes = waiting.bytes + after - before;
        published
    }

    /// A barrier behind what was published on this channel. What has left is counted for the whole worker: its answers
    /// come in order, so that waiting for other channels' as well costs at most one round trip.
    pub(super) fn barrier(&self, channel: &str) -> Option<Barrier> {
        let (done, barrier) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        if let Some((channel, _)) = waiting.channels.get_key_value(channel) {
            let channel = channel.clone();
            let behind = waiting.barriers.entry(channel).or_default();
            // A channel may wait for as long as Redis is away; who asks does not.
            behind.retain(|done| !done.is_closed());
            behind.push(done);
        } else if self.in_flight.borrow().is_empty() {
            return None;
        } else {
            self.barriers.borrow_mut().push_back((self.next.get(), done));
        }
        Some(barrier)
    }

    fn may_send(&self, now: Instant) -> bool {
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
                let before = queue.outbox.waiting_bytes();
                let due = queue.outbox.pop()?;
                let gone = before - queue.outbox.waiting_bytes();
                Some((due, gone, queue.user.clone(), queue.device))
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
                Some((due, gone, user, device)) => {
                    waiting.bytes -= gone;
                    drop(waiting);
                    if due.since.is_some_and(|since| now.duration_since(since) > STALE) {
                        self.metrics.dropped(Dropped::Backplane, 1);
                        continue;
                    }
                    self.send(Departed { user, device, channel, envelope: due.bytes });
                }
            }
        }
    }

    fn send(self: &Rc<Self>, departed: Departed) {
        let Some(client) = self.client.borrow().clone() else {
            return self.on_failed(&departed, None);
        };
        let number = self.next.get();
        self.next.set(number + 1);
        let bytes = departed.envelope.len();
        self.in_flight.borrow_mut().push_back((number, Instant::now()));
        self.in_flight_bytes.set(self.in_flight_bytes.get() + bytes);
        let publisher = Rc::clone(self);
        // Tasks of this thread begin in the order in which they were spawned, and a command takes its place in
        // fred's queue when it is first polled: the order of a channel is kept.
        tokio::task::spawn_local(async move {
            let (channel, envelope) = (departed.channel.clone(), departed.envelope.clone());
            let heard = if publisher.sharded {
                client.spublish::<u64, _, _>(channel, envelope).await
            } else {
                client.publish::<u64, _, _>(channel, envelope).await
            };
            let result = match heard {
                Ok(0) => {
                    (publisher.on_lost)(&departed, None);
                    PublishResult::Unheard
                }
                Ok(_) => PublishResult::Heard,
                Err(error) => {
                    publisher.on_failed(&departed, Some(error));
                    PublishResult::Failed
                }
            };
            publisher.metrics.published(result);
            publisher.arrived(number, bytes);
        });
    }

    fn on_failed(&self, departed: &Departed, error: Option<Error>) {
        self.metrics.dropped(Dropped::Backplane, 1);
        let error = error.unwrap_or_else(unconnected);
        if matches!(error.kind(), ErrorKind::Timeout) {
            self.is_stuck.set(true);
        }
        debug!(%error, "a publish failed");
        (self.on_lost)(departed, Some(&error));
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
        self.waiting.borrow().bytes + self.in_flight_bytes.get()
    }

    /// True when nothing waits and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.borrow().order.is_empty() && self.in_flight.borrow().is_empty()
    }
}
