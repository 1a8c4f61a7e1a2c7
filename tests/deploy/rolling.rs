//! All relays behind the balancer are restarted, one after the other, while clients go on.

use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Client, Config, Event, HaProxy, Handshake, Issuer, LIMIT, RedisServer, Relay, Token};

/// The balancer looks each second, and twice in a quarter of one before it believes: that fits.
const DELAY: Duration = Duration::from_secs(3);
const DRAIN: Duration = Duration::from_secs(6);
/// Over so much of the drain time a relay spreads the departures.
const SPREAD: f64 = 0.8;

struct Fleet {
    balancer: HaProxy,
    configs: Vec<Config>,
    relays: Vec<Relay>,
    _redis: RedisServer,
    _issuer: Issuer,
}

impl Fleet {
    /// Three demos or three common relays, as in docker-compose.yml.
    async fn start(demo: bool) -> Self {
        let (issuer, redis) = (Issuer::start(), RedisServer::start().await);
        let balancer = HaProxy::start(3, "").await;
        let configure = |address| {
            let config = Config::new(&issuer);
            let config = if demo { config.without_command().arg("demo") } else { config };
            config
                .arg("--redis-url")
                .arg(&redis.url())
                .set("DUORELAY_LISTEN", address)
                .set("DUORELAY_DRAIN_DELAY_SECONDS", DELAY.as_secs())
                .set("DUORELAY_DRAIN_SECONDS", DRAIN.as_secs())
                .set("RUST_LOG", "warn")
        };
        let configs: Vec<_> = balancer.relays.iter().map(configure).collect();
        let relays = join_all(configs.iter().map(Config::start)).await;
        balancer.wait_for(3).await;
        Self { balancer, configs, relays, _redis: redis, _issuer: issuer }
    }

    /// Restarts each relay when the one before takes sockets again. Returns when each got SIGTERM.
    async fn roll(&mut self) -> Vec<Instant> {
        let mut signalled = Vec::new();
        for (relay, config) in self.relays.iter_mut().zip(&self.configs) {
            signalled.push(Instant::now());
            relay.signal("TERM");
            let status = relay.exit(DELAY + DRAIN + Duration::from_secs(3)).await;
            assert_eq!(status.code(), Some(0));
            *relay = config.start().await;
            self.balancer.wait_for(3).await;
        }
        signalled
    }
}

#[tokio::test]
async fn streams_of_clients_that_make_before_they_break_go_on_through_a_rolling_restart() {
    const USERS: u32 = 200;
    // On each of the two streams: what a build without optimisation manages on two cores. More would measure how late
    // an overloaded machine is.
    const FPS: f64 = 10.0;
    // 250 ms are meant for 30 frames a second; between two of these is so much more time.
    const SILENCE: f64 = 0.25 + 1.0 / FPS - 1.0 / 30.0;
    let mut fleet = Fleet::start(true).await;
    let balancer = fleet.balancer.address;
    let load = Command::new(env!("CARGO_BIN_EXE_duorelay"))
        .args(["loadtest", "rolling", "--direction=to-mobile", "--duration=300s", "--warmup=0s", "--json=-"])
        .arg(format!("--url=ws://{balancer}/ws"))
        .arg(format!("--tokens=demo:http://{balancer}"))
        .arg(format!("--users={USERS}"))
        .arg(format!("--fps={FPS}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    fleet.relays[0].wait_for_metric("duorelay_frames_total", &[], 1000.0).await;
    fleet.roll().await;

    // It ends with the figures so far.
    let pid = rustix::process::Pid::from_raw(load.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = timeout(LIMIT * 2, load.wait_with_output()).await.expect("the figures").unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = &report["figures"];
    eprintln!("{figures}");
    for none in
        ["lost", "duplicates", "out_of_order", "wrong_user", "vanished", "unsent", "refused", "failed"]
    {
        assert_eq!(figures[none], 0.0, "{none}: {report}");
    }
    // For a moment a moving device has two.
    assert!(figures["connected"].as_f64().unwrap() >= f64::from(USERS * 2), "{report}");
    // Every socket was on some relay when that left.
    assert!(figures["reconnects"].as_f64().unwrap() >= f64::from(USERS * 2), "{report}");
    // How late frames come that have nothing to do with a move is the machine's business.
    let late = figures["p999"].as_f64().unwrap();
    assert!(figures["silence"].as_f64().unwrap() < SILENCE + late, "{report}");
}

/// A classic client's way back after a 1012.
struct Return {
    closed: Instant,
    /// It waits so long, as it was written to.
    back_off: Duration,
    took: Duration,
}

/// Comes back after each 1012 until it has to stop; a handshake that is refused fails the test.
async fn live(handshake: Handshake, mut stop: watch::Receiver<bool>) -> (Client, Vec<Return>) {
    let mut client = handshake.open().await;
    let mut returns = Vec::new();
    loop {
        let event = tokio::select! {
            event = client.next_within(Duration::from_secs(120)) => event,
            _ = stop.wait_for(|stopped| *stopped) => return (client, returns),
        };
        match event {
            Event::Close(1012, _) => {
                let closed = Instant::now();
                let back_off = Duration::from_millis(fastrand::u64(0..1000));
                sleep(back_off).await;
                client = handshake.open().await;
                returns.push(Return { closed, back_off, took: closed.elapsed() });
            }
            other => panic!("a classic client heard {other:?}"),
        }
    }
}

/// The largest distance between the distribution of these and the uniform one on 0..1 (Kolmogorov and Smirnov).
fn distance_from_uniform(mut places: Vec<f64>) -> f64 {
    places.sort_by(f64::total_cmp);
    let count = places.len() as f64;
    let distance = |(rank, place): (usize, &f64)| {
        let place = place.clamp(0.0, 1.0);
        (place - rank as f64 / count).abs().max((place - (rank + 1) as f64 / count).abs())
    };
    places.iter().enumerate().map(distance).fold(0.0, f64::max)
}

#[tokio::test]
async fn classic_clients_come_back_one_by_one_through_a_rolling_restart() {
    const USERS: usize = 50;
    let mut fleet = Fleet::start(false).await;
    let (stop, stopped) = watch::channel(false);
    let mut lives = Vec::new();
    for number in 0..USERS {
        let token = Token::firebase(&format!("user-{number}")).sign();
        let handshake = || Handshake::new(fleet.balancer.address);
        for handshake in [handshake().offer(&[&token]), handshake().header("clientid", &token)] {
            lives.push(tokio::spawn(live(handshake, stopped.clone())));
        }
    }
    for relay in &fleet.relays {
        relay.wait_for_metric("duorelay_connections", &[], (USERS * 2 / 3) as f64).await;
    }
    let signalled = fleet.roll().await;
    stop.send_replace(true);
    let (mut clients, mut returns) = (Vec::new(), Vec::new());
    for life in lives {
        let (client, returned) = life.await.unwrap();
        clients.push(client);
        returns.extend(returned);
    }

    assert!(returns.len() >= USERS * 2, "every socket was on some relay when that left");
    for Return { back_off, took, .. } in &returns {
        assert!(*took < *back_off + Duration::from_secs(1), "back after {took:?}, wanted after {back_off:?}");
    }
    for (number, begin) in signalled.iter().enumerate() {
        let end = signalled.get(number + 1);
        let closed = returns.iter().map(|back| back.closed);
        let places: Vec<f64> = closed
            .filter(|closed| closed >= begin && end.is_none_or(|end| closed < end))
            .map(|closed| {
                (closed - *begin).saturating_sub(DELAY).as_secs_f64() / (SPREAD * DRAIN.as_secs_f64())
            })
            .collect();
        let count = places.len();
        // The test of Kolmogorov and Smirnov at 0.1 %. Departures that are spread evenly are nearer than
        // chance would have them. A herd, or half of all within a quarter of the time, is further away.
        let (distance, limit) = (distance_from_uniform(places), 1.95 / (count as f64).sqrt());
        eprintln!("relay {number}: {count} departures, {distance:.3} from even (limit {limit:.3})");
        assert!(count >= USERS / 2 && distance < limit, "relay {number}: {count} departures, {distance}");
    }

    // Both devices of each user are back, and `peer` says so.
    for (number, pair) in clients.chunks_mut(2).enumerate() {
        pair[0].send_text("after").await;
        for client in pair {
            let text = format!("user-{number}@example.org\nMessage: after\n");
            let wrapped = format!("\nDesktop connected: true\nMobile connected: true\nRoom: {text}");
            assert_eq!(client.expect_text().await, wrapped);
        }
    }
}
