//! Redis and the network as the simulation has them. Calls, answers and channel messages take their time, one
//! after the other on each connection. An outage, a pause or a crash catches them on the way.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;
use std::time::Instant;

use duorelay::backplane::{
    Backplane, CALL_LIMIT, Event, InstanceInfo, OWN_CLAIM_LIMIT, Published, Renewal, RoomSnapshot, Sink,
    Unavailable,
};
use duorelay::hub::Hub;
use duorelay::relay::envelope::Envelope;
use duorelay::relay::ids::{ConnectionId, Device, InstanceId, Member, UserId};
use duorelay::relay::record::{Claim, ClaimOutcome, Claimed, Holder, Record, Renewed};
use futures_util::future::{FutureExt as _, LocalBoxFuture, join_all, ready};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A lease, in milliseconds.
pub(crate) const LEASE_MS: u64 = 15_000;
const MS: u64 = 1000;

/// Something that happens at an instance (or at none in particular).
pub(crate) type Happening = Box<dyn FnOnce()>;

struct Scheduled {
    at: u64,
    number: u64,
    node: Option<usize>,
    happening: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// One instance: its hub, and what is wrong with it.
pub(crate) struct Node {
    pub(crate) id: InstanceId,
    pub(crate) hub: Option<Rc<Hub>>,
    pub(crate) sink: Option<Sink>,
    /// It has stopped until then, and goes on as if nothing had been.
    pub(crate) paused_until: u64,
    /// It is cut off from Redis.
    pub(crate) is_cut_off: bool,
    /// Grows with every outage: what was on its way then is lost.
    pub(crate) epoch: u64,
    /// It will not come back.
    pub(crate) is_dead: bool,
    /// When others began to hear nothing of it.
    pub(crate) unheard_since: Option<u64>,
    pub(crate) silent: BTreeSet<InstanceId>,
    /// The channels that its hub wants.
    wanted: BTreeSet<(String, Device)>,
    sending: u64,
    hearing: u64,
}

/// Everything between the hubs.
pub(crate) struct Network {
    pub(crate) random: RefCell<fastrand::Rng>,
    pub(crate) now: Cell<u64>,
    pub(crate) nodes: RefCell<Vec<Node>>,
    /// One channel message in this many is lost; 0: none.
    pub(crate) losses: Cell<u32>,
    /// Nothing takes longer than this, in microseconds, but for the odd spike.
    pub(crate) delay: Cell<u64>,
    /// Each claim that Redis has carried out.
    pub(crate) claims: RefCell<Vec<(UserId, Device, Member)>>,
    pub(crate) records: RefCell<BTreeMap<String, Record>>,
    pub(crate) subscribed: RefCell<BTreeSet<(usize, String, Device)>>,
    heap: RefCell<BinaryHeap<Reverse<Scheduled>>>,
    number: Cell<u64>,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            random: RefCell::new(fastrand::Rng::with_seed(seed)),
            // The clock of Redis does not begin at zero.
            now: Cell::new(1_000_000_000),
            nodes: RefCell::default(),
            losses: Cell::new(0),
            delay: Cell::new(5 * MS),
            claims: RefCell::default(),
            records: RefCell::default(),
            subscribed: RefCell::default(),
            heap: RefCell::default(),
            number: Cell::new(0),
        })
    }

    pub(crate) fn chance(&self, one_in: u32) -> bool {
        one_in > 0 && self.random.borrow_mut().u32(0..one_in) == 0
    }

    pub(crate) fn below(&self, limit: u64) -> u64 {
        self.random.borrow_mut().u64(0..limit.max(1))
    }

    pub(crate) fn at(&self, at: u64, node: Option<usize>, happening: Happening) {
        let number = self.number.get() + 1;
        self.number.set(number);
        self.heap.borrow_mut().push(Reverse(Scheduled {
            at: at.max(self.now.get()),
            number,
            node,
            happening,
        }));
    }

    pub(crate) fn after(&self, delay: u64, node: Option<usize>, happening: Happening) {
        self.at(self.now.get() + delay, node, happening);
    }

    /// The time of the next happening.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.heap.borrow().peek().map(|Reverse(next)| next.at)
    }

    /// Lets the next thing happen, unless its instance has crashed or has stopped for now.
    pub(crate) fn step(&self) {
        let Some(Reverse(next)) = self.heap.borrow_mut().pop() else {
            return;
        };
        self.now.set(next.at);
        if let Some(node) = next.node {
            let (is_dead, paused_until) = {
                let node = &self.nodes.borrow()[node];
                (node.is_dead, node.paused_until)
            };
            if is_dead {
                return;
            }
            if paused_until > next.at {
                return self.at(paused_until, next.node, next.happening);
            }
        }
        (next.happening)();
    }

    fn travel(&self) -> u64 {
        let spike = if self.chance(200) { 700 * MS } else { 0 };
        1 + self.below(self.delay.get()) + spike
    }

    pub(crate) fn is_cut_off(&self, node: usize) -> bool {
        self.nodes.borrow()[node].is_cut_off
    }

    fn epoch(&self, node: usize) -> u64 {
        self.nodes.borrow()[node].epoch
    }

    /// Something leaves an instance for Redis, behind what left before.
    fn to_redis(self: &Rc<Self>, node: usize, arrived: impl FnOnce(&Rc<Self>) + 'static) {
        if self.is_cut_off(node) {
            return;
        }
        let epoch = self.epoch(node);
        let at = {
            let travel = self.travel();
            let node = &mut self.nodes.borrow_mut()[node];
            let leaves = self.now.get().max(node.paused_until);
            node.sending = node.sending.max(leaves + travel);
            node.sending
        };
        let network = Rc::clone(self);
        let arrive = move || {
            if network.epoch(node) == epoch {
                arrived(&network);
            }
        };
        self.at(at, None, Box::new(arrive));
    }

    /// Redis publishes on channels. Returns when the message of `own` arrives, if it does.
    fn hand_out(
        self: &Rc<Self>,
        user: &UserId,
        channels: &[Device],
        envelope: &Envelope,
        own: Option<(usize, Device)>,
    ) -> Option<u64> {
        let mut own_arrives = None;
        let nodes = self.nodes.borrow().len();
        for node in 0..nodes {
            for channel in channels {
                let key = (node, user.to_string(), *channel);
                let is_lost = self.is_cut_off(node) || self.chance(self.losses.get());
                if !self.subscribed.borrow().contains(&key) || is_lost {
                    continue;
                }
                let at = {
                    let travel = self.travel();
                    let node = &mut self.nodes.borrow_mut()[node];
                    node.hearing = node.hearing.max(self.now.get() + travel);
                    node.hearing
                };
                if own == Some((node, *channel)) {
                    own_arrives = Some(at);
                }
                let epoch = self.epoch(node);
                let (network, user, channel, envelope) =
                    (Rc::clone(self), user.clone(), *channel, envelope.clone());
                let arrive = move || {
                    if network.epoch(node) != epoch {
                        return;
                    }
                    network.notify(node, Event::Envelope { user: &user, channel, envelope });
                };
                self.at(at, Some(node), Box::new(arrive));
            }
        }
        own_arrives
    }

    /// An instance that starts; returns its number.
    pub(crate) fn start(
        self: &Rc<Self>,
        id: InstanceId,
        make: impl FnOnce(Rc<Simulated>, usize) -> Rc<Hub>,
    ) -> usize {
        let node = self.nodes.borrow().len();
        self.nodes.borrow_mut().push(Node {
            id,
            hub: None,
            sink: None,
            paused_until: 0,
            is_cut_off: false,
            epoch: 0,
            is_dead: false,
            unheard_since: None,
            silent: BTreeSet::new(),
            wanted: BTreeSet::new(),
            sending: 0,
            hearing: 0,
        });
        let simulated = Rc::new(Simulated { network: Rc::clone(self), node });
        let hub = make(simulated, node);
        self.nodes.borrow_mut()[node].hub = Some(hub);
        node
    }

    /// An instance reaches Redis again, and subscribes all its channels anew.
    pub(crate) fn reconnect(&self, node: usize) {
        let mut subscribed = self.subscribed.borrow_mut();
        subscribed.retain(|(of, ..)| *of != node);
        let it = &mut self.nodes.borrow_mut()[node];
        let channels = it.wanted.iter().cloned();
        subscribed.extend(channels.map(|(user, channel)| (node, user, channel)));
        it.is_cut_off = false;
        it.unheard_since = None;
    }

    /// An event for a hub.
    pub(crate) fn notify(&self, node: usize, event: Event<'_>) {
        let sink = self.nodes.borrow()[node].sink.clone();
        if let Some(sink) = sink {
            sink(event);
        }
    }

    fn answer<T: 'static>(self: &Rc<Self>, node: usize, not_before: u64, to: oneshot::Sender<T>, answer: T) {
        let at = (self.now.get() + self.travel()).max(not_before);
        let epoch = self.epoch(node);
        let network = Rc::clone(self);
        let arrive = move || {
            if network.epoch(node) == epoch {
                let _ = to.send(answer);
            }
        };
        self.at(at, Some(node), Box::new(arrive));
    }

    fn record<T>(&self, user: &UserId, act: impl FnOnce(&mut Record) -> T) -> T {
        act(self.records.borrow_mut().entry(user.to_string()).or_default())
    }

    fn claim(self: &Rc<Self>, node: usize, user: &UserId, claim: Claim, to: oneshot::Sender<ClaimOutcome>) {
        let (device, connection, instance) = (claim.device, claim.connection, claim.instance);
        let client = claim.client.clone();
        let outcome = self.record(user, |record| record.claim(self.now.get(), LEASE_MS, claim));
        let mut not_before = 0;
        if let ClaimOutcome::Claimed(Claimed { generation, .. }) = outcome {
            let member = Member { connection, generation };
            self.claims.borrow_mut().push((user.clone(), device, member));
            let holder = Holder { member, instance, client };
            let envelope = Envelope::Claimed { device, holder };
            let own = Some((node, device));
            not_before = self
                .hand_out(user, &Device::ALL, &envelope, own)
                .unwrap_or_else(|| self.now.get() + OWN_CLAIM_LIMIT.as_micros() as u64);
        }
        self.answer(node, not_before, to, outcome);
    }
}

/// What a hub is given as its way to Redis.
pub(crate) struct Simulated {
    pub(crate) network: Rc<Network>,
    pub(crate) node: usize,
}

impl Simulated {
    fn call<T: 'static>(
        &self,
        call: impl FnOnce(&Rc<Network>, oneshot::Sender<T>) + 'static,
    ) -> LocalBoxFuture<'static, Result<T, Unavailable>> {
        let (to, answer) = oneshot::channel();
        self.network.to_redis(self.node, move |network| call(network, to));
        async move {
            match timeout(CALL_LIMIT, answer).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) | Err(_) => Err(Unavailable),
            }
        }
        .boxed_local()
    }
}

impl Backplane for Simulated {
    fn claim<'a>(
        &'a self,
        user: &'a UserId,
        claim: Claim,
    ) -> LocalBoxFuture<'a, Result<ClaimOutcome, Unavailable>> {
        let (node, device) = (self.node, claim.device);
        let channel = (node, user.to_string(), device);
        self.network.nodes.borrow_mut()[node].wanted.insert((user.to_string(), device));
        async move {
            self.call(move |network, to| {
                if !network.nodes.borrow()[node].is_dead {
                    network.subscribed.borrow_mut().insert(channel);
                }
                network.answer(node, 0, to, ());
            })
            .await?;
            let user = user.clone();
            self.call(move |network, to| network.claim(node, &user, claim, to)).await
        }
        .boxed_local()
    }

    fn renew<'a>(&'a self, renewals: &'a [Renewal]) -> LocalBoxFuture<'a, Vec<Result<Renewed, Unavailable>>> {
        // The hub's rooms are in no order, but a seed has to be replayed.
        let mut turns: Vec<usize> = (0..renewals.len()).collect();
        turns.sort_by_key(|turn| renewals[*turn].holder.member.connection);
        let node = self.node;
        let renew = |Renewal { user, device, holder, attempt }: Renewal| {
            self.call(move |network, to| {
                let now = network.now.get() / MS;
                let (renewed, put_back) =
                    network.record(&user, |record| record.renew(now, LEASE_MS, device, &holder, attempt));
                if put_back {
                    let envelope = Envelope::Claimed { device, holder };
                    network.hand_out(&user, &Device::ALL, &envelope, None);
                }
                network.answer(node, 0, to, renewed);
            })
        };
        let calls: Vec<_> = turns.iter().map(|turn| renew(renewals[*turn].clone())).collect();
        async move {
            let mut answers: Vec<_> = turns.into_iter().zip(join_all(calls).await).collect();
            answers.sort_by_key(|(turn, _)| *turn);
            answers.into_iter().map(|(_, answer)| answer).collect()
        }
        .boxed_local()
    }

    fn release<'a>(
        &'a self,
        user: &'a UserId,
        device: Device,
        connection: ConnectionId,
    ) -> LocalBoxFuture<'a, ()> {
        let (node, user) = (self.node, user.clone());
        self.call(move |network, to| {
            let released = network.record(&user, |record| record.release(device, connection));
            if let Some(member) = released {
                let envelope = Envelope::Released { device, member };
                network.hand_out(&user, &Device::ALL, &envelope, None);
            }
            network.answer(node, 0, to, ());
        })
        .map(|_| ())
        .boxed_local()
    }

    fn unsubscribe(&self, user: &UserId, channel: Device) {
        let key = (self.node, user.to_string(), channel);
        self.network.nodes.borrow_mut()[self.node].wanted.remove(&(user.to_string(), channel));
        self.network.to_redis(self.node, move |network| {
            network.subscribed.borrow_mut().remove(&key);
        });
    }

    fn publish(&self, user: &UserId, channel: Device, envelope: Envelope, _since: Instant) -> Published {
        if self.network.chance(300) {
            return Published::Full;
        }
        let user = user.clone();
        self.network.to_redis(self.node, move |network| {
            network.hand_out(&user, &[channel], &envelope, None);
        });
        Published::Queued
    }

    fn room<'a>(&'a self, _user: &'a UserId) -> LocalBoxFuture<'a, Result<RoomSnapshot, Unavailable>> {
        ready(Err(Unavailable)).boxed_local()
    }

    fn instances(&self) -> Vec<InstanceInfo> {
        Vec::new()
    }

    fn is_silent(&self, instance: InstanceId) -> bool {
        self.network.nodes.borrow()[self.node].silent.contains(&instance)
    }

    fn close(&self) -> LocalBoxFuture<'_, ()> {
        ready(()).boxed_local()
    }
}
