//! Which channels this worker hears: the lanes of its sockets, its own probe, and the instances.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike as _, ClusterInterface as _, PubsubInterface as _};
use futures_util::future::join_all;
use tracing::{debug, warn};

use crate::relay::ids::{Device, UserId};

/// Channels in one SUBSCRIBE.
const CHUNK: usize = 512;
/// Sharded subscriptions that are under way at the same time: each is a command of its own, because fred takes
/// the answers to one with several channels for the answers to other commands.
const SHARDED_AT_ONCE: usize = 64;
/// Between two tries to subscribe to everything again.
const RETRY: Duration = Duration::from_millis(200);

struct Lane {
    user: UserId,
    device: Device,
    /// Some socket here needs it.
    wanted: bool,
    /// The server has acknowledged it on the connection of this epoch.
    confirmed: u64,
}

/// The subscriptions of one worker.
pub(super) struct Lanes {
    subscriber: Client,
    sharded: bool,
    fixed: Vec<String>,
    lanes: RefCell<HashMap<String, Lane>>,
    unwanted: RefCell<Vec<String>>,
    /// Grows with every connection: what was subscribed on an older one is void.
    epoch: Cell<u64>,
    /// The epoch in which everything was subscribed.
    whole: Cell<u64>,
}

impl Lanes {
    /// No lanes yet; `fixed` channels are subscribed with the first connection.
    pub(super) fn new(subscriber: Client, sharded: bool, fixed: Vec<String>) -> Self {
        Self {
            subscriber,
            sharded,
            fixed,
            lanes: RefCell::default(),
            unwanted: RefCell::default(),
            epoch: Cell::new(0),
            whole: Cell::new(0),
        }
    }

    /// Sharded pub/sub, as on a cluster.
    pub(super) fn is_sharded(&self) -> bool {
        self.sharded
    }

    /// Everything that is wanted is subscribed on the present connection.
    pub(super) fn is_whole(&self) -> bool {
        self.epoch.get() > 0 && self.whole.get() == self.epoch.get()
    }

    /// Whose lane a channel is.
    pub(super) fn user_of(&self, channel: &str) -> Option<(UserId, Device)> {
        self.lanes
            .borrow()
            .get(channel)
            .map(|lane| (lane.user.clone(), lane.device))
    }

    /// Subscribes a lane; when this returns, the server has acknowledged it.
    pub(super) async fn subscribe(
        &self,
        user: &UserId,
        device: Device,
        channel: String,
    ) -> Result<(), Error> {
        loop {
            let epoch = self.epoch.get();
            {
                let mut lanes = self.lanes.borrow_mut();
                let lane = lanes.entry(channel.clone()).or_insert_with(|| Lane {
                    user: user.clone(),
                    device,
                    wanted: true,
                    confirmed: 0,
                });
                lane.wanted = true;
                if lane.confirmed == epoch {
                    return Ok(());
                }
            }
            self.acknowledged(std::slice::from_ref(&channel)).await?;
            // The connection may have been made anew meanwhile; then it is asked again.
            if self.epoch.get() == epoch
                && let Some(lane) = self.lanes.borrow_mut().get_mut(&channel)
            {
                lane.confirmed = epoch;
                return Ok(());
            }
        }
    }

    async fn acknowledged(&self, channels: &[String]) -> Result<(), Error> {
        if self.sharded {
            for chunk in channels.chunks(SHARDED_AT_ONCE) {
                let subscribed = join_all(
                    chunk
                        .iter()
                        .map(|channel| self.subscriber.ssubscribe(channel.clone())),
                );
                subscribed
                    .await
                    .into_iter()
                    .collect::<Result<Vec<()>, _>>()?;
            }
            return Ok(());
        }
        self.subscriber.subscribe(channels.to_vec()).await?;
        // fred does not wait for the answer to SUBSCRIBE. Redis answers one connection in order: when the PING is
        // answered, so was the SUBSCRIBE.
        self.subscriber
            .ping::<fred::types::Value>(None)
            .await
            .map(|_| ())
    }

    /// No socket here needs a lane any more. It is given back a little later: clients that roam come back soon.
    pub(super) fn unsubscribe(&self, channel: String) {
        if let Some(lane) = self.lanes.borrow_mut().get_mut(&channel)
            && lane.wanted
        {
            lane.wanted = false;
            self.unwanted.borrow_mut().push(channel);
        }
    }

    /// Gives back the lanes that are still not wanted.
    pub(super) async fn give_back(&self) {
        let unwanted = std::mem::take(&mut *self.unwanted.borrow_mut());
        for chunk in unwanted.chunks(if self.sharded { 1 } else { CHUNK }) {
            let mut gone = Vec::new();
            {
                let mut lanes = self.lanes.borrow_mut();
                for channel in chunk {
                    if lanes.get(channel).is_some_and(|lane| !lane.wanted) {
                        lanes.remove(channel);
                        gone.push(channel.clone());
                    }
                }
            }
            if gone.is_empty() {
                continue;
            }
            // Nothing is awaited between the removal above and the first poll below, in which the command takes
            // its place in fred's queue: a SUBSCRIBE of the same lane can only come behind it.
            let given_back = if self.sharded {
                self.subscriber.sunsubscribe(gone).await
            } else {
                self.subscriber.unsubscribe(gone).await
            };
            if let Err(error) = given_back {
                debug!(%error, "lanes could not be given back");
            }
        }
    }

    /// The connection is a new one: nothing is subscribed on it. True for the very first one.
    pub(super) fn on_reconnect(&self) -> bool {
        self.epoch.replace(self.epoch.get() + 1) == 0
    }

    /// Subscribes everything again, until the server has confirmed all of it.
    pub(super) async fn subscribe_all(&self) {
        loop {
            let epoch = self.epoch.get();
            match self.try_subscribe_all(epoch).await {
                Ok(()) if self.epoch.get() == epoch => {
                    self.whole.set(epoch);
                    return;
                }
                Ok(()) => {}
                Err(error) => {
                    warn!(%error, "lanes could not be subscribed again; trying on");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn try_subscribe_all(&self, epoch: u64) -> Result<(), Error> {
        let channels: Vec<String> = self
            .fixed
            .iter()
            .cloned()
            .chain(self.lanes.borrow().keys().cloned())
            .collect();
        for chunk in channels.chunks(CHUNK) {
            self.acknowledged(chunk).await?;
            let mut lanes = self.lanes.borrow_mut();
            for channel in chunk {
                if let Some(lane) = lanes.get_mut(channel) {
                    lane.confirmed = epoch;
                }
            }
        }
        Ok(())
    }

    /// Slots of the cluster have moved: everything is subscribed where it belongs now.
    pub(super) async fn follow_cluster(&self) {
        if let Err(error) = self.subscriber.sync_cluster().await {
            debug!(%error, "the cluster's state could not be read");
        }
        self.on_reconnect();
        self.subscribe_all().await;
    }
}
