use uuid::Uuid;

use super::*;
use crate::relay::ids::ClientId;

const A: InstanceId = InstanceId(Uuid::from_u128(0xa));
const B: InstanceId = InstanceId(Uuid::from_u128(0xb));
use Device::{Desktop, Mobile};

/// Connection n has seat n and generation n.
fn member(n: u32) -> Member {
    Member { connection: ConnectionId(Uuid::from_u128(n.into())), generation: Generation(n.into()) }
}

fn holder(n: u32, instance: InstanceId, client: &str) -> Holder {
    Holder { member: member(n), instance, client: ClientId::new(client) }
}

fn effects(act: impl FnOnce(&mut Vec<Effect<u32>>)) -> Vec<Effect<u32>> {
    let mut effects = Vec::new();
    act(&mut effects);
    effects
}

fn peer(seat: u32, device: Device, n: u32, connected: bool) -> Effect<u32> {
    Effect::Peer { seat, device, member: member(n), connected }
}

fn overwrite(seat: u32, n: u32, same_client: bool) -> Effect<u32> {
    let Member { connection, generation } = member(n);
    Effect::Overwrite { seat, by: Successor { connection, generation, same_client } }
}

fn claimed(n: u32, other: Option<Holder>) -> Claimed {
    Claimed { generation: Generation(n.into()), replaced: None, other }
}

/// A local connection that has claimed and was welcomed.
fn seat(room: &mut Room<u32>, device: Device, n: u32, client: &str) -> Vec<Effect<u32>> {
    effects(|fx| {
        room.on_claiming(device, member(n).connection, n);
        room.on_claimed(device, holder(n, A, client), fx);
        let other = room.slot(device.other()).holder.clone();
        room.on_claim_answered(device, holder(n, A, client), &claimed(n, other), fx);
        room.on_welcomed(device, member(n).connection);
    })
}

fn away(room: &mut Room<u32>, device: Device, n: u32) -> Vec<Effect<u32>> {
    effects(|fx| room.on_claimed(device, holder(n, B, ""), fx))
}

fn route(room: &mut Room<u32>, device: Device, n: u32) -> Route<u32> {
    room.route(device, member(n).connection)
}

#[test]
fn two_devices_here_reach_each_other_in_memory() {
    let mut room = Room::default();
    assert_eq!(seat(&mut room, Desktop, 1, ""), []);
    assert_eq!(route(&mut room, Desktop, 1), Route::Absent);
    assert_eq!(seat(&mut room, Mobile, 2, ""), [peer(1, Mobile, 2, true)]);
    assert_eq!(route(&mut room, Desktop, 1), Route::Here(2));
    assert_eq!(route(&mut room, Mobile, 2), Route::Here(1));
    assert_eq!(room.occupancy(), Occupancy { desktop: true, mobile: true });
}

#[test]
fn newer_desktop_overwrites_the_older_one_whose_frames_end_there() {
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    seat(&mut room, Desktop, 2, "tab");
    assert_eq!(seat(&mut room, Desktop, 3, "other"), [overwrite(2, 3, false), peer(1, Desktop, 3, true)]);
    assert_eq!(route(&mut room, Desktop, 2), Route::Overwritten);
    assert_eq!(route(&mut room, Mobile, 1), Route::Here(3));
    let left = effects(|fx| assert_eq!(room.on_left(Desktop, member(2).connection, fx), Left::Overwritten));
    assert_eq!(left, []);
    assert_eq!(route(&mut room, Mobile, 1), Route::Here(3));
}

#[test]
fn the_same_client_hands_over_and_connections_without_a_name_never_do() {
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "tab");
    assert_eq!(seat(&mut room, Desktop, 2, "tab"), [overwrite(1, 2, true)]);
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "");
    assert_eq!(seat(&mut room, Desktop, 2, ""), [overwrite(1, 2, false)]);
}

#[test]
fn a_claim_elsewhere_overwrites_and_frames_take_the_lane() {
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    seat(&mut room, Desktop, 2, "");
    assert_eq!(away(&mut room, Desktop, 3), [overwrite(2, 3, false), peer(1, Desktop, 3, true)]);
    assert_eq!(route(&mut room, Mobile, 1), Route::Away(member(1)));
    assert!(!room.listens(Desktop));
    assert!(room.listens(Mobile));
}

#[test]
fn older_claims_and_releases_change_nothing() {
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    away(&mut room, Desktop, 5);
    assert_eq!(away(&mut room, Desktop, 4), []);
    assert_eq!(effects(|fx| room.on_released(Desktop, member(4), fx)), []);
    assert_eq!(route(&mut room, Mobile, 1), Route::Away(member(1)));
    assert_eq!(effects(|fx| room.on_released(Desktop, member(5), fx)), [peer(1, Desktop, 5, false)]);
    assert_eq!(route(&mut room, Mobile, 1), Route::Absent);
}

#[test]
fn only_the_newest_known_sender_is_heard() {
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    away(&mut room, Desktop, 5);
    let mut fx = vec![];
    assert_eq!(room.accept(Mobile, member(4), &mut fx), None);
    assert_eq!(room.accept(Mobile, member(5), &mut fx), Some(&1));
    assert_eq!(fx, []);
    room.on_released(Desktop, member(5), &mut fx);
    fx.clear();
    assert_eq!(room.accept(Mobile, member(5), &mut fx), None);
}

#[test]
fn a_sender_whose_claim_was_lost_on_the_way_proves_itself_by_its_frame() {
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    seat(&mut room, Desktop, 2, "");
    let mut fx = vec![];
    assert_eq!(room.accept(Mobile, member(6), &mut fx), Some(&1));
    assert_eq!(fx, [overwrite(2, 6, false), peer(1, Desktop, 6, true)]);
}

#[test]
fn lane_messages_before_ones_own_claim_are_the_predecessors() {
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "tab");
    away(&mut room, Mobile, 2);
    room.on_claiming(Desktop, member(3).connection, 3);
    let mut fx = vec![];
    assert_eq!(room.accept(Desktop, member(2), &mut fx), Some(&1));
    room.on_claimed(Desktop, holder(3, A, "tab"), &mut fx);
    assert_eq!(room.accept(Desktop, member(2), &mut fx), Some(&3));
    assert_eq!(fx, [overwrite(1, 3, true)]);
}

#[test]
fn volatile_frames_of_an_older_peer_than_the_welcome_will_name_are_dropped() {
    type Change = fn(&mut Room<u32>, &mut Vec<Effect<u32>>);
    let changes: [Change; 5] = [
        |room, fx| room.on_claimed(Mobile, holder(4, B, ""), fx),
        |room, fx| assert_eq!(room.accept(Desktop, member(4), fx), Some(&3)),
        |room, fx| room.on_released(Mobile, member(2), fx),
        |room, fx| room.on_claim_answered(Desktop, holder(3, A, ""), &claimed(3, None), fx),
        |room, fx| room.on_claim_answered(Desktop, holder(3, A, ""), &claimed(3, Some(holder(4, B, ""))), fx),
    ];
    for change in changes {
        let mut room = Room::default();
        room.on_claiming(Desktop, member(3).connection, 3);
        room.on_claimed(Desktop, holder(3, A, ""), &mut vec![]);
        assert_eq!(room.accept(Desktop, member(2), &mut vec![]), Some(&3));
        assert_eq!(effects(|fx| change(&mut room, fx)), [Effect::DropVolatile { seat: 3 }]);
        // From here on an effect notifies it of the change.
        let newest = room.on_welcomed(Desktop, member(3).connection);
        assert_eq!(newest, room.visible(Mobile));
        assert_eq!(away(&mut room, Mobile, 5), [peer(3, Mobile, 5, true)]);
    }
    // A connection that has lost its slot before its welcome hears of no change.
    let mut room = Room::default();
    room.on_claiming(Desktop, member(3).connection, 3);
    room.on_claimed(Desktop, holder(3, A, ""), &mut vec![]);
    assert_eq!(away(&mut room, Desktop, 4), [Effect::DropVolatile { seat: 3 }, overwrite(3, 4, false)]);
}

#[test]
fn the_answer_to_a_claim_stands_in_for_a_lost_lane_message() {
    let mut room = Room::default();
    room.on_claiming(Desktop, member(3).connection, 3);
    let answer = claimed(3, Some(holder(2, B, "")));
    assert_eq!(effects(|fx| room.on_claim_answered(Desktop, holder(3, A, ""), &answer, fx)), []);
    assert_eq!(room.on_welcomed(Desktop, member(3).connection), Some(member(2)));
    assert_eq!(route(&mut room, Desktop, 3), Route::Away(member(3)));
}

#[test]
fn a_claim_that_was_overtaken_before_its_answer_is_overwritten() {
    let mut room = Room::default();
    room.on_claiming(Desktop, member(3).connection, 3);
    away(&mut room, Desktop, 4);
    let late = effects(|fx| room.on_claim_answered(Desktop, holder(3, A, ""), &claimed(3, None), fx));
    assert_eq!(late, [overwrite(3, 4, false)]);

    let mut room = Room::default();
    room.on_claiming(Desktop, member(3).connection, 3);
    away(&mut room, Desktop, 4);
    assert_eq!(effects(|fx| room.on_released(Desktop, member(4), fx)), []);
    let late = effects(|fx| room.on_claim_answered(Desktop, holder(3, A, ""), &claimed(3, None), fx));
    assert_eq!(late, [overwrite(3, 4, false)]);
}

#[test]
fn what_the_channel_delivered_after_a_question_is_newer_than_its_answer() {
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "");
    let asked = room.known();
    away(&mut room, Mobile, 2);
    let kept = |other| Renewed::Kept { other };
    let c = member(1).connection;
    assert_eq!(effects(|fx| room.on_renewed(Desktop, c, asked, kept(None), fx)), []);
    assert_eq!(room.visible(Mobile), Some(member(2)));
    let asked = room.known();
    let _ = effects(|fx| room.on_released(Mobile, member(2), fx));
    assert_eq!(effects(|fx| room.on_renewed(Desktop, c, asked, kept(Some(holder(2, B, ""))), fx)), []);
    assert_eq!(room.visible(Mobile), None);
}

#[test]
fn a_renewal_heals_what_the_lane_lost() {
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "");
    let c = member(1).connection;
    let known = room.known();
    let kept = |other| Renewed::Kept { other };
    let came = effects(|fx| room.on_renewed(Desktop, c, known, kept(Some(holder(2, B, ""))), fx));
    assert_eq!(came, [peer(1, Mobile, 2, true)]);
    let known = room.known();
    let gone = effects(|fx| room.on_renewed(Desktop, c, known, kept(None), fx));
    assert_eq!(gone, [peer(1, Mobile, 2, false)]);
    let by = holder(9, B, "");
    let lost = Renewed::Overwritten { by: by.member, holder: Some(by) };
    assert_eq!(effects(|fx| room.on_renewed(Desktop, c, known, lost, fx)), [overwrite(1, 9, false)]);
    assert!(room.is_idle());
}

#[test]
fn a_silent_instance_counts_as_disconnected_until_it_is_heard_again() {
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "");
    away(&mut room, Mobile, 2);
    assert_eq!(effects(|fx| room.on_instance(B, true, fx)), [peer(1, Mobile, 2, false)]);
    assert_eq!(effects(|fx| room.on_instance(B, true, fx)), []);
    assert_eq!(route(&mut room, Desktop, 1), Route::Absent);
    assert_eq!(effects(|fx| room.on_instance(B, false, fx)), [peer(1, Mobile, 2, true)]);
    assert_eq!(effects(|fx| room.on_instance(A, true, fx)), []);
}

#[test]
fn the_short_cut_opens_when_the_marker_has_come_back() {
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    away(&mut room, Desktop, 2);
    assert_eq!(route(&mut room, Mobile, 1), Route::Away(member(1)));
    let fx = seat(&mut room, Desktop, 3, "");
    assert_eq!(fx, [peer(1, Desktop, 3, true), Effect::Mark { seat: 1, channel: Desktop, nonce: 1 }]);
    assert_eq!(route(&mut room, Mobile, 1), Route::Wait);
    assert_eq!(route(&mut room, Desktop, 3), Route::Here(1));
    assert_eq!(effects(|fx| room.on_marker(Desktop, 9, fx)), []);
    assert_eq!(effects(|fx| room.on_marker(Desktop, 1, fx)), [Effect::Resume { seat: 1 }]);
    assert_eq!(route(&mut room, Mobile, 1), Route::Here(3));
}

#[test]
fn a_lost_marker_and_a_peer_that_leaves_let_the_sender_go_on() {
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    away(&mut room, Desktop, 2);
    let _ = route(&mut room, Mobile, 1);
    seat(&mut room, Desktop, 3, "");
    assert_eq!(effects(|fx| room.on_marker_overdue(Mobile, fx)), [Effect::Resume { seat: 1 }]);
    assert_eq!(route(&mut room, Mobile, 1), Route::Here(3));

    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    away(&mut room, Desktop, 2);
    let _ = route(&mut room, Mobile, 1);
    seat(&mut room, Desktop, 3, "");
    let gone = effects(|fx| assert_eq!(room.on_left(Desktop, member(3).connection, fx), Left::Current));
    assert_eq!(gone, [peer(1, Desktop, 3, false), Effect::Resume { seat: 1 }]);
}

#[test]
fn a_frame_that_comes_after_its_marker_was_given_up_does_not_arrive_behind_later_ones() {
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "");
    away(&mut room, Mobile, 2);
    assert_eq!(route(&mut room, Desktop, 1), Route::Away(member(1)));
    seat(&mut room, Mobile, 3, "");
    let resumed = effects(|fx| room.on_marker_overdue(Desktop, fx));
    assert_eq!(resumed, [Effect::Resume { seat: 1 }]);
    assert_eq!(route(&mut room, Desktop, 1), Route::Here(3));
    let _ = effects(|fx| assert_eq!(room.accept(Mobile, member(1), fx), None));
    // Another one that sends from elsewhere is heard.
    let _ = effects(|fx| assert_eq!(room.accept(Mobile, member(4), fx), Some(&3)));
}

#[test]
fn a_release_of_a_newer_connection_whose_claim_was_lost_overwrites() {
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "");
    seat(&mut room, Mobile, 2, "");
    let lost = effects(|fx| room.on_released(Desktop, member(3), fx));
    assert_eq!(lost, [overwrite(1, 3, false), peer(2, Desktop, 3, true), peer(2, Desktop, 3, false)]);
    assert_eq!(route(&mut room, Desktop, 1), Route::Overwritten);
    assert_eq!(route(&mut room, Mobile, 2), Route::Absent);
}

#[test]
fn a_newer_connection_whose_lease_only_ended_comes_back() {
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "");
    seat(&mut room, Mobile, 2, "");
    let overwritten = Renewed::Overwritten { by: member(3), holder: None };
    let _ = effects(|fx| {
        room.on_renewed(Desktop, member(1).connection, Generation(2), overwritten, fx);
    });
    assert_eq!(route(&mut room, Mobile, 2), Route::Absent);
    let kept = Renewed::Kept { other: Some(holder(3, B, "")) };
    let back = effects(|fx| room.on_renewed(Mobile, member(2).connection, Generation(3), kept, fx));
    assert_eq!(back, [peer(2, Desktop, 3, true)]);
    let _ = effects(|fx| assert_eq!(room.accept(Mobile, member(3), fx), Some(&2)));
}

#[test]
fn a_frame_or_a_repeated_claim_brings_back_a_holder_whose_lease_had_ended() {
    let ended = |room: &mut Room<u32>| {
        let kept = Renewed::Kept { other: None };
        let connection = member(1).connection;
        effects(|fx| room.on_renewed(Mobile, connection, Generation(2), kept, fx))
    };
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    away(&mut room, Desktop, 2);
    assert_eq!(ended(&mut room), [peer(1, Desktop, 2, false)]);
    let heard = effects(|fx| assert_eq!(room.accept(Mobile, member(2), fx), Some(&1)));
    assert_eq!(heard, [peer(1, Desktop, 2, true)]);
    assert_eq!(ended(&mut room), [peer(1, Desktop, 2, false)]);
    assert_eq!(away(&mut room, Desktop, 2), [peer(1, Desktop, 2, true)]);
    let _ = effects(|fx| room.on_released(Desktop, member(2), fx));
    assert_eq!(away(&mut room, Desktop, 2), []);
}

#[test]
fn an_instance_that_was_silent_for_longer_than_a_lease_is_seen_again() {
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    away(&mut room, Desktop, 2);
    let kept = |other| Renewed::Kept { other };
    let connection = member(1).connection;
    let changes = effects(|fx| {
        room.on_instance(B, true, fx);
        room.on_renewed(Mobile, connection, Generation(2), kept(None), fx);
        room.on_instance(B, false, fx);
        let other = Some(holder(2, B, ""));
        room.on_renewed(Mobile, connection, Generation(2), kept(other), fx);
    });
    assert_eq!(changes, [peer(1, Desktop, 2, false), peer(1, Desktop, 2, true)]);
    assert_eq!(route(&mut room, Mobile, 1), Route::Away(member(1)));
}

#[test]
fn after_the_record_was_lost_an_older_connection_stands_in_for_a_newer_one_that_has_gone() {
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    away(&mut room, Desktop, 2);
    away(&mut room, Desktop, 3);
    let answer = |room: &mut Room<u32>, asked| {
        let other = Some(holder(2, B, ""));
        let kept = Renewed::Kept { other };
        effects(|fx| room.on_renewed(Mobile, member(1).connection, asked, kept, fx))
    };
    // Not by an answer that may be older than the newer one's claim.
    assert_eq!(answer(&mut room, Generation(2)), []);
    // Nor before the newer one has had the time to put itself back.
    assert_eq!(answer(&mut room, Generation(3)), [peer(1, Desktop, 3, false)]);
    let _ = effects(|fx| assert_eq!(room.accept(Mobile, member(2), fx), None));
    assert_eq!(answer(&mut room, Generation(3)), [peer(1, Desktop, 2, true)]);
    let _ = effects(|fx| assert_eq!(room.accept(Mobile, member(2), fx), Some(&1)));
}

#[test]
fn a_claim_that_failed_after_its_lane_message_leaves_its_slot() {
    let mut room = Room::default();
    seat(&mut room, Mobile, 1, "");
    room.on_claiming(Desktop, member(2).connection, 2);
    let mut fx = vec![];
    room.on_claimed(Desktop, holder(2, A, ""), &mut fx);
    assert_eq!(room.on_claim_failed(Desktop, member(2).connection, &mut fx), Left::Current);
    assert_eq!(fx, [peer(1, Desktop, 2, true), peer(1, Desktop, 2, false)]);
    room.on_claiming(Desktop, member(3).connection, 3);
    assert_eq!(room.on_claim_failed(Desktop, member(3).connection, &mut fx), Left::Claiming);
    assert!(!room.listens(Desktop));
}

#[test]
fn a_room_knows_who_is_here_and_is_idle_without_anybody() {
    let mut room = Room::<u32>::default();
    assert!(room.is_idle() && room.here(Desktop).is_none() && room.renewable(Desktop).is_none());
    room.on_claiming(Mobile, member(9).connection, 9);
    assert!(!room.is_idle(), "a claim is under way");
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "tab");
    assert_eq!((room.here(Desktop), room.here(Mobile)), (Some(&1), None));
    assert_eq!(room.renewable(Desktop), Some((&1, &holder(1, A, "tab"))));
    assert!(!room.is_idle());
}

#[test]
fn a_renewal_that_its_own_release_has_overtaken_changes_nothing() {
    let mut room = Room::default();
    seat(&mut room, Desktop, 1, "");
    let Member { connection, generation } = member(1);
    let released = Renewed::Overwritten { by: member(1), holder: None };
    let said = effects(|fx| room.on_renewed(Desktop, connection, generation, released, fx));
    assert_eq!((said, room.here(Desktop)), (vec![], Some(&1)));
    assert_eq!(room.renewable(Desktop), Some((&1, &holder(1, A, ""))));
}

#[test]
fn the_welcome_of_an_overwritten_connection_says_nothing_for_its_successor() {
    let mut room = Room::default();
    for n in [1, 2] {
        effects(|fx| {
            room.on_claiming(Desktop, member(n).connection, n);
            room.on_claimed(Desktop, holder(n, A, ""), fx);
            room.on_claim_answered(Desktop, holder(n, A, ""), &claimed(n, None), fx);
        });
    }
    assert_eq!(room.here(Desktop), Some(&2));
    room.on_welcomed(Desktop, member(1).connection);
    let before = away(&mut room, Mobile, 9);
    assert!(!before.contains(&peer(2, Mobile, 9, true)), "{before:?}: its own welcome names the peer");
    assert_eq!(room.on_welcomed(Desktop, member(2).connection), Some(member(9)));
}
