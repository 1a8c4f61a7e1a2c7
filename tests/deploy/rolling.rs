//! A rolling restart of three real relays behind a real HAProxy with the shipped configuration.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;

use crate::balancer::Balancer;
use crate::device::{Device, Seen};
use crate::support::{Config, Issuer, RedisServer, Relay, free_port};

const USERS: usize = 200;
/// Longer than HAProxy takes to notice: two checks, the second after 250 ms.
const DELAY: u32 = 2;
const DRAIN: u32 = 3;

/// Relays on one port of several loopback addresses, as in a network of containers.
struct Fleet {
    configs: Vec<Config>,
    relays: Vec<Relay>,
    balancer: Balancer,
    _redis: RedisServer,
    _issuer: Issuer,
}

impl Fleet {
    async fn start(affinity: &str) -> Self {
        let (issuer, redis, port) = (Issuer::start(), RedisServer::start().await, free_port());
        let addresses: Vec<_> = (1..=3)
            .map(|last| Ipv4Addr::new(127, 77, 0, last))
            .collect();
        let configs: Vec<_> = addresses
            .iter()
            .map(|address| {
                Config::new(&issuer)
                    .set("REDIS_URL", redis.url())
                    .set("DUORELAY_LISTEN", format!("{address}:{port}"))
                    .set("DUORELAY_DRAIN_DELAY_SECONDS", DELAY)
                    .set("DUORELAY_DRAIN_SECONDS", DRAIN)
                    .set("DUORELAY_WORKERS", 1)
                    .set("RUST_LOG", "info")
            })
            .collect();
        let relays = join_all(configs.iter().map(Config::start)).await;
        let balancer = Balancer::start(addresses, port, affinity).await;
        Self {
            configs,
            relays,
            balancer,
            _redis: redis,
            _issuer: issuer,
        }
    }

    /// Stops one relay as every platform does, and starts it again.
    async fn restart(&mut self, number: usize) {
        let relay = &mut self.relays[number];
        relay.signal("TERM");
        let limit = Duration::from_secs(u64::from(DELAY + DRAIN) + 4);
        let exit = relay.exit(limit).await;
        assert_eq!(exit.code(), Some(0), "{}", relay.log());
        self.relays[number] = self.configs[number].start().await;
    }
}

/// Streams from a user's desktop to the mobile until `streaming` turns false, and longer, until all that was
/// sent reliably is there.
async fn stream(
    mut desktop: Device,
    mut mobile: Device,
    streaming: watch::Receiver<bool>,
) -> [Seen; 2] {
    let (tell, expected) = watch::channel(None);
    let sending = async {
        desktop.send(streaming).await;
        tell.send(Some(desktop.seen.sent)).unwrap();
    };
    tokio::join!(sending, mobile.receive(expected));
    [desktop.seen, mobile.seen]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_reliable_frame_and_is_not_seen() {
    let mut fleet = Fleet::start("").await;
    let to = fleet.balancer.public;
    let (streaming, is_streaming) = watch::channel(true);
    let mut users = Vec::new();
    for user in 0..USERS {
        let (desktop, mobile) = tokio::join!(
            Device::start(to, user, "desktop"),
            Device::start(to, user, "mobile")
        );
        users.push(tokio::spawn(stream(desktop, mobile, is_streaming.clone())));
    }
    for number in 0..3 {
        fleet.restart(number).await;
    }
    streaming.send(false).unwrap();

    let users: Vec<_> = join_all(users)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    for (user, [desktop, mobile]) in users.iter().enumerate() {
        let mut received = mobile.received.clone();
        received.sort_unstable();
        let lost: Vec<u32> = (0..desktop.sent)
            .filter(|number| !received.contains(number))
            .collect();
        if !lost.is_empty() || received.len() != desktop.sent as usize {
            println!(
                "user {user}: {lost:?} lost of {}, {} received; moved when {:?} were sent; mobile {:?}",
                desktop.sent,
                received.len(),
                desktop.moved_at,
                mobile.moved_at
            );
        }
    }
    let silence = users
        .iter()
        .map(|[_, mobile]| mobile.silence)
        .max()
        .unwrap();
    let moves: usize = users.iter().flatten().map(|seen| seen.moves).sum();
    let frames: u32 = users.iter().map(|[desktop, _]| desktop.sent).sum();
    println!("{moves} moves, {frames} reliable frames, longest silence {silence:?}");
    // Every socket was on one of the three relays, so it had to move at least once.
    assert!(moves >= 2 * USERS, "{moves} moves");
    assert!(silence < Duration::from_millis(250), "{silence:?}");
}
