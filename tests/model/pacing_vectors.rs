//! The freshness law against `tests/vectors/pacing.json`, which binds the clients' copies of it, too.
//!
//! The file is `{"pacing": [case], "reporter": [case]}`, a case `{"name", "new": [arguments], "steps": [step]}`. Times
//! are milliseconds, `null` is infinite. The steps of a `Pacing`:
//! - `["sent", now, bytes, kind]`
//! - `["may", now, kind, at]`: `at` is what `may_leave_at` answers
//! - `["report", now, messages, read_at, true, is_limited, pace, queue]`, the last three after it; or
//!   `[..., false]` for a report that is refused
//!
//! and of a `Reporter`: `["pace", ms]`, `["read", now, makes_due, due_at]`, `["report", now, messages, read_at]`.

use duorelay::relay::pacing::{Kind, Pacing, Reporter};
use serde_json::Value;

const VECTORS: &str = include_str!("../vectors/pacing.json");

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::INFINITY)
}

fn count(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

fn kind(value: &Value) -> Kind {
    match value.as_str().unwrap() {
        "volatile" => Kind::Volatile,
        "reliable" => Kind::Reliable,
        "control" => Kind::Control,
        "quiet" => Kind::Quiet,
        other => panic!("no kind: {other}"),
    }
}

/// Languages round a division alike, but may order a sum in another way.
fn assert_close(got: f64, expected: &Value, step: &Value, name: &str) {
    let expected = number(expected);
    let is_close = got == expected || (got - expected).abs() <= 1e-6 * (1.0 + expected.abs());
    assert!(is_close, "{name}, {step}: got {got}");
}

fn cases(of: &str) -> Vec<(String, Value, Vec<Value>)> {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    let cases = all[of].as_array().unwrap();
    let case = |case: &Value| {
        let name = case["name"].as_str().unwrap().to_owned();
        (name, case["new"].clone(), case["steps"].as_array().unwrap().clone())
    };
    cases.iter().map(case).collect()
}

#[test]
fn the_law_holds_to_its_vectors() {
    for (name, new, steps) in cases("pacing") {
        let mut pacing = Pacing::new(number(&new[0]), count(&new[1]), new[2].as_bool().unwrap());
        for step in &steps {
            let now = number(&step[1]);
            match step[0].as_str().unwrap() {
                "sent" => pacing.on_sent(now, count(&step[2]), kind(&step[3])),
                "may" => assert_close(pacing.may_leave_at(now, kind(&step[2])), &step[3], step, &name),
                "report" => {
                    let taken = pacing.on_report(now, count(&step[2]), number(&step[3]));
                    assert_eq!(taken.is_ok(), step[4].as_bool().unwrap(), "{name}, {step}");
                    if taken.is_ok() {
                        assert_eq!(pacing.is_limited(), step[5].as_bool().unwrap(), "{name}, {step}");
                        assert_eq!(u32::from(pacing.pace()), count(&step[6]), "{name}, {step}");
                        assert_close(pacing.queue(now), &step[7], step, &name);
                    }
                }
                other => panic!("no step: {other}"),
            }
        }
    }
}

#[test]
fn the_reporter_holds_to_its_vectors() {
    for (name, new, steps) in cases("reporter") {
        let mut reporter = Reporter::new(count(&new[0]));
        for step in &steps {
            match step[0].as_str().unwrap() {
                "pace" => reporter.set_pace(u16::try_from(count(&step[1])).unwrap()),
                "read" => {
                    reporter.on_read(number(&step[1]), step[2].as_bool().unwrap());
                    assert_close(reporter.due_at(), &step[3], step, &name);
                }
                "report" => {
                    let (messages, read_at) = reporter.report(number(&step[1])).unwrap();
                    assert_eq!(messages, count(&step[2]), "{name}, {step}");
                    assert_close(read_at, &step[3], step, &name);
                }
                other => panic!("no step: {other}"),
            }
        }
    }
}

#[test]
fn a_pacing_is_at_most_512_bytes() {
    assert!(size_of::<Pacing>() <= 512, "{}", size_of::<Pacing>());
}
