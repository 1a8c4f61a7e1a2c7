//! A rolling restart of three real relays behind a real HAProxy with the shipped configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::balancer::Balancer;
use crate::device::{Device, Seen};
use crate::support::{
    Client, Config, Event, Handshake, Issuer, RedisServer, Relay, Token, free_port,
};

const USERS: usize = 200;
const CLASSIC: usize = 90;
/// Longer than HAProxy takes to notice: two checks, the second after 250 ms.
const DELAY: u32 = 2;
const DRAIN: u32 = 5;

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

/// A classic client: nobody tells it anything before it is closed, and then it comes back after a short
/// back-off of its own.
struct Classic {
    user: usize,
    handshake: Handshake,
    client: Client,
}

impl Classic {
    async fn start(to: SocketAddr, user: usize) -> Self {
        let token = Token::firebase(&format!("classic-{user}")).sign();
        let handshake = Handshake::new(to).bearer(&token);
        let client = handshake.open().await;
        Self {
            user,
            handshake,
            client,
        }
    }

    /// When it was closed, counted from `start`, until it is told to stop.
    async fn come_back(mut self, start: Instant, mut stop: watch::Receiver<bool>) -> Vec<Duration> {
        let mut closed = Vec::new();
        loop {
            tokio::select! {
                _ = stop.changed() => return closed,
                event = self.client.next_within(Duration::from_secs(120)) => {
                    assert!(matches!(event, Event::Close(1012, _)), "{}: {event:?}", self.user);
                    closed.push(start.elapsed());
                }
            }
            // Half a second at most, by the user and not by chance.
            let back_off = Duration::from_millis(self.user as u64 * 7919 % 500);
            tokio::time::sleep(back_off).await;
            self.client = self.handshake.open().await;
            // It is in its room: a classic message comes back to its sender.
            self.client.send_text("back").await;
            assert!(self.client.expect_text().await.ends_with("Message: back\n"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_is_not_seen_by_v1_clients_and_spreads_classic_ones() {
    let mut fleet = Fleet::start("").await;
    let to = fleet.balancer.public;
    let (streaming, is_streaming) = watch::channel(true);
    let (mut pairs, mut classic) = (Vec::new(), Vec::new());
    for user in 0..USERS {
        pairs.push(tokio::join!(
            Device::start(to, user, "desktop"),
            Device::start(to, user, "mobile")
        ));
    }
    for user in 0..CLASSIC {
        classic.push(Classic::start(to, user).await);
    }
    // Nothing is measured before all are there.
    let start = Instant::now();
    let users: Vec<_> = pairs
        .into_iter()
        .map(|(desktop, mobile)| tokio::spawn(stream(desktop, mobile, is_streaming.clone())))
        .collect();
    let classic: Vec<_> = classic
        .into_iter()
        .map(|client| tokio::spawn(client.come_back(start, is_streaming.clone())))
        .collect();
    for number in 0..3 {
        fleet.restart(number).await;
    }
    streaming.send(false).unwrap();

    let users: Vec<_> = join_all(users)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    not_seen(&users);
    let closed: Vec<_> = join_all(classic)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    spread(&closed);
}

fn not_seen(users: &[[Seen; 2]]) {
    for (user, [desktop, mobile]) in users.iter().enumerate() {
        let mut received = mobile.received.clone();
        received.sort_unstable();
        assert!(
            received.iter().copied().eq(0..desktop.sent),
            "user {user} was sent 0..{}, and received {received:?}",
            desktop.sent
        );
    }
    let moves: usize = users.iter().flatten().map(|seen| seen.moves).sum();
    let frames: u32 = users.iter().map(|[desktop, _]| desktop.sent).sum();
    let silence = users
        .iter()
        .map(|[_, mobile]| mobile.silence)
        .max()
        .unwrap();
    println!("{moves} moves, {frames} reliable frames, longest silence {silence:?}");
    // Every socket was on one of the three relays, so it had to move at least once.
    assert!(moves >= 2 * USERS, "{moves} moves");
    assert!(silence < Duration::from_millis(250), "{silence:?}");
}

/// Each came back each time (or its task had failed), and they were not sent away together.
fn spread(closed: &[Vec<Duration>]) {
    assert!(closed.iter().all(|times| !times.is_empty()));
    let mut times: Vec<_> = closed.iter().flatten().copied().collect();
    times.sort_unstable();
    // Three drains of DRAIN seconds: a tenth of one has at most three times its even share.
    let window = Duration::from_secs(DRAIN.into()) / 10;
    let busiest = times.iter().map(|&from| {
        times
            .iter()
            .filter(|&&time| time >= from && time < from + window)
            .count()
    });
    let busiest = busiest.max().unwrap();
    println!(
        "{} classic sockets closed, {busiest} at most within {window:?}",
        times.len()
    );
    assert!(busiest <= times.len() / 10, "{busiest} of {}", times.len());
}
