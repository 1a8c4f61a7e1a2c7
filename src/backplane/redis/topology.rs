//! Which node of a cluster serves which slots, as one process knows it. One worker reads it from the cluster; the others
//! are notified.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::error::Error;
use fred::interfaces::{ClientLike as _, ClusterInterface as _};
use fred::types::Value;
use fred::types::config::Server;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tracing::debug;

use super::client::{Template, close};
use super::words::words;
use crate::backplane::CALL_LIMIT;

/// The slots of a cluster.
pub(super) const SLOTS: usize = 16_384;
/// How often the cluster's epoch is asked for; each change of slots raises it.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two reads that commands have asked for.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// What one node knows already is news to another for a while, so that a change is looked at several times.
const LOOKS: u32 = 5;

/// Slots that one node serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) slots: RangeInclusive<u16>,
    /// The number of the node that serves them.
    pub(super) node: u16,
}

/// Which node serves which slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SlotMap {
    /// Every node that was ever known; its place is its number, which stays.
    pub(super) servers: Vec<Server>,
    pub(super) ranges: Vec<Range>,
}

impl SlotMap {
    /// The nodes that serve slots, with their numbers.
    pub(super) fn serving(&self) -> Vec<(u16, Server)> {
        let numbered = (0u16..).zip(&self.servers);
        let serves = |number: u16| self.ranges.iter().any(|range| range.node == number);
        numbered.filter(|(number, _)| serves(*number)).map(|(number, it)| (number, it.clone())).collect()
    }

    /// The map after an answer to CLUSTER SLOTS from `asked`; `None` when it has an unknown form or no slot.
    fn after(&self, answer: &Value, asked: &Server) -> Option<Self> {
        let mut map = Self { servers: self.servers.clone(), ranges: Vec::new() };
        let Value::Array(entries) = answer else { return None };
        for entry in entries {
            let Value::Array(entry) = entry else { return None };
            let [first, last, Value::Array(primary), ..] = entry.as_slice() else { return None };
            let slot =
                |value: &Value| u16::try_from(value.as_u64()?).ok().filter(|slot| usize::from(*slot) < SLOTS);
            let host = primary.first().and_then(Value::as_str).unwrap_or_default();
            let port = u16::try_from(primary.get(1)?.as_u64()?).ok()?;
            // Empty, or unknown to the node itself: the address under which it was asked.
            let host = if host.is_empty() || host == "?" { asked.host.to_string() } else { host.to_string() };
            let server = Server::new(host, port);
            let place = map.servers.iter().position(|known| *known == server).unwrap_or_else(|| {
                map.servers.push(server);
                map.servers.len() - 1
            });
            map.ranges.push(Range { slots: slot(first)?..=slot(last)?, node: u16::try_from(place).ok()? });
        }
        (!map.ranges.is_empty()).then_some(map)
    }
}

/// What a process knows of its cluster.
#[derive(Debug, Clone)]
pub(super) struct Topology(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    map: watch::Sender<Arc<SlotMap>>,
    look: Notify,
}

impl Topology {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { map: watch::Sender::new(Arc::default()), look: Notify::new() }))
    }

    /// The cluster may have changed: the process reads it soon.
    pub(super) fn refresh(&self) {
        self.0.look.notify_one();
    }

    /// The map, and each later one.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<SlotMap>> {
        self.0.map.subscribe()
    }

    /// Follows the cluster, for all workers of the process. It asks by this worker's connections. While none
    /// of them answers, it asks by new ones to the addresses that were ever known. `connected` names those
    /// connections, and is `None` once the worker has ended.
    pub(super) async fn follow(
        self,
        template: Template,
        connected: impl Fn() -> Option<Vec<(Client, Server)>>,
    ) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut known, mut looks, mut turn) = (0, 1, 0usize);
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = self.0.look.notified() => {
                    looks = LOOKS;
                    // Many commands meet a moved slot at once; instances look at different moments.
                    next = next.max(Instant::now() + Duration::from_millis(fastrand::u64(5..30)));
                    tokio::time::sleep_until(next).await;
                    // A slot may be on its way for seconds, and each command that meets it asks for a look.
                    next = Instant::now() + LOOK_PAUSE;
                }
                _ = ticks.tick() => {}
            }
            let Some(connected) = connected() else { return };
            turn = turn.wrapping_add(1);
            let read = if connected.is_empty() {
                self.dial(&template, known).await
            } else {
                let (client, server) = &connected[turn % connected.len()];
                let read = self.read(client, server, known, looks > 0).await;
                read.inspect_err(|error| {
                    debug!(error = words(error), "the cluster's state could not be read")
                })
                .ok()
            };
            match read {
                Some(epoch) if epoch > known => (known, looks) = (epoch, LOOKS),
                Some(_) => looks = looks.saturating_sub(1),
                None => {}
            }
        }
    }

    /// Reads the cluster by way of one node. A node that is behind what is known already is not believed. The epoch
    /// that it knows.
    async fn read(&self, client: &Client, server: &Server, known: u64, always: bool) -> Result<u64, Error> {
        let info = client.cluster_info::<String>().await?;
        let epoch = info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:"));
        let epoch = epoch.and_then(|epoch| epoch.trim().parse().ok()).unwrap_or(0);
        if epoch < known || (epoch == known && !always) {
            return Ok(epoch);
        }
        let answer = client.cluster_slots::<Value>().await?;
        self.0.map.send_if_modified(|map| match map.after(&answer, server) {
            Some(new) if new != **map => {
                *map = Arc::new(new);
                true
            }
            _ => false,
        });
        Ok(epoch)
    }

    /// Asks the addresses in the URL and those that were known, one after the other.
    async fn dial(&self, template: &Template, known: u64) -> Option<u64> {
        let mut servers = self.0.map.borrow().servers.clone();
        servers.extend(template.seeds());
        for server in servers {
            let Ok(client) = template.client(Some(&server), false) else { continue };
            let read = timeout(CALL_LIMIT, async {
                client.init().await?;
                self.read(&client, &server, known, true).await
            });
            let read = read.await;
            close(&client).await;
            if let Ok(Ok(epoch)) = read {
                return Some(epoch);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(first: i64, last: i64, host: Value, port: i64) -> Value {
        let primary = Value::Array(vec![host, port.into(), "id".into(), Value::Array(Vec::new())]);
        Value::Array(vec![first.into(), last.into(), primary])
    }

    #[test]
    fn a_map_is_read_and_nodes_keep_their_numbers() {
        let asked = Server::new("10.0.0.1", 7000);
        let first =
            Value::Array(vec![entry(0, 5460, "".into(), 7000), entry(5461, 16_383, "10.0.0.2".into(), 7001)]);
        let map = SlotMap::default().after(&first, &asked).unwrap();
        assert_eq!(map.serving(), [(0, asked.clone()), (1, Server::new("10.0.0.2", 7001))]);
        let later = Value::Array(vec![
            entry(0, 16_000, "10.0.0.3".into(), 7002),
            entry(16_001, 16_383, "10.0.0.2".into(), 7001),
        ]);
        let map = map.after(&later, &asked).unwrap();
        assert_eq!(map.serving(), [(1, Server::new("10.0.0.2", 7001)), (2, Server::new("10.0.0.3", 7002))]);
        assert_eq!(map.ranges[0], Range { slots: 0..=16_000, node: 2 });
        let unknown = Value::Array(vec![entry(0, 1, Value::Null, 7000)]);
        assert_eq!(map.after(&unknown, &asked).unwrap().serving(), [(0, asked)]);
    }

    #[test]
    fn what_has_another_form_is_no_map() {
        let asked = Server::new("10.0.0.1", 7000);
        let answers = [
            Value::Null,
            Value::Array(Vec::new()),
            Value::Array(vec![entry(0, 16_384, "a".into(), 1)]),
            Value::Array(vec![entry(0, 1, "a".into(), 70_000)]),
            Value::Array(vec!["a".into()]),
            Value::Array(vec![Value::Array(vec![0.into(), 1.into()])]),
        ];
        for answer in answers {
            assert_eq!(SlotMap::default().after(&answer, &asked), None, "{answer:?}");
        }
    }
}
