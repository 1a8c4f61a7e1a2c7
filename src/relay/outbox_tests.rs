use std::time::Duration;

use proptest::prelude::*;

use super::*;

const LIMIT: usize = 10_000;

fn frame(stream: u8, n: u8) -> Bytes {
    Bytes::from(vec![stream, n])
}

fn volatile(outbox: &mut Outbox, stream: u8, n: u8) -> Pushed {
    outbox.push_volatile(StreamId(stream), frame(stream, n), Instant::now(), LIMIT)
}

fn reliable(outbox: &mut Outbox, n: u8) {
    outbox.push_reliable(Outgoing::binary(frame(0x80, n), None), LIMIT).unwrap();
}

fn drain(outbox: &mut Outbox) -> Vec<Bytes> {
    std::iter::from_fn(|| outbox.pop()).map(|message| message.bytes).collect()
}

#[test]
fn control_goes_first_and_the_first_message_before_it() {
    let mut outbox = Outbox::default();
    reliable(&mut outbox, 1);
    assert_eq!(volatile(&mut outbox, 1, 1), Pushed::Waits);
    outbox.push_control(Bytes::from_static(b"c"), pacing::Kind::Quiet, LIMIT).unwrap();
    outbox.push_first(Bytes::from_static(b"welcome"));
    let order = drain(&mut outbox);
    assert_eq!(order[..2], [Bytes::from_static(b"welcome"), Bytes::from_static(b"c")]);
    assert!(outbox.is_empty());
}

#[test]
fn the_latest_frame_of_a_stream_replaces_the_waiting_one_in_its_turn() {
    let mut outbox = Outbox::default();
    assert_eq!(volatile(&mut outbox, 1, 1), Pushed::Waits);
    assert_eq!(volatile(&mut outbox, 2, 1), Pushed::Waits);
    assert_eq!(volatile(&mut outbox, 1, 2), Pushed::Replaced);
    assert_eq!(drain(&mut outbox), [frame(1, 2), frame(2, 1)]);
}

#[test]
fn reliable_and_volatile_take_turns() {
    let mut outbox = Outbox::default();
    for n in 1..=3 {
        reliable(&mut outbox, n);
        assert_eq!(volatile(&mut outbox, n, 0), Pushed::Waits);
    }
    let order = drain(&mut outbox);
    assert_eq!(
        order,
        [frame(0x80, 1), frame(1, 0), frame(0x80, 2), frame(2, 0), frame(0x80, 3), frame(3, 0)]
    );
}

#[test]
fn the_reliable_queue_is_bounded_and_one_message_always_fits() {
    let mut outbox = Outbox::default();
    let big = || Outgoing::binary(Bytes::from(vec![0x80; 2 * LIMIT]), None);
    assert_eq!(outbox.push_reliable(big(), LIMIT), Ok(()));
    assert_eq!(outbox.push_reliable(big(), LIMIT), Err(TooSlow));
    assert_eq!(outbox.push_reliable(Outgoing::binary(frame(0x80, 1), None), LIMIT), Err(TooSlow));
}

#[test]
fn pressure_is_high_above_half_and_low_below_a_quarter() {
    let mut outbox = Outbox::default();
    let item = 100 - ITEM;
    let push = |outbox: &mut Outbox| {
        let message = Outgoing::binary(Bytes::from(vec![0x80; item]), None);
        outbox.push_reliable(message, 1000).unwrap();
        outbox.pressure_change(1000)
    };
    for waiting in 1..=5 {
        assert_eq!(push(&mut outbox), None, "{waiting}00 of 1000 bytes wait");
    }
    assert_eq!(push(&mut outbox), Some(PressureState::High));
    assert_eq!(push(&mut outbox), None);
    for waiting in (3..=6).rev() {
        outbox.pop();
        assert_eq!(outbox.pressure_change(1000), None, "{waiting}00 of 1000 bytes wait");
        assert!(outbox.is_pressed());
    }
    outbox.pop();
    assert_eq!(outbox.pressure_change(1000), Some(PressureState::Low));
    assert_eq!(outbox.pressure_change(1000), None);
}

#[test]
fn volatile_frames_past_the_limit_drop_the_longest_waiting() {
    let mut outbox = Outbox::default();
    let now = Instant::now();
    let big = |stream: u8| Bytes::from(vec![stream; LIMIT / 3]);
    let at = |ms| now + Duration::from_millis(ms);
    assert_eq!(outbox.push_volatile(StreamId(1), big(1), at(1), LIMIT), Pushed::Waits);
    assert_eq!(outbox.push_volatile(StreamId(2), big(2), at(2), LIMIT), Pushed::Waits);
    assert_eq!(outbox.push_volatile(StreamId(1), big(1), at(3), LIMIT), Pushed::Replaced);
    assert_eq!(outbox.push_volatile(StreamId(3), big(3), at(4), LIMIT), Pushed::Dropped(1));
    assert_eq!(drain(&mut outbox), [big(1), big(3)]);
}

#[test]
fn goodbye_comes_after_what_waits_and_stops_the_rest() {
    let mut outbox = Outbox::default();
    reliable(&mut outbox, 1);
    outbox.close(Some(Bytes::from_static(b"bye")), Close::Overwritten);
    outbox.close(None, Close::Restart);
    reliable(&mut outbox, 2);
    assert_eq!(outbox.goodbye(), None);
    assert_eq!(drain(&mut outbox), [frame(0x80, 1)]);
    assert_eq!(outbox.goodbye(), Some((Some(Bytes::from_static(b"bye")), Close::Overwritten)));
}

#[derive(Debug, Clone)]
enum Op {
    Control,
    Reliable(u8),
    Volatile(u8, u8),
    Pop,
}

proptest! {
    /// Against a model: each stream's frames come out in order, reliable ones all of them. The last volatile
    /// frame of each stream is never lost.
    #[test]
    fn order_and_freshness_hold(ops in prop::collection::vec(prop_oneof![
        Just(Op::Control),
        any::<u8>().prop_map(Op::Reliable),
        (0u8..4, any::<u8>()).prop_map(|(s, n)| Op::Volatile(s, n)),
        Just(Op::Pop),
    ], 0..200)) {
        let mut outbox = Outbox::default();
        let (mut sent_reliable, mut got_reliable) = (vec![], vec![]);
        let mut sent = [const { vec![] }; 4];
        let mut got = [const { vec![] }; 4];
        let take = |message: Option<Outgoing>, got_reliable: &mut Vec<u8>, got: &mut [Vec<u8>; 4]| {
            match message {
                Some(Outgoing { kind: Kind::Binary, bytes, .. }) if bytes[0] == 0x80 => got_reliable.push(bytes[1]),
                Some(Outgoing { kind: Kind::Binary, bytes, .. }) => got[usize::from(bytes[0])].push(bytes[1]),
                Some(Outgoing { kind: Kind::Text, .. }) | None => {}
            }
        };
        for op in ops {
            match op {
                Op::Control => outbox.push_control(Bytes::from_static(b"c"), pacing::Kind::Quiet, usize::MAX).unwrap(),
                Op::Reliable(n) => {
                    sent_reliable.push(n);
                    outbox.push_reliable(Outgoing::binary(frame(0x80, n), None), usize::MAX).unwrap();
                }
                Op::Volatile(s, n) => {
                    sent[usize::from(s)].push(n);
                    let pushed = outbox.push_volatile(StreamId(s), frame(s, n), Instant::now(), usize::MAX);
                    prop_assert!(!matches!(pushed, Pushed::Dropped(_)));
                }
                Op::Pop => take(outbox.pop(), &mut got_reliable, &mut got),
            }
        }
        while !outbox.is_empty() {
            take(outbox.pop(), &mut got_reliable, &mut got);
        }
        prop_assert_eq!(outbox.waiting_bytes(), 0);
        prop_assert_eq!(got_reliable, sent_reliable);
        for (sent, got) in sent.iter().zip(&got) {
            prop_assert_eq!(sent.last(), got.last());
            let mut rest = sent.iter();
            prop_assert!(got.iter().all(|n| rest.any(|s| s == n)), "{:?} is no subsequence of {:?}", got, sent);
        }
    }
}

fn bytes(length: usize) -> Bytes {
    Bytes::from(vec![7; length])
}

#[test]
fn a_queue_takes_exactly_its_limit() {
    // Two items of 10 bytes each.
    let both = 2 * (10 + ITEM);
    for (limit, fits) in [(both, true), (both - 1, false)] {
        let mut outbox = Outbox::default();
        let push = |outbox: &mut Outbox| outbox.push_control(bytes(10), pacing::Kind::Quiet, limit);
        push(&mut outbox).unwrap();
        assert_eq!(push(&mut outbox).is_ok(), fits, "control, {limit}");
        assert_eq!(outbox.waiting_bytes(), if fits { both } else { 10 + ITEM });

        let mut outbox = Outbox::default();
        let push = |outbox: &mut Outbox| outbox.push_reliable(Outgoing::binary(bytes(10), None), limit);
        push(&mut outbox).unwrap();
        assert_eq!(push(&mut outbox).is_ok(), fits, "reliable, {limit}");
        assert_eq!(outbox.waiting_bytes(), if fits { both } else { 10 + ITEM });

        let mut outbox = Outbox::default();
        let now = Instant::now();
        let push =
            |outbox: &mut Outbox, stream| outbox.push_volatile(StreamId(stream), bytes(10), now, limit);
        assert_eq!(push(&mut outbox, 1), Pushed::Waits);
        assert_eq!(push(&mut outbox, 2), if fits { Pushed::Waits } else { Pushed::Dropped(1) });
    }
    let mut outbox = Outbox::default();
    let alone = outbox.push_volatile(StreamId(1), bytes(10), Instant::now(), 1);
    assert_eq!((alone, drain(&mut outbox).len()), (Pushed::Waits, 1), "one frame always fits");
    outbox.push_control(bytes(10), pacing::Kind::Quiet, 1).unwrap();
}

#[test]
fn what_waits_is_counted_item_by_item() {
    let mut outbox = Outbox::default();
    assert_eq!(outbox.waiting_bytes(), 0);
    let mut expected = 0;
    let mut grown = |outbox: &Outbox, by: usize| {
        expected += by + ITEM;
        assert_eq!(outbox.waiting_bytes(), expected);
    };
    outbox.push_first(bytes(5));
    grown(&outbox, 5);
    outbox.push_control(bytes(3), pacing::Kind::Quiet, LIMIT).unwrap();
    grown(&outbox, 3);
    outbox.push_reliable(Outgoing::text(bytes(2), None), LIMIT).unwrap();
    grown(&outbox, 2);
    let now = Instant::now();
    assert_eq!(outbox.push_volatile(StreamId(1), bytes(40), now, LIMIT), Pushed::Waits);
    grown(&outbox, 40);
    assert_eq!(outbox.push_volatile(StreamId(1), bytes(4), now, LIMIT), Pushed::Replaced);
    expected -= 36;
    for popped in [5, 3, 2, 4] {
        assert_eq!(outbox.waiting_bytes(), expected);
        assert_eq!(outbox.pop().unwrap().bytes.len(), popped);
        expected -= popped + ITEM;
    }
    assert!(outbox.is_empty() && outbox.waiting_bytes() == 0);
}

#[test]
fn a_frame_that_replaces_one_and_drops_another_counts_both() {
    let mut outbox = Outbox::default();
    let now = Instant::now();
    let limit = 100 + 2 * ITEM;
    assert_eq!(outbox.push_volatile(StreamId(1), bytes(50), now, limit), Pushed::Waits);
    assert_eq!(outbox.push_volatile(StreamId(2), bytes(50), now, limit), Pushed::Waits);
    let later = now + Duration::from_millis(1);
    assert_eq!(outbox.push_volatile(StreamId(2), bytes(51), later, limit), Pushed::Dropped(2));
    assert_eq!(outbox.waiting_bytes(), 51 + ITEM);
}

#[test]
fn volatile_frames_can_be_dropped_and_counted() {
    let mut outbox = Outbox::default();
    reliable(&mut outbox, 1);
    assert_eq!(outbox.drop_volatile(), 0);
    for stream in 1..=3 {
        assert_eq!(volatile(&mut outbox, stream, 0), Pushed::Waits);
    }
    assert_eq!(outbox.drop_volatile(), 3);
    assert_eq!(outbox.waiting_bytes(), 2 + ITEM, "the reliable message stays");
    assert_eq!(drain(&mut outbox), [frame(0x80, 1)]);
}

#[test]
fn a_goodbye_ends_what_may_be_queued() {
    let mut outbox = Outbox::default();
    assert!(!outbox.is_closing() && outbox.is_empty() && !outbox.is_empty_but_goodbye());
    reliable(&mut outbox, 1);
    assert!(!outbox.is_empty());
    outbox.close(None, Close::Restart);
    assert!(outbox.is_closing() && !outbox.is_empty_but_goodbye() && !outbox.is_empty());
    let before = outbox.waiting_bytes();
    outbox.push_control(bytes(1), pacing::Kind::Quiet, LIMIT).unwrap();
    reliable(&mut outbox, 2);
    assert_eq!(volatile(&mut outbox, 1, 1), Pushed::Waits);
    assert_eq!(outbox.waiting_bytes(), before);
    outbox.pop();
    assert!(outbox.is_empty_but_goodbye() && !outbox.is_empty());

    // Each lane alone keeps it from being empty.
    let filled: [fn(&mut Outbox); 3] = [
        |outbox| outbox.push_control(bytes(1), pacing::Kind::Quiet, LIMIT).unwrap(),
        |outbox| reliable(outbox, 1),
        |outbox| assert_eq!(volatile(outbox, 1, 1), Pushed::Waits),
    ];
    for fill in filled {
        let mut outbox = Outbox::default();
        fill(&mut outbox);
        assert!(!outbox.is_empty());
        outbox.close(None, Close::Restart);
        assert!(!outbox.is_empty_but_goodbye());
        assert_eq!(outbox.goodbye(), None);
    }
}

#[test]
fn a_goodbye_at_once_forgets_what_waits_and_a_second_one_changes_nothing() {
    let last = || Some(Bytes::from_static(b"last"));
    let mut outbox = Outbox::default();
    reliable(&mut outbox, 1);
    outbox.close_now(last(), Close::TokenExpired);
    assert_eq!((outbox.waiting_bytes(), outbox.pop()), (0, None));
    outbox.close_now(None, Close::Restart);
    assert_eq!(outbox.goodbye(), Some((last(), Close::TokenExpired)));

    let mut outbox = Outbox::default();
    reliable(&mut outbox, 1);
    outbox.close(last(), Close::TokenExpired);
    outbox.close_now(None, Close::Restart);
    assert_eq!(outbox.waiting_bytes(), 2 + ITEM, "the first goodbye lets it be written");
    outbox.forget_waiting();
    assert_eq!(outbox.goodbye(), Some((last(), Close::TokenExpired)));
}

#[test]
fn frames_that_the_window_holds_are_counted_until_one_leaves() {
    let mut outbox = Outbox::default();
    for stream in 1..=2 {
        assert_eq!(volatile(&mut outbox, stream, 0), Pushed::Waits);
    }
    assert_eq!(outbox.held(), 0);
    let no_volatile = |kind| kind != pacing::Kind::Volatile;
    assert_eq!(outbox.pop_if(no_volatile), None);
    assert_eq!(outbox.held(), 2);
    reliable(&mut outbox, 1);
    let (kind, message) = outbox.pop_if(no_volatile).unwrap();
    assert_eq!((kind, message.bytes), (pacing::Kind::Reliable, frame(0x80, 1)), "others pass them");
    assert_eq!(outbox.pop_if(|_| true).unwrap().0, pacing::Kind::Volatile);
    assert_eq!(outbox.held(), 0);
    assert_eq!(outbox.pop_if(no_volatile), None);
    assert_eq!((outbox.held(), outbox.drop_volatile(), outbox.held()), (1, 1, 0));
    assert_eq!(volatile(&mut outbox, 1, 0), Pushed::Waits);
    assert_eq!(outbox.held(), 0);
}

#[test]
fn a_lane_that_may_not_leave_gives_its_turn_away_and_is_asked_once() {
    let mut outbox = Outbox::default();
    reliable(&mut outbox, 1);
    assert_eq!(volatile(&mut outbox, 1, 0), Pushed::Waits);
    let mut asked = Vec::new();
    let (kind, _) = outbox
        .pop_if(|kind| {
            asked.push(kind);
            kind == pacing::Kind::Volatile
        })
        .unwrap();
    assert_eq!(
        (kind, &asked[..]),
        (pacing::Kind::Volatile, &[pacing::Kind::Reliable, pacing::Kind::Volatile][..])
    );
    assert_eq!(volatile(&mut outbox, 1, 0), Pushed::Waits);
    let _ = outbox.pop();
    // It is the volatile lane's turn now, and there is nothing reliable.
    asked.clear();
    let refused = outbox.pop_if(|kind| {
        asked.push(kind);
        false
    });
    assert_eq!((refused, &asked[..]), (None, &[pacing::Kind::Volatile][..]));
}

#[test]
fn only_the_first_that_waits_keeps_its_read_buffer() {
    let mut outbox = Outbox::default();
    let read = Bytes::from(vec![1; 4096]);
    let is_own = |message: Outgoing| !read.as_ptr_range().contains(&message.bytes.as_ptr());
    for _ in 0..2 {
        outbox.push_reliable(Outgoing::binary(read.slice(..8), None), LIMIT).unwrap();
    }
    assert!(!is_own(outbox.pop().unwrap()) && is_own(outbox.pop().unwrap()));
    let now = Instant::now();
    for stream in [1, 2, 2] {
        let _ = outbox.push_volatile(StreamId(stream), read.slice(..8), now, LIMIT);
    }
    assert!(!is_own(outbox.pop().unwrap()) && is_own(outbox.pop().unwrap()));
    for _ in 0..2 {
        let _ = outbox.push_volatile(StreamId(1), read.slice(..8), now, LIMIT);
    }
    assert!(is_own(outbox.pop().unwrap()), "what replaces another may wait for long, too");
}

#[test]
fn a_long_queue_gives_its_memory_back_when_it_is_empty() {
    let mut outbox = Outbox::default();
    reliable(&mut outbox, 1);
    drain(&mut outbox);
    assert!((1..=KEEP).contains(&outbox.reliable.capacity()), "a short one keeps it");
    for n in 0..20 {
        reliable(&mut outbox, n);
        let _ = volatile(&mut outbox, n, n);
        outbox.push_control(bytes(1), pacing::Kind::Quiet, LIMIT).unwrap();
    }
    drain(&mut outbox);
    let left = [outbox.reliable.capacity(), outbox.volatile.capacity(), outbox.control.capacity()];
    assert_eq!(left, [0, 0, 0]);
}

#[test]
fn a_quarter_of_the_limit_is_still_long() {
    let mut outbox = Outbox::default();
    let push = |outbox: &mut Outbox| {
        outbox.push_reliable(Outgoing::binary(bytes(100 - ITEM), None), LIMIT).unwrap();
        outbox.pressure_change(400)
    };
    let changes: Vec<_> = (0..3).map(|_| push(&mut outbox)).collect();
    assert_eq!(changes, [None, None, Some(PressureState::High)]);
    drop((outbox.pop(), outbox.pop()));
    assert_eq!((outbox.waiting_bytes(), outbox.pressure_change(400)), (100, None));
    outbox.pop();
    assert_eq!(outbox.pressure_change(400), Some(PressureState::Low));
    assert!(!outbox.is_pressed());
}

#[test]
fn debug_shows_kind_and_size_and_nothing_of_the_payload() {
    assert_eq!(format!("{:?}", Outgoing::binary(bytes(2), None)), "Binary(2 bytes)");
    let now = Instant::now();
    let text = Outgoing::text(bytes(3), Some(now));
    assert_eq!((format!("{text:?}"), text.since), ("Text(3 bytes)".to_owned(), Some(now)));
}
