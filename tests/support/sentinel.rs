//! A Redis with a replica and a Sentinel that lets the replica take over.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::{LIMIT, RedisServer};

/// A master without an answer for this long is replaced.
const DOWN_AFTER: Duration = Duration::from_millis(500);

/// One master, one replica, one Sentinel.
#[derive(Debug)]
pub struct Sentinel {
    /// Killed by a test: the replica takes over.
    pub master: RedisServer,
    /// The replica.
    pub replica: RedisServer,
    sentinel: RedisServer,
}

impl Sentinel {
    /// Starts all three and waits until the Sentinel knows the replica.
    pub async fn start() -> Self {
        let arguments = ["--repl-diskless-sync-delay", "0"];
        let master = RedisServer::start_with(&arguments).await;
        let (ip, port) = (master.address().ip().to_string(), master.address().port().to_string());
        let replica = RedisServer::start_with(&["--replicaof", &ip, &port, arguments[0], arguments[1]]).await;
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(Duration::from_millis(5));
        while !replica.ask(&["INFO", "replication"]).await.as_str().unwrap().contains("master_link_status:up")
        {
            assert!(Instant::now() < deadline, "the replica does not follow");
            pause.tick().await;
        }
        let sentinel = RedisServer::start_sentinel(master.address(), DOWN_AFTER).await;
        let sentinel = Self { master, replica, sentinel };
        while sentinel
            .sentinel
            .ask(&["SENTINEL", "REPLICAS", "mymaster"])
            .await
            .as_array()
            .unwrap()
            .is_empty()
        {
            assert!(Instant::now() < deadline, "the Sentinel does not know the replica");
            pause.tick().await;
        }
        sentinel
    }

    /// For `REDIS_URL`.
    pub fn url(&self) -> String {
        format!("redis-sentinel://{}?sentinelServiceName=mymaster", self.sentinel.address())
    }

    /// Who is the master now, as the Sentinel says.
    pub async fn current(&self) -> SocketAddr {
        let answer = self.sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]).await;
        format!("{}:{}", answer[0].as_str().unwrap(), answer[1].as_str().unwrap()).parse().unwrap()
    }
}
