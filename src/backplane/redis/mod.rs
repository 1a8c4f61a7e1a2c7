//! The backplane of many instances: one Redis (alone, with Sentinel, or a cluster) that they all share.
//!
//! Each worker has one connection for everything, so that what it publishes, claims and subscribes has one
//! order. To a cluster it has two for each node, and the nodes fail one by one. `src/README.md` says how a
//! room lives in Redis.

mod access;
mod carrier;
mod check;
mod client;
mod detours;
#[cfg(fuzzing)]
pub mod fuzzing;
mod link;
mod names;
mod nodes;
mod presence;
mod promises;
mod publisher;
mod queue;
mod redirection;
mod scripts;
mod settings;
mod shared;
mod subscriptions;
mod tasks;
mod topology;
mod unheard;
#[cfg(test)]
mod wire_tests;
mod words;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::error::Error;
use fred::interfaces::PubsubInterface as _;
use fred::types::config::Server;
use fred::types::{Message, Value};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::debug;

pub use self::access::{Access, RedisError, config};
pub use self::check::{Checked, check};
pub use self::client::{Template, agree};
use self::names::{Names, Ways};
use self::nodes::{AbortOnDrop, Node, Nodes};
use self::publisher::Publisher;
use self::queue::{Allowance, Departed};
use self::redirection::Redirection;
use self::scripts::Scripts;
pub(crate) use self::settings::check_prefix;
pub use self::settings::{RedisSource, RedisTls, check_redis_url};
pub use self::shared::Shared;
pub use self::subscriptions::SHARDED_AT_ONCE;
use self::subscriptions::Subscriptions;
use self::unheard::Unheard;
use self::words::{cause_of, words};
use super::connectivity::{Action, Cause};
use super::readiness::Readiness;
use super::{CALL_LIMIT, Event, InstanceInfo, LossCause, Lost, LostMessage, Sink, Users};
use crate::metrics::{Dropped, Metrics, WorkerGauge};
use crate::relay::budget::Budget;
use crate::relay::envelope::Envelope;
use crate::relay::ids::{ConnectionId, Device, InstanceId, StreamId, UserId};
use crate::relay::parcel::Parcel;

/// How often an instance announces itself, and how long what need not arrive may take.
const SECOND: Duration = Duration::from_secs(1);
/// Renewals that are under way to one node at the same time.
pub const RENEWALS: usize = 64;
/// Claims of a worker that are under way to one node at the same time.
pub const CLAIMS: usize = 16;
/// How long a claim waits for its turn. Half of a call's limit is then left for Redis.
pub const TURN_LIMIT: Duration = Duration::from_secs(1);

/// Makes what an instance announces of itself.
pub type Announce = Arc<dyn Fn() -> InstanceInfo + Send + Sync>;

/// What a worker's share of the backplane is made from.
#[derive(Clone)]
pub struct RedisSettings {
    /// Clients that are set up and not connected: each worker makes its own after them.
    pub template: Template,
    /// The first part of every key and channel.
    pub prefix: String,
    /// A hash of the issuer and the audience: fleets with different ones never share a prefix.
    pub owner: String,
    /// How long a slot is held without renewal.
    pub lease: Duration,
    /// What may wait for one channel.
    pub queue_bytes: usize,
    /// What may wait for all channels of a worker together, or be under way.
    pub waiting_bytes: usize,
    /// It counts into this.
    pub budget: Budget,
    /// The UUID of this process.
    pub instance: InstanceId,
    /// What it says of itself.
    pub announce: Announce,
    /// Gets each worker's report.
    pub readiness: Readiness,
    /// What this process counts.
    pub metrics: Arc<Metrics>,
    /// What its workers share.
    pub shared: Shared,
}

/// One worker's share of the backplane.
pub struct Redis {
    me: Weak<Self>,
    settings: RedisSettings,
    worker: usize,
    names: Names,
    scripts: Scripts,
    nodes: Rc<Nodes>,
    subscriptions: Rc<Subscriptions>,
    /// Where this process hears what instances say.
    ways: Ways,
    queued_bytes: WorkerGauge,
    /// What may wait on this worker, whichever nodes it is for.
    allowance: Rc<Allowance>,
    sink: Sink,
    /// Claims that wait for their own message on the channel.
    own_claims: RefCell<HashMap<ConnectionId, oneshot::Sender<()>>>,
    /// The slots whose node is up; a server alone has one.
    served: RefCell<Vec<bool>>,
    /// Instances that were reported as silent.
    silent: RefCell<HashSet<InstanceId>>,
    unheard: RefCell<Unheard>,
    is_closing: Cell<bool>,
    tasks: RefCell<Vec<AbortOnDrop>>,
}

impl Redis {
    /// Connects in the background, for ever; until then every claim is refused.
    #[must_use]
    pub fn start(settings: RedisSettings, worker: usize, sink: Sink) -> Rc<Self> {
        let names = Names::new(&settings.prefix, settings.template.database());
        let lease_ms = u64::try_from(settings.lease.as_millis()).unwrap_or(u64::MAX);
        let topology = settings.shared.topology();
        let allowance = Rc::new(Allowance::new(settings.budget.share(), settings.waiting_bytes));
        let redis = Rc::new_cyclic(|me: &Weak<Self>| {
            let nodes = match topology.clone() {
                Some(topology) => Nodes::cluster(topology, &allowance),
                None => Nodes::one(make_node(me, &settings, &allowance, worker, &names, 0, None)),
            };
            let nodes = Rc::new(nodes);
            Self {
                me: me.clone(),
                worker,
                scripts: Scripts::new(names.clone(), lease_ms, nodes.is_cluster()),
                subscriptions: Rc::new(Subscriptions::new(Rc::clone(&nodes))),
                queued_bytes: WorkerGauge::of(&settings.metrics.backplane_queue_bytes),
                served: RefCell::new(vec![false; nodes.slots()]),
                ways: Ways::new(&names, settings.instance, nodes.is_cluster()),
                nodes,
                names,
                allowance,
                sink,
                own_claims: RefCell::default(),
                silent: RefCell::default(),
                unheard: RefCell::default(),
                is_closing: Cell::new(false),
                tasks: RefCell::default(),
                settings,
            }
        });
        redis.spawn();
        redis
    }

    /// A message on one of our channels.
    fn dispatch(&self, node: &Rc<Node>, message: &Message) {
        let bytes = match &message.value {
            // fred hands out what happens to be UTF-8 as a string.
            Value::String(text) => text.clone().into_inner(),
            Value::Bytes(bytes) => bytes.clone(),
            _ => return (self.sink)(Event::Unreadable),
        };
        let channel: &str = &message.channel;
        if let Some((user, device)) = self.subscriptions.user_of(channel) {
            return self.on_envelope(&user, device, &bytes);
        }
        let now = Instant::now();
        if channel == node.probe.borrow().channel {
            self.on_probe(node, &bytes, now);
        } else if self.ways.announcements.iter().any(|way| way == channel) {
            self.settings.shared.presence().on_announcement(&bytes, now);
        } else if self.ways.unheard.iter().any(|way| way == channel) {
            match rmp_serde::from_slice::<Vec<String>>(&bytes) {
                Ok(channels) => self.settings.shared.on_unheard(&channels),
                Err(_) => (self.sink)(Event::Unreadable),
            }
        }
    }

    fn on_envelope(&self, user: &UserId, channel: Device, bytes: &Bytes) {
        self.settings.metrics.backplane_deliveries.inc();
        let Ok(envelope) = Envelope::decode(bytes) else {
            return (self.sink)(Event::Unreadable);
        };
        let mut own = None;
        if let Envelope::Claimed { device, holder } = &envelope {
            self.settings.shared.presence().note(holder.instance, Instant::now());
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

    /// A probe came back: commands are carried out, and pub/sub delivers. Its first byte says whether Redis has written.
    fn on_probe(&self, node: &Rc<Node>, bytes: &Bytes, now: Instant) {
        let Some((written, sent)) = bytes.split_first() else { return };
        let sent = <[u8; 8]>::try_from(sent).map(u64::from_be_bytes).unwrap_or_default();
        let round_trip = self.settings.readiness.elapsed_ns().saturating_sub(sent);
        self.settings.metrics.backplane_probe_seconds.set(Duration::from_nanos(round_trip).as_secs_f64());
        node.publisher.on_probe();
        node.health.borrow_mut().on_delivered(now, *written == b'1');
        self.act(node, now);
    }

    /// Does what is due for a node.
    fn act(&self, node: &Rc<Node>, now: Instant) {
        let journal = self.settings.shared.journal();
        loop {
            let due = node.health.borrow_mut().poll(now);
            let Some(action) = due else { break };
            match action {
                Action::Probe => self.probe(node),
                Action::Reconnect => {
                    node.commands.renew();
                    node.subscriber.renew();
                }
                Action::Down => {
                    node.publisher.set_up(false);
                    self.update_served();
                }
                Action::Up => {
                    journal.up(node.number, node.place().as_deref());
                    node.publisher.set_up(true);
                    self.update_served();
                }
                Action::Gap => {
                    let number = node.number;
                    self.on_gap(&|slot| self.nodes.number_of(slot) == Some(number));
                }
                Action::Begin(cause, words) => {
                    journal.begin(node.number, node.place().as_deref(), cause, &words);
                }
                Action::End(cause) => journal.end(node.number, node.place().as_deref(), cause),
            }
        }
        let may_publish = node.health.borrow().may_publish();
        node.publisher.set_up(may_publish);
    }

    /// Notifies the hub of the users whose node has gone down, or has come up, since the last call.
    fn update_served(&self) {
        let up: HashSet<u16> = self
            .nodes
            .all()
            .iter()
            .filter(|node| node.health.borrow().is_up())
            .map(|node| node.number)
            .collect();
        let is_up = |slot: usize| {
            let number = u16::try_from(slot).ok().and_then(|slot| self.nodes.number_of(slot));
            number.is_some_and(|number| up.contains(&number))
        };
        let now: Vec<bool> = (0..self.nodes.slots()).map(is_up).collect();
        let before = self.served.replace(now.clone());
        let changed = |to: bool| -> Vec<bool> {
            now.iter().zip(&before).map(|(now, before)| *now == to && *before != to).collect()
        };
        for (is_up, changed) in [(false, changed(false)), (true, changed(true))] {
            if !changed.contains(&true) {
                continue;
            }
            let contains = |user: &UserId| changed.get(self.slot_of(user)).copied().unwrap_or(false);
            let users = if self.nodes.is_cluster() { Users::Some(&contains) } else { Users::All };
            (self.sink)(if is_up { Event::Up(users) } else { Event::Down(users) });
        }
    }

    /// Messages may have been lost, but the way was not down long enough to notify anybody.
    fn on_gap(&self, is_concerned: &dyn Fn(u16) -> bool) {
        self.settings.metrics.backplane_gaps.inc();
        if !self.nodes.is_cluster() {
            return (self.sink)(Event::Gap(Users::All));
        }
        let contains = |user: &UserId| u16::try_from(self.slot_of(user)).is_ok_and(is_concerned);
        (self.sink)(Event::Gap(Users::Some(&contains)));
    }

    fn slot_of(&self, user: &UserId) -> usize {
        if self.nodes.is_cluster() { self.nodes.slot(&self.names.room(user)).into() } else { 0 }
    }

    fn node_of(&self, user: &UserId) -> Option<Rc<Node>> {
        self.nodes.of_slot(u16::try_from(self.slot_of(user)).ok()?)
    }

    /// Proves the way to a node. The answer says whether Redis writes, the message that comes back that it delivers.
    fn probe(&self, node: &Rc<Node>) {
        let (Some(me), Some(client)) = (self.me.upgrade(), node.commands.client()) else { return };
        if node.is_probing.replace(true) {
            return;
        }
        let node = Rc::clone(node);
        tokio::task::spawn_local(async move {
            let sent = Bytes::copy_from_slice(&me.settings.readiness.elapsed_ns().to_be_bytes());
            let names = node.probe.borrow().clone();
            let answer = timeout(CALL_LIMIT, me.scripts.probe(&client, &names, sent)).await;
            node.is_probing.set(false);
            let now = Instant::now();
            match answer {
                Ok(Ok(Ok(()))) => node.health.borrow_mut().on_written(now),
                Ok(Ok(Err(words))) => node.health.borrow_mut().on_refused(now, Cause::of(&words), &words),
                Ok(Err(error)) if Redirection::of(&error).is_some() => me.settings.shared.refresh(),
                Ok(Err(error)) => match cause_of(&error) {
                    (Cause::Silent | Cause::Unreachable, _) => {}
                    (cause, words) => node.health.borrow_mut().on_refused(now, cause, &words),
                },
                Err(_) => {}
            }
            me.act(&node, now);
        });
    }

    /// Publishes beside the channels of devices; what is lost is sent again soon. How many have heard it.
    async fn publish_best_effort(&self, channel: String, bytes: Bytes) -> Option<u64> {
        let node = self.nodes.of_slot(self.nodes.slot(&channel))?;
        let client = node.commands.client()?;
        let published = async {
            if self.nodes.is_cluster() {
                client.spublish::<u64, _, _>(channel, bytes).await
            } else {
                client.publish::<u64, _, _>(channel, bytes).await
            }
        };
        match timeout(SECOND, published).await.ok()? {
            Ok(heard) => Some(heard),
            Err(error) => {
                self.note("an announcement could not be published", &error);
                None
            }
        }
    }

    /// A publish has not arrived, or may not have: its sender learns of it where it is reliable.
    fn on_lost(&self, departed: &Departed, cause: LossCause) {
        if cause == LossCause::Unanswered {
            self.settings.metrics.dropped(Dropped::Backplane, 1);
        }
        let Ok(Envelope::Parcel { from, parcel }) = Envelope::decode(&departed.envelope) else { return };
        let message = match parcel {
            Parcel::Frame(bytes) => match bytes.first().copied().map(StreamId) {
                Some(stream) if stream.is_reliable() => LostMessage::Frame(stream),
                _ => return,
            },
            Parcel::Send { id, .. } | Parcel::Signal { id, .. } => LostMessage::Send(id),
            Parcel::Text { .. } => LostMessage::Text,
            Parcel::Ack { .. } | Parcel::Pressure(_) => return,
        };
        let lost = Lost { connection: from.connection, message, cause };
        (self.sink)(Event::Lost { user: &departed.user, device: departed.device.other(), lost });
    }

    /// A line in the log about something that failed, unless the log knows the cause.
    fn note(&self, what: &str, error: &Error) {
        debug!(error = words(error), "{what}");
        match cause_of(error) {
            // The probe reports that Redis is away.
            (Cause::Silent | Cause::Unreachable, _) => {}
            // Nor does it leave a server that is the wrong one unnamed: a line here would take the place of its line.
            (cause, _) if cause.is_wrong_server() => {}
            (cause, words) => self.settings.shared.journal().note(what, cause, &words),
        }
    }
}

/// A node, and where what it loses goes.
fn make_node(
    me: &Weak<Redis>,
    settings: &RedisSettings,
    allowance: &Rc<Allowance>,
    worker: usize,
    names: &Names,
    number: u16,
    server: Option<Server>,
) -> Rc<Node> {
    let worker_of = me.clone();
    let on_answer = Box::new(move |by: &Rc<Publisher>, departed: Departed, answer: Result<u64, Error>| {
        if let Some(redis) = worker_of.upgrade() {
            redis.on_answer(by, departed, answer);
        }
    });
    let metrics = Arc::clone(&settings.metrics);
    let publisher = Publisher::new(server.is_some(), settings.queue_bytes, allowance, metrics, on_answer);
    let probe = names.probe(&prober(settings.instance, worker, number), 0);
    Node::new(number, server, &settings.template, publisher, probe)
}

/// The worker's proof of the way to a node.
fn prober(instance: InstanceId, worker: usize, node: u16) -> String {
    format!("{instance}:{worker}:{node}")
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Their tasks hold the nodes.
        for node in self.nodes.all() {
            node.tasks.borrow_mut().clear();
        }
    }
}
