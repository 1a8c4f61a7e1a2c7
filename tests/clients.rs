//! The clients' tables of what to do after a close or a refusal agree with the relay's.

#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use std::collections::BTreeSet;

use duorelay::relay::close::{Close, ComeBack};
use duorelay::relay::refusal::{Facts, Refusal};

const BROWSER: &str = include_str!("../src/client/js/src/decide.js");
const DART: &str = include_str!("../src/client/dart/lib/src/core/decide.dart");

/// The text from `start` to the next `end`.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(start).unwrap_or_else(|| panic!("there is no {start:?} any more"));
    rest.split_once(end).unwrap().0
}

fn quoted(text: &str, quote: char) -> BTreeSet<&str> {
    text.split(quote).skip(1).step_by(2).collect()
}

/// What the browser client does after a close: its rule is one line.
fn in_browser(code: u16) -> ComeBack {
    let rule = between(BROWSER, "const CLOSES = {", "};")
        .lines()
        .find_map(|line| line.trim().strip_prefix(&format!("{code}: ")))
        .unwrap_or_else(|| panic!("no rule for {code}"));
    match rule {
        rule if rule.contains("stop:") => ComeBack::No,
        rule if rule.contains("forceRefresh: true") => ComeBack::FreshToken,
        rule if rule.contains("wait: \"long\"") => ComeBack::LongBackOff,
        rule if rule.contains("wait: \"jitter\"") => ComeBack::AtOnce,
        _ => ComeBack::BackOff,
    }
}

/// What the Dart client does after a close.
fn in_dart(code: u16) -> ComeBack {
    match between(between(DART, &format!("      {code} => ("), ")"), "after: _After.", ",") {
        "stop" | "overwritten" => ComeBack::No,
        "freshToken" => ComeBack::FreshToken,
        "longWait" => ComeBack::LongBackOff,
        "jitter" => ComeBack::AtOnce,
        "backOff" => ComeBack::BackOff,
        other => panic!("{code}: {other}"),
    }
}

#[test]
fn clients_come_back_after_a_close_as_the_relay_wants_it() {
    for close in Close::ALL {
        let facts = close.facts();
        assert_eq!(in_browser(facts.code), facts.come_back, "browser: {close:?}");
        assert_eq!(in_dart(facts.code), facts.come_back, "Dart: {close:?}");
    }
}

/// A refusal either passes by itself, or a fresh token may cure it, or it stays.
#[test]
fn clients_know_every_refusal_that_stays_or_that_a_token_cures() {
    let browser = [
        quoted(between(BROWSER, "TOKEN_REFUSALS = new Set([", "])"), '"'),
        quoted(between(BROWSER, "FINAL_REFUSALS = new Set([", "])"), '"'),
    ];
    let dart = [
        quoted(between(DART, "tokenRefusals = {", "}"), '\''),
        quoted(between(DART, "_finalRefusals = {", "}"), '\''),
    ];
    for (client, [token, last]) in [("browser", browser), ("Dart", dart)] {
        assert!(token.is_disjoint(&last), "{client}");
        for refusal in Refusal::ALL {
            let Facts { code, retry_after, .. } = refusal.facts();
            // A later attempt of the same client has won, or something between the two lost the upgrade: both pass.
            let passes = retry_after.is_some()
                || matches!(refusal, Refusal::Superseded { .. } | Refusal::UpgradeRequired);
            assert_eq!(token.contains(code) || last.contains(code), !passes, "{client}: {code}");
        }
        let known: BTreeSet<_> = Refusal::ALL.map(Refusal::code).into_iter().collect();
        // What the browser itself forbids.
        let unknown: Vec<_> = token.union(&last).filter(|code| !known.contains(**code)).collect();
        assert!(unknown.is_empty() || unknown == [&"not_allowed"], "{client}: {unknown:?}");
    }
}
