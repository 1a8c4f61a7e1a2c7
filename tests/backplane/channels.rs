//! What is published, and who hears it in which order.

use std::time::Duration;

use bytes::Bytes;
use duorelay::relay::envelope::Envelope;
use duorelay::relay::ids::Device;
use duorelay::relay::parcel::Parcel;
use tokio::time::Instant;

use crate::world::{Heard, World, claimed, frame, released, user};

const DESKTOP: Device = Device::Desktop;
const MOBILE: Device = Device::Mobile;

pub async fn who_has_claimed_hears_everything_that_is_published_after_it(world: &World) {
    let (a, b) = (world.attach().await, world.attach().await);
    for n in 0..100 {
        let ann = user(&format!("ann{n}"));
        let (mobile, _) = a.claim(&ann, MOBILE, None).await;
        a.take();
        b.take();
        // The mobile's instance learns of the desktop from its channel, and answers at once.
        let answer = async {
            let (_, _, envelope) = a.next_on_channel().await;
            let Envelope::Claimed { device: DESKTOP, holder } = envelope else { panic!("{envelope:?}") };
            a.publish(&ann, DESKTOP, frame(&mobile, b"hello"));
            holder
        };
        let ((desktop, _), other) = tokio::join!(b.claim(&ann, DESKTOP, None), answer);
        assert_eq!(other, desktop);
        let nonce = a.mark(&ann, DESKTOP);
        let heard: Vec<_> = b.until_marker(nonce).await.into_iter().map(|heard| heard.2).collect();
        assert_eq!(heard, [claimed(DESKTOP, &desktop), frame(&mobile, b"hello")]);
    }
}

pub async fn a_thousand_publishes_arrive_once_and_in_order(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (desktop, _) = a.claim(&ann, DESKTOP, None).await;
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    a.take();
    b.take();
    for n in 0..1000_u32 {
        a.publish(&ann, MOBILE, frame(&desktop, &n.to_be_bytes()));
        b.publish(&ann, DESKTOP, frame(&mobile, &n.to_be_bytes()));
        if n % 100 == 99 {
            // In one turn and over several.
            tokio::task::yield_now().await;
        }
    }
    for (worker, other, from, channel) in [(&a, &b, &mobile, DESKTOP), (&b, &a, &desktop, MOBILE)] {
        let nonce = other.mark(&ann, channel);
        let heard = worker.until_marker(nonce).await;
        let heard = heard
            .into_iter()
            .map(|heard| heard.2)
            .filter(|envelope| matches!(envelope, Envelope::Parcel { .. }));
        let expected = (0..1000_u32).map(|n| frame(from, &n.to_be_bytes()));
        assert!(heard.eq(expected));
    }
}

pub async fn all_subscribers_of_a_lane_hear_the_same_order(world: &World) {
    let (a, b, c, ann) = (world.attach().await, world.attach().await, world.attach().await, user("ann"));
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    a.claim(&ann, DESKTOP, Some("tab")).await;
    let (mut last, _) = c.claim(&ann, DESKTOP, Some("tab")).await;
    // What was said so far is out of the way, wherever it still travels.
    let nonce = b.mark(&ann, DESKTOP);
    a.until_marker(nonce).await;
    c.until_marker(nonce).await;
    let sending = async {
        for n in 0..400_u32 {
            b.publish(&ann, DESKTOP, frame(&mobile, &n.to_be_bytes()));
            tokio::task::yield_now().await;
        }
    };
    let claiming = async {
        for n in 0..20 {
            let worker = if n % 2 == 0 { &a } else { &c };
            last = worker.claim(&ann, DESKTOP, Some("tab")).await.0;
        }
    };
    tokio::join!(sending, claiming);
    let nonce = b.mark(&ann, DESKTOP);
    let (at_a, at_c) = (a.until_marker(nonce).await, c.until_marker(nonce).await);
    assert_eq!(at_a, at_c);
    let claims = at_a.iter().filter_map(|heard| match &heard.2 {
        Envelope::Claimed { holder, .. } => Some(holder.member.generation),
        _ => None,
    });
    assert!(claims.is_sorted(), "the channel's order is the room's order");
    assert_eq!(at_a.len(), 420);
}

pub async fn claims_and_releases_stand_at_their_point_on_both_lanes(world: &World) {
    let (a, b, c, ann) = (world.attach().await, world.attach().await, world.attach().await, user("ann"));
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    let (old, _) = a.claim(&ann, DESKTOP, None).await;
    a.take();
    b.take();
    b.publish(&ann, DESKTOP, frame(&mobile, b"for the old one"));
    assert_eq!(a.next_on_channel().await.2, frame(&mobile, b"for the old one"));
    let (new, _) = c.claim(&ann, DESKTOP, None).await;
    assert_eq!(b.next_on_channel().await.2, claimed(DESKTOP, &new));
    b.publish(&ann, DESKTOP, frame(&mobile, b"for the new one"));
    assert_eq!(a.next_on_channel().await.2, claimed(DESKTOP, &new));
    assert_eq!(a.next_on_channel().await.2, frame(&mobile, b"for the new one"));
    assert_eq!(c.next_on_channel().await.2, claimed(DESKTOP, &new));
    assert_eq!(c.next_on_channel().await.2, frame(&mobile, b"for the new one"));
    // The last words of who leaves come before its release.
    c.publish(&ann, MOBILE, frame(&new, b"bye"));
    let nonce = c.mark(&ann, MOBILE);
    assert_eq!(b.until_marker(nonce).await.pop().unwrap().2, frame(&new, b"bye"));
    c.release(&ann, DESKTOP, &new).await;
    assert_eq!(b.next_on_channel().await, (ann.clone(), MOBILE, released(DESKTOP, &new)));
    for worker in [&a, &c] {
        assert_eq!(worker.next_on_channel().await, (ann.clone(), DESKTOP, released(DESKTOP, &new)));
    }
    // The claimer of one channel does not hear the other one.
    a.claim(&ann, DESKTOP, None).await;
    let nonce = b.mark(&ann, DESKTOP);
    assert!(a.until_marker(nonce).await.iter().all(|heard| heard.1 == DESKTOP));
    assert_ne!(old, new);
}

pub async fn every_envelope_arrives_as_it_was_published(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (desktop, _) = a.claim(&ann, DESKTOP, None).await;
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    a.take();
    b.take();
    let all_bytes: Vec<u8> = (0..=255).collect();
    let parcel = |parcel| Envelope::Parcel { from: desktop.member, parcel };
    let label: std::sync::Arc<str> = "ann@example.com".into();
    let send = |data: &str, id: Option<&str>| {
        parcel(Parcel::Send {
            data: Bytes::copy_from_slice(data.as_bytes()),
            id: id.map(str::to_owned),
            label: label.clone(),
            ack: false,
        })
    };
    let text = |text: &str| {
        parcel(Parcel::Text { text: Bytes::copy_from_slice(text.as_bytes()), label: label.clone() })
    };
    let envelopes = [
        frame(&desktop, b"plain text"),
        frame(&desktop, &all_bytes),
        frame(&desktop, b""),
        frame(&desktop, &vec![0x7F; 1 << 16]),
        parcel(Parcel::Frame(Bytes::from_static(b"\x00"))),
        parcel(Parcel::Frame(Bytes::from_static(b"\x7f\xff\xfe\r\n$5\r\n"))),
        send("{\"a\": [1, null]}", Some("id")),
        send("null", None),
        text("smessage"),
        text(""),
        Envelope::ServerMessage { data: Bytes::from_static(b"{\"from\":\"operator\"}").into() },
        Envelope::Disconnect { connection: mobile.member.connection },
    ];
    for envelope in &envelopes {
        a.publish(&ann, MOBILE, envelope.clone());
        let (_, channel, heard) = b.next_on_channel().await;
        assert_eq!((channel, &heard), (MOBILE, envelope));
    }
}

pub async fn unsubscribing_and_coming_back_loses_nothing(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    // Long enough for channels to be given back meanwhile.
    let until = Instant::now() + Duration::from_millis(2500);
    let mut turn = 0;
    while Instant::now() < until {
        turn += 1;
        let (desktop, _) = a.claim(&ann, DESKTOP, Some("tab")).await;
        a.take();
        b.publish(&ann, DESKTOP, frame(&mobile, b"hello"));
        let nonce = b.mark(&ann, DESKTOP);
        let heard = a.until_marker(nonce).await;
        assert_eq!(heard, [(ann.clone(), DESKTOP, frame(&mobile, b"hello"))], "turn {turn}");
        a.release(&ann, DESKTOP, &desktop).await;
        a.backplane.unsubscribe(&ann, DESKTOP);
        a.backplane.unsubscribe(&ann, DESKTOP);
    }
}

pub async fn what_is_not_subscribed_is_not_heard(world: &World) {
    let (a, b, ann) = (world.attach().await, world.attach().await, user("ann"));
    let (mobile, _) = b.claim(&ann, MOBILE, None).await;
    let (desktop, _) = a.claim(&ann, DESKTOP, None).await;
    a.release(&ann, DESKTOP, &desktop).await;
    a.backplane.unsubscribe(&ann, DESKTOP);
    // A channel is given back within seconds; then a frame on it is heard by nobody.
    let deadline = Instant::now() + crate::support::LIMIT;
    loop {
        a.take();
        b.publish(&ann, DESKTOP, frame(&mobile, b"for nobody"));
        // What b hears itself was published later, by the same connection.
        let nonce = b.mark(&ann, MOBILE);
        b.until_marker(nonce).await;
        let (other, _) = a.claim(&user("other"), DESKTOP, Some("tab")).await;
        assert_eq!(other.instance, a.instance);
        let heard = a.take();
        if !heard.iter().any(|heard| matches!(heard, Heard::Envelope(user, ..) if *user == ann)) {
            break;
        }
        assert!(Instant::now() < deadline, "still subscribed");
    }
}
