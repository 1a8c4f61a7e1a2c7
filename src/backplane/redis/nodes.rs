//! The servers that this worker is connected to: one, or the nodes of a cluster, and which node serves which slot.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::types::config::Server;
use fred::util::redis_keyslot;
use tokio::sync::{Notify, Semaphore};

use super::CLAIMS;
use super::client::Template;
use super::detours::Detours;
use super::link::Link;
use super::names::{Names, ProbeNames};
use super::publisher::Publisher;
use super::queue::Allowance;
use super::redirection::Redirection;
use super::topology::{SLOTS, SlotMap, Topology};
use crate::backplane::CALL_LIMIT;
use crate::backplane::connectivity::Connectivity;

/// Between two questions to a cluster whose slots are moving.
const REDIRECTED: Duration = Duration::from_millis(50);
/// A slot that nobody serves.
const NOBODY: u16 = u16::MAX;

/// One server, or one node of a cluster: the connections to it and how it is.
pub(super) struct Node {
    /// Its index, the same in all workers of the process.
    pub(super) number: u16,
    /// A node of a cluster; none for a server alone, whose address Sentinel may change.
    pub(super) server: Option<Server>,
    /// The connection for commands.
    pub(super) commands: Rc<Link>,
    /// The connection for subscriptions. It is the same one, except on a cluster: there fred takes the answers of other
    /// commands for that to an SSUBSCRIBE.
    pub(super) subscriber: Rc<Link>,
    /// What leaves for this node.
    pub(super) publisher: Rc<Publisher>,
    /// Up, down, or in a gap, as the probes show.
    pub(super) health: RefCell<Connectivity>,
    /// What its probes use.
    pub(super) probe: RefCell<ProbeNames>,
    /// The epoch of the subscriber in which everything was subscribed.
    pub(super) whole: Cell<u64>,
    /// Notified when subscriptions have to be made (again).
    pub(super) lost: Notify,
    /// At most so many claims are under way to this node.
    pub(super) claims: Semaphore,
    /// A task unsubscribes idle channels of this node.
    pub(super) is_unsubscribing: Cell<bool>,
    /// A probe is under way.
    pub(super) is_probing: Cell<bool>,
    /// Its tasks, which end with it.
    pub(super) tasks: RefCell<Vec<AbortOnDrop>>,
}

/// A task that ends when it is not needed any more.
pub(super) struct AbortOnDrop(pub(super) tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Node {
    pub(super) fn new(
        number: u16,
        server: Option<Server>,
        template: &Template,
        publisher: Rc<Publisher>,
        probe: ProbeNames,
    ) -> Rc<Self> {
        let subscriber = Rc::new(Link::new(template.clone(), server.clone(), true));
        let commands = match &server {
            Some(_) => Rc::new(Link::new(template.clone(), server.clone(), false)),
            None => Rc::clone(&subscriber),
        };
        Rc::new(Self {
            number,
            server,
            commands,
            subscriber,
            publisher,
            health: RefCell::new(Connectivity::new(Instant::now())),
            probe: RefCell::new(probe),
            whole: Cell::new(0),
            lost: Notify::new(),
            claims: Semaphore::new(CLAIMS),
            is_unsubscribing: Cell::new(false),
            is_probing: Cell::new(false),
            tasks: RefCell::default(),
        })
    }

    /// Its address in the log.
    pub(super) fn place(&self) -> Option<String> {
        self.server.as_ref().map(ToString::to_string)
    }
}

/// The nodes that a worker knows.
pub(super) struct Nodes {
    list: RefCell<Vec<Rc<Node>>>,
    /// The number of the node of each slot; empty where there is one server.
    table: RefCell<Vec<u16>>,
    /// What the process knows of its cluster.
    topology: Option<Topology>,
    /// What waits because its slot changes its node.
    detours: Detours,
}

impl Nodes {
    /// A server alone, or behind Sentinel.
    pub(super) fn one(node: Rc<Node>) -> Self {
        Self {
            list: RefCell::new(vec![node]),
            table: RefCell::default(),
            topology: None,
            detours: Detours::default(),
        }
    }

    /// A cluster of which nothing is known yet.
    pub(super) fn cluster(topology: Topology, allowance: &Rc<Allowance>) -> Self {
        Self {
            list: RefCell::default(),
            table: RefCell::new(vec![NOBODY; SLOTS]),
            topology: Some(topology),
            detours: Detours::new(allowance),
        }
    }

    /// Sharded pub/sub, as on a cluster.
    pub(super) fn is_cluster(&self) -> bool {
        self.topology.is_some()
    }

    /// What waits because its slot changes its node.
    pub(super) fn detours(&self) -> &Detours {
        &self.detours
    }

    /// The slot of a key or channel; a server alone has one.
    pub(super) fn slot(&self, name: &str) -> u16 {
        if self.is_cluster() { redis_keyslot(name.as_bytes()) } else { 0 }
    }

    pub(super) fn slots(&self) -> usize {
        if self.is_cluster() { SLOTS } else { 1 }
    }

    pub(super) fn of_slot(&self, slot: u16) -> Option<Rc<Node>> {
        let list = self.list.borrow();
        if !self.is_cluster() {
            return list.first().cloned();
        }
        let number = self.number_of(slot)?;
        list.iter().find(|node| node.number == number).cloned()
    }

    /// The number of the node that serves a slot.
    pub(super) fn number_of(&self, slot: u16) -> Option<u16> {
        if !self.is_cluster() {
            return Some(0);
        }
        self.table.borrow().get(usize::from(slot)).copied().filter(|number| *number != NOBODY)
    }

    /// How many slots the node of this number serves.
    pub(super) fn count_of(&self, number: u16) -> u32 {
        let count = self.table.borrow().iter().filter(|node| **node == number).count();
        u32::try_from(count).unwrap_or(0)
    }

    /// The connections to the nodes that answer, for whoever reads the cluster's state.
    pub(super) fn connected(&self) -> Vec<(Client, Server)> {
        let up = self.all().into_iter().filter(|node| node.health.borrow().is_up());
        up.filter_map(|node| Some((node.commands.client()?, node.server.clone()?))).collect()
    }

    /// Every known node, also those that are down.
    pub(super) fn all(&self) -> Vec<Rc<Node>> {
        self.list.borrow().clone()
    }

    pub(super) fn numbered(&self, number: u16) -> Option<Rc<Node>> {
        self.list.borrow().iter().find(|node| node.number == number).cloned()
    }

    /// Takes over a map of the cluster: `make` connects to a node that is new here. Nodes that serve no slot any more
    /// are returned.
    pub(super) fn apply(&self, map: &SlotMap, make: impl Fn(u16, &Server) -> Rc<Node>) -> Vec<Rc<Node>> {
        let mut table = vec![NOBODY; SLOTS];
        for range in &map.ranges {
            for slot in range.slots.clone() {
                if let Some(entry) = table.get_mut(usize::from(slot)) {
                    *entry = range.node;
                }
            }
        }
        let wanted = map.serving();
        for (number, server) in &wanted {
            if self.numbered(*number).is_none() {
                let node = make(*number, server);
                self.list.borrow_mut().push(node);
            }
        }
        let mut left: HashMap<u16, Vec<u16>> = HashMap::new();
        let before = self.table.replace(table);
        for (slot, (before, now)) in (0u16..).zip(before.into_iter().zip(&*self.table.borrow())) {
            if before != *now {
                left.entry(before).or_default().push(slot);
            }
        }
        for (number, slots) in left {
            self.on_left(number, &slots);
        }
        let mut list = self.list.borrow_mut();
        let (kept, gone) =
            list.drain(..).partition(|node| wanted.iter().any(|(number, _)| *number == node.number));
        *list = kept;
        gone
    }

    /// Slots have another node than this one from now on. This is called at once with the change. What is
    /// published next must not overtake what the old node has not answered for, or what waits for it.
    fn on_left(&self, number: u16, slots: &[u16]) {
        if let Some(node) = self.numbered(number) {
            self.detours.on_moved(slots, &node.publisher, Instant::now());
        }
    }

    /// A node says that a slot has moved: it is believed until the cluster is read anew, which this asks for.
    pub(super) fn learn(&self, slot: u16, server: &Server) {
        let Some(topology) = &self.topology else { return };
        let known =
            self.list.borrow().iter().find(|node| node.server.as_ref() == Some(server)).map(|it| it.number);
        let before = known.and_then(|number| {
            let mut table = self.table.borrow_mut();
            let entry = table.get_mut(usize::from(slot))?;
            Some(std::mem::replace(entry, number)).filter(|before| *before != number)
        });
        if let Some(before) = before {
            self.on_left(before, &[slot]);
        }
        topology.refresh();
    }

    /// Asks the node of a slot, and again while the cluster answers that the slot is elsewhere, for a limited time. With
    /// the answer comes whether another node than the slot's gave it, as far as its subscribers know.
    ///
    /// # Errors
    /// What `ask` says at last.
    pub(super) async fn redirected<T>(
        &self,
        slot: u16,
        ask: impl AsyncFn(&Node, bool) -> Result<T, Error>,
    ) -> Result<(T, bool), Error> {
        let deadline = tokio::time::Instant::now() + CALL_LIMIT;
        let (mut asked_at, mut has_moved) = (None, false);
        loop {
            let node = match asked_at.take() {
                Some(server) => self.at(&server),
                None => None,
            };
            let is_asking = node.is_some();
            let Some(node) = node.or_else(|| self.of_slot(slot)) else {
                return Err(Error::new(ErrorKind::Canceled, "no node serves this slot"));
            };
            let error = match ask(&node, is_asking).await {
                Ok(answer) => return Ok((answer, is_asking || has_moved)),
                Err(error) => error,
            };
            let Some(redirection) = Redirection::of(&error).filter(|_| self.is_cluster()) else {
                return Err(error);
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(error);
            }
            match redirection.seen_from(node.server.as_ref()) {
                Redirection::Ask(server) if !is_asking && self.at(&server).is_some() => {
                    asked_at = Some(server);
                    continue;
                }
                Redirection::Moved(server) => {
                    has_moved = true;
                    let before = self.number_of(slot);
                    self.learn(slot, &server);
                    if self.number_of(slot) != before {
                        continue;
                    }
                }
                Redirection::Ask(_) | Redirection::TryAgain => {}
            }
            tokio::time::sleep(REDIRECTED).await;
        }
    }

    fn at(&self, server: &Server) -> Option<Rc<Node>> {
        self.list.borrow().iter().find(|node| node.server.as_ref() == Some(server)).cloned()
    }

    /// Names for the probes of a node: in a slot that it serves, if there is one.
    pub(super) fn probe_names(&self, names: &Names, who: &str, number: u16) -> ProbeNames {
        let serves = |probe: &ProbeNames| self.number_of(self.slot(&probe.key)) == Some(number);
        // A node with few of the slots is found after some thousand names; one with none never is.
        let tries = if self.is_cluster() { 4 * 16_384 } else { 1 };
        let found = (0..tries).map(|try_| names.probe(who, try_)).find(serves);
        found.unwrap_or_else(|| names.probe(who, 0))
    }
}
