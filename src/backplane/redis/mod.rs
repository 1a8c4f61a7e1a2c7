//! The backplane of many instances: one Redis (alone, with Sentinel, or a cluster) that they all share.
//!
//! Each worker has one connection for everything, so that what it publishes, claims and subscribes has one order; to a
//! cluster's nodes it has two. How a room lives in Redis is told in `src/README.md`.

mod client;
#[cfg(fuzzing)]
pub mod fuzzing;
mod lanes;
mod names;
mod presence;
mod publisher;
mod scripts;
#[cfg(test)]
mod wire_tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike as _, ClusterInterface as _, EventInterface as _, PubsubInterface as _};
use fred::types::config::Server;
use fred::types::{ClusterStateChange, Message, Value};
use futures_util::future::{FutureExt as _, LocalBoxFuture, join_all, try_join};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, oneshot};
use tokio::time::{MissedTickBehavior, timeout, timeout_at};
use tracing::{Instrument as _, debug, info, info_span, warn};

pub use self::client::{RedisError, Template, agree, check, config, template};
use self::lanes::Subscriptions;
use self::names::Names;
use self::presence::{Presence, announce};
use self::publisher::Publisher;
use self::scripts::Scripts;
use super::readiness::Readiness;
use super::{
    Backplane, Barrier, CALL_LIMIT, Event, InstanceInfo, OWN_CLAIM_LIMIT, Published, Renewal, RoomSnapshot,
    Sink, Unavailable, Users,
};
use crate::metrics::{Metrics, WorkerGauge};
use crate::relay::envelope::Envelope;
use crate::relay::ids::{ConnectionId, Device, InstanceId, StreamId, UserId};
use crate::relay::parcel::Parcel;
use crate::relay::record::{Claim, ClaimOutcome, Renewed};
use crate::telemetry::STEPS;

/// How often a worker probes: publishes to itself, to know that pub/sub really works.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Without a probe for this long, the backplane is down.
const DOWN_AFTER: Duration = Duration::from_millis(2300);
/// Without a probe for this long, the subscriber's connection is made anew, once in this time: TCP alone may
/// take minutes to notice that nobody is there.
const RECONNECT_AFTER: Duration = Duration::from_secs(3);
/// How often a worker looks at all this.
const TICK: Duration = Duration::from_millis(100);
/// How often an instance announces itself, and unused channels are given back.
const SECOND: Duration = Duration::from_secs(1);
/// Renewals that are under way at the same time.
const RENEWALS: usize = 256;

/// Tells what an instance announces of itself.
pub type Announce = Arc<dyn Fn() -> InstanceInfo + Send + Sync>;

/// What a worker's share of the backplane is made from.
#[derive(Clone)]
pub struct RedisSettings {
    /// Clients that are set up and not connected: each worker makes its own after them.
    pub template: Template,
    /// The first part of every key and channel.
    pub prefix: String,
    /// How long a slot is held without renewal.
    pub lease: Duration,
    /// What may wait for one channel.
    pub queue_bytes: usize,
    /// This process.
    pub instance: InstanceId,
    /// What it says of itself.
    pub announce: Announce,
    /// Told of each probe that comes back.
    pub readiness: Readiness,
    /// What this process counts.
    pub metrics: Arc<Metrics>,
}

/// One worker's share of the backplane.
pub struct Redis {
    settings: RedisSettings,
    worker: usize,
    names: Names,
    scripts: Scripts,
    commands: Client,
    subscriber: Client,
    subscriptions: Subscriptions,
    publisher: Rc<Publisher>,
    queued_bytes: WorkerGauge,
    presence: Presence,
    sink: Sink,
    /// Claims that wait for their own message on the channel.
    own_claims: RefCell<HashMap<ConnectionId, oneshot::Sender<()>>>,
    is_up: Cell<bool>,
    last_probe: Cell<Option<Instant>>,
    last_reconnect: Cell<Instant>,
    tasks: RefCell<Vec<tokio::task::JoinHandle<()>>>,
}

impl Redis {
    /// Connects in the background, for ever; until then every claim is refused.
    #[must_use]
    pub fn start(settings: RedisSettings, worker: usize, sink: Sink) -> Rc<Self> {
        let (commands, subscriber) = settings.template.clients();
        let sharded = commands.is_clustered();
        let names = Names::new(&settings.prefix);
        let lease_ms = u64::try_from(settings.lease.as_millis()).unwrap_or(u64::MAX);
        let metrics = Arc::clone(&settings.metrics);
        let fixed = vec![names.instances(), names.unheard(), names.probe(settings.instance, worker)];
        let redis = Rc::new(Self {
            worker,
            scripts: Scripts::new(names.clone(), lease_ms, sharded),
            subscriptions: Subscriptions::new(subscriber.clone(), sharded, fixed),
            publisher: Publisher::new(commands.clone(), sharded, settings.queue_bytes, metrics),
            queued_bytes: WorkerGauge::of(&settings.metrics.backplane_queue_bytes),
            presence: Presence::default(),
            names,
            commands,
            subscriber,
            sink,
            own_claims: RefCell::default(),
            is_up: Cell::new(false),
            last_probe: Cell::new(None),
            last_reconnect: Cell::new(Instant::now()),
            tasks: RefCell::default(),
            settings,
        });
        redis.spawn();
        redis
    }

    fn spawn(self: &Rc<Self>) {
        // Before connecting: no message and no reconnect is missed.
        let messages = self.subscriber.message_rx();
        let reconnects = self.subscriber.reconnect_rx();
        let changes = self.commands.cluster_change_rx();
        let me = Rc::downgrade(self);
        let mut tasks = vec![
            tokio::task::spawn_local(receive(me.clone(), messages)),
            tokio::task::spawn_local(note_reconnects(me.clone(), reconnects)),
            tokio::task::spawn_local(restore(me.clone())),
            tokio::task::spawn_local(tick(me.clone())),
            tokio::task::spawn_local(stay_connected(self.subscriber.clone())),
        ];
        if self.subscriptions.is_sharded() {
            tasks.push(tokio::task::spawn_local(stay_connected(self.commands.clone())));
            tasks.push(tokio::task::spawn_local(follow_cluster(me, changes)));
        }
        self.tasks.borrow_mut().extend(tasks);
    }

    /// A message on one of our channels.
    fn on_message(&self, message: &Message) {
        let bytes = match &message.value {
            // fred hands out what happens to be UTF-8 as a string.
            Value::String(text) => text.clone().into_inner(),
            Value::Bytes(bytes) => bytes.clone(),
            _ => return (self.sink)(Event::Unreadable),
        };
        let channel: &str = &message.channel;
        if let Some((user, device)) = self.subscriptions.user_of(channel) {
            return self.dispatch(&user, device, &bytes);
        }
        let now = Instant::now();
        if channel == self.names.instances() {
            if let Some(heard) = self.presence.on_announcement(&bytes, now) {
                (self.sink)(Event::Heard(heard));
            }
        } else if channel == self.names.unheard() {
            match rmp_serde::from_slice::<Vec<String>>(&bytes) {
                Ok(channels) => self.subscriptions.on_unheard(&channels),
                Err(_) => (self.sink)(Event::Unreadable),
            }
        } else if channel == self.names.probe(self.settings.instance, self.worker) {
            self.on_probe(&bytes, now);
        }
    }

    fn dispatch(&self, user: &UserId, channel: Device, bytes: &Bytes) {
        self.settings.metrics.backplane_deliveries.inc();
        let Ok(envelope) = Envelope::decode(bytes) else {
            return (self.sink)(Event::Unreadable);
        };
        let mut own = None;
        if let Envelope::Claimed { device, holder } = &envelope {
            self.presence.note(holder.instance, Instant::now());
            if *device == channel {
                own = Some(holder.member.connection);
            }
        }
        (self.sink)(Event::Envelope { user, channel, envelope });
        // After the hub knows: the claim may be answered now.
        if let Some(waits) = own.and_then(|connection| self.own_claims.borrow_mut().remove(&connection)) {
            let _ = waits.send(());
        }
    }

    fn set_up(&self, is_up: bool) {
        self.is_up.set(is_up);
        let all_up = self.settings.readiness.set_up(self.worker, is_up);
        self.settings.metrics.backplane_up.set(all_up.into());
    }

    /// Our own probe came back: commands are carried out, and pub/sub delivers.
    fn on_probe(&self, bytes: &Bytes, now: Instant) {
        self.last_probe.set(Some(now));
        let sent = <[u8; 8]>::try_from(&bytes[..]).map(u64::from_be_bytes).unwrap_or_default();
        let round_trip = self.settings.readiness.elapsed_ns().saturating_sub(sent);
        self.settings.metrics.backplane_probe_seconds.set(Duration::from_nanos(round_trip).as_secs_f64());
        self.publisher.on_probe();
        if !self.is_up.get() && self.subscriptions.is_whole() {
            self.set_up(true);
            info!(worker = self.worker, "the backplane is up");
            self.presence.start_over(now);
            self.publisher.set_up(true);
            (self.sink)(Event::Up(Users::All));
        }
        // Not before: a balancer would send clients whose claims are still refused.
        if self.is_up.get() {
            self.settings.readiness.on_probe(self.worker);
        }
    }

    /// Publishes to itself. In a cluster a probe leaves when every node has answered, so that its coming back tells
    /// that all of them are there; and asking is what makes fred notice a node that is not.
    fn probe(self: &Rc<Self>) {
        let me = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if me.subscriptions.is_sharded() && timeout(SECOND, me.ping_nodes()).await != Ok(true) {
                return;
            }
            let readiness = &me.settings.readiness;
            let sent = Bytes::copy_from_slice(&readiness.elapsed_ns().to_be_bytes());
            let channel = me.names.probe(me.settings.instance, me.worker);
            me.publish_best_effort(channel, sent).await;
        });
    }

    /// True when all masters of the cluster have answered, on both connections.
    async fn ping_nodes(&self) -> bool {
        let routing = self.commands.cached_cluster_state();
        let nodes = routing.map_or_else(Vec::new, |routing| routing.unique_primary_nodes());
        let clients = [&self.commands, &self.subscriber];
        let pings = clients.into_iter().flat_map(|client| {
            nodes.iter().map(async move |node| {
                let client = client.with_cluster_node(node);
                client.ping::<Value>(None).await.is_ok()
            })
        });
        !nodes.is_empty() && join_all(pings).await.into_iter().all(|answered| answered)
    }

    /// Tells the channels that nobody has heard to those who should have.
    fn report_unheard(self: &Rc<Self>) {
        let unheard = self.publisher.take_unheard();
        if unheard.is_empty() {
            return;
        }
        let unheard: Vec<&str> = unheard.iter().map(|channel| &**channel).collect();
        let bytes = rmp_serde::to_vec(&unheard).unwrap_or_default();
        let me = Rc::clone(self);
        let channel = self.names.unheard();
        tokio::task::spawn_local(async move { me.publish_best_effort(channel, bytes.into()).await });
    }

    /// Publishes beside the channels; what is lost is sent again soon.
    async fn publish_best_effort(&self, channel: String, bytes: Bytes) {
        let published = if self.subscriptions.is_sharded() {
            timeout(SECOND, self.commands.spublish::<Value, _, _>(channel, bytes)).await
        } else {
            timeout(SECOND, self.commands.publish::<Value, _, _>(channel, bytes)).await
        };
        if let Ok(Err(error)) = published {
            debug!(%error, "a probe or an announcement could not be published");
        }
    }

    fn on_tick(self: &Rc<Self>, now: Instant) {
        let silent_for = self.last_probe.get().map(|probe| now.duration_since(probe));
        if self.is_up.get() && silent_for.is_none_or(|silent| silent >= DOWN_AFTER) {
            self.set_up(false);
            warn!(worker = self.worker, "the backplane is down: Redis does not answer");
            self.publisher.set_up(false);
            (self.sink)(Event::Down(Users::All));
        }
        let is_stuck = silent_for.is_some_and(|silent| silent >= RECONNECT_AFTER);
        if is_stuck && now.duration_since(self.last_reconnect.get()) >= RECONNECT_AFTER {
            self.last_reconnect.set(now);
            let subscriber = self.subscriber.clone();
            tokio::task::spawn_local(async move {
                // It may be dead without knowing it.
                let _ = timeout(CALL_LIMIT, subscriber.force_reconnection()).await;
            });
        }
        if self.is_up.get() {
            for instance in self.presence.sweep(now) {
                info!(instance.id = %instance, "an instance is silent: its connections count as gone");
                (self.sink)(Event::Silent(instance));
            }
        }
    }

    /// Messages may have been lost, but the backplane was not down long enough to tell anybody.
    fn on_gap(&self) {
        self.settings.metrics.backplane_gaps.inc();
        if self.is_up.get() {
            (self.sink)(Event::Gap(Users::All));
        }
    }

    async fn claim_slot(&self, user: &UserId, claim: Claim) -> Result<ClaimOutcome, Unavailable> {
        if !self.is_up.get() {
            return Err(Unavailable);
        }
        let failed = |error: fred::error::Error| {
            warn!(%error, "a claim failed");
            Unavailable
        };
        let channel = self.names.channel(user, claim.device);
        let subscribing = self.subscriptions.subscribe(user, claim.device, channel);
        let subscribing = subscribing.instrument(info_span!(target: STEPS, "subscribe"));
        let (told, own_claim) = oneshot::channel();
        self.own_claims.borrow_mut().insert(claim.connection, told);
        // The entry goes with this future, however it ends.
        let _forget = OnDrop(|| drop(self.own_claims.borrow_mut().remove(&claim.connection)));
        let claiming = self.scripts.claim(&self.commands, user, &claim);
        let outcome = if self.subscriptions.is_sharded() {
            subscribing.await.map_err(failed)?;
            claiming.await.map_err(failed)?
        } else {
            // One write: they take their places on the one connection in this order, when they are first polled.
            let epoch = self.subscriptions.epoch();
            let ((), outcome) = try_join(subscribing, claiming).await.map_err(failed)?;
            if self.subscriptions.epoch() != epoch {
                // The connection was made anew in between: the claim may have come before the subscription.
                return Err(Unavailable);
            }
            outcome
        };
        if let ClaimOutcome::Claimed(claimed) = &outcome {
            for holder in claimed.replaced.iter().chain(&claimed.other) {
                self.presence.note(holder.instance, Instant::now());
            }
            if timeout(OWN_CLAIM_LIMIT, own_claim).await.is_err() {
                debug!("a claim's own message was lost; its answer stands in for it");
            }
        }
        Ok(outcome)
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Takes messages as they come; nothing here waits, so that fred's queue stays empty.
async fn receive(me: Weak<Redis>, mut messages: broadcast::Receiver<Message>) {
    loop {
        let received = messages.recv().await;
        let Some(redis) = me.upgrade() else { return };
        match received {
            Ok(message) => redis.on_message(&message),
            Err(RecvError::Lagged(lost)) => {
                warn!(lost, "the subscriber lagged: messages were lost");
                redis.settings.metrics.backplane_lagged.inc_by(lost);
                redis.on_gap();
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// fred restores no subscription by itself: each reconnect loses all of them.
async fn note_reconnects(me: Weak<Redis>, mut reconnects: broadcast::Receiver<Server>) {
    loop {
        // Having missed some reconnects is one more reason.
        if let Err(RecvError::Closed) = reconnects.recv().await {
            return;
        }
        let Some(redis) = me.upgrade() else { return };
        redis.settings.metrics.backplane_connects.inc();
        redis.subscriptions.on_reconnect();
    }
}

/// Makes lost subscriptions again.
async fn restore(me: Weak<Redis>) {
    loop {
        let Some(redis) = me.upgrade() else { return };
        if redis.subscriptions.restore().await {
            redis.on_gap();
        }
        // What comes back tells that all is well again: not a tick later than it has to.
        redis.probe();
    }
}

/// fred's own task of a client, which reconnects by itself, but ends for good at some errors.
async fn stay_connected(client: Client) {
    loop {
        match client.connect().await {
            // By `quit`.
            Ok(Ok(())) => return,
            Ok(Err(error)) => warn!(%error, "a connection to Redis has ended; it is made anew"),
            Err(error) => warn!(%error, "a connection to Redis has failed; it is made anew"),
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Slots of a cluster move, and replicas take over. The publisher's connection learns of it by its redirections;
/// who only hears has to ask: each change raises the cluster's epoch. What one node knows already is news to another
/// for a while, so that it is looked at several times.
async fn follow_cluster(me: Weak<Redis>, mut changes: broadcast::Receiver<Vec<ClusterStateChange>>) {
    const LOOKS: u32 = 5;
    let mut ticks = tokio::time::interval(SECOND / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut known, mut looks) = (None, 0);
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                Err(RecvError::Closed) => return,
                Ok(_) | Err(RecvError::Lagged(_)) => looks = LOOKS,
            },
            _ = ticks.tick() => {}
        }
        let Some(redis) = me.upgrade() else { return };
        if let Ok(info) = redis.commands.cluster_info::<String>().await {
            let epoch =
                info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:")).map(str::to_owned);
            if epoch != known {
                (known, looks) = (epoch, LOOKS);
            }
        }
        if looks > 0 {
            looks -= 1;
            if let Err(error) = redis.commands.sync_cluster().await {
                debug!(%error, "the cluster's state could not be read");
            }
            // Reading it is told as a change, too.
            changes = changes.resubscribe();
            redis.subscriptions.follow_cluster().await;
        }
    }
}

async fn tick(me: Weak<Redis>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut probed, mut announced) = (None, None);
    let is_due = |last: Option<Instant>, pause| last.is_none_or(|last: Instant| last.elapsed() >= pause);
    loop {
        ticks.tick().await;
        let Some(redis) = me.upgrade() else { return };
        if is_due(probed, PROBE_EVERY) {
            probed = Some(Instant::now());
            redis.probe();
        }
        redis.on_tick(Instant::now());
        redis.publisher.drain();
        redis.queued_bytes.set(redis.publisher.queued_bytes());
        redis.report_unheard();
        if is_due(announced, SECOND) {
            announced = Some(Instant::now());
            redis.publisher.forget_unheard();
            if redis.worker == 0 {
                let announcement = announce(&(redis.settings.announce)());
                let redis = Rc::clone(&redis);
                tokio::task::spawn_local(async move {
                    let channel = redis.names.instances();
                    redis.publish_best_effort(channel, announcement).await;
                });
            }
            redis.subscriptions.unsubscribe_idle().await;
        }
    }
}

impl Backplane for Redis {
    fn claim<'a>(
        &'a self,
        user: &'a UserId,
        claim: Claim,
    ) -> LocalBoxFuture<'a, Result<ClaimOutcome, Unavailable>> {
        // Its parts have limits, too, but one after the other.
        let claiming = timeout(CALL_LIMIT, self.claim_slot(user, claim));
        claiming.map(|claimed| claimed.unwrap_or(Err(Unavailable))).boxed_local()
    }

    fn renew<'a>(&'a self, renewals: &'a [Renewal]) -> LocalBoxFuture<'a, Vec<Result<Renewed, Unavailable>>> {
        let renew = async |renewal: &Renewal| {
            let Renewal { user, device, holder, attempt } = renewal;
            let renewed = self.scripts.renew(&self.commands, user, *device, holder, *attempt).await;
            if let Ok(Renewed::Kept { other: Some(other) }) = &renewed {
                self.presence.note(other.instance, Instant::now());
            }
            renewed.map_err(|error| {
                debug!(%error, "a renewal failed");
                Unavailable
            })
        };
        async move {
            let deadline = tokio::time::Instant::now() + CALL_LIMIT;
            let mut answers = Vec::with_capacity(renewals.len());
            for batch in renewals.chunks(RENEWALS) {
                let asked = async {
                    if self.is_up.get() {
                        join_all(batch.iter().map(renew)).await
                    } else {
                        vec![Err(Unavailable); batch.len()]
                    }
                };
                let answered = timeout_at(deadline, asked).await;
                answers.extend(answered.unwrap_or_else(|_| vec![Err(Unavailable); batch.len()]));
            }
            answers
        }
        .boxed_local()
    }

    fn release<'a>(
        &'a self,
        user: &'a UserId,
        device: Device,
        connection: ConnectionId,
    ) -> LocalBoxFuture<'a, ()> {
        async move {
            if let Err(error) = self.scripts.release(&self.commands, user, device, connection).await {
                debug!(%error, "a release failed; the lease will end");
            }
        }
        .boxed_local()
    }

    fn unsubscribe(&self, user: &UserId, channel: Device) {
        self.subscriptions.unsubscribe(self.names.channel(user, channel));
    }

    fn publish(&self, user: &UserId, channel: Device, envelope: Envelope, since: Instant) -> Published {
        let stream = match &envelope {
            Envelope::Parcel { parcel: Parcel::Frame(bytes), .. } => {
                bytes.first().copied().map(StreamId).filter(|stream| !stream.is_reliable())
            }
            Envelope::Parcel { .. }
            | Envelope::Claimed { .. }
            | Envelope::Released { .. }
            | Envelope::Marker { .. }
            | Envelope::ServerMessage { .. }
            | Envelope::Disconnect { .. }
            | Envelope::Undelivered { .. } => None,
        };
        self.publisher.publish(self.names.channel(user, channel), envelope.encode(), stream, since)
    }

    fn barrier(&self, user: &UserId, channel: Device) -> Option<Barrier> {
        self.publisher.barrier(&self.names.channel(user, channel))
    }

    fn is_up(&self, _user: &UserId) -> bool {
        self.is_up.get()
    }

    fn room<'a>(&'a self, user: &'a UserId) -> LocalBoxFuture<'a, Result<RoomSnapshot, Unavailable>> {
        async move {
            if !self.is_up.get() {
                return Err(Unavailable);
            }
            self.scripts.room(&self.commands, user).await.map_err(|error| {
                debug!(%error, "a room could not be read");
                Unavailable
            })
        }
        .boxed_local()
    }

    fn instances(&self) -> Vec<InstanceInfo> {
        self.presence.list()
    }

    fn is_silent(&self, instance: InstanceId) -> bool {
        self.presence.is_silent(instance)
    }

    fn close(&self) -> LocalBoxFuture<'_, ()> {
        async move {
            // What is queued leaves first: releases, and the last frames.
            let deadline = Instant::now() + SECOND;
            while !self.publisher.is_idle() && Instant::now() < deadline {
                tokio::time::sleep(TICK / 10).await;
            }
            for task in self.tasks.borrow_mut().drain(..) {
                task.abort();
            }
            let _ = timeout(SECOND, async {
                let _ = self.commands.quit().await;
                self.subscriber.quit().await
            })
            .await;
        }
        .boxed_local()
    }
}
