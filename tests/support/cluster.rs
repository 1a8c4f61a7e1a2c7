//! A Redis cluster for a test.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::redis::{clear_away_at_exit, cluster_address};
use super::{RedisServer, ask};

/// How long a cluster may take until it is one. Redis itself waits 2 s at its start.
const FORMS_WITHIN: Duration = Duration::from_secs(30);
/// The slots of a cluster.
const SLOTS: u16 = 16_384;

/// Three masters that share the slots evenly, and replicas of them.
#[derive(Debug)]
pub struct Cluster {
    /// The masters in the order of their slots, then the replicas.
    pub nodes: Vec<RedisServer>,
}

impl Cluster {
    /// Starts three masters, and a replica of each of the first `replicas`, which take over after a second.
    pub async fn start(replicas: usize) -> Self {
        let masters: Vec<usize> = (0..replicas).collect();
        Self::start_with(&masters, &["--cluster-node-timeout", "1000"]).await
    }

    /// Starts three masters, and a replica of each of these, with more arguments for all of them.
    pub async fn start_with(masters: &[usize], more: &[&str]) -> Self {
        let replicas = masters.len();
        let starts = (0..3 + replicas).map(|_| async {
            for _ in 0..10 {
                let mut arguments = vec![
                    "--cluster-enabled",
                    "yes",
                    "--cluster-config-file",
                    "nodes.conf",
                    "--repl-diskless-sync-delay",
                    "0",
                    "--cluster-allow-replica-migration",
                    "no",
                ];
                arguments.extend(more);
                if let Some(node) = RedisServer::try_start_with(cluster_address(), &arguments).await {
                    return node;
                }
            }
            panic!("no port stayed free")
        });
        let cluster = Self { nodes: join_all(starts).await };
        let first = cluster.nodes[0].address();
        let (ip, port) = (first.ip().to_string(), first.port().to_string());
        for (number, node) in (0..).zip(&cluster.nodes) {
            if number < 3 {
                let (from, to) =
                    (SLOTS / 3 * number, if number == 2 { SLOTS } else { SLOTS / 3 * (number + 1) } - 1);
                node.ask(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]).await;
            }
            node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await;
            if number > 0 {
                node.ask(&["CLUSTER", "MEET", &ip, &port]).await;
            }
        }
        let deadline = Instant::now() + FORMS_WITHIN;
        cluster
            .wait("all nodes to know each other", deadline, async |node: &RedisServer| {
                node.ask(&["CLUSTER", "INFO"])
                    .await
                    .as_str()
                    .unwrap()
                    .contains(&format!("cluster_known_nodes:{}", 3 + replicas))
            })
            .await;
        for (number, master) in masters.iter().enumerate() {
            let master = cluster.id(*master).await;
            cluster.nodes[3 + number].ask(&["CLUSTER", "REPLICATE", &master]).await;
        }
        cluster
            .wait("the cluster to form", deadline, async |node: &RedisServer| {
                node.ask(&["CLUSTER", "INFO"]).await.as_str().unwrap().contains("cluster_state:ok")
                    && node
                        .ask(&["CLUSTER", "SLOTS"])
                        .await
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|range| range.as_array().unwrap().len() - 3)
                        .sum::<usize>()
                        == replicas
            })
            .await;
        for replica in &cluster.nodes[3..] {
            while !replica
                .ask(&["INFO", "replication"])
                .await
                .as_str()
                .unwrap()
                .contains("master_link_status:up")
            {
                assert!(Instant::now() < deadline, "a replica does not follow its master");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        cluster
    }

    /// A cluster that stays until the test process ends.
    pub async fn start_shared() -> Self {
        let cluster = Self::start(0).await;
        clear_away_at_exit(&cluster.nodes.iter().collect::<Vec<_>>());
        cluster
    }

    async fn wait(&self, what: &str, deadline: Instant, is_so: impl AsyncFn(&RedisServer) -> bool) {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        for node in &self.nodes {
            while !is_so(node).await {
                assert!(Instant::now() < deadline, "waited {FORMS_WITHIN:?} for {what}");
                pause.tick().await;
            }
        }
    }

    /// For `REDIS_URL`: any node will do.
    pub fn url(&self) -> String {
        format!("redis-cluster://{}", self.nodes[0].address())
    }

    /// Lets the cluster name another address for a node: that of a proxy in front of it.
    pub async fn announce(&self, node: usize, address: SocketAddr) {
        let port = address.port().to_string();
        let node = &self.nodes[node];
        node.ask(&["CONFIG", "SET", "cluster-announce-port", &port]).await;
        let deadline = Instant::now() + FORMS_WITHIN;
        self.wait("the new address to be known", deadline, async |node: &RedisServer| {
            node.ask(&["CLUSTER", "SLOTS"]).await.to_string().contains(&port)
        })
        .await;
    }

    /// How often all nodes together were asked this (`cluster|slots`).
    pub async fn calls(&self, command: &str) -> u64 {
        let calls = self.nodes.iter().map(async |node| {
            let stats = node.ask(&["INFO", "commandstats"]).await;
            let of = format!("cmdstat_{command}:calls=");
            let line =
                stats.as_str().unwrap().lines().find_map(|line| line.strip_prefix(&of)?.split(',').next());
            line.map_or(0, |calls| calls.parse::<u64>().unwrap())
        });
        join_all(calls).await.into_iter().sum()
    }

    /// The id of a node.
    pub async fn id(&self, node: usize) -> String {
        self.nodes[node].ask(&["CLUSTER", "MYID"]).await.as_str().unwrap().to_owned()
    }

    /// The slot of a key.
    pub async fn slot(&self, key: &str) -> u16 {
        let slot = self.nodes[0].ask(&["CLUSTER", "KEYSLOT", key]).await;
        u16::try_from(slot.as_u64().unwrap()).unwrap()
    }

    /// The master (one of the first three) that had a slot at the start.
    pub fn first_owner(&self, slot: u16) -> usize {
        usize::from(slot / (SLOTS / 3)).min(2)
    }

    /// Moves a slot with its keys, as `redis-cli --cluster reshard` does. Between the keys and the slot there may be
    /// some time, in which Redis answers ASK.
    pub async fn migrate(&self, slot: u16, from: usize, to: usize, between: Duration) {
        self.move_keys(slot, from, to).await;
        tokio::time::sleep(between).await;
        self.hand_over(slot, from, to).await;
    }

    /// The first half: the slot's keys have moved, and Redis answers ASK.
    pub async fn move_keys(&self, slot: u16, from: usize, to: usize) {
        let (from_id, to_id) = (self.id(from).await, self.id(to).await);
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let slot = slot.to_string();
        target.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
        source.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
        let (ip, port) = (target.address().ip().to_string(), target.address().port().to_string());
        loop {
            let keys = source.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
            let keys: Vec<_> =
                keys.as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect();
            if keys.is_empty() {
                break;
            }
            let mut command = vec!["MIGRATE", &ip, &port, "", "0", "5000", "KEYS"];
            command.extend(keys.iter().map(String::as_str));
            source.ask(&command).await;
        }
    }

    /// The second half: the slot itself moves.
    pub async fn hand_over(&self, slot: u16, from: usize, to: usize) {
        let (slot, to_id) = (slot.to_string(), self.id(to).await);
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        for node in [target, source].into_iter().chain(&self.nodes) {
            // A node that has heard of it from the others meanwhile, or a replica, may refuse.
            let _ = ask(node.address(), &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await;
        }
    }
}
