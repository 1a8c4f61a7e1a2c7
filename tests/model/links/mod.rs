//! The freshness law on many links, seeded: a minute of each, measured in its second half.
//!
//! `cargo test --test model links -- --nocapture` prints the table that stands in `tests/README.md`.

mod path;
mod vectors;

use path::{End, Link, Outcome, Simulation};

const SECONDS: f64 = 60.0;
const FAST: fn(f64) -> f64 = |_| 1_000.0;
/// Half of what 300-byte frames need, a sixth, and a tenth.
const HALF: fn(f64) -> f64 = |_| 4.8;
const SIXTH: fn(f64) -> f64 = |_| 1.54;
const TENTH: f64 = 0.924;

const END: End = End {
    streams: 1,
    frame_bytes: 300,
    bulk: false,
    paced: true,
    loses: 0.0,
    frozen: None,
    clock: |now| now + 123_456.0,
};
const BOTH: [End; 2] = [END, End { clock: |now| now - 5_000.0, ..END }];

/// What must hold for the first way: the age (p99, beyond half of the round trip) and the use. And what must
/// arrive of the other way's frames.
#[derive(Clone, Copy)]
struct Demand {
    age: f64,
    used: f64,
    innocent: f64,
}

struct Case {
    name: &'static str,
    rtt: f64,
    links: [Link; 2],
    ends: [End; 2],
    demand: Demand,
}

fn link(rate: fn(f64) -> f64, rtt: f64) -> Link {
    Link { rate, delay: rtt / 2.0, jitter: 0.0, stalls: None, foreign: |_| 0.0 }
}

/// What is thin is the first way, and the other one is innocent, unless the name says more.
fn cases(rtt: f64) -> Vec<Case> {
    let (fast, half, sixth) = (link(FAST, rtt), link(HALF, rtt), link(SIXTH, rtt));
    let jitter = |link| Link { jitter: 50.0, ..link };
    let stalls = |link| Link { stalls: Some((7_000.0, 1_000.0)), ..link };
    let receiver = |end| [BOTH[0], end];
    let [_, other] = BOTH;
    let long = rtt > 400.0;
    let by_length = |short: f64, at_600: f64| if long { at_600 } else { short };
    let case = |name, links, ends, age, used, innocent| Case {
        name,
        rtt,
        links,
        ends,
        demand: Demand { age, used, innocent },
    };
    let bulk = [End { streams: 3, bulk: true, ..BOTH[0] }, other];
    let jumps = End { clock: |now| now + JUMPS(now), ..END };
    vec![
        case("enough both ways", [fast; 2], BOTH, 1.0, 99.0, 99.0),
        case("half of the need", [half, fast], BOTH, 300.0, 90.0, 98.0),
        case("half, both ways", [half; 2], BOTH, 450.0, by_length(90.0, 80.0), 0.0),
        case(
            "half, the other end not paced",
            [fast, half],
            [BOTH[0], End { paced: false, ..other }],
            1.0,
            98.0,
            0.0,
        ),
        case("a sixth", [sixth, fast], BOTH, 400.0, by_length(95.0, 85.0), 98.0),
        case("a sixth, both ways", [sixth; 2], BOTH, 400.0, 90.0, 0.0),
        case(
            "to a tenth and back",
            [Link { rate: DROPS, ..fast }, fast],
            BOTH,
            // What leaves until the first late report is back takes that long at a tenth, whatever the law is.
            match rtt {
                20.0 | 100.0 => 600.0,
                300.0 => 4_750.0,
                _ => 7_600.0,
            },
            80.0,
            97.0,
        ),
        case("half, to a tenth and back", [Link { rate: HALF_DROPS, ..fast }, fast], BOTH, 600.0, 70.0, 98.0),
        case("enough, jitter of 50 ms", [jitter(fast); 2], BOTH, 51.0, 98.0, 98.0),
        case("half, jitter of 50 ms", [jitter(half), jitter(fast)], BOTH, 600.0, 85.0, 98.0),
        case("enough, stalls of 1 s", [stalls(fast); 2], BOTH, 1_050.0, 90.0, 85.0),
        case("half, stalls of 1 s", [stalls(half), stalls(fast)], BOTH, 1_800.0, 85.0, 80.0),
        case(
            "half, 2 % of reports lost",
            [half, fast],
            receiver(End { loses: 0.02, ..other }),
            450.0,
            90.0,
            98.0,
        ),
        case(
            "enough, frozen for 5 s",
            [fast; 2],
            receiver(End { frozen: Some((40_000.0, 45_000.0)), ..other }),
            5_100.0,
            95.0,
            98.0,
        ),
        case(
            "half, a clock 200 ppm fast",
            [half, fast],
            receiver(End { clock: |now| now * 1.0002, ..END }),
            450.0,
            90.0,
            98.0,
        ),
        case(
            "half, a clock 200 ppm slow",
            [half, fast],
            receiver(End { clock: |now| now * 0.9998, ..END }),
            450.0,
            90.0,
            98.0,
        ),
        case("half, a clock that jumps", [half, fast], receiver(jumps), 400.0, 75.0, 95.0),
        case(
            "three streams and a bulk",
            [Link { rate: |_| 15.0, ..fast }, fast],
            bulk,
            by_length(450.0, 800.0),
            75.0,
            98.0,
        ),
        case(
            "enough for them, and a bulk",
            [fast; 2],
            bulk,
            by_length(300.0, 400.0),
            by_length(90.0, 80.0),
            98.0,
        ),
        case(
            "a foreign queue comes and goes",
            [Link { foreign: FOREIGN, ..fast }, fast],
            BOTH,
            260.0,
            85.0,
            98.0,
        ),
        case(
            "half, and a foreign queue",
            [Link { foreign: FOREIGN, ..half }, fast],
            BOTH,
            by_length(800.0, 1_300.0),
            80.0,
            97.0,
        ),
    ]
}

const DROPS: fn(f64) -> f64 = |now| if now > 25_000.0 && now < 40_000.0 { TENTH } else { 1_000.0 };
const HALF_DROPS: fn(f64) -> f64 = |now| if now > 25_000.0 && now < 40_000.0 { TENTH } else { 4.8 };
const JUMPS: fn(f64) -> f64 = |now| match now {
    40_000.0.. => 5_000.0,
    35_000.0.. => -3_000.0,
    _ => 0.0,
};
const FOREIGN: fn(f64) -> f64 =
    |now| if now > 20_000.0 && ((now / 10_000.0) as u32).is_multiple_of(2) { 200.0 } else { 0.0 };

#[test]
fn frames_are_fresh_on_every_link() {
    let mut wrong = Vec::new();
    println!("| round trip | link | age p50, p99 | used | other way: age p99 | arrived |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for case in [20.0, 100.0, 300.0, 600.0].into_iter().flat_map(cases) {
        let Case { name, rtt, links, ends, demand } = case;
        let [first, other] = Simulation::run(links, ends, SECONDS, 1);
        let Outcome { age_p50, age_p99, used, .. } = first;
        println!(
            "| {rtt} ms | {name} | {age_p50:.0} ms, {age_p99:.0} ms | {:.0} % | {:.0} ms | {:.0} % |",
            used.min(100.0),
            other.age_p99,
            other.arrived
        );
        let holds =
            age_p99 - rtt / 2.0 <= demand.age && used >= demand.used && other.arrived >= demand.innocent;
        if !holds {
            wrong.push(format!("{rtt} ms, {name}: {first:?} {other:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn without_the_law_frames_age_without_bound() {
    let unpaced = BOTH.map(|end| End { paced: false, ..end });
    let [first, _] = Simulation::run([link(HALF, 20.0), link(FAST, 20.0)], unpaced, SECONDS, 1);
    assert!(first.age_p99 > 20_000.0, "{first:?}");
}
