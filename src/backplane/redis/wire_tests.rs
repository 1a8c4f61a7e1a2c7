//! What instances of the first version read and write in Redis: these bytes and names never change. What is new gets a
//! variant, a channel or a field of its own, which older instances ignore.

use bytes::Bytes;

use super::names::Names;
use super::presence::{Presence, announce};
use super::scripts::holder;
use crate::backplane::InstanceInfo;
use crate::relay::envelope::{Envelope, claimed_prefix, released_prefix};
use crate::relay::ids::{ClientId, ConnectionId, Device, Generation, InstanceId, Member, UserId};
use crate::relay::parcel::Parcel;
use crate::relay::record::{Holder, Lease};

const CONNECTION: &str = "0197a5c0-0000-7000-8000-000000000001";
const INSTANCE: &str = "00000000-0000-4000-8000-00000000000a";

fn member() -> Member {
    Member {
        connection: ConnectionId(CONNECTION.parse().unwrap()),
        generation: Generation(1_764_000_000_000_001),
    }
}

fn holder_named(client: Option<&str>) -> Holder {
    let client = client.and_then(ClientId::new);
    Holder { member: member(), instance: InstanceId(INSTANCE.parse().unwrap()), client }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A connection or instance as 16 bytes of MessagePack.
fn id(id: &str) -> String {
    format!("c410{}", id.replace('-', ""))
}

#[test]
fn envelopes_keep_their_bytes() {
    let (connection, instance) = (id(CONNECTION), id(INSTANCE));
    let from = format!("92{connection}cf{:016x}", member().generation.0);
    let generation = hex(member().generation.to_string().as_bytes());
    let parcel = |parcel| Envelope::Parcel { from: member(), parcel };
    let send = |id: Option<&str>| Parcel::Send {
        data: Bytes::from_static(b"{\"a\":1}"),
        id: id.map(str::to_owned),
        label: "a@b".into(),
        ack: false,
    };
    let claimed = |client| Envelope::Claimed { device: Device::Desktop, holder: holder_named(client) };
    let cases = [
        (parcel(Parcel::Frame(Bytes::from_static(b"\x01face"))), format!("81a166{from}0166616365")),
        (parcel(send(Some("7"))), format!("81a17393{from}a137a36140627b2261223a317d")),
        (parcel(send(None)), format!("81a17393{from}c0a36140627b2261223a317d")),
        (
            parcel(Parcel::Text { text: Bytes::from_static(b"hi"), label: "a@b".into() }),
            format!("81a17492{from}a36140626869"),
        ),
        (claimed(Some("tab")), format!("81a16394a76465736b746f70{connection}{instance}a3746162{generation}")),
        (claimed(None), format!("81a16394a76465736b746f70{connection}{instance}c0{generation}")),
        (
            Envelope::Released { device: Device::Mobile, member: member() },
            format!("81a17292a66d6f62696c65{connection}{generation}"),
        ),
        (
            Envelope::Marker { instance: InstanceId(INSTANCE.parse().unwrap()), nonce: 300 },
            format!("81a16d92{instance}cd012c"),
        ),
        (Envelope::ServerMessage { data: Bytes::from_static(b"[1]").into() }, "81a16fc05b315d".to_owned()),
        (Envelope::Disconnect { connection: member().connection }, format!("81a178{connection}")),
    ];
    for (envelope, bytes) in cases {
        assert_eq!(hex(&envelope.encode()), bytes, "{envelope:?}");
        let read: Vec<u8> = (0..bytes.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&bytes[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(Envelope::decode(&Bytes::from(read)), Ok(envelope));
    }
}

#[test]
fn the_scripts_envelopes_lack_only_their_generation() {
    let holder = holder_named(Some("tab"));
    let whole = Envelope::Claimed { device: Device::Mobile, holder: holder.clone() }.encode();
    let prefix =
        claimed_prefix(Device::Mobile, holder.member.connection, holder.instance, holder.client.as_ref());
    assert_eq!(whole, [&prefix[..], b"1764000000000001"].concat());
    let whole = Envelope::Released { device: Device::Mobile, member: member() }.encode();
    assert_eq!(
        whole,
        [&released_prefix(Device::Mobile, member().connection)[..], b"1764000000000001"].concat()
    );
}

#[test]
fn announcements_keep_their_bytes() {
    let info = InstanceInfo {
        instance: InstanceId(INSTANCE.parse().unwrap()),
        connections: 70_000,
        version: "0.1.0".into(),
        started_at: 1_764_000_000_000,
        draining: true,
    };
    let bytes = announce(&info);
    let started_at = format!("{:016x}", info.started_at);
    assert_eq!(hex(&bytes), format!("95{}ce00011170a5302e312e30cf{started_at}c3", id(INSTANCE)));
    let mut presence = Presence::default();
    presence.on_announcement(&bytes, std::time::Instant::now());
    assert_eq!(presence.list(), [info]);
}

#[test]
fn what_was_unheard_keeps_its_bytes() {
    let channels = vec!["duo:{ann}:mobile", "duo:{bob}:desktop"];
    let bytes = rmp_serde::to_vec(&channels).unwrap();
    assert_eq!(bytes, b"\x92\xb0duo:{ann}:mobile\xb1duo:{bob}:desktop");
}

#[test]
fn slots_keep_their_text() {
    let read = |text: &str| holder(&text.into()).unwrap();
    for (client, name) in [(Some("tab"), "tab"), (None, ".")] {
        let text = format!("{CONNECTION} {INSTANCE} {name} 1764000000000001 1764000045000");
        assert_eq!(
            read(&text),
            Some(Lease { holder: holder_named(client), ends: 1_764_000_045_000, attempt: None })
        );
    }
    assert_eq!(read(""), None);
}

#[test]
fn names_stay() {
    let names = Names::new("duo", 0);
    let user = |uid| UserId::new(uid).unwrap();
    assert_eq!(names.room(&user("ann")), "duo:{ann}");
    assert_eq!(names.channel(&user("ann"), Device::Desktop), "duo:{ann}:desktop");
    assert_eq!(names.channel(&user("a/b c"), Device::Mobile), "duo:{a%2Fb%20c}:mobile");
    assert_eq!((names.instances(), names.unheard()), ("duo:instances".to_owned(), "duo:unheard".to_owned()));
}
