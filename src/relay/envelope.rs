//! What instances say to each other on a channel. It is a short MessagePack header, and the payload behind it
//! as it is. No instance copies or parses the payload on its way.

use std::borrow::Cow;
use std::io::Cursor;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::ids::{ClientId, ConnectionId, Device, Generation, InstanceId, Member};
use super::parcel::{Parcel, PressureState, Undelivered};
use super::private::Private;
use super::record::Holder;

/// One message on the channel of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Envelope {
    /// From the current member of the other slot, for this device.
    Parcel {
        /// The sender and its generation: receivers drop what a stale sender sent.
        from: Member,
        /// The message, as its sender's protocol wrote it.
        parcel: Parcel,
    },
    /// A slot has a new holder (published on both channels).
    Claimed {
        /// The slot that changed hands.
        device: Device,
        /// The new holder of the slot.
        holder: Holder,
    },
    /// A slot became free (published on both channels).
    Released {
        /// The slot that became free.
        device: Device,
        /// The connection that left, and its generation.
        member: Member,
    },
    /// What its publisher sent on this channel before it has arrived.
    Marker {
        /// The publisher; other instances ignore the marker.
        instance: InstanceId,
        /// The number that the publisher's room waits for.
        nonce: u64,
    },
    /// From an operator, for this device.
    ServerMessage {
        /// The operator's JSON, as it was posted.
        data: Private<Bytes>,
    },
    /// An operator disconnects this device.
    Disconnect {
        /// The connection that is meant.
        connection: ConnectionId,
    },
    /// What a connection of this device sent has reached the other instance, and not what it was meant for.
    Undelivered {
        /// The connection that sent it.
        connection: ConnectionId,
        /// What the receiver's instance found.
        cause: Undelivered,
        /// The message's `id`, where it had one.
        id: Option<String>,
    },
}

/// Bytes that are no envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an envelope of this version")]
pub struct NotAnEnvelope;

#[derive(Serialize, Deserialize)]
enum Header<'a> {
    #[serde(rename = "f")]
    Frame(Member),
    #[serde(rename = "s")]
    Send(Member, Option<String>, Cow<'a, str>),
    #[serde(rename = "t")]
    Text(Member, Cow<'a, str>),
    /// The generation is the payload, in decimal: the claim script appends it.
    #[serde(rename = "c")]
    Claimed(Device, ConnectionId, InstanceId, Option<ClientId>),
    /// The generation is the payload here as well.
    #[serde(rename = "r")]
    Released(Device, ConnectionId),
    #[serde(rename = "m")]
    Marker(InstanceId, u64),
    #[serde(rename = "o")]
    ServerMessage(()),
    #[serde(rename = "x")]
    Disconnect(ConnectionId),
    // An older instance does not know what follows, and ignores it.
    #[serde(rename = "a")]
    Ack(Member, Cow<'a, str>),
    #[serde(rename = "g")]
    Signal(Member, ConnectionId, Option<String>),
    #[serde(rename = "p")]
    Pressure(Member, PressureState),
    #[serde(rename = "u")]
    Undelivered(ConnectionId, Undelivered, Option<String>),
}

/// Behind the data of a `send`: its sender waits for an `ack`. White space is no part of a JSON value (RFC
/// 8259 section 2), and data that a client wrote never has any at its end. So an older instance, which knows
/// no `ack`, reads and delivers the same `send` as ever. The wish cannot be lost apart from its message.
const ACK_WANTED: u8 = b'\n';

impl Header<'_> {
    fn with(&self, payload: &[u8]) -> Bytes {
        let mut bytes = Vec::with_capacity(64 + payload.len());
        // Writing these types into memory cannot fail.
        let _ = rmp_serde::encode::write(&mut bytes, self);
        bytes.extend_from_slice(payload);
        Bytes::from(bytes)
    }
}

impl Envelope {
    /// The bytes on the channel.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Parcel { from, parcel } => match parcel {
                Parcel::Frame(bytes) => Header::Frame(*from).with(bytes),
                Parcel::Send { data, id, label, ack } => {
                    let header = Header::Send(*from, id.clone(), label.as_ref().into());
                    if *ack { header.with(&[data, &[ACK_WANTED][..]].concat()) } else { header.with(data) }
                }
                Parcel::Text { text, label } => Header::Text(*from, label.as_ref().into()).with(text),
                Parcel::Ack { id } => Header::Ack(*from, id.into()).with(&[]),
                Parcel::Signal { to, data, id } => Header::Signal(*from, *to, id.clone()).with(data),
                Parcel::Pressure(state) => Header::Pressure(*from, *state).with(&[]),
            },
            Self::Claimed { device, holder } => {
                let prefix = claimed_prefix(
                    *device,
                    holder.member.connection,
                    holder.instance,
                    holder.client.as_ref(),
                );
                let mut bytes = Vec::from(prefix);
                bytes.extend_from_slice(holder.member.generation.to_string().as_bytes());
                Bytes::from(bytes)
            }
            Self::Released { device, member } => {
                let mut bytes = Vec::from(released_prefix(*device, member.connection));
                bytes.extend_from_slice(member.generation.to_string().as_bytes());
                Bytes::from(bytes)
            }
            Self::Marker { instance, nonce } => Header::Marker(*instance, *nonce).with(&[]),
            Self::ServerMessage { data } => Header::ServerMessage(()).with(data),
            Self::Disconnect { connection } => Header::Disconnect(*connection).with(&[]),
            Self::Undelivered { connection, cause, id } => {
                Header::Undelivered(*connection, *cause, id.clone()).with(&[])
            }
        }
    }

    /// Reads what came on a channel; payloads stay slices of `bytes`.
    ///
    /// # Errors
    /// When `bytes` are not what [`Self::encode`] writes.
    pub fn decode(bytes: &Bytes) -> Result<Self, NotAnEnvelope> {
        let mut deserializer = rmp_serde::Deserializer::new(Cursor::new(&bytes[..]));
        let header: Header<'_> = Deserialize::deserialize(&mut deserializer).map_err(|_| NotAnEnvelope)?;
        let read = usize::try_from(deserializer.position()).map_err(|_| NotAnEnvelope)?;
        let rest = bytes.get(read..).ok_or(NotAnEnvelope)?;
        let payload = || bytes.slice(read..);
        let utf8 = || std::str::from_utf8(rest).map(|_| payload()).map_err(|_| NotAnEnvelope);
        let generation = || {
            let number = std::str::from_utf8(rest).ok().and_then(|text| text.parse().ok());
            number.map(Generation).ok_or(NotAnEnvelope)
        };
        Ok(match header {
            Header::Frame(_) if rest.is_empty() => return Err(NotAnEnvelope),
            Header::Frame(from) => Self::Parcel { from, parcel: Parcel::Frame(payload()) },
            Header::Send(from, id, label) => {
                let data = utf8()?;
                let ack = data.last() == Some(&ACK_WANTED);
                let data = if ack { data.slice(..data.len() - 1) } else { data };
                Self::Parcel { from, parcel: Parcel::Send { data, id, label: label.as_ref().into(), ack } }
            }
            Header::Text(from, label) => {
                Self::Parcel { from, parcel: Parcel::Text { text: utf8()?, label: label.as_ref().into() } }
            }
            Header::Claimed(device, connection, instance, client) => {
                let member = Member { connection, generation: generation()? };
                Self::Claimed { device, holder: Holder { member, instance, client } }
            }
            Header::Released(device, connection) => {
                Self::Released { device, member: Member { connection, generation: generation()? } }
            }
            Header::Marker(instance, nonce) => Self::Marker { instance, nonce },
            Header::ServerMessage(()) => Self::ServerMessage { data: utf8()?.into() },
            Header::Disconnect(connection) => Self::Disconnect { connection },
            Header::Ack(from, id) => Self::Parcel { from, parcel: Parcel::Ack { id: id.into_owned() } },
            Header::Signal(from, to, id) => {
                Self::Parcel { from, parcel: Parcel::Signal { to, data: utf8()?, id } }
            }
            Header::Pressure(from, state) => Self::Parcel { from, parcel: Parcel::Pressure(state) },
            Header::Undelivered(connection, cause, id) => Self::Undelivered { connection, cause, id },
        })
    }
}

/// A `claimed` envelope without its generation, which the claim script appends in decimal.
#[must_use]
pub fn claimed_prefix(
    device: Device,
    connection: ConnectionId,
    instance: InstanceId,
    client: Option<&ClientId>,
) -> Bytes {
    Header::Claimed(device, connection, instance, client.cloned()).with(&[])
}

/// A `released` envelope without its generation, which the release script appends in decimal.
#[must_use]
pub fn released_prefix(device: Device, connection: ConnectionId) -> Bytes {
    Header::Released(device, connection).with(&[])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn member(n: u64) -> Member {
        Member { connection: ConnectionId(Uuid::from_u128(n.into())), generation: Generation(n) }
    }

    #[test]
    fn a_frame_is_a_header_and_its_bytes() {
        let parcel = Parcel::Frame(Bytes::from_static(b"\x01face"));
        let envelope = Envelope::Parcel { from: member(7), parcel };
        let mut expected = vec![0x81, 0xa1, b'f', 0x92, 0xc4, 16];
        expected.extend_from_slice(&7u128.to_be_bytes());
        expected.push(7);
        expected.extend_from_slice(b"\x01face");
        assert_eq!(envelope.encode(), expected);
    }

    #[test]
    fn the_claim_script_appends_the_generation() {
        let client = ClientId::new("tab");
        let instance = InstanceId(Uuid::from_u128(3));
        let prefix = claimed_prefix(Device::Mobile, member(5).connection, instance, client.as_ref());
        let bytes = Bytes::from([&prefix[..], b"1800000000000000"].concat());
        let member =
            Member { connection: member(5).connection, generation: Generation(1_800_000_000_000_000) };
        let envelope =
            Envelope::Claimed { device: Device::Mobile, holder: Holder { member, instance, client } };
        assert_eq!(envelope.encode(), bytes);
        assert_eq!(Envelope::decode(&bytes), Ok(envelope));
    }

    #[test]
    fn a_client_that_no_handshake_would_let_in_is_in_no_envelope() {
        let bytes = |client: &str| {
            let header = ("mobile", member(5).connection, InstanceId(Uuid::from_u128(3)), Some(client));
            let bytes = rmp_serde::to_vec(&std::collections::BTreeMap::from([("c", header)])).unwrap();
            Bytes::from([&bytes[..], b"7"].concat())
        };
        assert!(Envelope::decode(&bytes("tab-1")).is_ok());
        for client in ["", "a b", "a\n", &"a".repeat(65)] {
            assert_eq!(Envelope::decode(&bytes(client)), Err(NotAnEnvelope), "{client:?}");
        }
    }

    #[test]
    fn a_send_with_ack_is_the_same_send_to_the_first_version() {
        let send = |data: &'static str, ack| {
            let parcel = Parcel::Send { data: data.into(), id: Some("x".into()), label: "l".into(), ack };
            Envelope::Parcel { from: member(7), parcel }.encode()
        };
        // Its reader takes all that follows the header for JSON, and the white space is none of the value.
        assert_eq!(send("[1]", true), send("[1]\n", false));
        assert_eq!(crate::relay::protocol::raw_json("[1]\n").get(), "[1]");
    }

    fn envelopes() -> impl Strategy<Value = Envelope> {
        let member = || any::<u64>().prop_map(member);
        let device = || prop_oneof![Just(Device::Desktop), Just(Device::Mobile)];
        let instance = || any::<u128>().prop_map(|n| InstanceId(Uuid::from_u128(n)));
        prop_oneof![
            (member(), prop::collection::vec(any::<u8>(), 1..300))
                .prop_map(|(from, b)| { Envelope::Parcel { from, parcel: Parcel::Frame(b.into()) } }),
            (member(), ".*", prop::option::of(".*"), ".*", any::<bool>()).prop_map(
                |(from, data, id, label, ack)| {
                    let parcel = Parcel::Send { data: data.into(), id, label: label.into(), ack };
                    Envelope::Parcel { from, parcel }
                }
            ),
            (member(), ".*").prop_map(|(from, id)| Envelope::Parcel { from, parcel: Parcel::Ack { id } }),
            (member(), member(), ".*", prop::option::of(".*")).prop_map(|(from, to, data, id)| {
                let parcel = Parcel::Signal { to: to.connection, data: data.into(), id };
                Envelope::Parcel { from, parcel }
            }),
            (member(), prop_oneof![Just(PressureState::High), Just(PressureState::Low)])
                .prop_map(|(from, state)| Envelope::Parcel { from, parcel: Parcel::Pressure(state) }),
            (
                member(),
                prop_oneof![Just(Undelivered::PeerAbsent), Just(Undelivered::AckUnsupported)],
                prop::option::of(".*")
            )
                .prop_map(|(member, cause, id)| Envelope::Undelivered {
                    connection: member.connection,
                    cause,
                    id
                }),
            (member(), ".*", ".*").prop_map(|(from, text, label)| Envelope::Parcel {
                from,
                parcel: Parcel::Text { text: text.into(), label: label.into() }
            }),
            (device(), member(), instance(), prop::option::of("[a-z]{1,64}")).prop_map(
                |(device, member, instance, c)| {
                    let client = c.and_then(|c| ClientId::new(&c));
                    Envelope::Claimed { device, holder: Holder { member, instance, client } }
                }
            ),
            (device(), member()).prop_map(|(device, member)| Envelope::Released { device, member }),
            (instance(), any::<u64>()).prop_map(|(instance, nonce)| Envelope::Marker { instance, nonce }),
            ".*".prop_map(|data| Envelope::ServerMessage { data: Bytes::from(data).into() }),
            member().prop_map(|member| Envelope::Disconnect { connection: member.connection }),
        ]
    }

    proptest! {
        #[test]
        fn every_envelope_comes_back(envelope in envelopes()) {
            prop_assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
        }

        #[test]
        fn no_bytes_panic_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Envelope::decode(&Bytes::from(bytes));
        }
    }
}
