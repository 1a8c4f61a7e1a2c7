//! Which channels this worker hears: the channels of its sockets, its own probe, and what instances say.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike as _, ClusterInterface as _, PubsubInterface as _};
use fred::types::cluster::ClusterRouting;
use fred::types::config::Server;
use futures_util::future::{join_all, try_join};
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::client::redirected;
use crate::relay::ids::{Device, UserId};

/// Channels in one SUBSCRIBE.
const CHUNK: usize = 512;
/// Sharded subscriptions that are under way at the same time: each is a command of its own, because fred takes
/// the answers to one with several channels for the answers to other commands.
const SHARDED_AT_ONCE: usize = 64;
/// Between two tries to subscribe again.
const RETRY: Duration = Duration::from_millis(200);

struct Subscription {
    /// Whose; none for the channels that are always heard.
    owner: Option<(UserId, Device)>,
    /// Some socket here needs it.
    wanted: bool,
    /// The server has acknowledged it on the connection of this epoch; 0 when it has not, or when the
    /// subscription is known to be lost.
    confirmed: u64,
    /// The cluster's node that has acknowledged it.
    at: Option<Box<Server>>,
}

impl Subscription {
    fn new(owner: Option<(UserId, Device)>) -> Self {
        Self { owner, wanted: true, confirmed: 0, at: None }
    }
}

/// The subscriptions of one worker.
pub(super) struct Subscriptions {
    subscriber: Client,
    sharded: bool,
    subscriptions: RefCell<HashMap<String, Subscription>>,
    unwanted: RefCell<Vec<String>>,
    /// Grows with every connection: what was subscribed on an older one is void.
    epoch: Cell<u64>,
    /// The epoch in which everything was subscribed.
    whole: Cell<u64>,
    /// Told when subscriptions have been lost.
    lost: Notify,
}

impl Subscriptions {
    /// No channels yet; `fixed` channels are subscribed with the first connection.
    pub(super) fn new(subscriber: Client, sharded: bool, fixed: Vec<String>) -> Self {
        let fixed = fixed.into_iter().map(|channel| (channel, Subscription::new(None)));
        Self {
            subscriber,
            sharded,
            subscriptions: RefCell::new(fixed.collect()),
            unwanted: RefCell::default(),
            epoch: Cell::new(1),
            whole: Cell::new(0),
            lost: Notify::new(),
        }
    }

    /// Sharded pub/sub, as on a cluster.
    pub(super) fn is_sharded(&self) -> bool {
        self.sharded
    }

    /// Grows with every connection.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// Everything that is wanted is subscribed on the present connection.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.get() == self.epoch.get()
    }

    /// Whose channel it is.
    pub(super) fn user_of(&self, channel: &str) -> Option<(UserId, Device)> {
        self.subscriptions.borrow().get(channel)?.owner.clone()
    }

    /// Subscribes a channel; when this returns, the server has acknowledged it.
    pub(super) async fn subscribe(
        &self,
        user: &UserId,
        device: Device,
        channel: String,
    ) -> Result<(), Error> {
        loop {
            let epoch = self.epoch.get();
            {
                let mut subscriptions = self.subscriptions.borrow_mut();
                let subscription = subscriptions
                    .entry(channel.clone())
                    .or_insert_with(|| Subscription::new(Some((user.clone(), device))));
                subscription.wanted = true;
                if subscription.confirmed == epoch {
                    return Ok(());
                }
            }
            self.acknowledged(std::slice::from_ref(&channel), epoch).await?;
            // The connection may have been made anew meanwhile; then it is asked again.
        }
    }

    /// Subscribes, and notes what the server has acknowledged in this epoch.
    async fn acknowledged(&self, channels: &[String], epoch: u64) -> Result<(), Error> {
        if self.sharded {
            for chunk in channels.chunks(SHARDED_AT_ONCE) {
                let subscribed = join_all(chunk.iter().map(async |channel| {
                    redirected(async || {
                        // Before the command finds its way by the same table.
                        let at = self.node_of(channel);
                        self.subscriber.ssubscribe(channel.clone()).await?;
                        self.confirm(channel, epoch, at);
                        Ok(())
                    })
                    .await
                }));
                subscribed.await.into_iter().collect::<Result<Vec<()>, _>>()?;
            }
            return Ok(());
        }
        // fred does not wait for the answer to SUBSCRIBE. Redis answers one connection in order: when the PING is
        // answered, so was the SUBSCRIBE. They take their places in fred's queue in this order, when they are first
        // polled, and so leave in one write.
        let subscribed = self.subscriber.subscribe(channels.to_vec());
        try_join(subscribed, self.subscriber.ping::<fred::types::Value>(None)).await?;
        for channel in channels {
            self.confirm(channel, epoch, None);
        }
        Ok(())
    }

    fn confirm(&self, channel: &str, epoch: u64, at: Option<Box<Server>>) {
        if self.epoch.get() == epoch
            && let Some(subscription) = self.subscriptions.borrow_mut().get_mut(channel)
        {
            subscription.confirmed = epoch;
            subscription.at = at;
        }
    }

    /// The node of a cluster to which a channel belongs.
    fn node_of(&self, channel: &str) -> Option<Box<Server>> {
        if !self.sharded {
            return None;
        }
        let slot = ClusterRouting::hash_key(channel.as_bytes());
        let routing = self.subscriber.cached_cluster_state()?;
        routing.get_server(slot).cloned().map(Box::new)
    }

    /// No socket here needs a channel any more. It is given back a little later: clients that roam come back soon.
    pub(super) fn unsubscribe(&self, channel: String) {
        if let Some(subscription) = self.subscriptions.borrow_mut().get_mut(&channel)
            && subscription.wanted
        {
            subscription.wanted = false;
            self.unwanted.borrow_mut().push(channel);
        }
    }

    /// Gives back the channels that are still not wanted.
    pub(super) async fn unsubscribe_idle(&self) {
        let unwanted = std::mem::take(&mut *self.unwanted.borrow_mut());
        for chunk in unwanted.chunks(if self.sharded { 1 } else { CHUNK }) {
            let mut gone = Vec::new();
            {
                let mut subscriptions = self.subscriptions.borrow_mut();
                for channel in chunk {
                    if subscriptions.get(channel).is_none_or(|subscription| subscription.wanted) {
                        continue;
                    }
                    // A node that the slot has left has ended the subscription itself, and the answer of another
                    // one would be taken for that to another command.
                    let at = subscriptions.remove(channel).and_then(|subscription| subscription.at);
                    if at == self.node_of(channel) {
                        gone.push(channel.clone());
                    }
                }
            }
            if gone.is_empty() {
                continue;
            }
            // Nothing is awaited between the removal above and the first poll below, in which the command takes
            // its place in fred's queue: a SUBSCRIBE of the same channel can only come behind it.
            let given_back = if self.sharded {
                self.subscriber.sunsubscribe(gone).await
            } else {
                self.subscriber.unsubscribe(gone).await
            };
            if let Err(error) = given_back {
                debug!(%error, "channels could not be given back");
            }
        }
    }

    /// The connection is a new one: nothing is subscribed on it.
    pub(super) fn on_reconnect(&self) {
        self.epoch.set(self.epoch.get() + 1);
        self.lost.notify_one();
    }

    /// Somebody has published on these channels, and nobody has heard it.
    pub(super) fn on_unheard(&self, channels: &[String]) {
        for channel in channels {
            if let Some(subscription) = self.subscriptions.borrow_mut().get_mut(channel) {
                subscription.confirmed = 0;
                self.lost.notify_one();
            }
        }
    }

    /// Slots of the cluster may have moved, or a replica has taken over. Redis ends the subscriptions on the old
    /// node, and fred does not pass on that it has (nor does it restore them).
    pub(super) async fn follow_cluster(&self) {
        if let Err(error) = self.subscriber.sync_cluster().await {
            debug!(%error, "the cluster's state could not be read");
        }
        let Some(routing) = self.subscriber.cached_cluster_state() else {
            return;
        };
        for (channel, subscription) in self.subscriptions.borrow_mut().iter_mut() {
            let slot = ClusterRouting::hash_key(channel.as_bytes());
            if subscription.at.as_deref() != routing.get_server(slot) {
                subscription.confirmed = 0;
                self.lost.notify_one();
            }
        }
    }

    /// Waits until subscriptions have been lost, and makes them again until the server has confirmed all of them.
    /// True when there was something to lose: not the first time.
    pub(super) async fn restore(&self) -> bool {
        self.lost.notified().await;
        let had_any = self.whole.get() > 0;
        loop {
            let epoch = self.epoch.get();
            match self.subscribe_lost(epoch).await {
                Ok(()) if self.epoch.get() == epoch => {
                    self.whole.set(epoch);
                    return had_any;
                }
                Ok(()) => {}
                Err(error) => {
                    warn!(%error, "channels could not be subscribed again; trying on");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn subscribe_lost(&self, epoch: u64) -> Result<(), Error> {
        let is_lost = |(_, subscription): &(&String, &Subscription)| {
            subscription.wanted && subscription.confirmed != epoch
        };
        let lost: Vec<String> = {
            let subscriptions = self.subscriptions.borrow();
            let lost = subscriptions.iter().filter(is_lost);
            lost.map(|(channel, _)| channel.clone()).collect()
        };
        for chunk in lost.chunks(CHUNK) {
            self.acknowledged(chunk, epoch).await?;
        }
        Ok(())
    }
}
