use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::metrics::Metrics;
use crate::relay::ids::{Device, UserId};

const LIMIT: usize = 1 << 20;

fn publisher() -> Rc<Publisher> {
    Publisher::new(true, LIMIT, &Rc::default(), Arc::new(Metrics::default()), Box::new(|_, _, _| ()))
}

fn ann() -> (UserId, Str) {
    (UserId::new("ann").unwrap(), Str::from_static("duo:{ann}:mobile"))
}

fn queue() -> Queue {
    let (user, channel) = ann();
    Queue::new(user, Device::Mobile, channel)
}

fn departed(envelope: &'static [u8]) -> Departed {
    let (user, channel) = ann();
    let envelope = Bytes::from_static(envelope);
    Departed { user, device: Device::Mobile, channel, envelope, since: None }
}

fn push(detours: &Detours, detour: &Detour, envelope: &'static [u8], now: Instant) -> Published {
    let metrics = Metrics::default();
    let push = |queue: &mut Queue| queue.push(envelope.into(), None, now, LIMIT, &metrics);
    detours.publish(detour, envelope.len(), push)
}

fn slot() -> u16 {
    redis_keyslot(ann().1.as_bytes())
}

#[test]
fn what_reached_nobody_leaves_again_and_what_may_have_reached_somebody_does_not() {
    use {Answer::*, Verdict::*};
    for (answer, in_time, too_late) in [
        (Heard, Done, Done),
        (Unheard, Again, Lost(LossCause::Unheard)),
        (Refused, Again, Lost(LossCause::Unheard)),
        (Unanswered, Lost(LossCause::Unanswered), Lost(LossCause::Unanswered)),
    ] {
        assert_eq!((verdict(answer, true), verdict(answer, false)), (in_time, too_late), "{answer:?}");
    }
}

#[test]
fn a_channel_takes_a_detour_while_its_slot_has_just_moved() {
    let (detours, old, new, now) = (Detours::default(), publisher(), publisher(), Instant::now());
    let of = |slot: u16, now| detours.of(slot, &new, now, &ann().1, queue);
    assert!(detours.is_quiet() && of(slot(), now).is_none());
    detours.on_moved(&[slot()], &old, now);
    assert!(of(slot() + 1, now).is_none(), "another slot");
    assert!(of(slot(), now + FOLLOWS).is_none(), "long ago");
    let detour = of(slot(), now).unwrap();
    assert!(Rc::ptr_eq(&detour, &of(slot(), now + FOLLOWS).unwrap()), "until it ends");
    assert!(detours.end(&detour).is_none());
    detours.sweep(now + FOLLOWS);
    assert!(detours.is_quiet());
}

#[test]
fn what_was_refused_leaves_before_what_came_later_and_never_behind_what_was_carried_out() {
    let (detours, old, now) = (Detours::default(), publisher(), Instant::now());
    assert!(detours.refuse(slot(), &old, departed(b"one"), now).is_ok());
    let detour = detours.of(slot(), &old, now, &ann().1, queue).unwrap();
    assert_eq!(push(&detours, &detour, b"three", now), Published::Queued);
    assert!(detours.refuse(slot(), &old, departed(b"two"), now).is_ok());
    assert!(detours.barrier(slot(), &ann().1).is_some());
    let next = || detours.next(&detour).map(|departed| departed.envelope);
    assert_eq!(next().unwrap(), "one");
    let late = detours.refuse(slot(), &old, departed(b"late"), now);
    assert!(late.is_err(), "something has left already");
    assert_eq!([next().unwrap(), next().unwrap()], ["two", "three"]);
    assert!(next().is_none() && detours.is_idle());
    assert_eq!(detours.bytes(), 0);
    assert!(detours.end(&detour).is_none());

    assert!(detours.refuse(slot(), &old, departed(b"four"), now).is_ok());
    let lost: Vec<_> = detours.on_overtaken(&ann().1).into_iter().map(|it| it.envelope).collect();
    assert_eq!(lost, ["four"]);
    assert_eq!(detours.bytes(), 0);
}

#[test]
fn what_waits_at_the_old_node_goes_along() {
    let (detours, old, new, now) = (Detours::default(), publisher(), publisher(), Instant::now());
    let (user, channel) = ann();
    for envelope in ["one", "two"] {
        let to = (&user, Device::Mobile);
        let published = old.publish(to, channel.to_string(), envelope.into(), None, now);
        assert_eq!(published, Published::Queued);
    }
    assert!(old.waits_for(&channel));
    detours.on_moved(&[slot()], &old, now);
    assert!(!old.waits_for(&channel) && old.is_idle() && !detours.is_idle());
    let detour = detours.of(slot(), &new, now, &channel, queue).unwrap();
    assert_eq!(detours.next(&detour).unwrap().envelope, "one");
    let (mut rest, _) = detours.end(&detour).unwrap();
    assert_eq!(rest.pop().unwrap().envelope, "two");
    assert_eq!((detours.bytes(), old.queued_bytes()), (0, 0));
}
