//! What is searched: small worlds, each with some trouble, in every order in which it can happen.

use duorelay::relay::ids::Device::{Desktop, Mobile};

use crate::checker::{counterexample, explore};
use crate::world::{Mutation, Setup};

/// The larger worlds take minutes without optimisation: they are searched by `cargo test --release`, and
/// wherever `DUORELAY_DEEP` is set.
fn is_deep() -> bool {
    !cfg!(debug_assertions) || std::env::var_os("DUORELAY_DEEP").is_some()
}

/// A phone on the first instance, and two desktops: one beside it, and one elsewhere. They come in any order.
/// So every way of taking over is there, and every way into and out of the short cut.
fn three() -> Setup {
    Setup { seats: vec![(Mobile, 0), (Desktop, 0), (Desktop, 1)], ..Setup::default() }
}

/// A phone and a desktop on two instances.
fn two() -> Setup {
    Setup { seats: vec![(Mobile, 0), (Desktop, 1)], ..Setup::default() }
}

#[test]
fn moving_desktops_miss_no_frame_and_get_none_twice() {
    let frames = if is_deep() { 4 } else { 2 };
    explore(10_000, Setup { frames, ..three() });
}

#[test]
fn moving_desktops_and_phones_miss_no_frame_and_get_none_twice() {
    let seats = vec![(Mobile, 0), (Desktop, 0), (Desktop, 1), (Mobile, 1)];
    let frames = u8::from(is_deep());
    explore(50_000, Setup { seats, frames, ..three() });
}

#[test]
fn a_lost_message_is_healed_by_renewing() {
    let (frames, losses) = if is_deep() { (2, 2) } else { (2, 1) };
    explore(30_000, Setup { frames, losses, ..three() });
}

#[test]
fn an_answer_before_the_claims_own_message_confuses_nobody() {
    let hasty_answers = true;
    explore(30_000, Setup { hasty_answers, frames: 2, losses: u8::from(is_deep()), ..three() });
}

#[test]
fn connections_that_leave_free_their_own_slot_only() {
    let frames = u8::from(is_deep());
    explore(50_000, Setup { leaves: 1, losses: 1, frames, ..three() });
}

#[test]
fn renewals_and_releases_may_overtake_each_other() {
    let leaves = 1 + u8::from(is_deep());
    explore(100_000, Setup { leaves, renewals: 1, ..three() });
}

#[test]
fn a_marker_that_is_given_up_does_not_reorder() {
    let frames = 3 + u8::from(is_deep());
    explore(50_000, Setup { overdues: 1, frames, ..three() });
}

#[test]
fn a_lease_may_end_under_a_living_connection() {
    if is_deep() {
        explore(1_000_000, Setup { renewals: 2, losses: 1, ticks: 2, ..three() });
    } else {
        explore(40_000, Setup { renewals: 1, ticks: 1, ..three() });
    }
}

/// Three attempts of one desktop, of which each may be carried out late, and its phone.
fn attempts() -> Setup {
    let seats = vec![(Mobile, 0), (Desktop, 0), (Desktop, 1), (Desktop, 0)];
    Setup { seats, attempts: true, ..Setup::default() }
}

#[test]
fn an_attempt_that_comes_late_ends_no_later_one() {
    let frames = u8::from(is_deep());
    explore(10_000, Setup { frames, leaves: 1, ..attempts() });
    explore(10_000, Setup { losses: 1, ..attempts() });
}

#[test]
fn a_crash_leaves_nothing_behind_after_its_lease() {
    let ticks = if is_deep() { 2 } else { 0 };
    explore(8_000, Setup { crashes: 1, losses: 1, frames: 1, ticks, ..three() });
}

#[test]
fn silence_true_or_false_ends_with_the_truth() {
    explore(30_000, Setup { silences: 1, ticks: 3, renewals: 1, ..two() });
    if is_deep() {
        explore(100_000, Setup { silences: 1, crashes: 1, ticks: 2, ..three() });
    }
}

#[test]
fn a_redis_that_loses_everything_gets_it_back() {
    explore(100_000, Setup { flushes: 1, leaves: 1, ..three() });
    if is_deep() {
        explore(500_000, Setup { flushes: 1, leaves: 1, losses: 1, ..three() });
        explore(500_000, Setup { flushes: 1, renewals: 1, ticks: 2, ..three() });
        explore(10_000, Setup { flushes: 1, crashes: 1, losses: 1, ..three() });
    }
}

// ---- the checker finds mistakes

#[test]
fn the_checker_finds_a_release_of_anybody() {
    let mutation = Some(Mutation::ReleaseOfAnybody);
    let found = counterexample(Setup { mutation, leaves: 1, ..three() });
    assert_eq!(found, Some("an old end disturbs nobody"));
}

#[test]
fn the_checker_finds_a_renewal_that_puts_back_an_overwritten_slot() {
    let mutation = Some(Mutation::RenewalOverNewer);
    let found = counterexample(Setup { mutation, renewals: 1, ..three() });
    assert_eq!(found, Some("only who is open holds a slot"));
}

#[test]
fn the_checker_finds_generations_that_do_not_grow_after_a_loss_of_data() {
    let mutation = Some(Mutation::GenerationsForgotten);
    let found = counterexample(Setup { mutation, flushes: 1, ..three() });
    assert_eq!(found, Some("newest wins"));
}

#[test]
fn the_checker_finds_a_room_that_believes_old_claims() {
    let mutation = Some(Mutation::ClaimsOfAnyAge);
    let found = counterexample(Setup { mutation, losses: 1, ..three() });
    assert_eq!(found, Some("newest wins"));
}

#[test]
fn the_checker_finds_a_short_cut_without_a_marker() {
    let mutation = Some(Mutation::NoMarker);
    let found = counterexample(Setup { mutation, frames: 2, ..three() });
    assert_eq!(found, Some("newest wins"));
}

#[test]
fn the_checker_finds_frames_that_are_not_fenced() {
    let mutation = Some(Mutation::NoFence);
    let found = counterexample(Setup {
        mutation,
        seats: vec![(Mobile, 0), (Desktop, 1), (Desktop, 2)],
        frames: 1,
        ..Setup::default()
    });
    assert_eq!(found, Some("fencing"));
}

#[test]
fn the_checker_finds_a_claim_before_its_lane_is_subscribed() {
    let mutation = Some(Mutation::SubscribedLate);
    let found = counterexample(Setup { mutation, frames: 1, ..three() });
    assert_eq!(found, Some("newest wins"));
}

#[test]
fn the_checker_finds_attempts_that_go_by_their_arrival() {
    let mutation = Some(Mutation::AttemptsIgnored);
    let found = counterexample(Setup { mutation, ..attempts() });
    assert_eq!(found, Some("an earlier attempt ends no later one"));
}
