//! Redis answers, and does not do what a handshake needs: an instance leaves readiness, says why once, and heals.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fleet::{Fleet, pair, v1};
use crate::support::{Cluster, Config, Issuer, LIMIT, Proxy, RedisServer, Relay, within};
use crate::traffic::Traffic;

/// An instance is not ready within 5 s of a refusal, and ready within 4 s of the cure. A busy machine adds to it.
const UNREADY_WITHIN: Duration = Duration::from_secs(6);
const HEALED_WITHIN: Duration = Duration::from_secs(5);

pub async fn until_ready(relay: &Relay, status: u16) {
    let limit = if status == 200 { HEALED_WITHIN } else { UNREADY_WITHIN };
    let start = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    while relay.get("/healthz/ready").await.status != status {
        pause.tick().await;
        assert!(start.elapsed() < limit, "not {status} after {limit:?}\n{}", relay.log());
    }
}

/// Log lines about a trouble of this cause, and about its end.
fn lines(relay: &Relay, cause: &str) -> (usize, usize) {
    let log = relay.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let (mut begins, mut ends) = (0, 0);
    for line in lines.filter(|line| line["cause"] == cause) {
        let message = line["message"].as_str().unwrap_or_default();
        begins += usize::from(message.contains("is in trouble"));
        ends += usize::from(message.contains("has ended"));
    }
    (begins, ends)
}

/// Makes a trouble with `commands`, and cures it with `cure`.
async fn refuses(cause: &str, words: &str, commands: &[&[&str]], cure: &[&[&str]]) {
    refuses_on(&RedisServer::start().await, cause, words, commands, cure).await;
}

async fn refuses_on(redis: &RedisServer, cause: &str, words: &str, commands: &[&[&str]], cure: &[&[&str]]) {
    let fleet = Fleet::start(&redis.url()).await;
    let (desktop, mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    for command in commands {
        redis.ask(command).await;
    }
    is_refused(&fleet.relays[0], cause, words).await;
    for command in cure {
        redis.ask(command).await;
    }
    is_healed(&fleet, cause).await;
    fleet.wait_for_room("ann", &desktop, &mobile).await;
}

/// Leaves readiness, refuses, and names the cause in its metric and Redis's words in its log.
pub async fn is_refused(relay: &Relay, cause: &str, words: &str) {
    until_ready(relay, 503).await;
    v1(relay, "bob", "desktop").refused().await.expect_refusal(503, "backplane_unavailable");
    relay.wait_for_metric("duorelay_backplane_trouble", &[cause], 1.0).await;
    relay.wait_for_log(words).await;
}

/// Is ready again, lets users in, and has logged the cause once.
async fn is_healed(fleet: &Fleet, cause: &str) {
    for relay in &fleet.relays {
        until_ready(relay, 200).await;
    }
    let relay = &fleet.relays[0];
    v1(relay, "bob", "desktop").open_v1().await.sync().await;
    assert_eq!(lines(relay, cause), (1, 1), "{}", relay.log());
}

#[tokio::test]
async fn a_server_that_becomes_a_replica_is_left_until_it_writes_again() {
    refuses(
        "readonly",
        "READONLY",
        &[&["REPLICAOF", "127.0.0.1", "1"], &["CONFIG", "SET", "replica-serve-stale-data", "yes"]],
        &[&["REPLICAOF", "NO", "ONE"]],
    )
    .await;
}

/// As a managed switch-over does it: the address leads to the new primary, and old connections stay at the old one.
#[tokio::test]
async fn a_switch_over_that_keeps_old_connections_is_followed() {
    let (old, new) = (RedisServer::start().await, RedisServer::start().await);
    let address = Proxy::start(old.address()).await;
    let url = format!("redis://{}", address.address());
    let fleet = Fleet::start(&url).await;
    let (desktop, mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    let port = old.address().port().to_string();
    new.ask(&["REPLICAOF", "127.0.0.1", &port]).await;
    let follows = async {
        while !new.ask(&["INFO", "replication"]).await.to_string().contains("master_link_status:up") {}
    };
    within(LIMIT, "the new server to follow", follows).await;
    new.ask(&["REPLICAOF", "NO", "ONE"]).await;
    address.point_to(new.address());
    let port = new.address().port().to_string();
    old.ask(&["REPLICAOF", "127.0.0.1", &port]).await;
    let switched = Instant::now();
    let mut traffic = Traffic::new((desktop, mobile));
    for relay in &fleet.relays {
        traffic.during(relay.wait_for_log("READONLY")).await;
    }
    // Nobody publishes or hears at the old one any more, and all are let in at the new one.
    let left = async { while old.ask(&["PUBSUB", "CHANNELS"]).await != json!([]) {} };
    traffic.during(within(LIMIT, "all to leave the old server", left)).await;
    for relay in &fleet.relays {
        let let_in = async { while v1(relay, "carol", "desktop").send().await.1.status != 101 {} };
        traffic.during(within(LIMIT, "a handshake", let_in)).await;
        traffic.during(until_ready(relay, 200)).await;
    }
    traffic.crosses_after(Instant::now(), LIMIT).await;
    traffic.check_nobody_left(switched);
    fleet.wait_for_room("ann", &traffic.desktop.client, &traffic.mobile.client).await;
    assert_eq!(new.ask(&["EXISTS", "duo:{ann}"]).await, 1);
    let bob = v1(&fleet.relays[0], "bob", "desktop").open_v1().await;
    let peer = v1(&fleet.relays[1], "bob", "mobile").open_v1().await;
    assert_eq!(peer.welcome["peer"], bob.as_peer());
    for relay in &fleet.relays {
        assert_eq!(lines(relay, "readonly"), (1, 1), "{}", relay.log());
    }
}

#[tokio::test]
async fn a_replica_without_its_primary_is_left_until_it_serves_again() {
    let lost: [&[&str]; 2] =
        [&["CONFIG", "SET", "replica-serve-stale-data", "no"], &["REPLICAOF", "127.0.0.1", "1"]];
    refuses("masterdown", "MASTERDOWN", &lost, &[&["REPLICAOF", "NO", "ONE"]]).await;
}

#[tokio::test]
async fn a_server_that_cannot_save_is_waited_for() {
    let redis = RedisServer::start_with(&["--enable-protected-configs", "yes"]).await;
    // Nobody can write a file there, whatever their rights.
    let broken: [&[&str]; 3] =
        [&["CONFIG", "SET", "dir", "/proc"], &["CONFIG", "SET", "save", "3600 1"], &["BGSAVE"]];
    let directory = redis.directory().display().to_string();
    let cure: [&[&str]; 2] = [&["CONFIG", "SET", "dir", &directory], &["BGSAVE"]];
    refuses_on(&redis, "misconf", "MISCONF", &broken, &cure).await;
}

#[tokio::test]
async fn a_server_that_loads_its_data_is_waited_for() {
    let redis = RedisServer::start().await;
    let fill = "for n = 1, 20000 do redis.call('SET', 'key:' .. n, string.rep('x', 100)) end return 1";
    redis.ask(&["EVAL", fill, "0"]).await;
    let fleet = Fleet::start(&redis.url()).await;
    let (desktop, mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    // 2 ms for each key would take it 40 s; it answers between two keys, every kilobyte.
    let slow = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"];
    let redis = redis.restart_with_data(&slow).await;
    is_refused(&fleet.relays[0], "loading", "LOADING").await;
    redis.ask(&["CONFIG", "SET", "key-load-delay", "0"]).await;
    is_healed(&fleet, "loading").await;
    fleet.wait_for_room("ann", &desktop, &mobile).await;
}

#[tokio::test]
async fn a_full_memory_is_waited_for() {
    let full: [&[&str]; 2] =
        [&["CONFIG", "SET", "maxmemory-policy", "noeviction"], &["CONFIG", "SET", "maxmemory", "1mb"]];
    refuses("oom", "OOM", &full, &[&["CONFIG", "SET", "maxmemory", "0"]]).await;
}

#[tokio::test]
async fn a_refused_renewal_is_tried_again_long_before_its_next_turn() {
    /// The least time from one turn to the next, with the default lease of 45 s.
    const TURN: Duration = Duration::from_secs(12);
    let redis = RedisServer::start().await;
    let urls = [redis.url(), redis.url()];
    let fleet = Fleet::start_with(&urls.each_ref().map(String::as_str), |config| {
        config.unset("DUORELAY_LEASE_SECONDS").set("DUORELAY_WORKERS", 1)
    })
    .await;
    let (desktop, mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    redis.ask(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    // A short break brings the renewals forward. Redis still delivers, so that the way is up and stays up.
    redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    for relay in &fleet.relays {
        relay.wait_for_metric("duorelay_renewals_total", &["failed"], 1.0).await;
        let first = Instant::now();
        relay.wait_for_metric("duorelay_renewals_total", &["failed"], 2.0).await;
        assert!(first.elapsed() < TURN / 2, "tried again after {:?}", first.elapsed());
    }
    // What Redis has lost is back as soon as it is cured.
    redis.ask(&["DEL", "duo:{ann}"]).await;
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let cured = Instant::now();
    fleet.wait_for_room("ann", &desktop, &mobile).await;
    assert!(cured.elapsed() < TURN, "back after {:?}", cured.elapsed());
}

#[tokio::test]
async fn too_few_replicas_are_waited_for() {
    refuses(
        "noreplicas",
        "NOREPLICAS",
        &[&["CONFIG", "SET", "min-replicas-to-write", "1"]],
        &[&["CONFIG", "SET", "min-replicas-to-write", "0"]],
    )
    .await;
}

#[tokio::test]
async fn scripts_that_were_flushed_are_sent_again() {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&redis.url()).await;
    redis.ask(&["SCRIPT", "FLUSH"]).await;
    let (mut desktop, _mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    desktop.sync().await;
}

/// An instance that stops by itself, with one line that has these words.
pub async fn stops_with(url: &str, words: &str) {
    let issuer = Issuer::start();
    let mut relay = Config::new(&issuer).set("REDIS_URL", url).spawn();
    assert_eq!(relay.exit(LIMIT).await.code(), Some(1), "{words}: {}", relay.log());
    let log = relay.log();
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(errors[0].contains(words), "{words}: {log}");
}

#[tokio::test]
async fn a_clusters_node_under_redis_is_a_mistake() {
    let cluster = Cluster::start(0).await;
    stops_with(&format!("redis://{}", cluster.nodes[0].address()), "redis-cluster://").await;
}

#[tokio::test]
async fn another_issuers_fleet_on_the_same_prefix_is_a_mistake() {
    let redis = RedisServer::start().await;
    let issuer = Issuer::start();
    let _first = Config::new(&issuer).set("REDIS_URL", redis.url()).start().await;
    let mut second = Config::new(&issuer)
        .set("REDIS_URL", redis.url())
        .set("FIREBASE_PROJECT_ID", "another-project")
        .spawn();
    assert_eq!(second.exit(LIMIT).await.code(), Some(1), "{}", second.log());
    assert!(second.log().contains("DUORELAY_REDIS_PREFIX"), "{}", second.log());
}

#[tokio::test]
async fn a_prefix_that_another_fleet_takes_is_left_until_it_is_free_again() {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&redis.url()).await;
    redis.ask(&["SET", "duo:owner", "the hash of another issuer"]).await;
    for relay in &fleet.relays {
        until_ready(relay, 503).await;
        let ready = relay.get("/healthz/ready").await;
        assert_eq!(ready.text(), "the prefix in Redis belongs to another issuer or audience");
        relay.wait_for_metric("duorelay_backplane_trouble", &["owner"], 1.0).await;
        relay.wait_for_log("DUORELAY_REDIS_PREFIX is in use").await;
        v1(relay, "ann", "desktop").refused().await.expect_refusal(503, "backplane_unavailable");
    }
    redis.ask(&["DEL", "duo:owner"]).await;
    for relay in &fleet.relays {
        until_ready(relay, 200).await;
        assert_eq!(relay.metric("duorelay_backplane_trouble", &["owner"]).await, 0.0);
        assert_eq!(lines(relay, "owner"), (1, 1), "{}", relay.log());
    }
    let (mut desktop, _mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    desktop.sync().await;
}

#[tokio::test]
async fn fleets_on_two_databases_never_meet() {
    let redis = RedisServer::start().await;
    let urls = [format!("{}/0", redis.url()), format!("{}/1", redis.url())];
    let fleet = Fleet::start_with(&[&urls[0], &urls[1]], |config| config).await;
    let mut desktop = v1(&fleet.relays[0], "ann", "desktop").open_v1().await;
    let mut mobile = v1(&fleet.relays[1], "ann", "mobile").open_v1().await;
    assert_eq!(mobile.welcome["peer"], Value::Null);
    let again = v1(&fleet.relays[1], "ann", "desktop").open_v1().await;
    assert_eq!(again.welcome["peer"], mobile.as_peer());
    // Neither is replaced, nor hears of the other database's room.
    assert_eq!(mobile.expect_json("peer").await["connection"], again.welcome["connection"]);
    desktop.sync().await;
    // No frame crosses, and neither instance knows the other.
    desktop.send_json(json!({"type": "send", "data": 1, "id": "nobody"})).await;
    assert_eq!(desktop.expect_error("peer_absent").await["id"], "nobody");
    mobile.sync().await;
    for (relay, connections) in fleet.relays.iter().zip([1, 2]) {
        let until = Instant::now() + LIMIT;
        loop {
            let answer = relay.operate("GET", "/v1/instances", &json!(null)).await.json();
            let instances = answer["instances"].as_array().unwrap();
            assert!(instances.len() <= 1, "{answer}");
            // The instance has announced itself since both connections came.
            if instances.first().is_some_and(|one| one["connections"] == connections) {
                break;
            }
            assert!(Instant::now() < until, "{answer}");
        }
    }
}

#[tokio::test]
async fn passwords_may_hold_any_character() {
    let redis = RedisServer::start().await;
    let issuer = Issuer::start();
    for (password, encoded) in
        [("a b", "a%20b"), ("a\"b", "a%22b"), ("a'b\\", "a%27b%5C"), ("a\nb", "a%0Ab"), ("é", "%C3%A9")]
    {
        redis
            .ask(&["ACL", "SETUSER", "odd", "reset", "on", &format!(">{password}"), "~*", "&*", "+@all"])
            .await;
        let url = format!("redis://odd:{encoded}@{}", redis.address());
        let relay = Config::new(&issuer).set("REDIS_URL", url).start().await;
        v1(&relay, "ann", "desktop").open_v1().await.sync().await;
    }
}

#[tokio::test]
async fn a_rotated_password_is_read_from_its_file() {
    let redis = RedisServer::start().await;
    let set = async |rules: &[&str]| {
        let mut command = vec!["ACL", "SETUSER", "relay", "on", "~*", "&*", "+@all"];
        command.extend(rules);
        redis.ask(&command).await;
    };
    set(&[">old"]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |password: &str| {
        std::fs::write(file.path(), format!("redis://relay:{password}@{}\n", redis.address())).unwrap();
    };
    write("old");
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("REDIS_URL_FILE", file.path().display()).start().await;
    set(&[">new", "<old"]).await;
    redis.ask(&["CLIENT", "KILL", "USER", "relay"]).await;
    until_ready(&relay, 503).await;
    relay.wait_for_log("WRONGPASS").await;
    write("new");
    until_ready(&relay, 200).await;
    v1(&relay, "ann", "desktop").open_v1().await.sync().await;
}

#[tokio::test]
async fn a_wrong_password_in_a_file_is_waited_for() {
    const PASSWORD: &str = "a-secret-that-no-log-holds";
    let (redis, another) = (RedisServer::start().await, RedisServer::start().await);
    redis.ask(&["ACL", "SETUSER", "relay", "on", &format!(">{PASSWORD}"), "~*", "&*", "+@all"]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |password: &str, server: &RedisServer| {
        std::fs::write(file.path(), format!("redis://relay:{password}@{}", server.address())).unwrap();
    };
    write("wrong-password", &redis);
    let issuer = Issuer::start();
    let config = Config::new(&issuer).set("REDIS_URL_FILE", file.path().display());
    let relay = config.start_until("/healthz/live").await;
    relay.wait_for_log("WRONGPASS").await;
    relay.wait_for_metric("duorelay_backplane_trouble", &["password"], 1.0).await;
    assert_eq!(relay.get("/healthz/ready").await.status, 503);
    // The password counts at once. What else changes needs a restart, and one line says so.
    write(PASSWORD, &another);
    until_ready(&relay, 200).await;
    v1(&relay, "ann", "desktop").open_v1().await.sync().await;
    let ann = v1(&relay, "ann", "desktop");
    for _ in 0..3 {
        redis.ask(&["CLIENT", "KILL", "USER", "relay"]).await;
        let again = async { while ann.send().await.1.status != 101 {} };
        within(LIMIT, "a handshake over a new connection", again).await;
    }
    assert_eq!(another.ask(&["DBSIZE"]).await, 0);
    let log = relay.log();
    let changed: Vec<_> = log.lines().filter(|line| line.contains("that needs a restart")).collect();
    assert!(changed.len() == 1 && changed[0].contains("REDIS_URL_FILE"), "{log}");
    assert!(!log.contains(PASSWORD) && !log.contains("wrong-password"), "{log}");
}

#[tokio::test]
async fn users_of_a_clusters_living_nodes_are_served_while_one_is_dead() {
    let mut cluster = Cluster::start(0).await;
    for node in &cluster.nodes {
        node.ask(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).await;
    }
    let fleet = Fleet::start(&cluster.url()).await;
    // One user for each node.
    let mut users = [None, None, None];
    for number in 0.. {
        let uid = format!("user-{number}");
        let slot = cluster.slot(&format!("duo:{{{uid}}}")).await;
        users[cluster.first_owner(slot)].get_or_insert(uid);
        if users.iter().all(Option::is_some) {
            break;
        }
    }
    let [first, second, dead] = users.map(Option::unwrap);
    let mut alive = Traffic::new(pair(&first, &fleet.relays[0], &fleet.relays[1]).await);
    let (mut cut, _peer) = pair(&dead, &fleet.relays[0], &fleet.relays[1]).await;
    alive.crosses_after(Instant::now(), LIMIT).await;
    let start = Instant::now();
    cluster.nodes[2].signal("KILL");
    let notified = crate::fleet::notified(&mut cut, Duration::from_secs(4), "backplane");
    assert_eq!(alive.during(notified).await["state"], "down");
    alive.run_for(Duration::from_secs(2)).await;
    assert!(alive.desktop.notified_backplane("down", start).is_none());
    alive.check_nobody_left(start);
    for relay in &fleet.relays {
        assert_eq!(relay.get("/healthz/ready").await.status, 200);
        v1(relay, &dead, "desktop").refused().await.expect_refusal(503, "backplane_unavailable");
        let mut served = v1(relay, &second, "desktop").open_v1().await;
        served.sync().await;
        let up = relay.metric("duorelay_backplane_up", &[]).await;
        assert!(up > 0.6 && up < 0.7, "{up}");
    }
    cluster.nodes[2].reap();
}
