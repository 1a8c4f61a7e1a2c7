//! A cluster's nodes fail one by one, and its slots move: only the users of what fails notice.

use std::cell::Cell;
use std::time::Duration;

use futures_util::future::{join, join_all};
use serde_json::json;
use tokio::time::{Instant, interval, sleep};

use crate::fleet::{Fleet, SLACK, WITHIN, pair, v1};
use crate::support::{Client, Cluster, LIMIT, Proxy, RedisServer, Subscriber};
use crate::traffic::Traffic;

/// Each client sends so often on each of its two lanes.
const TURN: Duration = Duration::from_millis(50);
/// The contract: whatever happens elsewhere, frames never stop for longer.
const SILENCE: Duration = Duration::from_millis(250);
/// A machine this late is busy. There a pair's frames prove only that they did not stop for as long as one that waits
/// for a dead node does.
const BUSY: Duration = Duration::from_millis(100);
const STOPPED: Duration = Duration::from_secs(2);
/// The machine may be so many times as late for the cluster's processes as for those of the control pairs.
const CHANCE: u32 = 3;
/// What a node had answered for may still have been on its way to the receiver when it failed.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// An instance is taken for silent after 5 s.
const SILENT_AFTER: Duration = Duration::from_secs(5);
/// An instance knows by then that its announcement was not heard, and has announced itself elsewhere.
const HEARD_ELSEWHERE: Duration = Duration::from_millis(4500);
const WORKERS: usize = 4;
/// So many users leave the node that is killed.
const LEAVERS: usize = 12;
/// The questions that one process may ask a cluster after a change. It asks soon, and five times more in half
/// seconds, since what one node knows is news to another for a while.
const LOOKS: u64 = 10;

/// Two devices on two instances.
struct Pair {
    uid: String,
    /// The master that serves its slot.
    node: usize,
    traffic: Traffic,
}

/// A cluster under traffic: pairs on all nodes, and two pairs on another Redis. What those miss is the
/// machine's doing.
struct Scene {
    cluster: Cluster,
    proxy: Proxy,
    fleet: Fleet,
    pairs: Vec<Pair>,
    /// Of each master, two users who are not there yet.
    guests: Vec<Vec<String>>,
    control: Vec<Traffic>,
    _control: (RedisServer, Fleet),
    /// The masters: one that freezes (instances announce themselves there), one that is cut off, one that is killed.
    frozen: usize,
    cut: usize,
    killed: usize,
}

impl Scene {
    async fn start() -> Self {
        // Where the common channel of announcements lives, follows from its name.
        let frozen = usize::from(slot_of("duo:instances") / (16_384 / 3)).min(2);
        let (cut, killed) = ((frozen + 1) % 3, (frozen + 2) % 3);
        // The default time of a cluster's nodes is 15 s; one that fails must not end the others.
        let cluster = Cluster::start_with(&[killed], &["--cluster-require-full-coverage", "no"]).await;
        let proxy = Proxy::start(cluster.nodes[cut].address()).await;
        cluster.announce(cut, proxy.address()).await;
        let seed = format!("redis-cluster://{}", cluster.nodes[frozen].address());
        let fleet = Fleet::start_with(&[&seed, &seed, &seed], |config| {
            config.unset("DUORELAY_LEASE_SECONDS").set("DUORELAY_WORKERS", WORKERS)
        })
        .await;
        let (mut pairs, mut guests) = (Vec::new(), vec![Vec::new(); 3]);
        for node in [frozen, cut, killed] {
            let uids: Vec<String> = (0..)
                .map(|number| format!("user-{number}"))
                .filter(|uid| cluster.first_owner(slot_of(&format!("duo:{{{uid}}}"))) == node)
                .take(4 + LEAVERS)
                .collect();
            for (number, uid) in uids[..2].iter().enumerate() {
                let (here, there) = (&fleet.relays[number], &fleet.relays[1 - number]);
                let traffic = Traffic::new(pair(uid, here, there).await).each(TURN);
                pairs.push(Pair { uid: uid.clone(), node, traffic });
            }
            guests[node] = uids[2..].to_vec();
        }
        let redis = RedisServer::start().await;
        let urls = [redis.url(), redis.url()];
        let control_fleet = Fleet::start_with(&urls.each_ref().map(String::as_str), |config| {
            config.unset("DUORELAY_LEASE_SECONDS").set("DUORELAY_WORKERS", 1)
        })
        .await;
        let mut control = Vec::new();
        for uid in ["one", "two"] {
            let pair = pair(uid, &control_fleet.relays[0], &control_fleet.relays[1]).await;
            control.push(Traffic::new(pair).each(TURN));
        }
        let _control = (redis, control_fleet);
        Self { cluster, proxy, fleet, pairs, guests, control, _control, frozen, cut, killed }
    }

    /// All pairs send and receive while something happens to the cluster.
    async fn during<T>(&mut self, other: impl AsyncFnOnce(&Cluster, &Proxy, &Fleet) -> T) -> T {
        let Self { cluster, proxy, fleet, pairs, control, .. } = self;
        let all = pairs.iter_mut().map(|pair| &mut pair.traffic).chain(control);
        let forever = |_: &Traffic| false;
        let going_on = join_all(all.map(|traffic| traffic.until(LIMIT * 10, "the end", forever)));
        tokio::select! {
            output = other(cluster, proxy, fleet) => output,
            _ = going_on => unreachable!("it never ends by itself"),
        }
    }

    /// All pairs go on until those of a node have been notified.
    async fn until_notified(&mut self, node: usize, state: &str, since: Instant) {
        let is_notified = |traffic: &Traffic| {
            let sides = [&traffic.desktop, &traffic.mobile];
            sides.into_iter().all(|side| side.notified_backplane(state, since).is_some())
        };
        self.until(node, state, is_notified).await;
    }

    /// All pairs go on until reliable frames of this node's pairs cross again: whatever was sent before has arrived
    /// then, or is lost.
    async fn until_crossing(&mut self, node: usize) {
        let since = Instant::now();
        self.until(node, "frames to cross", |traffic| traffic.has_crossed(since)).await;
    }

    async fn until(&mut self, node: usize, what: &str, is_so: impl Fn(&Traffic) -> bool) {
        let done: Vec<Cell<bool>> = self.pairs.iter().map(|pair| Cell::new(pair.node != node)).collect();
        let all = || done.iter().all(Cell::get);
        let pairs = self.pairs.iter_mut().zip(&done).map(async |(pair, done)| {
            let look = |traffic: &Traffic| {
                done.set(done.get() || is_so(traffic));
                all()
            };
            pair.traffic.until(LIMIT, what, look).await;
        });
        let control =
            self.control.iter_mut().map(async |traffic| traffic.until(LIMIT * 2, what, |_| all()).await);
        join(join_all(pairs), join_all(control)).await;
    }

    /// How late the machine was: what the control pairs missed. It starts anew with each fault.
    fn lateness(&self, since: Instant) -> Duration {
        let missed = self.control.iter().map(|control| control.longest_silence(since, Instant::now()));
        missed.max().unwrap_or_default().saturating_sub(TURN)
    }

    /// True for what a machine this late explains. After 500 ms that is an error for a publish that was not
    /// answered in its time. Beyond 2.3 s without a probe it is `down` and `up`.
    fn is_excused(&self, since: Instant, notice: &serde_json::Value) -> bool {
        let late = CHANCE * self.lateness(since);
        if is_reported_error(notice) {
            late >= Duration::from_millis(500)
        } else {
            late >= Duration::from_millis(2300)
        }
    }

    /// The frames of users outside of the fault went on. The relay notifies nobody that a peer has left. It
    /// notifies only the users of the fault of anything at all.
    fn check_others(&self, what: &str, since: Instant, is_concerned: impl Fn(&Pair) -> bool) {
        let now = Instant::now();
        let lateness = self.lateness(since);
        let limit = if lateness < BUSY { SILENCE + TURN } else { STOPPED } + CHANCE * lateness;
        for pair in &self.pairs {
            pair.traffic.check_nobody_left(since);
            if is_concerned(pair) {
                continue;
            }
            let silence = pair.traffic.longest_silence(since, now);
            eprintln!("{what}: {} on node {}: {silence:?} of {limit:?}", pair.uid, pair.node);
            assert!(silence < limit, "{what}: {} stood still for {silence:?}, not {limit:?}", pair.uid);
            for side in [&pair.traffic.desktop, &pair.traffic.mobile] {
                let notices = side.notices.iter().filter(|(at, _)| *at >= since);
                let notified =
                    notices.filter(|(_, notice)| !self.is_excused(since, notice)).collect::<Vec<_>>();
                assert!(notified.is_empty(), "{what}: {} was notified {notified:?}", pair.uid);
                assert!(!side.absent.iter().any(|at| *at >= since), "{what}: {}'s frames are lost", pair.uid);
            }
        }
    }

    /// The others were notified `down` within the contract's time, and `up` once it was over.
    fn check_concerned(&self, what: &str, since: Instant, over: Instant, node: usize) {
        let limit = WITHIN + SLACK + CHANCE * self.lateness(since);
        for pair in self.pairs.iter().filter(|pair| pair.node == node) {
            for side in [&pair.traffic.desktop, &pair.traffic.mobile] {
                let down = side.notified_backplane("down", since).expect("down").duration_since(since);
                assert!(down < limit, "{what}: {} is notified after {down:?}", pair.uid);
                let up = side.notified_backplane("up", over).unwrap_or_else(|| panic!("{what}: no up"));
                let up = up.duration_since(over);
                assert!(up < limit, "{what}: {} is notified of the end after {up:?}", pair.uid);
            }
            let [there, back] = pair.traffic.missing(since + UNDER_WAY, over);
            let notified = pair.traffic.summary();
            let mut sides = [(&pair.traffic.desktop, there), (&pair.traffic.mobile, back)].into_iter();
            let silent = sides.find(|(side, missing)| {
                let is_error = |(at, notified): &(Instant, _)| *at >= since && is_reported_error(notified);
                !missing.is_empty() && side.absent.is_empty() && !side.notices.iter().any(is_error)
            });
            let lost = silent.map(|(_, missing)| missing);
            assert!(lost.is_none(), "{what}: {lost:?} are lost without a word: {notified:?}");
        }
    }
}

fn is_reported_error(message: &serde_json::Value) -> bool {
    message["type"] == "error"
}

/// CRC16 of the hash tag (Redis cluster specification, appendix A).
fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or(key, |(tag, _)| tag);
    let crc = tag.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % 16_384
}

/// Waits until every instance serves this share of the slots.
async fn until_share(fleet: &Fleet, limit: Duration, is_so: impl Fn(f64) -> bool) {
    let start = Instant::now();
    let mut pause = interval(Duration::from_millis(50));
    for relay in &fleet.relays {
        loop {
            let share = relay.metric("duorelay_backplane_up", &[]).await;
            if is_so(share) {
                break;
            }
            assert!(start.elapsed() < limit, "{share} of the slots are served");
            pause.tick().await;
        }
    }
}

/// With one node of three away: an instance is ready, lets in users of the others, and refuses the node's own.
async fn check_doors(fleet: &Fleet, node: usize, guests: &[Vec<String>]) {
    let relay = &fleet.relays[0];
    let share = relay.metric("duorelay_backplane_up", &[]).await;
    assert!((share - 2.0 / 3.0).abs() < 0.01, "{share}");
    assert_eq!(relay.get("/healthz/ready").await.status, 200);
    for (number, guests) in guests.iter().enumerate() {
        let handshake = v1(relay, &guests[0], "desktop");
        if number == node {
            handshake.refused().await.expect_refusal(503, "backplane_unavailable");
        } else {
            let guest = handshake.open_v1().await;
            assert_eq!(guest.welcome["uid"], guests[0]);
        }
    }
}

const NODE_IS_AWAY: fn(f64) -> bool = |share| share < 0.9;
const WHOLE: fn(f64) -> bool = |share| share > 0.999;

#[tokio::test]
async fn a_clusters_nodes_fail_one_by_one_and_the_others_users_notice_nothing() {
    let mut scene = Scene::start().await;
    let start = Instant::now();
    scene.during(async |_, _, _| sleep(Duration::from_secs(1)).await).await;
    scene.check_others("nothing", start, |_| false);
    a_slot_migrates(&mut scene).await;
    a_node_freezes(&mut scene).await;
    a_node_is_cut_off(&mut scene).await;
    a_node_is_killed(&mut scene).await;
}

/// The users of the slot lose nothing either. No process asks for the cluster's slots more than once with
/// each of its looks, whatever its number of workers.
async fn a_slot_migrates(scene: &mut Scene) {
    let (from, to) = (scene.killed, scene.frozen);
    let moving = scene.pairs.iter().position(|pair| pair.node == from).unwrap();
    let slot = slot_of(&format!("duo:{{{}}}", scene.pairs[moving].uid));
    let start = Instant::now();
    let before = scene.cluster.calls("cluster|slots").await;
    scene
        .during(async |cluster, _, _| {
            cluster.migrate(slot, from, to, Duration::from_millis(300)).await;
            sleep(Duration::from_secs(3)).await;
        })
        .await;
    let asked = scene.cluster.calls("cluster|slots").await - before;
    scene.pairs[moving].node = to;
    scene.check_others("a slot migrates", start, |pair| slot_of(&format!("duo:{{{}}}", pair.uid)) == slot);
    let moved = &scene.pairs[moving].traffic;
    let silence = moved.longest_silence(start, Instant::now());
    let missing = moved.missing(start, Instant::now() - Duration::from_secs(1));
    eprintln!("a slot migrates: its own users stood still for {silence:?}; {asked} times asked");
    let is_whole = missing.iter().all(Vec::is_empty) || scene.is_excused(start, &json!({"type": "error"}));
    assert!(is_whole, "lost {missing:?}; notified {:?}", moved.summary());
    assert!(moved.desktop.absent.is_empty() && moved.mobile.absent.is_empty(), "an error for what arrived");
    assert!(silence < WITHIN, "{silence:?}");
    let limit = LOOKS * scene.fleet.relays.len() as u64;
    assert!((1..=limit).contains(&asked), "{asked} times asked, not {limit}");
}

/// The node on which instances announce themselves: nobody takes the others for silent, and one that dies meanwhile is
/// noticed all the same.
async fn a_node_freezes(scene: &mut Scene) {
    let (frozen, guests) = (scene.frozen, scene.guests.clone());
    let witness = &guests[scene.cut][1];
    let (mut desktop, mobile) = pair(witness, &scene.fleet.relays[0], &scene.fleet.relays[2]).await;
    let leavers = leavers(scene, frozen).await;
    let start = Instant::now();
    let over = scene
        .during(async |cluster, _, fleet| {
            cluster.nodes[frozen].signal("STOP");
            // Each gives back a channel of a node that answers nobody.
            drop(leavers);
            until_share(fleet, LIMIT, NODE_IS_AWAY).await;
            check_doors(fleet, frozen, &guests).await;
            // All are heard elsewhere by now. Whom that did not help would be silent before the dead one is.
            sleep((start + HEARD_ELSEWHERE).saturating_duration_since(Instant::now())).await;
            fleet.relays[2].signal("KILL");
            let dead = Instant::now();
            let peer = desktop.expect_json_within(LIMIT, "peer").await;
            assert_eq!(
                (&peer["state"], &peer["connection"]),
                (&json!("disconnected"), &mobile.welcome["connection"])
            );
            assert!(dead.elapsed() < SILENT_AFTER + WITHIN + SLACK, "notified after {:?}", dead.elapsed());
            cluster.nodes[frozen].signal("CONT");
            Instant::now()
        })
        .await;
    scene.fleet.relays.truncate(2);
    scene.until_notified(frozen, "up", over).await;
    scene.until_crossing(frozen).await;
    scene.during(async |_, _, fleet| until_share(fleet, LIMIT, WHOLE).await).await;
    scene.check_others("a node freezes", start, |pair| pair.node == frozen);
    scene.check_concerned("a node freezes", start, over, frozen);
}

/// Users of this node who are about to leave.
async fn leavers(scene: &Scene, node: usize) -> Vec<Client> {
    let uids = &scene.guests[node][2..];
    assert_eq!(uids.len(), LEAVERS);
    join_all(uids.iter().map(async |uid| v1(&scene.fleet.relays[0], uid, "desktop").open_v1().await)).await
}

async fn a_node_is_cut_off(scene: &mut Scene) {
    let (cut, guests) = (scene.cut, scene.guests.clone());
    let start = Instant::now();
    scene
        .during(async |_, proxy, fleet| {
            proxy.cut();
            until_share(fleet, LIMIT, NODE_IS_AWAY).await;
            check_doors(fleet, cut, &guests).await;
        })
        .await;
    scene.until_notified(cut, "down", start).await;
    scene.proxy.heal();
    let over = Instant::now();
    scene.until_notified(cut, "up", over).await;
    scene.until_crossing(cut).await;
    scene.during(async |_, _, fleet| until_share(fleet, LIMIT, WHOLE).await).await;
    scene.check_others("a node is cut off", start, |pair| pair.node == cut);
    scene.check_concerned("a node is cut off", start, over, cut);
}

/// Its replica takes over: after the cluster's own time with `DUORELAY_FAULTS_LONG`, else as soon as all are notified.
async fn a_node_is_killed(scene: &mut Scene) {
    let (killed, guests) = (scene.killed, scene.guests.clone());
    let leavers = leavers(scene, killed).await;
    let is_long = std::env::var_os("DUORELAY_FAULTS_LONG").is_some();
    let start = Instant::now();
    scene
        .during(async |cluster, _, fleet| {
            cluster.nodes[killed].signal("KILL");
            drop(leavers);
            until_share(fleet, LIMIT, NODE_IS_AWAY).await;
            check_doors(fleet, killed, &guests).await;
        })
        .await;
    scene.until_notified(killed, "down", start).await;
    let over = scene
        .during(async |cluster, _, _| {
            let replica = &cluster.nodes[3];
            if !is_long {
                replica.ask(&["CLUSTER", "FAILOVER", "TAKEOVER"]).await;
            }
            let mut pause = interval(Duration::from_millis(20));
            while replica.role().await != "master" {
                pause.tick().await;
                assert!(start.elapsed() < Duration::from_secs(60), "the replica does not take over");
            }
            Instant::now()
        })
        .await;
    scene.until_notified(killed, "up", over).await;
    scene.until_crossing(killed).await;
    scene.during(async |_, _, fleet| until_share(fleet, LIMIT, WHOLE).await).await;
    scene.check_others("a node is killed", start, |pair| pair.node == killed);
    scene.check_concerned("a node is killed", start, over, killed);
    scene.cluster.nodes[killed].reap();
}

#[tokio::test]
async fn an_instance_of_the_first_version_learns_of_its_lost_channel_where_all_listen() {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start_with(&[&redis.url()], |config| config).await;
    // As it holds a slot: connection, instance, client, generation, end of the lease.
    let (connection, instance) =
        ("018f0000-0000-7000-8000-000000000001", "018f0000-0000-7000-8000-000000000002");
    let lease = format!("{connection} {instance} . 7 99999999999999");
    redis
        .ask(&[
            "HSET",
            "duo:{ann}",
            "mobile",
            &lease,
            "mobile:newest",
            &format!("{connection} 7"),
            "last",
            "7",
        ])
        .await;
    let mut all = Subscriber::start(redis.address(), "duo:unheard").await.unwrap();
    let mut ann = v1(&fleet.relays[0], "ann", "desktop").open_v1().await;
    assert_eq!(ann.welcome["peer"]["connection"], connection);
    // It has lost its subscription, and does not listen where only newer instances do.
    ann.send_frame(0x80, b"unheard").await;
    ann.expect_error("peer_absent").await;
    let unheard = all.next().await;
    assert!(unheard.contains("duo:{ann}:mobile"), "{unheard:?}");
    let mut mobile = Subscriber::start(redis.address(), "duo:{ann}:mobile").await.unwrap();
    ann.send_frame(0x80, b"heard").await;
    assert!(mobile.next().await.contains("heard"));
}
