//! Which channels this worker hears: those of its sockets, its own probes, and what instances say.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike as _, PubsubInterface as _};
use fred::types::Value;
use futures_util::future::{join, join_all};
use tracing::debug;

use super::client::unconnected;
use super::nodes::{AbortOnDrop, Node, Nodes};
use super::words::{cause_of, words};
use crate::backplane::connectivity::Cause;
use crate::relay::ids::{Device, UserId};

/// Channels in one SUBSCRIBE.
const CHUNK: usize = 512;
/// Sharded subscriptions that are under way at the same time. Each is a command of its own: fred takes the
/// answers to one with several channels for the answers to other commands.
pub const SHARDED_AT_ONCE: usize = 64;
/// Between two tries to subscribe again.
pub(super) const RETRY: Duration = Duration::from_millis(200);

/// Where a subscription was acknowledged: the node's number, and the epoch of its subscriber.
type Acknowledged = (u16, u64);

struct Subscription {
    /// The user and device of the channel; none for the channels that are always heard.
    owner: Option<(UserId, Device)>,
    slot: u16,
    /// Some socket here needs it.
    wanted: bool,
    /// None when no server has acknowledged it, or when the subscription is known to be lost.
    acknowledged: Option<Acknowledged>,
}

/// The subscriptions of one worker.
pub(super) struct Subscriptions {
    nodes: Rc<Nodes>,
    channels: RefCell<HashMap<String, Subscription>>,
    unwanted: RefCell<Vec<String>>,
}

impl Subscriptions {
    pub(super) fn new(nodes: Rc<Nodes>) -> Self {
        Self { nodes, channels: RefCell::default(), unwanted: RefCell::default() }
    }

    /// A channel that is always heard; it is subscribed with the next connection.
    pub(super) fn keep(&self, channel: String) {
        let slot = self.nodes.slot(&channel);
        let fixed = Subscription { owner: None, slot, wanted: true, acknowledged: None };
        self.channels.borrow_mut().insert(channel, fixed);
    }

    /// A channel that was always heard, and is not any more.
    pub(super) fn forget(&self, channel: &str) {
        self.channels.borrow_mut().remove(channel);
    }

    /// The user and device of a channel.
    pub(super) fn user_of(&self, channel: &str) -> Option<(UserId, Device)> {
        self.channels.borrow().get(channel)?.owner.clone()
    }

    /// Subscribes a channel; when this returns, the server has acknowledged it.
    pub(super) async fn subscribe(
        &self,
        user: &UserId,
        device: Device,
        channel: String,
    ) -> Result<(), Error> {
        let slot = self.nodes.slot(&channel);
        loop {
            let node = self.nodes.of_slot(slot).ok_or_else(unconnected)?;
            {
                let mut channels = self.channels.borrow_mut();
                let subscription = channels.entry(channel.clone()).or_insert_with(|| Subscription {
                    owner: Some((user.clone(), device)),
                    slot,
                    wanted: true,
                    acknowledged: None,
                });
                subscription.wanted = true;
                if subscription.acknowledged == Some(present(&node)) && node.subscriber.client().is_some() {
                    return Ok(());
                }
            }
            self.ask(&node, std::slice::from_ref(&channel)).await?;
            // The connection may have been made anew, or the slot may have moved meanwhile; then it is asked again.
        }
    }

    /// Subscribes, and notes what the server has acknowledged.
    async fn ask(&self, node: &Node, channels: &[String]) -> Result<(), Error> {
        if self.nodes.is_cluster() {
            for chunk in channels.chunks(SHARDED_AT_ONCE) {
                let subscribed = join_all(chunk.iter().map(|channel| self.ask_sharded(channel)));
                subscribed.await.into_iter().collect::<Result<Vec<()>, _>>()?;
            }
            return Ok(());
        }
        let (client, at) = (node.subscriber.client().ok_or_else(unconnected)?, present(node));
        // fred does not wait for the answer to SUBSCRIBE. Redis answers one connection in order: when the PING is
        // answered, so was the SUBSCRIBE. They take their places in fred's queue in this order, when they are first
        // polled, and so leave in one write.
        let subscribed = client.subscribe(channels.to_vec());
        followed_by_ping(node, &client, subscribed).await?;
        for channel in channels {
            self.confirm(channel, at);
        }
        Ok(())
    }

    async fn ask_sharded(&self, channel: &str) -> Result<(), Error> {
        let slot = self.nodes.slot(channel);
        self.nodes
            .redirected(slot, async |node: &Node, _| {
                let (client, at) = (node.subscriber.client().ok_or_else(unconnected)?, present(node));
                client.ssubscribe(channel.to_owned()).await?;
                self.confirm(channel, at);
                Ok(())
            })
            .await
            .map(|_| ())
    }

    fn confirm(&self, channel: &str, at: Acknowledged) {
        if let Some(subscription) = self.channels.borrow_mut().get_mut(channel) {
            subscription.acknowledged = Some(at);
        }
    }

    /// No socket here needs a channel any more. The worker unsubscribes it a little later: clients that roam come back soon.
    pub(super) fn unsubscribe(&self, channel: String) {
        if let Some(subscription) = self.channels.borrow_mut().get_mut(&channel)
            && subscription.wanted
        {
            subscription.wanted = false;
            self.unwanted.borrow_mut().push(channel);
        }
    }

    /// Unsubscribes the channels that are still not wanted. What calls this does not wait: a node that stands still delays
    /// no other node's channels, and nothing else.
    pub(super) fn unsubscribe_idle(self: &Rc<Self>) {
        let mut by_node: HashMap<u16, Vec<String>> = HashMap::new();
        for channel in std::mem::take(&mut *self.unwanted.borrow_mut()) {
            let number = {
                let mut channels = self.channels.borrow_mut();
                let Some(subscription) = channels.get(&channel).filter(|subscription| !subscription.wanted)
                else {
                    continue;
                };
                let present = self.nodes.of_slot(subscription.slot).map(|node| present(&node));
                // On a cluster, a node that the slot has left has ended the subscription itself. So has a
                // connection that is gone. fred would take a refusal for the answer to another command.
                // Without an acknowledgement the SUBSCRIBE may still be on its way. Its caller has given up,
                // and Redis would hear the channel for ever. A single server refuses no UNSUBSCRIBE, so it
                // always gets one.
                let is_there = subscription.acknowledged.is_none_or(|at| present == Some(at));
                match present {
                    Some(at) if is_there || !self.nodes.is_cluster() => at.0,
                    _ => {
                        channels.remove(&channel);
                        continue;
                    }
                }
            };
            by_node.entry(number).or_default().push(channel);
        }
        for (number, channels) in by_node {
            let node = self.nodes.numbered(number);
            match node.filter(|node| !node.is_unsubscribing.replace(true)) {
                Some(node) => {
                    let me = Rc::clone(self);
                    tokio::task::spawn_local(async move {
                        me.unsubscribe_at(&node, channels).await;
                        node.is_unsubscribing.set(false);
                    });
                }
                // In its turn a second later.
                None => self.unwanted.borrow_mut().extend(channels),
            }
        }
    }

    async fn unsubscribe_at(&self, node: &Node, channels: Vec<String>) {
        let Some(client) = node.subscriber.client() else {
            return self.unwanted.borrow_mut().extend(channels);
        };
        for chunk in channels.chunks(if self.nodes.is_cluster() { 1 } else { CHUNK }) {
            let mut kept = Vec::new();
            {
                let mut channels = self.channels.borrow_mut();
                for channel in chunk {
                    if channels.get(channel).is_some_and(|subscription| !subscription.wanted)
                        && let Some(subscription) = channels.remove(channel)
                    {
                        kept.push((channel.clone(), subscription));
                    }
                }
            }
            if kept.is_empty() {
                continue;
            }
            let gone: Vec<String> = kept.iter().map(|(channel, _)| channel.clone()).collect();
            // Nothing is awaited between the removal above and the first poll below. In that poll the command
            // takes its place in fred's queue. So a SUBSCRIBE of the same channel can only come behind it.
            let unsubscribed = if self.nodes.is_cluster() {
                followed_by_ping(node, &client, client.sunsubscribe(gone)).await
            } else {
                followed_by_ping(node, &client, client.unsubscribe(gone)).await
            };
            if let Err(error) = unsubscribed {
                // Redis may not have heard of it: it is said again, unless a socket needs the channel by now.
                debug!(error = words(&error), "channels could not be unsubscribed");
                for (channel, subscription) in kept {
                    if let Entry::Vacant(vacant) = self.channels.borrow_mut().entry(channel.clone()) {
                        vacant.insert(subscription);
                        self.unwanted.borrow_mut().push(channel);
                    }
                }
            }
        }
    }

    /// Somebody has published on these channels, and nobody has heard it. The nodes whose subscriptions are to be made
    /// again.
    pub(super) fn on_unheard(&self, channels: &[String]) {
        let mut slots = HashSet::new();
        for channel in channels {
            if let Some(subscription) = self.channels.borrow_mut().get_mut(channel) {
                subscription.acknowledged = None;
                slots.insert(subscription.slot);
            }
        }
        for node in slots.into_iter().filter_map(|slot| self.nodes.of_slot(slot)) {
            node.lost.notify_one();
        }
    }

    /// Subscribes what belongs to this node and is not acknowledged there. The slots whose subscriptions had been lost
    /// on a connection that held.
    pub(super) async fn restore(&self, node: &Node) -> Result<HashSet<u16>, Error> {
        let at = present(node);
        let lost: Vec<(String, u16)> = {
            let channels = self.channels.borrow();
            let is_lost = |subscription: &Subscription| {
                subscription.wanted
                    && subscription.acknowledged != Some(at)
                    && self.nodes.number_of(subscription.slot) == Some(node.number)
            };
            let lost = channels.iter().filter(|(_, subscription)| is_lost(subscription));
            lost.map(|(channel, subscription)| (channel.clone(), subscription.slot)).collect()
        };
        for chunk in lost.chunks(CHUNK) {
            let channels: Vec<String> = chunk.iter().map(|(channel, _)| channel.clone()).collect();
            self.ask(node, &channels).await?;
        }
        Ok(lost.into_iter().map(|(_, slot)| slot).collect())
    }
}

fn present(node: &Node) -> Acknowledged {
    (node.number, node.subscriber.epoch())
}

/// A command to which fred expects no answer, and a PING behind it. If Redis refuses the command, fred takes
/// the refusal for the answer to the PING. It then takes every later answer for the one before, and the
/// connection is of no use any more.
async fn followed_by_ping(
    node: &Node,
    client: &Client,
    command: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    let (sent, answered) = join(command, client.ping::<Value>(None)).await;
    sent?;
    answered.map(|_: Value| ()).inspect_err(|error| {
        if !matches!(cause_of(error).0, Cause::Silent | Cause::Unreachable) {
            node.subscriber.renew();
        }
    })
}

/// Kept beside the subscriptions: a task that makes them again for one node.
pub(super) fn spawn(task: impl Future<Output = ()> + 'static) -> AbortOnDrop {
    AbortOnDrop(tokio::task::spawn_local(task))
}
