//! A fleet of 100 instances and 10 million sockets, in numbers, after it has lost something: seeded.
//!
//! `cargo test --test model fleet -- --nocapture` prints the tables that stand in `tests/CAPACITY.md`. The relay's limits
//! are its own: addresses' buckets, refusals, places for handshakes, limits of calls, the pace of renewals. The client's
//! times come from its source. The CPU of a handshake was measured, on a storm; that of the
//! other steps is assumed (`tests/CAPACITY.md`, "Storms").
//!
//! Not modelled: frames, TLS and the balancers' own work, what a node's CPU does between two steps, a client that gives up
//! for good.

mod client;
mod numbers;
mod world;

use std::time::Duration;

use duorelay::backplane::connectivity::DOWN_AFTER;
use numbers::{Costs, Crowd, Fleet, Loss, Outcomes};
use world::play;

const SEED: u64 = 11;

const COSTS: Costs = Costs {
    handshake: 194e-6,
    refusal: 60e-6,
    claim: 60e-6,
    renewal: 12e-6,
    subscription: 4e-6,
    commands: 3.0,
};

/// Homes with a few devices, offices, and mobile networks that put many behind one address.
const CROWDS: &[Crowd] = &[
    Crowd { share: 0.7, sockets: 4 },
    Crowd { share: 0.2, sockets: 400 },
    Crowd { share: 0.1, sockets: 40_000 },
];

/// Four workers an instance, of which handshakes may take 40 %; room for half as many sockets again.
fn fleet() -> Fleet {
    Fleet {
        instances: 100,
        sockets: 10_000_000,
        weight: 40,
        workers: 4,
        free: 1.6,
        redis_free: 0.4,
        nodes: 24,
        max_connections: 160_000.0,
        per_ip: 20,
        lease: Duration::from_secs(45),
        lifetime: 2700.0,
        crowds: CROWDS,
        browsers: 0.5,
        streaming: 0.05,
        affinity: true,
        costs: COSTS,
    }
}

const NOTHING: Loss = Loss { instances: 0, nodes: 0, silent: None, failover: 0.0 };

struct Case {
    name: &'static str,
    fleet: Fleet,
    loss: Loss,
    /// 99 % are back within so many seconds.
    within: f64,
    /// No more handshakes than this part of the lost sockets are refused.
    refused: f64,
}

fn cases() -> Vec<Case> {
    let zone = Loss { instances: 33, nodes: 8, failover: 16.0, ..NOTHING };
    let case = |name, loss, within, refused| Case { name, fleet: fleet(), loss, within, refused };
    vec![
        case("an instance, reset", Loss { instances: 1, ..NOTHING }, 5.0, 0.2),
        case("an instance, silent", Loss { instances: 1, silent: Some(10.0), ..NOTHING }, 20.0, 0.2),
        case("a zone's instances, reset", Loss { instances: 33, ..NOTHING }, 60.0, 5.0),
        case(
            "a zone's instances, silent",
            Loss { nodes: 0, failover: 0.0, silent: Some(10.0), ..zone },
            60.0,
            5.0,
        ),
        case("a zone with its Redis nodes, reset", zone, 90.0, 6.0),
        Case {
            fleet: Fleet { affinity: false, ..fleet() },
            ..case("the same, no affinity", zone, 90.0, 6.0)
        },
        case("a Redis node", Loss { nodes: 1, failover: 16.0, ..NOTHING }, 60.0, 6.0),
    ]
}

fn row(name: &str, told: &Outcomes) -> String {
    let refused: Vec<String> =
        told.refused.iter().map(|(code, number)| format!("{code} {}", thousands(*number))).collect();
    format!(
        "| {name} | {} | {:.1} / {:.1} / {:.1} | {} | {} | {} | {:.2} | {} | {:.2} |",
        thousands(told.lost),
        told.until(0.5),
        told.until(0.99),
        told.until(1.0),
        thousands(told.attempts),
        if refused.is_empty() { "0".to_owned() } else { refused.join(", ") },
        thousands(told.instance_peak),
        told.instance_wait,
        thousands(told.redis_peak),
        told.redis_wait,
    )
}

fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What `tests/scaling/run --part storms` does with real instances and clients of the JavaScript library.
fn small() -> [Case; 3] {
    let small = Fleet {
        instances: 2,
        sockets: 1200,
        weight: 1,
        workers: 1,
        free: 0.3,
        redis_free: 0.3,
        nodes: 1,
        per_ip: 0,
        lifetime: 0.0,
        crowds: &[Crowd { share: 1.0, sockets: u32::MAX }],
        browsers: 1.0,
        streaming: 0.0,
        affinity: false,
        ..fleet()
    };
    let one = Loss { instances: 1, ..NOTHING };
    let still = Loss { nodes: 1, failover: 10.0, ..NOTHING };
    let case = |name, fleet, loss, within| Case { name, fleet, loss, within, refused: 6.0 };
    [
        case("one of three instances", Fleet { instances: 3, sockets: 1800, ..small.clone() }, one, 2.0),
        case("one of two, all behind one address", Fleet { per_ip: 20, ..small.clone() }, one, 30.0),
        // The life of every socket ends in that time.
        case("Redis stands still for 10 s", Fleet { sockets: 600, lifetime: 10.0, ..small }, still, 30.0),
    ]
}

#[test]
fn a_large_fleet_comes_back_from_each_loss() {
    let mut broken = Vec::new();
    println!(
        "| lost | sockets | back: 50 % / 99 % / all, s | handshakes | refused or not answered | \
         handshakes/s, busiest instance | its wait, s | commands/s, busiest node | its wait, s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for case in cases().into_iter().chain(small()) {
        let told = play(&case.fleet, case.loss, SEED);
        println!("{}", row(case.name, &told));
        if told.back.len() as f64 * f64::from(case.fleet.weight) < told.lost {
            broken.push(format!("{}: not all are back", case.name));
        }
        if told.until(0.99) > case.within {
            broken.push(format!("{}: 99 % are back after {:.1} s", case.name, told.until(0.99)));
        }
        if told.refused_in_all() > told.lost * case.refused {
            broken.push(format!("{}: {} refused", case.name, told.refused_in_all()));
        }
        // A probe stands in the same queue: a node that is only busy must not count as down.
        if told.redis_wait > DOWN_AFTER.as_secs_f64() {
            broken.push(format!("{}: a node's work waits for {:.1} s", case.name, told.redis_wait));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
