//! The backplanes under test, and workers that are attached to them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use duorelay::backplane::memory::Memory;
use duorelay::backplane::readiness::Readiness;
use duorelay::backplane::redis::{Access, Redis, RedisSettings, Shared, Template};
use duorelay::backplane::{Backplane, Event, InstanceInfo, Lost, Published, Renewal, Sink};
use duorelay::config::{RedisSource, RedisTls};
use duorelay::metrics::Metrics;
use duorelay::relay::budget::Budget;
use duorelay::relay::envelope::Envelope;
use duorelay::relay::ids::{Attempt, ClientId, ConnectionId, Device, Generation, InstanceId, Member, UserId};
use duorelay::relay::parcel::Parcel;
use duorelay::relay::record::{Claim, ClaimOutcome, Claimed, Holder, Renewed};
use tokio::sync::{Notify, OnceCell};
use uuid::Uuid;

use crate::support::{Cluster, LIMIT, RedisServer, Sentinel, ask, within};

/// A lease that does not end during a test.
pub const LEASE: Duration = Duration::from_secs(45);
/// What may wait for one channel.
pub const QUEUE_BYTES: usize = 1 << 20;

/// Runs a test on one thread, as a worker does.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// A backplane to which workers are attached.
pub enum World {
    Memory(Rc<Memory>),
    Redis { url: String, prefix: String, nodes: Vec<SocketAddr>, servers: Servers },
}

/// What lives as long as the world.
pub enum Servers {
    One(RedisServer),
    #[expect(dead_code, reason = "kept alive")]
    Sentinel(Box<Sentinel>),
    Shared,
}

impl World {
    pub fn memory() -> Self {
        Self::Memory(Rc::default())
    }

    pub async fn standalone() -> Self {
        let server = RedisServer::start().await;
        Self::redis(server.url(), vec![server.address()], Servers::One(server))
    }

    pub async fn sentinel() -> Self {
        let sentinel = Box::new(Sentinel::start().await);
        Self::redis(sentinel.url(), vec![sentinel.master.address()], Servers::Sentinel(sentinel))
    }

    /// All tests share one: a cluster takes seconds to form.
    pub async fn cluster() -> Self {
        static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
        let cluster = CLUSTER.get_or_init(Cluster::start_shared).await;
        let nodes = cluster.nodes.iter().map(RedisServer::address).collect();
        Self::redis(cluster.url(), nodes, Servers::Shared)
    }

    fn redis(url: String, nodes: Vec<SocketAddr>, servers: Servers) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("test{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self::Redis { url, prefix, nodes, servers }
    }

    /// The server of [`Self::standalone`].
    pub fn server(&self) -> &RedisServer {
        match self {
            Self::Redis { servers: Servers::One(server), .. } => server,
            Self::Redis { .. } | Self::Memory(_) => panic!("not a server of its own"),
        }
    }

    /// A Redis that may come later.
    pub fn at(address: SocketAddr) -> Self {
        Self::redis(format!("redis://{address}"), vec![address], Servers::Shared)
    }

    /// Restarts the server of [`Self::standalone`]; it comes back empty.
    pub async fn restart(&mut self) {
        if let Self::Redis { servers, .. } = self
            && let Servers::One(server) = std::mem::replace(servers, Servers::Shared)
        {
            *servers = Servers::One(server.restart().await);
        }
    }

    /// Attaches a worker of an instance of its own, and waits until it is up.
    pub async fn attach(&self) -> Worker {
        self.attach_with_lease(LEASE).await
    }

    pub async fn attach_with_lease(&self, lease: Duration) -> Worker {
        let worker = self.attach_at_once(lease);
        if !matches!(self, Self::Memory(_)) {
            // A cluster's nodes come up one by one; so many users have slots on all of them.
            let all: Vec<_> = (0..64).map(|number| user(&format!("user-{number}"))).collect();
            while !all.iter().all(|user| worker.backplane.is_up(user)) {
                worker.until(|heard| matches!(heard, Heard::Up)).await;
            }
        }
        worker
    }

    /// Attaches a worker and waits for nothing.
    pub fn attach_at_once(&self, lease: Duration) -> Worker {
        let log = Rc::new(Log::default());
        let sink: Sink = {
            let log = Rc::clone(&log);
            Rc::new(move |event| log.push(Heard::from(event)))
        };
        let instance = InstanceId(Uuid::new_v4());
        let metrics = Arc::new(Metrics::default());
        let backplane: Rc<dyn Backplane> = match self {
            Self::Memory(memory) => memory.attach(sink, u64::try_from(lease.as_millis()).unwrap()),
            Self::Redis { url, prefix, .. } => {
                let me = InstanceInfo {
                    instance,
                    connections: 3,
                    version: "test".into(),
                    started_at: 1,
                    draining: false,
                };
                let source = RedisSource::Url(url.clone().into());
                let template = Template::new(Access::open(source, &RedisTls::default()).unwrap());
                let settings = RedisSettings {
                    shared: Shared::new(&template, 1, Arc::clone(&metrics)),
                    template,
                    prefix: prefix.clone(),
                    owner: "test".into(),
                    lease,
                    queue_bytes: QUEUE_BYTES,
                    waiting_bytes: 64 << 20,
                    budget: Budget::new(1 << 30),
                    instance,
                    announce: Arc::new(move || me.clone()),
                    readiness: Readiness::new(1),
                    metrics: Arc::clone(&metrics),
                };
                Redis::start(settings, 0, sink)
            }
        };
        Worker { backplane, instance, metrics, log }
    }

    /// Loses a room, as a Redis does that is restarted or flushed.
    pub async fn lose(&self, user: &UserId) {
        let Self::Redis { nodes, .. } = self else { panic!("memory loses nothing while its process lives") };
        let key = self.key(user);
        for node in nodes {
            // Only one node of a cluster has it.
            let _ = ask(*node, &["DEL", &key]).await;
        }
    }

    /// Ends all leases of a room and forgets its evictions, as time does.
    pub async fn end_leases(&self, user: &UserId) {
        let key = self.key(user);
        for device in Device::ALL {
            let lease = self.server().ask(&["HGET", &key, device.as_str()]).await;
            if let Some((holder, _)) = lease.as_str().and_then(|lease| lease.rsplit_once(' ')) {
                self.server().ask(&["HSET", &key, device.as_str(), &format!("{holder} 1")]).await;
            }
            self.server().ask(&["HDEL", &key, &format!("{device}:evictions")]).await;
        }
    }

    /// The key of a room. Only for plain uids.
    pub fn key(&self, user: &UserId) -> String {
        match self {
            Self::Redis { prefix, .. } => format!("{prefix}:{{{user}}}"),
            Self::Memory(_) => String::new(),
        }
    }
}

/// An [`Event`] that can be kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    Envelope(UserId, Device, Envelope),
    Unreadable,
    Down,
    Up,
    Gap,
    Lost(UserId, Lost),
    Silent(InstanceId),
    Back(InstanceId),
}

impl From<Event<'_>> for Heard {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::Envelope { user, channel, envelope } => Self::Envelope(user.clone(), channel, envelope),
            Event::Unreadable => Self::Unreadable,
            Event::Down(_) => Self::Down,
            Event::Up(_) => Self::Up,
            Event::Gap(_) => Self::Gap,
            Event::Lost { user, lost, .. } => Self::Lost(user.clone(), lost),
            Event::Silent(instance) => Self::Silent(instance),
            Event::Heard(instance) => Self::Back(instance),
        }
    }
}

#[derive(Default)]
struct Log {
    heard: RefCell<VecDeque<Heard>>,
    changed: Notify,
}

impl Log {
    fn push(&self, heard: Heard) {
        self.heard.borrow_mut().push_back(heard);
        self.changed.notify_one();
    }
}

/// An attached worker and what it has heard.
pub struct Worker {
    pub backplane: Rc<dyn Backplane>,
    pub instance: InstanceId,
    pub metrics: Arc<Metrics>,
    log: Rc<Log>,
}

impl Worker {
    /// What was heard and not taken yet.
    pub fn take(&self) -> Vec<Heard> {
        self.log.heard.borrow_mut().drain(..).collect()
    }

    /// True when this was heard and not taken yet.
    pub fn has_heard(&self, this: &Heard) -> bool {
        self.log.heard.borrow().contains(this)
    }

    /// The next event.
    pub async fn next(&self) -> Heard {
        within(LIMIT, "an event", async {
            loop {
                if let Some(heard) = self.log.heard.borrow_mut().pop_front() {
                    return heard;
                }
                self.log.changed.notified().await;
            }
        })
        .await
    }

    /// Waits for an event; what came before it is dropped.
    pub async fn until(&self, is_it: impl Fn(&Heard) -> bool) -> Heard {
        loop {
            let heard = self.next().await;
            if is_it(&heard) {
                return heard;
            }
        }
    }

    /// The next message on a channel.
    pub async fn next_on_channel(&self) -> (UserId, Device, Envelope) {
        loop {
            if let Heard::Envelope(user, channel, envelope) = self.next().await {
                return (user, channel, envelope);
            }
        }
    }

    /// Waits until a marker comes on a channel; returns what came on channels before.
    pub async fn until_marker(&self, nonce: u64) -> Vec<(UserId, Device, Envelope)> {
        let mut before = Vec::new();
        loop {
            let heard = self.next_on_channel().await;
            if matches!(heard.2, Envelope::Marker { nonce: this, .. } if this == nonce) {
                return before;
            }
            before.push(heard);
        }
    }

    /// A claim that is let in.
    pub async fn claim(&self, user: &UserId, device: Device, client: Option<&str>) -> (Holder, Claimed) {
        let claim = self.claim_of(device, client);
        let connection = claim.connection;
        let outcome = within(LIMIT, "a claim", self.backplane.claim(user, claim.clone())).await.unwrap();
        let ClaimOutcome::Claimed(claimed) = outcome else { panic!("refused: {outcome:?}") };
        let member = Member { connection, generation: claimed.generation };
        (Holder { member, instance: claim.instance, client: claim.client }, claimed)
    }

    /// A claim of a new connection here.
    pub fn claim_of(&self, device: Device, client: Option<&str>) -> Claim {
        Claim {
            device,
            connection: ConnectionId(Uuid::now_v7()),
            instance: self.instance,
            client: client.map(|name| ClientId::new(name).unwrap()),
            attempt: None,
            known: Generation::NONE,
        }
    }

    pub async fn renew(&self, user: &UserId, device: Device, holder: &Holder) -> Renewed {
        self.renew_attempt(user, device, holder, None).await
    }

    pub async fn renew_attempt(
        &self,
        user: &UserId,
        device: Device,
        holder: &Holder,
        attempt: Option<Attempt>,
    ) -> Renewed {
        let renewal = Renewal { user: user.clone(), device, holder: holder.clone(), attempt };
        let mut answers =
            within(LIMIT, "a renewal", self.backplane.renew(std::slice::from_ref(&renewal))).await;
        assert_eq!(answers.len(), 1);
        answers.remove(0).unwrap()
    }

    pub async fn release(&self, user: &UserId, device: Device, holder: &Holder) {
        within(LIMIT, "a release", self.backplane.release(user, device, holder.member.connection)).await;
    }

    /// Who holds the slots.
    pub async fn holders(&self, user: &UserId) -> [Option<Holder>; 2] {
        let room = within(LIMIT, "a look", self.backplane.room(user)).await.unwrap();
        room.map(|lease| lease.map(|lease| lease.holder))
    }

    /// Publishes, and there must be room for it.
    pub fn publish(&self, user: &UserId, channel: Device, envelope: Envelope) {
        let published = self.backplane.publish(user, channel, envelope, std::time::Instant::now());
        assert_eq!(published, Published::Queued);
    }

    /// Publishes a marker with a number that no other has.
    pub fn mark(&self, user: &UserId, channel: Device) -> u64 {
        thread_local!(static NEXT: Cell<u64> = const { Cell::new(1) });
        let nonce = NEXT.replace(NEXT.get() + 1);
        self.publish(user, channel, Envelope::Marker { instance: self.instance, nonce });
        nonce
    }
}

pub fn user(uid: &str) -> UserId {
    UserId::new(uid).unwrap()
}

/// A frame on the reliable stream.
pub fn frame(from: &Holder, payload: &[u8]) -> Envelope {
    let parcel = Parcel::Frame([&[0x80], payload].concat().into());
    Envelope::Parcel { from: from.member, parcel }
}

pub fn claimed(device: Device, holder: &Holder) -> Envelope {
    Envelope::Claimed { device, holder: holder.clone() }
}

pub fn released(device: Device, holder: &Holder) -> Envelope {
    Envelope::Released { device, member: holder.member }
}
