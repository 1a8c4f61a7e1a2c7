//! What goes on beside: connections, subscriptions, the clock, and a cluster's changes. Each is a task of its own, and
//! what looks at the clock never waits for Redis.

use std::collections::HashSet;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fred::error::Error;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, sleep, timeout};
use tracing::info;

use super::carrier::carry_detours;
use super::link::Link;
use super::nodes::Node;
use super::presence::announce;
use super::subscriptions::{RETRY, spawn};
use super::topology::SlotMap;
use super::words::cause_of;
use super::{Redis, SECOND, make_node, prober};
use crate::backplane::connectivity::Cause;
use crate::backplane::{CALL_LIMIT, Event};
use crate::relay::ids::InstanceId;

/// How often a worker looks at the clock.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Between two tries to connect: doubled until the last one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// A connection that has held for this long was a good one.
const HELD: Duration = Duration::from_secs(2);

impl Redis {
    pub(super) fn spawn(&self) {
        let me = &self.me;
        let mut tasks = vec![spawn(tick(me.clone()))];
        if self.worker == 0 {
            // One worker hears for the whole process.
            for way in self.ways.announcements.iter().chain(&self.ways.unheard) {
                self.subscriptions.keep(way.clone());
            }
        }
        for node in self.nodes.all() {
            self.spawn_node(&node);
        }
        if let Some(topology) = self.settings.shared.topology() {
            tasks.push(spawn(follow_map(me.clone(), topology.watch())));
            tasks.push(spawn(carry_detours(me.clone())));
            if self.worker == 0 {
                let (template, nodes) = (self.settings.template.clone(), Rc::downgrade(&self.nodes));
                tasks.push(spawn(topology.follow(template, move || Some(nodes.upgrade()?.connected()))));
            }
        }
        self.tasks.borrow_mut().extend(tasks);
    }

    fn spawn_node(&self, node: &Rc<Node>) {
        self.subscriptions.keep(node.probe.borrow().channel.clone());
        let mut tasks = node.tasks.borrow_mut();
        tasks.push(spawn(restore(self.me.clone(), Rc::clone(node))));
        tasks.push(spawn(keep_connected(self.me.clone(), Rc::clone(node), Rc::clone(&node.subscriber))));
        if !Rc::ptr_eq(&node.subscriber, &node.commands) {
            tasks.push(spawn(keep_connected(self.me.clone(), Rc::clone(node), Rc::clone(&node.commands))));
        }
    }

    fn on_connected(&self, node: &Rc<Node>, link: &Rc<Link>) {
        self.settings.metrics.backplane_connects.inc();
        if Rc::ptr_eq(link, &node.commands) {
            node.publisher.set_client(link.client());
        }
        let now = Instant::now();
        if node.commands.client().is_some() && node.subscriber.client().is_some() {
            node.health.borrow_mut().on_connected(now);
        }
        // fred restores no subscription by itself.
        node.lost.notify_one();
        self.act(node, now);
        node.publisher.drain();
    }

    fn on_disconnected(&self, node: &Rc<Node>, link: &Rc<Link>, error: Option<&Error>) {
        if Rc::ptr_eq(link, &node.commands) {
            node.publisher.set_client(None);
        }
        let now = Instant::now();
        match error.map(cause_of) {
            Some((cause, words)) => node.health.borrow_mut().on_disconnected(now, cause, &words),
            None => node.health.borrow_mut().on_closed(),
        }
        // Another node may have taken over.
        self.settings.shared.refresh();
        self.act(node, now);
    }

    fn on_restored(&self, node: &Rc<Node>, slots: &HashSet<u16>, is_new: bool) {
        let now = Instant::now();
        // Also when only the connection for commands is a new one.
        node.health.borrow_mut().on_whole();
        if !is_new && !slots.is_empty() && node.health.borrow().is_up() {
            self.on_gap(&|slot| slots.contains(&slot));
        }
        self.act(node, now);
    }

    /// Takes over a map of the cluster.
    fn on_map(&self, map: &SlotMap) {
        let make = |number, server: &_| {
            let server = Some(Clone::clone(server));
            make_node(&self.me, &self.settings, &self.allowance, self.worker, &self.names, number, server)
        };
        let known: HashSet<u16> = self.nodes.all().iter().map(|node| node.number).collect();
        let gone = self.nodes.apply(map, make);
        for node in self.nodes.all() {
            self.place_probe(&node);
            if !known.contains(&node.number) {
                self.spawn_node(&node);
            }
            node.lost.notify_one();
        }
        for node in gone {
            self.let_go(&node);
        }
        self.update_served();
    }

    /// A node is probed in a slot that it serves.
    fn place_probe(&self, node: &Rc<Node>) {
        let slot = self.nodes.slot(&node.probe.borrow().key);
        if self.nodes.number_of(slot) == Some(node.number) {
            return;
        }
        let who = prober(self.settings.instance, self.worker, node.number);
        let placed = self.nodes.probe_names(&self.names, &who, node.number);
        let before = node.probe.replace(placed);
        self.subscriptions.forget(&before.channel);
        self.subscriptions.keep(node.probe.borrow().channel.clone());
    }

    /// A node serves nothing any more.
    fn let_go(&self, node: &Rc<Node>) {
        self.subscriptions.forget(&node.probe.borrow().channel);
        if let Some(cause) = node.health.borrow_mut().forget_trouble() {
            self.settings.shared.journal().end(node.number, node.place().as_deref(), cause);
        }
        let node = Rc::clone(node);
        tokio::task::spawn_local(async move {
            node.tasks.borrow_mut().clear();
            let quits = [node.commands.quit(), node.subscriber.quit()];
            let _ = timeout(CALL_LIMIT, join_all(quits)).await;
        });
    }

    /// What a worker does ten times a second. Nothing here waits.
    fn on_tick(&self, now: Instant) {
        let nodes = self.nodes.all();
        for node in &nodes {
            self.act(node, now);
            node.publisher.drain();
        }
        let detours = self.nodes.detours();
        detours.sweep(now);
        let waiting = nodes.iter().map(|node| node.publisher.queued_bytes());
        self.queued_bytes.set(waiting.sum::<usize>() + detours.bytes());
        self.subscriptions.on_unheard(&self.settings.shared.take_unheard(self.worker));
        self.sweep_presence(now);
        self.report_readiness(now);
        let unheard = self.unheard.borrow_mut().take();
        if let Some(me) = self.me.upgrade().filter(|_| !unheard.is_empty()) {
            tokio::task::spawn_local(async move { me.report_unheard(unheard).await });
        }
    }

    /// Reports instances that have become silent, or are heard of again, to the hub.
    fn sweep_presence(&self, now: Instant) {
        let silent = {
            let mut presence = self.settings.shared.presence();
            if self.worker == 0 {
                let is_up = |way: &String| {
                    let node = self.nodes.of_slot(self.nodes.slot(way));
                    node.is_some_and(|node| node.health.borrow().is_up())
                };
                presence.set_ways(self.ways.announcements.iter().map(is_up).collect(), now);
            }
            presence.silent(now).clone()
        };
        let before = self.silent.replace(silent.clone());
        for instance in silent.difference(&before) {
            if self.worker == 0 {
                info!(instance.id = %instance, "an instance is silent: its connections count as gone");
            }
            (self.sink)(Event::Silent(*instance));
        }
        let heard: Vec<InstanceId> = before.difference(&silent).copied().collect();
        for instance in heard {
            (self.sink)(Event::Heard(instance));
        }
    }

    fn report_readiness(&self, now: Instant) {
        let nodes = self.nodes.all();
        let (mut ready, mut up) = (0u32, 0u32);
        let slots = u32::try_from(self.nodes.slots()).unwrap_or(1);
        if self.nodes.is_cluster() {
            for node in &nodes {
                let served = self.nodes.count_of(node.number);
                let health = node.health.borrow();
                ready += if health.is_ready(now) { served } else { 0 };
                up += if health.is_up() { served } else { 0 };
            }
        } else if let Some(node) = nodes.first() {
            let health = node.health.borrow();
            (ready, up) = (health.is_ready(now).into(), health.is_up().into());
        }
        let part = |of: u32| f64::from(of) / f64::from(slots);
        let up = self.settings.readiness.report(self.worker, part(ready), part(up));
        self.settings.metrics.backplane_up.set(up);
    }

    /// What one worker does for the whole process once a second.
    async fn announce(&self) {
        let announcement = announce(&(self.settings.announce)());
        let [common, elsewhere @ ..] = self.ways.announcements.as_slice() else { return };
        let heard = self.publish_best_effort(common.clone(), announcement.clone()).await;
        if heard.is_none_or(|heard| heard == 0) {
            // Not even this process has heard it: the channel's node is away, or its slot has just moved.
            let publish = |way: &String| self.publish_best_effort(way.clone(), announcement.clone());
            join_all(elsewhere.iter().map(publish)).await;
        }
    }

    /// Keeps the prefix for this fleet.
    async fn own_prefix(&self) {
        let owner = self.names.owner();
        let node = self.nodes.of_slot(self.nodes.slot(&owner));
        let Some(client) = node.and_then(|node| node.commands.client()) else { return };
        let owned = timeout(CALL_LIMIT, self.scripts.own(&client, &self.settings.owner)).await;
        let Ok(Ok(is_ours)) = owned else { return };
        let readiness = &self.settings.readiness;
        if readiness.is_foreign() == is_ours {
            readiness.set_foreign(!is_ours);
            // The prefix is no node's.
            let journal = self.settings.shared.journal();
            if is_ours {
                journal.end(0, None, Cause::Owner);
            } else {
                journal.begin(0, None, Cause::Owner, super::check::FOREIGN);
            }
        }
    }
}

/// Connects, and connects again.
async fn keep_connected(me: Weak<Redis>, node: Rc<Node>, link: Rc<Link>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let connected = link.connect().await;
        let Some(redis) = me.upgrade() else { return };
        let since = Instant::now();
        let ended = match connected {
            Ok(mut connection) => {
                redis.on_connected(&node, &link);
                drop(redis);
                link.drive(&mut connection, |message| {
                    let Some(redis) = me.upgrade() else { return };
                    match message {
                        Ok(message) => redis.dispatch(&node, message),
                        Err(lost) => {
                            // A lagging subscriber lags again soon: the journal knows how often may be said so.
                            let words = format!("{lost} messages were lost");
                            let journal = redis.settings.shared.journal();
                            journal.note("the subscriber lagged", Cause::Undelivered, &words);
                            redis.settings.metrics.backplane_lagged.inc_by(lost);
                            node.health.borrow_mut().on_gap();
                        }
                    }
                })
                .await
            }
            Err(error) => Some(error),
        };
        let Some(redis) = me.upgrade().filter(|redis| !redis.is_closing.get()) else { return };
        redis.on_disconnected(&node, &link, ended.as_ref());
        drop(redis);
        if ended.is_none() || since.elapsed() >= HELD {
            pause = FIRST_PAUSE;
        }
        // With jitter, so that instances part.
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Makes lost subscriptions of one node again, until the server has confirmed all of them.
async fn restore(me: Weak<Redis>, node: Rc<Node>) {
    loop {
        node.lost.notified().await;
        loop {
            let Some(redis) = me.upgrade() else { return };
            let epoch = node.subscriber.epoch();
            if node.subscriber.client().is_none() {
                // The next connection notifies again.
                break;
            }
            match redis.subscriptions.restore(&node).await {
                Ok(slots) if node.subscriber.epoch() == epoch => {
                    let is_new = node.whole.replace(epoch) != epoch;
                    redis.on_restored(&node, &slots, is_new);
                    break;
                }
                Ok(_) => {}
                Err(error) => {
                    redis.note("channels could not be subscribed again", &error);
                    drop(redis);
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// Takes over each map of the cluster.
async fn follow_map(me: Weak<Redis>, mut maps: watch::Receiver<Arc<SlotMap>>) {
    loop {
        let map = Arc::clone(&maps.borrow_and_update());
        let Some(redis) = me.upgrade() else { return };
        if !map.ranges.is_empty() {
            redis.on_map(&map);
        }
        drop(redis);
        if maps.changed().await.is_err() {
            return;
        }
    }
}

async fn tick(me: Weak<Redis>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut second: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let Some(redis) = me.upgrade() else { return };
        redis.on_tick(Instant::now());
        if second.is_none_or(|last| last.elapsed() >= SECOND) {
            second = Some(Instant::now());
            redis.unheard.borrow_mut().forget();
            redis.subscriptions.unsubscribe_idle();
            if redis.worker == 0 {
                let me = Rc::clone(&redis);
                tokio::task::spawn_local(async move { me.announce().await });
                let me = Rc::clone(&redis);
                tokio::task::spawn_local(async move { me.own_prefix().await });
            }
        }
    }
}
