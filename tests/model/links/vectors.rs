//! Writes `tests/vectors/pacing.json`: what the law answers on links that meet all of its rules.
//!
//! `WRITE_VECTORS=1 cargo test --test model vectors` writes the file anew after a change of the law. The clients' copies
//! must then give the same answers.

use duorelay::relay::pacing::{Kind, Pacing};
use serde_json::{Value, json};

use super::path::{End, Link, Simulation, Tape};
use super::{END, FAST, HALF, SIXTH, TENTH, link};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/pacing.json");

/// The sender that is recorded counts from zero.
const BOTH: [End; 2] = [End { clock: |now| now, ..END }, End { clock: |now| now + 5_000.0, ..END }];
const DROPS: fn(f64) -> f64 = |now| if now > 3_000.0 && now < 5_000.0 { TENTH } else { 1_000.0 };
const THIN_BACK: fn(f64) -> f64 = |now| if now > 3_000.0 { TENTH } else { 1_000.0 };
const JUMPS: fn(f64) -> f64 = |now| match now {
    5_000.0.. => now + 10_000.0,
    4_000.0.. => now + 2_000.0,
    _ => now + 5_000.0,
};

fn case(name: &str, steps: Vec<Value>) -> String {
    let lines: Vec<_> = steps.iter().map(Value::to_string).collect();
    format!("{name},\"steps\":[\n{}\n]}}", lines.join(",\n"))
}

/// The law of an end whose other one has reported, from its first message.
fn pacing(name: &str, tape: Tape) -> String {
    case(&format!("{{\"name\":{},\"new\":[0,0,true]", json!(name)), tape.pacing)
}

fn reporter(name: &str, tape: Tape) -> String {
    case(&format!("{{\"name\":{},\"new\":[0]", json!(name)), tape.reporter)
}

/// Reports that go back, claim too much, or are no time; a repeated one; before anything is known of the other end.
fn refused() -> String {
    let mut law = Pacing::new(0.0, 5, false);
    let mut steps = Vec::new();
    for now in [0.0, 1.0] {
        law.on_sent(now, 100, Kind::Volatile);
        steps.push(json!(["sent", now, 100, "volatile"]));
    }
    for (now, messages, read_at) in
        [(2.0, 8, 9.0), (2.0, 4, 9.0), (2.0, 6, f64::INFINITY), (3.0, 6, 9.0), (4.0, 6, 10.0)]
    {
        let step = match law.on_report(now, messages, read_at) {
            Err(_) => json!(["report", now, messages, read_at, false]),
            Ok(()) => {
                json!(["report", now, messages, read_at, true, law.is_limited(), law.pace(), law.queue(now)])
            }
        };
        steps.push(step);
    }
    case("{\"name\":\"reports that cannot be true\",\"new\":[0,5,false]", steps)
}

fn vectors() -> String {
    let [from, to] = BOTH;
    let stalls = |link| Link { stalls: Some((4_000.0, 1_000.0)), ..link };
    let foreign = Link { foreign: |now| if now > 3_000.0 { 200.0 } else { 0.0 }, ..link(HALF, 100.0) };
    let bulk = End { streams: 3, bulk: true, ..from };
    let freezes = End { frozen: Some((3_000.0, 6_000.0)), ..to };
    let to_a_tenth = |rate| Link { rate, ..link(FAST, 100.0) };
    // Name, links, ends, seconds.
    let cases: [(&str, [Link; 2], [End; 2], f64); 10] = [
        ("a healthy path", [link(FAST, 100.0); 2], BOTH, 4.0),
        ("half of the need", [link(HALF, 20.0), link(FAST, 20.0)], BOTH, 6.0),
        ("a sixth of the need both ways", [link(SIXTH, 600.0); 2], BOTH, 16.0),
        ("a drop to a tenth and back", [to_a_tenth(DROPS), link(FAST, 100.0)], BOTH, 8.0),
        ("a way back that becomes thin", [link(FAST, 100.0), to_a_tenth(THIN_BACK)], BOTH, 12.0),
        (
            "a long way that stands still for a second",
            [stalls(link(HALF, 600.0)), link(FAST, 600.0)],
            BOTH,
            8.0,
        ),
        (
            "three streams and a bulk transfer",
            [Link { rate: |_| 15.0, ..link(FAST, 20.0) }, link(FAST, 20.0)],
            [bulk, to],
            6.0,
        ),
        ("a receiver that freezes", [link(FAST, 20.0); 2], [from, freezes], 8.0),
        (
            "a clock that jumps",
            [link(HALF, 100.0), link(FAST, 100.0)],
            [from, End { clock: JUMPS, ..to }],
            10.0,
        ),
        ("a queue of somebody else's", [foreign, link(FAST, 100.0)], BOTH, 6.0),
    ];
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for (name, links, ends, seconds) in cases {
        let [sender, receiver] = Simulation::record(links, ends, seconds, 1);
        senders.push(pacing(name, sender));
        if receivers.len() < 3 || name == "a receiver that freezes" {
            receivers.push(reporter(name, receiver));
        }
    }
    senders.push(refused());
    format!(
        "{{\n\"pacing\":[\n{}\n],\n\"reporter\":[\n{}\n]\n}}\n",
        senders.join(",\n"),
        receivers.join(",\n")
    )
}

#[test]
fn the_vectors_are_up_to_date() {
    let vectors = vectors();
    if std::env::var_os("WRITE_VECTORS").is_some() {
        std::fs::write(FILE, &vectors).unwrap();
    }
    let is_same = std::fs::read_to_string(FILE).unwrap() == vectors;
    assert!(is_same, "the law answers otherwise: WRITE_VECTORS=1 cargo test --test model vectors");
}
