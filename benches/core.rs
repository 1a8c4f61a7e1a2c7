//! What the pure core costs: `cargo bench --bench core`. Figures are for comparing before and after a change on
//! one machine; nothing here is a test.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use divan::Bencher;
use duorelay::relay::envelope::Envelope;
use duorelay::relay::ids::{ConnectionId, Device, Generation, InstanceId, Member, StreamId, UserId};
use duorelay::relay::limits::{Quota, Rate};
use duorelay::relay::outbox::{Outbox, Outgoing};
use duorelay::relay::parcel::Parcel;
use duorelay::relay::protocol::{ClientMessage, Sender, ServerMessage, compact_json, raw_json};
use duorelay::relay::record::{Claim, Holder, Record};
use duorelay::relay::room::Room;
use uuid::Uuid;

fn main() {
    divan::main();
}

/// A face: 300 bytes, as measured.
const FACE: usize = 300;
const QUEUE: usize = 1 << 20;

fn member(n: u32) -> Member {
    Member { connection: ConnectionId(Uuid::from_u128(n.into())), generation: Generation(n.into()) }
}

fn frame() -> Envelope {
    Envelope::Parcel { from: member(7), parcel: Parcel::Frame(Bytes::from(vec![1; FACE])) }
}

#[divan::bench]
fn decode_send(bencher: Bencher<'_, '_>) {
    let json = format!(r#"{{"type":"send","data":{{"blob":"{}"}},"id":"42"}}"#, "x".repeat(FACE));
    bencher.bench(|| ClientMessage::parse(black_box(&json)).is_ok());
}

#[divan::bench]
fn encode_message(bencher: Bencher<'_, '_>) {
    let data = format!(r#"{{"blob":"{}"}}"#, "x".repeat(FACE));
    bencher.bench(|| {
        let data = Some(raw_json(black_box(&data)));
        ServerMessage::Message { from: Sender::Mobile, data, text: None, id: Some("42"), ack: false }.encode()
    });
}

#[divan::bench]
fn compact(bencher: Bencher<'_, '_>) {
    let data = format!(r#"{{ "blob" : "{}" }}"#, "x".repeat(FACE));
    bencher.bench(|| compact_json(black_box(&data)));
}

#[divan::bench]
fn encode_envelope(bencher: Bencher<'_, '_>) {
    let envelope = frame();
    bencher.bench(|| black_box(&envelope).encode());
}

#[divan::bench]
fn decode_envelope(bencher: Bencher<'_, '_>) {
    let bytes = frame().encode();
    bencher.bench(|| Envelope::decode(black_box(&bytes)).is_ok());
}

#[divan::bench]
fn outbox_volatile_through(bencher: Bencher<'_, '_>) {
    let (mut outbox, face, now) = (Outbox::default(), Bytes::from(vec![1; FACE]), Instant::now());
    bencher.bench_local(|| {
        let _ = outbox.push_volatile(StreamId(1), face.clone(), now, QUEUE);
        outbox.pop()
    });
}

#[divan::bench]
fn outbox_volatile_replaced(bencher: Bencher<'_, '_>) {
    let (mut outbox, face, now) = (Outbox::default(), Bytes::from(vec![1; FACE]), Instant::now());
    let _ = outbox.push_volatile(StreamId(1), face.clone(), now, QUEUE);
    bencher.bench_local(|| outbox.push_volatile(StreamId(1), face.clone(), now, QUEUE));
}

#[divan::bench]
fn outbox_reliable_through(bencher: Bencher<'_, '_>) {
    let (mut outbox, face) = (Outbox::default(), Bytes::from(vec![0x80; FACE]));
    bencher.bench_local(|| {
        let _ = outbox.push_reliable(Outgoing::binary(face.clone(), None), QUEUE);
        outbox.pop()
    });
}

#[divan::bench]
fn rate_of_a_message(bencher: Bencher<'_, '_>) {
    let (mut rate, now) = (Rate::default(), Instant::now());
    let quota = Quota::new(240, Duration::from_secs(1));
    bencher.bench_local(|| rate.on(1, quota, black_box(now)));
}

fn two_here() -> Room<u32> {
    let (mut room, instance, mut effects) = (Room::default(), InstanceId(Uuid::from_u128(1)), Vec::new());
    for (device, n) in Device::ALL.into_iter().zip(1..) {
        room.on_claiming(device, member(n).connection, n);
        room.on_claimed(device, Holder { member: member(n), instance, client: None }, &mut effects);
    }
    room
}

#[divan::bench]
fn room_route(bencher: Bencher<'_, '_>) {
    let mut room = two_here();
    bencher.bench_local(|| {
        let _ = black_box(room.route(Device::Mobile, member(2).connection));
    });
}

#[divan::bench]
fn room_takeover(bencher: Bencher<'_, '_>) {
    let instance = InstanceId(Uuid::from_u128(1));
    bencher.with_inputs(|| (two_here(), Vec::new())).bench_local_values(|(mut room, mut effects)| {
        room.on_claiming(Device::Desktop, member(3).connection, 3);
        room.on_claimed(Device::Desktop, Holder { member: member(3), instance, client: None }, &mut effects);
        (room, effects)
    });
}

#[divan::bench]
fn record_claim(bencher: Bencher<'_, '_>) {
    let (mut record, mut now) = (Record::default(), 0);
    bencher.bench_local(|| {
        now += 2_000_000;
        let claim = Claim {
            device: Device::Desktop,
            connection: member(1).connection,
            instance: InstanceId(Uuid::from_u128(1)),
            client: None,
            attempt: None,
            known: Generation::NONE,
        };
        record.claim(now, 45_000, claim)
    });
}

#[divan::bench]
fn user_id(bencher: Bencher<'_, '_>) {
    bencher.bench(|| UserId::new(black_box("4f6e7d8c9b0a1f2e3d4c5b6a7988")));
}
