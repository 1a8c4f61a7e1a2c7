//! One suite for every backplane: each promise of `duorelay::backplane`, on memory, on Redis alone, behind Sentinel,
//! and on a cluster of three nodes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]
#![allow(unreachable_pub, reason = "the support is shared with other test binaries")]

#[path = "../support/mod.rs"]
mod support;

mod away;
mod channels;
mod claims;
mod record;
mod world;

/// Runs each of these functions as a test of its own on each backplane. Those of the second list run only on
/// a backplane that can lose what it knows. Memory cannot while its process lives.
macro_rules! suite {
    (every { $($every:tt)+ } that_loses { $($loses:tt)+ }) => {
        suite!(memory, World::memory(); $($every)+);
        suite!(standalone, World::standalone().await; $($every)+ $($loses)+);
        suite!(sentinel, World::sentinel().await; $($every)+ $($loses)+);
        suite!(cluster, World::cluster().await; $($every)+ $($loses)+);
    };
    ($world:ident, $make:expr; $($module:ident: $($name:ident),+;)+) => {
        mod $world {
            use crate::world::{World, run};

            $($(#[test]
            fn $name() {
                run(async { crate::$module::$name(&$make).await });
            })+)+
        }
    };
}

suite! { every {
    claims:
        concurrent_claims_leave_exactly_one_holder,
        claims_of_different_workers_leave_exactly_one_holder,
        a_claim_returns_whom_it_replaced_and_who_holds_the_other_slot,
        generations_grow_past_what_the_claimer_knows,
        a_claims_own_message_is_handed_out_before_its_answer,
        behind_a_backlog_claims_still_hear_themselves_first,
        a_release_frees_only_its_own_connections_slot,
        a_renewal_keeps_the_slot_and_extends_its_lease,
        a_renewal_returns_who_has_overwritten_it,
        an_overwritten_connection_does_not_get_back_a_slot_that_was_left,
        ten_evictions_in_ten_seconds_are_allowed_and_hand_overs_always,
        an_earlier_attempt_of_a_client_changes_nothing,
        leases_end_by_the_backplanes_clock,
        a_room_shows_its_holders_and_what_is_left_of_their_leases,
        odd_uids_have_rooms_and_lanes_of_their_own;
    channels:
        who_has_claimed_hears_everything_that_is_published_after_it,
        a_thousand_publishes_arrive_once_and_in_order,
        all_subscribers_of_a_lane_hear_the_same_order,
        claims_and_releases_stand_at_their_point_on_both_lanes,
        every_envelope_arrives_as_it_was_published,
        unsubscribing_and_coming_back_loses_nothing,
        what_is_not_subscribed_is_not_heard;
} that_loses {
    claims:
        generations_grow_although_the_room_was_lost,
        a_renewal_puts_back_what_was_lost_and_says_so_on_both_lanes,
        after_a_loss_the_newer_one_alone_comes_back,
        a_lost_room_is_put_back_with_its_attempt;
} }
