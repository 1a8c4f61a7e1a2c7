//! Publishes that nobody has heard. The peer may just have left. Or its instance has lost the subscription
//! without knowing, as it does when a cluster's slot moves. Then that instance learns of it, and subscribes
//! again.

use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;

use super::Redis;
use crate::relay::ids::{Device, InstanceId, UserId};

/// Most channels that are reported in a second.
const UNHEARD: usize = 1024;

/// Channels to report, and those that were reported lately.
#[derive(Default)]
pub(super) struct Unheard {
    news: Vec<(UserId, Device)>,
    reported: HashSet<(UserId, Device)>,
}

impl Unheard {
    /// Nobody was subscribed to the channel of this device.
    pub(super) fn add(&mut self, user: &UserId, device: Device) {
        if self.reported.len() < UNHEARD && self.reported.insert((user.clone(), device)) {
            self.news.push((user.clone(), device));
        }
    }

    /// What was added since this was asked, each once until [`Self::forget`].
    pub(super) fn take(&mut self) -> Vec<(UserId, Device)> {
        std::mem::take(&mut self.news)
    }

    /// Channels that are still unheard may be reported again.
    pub(super) fn forget(&mut self) {
        self.reported.clear();
    }
}

impl Redis {
    /// Reports channels to the instances that hold their slots.
    pub(super) async fn report_unheard(&self, unheard: Vec<(UserId, Device)>) {
        let holders = join_all(unheard.iter().map(async |(user, device)| {
            let room = self.scripts.room(&self.nodes, user).await.ok()?;
            let [desktop, mobile] = room;
            let lease = match device {
                Device::Desktop => desktop,
                Device::Mobile => mobile,
            };
            // Nobody holds the slot: there is nobody to subscribe.
            Some((lease?.holder.instance, self.names.channel(user, *device)))
        }));
        let mut by_instance: HashMap<InstanceId, Vec<String>> = HashMap::new();
        for (instance, channel) in holders.await.into_iter().flatten() {
            by_instance.entry(instance).or_default().push(channel);
        }
        join_all(by_instance.into_iter().map(async |(instance, channels)| {
            let bytes = bytes::Bytes::from(rmp_serde::to_vec(&channels).unwrap_or_default());
            let own = self.names.unheard_by(instance);
            match self.publish_best_effort(own.clone(), bytes.clone()).await {
                Some(1..) => {}
                // An instance of the first version listens only where everybody does.
                Some(0) => drop(self.publish_best_effort(self.names.unheard(), bytes).await),
                // The channel's node is away.
                None if self.nodes.is_cluster() => {
                    for way in self.names.elsewhere(&own) {
                        if self.publish_best_effort(way, bytes.clone()).await.is_some_and(|heard| heard > 0) {
                            break;
                        }
                    }
                }
                None => {}
            }
        }))
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_reported_once_until_it_is_forgotten() {
        let mut unheard = Unheard::default();
        let user = UserId::new("ann").unwrap();
        unheard.add(&user, Device::Mobile);
        unheard.add(&user, Device::Mobile);
        unheard.add(&user, Device::Desktop);
        assert_eq!(unheard.take(), [(user.clone(), Device::Mobile), (user.clone(), Device::Desktop)]);
        unheard.add(&user, Device::Mobile);
        assert!(unheard.take().is_empty());
        unheard.forget();
        unheard.add(&user, Device::Mobile);
        assert_eq!(unheard.take().len(), 1);
    }
}
