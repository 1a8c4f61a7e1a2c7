//! Behind each balancer that a configuration is shipped for, both devices of a user meet on one relay.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::time::Instant;

use crate::support::{
    Balancer, Client, Config, Event, Handshake, Issuer, Kind, LIMIT, RedisServer, Relay, Token, request,
};

/// `PAIRS=500` for the long form.
fn pairs() -> usize {
    std::env::var("PAIRS").ok().and_then(|number| number.parse().ok()).unwrap_or(120)
}

/// What each mobile sends to its desktop.
const FRAMES: u8 = 10;
/// Handshakes under way at the same time.
const AT_ONCE: usize = 16;

/// The key that the libraries send: FNV-1a, 32 bits, of the uid.
fn affinity(uid: &str) -> String {
    let hash =
        uid.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("affinity={hash:08x}")
}

struct Place {
    balancer: Balancer,
    relays: Vec<Option<Relay>>,
    redis: RedisServer,
    issuer: Issuer,
}

impl Place {
    async fn start(kind: Kind) -> Self {
        let (issuer, redis) = (Issuer::start(), RedisServer::start().await);
        let balancer = Balancer::start(kind, 3).await;
        let mut place = Self { balancer, relays: Vec::new(), redis, issuer };
        for number in 0..3 {
            let relay = place.config(number).start().await;
            place.relays.push(Some(relay));
        }
        place.settle(3).await;
        place
    }

    fn config(&self, number: u8) -> Config {
        Config::new(&self.issuer)
            .set("REDIS_URL", self.redis.url())
            .set("DUORELAY_LISTEN", self.balancer.relay(number))
            .set("DUORELAY_DRAIN_DELAY_SECONDS", 0)
            .set("DUORELAY_DRAIN_SECONDS", 1)
            .set("RUST_LOG", "warn")
    }

    async fn leave(&mut self, number: usize) {
        let mut relay = self.relays[number].take().unwrap();
        relay.signal("TERM");
        assert_eq!(relay.exit(LIMIT).await.code(), Some(0));
    }

    fn desktop(&self, uid: &str) -> Handshake {
        Handshake::new(self.balancer.address).offer(&["duorelay.v1", &Token::firebase(uid).sign()])
    }

    fn mobile(&self, uid: &str) -> Handshake {
        Handshake::new(self.balancer.address).offer(&["duorelay.v1"]).bearer(&Token::firebase(uid).sign())
    }

    /// Waits until new sockets are spread over exactly so many relays.
    async fn settle(&self, relays: usize) {
        let deadline = Instant::now() + 2 * LIMIT;
        loop {
            let probes = stream::iter(0..40).map(|number| async move {
                let uid = format!("probe-{number}");
                let opened = self.desktop(&uid).query(&affinity(&uid)).try_open().await.ok()?.ok();
                Some(instance(&welcomed(opened?).await))
            });
            let found: Vec<_> = probes.buffer_unordered(AT_ONCE).collect().await;
            let distinct: std::collections::BTreeSet<_> = found.iter().flatten().collect();
            if distinct.len() == relays && found.iter().all(Option::is_some) {
                return;
            }
            assert!(Instant::now() < deadline, "{} relays take sockets and not {relays}", distinct.len());
        }
    }

    /// Connects all users' devices, the two of a user one after the other, as phones and pages do.
    async fn connect(&self) -> Vec<[Client; 2]> {
        let users = stream::iter(0..pairs()).map(|number| async move {
            let uid = format!("user {number}");
            let desktop = self.desktop(&uid).query(&affinity(&uid)).client("page").open_v1().await;
            let mobile = self.mobile(&uid).query(&affinity(&uid)).client("app").open_v1().await;
            [desktop, mobile]
        });
        users.buffer_unordered(AT_ONCE).collect().await
    }

    /// At least 97 % of the pairs are on one relay, and their frames are no command of Redis.
    async fn assert_together(&self, mut open: Vec<[Client; 2]>) -> Vec<[Client; 2]> {
        let apart = open.iter().filter(|[desktop, mobile]| instance(desktop) != instance(mobile)).count();
        assert!(100 * apart <= 3 * open.len(), "{apart} of {} pairs are apart", open.len());
        let before = self.frames_over_redis().await;
        for [_, mobile] in &mut open {
            for frame in 0..FRAMES {
                mobile.send_frame(0x80, &[frame]).await;
            }
        }
        for [desktop, _] in &mut open {
            while desktop.next().await != Event::Binary(vec![0x80, FRAMES - 1]) {}
        }
        let over_redis = self.frames_over_redis().await - before;
        assert!(over_redis <= f64::from(FRAMES) * 0.03 * open.len() as f64, "{over_redis} frames took Redis");
        open
    }

    async fn frames_over_redis(&self) -> f64 {
        let relays = stream::iter(self.relays.iter().flatten());
        let counts = relays.then(|relay| relay.metric("duorelay_frames_total", &["path=\"backplane\""]));
        counts.fold(0.0, |sum, count| async move { sum + count }).await
    }

    fn spread(&self, open: &[Client]) -> BTreeMap<String, usize> {
        let mut sockets = BTreeMap::new();
        for client in open {
            *sockets.entry(instance(client)).or_default() += 1;
        }
        sockets
    }
}

fn instance(client: &Client) -> String {
    client.welcome["instance"].as_str().unwrap().to_owned()
}

async fn welcomed(mut client: Client) -> Client {
    client.welcome = client.expect_json("welcome").await;
    client
}

/// Pairs meet at first, when the fleet has grown, when it has shrunk again, and after a rolling restart. Each
/// time the test waits until every socket has reconnected.
async fn pairs_meet(kind: Kind) {
    let mut place = Place::start(kind).await;
    let open = place.connect().await;
    let open = place.assert_together(open).await;

    for number in 3..5 {
        let relay = place.config(number).start().await;
        place.relays.push(Some(relay));
    }
    place.balancer.scale(5).await;
    place.settle(5).await;
    drop(open);
    let open = place.connect().await;
    let open = place.assert_together(open).await;

    place.balancer.scale(3).await;
    place.leave(4).await;
    place.leave(3).await;
    place.settle(3).await;
    drop(open);
    let open = place.connect().await;
    let open = place.assert_together(open).await;

    for number in 0..3 {
        place.leave(usize::from(number)).await;
        place.relays[usize::from(number)] = Some(place.config(number).start().await);
        place.settle(3).await;
    }
    drop(open);
    let open = place.connect().await;
    place.assert_together(open).await;
}

/// Clients that send no parameter spread over all relays.
async fn others_spread(kind: Kind) {
    let place = Place::start(kind).await;
    let clients = stream::iter(0..pairs()).map(|number| {
        let place = &place;
        async move { place.desktop(&format!("other {number}")).open_v1().await }
    });
    let open: Vec<_> = clients.buffer_unordered(AT_ONCE).collect().await;
    let spread = place.spread(&open);
    let least = open.len() / 6;
    assert!(spread.len() == 3 && spread.values().all(|sockets| *sockets >= least), "{spread:?}");
}

/// One of three relays is full and one leaves. Everybody gets in by the attempts that a library makes, two
/// with the parameter and then without it.
async fn all_get_in(kind: Kind) {
    let (issuer, redis) = (Issuer::start(), RedisServer::start().await);
    let balancer = Balancer::start(kind, 3).await;
    let mut place = Place { balancer, relays: Vec::new(), redis, issuer };
    for number in 0..3 {
        let config = place.config(number);
        let config = match number {
            0 => config.set("DUORELAY_MAX_CONNECTIONS", 1),
            // It refuses from the first second on, and stays for a while.
            1 => config.set("DUORELAY_DRAIN_SECONDS", 60),
            _ => config,
        };
        place.relays.push(Some(config.start().await));
    }
    let full =
        Handshake::new(place.balancer.relay(0)).offer(&["duorelay.v1", &Token::firebase("first").sign()]);
    let _first = full.open_v1().await;
    // A socket of its own keeps the leaving relay from ending.
    let stays =
        Handshake::new(place.balancer.relay(1)).offer(&["duorelay.v1", &Token::firebase("second").sign()]);
    let _second = stays.open_v1().await;
    place.relays[1].as_ref().unwrap().signal("TERM");
    let is_ready = async |of| {
        request(of, "GET", "/healthz/ready", &[], b"").await.is_ok_and(|ready| ready.status == 200)
    };
    let deadline = Instant::now() + LIMIT;
    while is_ready(place.balancer.relay(1)).await {
        assert!(Instant::now() < deadline, "the relay goes on as if nothing had happened");
    }
    // The balancer has just been started: somebody comes in once it knows the third relay.
    while !matches!(place.desktop("early").try_open().await, Ok(Ok(_))) {
        assert!(Instant::now() < deadline, "nobody gets in");
    }

    let clients = stream::iter(0..60).map(|number| {
        let place = &place;
        async move {
            let uid = format!("late {number}");
            let deadline = Instant::now() + LIMIT;
            for attempt in 0.. {
                let handshake = place.desktop(&uid);
                let handshake = if attempt < 2 { handshake.query(&affinity(&uid)) } else { handshake };
                if let Ok(Ok(client)) = handshake.try_open().await {
                    return (attempt, welcomed(client).await);
                }
                assert!(Instant::now() < deadline, "{uid} was refused {attempt} times");
                tokio::time::timeout(Duration::from_millis(50), std::future::pending::<()>())
                    .await
                    .unwrap_err();
            }
            unreachable!()
        }
    });
    let open: Vec<_> = clients.buffer_unordered(AT_ONCE).collect().await;
    let last = open.iter().map(|(attempt, _)| *attempt).max().unwrap();
    assert!(last <= 6, "somebody needed {last} more attempts");
}

macro_rules! behind {
    ($module:ident, $kind:expr) => {
        mod $module {
            use super::*;

            #[tokio::test]
            async fn both_devices_of_a_user_meet_on_one_relay() {
                pairs_meet($kind).await;
            }

            #[tokio::test]
            async fn clients_without_the_parameter_spread() {
                others_spread($kind).await;
            }

            #[tokio::test]
            async fn all_get_in_while_one_relay_is_full_and_one_leaves() {
                all_get_in($kind).await;
            }
        }
    };
}

behind!(haproxy, Kind::HaProxy);
behind!(nginx, Kind::Nginx);
behind!(envoy, Kind::Envoy);
