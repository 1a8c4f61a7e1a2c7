//! A user of Redis with exactly the rights that the manual lists is enough, and each one is missed by its name.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::fleet::{Fleet, pair, v1};
use crate::states::{is_refused, stops_with, until_ready};
use crate::support::{Cluster, Config, Issuer, LIMIT, RedisServer};
use crate::traffic::Traffic;

const MANUAL: &str = include_str!("../../k8s/OPERATING.md");
/// Without these fred connects all the same, or they are never refused.
const HARMLESS: [&str; 5] = ["+hello", "+client|id", "+info", "+select", "+quit"];

/// The rights that the manual lists for every Redis, and those that a cluster needs beside them.
fn documented() -> [Vec<&'static str>; 2] {
    let begin = MANUAL.find("ACL SETUSER relay").unwrap();
    let block = MANUAL[begin..].split("```").next().unwrap();
    let (every, cluster) = block.split_once("# on a cluster also:").unwrap();
    [every, cluster].map(|part| part.split_whitespace().filter(|word| word.starts_with('+')).collect())
}

async fn give(redis: &RedisServer, rights: &[&str], channels: &str) {
    let mut command = vec!["ACL", "SETUSER", "relay", "reset", "on", ">pw", "~duo:*", "resetchannels"];
    command.extend(channels.split(' '));
    command.extend(rights);
    redis.ask(&command).await;
}

fn without<'a>(rights: &[&'a str], missing: &str) -> Vec<&'a str> {
    rights.iter().copied().filter(|right| *right != missing).collect()
}

#[tokio::test]
async fn the_listed_rights_are_enough_and_each_one_is_missed_by_name() {
    let redis = RedisServer::start().await;
    let [needed, _] = documented();
    let issuer = Issuer::start();
    give(&redis, &needed, "&duo:*").await;
    let url = format!("redis://relay:pw@{}", redis.address());
    let relay = Config::new(&issuer).set("REDIS_URL", &url).start().await;
    v1(&relay, "ann", "desktop").open_v1().await.sync().await;
    drop(relay);
    for missing in needed.iter().filter(|right| !HARMLESS.contains(right)) {
        give(&redis, &without(&needed, missing), "&duo:*").await;
        stops_with(&url, missing.trim_start_matches('+')).await;
    }
    for channels in [
        "&other:*",
        // Those of instances alone: claims would be carried out, and their channels refused.
        "&duo:instances &duo:unheard* &duo:*:probe",
        "&duo:instances &duo:unheard* &duo:*:probe &duo:*:desktop",
    ] {
        give(&redis, &needed, channels).await;
        stops_with(&url, "channel").await;
    }
    give(&redis, &needed, "&duo:instances &duo:unheard* &duo:*:probe &duo:*:desktop &duo:*:mobile").await;
    let relay = Config::new(&issuer).set("REDIS_URL", &url).start().await;
    v1(&relay, "ann", "desktop").open_v1().await.sync().await;
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_waited_for() {
    let taken: [(&[&str], &[&str]); 3] =
        [(&["-hset"], &["+hset"]), (&["-publish"], &["+publish"]), (&["resetchannels"], &["allchannels"])];
    join_all(taken.map(async |(taken, given)| {
        let redis = RedisServer::start().await;
        let set = async |rules: &[&str]| {
            redis.ask(&[&["ACL", "SETUSER", "relay"], rules].concat()).await;
        };
        set(&["on", ">pw", "~*", "&*", "+@all"]).await;
        let fleet = Fleet::start(&format!("redis://relay:pw@{}", redis.address())).await;
        let (desktop, mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
        set(taken).await;
        is_refused(&fleet.relays[0], "noperm", r#""cause":"noperm""#).await;
        // Longer than any of its own times: it must not write a line for each try.
        let mut traffic = Traffic::new((desktop, mobile));
        traffic.run_for(Duration::from_secs(3)).await;
        set(given).await;
        for relay in &fleet.relays {
            traffic.during(until_ready(relay, 200)).await;
        }
        v1(&fleet.relays[0], "bob", "desktop").open_v1().await.sync().await;
        fleet.wait_for_room("ann", &traffic.desktop.client, &traffic.mobile.client).await;
        traffic.crosses_after(Instant::now(), LIMIT).await;
        let log = fleet.relays[0].log();
        let about: Vec<_> = log.lines().filter(|line| line.contains(r#""cause":"noperm""#)).collect();
        assert_eq!(about.len(), 2, "{taken:?}: {log}");
        let named = ["NOPERM", "can't run this command", "no permissions"]
            .iter()
            .any(|words| about[0].contains(words));
        assert!(named && about[1].contains("has ended"), "{taken:?}: {about:?}");
    }))
    .await;
}

#[tokio::test]
async fn on_a_cluster_the_listed_rights_are_enough_and_each_one_is_missed_by_name() {
    let cluster = Cluster::start(0).await;
    let [every, more] = documented();
    let needed = [every, more.clone()].concat();
    let give_all = async |rights: &[&str]| {
        for node in &cluster.nodes {
            give(node, rights, "&duo:*").await;
        }
    };
    give_all(&needed).await;
    let url = cluster.url().replace("://", "://relay:pw@");
    let issuer = Issuer::start();
    let config = Config::new(&issuer).set("REDIS_URL", &url);
    let relays = [config.start().await, config.start().await];
    // A user on each node.
    let mut served = [false; 3];
    for number in 0.. {
        let uid = format!("user-{number}");
        let node = cluster.first_owner(cluster.slot(&format!("duo:{{{uid}}}")).await);
        if !std::mem::replace(&mut served[node], true) {
            let (mut desktop, mut mobile) = pair(&uid, &relays[0], &relays[1]).await;
            mobile.send_frame(0x80, b"hello").await;
            assert_eq!(desktop.expect_binary().await, b"\x80hello");
        }
        if served == [true; 3] {
            break;
        }
    }
    drop(relays);
    for missing in more {
        give_all(&without(&needed, missing)).await;
        stops_with(&url, missing.trim_start_matches('+')).await;
    }
}
